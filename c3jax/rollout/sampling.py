"""From logits to a token and its log-probability, and the same log-probability again for the learner.

The policy is the distribution that tokens are really drawn from: softmax(logits / temperature) over the support that
top-k, then top-p over what top-k left, leave. The support is recorded with the sample, so the learner's probability is
over the same set of tokens whatever has become of the parameters: the ratio is one at the first epoch, importance
weights compare distributions over one set, and no token falls out of the set between sampling and training.

Dimension key beside types.py: C token of a chunk, E entry of a token's distribution (the vocabulary, or its support).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from c3jax.config.run import Sampling
from c3jax.models.attention import cap_softly

GREEDY = Sampling(temperature=1.0, top_k=1, top_p=1.0)  # a support of one token: the likeliest, lowest id on a tie

# Most numbers that one chunk's logits are: 124 MB. Larger chunks gain little, smaller ones read and write the head's
# gradient more often.
CHUNK_FLOATS = 31_000_000

_OUT = -1e30
_BLOCK = 512  # entries over which a running sum is made at once
_BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


def sample_tokens(
    logits_NV: jax.Array, uniform_N: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draw one token a row by inverting the distribution function at a uniform number.

    Args:
      logits_NV: f32.
      uniform_N: in [0, 1).
      sampling: the distribution.

    Returns:
      token_N (int32), logp_N (nats), support_NK (int32, -1 where top-p left fewer; K = 0 without top-k) and
      gradient_N: |d log pi(token) / d z|^2 = 1 - 2 pi(token) + sum_v pi(v)^2, z the logits over the temperature.
    """
    if sampling.top_k == 0:
        logp_NV = jax.nn.log_softmax(logits_NV / sampling.temperature)
        token_N = _invert(jnp.exp(logp_NV), uniform_N)
        drawn_logp_N = jnp.take_along_axis(logp_NV, token_N[:, None], axis=1)[:, 0]
        support_NK = jnp.zeros((logits_NV.shape[0], 0), jnp.int32)
        return token_N, drawn_logp_N, support_NK, _square_gradient(logp_NV, token_N)
    top_k = min(sampling.top_k, logits_NV.shape[-1])
    top_NK, id_NK = jax.lax.top_k(logits_NV, top_k)
    scaled_NK = top_NK / sampling.temperature
    mass_NK = jax.nn.softmax(scaled_NK)
    before_NK = jnp.cumsum(mass_NK, axis=-1) - mass_NK
    # The first is always in; a token is in while those before it have not reached p.
    is_in_NK = (before_NK < sampling.top_p) | (jnp.arange(top_k) == 0)
    logp_NK = jax.nn.log_softmax(jnp.where(is_in_NK, scaled_NK, _OUT))
    entry_N = _invert(jnp.exp(logp_NK), uniform_N)
    token_N = jnp.take_along_axis(id_NK, entry_N[:, None], axis=1)[:, 0]
    drawn_logp_N = jnp.take_along_axis(logp_NK, entry_N[:, None], axis=1)[:, 0]
    return token_N, drawn_logp_N, jnp.where(is_in_NK, id_NK, -1), _square_gradient(logp_NK, entry_N)


def _square_gradient(logp_NE: jax.Array, entry_N: jax.Array) -> jax.Array:
    # (1 - pi(a))^2 + sum_{v != a} pi(v)^2: the terms of 1 - 2 pi + sum pi^2 would cancel where a token is nearly sure.
    is_drawn_NE = jnp.arange(logp_NE.shape[-1]) == entry_N[:, None]
    return jnp.sum(jnp.square(jnp.where(is_drawn_NE, jnp.expm1(logp_NE), jnp.exp(logp_NE))), axis=-1)


def compute_token_logp(
    hidden_BD: jax.Array,
    token_B: jax.Array,
    support_BK: jax.Array,
    head_VD: jax.Array,
    sampling: Sampling,
    dtype: str,
    softcap: float | None = None,
) -> jax.Array:
    """Log-probability of each drawn token under a policy's hidden states, over the recorded support.

    log pi(a) = z_a / t - log sum_{v in support} exp(z_v / t),   z = hidden . head
    Tokens are taken a chunk at a time: no [B, V] logits exist, forward or backward, and none of the vocabulary where
    there is a support. The backward pass computes the logits again; a loss's gradient is cheaper by learner.token_loss.

    Args:
      hidden_BD: the states that the tokens are drawn from.
      token_B: the tokens.
      support_BK: what truncation left to draw from, -1 where there are fewer; K = 0 without top-k.
      head_VD: output weights.
      sampling: how the tokens were drawn.
      dtype: of the products.
      softcap: of the logits, as the decoder has it.

    Returns:
      logp_B, f32, nats.
    """
    cast_VD, (vocab, width) = jnp.asarray(head_VD, dtype), head_VD.shape

    def compute_one(token: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        hidden_CD, token_C, support_CK = (array[None] for array in token)
        scaled_CE, is_token_CE = compute_scores(
            hidden_CD.astype(dtype), token_C, support_CK, cast_VD, sampling, softcap
        )
        logp_CE = jax.nn.log_softmax(scaled_CE)
        return jnp.sum(jnp.where(is_token_CE, logp_CE, 0.0))

    size = size_chunk(len(token_B), vocab, width, support_BK.shape[1])
    return jax.lax.map(jax.checkpoint(compute_one), (hidden_BD, token_B, support_BK), batch_size=size)


def compute_scores(
    hidden_BD: jax.Array,
    token_B: jax.Array,
    support_BK: jax.Array,
    head_VD: jax.Array,
    sampling: Sampling,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """z / t of every entry that a token may be, and whether the entry is the token.

    Entries (E) are the vocabulary, or the support: then only its rows of the head are read.

    Args:
      hidden_BD, head_VD: of the type of the products.
      token_B, support_BK, sampling, softcap: as for `compute_token_logp`.

    Returns:
      scaled_BE, f32, and is_token_BE.
    """
    if support_BK.shape[1] == 0:
        logits_BV = jnp.einsum("bd,vd->bv", hidden_BD, head_VD, preferred_element_type=jnp.float32)
        logits_BV = cap_softly(logits_BV, softcap)
        return logits_BV / sampling.temperature, jnp.arange(head_VD.shape[0]) == token_B[:, None]
    rows_BKD = head_VD[jnp.maximum(support_BK, 0)]
    logits_BK = jnp.einsum("bd,bkd->bk", hidden_BD, rows_BKD, preferred_element_type=jnp.float32)
    logits_BK = cap_softly(logits_BK, softcap)
    is_in_BK = support_BK >= 0
    return jnp.where(is_in_BK, logits_BK / sampling.temperature, _OUT), is_in_BK & (support_BK == token_B[:, None])


def size_chunk(tokens: int, vocab: int, width: int, entries: int, chunk_floats: int = CHUNK_FLOATS) -> int:
    """Tokens of a chunk: chunks of equal size, each holding at most chunk_floats numbers (but one token at least).

    A token holds a logit for each word of the vocabulary, or, with a support, a row of the head for each entry.

    Args:
      tokens: of the batch.
      vocab, width: sizes of the head.
      entries: of a support (K); 0 without top-k.
      chunk_floats: most numbers of a chunk.
    """
    most = max(chunk_floats // (entries * width or vocab), 1)
    return -(-tokens // -(-tokens // most))


def _invert(mass_NK: jax.Array, uniform_N: jax.Array) -> jax.Array:
    """Index of the first cumulative mass above the uniform number; never of an entry without mass."""
    rows, entries = mass_NK.shape
    if entries > _BLOCK:
        # A vocabulary is summed in blocks first, on all cores: running sums over the whole of it are made on one.
        mass_NGB = jnp.pad(mass_NK, ((0, 0), (0, -entries % _BLOCK))).reshape(rows, -1, _BLOCK)
        mass_NG = jnp.sum(mass_NGB, axis=-1)
        block_N = _invert(mass_NG, uniform_N)
        before_N = jnp.sum(jnp.where(jnp.arange(mass_NG.shape[1]) < block_N[:, None], mass_NG, 0.0), axis=-1)
        mass_NB = jnp.take_along_axis(mass_NGB, block_N[:, None, None], axis=1)[:, 0]
        left_N = uniform_N * jnp.sum(mass_NG, axis=-1) - before_N
        within_N = jnp.clip(left_N / jnp.sum(mass_NB, axis=-1), 0.0, _BELOW_ONE)
        return block_N * _BLOCK + _invert(mass_NB, within_N)
    reached_NK = jnp.where(mass_NK > 0, jnp.cumsum(mass_NK, axis=-1), 0.0)
    # Scaled by the largest sum at an entry with mass: a parallel sum rounds differently at every entry, and must not
    # put the draw past them all.
    is_past_NK = reached_NK > uniform_N[:, None] * jnp.max(reached_NK, axis=-1, keepdims=True)
    return jnp.argmax(is_past_NK, axis=-1).astype(jnp.int32)
