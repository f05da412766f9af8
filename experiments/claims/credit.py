"""Claims 1 to 4, 7 and 8: what leave-one-out, its rivals and the removal of a message estimate, and how they vary.

Dimension key: G problem    C context of a turn    M message of a turn    N credited message    L leaf
    P draw of returns
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.analysis.statistics import Interval
from c3jax.analysis.tables import make_columns
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_flat, make_replay, make_tree
from c3jax.lab import oracle
from c3jax.lab.analyse import compute_cosine
from c3jax.lab.measure import Sums
from c3jax.lab.testbed import BIAS_LEVEL, Testbed, compile_quickly, list_figures, make_testbed
from experiments.claims import draws
from experiments.claims.claim import Rows, Scale
from experiments.claims.draws import LEVEL, ROLES, compute_p, divide_sums

GRID = [(n, c) for n in (2, 4, 8) for c in (1, 2, 4)]  # alternatives, and continuations of each


def measure_bias(scale: Scale) -> Rows:
    """Claim 1: squared bias against A* of leave-one-out on 10 plans, and of four faults, for both roles."""
    testbed, seed = draws.make_survey_testbed(scale.games, scale.seed), scale.seed
    sound = {f"replay n={n} c={c}": _name_replay(n, c) for n, c in GRID if c != 2}
    sound["replay counts 1+2+4"] = "c3_replay 1+2+4"
    sound |= {f"tree {size}": f"c3 {size}" for size in ("2x4", "4x2", "8x2")}
    faults = {
        "divided by group std": "c3 2x4 group",
        "own-including mean": "no_loo 2x4",
        "removal by masking": "difference_masked 4",
    }
    sums = {
        (label, "leave-one-out"): draws.draw_sums(testbed, estimator, scale.samples, seed + number)
        for number, (label, estimator) in enumerate(sound.items())
    }
    sums |= {(label, "fault"): draws.draw_sums(testbed, name, scale.samples, seed) for label, name in faults.items()}
    adaptive = draws.draw_adaptive_sums(testbed, make_replay((4,) * 4, 2), scale.samples, seed)
    sums["counts up to first success", "fault"] = adaptive
    return [
        {"estimator": label, "kind": kind, "role": role, **draws.describe_bias(testbed, each, turn)}
        for (label, kind), each in sums.items()
        for turn, role in enumerate(ROLES)
    ]


def _name_replay(n: int, c: int) -> str:
    return "c3_replay " + "+".join([str(c)] * n)


def measure_offset(scale: Scale) -> Rows:
    """Claim 2: slope of the second role's bias on V(h) - V(x), and the squared error of the mean gradient."""
    testbed, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    for estimator, predicted in (("rloo 8", 1.0), ("no_replay 2x4", 4 / 7), ("c3 2x4", 0.0)):
        sums = draws.draw_sums(testbed, estimator, scale.samples, scale.seed)
        found = {"slope, second role": (predicted, _regress_bias(testbed, sums))}
        for role, figures in zip(ROLES, list_figures(testbed, sums, scale.samples), strict=True):
            error_G = (figures.signal_G + figures.truth_G - 2 * figures.along_G) / figures.truth_G.mean()
            found[f"gradient error, {role} role"] = 0.0, draws.average(error_G, BIAS_LEVEL)
        for quantity, (expected, interval) in found.items():
            row = {"estimator": estimator, "quantity": quantity, "predicted": expected}
            p = compute_p(interval, scale.games, BIAS_LEVEL, expected)
            rows.append({**row, **make_columns("value", interval), "p": p})
    return rows


def _regress_bias(testbed: Testbed, sums: Sums) -> Interval:
    """Slope through zero of E[credit | h, a] - A* on V(h) - V(x), cells weighted by their draws, of the second role."""
    count_GCM, total_GCM = (np.asarray(x[1], np.float64).sum(axis=1) for x in (sums.count, sums.advantage))
    off_GCM = total_GCM - count_GCM * np.asarray(testbed.target.advantage[1], np.float64)
    offset_GC = np.asarray(testbed.oracle.v[1] - testbed.oracle.value[:, None], np.float64)
    product_G = (off_GCM.sum(axis=2) * offset_GC).sum(axis=1)
    return divide_sums(product_G, (count_GCM.sum(axis=2) * offset_GC**2).sum(axis=1), BIAS_LEVEL)


def measure_variance_law(scale: Scale) -> Rows:
    """Claim 3: variance of leave-one-out credit over a grid of alternatives and continuations."""
    testbed, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    compute = partial(oracle.compute_variance, testbed.shape, policy=testbed.policy, params=testbed.params)
    exact = compile_quickly(jax.vmap(compute), 0)(testbed.games)
    noise_GK, spread_GK = (np.asarray(x, np.float64) for x in (exact.noise_K, exact.spread_K))
    for n, c in GRID:
        found = draws.draw_figures(testbed, _name_replay(n, c), scale.samples, scale.seed + 10 * n + c)
        for turn, figures in enumerate(found):
            predicted_G = (noise_GK[:, turn] * n / c + spread_GK[:, turn]) / (n - 1)
            ratio = divide_sums(figures.variance_G, predicted_G)
            row = {"plan": f"n={n} c={c}", "role": ROLES[turn], "predicted": float(predicted_G.mean())}
            row |= make_columns("measured", draws.average(figures.variance_G)) | make_columns("ratio", ratio)
            rows.append({**row, "p": compute_p(ratio, scale.games, LEVEL, 1.0)})
    return rows


def measure_identities(scale: Scale) -> Rows:
    """Claim 4: largest differences between leave-one-out and mean-centring on random returns."""
    rows = []
    for n, c in ((n, c) for n in (2, 3, 4, 8) for c in (1, 4)):
        key = jax.random.fold_in(jax.random.key(scale.seed), 10 * n + c)
        return_PL = jax.random.randint(key, (scale.samples, n * c), 0, 17) / 16
        loo, mean, divided_loo, divided_mean = (
            _apply(method, n, c, return_PL, scope) for scope in ("none", "group") for method in ("c3", "no_loo")
        )
        from_one_PN = np.where(loo != 0, np.abs(np.abs(divided_loo) - 1), 0.0)
        differences = {
            "difference_before": float(np.abs(loo - n / (n - 1) * mean).max()),
            "difference_after_std": float(np.abs(divided_loo - divided_mean).max()),
            "distance_from_one": float(from_one_PN.max()) if n == 2 else math.nan,
        }
        rows.append({"n": n, "c": c, "groups": scale.samples, **differences})
    return rows


def _apply(method: str, n: int, c: int, return_PL: jax.Array, normalise: Any) -> np.ndarray:
    # The second turn's alternatives stand for continuations: it is not trained, so c may be 1.
    matrix = make_credit_matrix(method, make_tree((n, c)), (True, False))
    credit = apply_credit(jax.tree.map(jnp.asarray, matrix), return_PL, normalise=normalise)
    return np.asarray(credit.advantage[0], np.float64)


def measure_arms(scale: Scale) -> Rows:
    """Claim 7: the four arms on the same draws, and the rows of flat leave-one-out against rloo's."""
    testbed = draws.make_survey_testbed(scale.games, scale.seed)
    mine, theirs = (make_credit_matrix(method, make_flat(8, 2)) for method in ("no_replay", "rloo"))
    pairs = zip(mine.value + mine.baseline, theirs.value + theirs.baseline, strict=True)
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    rows: Rows = [{"arm": "flat, leave-one-out less rloo", "role": "both", "difference": difference}]
    for name, loo, mean, predicted in (
        ("tree", "c3 2x4", "no_loo 2x4", (1 / 4, 9 / 16)),
        ("flat", "rloo 8", "magrpo 8", (49 / 64, 49 / 64)),
    ):
        sums = [draws.draw_sums(testbed, estimator, scale.samples, scale.seed) for estimator in (loo, mean)]
        found = [list_figures(testbed, each, scale.samples) for each in sums]
        for turn, role in enumerate(ROLES):
            variance = [of_turns[turn].variance_G.sum() for of_turns in found]
            noise = [of_turns[turn].noise_G.sum() / of_turns[turn].signal_G.sum() for of_turns in found]
            row = {"arm": f"{name}, mean over leave-one-out", "role": role, "difference": math.nan}
            ratio = variance[1] / variance[0]
            row |= {"predicted": predicted[turn], "variance_ratio": ratio, "over_predicted": ratio / predicted[turn]}
            rows.append(row | {"noise_ratio": noise[1] / noise[0]})
            for kind, each in zip(("leave-one-out", "mean"), sums, strict=True):
                rows.append({"arm": f"{name}, {kind}", "role": role, **draws.describe_bias(testbed, each, turn)})
    return rows


# Cosine of the mean gradient with the true one that the earlier survey found, its range over three settings; an
# estimated cosine may lie a little above 1.
DIRECTIONS = (
    ("regenerated removal", "difference 2", (0, 1), 0.99, 1.01),
    ("masked removal", "difference_masked 2", (0,), 0.78, 0.92),
    ("masked Shapley", "shapley 2", (0, 1), 0.62, 0.92),
    ("best branch", "at_grpo 1+1+1+1", (1,), 0.96, 0.97),
)


def measure_removal(scale: Scale) -> Rows:
    """Claim 8: the distance of removal's estimand from A* as the null message grows likely, and directions."""
    survey, rows = draws.make_survey_testbed(scale.games, scale.seed), []
    for turn, role in enumerate(ROLES):
        for shift in (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0):  # of the null message's logit
            params = list(survey.params)
            params[turn] = params[turn] + shift * (jnp.arange(params[turn].shape[-1]) == 0)
            testbed = make_testbed(survey.shape, survey.policy, tuple(params), survey.games)
            row = {
                "quantity": "distance",
                "what": f"logit {shift:+g}",
                "role": role,
                **_measure_distance(testbed, turn),
            }
            if shift in (-4.0, 0.0, 2.0):
                sums = draws.draw_sums(testbed, "difference 2", scale.samples, scale.seed)
                bias = draws.describe_bias(testbed, sums, turn)
                row |= {f"drawn_square{bound}": bias[f"squared_bias{bound}"] for bound in ("", "_low", "_high")}
            rows.append(row)
    for label, estimator, turns, low, high in DIRECTIONS:
        figures = draws.draw_figures(survey, estimator, scale.samples, scale.seed)
        for turn in turns:
            row = {"quantity": "cosine", "what": label, "role": ROLES[turn], "expected_from": low, "expected_to": high}
            rows.append({**row, **make_columns("cosine", compute_cosine(figures[turn], LEVEL))})
    return rows


def _measure_distance(testbed: Testbed, turn: int) -> dict[str, float]:
    """Distances in units of return, averaged over contexts with their visits and over problems.

    E credit - A* = V(h) - Q(h, null) is the same for all messages of a context, and its predicted size is
    TV |E[Q | not null] - Q(h, null)|.
    """
    q_GCM, chance_GCM = (np.asarray(x[turn], np.float64) for x in (testbed.oracle.q, testbed.target.policy))
    visit_GC = np.asarray(testbed.oracle.visit[turn], np.float64) / testbed.count
    off_GC = np.asarray(testbed.oracle.v[turn], np.float64) - q_GCM[..., 0]
    variation_GC = 1 - chance_GCM[..., 0]
    others_GC = (chance_GCM[..., 1:] * q_GCM[..., 1:]).sum(axis=2) / chance_GCM[..., 1:].sum(axis=2)
    predicted_GC = variation_GC * np.abs(others_GC - q_GCM[..., 0])
    return {
        "total_variation": float((visit_GC * variation_GC).sum()),
        "distance": float((visit_GC * np.abs(off_GC)).sum()),
        "predicted": float((visit_GC * predicted_GC).sum()),
        "largest_gap": float(np.abs(np.abs(off_GC) - predicted_GC).max()),
        "exact_square": float((visit_GC * off_GC**2).sum()),
    }
