"""Formulas of losses, and how tokens are averaged: pure maths on arrays, f32.

Every loss is a weighted sum over tokens; weights and their total are fixed before the gradient is taken, so
micro-batches and devices add up to exactly the full batch.

Dimension key: N message    T slot of a message
"""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp


def compute_clipped_loss(
    logp: jax.Array,
    behaviour_logp: jax.Array,
    advantage: jax.Array,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped loss, entry by entry.

    l = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),  r = exp(logp - behaviour_logp)

    With a dual clip c, and where A < 0, it is min(l, -c A): a ratio above c has no gradient. Without one, what the
    policy has come to prefer against its advantage pulls in proportion to a ratio that nothing bounds.

    Args:
      logp: log-probability of a token under the policy, nats, or the mean of a message's tokens; any shape.
      behaviour_logp: the same under the policy that drew it.
      advantage: of the message, in units of return or, where it was normalised, none.
      clip_low, clip_high: how far below and above 1 the ratio has a gradient.
      dual_clip: c, above 1 + clip_high; None for no such bound.

    Returns:
      The loss, and whether the clip holds the gradient back, each of that shape.

    Raises:
      AssertionError: if the shapes differ.

    Source: Schulman et al., arXiv 1707.06347, equation 7; two bounds as arXiv 2503.14476, equation 10; the dual clip
      Ye et al., arXiv 1912.09729, equation 5.
    """
    chex.assert_equal_shape([logp, behaviour_logp, advantage])
    ratio = jnp.exp(logp - behaviour_logp)
    gain = ratio * advantage
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantage
    loss, is_clipped = -jnp.minimum(gain, clipped), clipped < gain
    if dual_clip is None:
        return loss, is_clipped
    is_far = (advantage < 0) & (ratio > dual_clip)
    return jnp.where(is_far, -dual_clip * advantage, loss), is_clipped | is_far


def compute_cispo_loss(
    logp: jax.Array, behaviour_logp: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array]:
    """The score-function loss with a clipped importance weight, entry by entry: every token keeps a gradient.

    l = -w A logp,  w = clip(r, 1 - clip_low, 1 + clip_high) held fixed,  r = exp(logp - behaviour_logp)

    Args:
      logp, behaviour_logp, advantage, clip_low, clip_high: as for `compute_clipped_loss`.

    Returns:
      The loss, and whether the weight is not the ratio, each of that shape.

    Source: MiniMax, arXiv 2506.13585, equations 4 and 5.
    """
    chex.assert_equal_shape([logp, behaviour_logp, advantage])
    ratio = jax.lax.stop_gradient(jnp.exp(logp - behaviour_logp))
    weight = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return -weight * advantage * logp, weight != ratio


def compute_reinforce_loss(
    logp: jax.Array, behaviour_logp: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array]:
    """The score-function loss, entry by entry: l = -A logp, whoever drew the token; nothing is clipped.

    Args:
      logp, behaviour_logp, advantage: as for `compute_clipped_loss`.
      clip_low, clip_high: not read.

    Returns:
      The loss of that shape, and that nothing is clipped.

    Source: Williams 1992, Machine Learning 8.
    """
    chex.assert_equal_shape([logp, behaviour_logp, advantage])
    return -advantage * logp, jnp.zeros_like(logp, bool)


def compute_divergence(logp_NT: jax.Array, reference_logp_NT: jax.Array, estimator: Literal["k1", "k3"]) -> jax.Array:
    """Estimate of KL(policy || reference) at each sampled token, nats [N, T]; d = logp - reference_logp.

    k1 = d                 unbiased in value. As a loss its own gradient has mean zero on policy, so the gradient is
                           that of d^2 / 2, which is the unbiased one of the divergence.
    k3 = exp(-d) - 1 + d   non-negative, lower variance; differentiated as it stands.

    Args:
      logp_NT, reference_logp_NT: log-probabilities of the sampled tokens under both, nats; any shape.
      estimator: static.

    Returns:
      The estimates, of the same shape.

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

    Args:
      value_N: the critic's values, in units of return.
      target_N: what they are to be.
      old_value_N: the values that credit was given with.
      clip: c, in units of return.

    Returns:
      The loss of each row.

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

    Args:
      logit_N: the critic's scores before the sigmoid.
      target_N: what they are to be.
      kind: static.

    Returns:
      The loss of each row.
    """
    chex.assert_equal_shape([logit_N, target_N])
    if kind == "bce":
        return jax.nn.softplus(logit_N) - target_N * logit_N
    return 0.5 * jnp.square(jax.nn.sigmoid(logit_N) - target_N)


def compute_weights(
    sampled_NT: jax.Array, aggregation: Literal["token", "message", "constant"], length: int = 1
) -> jax.Array:
    """Weight of each token; a loss is a weighted sum divided by `compute_total`.

    token     one each: the mean over all tokens.
    message   one over the message's length: the mean over messages of their tokens' means.
    constant  one over a length that is the same for all: the mean over messages of their tokens' sums, which, unlike
              the mean of means, does not make a token of a long message weigh less.

    Args:
      sampled_NT: the slots that hold a drawn token that is trained.
      aggregation: static.
      length: constant: tokens that a message's sum is divided by.

    Returns:
      weight_NT, f32, 0 where nothing was drawn.

    Source: token, arXiv 2503.14476, equation 12; message, arXiv 2402.03300, equation 3; constant, arXiv 2503.20783,
      section 3.2.
    """
    mask_NT = sampled_NT.astype(jnp.float32)
    if aggregation == "token":
        return mask_NT
    if aggregation == "constant":
        return mask_NT / length
    return mask_NT / jnp.maximum(mask_NT.sum(axis=1, keepdims=True), 1.0)


def compute_total(weight_NT: jax.Array, aggregation: Literal["token", "message", "constant"]) -> jax.Array:
    """What a sum over these tokens is divided by: their weights' sum or, of a constant length, the number of messages.

    Args:
      weight_NT: from `compute_weights`.
      aggregation: static, as there.

    Returns:
      The share of these messages in the total, f32, scalar.
    """
    if aggregation == "constant":
        return jnp.any(weight_NT > 0, axis=1).sum(dtype=jnp.float32)
    return weight_NT.sum()


def update_kl_coefficient(
    coefficient: jax.Array, divergence: jax.Array, target: float, horizon: float, messages: int
) -> jax.Array:
    """Steer the coefficient so that the divergence (nats a token) nears its target.

    coefficient *= 1 + clip(divergence / target - 1, -.2, .2) * messages / horizon

    Args:
      coefficient: of the divergence in the loss.
      divergence, target: nats a token.
      horizon: messages over which the coefficient answers.
      messages: of the step.

    Returns:
      The next step's coefficient.

    Source: Ziegler et al., arXiv 1909.08593, section 2.2.
    """
    error = jnp.clip(divergence / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * messages / horizon)
