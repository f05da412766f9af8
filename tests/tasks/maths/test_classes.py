"""Kinds of answers that were judged wrongly once: false verdicts by kind, on pairs that are made of templates."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def count_false_verdicts(*words: str) -> tuple[Counter, list[dict]]:
    """Sum the counts of a sweep over its kinds; and the pairs that are judged otherwise than they should be."""
    command = [sys.executable, str(HERE / "sweep.py"), "kinds", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[2], timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    return sum((Counter(row) for row in report["kinds"].values()), Counter()), report["rest"]


@pytest.mark.parametrize("seed", ["1", "2"])
def test_every_pair_of_a_known_class_is_judged_rightly(seed):
    counts, rest = count_false_verdicts("classes", seed)
    assert counts["ours: equal"] > 500 and counts["ours: different"] > 300
    assert rest == []


def test_of_pairs_that_no_rule_was_made_for_few_are_judged_wrongly():
    counts, _ = count_false_verdicts("heldout", "20251128")
    assert counts["ours: equal"] > 2000 and counts["ours: different"] > 1000
    assert counts["ours: false accepts"] <= 0.005 * counts["ours: different"]
    assert counts["ours: false rejects"] <= 0.03 * counts["ours: equal"]
