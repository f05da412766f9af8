"""The page of the claims, made from recorded rows alone: a table of verdicts, then each claim's checks and figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from c3jax.analysis.figures import Axis, plot_curves, plot_points, plot_scatter, save_figure
from c3jax.analysis.tables import Row, format_cell, to_markdown
from c3jax.run.files import save_whole
from c3jax.types import UserError
from experiments.claims.claim import ALPHA, Check, Claim, Judged, Plot, conclude, correct_rows, find_rows, judge
from experiments.claims.records import load_record, locate_record

_MOST_LISTED = 14  # rows of a check; of more, the least and the largest are shown
_HEAD = """# Claims, measured

Each claim has a prediction that was written before anything was measured and is not changed afterwards. Everything is
measured on small games whose truth is known by enumeration. Bounds in parentheses are 95 % intervals (99.9 % for
checks of bias) over problems or over paired seeds.
{tests}
A claim *holds* if every part of its prediction is met, *fails* if a core part, without which it means nothing, is not,
and else *holds only under* the conditions that were met. Tests are of the columns of the
recorded rows: `holds` asks whether an interval holds a value, `near` for a value and the slack round it, `surely-above`
and `surely-below` for an interval beyond a value and a test that rejects after Holm's correction.

"""


def write_page(page: Path, folder: Path, claims: Sequence[Claim]) -> list[dict[str, str]]:
    """Write the page, and into the folder its figures, from what is recorded there; returns the table of verdicts.

    The same records give the same bytes. Raises UserError naming a file that is missing or lacks a row or a column.
    """
    text, table = format_page(folder, claims)
    for claim in claims:
        if claim.plot is not None:
            rows = load_record(folder, claim).rows
            with _naming(locate_record(folder, claim)):
                figure = draw(claim.plot, rows, f"Claim {claim.number}")
            save_figure(figure, folder / claim.name)
            (folder / f"{claim.name}.png").unlink()  # the page shows the other form
    save_whole(page, text)
    return table


def format_page(folder: Path, claims: Sequence[Claim]) -> tuple[str, list[dict[str, str]]]:
    """The page and its table of verdicts. Raises UserError naming a file that is missing or lacks a row or a column."""
    records = [load_record(folder, claim) for claim in claims]
    all_rows = correct_rows([record.rows for record in records])
    table, parts = [], []
    for claim, record, rows in zip(claims, records, all_rows, strict=True):
        file, scale = locate_record(folder, claim), record.scale
        with _naming(file):
            judged = judge(claim, rows)
            checks = to_markdown(_describe_checks(claim, judged))
        verdict = conclude(judged)
        row = {"no.": str(claim.number), "claim": claim.statement, "p (Holm)": _describe_p(rows), "verdict": verdict}
        table.append(row)
        name, _, condition = verdict.partition(" (")
        figure = f"![{claim.statement}]({folder.name}/{claim.name}.svg)\n"
        shown = figure if claim.plot else to_markdown(_drop_empty(rows))
        parts.append(
            f"\n## {claim.number}. {claim.statement}\n\n**{name}**{f' ({condition}' if condition else ''}."
            f"{f' {claim.note}' if claim.note else ''}\n\n{checks}\n{shown}\n{record.seconds:g} s; {scale.games} games,"
            f" {scale.samples} samples, {scale.seeds} seeds, {scale.updates} updates, seed {scale.seed}."
            f" [Recorded rows]({folder.name}/{file.name}).\n"
        )
    return _HEAD.format(tests=_describe_tests(all_rows)) + to_markdown(table) + "".join(parts), table


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Complaints of rows and columns name their file."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{file}: expected {error.args[0]} among its rows, got none") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _describe_checks(claim: Claim, judged: Sequence[Judged]) -> list[dict[str, str]]:
    """A row a check: words of the prediction before it, its test, what was measured, whether it is met."""
    rows, words, left = [], "", iter(judged)
    for part in claim.parts:
        if isinstance(part, str):
            words = part
            continue
        each = next(left)
        test = f"`{part.test}`{', core' if part.core else ''}" if part.test else part.check
        measured = _describe_rows(part, part.label or claim.label, each.rows)
        rows.append({"predicted": words, "test": test, "measured": measured, "met": _describe_met(each.conditions)})
        words = ""
    return rows


def _describe_met(conditions: Mapping[str, bool]) -> str:
    unmet = [name for name, is_met in conditions.items() if not is_met]
    if len(conditions) < 2:
        return "no" if unmet else "yes" if conditions else ""
    left = f", not {'; '.join(unmet)}" if unmet else ""
    return f"{len(conditions) - len(unmet)} of {len(conditions)}{left}"


def _describe_rows(check: Check, label: str, rows: Sequence[Row]) -> str:
    column = check.show or check.test.split()[0]

    def describe(row: Row) -> str:
        low, high = (row.get(f"{column}{bound}", math.nan) for bound in ("_low", "_high"))
        interval = f" ({format_cell(low)} to {format_cell(high)})" if math.isfinite(low) else ""
        return f"{label.format_map(row)}: {format_cell(row[column], 4)}{interval}"

    if len(rows) <= _MOST_LISTED:
        return "; ".join(map(describe, rows))
    ordered = sorted(rows, key=lambda row: row[column])
    return f"{describe(ordered[0])} to {describe(ordered[-1])}, of {len(rows)}"


def _drop_empty(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows without the columns in which nothing is known of any."""
    known = {name for row in rows for name, cell in row.items() if isinstance(cell, str) or math.isfinite(cell)}
    return [{name: cell for name, cell in row.items() if name in known} for row in rows]


def draw(plot: Plot, rows: Sequence[Row], title: str) -> Figure:
    """A figure of recorded rows. Raises UserError or KeyError for a column that is not there."""
    shown: list[dict[str, Any]] = []
    for row in find_rows(rows, plot.where):
        for column, name in plot.series.items() or [("", "")]:
            more = {f"value{bound}": row[f"{column}{bound}"] for bound in ("", "_low", "_high")} if column else {}
            line = {**row, **more, "series": name}
            panel = plot.panel.format_map(line)
            shown.append(line | {"group": plot.group.format_map(line), "panel": plot.names.get(panel, panel)})
    y = Axis(plot.y[0], plot.y[1], "log" if "log" in plot.y else "linear", f"{plot.y[0]}_low" in shown[0])
    panels: dict[str, Any] = {"group": "group", "panel": "panel" if plot.panel else None, "title": title}
    if plot.kind == "points":
        return plot_points(shown, category=plot.x[0], value=y, **panels)
    x = Axis(plot.x[0], plot.x[1], "log" if plot.x[2:] else "linear")
    return (plot_curves if plot.kind == "curves" else plot_scatter)(shown, x=x, y=y, **panels)


def _describe_p(rows: Sequence[Row]) -> str:
    """The smallest and largest adjusted p-value of a claim's tests, and how many there are."""
    adjusted = sorted(row["p_holm"] for row in rows if math.isfinite(row["p_holm"]))
    if not adjusted:
        return "-"
    least, largest = (format_cell(p, 2) for p in (adjusted[0], adjusted[-1]))
    rejected = sum(p <= ALPHA for p in adjusted)
    return least if len(adjusted) == 1 else f"{rejected} of {len(adjusted)} at most {ALPHA:g}; {least} to {largest}"


def _describe_tests(all_rows: Sequence[Sequence[Row]]) -> str:
    tests = sum(math.isfinite(row["p_holm"]) for rows in all_rows for row in rows)
    if not tests:
        return ""
    return (
        f"The {tests} tests of all claims are corrected together by Holm's method: the chance of any false rejection\n"
        f"is at most {ALPHA:g}. A test of a predicted value, zero for no bias, speaks against the prediction where\n"
        "it rejects.\n"
    )
