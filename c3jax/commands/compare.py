"""Evaluations across runs and seeds, printed: means with intervals, and paired differences between groups of runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from c3jax.analysis import evaluations, tables

_FEW_SEEDS = 5


def compare_runs(paths: Sequence[str], form: str, console: Console) -> int:
    """Print a table of scores and one of differences.

    Args:
      paths: run directories.
      form: of the tables: terminal, markdown, csv or latex.
      console: to print on.

    Returns:
      The exit code: 1 where a group lacks what another one has.

    Raises:
      UserError: a run cannot be used, or two runs of one config have the same seed.
    """
    groups = evaluations.group_runs([evaluations.load_run(path) for path in paths])
    scores, differences = evaluations.list_scores(groups), evaluations.list_differences(groups)
    parts = [("scores: mean over seeds and problems, 95 % interval", scores)]
    if differences:
        parts.append(("differences over common problems, p corrected by Holm", differences))
    for title, rows in parts:
        if form == "terminal":
            tables.print_table(console, rows, title)
            console.print()
        else:
            write = {"markdown": tables.to_markdown, "csv": tables.to_csv, "latex": tables.to_latex}[form]
            print(write(rows))
    if form == "terminal":
        for line in _format_more(groups):
            console.print(line, soft_wrap=True)
    return int(any("missing" in row for row in scores))


def _format_more(groups: Sequence[evaluations.Group]) -> list[str]:
    lines = []
    for group in groups:
        steps = sorted({run.step for run in group.runs})
        runs = ", ".join(f"{run.path} (seed {run.seed})" for run in group.runs)
        lines.append(f"{group.name}: step {' and '.join(map(str, steps))} of {runs}")
    firsts = [group.runs[0] for group in groups]
    different = evaluations.list_different(firsts)
    shown = [
        path
        for path in different
        for group, run in zip(groups, firsts, strict=True)
        if path in run.config and evaluations.describe_field(run, path, ()) in group.name
    ]
    if more := [path for path in different if path not in shown]:
        lines.append(f"Their configs differ in {', '.join(more)}{' too' if shown else ''}.")
    if any(1 < len(group.runs) < _FEW_SEEDS for group in groups):
        lines.append(f"Intervals over fewer than {_FEW_SEEDS} seeds are too narrow.")
    if any(len(group.runs) == 1 for group in groups):
        lines.append("Intervals of a group of one run speak of its problems, not of other seeds.")
    return lines
