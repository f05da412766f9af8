"""The rollout tree: every level of every problem's tree, in one jitted call.

Turn d draws fan_out[d] alternatives at each context. Assumption that code cannot check: `params` are those of the
policy that the messages will be used to update, so alternatives are i.i.d. from it at a context held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from c3jax.config import Sampling
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
    graphdef: nnx.GraphDef,
    plans: Sequence[TurnPlan],
    fan_out: Sequence[int],
    sampling: Sampling,
    stop_tokens: tuple[int, ...],
) -> Callable[[dict, Frame, jax.Array, jax.Array], tuple[Rollout, RolloutCounts]]:
    """Make the jitted sample_tree(params, question, key, problem_P).

    It takes the questions' frame [P, S], the step's key and the problems' indices, and gives a tree per problem.
    """

    @jax.jit
    def sample_tree(
        params: dict, question: Frame, key: jax.Array, problem_P: jax.Array
    ) -> tuple[Rollout, RolloutCounts]:
        model = nnx.merge(graphdef, params)
        turns: tuple[Messages, ...] = ()
        prefilled = jnp.int32(0)
        for place, plan in enumerate(plans):
            path = context.make_path(plan, question, turns, fan_out)
            prefilled += sum(frame.keep_NS.sum() for frame in path)
            keys = address.fold_messages(key, problem_P, place, math.prod(fan_out[: place + 1]))
            drawn = decode.sample_messages(model, path, keys, plan.max_tokens, sampling, stop_tokens)
            turns = (*turns, drawn)
        generated = jnp.stack([turn.sampled_NT.sum() for turn in turns]).sum()
        truncated = jnp.stack([turn.truncated_N.sum() for turn in turns]).sum()
        messages = jnp.int32(sum(turn.truncated_N.size for turn in turns))
        return Rollout(question, turns), RolloutCounts(prefilled, generated, truncated, messages)

    return sample_tree


def take_problems(tree: Any, problems: int, problem_B: jax.Array) -> Any:
    """Some problems' rows of every array of a tree whose first axis is a batch of problems in path order."""

    def take(array: jax.Array) -> jax.Array:
        per_problem = array.shape[0] // problems
        row_BM = problem_B[:, None] * per_problem + jnp.arange(per_problem)
        return array[row_BM.reshape(-1)]

    return jax.tree.map(take, tree)
