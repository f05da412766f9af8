"""Credit as matrices: from the returns of a problem's leaves to the advantages of all its messages.

Without a critic and before any division by a standard deviation, every method is one linear map
advantage = (value - baseline) r of the leaf returns r. The sampling plan (`plans.py`) has what leaves and messages a
problem has, and their order; the rows are made by `rows.py`. Built once a plan, on the host, in float64.

Dimension key: N message of one turn of one problem    L leaf of one problem
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from c3jax.credit.methods import find_method
from c3jax.credit.pairing import check_pairing, group_size
from c3jax.credit.plans import Plan, count_credited
from c3jax.credit.rows import compute_rows


class CreditMatrix(NamedTuple):
    """The linear map of one method on one plan; a tuple entry per turn, all arrays float64.

    A pytree whose shapes carry the plan, so matrices of several methods on one plan stack along a
    leading axis for vmap.
    """

    value: tuple[np.ndarray, ...]  # [N, L]: what the message is worth
    baseline: tuple[np.ndarray, ...]  # [N, L]: what it is compared with; equal to value where the turn is not trained
    group: tuple[np.ndarray | None, ...]  # [N, N]: mean over the message's group; None: the turn is not trained


def make_credit_matrix(
    method: str, plan: Plan, trained: tuple[bool, ...] | None = None, mean: float = 0.0
) -> CreditMatrix:
    """Build the value and baseline matrices of a method for every turn.

    advantage_N = (value_NL - baseline_NL) return_L. The rows of a built-in method's `value` sum to 1; those of its
    `baseline` to 1, or to 0 for reinforce, mappo, coma, rae and shrunk (whose baselines are made elsewhere). A method
    that carries a critic has the part that comes from returns here: mappo and coma the episode's return and no
    baseline, value_assisted and value_only the rows of c3. A turn that is not trained keeps its value and has no
    advantage: its rows of value - baseline are zero, under every method.

    Args:
      method: a key of `METHODS`, or a user's own as module:NAME.
      plan: what is sampled for a problem.
      trained: per turn, whether it is trained; None for all turns.
      mean: share of every baseline that is a mean of earlier steps, and that is left out of its rows: apply them to
        returns less that mean.

    Returns:
      The matrices, float64, to be applied to returns by `apply.apply_credit` or, whatever the method carries, by
      `compute.compute_credit`.

    Raises:
      ValueError: if the method cannot give credit on this plan (see `check_pairing`).

    Source: arXiv:2603.06859 for the leave-one-out rows; `METHODS` names the others.
    """
    check_pairing(method, plan, trained)
    row = find_method(method)
    is_trained = (True,) * plan.turns if trained is None else trained
    value = tuple(compute_rows(row.value, plan, turn, "value") for turn in range(plan.turns))
    return CreditMatrix(
        value=value,
        baseline=tuple(
            (1.0 - mean) * compute_rows(row.baseline, plan, turn, "baseline") if on else value[turn]
            for turn, on in enumerate(is_trained)
        ),
        group=tuple(
            compute_group_matrix(count_credited(plan)[turn], group_size(row, plan, turn)) if on else None
            for turn, on in enumerate(is_trained)
        ),
    )


def compute_group_matrix(num_messages: int, size: int) -> np.ndarray:
    """Mean over each message's group, its own included.

    Args:
      num_messages: of one turn of one problem (N).
      size: consecutive messages that are a group.

    Returns:
      group_NN, float64.
    """
    return np.kron(np.eye(num_messages // size), np.full((size, size), 1.0 / size))
