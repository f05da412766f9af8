"""A baseline shrunk along the path to a message, and fan-outs chosen by how noisy the credit would be.

The returns of a problem's tree are described by nested variance components: with e_d the effect of a message of turn d,

    return of a leaf = mean + p + e_0 + ... + e_{K-1},    Var p = s_p,  Var e_d = s_d

(the last includes the evaluator's noise), so V(h) of a context at turn d is X_d = mean + p + e_0 + ... + e_{d-1}: a
walk down the path. The leaves outside a message's own subtree leave that path somewhere. Those that leave it at turn k
have a mean y_k = X_k + noise of variance

    D_k = (s_k + b_k) / (f_k - 1),    b_k = (s_{k+1} + b_{k+1}) / f_{k+1},  b_{K-1} = 0.

The best linear estimate of X_d from them is therefore a Kalman filter: start from the mean of earlier steps with
variance s_p; at every turn k <= d of the path mix in y_k with gain P / (P + D_k), then add s_k to P for the next turn.
The last class mixed in, k = d, are the alternatives in the same context.

It stays an unbiased policy gradient, because the mean and the components are of earlier steps, hence fixed before
sampling, and given its context a message is independent of all leaves outside its subtree. It is not unbiased for
A*(h, a): like any shrinkage it trades that for variance.

Source: the components by analysis of variance (Henderson 1953, method 1, balanced); the filter is the best linear
unbiased prediction of Henderson 1975 in nested form.

Dimension key: P problem    L leaf of one problem's tree    N message of one turn    K turn
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from c3jax.credit.apply import apply_less_mean, find_namespace
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.method import Normalise
from c3jax.credit.methods import find_method
from c3jax.credit.pairing import check_auto, find_least_fan_out
from c3jax.credit.plans import FanOut, Unit, list_fan_outs, make_tree
from c3jax.types import Credit

Criterion = Literal["gradient", "credit"]

# Stands for "nothing is known of the mean yet": far above the variance of returns in [0, 1], and exact enough in
# float32.
UNKNOWN = 1e4
_NOTHING = 1e-30  # a variance far below float32's resolution of any return

Scalar = float | jax.Array  # a number, or one being traced


class Components(NamedTuple):
    """Running variance components of the returns, f32. They may be below zero, being unbiased; use clips them."""

    mean: jax.Array  # of all returns
    problem: jax.Array  # s_p, between problems
    message_K: jax.Array  # s_d, of each turn's message; the last turn's includes the evaluator's noise
    steps: jax.Array  # int32: steps they were estimated from


def init_components(turns: int) -> Components:
    """Components before the first step: the mean unknown, all turns alike, as for a return that is 0 or 1 evenly.

    Args:
      turns: of the protocol (K).

    Returns:
      Components, f32, in squared units of return.
    """
    return Components(jnp.float32(0.0), jnp.float32(UNKNOWN), jnp.full(turns, 0.25 / turns, jnp.float32), jnp.int32(0))


def update_components(running: Components, return_PL: jax.Array, fan_out: FanOut, decay: float) -> Components:
    """Take a step's returns into the running components; call it after the step's credit, never before.

    A moving average of the analysis-of-variance estimates, the plain mean until 1 / (1 - decay) steps are in. A turn
    with fan-out 1 looks like a part of the turn (or the problem) above it: such turns share what was measured for them
    together in their running proportions.

    Args:
      running: the components of earlier steps.
      return_PL: [P, L] returns of whole trees of `fan_out`, in path order.
      fan_out: alternatives a turn, of this step.
      decay: weight of the past, in [0, 1).

    Returns:
      The components with this step among them.

    Raises:
      AssertionError: if the returns are not those of the fan-out.
    """
    chex.assert_shape(return_PL, (None, math.prod(fan_out)))
    return_PL = jnp.asarray(return_PL, jnp.float32)
    rate = jnp.maximum(1.0 - decay, 1.0 / (running.steps + 1.0))
    level_K1 = jnp.concatenate([running.problem[None], running.message_K])
    measured_K1 = _estimate(return_PL, fan_out, level_K1)
    # Written so that the first estimate replaces what stood for "unknown" without a trace of it in float32.
    level_K1 = (1.0 - rate) * level_K1 + rate * measured_K1
    mean = (1.0 - rate) * running.mean + rate * jnp.mean(return_PL)
    return Components(mean, level_K1[0], level_K1[1:], running.steps + 1)


def _estimate(return_PL: jax.Array, fan_out: FanOut, running_K1: jax.Array) -> jax.Array:
    """Unbiased components of one step, the problem's first; levels that were not drawn apart share as `running_K1`."""
    branches = (return_PL.shape[0], *fan_out)
    mean_of_nodes = return_PL.reshape(branches)
    measured = list(running_K1)
    below, group = jnp.float32(0.0), []
    for level in range(len(branches) - 1, -1, -1):
        group = [level, *group]
        if branches[level] > 1:
            spread = jnp.mean(jnp.var(mean_of_nodes, axis=level, ddof=1))
            # Deepest first: what is left over below, already averaged over its branches, is known by now.
            total = spread - below
            share = _share_out(running_K1, group)
            for above, part in zip(group, share, strict=True):
                measured[above] = part * total
            below, group = spread / branches[level], []
        mean_of_nodes = mean_of_nodes.mean(axis=level)
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in measured])


def _share_out(running_K1: jax.Array, group: list[int]) -> list[jax.Array]:
    """Shares of a group's levels in their sum; all to the deepest where none is known to have any."""
    part = [jnp.where(running_K1[level] >= UNKNOWN, 0.0, jnp.maximum(running_K1[level], 0.0)) for level in group]
    total = sum(part)
    is_known = total > 0.0
    deepest = [0.0] * (len(group) - 1) + [1.0]
    return [jnp.where(is_known, p / jnp.where(is_known, total, 1.0), d) for p, d in zip(part, deepest, strict=True)]


def make_shrunk_matrix(
    components: Components, fan_out: FanOut, trained: tuple[bool, ...] | None = None
) -> CreditMatrix:
    """The credit matrix of the shrunk baseline, to be applied to returns less `components.mean`.

    Its baseline's rows sum to less than 1: what is missing is the weight of the mean. Traceable: the components may be
    arrays under jit.

    Args:
      components: of earlier steps.
      fan_out: alternatives a turn.
      trained: per turn, whether it is trained; None for all turns.

    Returns:
      The matrix; its baseline is of arrays.
    """
    plain = make_credit_matrix("shrunk", make_tree(fan_out), trained)
    xp = find_namespace(components.message_K)
    problem, message = xp.maximum(components.problem, 0.0), list(xp.maximum(components.message_K, 0.0))
    is_trained = (True,) * len(fan_out) if trained is None else trained
    baseline = []
    for turn, value_NL in enumerate(plain.value):
        if not is_trained[turn]:
            baseline.append(value_NL)
            continue
        weight_K, _ = _filter(problem, message, fan_out, turn)
        leaves_KNL = list_path_leaves(fan_out, turn)
        baseline.append(sum(w * leaves_NL for w, leaves_NL in zip(weight_K, leaves_KNL, strict=True)))
    return plain._replace(baseline=tuple(baseline))


def apply_shrunk(
    components: Components,
    return_PL: jax.Array,
    fan_out: FanOut,
    trained: tuple[bool, ...] | None = None,
    *,
    normalise: Normalise,
) -> Credit:
    """Credit of every message under the shrunk baseline.

    Args:
      components: of earlier steps, so that they were fixed before sampling.
      return_PL: terminal return of every leaf, in path order.
      fan_out: alternatives a turn.
      trained: per turn, whether it is trained; None for all turns.
      normalise: static scope; not group, whose members this baseline does not compare.

    Returns:
      Credit, f32, each [P, N] per turn, in units of return.
    """
    matrix = make_shrunk_matrix(components, fan_out, trained)
    return apply_less_mean(matrix, components.mean, return_PL, normalise=normalise)


def list_path_leaves(fan_out: FanOut, turn: int) -> list[np.ndarray]:
    """Means of the leaves outside a message's own subtree, by where they leave its path.

    Args:
      fan_out: alternatives a turn.
      turn: of the messages.

    Returns:
      For k = 0..turn, weights [N, L], float64, of the leaves that leave the path at turn k; zeros where none do.
    """
    num_messages, num_leaves = math.prod(fan_out[: turn + 1]), math.prod(fan_out)
    message_N, leaf_L = np.arange(num_messages), np.arange(num_leaves)
    is_shared_NL = np.ones((num_messages, num_leaves), bool)
    means = []
    for k in range(turn + 1):
        above_N = message_N // math.prod(fan_out[k + 1 : turn + 1])
        above_L = leaf_L // math.prod(fan_out[k + 1 :])
        stays_NL = is_shared_NL & (above_N[:, None] == above_L[None])
        leaves_NL = is_shared_NL & ~stays_NL
        means.append(leaves_NL / np.maximum(leaves_NL.sum(axis=1, keepdims=True), 1))
        is_shared_NL = stays_NL
    return means


def _filter(problem: Scalar, message: Sequence[Scalar], fan_out: FanOut, turn: int) -> tuple[list[Scalar], Scalar]:
    """Weights of the classes k = 0..turn in the baseline, and the baseline's error variance."""
    below = _average_below(message, fan_out)
    weight: list[Scalar] = []
    variance = problem
    for k in range(turn + 1):
        gain: Scalar = 0.0
        if fan_out[k] > 1:
            # Where nothing varies there is nothing to mix in, and the last term keeps the division defined.
            gain = variance / (variance + (message[k] + below[k]) / (fan_out[k] - 1) + _NOTHING)
        weight = [(1.0 - gain) * w for w in weight] + [gain]
        variance = (1.0 - gain) * variance + (message[k] if k < turn else 0.0)
    return weight, variance


def _average_below(message: Sequence[Scalar], fan_out: FanOut) -> list[Scalar]:
    """b_d: variance that the turns below leave in a message's value."""
    below: list[Scalar] = [0.0]
    for turn in range(len(fan_out) - 1, 0, -1):
        below = [(message[turn] + below[0]) / fan_out[turn], *below]
    return below


def predict_error(components: Components, fan_out: FanOut, method: str, criterion: Criterion) -> tuple[float, ...]:
    """Predicted error of each turn's credit, or noise of its gradient from one problem.

    credit    E[(advantage - A*)^2] = b_d + e_d. For leave-one-out and B calls in a context it is least at
              1 + sqrt(1 + B s_d / sigma^2) alternatives, sigma^2 the noise of one return given the message.
    gradient  E[advantage^2] / messages of the turn = (s_d + b_d + e_d) / (f_0 ... f_d)
    e_d, the error of the baseline, is (s_d + b_d) / (f_d - 1) for leave-one-out and the filter's for the shrunk one.
    That messages of one context share its gradient is left out: it is small against the noise.

    Args:
      components: of earlier steps.
      fan_out: alternatives a turn.
      method: one that variance components foretell, by its column `predicts`.
      criterion: what is predicted.

    Returns:
      A number a turn, in squared units of return; infinite where nothing is compared.
    """
    problem, message = max(float(components.problem), 0.0), np.maximum(components.message_K, 0.0).tolist()
    is_filtered = find_method(method).predicts == "filter"
    below_K = _average_below(message, fan_out)
    errors = []
    for turn, alternatives in enumerate(fan_out):
        below, own = below_K[turn], message[turn] + below_K[turn]
        if is_filtered:
            error = _filter(problem, message, fan_out, turn)[1]
        else:
            error = own / (alternatives - 1) if alternatives > 1 else math.inf
        is_credit = criterion == "credit"
        errors.append(below + error if is_credit else (own + error) / math.prod(fan_out[: turn + 1]))
    return tuple(errors)


def choose_fan_out(
    components: Components,
    budget: float,
    unit: Unit,
    method: str,
    criterion: Criterion,
    trained: tuple[bool, ...],
    tokens: tuple[float, ...],
    current: FanOut | None = None,
) -> FanOut:
    """The fan-out within the budget whose predicted error, summed over the trained turns, is least.

    Every fan-out within the budget is tried. `current` is kept unless another promises 5 % less, because a change of
    shape is a new compilation. Counts are chosen from earlier steps alone, so within a step they are fixed in advance.

    Args:
      components: of earlier steps.
      budget: most that a problem may cost, in `unit`.
      unit: calls, messages or tokens.
      method: one that variance components foretell, by its column `predicts`.
      criterion: what is to be least: the gradient's noise, or the credit's error.
      trained: per turn, whether it is trained.
      tokens: mean length of each turn's messages, tokens.
      current: the fan-out in force, if any.

    Returns:
      Alternatives a turn.

    Raises:
      ValueError: as `pairing.check_auto`.
    """
    check_auto(method, trained, budget, unit, tokens)
    candidates = list_fan_outs(find_least_fan_out(method, trained), budget, unit, tokens)

    def sum_errors(fan_out: FanOut) -> float:
        errors = predict_error(components, fan_out, method, criterion)
        return sum(error for error, on in zip(errors, trained, strict=True) if on)

    best = min(candidates, key=sum_errors)
    if current is not None and current in candidates and sum_errors(best) > 0.95 * sum_errors(current):
        return current
    return best
