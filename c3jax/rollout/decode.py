"""The decoding loop: all messages of one turn, drawn together over a shared context.

A row that has stopped costs as much as one that has not. So the loop may run in rounds: when half of the rows have
stopped, the others continue by themselves in a batch of half the size, and so on. Draws are addressed, so a row's
message is, but for rounding, the one that it would have in the whole batch.

Dimension key beside types.py: N row of a round    M row of the context's finest frame
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from c3jax.config.run import Sampling
from c3jax.models.attention import Rows
from c3jax.models.decoder import Decoder
from c3jax.rollout import address, context
from c3jax.rollout import sampling as sampling_lib
from c3jax.types import Frame, KeysValues, Messages


class _Loop(NamedTuple):
    slot: jax.Array  # of the next token: tokens drawn so far
    messages: Messages
    stopped_N: jax.Array
    # The message's own keys and values, a slot a drawn token: [N, H, T, D] of each layer, or stacked.
    key: jax.Array | tuple[jax.Array, ...]
    value: jax.Array | tuple[jax.Array, ...]


class _Decoding(NamedTuple):
    """What is the same in every round."""

    model: Decoder
    layers: Any  # stacked, or a tuple of them
    past: tuple[KeysValues, ...]
    max_tokens: int
    sampling: Sampling
    stop_tokens: tuple[int, ...]


def prefill(model: Decoder, path: Sequence[Frame]) -> tuple[tuple[KeysValues, ...], jax.Array]:
    """Run a context's frames.

    Args:
      model: the network of the role that is to speak.
      path: the frames, coarse to fine.

    Returns:
      Their keys and values, and hidden_MD, the last hidden state of the finest, f32.
    """
    [hidden], [past] = model.extend_paths((), [path])
    return past, hidden[-1][:, -1]  # a context ends in prompt text, so its last slot is kept


def sample_messages(  # noqa: PLR0913
    model: Decoder,
    path: Sequence[Frame],
    key_N: jax.Array,
    max_tokens: int,
    sampling: Sampling,
    stop_tokens: tuple[int, ...],
    batches: int = 1,
    skipped_N: jax.Array | None = None,
    keeps_gradients: bool = False,
) -> Messages:
    """Draw one message a key. The loop ends when every row has stopped.

    Args:
      model: the network of the role that speaks.
      path: the context's frames; the finest has N / n rows, so n neighbouring keys share each of its rows.
      key_N: keys by address, one a message.
      max_tokens: slots of a message (T), the stop token included.
      sampling: how tokens are drawn.
      stop_tokens: what ends a message.
      batches: sizes of the batch that are compiled: all rows, half of them, a quarter, ...
      skipped_N: rows in which nothing is said; None for none.
      keeps_gradients: whether the messages have their `gradient_N`.

    Returns:
      The messages, N rows.
    """
    model = model.gather_tables()
    past, hidden_MD = prefill(model, path)
    rows = key_N.shape[0]
    logits_NV = jnp.repeat(model.compute_logits(hidden_MD), rows // hidden_MD.shape[0], axis=0)
    past = past if model.spec.scans_decoding else _unstack_past(past)
    fixed = _Decoding(model, model.prepare_layers(), past, max_tokens, sampling, stop_tokens)
    loop = _start(past[-1], rows, max_tokens, sampling, keeps_gradients)
    loop = loop if skipped_N is None else loop._replace(stopped_N=skipped_N)
    loop = _draw(loop, logits_NV, key_N, sampling, stop_tokens)
    sizes = list_sizes(rows, batches)
    loop = _run_round(fixed, loop, key_N, None, sizes[1])
    messages, stopped_N, row_N = loop.messages, loop.stopped_N, jnp.arange(rows)
    for size, smaller in itertools.pairwise(sizes[1:]):
        # Rows that have not stopped first, in their order; what fills the batch up is written back as it was.
        chosen = jnp.argsort(loop.stopped_N, stable=True)[:size]
        loop = _take_rows(loop, chosen)
        row_N = row_N[chosen]
        loop = _run_round(fixed, loop, key_N[row_N], Rows(row_N, rows), smaller)
        messages = jax.tree.map(lambda whole, part, at=row_N: whole.at[at].set(part), messages, loop.messages)
        stopped_N = stopped_N.at[row_N].set(loop.stopped_N)
    return messages._replace(truncated_N=~stopped_N)


def list_sizes(rows: int, batches: int) -> list[int]:
    """Sizes of the batch, round by round, and 0, at which the last one ends.

    Args:
      rows: messages to draw.
      batches: how many sizes may be compiled.
    """
    sizes = [context.halve(rows, times) for times in range(batches)]
    return [*dict.fromkeys(sizes), 0]


def _take_rows(loop: _Loop, chosen_N: jax.Array) -> _Loop:
    messages, stopped_N = jax.tree.map(lambda array: array[chosen_N], (loop.messages, loop.stopped_N))
    # [N, H, T, D], or with the layers before it
    key, value = jax.tree.map(lambda array: jnp.take(array, chosen_N, axis=array.ndim - 4), (loop.key, loop.value))
    return _Loop(loop.slot, messages, stopped_N, key, value)


def _run_round(fixed: _Decoding, loop: _Loop, key_N: jax.Array, rows: Rows | None, enough: int) -> _Loop:
    """Draw until at most so many rows have not stopped, or no slot is left."""
    model, max_tokens = fixed.model, fixed.max_tokens

    def has_more(loop: _Loop) -> jax.Array:
        return (loop.slot < max_tokens) & (jnp.sum(~loop.stopped_N) > enough)

    def advance(loop: _Loop) -> _Loop:
        last = loop.slot - 1
        token_N1 = jax.lax.dynamic_slice_in_dim(loop.messages.tokens_NT, last, 1, axis=1)
        keep_N1 = jax.lax.dynamic_slice_in_dim(loop.messages.content_NT, last, 1, axis=1)
        written_NT = loop.messages.content_NT & (jnp.arange(max_tokens) < last)
        own = KeysValues(loop.key, loop.value, written_NT)
        hidden_NSD, new = model.extend((*fixed.past, own), Frame(token_N1, keep_N1), fixed.layers, rows)

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, last, axis=old.ndim - 2)

        loop = loop._replace(
            key=jax.tree.map(write, loop.key, new.key_LNHSD), value=jax.tree.map(write, loop.value, new.value_LNHSD)
        )
        return _draw(loop, model.compute_logits(hidden_NSD[:, 0]), key_N, fixed.sampling, fixed.stop_tokens)

    return jax.lax.while_loop(has_more, advance, loop)


def _unstack_past(past: tuple[KeysValues, ...]) -> tuple[KeysValues, ...]:
    """Keys and values as a tuple of layers, cut once and not in every turn of the loop."""
    cut = tuple(KeysValues(tuple(p.key_LNHSD), tuple(p.value_LNHSD), p.keep_NS) for p in past)
    return jax.lax.optimization_barrier(cut)


def _start(like: KeysValues, rows: int, max_tokens: int, sampling: Sampling, keeps_gradients: bool) -> _Loop:
    def make_empty(like: jax.Array) -> jax.Array:
        *layers, _, heads, _, size = like.shape
        return jnp.zeros((*layers, rows, heads, max_tokens, size), like.dtype)

    empty = jax.tree.map(make_empty, like.key_LNHSD)
    messages = Messages(
        tokens_NT=jnp.zeros((rows, max_tokens), jnp.int32),
        content_NT=jnp.zeros((rows, max_tokens), bool),
        sampled_NT=jnp.zeros((rows, max_tokens), bool),
        behaviour_logp_NT=jnp.zeros((rows, max_tokens), jnp.float32),
        support_NTK=jnp.full((rows, max_tokens, sampling.top_k), -1, jnp.int32),
        truncated_N=jnp.zeros(rows, bool),
        gradient_N=jnp.zeros(rows, jnp.float32) if keeps_gradients else None,
    )
    return _Loop(jnp.int32(0), messages, jnp.zeros(rows, bool), empty, empty)


def _draw(
    loop: _Loop, logits_NV: jax.Array, key_N: jax.Array, sampling: Sampling, stop_tokens: tuple[int, ...]
) -> _Loop:
    uniform_N = address.draw_uniform(key_N, loop.slot)
    token_N, logp_N, support_NK, gradient_N = sampling_lib.sample_tokens(logits_NV, uniform_N, sampling)
    alive_N = ~loop.stopped_N
    is_stop_N = jnp.isin(token_N, jnp.asarray(stop_tokens, jnp.int32))
    missing = sampling.top_k - support_NK.shape[1]  # a vocabulary smaller than top_k
    support_NK = jnp.pad(support_NK, ((0, 0), (0, missing)), constant_values=-1)

    def write(array: jax.Array, column: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(array, column[:, None], loop.slot, axis=1)

    messages = loop.messages
    messages = messages._replace(
        tokens_NT=write(messages.tokens_NT, jnp.where(alive_N, token_N, 0)),
        content_NT=write(messages.content_NT, alive_N & ~is_stop_N),
        sampled_NT=write(messages.sampled_NT, alive_N),
        behaviour_logp_NT=write(messages.behaviour_logp_NT, jnp.where(alive_N, logp_N, 0.0)),
        support_NTK=write(messages.support_NTK, jnp.where(alive_N[:, None], support_NK, -1)),
    )
    if messages.gradient_N is not None:
        messages = messages._replace(gradient_N=messages.gradient_N + jnp.where(alive_N, gradient_N, 0.0))
    return loop._replace(slot=loop.slot + 1, messages=messages, stopped_N=loop.stopped_N | is_stop_N)
