"""Applying a credit matrix to a batch of returns, and what is not linear: division by a standard deviation.

Dimension key: P problem    L leaf of one problem's tree    N message of one turn of one problem
"""

from __future__ import annotations

import itertools

import chex
import jax
import jax.numpy as jnp

from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.method import SCOPES, Normalise
from c3jax.types import Credit

# An advantage or a spread below this share of the problem's largest |return| is float32 rounding, not credit.
# Left in, it would count as credit in zero_credit_share and be blown up by a division by its own size.
RESOLUTION = 1e-6


def apply_credit(matrix: CreditMatrix, return_PL: jax.Array, *, normalise: Normalise) -> Credit:
    """Give every message its value, baseline and advantage.

    advantage_PN = (value_NL - baseline_NL) return_PL, exactly 0 where it is below `RESOLUTION`, and then
    divided by the population standard deviation (no epsilon) of the advantages over a scope:
      none   not divided
      group  the messages that the method compares: c3 the alternatives in the message's context, flat
             methods the problem's episodes. Leave-one-out and own-including means become the same
             estimate, and in a group of two every unequal pair becomes +1 and -1
      turn   all messages of the turn in the batch (as arXiv:2602.08847 does per agent)
      batch  all messages of all trained turns in the batch
    Where a scope has no spread the advantages are exactly 0. Means are not subtracted again. A return that is not
    finite makes advantages that are not finite.

    Args:
      matrix: from `make_credit_matrix`; under vmap it may carry a leading axis of methods.
      return_PL: terminal return of every leaf, in path order, in units of return.
      normalise: static scope; `methods.check_normalise` says which a method allows.

    Returns:
      Credit, f32, each [P, N] per turn. Value and baseline are in units of return, and so is the advantage
      unless it was normalised, when it has none.

    Raises:
      AssertionError: if the shapes do not fit or the scope is none of the above.
    """
    chex.assert_shape(return_PL, (None, matrix.value[0].shape[-1]))
    return_PL = jnp.asarray(return_PL, jnp.float32)
    value, baseline = _apply_matrix(matrix, return_PL)
    size_P1 = jnp.max(jnp.abs(return_PL), axis=1, keepdims=True)
    return compare(value, baseline, matrix.group, size_P1, normalise=normalise)


def compare(
    value: tuple[jax.Array, ...],
    baseline: tuple[jax.Array, ...],
    group: tuple[chex.Array | None, ...],
    size_P1: jax.Array,
    *,
    normalise: Normalise,
) -> Credit:
    """Subtract baselines from values, wherever they come from, and normalise as `apply_credit` does.

    Args:
      value, baseline: [P, N] per turn, f32, in units of return.
      group: from the credit matrix; None where the turn is not trained.
      size_P1: largest magnitude that entered a problem's values; what is rounding is measured by it.
      normalise: static scope.

    Returns:
      Credit, f32, each [P, N] per turn, as `apply_credit` gives it.

    Raises:
      AssertionError: if the scope is none of `method.SCOPES`.
    """
    assert normalise in SCOPES, f"normalise: expected one of {SCOPES}, got {normalise!r}"
    resolution_P1 = RESOLUTION * size_P1
    advantage = tuple(_drop_rounding(v - b, resolution_P1) for v, b in zip(value, baseline, strict=True))
    std = _compute_std(advantage, group, normalise)
    if std is not None:
        resolution = resolution_P1 if normalise == "group" else jnp.max(resolution_P1)
        advantage = tuple(_divide(a, s, resolution) for a, s in zip(advantage, std, strict=True))
    return Credit(value=value, baseline=baseline, advantage=advantage)


def _apply_matrix(matrix: CreditMatrix, return_PL: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    blocks = [jnp.asarray(weight_NL, jnp.float32) for weight_NL in matrix.value + matrix.baseline]
    chex.assert_equal_shape(blocks, dims=-1)
    # One product for all turns; full precision because accelerators would otherwise round returns to bf16 or tf32.
    mean_PN = jnp.einsum("pl,nl->pn", return_PL, jnp.concatenate(blocks), precision=jax.lax.Precision.HIGHEST)
    ends = list(itertools.accumulate(len(block) for block in blocks))
    per_turn = tuple(jnp.split(mean_PN, ends[:-1], axis=1))
    return per_turn[: len(matrix.value)], per_turn[len(matrix.value) :]


def _drop_rounding(advantage_PN: jax.Array, resolution_P1: jax.Array) -> jax.Array:
    # Nothing is below the rounding of returns that are not finite: they show in the advantage, and so in the loss.
    return jnp.where(jnp.abs(advantage_PN) < resolution_P1, 0.0, advantage_PN)


def _compute_std(
    advantage: tuple[jax.Array, ...], group: tuple[chex.Array | None, ...], normalise: Normalise
) -> tuple[jax.Array, ...] | None:
    if normalise == "none":
        return None
    if normalise == "turn":
        return tuple(jnp.std(a) for a in advantage)
    if normalise == "batch":
        std = jnp.std(jnp.concatenate([a.ravel() for a, g in zip(advantage, group, strict=True) if g is not None]))
        return (std,) * len(advantage)
    return tuple(_group_std(a, g) for a, g in zip(advantage, group, strict=True))


def _group_std(advantage_PN: jax.Array, group_NN: chex.Array | None) -> jax.Array:
    if group_NN is None:
        return jnp.zeros_like(advantage_PN)
    weight_NN = jnp.asarray(group_NN, jnp.float32)

    def mean(x_PN: jax.Array) -> jax.Array:
        return jnp.einsum("pm,nm->pn", x_PN, weight_NN, precision=jax.lax.Precision.HIGHEST)

    return jnp.sqrt(mean(jnp.square(advantage_PN - mean(advantage_PN))))


def _divide(advantage_PN: jax.Array, std: jax.Array, resolution: jax.Array) -> jax.Array:
    has_none = std <= resolution
    return jnp.where(has_none, 0.0, advantage_PN / jnp.where(has_none, 1.0, std))


def zero_credit_share(credit: Credit) -> jax.Array:
    """Share of messages whose advantage is exactly zero, and which therefore teach nothing.

    Args:
      credit: of a batch, [P, N] per turn.

    Returns:
      The share of each turn's messages: [turns], f32, in [0, 1].
    """
    return jnp.stack([jnp.mean(advantage_PN == 0.0, dtype=jnp.float32) for advantage_PN in credit.advantage])
