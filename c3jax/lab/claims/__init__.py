"""The claims about counterfactual credit, each with its prediction, measurement and judgement.

Predictions follow from the estimators' definitions, from the variance law of a context, and from an earlier exact
survey of forty two-role games. They were written before anything here was measured.
"""

from __future__ import annotations

from c3jax.lab.claims import comparison, diagnostics, direction, estimators, learning, removal
from c3jax.lab.claims.claim import Claim

CLAIMS: tuple[Claim, ...] = (
    Claim(
        number=1,
        name="unbiased",
        statement="Leave-one-out credit is unbiased for A* when counts are fixed in advance, and only then.",
        prediction=(
            "20 squared biases (replay form n = 2, 4, 8 with c = 1, 4 and counts 1+2+4; trees 2x4, 4x2, 8x2; both"
            " roles): every 99.9 % interval holds zero. Above zero for both roles: division by the group's standard"
            " deviation, counts that stop at the first success (at most 4), the own-including mean, removal by masking."
        ),
        measure=estimators.measure_bias,
        judge=estimators.judge_bias,
        plot=estimators.plot_bias,
    ),
    Claim(
        number=2,
        name="offset",
        statement="The mean of a context cancels; a baseline over the whole problem leaves V(h) - V(x) in the credit.",
        prediction=(
            "Second role, bias of the credit regressed on V(h) - V(x): slope 1 for rloo 8, 4/7 = 0.571 for no_replay"
            " 2x4 (4 of the 7 others are in another context), 0 for c3 2x4. As a gradient all three are unbiased: the"
            " squared error of the mean gradient over the truth's squared norm is zero for both roles."
        ),
        measure=estimators.measure_offset,
        judge=estimators.judge_offset,
        plot=None,
    ),
    Claim(
        number=3,
        name="variance-law",
        statement="Var(A_j | a_j) = (sigma^2 n / c + tau^2) / (n - 1).",
        prediction=(
            "Measured over predicted variance, from exact sigma^2 and tau^2, within 0.97 to 1.03 for n = 2, 4, 8 and"
            " c = 1, 2, 4, both roles."
        ),
        measure=estimators.measure_variance_law,
        judge=estimators.judge_variance_law,
        plot=estimators.plot_variance_law,
    ),
    Claim(
        number=4,
        name="leave-one-out-is-scaling",
        statement=(
            "Leave-one-out is n/(n - 1) times mean-centring, and identical to it after division by the group's std."
        ),
        prediction=(
            "Largest difference in float32 on returns in sixteenths: below 1e-6 before the division, below 1e-5 after"
            " it; with n = 2 every unequal pair becomes +1 and -1 to 1e-5."
        ),
        measure=estimators.measure_identities,
        judge=estimators.judge_identities,
        plot=None,
    ),
    Claim(
        number=5,
        name="fidelity",
        statement="Under one common policy, more faithful credit and a better gradient are different things.",
        prediction=(
            "Gradient noise/signal at 8 calls, first/second role: rloo 8 4.3/7.1, c3 2x4 11.6/9.0, c3 4x2 6.0/12.0"
            " (at equal messages 4.3/7.1, 7.3/5.6, 4.5/9.0); MSE to A* .235/.201, .133/.203, .145/.338; all within"
            " sampling error. Fidelity in the first role: c3 2x4 above c3 4x2 above rloo 8. A critic with the exact V"
            " ranks the messages of a context exactly as rloo does."
        ),
        measure=comparison.measure_fidelity,
        judge=comparison.judge_fidelity,
        plot=comparison.plot_fidelity,
    ),
    Claim(
        number=6,
        name="two-rankings",
        statement="The variance of the credit and the noise of the gradient rank estimators differently.",
        prediction=(
            "First role: c3 2x4 has the lower variance of credit (ratio to rloo 8 about 0.57) and the higher gradient"
            " noise/signal (ratio about 2.7)."
        ),
        measure=comparison.measure_rankings,
        judge=comparison.judge_rankings,
        plot=comparison.plot_rankings,
    ),
    Claim(
        number=7,
        name="four-arms",
        statement=(
            "Of {tree, flat} x {leave-one-out, mean}, flat with leave-one-out is exactly rloo, and the mean only"
            " scales."
        ),
        prediction=(
            "no_replay on independent episodes and rloo: matrices equal, difference 0. Mean over leave-one-out"
            " on the same"
            " draws: variance ratio ((n - 1)/n)^2 = 0.25 and 0.5625 for the tree 2x4, 0.7656 for 8 episodes, to 0.1 %;"
            " noise/signal ratio 1 to 0.1 %. The mean is biased in the tree for both roles; leave-one-out is not."
        ),
        measure=comparison.measure_arms,
        judge=comparison.judge_arms,
        plot=None,
    ),
    Claim(
        number=8,
        name="removal",
        statement=(
            "Removing a message estimates another quantity than A*; how far off grows with TV = 1 - pi(null | h)."
        ),
        prediction=(
            "|E credit - A*| is TV times |E[Q | not null] - Q(null)|: on a straight line through zero as the"
            " logit of the"
            " null message moves, to 1e-5, and the drawn estimate's bias agrees. Direction of the mean gradient:"
            " regenerated removal at least 0.99; masked removal 0.78 to 0.92 upstream; masked Shapley 0.62 to 0.92;"
            " best branch 0.96 to 0.97 downstream (each within 0.05)."
        ),
        measure=removal.measure_removal,
        judge=removal.judge_removal,
        plot=removal.plot_removal,
    ),
    Claim(
        number=9,
        name="learning-curves",
        statement="Which estimator learns fastest depends on the unit of the budget.",
        prediction=(
            "Mean return over the run, c3 2x4 less rloo 8: below zero at equal calls (the same as equal"
            " updates), higher"
            " at equal messages than at equal calls, above zero at equal tokens where the first role's messages"
            " are four"
            " times as long as the second's. magrpo 8 less rloo 8: zero within 0.005 (Adam removes a scale)."
        ),
        measure=learning.measure_curves,
        judge=learning.judge_curves,
        plot=learning.plot_curves,
    ),
    Claim(
        number=10,
        name="token-arithmetic",
        statement="The saving in tokens is the arithmetic of the fan-out, 10/16 only where roles write equally much.",
        prediction=(
            "Messages that the sampler drew equal the closed form for every plan. Tokens of c3 2x4 over rloo 8"
            " with first"
            " messages rho times as long: (2 rho + 8)/(8 rho + 8) = .85, .75, .625, .5, .4 for rho = 1/4, 1/2, 1, 2, 4;"
            " the 95 % interval of what was drawn holds it."
        ),
        measure=comparison.measure_tokens,
        judge=comparison.judge_tokens,
        plot=comparison.plot_tokens,
    ),
    Claim(
        number=11,
        name="fan-out",
        statement=(
            "At 8 calls a fan-out inside the range learns more than one at its ends; 1x8 does not train the first role."
        ),
        prediction=(
            "Gradient of the first role under 1x8 exactly 0. Mean return over the run: 2x4 above 1x8 and above"
            " 8x1 (whose"
            " second role has no alternatives). 4x2 not below 2x4, against the published peak at 2x4, since its"
            " noise/signal"
            " sums to 18 over roles and that of 2x4 to 20.6."
        ),
        measure=learning.measure_fan_out,
        judge=learning.judge_fan_out,
        plot=learning.plot_fan_out,
    ),
    Claim(
        number=12,
        name="depth",
        statement=(
            "At a fixed budget the tree's credit is less noisy than the replay form's at every depth it can be had at."
        ),
        prediction=(
            "K = 2..6 at about 64 calls, trees with product 64 against the replay form with n = 4: the sum over"
            " roles of"
            " noise/signal is lower for the tree at every K; at the last turn replay/tree is at least 2 and"
            " greater at K = 6"
            " than at K = 2; at the first turn replay/tree falls with depth and is below 1 at K = 6. Mean return"
            " over the"
            " run at equal calls: tree above replay at K = 2, 4 and 6."
        ),
        measure=learning.measure_depth,
        judge=learning.judge_depth,
        plot=learning.plot_depth,
    ),
    Claim(
        number=13,
        name="team-mates",
        statement=(
            "Noisy team-mates drown a trajectory baseline; credit at a fixed context does not hear those before it."
        ),
        prediction=(
            "Additive returns, m = 0, 1, 2, 4 untrained team-mates. Noise/signal at m = 4 over m = 0: magrpo 8"
            " between 1.8"
            " and 3.2, rising with m; c3 4x2 within 0.95 to 1.05 where they speak first, above 1.3 where they"
            " speak last."
            " Learning: c3's lead over magrpo in mean return is greater at m = 4 than at m = 0, team-mates first."
        ),
        measure=learning.measure_mates,
        judge=learning.judge_mates,
        plot=learning.plot_mates,
    ),
    Claim(
        number=14,
        name="influence",
        statement="Plug-in influence reports influence where there is none; correction and null remove it.",
        prediction=(
            "Policy that does not read the other, 4 messages, 2 outcomes. c = 2: plug-in about 0.28 nats for an"
            " even coin"
            " (exact sum; 3/16 is only its leading term), between 3/16 and 0.28 over games, and Miller-Madow"
            " leaves more"
            " than half of it. c = 8: plug-in within 25 % of 3/64, Miller-Madow leaves under 20 %. Permutation null:"
            " rejects in 1 to 12 % of trials at level 0.05 at both."
        ),
        measure=diagnostics.measure_influence,
        judge=diagnostics.judge_influence,
        plot=diagnostics.plot_influence,
    ),
    Claim(
        number=15,
        name="diagnostics-confound",
        statement="The released diagnostics move with the mean return, without any training.",
        prediction=(
            "Uniform policy, same estimator; only the problems' difficulty moves. Within-context variance and plug-in"
            " influence at mean return near 0.5 are at least twice those at mean return 0.1 or less. Fidelity to"
            " the same"
            " samples is 1.000 throughout, and the share of contexts that have one falls by a third or more."
        ),
        measure=diagnostics.measure_confound,
        judge=diagnostics.judge_confound,
        plot=diagnostics.plot_confound,
    ),
    Claim(
        number=16,
        name="critic-error",
        statement=(
            "A critic's gradient is better only up to a certain error, and with decay 0 its error turns the gradient."
        ),
        prediction=(
            "Decay 1: noise/signal passes that of rloo 8 at a root mean square error of the critic of 0.1 to"
            " 0.35 (theory:"
            " 0.19 and 0.26), that of c3 4x2 upstream at 0.25 to 0.6 (0.37), that of c3 2x4 downstream at 0.25 to 0.5"
            " (0.34); cosine stays above 0.98. Decay 0 upstream: cosine below 0.95 at error 0.1 and above."
        ),
        measure=direction.measure_critic,
        judge=direction.judge_critic,
        plot=direction.plot_critic,
    ),
    Claim(
        number=17,
        name="stale-policy",
        statement=(
            "Credit from a stale behaviour policy loses direction with distance; the importance ratio slows that."
        ),
        prediction=(
            "Exact, policies moved along their own advantages: cosine 1 at distance 0, falling with distance with and"
            " without the ratio; with it never lower, for both roles. Where the total variation is nearest 0.5:"
            " at least"
            " 0.9 with the ratio, at most 0.8 without."
        ),
        measure=direction.measure_stale,
        judge=direction.judge_stale,
        plot=direction.plot_stale,
    ),
    Claim(
        number=18,
        name="zero-groups",
        statement="Groups without a gradient grow more frequent as entropy falls, and are more frequent in the tree.",
        prediction=(
            "Share of groups whose credit is all zero, temperatures 4 to 1/8: larger at the lowest temperature"
            " than at the"
            " highest, for 0/1 and for noiseless returns; tree 2x4 above 8 episodes at every temperature and"
            " role. At equal"
            " odds it would be 70/256 = .27 and 1/8 for the tree, 1/128 for the episodes."
        ),
        measure=diagnostics.measure_zero_groups,
        judge=diagnostics.judge_zero_groups,
        plot=diagnostics.plot_zero_groups,
    ),
    Claim(
        number=19,
        name="message-length",
        statement=(
            "Averaging a loss by message turns the gradient where length depends on the message; by token it does not."
        ),
        prediction=(
            "Exact, lengths exp(s z) of each message: cosine with the true gradient 1 to 1e-6 by token at every s; by"
            " message 1 at s = 0 and below 0.95 for s = 1 and above, both roles."
        ),
        measure=direction.measure_length,
        judge=direction.judge_length,
        plot=direction.plot_length,
    ),
)
