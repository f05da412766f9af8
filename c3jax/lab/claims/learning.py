"""Claims 9, 11, 12 and 13: training runs, all on paired seeds, and the noise that explains them.

Dimension key: R seed    E entry of a curve    A arm
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from c3jax.analysis import figures as drawing
from c3jax.analysis.figures import Axis, plot_points
from c3jax.analysis.statistics import Interval, compute_jackknife_interval, compute_paired, compute_student_interval
from c3jax.analysis.tables import Row, format_cell, make_columns
from c3jax.credit import rows as credit_rows
from c3jax.credit.plans import Plan, count_calls, count_generated, make_flat, make_replay, make_tree
from c3jax.lab import games
from c3jax.lab.analyse import compute_noise
from c3jax.lab.claims.claim import LEVEL, Check, Finding, Scale, conclude, describe, find_row, find_rows, is_significant
from c3jax.lab.claims.stage import figure_turns, make_stage, sum_estimator
from c3jax.lab.claims.training import average_curve, train_arms

TOKENS = (4.0, 1.0)  # of a message of each role where the first writes four times as much
UNITS = ("calls", "messages", "tokens")


def measure_curves(scale: Scale) -> list[dict[str, Any]]:
    """Claim 9: curves of four estimators, and paired differences of their means over a common budget in each unit."""
    family = games.make_survey()
    plans = {
        "rloo 8": make_flat(8, 2),
        "magrpo 8": make_flat(8, 2),
        "c3 2x4": make_tree((2, 4)),
        "c3 4x2": make_tree((4, 2)),
    }
    run = (scale.seeds, scale.updates, scale.seed)
    flat_ARE = train_arms(family, plans["rloo 8"], ("rloo", "magrpo"), *run)
    curves = {"rloo 8": flat_ARE[0], "magrpo 8": flat_ARE[1]}
    curves |= {name: train_arms(family, plans[name], ("c3",), *run)[0] for name in ("c3 2x4", "c3 4x2")}
    rows = []
    for unit in UNITS:
        costs = {name: _count_cost(plan, unit) for name, plan in plans.items()}
        budget = min(
            costs.values()
        )  # that of the cheapest arm's whole run, which every other arm reaches part of the way
        mean = {name: average_curve(curves[name], costs[name], budget) for name in plans}
        for name, curve_RE in curves.items():
            rows += _list_points(name, unit, curve_RE, costs[name] * scale.updates)
            if name != "rloo 8":
                rows.append({"quantity": "difference", "arm": name, "unit": unit, **_pair(mean[name], mean["rloo 8"])})
    return rows


def _count_cost(plan: Plan, unit: str) -> float:
    """Cost of one problem in evaluator calls, messages, or tokens by `TOKENS`."""
    generated = count_generated(plan)
    return {
        "calls": float(count_calls(plan)),
        "messages": float(sum(generated)),
        "tokens": float(np.dot(generated, TOKENS)),
    }[unit]


def _list_points(arm: str, unit: str, value_RE: np.ndarray, cost: float) -> list[dict[str, Any]]:
    at_E = np.linspace(0.0, cost, value_RE.shape[1])
    return [
        {"quantity": "curve", "arm": arm, "unit": unit, "cost": float(at)}
        | make_columns("value", compute_student_interval(value_R, LEVEL))
        for at, value_R in zip(at_E, value_RE.T, strict=True)
    ]


def _pair(mine_R: np.ndarray, theirs_R: np.ndarray) -> dict[str, float]:
    paired = compute_paired(mine_R, theirs_R, LEVEL)
    return {**make_columns("value", paired.difference), "p": paired.p_student, "p_signs": paired.p_signs}


def judge_curves(rows: Sequence[Row]) -> Finding:
    """Claim 9: c3 2x4 behind rloo by calls, ahead by tokens, magrpo as rloo."""
    c3 = {unit: find_row(rows, quantity="difference", arm="c3 2x4", unit=unit) for unit in UNITS}
    magrpo = find_row(rows, quantity="difference", arm="magrpo 8", unit="calls")
    checks = [
        Check("behind at equal calls", c3["calls"]["value"] < 0 and is_significant(c3["calls"]), False),
        Check("better at equal messages than at equal calls", c3["messages"]["value"] > c3["calls"]["value"]),
        Check("ahead at equal tokens", c3["tokens"]["value"] > 0 and is_significant(c3["tokens"]), False),
        Check("magrpo as rloo", max(abs(magrpo["value_low"]), abs(magrpo["value_high"])) <= 0.005, False),
    ]
    numbers = ", ".join(f"{unit} {describe(row, 'value')}" for unit, row in c3.items())
    return conclude(
        checks,
        f"c3 2x4 less rloo 8: {numbers}",
        f"Mean return over the common budget, c3 2x4 less rloo 8 at equal {numbers}; magrpo 8 less rloo 8"
        f" {describe(magrpo, 'value')}.",
    )


def plot_curves(rows: Sequence[Row], title: str) -> Figure:
    """Claim 9."""
    shown = [{**row, "panel": f"by {row['unit']}"} for row in find_rows(rows, quantity="curve")]
    x, y = Axis("cost", "cost a problem in the update"), Axis("value", "expected return", has_interval=True)
    return drawing.plot_curves(shown, x=x, y=y, group="arm", panel="panel", title=title)


# --------------------------------------------------------------------------------------------------------------------

FAN_OUTS = {"1x8": ((1, 8), (0,)), "2x4": ((2, 4), ()), "4x2": ((4, 2), ()), "8x1": ((8, 1), (1,))}


def measure_fan_out(scale: Scale) -> list[dict[str, Any]]:
    """Claim 11: mean return over the run for each fan-out with 8 leaves, and the first role's gradient under 1x8."""
    family = games.make_survey()
    curves = {
        name: train_arms(family, make_tree(fan_out), ("c3",), scale.seeds, scale.updates, scale.seed, untrained)[0]
        for name, (fan_out, untrained) in FAN_OUTS.items()
    }
    mean = {name: average_curve(curve_RE, 1.0, 1.0) for name, curve_RE in curves.items()}
    rows: list[dict[str, Any]] = []
    for name, mean_R in mean.items():
        last = compute_student_interval(curves[name][:, -1], LEVEL)
        row = {"quantity": "mean return", "arm": name, **make_columns("value", compute_student_interval(mean_R, LEVEL))}
        rows.append({**row, **make_columns("last", last)})
    rows += [
        {"quantity": "difference", "arm": f"{name} less {other}", **_pair(mean[name], mean[other])}
        for name, other in (("2x4", "1x8"), ("2x4", "8x1"), ("4x2", "2x4"))
    ]
    plan = make_tree(FAN_OUTS["1x8"][0])
    # Credit of a group of one: the message's value less the mean of its group, a weight of each leaf.
    weight_NL = credit_rows.own_leaves(plan, 0) - credit_rows.mean_of_context(plan, 0)
    rows.append({"quantity": "first role of 1x8", "arm": "largest weight", "value": float(np.abs(weight_NL).max())})
    return rows


def judge_fan_out(rows: Sequence[Row]) -> Finding:
    """Claim 11: nothing for the first role under 1x8, and 2x4 above both ends."""
    weight = find_row(rows, quantity="first role of 1x8")["value"]
    ends = [find_row(rows, quantity="difference", arm=f"2x4 less {end}") for end in ("1x8", "8x1")]
    inner = find_row(rows, quantity="difference", arm="4x2 less 2x4")
    checks = [Check("no gradient for the first role of 1x8", weight == 0.0)]
    checks += [Check(f"{row['arm']} above zero", row["value"] > 0 and is_significant(row), False) for row in ends]
    checks.append(Check("4x2 not below 2x4", inner["value_high"] >= 0, False))
    means = ", ".join(f"{row['arm']} {describe(row, 'value')}" for row in find_rows(rows, quantity="mean return"))
    differences = ", ".join(f"{row['arm']} {describe(row, 'value')}" for row in [*ends, inner])
    return conclude(
        checks,
        differences,
        f"Mean return over the run: {means}. Paired differences: {differences}. Largest weight of a leaf in the"
        f" first role's"
        f" credit under 1x8: {format_cell(weight)}.",
    )


def plot_fan_out(rows: Sequence[Row], title: str) -> Figure:
    """Claim 11."""
    value = Axis("value", "mean return over the run", has_interval=True)
    shown = find_rows(rows, quantity="mean return")
    return plot_points(shown, category="arm", value=value, group="quantity", title=title)


# --------------------------------------------------------------------------------------------------------------------

TREES = {2: (8, 8), 3: (4, 4, 4), 4: (4, 4, 2, 2), 5: (4, 2, 2, 2, 2), 6: (2,) * 6}
REPLAYS = {2: (8,) * 4, 3: (5,) * 4, 4: (4,) * 4, 5: (3,) * 4, 6: (3,) * 4}  # 60 to 72 calls
TRAINED_DEPTHS = (2, 4, 6)


def measure_depth(scale: Scale) -> list[dict[str, Any]]:
    """Claim 12: noise/signal at 64 calls of every role, and mean return over training, for tree and replay form."""
    rows: list[dict[str, Any]] = []
    for depth in TREES:
        # A draw has some 64 leaves, so fewer games will do.
        stage = make_stage(_make_chain(depth), games.SURVEY_LOGIT_SCALE, max(2, scale.games // 3), scale.seed)
        noise = {}
        for form, method, plan in _list_forms(depth):
            samples = scale.samples // 4 if form == "tree" else scale.samples
            found = figure_turns(stage, sum_estimator(stage, method, plan, samples, scale.seed), samples)
            noise[form] = [figures.noise_G.sum() / figures.signal_G.sum() * count_calls(plan) / 64 for figures in found]
            for turn, figures in enumerate(found):
                interval = Interval(*(x * count_calls(plan) / 64 for x in compute_noise(figures, LEVEL)))
                row = {"quantity": "noise", "form": form, "depth": depth, "turn": turn}
                rows.append({**row, **make_columns("value", interval)})
        ratio = {"first": noise["replay"][0] / noise["tree"][0], "last": noise["replay"][-1] / noise["tree"][-1]}
        ratio["sum"] = sum(noise["replay"]) / sum(noise["tree"])
        rows += [{"quantity": f"replay over tree, {name}", "depth": depth, "value": x} for name, x in ratio.items()]
    for depth in TRAINED_DEPTHS:
        rows.append({"quantity": "difference", "depth": depth, **_compare_forms(scale, depth)})
    return rows


def _make_chain(depth: int) -> games.Family:
    return games.make_team(
        messages=(3,) * depth, sees=games.see_all(depth), effect=1.0, coupling=1.0, spread=0.0, noise="bernoulli"
    )


def _list_forms(depth: int) -> list[tuple[str, str, Plan]]:
    return [
        ("tree", "c3", make_tree(TREES[depth])),
        ("replay", "c3_replay", make_replay(REPLAYS[depth], depth)),
    ]


def _compare_forms(scale: Scale, depth: int) -> dict[str, float]:
    updates = max(1, scale.updates // 3)  # deep runs cost more
    family, forms = _make_chain(depth), _list_forms(depth)
    budget = min(count_calls(plan) for _, _, plan in forms)
    means = [
        average_curve(
            train_arms(family, plan, (method,), scale.seeds, updates, scale.seed)[0], count_calls(plan), budget
        )
        for _, method, plan in forms
    ]
    return _pair(*means)


def judge_depth(rows: Sequence[Row]) -> Finding:
    """Claim 12: ratios of noise/signal and paired differences of returns, replay form against tree."""
    ratio = {
        name: {row["depth"]: row["value"] for row in find_rows(rows, quantity=f"replay over tree, {name}")}
        for name in ("sum", "first", "last")
    }
    checks = [Check(f"noise over roles at K = {depth}", ratio["sum"][depth] > 1, False) for depth in TREES]
    checks += [
        Check("noise over roles at some depth", max(ratio["sum"].values()) > 1),
        Check("the last turn", min(ratio["last"].values()) >= 2 and ratio["last"][6] > ratio["last"][2], False),
        Check("the first turn at K = 6", ratio["first"][6] < 1.0, False),
        Check("a first turn that falls at every depth", _is_falling([ratio["first"][depth] for depth in TREES]), False),
    ]
    learned = find_rows(rows, quantity="difference")
    checks += [
        Check(f"returns at K = {row['depth']}", row["value"] > 0 and is_significant(row), False) for row in learned
    ]
    told = {name: ", ".join(format_cell(ratio[name][depth], 2) for depth in TREES) for name in ("sum", "first", "last")}
    returns = ", ".join(f"K = {row['depth']} {describe(row, 'value')}" for row in learned)
    return conclude(
        checks,
        f"replay/tree noise over roles {told['sum']} for K = 2..6; returns, tree less replay: {returns}",
        f"Noise/signal of the replay form over the tree's for K = 2..6: over roles {told['sum']}; first turn"
        f" {told['first']};"
        f" last turn {told['last']}. Mean return over the run at equal calls, tree less replay: {returns}."
        f" The ratios are point"
        " estimates, from a third of the games; runs have a third of the updates.",
    )


def _is_falling(values: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def plot_depth(rows: Sequence[Row], title: str) -> Figure:
    """Claim 12."""
    x, y = Axis("turn", "turn"), Axis("value", "noise/signal of a gradient at 64 calls", "log", has_interval=True)
    shown = [{**row, "panel": f"K = {row['depth']}"} for row in find_rows(rows, quantity="noise")]
    return drawing.plot_curves(shown, x=x, y=y, group="form", panel="panel", title=title)


# --------------------------------------------------------------------------------------------------------------------

MATES = (0, 1, 2, 4)
PLACES = ("first", "last")


def measure_mates(scale: Scale) -> list[dict[str, Any]]:
    """Claim 13: noise/signal of magrpo and c3 as team-mates join, relative to none, and what it does to learning."""
    rows = []
    for place in PLACES:
        base: dict[str, Interval] = {}
        for mates in MATES:
            family = _make_team(mates, place)
            stage = make_stage(family, 0.5, scale.games, scale.seed)
            for arm, method, plan in _list_arms(mates, place):
                samples = max(2, scale.samples // 2)
                trained = [turn for turn, is_on in enumerate(family.shape.trained) if is_on]
                found = figure_turns(stage, sum_estimator(stage, method, plan, samples, scale.seed), samples)
                noise = _sum_noise([found[turn] for turn in trained])
                base.setdefault(arm, noise)
                row = {"quantity": "noise", "arm": arm, "place": place, "mates": mates, **make_columns("value", noise)}
                rows.append({**row, "growth": noise.estimate / base[arm].estimate})
    return rows + _compare_leads(scale)


def _make_team(mates: int, place: str) -> games.Family:
    family = games.make_bandit(turns=2, messages=4, effect=1.0, interaction=0.5, sigma=0.5)
    return games.add_mates(family, mates, effect=1.0, place="first" if place == "first" else "last")


def _list_arms(mates: int, place: str) -> list[tuple[str, str, Plan]]:
    ones = (1,) * mates
    tree = make_tree((*ones, 4, 2) if place == "first" else (4, 2, *ones))
    return [("magrpo 8", "magrpo", make_flat(8, 2 + mates)), ("c3 4x2", "c3", tree)]


def _sum_noise(found: Sequence[Any]) -> Interval:
    """Noise over signal of the trained roles' gradients laid end to end."""
    count = len(found[0].noise_G)
    noise_G, signal_G = (sum(getattr(figures, name) for figures in found) for name in ("noise_G", "signal_G"))
    return compute_jackknife_interval(lambda kept: noise_G[kept].sum() / signal_G[kept].sum(), count, LEVEL)


def _compare_leads(scale: Scale) -> list[dict[str, Any]]:
    rows, lead = [], {}
    for mates in (0, MATES[-1]):
        mean = {}
        for arm, method, plan in _list_arms(mates, "first"):
            value_RE = train_arms(_make_team(mates, "first"), plan, (method,), scale.seeds, scale.updates, scale.seed)[
                0
            ]
            mean[arm] = average_curve(value_RE, 1.0, 1.0)
        lead[mates] = mean["c3 4x2"] - mean["magrpo 8"]
        rows.append({"quantity": "lead", "mates": mates, **_pair(mean["c3 4x2"], mean["magrpo 8"])})
    rows.append({"quantity": "lead grows", "mates": MATES[-1], **_pair(lead[MATES[-1]], lead[0])})
    return rows


def judge_mates(rows: Sequence[Row]) -> Finding:
    """Claim 13: magrpo's noise grows, c3's only where team-mates speak last, and so does c3's lead."""
    growth = {
        (arm, place): [find_row(rows, quantity="noise", arm=arm, place=place, mates=mates)["growth"] for mates in MATES]
        for arm in ("magrpo 8", "c3 4x2")
        for place in PLACES
    }
    magrpo, still = {place: growth["magrpo 8", place] for place in PLACES}, growth["c3 4x2", "first"]
    lead = find_row(rows, quantity="lead grows")
    checks = [
        Check("a rise of magrpo's noise", all(noise == sorted(noise) for noise in magrpo.values())),
        *(Check(f"magrpo's noise, team-mates {place}", 1.8 <= magrpo[place][-1] <= 3.2, False) for place in PLACES),
        Check("c3's noise with team-mates first", 0.95 <= min(still) and max(still) <= 1.05, False),
        Check("c3's noise with team-mates last", growth["c3 4x2", "last"][-1] > 1.3, False),
        Check("c3's lead", lead["value"] > 0 and is_significant(lead), False),
    ]
    told = ", ".join(f"{arm} {place} {format_cell(x[-1])}" for (arm, place), x in growth.items())
    return conclude(
        checks,
        f"noise/signal at m = 4 over m = 0: {told}; lead grows by {describe(lead, 'value')}",
        f"Noise/signal with four team-mates over that with none, by who and when they speak: {told}. c3's lead in"
        f" mean return"
        f" is greater with four than with none by {describe(lead, 'value')}. Noise from half of the samples.",
    )


def plot_mates(rows: Sequence[Row], title: str) -> Figure:
    """Claim 13."""
    shown = [{**row, "panel": f"team-mates speak {row['place']}"} for row in find_rows(rows, quantity="noise")]
    x, y = Axis("mates", "untrained team-mates"), Axis("value", "noise/signal of the gradient", has_interval=True)
    return drawing.plot_curves(shown, x=x, y=y, group="arm", panel="panel", title=title)
