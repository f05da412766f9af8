"""Credit as matrices: from the returns of a problem's leaves to the advantages of all its messages.

Without a critic and before any division by a standard deviation, every method is one linear map
advantage = (value - baseline) r of the leaf returns r. For a fan-out (f0, ..., f_{K-1}) a problem has
f0 * ... * fd messages at turn d and f0 * ... * f_{K-1} leaves, all in path order, so the leaves below a
message and the alternatives to it are contiguous. Built once a run, on the host, in float64.

Dimension key: N message of one turn of one problem    L leaf of one problem's tree
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from c3jax.credit.methods import METHODS, FanOut, Method, check_pairing, group_size


class CreditMatrix(NamedTuple):
    """The linear map of one method on one fan-out; a tuple entry per turn, all arrays float64.

    A pytree whose shapes carry the tree, so matrices of several methods on one fan-out stack along a
    leading axis for vmap.
    """

    value: tuple[np.ndarray, ...]  # [N, L]: mean over the message's own leaves
    baseline: tuple[np.ndarray, ...]  # [N, L]: equal to value where the turn is not trained
    group: tuple[np.ndarray | None, ...]  # [N, N]: mean over the message's group; None: the turn is not trained


def make_credit_matrix(method: str, fan_out: FanOut, trained: tuple[bool, ...] | None = None) -> CreditMatrix:
    """Build the value and baseline matrices of a method for every turn.

    advantage_N = (value_NL - baseline_NL) return_L. The rows of `value` sum to 1; those of `baseline` to 1,
    or to 0 for reinforce. A turn that is not trained keeps its value and has no advantage: its rows of
    value - baseline are zero, under every method.

    Args:
      method: a key of `METHODS`.
      fan_out: alternatives per context, one entry per turn.
      trained: per turn, whether it is trained; None for all turns.

    Raises:
      ValueError: if the method cannot give credit on this fan-out (see `check_pairing`).

    Source: arXiv:2603.06859 for the tree and its leave-one-out rows.
    """
    check_pairing(method, fan_out, trained)
    row = METHODS[method]
    is_trained = (True,) * len(fan_out) if trained is None else trained
    value = tuple(compute_value_matrix(fan_out, turn) for turn in range(len(fan_out)))
    size = [group_size(row, fan_out, turn) for turn in range(len(fan_out))]
    return CreditMatrix(
        value=value,
        baseline=tuple(_baseline(row, v, n) if on else v for v, n, on in zip(value, size, is_trained, strict=True)),
        group=tuple(
            compute_group_matrix(len(v), n) if on else None for v, n, on in zip(value, size, is_trained, strict=True)
        ),
    )


def compute_value_matrix(fan_out: FanOut, turn: int) -> np.ndarray:
    """Mean over each message's own leaves: [f0 * ... * f_turn, prod(fan_out)]."""
    num_messages, num_below = math.prod(fan_out[: turn + 1]), math.prod(fan_out[turn + 1 :])
    return np.kron(np.eye(num_messages), np.full((1, num_below), 1.0 / num_below))


def compute_group_matrix(num_messages: int, size: int) -> np.ndarray:
    """Mean over each message's group of `size` consecutive messages, its own included: [num_messages] squared."""
    return np.kron(np.eye(num_messages // size), np.full((size, size), 1.0 / size))


def _baseline(method: Method, value_NL: np.ndarray, size: int) -> np.ndarray:
    num_messages, num_leaves = value_NL.shape
    value_GKL = value_NL.reshape(num_messages // size, size, num_leaves)
    return method.baseline(value_GKL).reshape(num_messages, num_leaves)
