"""Claims 14, 15 and 18: diagnostics against the truth, and credit that teaches nothing.

Dimension key: G problem    C trial    J message of a context    Y outcome    S sample    N message    R repeat
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from c3jax.analysis.fidelity import compute_spearman, compute_within_context_variance
from c3jax.analysis.figures import Axis, plot_curves
from c3jax.analysis.influence import (
    compute_corrected_influence,
    compute_null_bias,
    compute_plugin_influence,
    sample_permutation_null,
)
from c3jax.analysis.statistics import compute_student_interval, compute_wilson_interval
from c3jax.analysis.tables import Row, format_cell, make_columns
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import Plan, make_flat, make_tree
from c3jax.lab import games, oracle, policies
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
from c3jax.lab.claims.stage import Stage, compile_quickly, draw_estimator, draw_returns, make_stage, set_policy

MESSAGES, OUTCOMES = 4, 2
DIALS = (0.0, 0.5, 1.0, 2.0, 4.0)  # how far the second role's logits hang on what it reads
CONTINUATIONS = (2, 8, 32)
PERMUTATIONS = 99


def measure_influence(scale: Scale) -> list[dict[str, Any]]:
    """Claim 14: influence of a message on the next, exact and estimated, as the policy reads more of it."""
    family = games.make_team(
        messages=(MESSAGES, OUTCOMES), sees=games.see_all(2), effect=1.0, coupling=1.0, spread=0.0, noise="none"
    )
    stage = make_stage(family, 1.0, scale.games, scale.seed)
    random = np.random.default_rng(scale.seed)
    rows: list[dict[str, Any]] = []
    for dial in DIALS:
        reading = _read_by(stage, dial)
        exact_G = np.asarray(compile_quickly(_compute_influence, 2)(*reading[:4]), np.float64)
        chance_GJ = np.asarray(reading.target.policy[1], np.float64)[:, :, 1]
        for c in CONTINUATIONS:
            second_GRJ = random.binomial(c, chance_GJ[:, None, :], (scale.games, max(2, scale.samples // 4), MESSAGES))
            count_GRJY = np.stack([c - second_GRJ, second_GRJ], axis=3)
            rows.append({"dial": dial, "continuations": c, **_estimate_influence(count_GRJY, exact_G, scale.seed)})
    return rows


def _compute_influence(
    shape: games.GameShape, policy: policies.Policy, params: policies.Params, problems: games.Game
) -> jax.Array:
    """Exact influence of the first message on the second, [G], nats."""
    return jax.vmap(lambda game: oracle.compute_influence(shape, game, policy, params).mean_KK[0, 1])(problems)


def _read_by(stage: Stage, dial: float) -> Stage:
    """The first role uniform, the second one's logits a part of its own and `dial` times a part of what it reads."""
    first, second = stage.params
    own = second[:, :1] * 0.5
    return set_policy(
        stage.shape, stage.policy, (jnp.zeros_like(first), own + dial * (second - second[:, :1])), stage.games
    )


def _estimate_influence(count_GRJY: np.ndarray, exact_G: np.ndarray, seed: int) -> dict[str, Any]:
    problems, repeats = count_GRJY.shape[:2]
    flat_CJY = count_GRJY.reshape(-1, MESSAGES, OUTCOMES)
    plugin_G, corrected_G = (
        compute(flat_CJY).reshape(problems, repeats).mean(axis=1)
        for compute in (compute_plugin_influence, compute_corrected_influence)
    )
    # One trial of the null is one draw of every problem, as a run would report it.
    trials = 40
    p_C = [
        sample_permutation_null(count_GRJY[:, repeat % repeats], PERMUTATIONS, LEVEL, seed + repeat).p
        for repeat in range(min(trials, repeats))
    ]
    rejected = int(np.sum(np.array(p_C) <= 0.05))
    draws = int(flat_CJY[0].sum())
    return {
        **make_columns("exact", compute_student_interval(exact_G, LEVEL)),
        **make_columns("plugin", compute_student_interval(plugin_G, LEVEL)),
        **make_columns("corrected", compute_student_interval(corrected_G, LEVEL)),
        "leading_term": compute_null_bias(MESSAGES, OUTCOMES, draws),
        "trials": len(p_C),
        **make_columns("rejected", compute_wilson_interval(rejected, len(p_C), LEVEL)),
    }


def judge_influence(rows: Sequence[Row]) -> Finding:
    """Claim 14: bias of the plug-in where there is no influence, what correction leaves, how often a null rejects."""
    two, eight = (find_row(rows, dial=0.0, continuations=c) for c in (2, 8))
    checks = [
        Check("the plug-in's bias at c = 2", 3 / 16 <= two["plugin"] <= 0.28, False),
        Check("the plug-in's bias at c = 8", abs(eight["plugin"] / (3 / 64) - 1) <= 0.25, False),
        Check("a plug-in above the exact value", all(row["plugin_low"] > row["exact"] for row in (two, eight))),
        Check("a correction that leaves more than half at c = 2", two["corrected"] > two["plugin"] / 2, False),
        Check("the correction at c = 8", abs(eight["corrected"]) < 0.2 * eight["plugin"], False),
    ]
    checks += [
        Check(f"the permutation null at c = {c:g}", 0.01 <= row["rejected"] <= 0.12, False)
        for c, row in ((2, two), (8, eight))
    ]
    told = "; ".join(
        f"c = {c}: plug-in {describe(row, 'plugin')}, corrected {describe(row, 'corrected')}, null rejects"
        f" {format_cell(row['rejected'])}"
        for c, row in ((2, two), (8, eight))
    )
    return conclude(checks, f"no influence, {told}", f"Nats where there is no influence, {told}.")


def plot_influence(rows: Sequence[Row], title: str) -> Figure:
    """Claim 14."""
    shown = [
        {
            "estimate": name,
            "panel": f"{row['continuations']:g} continuations a message",
            "dial": row["dial"],
            **{f"value{bound}": row[f"{name}{bound}"] for bound in ("", "_low", "_high")},
        }
        for row in rows
        for name in ("exact", "plugin", "corrected")
    ]
    x, y = Axis("dial", "how much the second role reads"), Axis("value", "influence, nats", has_interval=True)
    return plot_curves(shown, x=x, y=y, group="estimate", panel="panel", title=title)


# --------------------------------------------------------------------------------------------------------------------

BIASES = (-6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0)


def measure_confound(scale: Scale) -> list[dict[str, Any]]:
    """Claim 15: the released diagnostics of an untrained policy as problems become easier."""
    family = games.make_team(
        messages=(6, 6), sees=games.see_all(2), effect=1.0, coupling=1.0, spread=0.0, noise="bernoulli"
    )
    plan = make_tree((4, 2))
    base = make_stage(family, 0.0, scale.games, scale.seed)
    rows = []
    for bias in BIASES:
        harder = base.games._replace(bias=base.games.bias + bias)
        stage = set_policy(base.shape, base.policy, base.params, harder)
        return_GSL = draw_returns(stage, plan, scale.samples, scale.seed)
        rows.append({"bias": bias, **_diagnose(stage, plan, return_GSL)})
    return rows


def _diagnose(stage: Stage, plan: Plan, return_GSL: np.ndarray) -> dict[str, Any]:
    """What the released diagnostics say of the first role's credit."""
    problems, samples, leaves = return_GSL.shape
    n, c = plan.fan_out
    matrix = jax.tree.map(jnp.asarray, make_credit_matrix("c3", plan))
    credit = apply_credit(matrix, jnp.asarray(return_GSL.reshape(-1, leaves)), normalise="none")
    keep_SN = jnp.ones(credit.value[0].shape, bool)
    own_S = np.asarray(compute_spearman(credit.advantage[0], credit.value[0], keep_SN))
    variance_S = np.asarray(compute_within_context_variance(credit.advantage[0], keep_SN))
    success_SJ = return_GSL.reshape(-1, n, c).sum(axis=2).astype(int)
    influence_S = compute_plugin_influence(np.stack([c - success_SJ, success_SJ], axis=2))
    means = {"variance": variance_S, "influence": influence_S, "defined_share": np.isfinite(own_S)}
    columns = make_columns("mean_return", compute_student_interval(np.asarray(stage.oracle.value), LEVEL))
    for name, value_S in means.items():
        columns |= make_columns(name, compute_student_interval(value_S.reshape(problems, samples).mean(axis=1), LEVEL))
    return columns | {"own_fidelity": float(np.nanmean(own_S))}


def judge_confound(rows: Sequence[Row]) -> Finding:
    """Claim 15: variance, influence and defined share at mean return 0.5 against those at 0.1 or less."""
    middle = min(rows, key=lambda row: abs(row["mean_return"] - 0.5))
    low = max((row for row in rows if row["mean_return"] <= 0.1), key=lambda row: row["mean_return"], default=None)
    if low is None:
        return conclude([Check("a mean return of 0.1", False)], "no mean return of 0.1 or less", "Nothing to compare.")
    ratio = {name: middle[name] / low[name] for name in ("variance", "influence", "defined_share")}
    own = (min(row["own_fidelity"] for row in rows), max(row["own_fidelity"] for row in rows))
    checks = [
        Check("within-context variance", ratio["variance"] >= 2 and middle["variance_low"] > low["variance_high"]),
        Check("influence", ratio["influence"] >= 2 and middle["influence_low"] > low["influence_high"], False),
        Check("fidelity to the same samples", min(own) > 1 - 1e-5 and max(own) < 1 + 1e-5, False),
        Check("the share that has a fidelity", ratio["defined_share"] >= 1.5, False),
    ]
    told = ", ".join(
        f"{name.replace('_', ' ')} {format_cell(low[name])} and {format_cell(middle[name])}" for name in ratio
    )
    at = f"{format_cell(low['mean_return'])} and {format_cell(middle['mean_return'])}"
    return conclude(
        checks,
        f"at mean return {at}: {told}; own fidelity {format_cell(own[0], 4)}",
        f"At mean returns {at}: {told}. Fidelity to the same samples is {format_cell(own[0], 4)} at least.",
    )


def plot_confound(rows: Sequence[Row], title: str) -> Figure:
    """Claim 15."""
    names = {
        "variance": "within-context variance, squared units of return",
        "influence": "plug-in influence, nats",
        "defined_share": "share of contexts with a fidelity",
    }
    shown = [
        {
            "panel": text,
            "estimator": "c3 4x2",
            "mean_return": row["mean_return"],
            **{f"value{bound}": row[f"{name}{bound}"] for bound in ("", "_low", "_high")},
        }
        for name, text in names.items()
        for row in rows
    ]
    x, y = Axis("mean_return", "mean return of the untrained policy"), Axis("value", "diagnostic", has_interval=True)
    return plot_curves(shown, x=x, y=y, group="estimator", panel="panel", title=title)


# --------------------------------------------------------------------------------------------------------------------

TEMPERATURES = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
GROUPS = {"tree 2x4, first role": (0, 2), "tree 2x4, second role": (1, 4)}  # turn, alternatives in a group


def measure_zero_groups(scale: Scale) -> list[dict[str, Any]]:
    """Claim 18: share of groups without any credit as the policy is sharpened, for 0/1 and for noiseless returns."""
    rows = []
    for noise in ("bernoulli", "none"):
        family = games.make_team(
            messages=(6, 6), sees=games.see_all(2), effect=1.0, coupling=2.0, spread=0.0, noise=noise
        )
        base = make_stage(family, 1.0, scale.games, scale.seed)
        for temperature in TEMPERATURES:
            params = tuple(table / temperature for table in base.params)
            stage = set_policy(base.shape, base.policy, params, base.games)
            returns = "0/1" if noise == "bernoulli" else "noiseless"
            row = {"returns": returns, "temperature": temperature, "entropy": _average_entropy(stage)}
            rows += [{**row, **columns} for columns in _share_zero_groups(stage, scale)]
    return rows


def _average_entropy(stage: Stage) -> float:
    """Mean entropy of a message over roles and problems, nats."""
    total = 0.0
    for policy_GCM, visit_GC in zip(stage.target.policy, stage.oracle.visit, strict=True):
        chance_GCM = np.asarray(policy_GCM, np.float64)
        entropy_GC = -(chance_GCM * np.log(np.maximum(chance_GCM, 1e-30))).sum(axis=2)
        total += float((np.asarray(visit_GC) * entropy_GC).sum(axis=1).mean())
    return total / len(stage.target.policy)


def _share_zero_groups(stage: Stage, scale: Scale) -> list[dict[str, Any]]:
    tree = draw_estimator(stage, "c3", make_tree((2, 4)), scale.samples, scale.seed).advantage
    flat = draw_estimator(stage, "rloo", make_flat(8, 2), scale.samples, scale.seed).advantage
    flat_G = _find_zero_share(flat[0], 8)
    rows = [{"groups": "8 episodes", **make_columns("share", compute_student_interval(flat_G, LEVEL)), "p": math.nan}]
    for name, (turn, size) in GROUPS.items():
        share_G = _find_zero_share(tree[turn], size)
        above = compute_student_interval(share_G - flat_G, LEVEL)
        columns = make_columns("share", compute_student_interval(share_G, LEVEL)) | make_columns("above", above)
        rows.append({"groups": name, **columns, "p": compute_p(above, stage.count, LEVEL)})
    return rows


def _find_zero_share(advantage_GSN: np.ndarray, size: int) -> np.ndarray:
    is_zero = (advantage_GSN.reshape(advantage_GSN.shape[0], -1, size) == 0).all(axis=2)
    return is_zero.mean(axis=1)


def judge_zero_groups(rows: Sequence[Row]) -> Finding:
    """Claim 18: shares rise as the temperature falls, and the tree's lie above the episodes'."""
    checks, told = [], []
    for returns in ("0/1", "noiseless"):
        ends = []
        for groups in ("8 episodes", *GROUPS):
            hot, cold = (
                find_row(rows, returns=returns, groups=groups, temperature=t)
                for t in (TEMPERATURES[0], TEMPERATURES[-1])
            )
            checks.append(Check(f"a rise for {groups}, {returns} returns", cold["share"] > hot["share"]))
            ends.append(f"{groups} {format_cell(hot['share'], 2)} to {format_cell(cold['share'], 2)}")
        tree = [row for row in find_rows(rows, returns=returns) if row["groups"] in GROUPS]
        below = [row for row in tree if not (row["above"] > 0 and is_significant(row))]
        checks.append(Check(f"the tree above the episodes, {returns} returns", not below, False))
        told.append(f"{returns} returns: {', '.join(ends)}")
    return conclude(
        checks,
        "; ".join(told),
        f"Share of groups without credit from temperature {TEMPERATURES[0]:g} to {TEMPERATURES[-1]:g},"
        f" {'; '.join(told)}.",
    )


def plot_zero_groups(rows: Sequence[Row], title: str) -> Figure:
    """Claim 18."""
    shown = [{**row, "panel": f"{row['returns']} returns"} for row in rows]
    x, y = (
        Axis("entropy", "entropy of a message, nats"),
        Axis("share", "share of groups without credit", has_interval=True),
    )
    return plot_curves(shown, x=x, y=y, group="groups", panel="panel", title=title)
