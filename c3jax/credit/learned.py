"""Credit in which a critic's values take part: pure maths, gradients not stopped here.

Dimension key: P problem    L leaf of one problem    N message of one turn of one problem    E episode    K turn
A alternative in one context
Source: arXiv:2103.01955 (mappo); the code released with arXiv:2603.06859 (value_assisted, value_only).
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from c3jax.credit.apply import apply_credit, compare
from c3jax.credit.gae import compute_gae
from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.method import Normalise
from c3jax.types import Credit


def compute_episode_credit(
    matrix: CreditMatrix,
    return_PL: jax.Array,
    value: Sequence[jax.Array | None],
    *,
    discount: float,
    decay: float,
    normalise: Normalise,
    past: Sequence[jax.Array] = (),
) -> Credit:
    """mappo: the advantage by generalised estimation over turns, against the critic's value of the context.

    baseline = V(h_u), advantage = A_u of `compute_gae`, and value = V(h_u) + A_u, which is the lambda-return that the
    critic learns; with discount = decay = 1 it is the return to go. The turns are those that a policy takes: what an
    environment answers is between two of them.

    Args:
      matrix: of a method for independent episodes, so that every turn has a message a leaf.
      return_PL: returns.
      value: the critic's values [P, N] of each turn's contexts, those of turns that are not trained too; N = L. None
        for an environment's turn.
      discount, decay: as for `compute_gae`.
      normalise: static scope.
      past: [P, L] per turn, what was paid before it; from `apply.sum_past`.

    Returns:
      Credit, f32, each [P, N] per turn, in units of return.

    Raises:
      AssertionError: if the shapes do not fit.

    Source: arXiv:2103.01955.
    """
    taken = {turn: value_PN for turn, value_PN in enumerate(value) if value_PN is not None}
    chex.assert_equal_shape([return_PL, *taken.values()])

    def stack(of_turns: Sequence[jax.Array]) -> jax.Array:
        return jnp.stack([array_PN.reshape(-1) for array_PN in of_turns], axis=1)

    paid_EK = stack([past[turn] for turn in taken]) if past else None
    advantage_EK = compute_gae(return_PL.reshape(-1), stack(list(taken.values())), discount, decay, paid_EK)
    to_go = [return_PL - past_PL for past_PL in past] or [return_PL] * len(value)
    target, baseline = list(to_go), list(to_go)  # of what an environment said: no advantage
    for (turn, value_PN), advantage_E in zip(taken.items(), advantage_EK.T, strict=True):
        target[turn], baseline[turn] = value_PN + advantage_E.reshape(value_PN.shape), value_PN
    return _compare_trained(matrix, return_PL, tuple(target), tuple(baseline), normalise)


def compute_assisted_credit(
    matrix: CreditMatrix,
    return_PL: jax.Array,
    score: Sequence[jax.Array],
    fan_out: Sequence[int],
    *,
    share: float,
    normalise: Normalise,
) -> Credit:
    """value_assisted: c3 with a share of its baseline taken from a critic's scores q beside the returns r.

    advantage = r - [(1 - share) b(r) + share b(q)], b the mean over the other alternatives in the same context.

    Args:
      matrix: that of the method, whose rows are those of c3.
      return_PL: terminal returns.
      score: the critic's scores [P, N] of each turn's messages, in [0, 1].
      fan_out: alternatives a turn.
      share: of the baseline that the critic gives, in [0, 1].
      normalise: static scope.

    Returns:
      Credit, f32, each [P, N] per turn, in units of return.

    Raises:
      AssertionError: if the shapes do not fit.

    Source: the code released with arXiv:2603.06859.
    """
    plain = apply_credit(matrix, return_PL, normalise="none")
    chex.assert_trees_all_equal_shapes(tuple(score), plain.value)
    others = _list_others(matrix, score, fan_out)
    mixed = tuple((1.0 - share) * b_PN + share * o_PN for b_PN, o_PN in zip(plain.baseline, others, strict=True))
    return _compare_trained(matrix, return_PL, plain.value, mixed, normalise)


def compute_score_credit(
    matrix: CreditMatrix,
    return_PL: jax.Array,
    score: Sequence[jax.Array],
    fan_out: Sequence[int],
    *,
    normalise: Normalise,
) -> Credit:
    """value_only: a critic's scores q in place of the returns of c3; advantage = q - b(q).

    Args:
      matrix, return_PL, score, fan_out, normalise: as for `compute_assisted_credit`; returns say only what is rounding.

    Returns:
      Credit, f32, each [P, N] per turn, in units of return.
    """
    return _compare_trained(matrix, return_PL, tuple(score), _list_others(matrix, score, fan_out), normalise)


def _list_others(matrix: CreditMatrix, score: Sequence[jax.Array], fan_out: Sequence[int]) -> tuple[jax.Array, ...]:
    """The mean score of the other alternatives in each message's context."""
    # A turn that is not trained has no baseline, and may have no second alternative.
    return tuple(
        q_PN if group is None else _leave_one_out(q_PN, fan)
        for q_PN, fan, group in zip(score, fan_out, matrix.group, strict=True)
    )


def _leave_one_out(x_PN: jax.Array, fan: int) -> jax.Array:
    x_PNA = x_PN.reshape(x_PN.shape[0], -1, fan)
    return ((x_PNA.sum(axis=2, keepdims=True) - x_PNA) / (fan - 1)).reshape(x_PN.shape)


def _compare_trained(
    matrix: CreditMatrix,
    return_PL: jax.Array,
    value: tuple[jax.Array, ...],
    baseline: tuple[jax.Array, ...],
    normalise: Normalise,
) -> Credit:
    amounts = jnp.concatenate([return_PL, *value, *baseline], axis=1)
    baseline = tuple(v if g is None else b for v, b, g in zip(value, baseline, matrix.group, strict=True))
    size_P1 = jnp.max(jnp.abs(amounts), axis=1, keepdims=True)
    return compare(value, baseline, matrix.group, size_P1, normalise=normalise)
