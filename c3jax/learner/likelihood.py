"""How likely a problem's right answer is after each message: what credit by information gain is made of.

The last turn's role reads the answer in its own message's place, in the context that it would have if the later turns
before it had the null message. It is read by the policy that drew the messages, when all of them are there: numbers
come of it, and no message.

Source: arXiv:2510.14967.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from c3jax.config.run import Sampling
from c3jax.learner.forward import compute_message_logp
from c3jax.models import sharding
from c3jax.models.policy import Policy, Weights, make_model
from c3jax.protocol import TurnPlan
from c3jax.rollout import context
from c3jax.rollout.branches import fill_null
from c3jax.types import FanOut, Messages, Rollout


class ReadAnswers(Protocol):
    """The jitted reading of right answers after trees' messages."""

    def __call__(
        self, weights: Weights, rollout: Rollout, answers: Messages, fan_out: FanOut
    ) -> tuple[Rollout, jax.Array]:
        """Read a problem's answer before each of its messages.

        Args:
          weights: of the policy that drew the trees.
          rollout: the trees.
          answers: a message a problem, all of it in `sampled_NT`, the answer in it in `content_NT`.
          fan_out: of the trees; static.

        Returns:
          The trees with the `likelihood_N` of their messages, and how many tokens were run through the model.
        """
        ...


def make_answer_reader(
    policy: Policy,
    plans: Sequence[TurnPlan],
    null: tuple[int, ...],
    temperature: float,
    mesh: sharding.Mesh | None = None,
) -> ReadAnswers:
    """Make the jitted read(weights, rollout, answers, fan_out).

    Args:
      policy, plans: the team's; no turn is an environment's.
      null: tokens of the null message.
      temperature: of the distribution that answers are read under, which is not truncated.
      mesh: over which weights and problems are laid; None for one device.
    """

    def read_own(weights: Weights, rollout: Rollout, answers: Messages, fan_out: FanOut) -> tuple[Rollout, jax.Array]:
        model, problems = make_model(policy, weights, plans[-1].role), len(rollout.question.tokens_NS)
        turns, tokens = [], jnp.int32(0)
        for turn, messages in enumerate(rollout.turns):
            starts = math.prod(fan_out[:turn])
            nulls = [fill_null(later, problems * starts, null) for later in rollout.turns[turn:]]
            shape = (*fan_out[:turn], *(1,) * (len(plans) - turn))
            path = context.make_path(plans[-1], rollout.question, (*rollout.turns[:turn], *nulls), shape)
            read = jax.tree.map(lambda array, starts=starts: jnp.repeat(array, starts, axis=0), answers)
            logp_NT = compute_message_logp(model, path, read, Sampling(temperature=temperature))
            total_N = jnp.sum(jnp.where(read.content_NT, logp_NT, 0.0), axis=1)
            chance_N = jnp.exp(total_N / jnp.maximum(read.content_NT.sum(axis=1), 1))
            turns.append(messages._replace(likelihood_N=jnp.repeat(chance_N, fan_out[turn])))
            tokens += sum(frame.keep_NS.sum() for frame in path) + read.sampled_NT.sum()
        return rollout._replace(turns=tuple(turns)), sharding.add_up(mesh, tokens)

    def read(weights: Weights, rollout: Rollout, answers: Messages, fan_out: FanOut) -> tuple[Rollout, jax.Array]:
        def read_part(weights: Weights, rollout: Rollout, answers: Messages) -> tuple[Rollout, jax.Array]:
            return read_own(weights, rollout, answers, fan_out)

        cut = (sharding.cut_weights(weights), sharding.CUT, sharding.CUT)
        mapped = sharding.map_problems(mesh, read_part, cut, (sharding.CUT, sharding.WHOLE))
        return mapped(weights, rollout, answers)

    return jax.jit(read, static_argnames="fan_out")  # pyright: ignore[reportReturnType]
