"""Losses per token, and how tokens are averaged: pure maths on arrays, f32.

Every loss is a weighted sum over tokens; weights and their total are fixed before the gradient is taken, so
micro-batches and devices add up to exactly the full batch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp


class TokenTerms(NamedTuple):
    """What the loss of each token reads beside its log-probability; [B], f32."""

    behaviour_logp: jax.Array  # nats
    advantage: jax.Array  # its message's
    reference_logp: jax.Array | None  # nats; None where the loss has no divergence
    kl_coefficient: jax.Array
    weight: jax.Array  # share of the whole loss


def compute_token_figures(
    logp_B: jax.Array, terms: TokenTerms, clip: float, estimator: Literal["k1", "k3"]
) -> dict[str, jax.Array]:
    """What a token's log-probability says of it, each [B]; "loss" is policy_loss + kl_coefficient * kl."""
    loss_B1, is_clipped_B1 = compute_policy_loss(logp_B[:, None], terms.behaviour_logp[:, None], terms.advantage, clip)
    kl_B = jnp.zeros_like(logp_B)
    if terms.reference_logp is not None:
        kl_B = compute_divergence(logp_B, terms.reference_logp, estimator)
    return {
        "policy_loss": loss_B1[:, 0],
        "clip_share": is_clipped_B1[:, 0].astype(jnp.float32),
        "ratio_deviation": jnp.abs(jnp.exp(logp_B - terms.behaviour_logp) - 1.0),
        "kl": kl_B,
        "loss": loss_B1[:, 0] + terms.kl_coefficient * kl_B,
    }


def compute_policy_loss(
    logp_NT: jax.Array, behaviour_logp_NT: jax.Array, advantage_N: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped loss of each token, the message's advantage broadcast to its tokens.

    l = -min(r A, clip(r, 1 - clip, 1 + clip) A),  r = exp(logp - behaviour_logp)

    Returns: loss [N, T] and whether the clip holds the token's gradient back [N, T].
    Source: Schulman et al., arXiv 1707.06347, equation 7.
    """
    chex.assert_equal_shape([logp_NT, behaviour_logp_NT])
    chex.assert_shape(advantage_N, logp_NT.shape[:1])
    ratio_NT = jnp.exp(logp_NT - behaviour_logp_NT)
    gain_NT = ratio_NT * advantage_N[:, None]
    clipped_NT = jnp.clip(ratio_NT, 1.0 - clip, 1.0 + clip) * advantage_N[:, None]
    return -jnp.minimum(gain_NT, clipped_NT), clipped_NT < gain_NT


def compute_divergence(logp_NT: jax.Array, reference_logp_NT: jax.Array, estimator: Literal["k1", "k3"]) -> jax.Array:
    """Estimate of KL(policy || reference) at each sampled token, nats [N, T]; d = logp - reference_logp.

    k1 = d                 unbiased in value. As a loss its own gradient has mean zero on policy, so the gradient is
                           that of d^2 / 2, which is the unbiased one of the divergence.
    k3 = exp(-d) - 1 + d   non-negative, lower variance; differentiated as it stands.
    Source: Schulman, "Approximating KL Divergence" (2020), for the values.
    """
    chex.assert_equal_shape([logp_NT, reference_logp_NT])
    gap_NT = logp_NT - reference_logp_NT
    if estimator == "k1":
        square_NT = 0.5 * gap_NT**2
        return jax.lax.stop_gradient(gap_NT - square_NT) + square_NT
    return jnp.exp(-gap_NT) - 1.0 + gap_NT


def compute_value_loss(
    value_N: jax.Array, target_N: jax.Array, old_value_N: jax.Array, clip: float | None
) -> jax.Array:
    """Squared error of a value for each row [N], in squared units of return, half of it.

    l = max((v - R)^2, (old + clip(v - old, -c, c) - R)^2) / 2, or its first term alone where c is None: a row whose
    value has moved further than c towards its target, from the value that credit was given with, has no gradient.
    Source: Schulman et al., arXiv 1506.02438, equation 28, for the target; OpenAI baselines' ppo2 for the clip.
    """
    chex.assert_equal_shape([value_N, target_N, old_value_N])
    loss_N = jnp.square(value_N - target_N)
    if clip is not None:
        near_N = old_value_N + jnp.clip(value_N - old_value_N, -clip, clip)
        loss_N = jnp.maximum(loss_N, jnp.square(near_N - target_N))
    return 0.5 * loss_N


def compute_score_loss(logit_N: jax.Array, target_N: jax.Array, kind: Literal["bce", "mse"]) -> jax.Array:
    """Loss of q = sigmoid(logit) against a target in [0, 1] for each row [N].

    bce = -R log q - (1 - R) log(1 - q), nats;  mse = (q - R)^2 / 2. Both are least in expectation at q = E[R].
    """
    chex.assert_equal_shape([logit_N, target_N])
    if kind == "bce":
        return jax.nn.softplus(logit_N) - target_N * logit_N
    return 0.5 * jnp.square(jax.nn.sigmoid(logit_N) - target_N)


def compute_weights(sampled_NT: jax.Array, aggregation: Literal["token", "message"]) -> jax.Array:
    """Weight of each token [N, T], f32; a mean is a weighted sum divided by the weights' total.

    token: one each.  message: one over the message's length, so that every message counts one.
    """
    mask_NT = sampled_NT.astype(jnp.float32)
    if aggregation == "token":
        return mask_NT
    return mask_NT / jnp.maximum(mask_NT.sum(axis=1, keepdims=True), 1.0)


def update_kl_coefficient(
    coefficient: jax.Array, divergence: jax.Array, target: float, horizon: float, messages: int
) -> jax.Array:
    """Steer the coefficient so that the divergence (nats a token) nears its target.

    coefficient *= 1 + clip(divergence / target - 1, -.2, .2) * messages / horizon
    Source: Ziegler et al., arXiv 1909.08593, section 2.2.
    """
    error = jnp.clip(divergence / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * messages / horizon)
