"""The benchmark of grading: it judges what it says it judges, and its ratios are those of its rates."""

from __future__ import annotations

import json

import pytest

from c3jax.bench import grade as bench_grade
from c3jax.tasks.code import task as code
from c3jax.tasks.task import find_task


def test_the_benchmark_prints_its_rates_and_ratios(capsys):
    assert bench_grade.run(is_small=True) == 0
    figures = json.loads(capsys.readouterr().out)
    best = figures["best_per_second"]
    assert set(best) == {"interpreters", "sandboxes", "programs", "formulas"} and min(best.values()) > 0.0
    assert figures["interpreters_per_program"] == pytest.approx(best["interpreters"] / best["programs"])


def test_every_sample_is_right():
    try:
        verdicts = [code.grade(*pair) for pair in zip(*bench_grade._make_programs(4), strict=True)]
    finally:
        code.close()
    verdicts += [find_task("math").grade(*pair) for pair in zip(*bench_grade._make_formulas(4), strict=True)]
    assert [verdict.verdict for verdict in verdicts] == ["correct"] * 7 + ["wrong"]  # 72.4 is not 72
