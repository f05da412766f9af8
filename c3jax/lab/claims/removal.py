"""Claim 8: what removing a message estimates, and which ways of removing still point along the gradient.

Dimension key: G problem    C context of a turn    M message of a turn
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from c3jax.analysis.figures import Axis, plot_curves
from c3jax.analysis.tables import Row, format_cell, make_columns
from c3jax.credit.plans import make_arms, make_replay
from c3jax.lab.analyse import compute_cosine
from c3jax.lab.claims.claim import LEVEL, Check, Finding, Scale, conclude, describe, find_row, find_rows, holds_value
from c3jax.lab.claims.estimators import ROLES
from c3jax.lab.claims.stage import Stage, figure_turns, list_bias, make_survey_stage, set_policy, sum_estimator

SHIFTS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)  # of the null message's logit
DRAWN = (-4.0, 0.0, 2.0)
# Cosine of the mean gradient with the true one that the earlier survey found, its range over three settings; an
# estimated cosine may lie a little above 1.
DIRECTIONS = (
    ("regenerated removal", "difference", make_arms("removal", 2, 2), (0, 1), 0.99, 1.01),
    ("masked removal", "difference_masked", make_arms("masked", 2, 2), (0,), 0.78, 0.92),
    ("masked Shapley", "shapley", make_arms("coalition", 2, 2), (0, 1), 0.62, 0.92),
    ("best branch", "at_grpo", make_replay((1,) * 4, 2, continues_best=True), (1,), 0.96, 0.97),
)


def measure_removal(scale: Scale) -> list[dict[str, Any]]:
    """Claim 8: the distance of removal's estimand from A* as the null message grows likely, and directions."""
    survey = make_survey_stage(scale.games, scale.seed)
    rows = []
    for turn, role in enumerate(ROLES):
        for shift in SHIFTS:
            stage = _shift_null(survey, turn, shift)
            row = {"quantity": "distance", "what": f"logit {shift:+g}", "role": role, **_measure_distance(stage, turn)}
            if shift in DRAWN:
                sums = sum_estimator(stage, "difference", make_arms("removal", 2, 2), scale.samples, scale.seed)
                bias = list_bias(stage, sums, turn)
                row |= {
                    name.replace("squared_bias", "drawn_square"): value for name, value in bias.items() if name != "p"
                }
            rows.append(row)
    for label, method, plan, turns, low, high in DIRECTIONS:
        sums = sum_estimator(survey, method, plan, scale.samples, scale.seed)
        for turn in turns:
            cosine = compute_cosine(figure_turns(survey, sums, scale.samples)[turn], LEVEL)
            row = {"quantity": "cosine", "what": label, "role": ROLES[turn], "expected_from": low, "expected_to": high}
            rows.append({**row, **make_columns("cosine", cosine)})
    return rows


def _shift_null(stage: Stage, turn: int, shift: float) -> Stage:
    params = list(stage.params)
    params[turn] = params[turn] + shift * (jnp.arange(params[turn].shape[-1]) == 0)
    return set_policy(stage.shape, stage.policy, tuple(params), stage.games)


def _measure_distance(stage: Stage, turn: int) -> dict[str, float]:
    """Distances in units of return, averaged over contexts with their visits and over problems.

    E credit - A* = V(h) - Q(h, null) is the same for all messages of a context, and its predicted size is
    TV |E[Q | not null] - Q(h, null)|.
    """
    q_GCM, chance_GCM = np.asarray(stage.oracle.q[turn], np.float64), np.asarray(stage.target.policy[turn], np.float64)
    visit_GC = np.asarray(stage.oracle.visit[turn], np.float64) / stage.count
    off_GC = np.asarray(stage.oracle.v[turn], np.float64) - q_GCM[..., 0]
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


def judge_removal(rows: Sequence[Row]) -> Finding:
    """Claim 8: distances on their lines, drawn biases as the exact ones, directions in their ranges."""
    distances, cosines = find_rows(rows, quantity="distance"), find_rows(rows, quantity="cosine")
    gap = max(row["largest_gap"] for row in distances)
    drawn = [row for row in distances if math.isfinite(row["drawn_square"])]
    checks = [
        Check("the line", gap <= 1e-5),
        Check("what was drawn", all(holds_value(row, "drawn_square", row["exact_square"]) for row in drawn), False),
    ]
    for row in cosines:
        slack = 0.0 if row["what"] == "regenerated removal" else 0.05
        is_met = row["expected_from"] - slack <= row["cosine"] <= row["expected_to"] + slack
        checks.append(Check(f"the direction of {row['what']} ({row['role']} role)", is_met, False))
    near, far = (find_row(rows, what=f"logit {shift:+g}", role="first") for shift in (4.0, -4.0))
    directions = ", ".join(f"{row['what']} ({row['role']} role) {describe(row, 'cosine')}" for row in cosines)
    return conclude(
        checks,
        f"distance {format_cell(near['distance'])} at TV {format_cell(near['total_variation'])},"
        f" {format_cell(far['distance'])} at TV {format_cell(far['total_variation'])}; largest gap"
        f" {format_cell(gap, 1)}",
        f"Distances follow the prediction to {format_cell(gap, 1)}. Cosine of the mean gradient with the true one:"
        f" {directions}.",
    )


def plot_removal(rows: Sequence[Row], title: str) -> Figure:
    """Claim 8."""
    return plot_curves(
        find_rows(rows, quantity="distance"),
        x=Axis("total_variation", "total variation, 1 - pi(null | h)"),
        y=Axis("distance", "|E credit - A*|, units of return"),
        group="role",
        title=title,
    )
