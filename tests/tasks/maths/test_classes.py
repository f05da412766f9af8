"""Kinds of answers that were judged wrongly once: false verdicts by kind, on pairs that are made of templates."""

from __future__ import annotations

import pytest

from c3jax.tasks.maths.task import grade
from c3jax.types import Problem
from tests.tasks.maths import classes, heldout


def find_false_verdicts(pairs: list) -> tuple[list, list]:
    """The pairs that are accepted and should not be, and those that are rejected and should not be."""
    accepted = {pair for pair in pairs if grade(Problem(0, "0", pair.question, pair.problem), box(pair.answer)).score}
    return (
        [pair for pair in pairs if pair in accepted and not pair.is_equal],
        [pair for pair in pairs if pair not in accepted and pair.is_equal],
    )


def box(answer: str) -> str:
    return rf"So it is $\boxed{{{answer}}}$."


@pytest.mark.parametrize("seed", [1, 2])
def test_every_pair_of_a_known_class_is_judged_rightly(seed):
    pairs = list(dict.fromkeys(classes.write_pairs(seed)))
    assert 800 < 500 + sum(not pair.is_equal for pair in pairs) < len(pairs)
    assert find_false_verdicts(pairs) == ([], [])


@pytest.mark.parametrize(
    ("table", "count"), [("unseen.tsv", 509), ("later.tsv", 353), ("fresh.tsv", 417), ("usual.tsv", 7252)]
)
def test_every_pair_that_was_written_by_the_kinds_of_fault_alone_is_judged_rightly(table, count):
    pairs = classes.write_pairs(0, 1, table)
    assert len(pairs) == count
    assert find_false_verdicts(pairs) == ([], [])


def test_of_pairs_that_no_rule_was_made_for_few_are_judged_wrongly():
    pairs = list(dict.fromkeys(heldout.write_pairs(20251128)))
    equal = sum(pair.is_equal for pair in pairs)
    assert equal > 2000 and len(pairs) - equal > 1000
    accepts, rejects = find_false_verdicts(pairs)
    assert len(accepts) <= 0.005 * (len(pairs) - equal)
    assert len(rejects) <= 0.03 * equal
