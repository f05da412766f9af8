"""The figures of a run: RUN/metrics.jsonl, one JSON object a step.

metrics.jsonl is the record; what other trackers show (`trackers.py`) is a copy. The file is strict JSON, which has no
word for a number that is not finite: such a figure is written as the string "NaN", "Infinity" or "-Infinity", and
read_metrics turns it back. A figure of wall-clock time has a name that starts with `seconds` or ends with
`_per_second`. Nothing else in the file may depend on the clock, so a run that was killed and resumed writes what an
uninterrupted one does, but for these and for `traces`, the programs that its process has compiled.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

from c3jax.run.files import save_whole
from c3jax.types import UserError

LEDGER = ("evaluator_calls", "generated_tokens", "prefilled_tokens", "messages")  # of every run
_COUNTED = (*LEDGER, "environment_calls")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Row = dict[str, Any]


class MetricsError(UserError):
    """A metrics file that cannot be read or written; the message is one sentence for the user."""


def open_metrics(run_dir: Path, first_step: int) -> tuple[Callable[[int, Mapping[str, Any]], None], Callable[[], None]]:
    """Open a run's metrics to write first_step and later ones.

    Rows of first_step and later, which the steps to come will write again, are dropped, and so is a last line that a
    kill tore; the rows before stay byte for byte.

    Args:
      run_dir: of the run.
      first_step: from 0.

    Returns:
      write(step, figures) and close(). Figures are numbers, texts, booleans, None, numpy arrays and lists of these; the
      line is in the file, whole, when write returns. It raises MetricsError when the disk does not take it.

    Raises:
      MetricsError: when the file cannot be read or written.
    """
    path = run_dir / "metrics.jsonl"
    kept = [line for line, row in _load_lines(path) if row["step"] < first_step]
    try:
        save_whole(path, b"".join(line + b"\n" for line in kept))
        file = path.open("ab")
    except OSError as error:
        raise MetricsError(f"metrics {path}: cannot be written ({error.strerror})") from None

    def write(step: int, figures: Mapping[str, Any]) -> None:
        row = {"step": step} | {name: _to_json(value) for name, value in figures.items()}
        line = json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"
        try:
            file.write(line.encode())
            file.flush()
        except OSError as error:
            raise MetricsError(f"metrics {path}: cannot be written ({error.strerror})") from None

    return write, file.close


def read_metrics(run_dir: Path) -> list[Row]:
    """All rows of a run, in the order written; a last line that is still being written is left out, the first too.

    Args:
      run_dir: of the run.

    Raises:
      MetricsError: when the file cannot be read.
    """
    return [row for _, row in _load_lines(run_dir / "metrics.jsonl")]


# --------------------------------------------------------------------------------------------------------------------
# Pure functions of rows


def is_time_figure(name: str) -> bool:
    """Whether a figure of this name is wall-clock time, or a rate by it."""
    return name.startswith("seconds") or name.endswith("_per_second")


def drop_times(row: Row) -> Row:
    """The row without its wall-clock figures: what two runs of one config and seed have in common."""
    return {name: value for name, value in row.items() if not is_time_figure(name)}


def sum_ledger(rows: Iterable[Row]) -> dict[str, float]:
    """Totals over rows of the evaluator calls, tokens and messages, and of every figure in seconds.

    Args:
      rows: of steps; one without a figure adds nothing to its total.

    Returns:
      The totals by name, those of LEDGER always among them.
    """
    totals: dict[str, float] = dict.fromkeys(LEDGER, 0)
    for row in rows:
        for name, value in row.items():
            if name in _COUNTED or name.startswith("seconds"):
                totals[name] = totals.get(name, 0) + value
    return totals


def sum_seconds(row: Mapping[str, float]) -> float:
    """Seconds of all parts of a step: of a row, or of the totals of several."""
    return sum(row.get(f"seconds_{part}", 0.0) for part in ("rollout", "score", "update"))


# --------------------------------------------------------------------------------------------------------------------
# Details of the files


def _load_lines(path: Path) -> list[tuple[bytes, Row]]:
    """Lines and their rows."""
    try:
        *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise MetricsError(f"metrics {path}: cannot be read ({error.strerror})") from None
    loaded = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            raise MetricsError(
                f"metrics {path}: expected a JSON object with a step in line {number}, got {line[:60]!r}"
            )
        loaded.append((line, row))
    row = _parse(torn)  # an object is only whole with its last brace, so one without its line's end may be taken
    return loaded if row is None else [*loaded, (torn, row)]


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return {name: _from_json(value) for name, value in row.items()}


def _to_json(value: Any) -> Any:
    value = to_plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_json(part) for part in value]
    return value


def to_plain(value: Any) -> Any:
    """A figure as plain Python: an array as a list of its own."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return [to_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


# --------------------------------------------------------------------------------------------------------------------
# What a person watches


def announce(console: Console, text: str) -> AbstractContextManager[object]:
    """Show what a block does while it runs: with the time it takes on a terminal, as a line where it goes to a file."""
    if console.is_terminal:
        columns = (rich_progress.SpinnerColumn(), rich_progress.TextColumn("{task.description}"))
        shown = rich_progress.Progress(*columns, rich_progress.TimeElapsedColumn(), console=console, transient=True)
        shown.add_task(text, total=None)
        return shown
    console.print(text, soft_wrap=True)
    return nullcontext()


COMPILING = "compiling the first step, or finding it cached"


class _Time(rich_progress.TimeRemainingColumn):
    """The time that is left, or, before the first step is there to tell by, the time that has passed."""

    def render(self, task: rich_progress.Task) -> Text:
        """The column of a task."""
        return super().render(task) if task.fields["is_timed"] else rich_progress.TimeElapsedColumn().render(task)


class Progress:
    """A bar on a terminal; a plain line now and then where output goes to a file."""

    def __init__(self, console: Console, steps: int, first: int) -> None:
        self._console, self._steps, self._first = console, steps, first
        self._began = time.monotonic()
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.completed}/{task.total}"),
            rich_progress.BarColumn(6),
            rich_progress.TextColumn("{task.fields[figures]}"),
            _Time(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=first, figures=COMPILING, is_timed=False)

    def __enter__(self) -> Progress:
        self._bar.start()
        if not self._console.is_terminal and self._first < self._steps:
            self._console.print(COMPILING)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, step: int, row: dict[str, Any]) -> None:
        """Show a finished step's figures."""
        figures = describe_step(row)
        self._bar.update(self._task, completed=step + 1, figures=figures, is_timed=True)
        every = max(1, self._steps // 20)
        is_due = step == self._first or (step + 1) % every == 0 or step + 1 == self._steps
        if not self._console.is_terminal and step == self._first:
            self._console.print(
                f"compiled or found cached, and a step taken, in {time.monotonic() - self._began:.0f} s"
            )
        if not self._console.is_terminal and is_due:
            self._console.print(f"{step + 1}/{self._steps} {figures}", soft_wrap=True)


def describe_step(row: dict[str, Any]) -> str:
    """The figures of a metrics row in under 60 characters; skipped updates and alarms are added where there are any."""
    kl = f"{round(row['kl'], 3) + 0.0:.3f}" if abs(row["kl"]) < 10 else f"{row['kl']:.0f}"
    text = (
        f"return {row['return']:.2f} kl {kl} len {row['message_tokens']:.0f}"
        f" cut {row['truncated_share']:.0%} zero {row['zero_credit_share']:.0%}"
        f" {_shorten(row['tokens_per_second'])} tok/s"
    )
    text += f" bad {row['bad_updates']}" if row["bad_updates"] else ""
    return text + (f" alarm {', '.join(row['alarms'])}" if row.get("alarms") else "")


def _shorten(number: float) -> str:
    if number >= 100_000:
        return f"{number / 1000:.0f}k"
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"
