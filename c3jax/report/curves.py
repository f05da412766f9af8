"""Figures of runs as curves: every figure of metrics.jsonl, over any axis of the ledger, in at most so many points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from c3jax.analysis.histories import add_up
from c3jax.report.sources import RunGroup, Source
from c3jax.run.metric_table import find_metric
from c3jax.run.metrics import LEDGER


class Figure(NamedTuple):
    """How a figure of metrics.jsonl is called and written."""

    title: str
    text: str  # what it is, and its unit; "" where that is not known
    form: str  # "number", "share", written in per cent, or "score", with three decimals


AXES = {
    "step": "Step",
    "evaluator_calls": "Evaluator calls",
    "messages": "Messages",
    "generated_tokens": "Tokens generated",
    "seconds": "Seconds",
}

# What a reader looks at first, in this order; all else that a run has recorded follows under its own name.
TITLES = {
    "return": "Return",
    "accuracy": "Accuracy",
    "kl": "KL divergence",
    "entropy": "Entropy",
    "clip_share": "Clip share",
    "message_tokens": "Message length",
    "truncated_share": "Truncated",
    "hidden_share": "Hidden",
    "zero_credit_share": "Zero credit",
    "duplicate_share": "Duplicates",
    "grad_norm": "Gradient norm",
}
_FORMS = {"share": "share", "return": "score"}  # by unit
_LEFT_OUT = {"step", *LEDGER, "traces", "bad_in_row", "critic_bad_in_row"}
_MOST_POINTS = 400  # of one curve
_MOST_NUMBERS = 150_000  # of all curves of a page: about a megabyte
_DIGITS = 5


def make_curves(groups: Sequence[RunGroup]) -> dict[str, Any]:
    """All curves of a page as plain data.

    A run of more steps than a curve has points is cut into equal stretches: a point is the mean of a figure over the
    steps of its stretch, at the ledger's total at the end of it.

    Returns:
      {axes, figures, runs}: titles by name; and for each run its group, seed, the steps that a point is the mean of,
      totals by axis and values by figure, None where a figure was not recorded.
    """
    sources = [(index, source) for index, group in enumerate(groups) for source in group.sources]
    names = _list_figures([source for _, source in sources])
    points = max(50, min(_MOST_POINTS, _MOST_NUMBERS // (len(sources) * (len(names) + len(AXES)))))
    runs = []
    for index, source in sources:
        width = math.ceil(len(source.rows) / points)
        totals = add_up(source.rows)
        ends = [*range(width - 1, len(source.rows), width)]
        if not ends or ends[-1] != len(source.rows) - 1:
            ends.append(len(source.rows) - 1)
        run = {"group": index, "seed": source.run.seed, "name": source.name, "width": width}
        run["axes"] = {name: [_round(column[end + 1]) for end in ends] for name, column in totals.items()}
        run["figures"] = {name: _average(source, name, width) for name in names}
        run["evaluations"] = _list_accuracies(source, totals)
        runs.append(run)
    main = [name for name in TITLES if name in names or name == "accuracy"]
    others = [name for name in names if name not in TITLES]
    figures = {name: _describe(name)._asdict() | {"is_main": name in TITLES} for name in (*main, *others)}
    return {"axes": AXES, "figures": figures, "groups": [group.name for group in groups], "runs": runs}


def _list_figures(sources: Sequence[Source]) -> list[str]:
    """Numbers of any row that are figures of a step and not its ledger; evaluations have files of their own."""
    found: dict[str, None] = {}
    for source in sources:
        for row in source.rows:
            for name, value in row.items():
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if is_number and name not in _LEFT_OUT and not name.endswith("_accuracy"):
                    found[name] = None
    # One that is the same at every step of every run says nothing as a curve, unless a reader would look for it.
    rows = [row for source in sources for row in source.rows]
    return [name for name in found if name in TITLES or len({row[name] for row in rows if name in row}) > 1]


def _average(source: Source, name: str, width: int) -> list[float | None]:
    values = [row.get(name) for row in source.rows]
    means = []
    for first in range(0, len(values), width):
        part = [x for x in values[first : first + width] if isinstance(x, int | float) and math.isfinite(x)]
        means.append(_round(float(np.mean(part))) if part else None)
    return means


def _list_accuracies(source: Source, totals: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """By `suite, profile`: the accuracies with their bounds, at each axis' total after the step that they are of."""
    found: dict[str, dict[str, list[float]]] = {}
    first = source.rows[0]["step"]
    for body in source.run.evaluations:
        done = body["step"] - first
        for row in body["results"]:
            if "missing" in row or not 0 <= done <= len(source.rows):
                continue
            curve = found.setdefault(
                f"{row['suite']}, {row['profile']}", {name: [] for name in (*AXES, "value", "low", "high")}
            )
            for name in AXES:
                curve[name].append(_round(totals[name][done]))
            for name, column in (("value", "accuracy"), ("low", "low"), ("high", "high")):
                curve[name].append(_round(row[column]))
    return found


def _describe(name: str) -> Figure:
    title = TITLES.get(name) or name.replace("_", " ").capitalize().replace("Kl ", "KL ")
    if name == "accuracy":
        return Figure(title, "mean return of each evaluation", "score")
    metric = find_metric(name)
    if metric is None:  # an older run's, or a later one's
        return Figure(title, "", "share" if "_share" in name else "number")
    unit = "" if metric.unit in ("", "1", "share", "return", "count") else f", in {metric.unit}"
    return Figure(title, metric.meaning + unit, _FORMS.get(metric.unit, "number"))


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") if abs(value) < 10**_DIGITS else round(value)
