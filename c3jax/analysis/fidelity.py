"""Fidelity: does an estimator put the messages of a context in their true order, and how much does its credit vary?

Everything is taken within one context, so that an offset that all messages of a context share does not count. Contexts
with fewer messages are padded; `keep` says which entries are there. Compare estimators on the same draws of one common
policy: across policies these figures describe the policies. The target must not come from the returns that the estimate
was made of, or fidelity is 1 by construction.

Dimension key: C context    N message of a context
Source: arXiv:2603.06859, section on diagnostics; Spearman 1904, American Journal of Psychology 15.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

# Values nearer than this share of a context's largest |value| are tied: a difference of rounding is no order.
RESOLUTION = 1e-6


def compute_spearman(estimate_CN: jax.Array, target_CN: jax.Array, keep_CN: jax.Array) -> jax.Array:
    """Spearman's rank correlation within each context: Pearson's correlation of the ranks, ties averaged.

    scipy's `spearmanr` takes no mask and no jit, and no share of rounding below which values are tied.

    Args:
      estimate_CN, target_CN: of each message.
      keep_CN: bool, which entries are there.

    Returns:
      [C], f32, in [-1, 1]; NaN, never 1, where fewer than two messages are kept or one side is constant.
    """
    chex.assert_rank([estimate_CN, target_CN, keep_CN], 2)
    chex.assert_equal_shape([estimate_CN, target_CN, keep_CN])
    left_CN, right_CN = _center_ranks(estimate_CN, keep_CN), _center_ranks(target_CN, keep_CN)
    norm_C = jnp.sum(left_CN**2, axis=1) * jnp.sum(right_CN**2, axis=1)
    product_C = jnp.sum(left_CN * right_CN, axis=1)
    return jnp.where(norm_C > 0, product_C / jnp.sqrt(jnp.where(norm_C > 0, norm_C, 1.0)), jnp.nan)


def compute_within_context_variance(credit_CN: jax.Array, keep_CN: jax.Array) -> jax.Array:
    """Sample variance of the credit of each context's messages, sum (x - mean)^2 / (n - 1).

    Leave-one-out credit has (n/(n - 1))^2 times the variance of mean-centred credit on the same returns.

    Args:
      keep_CN: bool, which entries are there.

    Returns:
      [C], f32, in squared units of the credit; NaN where fewer than two messages are kept.
    """
    chex.assert_rank([credit_CN, keep_CN], 2)
    chex.assert_equal_shape([credit_CN, keep_CN])
    centred_CN = _center(jnp.asarray(credit_CN, jnp.float32), keep_CN)
    count_C = jnp.sum(keep_CN, axis=1)
    return jnp.where(count_C > 1, jnp.sum(centred_CN**2, axis=1) / jnp.maximum(count_C - 1, 1), jnp.nan)


def _center_ranks(value_CN: jax.Array, keep_CN: jax.Array) -> jax.Array:
    value_CN = jnp.where(keep_CN, jnp.asarray(value_CN, jnp.float32), 0.0)
    resolution_C11 = RESOLUTION * jnp.max(jnp.abs(value_CN), axis=1)[:, None, None]
    above_CNN = value_CN[:, :, None] - value_CN[:, None, :]
    # A rank is one for each message below and a half for each tied one; what is the same for all drops out centred.
    step_CNN = jnp.where(above_CNN > resolution_C11, 1.0, jnp.where(above_CNN < -resolution_C11, 0.0, 0.5))
    return _center(jnp.sum(step_CNN * keep_CN[:, None, :], axis=2), keep_CN)


def _center(value_CN: jax.Array, keep_CN: jax.Array) -> jax.Array:
    mean_C1 = jnp.sum(value_CN * keep_CN, axis=1, keepdims=True) / jnp.maximum(keep_CN.sum(axis=1, keepdims=True), 1)
    return jnp.where(keep_CN, value_CN - mean_C1, 0.0)
