"""Rows of weights over a problem's leaves: what each message of a turn is worth, and what that is compared with.

Every function takes a plan and a turn and returns one row a credited message, [N, L] in float64; row times returns is
an estimate in units of return. Leaves and messages are in the order that `plans.py` documents. Host code: NumPy only.

Dimension key: N message of one turn of one problem    L leaf of one problem
    G group of messages of one turn    K message of a group
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from c3jax.credit.plans import Plan, count_calls, count_credited

Rows = Callable[[Plan, int], np.ndarray]


def compute_rows(make_rows: Rows, plan: Plan, turn: int, name: str) -> np.ndarray:
    """The weights [N, L] in float64 that a row function gives to the leaves for each message of a turn.

    Args:
      make_rows: one of those below, or a user's own, which may do anything.
      plan, turn: what is sampled, and the turn whose messages are credited.
      name: what the rows are, for complaints.

    Raises:
      ValueError: in one sentence, where the function raises or gives anything but finite weights of that shape.
    """
    shape = (count_credited(plan)[turn], count_calls(plan))
    try:
        weight_NL = np.asarray(make_rows(plan, turn), np.float64)
    except Exception as error:
        raise ValueError(f"{name} of turn {turn} raised {type(error).__name__} ({error})") from error
    if weight_NL.shape != shape:
        got = list(weight_NL.shape)
        raise ValueError(
            f"{name} of turn {turn}: expected weights {list(shape)}, a row a message and a column a leaf, got {got}"
        )
    if not np.isfinite(weight_NL).all():
        raise ValueError(f"{name} of turn {turn}: expected finite weights, got some that are not")
    return weight_NL


def count_alternatives(plan: Plan, turn: int) -> int:
    """Credited messages that share a context of `turn` exactly, whatever they say."""
    if plan.form == "tree":
        return plan.fan_out[turn]
    return len(plan.counts) if plan.counts else 1


def own_leaves(plan: Plan, turn: int) -> np.ndarray:
    """Tree, replay, best_branch: mean over the leaves below the message, Q_j of arXiv:2603.06859, section 3."""
    counts = plan.counts
    if plan.form == "tree":
        num_messages = count_credited(plan)[turn]
        counts = (count_calls(plan) // num_messages,) * num_messages
    own_NL = np.repeat(np.diag(1.0 / np.array(counts)), counts, axis=1)
    first = 0 if plan.form == "tree" else turn * sum(counts)
    return np.pad(own_NL, ((0, 0), (first, count_calls(plan) - first - sum(counts))))


def others_in_context(plan: Plan, turn: int) -> np.ndarray:
    """Leave-one-out over the alternatives of the context, b_-j = sum_{k != j} c_k Q_k / (C - c_j).

    Uniform over the other alternatives' leaves, so that each call counts the same where counts differ; with equal
    counts it is the mean of the others' values. Exactly zero on the message's own leaves.
    Source: arXiv:2603.06859, algorithm 1.
    """
    return _leave_one_out(own_leaves(plan, turn), count_alternatives(plan, turn))


def others_of_turn(plan: Plan, turn: int) -> np.ndarray:
    """Leave-one-out over all the problem's messages of the turn, whatever their contexts."""
    return _leave_one_out(own_leaves(plan, turn), count_credited(plan)[turn])


def _leave_one_out(value_NL: np.ndarray, size: int) -> np.ndarray:
    is_own_GKL = (value_NL > 0).reshape(-1, size, value_NL.shape[1])
    is_other_GKL = is_own_GKL.any(axis=1, keepdims=True) & ~is_own_GKL
    return (is_other_GKL / is_other_GKL.sum(axis=2, keepdims=True)).reshape(value_NL.shape)


def mean_of_context(plan: Plan, turn: int) -> np.ndarray:
    """Mean value of the alternatives of the context, the message's own included."""
    return _group_mean(own_leaves(plan, turn), count_alternatives(plan, turn))


def mean_of_turn(plan: Plan, turn: int) -> np.ndarray:
    """Mean value of all the problem's messages of the turn, the message's own included."""
    return _group_mean(own_leaves(plan, turn), count_credited(plan)[turn])


def _group_mean(value_NL: np.ndarray, size: int) -> np.ndarray:
    return np.repeat(value_NL.reshape(-1, size, value_NL.shape[1]).mean(axis=1), size, axis=0)


def root_and_parent(plan: Plan, turn: int) -> np.ndarray:
    """Tree: V(root) + V(parent) - V(n), so that V(n) minus it is (V(n) - V(root)) + (V(n) - V(parent)).

    V is the mean of the leaves below a node.
    Source: arXiv:2506.11902, without its factor 1/sqrt(leaves below the node).
    """
    return 1.0 / count_calls(plan) + mean_of_context(plan, turn) - own_leaves(plan, turn)


def ancestors_means(plan: Plan, turn: int) -> np.ndarray:
    """Tree: means of the turn's messages below each context on the message's path, weightier the longer its history.

    sum_k w_k mean_k over the contexts h_0 (the problem), ..., h_turn (the message's own), w_k = (k + 1)/sum_j (j + 1):
    the groups of episodes that share their first k messages. The message's own value is in every mean.
    Source: arXiv:2602.22817, with alpha = 1; there, groups share their last observations.
    """
    value_NL, fan_out = own_leaves(plan, turn), plan.fan_out
    sizes = [math.prod(fan_out[shared : turn + 1]) for shared in range(turn + 1)]
    weights = np.arange(1, turn + 2) / sum(range(1, turn + 2))
    return sum((w * _group_mean(value_NL, size) for w, size in zip(weights, sizes, strict=True)), np.zeros(1))


def nothing(plan: Plan, turn: int) -> np.ndarray:
    """Zero. For R - constant pass returns with the constant taken off; a critic's baseline is subtracted elsewhere."""
    return np.zeros((count_credited(plan)[turn], count_calls(plan)))


def own_episode(plan: Plan, turn: int) -> np.ndarray:
    """Auxiliary, removal, first_removal, masked: the return of the message's own episode."""
    return _means(plan, np.arange(plan.episodes), 1)


def mean_of_episodes(plan: Plan, turn: int) -> np.ndarray:
    """Auxiliary, removal, first_removal, masked: mean return of the problem's episodes, the message's own included."""
    return _means(plan, np.zeros(plan.episodes, int), plan.episodes)


def removed(plan: Plan, turn: int) -> np.ndarray:
    """Removal, masked: the return of the episode's copy whose message of this turn is the null message."""
    return _means(plan, (turn + 1) * plan.episodes + np.arange(plan.episodes), 1)


def fresh_here(plan: Plan, turn: int) -> np.ndarray:
    """Auxiliary: mean return of the fresh continuations of the context that the message answers."""
    episode_N = np.arange(plan.episodes)
    context_N = np.zeros_like(episode_N) if turn == 0 else 1 + (turn - 1) * plan.episodes + episode_N
    return _means(plan, plan.episodes + plan.repeats * context_N, plan.repeats)


def fresh_next(plan: Plan, turn: int) -> np.ndarray:
    """Auxiliary: mean return of fresh continuations of the context that the message makes; at the end the return."""
    return own_episode(plan, turn) if turn == plan.turns - 1 else fresh_here(plan, turn + 1)


def _means(plan: Plan, first_N: np.ndarray, count: int) -> np.ndarray:
    """Row n is the mean over the leaves first_N[n], ..., first_N[n] + count - 1."""
    offset_NL = np.arange(count_calls(plan)) - first_N[:, None]
    return ((offset_NL >= 0) & (offset_NL < count)) / count


def coalitions_with(plan: Plan, turn: int) -> np.ndarray:
    """Coalition: sum_S w(S) v(S + u) over the sets S of other turns: the return when this turn joins a random set.

    w(S) = |S|! (K - |S| - 1)! / K!, which sums to 1. v(S) is the return with the messages outside S replaced by the
    null message. Source: Shapley 1953; as credit for a team of models arXiv:2602.08335.
    """
    return _coalitions(plan, turn, 1 << turn)


def coalitions_without(plan: Plan, turn: int) -> np.ndarray:
    """Coalition: sum_S w(S) v(S), the return of the same random sets before this turn joins."""
    return _coalitions(plan, turn, 0)


def _coalitions(plan: Plan, turn: int, joined: int) -> np.ndarray:
    K = plan.turns
    weight_NL = np.zeros((1, 2**K))
    for subset in range(2**K):
        if not subset >> turn & 1:
            size = subset.bit_count()
            weight_NL[0, subset | joined] = math.factorial(size) * math.factorial(K - size - 1) / math.factorial(K)
    return np.kron(np.eye(plan.episodes), weight_NL)
