"""The benchmark of grading: it judges what it says it judges, and its ratios are those of its rates."""

from __future__ import annotations

import json

import pytest

from benchmarks import grade
from benchmarks.__main__ import main
from c3jax.tasks.code import task as code
from c3jax.tasks.maths import task as maths


def test_the_benchmark_prints_its_rates_and_ratios(capsys):
    assert main(["grade", "--small"]) == 0
    figures = json.loads(capsys.readouterr().out)
    best = figures["best_per_second"]
    assert set(best) == {"interpreters", "sandboxes", "programs", "formulas"} and min(best.values()) > 0.0
    assert figures["interpreters_per_program"] == pytest.approx(best["interpreters"] / best["programs"])


def test_every_sample_is_right():
    try:
        verdicts = [code.grade(*pair) for pair in zip(*grade.make_programs(4), strict=True)]
    finally:
        code.close()
    verdicts += [maths.grade(*pair) for pair in zip(*grade.make_formulas(4), strict=True)]
    assert [verdict.verdict for verdict in verdicts] == ["correct"] * 7 + ["wrong"]  # 72.4 is not 72


def test_the_solutions_of_a_set_that_fail_are_named(capsys, tmp_path):
    rows = [
        {"task_id": 1, "text": "Add.", "code": "def f(a):\n    return a + 1", "test_list": ["assert f(1) == 2"]},
        {"task_id": 2, "text": "Add.", "code": "def f(a):\n    return a + 2", "test_list": ["assert f(1) == 2"]},
        {"task_id": 3, "text": "Add.", "code": "def f(a):\n    return a + 3", "test_list": ["assert f(1) == 2"]},
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["grade", "--solutions", str(path), "--without", "3"]) == 1
    failed, count = capsys.readouterr().out.splitlines()
    assert failed.startswith("2: wrong, ") and count.startswith("1 of 2 pass; ")
    assert main(["grade", "--solutions", str(path), "--without", "2", "3"]) == 0


def test_a_set_that_cannot_be_read_is_one_sentence(capsys, tmp_path):
    assert main(["grade", "--solutions", str(tmp_path / "none.jsonl")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("benchmarks: ") and len(shown.err.splitlines()) == 1
