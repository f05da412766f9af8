"""A loss of drawn tokens' log-probabilities, and its gradient, without ever holding [tokens, vocabulary] logits.

How the loss changes with a token's log-probability is known as soon as the token's log-sum-exp is. So one pass over
chunks of tokens gives loss and gradients, with the three products of hidden states and head that the plain form has:
logits, gradient of the hidden states, gradient of the head. A backward pass of its own would need a fourth, the logits
again. The price is that the loss must be a sum over tokens, each of its own log-probability alone.

Dimension key beside types.py: C token of a chunk, E entry of a token's distribution (the vocabulary, or its support),
W row of a block of the head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from c3jax.config.run import Sampling
from c3jax.rollout import sampling as sampling_lib


class DrawnTokens(NamedTuple):
    """Tokens of a batch's messages, one after the other."""

    token_B: jax.Array  # int32
    support_BK: jax.Array  # int32, -1 where there are fewer; K = 0 without top-k
    is_drawn_B: jax.Array  # bool; the rest hold junk and cost nothing


class _Fixed(NamedTuple):
    loss_fn: Callable[[jax.Array, Any], jax.Array]
    sampling: Sampling
    dtype: str
    chunk_floats: int


class _Pass(NamedTuple):
    """What a pass over the chunks adds up; gradients are None where nobody wants them."""

    loss: jax.Array
    logp_B: jax.Array
    hidden_BD: jax.Array | None
    head_VD: jax.Array | None


def compute_token_loss(
    hidden_BD: jax.Array,
    head_VD: jax.Array,
    drawn: DrawnTokens,
    terms: Any,
    loss_fn: Callable[[jax.Array, Any], jax.Array],
    sampling: Sampling,
    dtype: str,
    chunk_floats: int = sampling_lib.CHUNK_FLOATS,
) -> tuple[jax.Array, jax.Array]:
    """Sum over the drawn tokens of loss_fn(logp_B, terms)[b], which may depend on logp_B[b] and terms[b] alone.

    Gradients reach hidden states and head, the head's only where something asks for it: a frozen head costs nothing.
    Products are of `dtype` with f32 sums, all else is f32.

    Args:
        hidden_BD: the states that the tokens are drawn from, f32.
        head_VD: output weights, f32.
        terms: a tree of arrays [B, ...] that loss_fn reads; no gradient reaches them.
        chunk_floats: most numbers of a chunk's logits.
    Returns:
        The loss, and logp_B (nats, no gradient, 0 where nothing was drawn).
    """
    chex.assert_equal_shape_prefix([hidden_BD, drawn.token_B, drawn.is_drawn_B, *jax.tree.leaves(terms)], 1)

    run = functools.partial(_run_chunks, _Fixed(loss_fn, sampling, dtype, chunk_floats))

    @jax.custom_vjp
    def compute(hidden_BD, head_VD, data):
        done = run(hidden_BD, head_VD, *data, wants_hidden=False, wants_head=False)
        return done.loss, done.logp_B

    def forward(hidden_BD, head_VD, data):
        drawn, terms = jax.tree.map(lambda leaf: leaf.value, data, is_leaf=_is_primal)
        wants = {"wants_hidden": hidden_BD.perturbed, "wants_head": head_VD.perturbed}
        done = run(hidden_BD.value, head_VD.value, drawn, terms, **wants)
        return (done.loss, done.logp_B), (done.hidden_BD, done.head_VD)

    def backward(gradients, cotangents):
        slope, _ = cotangents  # logp_B is given without gradient
        return *jax.tree.map(lambda gradient: slope * gradient, gradients), None

    compute.defvjp(forward, backward, symbolic_zeros=True)
    loss, logp_B = compute(hidden_BD, head_VD, (drawn, terms))
    return loss, jax.lax.stop_gradient(logp_B)


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _run_chunks(
    fixed: _Fixed,
    hidden_BD: jax.Array,
    head_VD: jax.Array,
    drawn: DrawnTokens,
    terms: Any,
    wants_hidden: bool,
    wants_head: bool,
) -> _Pass:
    (V, D), B = head_VD.shape, len(hidden_BD)
    loss_fn, sampling, dtype, chunk_floats = fixed
    size = sampling_lib.size_chunk(B, V, D, drawn.support_BK.shape[1], chunk_floats)
    chunks = -(-B // size)
    cast_VD = jnp.asarray(head_VD, dtype)
    # Drawn tokens stand in front, so chunks of junk are never reached; places beyond them point behind the last row.
    row_B = jnp.flatnonzero(drawn.is_drawn_B, size=chunks * size, fill_value=B)
    used = chunks if chunks == 1 else -(-jnp.sum(drawn.is_drawn_B) // size)

    def advance(place: jax.Array, done: _Pass) -> _Pass:
        row_C = jax.lax.dynamic_slice_in_dim(row_B, place * size, size)
        take = functools.partial(jnp.take, indices=row_C, axis=0, mode="fill", fill_value=0)
        hidden_CD, chunk, terms_C = take(hidden_BD).astype(dtype), jax.tree.map(take, drawn), jax.tree.map(take, terms)
        scaled_CE, is_token_CE = sampling_lib.compute_scores(
            hidden_CD, chunk.token_B, chunk.support_BK, cast_VD, sampling
        )
        lse_C = jax.nn.logsumexp(scaled_CE, axis=1)
        logp_C = jnp.sum(jnp.where(is_token_CE, scaled_CE, 0.0), axis=1) - lse_C
        loss, slope_C = jax.value_and_grad(
            lambda logp_C: jnp.sum(jnp.where(chunk.is_drawn_B, loss_fn(logp_C, terms_C), 0.0))
        )(logp_C)
        done = done._replace(loss=done.loss + loss, logp_B=done.logp_B.at[row_C].set(logp_C, mode="drop"))
        # d loss / d logits = slope (1[entry is the token] - p) / t
        push_CE = is_token_CE - jnp.exp(scaled_CE - lse_C[:, None])
        push_CE = (push_CE * (slope_C / sampling.temperature)[:, None]).astype(dtype)
        if done.hidden_BD is not None:
            pulled_CD = _pull_to_hidden(push_CE, chunk.support_BK, cast_VD)
            done = done._replace(hidden_BD=done.hidden_BD.at[row_C].set(pulled_CD, mode="drop"))
        if done.head_VD is not None:
            block = min(max(chunk_floats // (4 * D), 1), V)
            done = done._replace(head_VD=_add_to_head(done.head_VD, push_CE, chunk.support_BK, hidden_CD, block))
        return done

    start = _Pass(
        jnp.float32(0.0),
        jnp.zeros(B, jnp.float32),
        jnp.zeros_like(hidden_BD) if wants_hidden else None,
        jnp.zeros_like(head_VD) if wants_head else None,
    )
    return jax.lax.fori_loop(0, used, advance, start)


def _pull_to_hidden(push_CE: jax.Array, support_CK: jax.Array, head_VD: jax.Array) -> jax.Array:
    if support_CK.shape[1] == 0:
        return jnp.einsum("cv,vd->cd", push_CE, head_VD, preferred_element_type=jnp.float32)
    rows_CKD = head_VD[jnp.maximum(support_CK, 0)]
    return jnp.einsum("ck,ckd->cd", push_CE, rows_CKD, preferred_element_type=jnp.float32)


def _add_to_head(
    sum_VD: jax.Array, push_CE: jax.Array, support_CK: jax.Array, hidden_CD: jax.Array, block: int
) -> jax.Array:
    """Add a chunk's share in place, a block of rows at a time: the whole product would be one more [V, D] array."""
    if support_CK.shape[1]:
        share_CKD = push_CE[:, :, None].astype(jnp.float32) * hidden_CD[:, None]
        return sum_VD.at[jnp.maximum(support_CK, 0)].add(share_CKD)  # places without a token add zeros

    def add_block(first: jax.Array | int, width: int, sum_VD: jax.Array) -> jax.Array:
        push_CW = jax.lax.dynamic_slice_in_dim(push_CE, first, width, axis=1)
        share_WD = jnp.einsum("cw,cd->wd", push_CW, hidden_CD, preferred_element_type=jnp.float32)
        share_WD += jax.lax.dynamic_slice_in_dim(sum_VD, first, width)
        return jax.lax.dynamic_update_slice_in_dim(sum_VD, share_WD, first, axis=0)

    blocks, rest = divmod(len(sum_VD), block)
    sum_VD = jax.lax.fori_loop(0, blocks, lambda place, sums: add_block(place * block, block, sums), sum_VD)
    return add_block(blocks * block, rest, sum_VD) if rest else sum_VD
