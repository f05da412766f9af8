"""Figures: what is drawn is what was recorded, the same rows give the same bytes, and nothing is invented."""

from __future__ import annotations

import math

import numpy as np
import pytest

from c3jax.analysis.figures import PALETTE, Axis, plot_curves, plot_points, plot_scatter, save_figure
from c3jax.types import UserError

X, Y = Axis("calls", "evaluator calls"), Axis("mean", "mean return", has_interval=True)
ROWS = [
    {"method": method, "role": role, "calls": calls, "mean": mean, "mean_low": mean - 0.1, "mean_high": mean + 0.1}
    for method, base in (("c3", 0.5), ("rloo", 0.4))
    for role in ("planner", "solver")
    for calls, mean in ((16, base + 0.2), (8, base))
]


def draw_curves():
    return plot_curves(ROWS, x=X, y=Y, group="method", panel="role", title="Learning")


def draw_points(mark="point"):
    return plot_points(ROWS[::2], category="role", value=Y, group="method", title="Error", mark=mark)


def draw_scatter():
    return plot_scatter(
        ROWS, x=Axis("calls", "predicted", "log"), y=Axis("mean", "measured", "log"), group="method", title=""
    )


def test_curves_are_the_rows_in_order_and_named_where_they_end():
    figure = draw_curves()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["planner", "solver"]
    for axes in figure.axes:
        first, second = axes.lines
        np.testing.assert_allclose(first.get_xydata(), [[8, 0.5], [16, 0.7]])
        np.testing.assert_allclose(second.get_xydata(), [[8, 0.4], [16, 0.6]])
        assert [line.get_color() for line in axes.lines] == list(PALETTE[:2])
        assert [(text.get_text(), text.get_color()) for text in axes.texts] == [
            ("rloo", PALETTE[1]),
            ("c3", PALETTE[0]),
        ]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("evaluator calls", "mean return")
        band = axes.collections[0].get_paths()[0].vertices
        assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.4, 0.8))


def test_names_at_the_ends_keep_apart():
    rows = [{"method": f"m{n}", "calls": x, "mean": 1 - 1e-6 * n * x} for n in range(10) for x in (0, 1)]
    (axes,) = plot_curves(rows, x=X, y=Axis("mean", "return"), group="method", title="").axes
    heights = [text.get_position()[1] for text in axes.texts]
    assert len(heights) == 10 and min(np.diff(heights)) >= 0.06 and max(heights) <= 1.05
    assert [text.get_text() for text in axes.texts] == [f"m{n}" for n in reversed(range(10))]


def test_a_gap_is_no_point_and_a_curve_of_gaps_has_no_name():
    rows = [{"method": name, "calls": x, "mean": y} for name, y in (("c3", 1.0), ("none", math.nan)) for x in (0, 1)]
    (axes,) = plot_curves(rows, x=X, y=Axis("mean", "return"), group="method", title="").axes
    assert [text.get_text() for text in axes.texts] == ["c3"]


def test_points_and_bars_carry_their_intervals():
    (axes,) = draw_points().axes
    marks = [line for line in axes.lines if line.get_marker() != "None"]
    np.testing.assert_allclose([line.get_xdata() for line in marks], [[0.7, 0.7], [0.6, 0.6]])
    ends = [segment[:, 0].tolist() for lines in axes.collections for segment in lines.get_segments()]
    np.testing.assert_allclose(ends, [[0.6, 0.8], [0.6, 0.8], [0.5, 0.7], [0.5, 0.7]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["planner", "solver"]
    (axes,) = draw_points("bar").axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.7, 0.7, 0.6, 0.6])


def test_the_scatter_has_the_line_of_agreement():
    figure = draw_scatter()
    (axes,) = figure.axes
    agreement = axes.lines[-1]
    for ends in (agreement.get_xdata(), agreement.get_ydata(), axes.get_xlim(), axes.get_ylim()):
        assert list(ends) == list(axes.get_xlim())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["c3", "rloo"]


def test_groups_can_be_told_apart_without_colours():
    for axes in draw_curves().axes:
        first, second = axes.lines
        assert first.get_linestyle() != second.get_linestyle() and first.get_marker() != second.get_marker()
    figure = draw_points("bar")
    hatches = [patch.get_hatch() for patch in figure.axes[0].patches]
    assert hatches[0] == hatches[1] != hatches[2] == hatches[3]
    assert [patch.get_hatch() for patch in figure.legends[0].get_patches()] == hatches[::2]


def test_long_names_of_lines_stand_below():
    rows = [row | {"method": f"method {row['method']} of a longer name"} for row in ROWS]
    figure = plot_curves(rows, x=X, y=Y, group="method", panel="role", title="Learning")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"method {name} of a longer name" for name in ("c3", "rloo")
    ]
    assert not any(axes.texts for axes in figure.axes)


@pytest.mark.parametrize("make", [draw_curves, draw_points, draw_scatter])
def test_the_same_rows_give_the_same_files(make, tmp_path):
    for name in ("one", "two"):
        save_figure(make(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert "<dc:date>" not in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "expected recorded rows, got none"),
        (lambda rows: [rows[0], {"method": "c3"}], "expected column calls in every row, row 1 lacks it"),
        (lambda rows: [{**rows[0], "mean": "0.5"}], "expected a number in column mean, got '0.5' in row 0"),
        (lambda rows: [{**rows[0], "mean_low": None}], "expected a number in column mean_low, got None in row 0"),
        (lambda rows: [{name: c for name, c in rows[0].items() if name != "mean_high"}], "expected column mean_high"),
        (lambda rows: [{name: c for name, c in rows[0].items() if name != "method"}], "expected column method"),
    ],
)
def test_a_figure_without_its_records_is_refused(change, message):
    for plot in (plot_curves, plot_scatter):
        with pytest.raises(UserError, match=message):
            plot(change(ROWS), x=X, y=Y, group="method", title="")
