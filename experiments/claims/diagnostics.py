"""Claims 14, 15 and 18: diagnostics against the truth, and credit that teaches nothing.

Dimension key: G problem    C context, or trial    J message of a context    Y outcome    S sample    N message
    R repeat    L leaf    M message of a turn
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.analysis.fidelity import compute_spearman, compute_within_context_variance
from c3jax.analysis.influence import (
    compute_corrected_influence,
    compute_null_bias,
    compute_plugin_influence,
    sample_permutation_null,
)
from c3jax.analysis.statistics import compute_wilson_interval
from c3jax.analysis.tables import make_columns
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_tree
from c3jax.lab import games, oracle, play
from c3jax.lab.games import GameShape
from c3jax.lab.policies import GamePolicy, Params
from c3jax.lab.testbed import Testbed, compile_quickly, make_testbed, split_key
from experiments.claims import draws
from experiments.claims.claim import Rows, Scale
from experiments.claims.draws import LEVEL, average, compute_p

MESSAGES, OUTCOMES = 4, 2
PERMUTATIONS, TRIALS = 99, 40


def measure_influence(scale: Scale) -> Rows:
    """Claim 14: influence of a message on the next, exact and estimated, as the policy reads more of it."""
    testbed = draws.make_family_testbed(_make_pair(MESSAGES, OUTCOMES, "none"), 1.0, scale.games, scale.seed)
    random, rows = np.random.default_rng(scale.seed), []
    uniform, second = jnp.zeros_like(testbed.params[0]), testbed.params[1]
    for reading in (0.0, 0.5, 1.0, 2.0, 4.0):  # times what the second role's logits hang on of what it reads
        params = (uniform, 0.5 * second[:, :1] + reading * (second - second[:, :1]))
        changed = make_testbed(testbed.shape, testbed.policy, params, testbed.games)
        program = compile_quickly(_compute_influence, 2)
        exact_G = np.asarray(program(testbed.shape, testbed.policy, params, testbed.games), np.float64)
        chance_GJ = np.asarray(changed.target.policy[1], np.float64)[:, :, 1]
        for c in (2, 8, 32):
            second_GRJ = random.binomial(c, chance_GJ[:, None, :], (scale.games, max(2, scale.samples // 4), MESSAGES))
            found = _estimate_influence(np.stack([c - second_GRJ, second_GRJ], axis=3), scale.seed)
            exact = make_columns("exact", average(exact_G))
            rows.append({"reading": reading, "continuations": c, **exact, **found, **_relate_influence(found)})
    return rows


def _compute_influence(shape: GameShape, policy: GamePolicy, params: Params, problems: games.Game) -> jax.Array:
    """Exact influence of the first message on the second, [G], nats."""
    return jax.vmap(lambda game: oracle.compute_influence(shape, game, policy, params).mean_KK[0, 1])(problems)


def _make_pair(first: int, second: int, noise: games.Noise, coupling: float = 1.0) -> games.Family:
    messages, sees = (first, second), games.see_all(2)
    return games.make_team(messages=messages, sees=sees, effect=1.0, coupling=coupling, spread=0.0, noise=noise)


def _estimate_influence(count_GRJY: np.ndarray, seed: int) -> dict[str, Any]:
    problems, repeats = count_GRJY.shape[:2]
    flat_CJY = count_GRJY.reshape(-1, MESSAGES, OUTCOMES)
    columns: dict[str, Any] = {}
    for name, compute in (("plugin", compute_plugin_influence), ("corrected", compute_corrected_influence)):
        columns |= make_columns(name, average(compute(flat_CJY).reshape(problems, repeats).mean(axis=1)))
    # One trial of the null is one draw of every problem, as a run would report it.
    trials = range(min(TRIALS, repeats))
    p = [sample_permutation_null(count_GRJY[:, trial], PERMUTATIONS, LEVEL, seed + trial).p for trial in trials]
    columns |= {"leading_term": compute_null_bias(MESSAGES, OUTCOMES, int(flat_CJY[0].sum())), "trials": len(p)}
    return columns | make_columns("rejected", compute_wilson_interval(sum(x <= 0.05 for x in p), len(p), LEVEL))


def _relate_influence(row: dict[str, Any]) -> dict[str, float]:
    """The share of the plug-in that its correction leaves, and the plug-in over its bias's leading term."""
    return {"left": row["corrected"] / row["plugin"], "over_leading": row["plugin"] / row["leading_term"]}


PLAN = make_tree((4, 2))


def measure_confound(scale: Scale) -> Rows:
    """Claim 15: the released diagnostics of an untrained policy as problems become easier."""
    base = draws.make_family_testbed(_make_pair(6, 6, "bernoulli"), 0.0, scale.games, scale.seed)
    rows = []
    for bias in (-6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0):
        problems = base.games._replace(bias=base.games.bias + bias)
        testbed = make_testbed(base.shape, base.policy, base.params, problems)
        rows.append({"bias": bias, **_diagnose(testbed, scale.samples, scale.seed)})
    return _add_comparisons(rows)


def _diagnose(testbed: Testbed, samples: int, seed: int) -> dict[str, Any]:
    """What the released diagnostics say of the first role's credit under c3 4x2."""
    key_GS = split_key(jax.random.key(seed), testbed.count, samples)
    return_GSL = compile_quickly(_draw_returns, 2)(testbed.shape, testbed.policy, testbed.params, testbed.games, key_GS)
    return_CL = return_GSL.reshape(-1, 8)
    matrix = jax.tree.map(jnp.asarray, make_credit_matrix("c3", PLAN))
    credit = apply_credit(matrix, return_CL, normalise="none")
    keep_CN = jnp.ones(credit.value[0].shape, bool)
    own_C = np.asarray(compute_spearman(credit.advantage[0], credit.value[0], keep_CN))
    success_CJ = np.asarray(return_CL).reshape(-1, 4, 2).sum(axis=2).astype(int)
    found = {
        "variance": np.asarray(compute_within_context_variance(credit.advantage[0], keep_CN)),
        "influence": compute_plugin_influence(np.stack([2 - success_CJ, success_CJ], axis=2)),
        "defined_share": np.isfinite(own_C),
    }
    columns = make_columns("mean_return", average(np.asarray(testbed.oracle.value)))
    for name, value_C in found.items():
        columns |= make_columns(name, average(value_C.reshape(testbed.count, samples).mean(axis=1)))
    return columns | {"own_fidelity": float(np.nanmean(own_C))}


def _draw_returns(
    shape: GameShape, policy: GamePolicy, params: Params, problems: games.Game, key_GS: jax.Array
) -> jax.Array:
    def draw(game: games.Game, key: jax.Array) -> jax.Array:
        return play.sample_plan(shape, game, policy, params, PLAN, key).return_L

    return jax.vmap(jax.vmap(draw, in_axes=(None, 0)))(problems, key_GS)


def _add_comparisons(rows: Rows) -> Rows:
    """And each diagnostic at the mean return nearest to 0.5 and at the largest of 0.1 or less, or at the smallest."""
    middle = min(rows, key=lambda row: abs(row["mean_return"] - 0.5))
    low = max(rows, key=lambda row: (row["mean_return"] <= 0.1, -abs(row["mean_return"] - 0.1)))
    returns = {"low_return": low["mean_return"], "middle_return": middle["mean_return"]}
    compared: Rows = []
    for name in ("variance", "influence", "defined_share"):
        row = {"quantity": name, **returns, "ratio": middle[name] / low[name], "low": low[name], "middle": middle[name]}
        compared.append({**row, "low_high": low[f"{name}_high"], "middle_low": middle[f"{name}_low"]})
    return [{"quantity": "diagnostics", **row} for row in rows] + compared


GROUPS = {"tree 2x4, first role": (0, 2), "tree 2x4, second role": (1, 4)}  # turn, alternatives in a group


def measure_zero_groups(scale: Scale) -> Rows:
    """Claim 18: share of groups without any credit as the policy is sharpened, for 0/1 and for noiseless returns."""
    rows = []
    kinds: dict[str, games.Noise] = {"0/1": "bernoulli", "noiseless": "none"}
    for returns, noise in kinds.items():
        base = draws.make_family_testbed(_make_pair(6, 6, noise, coupling=2.0), 1.0, scale.games, scale.seed)
        for temperature in (4.0, 2.0, 1.0, 0.5, 0.25, 0.125):
            params = tuple(table / temperature for table in base.params)
            testbed = make_testbed(base.shape, base.policy, params, base.games)
            row = {"returns": returns, "temperature": temperature, "entropy": _average_entropy(testbed)}
            tree, flat = (
                draws.draw_messages(testbed, estimator, scale.samples, scale.seed).advantage
                for estimator in ("c3 2x4", "rloo 8")
            )
            flat_G = _find_zero_share(flat[0], 8)
            rows.append({**row, "groups": "8 episodes", **make_columns("share", average(flat_G)), "p": math.nan})
            for name, (turn, size) in GROUPS.items():
                share_G = _find_zero_share(tree[turn], size)
                above = average(share_G - flat_G)
                columns = make_columns("share", average(share_G)) | make_columns("above", above)
                rows.append({**row, "groups": name, **columns, "p": compute_p(above, testbed.count)})
    return rows


def _average_entropy(testbed: Testbed) -> float:
    """Mean entropy of a message over roles and problems, nats."""
    total = 0.0
    for policy_GCM, visit_GC in zip(testbed.target.policy, testbed.oracle.visit, strict=True):
        chance_GCM = np.asarray(policy_GCM, np.float64)
        entropy_GC = -(chance_GCM * np.log(np.maximum(chance_GCM, 1e-30))).sum(axis=2)
        total += float((np.asarray(visit_GC) * entropy_GC).sum(axis=1).mean())
    return total / len(testbed.target.policy)


def _find_zero_share(advantage_GSN: jax.Array, size: int) -> np.ndarray:
    return (np.asarray(advantage_GSN).reshape(len(advantage_GSN), -1, size) == 0).all(axis=2).mean(axis=1)
