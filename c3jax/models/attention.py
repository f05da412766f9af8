"""Attention of a frame's queries over a path of frames, coarse to fine.

A frame's keys and values are held once, however many finer rows read them, and attention over the whole path is the
exact softmax over all kept slots. It has two forms:

* Whole frames (prefill, training): for the time of one layer each row has its path's keys and values side by side,
  which are few beside the scores, and one loop goes over blocks of them. The backward pass computes the weights again
  from the log-sum-exp. So memory grows with the slots and not with their square, and a path has one program, not one
  for each of its frames.
* A decoded token: what it waits for is reading keys and values, so these stay where they lie. Each frame gives a
  partial result with its log-sum-exp, and these are merged by such weights (the identity behind FlashAttention,
  arXiv 2205.14135, section 3.1).

A window bounds how far back a query reads, by positions along the path: slots that hold no token do not count.

Dimension key beside types.py: M row of a coarser frame (N = M * finer rows each), G key and value head,
R query heads per key and value head, Q all queries of one (M, G), K key slot, W slot of a block of keys.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.models import fused
from c3jax.models.spec import Kernel

# Most scores of one block, 16 MB of them, but never fewer slots than the second, a TPU's lanes: decoding reads any
# frame in one block.
SCORE_FLOATS = 4_000_000
BLOCK_SLOTS = 128

# Finite, so that a frame of which nothing is kept merges with weight exp(-1e30) = 0 and never makes a NaN.
_MASKED = -1e30

_PAST = -1  # where the slots of a frame have their numbers, of those in frames before it


class Keys(NamedTuple):
    """Keys and values of one frame of a path."""

    key_MGKD: jax.Array
    value_MGKD: jax.Array
    keep_MK: jax.Array  # bool
    position_MK: jax.Array | None = None  # int32, on the row's path; only a window asks for it


class Rows(NamedTuple):
    """Some rows of a batch."""

    index_N: jax.Array  # int32
    total: int  # rows of the batch


class _Queries(NamedTuple):
    query_NGRSD: jax.Array
    position_NS: jax.Array | None
    window: jax.Array | None


class _Block(NamedTuple):
    key_MGWD: jax.Array
    value_MGWD: jax.Array
    keep_MW: jax.Array
    position_MW: jax.Array | None
    slot_W: jax.Array  # of the queries' own frame; _PAST in those before it, which all queries see


class _Form(NamedTuple):
    """What is known before anything is traced."""

    softcap: float | None
    score_floats: int


def attend_path(
    query_NGRSD: jax.Array,
    past: Sequence[Keys],
    own: Keys,
    window: jax.Array | None = None,
    softcap: float | None = None,
    score_floats: int = SCORE_FLOATS,
    kernel: Kernel | None = None,
) -> jax.Array:
    """Softmax attention over every kept slot of the past frames and, causally, of the own frame.

    Args:
      query_NGRSD: queries, scaled already.
      past: each coarser frame, of M rows that divide N.
      own: the queries' own frame, M = N.
      window: tokens that a query sees, itself among them (int32, no axes); without it a query sees all before it.
      softcap: with it a score s becomes softcap tanh(s / softcap).
      score_floats: most scores of one block.
      kernel: of models/fused.py, that takes the place of blocks for frames that fill its lanes, without a window.

    Returns:
      Attention output [N, G, R, S, D], f32.
    """
    if kernel is not None and window is None and own.keep_MK.shape[1] >= fused.LANES:
        keys, _ = _join_path(tuple(past), own)
        return fused.attend_fused(kernel, query_NGRSD, *keys[:3], softcap)
    return _attend(_Form(softcap, score_floats), _Queries(query_NGRSD, own.position_MK, window), tuple(past), own)


def attend_cached(
    query_NGRSD: jax.Array,
    past: Sequence[Keys],
    own: Keys,
    window: jax.Array | None = None,
    softcap: float | None = None,
    rows: Rows | None = None,
) -> jax.Array:
    """`attend_path` of a few queries a row: no frame's keys and values are copied. No gradient is taken of it.

    Args:
      query_NGRSD, past, own, window, softcap: as there; one past frame at least.
      rows: where only some rows of a batch are here, which they are; then the last past frame has just these rows,
        and the others those of the batch.
    """
    form, queries = _Form(softcap, SCORE_FLOATS), _Queries(query_NGRSD, own.position_MK, window)
    *coarse, last = past
    if rows is None:
        partials = [_attend_past(form, queries, frame) for frame in coarse]
    else:
        partials = [_attend_from(rows, form, queries, frame) for frame in coarse]
    partials += [_attend_past(form, queries, last), _attend_keys(form, queries, own, jnp.arange(own.keep_MK.shape[1]))]
    return _merge(partials)[0]


def _attend_from(rows: Rows, form: _Form, queries: _Queries, frame: Keys) -> tuple[jax.Array, jax.Array]:
    # Queries are put back to their rows of the batch, for which no key or value has to be copied: reading these is
    # what the attention of a decoding step waits for, and the products with rows that are not there are cheap.
    def spread(array: jax.Array) -> jax.Array:
        return jnp.zeros((rows.total, *array.shape[1:]), array.dtype).at[rows.index_N].set(array)

    query_NGRSD, position_NS, window = queries
    position_NS = None if position_NS is None else spread(position_NS)
    out, lse = _attend_past(form, _Queries(spread(query_NGRSD), position_NS, window), frame)
    return out[rows.index_N], lse[rows.index_N]


def _attend_past(form: _Form, queries: _Queries, frame: Keys) -> tuple[jax.Array, jax.Array]:
    return _attend_keys(form, queries, frame, jnp.full(frame.keep_MK.shape[1], _PAST))


def cap_softly(x: jax.Array, softcap: float | None) -> jax.Array:
    """softcap tanh(x / softcap), for scores and logits; x itself without a cap."""
    return x if softcap is None else softcap * jnp.tanh(x / softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: _Form, queries: _Queries, past: tuple[Keys, ...], own: Keys) -> jax.Array:
    return _attend_keys(form, queries, *_join_path(past, own))[0]


def _attend_forward(form: _Form, queries: _Queries, past: tuple[Keys, ...], own: Keys):
    out, lse = _attend_keys(form, queries, *_join_path(past, own))
    return out, (queries, past, own, out, lse)


def _attend_backward(form: _Form, kept: tuple, d_out: jax.Array):
    """Gradients, by dS = P (dP - sum over the path of P dP), and that sum is the product of output and its gradient."""
    queries, past, own, out, lse = kept
    delta = jnp.sum(d_out * out, axis=-1)
    d_query, *d_joined = _differentiate_keys(form, queries, d_out, lse, delta, *_join_path(past, own))
    d_keys, d_values = (_split_path(d_array, (*past, own)) for d_array in d_joined)
    *d_past, d_own = [
        frame._replace(key_MGKD=d_key, value_MGKD=d_value, keep_MK=None, position_MK=None)
        for frame, d_key, d_value in zip((*past, own), d_keys, d_values, strict=True)
    ]
    return _Queries(d_query.astype(queries.query_NGRSD.dtype), None, None), tuple(d_past), d_own


_attend.defvjp(_attend_forward, _attend_backward)


def _join_path(past: tuple[Keys, ...], own: Keys) -> tuple[Keys, jax.Array]:
    """The keys and values of each row's whole path, and of every slot its number in the own frame."""
    rows = len(own.keep_MK)

    def join(*arrays: jax.Array) -> jax.Array:
        axis = arrays[-1].ndim // 2  # of slots, in [M, K] and in [M, G, K, D]
        return jnp.concatenate([_repeat(array, rows // len(array)) for array in arrays], axis=axis)

    before = sum(frame.keep_MK.shape[1] for frame in past)
    slot_K = np.maximum(np.arange(before + own.keep_MK.shape[1]) - before, _PAST)
    keys = jax.tree.map(join, *past, own)
    # What is kept and seen is the same in every layer, so JAX would compute all blocks' masks before its loop over
    # layers, hold them and read them in each. They are cheaper made anew, and what depends on a key is.
    _, keep_NK, slot_K = jax.lax.optimization_barrier((own.key_MGKD[0, 0, 0, 0], keys.keep_MK, jnp.asarray(slot_K)))
    return keys._replace(keep_MK=keep_NK), slot_K


def _repeat(array: jax.Array, times: int) -> jax.Array:
    """As jnp.repeat of rows; gradients of rows that have one in common are summed in f32."""
    if times == 1 or array.dtype != jnp.bfloat16:
        return jnp.repeat(array, times, axis=0)
    return jnp.repeat(array.astype(jnp.float32), times, axis=0).astype(array.dtype)


def _split_path(joined: jax.Array, frames: Sequence[Keys]) -> list[jax.Array]:
    """Each frame's part of the gradient of joined keys or values, summed over the rows that have it in common."""
    ends = np.cumsum([frame.keep_MK.shape[1] for frame in frames])
    parts = []
    for part, frame in zip(jnp.split(joined, ends[:-1], axis=2), frames, strict=True):
        M, G, K, D = frame.key_MGKD.shape
        parts.append(part.reshape(M, -1, G, K, D).sum(axis=1).astype(frame.key_MGKD.dtype))
    return parts


def _attend_keys(form: _Form, queries: _Queries, keys: Keys, slot_K: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over some slots of a path alone, and its log-sum-exp [N, G, R, S]."""
    shape = queries.query_NGRSD.shape
    query_MGQD = _fold(queries.query_NGRSD, len(keys.key_MGKD))

    def attend_block(block: _Block) -> tuple[jax.Array, jax.Array]:
        score_MGQW = _compute_scores(query_MGQD, block, form.softcap)
        return _softmax_product(jnp.where(_find_seen(queries, block), score_MGQW, _MASKED), block.value_MGWD)

    blocks = _cut_blocks(_Block(*keys, slot_K), query_MGQD, form.score_floats)
    if isinstance(blocks, list):
        partial = attend_block(*blocks)
    else:
        nothing = (jnp.zeros(query_MGQD.shape, jnp.float32), jnp.full(query_MGQD.shape[:-1], -jnp.inf))
        partial, _ = jax.lax.scan(lambda sums, block: (_merge([sums, attend_block(block)]), None), nothing, blocks)
    return _unfold(partial[0], shape), _unfold(partial[1], shape[:-1])


def _differentiate_keys(
    form: _Form,
    queries: _Queries,
    d_out_NGRSD: jax.Array,
    lse_NGRS: jax.Array,
    delta_NGRS: jax.Array,
    keys: Keys,
    slot_K: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values, f32; of keys and values a row of queries has for itself (M = N)."""
    rows, slots = keys.keep_MK.shape
    query_MGQD, lse_MGQ, delta_MGQ = (_fold(array, rows) for array in (queries.query_NGRSD, lse_NGRS, delta_NGRS))
    d_out_MGQD = _fold(d_out_NGRSD, rows).astype(keys.value_MGKD.dtype)
    multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def differentiate(block: _Block) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_MGWD, value_MGWD, seen = block.key_MGWD, block.value_MGWD, _find_seen(queries, block)
        score_MGQW = _compute_scores(query_MGQD, block, form.softcap)
        weight_MGQW = jnp.exp(jnp.where(seen, score_MGQW, _MASKED) - lse_MGQ[..., None])
        weight_MGQW = jnp.where(seen, weight_MGQW, 0.0)  # a query that sees nothing has no log-sum-exp to speak of
        d_score_MGQW = weight_MGQW * (multiply("mgqd,mgwd->mgqw", d_out_MGQD, value_MGWD) - delta_MGQ[..., None])
        if form.softcap is not None:
            d_score_MGQW *= 1.0 - jnp.square(score_MGQW / form.softcap)  # the slope of tanh
        d_score_MGQW, weight_MGQW = d_score_MGQW.astype(key_MGWD.dtype), weight_MGQW.astype(value_MGWD.dtype)
        return (
            multiply("mgqw,mgwd->mgqd", d_score_MGQW, key_MGWD),
            multiply("mgqw,mgqd->mgwd", d_score_MGQW, query_MGQD),
            multiply("mgqw,mgqd->mgwd", weight_MGQW, d_out_MGQD),
        )

    def advance(d_query: jax.Array, block: _Block):
        part, *d_block = differentiate(block)
        return d_query + part, d_block

    blocks = _cut_blocks(_Block(*keys, slot_K), query_MGQD, form.score_floats)
    if isinstance(blocks, list):
        d_query, d_key, d_value = differentiate(*blocks)
    else:
        d_query, d_blocks = jax.lax.scan(advance, jnp.zeros(query_MGQD.shape, jnp.float32), blocks)
        d_key, d_value = (_join_blocks(d_block, slots) for d_block in d_blocks)
    return _unfold(d_query, queries.query_NGRSD.shape), d_key, d_value


def _fold(array: jax.Array, rows: int) -> jax.Array:
    """[N, G, R, S, ...] -> [M, G, Q, ...]: the queries of all finer rows of a coarse one, whose keys are read once."""
    N, G, R, S, *rest = array.shape
    return array.reshape(rows, N // rows, G, R, S, *rest).swapaxes(1, 2).reshape(rows, G, -1, *rest)


def _unfold(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    N, G, R, S, *rest = shape
    rows = len(array)
    return array.reshape(rows, G, N // rows, R, S, *rest).swapaxes(1, 2).reshape(shape)


def _cut_blocks(whole: _Block, query_MGQD: jax.Array, score_floats: int) -> _Block | list[_Block]:
    """The blocks of some slots, stacked; or, in a list, the one that they are.

    They are of one length; what the last lacks is filled with slots that are not kept. No block is apart from the
    others: it would be a second copy of the code, and compilers are slow at it.
    """
    K, (M, G, Q, _) = whole.keep_MW.shape[1], query_MGQD.shape
    most = max(score_floats // (M * G * Q), BLOCK_SLOTS)
    if most >= K:
        return [whole]
    blocks = -(-K // most)
    size = -(-K // blocks)

    def cut(array: jax.Array, axis: int) -> jax.Array:
        widths = [(0, blocks * size - K if each == axis else 0) for each in range(array.ndim)]
        padded = jnp.pad(array, widths)
        split = padded.reshape(*array.shape[:axis], blocks, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(split, axis, 0)

    position = None if whole.position_MW is None else cut(whole.position_MW, 1)
    slot = cut(whole.slot_W, 0)
    return _Block(cut(whole.key_MGWD, 2), cut(whole.value_MGWD, 2), cut(whole.keep_MW, 1), position, slot)


def _join_blocks(blocks: jax.Array, slots: int) -> jax.Array:
    joined = jnp.moveaxis(blocks, 0, 2)
    return joined.reshape(*joined.shape[:2], -1, joined.shape[-1])[:, :, :slots]


def _find_seen(queries: _Queries, block: _Block) -> jax.Array:
    """Which keys of a block a query sees, [M, 1, Q, W]."""
    (N, _, R, S, _), M = queries.query_NGRSD.shape, len(block.keep_MW)
    slot_Q = jnp.arange(N // M * R * S) % S  # of a query in its frame
    seen = block.keep_MW[:, None, None, :] & (block.slot_W <= slot_Q[:, None])
    if queries.window is not None:
        assert queries.position_NS is not None and block.position_MW is not None
        position_MRS = jnp.broadcast_to(queries.position_NS.reshape(M, -1, 1, S), (M, N // M, R, S))
        distance_MQW = position_MRS.reshape(M, -1, 1) - block.position_MW[:, None]
        seen = seen & (distance_MQW < queries.window)[:, None]
    return seen


def _compute_scores(query_MGQD: jax.Array, block: _Block, softcap: float | None) -> jax.Array:
    score_MGQW = jnp.einsum("mgqd,mgwd->mgqw", query_MGQD, block.key_MGWD, preferred_element_type=jnp.float32)
    return cap_softly(score_MGQW, softcap)


def _softmax_product(score_MGQW: jax.Array, value_MGWD: jax.Array) -> tuple[jax.Array, jax.Array]:
    top_MGQ = jnp.max(score_MGQW, axis=-1)
    weight_MGQW = jnp.exp(score_MGQW - top_MGQ[..., None])
    total_MGQ = jnp.sum(weight_MGQW, axis=-1)
    out_MGQD = jnp.einsum(
        "mgqw,mgwd->mgqd", weight_MGQW.astype(value_MGWD.dtype), value_MGWD, preferred_element_type=jnp.float32
    )
    return out_MGQD / total_MGQ[..., None], top_MGQ + jnp.log(total_MGQ)


def _merge(partials: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    top = functools.reduce(jnp.maximum, [lse for _, lse in partials])
    weights = [jnp.exp(lse - top) for _, lse in partials]
    total = functools.reduce(jnp.add, weights)
    parts = [out * (weight / total)[..., None] for (out, _), weight in zip(partials, weights, strict=True)]
    return functools.reduce(jnp.add, parts), top + jnp.log(total)
