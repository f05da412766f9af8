"""What runs recorded, as rows for tables and figures: returns, accuracies and costs over steps and ledger.

A run's metrics.jsonl and eval/*.json are all that is read. Runs that differ only in their seed are a group; a row is of
one group, and is a mean over its runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c3jax.analysis import tables
from c3jax.analysis.evaluations import (
    Cell,
    Group,
    Run,
    compute_score,
    describe_run,
    group_runs,
    list_turns,
    name_groups,
)
from c3jax.run.metrics import LEDGER, Row, read_metrics, sum_ledger, sum_seconds
from c3jax.types import UserError

_MOST_POINTS = 100  # of a curve of returns; of more steps, a point is the mean of several
_DEPENDENT = ("credit.budget", "credit.draws")  # what a tree of another form brings with it
SHAPES = {
    "fan_out": ("credit.fan_out", *_DEPENDENT),
    "depth": ("protocol.", "model.context", "credit.fan_out", *_DEPENDENT),
}

# Figures of metrics.jsonl that say what credit does, in the order shown; those of turns follow the first.
MEASURES = {
    "zero_credit_share": "contexts without credit, share",
    "truncated_share": "messages cut at their limit, share",
    "clip_share": "ratios beyond the clip, share",
    "kl": "KL to the reference, nats a token",
    "grad_norm": "gradient norm before clipping",
    "message_tokens": "tokens a message",
    "critic_loss": "loss of the critic",
    "explained_variance": "variance explained by the critic",
}


class History(NamedTuple):
    """A group of runs with the rows of their metrics."""

    name: str
    runs: tuple[Run, ...]
    rows: tuple[list[Row], ...]  # of each run


TOTALS = ("step", "evaluator_calls", "messages", "generated_tokens", "seconds")


def find_runs(paths: Sequence[str]) -> list[str]:
    """The run directories among paths and in the folders among them, sorted there; each once.

    Raises:
      UserError: a path is neither a run nor a folder of runs.
    """
    found: dict[str, None] = {}
    for path in paths:
        is_run = (Path(path) / "config.yaml").is_file()
        inside = [path] if is_run else sorted(str(file.parent) for file in Path(path).rglob("config.yaml"))
        if not inside:
            raise UserError(f"{path}: expected a run directory or a folder of runs, found none")
        found |= dict.fromkeys(inside)
    return list(found)


def load_histories(paths: Sequence[str]) -> list[History]:
    """Read runs and put those together that differ only in their seed.

    Args:
      paths: run directories.

    Raises:
      UserError: one is no run, two have the same config and seed, or a file of a run is damaged.
    """
    groups = group_runs([describe_run(path) for path in paths])
    return [
        History(
            group.name if len(groups) > 1 else group.runs[0].config["credit.method"],
            group.runs,
            tuple(read_metrics(Path(run.path)) for run in group.runs),
        )
        for group in groups
    ]


def add_up(rows: Sequence[Row]) -> dict[str, list[float]]:
    """The steps and the ledger's totals before the first row and after each.

    Args:
      rows: of metrics.jsonl, in order.

    Returns:
      By name of TOTALS, a number more than there are rows; seconds are those of all parts of a step.
    """

    def read(row: Row, name: str) -> float:
        return 1.0 if name == "step" else sum_seconds(row) if name == "seconds" else row.get(name, 0.0)

    return {name: [*itertools.accumulate((read(row, name) for row in rows), initial=0.0)] for name in TOTALS}


def list_costs(groups: Sequence[Group | History]) -> list[dict[str, Any]]:
    """A row for every group: means over its runs of what training took, from their ledgers.

    Raises:
      UserError: a run's metrics cannot be read.
    """
    rows = []
    for group in groups:
        totals = [sum_ledger(read_metrics(Path(run.path))) for run in group.runs]
        mean = {name: float(np.mean([total.get(name, 0.0) for total in totals])) for name in totals[0]}
        row: dict[str, Any] = {"group": group.name, "runs": len(group.runs)}
        row |= {name: round(mean[name]) for name in LEDGER}
        rows.append(row | {"hours": sum_seconds(mean) / 3600})
    return rows


def list_returns(histories: Sequence[History]) -> list[dict[str, Any]]:
    """Training returns over steps: mean and range over seeds, as far as every run of the group has come.

    Returns:
      Rows {group, panel, step, value, value_low, value_high}, in which the step is the last that a point is a mean of.

    Raises:
      UserError: a run has taken no step.
    """
    for run, rows in _list_members(histories):
        if not rows:
            raise UserError(f"{run.path}/metrics.jsonl: expected the steps of a run, found none")
    longest = max(len(rows) for _, rows in _list_members(histories))
    width, found = math.ceil(longest / _MOST_POINTS), []
    for history in histories:
        taken = min(map(len, history.rows))
        for first in range(0, taken, width):
            part = slice(first, min(first + width, taken))
            means = [float(np.mean([row["return"] for row in rows[part]])) for rows in history.rows]
            panel = "training" if width == 1 else f"training, mean of {width} steps"
            found.append({"group": history.name, "panel": panel, "step": part.stop, **_span(means)})
    return found


def list_accuracies(histories: Sequence[History]) -> list[dict[str, Any]]:
    """Accuracies at every step at which all runs of a group were evaluated: mean and range over seeds.

    Returns:
      Rows {group, panel, value, value_low, value_high} with the ledger's totals up to the step; a panel is a suite and
      profile.

    Raises:
      UserError: the runs of a group were not evaluated at any common step.
    """
    found = []
    for history in histories:
        totals = [add_up(rows) for rows in history.rows]
        for cell, step, results in _list_results(history):
            row = {"group": history.name, "panel": ", ".join(cell)}
            reached = [{name: column[min(step, len(column) - 1)] for name, column in run.items()} for run in totals]
            row |= {name: float(np.mean([total[name] for total in reached])) for name in TOTALS} | {"step": step}
            found.append(row | _span([result["accuracy"] for result in results]))
    return found


def list_ends(histories: Sequence[History]) -> list[dict[str, Any]]:
    """Accuracies at the last step at which all runs of a group were evaluated: mean and 95 % interval.

    Returns:
      Rows {group, label, panel, value, value_low, value_high}; the label names the step where it is not the config's
      last.

    Raises:
      UserError: the runs of a group were not evaluated at any common step.
    """
    found = []
    for history in histories:
        last = {cell: (step, results) for cell, step, results in _list_results(history)}  # steps ascend
        for cell, (step, results) in last.items():
            label = history.name + ("" if step == history.runs[0].config["steps"] else f" (step {step})")
            row = {"group": history.name, "label": label, "panel": ", ".join(cell)}
            found.append(row | tables.make_columns("value", compute_score(results)))
    return found


def list_measures(histories: Sequence[History]) -> list[dict[str, Any]]:
    """What metrics.jsonl holds of MEASURES: mean over steps, then mean and range over seeds.

    Returns:
      Rows {group, panel, value, value_low, value_high}; a panel is a measure, and one that is 0 everywhere has none.

    Raises:
      UserError: no run has any.
    """
    recorded = {name: None for _, rows in _list_members(histories) for row in rows for name in row}
    turns = [name for name in recorded if name.startswith("zero_credit_share_")]
    labels = {"zero_credit_share": MEASURES["zero_credit_share"]}
    labels |= {name: f"without credit: turn {name.removeprefix('zero_credit_share_')}" for name in turns}
    found = []
    for measure, label in (labels | MEASURES).items():
        rows = []
        for history in histories:
            means = [_average(rows, measure) for rows in history.rows]
            if all(map(math.isfinite, means)):
                rows.append({"group": history.name, "panel": label, **_span(means)})
        found += rows if any(row["value"] != 0 for row in rows) else []
    if not found:
        path = histories[0].runs[0].path
        raise UserError(f"{path}/metrics.jsonl: expected one of {', '.join(MEASURES)} that is not 0, found none")
    return found


def list_shapes(histories: Sequence[History], shape: str) -> list[dict[str, Any]]:
    """Accuracies at the end over trees of several forms: rows of `list_ends` with `x` and, as their group, the rest.

    Args:
      histories: of runs.
      shape: of SHAPES: fan_out, where x is a text, or depth, where x is the number of turns.

    Raises:
      UserError: no two groups differ in this alone, or two have the same x.
    """
    if shape == "fan_out":  # other samplings have draws instead
        histories = [history for history in histories if history.runs[0].config.get("credit.fan_out") is not None]
    series = _name_series(histories, SHAPES[shape])
    xs = {history.name: _measure_shape(history.runs[0].config, shape) for history in histories}
    points = [(series[name], x) for name, x in xs.items()]
    wanted = {"fan_out": "credit.fan_out", "depth": "the number of their turns"}[shape]
    if twice := [x for name, x in points if points.count((name, x)) > 1]:
        raise UserError(f"{shape}: expected runs that differ in {wanted}, got two configs with {twice[0]}")
    if len({name for name, _ in points}) == len(points):
        raise UserError(f"{shape}: expected runs that differ in {wanted} and in nothing else, got none")
    rows = [row | {"x": xs[row["group"]], "group": series[row["group"]]} for row in list_ends(histories)]
    return sorted(rows, key=lambda row: _sort_shape(row["x"]))


def _measure_shape(config: Mapping[str, Any], shape: str) -> int | str:
    if shape == "depth":
        return len(list_turns(config))
    sizes = config.get("credit.fan_out")
    return " x ".join(map(str, sizes)) if isinstance(sizes, list) else str(sizes)


def _sort_shape(x: int | str) -> tuple[int, ...]:
    return (x,) if isinstance(x, int) else tuple(int(size) for size in x.split(" x ") if size.isdecimal())


def _name_series(histories: Sequence[History], varied: tuple[str, ...]) -> dict[str, str]:
    """The name of each history by what differs beside the fields that begin so."""
    rest = [
        {name: value for name, value in history.runs[0].config.items() if not name.startswith(varied)}
        for history in histories
    ]
    kinds = [config for index, config in enumerate(rest) if config not in rest[:index]]
    names = [config["credit.method"] for config in kinds]
    if len(kinds) > 1:
        names = name_groups([histories[rest.index(config)].runs[0]._replace(config=config) for config in kinds])
    return {history.name: names[kinds.index(config)] for history, config in zip(histories, rest, strict=True)}


def _list_members(histories: Sequence[History]) -> list[tuple[Run, list[Row]]]:
    return [pair for history in histories for pair in zip(history.runs, history.rows, strict=True)]


def _list_results(history: History) -> list[tuple[Cell, int, list[dict[str, Any]]]]:
    """Results of all runs of a group, where all have them, by suite and profile and in the order of steps."""
    by_run = [
        {
            ((row["suite"], row["profile"]), body["step"]): row
            for body in run.evaluations
            for row in body["results"]
            if "missing" not in row
        }
        for run in history.runs
    ]
    cells = dict.fromkeys(cell for results in by_run for cell, _ in results)
    steps = sorted({step for results in by_run for _, step in results})
    found = [
        (cell, step, [results[cell, step] for results in by_run])
        for cell in cells
        for step in steps
        if all((cell, step) in results for results in by_run)
    ]
    if not found:
        path = min(history.runs, key=lambda run: len(run.evaluations)).path
        raise UserError(f"{path}: expected evaluations in eval/*.json, found none that all its seeds have")
    return found


def _average(rows: Sequence[Row], name: str) -> float:
    values = [row[name] for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
    return float(np.mean(values)) if values else math.nan


def _span(values: Sequence[float]) -> dict[str, float]:
    """Mean and range, as columns."""
    return {"value": float(np.mean(values)), "value_low": min(values), "value_high": max(values)}
