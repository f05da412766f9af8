"""What a claim is: the words of its prediction, each followed by the checks that judge them on recorded rows.

The claims are in claims.yaml; prediction, verdict and page are made from them. Rows are those of
c3jax/analysis/tables.py. A row with a number in its column `p` is a test; before rows are judged, Holm's correction
over the tests of all claims adds `p_holm`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic

from c3jax.analysis.statistics import correct_holm
from c3jax.analysis.tables import Row
from c3jax.config.file import parse_section, read_tree
from c3jax.schema import Positive, Section, Seed

Rows = list[dict[str, Any]]
ALPHA = 0.05  # of all tests of all claims together
AtLeastTwo = Annotated[int, pydantic.Field(ge=2)]


class Scale(Section):
    """How much is measured."""

    seed: Seed
    """Every draw is addressed from this."""
    games: AtLeastTwo
    """Problems that estimators are compared on."""
    samples: Annotated[int, pydantic.Field(ge=100)]
    """Draws of an estimate on a problem in each of 16 independent batches, which all have to see most contexts."""
    seeds: AtLeastTwo
    """Paired training runs of each arm."""
    updates: Positive
    """Updates of a training run."""


class Check(Section):
    """One condition on recorded rows, or one for each value of what its name says in brackets: `returns (K = {depth})`.

    A test is `COLUMN OPERATOR VALUES`, or several of them with `and` between. Values are numbers or other columns.
    """

    check: str
    where: dict[str, str | float | tuple[str | float, ...]] = {}
    """The rows, by their columns: one value, or several, in whose order the rows then are."""
    test: str = ""
    """Empty: the rows are only shown."""
    show: str = ""
    """The column that the page shows; empty for that of the test."""
    core: bool = False
    """Without it the claim fails; without another it holds only under the conditions that are met."""
    label: str = ""
    """Of a row, by its columns; empty for the claim's."""


class Plot(Section):
    """A figure of recorded rows. Group and panel are made from a row's columns."""

    kind: Literal["curves", "points", "scatter"]
    x: tuple[str, ...]
    """Column, label, and `log` where it is; of points the categories' column alone."""
    y: tuple[str, ...]
    group: str
    panel: str = ""
    where: dict[str, str | tuple[str, ...]] = {}
    series: dict[str, str] = {}
    """Columns drawn beside each other as `value`, and the `series` that each is called."""
    names: dict[str, str] = {}
    """Of panels, where rows are short."""


class Claim(Section):
    """One claim. Its prediction was written before anything was measured, and is not changed afterwards."""

    name: Annotated[str, pydantic.Field(pattern="^[0-9]{2}-[a-z-]+$")]
    """Its number and a word for it; what its files are called."""
    statement: str
    parts: tuple[str | Check, ...]
    """Words of the prediction, each followed by the checks that judge them."""
    label: str
    """Of a row, by its columns."""
    plot: Plot | None = None
    """None: the page shows the rows as a table."""
    note: str = ""

    @property
    def number(self) -> int:
        """Its number."""
        return int(self.name[:2])


class Judged(NamedTuple):
    """A check with its rows, and whether each of its conditions is met."""

    check: Check
    rows: list[Row]
    conditions: dict[str, bool]


class _Claims(Section):
    claims: tuple[Claim, ...]


def load_claims() -> tuple[Claim, ...]:
    """The claims of claims.yaml. Raises ConfigError."""
    return parse_section(read_tree(Path(__file__).with_name("claims.yaml")), _Claims).claims


def find_rows(rows: Sequence[Row], where: Mapping[str, Any]) -> list[Row]:
    """The rows with these values, of several in their order. Raises KeyError where there is none."""
    several = {name: value if isinstance(value, tuple) else (value,) for name, value in where.items()}
    found = [row for row in rows if all(row.get(name) in values for name, values in several.items())]
    if not found:
        raise KeyError(f"a row with {' and '.join(f'{name} {value}' for name, value in where.items()) or 'anything'}")
    return sorted(found, key=lambda row: [values.index(row[name]) for name, values in several.items()])


def correct_rows(all_rows: Sequence[Sequence[Row]]) -> list[list[dict[str, Any]]]:
    """The rows of all claims with Holm's adjusted p-values beside the raw ones, corrected over all of them together."""
    p_M = np.array([row.get("p", np.nan) for rows in all_rows for row in rows], np.float64)
    is_test_M = np.isfinite(p_M)
    p_M[is_test_M] = correct_holm(p_M[is_test_M])
    adjusted = iter(p_M.tolist())
    return [[{**row, "p_holm": next(adjusted)} for row in rows] for rows in all_rows]


def judge(claim: Claim, rows: Sequence[Row]) -> list[Judged]:
    """The claim's checks on rows with Holm's p-values. Raises KeyError for a row or column that is not there."""
    judged = []
    for check in (part for part in claim.parts if isinstance(part, Check)):
        chosen, groups = find_rows(rows, check.where), {}
        for row in chosen if check.test else ():
            groups.setdefault(check.check.format_map(row), []).append(row)
        judged.append(Judged(check, chosen, {name: is_met(check.test, part) for name, part in groups.items()}))
    return judged


def conclude(judged: Sequence[Judged]) -> str:
    """The verdict of a claim's checks: `holds`, `fails` if a core one is not met, else `holds only under (...)`."""
    conditions = [(name, state) for each in judged for name, state in each.conditions.items()]
    met, unmet = ([name for name, state in conditions if state is is_met] for is_met in (True, False))
    if not unmet:
        return "holds"
    if not all(state for each in judged if each.check.core for state in each.conditions.values()):
        return "fails"
    under = f"all but {'; '.join(unmet)}" if len(unmet) <= len(met) else f"only {'; '.join(met)}"
    return f"holds only under ({under})"


# What a test says of each row: of a column, and of the values after the operator.
_OPERATORS: dict[str, Callable[[Row, str, list[float]], bool]] = {
    "<": lambda row, column, bounds: row[column] < bounds[0],
    "<=": lambda row, column, bounds: row[column] <= bounds[0],
    ">": lambda row, column, bounds: row[column] > bounds[0],
    ">=": lambda row, column, bounds: row[column] >= bounds[0],
    "within": lambda row, column, bounds: bounds[0] <= row[column] <= bounds[1],
    "near": lambda row, column, bounds: abs(row[column] - bounds[0]) <= bounds[1],  # a value, and the slack
    # An interval that holds a value; one beyond it, with a test that rejects after Holm's correction.
    "holds": lambda row, column, bounds: row[f"{column}_low"] <= bounds[0] <= row[f"{column}_high"],
    "surely-above": lambda row, column, bounds: row[f"{column}_low"] > bounds[0] and row["p_holm"] <= ALPHA,
    "surely-below": lambda row, column, bounds: row[f"{column}_high"] < bounds[0] and row["p_holm"] <= ALPHA,
}
_TRENDS: dict[str, Callable[[float, float], bool]] = {  # of each value and the one after it
    "rises": lambda value, after: after > value,
    "falls": lambda value, after: after < value,
    "never-rises": lambda value, after: after <= value + 1e-6,
}


def is_met(test: str, rows: Sequence[Row]) -> bool:
    """Whether rows meet a check's test. Raises KeyError for a column that is not there."""
    return all(_is_part_met(part, rows) for part in test.split(" and "))


def _is_part_met(part: str, rows: Sequence[Row]) -> bool:
    column, operator, *words = part.split()
    if operator in _TRENDS:
        return all(_TRENDS[operator](row[column], after[column]) for row, after in itertools.pairwise(rows))

    def read(row: Row) -> list[float]:
        return [row[word] if word[0].isalpha() else float(word) for word in words]

    return all(_OPERATORS[operator](row, column, read(row)) for row in rows)
