"""Diagnostics of groups: by hand, and on enumerable games against the oracle, each within its own interval.

Dimension key: C context    N alternative    M continuation    A message of the first turn    B of the second
"""

from __future__ import annotations

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from c3jax.analysis import diagnostics
from c3jax.analysis.fidelity import compute_spearman
from c3jax.analysis.influence import compute_null_bias
from c3jax.commands.diagnose import credit_groups
from c3jax.lab import games, oracle, policies

LEVEL = 0.99
KEY = jax.random.key(3)
GROUPS, N, OWN, HALF = 800, 6, 2, 3
NO_LENGTH = np.zeros((GROUPS, N))


def holds(interval, value) -> bool:
    return interval.low <= value <= interval.high


class Team:
    """Two turns of four and three messages, 0/1 returns; everything the oracle says, and groups at the first turn."""

    def __init__(self, effect, coupling, sees=None, seed=0):
        family = games.make_team(
            messages=(4, 3),
            sees=sees or games.see_all(2),
            effect=effect,
            coupling=coupling,
            spread=0.0,
            noise="bernoulli",
        )
        policy = policies.make_tabular(family.shape, problems=1, scale=1.0)
        game, params = games.make_game(family, KEY, 0), policy.init(jax.random.fold_in(KEY, seed))
        known = (family.shape, game, policy, params)
        self.exact, self.variance = oracle.compute_oracle(*known), oracle.compute_variance(*known)
        self.influence = oracle.compute_influence(*known)
        self.mean_AB = np.asarray(games.tabulate_mean_return(family.shape, game), float)
        rows = [policy.logits(params, game, u, jnp.asarray(policies.list_contexts(family.shape, u))) for u in (0, 1)]
        self.first_A, second = (np.asarray(jax.nn.softmax(row), float) for row in rows)
        self.first_A = self.first_A[0] / self.first_A[0].sum()
        self.second_AB = np.broadcast_to(second[:, :3], (4, 3))
        self.q_A = np.asarray(self.exact.q[0][0], float)

    def draw(self, groups=GROUPS, alternatives=N, continuations=OWN + 2 * HALF, seed=0):
        """Alternatives, what the second role answers to each, and the returns."""
        random = np.random.default_rng(seed)
        message_CN = random.choice(4, p=self.first_A, size=(groups, alternatives))
        answer_CNM, return_CNM = self.answer(random, message_CN, continuations)
        return message_CN, answer_CNM, return_CNM

    def answer(self, random, message_CN, continuations):
        message_CNM = np.repeat(message_CN[:, :, None], continuations, axis=2)
        below_CNM = random.random(message_CNM.shape)[..., None] > np.cumsum(self.second_AB, axis=1)[message_CNM]
        answer_CNM = np.minimum(below_CNM.sum(axis=-1), 2)
        return answer_CNM, (random.random(message_CNM.shape) < self.mean_AB[message_CNM, answer_CNM]).astype(float)


@cache
def get_team(kind):
    return {"coupled": lambda: Team(1.0, 2.0), "flat": lambda: Team(0.0, 0.0)}[kind]()


@cache
def get_draws(kind):
    return get_team(kind).draw()


def split(return_CNM):
    held_CNM = return_CNM[:, :, OWN:]
    return held_CNM[:, :, :HALF].mean(axis=2), held_CNM[:, :, HALF:].mean(axis=2)


@pytest.mark.parametrize("method", ["c3", "rloo", "difference"])
def test_fidelity_is_that_to_the_exact_values(method):
    """Of the groups drawn: the pooled correlation with Q by the oracle within its interval, and the rank one nearly."""
    team, (message_CN, _, return_CNM) = get_team("coupled"), get_draws("coupled")
    null_CM = team.answer(np.random.default_rng(9), np.zeros((GROUPS, 1), int), N)[1][:, 0]
    credit_CN, q_CN = credit_groups(method, return_CNM[:, :, :OWN], null_CM), team.q_A[message_CN]
    found = diagnostics.compute_group_fidelity(credit_CN, *split(return_CNM), NO_LENGTH, LEVEL)
    centred = [value_CN - value_CN.mean(axis=1, keepdims=True) for value_CN in (credit_CN, q_CN)]
    pooled = (centred[0] * centred[1]).sum() / math.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert holds(found.linear, pooled) and found.linear.high - found.linear.low < 0.2
    rank_C = np.asarray(compute_spearman(jnp.asarray(credit_CN), jnp.asarray(q_CN), jnp.ones((GROUPS, N), bool)))
    is_constant_C, is_tied_C = ((value_CN == value_CN[:, :1]).all(axis=1) for value_CN in (credit_CN, -q_CN))
    exact = np.where(is_constant_C, 0.0, rank_C)[~is_tied_C].mean()
    assert found.observed.high < exact < found.corrected.high
    assert found.corrected.estimate == pytest.approx(exact, abs=0.05)


def test_the_released_diagnostics_are_at_their_artefacts_where_nothing_is_worth_more():
    """Fidelity to the credit's own returns is 1; plug-in influence of 4 messages with 2 continuations is over 3/16."""
    message_CN, _, return_CNM = get_team("flat").draw(alternatives=4, continuations=2 + 2 * HALF)
    credit_CN, own_CN = credit_groups("c3", return_CNM[:, :, :2], np.zeros((1, 1))), return_CNM[:, :, :2].mean(axis=2)
    to_itself = diagnostics.compute_rank_correlation(credit_CN, own_CN, LEVEL)
    np.testing.assert_allclose(to_itself, (1.0, 1.0, 1.0), atol=1e-6)
    held_out = diagnostics.compute_group_fidelity(credit_CN, *split(return_CNM), NO_LENGTH[:, :4], LEVEL)
    assert holds(held_out.observed, 0.0) and held_out.observed.high < 0.1
    apart_CN = np.broadcast_to(np.arange(4), message_CN.shape)  # every text of its own, as long messages are
    count_CJY = diagnostics.count_outcomes(apart_CN, return_CNM[:, :, :2].astype(int))
    found = diagnostics.compute_group_influence(count_CJY, LEVEL)
    assert found.plugin.low > 0.9 * compute_null_bias(4, 2, 8) and found.null.p > 0.01
    assert found.plugin.low < found.null.mean < found.plugin.high and holds(found.excess, 0.0)


def test_the_spread_of_credit_is_that_of_the_variance_law():
    team, (_, _, return_CNM) = get_team("coupled"), get_draws("coupled")
    credit = {
        name: credit_groups(name, return_CNM[:, :, :OWN], np.zeros((GROUPS, 1))) for name in ("c3", "no_loo", "rloo")
    }
    spread, noise = float(team.variance.spread_K[0]), float(team.variance.noise_K[0])
    # Sample variance of n alternatives' values is unbiased: tau^2 + sigma^2 / c; leave-one-out is n/(n - 1) times that
    # credit, and rloo has one continuation of each.
    factor = (N / (N - 1)) ** 2
    exact = {"c3": factor * (spread + noise / OWN), "no_loo": spread + noise / OWN, "rloo": factor * (spread + noise)}
    for name, variance in exact.items():
        found = diagnostics.compute_credit_variance(credit[name], LEVEL)
        assert holds(found, variance) and found.high < 1.1 * found.low, name
    found = diagnostics.compute_split_noise(*split(return_CNM), HALF, LEVEL)
    assert holds(found, noise) and found.high < 1.2 * found.low


def test_groups_without_a_gradient_and_repeated_alternatives_are_as_often_as_enumerated():
    team, (message_CN, _, return_CNM) = get_team("coupled"), get_draws("coupled")
    # Given the context, values of alternatives are independent: of two continuations, 0, 1/2 or 1 of all of them.
    value = team.first_A @ np.stack([(1 - team.q_A) ** 2, 2 * team.q_A * (1 - team.q_A), team.q_A**2], axis=1)
    single = np.array([1 - team.first_A @ team.q_A, team.first_A @ team.q_A])
    for method, chance in (("c3", value), ("rloo", single)):
        found = diagnostics.compute_zero_share(credit_groups(method, return_CNM[:, :, :OWN], np.zeros((1, 1))), LEVEL)
        assert holds(found, (chance**N).sum()), method
    distinct = (1 - (1 - team.first_A) ** N).sum()
    assert holds(diagnostics.compute_duplicate_share(message_CN, LEVEL), 1 - distinct / N)


def test_the_last_turns_credit_has_the_variance_of_single_returns():
    team, random = get_team("coupled"), np.random.default_rng(1)
    context_C = random.choice(4, p=team.first_A, size=4 * GROUPS)
    answer_CNM, _ = team.answer(random, np.repeat(context_C[:, None], N, axis=1), 1)
    mean_CN = team.mean_AB[context_C[:, None], answer_CNM[:, :, 0]]
    return_CNM = (random.random(mean_CN.shape) < mean_CN).astype(float)[:, :, None]
    found = diagnostics.compute_credit_variance(credit_groups("no_loo", return_CNM, np.zeros((1, 1))), LEVEL)
    assert holds(found, float(team.variance.spread_K[1] + team.variance.noise_K[1]))


def test_where_messages_are_worth_the_same_every_figure_is_zero_within_its_interval():
    team, (message_CN, _, return_CNM) = get_team("flat"), get_draws("flat")
    first_CN, second_CN = split(return_CNM)
    length_CN = message_CN.astype(float)
    null_CM = team.answer(np.random.default_rng(9), np.zeros((GROUPS, 1), int), N)[1][:, 0]
    for method in ("c3", "rloo", "difference"):
        credit_CN = credit_groups(method, return_CNM[:, :, :OWN], null_CM)
        found = diagnostics.compute_group_fidelity(credit_CN, first_CN, second_CN, length_CN, LEVEL)
        assert all(holds(part, 0.0) for part in (found.observed, found.reliability, found.beyond_length)), method
        assert not found.linear.low > 0.0, method  # a target without any order has none that could be corrected
    assert holds(diagnostics.compute_rank_correlation(length_CN, return_CNM.mean(axis=2), LEVEL), 0.0)
    bias = diagnostics.compute_arm_bias(return_CNM, null_CM, LEVEL)
    assert holds(bias.mean, 0.0) and holds(bias.root_mean_square, 0.0)
    outcome_CNM = return_CNM.astype(int)
    influence = diagnostics.compute_group_influence(diagnostics.count_outcomes(message_CN, outcome_CNM)[:200], LEVEL)
    assert influence.plugin.low > 0.01 and holds(influence.corrected, 0.0) and holds(influence.excess, 0.0)
    assert influence.null.p > 0.01


def test_the_bias_of_a_null_message_is_the_oracles():
    team, (_, _, return_CNM) = get_team("coupled"), get_draws("coupled")
    null_CM = team.answer(np.random.default_rng(9), np.zeros((GROUPS, 1), int), N)[1][:, 0]
    exact = float(team.exact.v[0][0]) - team.q_A[0]
    bias = diagnostics.compute_arm_bias(return_CNM, null_CM, LEVEL)
    assert abs(exact) > 0.1 and holds(bias.mean, exact) and holds(bias.root_mean_square, abs(exact))


def test_influence_is_the_enumerated_one():
    """Of messages on answers, and on returns: the mean over all groups that could be drawn, and so the policy's."""
    team = get_team("coupled")
    message_CN, answer_CNM, _ = team.draw(groups=60, alternatives=64, continuations=8, seed=5)
    found = diagnostics.compute_group_influence(diagnostics.count_outcomes(message_CN, answer_CNM), LEVEL)
    policy = float(team.influence.mean_KK[0, 1])
    share_CA = np.stack([(message_CN == message).mean(axis=1) for message in range(4)], axis=1)
    mixture_CB = share_CA @ team.second_AB
    drawn_C = (share_CA * (team.second_AB * np.log(team.second_AB / mixture_CB[:, None])).sum(axis=2)).sum(axis=1)
    assert holds(found.corrected, drawn_C.mean()) and holds(found.corrected, policy) and found.corrected.low > 0
    assert holds(found.excess, policy) and found.excess.low > 0 and found.null.p == 1 / 1000


def test_roles_that_do_not_listen_have_no_influence():
    team = Team(1.0, 2.0, sees=games.see_none(2))
    assert float(team.influence.mean_KK[0, 1]) == pytest.approx(0.0, abs=1e-6)
    message_CN, answer_CNM, return_CNM = team.draw(groups=300, alternatives=8, continuations=12)
    found = diagnostics.compute_group_influence(diagnostics.count_outcomes(message_CN, answer_CNM), LEVEL)
    assert holds(found.corrected, 0.0) and holds(found.excess, 0.0) and found.null.observed < found.null.quantile
    # Of few draws with many outcomes Miller and Madow's correction is not enough, and the excess is still zero.
    few_CNM = np.random.default_rng(2).integers(0, 10, (200, 4, 6))
    few = diagnostics.compute_group_influence(diagnostics.count_outcomes(message_CN[:200, :4], few_CNM), LEVEL)
    assert few.corrected.low > 0.1 and holds(few.excess, 0.0)
    # On the return it has some: what the answer is worth depends on the message that nobody read.
    of_return = diagnostics.count_outcomes(message_CN, return_CNM.astype(int))
    assert diagnostics.compute_group_influence(of_return, LEVEL).corrected.low > 0


def test_figures_by_hand():
    texts = [["a", "b", "a", "a"], ["x", "y", "z", "x"]]
    message_CN = diagnostics.number_distinct(texts)
    np.testing.assert_array_equal(message_CN, [[0, 1, 0, 0], [0, 1, 2, 0]])
    assert diagnostics.compute_duplicate_share(message_CN, LEVEL).estimate == (2 / 4 + 1 / 4) / 2
    outcome_CNM = np.array([[[0, 1], [1, 1], [0, 0], [0, 2]], [[0, 0], [1, 0], [0, 0], [0, 0]]])
    count_CJY = [[[4, 1, 1], [0, 2, 0], [0, 0, 0]], [[4, 0, 0], [1, 1, 0], [2, 0, 0]]]
    np.testing.assert_array_equal(diagnostics.count_outcomes(message_CN, outcome_CNM), count_CJY)
    assert diagnostics.compute_zero_share(np.array([[0.0, 0.0], [0.5, -0.5], [0.0, 0.1]]), LEVEL).estimate == 1 / 3
    # V - Q(null): 1/2 - 1/4 and 1 - 1; halves of the first context: (1, 0) less (0, 1/2), alternatives 0 2 and 1 3.
    return_CNM = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])[:, :, None]
    bias = diagnostics.compute_arm_bias(return_CNM, np.array([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), LEVEL)
    assert bias.mean.estimate == pytest.approx(1 / 8)
    assert bias.root_mean_square.estimate == pytest.approx(-math.sqrt(1.0 * 0.5 / 2))


def test_length_is_held_fixed_as_in_a_partial_correlation():
    random = np.random.default_rng(0)
    credit_CN, target_CN, length_CN = random.normal(size=(3, 1, 9))
    ranks = [stats.rankdata(value_CN[0]) for value_CN in (credit_CN, target_CN, length_CN)]
    residuals = [rank - np.polyval(np.polyfit(ranks[2], rank, 1), ranks[2]) for rank in ranks[:2]]
    expected = np.corrcoef(*residuals)[0, 1]
    found = diagnostics.compute_group_fidelity(credit_CN, target_CN, target_CN, length_CN, LEVEL)
    assert found.beyond_length.estimate == pytest.approx(expected, abs=1e-5)
    # Ordered by length alone, credit says nothing beyond it: of equal lengths the plain correlation is left.
    plain = diagnostics.compute_group_fidelity(credit_CN, target_CN, target_CN, 0 * length_CN, LEVEL)
    assert plain.beyond_length.estimate == pytest.approx(stats.spearmanr(credit_CN[0], target_CN[0])[0], abs=1e-5)


def test_a_bootstrap_of_means_is_the_normal_one_and_knows_what_is_undefined():
    value_XC = np.random.default_rng(1).normal([[1.0], [2.0]], 1.0, size=(2, 400))
    found = diagnostics.bootstrap_means(value_XC, lambda mean_X: mean_X[0] / mean_X[1], 0.95)
    # The delta method: var(x/y) = (var x / y^2 + x^2 var y / y^4) / C for independent x and y.
    error = math.sqrt((1 / 4 + 1 / 16) / 400)
    assert found.estimate == pytest.approx(value_XC[0].mean() / value_XC[1].mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    undefined = diagnostics.bootstrap_means(
        value_XC[:1] - 1.0, lambda mean_X: np.sqrt(np.where(mean_X[0] > 0, 1, np.nan)), 0.95
    )
    assert math.isnan(undefined.low) and math.isnan(undefined.high)
    nothing = diagnostics.compute_mean_interval(np.array([math.nan]), LEVEL)
    assert all(math.isnan(part) for part in nothing)


def test_the_parts_of_the_noise_scale_have_no_bias_and_their_intervals_their_coverage():
    """Gaussian gradients of five dimensions: tr Sigma is 5, and |G|^2 is 1, or 0 and then not resolved."""
    random, runs, problems = np.random.default_rng(0), 150, 40
    for size in (1.0, 0.0):
        found = []
        for gradient_PD in random.normal(size=(runs, problems, 5)) + size * np.eye(5)[0]:
            square_P, along_P = (gradient_PD**2).sum(axis=1), gradient_PD @ gradient_PD.mean(axis=0)
            found.append(diagnostics.compute_noise_scale(square_P, along_P, 0.95))
        for name, exact in (("signal", size), ("noise", 5.0)):
            intervals = [getattr(one, name) for one in found]
            estimates = [one.estimate for one in intervals]
            assert abs(np.mean(estimates) - exact) < 3 * np.std(estimates) / np.sqrt(runs)
            assert np.mean([one.low < exact < one.high for one in intervals]) > 0.88  # 0.95 less three of its errors
        scales = [one.scale for one in found if np.isfinite(one.scale.low)]
        assert len(scales) > 0.5 * runs if size else len(scales) < 0.05 * runs
        if size:
            assert np.mean([one.low < 5.0 < one.high for one in scales]) > 0.88
        assert np.mean([one.least < 5.0 for one in found]) > 0.88 or not size
