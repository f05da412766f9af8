"""Figures of a step's trees, counted by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit.plans import make_replay, make_tree
from c3jax.learner.figures import count_turns, describe_credit, describe_sets, describe_turns, describe_verdicts
from c3jax.protocol import TurnPlan
from c3jax.types import Credit, Frame, Messages, Rollout, Verdict

PLANS = tuple(
    TurnPlan(name, name, (), 3, is_trained=is_trained)
    for name, is_trained in (("plan", True), ("answer", True), ("audit", False))
)
QUESTION = Frame(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))


def make_messages(*texts: list[int], junk: int = 0) -> Messages:
    """Messages of these tokens in three slots; those of three tokens met the limit."""
    tokens = np.full((len(texts), 3), junk, np.int32)
    sampled = np.zeros((len(texts), 3), bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], sampled[row, : len(text)] = text, True
    truncated = np.array([len(text) == 3 for text in texts])
    zero_NT = jnp.zeros(tokens.shape)
    support = jnp.zeros((*tokens.shape, 0), jnp.int32)
    return Messages(jnp.asarray(tokens), sampled, jnp.asarray(sampled), zero_NT, support, jnp.asarray(truncated))


def test_turns_are_counted_context_by_context():
    # One problem: two plans, and of each two answers with one audit each. The answers 7 and 7 of different plans are no
    # duplicates, 5 0 and 5 are none either (a token that was not drawn counts for nothing), and 8 8 8 repeats itself.
    turns = (
        make_messages([1, 2], [1, 2]),
        make_messages([7], [5, 0], [7], [5]),
        make_messages([8, 8, 8], [9], [8, 8, 8], [9]),
    )
    row = describe_turns(PLANS, count_turns((Rollout(QUESTION, turns),), make_tree((2, 2, 1)), None))
    assert row == {
        **{"message_tokens_plan": 2.0, "message_tokens_answer": 5 / 4, "message_tokens_audit": 2.0},
        **{"truncated_share_plan": 0.0, "truncated_share_answer": 0.0, "truncated_share_audit": 0.5},
        # After the first of their contexts come 1 plan, 2 answers and no audit.
        **{"duplicate_share_plan": 1.0, "duplicate_share_answer": 0.0, "duplicate_share": 1 / 3},
    }


@pytest.mark.parametrize("junk", [0, 4])
def test_what_stands_in_slots_that_were_not_drawn_counts_for_nothing(junk):
    three_equal = Rollout(QUESTION, (make_messages([4], [4], [4, 4], [4], junk=junk),))
    row = describe_turns(PLANS[:1], count_turns((three_equal,), make_tree((4,)), None))
    assert row["duplicate_share"] == 2 / 3 and row["message_tokens_plan"] == 5 / 4


def test_of_several_trees_each_turn_is_counted_where_its_alternatives_are():
    # Two alternatives at either turn of a transcript: those of the second stand in the second tree, after a given plan.
    first = Rollout(QUESTION, (make_messages([1], [2]),))
    second = Rollout(QUESTION, (make_messages([1]), make_messages([3, 3], [3, 3])))
    row = describe_turns(PLANS[:2], count_turns((first, second), make_replay((1, 1), 2), None))
    assert row["duplicate_share_plan"] == 0.0 and row["duplicate_share_answer"] == 1.0
    assert row["message_tokens_plan"] == 1.0 and row["message_tokens_answer"] == 2.0


def test_credit_is_described_by_its_spread_and_its_zeros():
    advantage = ([[1.0, -1.0]], [[0.0, 0.0, 2.0, -2.0]], [[0.0, 0.0, 0.0, 0.0]])
    turns = tuple(map(jnp.float32, advantage))
    row = describe_credit(PLANS, Credit(turns, turns, turns))
    # Of 1, -1, 0, 0, 2, -2 the mean is 0 and the mean square 10 / 6; the audit, which is not trained, is left out.
    assert row == pytest.approx(
        {
            **{"advantage_std": (10 / 6) ** 0.5, "advantage_std_plan": 1.0, "advantage_std_answer": 2**0.5},
            **{"zero_credit_share": 0.25, "zero_credit_share_plan": 0.0, "zero_credit_share_answer": 0.5},
            "zero_credit_share_audit": 1.0,
        }
    )


def test_verdicts_and_sets_are_shares_and_means():
    verdicts = [Verdict(*row, None) for row in ((1.0, "correct"), (0.5, "partial"), (0.0, "timeout"), (0.0, "error"))]
    row = describe_verdicts(verdicts)
    assert (row["return"], row["return_partial"], row["failed_share"]) == (0.375, 0.125, 0.5)
    assert row["correct_share"] == row["partial_share"] == 0.25 and row["wrong_share"] == row["unsafe_share"] == 0.0
    return_PL = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert describe_sets(["easy"], np.zeros(3, int), return_PL) == {}
    assert describe_sets(["easy", "hard", "odd"], np.array([1, 0, 1]), return_PL) == {
        **{"problems_easy": 1, "return_easy": 1.0, "problems_hard": 2, "return_hard": 0.25, "problems_odd": 0}
    }
