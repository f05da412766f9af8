"""Policies over the messages of an enumerable game: a table of logits, or a small network on the problem's features.

A policy is a pair of pure functions. Its parameters are a tuple with an entry for each turn, so turns share nothing.
Turns that are not trained start, and without a gradient stay, uniform.

Dimension key: N row    K turn    M message of a turn    F feature of the problem    I input    H hidden unit
    C context of a turn
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from c3jax.lab.games import Game, GameShape

Params = Any


class GamePolicy(NamedTuple):
    """How teams choose their messages."""

    init: Callable[[jax.Array], Params]  # key -> params
    logits: Callable[[Params, Game, int, jax.Array], jax.Array]  # (params, game, turn, prefix_NK) -> logits_NM


def count_contexts(shape: GameShape, turn: int) -> int:
    """Number of contexts of a turn of one problem (C_u): of what the turns it reads can say."""
    return math.prod(shape.messages[seen] for seen in shape.sees[turn])


def context_index(shape: GameShape, turn: int, prefix_NK: jax.Array) -> jax.Array:
    """Each row's context, numbered in mixed radix over the messages that the turn reads, the last one fastest.

    Args:
      shape, turn: static.
      prefix_NK: int32, messages before the turn; others are not read.

    Returns:
      [N] int32, below `count_contexts`.
    """
    index_N = jnp.zeros(prefix_NK.shape[0], jnp.int32)
    for seen in shape.sees[turn]:
        index_N = index_N * shape.messages[seen] + prefix_NK[:, seen]
    return index_N


def list_contexts(shape: GameShape, turn: int) -> np.ndarray:
    """A prefix for every context of a turn, numbered as `context_index` does; messages not read are 0.

    Returns:
      [C_u, K] int32, on the host.
    """
    count = count_contexts(shape, turn)
    prefix_CK = np.zeros((count, len(shape.messages)), np.int32)
    if shape.sees[turn]:
        radices = tuple(shape.messages[seen] for seen in shape.sees[turn])
        prefix_CK[:, list(shape.sees[turn])] = np.stack(np.unravel_index(np.arange(count), radices), axis=1)
    return prefix_CK


def make_tabular(shape: GameShape, problems: int, scale: float) -> GamePolicy:
    """A table of logits: params[u] is [problems, C_u, M], read at (game.index, context).

    Args:
      problems: game.index must stay below it.
      scale: standard deviation of a trained turn's initial logits; 0 starts uniform.
    """
    M = max(shape.messages)

    def init(key: jax.Array) -> Params:
        sizes = [(problems, count_contexts(shape, turn), M) for turn in range(len(shape.messages))]
        ends = list(itertools.accumulate(math.prod(size) for size in sizes))
        drawn = jnp.split(scale * jax.random.normal(key, (ends[-1],)), ends[:-1])
        return tuple(
            entries.reshape(size) if is_trained else jnp.zeros(size)
            for entries, size, is_trained in zip(drawn, sizes, shape.trained, strict=True)
        )

    def logits(params: Params, game: Game, turn: int, prefix_NK: jax.Array) -> jax.Array:
        logits_NM = params[turn][game.index, context_index(shape, turn, prefix_NK)]
        return _keep_sayable(shape, turn, logits_NM)

    return GamePolicy(init, logits)


class Layers(NamedTuple):
    """One turn's network: softmax(output_HM^T tanh(hidden_IH^T x + bias_H) + bias_M)."""

    hidden_IH: jax.Array
    bias_H: jax.Array
    output_HM: jax.Array
    bias_M: jax.Array


def make_mlp(shape: GameShape, features: int, width: int) -> GamePolicy:
    """A network with one hidden layer for each turn, on the problem's features and the messages read, one-hot.

    params[u] is a `Layers`. The output starts at zero, so the policy starts uniform.

    Args:
      features: F, of the problems.
      width: hidden units.
    """
    M = max(shape.messages)

    def init(key: jax.Array) -> Params:
        def make_layers(key: jax.Array, turn: int) -> Layers:
            size = features + sum(shape.messages[seen] for seen in shape.sees[turn])
            hidden_IH = jax.random.normal(key, (size, width)) / math.sqrt(size)
            return Layers(hidden_IH, jnp.zeros(width), jnp.zeros((width, M)), jnp.zeros(M))

        keys = jax.random.split(key, len(shape.messages))
        return tuple(make_layers(keys[turn], turn) for turn in range(len(shape.messages)))

    def logits(params: Params, game: Game, turn: int, prefix_NK: jax.Array) -> jax.Array:
        chex.assert_shape(game.feature_F, (features,))
        feature_NF = jnp.broadcast_to(game.feature_F, (prefix_NK.shape[0], features))
        read = [jax.nn.one_hot(prefix_NK[:, seen], shape.messages[seen]) for seen in shape.sees[turn]]
        layers = params[turn]
        hidden_NH = jnp.tanh(jnp.concatenate([feature_NF, *read], axis=1) @ layers.hidden_IH + layers.bias_H)
        return _keep_sayable(shape, turn, hidden_NH @ layers.output_HM + layers.bias_M)

    return GamePolicy(init, logits)


def _keep_sayable(shape: GameShape, turn: int, logits_NM: jax.Array) -> jax.Array:
    is_sayable_M = np.arange(logits_NM.shape[-1]) < shape.messages[turn]
    return jnp.where(is_sayable_M, logits_NM, -jnp.inf)
