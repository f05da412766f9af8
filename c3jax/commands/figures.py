"""Figures of runs, each from what they recorded: curves, costs, what credit does, and accuracy over the forms of trees.

FIGURES is the list: a figure is drawn from rows of analysis/histories.py, and refuses in one sentence where the runs
have not recorded what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from c3jax.analysis.figures import Axis, plot_curves, plot_points, save_figure
from c3jax.analysis.histories import (
    History,
    find_runs,
    list_accuracies,
    list_ends,
    list_measures,
    list_returns,
    list_shapes,
    load_histories,
)
from c3jax.run.files import explain_failure, hash_file
from c3jax.types import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("png", "svg", "pdf")
_RETURN, _ACCURACY = Axis("value", "return", has_interval=True), Axis("value", "accuracy", has_interval=True)
_RANGE = "mean and range over seeds"
_INTERVAL = "mean and 95 % interval"


class Drawn(NamedTuple):
    """A kind of figure: how it is drawn, and which files of a run it reads beside config.yaml."""

    draw: Callable[[Sequence[History]], Figure]  # raises UserError where the runs lack what it shows
    files: tuple[str, ...]  # patterns


def write_figures(paths: Sequence[str], out: Path, names: Sequence[str], console: Console) -> int:
    """Draw runs, and print what is written and what is left out.

    Args:
      paths: run directories, or folders of them.
      out: the folder of the figures.
      names: of FIGURES; without any it is all those that the runs have recorded enough for.
      console: to print on.

    Returns:
      0, the exit code.

    Raises:
      UserError: a run or the folder cannot be used, or a figure that was asked for lacks its records, or all do.
    """
    text, lacking = save_figures(paths, out, names)
    console.print(text, soft_wrap=True)
    for sentence in lacking:
        console.print(f"left out: {sentence}", soft_wrap=True)
    return 0


def save_figures(paths: Sequence[str], out: Path, names: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Draw runs, and write every figure as PNG, SVG and PDF.

    Args:
      paths, out, names: as `write_figures` has them.

    Returns:
      A sentence of what is written, and one for every figure that is left out.

    Raises:
      UserError: as `write_figures` does.
    """
    if unknown := [name for name in names if name not in FIGURES]:
        raise UserError(f"--only: expected some of {', '.join(FIGURES)}, got {unknown[0]}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: expected a folder, got the file {out}")
    runs = find_runs(paths)
    histories = load_histories(runs)
    figures, lacking = {}, []
    for name in names or FIGURES:
        try:
            figures[name] = FIGURES[name].draw(histories)
        except UserError as error:
            if names:
                raise
            lacking.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    if not figures:
        raise UserError(lacking[0])
    for name, figure in figures.items():
        patterns = ("config.yaml", *FIGURES[name].files)
        files = [file for run in runs for pattern in patterns for file in sorted(Path(run).glob(pattern))]
        with explain_failure(f"{out}: the figures cannot be written"):
            save_figure(figure, out / name, KINDS, {str(file): hash_file(file) for file in files})
    return f"figures: {out}/ with {', '.join(figures)} as {', '.join(KINDS)}", lacking


def _draw_learning(histories: Sequence[History]) -> Figure:
    """Returns of training and accuracies, over steps."""
    rows = list_returns(histories)
    if any(run.evaluations for history in histories for run in history.runs):
        rows += list_accuracies(histories)
    title = f"Learning curves: {_RANGE}"
    return plot_curves(rows, x=Axis("step", "step"), y=_RETURN, group="group", panel="panel", title=title)


def _draw_cost(histories: Sequence[History]) -> Figure:
    """Accuracies over what training took until then, with the Pareto front."""
    axes = {"evaluator_calls": "evaluator calls", "generated_tokens": "generated tokens"}
    accuracies = list_accuracies(histories)
    rows = [
        row | {"total": row[name], "panel": f"{row['panel']}: over {label}"}
        for name, label in axes.items()
        for row in accuracies
    ]
    if not any(row["total"] for row in rows):
        paths = ", ".join(run.path for history in histories for run in history.runs[:1])
        raise UserError(f"cost: expected evaluations after a step of training in {paths}, found none")
    title = f"Accuracy over cost: {_RANGE}; in grey the Pareto front"
    total = Axis("total", "total of training so far")
    return plot_curves(rows, x=total, y=_ACCURACY, group="group", panel="panel", title=title, has_front=True)


def _draw_mechanism(histories: Sequence[History]) -> Figure:
    """What credit and update did, as bars: a panel a measure, a bar a config."""
    value = Axis("value", "mean over steps", has_interval=True)
    rows = [row | {"all": ""} for row in list_measures(histories)]
    title = f"Mechanism: {_RANGE}"
    return plot_points(rows, category="group", value=value, group="all", panel="panel", title=title, mark="bar")


def _draw_ablation(histories: Sequence[History]) -> Figure:
    """Accuracies at the end, as bars."""
    if len(histories) < 2:
        raise UserError(f"ablation: expected runs of several configs, got those of one ({histories[0].runs[0].path})")
    rows = [row | {"all": ""} for row in list_ends(histories)]
    title = f"Accuracy at the end: {_INTERVAL}"
    return plot_points(rows, category="label", value=_ACCURACY, group="all", panel="panel", title=title, mark="bar")


def _draw_fan_out(histories: Sequence[History]) -> Figure:
    rows = list_shapes(histories, "fan_out")
    title = f"Accuracy over fan-outs: {_INTERVAL}"
    return plot_points(rows, category="x", value=_ACCURACY, group="group", panel="panel", title=title)


def _draw_depth(histories: Sequence[History]) -> Figure:
    rows, x = list_shapes(histories, "depth"), Axis("x", "turns")
    title = f"Accuracy over depth: {_INTERVAL}"
    return plot_curves(rows, x=x, y=_ACCURACY, group="group", panel="panel", title=title)


FIGURES = {
    "learning": Drawn(_draw_learning, ("metrics.jsonl", "eval/*.json")),
    "cost": Drawn(_draw_cost, ("metrics.jsonl", "eval/*.json")),
    "mechanism": Drawn(_draw_mechanism, ("metrics.jsonl",)),
    "ablation": Drawn(_draw_ablation, ("eval/*.json",)),
    "fan_out": Drawn(_draw_fan_out, ("eval/*.json",)),
    "depth": Drawn(_draw_depth, ("eval/*.json",)),
}
