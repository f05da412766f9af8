"""The table of metrics against its page; tests/test_watched_run.py holds it against what a run writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from c3jax.config.alarms import Alarms
from c3jax.report.curves import TITLES
from c3jax.run.alarms import ALARMS
from c3jax.run.metric_table import METRICS, find_metric

METRICS_TEXT, ALARMS_TEXT = (
    (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8").split("\n## Alarms\n")
)


def read_rows(text: str) -> list[list[str]]:
    """Cells of the rows whose first cell is a name."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in cells] for cells in lines]


def test_the_page_is_the_table():
    assert read_rows(METRICS_TEXT) == [[name, *metric] for name, metric in METRICS.items()]


def test_the_page_has_every_alarm_and_its_bound():
    rows = read_rows(ALARMS_TEXT)
    assert [row[0] for row in rows] == [*ALARMS]
    bounds = Alarms().model_dump()
    assert [float(row[2].split()[0]) for row in rows] == [bounds[row[0]] for row in rows]
    assert f"`alarms.steps` of them ({bounds['steps']})" in ALARMS_TEXT


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("return", "return"),
        ("return_partial", "return_partial"),
        ("return_easy/train", "return_{set}"),
        ("zero_credit_share_plan", "zero_credit_share_{turn}"),
        ("zero_credit_share", "zero_credit_share"),
        ("gain", None),
        ("message_token", None),
    ],
)
def test_a_figure_is_found_by_its_name_or_by_how_it_begins(name, row):
    assert find_metric(name) == (None if row is None else METRICS[row])


def test_what_the_report_shows_first_is_in_the_table():
    assert [name for name in TITLES if name not in METRICS] == ["accuracy"]  # which the evaluations' files have
