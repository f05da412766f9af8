"""The rollout tree: every level of every problem's tree, in one jitted call.

Turn d draws fan_out[d] alternatives at each context. Assumption that code cannot check: the weights are those of the
policy that the messages will be used to update, so alternatives are i.i.d. from it at a context held fixed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.config.run import Sampling
from c3jax.models import sharding
from c3jax.models.policy import Policy, Weights, make_model
from c3jax.protocol import TurnPlan
from c3jax.rollout import address, context, decode, visible
from c3jax.types import FanOut, Frame, Messages, Rollout

Arrays = TypeVar("Arrays")


class RolloutCounts(NamedTuple):
    """Tokens a rollout really cost."""

    prefilled: jax.Array  # kept context tokens run through the model
    generated: jax.Array  # tokens drawn, stop tokens included
    truncated: jax.Array  # messages that met the token limit
    messages: jax.Array
    hidden: jax.Array  # messages of which others read nothing, in turns that are read in part


class TreeSampler(Protocol):
    """The jitted sampling of trees."""

    def __call__(  # noqa: PLR0913
        self,
        weights: Weights,
        question: Frame,
        key: jax.Array,
        problem_P: jax.Array,
        fan_out: FanOut,
        given: tuple[Messages, ...] = (),
        first: tuple[int, ...] = (),
    ) -> tuple[Rollout, RolloutCounts]:
        """Draw a tree a problem.

        Args:
          weights: of the policy.
          question: the questions' frame [P, S].
          key: the step's.
          problem_P: each problem's index in its set, by which its draws are addressed.
          fan_out: alternatives a turn draws at each context; static, so that another one is another compilation.
          given: messages of the first turns, as many as fan_out says; these are not drawn.
          first: number of a problem's first message of each turn, by which it is addressed; 0 where not said.

        Returns:
          The trees, up to the first turn that an environment answers, and what they cost.
        """
        ...

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Trace it for arguments, of which arrays may be shapes; a later call that passes as many traces nothing."""
        ...

    def _cache_size(self) -> int: ...  # programs traced so far


def make_tree_sampler(
    policy: Policy,
    plans: Sequence[TurnPlan],
    sampling: Sampling,
    stop_tokens: tuple[int, ...],
    batches: int = 1,
    mesh: sharding.Mesh | None = None,
    keeps_gradients: bool = False,
) -> TreeSampler:
    """Make the jitted sample_tree(weights, question, key, problem_P, fan_out).

    Args:
      policy, plans: the team's.
      sampling: how tokens are drawn.
      stop_tokens: what ends a message.
      batches: sizes of the decoding batch that are compiled: all rows, half of them, a quarter, ...
      mesh: over which weights and problems are laid; None for one device.
      keeps_gradients: whether messages have their `gradient_N`, for a method of credit that reads it.

    Returns:
      The sampler.
    """

    def sample_own(  # noqa: PLR0913
        weights: Weights,
        question: Frame,
        key: jax.Array,
        problem_P: jax.Array,
        given: tuple[Messages, ...],
        first: tuple[int, ...],
        fan_out: FanOut,
    ) -> tuple[Rollout, RolloutCounts]:
        turns, prefilled = given, jnp.int32(0)
        for turn, plan in list(enumerate(plans))[len(given) :]:
            if plan.is_environment:
                break
            path = context.make_path(plan, question, turns, fan_out)
            prefilled += sum(frame.keep_NS.sum() for frame in path)
            alternatives, number = math.prod(fan_out[: turn + 1]), first[turn] if first else 0
            keys = address.fold_messages(key, problem_P, turn, alternatives, number)
            model = make_model(policy, weights, plan.role)
            skipped_N = find_skipped(plan, turns, len(problem_P) * alternatives)
            slots = plan.max_tokens
            how = (slots, sampling, stop_tokens, batches, skipped_N, keeps_gradients)
            drawn = decode.sample_messages(model, path, keys, *how)
            turns = (*turns, visible.narrow_content(plan, drawn))
        spoken = turns[len(given) :]
        generated = sum((messages.sampled_NT.sum() for messages in spoken), jnp.int32(0))
        truncated = sum((messages.truncated_N.sum() for messages in spoken), jnp.int32(0))
        total = jnp.int32(sum(messages.truncated_N.size for messages in spoken))
        hidden = sum(map(visible.count_hidden, plans[len(given) :], spoken), jnp.int32(0))
        counts = RolloutCounts(prefilled, generated, truncated, total, hidden)
        return Rollout(question, turns), sharding.add_up(mesh, counts)

    def sample_tree(  # noqa: PLR0913
        weights: Weights,
        question: Frame,
        key: jax.Array,
        problem_P: jax.Array,
        fan_out: FanOut,
        given: tuple[Messages, ...] = (),
        first: tuple[int, ...] = (),
    ) -> tuple[Rollout, RolloutCounts]:
        cut = (sharding.cut_weights(weights), sharding.CUT, sharding.WHOLE, sharding.CUT, sharding.CUT, sharding.WHOLE)
        sample = functools.partial(sample_own, fan_out=fan_out)
        mapped = sharding.map_problems(mesh, sample, cut, (sharding.CUT, sharding.WHOLE))
        return mapped(weights, question, key, problem_P, given, first)

    return jax.jit(sample_tree, static_argnames="fan_out")  # pyright: ignore[reportReturnType]


def find_skipped(plan: TurnPlan, turns: Sequence[Messages], rows: int) -> jax.Array | None:
    """Which rows of a turn stay empty because an environment has ended their episode.

    Args:
      plan: the turn.
      turns: messages of the turns before.
      rows: of the turn (N).

    Returns:
      skipped_N, bool; None where the turn is never left out.
    """
    ends = [observed.done_N for turn in plan.skipped_by if (observed := turns[turn].observed) is not None]
    if not ends:
        return None
    return functools.reduce(jnp.logical_or, (jnp.repeat(done_N, rows // len(done_N)) for done_N in ends))


def trim_messages(rollouts: Sequence[Rollout], lengths: int) -> tuple[Rollout, ...]:
    """The same trees with messages cut to a share of their slots that holds them all: 1, 1/2, 1/4, ...

    One share for all turns, so that what is compiled for the trees' shapes is compiled that often.

    Args:
      rollouts: trees as sampled.
      lengths: how many shares there are; with one nothing is cut, and nothing is waited for.
    """
    if lengths == 1:
        return tuple(rollouts)
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    # Rows are filled from their start; of what an environment says nothing was sampled.
    filled = [turn.sampled_NT if turn.observed is None else turn.content_NT for turn in turns]
    needed = [int(filled_NT.any(axis=0).sum()) for filled_NT in filled]
    full = [turn.tokens_NT.shape[1] for turn in turns]
    fits = [
        times
        for times in range(lengths)
        if all(context.halve(slots, times) >= need for slots, need in zip(full, needed, strict=True))
    ]

    def cut(turn: Messages) -> Messages:
        kept = context.halve(turn.tokens_NT.shape[1], max(fits))
        return jax.tree.map(lambda array: array[:, :kept] if array.ndim > 1 else array, turn)

    return tuple(rollout._replace(turns=tuple(map(cut, rollout.turns))) for rollout in rollouts)


def take_problems(arrays: Arrays, problems: int, problem_B: jax.Array | np.ndarray) -> Arrays:
    """Some problems' rows of every array, on the device or on the host.

    Args:
      arrays: a tree of them, whose first axis is a batch of problems, in path order.
      problems: of the batch.
      problem_B: which are taken, in this order.
    """

    def take(array: jax.Array) -> jax.Array:
        per_problem = array.shape[0] // problems
        row_BM = problem_B[:, None] * per_problem + np.arange(per_problem)
        return array[row_BM.reshape(-1)]

    return jax.tree.map(take, arrays)
