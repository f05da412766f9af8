"""Figures of runs: rows by hand from what they recorded, files that name their inputs, and refusals."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3jax import cli
from c3jax.analysis.histories import (
    find_runs,
    list_accuracies,
    list_costs,
    list_ends,
    list_measures,
    list_returns,
    list_shapes,
    load_histories,
)
from c3jax.commands.figures import FIGURES
from c3jax.config.file import dump_config, parse_config
from c3jax.types import UserError

TURNS = [
    {"name": "plan", "role": "planner", "user": "{question}", "max_tokens": 4},
    {"name": "answer", "role": "solver", "user": "{question} {plan}", "max_tokens": 4},
    {"name": "check", "role": "judge", "user": "{answer}", "max_tokens": 4},
]
CONFIG: dict[str, Any] = {
    "seed": 0,
    "steps": 2,
    "problems": 4,
    "task": {"kind": "arithmetic"},
    "protocol": {"turns": TURNS[:2], "question_tokens": 32},
    "model": {"kind": "random"},
    "credit": {"method": "c3", "fan_out": [2, 4], "budget": 8, "normalise": "none"},
    "learner": {"learning_rate": 4e-3},
}
LEDGER = {"evaluator_calls": 32, "messages": 40, "generated_tokens": 100, "prefilled_tokens": 50}
NO_LOO = {"credit": CONFIG["credit"] | {"method": "no_loo"}}


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Write a run in DIR/CELL/seed-N: its returns, and its accuracy of two problems at some steps."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str, returns: Sequence[float] = (0.25, 0.5), scores: Mapping[int, Sequence[float]] = {}, **changes: Any
    ) -> Path:
        path = Path("runs", name)
        (path / "eval").mkdir(parents=True)
        config = parse_config(CONFIG | {"seed": int(name.rpartition("-")[2])} | changes)
        (path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        zero = {"zero_credit_share": 0.5, "zero_credit_share_plan": 0.25, "truncated_share": 0.0}
        rows = [{"step": step, "return": value, **zero, **LEDGER} for step, value in enumerate(returns)]
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for step, values in (scores or {0: [0, 0], len(returns): [0, 1]}).items():
            mean = sum(values) / len(values)
            row = {"suite": "heldout", "profile": "greedy", "samples": 1, "accuracy": mean, "low": mean, "high": mean}
            row |= {"ids": ["0", "1"], "digests": ["0", "1"], "scores": [[value] for value in values]}
            row |= {"pass_at": {"1": [mean, 0, 1]}, "majority": None}
            (path / "eval" / f"step-{step}.json").write_text(json.dumps({"step": step, "results": [row]}))
        return path

    return make


@pytest.fixture
def two_methods(make_run):
    for cell, changes in (("c3", {}), ("no_loo", NO_LOO)):
        for seed, scores in ((0, [1, 1]), (1, [0, 1])):
            make_run(f"{cell}/seed-{seed}", (0.25, 0.5 + seed / 4), {0: [0, 0], 2: scores}, **changes)
    return load_histories(find_runs(["runs"]))


def pick(rows: Sequence[Mapping[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def test_returns_are_means_with_the_range_over_seeds(two_methods):
    rows = list_returns(two_methods)
    assert pick(rows[:2], "group", "panel", "step", "value", "value_low", "value_high") == [
        ("method c3", "training", 1, 0.25, 0.25, 0.25),
        ("method c3", "training", 2, 0.625, 0.5, 0.75),
    ]
    assert len(rows) == 4


def test_a_long_run_is_cut_into_stretches_and_ends_with_its_shortest_seed(make_run):
    make_run("c3/seed-0", [0.0, 1.0] * 75, steps=250)
    make_run("c3/seed-1", [0.5] * 249, steps=250)
    rows = list_returns(load_histories(find_runs(["runs"])))
    assert len(rows) == 50 and rows[0]["panel"] == "training, mean of 3 steps"
    assert pick(rows[:2], "step", "value") == [
        (3, pytest.approx((1 / 3 + 0.5) / 2)),
        (6, pytest.approx((2 / 3 + 0.5) / 2)),
    ]
    assert rows[-1]["step"] == 150


def test_accuracies_stand_at_what_was_spent_until_then(two_methods):
    rows = list_accuracies(two_methods)
    columns = ("panel", "step", "evaluator_calls", "generated_tokens", "value", "value_low", "value_high")
    assert pick(rows[:2], *columns) == [
        ("heldout, greedy", 0, 0.0, 0.0, 0.0, 0.0, 0.0),
        ("heldout, greedy", 2, 64.0, 200.0, 0.75, 0.5, 1.0),
    ]


def test_accuracies_at_the_end_have_intervals_and_say_when_it_is_not_the_end(make_run):
    make_run("c3/seed-0", scores={2: [1, 1]})
    make_run("no_loo/seed-0", scores={1: [0, 1]}, **NO_LOO)
    rows = list_ends(load_histories(find_runs(["runs"])))
    assert pick(rows, "label", "value") == [("method c3", 1.0), ("method no_loo (step 1)", 0.5)]
    assert rows[0]["value_low"] <= rows[0]["value"] <= rows[0]["value_high"]


def test_measures_are_means_over_steps_and_leave_out_what_is_zero_everywhere(two_methods):
    assert pick(list_measures(two_methods), "group", "panel", "value") == [
        ("method c3", "contexts without credit, share", 0.5),
        ("method no_loo", "contexts without credit, share", 0.5),
        ("method c3", "without credit: turn plan", 0.25),
        ("method no_loo", "without credit: turn plan", 0.25),
    ]


def test_costs_are_means_over_the_runs_of_a_group(two_methods):
    (row, _) = list_costs(two_methods)
    assert (row["group"], row["runs"], row["evaluator_calls"], row["generated_tokens"]) == ("method c3", 2, 64, 200)


def test_fan_outs_of_each_method_are_compared(make_run):
    for method, changes in (("c3", {}), ("no_loo", {"method": "no_loo"})):
        for sizes in ([4, 2], [2, 4], [2, 2]):
            section = CONFIG["credit"] | changes | {"fan_out": sizes, "budget": sizes[0] * sizes[1]}
            make_run(f"{method}-{sizes[0]}{sizes[1]}/seed-0", credit=section)
    histories = load_histories(find_runs(["runs"]))
    rows = list_shapes(histories, "fan_out")
    assert pick(rows, "x", "group") == [
        (x, f"method {method}") for x in ("2 x 2", "2 x 4", "4 x 2") for method in ("c3", "no_loo")
    ]
    with pytest.raises(UserError, match="^depth: expected runs that differ in the number of their turns, got two"):
        list_shapes(histories, "depth")


def test_depths_are_compared_whatever_a_longer_protocol_brings(make_run):
    make_run("duo/seed-0")
    credit, model = CONFIG["credit"] | {"fan_out": [2, 2, 2]}, {"kind": "random", "context": 128}
    protocol = {"turns": TURNS, "question_tokens": 32}
    make_run("trio/seed-0", protocol=protocol, credit=credit, model=model)
    rows = list_shapes(load_histories(find_runs(["runs"])), "depth")
    assert pick(rows, "x", "group") == [(2, "c3"), (3, "c3")]


# --------------------------------------------------------------------------------------------------------------------
# Files


def read_png_text(png: bytes) -> dict[str, str]:
    """The chunks tEXt, zTXt and iTXt, by the PNG specification."""
    found, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        name, _, rest = body.partition(b"\0")
        if kind == b"tEXt":
            found[name.decode()] = rest.decode("latin-1")
        elif kind == b"zTXt":
            found[name.decode()] = zlib.decompress(rest[1:]).decode("latin-1")
        elif kind == b"iTXt":
            assert rest[:1] == b"\0"
            found[name.decode()] = rest[2:].split(b"\0", 2)[2].decode()
        at += length + 12
    return found


def test_every_file_names_the_inputs_and_the_same_inputs_give_the_same_bytes(two_methods, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for out in ("one", "two"):
        assert cli.main(["figures", "runs", "--out", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "figures: one/ with learning, cost, mechanism, ablation as png, svg, pdf"
    assert [line.partition(": expected")[0] for line in lines[1:3]] == ["left out: fan_out", "left out: depth"]
    names = [
        f"{name}.{kind}" for name in ("learning", "cost", "mechanism", "ablation") for kind in ("png", "svg", "pdf")
    ]
    assert sorted(path.name for path in Path("one").iterdir()) == sorted(names)
    assert all(Path("one", name).read_bytes() == Path("two", name).read_bytes() for name in names)

    runs = [Path("runs", cell, f"seed-{seed}") for cell in ("c3", "no_loo") for seed in (0, 1)]
    files = [run / name for run in runs for name in ("config.yaml", "eval/step-0.json", "eval/step-2.json")]
    wanted = "\n".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}" for file in files)
    assert read_png_text(Path("one/ablation.png").read_bytes())["Source"] == wanted
    svg = Path("one/ablation.svg").read_text()
    assert re.findall("<dc:source>(.*?)</dc:source>", svg, re.DOTALL) == [wanted] and "<dc:date>" not in svg
    keywords = re.findall(rb"/Keywords \((.*?)\)\n", Path("one/ablation.pdf").read_bytes(), re.DOTALL)
    assert [text.decode().replace("\\n", "\n") for text in keywords] == [wanted]
    # Another figure reads other files.
    assert "metrics.jsonl" in read_png_text(Path("one/mechanism.png").read_bytes())["Source"]
    assert "eval/" not in read_png_text(Path("one/mechanism.png").read_bytes())["Source"]


def test_lines_differ_without_colours_and_carry_bands_and_a_front(two_methods):
    figure = FIGURES["cost"].draw(two_methods)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "heldout, greedy: over evaluator calls",
        "heldout, greedy: over generated tokens",
    ]
    first, second, front = figure.axes[0].lines
    assert first.get_linestyle() != second.get_linestyle() and first.get_marker() != second.get_marker()
    # Both methods have 0 at no calls and 3/4 at 64: the front is their common stair.
    np.testing.assert_allclose(np.asarray(front.get_xydata()), [[0, 0], [64, 0.75], [64, 0.75]])
    assert len(figure.axes[0].collections) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["runs", "--only", "fan_out"],
            "fan_out: expected runs that differ in credit.fan_out and in nothing else, got none",
        ),
        (
            ["runs", "--only", "learning,curves"],
            "--only: expected some of learning, cost, mechanism, ablation, fan_out, depth",
        ),
        (["runs", "nowhere"], "nowhere: expected a run directory or a folder of runs, found none"),
        (
            ["runs", "--out", "runs/c3/seed-0/config.yaml"],
            "--out: expected a folder, got the file runs/c3/seed-0/config.yaml",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(two_methods, capsys, words, sentence):
    assert cli.main(["figures", "--out", "out", *words]) == 2
    assert capsys.readouterr().err.startswith(f"c3jax: {sentence}") and not Path("out").exists()


def test_a_figure_without_its_records_says_what_is_missing(make_run, capsys):
    path = make_run("c3/seed-0")
    for file in (path / "eval").iterdir():
        file.unlink()
    for name in ("cost", "ablation"):
        assert cli.main(["figures", str(path), "--out", "out", "--only", name]) == 2
    expected = [
        f"c3jax: {path}: expected evaluations in eval/*.json, found none that all its seeds have",
        f"c3jax: ablation: expected runs of several configs, got those of one ({path})",
    ]
    assert capsys.readouterr().err.splitlines() == expected
    assert cli.main(["figures", str(path), "--out", "out", "--only", "learning"]) == 0  # it has returns
    capsys.readouterr()
    (path / "metrics.jsonl").unlink()
    for name in ("learning", "mechanism"):
        assert cli.main(["figures", str(path), "--out", "out", "--only", name]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"c3jax: {path}/metrics.jsonl: expected the steps of a run, found none"
    assert lines[1].startswith(f"c3jax: {path}/metrics.jsonl: expected one of zero_credit_share, truncated_share")
