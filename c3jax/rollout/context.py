"""Contexts as paths of frames: a turn's plan filled with the questions and the messages so far."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from c3jax import protocol as protocol_lib
from c3jax.types import Frame, Messages


def make_path(
    plan: protocol_lib.TurnPlan, question: Frame, turns: Sequence[Messages], fan_out: Sequence[int]
) -> tuple[Frame, ...]:
    """The frames of a turn's context, coarse to fine.

    Args:
      plan: the turn.
      question: the questions' frame [P, S].
      turns: messages of the earlier turns, P * f0 * ... * fd rows each.
      fan_out: alternatives a turn.

    Returns:
      Frames, each with the rows of its level; of one question the text that all share is in the next frame, where that
      too has one row: fewer frames are fewer programs of attention.
    """
    problems, plans = question.tokens_NS.shape[0], plan.frames
    if len(plans) > 1 and plans[0].level == 0 and protocol_lib.rows_of(plans[1].level, problems, fan_out) == 1:
        first, second, *rest = plans
        plans = (protocol_lib.FramePlan(second.level, (*first.pieces, *second.pieces)), *rest)
    return tuple(_fill_frame(frame, question, turns, problems, fan_out) for frame in plans)


def _fill_frame(
    plan: protocol_lib.FramePlan, question: Frame, turns: Sequence[Messages], problems: int, fan_out: Sequence[int]
) -> Frame:
    rows = protocol_lib.rows_of(plan.level, problems, fan_out)
    tokens, keeps = [], []
    for piece in plan.pieces:
        if isinstance(piece, protocol_lib.Literal):
            piece_tokens = jnp.asarray(piece.tokens, jnp.int32)[None]
            piece_keep = jnp.ones(piece_tokens.shape, bool)
        elif piece.level == protocol_lib.QUESTION_LEVEL:
            piece_tokens, piece_keep = question
        else:
            message = turns[piece.level - protocol_lib.FIRST_TURN_LEVEL]
            piece_tokens, piece_keep = compact(message, piece.tokens)
        repeats = rows // piece_tokens.shape[0]
        tokens.append(jnp.repeat(piece_tokens, repeats, axis=0))
        keeps.append(jnp.repeat(piece_keep, repeats, axis=0))
    return Frame(jnp.concatenate(tokens, axis=1), jnp.concatenate(keeps, axis=1))


def compact(messages: Messages, most: int | None) -> Frame:
    """What others read of messages, as a context holds it.

    Args:
      messages: N of them.
      most: slots that hold their content, which is then moved to the first of them; None leaves all where they are.

    Returns:
      The frame [N, most], or [N, T].
    """
    tokens_NT, keep_NT = messages.tokens_NT, messages.content_NT
    if most is None or most >= tokens_NT.shape[1]:
        return Frame(tokens_NT, keep_NT)
    order_NS = jnp.argsort(~keep_NT, axis=1, stable=True)[:, :most]
    return Frame(*(jnp.take_along_axis(array_NT, order_NS, axis=1) for array_NT in (tokens_NT, keep_NT)))


def choose_length(full: int, needed: int, lengths: int) -> int:
    """The shortest of full, full / 2, full / 4, ... that holds what is needed.

    Args:
      full: the longest, slots.
      needed: at most full.
      lengths: how many there are, each rounded up.
    """
    return min(length for times in range(lengths) if (length := halve(full, times)) >= needed)


def halve(full: int, times: int) -> int:
    """A number halved, rounded up.

    Args:
      full: the number.
      times: how often.
    """
    return -(-full // 2**times)


def make_frame(rows: Sequence[Sequence[int]], length: int) -> Frame:
    """Token lists as one frame, padded at the end.

    Args:
      rows: N lists of tokens.
      length: slots of the frame (S).

    Returns:
      The frame [N, S].

    Raises:
      ValueError: where a row is longer.
    """
    tokens = np.zeros((len(rows), length), np.int32)
    keep = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"a row of {len(row)} tokens does not fit a frame of {length}")
        tokens[index, : len(row)] = row
        keep[index, : len(row)] = True
    return Frame(jnp.asarray(tokens), jnp.asarray(keep))
