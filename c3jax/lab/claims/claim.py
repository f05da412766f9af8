"""What a claim is: a statement, a prediction made before measuring, a measurement and a judgement of what was recorded.

Rows are those of diagnostics/tables.py. A row with a number in its column `p` is a test; before rows are judged, Holm's
correction over the tests of all claims adds `p_holm` to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from c3jax.analysis.statistics import Interval
from c3jax.analysis.tables import Row, format_cell

LEVEL = 0.95  # coverage of intervals, except of biases
BIAS_LEVEL = 0.999
ALPHA = 0.05  # of all tests of all claims together

Verdict = Literal["holds", "fails", "holds only under"]


class Scale(NamedTuple):
    """How much is measured."""

    seed: int
    games: int  # problems that estimators are compared on
    samples: int  # draws of an estimate a problem and batch
    seeds: int  # paired training runs of each arm
    updates: int  # of a training run


class Check(NamedTuple):
    """One part of a prediction, and whether what was recorded bears it out."""

    condition: str  # what it is about, as the condition of "holds only under" names it
    is_met: bool
    is_core: bool = True  # without it the claim fails; without another it holds only under the conditions that are met


class Finding(NamedTuple):
    """A verdict with the numbers that it rests on."""

    verdict: Verdict
    condition: str  # of "holds only under", else empty
    measured: str
    sentence: str


class Claim(NamedTuple):
    """One claim. The prediction was written before anything was measured, and is not changed afterwards."""

    number: int
    name: str
    statement: str
    prediction: str
    measure: Callable[[Scale], list[dict[str, Any]]]
    judge: Callable[[Sequence[Row]], Finding]
    plot: Callable[[Sequence[Row], str], Figure] | None  # rows and a title; None: the page shows the rows as a table


def conclude(checks: Sequence[Check], measured: str, sentence: str) -> Finding:
    """The verdict of a claim's checks: holds if all are met, fails if a core one is not."""
    if all(check.is_met for check in checks):
        return Finding("holds", "", measured, sentence)
    if not all(check.is_met for check in checks if check.is_core):
        return Finding("fails", "", measured, sentence)
    met, unmet = ([check.condition for check in checks if check.is_met == is_met] for is_met in (True, False))
    condition = f"all but {'; '.join(unmet)}" if len(unmet) <= len(met) else f"only {'; '.join(met)}"
    return Finding("holds only under", condition, measured, sentence)


def find_rows(rows: Sequence[Row], **values: Any) -> list[Row]:
    """The rows whose columns have these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def find_row(rows: Sequence[Row], **values: Any) -> Row:
    """The one row whose columns have these values. Raises KeyError naming them where there is not one."""
    found = find_rows(rows, **values)
    if len(found) != 1:
        raise KeyError(f"one row with {values}")
    return found[0]


def holds_value(row: Row, name: str, value: float) -> bool:
    """Whether the recorded interval holds a value."""
    return row[f"{name}_low"] <= value <= row[f"{name}_high"]


def describe(row: Row, name: str) -> str:
    """An estimate with its interval, as sentences say it."""
    numbers = (format_cell(row[column]) for column in (name, f"{name}_low", f"{name}_high"))
    return "{} ({} to {})".format(*numbers)


def compute_p(interval: Interval, count: int, level: float, null: float = 0.0) -> float:
    """Two-sided p-value of Student's test that a mean of `count` items, with this Student interval, is `null`."""
    half = (interval.high - interval.low) / 2
    distance = abs(interval.estimate - null)
    if half == 0.0:
        return 1.0 if distance == 0.0 else 0.0
    error = half / stats.t.isf((1 - level) / 2, count - 1)
    return float(2 * stats.t.sf(distance / error, count - 1))


def is_significant(row: Row) -> bool:
    """Whether the row's test rejects after Holm's correction."""
    return bool(np.isfinite(row["p_holm"]) and row["p_holm"] <= ALPHA)
