"""The bench of estimators: every one on every game and role, under one common policy, against the exact truth.

One row says of an estimator on a game's turn: its bias (with a 99.9 % interval), variance and error against A*, its
rank fidelity within a context, the direction of its gradient, and noise over signal of the gradient at equal evaluator
calls, equal messages and equal generated tokens: those of the case's first estimator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from c3jax.analysis import figures, tables
from c3jax.analysis.statistics import Interval, compute_signed_root, compute_student_interval
from c3jax.credit.plans import Plan
from c3jax.lab import analyse
from c3jax.lab.config import BenchStudy, Case
from c3jax.lab.sections import count_costs, describe_estimator, list_tokens
from c3jax.lab.testbed import Measured, make_bench_testbed, measure_estimator
from c3jax.run.files import save_whole

LEVEL = 0.95  # of all intervals but the bias's
ROUNDING = 1e-4  # of advantages, in units of return: a bias below it is float32's
UNITS = ("calls", "messages", "tokens")

_SHOWN = ("game", "estimator", "turn", "bias", "unbiased", "mse", "fidelity", "cosine")
_SHOWN_NOISE = ("game", "estimator", "turn", *(f"noise_per_{unit}" for unit in UNITS))


def run(config: BenchStudy, run_dir: Path, console: Console) -> int:
    """Measure every case, or resume after the last case that is there; writes tables and figures.

    Args:
      config: the study's.
      run_dir: where cases that are done lie, and new ones are written.
      console: to print on.

    Returns:
      0, the exit code.
    """
    rows: list[dict[str, Any]] = []
    against: list[dict[str, Any]] = []
    for number, case in enumerate(config.cases):
        file, against_file = (run_dir / "cases" / f"{number:02d}{end}.json" for end in ("", "-against"))
        if not file.exists():
            began = time.perf_counter()
            measured = measure_case(config, case, jax.random.fold_in(jax.random.key(config.seed), number), console)
            save_whole(against_file, tables.to_json(compare_case(config, case, measured)))
            save_whole(file, tables.to_json(describe_case(case, measured)))  # the last: it says that the case is done
            console.print(f"{case.name}: {time.perf_counter() - began:.0f} s", highlight=False)
        rows += tables.load_table(file)
        against += tables.load_table(against_file)
    tables.save_table(run_dir / "bench", rows, "Credit estimators against the exact truth")
    tables.save_table(run_dir / "against", against, "Noise over signal of ours as a ratio to a rival's")
    for number, case in enumerate(config.cases):
        of_case, compared = ([row for row in part if row["game"] == case.name] for part in (rows, against))
        _save_figures(run_dir / "figures" / f"{number:02d}", case.name, of_case)
        tables.print_table(console, _select(of_case, _SHOWN), f"{case.name}: credit against A*")
        tables.print_table(console, _select(of_case, _SHOWN_NOISE), f"{case.name}: gradient noise over signal")
        if compared:
            tables.print_table(
                console, find_worst_ratios(compared), f"{case.name}: the worst ratio of noise to a rival's"
            )
    console.print(f"tables and figures: {run_dir}", highlight=False, soft_wrap=True)
    return 0


def measure_case(config: BenchStudy, case: Case, key: jax.Array, console: Console) -> list[Measured]:
    """All estimators of a case on the same problems and policy.

    Args:
      config: the study's.
      case: of it.
      key: the case's: of problems, policy, pilot and draws.
      console: where it is said which estimator is measured.

    Returns:
      What was found of each estimator, in the case's order.
    """
    testbed = make_bench_testbed(config, case, key)
    measured = []
    with console.status("") as status:
        for estimator in case.estimators:
            status.update(f"{case.name}: {describe_estimator(estimator)}")
            measured.append(measure_estimator(config, case, estimator, testbed))
    return measured


def describe_case(case: Case, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for each estimator and turn that it trains."""
    tokens = list_tokens(case.game)
    reference = count_costs(measured[0].plan, tokens)
    rows = []
    for estimator, found in zip(case.estimators, measured, strict=True):
        costs = count_costs(found.plan, tokens)
        for turn, of_turn in found.figures.items():
            row: dict[str, Any] = {
                "game": case.name,
                "estimator": describe_estimator(estimator),
                "plan": describe_plan(found.plan),
                "turn": turn,
            } | costs
            row["pilot_calls"] = found.pilot_calls
            row |= _describe_accuracy(of_turn, found.squared_bias[turn], found.spearman[turn])
            noise = analyse.compute_noise(of_turn, LEVEL)
            for unit in UNITS:
                scale = costs[unit] / reference[unit]
                row |= tables.make_columns(f"noise_per_{unit}", Interval(*(scale * bound for bound in noise)))
            rows.append(row)
    return rows


def _describe_accuracy(of_turn: analyse.Figures, squared_bias: Interval, spearman_G: np.ndarray) -> dict[str, Any]:
    ranked = spearman_G[~np.isnan(spearman_G)]
    fidelity = compute_student_interval(ranked, LEVEL) if len(ranked) > 1 else Interval(*[math.nan] * 3)
    return (
        tables.make_columns("bias", compute_signed_root(squared_bias))
        | {"unbiased": bool(squared_bias.low <= ROUNDING**2)}
        | tables.make_columns("variance", compute_student_interval(of_turn.variance_G, LEVEL))
        | tables.make_columns("mse", compute_student_interval(of_turn.error_G, LEVEL))
        | tables.make_columns("fidelity", fidelity)
        | tables.make_columns("cosine", analyse.compute_cosine(of_turn, LEVEL))
    )


def compare_case(config: BenchStudy, case: Case, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Noise over signal of each of ours as a ratio to each rival's, for each turn and unit of budget.

    Args:
      config: says whose ratios to whom.
      case: of it.
      measured: from `measure_case`.
    """
    tokens = list_tokens(case.game)
    rows = []
    for mine, found in zip(case.estimators, measured, strict=True):
        for other, beside in zip(case.estimators, measured, strict=True):
            if mine not in config.ours or other not in config.rivals:
                continue
            costs, costs_beside = count_costs(found.plan, tokens), count_costs(beside.plan, tokens)
            for turn in found.figures:
                ratio = analyse.compare_noise(found.figures[turn], beside.figures[turn], LEVEL)
                row = {
                    "game": case.name,
                    "ours": describe_estimator(mine),
                    "rival": describe_estimator(other),
                    "turn": turn,
                }
                for unit in UNITS:
                    scaled = Interval(*(bound * costs[unit] / costs_beside[unit] for bound in ratio))
                    row |= tables.make_columns(f"ratio_per_{unit}", scaled)
                rows.append(row)
    return rows


def find_worst_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each of ours on one game and each unit, the largest ratio over rivals and turns, and where it is."""
    found = []
    for ours in dict.fromkeys(row["ours"] for row in rows):
        of_ours = [row for row in rows if row["ours"] == ours]
        for unit in UNITS:
            name = f"ratio_per_{unit}"
            # A ratio that is not known is the worst: it could be anything.
            worst = max(of_ours, key=lambda row: math.inf if math.isnan(row[name]) else row[name])
            bounds = {f"ratio{bound}": worst[f"{name}{bound}"] for bound in ("", "_low", "_high")}
            found.append({"ours": ours, "unit": unit} | bounds | {"against": f"{worst['rival']}, turn {worst['turn']}"})
    return found


def describe_plan(plan: Plan) -> str:
    """A plan in a word: tree 2x4, replay 1+1+1+1, removal 2."""
    if plan.form == "tree":
        return f"tree {'x'.join(map(str, plan.fan_out))}"
    if plan.counts:
        return f"{plan.form} {'+'.join(map(str, plan.counts))}"
    return f"{plan.form} {plan.episodes}" + (f", {plan.repeats} each" if plan.repeats else "")


def _save_figures(stem: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Two figures of a case: noise over signal at equal budgets, and the credit of a message against the truth."""
    noise = {f"noise_per_{unit}": f"at equal {unit}" for unit in UNITS}
    credit = {"bias": "bias (return)", "mse": "mean squared error (return²)", "fidelity": "rank correlation"}
    axes = {
        "noise": figures.Axis("value", "gradient noise / signal", "log", has_interval=True),
        "credit": figures.Axis("value", "credit of a message against A*", has_interval=True),
    }
    for end, panels in (("noise", noise), ("credit", credit)):
        points = [
            {"estimator": row["estimator"], "role": f"turn {row['turn']}", "panel": title}
            | {f"value{bound}": row[f"{column}{bound}"] for bound in ("", "_low", "_high")}
            for column, title in panels.items()
            for row in rows
            if math.isfinite(row[column])
        ]
        if not points:  # too few draws for any of it
            continue
        if end == "noise":  # its scale has no zero: an interval that reaches it is drawn to a tenth of its estimate
            points = [point | {"value_low": max(point["value_low"], 0.1 * point["value"])} for point in points]
        figure = figures.plot_points(
            points, category="estimator", value=axes[end], group="role", panel="panel", title=name
        )
        figures.save_figure(figure, stem.with_name(f"{stem.name}-{end}"))


def _select(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in columns if name != "game"} for row in rows]
