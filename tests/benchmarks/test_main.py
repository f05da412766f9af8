"""Every benchmark runs at its small size and prints figures that agree with each other; wrong words show the usage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def measure(capsys) -> Iterator[Any]:
    """Run a small benchmark and read what it prints; what it sets for the whole process is set back."""
    before = {
        "jax_default_matmul_precision": jax.config.jax_default_matmul_precision,
        "jax_disable_most_optimizations": jax.config.read("jax_disable_most_optimizations"),
    }

    def run(name: str) -> dict[str, Any]:
        assert main([name, "--small"]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["bench"] == name and figures["jax"] == jax.__version__
        return figures

    yield run
    for name, value in before.items():
        jax.config.update(name, value)


def test_rollout(measure):
    figures = measure("rollout")
    seconds = figures["seconds"]
    assert figures["repeated_over_shared"] == pytest.approx(min(seconds["repeated"]) / min(seconds["shared"]))
    # 2 contexts of 16 slots and 4 messages of 4, against 4 contexts: 32 + 16 slots and 64 + 16.
    assert figures["key_value_bytes_shared_over_repeated"] == pytest.approx(48 / 80)


def test_decode(measure):
    figures = measure("decode")
    assert figures["rows"] == 16 and figures["row_steps_all_over_leaving"] > 1.0
    assert figures["tokens_differing"] == 0 and figures["logp_largest_difference"] < 1e-5


def test_update(measure):
    figures = measure("update")
    # All at once and in chunks, shared and repeated: the same loss and gradients.
    assert figures["log_probabilities"]["largest_relative_difference"] < 1e-5
    assert figures["step"]["largest_relative_difference"] < 1e-5
    assert figures["log_probabilities"]["plain_over_chunked_bytes"] > 1.0


def test_credit(measure):
    figures = measure("credit")
    assert figures["messages"] == 10 * figures["problems"]
    assert 0.0 < figures["milliseconds_fastest"]["group"] <= figures["milliseconds_median"]["group"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "invalid choice: 'speed'"),
        (["rollout", "--solutions", "set.jsonl"], "--solutions and --without: expected with grade, got rollout"),
    ],
)
def test_wrong_words_show_the_usage(words: list[str], message: str):
    command = [sys.executable, "-m", "benchmarks", *words]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("usage: python -m benchmarks") and message in answer.stderr
