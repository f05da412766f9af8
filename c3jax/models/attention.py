"""Attention of a frame's queries over a path of frames, coarse to fine.

A frame's keys and values are held once, however many finer rows read them. Attention over the whole path is the
exact softmax over all kept slots: each frame gives a partial result with its log-sum-exp, and the partial results
are merged by these weights (the identity behind FlashAttention, arXiv 2205.14135, section 3.1).

Dimension key beside types.py: M row of a coarser frame (N = M * finer rows each), G key and value head,
R query heads per key and value head, Q all queries of one (M, G), K key slot.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that a frame of which nothing is kept merges with weight exp(-1e30) = 0 and never makes a NaN.
_MASKED = -1e30


class Rows(NamedTuple):
    """Some rows of a batch."""

    place_N: jax.Array  # int32
    total: int  # rows of the batch


def attend_path(
    query_NGRSD: jax.Array,
    past: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
    own_key_NGSD: jax.Array,
    own_value_NGSD: jax.Array,
    own_keep_NS: jax.Array,
    rows: Rows | None = None,
) -> jax.Array:
    """Softmax attention over every kept slot of the past frames and, causally, of the own frame.

    Args:
        query_NGRSD: queries, scaled already.
        past: (key_MGKD, value_MGKD, keep_MK) of each coarser frame; M divides N.
        own_key_NGSD, own_value_NGSD, own_keep_NS: the queries' own frame.
        rows: where only some rows of a batch are here, which they are; then the last past frame has just these rows,
            and the others those of the batch.
    Returns:
        Attention output [N, G, R, S, D], f32.
    """
    if rows is None:
        partials = [_attend_coarse(query_NGRSD, *frame) for frame in past]
    else:
        partials = [_attend_from(rows, query_NGRSD, *frame) for frame in past[:-1]]
        partials.append(_attend_coarse(query_NGRSD, *past[-1]))
    partials.append(_attend_own(query_NGRSD, own_key_NGSD, own_value_NGSD, own_keep_NS))
    return _merge(partials)


def _attend_from(
    rows: Rows, query_NGRSD: jax.Array, key_MGKD: jax.Array, value_MGKD: jax.Array, keep_MK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Queries are put back to their places in the batch, for which no key or value has to be copied: reading these is
    # what the attention of a decoding step waits for, and the products with rows that are not there are cheap.
    spread = jnp.zeros((rows.total, *query_NGRSD.shape[1:]), query_NGRSD.dtype).at[rows.place_N].set(query_NGRSD)
    out, lse = _attend_coarse(spread, key_MGKD, value_MGKD, keep_MK)
    return out[rows.place_N], lse[rows.place_N]


def _attend_coarse(
    query_NGRSD: jax.Array, key_MGKD: jax.Array, value_MGKD: jax.Array, keep_MK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    N, G, R, S, D = query_NGRSD.shape
    M = key_MGKD.shape[0]
    # All finer rows of one coarse row become queries of one matrix product: its keys are read once.
    query_MGQD = query_NGRSD.reshape(M, N // M, G, R, S, D).transpose(0, 2, 1, 3, 4, 5).reshape(M, G, -1, D)
    score_MGQK = jnp.einsum("mgqd,mgkd->mgqk", query_MGQD, key_MGKD, preferred_element_type=jnp.float32)
    score_MGQK = jnp.where(keep_MK[:, None, None, :], score_MGQK, _MASKED)
    out_MGQD, lse_MGQ = _softmax_product(score_MGQK, value_MGKD)
    out = out_MGQD.reshape(M, G, N // M, R, S, D).transpose(0, 2, 1, 3, 4, 5).reshape(N, G, R, S, D)
    lse = lse_MGQ.reshape(M, G, N // M, R, S).transpose(0, 2, 1, 3, 4).reshape(N, G, R, S)
    return out, lse


def _attend_own(
    query_NGRSD: jax.Array, key_NGSD: jax.Array, value_NGSD: jax.Array, keep_NS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    N, G, R, S, D = query_NGRSD.shape
    score = jnp.einsum(
        "ngqd,ngkd->ngqk", query_NGRSD.reshape(N, G, R * S, D), key_NGSD, preferred_element_type=jnp.float32
    ).reshape(N, G, R, S, S)
    seen_SS = jnp.tril(jnp.ones((S, S), bool))
    score = jnp.where(seen_SS & keep_NS[:, None, None, None, :], score, _MASKED)
    out_NGQD, lse_NGQ = _softmax_product(score.reshape(N, G, R * S, S), value_NGSD)
    return out_NGQD.reshape(N, G, R, S, D), lse_NGQ.reshape(N, G, R, S)


def _softmax_product(score_MGQK: jax.Array, value_MGKD: jax.Array) -> tuple[jax.Array, jax.Array]:
    top_MGQ = jax.lax.stop_gradient(jnp.max(score_MGQK, axis=-1))
    weight_MGQK = jnp.exp(score_MGQK - top_MGQ[..., None])
    total_MGQ = jnp.sum(weight_MGQK, axis=-1)
    out_MGQD = jnp.einsum(
        "mgqk,mgkd->mgqd", weight_MGQK.astype(value_MGKD.dtype), value_MGKD, preferred_element_type=jnp.float32
    )
    return out_MGQD / total_MGQ[..., None], top_MGQ + jnp.log(total_MGQ)


def _merge(partials: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    top = jax.lax.stop_gradient(jnp.max(jnp.stack([lse for _, lse in partials]), axis=0))
    weights = [jnp.exp(lse - top) for _, lse in partials]
    total = functools.reduce(jnp.add, weights)
    parts = [out * (weight / total)[..., None] for (out, _), weight in zip(partials, weights, strict=True)]
    return functools.reduce(jnp.add, parts)
