"""Figures made from recorded rows: curves with bands, points or bars with intervals, predicted against measured.

Rows are those of analysis/tables.py, one for each point drawn. An axis with an interval reads its bounds from the
columns `name_low` and `name_high` beside `name`; NaN is a gap. Nothing is drawn that was not recorded: no rows, or a
row without a column that the figure needs, is a UserError. Colour-blind readers can tell the colours apart (Okabe and
Ito 2008), and in grey the dashes, markers and hatches; lines carry their names. Files depend on the rows alone: no
date, no random ids. They name in their own metadata the recorded files that they were drawn from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from c3jax.analysis.tables import Row
from c3jax.run.files import save_whole
from c3jax.types import UserError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Ruler
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
except ModuleNotFoundError:
    raise UserError("figures: expected the package matplotlib (pip install 'c3jax[lab]'), found none") from None

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = "osD^vP*X"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (10, 2)))
_HATCHES = ("", "///", "...", "xxx", "---", "\\\\\\", "+++", "ooo")
_MARKED = 8  # points of a line, about, that are marked
_LARGE = 20_000  # numbers on an axis from which on they are written as 20k, 3M
_LONGEST_END = 16  # characters of a name at the end of a line; longer ones stand below
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.titlesize": 11.0,
    "figure.constrained_layout.w_pad": 0.1,  # inches: numbers at the ends of two axes keep apart
    "svg.hashsalt": "c3jax",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # text that can be searched
    "hatch.color": "white",
    "hatch.linewidth": 0.8,
}


class Axis(NamedTuple):
    """What one axis shows."""

    column: str
    label: str  # with its unit
    scale: Literal["linear", "log"] = "linear"
    has_interval: bool = False


def plot_curves(
    rows: Sequence[Row], *, x: Axis, y: Axis, group: str, title: str, panel: str | None = None, has_front: bool = False
) -> Figure:
    """One line for each value of `group`, with its band, named at its end; one panel for each value of `panel`.

    Long names stand below the panels.

    Args:
      rows: one for each point.
      group, panel: columns.
      has_front: draw the Pareto front too: the highest y that any line has at most at each x.

    Raises:
      UserError: without rows, or where a row lacks a column.
    """
    _check_rows(rows, (x, y), (group, panel))
    groups = _list_values(rows, group)

    def draw(axes: Axes, index: int, part: Sequence[Row]) -> None:
        part = sorted(part, key=lambda row: row[x.column])
        x_N, y_N, low_N, high_N = _read(part, x)[0], *_read(part, y)
        axes.fill_between(x_N, low_N, high_N, color=_pick(PALETTE, index), alpha=0.15, linewidth=0)
        every = -(-len(part) // _MARKED)
        axes.plot(
            x_N,
            y_N,
            color=_pick(PALETTE, index),
            linewidth=1.6,
            linestyle=_pick(_DASHES, index),
            marker=_pick(_MARKERS, index),
            markersize=4.5,
            markevery=(index % every, every),  # lines that lie on each other are marked beside each other
        )

    with matplotlib.rc_context(_STYLE):
        figure, shown = _make_panels(rows, group, panel, title, draw, width=4.4, height=3.2)
        has_ends = max(len(str(name)) for name in groups) <= _LONGEST_END
        for axes, parts in shown:
            if has_front:
                _draw_front(axes, [row for part in parts.values() for row in part], x, y)
            _label_axes(axes, x, y)
            if x.scale == "linear" and all(float(row[x.column]).is_integer() for row in rows):
                axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            if has_ends:
                _label_ends(axes, {index: _find_end(part, x, y) for index, part in parts.items()}, groups)
        if not has_ends:
            _name_groups(figure, groups, "line")
    return figure


def _draw_front(axes: Axes, rows: Sequence[Row], x: Axis, y: Axis) -> None:
    """A grey staircase through the points above which no other has less of x."""
    points = sorted((row[x.column], -row[y.column]) for row in rows if np.isfinite(row[y.column]))
    front: list[tuple[float, float]] = []
    for at, below in points:
        if not front or -below > front[-1][1]:
            front.append((at, -below))
    if front:
        front.append((points[-1][0], front[-1][1]))
        axes.step(*zip(*front, strict=True), where="post", color="#999999", linewidth=4.0, alpha=0.4, zorder=0.9)


def plot_points(
    rows: Sequence[Row],
    *,
    category: str,
    value: Axis,
    group: str,
    title: str,
    mark: Literal["point", "bar"] = "point",
    panel: str | None = None,
) -> Figure:
    """A line of points, or bars from zero, for each value of `category`, a mark for each value of `group`.

    Args:
      rows: one for each point.
      category, group, panel: columns.

    Raises:
      UserError: without rows, or where a row lacks a column.
    """
    _check_rows(rows, (value,), (category, group, panel))
    categories, groups = _list_values(rows, category), _list_values(rows, group)
    step = 0.8 / len(groups)

    def draw(axes: Axes, index: int, part: Sequence[Row]) -> None:
        at_N = [categories.index(row[category]) + step * (index - (len(groups) - 1) / 2) for row in part]
        value_N, low_N, high_N = _read(part, value)
        if mark == "bar":
            axes.barh(at_N, value_N, height=0.9 * step, color=_pick(PALETTE, index), hatch=_pick(_HATCHES, index))
        else:
            axes.plot(value_N, at_N, _pick(_MARKERS, index), color=_pick(PALETTE, index), markersize=4.5)
        axes.hlines(at_N, low_N, high_N, color="#444444" if mark == "bar" else _pick(PALETTE, index), linewidth=1.2)

    with matplotlib.rc_context(_STYLE):
        height = 1.3 + 0.22 * len(categories) * max(1.0, 0.55 * len(groups))
        figure, shown = _make_panels(rows, group, panel, title, draw, width=4.2, height=height)
        for axes, _ in shown:
            axes.set_xlabel(value.label)
            axes.set_xscale(value.scale)
            _mark_decades(axes.xaxis)
            if value.scale == "linear":
                axes.axvline(0.0, color="#999999", linewidth=0.8, zorder=0.9)
                axes.locator_params(axis="x", nbins=6)
            cell = axes.get_subplotspec()
            is_first = cell is None or cell.is_first_col()
            axes.set_yticks(range(len(categories)), [str(name) if is_first else "" for name in categories])
            axes.set_ylim(len(categories) - 0.5, -0.5)
            axes.grid(visible=False, axis="y")
        if len(groups) > 1:
            _name_groups(figure, groups, mark)
    return figure


def plot_scatter(rows: Sequence[Row], *, x: Axis, y: Axis, group: str, title: str, panel: str | None = None) -> Figure:
    """Measured (y) against predicted (x), in the same units, with the line on which they agree.

    Args:
      rows: one for each point.
      group, panel: columns.

    Raises:
      UserError: without rows, or where a row lacks a column.
    """
    _check_rows(rows, (x, y), (group, panel))
    groups = _list_values(rows, group)

    def draw(axes: Axes, index: int, part: Sequence[Row]) -> None:
        x_N, y_N, low_N, high_N = _read(part, x)[0], *_read(part, y)
        axes.vlines(x_N, low_N, high_N, color=_pick(PALETTE, index), linewidth=1.0)
        axes.plot(x_N, y_N, _pick(_MARKERS, index), color=_pick(PALETTE, index), markersize=4.5)

    with matplotlib.rc_context(_STYLE):
        figure, shown = _make_panels(rows, group, panel, title, draw, width=3.8, height=3.8)
        for axes, _ in shown:
            _label_axes(axes, x, y)
            low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
            axes.plot([low, high], [low, high], color="#999999", linewidth=0.8, zorder=0.9)
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        if len(groups) > 1:
            _name_groups(figure, groups, "point")
    return figure


def save_figure(
    figure: Figure, stem: Path, kinds: Sequence[str] = ("svg", "png"), inputs: Mapping[str, str] = {}
) -> None:
    """Write stem.svg and its like, each whole or not at all; the same rows give the same bytes.

    Args:
      figure: what is drawn.
      stem: of the files' names.
      kinds: of svg, png and pdf.
      inputs: SHA-256 of the recorded files that were read, by path; they stand in the metadata of each file, as text in
        the form of `sha256sum`: in SVG's dc:source, PNG's chunk Source and PDF's field Keywords.
    """
    source = "\n".join(f"{digest}  {path}" for path, digest in inputs.items()) or None
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": None, "Source": source},
        "png": {"Software": None, "Source": source},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None, "Keywords": source},
    }
    with matplotlib.rc_context(_STYLE):
        for kind in kinds:
            picture = io.BytesIO()
            kept = {name: text for name, text in metadata[kind].items() if text is not None or name != "Source"}
            figure.savefig(picture, format=kind, dpi=160, metadata=kept)
            save_whole(stem.parent / f"{stem.name}.{kind}", picture.getvalue())


def _check_rows(rows: Sequence[Row], axes: Sequence[Axis], names: Sequence[str | None]) -> None:
    if not rows:
        raise UserError("figure: expected recorded rows, got none")
    numbers = [
        f"{axis.column}{bound}" for axis in axes for bound in ("", *(("_low", "_high") if axis.has_interval else ()))
    ]
    for index, row in enumerate(rows):
        for name in (*numbers, *(name for name in names if name is not None)):
            if name not in row:
                raise UserError(f"figure: expected column {name} in every row, row {index} lacks it")
        for name in numbers:
            if isinstance(row[name], bool) or not isinstance(row[name], int | float | np.number):
                raise UserError(f"figure: expected a number in column {name}, got {row[name]!r} in row {index}")


def _make_panels(
    rows: Sequence[Row],
    group: str,
    panel: str | None,
    title: str,
    draw: Callable[[Axes, int, Sequence[Row]], None],
    width: float,
    height: float,
) -> tuple[Figure, list[tuple[Axes, dict[int, list[Row]]]]]:
    """The figure, and each panel's axes with its rows by index of their group; a group looks the same everywhere."""
    groups = _list_values(rows, group)
    panels: list[Any] = [None] if panel is None else _list_values(rows, panel)
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(width * across, height * down + 0.3), layout="constrained")
    figure.suptitle(title, x=0.01, horizontalalignment="left")
    shown = []
    for number, name in enumerate(panels):
        axes = figure.add_subplot(down, across, number + 1)
        inside = [row for row in rows if panel is None or row[panel] == name]
        parts = {index: [row for row in inside if row[group] == value] for index, value in enumerate(groups)}
        parts = {index: part for index, part in parts.items() if part}
        for index, part in parts.items():
            draw(axes, index, part)
        if name is not None:
            axes.set_title(str(name))
        shown.append((axes, parts))
    return figure, shown


def _list_values(rows: Sequence[Row], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))


def _read(part: Sequence[Row], axis: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    bounds = ("_low", "_high") if axis.has_interval else ("", "")
    value_N, low_N, high_N = (
        np.array([row[f"{axis.column}{bound}"] for row in part], np.float64) for bound in ("", *bounds)
    )
    return value_N, low_N, high_N


def _pick(looks: Sequence[Any], index: int) -> Any:
    """What a group of this index looks like, in colour, marker, dash or hatch."""
    return looks[index % len(looks)]


def _label_axes(axes: Axes, x: Axis, y: Axis) -> None:
    axes.set(xlabel=x.label, ylabel=y.label, xscale=x.scale, yscale=y.scale)
    axes.margins(x=0.02)
    for ruler in (axes.xaxis, axes.yaxis):
        _mark_decades(ruler)
        if ruler.get_scale() == "linear" and max(map(abs, ruler.get_view_interval())) >= _LARGE:
            ruler.set_major_formatter(EngFormatter(sep=""))


def _mark_decades(ruler: Ruler) -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 of a decade where there are few decades."""
    if ruler.get_scale() == "log":
        low, high = ruler.get_view_interval()
        ruler.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
        ruler.set_major_formatter(StrMethodFormatter("{x:g}"))
        ruler.set_minor_locator(NullLocator())


def _find_end(part: Sequence[Row], x: Axis, y: Axis) -> tuple[float, float] | None:
    """The last point of a line that is drawn."""
    drawn = [(float(row[x.column]), float(row[y.column])) for row in part if np.isfinite(row[y.column])]
    return max(drawn) if drawn else None


def _label_ends(axes: Axes, ends: dict[int, tuple[float, float] | None], groups: Sequence[Any]) -> None:
    """Name lines at the right edge, at the height where they end, moved apart where names would overlap."""
    axes.autoscale(enable=False)
    placed = []
    for index, end in ends.items():
        if end is not None:
            placed.append((float(axes.transAxes.inverted().transform(axes.transData.transform(end))[1]), index))
    placed.sort()
    least_N = 0.062 * np.arange(len(placed))  # heights of names that lie on each other from the bottom on
    above_N = np.maximum.accumulate(np.array([height for height, _ in placed]) - least_N)
    height_N = least_N + np.clip(above_N, 0.0, np.maximum(1.031 - least_N[-1:], 0.0))
    for height, (_, index) in zip(height_N.tolist(), placed, strict=True):
        color, label = _pick(PALETTE, index), str(groups[index])
        axes.text(1.02, height, label, color=color, transform=axes.transAxes, verticalalignment="center")


def _name_groups(figure: Figure, groups: Sequence[Any], mark: Literal["line", "point", "bar"]) -> None:
    """A legend below the panels."""
    handles: list[Any] = []
    for index, name in enumerate(groups):
        color, label = _pick(PALETTE, index), str(name)
        if mark == "bar":
            handles.append(Patch(facecolor=color, hatch=_pick(_HATCHES, index), label=label))
        else:
            dash = _pick(_DASHES, index) if mark == "line" else ""
            handles.append(Line2D([], [], color=color, marker=_pick(_MARKERS, index), linestyle=dash, label=label))
    fitting = int(figure.get_figwidth() * 14 // (6 + max(len(str(name)) for name in groups)))  # about, at this size
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(4, fitting, len(groups))),
        **({"handletextpad": 0.2} if mark == "point" else {"handlelength": 3.0}),
    )
