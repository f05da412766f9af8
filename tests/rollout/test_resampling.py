"""Which trees a batch ends with where some have no signal, by hand; the size of a call changes nothing of it."""

from __future__ import annotations

import numpy as np
import pytest

from c3jax.credit.plans import make_tree
from c3jax.rollout.branches import PlanDraws
from c3jax.rollout.collect import Drawn
from c3jax.rollout.resampling import Batch, draw_batch
from c3jax.rollout.tree import RolloutCounts
from c3jax.types import Credit, Frame, Messages, Rollout, Verdict

PLAN = make_tree((2,))
BATCH, FURTHER = 4, 8
# Returns of each problem's two messages, in the order of drawing: the first four are the step's own.
RETURNS = np.array(
    [[0, 0], [1, 0], [1, 1], [0, 0], [0, 0], [0, 1], [0, 0], [1, 1], [0, 0], [1, 0], [0, 1], [0, 0]], float
)


def draw(numbers: range) -> PlanDraws:
    """Trees whose messages say which problem and alternative they are, and cost as much as their number."""
    rows = len(numbers) * 2
    token_NT = np.array([[10 * number + row] for number in numbers for row in range(2)], np.int32)
    is_on = np.ones((rows, 1), bool)
    messages = Messages(
        tokens_NT=token_NT,
        content_NT=is_on,
        sampled_NT=is_on,
        behaviour_logp_NT=np.zeros((rows, 1), np.float32),
        support_NTK=np.zeros((rows, 1, 0), np.int32),
        truncated_N=np.zeros(rows, bool),
    )
    question = Frame(np.array([[number] for number in numbers], np.int32), np.ones((len(numbers), 1), bool))
    counts = RolloutCounts(*(np.int32(x) for x in (rows, rows, 0, rows, 0)))
    own = list(range(len(numbers)))
    verdicts = [Verdict(value, "correct", None) for number in numbers for value in RETURNS[number]]
    drawn = [Drawn(Rollout(question, (messages,)), counts, own, len(numbers))]
    return PlanDraws((drawn,), own, verdicts, verdicts, (), 0.0)


def judge(rollout: Rollout, return_PL: np.ndarray) -> tuple[np.ndarray, Credit]:
    assert np.asarray(rollout.question.tokens_NS).shape == (len(return_PL), 1)
    advantage_PN = return_PL - return_PL[:, ::-1]
    return np.any(advantage_PN != 0, axis=1), Credit((return_PL,), (return_PL[:, ::-1],), (advantage_PN,))


def make_batch(size: int, further: int = FURTHER, is_judged: bool = True) -> Batch:
    return draw_batch(draw, PLAN, BATCH, further, size, judge if is_judged else None, None)


def check_rows(batch: Batch, used: list[int]) -> None:
    assert batch.used == used
    [rollout] = batch.rollouts
    np.testing.assert_array_equal(rollout.question.tokens_NS[:, 0], used)
    np.testing.assert_array_equal(rollout.turns[0].tokens_NT[:, 0], [10 * x + row for x in used for row in range(2)])
    np.testing.assert_array_equal(batch.return_PL, RETURNS[used])
    np.testing.assert_array_equal(batch.own_return_PL, RETURNS[:BATCH])


@pytest.mark.parametrize(("size", "drawn"), [(1, 11), (2, 12), (4, 12)])
def test_the_first_with_a_signal_take_the_empty_slots(size, drawn):
    """Slots 0, 2 and 3 are empty; of the further problems 5, 9 and 10 have a signal, the last of them the seventh."""
    batch = make_batch(size)
    check_rows(batch, [5, 1, 9, 10])
    assert int(batch.counts.messages) == 2 * drawn == 2 * sum(len(credit.value[0]) for credit in batch.judged)
    np.testing.assert_array_equal(batch.drawn_return_PL, RETURNS[:11])  # and not what a larger call drew beyond


@pytest.mark.parametrize("size", [1, 2, 4])
def test_slots_that_stay_empty_keep_their_tree(size):
    batch = make_batch(size, further=4)
    check_rows(batch, [5, 1, 2, 3])
    assert int(batch.counts.messages) == 2 * 8
    np.testing.assert_array_equal(batch.drawn_return_PL, RETURNS[:8])


def test_nothing_more_is_drawn_where_nothing_is_asked_for():
    batch = make_batch(2, is_judged=False)
    check_rows(batch, [0, 1, 2, 3])
    assert int(batch.counts.messages) == 2 * BATCH and batch.judged == ()
