"""Claims 5, 6, 10, 16, 17 and 19: estimators side by side under one policy, and what turns a gradient.

Dimension key: G problem    S sample    C context of a turn    N message    K turn    M message of a turn
    T token of a message
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.analysis.fidelity import compute_spearman
from c3jax.analysis.statistics import Interval, compute_jackknife_interval
from c3jax.analysis.tables import make_columns
from c3jax.credit.plans import Plan, count_calls, count_generated
from c3jax.lab import play, policies
from c3jax.lab.analyse import Figures, compare_noise, compute_cosine, compute_noise
from c3jax.lab.measure import Draws
from c3jax.lab.testbed import Testbed, compile_quickly, make_testbed, set_critic_error
from c3jax.learner.losses import compute_weights
from experiments.claims import draws
from experiments.claims.claim import Rows, Scale
from experiments.claims.draws import LEVEL, ROLES, average, compute_p, divide_sums

# Noise/signal at 8 calls and mean squared error of the earlier survey of 40 games, first and second role.
SURVEY = {
    "rloo 8": {"noise_signal": (4.3, 7.1), "error": (0.235, 0.201)},
    "c3 2x4": {"noise_signal": (11.6, 9.0), "error": (0.133, 0.203)},
    "c3 4x2": {"noise_signal": (6.0, 12.0), "error": (0.145, 0.338)},
    "exact V 8": {},
}


def measure_fidelity(scale: Scale) -> Rows:
    """Claim 5: noise/signal at equal calls and messages, error and fidelity of four estimators, for both roles."""
    testbed, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    for label, survey in SURVEY.items():
        estimator = "mappo 8" if label == "exact V 8" else label
        drawn = draws.draw_messages(testbed, estimator, scale.samples, scale.seed)
        messages = sum(count_generated(draws.read_estimator(estimator, 2)[1])) / 16
        for turn, figures in enumerate(draws.draw_figures(testbed, estimator, scale.samples, scale.seed)):
            found = {
                "noise_signal": compute_noise(figures, LEVEL),
                "error": average(figures.error_G),
                "fidelity": average(_correlate(testbed, turn, drawn)),
            }
            for quantity, interval in found.items():
                surveyed = survey[quantity][turn] if quantity in survey else math.nan
                row = {"estimator": label, "role": ROLES[turn], "quantity": quantity, "survey": surveyed}
                row |= make_columns("value", interval)
                row["at_16_messages"] = interval.estimate * messages if quantity == "noise_signal" else math.nan
                # Both are means over as many games of one family; the survey's error is taken to be ours.
                middle, half = interval.estimate, math.sqrt(2) * (interval.high - interval.low) / 2
                both = Interval(middle, middle - half, middle + half)
                p = compute_p(both, scale.games, LEVEL, surveyed)
                # Of the survey's twelve numbers: Holm's correction over all claims would forgive much here, where a
                # test speaks against the prediction.
                rows.append(row | {"p": p, "p_bonferroni": min(1.0, 12 * p)})
    return _add_rank_gaps(rows)


def _correlate(testbed: Testbed, turn: int, drawn: Draws) -> np.ndarray:
    """Mean rank correlation with A* within the contexts of each draw, [G]; contexts that have none are left out."""
    context_GSN, message_GSN = drawn.context[turn], drawn.message[turn]
    exact_GSN = np.asarray(testbed.target.advantage[turn])[
        np.arange(testbed.count)[:, None, None], context_GSN, message_GSN
    ]
    program = compile_quickly(_correlate_game, 1)
    contexts = policies.count_contexts(testbed.shape, turn)
    parts = zip(context_GSN, drawn.advantage[turn], exact_GSN, strict=True)
    return np.array([program(contexts, *part) for part in parts])


def _correlate_game(contexts: int, context_SN: jax.Array, advantage_SN: jax.Array, exact_SN: jax.Array) -> jax.Array:
    def correlate(context: jax.Array) -> jax.Array:
        return compute_spearman(advantage_SN, exact_SN, context_SN == context)

    return jnp.nanmean(jax.vmap(correlate)(jnp.arange(contexts)))


def _add_rank_gaps(rows: Rows) -> Rows:
    """And how far the exact critic's ranks are from those of rloo."""
    fidelity = {(row["estimator"], row["role"]): row["value"] for row in rows if row["quantity"] == "fidelity"}
    gap = {role: abs(fidelity["exact V 8", role] - fidelity["rloo 8", role]) for role in ROLES}
    row = {"estimator": "exact V 8 less rloo 8", "quantity": "rank gap"}
    return rows + [{**row, "role": role, "value": gap[role]} for role in ROLES]


RANKED = (*SURVEY, "no_loo 2x4", "no_replay 2x4", "tree_rl 2x4", "magrpo 8", "reinforce 8")


def measure_rankings(scale: Scale) -> Rows:
    """Claim 6: variance of credit and noise/signal of the gradient, as ratios to rloo's, for nine estimators."""
    testbed, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    found = {
        label: draws.draw_figures(testbed, label.replace("exact V", "mappo"), scale.samples, scale.seed)
        for label in RANKED
    }
    for label, turn in itertools.product(RANKED, range(2)):
        mine, base = found[label][turn], found["rloo 8"][turn]
        ratios = divide_sums(mine.variance_G, base.variance_G), compare_noise(mine, base, LEVEL)
        row = {"estimator": label, "role": ROLES[turn], **make_columns("variance_ratio", ratios[0])}
        # Both departures from 1 have to be shown: the larger of their p-values tests the pair.
        p = max(compute_p(interval, scale.games, LEVEL, 1.0) for interval in ratios)
        is_test = (label, turn) == ("c3 2x4", 0)
        rows.append({**row, **make_columns("noise_ratio", ratios[1]), "p": p if is_test else math.nan})
    return rows


PLANS = {  # as rows call them, and an estimator that samples so
    **{"tree 2x4": "c3 2x4", "tree 4x2": "c3 4x2", "flat 8": "rloo 8", "replay 2+2": "c3_replay 2+2"},
    **{"replay 1+2+4": "c3_replay 1+2+4", "best branch 1+1+1+1": "at_grpo 1+1+1+1", "auxiliary 2+2": "vine_ppo 2+2"},
    **{"removal 3": "difference 3", "masked 3": "difference_masked 3", "coalition 2": "shapley 2"},
}


def measure_tokens(scale: Scale) -> Rows:
    """Claim 10: messages that the sampler draws, counted as it asks the policy, and tokens of what was drawn."""
    testbed, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    for label, estimator in PLANS.items():
        plan = draws.read_estimator(estimator, 2)[1]
        counts = {"drawn": _count_drawn(testbed, plan), "closed_form": sum(count_generated(plan))}
        rows.append({"quantity": "messages", "what": label, "calls": count_calls(plan), **counts})
    c3, rloo = (
        draws.draw_messages(testbed, estimator, scale.samples, scale.seed).message for estimator in ("c3 2x4", "rloo 8")
    )
    for rho in (0.25, 0.5, 1.0, 2.0, 4.0):
        c3_G, rloo_G = (_count_tokens(testbed, messages, rho, scale.seed) for messages in (c3, rloo))
        ratio = divide_sums(c3_G, rloo_G)
        predicted = (2 * rho + 8) / (8 * rho + 8)
        row = {"quantity": "tokens", "what": f"first messages {rho:g} times as long", "length_ratio": rho}
        row |= {"closed_form": predicted, **make_columns("token_ratio", ratio)}
        rows.append({**row, "p": compute_p(ratio, scale.games, LEVEL, predicted)})
    return rows


def _count_drawn(testbed: Testbed, plan: Plan) -> int:
    """Messages that the sampler asks the policy for, read off while it is traced."""
    drawn = []

    def logits(params: Any, game: Any, turn: int, prefix_NK: jax.Array) -> jax.Array:
        drawn.append(prefix_NK.shape[0])
        return testbed.policy.logits(params, game, turn, prefix_NK)

    counting, game = testbed.policy._replace(logits=logits), jax.tree.map(lambda leaf: leaf[0], testbed.games)
    jax.eval_shape(
        lambda key: play.sample_plan(testbed.shape, game, counting, testbed.params, plan, key), jax.random.key(0)
    )
    return sum(drawn)


def _count_tokens(testbed: Testbed, messages: tuple[jax.Array, ...], rho: float, seed: int) -> np.ndarray:
    """Tokens of all messages on each problem, [G]; each message has its own length, of mean 1 under the policy."""
    random = np.random.default_rng(seed)
    total_G = np.zeros(testbed.count)
    for turn, message_GSN in enumerate(messages):
        length_GM = random.uniform(0.5, 1.5, (testbed.count, testbed.shape.messages[turn]))
        chance_GM = np.einsum(
            "gc,gcm->gm", np.asarray(testbed.oracle.visit[turn]), np.asarray(testbed.target.policy[turn])
        )
        length_GM /= (chance_GM * length_GM).sum(axis=1, keepdims=True)
        length_GX = np.take_along_axis(length_GM, np.asarray(message_GSN).reshape(testbed.count, -1), axis=1)
        total_G += (rho if turn == 0 else 1.0) * length_GX.sum(axis=1)
    return total_G


ERRORS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def measure_critic(scale: Scale) -> Rows:
    """Claim 16: noise/signal and direction of mappo against its critic's error, and the noise of its rivals."""
    testbed, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    for decay, error in itertools.product((1.0, 0.0), ERRORS):
        wrong = set_critic_error(testbed, error, jax.random.key(scale.seed + 1))
        found = draws.draw_figures(wrong, "mappo 8", scale.samples, scale.seed, decay)
        rows += [_describe_gradient(f"mappo, decay {decay:g}", turn, error, found[turn]) for turn in range(2)]
    for arm in ("rloo 8", "c3 2x4", "c3 4x2"):
        for turn, figures in enumerate(draws.draw_figures(testbed, arm, scale.samples, scale.seed)):
            rows += [_describe_gradient(arm, turn, error, figures) for error in (ERRORS[0], ERRORS[-1])]
    return _add_crossings(rows)


def _describe_gradient(arm: str, turn: int, error: float, figures: Figures) -> dict[str, Any]:
    row = {"quantity": "gradient", "arm": arm, "role": ROLES[turn], "error": error}
    row |= make_columns("noise", compute_noise(figures, LEVEL))
    return row | make_columns("cosine", compute_cosine(figures, LEVEL))


def _add_crossings(rows: Rows) -> Rows:
    """And the critic's error at which mappo's noise first passes that of each rival, or NaN."""
    crossings = []
    for row in rows:
        if not row["arm"].startswith("mappo") and row["error"] == 0:
            mine = [each for each in rows if (each["arm"], each["role"]) == ("mappo, decay 1", row["role"])]
            at = find_crossing([each["error"] for each in mine], [each["noise"] for each in mine], row["noise"])
            crossings.append({"quantity": "crossing", "arm": row["arm"], "role": row["role"], "at": at})
    return rows + crossings


def find_crossing(error_E: list[float], noise_E: list[float], level: float) -> float:
    """The error at which a rising noise first passes a level, by a straight line between measured ones; or NaN."""
    for (error, low), (after, high) in itertools.pairwise(zip(error_E, noise_E, strict=True)):
        if low <= level < high:
            return error + (after - error) * (level - low) / (high - low)
    return math.nan


def measure_stale(scale: Scale) -> Rows:
    """Claim 17: direction of the expected gradient that a stale policy's draws give, with and without the ratio."""
    old, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    for step in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0):  # of logits along the advantage, in 1 / units of return
        params = tuple(table + step * move for table, move in zip(old.params, old.oracle.advantage, strict=True))
        new = make_testbed(old.shape, old.policy, params, old.games)
        for turn, role in enumerate(ROLES):
            was_GCM, is_GCM = (np.asarray(testbed.target.policy[turn], np.float64) for testbed in (old, new))
            visit_GC = np.asarray(old.oracle.visit[turn], np.float64)
            distance_G = (visit_GC * np.abs(was_GCM - is_GCM).sum(axis=2) / 2).sum(axis=1)
            # The old policy's draws, weighted by w = pi_new / pi_old or 1.
            plain, weighted = (_expect_gradient(old, turn, chance_GCM, is_GCM) for chance_GCM in (was_GCM, is_GCM))
            gain = _compare_cosines([weighted, plain], new.gradient[turn])
            row = {"role": role, "step": step, **make_columns("distance", average(distance_G))}
            row |= make_columns("without", _compare_cosines([plain], new.gradient[turn]))
            row |= make_columns("with", _compare_cosines([weighted], new.gradient[turn])) | make_columns("gain", gain)
            rows.append({**row, "p": compute_p(gain, scale.games) if step == 4 else math.nan})
    return _add_nearest(rows)


def _expect_gradient(testbed: Testbed, turn: int, weight_GCM: np.ndarray, policy_GCM: np.ndarray) -> np.ndarray:
    """E over contexts of sum_a w(a) A*(h, a) (e_a - policy(. | h)), [G, C, M]."""
    weight_GCM = weight_GCM * np.asarray(testbed.oracle.advantage[turn], np.float64)
    visit_GC1 = np.asarray(testbed.oracle.visit[turn], np.float64)[..., None]
    return visit_GC1 * (weight_GCM - policy_GCM * weight_GCM.sum(axis=2, keepdims=True))


def _compare_cosines(gradients: list[np.ndarray], truth_GCM: np.ndarray) -> Interval:
    """Cosine of a gradient of all problems, laid end to end, with the true one; less that of another."""

    def compare(kept: np.ndarray) -> float:
        truth = truth_GCM[kept]
        cosines = [(x[kept] * truth).sum() / math.sqrt((x[kept] ** 2).sum() * (truth**2).sum()) for x in gradients]
        return cosines[0] - sum(cosines[1:])

    return compute_jackknife_interval(compare, len(truth_GCM), LEVEL)


def _add_nearest(rows: Rows) -> Rows:
    """And once more the row of each role that is nearest to a total variation of one half; it is no second test."""
    nearest = [min((r for r in rows if r["role"] == role), key=lambda r: abs(r["distance"] - 0.5)) for role in ROLES]
    every_step = [{"quantity": "step", **row} for row in rows]
    return every_step + [{"quantity": "nearest", **row, "p": math.nan} for row in nearest]


MEAN_TOKENS, MOST_TOKENS = 8.0, 512


def measure_length(scale: Scale) -> Rows:
    """Claim 19: direction of the expected gradient where messages differ in length, by how losses are averaged."""
    testbed, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    random = np.random.default_rng(scale.seed)
    for turn, role in enumerate(ROLES):
        normal_GCM = random.normal(size=testbed.gradient[turn].shape)
        chance_GCM = np.asarray(testbed.target.policy[turn], np.float64)
        for spread, aggregation in itertools.product((0.0, 0.25, 0.5, 1.0, 1.5, 2.0), ("token", "message")):
            length_GCM = np.clip(np.rint(MEAN_TOKENS * np.exp(spread * normal_GCM)), 1, MOST_TOKENS).astype(int)
            sampled_NT = np.arange(length_GCM.max()) < length_GCM.reshape(-1, 1)
            token_NT = np.asarray(compute_weights(jnp.asarray(sampled_NT), aggregation), np.float64)
            # Tokens of a message weigh the same and their scores sum to the message's: one token's weight says it all.
            weight_GCM = token_NT[:, 0].reshape(length_GCM.shape) * chance_GCM
            gradient_GCM = _expect_gradient(testbed, turn, weight_GCM, chance_GCM)
            cosine = _compare_cosines([gradient_GCM], testbed.gradient[turn])
            row = {"role": role, "average": f"by {aggregation}", "spread": spread, **make_columns("cosine", cosine)}
            is_test = aggregation == "message" and spread == 1.0
            rows.append({**row, "p": compute_p(cosine, scale.games, LEVEL, 1.0) if is_test else math.nan})
    return rows
