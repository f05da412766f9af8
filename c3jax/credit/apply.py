"""Applying a credit matrix to a batch of returns, and what is not linear: division by a standard deviation.

NumPy arrays in, NumPy arrays out, and JAX is not even imported; JAX arrays in, JAX arrays out, traced or not.

Dimension key: P problem    L leaf of one problem's tree    N message of one turn of one problem
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.method import SCOPES, Normalise
from c3jax.types import Credit

Array = Any  # NumPy's or JAX's

# An advantage or a spread below this share of the problem's largest |return| is float32 rounding, not credit.
# Left in, it would count as credit in zero_credit_share and be blown up by a division by its own size.
RESOLUTION = 1e-6


def apply_credit(matrix: CreditMatrix, return_PL: Array, *, normalise: Normalise, past: Sequence[Array] = ()) -> Credit:
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
      return_PL: terminal return of every leaf, in path order, in units of return; of NumPy, with a matrix that is too,
        or of JAX.
      normalise: static scope; `methods.check_normalise` says which a method allows.
      past: from `sum_past`, where environments pay on the way: a turn's messages are then worth what is still to come,
        the return less what was paid before them (return to go), and so is what they are compared with.

    Returns:
      Credit, f32, each [P, N] per turn, of NumPy or JAX as the returns are. Value and baseline are in units of
      return, and so is the advantage unless it was normalised, when it has none.

    Raises:
      AssertionError: if the shapes do not fit or the scope is none of the above.
    """
    leaves = matrix.value[0].shape[-1]
    assert return_PL.ndim == 2 and return_PL.shape[1] == leaves, f"expected [P, {leaves}], got {return_PL.shape}"
    xp = find_namespace(return_PL, *matrix.value, *matrix.baseline)
    return_PL = xp.asarray(return_PL, xp.float32)
    value, baseline = _apply_matrix(matrix, return_PL, past)
    size_P1 = xp.max(xp.abs(return_PL), axis=1, keepdims=True)
    return compare(value, baseline, matrix.group, size_P1, normalise=normalise)


def apply_less_mean(matrix: CreditMatrix, mean: Array, return_PL: Array, *, normalise: Normalise) -> Credit:
    """Credit of returns less a mean of earlier steps, which thereby has the weight that a baseline's row lacks of 1.

    Args:
      matrix, return_PL, normalise: as for `apply_credit`.
      mean: scalar, in units of return.

    Returns:
      Credit as of `apply_credit`; value and baseline with the mean in them.
    """
    credit = apply_credit(matrix, return_PL - mean, normalise=normalise)
    value, baseline = (tuple(part_PN + mean for part_PN in of_turns) for of_turns in credit[:2])
    return credit._replace(value=value, baseline=baseline)


def sum_past(rewards: Sequence[Array | None], leaves: int) -> tuple[Array, ...]:
    """What was paid before each turn, on the way to each leaf of a tree.

    Args:
      rewards: of each turn what environments gave with its messages, [P, N] in path order; None where none answers.
      leaves: of a problem (L).

    Returns:
      [P, L] per turn, f32; nothing where no environment answers.
    """
    given = [reward_PN for reward_PN in rewards if reward_PN is not None]
    if not given:
        return ()
    xp = find_namespace(*given)
    paid_PL, past = xp.zeros((len(given[0]), leaves), xp.float32), []
    for reward_PN in rewards:
        past.append(paid_PL)
        if reward_PN is not None:
            paid_PL = paid_PL + xp.repeat(xp.asarray(reward_PN, xp.float32), leaves // reward_PN.shape[1], axis=1)
    return tuple(past)


def find_namespace(*arrays: Array) -> Any:
    """NumPy's functions where all arrays are NumPy's, otherwise those of the first that is not: `jax.numpy`."""
    return next((array.__array_namespace__() for array in arrays if not isinstance(array, np.ndarray)), np)


def compare(
    value: tuple[Array, ...],
    baseline: tuple[Array, ...],
    group: tuple[Array | None, ...],
    size_P1: Array,
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
    xp = find_namespace(size_P1, *value, *baseline)
    resolution_P1 = RESOLUTION * size_P1
    advantage = tuple(_drop_rounding(v - b, resolution_P1) for v, b in zip(value, baseline, strict=True))
    std = _compute_std(advantage, group, normalise)
    if std is not None:
        resolution = resolution_P1 if normalise == "group" else xp.max(resolution_P1)
        advantage = tuple(_divide(a, s, resolution) for a, s in zip(advantage, std, strict=True))
    return Credit(value=value, baseline=baseline, advantage=advantage)


def _apply_matrix(
    matrix: CreditMatrix, return_PL: Array, past: Sequence[Array]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    xp = find_namespace(return_PL)
    if past:
        to_go = [return_PL - past_PL for past_PL in past]

        def apply(weights: Sequence[Array]) -> tuple[Array, ...]:
            pairs = zip(to_go, weights, strict=True)
            return tuple(_multiply("pl,nl->pn", x_PL, xp.asarray(w_NL, xp.float32)) for x_PL, w_NL in pairs)

        return apply(matrix.value), apply(matrix.baseline)
    blocks = [xp.asarray(weight_NL, xp.float32) for weight_NL in matrix.value + matrix.baseline]
    mean_PN = _multiply("pl,nl->pn", return_PL, xp.concatenate(blocks))  # one product for all turns
    ends = list(itertools.accumulate(len(block) for block in blocks))
    per_turn = tuple(xp.split(mean_PN, ends[:-1], axis=1))
    return per_turn[: len(matrix.value)], per_turn[len(matrix.value) :]


def _multiply(axes: str, x: Array, y: Array) -> Array:
    xp = find_namespace(x, y)
    # Full precision because accelerators would otherwise round returns to bf16 or tf32.
    return xp.einsum(axes, x, y, **({} if xp is np else {"precision": "highest"}))


def _drop_rounding(advantage_PN: Array, resolution_P1: Array) -> Array:
    # Nothing is below the rounding of returns that are not finite: they show in the advantage, and so in the loss.
    xp = find_namespace(advantage_PN)
    return xp.where(xp.abs(advantage_PN) < resolution_P1, 0.0, advantage_PN)


def _compute_std(
    advantage: tuple[Array, ...], group: tuple[Array | None, ...], normalise: Normalise
) -> tuple[Array, ...] | None:
    if normalise == "none":
        return None
    xp = find_namespace(*advantage)
    if normalise == "turn":
        return tuple(xp.std(a) for a in advantage)
    if normalise == "batch":
        std = xp.std(xp.concatenate([a.ravel() for a, g in zip(advantage, group, strict=True) if g is not None]))
        return (std,) * len(advantage)
    return tuple(_group_std(a, g) for a, g in zip(advantage, group, strict=True))


def _group_std(advantage_PN: Array, group_NN: Array | None) -> Array:
    xp = find_namespace(advantage_PN)
    if group_NN is None:
        return xp.zeros_like(advantage_PN)
    weight_NN = xp.asarray(group_NN, xp.float32)

    def mean(x_PN: Array) -> Array:
        return _multiply("pm,nm->pn", x_PN, weight_NN)

    return xp.sqrt(mean(xp.square(advantage_PN - mean(advantage_PN))))


def _divide(advantage_PN: Array, std: Array, resolution: Array) -> Array:
    xp = find_namespace(advantage_PN)
    has_none = std <= resolution
    return xp.where(has_none, 0.0, advantage_PN / xp.where(has_none, 1.0, std))


def zero_credit_share(credit: Credit) -> Array:
    """Share of messages whose advantage is exactly zero, and which therefore teach nothing.

    Args:
      credit: of a batch, [P, N] per turn.

    Returns:
      The share of each turn's messages: [turns], f32, in [0, 1].
    """
    xp = find_namespace(*credit.advantage)
    return xp.stack([xp.mean(advantage_PN == 0.0, dtype=xp.float32) for advantage_PN in credit.advantage])
