"""Credit by any method: what it is made of, and the one table of the functions that make it.

A row of `methods.METHODS` names its function in the column `apply`; a user's own method may bring one. What needs JAX
is imported where a method asks for it: of NumPy's returns, methods that carry nothing do without.

Dimension key: P problem    L leaf of one problem    N message of one turn of one problem
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from c3jax.credit.apply import RESOLUTION, Array, apply_credit, apply_less_mean, compare, find_namespace
from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.method import Method, Normalise
from c3jax.credit.methods import find_method
from c3jax.credit.plans import FanOut
from c3jax.types import Credit, UserError

if TYPE_CHECKING:
    import jax

    from c3jax.credit.shrink import Components


class CreditInputs(NamedTuple):
    """What a step's credit is made of beside its returns; of the last fields a method reads what it carries."""

    matrix: CreditMatrix  # the method's rows on the step's plan
    fan_out: FanOut  # alternatives a turn
    components: Components | None = None  # of earlier steps
    # [P, N] per turn: its values of contexts, None where an environment answers; or its scores of messages
    critic: tuple[jax.Array | None, ...] | None = None
    discount: float = 1.0  # of values, a turn
    decay: float = 1.0  # lambda of values
    share: float = 1.0  # of a baseline that scores give
    past: tuple[Array, ...] = ()  # [P, L] per turn, from `apply.sum_past`; read by plain rows and values
    # [P, N] per turn, of a method that reads them: `types.Messages.gradient_N`, None where an environment answers
    gradient: tuple[Array | None, ...] = ()
    likelihood: tuple[Array | None, ...] = ()  # likewise `types.Messages.likelihood_N`


REMOVAL_BONUS = 0.1  # of returns of 0 and 1; of the source's -1 and 1 it is the 0.2 that its scripts have

ApplyFunction = Callable[[CreditInputs, Array, Normalise], Credit]


def compute_credit(method: str, inputs: CreditInputs, return_PL: Array, *, normalise: Normalise) -> Credit:
    """Give every message its value, baseline and advantage, by whatever method.

    Args:
      method: a key of `METHODS`, or a user's own as module:NAME.
      inputs: the method's matrix, and what it carries.
      return_PL: terminal return of every leaf, in path order, in units of return.
      normalise: static scope; `pairing.check_normalise` says which a method allows.

    Returns:
      Credit, f32, each [P, N] per turn, as `apply.apply_credit` describes it.

    Raises:
      AssertionError: if the shapes do not fit.
      UserError: where a user's own function gives no such credit.
    """
    xp = find_namespace(return_PL)
    credit = find_apply(find_method(method))(inputs, xp.asarray(return_PL, xp.float32), normalise)
    if not isinstance(credit, Credit):
        raise UserError(f"credit.method: expected of {method} a Credit, got {type(credit).__name__}")
    expected = [(return_PL.shape[0], len(value_NL)) for value_NL in inputs.matrix.value]
    for name, of_turns in credit._asdict().items():
        got = [part_PN.shape for part_PN in of_turns]
        if got != expected:
            raise UserError(f"credit.method: expected of {method} a {name} of {expected}, got {got}")
    return credit


def find_apply(method: Method) -> ApplyFunction:
    """The function that makes a method's credit of its rows, the returns and what it carries.

    Args:
      method: a built-in row, or a user's own.

    Raises:
      ValueError: for a method that needs the value of every possible message, which only an enumerable game has.
    """
    if callable(method.apply):
        return method.apply
    if method.apply not in APPLY:
        raise ValueError("method: expected one that values of drawn messages are enough for, got one that needs all")
    return APPLY[method.apply]


def _apply_rows(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    return apply_credit(inputs.matrix, return_PL, normalise=normalise, past=inputs.past)


def _apply_filter(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    from c3jax.credit.shrink import apply_shrunk

    assert inputs.components is not None
    trained = tuple(group is not None for group in inputs.matrix.group)
    return apply_shrunk(inputs.components, return_PL, inputs.fan_out, trained, normalise=normalise)


def _apply_gae(inputs: CreditInputs, return_PL: jax.Array, normalise: Normalise) -> Credit:
    from c3jax.credit.learned import compute_episode_credit

    assert inputs.critic is not None
    return compute_episode_credit(
        inputs.matrix,
        return_PL,
        inputs.critic,
        discount=inputs.discount,
        decay=inputs.decay,
        normalise=normalise,
        past=inputs.past,
    )


def _apply_assisted(inputs: CreditInputs, return_PL: jax.Array, normalise: Normalise) -> Credit:
    from c3jax.credit.learned import compute_assisted_credit

    return compute_assisted_credit(
        inputs.matrix, return_PL, _list_scores(inputs), inputs.fan_out, share=inputs.share, normalise=normalise
    )


def _apply_scores(inputs: CreditInputs, return_PL: jax.Array, normalise: Normalise) -> Credit:
    from c3jax.credit.learned import compute_score_credit

    return compute_score_credit(inputs.matrix, return_PL, _list_scores(inputs), inputs.fan_out, normalise=normalise)


def _list_scores(inputs: CreditInputs) -> tuple[jax.Array, ...]:
    return tuple(score_PN for score_PN in inputs.critic or () if score_PN is not None)


def _apply_running_mean(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    """Rows on returns less the mean of earlier steps: it has the weight that a baseline's row lacks of 1.

    Source: arXiv:2506.24119, where it has all of it.
    """
    assert inputs.components is not None
    return apply_less_mean(inputs.matrix, inputs.components.mean, return_PL, normalise=normalise)


def _apply_mean_scaled(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    """(R - mean) / mean, 0 where the mean is. Source: arXiv:2602.02710."""
    credit = apply_credit(inputs.matrix, return_PL, normalise=normalise)
    xp = find_namespace(return_PL)
    mean_P1 = xp.mean(return_PL, axis=1, keepdims=True)
    scale_P1 = xp.where(mean_P1 > 0.0, 1.0 / xp.where(mean_P1 > 0.0, mean_P1, 1.0), 0.0)
    return credit._replace(advantage=tuple(advantage_PN * scale_P1 for advantage_PN in credit.advantage))


def _apply_tree_and_batch(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    """Standardised within the tree and over the batch; where there is no spread, 0. Source: arXiv:2509.21240."""
    credit = apply_credit(inputs.matrix, return_PL, normalise=normalise)
    xp = find_namespace(return_PL)

    def standardise(value_PN: Array, axis: int | None) -> Array:
        mean, std = xp.mean(return_PL, axis, keepdims=True), xp.std(return_PL, axis, keepdims=True)
        has_none = std <= RESOLUTION * xp.max(xp.abs(return_PL), axis, keepdims=True)
        return xp.where(has_none, 0.0, (value_PN - mean) / xp.where(has_none, 1.0, std))

    advantage = tuple(
        xp.zeros_like(value_PN) if group is None else standardise(value_PN, 1) + standardise(value_PN, None)
        for value_PN, group in zip(credit.value, inputs.matrix.group, strict=True)
    )
    return credit._replace(advantage=advantage)


def _apply_gradient_weighted(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    """R - sum_i W_i R_i / sum_i W_i over the turn's messages, W the squared norm of a message's gradient.

    Of a sum of messages' gradients the constant baseline E[W R] / E[W] leaves the least variance. Where all weights are
    zero, so that nothing can be learnt, it is the plain mean.
    Source: arXiv:2602.07078, where a token's W is the sum up to that token.
    """
    turns = len(inputs.matrix.value)
    assert len(inputs.gradient) == turns, f"expected the gradient of {turns} turns, got {len(inputs.gradient)}"
    rows = apply_credit(inputs.matrix, return_PL, normalise="none", past=inputs.past)
    xp, baseline = find_namespace(return_PL), []
    for turn, (value_PN, mean_PN) in enumerate(zip(rows.value, rows.baseline, strict=True)):
        weight_PN = inputs.gradient[turn] if inputs.matrix.group[turn] is not None else None
        if weight_PN is None:
            baseline.append(mean_PN)
            continue
        total_P1 = xp.sum(weight_PN, axis=1, keepdims=True)
        weighted_P1 = xp.sum(weight_PN * value_PN, axis=1, keepdims=True) / xp.where(total_P1 > 0.0, total_P1, 1.0)
        baseline.append(xp.where(total_P1 > 0.0, weighted_P1, mean_PN))
    size_P1 = xp.max(xp.abs(return_PL), axis=1, keepdims=True)
    return compare(rows.value, tuple(baseline), inputs.matrix.group, size_P1, normalise=normalise)


def _apply_removal_bonus(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    """Rows, the first turn's returns with `REMOVAL_BONUS` (helped - hurt) added. Means are taken off after that.

    helped = [right, and most of the problem's copies without the first message wrong], hurt = [wrong, most copies
    right], right a return above 1/2. Source: code released with arXiv:2603.21563, of June 2026.
    """
    rows = apply_credit(inputs.matrix, return_PL, normalise="none")
    xp, value, baseline = find_namespace(return_PL), rows.value, rows.baseline
    if inputs.matrix.group[0] is not None:
        is_right_PE, is_right_alone_PE = xp.split(return_PL > 0.5, 2, axis=1)
        share_P1 = xp.mean(is_right_alone_PE, axis=1, keepdims=True, dtype=xp.float32)
        helped_PE, hurt_PE = is_right_PE & (share_P1 < 0.5), ~is_right_PE & (share_P1 > 0.5)
        bonus_PE = REMOVAL_BONUS * (helped_PE.astype(xp.float32) - hurt_PE.astype(xp.float32))
        value = (value[0] + bonus_PE, *value[1:])
        baseline = (baseline[0] + xp.mean(bonus_PE, axis=1, keepdims=True), *baseline[1:])
    size_P1 = xp.max(xp.abs(return_PL), axis=1, keepdims=True) + REMOVAL_BONUS
    return compare(value, baseline, inputs.matrix.group, size_P1, normalise=normalise)


def _apply_information_gain(inputs: CreditInputs, return_PL: Array, normalise: Normalise) -> Credit:
    """Rows of returns, plus what is still to come of the gains in the right answer's probability, less their mean.

    A turn's gain is the probability after its message less that before it, and the last turn's is the return. Gains and
    returns are each less their mean over the problem's episodes (gains over turns too), and under `group` each divided
    by their standard deviation; a message has the sum from its turn on. Source: arXiv:2510.14967; that the two are
    standardised apart, and the sum is not discounted, is what the scripts released with it do.
    """
    rows = apply_credit(inputs.matrix, return_PL, normalise=normalise, past=inputs.past)
    likelihood = [part_PN for part_PN in inputs.likelihood if part_PN is not None]
    turns, xp = len(rows.value), find_namespace(return_PL)
    assert len(likelihood) == turns, f"expected the likelihood of {turns} turns, got {len(likelihood)}"
    if turns == 1:
        return rows
    gain_PNK = xp.stack([after - before for before, after in itertools.pairwise(likelihood)], axis=2)
    mean_P1, scale_P1 = xp.mean(gain_PNK, axis=(1, 2))[:, None], 1.0
    if normalise == "group":
        std_P1 = xp.std(gain_PNK, axis=(1, 2))[:, None]
        has_none = std_P1 <= RESOLUTION
        scale_P1 = xp.where(has_none, 0.0, 1.0 / xp.where(has_none, 1.0, std_P1))
    value, baseline, advantage = (list(of_turns) for of_turns in rows)
    for turn, before_PN in enumerate(likelihood):
        if inputs.matrix.group[turn] is None:
            continue
        to_come_PN, expected_P1 = likelihood[-1] - before_PN, (turns - 1 - turn) * mean_P1
        gained_PN = xp.where(abs(to_come_PN - expected_P1) < RESOLUTION, 0.0, to_come_PN - expected_P1)
        value[turn] = value[turn] + to_come_PN
        baseline[turn] = baseline[turn] + expected_P1
        advantage[turn] = advantage[turn] + gained_PN * scale_P1
    return Credit(tuple(value), tuple(baseline), tuple(advantage))


APPLY: dict[str, ApplyFunction] = {
    "running_mean": _apply_running_mean,
    "mean_scaled": _apply_mean_scaled,
    "tree_and_batch": _apply_tree_and_batch,
    "gradient_weighted": _apply_gradient_weighted,
    "removal_bonus": _apply_removal_bonus,
    "information_gain": _apply_information_gain,
    "rows": _apply_rows,
    "filter": _apply_filter,
    "gae": _apply_gae,
    "assisted": _apply_assisted,
    "scores": _apply_scores,
}
