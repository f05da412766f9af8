"""One way to show rows: as a table in the terminal, and as CSV, Markdown and JSON files.

A row is a dict from column to text, truth or number; the columns of a table are those of its rows in order of first
appearance. Where a row lacks a column, or has a number that is not finite, nothing is known: shown as a dash, empty in
CSV, null in JSON. A measured column `name` has its bounds beside it as `name_low` and `name_high`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3jax.analysis.statistics import Interval
from c3jax.run.files import save_whole
from c3jax.types import UserError

Row = Mapping[str, Any]

SHOWN_DIGITS = 3
SAVED_DIGITS = 6
_WIDEST_TEXT, _NARROW = 32, 16  # columns of the terminal for a text
_GAP = 2  # columns of the terminal between columns of the table


def make_columns(name: str, interval: Interval) -> dict[str, float]:
    """The three columns of a measured quantity: {name, name_low, name_high}."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def format_cell(value: Any, digits: int = SHOWN_DIGITS) -> str:
    """A cell as text: a number with a fraction to so many significant digits, a dash for one that is not finite."""
    value = _to_plain(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded == 0:
        return "0"
    exponent = math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(0, digits - 1 - exponent)}f}" if -4 <= exponent < 6 else f"{rounded:.{digits - 1}e}"


def print_table(console: Console, rows: Sequence[Row], title: str) -> None:
    """Print rows as a table no wider than the console, under a title; no word is broken that is not wider than that.

    Columns that do not fit follow in further tables, each beginning with the leading text columns again.

    Args:
      console: to print on.
      rows: a cell by column.
      title: above the first table.
    """
    columns = list_columns(rows)
    cells = {name: [format_cell(row.get(name)) for row in rows] for name in columns}
    is_text = {name: _is_text(rows, name) for name in columns}
    need = {name: _measure(name, cells[name], is_text[name]) for name in columns}
    _narrow(need, columns, cells, is_text, console.width)
    for index, part in enumerate(_split_columns(columns, is_text, need, console.width)):
        console.print(Text(title if index == 0 else f"{title} (continued)", style="italic"))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0))
        for name in part:
            heading = Text(textwrap.fill(name.replace("_", " "), need[name]))
            side = "left" if is_text[name] else "right"
            table.add_column(heading, justify=side, no_wrap=not is_text[name], width=need[name])
        for number in range(len(rows)):
            table.add_row(*(Text(cells[name][number]) for name in part))
        console.print(table)


def save_table(stem: Path, rows: Sequence[Row], title: str) -> None:
    """Write stem.csv, stem.json and stem.md, each whole or not at all.

    Args:
      stem: of the files' names.
      rows: a cell by column.
      title: the first line of the Markdown.
    """
    for suffix, text in ((".csv", to_csv(rows)), (".json", to_json(rows)), (".md", f"{title}\n\n{to_markdown(rows)}")):
        save_whole(stem.parent / f"{stem.name}{suffix}", text)


def load_table(path: Path) -> list[dict[str, Any]]:
    """Read back the JSON that `save_table` wrote; null comes back as NaN.

    Raises:
      UserError: for a file that cannot be read, or that holds something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: expected recorded results, cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: expected recorded results as JSON, got something else") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of rows, got another kind of JSON")
    return [{name: math.nan if cell is None else cell for name, cell in row.items()} for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV with a heading; numbers to SAVED_DIGITS significant digits."""
    columns = list_columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_round(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """Rows as a JSON list, a row a line; every row has every column, numbers SAVED_DIGITS significant digits."""
    columns = list_columns(rows)
    lines = [json.dumps({name: _round(row.get(name)) for name in columns}, ensure_ascii=False) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def to_markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, numbers to the right."""
    columns = list_columns(rows)
    lines = [columns, ["---" if _is_text(rows, name) else "---:" for name in columns]]
    lines += [[format_cell(row.get(name)) for name in columns] for row in rows]
    escaped = ([" ".join(cell.replace("|", "\\|").splitlines()) for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


_LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | {"~": "\\textasciitilde{}"})


def to_latex(rows: Sequence[Row]) -> str:
    """Rows as a LaTeX tabular, for the package booktabs; numbers to the right."""
    columns = list_columns(rows)
    lines = [[name.replace("_", " ") for name in columns]]
    lines += [[format_cell(row.get(name)) for name in columns] for row in rows]
    heading, *body = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in lines]
    sides = "".join("l" if _is_text(rows, name) else "r" for name in columns)
    begin, end = rf"\begin{{tabular}}{{{sides}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", heading, r"\midrule", *body, r"\bottomrule", end]) + "\n"


def list_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of all rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _is_text(rows: Sequence[Row], name: str) -> bool:
    return any(isinstance(row.get(name), str) for row in rows)


def _measure(name: str, cells: Sequence[str], is_text: bool) -> int:
    """Width of a column: its heading may break between words, a long text anywhere between words, a number never."""
    widest, heading = max(map(len, cells)), _find_longest([name.replace("_", " ")])
    return max(heading, min(widest, _WIDEST_TEXT), _find_longest(cells)) if is_text else max(heading, widest)


def _find_longest(texts: Sequence[str]) -> int:
    return max(len(word) for text in texts for word in [*text.split(), ""])


def _narrow(
    need: dict[str, int], columns: list[str], cells: Mapping[str, list[str]], is_text: Mapping[str, bool], width: int
) -> None:
    """Break the leading texts over more lines: over two for all columns beside them, over more for one of them."""
    leading = list(itertools.takewhile(lambda name: is_text[name], columns))
    beside = [need[name] + _GAP for name in columns[len(leading) :]]
    for lines, taken in ((2, sum(beside)), (width, max(beside, default=0))):
        for name in leading:
            too_wide = sum(need[each] + _GAP for each in leading) + taken - width
            words = _find_longest([name.replace("_", " "), *cells[name]])
            widths = range(max(words, _NARROW if lines == 2 else 0), need[name])
            least = next((w for w in widths if max(len(textwrap.wrap(cell, w)) for cell in cells[name]) <= lines), 0)
            need[name] -= max(0, min(too_wide, need[name] - (least or need[name])))


def _split_columns(
    columns: Sequence[str], is_text: Mapping[str, bool], need: Mapping[str, int], width: int
) -> list[list[str]]:
    leading = list(itertools.takewhile(lambda name: is_text[name], columns))
    parts = [list(leading)]
    for name in columns[len(leading) :]:
        if len(parts[-1]) > len(leading) and sum(need[c] + _GAP for c in [*parts[-1], name]) > width:
            parts.append(list(leading))
        parts[-1].append(name)
    return parts


def _round(value: Any) -> Any:
    value = _to_plain(value)
    return float(f"{value:.{SAVED_DIGITS - 1}e}") if isinstance(value, float) else value


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
