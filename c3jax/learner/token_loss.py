"""A loss of drawn tokens' log-probabilities and entropies, its gradient and its figures, without ever holding [tokens,
vocabulary] logits.

How the loss changes with a token's log-probability, and with the entropy of what it was drawn from, is known as soon
as the token's log-sum-exp is. So one pass over chunks of tokens gives loss and gradients, with the three products of
hidden states and head that the plain form has: logits, gradient of the hidden states, gradient of the head. A backward
pass of its own would need a fourth, the logits again. The price is that the loss must be a sum over tokens, each of its
own log-probability and entropy alone.

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


# (logp_B, entropy_B, terms) -> (loss [B], figures [B] by name)
TokenLoss = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, dict[str, jax.Array]]]


class _Fixed(NamedTuple):
    loss_fn: TokenLoss
    sampling: Sampling
    dtype: str
    chunk_floats: int
    softcap: float | None
    has_entropy: bool


class _Distribution(NamedTuple):
    """What a chunk's tokens are drawn from; entries out of a support have no mass, and logp far below any other."""

    scaled_CE: jax.Array  # logits by temperature
    logp_CE: jax.Array
    mass_CE: jax.Array
    entropy_C: jax.Array  # nats


class _Pass(NamedTuple):
    """What a pass over the chunks adds up; gradients are None where nobody wants them."""

    loss: jax.Array
    figures: dict[str, jax.Array]
    d_hidden_BD: jax.Array | None
    d_head_VD: jax.Array | None


def compute_token_loss(  # noqa: PLR0913
    hidden_BD: jax.Array,
    head_VD: jax.Array,
    drawn: DrawnTokens,
    terms: Any,
    loss_fn: TokenLoss,
    sampling: Sampling,
    dtype: str,
    chunk_floats: int = sampling_lib.CHUNK_FLOATS,
    softcap: float | None = None,
    has_entropy: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums over the drawn tokens of a loss and of its figures.

    Gradients of the loss reach hidden states and head, the head's only where something asks for it: a frozen head costs
    nothing. Products are of `dtype` with f32 sums, all else is f32.

    Args:
      hidden_BD: the states that the tokens are drawn from, f32.
      head_VD: output weights, f32.
      drawn: the tokens.
      terms: a tree of arrays [B, ...] that loss_fn reads; no gradient reaches them.
      loss_fn: what a token adds to the loss, and to each figure by its name; entry b of both may depend on logp_B[b],
        entropy_B[b] (both nats) and terms[b] alone. The entropy is of the distribution that the token is drawn from:
        over its support, or over the whole vocabulary.
      sampling: how the tokens were drawn: log-probabilities are of that distribution.
      dtype: of the products.
      chunk_floats: most numbers of a chunk's logits.
      softcap: of the logits, as the decoder has it.
      has_entropy: whether the loss, and not only a figure, reads the entropy: else no gradient goes through it.

    Returns:
      The loss and the figures, scalars, f32; figures have no gradient.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_equal_shape_prefix([hidden_BD, drawn.token_B, drawn.is_drawn_B, *jax.tree.leaves(terms)], 1)

    run = functools.partial(_run_chunks, _Fixed(loss_fn, sampling, dtype, chunk_floats, softcap, has_entropy))

    @jax.custom_vjp
    def compute(hidden_BD, head_VD, data):
        done = run(hidden_BD, head_VD, *data, wants_hidden=False, wants_head=False)
        return done.loss, done.figures

    def forward(hidden_BD, head_VD, data):
        drawn, terms = jax.tree.map(lambda leaf: leaf.value, data, is_leaf=_is_primal)
        wants = {"wants_hidden": hidden_BD.perturbed, "wants_head": head_VD.perturbed}
        done = run(hidden_BD.value, head_VD.value, drawn, terms, **wants)
        return (done.loss, done.figures), (done.d_hidden_BD, done.d_head_VD)

    def backward(gradients, cotangents):
        slope, _ = cotangents  # figures are given without gradient
        return *jax.tree.map(lambda gradient: slope * gradient, gradients), None

    compute.defvjp(forward, backward, symbolic_zeros=True)
    loss, figures = compute(hidden_BD, head_VD, (drawn, terms))
    return loss, jax.lax.stop_gradient(figures)


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
    sampling, dtype, chunk_floats = fixed.sampling, fixed.dtype, fixed.chunk_floats
    size = sampling_lib.size_chunk(B, V, D, drawn.support_BK.shape[1], chunk_floats)
    chunks = -(-B // size)
    cast_VD = jnp.asarray(head_VD, dtype)
    # Drawn tokens stand in front, so chunks of junk are never reached; rows beyond them point behind the last.
    row_B = jnp.flatnonzero(drawn.is_drawn_B, size=chunks * size, fill_value=B)
    used = chunks if chunks == 1 else -(-jnp.sum(drawn.is_drawn_B) // size)

    def advance(chunk: jax.Array, done: _Pass) -> _Pass:
        row_C = jax.lax.dynamic_slice_in_dim(row_B, chunk * size, size)
        take = functools.partial(jnp.take, indices=row_C, axis=0, mode="fill", fill_value=0)
        hidden_CD, (drawn_C, terms_C) = take(hidden_BD).astype(dtype), jax.tree.map(take, (drawn, terms))
        scaled_CE, is_token_CE = sampling_lib.compute_scores(
            hidden_CD, drawn_C.token_B, drawn_C.support_BK, cast_VD, sampling, fixed.softcap
        )
        lse_C = jax.nn.logsumexp(scaled_CE, axis=1)
        token_logp_C = jnp.sum(jnp.where(is_token_CE, scaled_CE, 0.0), axis=1) - lse_C
        logp_CE = scaled_CE - lse_C[:, None]
        mass_CE = jnp.exp(logp_CE)
        # Not lse - sum p z, whose two terms are far larger than their difference.
        drawing = _Distribution(scaled_CE, logp_CE, mass_CE, -jnp.sum(mass_CE * logp_CE, axis=1))
        (loss, figures), slopes = jax.value_and_grad(
            lambda *numbers: _sum_drawn(drawn_C.is_drawn_B, *fixed.loss_fn(numbers[0], numbers[1], terms_C)),
            (0, 1) if fixed.has_entropy else (0,),
            has_aux=True,
        )(token_logp_C, drawing.entropy_C)
        done = done._replace(loss=done.loss + loss, figures=jax.tree.map(jnp.add, done.figures, figures))
        d_logits_CE = _compute_d_logits(fixed, drawing, is_token_CE, *slopes)
        if done.d_hidden_BD is not None:
            d_hidden_CD = _multiply_head(d_logits_CE, drawn_C.support_BK, cast_VD)
            done = done._replace(d_hidden_BD=done.d_hidden_BD.at[row_C].set(d_hidden_CD, mode="drop"))
        if done.d_head_VD is not None:
            block = min(max(chunk_floats // (4 * D), 1), V)
            d_head_VD = _add_to_head(done.d_head_VD, d_logits_CE, drawn_C.support_BK, hidden_CD, block)
            done = done._replace(d_head_VD=d_head_VD)
        return done

    of_tokens = jax.ShapeDtypeStruct((B,), jnp.float32)
    _, figures = jax.eval_shape(fixed.loss_fn, of_tokens, of_tokens, terms)
    start = _Pass(
        jnp.float32(0.0),
        {name: jnp.float32(0.0) for name in figures},
        jnp.zeros_like(hidden_BD) if wants_hidden else None,
        jnp.zeros_like(head_VD) if wants_head else None,
    )
    return jax.lax.fori_loop(0, used, advance, start)


def _sum_drawn(
    is_drawn_C: jax.Array, loss_C: jax.Array, figures: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums over a chunk's drawn tokens; the rest hold junk, whose infinity times a weight of zero would be a NaN."""
    return jax.tree.map(lambda x_C: jnp.sum(jnp.where(is_drawn_C, x_C, 0.0)), (loss_C, figures))


def _compute_d_logits(
    fixed: _Fixed,
    drawing: _Distribution,
    is_token_CE: jax.Array,
    slope_C: jax.Array,
    entropy_slope_C: jax.Array | None = None,
) -> jax.Array:
    """Gradient of the loss by the logits, from its slopes by the token's log-probability and by the entropy.

    d logp / d z_v = (1[v is the token] - p_v) / t,   d H / d z_v = -p_v (log p_v + H) / t
    """
    temperature, softcap = fixed.sampling.temperature, fixed.softcap
    d_logits_CE = is_token_CE - drawing.mass_CE
    d_logits_CE = d_logits_CE * (slope_C / temperature)[:, None]
    if entropy_slope_C is not None:
        by_entropy_CE = drawing.mass_CE * (drawing.logp_CE + drawing.entropy_C[:, None])
        d_logits_CE = d_logits_CE - by_entropy_CE * (entropy_slope_C / temperature)[:, None]
    if softcap is not None:  # times the slope of tanh; entries out of the support are far below any cap
        tanh_CE = jnp.maximum(drawing.scaled_CE * (temperature / softcap), -1.0)
        d_logits_CE = d_logits_CE * (1.0 - jnp.square(tanh_CE))
    return d_logits_CE.astype(fixed.dtype)


def _multiply_head(d_logits_CE: jax.Array, support_CK: jax.Array, head_VD: jax.Array) -> jax.Array:
    """d loss / d hidden [C, D]: the logits' gradient times the rows of the head that they are made with."""
    if support_CK.shape[1] == 0:
        return jnp.einsum("cv,vd->cd", d_logits_CE, head_VD, preferred_element_type=jnp.float32)
    rows_CKD = head_VD[jnp.maximum(support_CK, 0)]
    return jnp.einsum("ck,ckd->cd", d_logits_CE, rows_CKD, preferred_element_type=jnp.float32)


def _add_to_head(
    sum_VD: jax.Array, d_logits_CE: jax.Array, support_CK: jax.Array, hidden_CD: jax.Array, block: int
) -> jax.Array:
    """Add a chunk's share in place, a block of rows at a time: the whole product would be one more [V, D] array."""
    if support_CK.shape[1]:
        share_CKD = d_logits_CE[:, :, None].astype(jnp.float32) * hidden_CD[:, None]
        return sum_VD.at[jnp.maximum(support_CK, 0)].add(share_CKD)  # entries without a token add zeros

    def add_block(first: jax.Array | int, width: int, sum_VD: jax.Array) -> jax.Array:
        d_logits_CW = jax.lax.dynamic_slice_in_dim(d_logits_CE, first, width, axis=1)
        share_WD = jnp.einsum("cw,cd->wd", d_logits_CW, hidden_CD, preferred_element_type=jnp.float32)
        share_WD += jax.lax.dynamic_slice_in_dim(sum_VD, first, width)
        return jax.lax.dynamic_update_slice_in_dim(sum_VD, share_WD, first, axis=0)

    blocks, rest = divmod(len(sum_VD), block)
    sum_VD = jax.lax.fori_loop(0, blocks, lambda number, sums: add_block(number * block, block, sums), sum_VD)
    return add_block(blocks * block, rest, sum_VD) if rest else sum_VD
