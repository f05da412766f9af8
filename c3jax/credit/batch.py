"""Credit of a trainer's flat batch: a row an episode, with the ids of the contexts that it went through.

For trainers that hold no trees: verl, TRL, prime-rl, rLLM (docs/other_trainers.md). The rows are put into path order,
and the credit is that of `compute.compute_credit`. NumPy only.

Dimension key: B row of the batch    K turn    P problem    L leaf of one problem    N message of one turn
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.method import Normalise
from c3jax.credit.methods import find_method
from c3jax.credit.pairing import check_normalise
from c3jax.credit.plans import FanOut, count_credited, make_tree
from c3jax.types import UserError


class BatchCredit(NamedTuple):
    """Credit of every row and turn. A message that several rows share stands in each of them."""

    value_BK: np.ndarray  # f32
    baseline_BK: np.ndarray  # f32
    advantage_BK: np.ndarray  # f32
    is_first_BK: np.ndarray  # bool: true in one row of each message; train on these alone, and each message counts once


def compute_batch_credit(
    method: str, return_B: Any, context_BK: Any, *, normalise: Normalise, trained: tuple[bool, ...] | None = None
) -> BatchCredit:
    """Give every row of a batch its value, baseline and advantage at every turn.

    Rows of one problem that have the same ids in columns 0..k were in the same context at turn k, and so hold the same
    messages up to turn k - 1. A problem's rows must be a whole tree: equally many alternatives in all contexts of a
    turn. Ids are of draws, not of texts: an alternative that happens to repeat another has an id of its own.

    Args:
      method: a key of `METHODS` that carries nothing, or a user's own as module:NAME.
      return_B: terminal return of each row, in units of return.
      context_BK: ids, strings or numbers, unique within the context of the turn before. Column 0 is the
        problem; one column is enough for a method that compares whole episodes, however many turns these have.
      normalise: scope; `pairing.check_normalise` says which a method allows.
      trained: per turn, whether it is trained; None for all turns.

    Returns:
      BatchCredit, [B, K], NumPy, in units of return unless the advantage is normalised.

    Raises:
      UserError: the rows are no whole trees, or are of several shapes under a scope over the batch.
      ValueError: in one sentence, if the method cannot give credit on such trees.
    """
    carried = find_method(method, "method").carries
    if carried != "nothing":
        raise UserError(f"method {method}: expected one that needs nothing but returns, got one that carries {carried}")
    if (read := find_method(method).reads) != "returns":
        raise UserError(f"method {method}: expected one that needs nothing but returns, got one that reads {read}")
    check_normalise(method, normalise)
    return_B = np.asarray(return_B, np.float64)
    ids_BK = np.asarray(context_BK, object)
    if ids_BK.ndim != 2 or return_B.shape != ids_BK.shape[:1] or not ids_BK.size:
        raise UserError(f"expected returns [B] and contexts [B, K], got {return_B.shape} and {ids_BK.shape}")
    trees = order_rows(ids_BK)
    if len(trees) > 1 and (normalise in ("turn", "batch") or find_method(method).apply == "tree_and_batch"):
        shapes = " and ".join(str(fan_out) for fan_out in trees)
        raise UserError(f"method {method} compares over the batch: expected problems of one shape, got {shapes}")
    credit = BatchCredit(*(np.zeros(ids_BK.shape, dtype) for dtype in (np.float32, np.float32, np.float32, bool)))
    for fan_out, row_PL in trees.items():
        plan = make_tree(fan_out)
        inputs = CreditInputs(make_credit_matrix(method, plan, trained), fan_out)
        of_trees = compute_credit(method, inputs, return_B[row_PL], normalise=normalise)
        for turn, messages in enumerate(count_credited(plan)):
            rows_of_message = row_PL.shape[1] // messages
            for to_BK, from_PN in zip(credit[:3], (part[turn] for part in of_trees), strict=True):
                to_BK[row_PL, turn] = np.repeat(from_PN, rows_of_message, axis=1)
            credit.is_first_BK[row_PL[:, ::rows_of_message], turn] = True
    return credit


def order_rows(ids_BK: np.ndarray) -> dict[FanOut, np.ndarray]:
    """Put rows into path order, problems and alternatives as they first appear.

    Args:
      ids_BK: contexts, as for `compute_batch_credit`.

    Returns:
      For each fan-out that a problem has, the rows of its problems: [P, L].

    Raises:
      UserError: a problem's rows are no whole tree.
    """
    trees: dict[FanOut, list[list[int]]] = {}
    for problem, rows in _split(ids_BK[:, 0], range(len(ids_BK))).items():
        fan_out, ordered = _order_tree(ids_BK, rows, 1, problem)
        trees.setdefault(fan_out, []).append(ordered)
    return {fan_out: np.array(rows) for fan_out, rows in trees.items()}


def _order_tree(ids_BK: np.ndarray, rows: list[int], turn: int, problem: Any) -> tuple[FanOut, list[int]]:
    """The fan-out from the turn before `turn` on, below the context that the rows share, and the rows in path order."""
    if turn == ids_BK.shape[1]:
        return (len(rows),), rows
    contexts = _split(ids_BK[:, turn], rows)
    parts = [_order_tree(ids_BK, of_context, turn + 1, problem) for of_context in contexts.values()]
    fan_outs = {fan_out for fan_out, _ in parts}
    if len(fan_outs) > 1:
        got = " and ".join(map(str, sorted(fan_outs)))
        raise UserError(f"problem {problem}: expected equally many alternatives in all contexts of a turn, got {got}")
    return (len(parts), *parts[0][0]), [row for _, ordered in parts for row in ordered]


def _split(id_B: np.ndarray, rows: Sequence[int]) -> dict[Any, list[int]]:
    parts: dict[Any, list[int]] = {}
    for row in rows:
        parts.setdefault(id_B[row], []).append(row)
    return parts


def spread_over_tokens(advantage_BK: np.ndarray, mask_BT: Any) -> np.ndarray:
    """The advantage of each token of a row: that of its message.

    A row's messages are its runs of kept tokens, with tokens of prompts, tools or padding between them: the k-th run is
    turn k's message, and under one column all are.

    Args:
      advantage_BK: of `compute_batch_credit`; times `is_first_BK`, no message counts twice.
      mask_BT: which tokens a policy drew.

    Returns:
      advantage_BT, f32, 0 where the mask is.

    Raises:
      UserError: a row has more messages than turns.
    """
    is_kept_BT = np.asarray(mask_BT).astype(bool)
    before_BT = np.pad(is_kept_BT, ((0, 0), (1, 0)))[:, :-1]
    turn_BT = np.cumsum(is_kept_BT & ~before_BT, axis=1) - 1
    turns = advantage_BK.shape[1]
    if turns > 1 and turn_BT.max(initial=0) >= turns:
        raise UserError(f"expected at most {turns} messages in a row, a turn each, got {turn_BT.max() + 1}")
    column_BT = np.clip(turn_BT, 0, turns - 1)
    return np.where(is_kept_BT, np.take_along_axis(advantage_BK, column_BT, axis=1), 0.0).astype(np.float32)
