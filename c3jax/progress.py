"""What a person watches while a run trains: one line of figures, at most 80 columns wide."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich import progress as rich_progress
from rich.console import Console


class Progress:
    """A bar on a terminal; a plain line now and then where output goes to a file."""

    def __init__(self, console: Console, steps: int, first: int) -> None:
        self._console, self._steps = console, steps
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.completed}/{task.total}"),
            rich_progress.BarColumn(6),
            rich_progress.TextColumn("{task.fields[figures]}"),
            rich_progress.TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=first, figures="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, step: int, row: dict[str, Any]) -> None:
        """Show a finished step's figures."""
        figures = describe_step(row)
        self._bar.update(self._task, completed=step + 1, figures=figures)
        every = max(1, self._steps // 20)
        if not self._console.is_terminal and ((step + 1) % every == 0 or step + 1 == self._steps):
            self._console.print(f"{step + 1}/{self._steps} {figures}", soft_wrap=True)


def describe_step(row: dict[str, Any]) -> str:
    """The figures of a metrics row in under 60 characters; skipped updates are added when there are any."""
    kl = f"{round(row['kl'], 3) + 0.0:.3f}" if abs(row["kl"]) < 10 else f"{row['kl']:.0f}"
    text = (
        f"return {row['return']:.2f} kl {kl} len {row['message_tokens']:.0f}"
        f" cut {row['truncated_share']:.0%} zero {row['zero_credit_share']:.0%}"
        f" {_shorten(row['tokens_per_second'])} tok/s"
    )
    return text + (f" bad {row['bad_updates']}" if row["bad_updates"] else "")


def _shorten(number: float) -> str:
    if number >= 100_000:
        return f"{number / 1000:.0f}k"
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"
