"""Tables: cells, files and the terminal, against texts written by hand."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from c3jax.analysis.statistics import Interval
from c3jax.analysis.tables import (
    format_cell,
    load_table,
    make_columns,
    print_table,
    save_table,
    to_csv,
    to_json,
    to_markdown,
)
from c3jax.types import UserError

ROWS = [
    {"method": "c3", "role": "a|b", "calls": 8, "mse": 0.1234567891, "holds": True},
    {"method": "rloo", "role": "x, y", "calls": np.int32(16), "mse": math.nan, "note": "grün"},
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (12.0, "12.0"),
        (1234.5, "1230"),
        (-0.00098765, "-0.000988"),
        (9.999, "10.0"),
        (1.0, "1.00"),
        (0.0, "0"),
        (-0.0, "0"),
        (1.5e-7, "1.50e-07"),
        (2.5e9, "2.50e+09"),
        (np.float32(0.25), "0.250"),
        (math.nan, "-"),
        (-math.inf, "-"),
        (None, "-"),
        (1234567, "1234567"),
        (True, "yes"),
        (np.bool_(False), "no"),
        ("text", "text"),
    ],
)
def test_a_cell_is_shown_to_three_figures(value, text):
    assert format_cell(value) == text


def test_files_are_as_written_by_hand(tmp_path):
    save_table(tmp_path / "out" / "v1.2", ROWS, "# Errors")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"v1.2.csv", "v1.2.json", "v1.2.md"}
    assert (tmp_path / "out" / "v1.2.csv").read_text() == to_csv(ROWS)
    assert to_csv(ROWS) == 'method,role,calls,mse,holds,note\nc3,a|b,8,0.123457,True,\nrloo,"x, y",16,,,grün\n'
    assert json.loads(to_json(ROWS)) == [
        {"method": "c3", "role": "a|b", "calls": 8, "mse": 0.123457, "holds": True, "note": None},
        {"method": "rloo", "role": "x, y", "calls": 16, "mse": None, "holds": None, "note": "grün"},
    ]
    assert to_json(ROWS).count("\n") == 4 and "grün" in to_json(ROWS)
    assert (tmp_path / "out" / "v1.2.md").read_text() == f"# Errors\n\n{to_markdown(ROWS)}"
    assert to_markdown(ROWS).splitlines() == [
        "| method | role | calls | mse | holds | note |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        "| c3 | a\\|b | 8 | 0.123 | yes | - |",
        "| rloo | x, y | 16 | - | - | grün |",
    ]


def test_recorded_rows_come_back(tmp_path):
    rows = [{"method": "c3", **make_columns("mse", Interval(0.25, 0.125, math.inf))}]
    save_table(tmp_path / "errors", rows, "")
    (row,) = load_table(tmp_path / "errors.json")
    assert math.isnan(row.pop("mse_high")) and row == {"method": "c3", "mse": 0.25, "mse_low": 0.125}


def test_results_that_are_not_there_are_said(tmp_path):
    with pytest.raises(UserError, match="errors.json: expected recorded results, cannot be read"):
        load_table(tmp_path / "errors.json")
    for text, message in (("{", "as JSON"), ("{}", "a list of rows"), ("[1]", "a list of rows")):
        (tmp_path / "errors.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_table(tmp_path / "errors.json")


def show(rows, width=80) -> list[str]:
    text = io.StringIO()
    print_table(Console(file=text, width=width), rows, "errors [mean]")
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_a_table_in_the_terminal():
    assert show([{"method": "c3", "mean_error": 0.5, "calls": 8}]) == [
        "errors [mean]",
        "         mean",
        "method  error  calls",
        "─────────────────────",
        "c3      0.500      8",
    ]


def test_a_wide_table_goes_on_below_with_its_leading_columns():
    rows = [
        {"method": name, "role": "solver"} | {f"gradient_{letter}": 0.25 for letter in "abcdefghij"}
        for name in ("c3", "difference_masked")
    ]
    lines = show(rows)
    assert max(map(len, lines)) <= 80 and lines.count("errors [mean] (continued)") == 1
    shown = [line.split() for line in lines if line.startswith("difference_masked")]
    assert [line[:2] for line in shown] == [["difference_masked", "solver"]] * 2
    assert sum(len(line) - 2 for line in shown) == 10  # every number once, none cut short
    assert {cell for line in shown for cell in line[2:]} == {"0.250"}


def test_no_word_of_a_table_is_broken_and_texts_give_way_to_numbers():
    names = ("method c3, learning rate 0.004", "method no_loo, learning rate 0.001")
    rows = [{"suite": "a-benchmark", "first": names[0], "second": names[1], "problems": 9, "diff": 0.25, "p_holm": 1.0}]
    lines = show(rows)
    assert "errors [mean] (continued)" not in lines and max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    assert {"a-benchmark", "method", "c3,", "no_loo,", "learning", "rate", "0.004", "0.001", "9", "0.250"} <= words
    long = "a-folder-of-a-run-with-a-name-of-forty-six-columns"
    assert any(long in line for line in show([{"run": f"{long} and more", "mean": 0.5}]))
