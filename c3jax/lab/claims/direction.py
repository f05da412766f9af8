"""Claims 16, 17 and 19: what turns a gradient: a wrong critic, a stale behaviour policy, a loss averaged by message.

Dimension key: G problem    C context of a turn    M message of a turn    T token of a message
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from c3jax.analysis.figures import Axis, plot_curves
from c3jax.analysis.statistics import Interval, compute_jackknife_interval, compute_student_interval
from c3jax.analysis.tables import Row, format_cell, make_columns
from c3jax.credit.plans import make_flat
from c3jax.lab.analyse import compute_cosine, compute_noise
from c3jax.lab.claims.claim import (
    LEVEL,
    Check,
    Finding,
    Scale,
    compute_p,
    conclude,
    describe,
    find_row,
    find_rows,
    is_significant,
)
from c3jax.lab.claims.comparison import ARMS, SURVEY
from c3jax.lab.claims.estimators import ROLES
from c3jax.lab.claims.stage import Stage, blur_critic, figure_turns, make_survey_stage, set_policy, sum_estimator
from c3jax.learner.losses import compute_weights

ERRORS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def measure_critic(scale: Scale) -> list[dict[str, Any]]:
    """Claim 16: noise/signal and direction of mappo against its critic's error, and the noise of its rivals."""
    stage = make_survey_stage(scale.games, scale.seed)
    rows = []
    for decay in (1.0, 0.0):
        for error in ERRORS:
            blurred = blur_critic(stage, error, scale.seed + 1)
            sums = sum_estimator(blurred, "mappo", make_flat(8, 2), scale.samples, scale.seed, decay=decay)
            for role, figures in zip(ROLES, figure_turns(stage, sums, scale.samples), strict=True):
                row = {"arm": f"mappo, decay {decay:g}", "role": role, "error": error}
                row |= make_columns("noise", compute_noise(figures, LEVEL))
                rows.append(row | make_columns("cosine", compute_cosine(figures, LEVEL)))
    for arm in SURVEY:
        method, plan = ARMS[arm]
        sums = sum_estimator(stage, method, plan, scale.samples, scale.seed)
        for role, figures in zip(ROLES, figure_turns(stage, sums, scale.samples), strict=True):
            columns = make_columns("noise", compute_noise(figures, LEVEL))
            columns |= make_columns("cosine", compute_cosine(figures, LEVEL))
            rows += [{"arm": arm, "role": role, "error": error, **columns} for error in (ERRORS[0], ERRORS[-1])]
    return rows


def find_crossing(error_E: Sequence[float], noise_E: Sequence[float], level: float) -> float:
    """The error at which a rising noise first passes a level, by a straight line between measured ones; or NaN."""
    for place in range(1, len(error_E)):
        low, high = noise_E[place - 1], noise_E[place]
        if low <= level < high:
            return error_E[place - 1] + (error_E[place] - error_E[place - 1]) * (level - low) / (high - low)
    return math.nan


def judge_critic(rows: Sequence[Row]) -> Finding:
    """Claim 16: where mappo's noise crosses, and where decay 0 loses its direction."""

    def cross(arm: str, role: str) -> float:
        mine = find_rows(rows, arm="mappo, decay 1", role=role)
        level = find_rows(rows, arm=arm, role=role)[0]["noise"]
        return find_crossing([row["error"] for row in mine], [row["noise"] for row in mine], level)

    bounds = (
        ("rloo 8", "first", 0.1, 0.35),
        ("rloo 8", "second", 0.1, 0.35),
        ("c3 4x2", "first", 0.25, 0.6),
        ("c3 2x4", "second", 0.25, 0.5),
    )
    crossings = [(arm, role, cross(arm, role), low, high) for arm, role, low, high in bounds]
    cosine = min(row["cosine"] for row in rows if row["arm"] == "mappo, decay 1")
    turned = [row for row in find_rows(rows, arm="mappo, decay 0", role="first") if row["error"] >= 0.1]
    checks = [
        Check(f"crossing {arm} in the {role} role", low <= at <= high, False) for arm, role, at, low, high in crossings
    ]
    checks += [
        Check("a crossing of rloo", all(math.isfinite(at) for arm, _, at, _, _ in crossings if arm == "rloo 8")),
        Check("direction at decay 1", cosine > 0.98, False),
        Check("direction lost at decay 0", max(row["cosine"] for row in turned) < 0.95, False),
    ]
    told = ", ".join(f"{arm} {role} role {format_cell(at, 2)}" for arm, role, at, _, _ in crossings)
    lost = ", ".join(f"{format_cell(row['cosine'], 2)} at {row['error']:g}" for row in turned[:3])
    return conclude(
        checks,
        f"crossings at critic error: {told}; decay 0 cosine {lost}",
        f"mappo's noise/signal passes {told} (root mean square error of the critic, units of return). Its cosine stays"
        f" above {format_cell(cosine - 5e-5, 4)} at decay 1; at decay 0 in the first role it is {lost}.",
    )


def plot_critic(rows: Sequence[Row], title: str) -> Figure:
    """Claim 16."""
    shown = [{**row, "panel": f"{row['role']} role"} for row in rows]
    x = Axis("error", "critic's error, units of return")
    y = Axis("noise", "noise/signal of the gradient", "log", has_interval=True)
    return plot_curves(shown, x=x, y=y, group="arm", panel="panel", title=title)


# --------------------------------------------------------------------------------------------------------------------

STEPS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0)  # of logits along the advantage, in 1 / units of return


def measure_stale(scale: Scale) -> list[dict[str, Any]]:
    """Claim 17: direction of the expected gradient that a stale policy's draws give, with and without the ratio."""
    old = make_survey_stage(scale.games, scale.seed)
    rows = []
    for step in STEPS:
        params = tuple(table + step * move for table, move in zip(old.params, old.oracle.advantage, strict=True))
        new = set_policy(old.shape, old.policy, params, old.games)
        for turn, role in enumerate(ROLES):
            plain, weighted = (_expect_stale_gradient(old, new, turn, has_ratio=has) for has in (False, True))
            gap = _compute_cosine_gap(weighted, plain, new.gradient[turn])
            row = {"role": role, "step": step, **make_columns("distance", _measure_variation(old, new, turn))}
            row |= make_columns("without", _compute_exact_cosine(plain, new.gradient[turn]))
            row |= make_columns("with", _compute_exact_cosine(weighted, new.gradient[turn]))
            p = compute_p(gap, scale.games, LEVEL) if step == STEPS[4] else math.nan
            rows.append({**row, **make_columns("gain", gap), "p": p})
    return rows


def _expect_stale_gradient(old: Stage, new: Stage, turn: int, *, has_ratio: bool) -> np.ndarray:
    """E over the old policy's draws of w A_old(h, a) (e_a - pi_new(. | h)), w = pi_new / pi_old or 1: [G, C, M]."""
    was_GCM, is_GCM = (np.asarray(stage.target.policy[turn], np.float64) for stage in (old, new))
    chance_GCM = is_GCM if has_ratio else was_GCM
    weight_GCM = chance_GCM * np.asarray(old.oracle.advantage[turn], np.float64)
    visit_GC1 = np.asarray(old.oracle.visit[turn], np.float64)[..., None]
    return visit_GC1 * (weight_GCM - is_GCM * weight_GCM.sum(axis=2, keepdims=True))


def _measure_variation(old: Stage, new: Stage, turn: int) -> Interval:
    """Total variation between the policies, at the old one's contexts."""
    was_GCM, is_GCM = (np.asarray(stage.target.policy[turn], np.float64) for stage in (old, new))
    visit_GC = np.asarray(old.oracle.visit[turn], np.float64)
    return compute_student_interval((visit_GC * np.abs(was_GCM - is_GCM).sum(axis=2) / 2).sum(axis=1), LEVEL)


def _compute_exact_cosine(gradient_GCM: np.ndarray, truth_GCM: np.ndarray) -> Interval:
    """Cosine of gradients of all problems laid end to end."""
    return compute_jackknife_interval(lambda kept: _cosine(gradient_GCM[kept], truth_GCM[kept]), len(truth_GCM), LEVEL)


def _compute_cosine_gap(one_GCM: np.ndarray, other_GCM: np.ndarray, truth_GCM: np.ndarray) -> Interval:
    return compute_jackknife_interval(
        lambda kept: _cosine(one_GCM[kept], truth_GCM[kept]) - _cosine(other_GCM[kept], truth_GCM[kept]),
        len(truth_GCM),
        LEVEL,
    )


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / math.sqrt((one**2).sum() * (other**2).sum()))


def judge_stale(rows: Sequence[Row]) -> Finding:
    """Claim 17: both directions fall with distance, the weighted one less."""
    checks, told = [], []
    for role in ROLES:
        mine = find_rows(rows, role=role)
        for arm in ("without", "with"):
            cosines = [row[arm] for row in mine]
            is_falling = all(later <= earlier + 1e-6 for earlier, later in zip(cosines, cosines[1:], strict=False))
            checks.append(
                Check(
                    f"falling {arm} the ratio ({role} role)",
                    abs(cosines[0] - 1) < 1e-5 and is_falling,
                    arm == "without",
                )
            )
        checks.append(Check(f"never lower with the ratio ({role} role)", min(row["gain"] for row in mine) > -1e-6))
        middle = min(mine, key=lambda row: abs(row["distance"] - 0.5))
        is_met = middle["with"] >= 0.9 and middle["without"] <= 0.8
        checks.append(Check(f"the cosines near TV 0.5 ({role} role)", is_met, False))
        told.append(
            f"{role} role at TV {format_cell(middle['distance'], 2)}: {describe(middle, 'with')} with the ratio,"
            f" {describe(middle, 'without')} without"
        )
    tested = [row for row in rows if np.isfinite(row["p_holm"])]
    checks.append(Check("a gain by the ratio", all(row["gain"] > 0 and is_significant(row) for row in tested), False))
    return conclude(checks, "; ".join(told), f"Cosine with the current gradient, {'; '.join(told)}.")


def plot_stale(rows: Sequence[Row], title: str) -> Figure:
    """Claim 17."""
    shown = [
        {
            "ratio": f"{arm} ratio",
            "panel": f"{row['role']} role",
            "distance": row["distance"],
            "cosine": row[arm],
            "cosine_low": row[f"{arm}_low"],
            "cosine_high": row[f"{arm}_high"],
        }
        for row in rows
        for arm in ("without", "with")
    ]
    x, y = Axis("distance", "total variation from the behaviour policy"), Axis("cosine", "cosine", has_interval=True)
    return plot_curves(shown, x=x, y=y, group="ratio", panel="panel", title=title)


# --------------------------------------------------------------------------------------------------------------------

SPREADS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
MEAN_TOKENS, MOST_TOKENS = 8.0, 512


def measure_length(scale: Scale) -> list[dict[str, Any]]:
    """Claim 19: direction of the expected gradient where messages differ in length, by how losses are averaged."""
    stage = make_survey_stage(scale.games, scale.seed)
    random = np.random.default_rng(scale.seed)
    rows = []
    for turn, role in enumerate(ROLES):
        normal_GCM = random.normal(size=stage.gradient[turn].shape)
        for spread in SPREADS:
            length_GCM = np.clip(np.rint(MEAN_TOKENS * np.exp(spread * normal_GCM)), 1, MOST_TOKENS).astype(int)
            for aggregation in ("token", "message"):
                gradient_GCM = _expect_length_gradient(stage, turn, length_GCM, aggregation)
                cosine = _compute_exact_cosine(gradient_GCM, stage.gradient[turn])
                row = {"role": role, "average": f"by {aggregation}", "spread": spread, **make_columns("cosine", cosine)}
                is_test = aggregation == "message" and spread == 1.0
                rows.append({**row, "p": compute_p(cosine, scale.games, LEVEL, 1.0) if is_test else math.nan})
    return rows


def _expect_length_gradient(stage: Stage, turn: int, length_GCM: np.ndarray, aggregation: Any) -> np.ndarray:
    """E of the sum over a message's tokens of weight times A* times its token's score, [G, C, M].

    Tokens of one message weigh the same and their scores sum to the message's, so only the weight of one token counts.
    """
    sampled_NT = np.arange(length_GCM.max()) < length_GCM.reshape(-1, 1)
    token_NT = np.asarray(compute_weights(jnp.asarray(sampled_NT), aggregation), np.float64)
    chance_GCM = np.asarray(stage.target.policy[turn], np.float64)
    weight_GCM = token_NT[:, 0].reshape(length_GCM.shape) * chance_GCM
    weight_GCM *= np.asarray(stage.oracle.advantage[turn], np.float64)
    visit_GC1 = np.asarray(stage.oracle.visit[turn], np.float64)[..., None]
    return visit_GC1 * (weight_GCM - chance_GCM * weight_GCM.sum(axis=2, keepdims=True))


def judge_length(rows: Sequence[Row]) -> Finding:
    """Claim 19: exact by token, turned by message."""
    token, message = (find_rows(rows, average=f"by {name}") for name in ("token", "message"))
    even = find_rows(message, spread=0.0)
    wide = [row for row in message if row["spread"] >= 1.0]
    checks = [
        Check("by token", max(abs(row["cosine"] - 1) for row in token) <= 1e-6),
        Check("by message with equal lengths", max(abs(row["cosine"] - 1) for row in even) <= 1e-6),
    ]
    for role in ROLES:
        is_met = max(row["cosine"] for row in find_rows(wide, role=role)) < 0.95
        checks.append(Check(f"turned by message ({role} role)", is_met, False))
    told = ", ".join(f"{role} role {describe(find_row(wide, role=role, spread=1.0), 'cosine')}" for role in ROLES)
    return conclude(
        checks,
        f"by message at s = 1: {told}; by token 1",
        f"Averaged by message, lengths spread by a factor e: cosine {told}; averaged by token it is 1 at every spread.",
    )


def plot_length(rows: Sequence[Row], title: str) -> Figure:
    """Claim 19."""
    shown = [{**row, "panel": f"{row['role']} role"} for row in rows]
    x, y = Axis("spread", "spread s of the logarithm of lengths"), Axis("cosine", "cosine", has_interval=True)
    return plot_curves(shown, x=x, y=y, group="average", panel="panel", title=title)
