"""Attention of a frame's queries over a path of frames, coarse to fine.

A frame's keys and values are held once, however many finer rows read them. Attention over the whole path is the
exact softmax over all kept slots: each frame gives a partial result with its log-sum-exp, and the partial results
are merged by these weights (the identity behind FlashAttention, arXiv 2205.14135, section 3.1).

A long frame is read a block of its slots at a time, and the backward pass computes the weights again from the whole
path's log-sum-exp. So memory grows with the slots and not with their square.

Dimension key beside types.py: M row of a coarser frame (N = M * finer rows each), G key and value head,
R query heads per key and value head, Q all queries of one (M, G), K key slot, W slot of a block of keys.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Most scores of one block, 16 MB of them, but never fewer slots than the second: decoding reads any frame in one block.
SCORE_FLOATS = 4_000_000
_LEAST_SLOTS = 64

# Finite, so that a frame of which nothing is kept merges with weight exp(-1e30) = 0 and never makes a NaN.
_MASKED = -1e30

_Frame = tuple[jax.Array, jax.Array, jax.Array]  # key_MGKD, value_MGKD, keep_MK


class Rows(NamedTuple):
    """Some rows of a batch."""

    place_N: jax.Array  # int32
    total: int  # rows of the batch


def attend_path(
    query_NGRSD: jax.Array,
    past: Sequence[_Frame],
    own_key_NGSD: jax.Array,
    own_value_NGSD: jax.Array,
    own_keep_NS: jax.Array,
    rows: Rows | None = None,
    score_floats: int = SCORE_FLOATS,
) -> jax.Array:
    """Softmax attention over every kept slot of the past frames and, causally, of the own frame.

    Args:
        query_NGRSD: queries, scaled already.
        past: (key_MGKD, value_MGKD, keep_MK) of each coarser frame; M divides N.
        own_key_NGSD, own_value_NGSD, own_keep_NS: the queries' own frame.
        rows: where only some rows of a batch are here, which they are; then the last past frame has just these rows,
            and the others those of the batch. No gradient is taken of this form.
        score_floats: most scores of one block.
    Returns:
        Attention output [N, G, R, S, D], f32.
    """
    own = (own_key_NGSD, own_value_NGSD, own_keep_NS)
    if rows is None:
        return _attend(score_floats, query_NGRSD, tuple(past), own)
    partials = [_attend_from(rows, score_floats, query_NGRSD, frame) for frame in past[:-1]]
    partials.append(_attend_frame(score_floats, query_NGRSD, past[-1], is_own=False))
    partials.append(_attend_frame(score_floats, query_NGRSD, own, is_own=True))
    return _merge(partials)[0]


def _attend_from(rows: Rows, score_floats: int, query_NGRSD: jax.Array, frame: _Frame) -> tuple[jax.Array, jax.Array]:
    # Queries are put back to their places in the batch, for which no key or value has to be copied: reading these is
    # what the attention of a decoding step waits for, and the products with rows that are not there are cheap.
    spread = jnp.zeros((rows.total, *query_NGRSD.shape[1:]), query_NGRSD.dtype).at[rows.place_N].set(query_NGRSD)
    out, lse = _attend_frame(score_floats, spread, frame, is_own=False)
    return out[rows.place_N], lse[rows.place_N]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(score_floats: int, query_NGRSD: jax.Array, past: tuple[_Frame, ...], own: _Frame) -> jax.Array:
    return _attend_frames(score_floats, query_NGRSD, past, own)[0]


def _attend_frames(
    score_floats: int, query_NGRSD: jax.Array, past: tuple[_Frame, ...], own: _Frame
) -> tuple[jax.Array, jax.Array]:
    partials = [_attend_frame(score_floats, query_NGRSD, frame, is_own=False) for frame in past]
    partials.append(_attend_frame(score_floats, query_NGRSD, own, is_own=True))
    return _merge(partials)


def _attend_forward(score_floats: int, query_NGRSD: jax.Array, past: tuple[_Frame, ...], own: _Frame):
    out, lse = _attend_frames(score_floats, query_NGRSD, past, own)
    return out, (query_NGRSD, past, own, out, lse)


def _attend_backward(score_floats: int, kept: tuple, slope: jax.Array):
    """Gradients, by ds = p (dp - sum over the path of p dp), and that sum is the product of output and its slope."""
    query, past, own, out, lse = kept
    drift = jnp.sum(slope * out, axis=-1)
    pull_back = functools.partial(_pull_back_frame, score_floats, query, slope, lse, drift)
    *coarse, (own_query, *own_rest) = [*(pull_back(frame, is_own=False) for frame in past), pull_back(own, is_own=True)]
    query_slope = functools.reduce(jnp.add, [part for part, *_ in coarse], own_query)
    return query_slope.astype(query.dtype), tuple((*rest, None) for _, *rest in coarse), (*own_rest, None)


_attend.defvjp(_attend_forward, _attend_backward)


def _attend_frame(
    score_floats: int, query_NGRSD: jax.Array, frame: _Frame, is_own: bool
) -> tuple[jax.Array, jax.Array]:
    """Attention over one frame alone, and its log-sum-exp [N, G, R, S]."""
    key_MGKD, value_MGKD, keep_MK = frame
    rows, slots = len(key_MGKD), query_NGRSD.shape[3]
    query_MGQD = _fold(query_NGRSD, rows)

    def attend_block(block: tuple) -> tuple[jax.Array, jax.Array]:
        key_MGWD, value_MGWD, keep_MW, place_W = block
        score_MGQW = _compute_scores(query_MGQD, key_MGWD, _find_seen(keep_MW, place_W, query_MGQD, slots, is_own))
        return _softmax_product(score_MGQW, value_MGWD)

    first, rest = _cut_blocks(frame, query_MGQD, score_floats)
    partial = attend_block(first)
    if rest is not None:
        partial, _ = jax.lax.scan(lambda sums, block: (_merge([sums, attend_block(block)]), None), partial, rest)
    return _unfold(partial[0], query_NGRSD.shape), _unfold(partial[1], query_NGRSD.shape[:-1])


def _pull_back_frame(
    score_floats: int,
    query_NGRSD: jax.Array,
    slope_NGRSD: jax.Array,
    lse_NGRS: jax.Array,
    drift_NGRS: jax.Array,
    frame: _Frame,
    is_own: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One frame's part of the queries' gradient, f32, and the gradients of its keys and values."""
    key_MGKD, value_MGKD, keep_MK = frame
    rows, slots = len(key_MGKD), query_NGRSD.shape[3]
    query_MGQD, lse_MGQ, drift_MGQ = (_fold(array, rows) for array in (query_NGRSD, lse_NGRS, drift_NGRS))
    slope_MGQD = _fold(slope_NGRSD, rows).astype(value_MGKD.dtype)
    multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def pull_back(block: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_MGWD, value_MGWD, keep_MW, place_W = block
        seen = _find_seen(keep_MW, place_W, query_MGQD, slots, is_own)
        weight_MGQW = jnp.exp(_compute_scores(query_MGQD, key_MGWD, seen) - lse_MGQ[..., None])
        weight_MGQW = jnp.where(seen, weight_MGQW, 0.0)  # a query that sees nothing has no log-sum-exp to speak of
        lean_MGQW = weight_MGQW * (multiply("mgqd,mgwd->mgqw", slope_MGQD, value_MGWD) - drift_MGQ[..., None])
        lean_MGQW, weight_MGQW = lean_MGQW.astype(key_MGWD.dtype), weight_MGQW.astype(value_MGWD.dtype)
        return (
            multiply("mgqw,mgwd->mgqd", lean_MGQW, key_MGWD),
            multiply("mgqw,mgqd->mgwd", lean_MGQW, query_MGQD).astype(key_MGWD.dtype),
            multiply("mgqw,mgqd->mgwd", weight_MGQW, slope_MGQD).astype(value_MGWD.dtype),
        )

    first, rest = _cut_blocks(frame, query_MGQD, score_floats)
    query_slope, key_slope, value_slope = pull_back(first)
    if rest is not None:

        def advance(query_slope: jax.Array, block: tuple):
            part, *slopes = pull_back(block)
            return query_slope + part, slopes

        query_slope, (later_keys, later_values) = jax.lax.scan(advance, query_slope, rest)
        key_slope = _join_blocks(key_slope, later_keys, key_MGKD.shape[2])
        value_slope = _join_blocks(value_slope, later_values, key_MGKD.shape[2])
    return _unfold(query_slope, query_NGRSD.shape), key_slope, value_slope


def _fold(array: jax.Array, rows: int) -> jax.Array:
    """[N, G, R, S, ...] -> [M, G, Q, ...]: the queries of all finer rows of a coarse one, whose keys are read once."""
    N, G, R, S, *rest = array.shape
    return array.reshape(rows, N // rows, G, R, S, *rest).swapaxes(1, 2).reshape(rows, G, -1, *rest)


def _unfold(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    N, G, R, S, *rest = shape
    rows = len(array)
    return array.reshape(rows, G, N // rows, R, S, *rest).swapaxes(1, 2).reshape(shape)


def _cut_blocks(frame: _Frame, query_MGQD: jax.Array, score_floats: int) -> tuple[tuple, tuple | None]:
    """The first block of a frame's slots, and the others stacked, or None: each with its slots' places.

    Blocks are of one length; what the last lacks is filled with slots that are not kept.
    """
    key_MGKD, value_MGKD, keep_MK = frame
    K, (M, G, Q, _) = keep_MK.shape[1], query_MGQD.shape
    most = max(score_floats // (M * G * Q), _LEAST_SLOTS)
    blocks = -(-K // most)
    place_K = jnp.arange(K)
    if blocks == 1:
        return (key_MGKD, value_MGKD, keep_MK, place_K), None
    size = -(-K // blocks)

    def cut(array: jax.Array, axis: int) -> jax.Array:
        widths = [(0, blocks * size - K if place == axis else 0) for place in range(array.ndim)]
        padded = jnp.pad(array, widths)
        split = padded.reshape(*array.shape[:axis], blocks, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(split, axis, 0)

    cuts = (cut(key_MGKD, 2), cut(value_MGKD, 2), cut(keep_MK, 1), cut(place_K, 0))
    return tuple(array[0] for array in cuts), tuple(array[1:] for array in cuts)


def _join_blocks(first_MGWD: jax.Array, rest: jax.Array, slots: int) -> jax.Array:
    blocks = jnp.concatenate([first_MGWD[None], rest])
    joined = jnp.moveaxis(blocks, 0, 2)
    return joined.reshape(*joined.shape[:2], -1, joined.shape[-1])[:, :, :slots]


def _find_seen(keep_MW: jax.Array, place_W: jax.Array, query_MGQD: jax.Array, slots: int, is_own: bool) -> jax.Array:
    """Which keys of a block a query sees, [M, 1, 1 or Q, W]."""
    seen = keep_MW[:, None, None, :]
    if is_own:
        slot_Q = jnp.arange(query_MGQD.shape[2]) % slots  # of a query in its frame
        seen = seen & (place_W <= slot_Q[:, None])
    return seen


def _compute_scores(query_MGQD: jax.Array, key_MGWD: jax.Array, seen: jax.Array) -> jax.Array:
    score_MGQW = jnp.einsum("mgqd,mgwd->mgqw", query_MGQD, key_MGWD, preferred_element_type=jnp.float32)
    return jnp.where(seen, score_MGQW, _MASKED)


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
