"""Randomness as an address: a draw's key depends on what is drawn, never on its row in a batch.

A message's key is folded from (seed, stream, step, problem, turn, alternative), a token's from its message's key and
its slot. So a resumed run is the uninterrupted one, micro-batches change nothing, and a recorded node can be replayed.

Dimension key: P problem    N message of one turn of all problems
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Streams keep draws of different uses apart under one seed.
TRAIN, EVALUATE, INIT, IMITATE, ORDER, ASK, ADAPT = range(7)


def make_stream(seed: int | jax.Array, stream: int) -> jax.Array:
    """The root key of one use of randomness.

    Args:
      seed: of the run.
      stream: one of the constants above.
    """
    return jax.random.fold_in(jax.random.key(seed), stream)


def make_step_key(seed: int, stream: int, step: int) -> jax.Array:
    """Key of all draws of a step, or an update, of a stream.

    Args:
      seed: of the run.
      stream: one of those above.
      step: from 0.
    """
    return jax.random.fold_in(make_stream(seed, stream), step)


def fold_messages(
    key: jax.Array, problem_P: jax.Array, turn: int, alternatives: int, first: int | jax.Array = 0
) -> jax.Array:
    """Keys of one turn's messages, in path order.

    Args:
      key: the step's key.
      problem_P: each problem's index in its set.
      turn: index of the turn in the protocol.
      alternatives: messages of this turn per problem, f0 * ... * fd.
      first: number of the first of them, where they are not all that are drawn of the turn.

    Returns:
      key_N, N = P * alternatives.
    """

    def fold(problem: jax.Array, alternative: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, problem), turn), alternative)

    of_problem = jax.vmap(fold, in_axes=(None, 0))
    keys = jax.vmap(of_problem, in_axes=(0, None))(problem_P, first + jnp.arange(alternatives))
    return keys.reshape(-1)


def draw_uniform(key_N: jax.Array, slot: jax.Array) -> jax.Array:
    """One uniform number in [0, 1) for each message's token in a slot.

    Args:
      key_N: the messages' keys.
      slot: of the token, from 0.

    Returns:
      uniform_N, f32.
    """
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, slot)))(key_N)
