"""Contexts as paths of frames, against arrays written out by hand.

Two problems, fan-out (2, 2): four messages of turn 0, eight of turn 1. A message's tokens say where it comes from:
10 * its turn's hundred + row, e.g. 130 is turn 0's row 3; 0 fills up.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.protocol import FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout.context import choose_length, make_frame, make_path
from c3jax.types import Messages

FAN_OUT = (2, 2, 1)
QUESTION, FIRST, SECOND = Slot(1), Slot(2), Slot(3)


def make_plan(*frames: tuple[int, tuple]) -> TurnPlan:
    return TurnPlan("turn", "role", tuple(FramePlan(*frame) for frame in frames), 2, is_trained=True)


def make_turn(tokens: list[list[int]], content: list[list[int]]) -> Messages:
    shape = np.shape(tokens)
    return Messages(
        tokens_NT=jnp.array(tokens),
        content_NT=jnp.array(content, bool),
        sampled_NT=jnp.ones(shape, bool),
        behaviour_logp_NT=jnp.zeros(shape),
        support_NTK=jnp.zeros((*shape, 0), jnp.int32),
        truncated_N=jnp.zeros(shape[0], bool),
    )


QUESTIONS = make_frame([[7], [8, 9]], 2)
TURNS = (
    make_turn([[100, 0], [110, 1], [120, 121], [1, 0]], [[1, 0], [1, 0], [1, 1], [0, 0]]),
    make_turn([[200 + 10 * row] for row in range(8)], [[row != 5] for row in range(8)]),
)


def check(path, *expected):
    assert len(path) == len(expected)
    for frame, (tokens, keep) in zip(path, expected, strict=True):
        np.testing.assert_array_equal(frame.tokens_NS, tokens)
        np.testing.assert_array_equal(frame.keep_NS, np.array(keep, bool))


def test_the_first_turn_of_a_chain():
    plan = make_plan((0, (Literal((4, 5)),)), (1, (QUESTION, Literal((6,)))))
    check(
        make_path(plan, QUESTIONS, (), FAN_OUT),
        ([[4, 5]], [[1, 1]]),
        ([[7, 0, 6], [8, 9, 6]], [[1, 0, 1], [1, 1, 1]]),
    )


def test_what_one_question_shares_with_none_is_in_its_frame():
    plan = make_plan((0, (Literal((4, 5)),)), (1, (QUESTION, Literal((6,)))), (2, (FIRST, Literal((6,)))))
    one, two = make_frame([[7]], 2), [[100, 0, 6], [110, 1, 6]]
    messages = make_turn([row[:2] for row in two], [[1, 0], [1, 0]])
    check(make_path(plan, one, [messages], FAN_OUT), ([[4, 5, 7, 0, 6]], [[1, 1, 1, 0, 1]]), (two, [[1, 0, 1]] * 2))
    # Where the next frame has more rows the shared text stays apart: it would be repeated.
    apart = make_plan((0, (Literal((4, 5)),)), (2, (FIRST, Literal((6,)))))
    check(make_path(apart, one, [messages], FAN_OUT), ([[4, 5]], [[1, 1]]), (two, [[1, 0, 1]] * 2))


def test_the_second_turn_of_a_chain():
    plan = make_plan((1, (Literal((4,)), QUESTION)), (2, (FIRST, Literal((6,)))))
    check(
        make_path(plan, QUESTIONS, TURNS[:1], FAN_OUT),
        ([[4, 7, 0], [4, 8, 9]], [[1, 1, 0], [1, 1, 1]]),
        (
            [[100, 0, 6], [110, 1, 6], [120, 121, 6], [1, 0, 6]],
            [[1, 0, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]],  # stop tokens are no content
        ),
    )


def test_a_turn_that_does_not_see_the_one_before_it():
    plan = make_plan((1, (QUESTION, Literal((6,)))))
    check(make_path(plan, QUESTIONS, TURNS[:1], FAN_OUT), ([[7, 0, 6], [8, 9, 6]], [[1, 0, 1], [1, 1, 1]]))


def test_a_turn_that_reads_parallel_turns_in_frames_of_their_own():
    plan = make_plan((1, (QUESTION,)), (2, (FIRST,)), (3, (SECOND, Literal((6,)))))
    check(
        make_path(plan, QUESTIONS, TURNS, FAN_OUT),
        ([[7, 0], [8, 9]], [[1, 0], [1, 1]]),
        ([[100, 0], [110, 1], [120, 121], [1, 0]], [[1, 0], [1, 0], [1, 1], [0, 0]]),
        ([[200 + 10 * row, 6] for row in range(8)], [[row != 5, 1] for row in range(8)]),
    )


def test_a_coarser_message_after_a_finer_one_is_repeated():
    """Row n of turn 1 descends from row n // 2 of turn 0, and from question n // 4."""
    plan = make_plan((3, (SECOND, Literal((6,)), FIRST, QUESTION, Literal((5,)))))
    tokens, keep = [], []
    for row in range(8):
        first, first_keep = [([100, 0], [1, 0]), ([110, 1], [1, 0]), ([120, 121], [1, 1]), ([1, 0], [0, 0])][row // 2]
        question, question_keep = [([7, 0], [1, 0]), ([8, 9], [1, 1])][row // 4]
        tokens.append([200 + 10 * row, 6, *first, *question, 5])
        keep.append([row != 5, 1, *first_keep, *question_keep, 1])
    check(make_path(plan, QUESTIONS, TURNS, FAN_OUT), (tokens, keep))


def test_frames_are_filled_up_at_the_end():
    frame = make_frame([[3, 4], [], [5, 6, 7]], 3)
    check([frame], ([[3, 4, 0], [0, 0, 0], [5, 6, 7]], [[1, 1, 0], [0, 0, 0], [1, 1, 1]]))
    assert frame.tokens_NS.dtype == jnp.int32 and frame.keep_NS.dtype == bool


def test_a_frame_takes_the_shortest_length_that_holds_its_rows():
    """Of 17: 17, 9, 5, 3."""
    lengths = [choose_length(17, needed, 4) for needed in (0, 3, 4, 5, 6, 9, 10, 17)]
    assert lengths == [3, 3, 5, 5, 9, 9, 17, 17]
    assert choose_length(17, 1, 1) == 17 and choose_length(1, 1, 3) == 1


def test_a_row_longer_than_its_frame_is_refused():
    with pytest.raises(ValueError, match="a row of 4 tokens does not fit a frame of 3"):
        make_frame([[1], [1, 2, 3, 4]], 3)
