"""Claims 1 to 4: what leave-one-out credit estimates, what its baseline leaves, how it varies, what it is a scaling of.

Dimension key: G problem    B batch    C context of a turn    M message of a turn    N credited message    L leaf
    P draw of returns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from c3jax.analysis.figures import Axis, plot_points, plot_scatter
from c3jax.analysis.statistics import Interval, compute_jackknife_interval, compute_student_interval
from c3jax.analysis.tables import Row, format_cell, make_columns
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_arms, make_flat, make_replay, make_tree
from c3jax.lab import games, measure, oracle, policies
from c3jax.lab.claims.claim import (
    BIAS_LEVEL,
    LEVEL,
    Check,
    Finding,
    Scale,
    compute_p,
    conclude,
    describe,
    find_rows,
    holds_value,
    is_significant,
)
from c3jax.lab.claims.faults import sum_adaptive
from c3jax.lab.claims.stage import Stage, compile_quickly, figure_turns, list_bias, make_survey_stage, sum_estimator

ROLES = ("first", "second")
NUMBERS, CONTINUATIONS = (2, 4, 8), (1, 2, 4)


def measure_bias(scale: Scale) -> list[dict[str, Any]]:
    """Claim 1: squared bias against A* of leave-one-out on 10 plans, and of five faults, for both roles."""
    stage = make_survey_stage(scale.games, scale.seed)
    sound = [("c3_replay", f"replay n={n} c={c}", make_replay((c,) * n, 2)) for n in NUMBERS for c in (1, 4)]
    sound.append(("c3_replay", "replay counts 1+2+4", make_replay((1, 2, 4), 2)))
    sound += [("c3", f"tree {a}x{b}", make_tree((a, b))) for a, b in ((2, 4), (4, 2), (8, 2))]
    rows = []
    for number, (method, label, plan) in enumerate(sound):
        sums = sum_estimator(stage, method, plan, scale.samples, scale.seed + number)
        rows += _list_biases(label, "leave-one-out", stage, sums)
    faults = [
        ("divided by group std", "c3", make_tree((2, 4)), "group"),
        ("own-including mean", "no_loo", make_tree((2, 4)), "none"),
        ("removal by masking", "difference_masked", make_arms("masked", 4, 2), "none"),
    ]
    for label, method, plan, normalise in faults:
        sums = sum_estimator(stage, method, plan, scale.samples, scale.seed, normalise)
        rows += _list_biases(label, "fault", stage, sums)
    sums = sum_adaptive(stage, make_replay((4,) * 4, 2), scale.samples, scale.seed)
    return rows + _list_biases("counts up to first success", "fault", stage, sums)


def _list_biases(label: str, kind: str, stage: Stage, sums: measure.Sums) -> list[dict[str, Any]]:
    return [
        {"estimator": label, "kind": kind, "role": role, **list_bias(stage, sums, turn)}
        for turn, role in enumerate(ROLES)
    ]


def judge_bias(rows: Sequence[Row]) -> Finding:
    """Claim 1: leave-one-out intervals hold zero, those of faults lie above it."""
    sound, faults = find_rows(rows, kind="leave-one-out"), find_rows(rows, kind="fault")
    off = [row for row in sound if not holds_value(row, "squared_bias", 0.0)]
    missed = [row for row in faults if not (row["squared_bias_low"] > 0 and is_significant(row))]
    checks = [Check("fixed counts", not off)]
    checks += [Check(f"{row['estimator']} left out ({row['role']} role)", row not in missed, False) for row in faults]
    largest = max(sound, key=lambda row: abs(row["squared_bias"]))
    least = min(faults, key=lambda row: row["squared_bias"])
    return conclude(
        checks,
        f"{len(sound) - len(off)} of {len(sound)} hold zero; {len(faults) - len(missed)} of {len(faults)} faults"
        f" above zero",
        f"The largest squared bias of leave-one-out is {describe(largest, 'squared_bias')} ({largest['estimator']},"
        f" {largest['role']} role); the smallest of a planted fault {describe(least, 'squared_bias')}"
        f" ({least['estimator']}, {least['role']} role); intervals of 99.9 %.",
    )


def plot_bias(rows: Sequence[Row], title: str) -> Figure:
    """Claim 1."""
    value = Axis("squared_bias", "squared bias against A*, squared units of return", has_interval=True)
    return plot_points(rows, category="estimator", value=value, group="role", title=title)


# --------------------------------------------------------------------------------------------------------------------


def measure_offset(scale: Scale) -> list[dict[str, Any]]:
    """Claim 2: slope of the second role's bias on V(h) - V(x), and the squared error of the mean gradient."""
    stage = make_survey_stage(scale.games, scale.seed)
    arms = (
        ("rloo 8", "rloo", make_flat(8, 2), 1.0),
        ("no_replay 2x4", "no_replay", make_tree((2, 4)), 4 / 7),
        ("c3 2x4", "c3", make_tree((2, 4)), 0.0),
    )
    rows = []
    for label, method, plan, predicted in arms:
        sums = sum_estimator(stage, method, plan, scale.samples, scale.seed)
        interval = _regress_bias(stage, sums)
        slope = {"estimator": label, "quantity": "slope, second role", "predicted": predicted}
        p = compute_p(interval, scale.games, BIAS_LEVEL, predicted)
        rows.append({**slope, **make_columns("value", interval), "p": p})
        for role, figures in zip(ROLES, figure_turns(stage, sums, scale.samples), strict=True):
            error_G = (figures.signal_G + figures.truth_G - 2 * figures.along_G) / figures.truth_G.mean()
            interval = compute_student_interval(error_G, BIAS_LEVEL)
            gradient = {"estimator": label, "quantity": f"gradient error, {role} role", "predicted": 0.0}
            p = compute_p(interval, scale.games, BIAS_LEVEL)
            rows.append({**gradient, **make_columns("value", interval), "p": p})
    return rows


def _regress_bias(stage: Stage, sums: measure.Sums) -> Interval:
    """Slope through zero of E[credit | h, a] - A* on V(h) - V(x), cells weighted by their draws, of the second role."""
    count_GCM, total_GCM = (np.asarray(x[1], np.float64).sum(axis=1) for x in (sums.count, sums.advantage))
    off_GCM = total_GCM - count_GCM * np.asarray(stage.target.advantage[1], np.float64)
    offset_GC = np.asarray(stage.oracle.v[1] - stage.oracle.value[:, None], np.float64)
    product_G = (off_GCM.sum(axis=2) * offset_GC).sum(axis=1)
    square_G = (count_GCM.sum(axis=2) * offset_GC**2).sum(axis=1)
    return compute_jackknife_interval(
        lambda kept: product_G[kept].sum() / square_G[kept].sum(), stage.count, BIAS_LEVEL
    )


def judge_offset(rows: Sequence[Row]) -> Finding:
    """Claim 2: every slope and gradient error is what theory says."""
    slopes = find_rows(rows, quantity="slope, second role")
    gradients = [row for row in rows if row not in slopes]
    checks = [Check(row["estimator"], holds_value(row, "value", row["predicted"])) for row in slopes]
    checks += [
        Check(f"{row['quantity']} of {row['estimator']}", holds_value(row, "value", 0.0), False) for row in gradients
    ]
    parts = ", ".join(f"{row['estimator']} {describe(row, 'value')}" for row in slopes)
    worst = max(gradients, key=lambda row: abs(row["value"]))
    return conclude(
        checks,
        f"slopes {parts}",
        f"Slopes: {parts}. The largest squared error of a mean gradient over the truth's squared norm is"
        f" {describe(worst, 'value')} ({worst['estimator']}, {worst['quantity']}); intervals of 99.9 %.",
    )


# --------------------------------------------------------------------------------------------------------------------


def measure_variance_law(scale: Scale) -> list[dict[str, Any]]:
    """Claim 3: variance of leave-one-out credit over a grid of alternatives and continuations."""
    stage = make_survey_stage(scale.games, scale.seed)
    exact = compile_quickly(_compute_variance, 2)(*stage[:4])
    noise_GK, spread_GK = (np.asarray(x, np.float64) for x in (exact.noise_K, exact.spread_K))
    rows = []
    for n in NUMBERS:
        for c in CONTINUATIONS:
            sums = sum_estimator(stage, "c3_replay", make_replay((c,) * n, 2), scale.samples, scale.seed + 10 * n + c)
            for turn, figures in enumerate(figure_turns(stage, sums, scale.samples)):
                predicted_G = (noise_GK[:, turn] * n / c + spread_GK[:, turn]) / (n - 1)
                rows.append(_compare_variance(n, c, ROLES[turn], figures.variance_G, predicted_G))
    return rows


def _compute_variance(
    shape: games.GameShape, policy: policies.Policy, params: policies.Params, problems: games.Game
) -> oracle.Variance:
    return jax.vmap(lambda game: oracle.compute_variance(shape, game, policy, params))(problems)


def _compare_variance(n: int, c: int, role: str, variance_G: np.ndarray, predicted_G: np.ndarray) -> dict[str, Any]:
    interval = compute_jackknife_interval(
        lambda kept: variance_G[kept].sum() / predicted_G[kept].sum(), len(variance_G), LEVEL
    )
    measured = compute_student_interval(variance_G, LEVEL)
    return {
        "plan": f"n={n} c={c}",
        "role": role,
        "predicted": float(predicted_G.mean()),
        **make_columns("measured", measured),
        **make_columns("ratio", interval),
        "p": compute_p(interval, len(variance_G), LEVEL, 1.0),
    }


def judge_variance_law(rows: Sequence[Row]) -> Finding:
    """Claim 3: every ratio within 3 %."""
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    checks = [
        Check(f"{row['plan']} ({row['role']} role)", abs(row["ratio"] - 1) <= 0.03, row["role"] == "first")
        for row in rows
    ]
    low, high = min(row["ratio"] for row in rows), max(row["ratio"] for row in rows)
    return conclude(
        checks,
        f"measured/predicted {format_cell(low, 4)} to {format_cell(high, 4)} over {len(rows)} cells",
        f"The ratio furthest from 1 is {describe(worst, 'ratio')}, at {worst['plan']} in the {worst['role']} role.",
    )


def plot_variance_law(rows: Sequence[Row], title: str) -> Figure:
    """Claim 3."""
    return plot_scatter(
        [{**row, "n": row["plan"].split()[0], "panel": f"{row['role']} role"} for row in rows],
        x=Axis("predicted", "predicted variance, squared units of return"),
        y=Axis("measured", "measured"),
        group="n",
        panel="panel",
        title=title,
    )


# --------------------------------------------------------------------------------------------------------------------


def measure_identities(scale: Scale) -> list[dict[str, Any]]:
    """Claim 4: largest differences between leave-one-out and mean-centring on random returns."""
    rows = []
    for n in (2, 3, 4, 8):
        for c in (1, 4):
            key = jax.random.fold_in(jax.random.key(scale.seed), 10 * n + c)
            return_PL = jax.random.randint(key, (scale.samples, n * c), 0, 17) / 16
            loo, mean = (_apply(method, n, c, return_PL, "none") for method in ("c3", "no_loo"))
            divided_loo, divided_mean = (_apply(method, n, c, return_PL, "group") for method in ("c3", "no_loo"))
            is_unequal_PN = loo != 0
            from_one_PN = np.where(is_unequal_PN, np.abs(np.abs(divided_loo) - 1), 0.0)
            rows.append(
                {
                    "n": n,
                    "c": c,
                    "groups": scale.samples,
                    "difference_before": float(np.abs(loo - n / (n - 1) * mean).max()),
                    "difference_after_std": float(np.abs(divided_loo - divided_mean).max()),
                    "distance_from_one": float(from_one_PN.max()) if n == 2 else float("nan"),
                }
            )
    return rows


def _apply(method: str, n: int, c: int, return_PL: jax.Array, normalise: Any) -> np.ndarray:
    # The second turn's alternatives stand for continuations: it is not trained, so c may be 1.
    matrix = make_credit_matrix(method, make_tree((n, c)), (True, False))
    credit = apply_credit(jax.tree.map(jnp.asarray, matrix), return_PL, normalise=normalise)
    return np.asarray(credit.advantage[0], np.float64)


def judge_identities(rows: Sequence[Row]) -> Finding:
    """Claim 4: all differences are rounding."""
    before, after = (max(row[f"difference_{name}"] for row in rows) for name in ("before", "after_std"))
    one = max(row["distance_from_one"] for row in find_rows(rows, n=2))
    checks = [
        Check("before the division", before < 1e-6),
        Check("after the division", after < 1e-5),
        Check("pairs", one < 1e-5),
    ]
    numbers = f"{format_cell(before, 2)} before, {format_cell(after, 2)} after, pairs {format_cell(one, 2)} from 1"
    return conclude(checks, numbers, f"Largest differences: {numbers}.")
