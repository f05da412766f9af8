"""The rollout tree: every level of every problem's tree, in one jitted call.

Turn d draws fan_out[d] alternatives at each context. Assumption that code cannot check: the weights are those of the
policy that the messages will be used to update, so alternatives are i.i.d. from it at a context held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from c3jax.config.run import Sampling
from c3jax.models.policy import Policy, Weights, make_model
from c3jax.protocol import TurnPlan
from c3jax.rollout import address, context, decode
from c3jax.types import Frame, Messages, Rollout


class RolloutCounts(NamedTuple):
    """Tokens a rollout really cost."""

    prefilled: jax.Array  # kept context tokens run through the model
    generated: jax.Array  # tokens drawn, stop tokens included
    truncated: jax.Array  # messages that met the token limit
    messages: jax.Array


def make_tree_sampler(
    policy: Policy,
    plans: Sequence[TurnPlan],
    fan_out: Sequence[int],
    sampling: Sampling,
    stop_tokens: tuple[int, ...],
    batches: int = 1,
) -> Callable[[Weights, Frame, jax.Array, jax.Array], tuple[Rollout, RolloutCounts]]:
    """Make the jitted sample_tree(weights, question, key, problem_P), which decodes in `batches` sizes of batch.

    It takes the questions' frame [P, S], the step's key and the problems' indices, and gives a tree per problem.
    """

    @jax.jit
    def sample_tree(
        weights: Weights, question: Frame, key: jax.Array, problem_P: jax.Array
    ) -> tuple[Rollout, RolloutCounts]:
        turns: tuple[Messages, ...] = ()
        prefilled = jnp.int32(0)
        for place, plan in enumerate(plans):
            path = context.make_path(plan, question, turns, fan_out)
            prefilled += sum(frame.keep_NS.sum() for frame in path)
            keys = address.fold_messages(key, problem_P, place, math.prod(fan_out[: place + 1]))
            model = make_model(policy, weights, plan.role)
            drawn = decode.sample_messages(model, path, keys, plan.max_tokens, sampling, stop_tokens, batches)
            turns = (*turns, drawn)
        generated = jnp.stack([turn.sampled_NT.sum() for turn in turns]).sum()
        truncated = jnp.stack([turn.truncated_N.sum() for turn in turns]).sum()
        messages = jnp.int32(sum(turn.truncated_N.size for turn in turns))
        return Rollout(question, turns), RolloutCounts(prefilled, generated, truncated, messages)

    return sample_tree


def trim_messages(rollout: Rollout, lengths: int) -> Rollout:
    """The same trees with messages cut to a share of their slots that holds them all: 1, 1/2, 1/4, ... (so many).

    One share for all turns, so that what is compiled for a rollout's shapes is compiled that often.
    """
    if lengths == 1:
        return rollout  # and nothing is waited for
    needed = [int(turn.sampled_NT.any(axis=0).sum()) for turn in rollout.turns]  # rows are filled from their start
    full = [turn.tokens_NT.shape[1] for turn in rollout.turns]
    fits = [
        place
        for place in range(lengths)
        if all(context.halve(slots, place) >= need for slots, need in zip(full, needed, strict=True))
    ]
    kept = [context.halve(slots, max(fits)) for slots in full]
    turns = [
        jax.tree.map(lambda array, kept=kept: array[:, :kept] if array.ndim > 1 else array, turn)
        for turn, kept in zip(rollout.turns, kept, strict=True)
    ]
    return rollout._replace(turns=tuple(turns))


def take_problems(tree: Any, problems: int, problem_B: jax.Array) -> Any:
    """Some problems' rows of every array of a tree whose first axis is a batch of problems in path order."""

    def take(array: jax.Array) -> jax.Array:
        per_problem = array.shape[0] // problems
        row_BM = problem_B[:, None] * per_problem + jnp.arange(per_problem)
        return array[row_BM.reshape(-1)]

    return jax.tree.map(take, tree)
