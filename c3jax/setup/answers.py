"""Right answers as the last turn's messages, for a method that reads how likely they are."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from c3jax.learner.likelihood import ReadAnswers, make_answer_reader
from c3jax.models.policy import Weights
from c3jax.rollout.context import choose_length, make_frame
from c3jax.setup.team import Setup, encode_null
from c3jax.types import FanOut, Frame, Messages, Problem, Rollout, UserError


def make_reader(setup: Setup) -> ReadAnswers:
    """Make what reads the right answers of a run's problems.

    Args:
      setup: of a run whose task writes answers.

    Raises:
      UserError: a training problem has no answer that can be read.
    """
    _encode_answers(setup, setup.train.problems)
    temperature = setup.config.sampling.temperature
    return make_answer_reader(setup.policy, setup.plans, encode_null(setup), temperature, setup.mesh)


def outline_reading(
    read: ReadAnswers, weights: Weights, rollout: Rollout, fan_out: FanOut
) -> tuple[tuple[Rollout, Messages], Rollout]:
    """Shapes of what answers are read after, the answers among them, and of the trees then.

    Args:
      read: from `make_reader`.
      weights, rollout: shapes of them.
      fan_out: of the trees.
    """
    rows, slots = len(rollout.question.tokens_NS), rollout.turns[-1].tokens_NT.shape[1]

    def make() -> Messages:
        frame = make_frame([[]] * rows, slots)
        return _make_messages(frame, frame.keep_NS)

    asked = (rollout, jax.eval_shape(make))
    return asked, jax.eval_shape(functools.partial(read, fan_out=fan_out), weights, *asked)[0]


def make_answers(setup: Setup, problems: Sequence[Problem], lengths: int = 1) -> Messages:
    """Messages that are right, one a problem; the answer alone is their content.

    Args:
      setup: of a run whose task writes answers.
      problems: whose they are.
      lengths: how many lengths are compiled; they have the shortest that holds them all.

    Raises:
      UserError: an answer is empty, or a message is longer than the last turn's may be.
    """
    rows = _encode_answers(setup, problems)
    slots = choose_length(setup.plans[-1].max_tokens, max(len(lead) + len(own) for lead, own in rows), lengths)
    frame = make_frame([lead + own for lead, own in rows], slots)
    before_N1 = jnp.array([[len(lead)] for lead, _ in rows])
    return _make_messages(frame, frame.keep_NS & (jnp.arange(slots) >= before_N1))


def _make_messages(frame: Frame, content_NT: jax.Array) -> Messages:
    """Messages of which nothing was drawn, that are read whole."""
    rows, slots = frame.tokens_NS.shape
    logp_NT, support_NTK = jnp.zeros((rows, slots)), jnp.zeros((rows, slots, 0), jnp.int32)
    return Messages(frame.tokens_NS, content_NT, frame.keep_NS, logp_NT, support_NTK, jnp.zeros(rows, bool))


def _encode_answers(setup: Setup, problems: Sequence[Problem]) -> list[tuple[list[int], list[int]]]:
    """Tokens of what comes before each answer, and of the answer."""
    write, encode, most = setup.task.write_answer, setup.tokenizer.encode_text, setup.plans[-1].max_tokens
    assert write is not None  # the config's checks see to it
    rows = []
    for problem in problems:
        lead, own = map(encode, write(problem))
        if not own or len(lead) + len(own) > most:
            wanted = f"1 to {most - len(lead)} tokens, as protocol.turns.{len(setup.plans) - 1}.max_tokens leaves"
            raise UserError(f"problem {problem.id}: expected a right answer of {wanted}, got {len(own)}")
        rows.append((lead, own))
    return rows
