"""Fidelity: does an estimator put the messages of a context in their true order, and how much does its credit vary?

Everything is taken within one context, so that an offset that all messages of a context share does not count. Contexts
with fewer messages are padded; `keep` says which entries are there. Compare estimators on the same draws of one common
policy: across policies these figures describe the policies. The target must not come from the returns that the estimate
was made of, or fidelity is 1 by construction.

Dimension key: C context    N message of a context
Source: arXiv:2603.06859, section on diagnostics; Spearman 1904, American Journal of Psychology 15.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Values nearer than this share of a context's largest |value| are tied: a difference of rounding is no order.
RESOLUTION = 1e-6


class Fidelity(NamedTuple):
    """Rank correlation over many contexts."""

    mean: jax.Array  # over the contexts that have one; NaN if none has
    defined: jax.Array  # contexts that have one
    undefined: jax.Array  # contexts without: fewer than two messages, or an estimate or target with one value


class SplitHalf(NamedTuple):
    """Fidelity to a target that is itself sampled, known by two independent halves."""

    observed: jax.Array  # mean correlation with one half
    reliability: jax.Array  # mean correlation of the halves with each other
    corrected: jax.Array  # observed / sqrt(reliability); NaN where the halves do not agree at all
    defined: jax.Array  # contexts in which all three correlations are defined


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


def summarise_fidelity(correlation_C: jax.Array) -> Fidelity:
    """Mean over the contexts whose correlation is defined, and how many are not."""
    chex.assert_rank(correlation_C, 1)
    is_defined_C = ~jnp.isnan(correlation_C)
    return Fidelity(jnp.nanmean(correlation_C), jnp.sum(is_defined_C), jnp.sum(~is_defined_C))


def compute_split_half(
    estimate_CN: jax.Array, first_CN: jax.Array, second_CN: jax.Array, keep_CN: jax.Array
) -> SplitHalf:
    """Fidelity to a sampled target, its noise taken out: mean rho with a half / sqrt(mean rho of the halves).

    The correction is Spearman's; it is approximate for ranks. Means are over contexts, before the division.

    Args:
      first_CN, second_CN: estimates of the target from equally many draws, independent of each other and of the
        estimate.
      keep_CN: bool, which entries are there.
    """
    with_first_C = compute_spearman(estimate_CN, first_CN, keep_CN)
    with_second_C = compute_spearman(estimate_CN, second_CN, keep_CN)
    halves_C = compute_spearman(first_CN, second_CN, keep_CN)
    is_defined_C = ~jnp.isnan(with_first_C + with_second_C + halves_C)
    observed = jnp.nanmean(jnp.where(is_defined_C, (with_first_C + with_second_C) / 2, jnp.nan))
    reliability = jnp.nanmean(jnp.where(is_defined_C, halves_C, jnp.nan))
    corrected = jnp.where(reliability > 0, observed / jnp.sqrt(jnp.where(reliability > 0, reliability, 1.0)), jnp.nan)
    return SplitHalf(observed, reliability, corrected, jnp.sum(is_defined_C))


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
