"""What it does to the expected gradient that trees without a signal are left out of a batch, or replaced: exactly.

A tree without a signal has no gradient, so the trees that train are, given their problem, as they would be anyhow;
what changes is how much each problem counts. Of N problems, L are looked at in a random order, and the first P trees
with a signal train, each with one K-th of the loss, K their number. Where x has a signal, and M of the L - 1 others
have one, x is among the K = min(P, 1 + M) with chance K / (1 + M), whatever P is. So its gradient counts

    c_x = L / N E[1 / (1 + M)]

where keeping all trees gives it 1 / N. Leaving out is L = P; replacing, with R rounds, is L = (1 + R) P.

Dimension key: N problem    A choice of all messages of a tree    R outcome of all its evaluator calls    L leaf
    C context of a turn    M message of a turn    K turn    X row of a turn
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import Plan
from c3jax.lab.games import Game, GameShape, tabulate_mean_return
from c3jax.lab.policies import GamePolicy, Params, context_index, list_contexts


class TreeTruth(NamedTuple):
    """One problem's tree, averaged over all that can be drawn; f64, on the host."""

    signal: float  # chance of an advantage that is not zero
    gradient: tuple[np.ndarray, ...]  # [C, M] per turn, by its logits: of the mean over the turn's messages


def enumerate_tree(  # noqa: PLR0913
    shape: GameShape, game: Game, policy: GamePolicy, params: Params, plan: Plan, method: str
) -> TreeTruth:
    """Sum over every tree that can be drawn of one problem, and every outcome of its evaluator calls.

    Args:
      shape: of a game whose evaluator is a coin.
      game: the problem.
      policy, params: who speaks.
      plan: a tree.
      method: of credit, with a matrix; nothing is normalised.

    Raises:
      ValueError: where the evaluator is no coin or the plan no tree.
    """
    if shape.noise != "bernoulli" or plan.form != "tree":
        raise ValueError(f"expected a tree and a bernoulli evaluator, got {plan.form} and {shape.noise}")
    counts = list(itertools.accumulate(plan.fan_out, lambda rows, fan: rows * fan))
    sizes = [size for size, rows in zip(shape.messages, counts, strict=True) for _ in range(rows)]
    message_AX = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1).astype(np.int32)
    message = np.split(message_AX, np.cumsum(counts)[:-1], axis=1)  # [A, X] per turn
    chance_A, context, chances = np.ones(len(message_AX)), [], []
    for turn, rows in enumerate(counts):
        path_AXK = np.zeros((*message[turn].shape, len(counts)), np.int32)
        for earlier in range(turn):
            path_AXK[..., earlier] = np.repeat(message[earlier], rows // counts[earlier], axis=1)
        index_AX = context_index(shape, turn, jnp.asarray(path_AXK.reshape(-1, len(counts))))
        context.append(np.asarray(index_AX).reshape(message[turn].shape))
        logits_CM = policy.logits(params, game, turn, jnp.asarray(list_contexts(shape, turn)))
        chances.append(np.asarray(jax.nn.softmax(logits_CM), np.float64))
        chance_A *= np.prod(chances[turn][context[turn], message[turn]], axis=1)
    leaves = counts[-1]
    paths = tuple(np.repeat(message[turn], leaves // rows, axis=1) for turn, rows in enumerate(counts))
    mean_AL = np.asarray(tabulate_mean_return(shape, game), np.float64)[paths]
    return_RL = np.array(list(itertools.product((0.0, 1.0), repeat=leaves)), np.float32)
    chance_AR = np.prod(np.where(return_RL == 1.0, mean_AL[:, None], 1.0 - mean_AL[:, None]), axis=2)
    inputs = CreditInputs(make_credit_matrix(method, plan, shape.trained), plan.fan_out)
    advantage = compute_credit(method, inputs, return_RL, normalise="none").advantage
    has_signal_R = np.any([np.any(a != 0.0, axis=1) for a, on in zip(advantage, shape.trained, strict=True) if on], 0)
    gradient = []
    for turn, rows in enumerate(counts):
        weight_AX = chance_A[:, None] * (chance_AR @ np.asarray(advantage[turn], np.float64)) / rows
        sum_CM = np.zeros_like(chances[turn])
        np.add.at(sum_CM, (context[turn], message[turn]), weight_AX)
        gradient.append(sum_CM - sum_CM.sum(axis=1, keepdims=True) * chances[turn])
    return TreeTruth(float(chance_A @ (chance_AR @ has_signal_R)), tuple(gradient))


def compute_counts(signal_N: Sequence[float], looked_at: int) -> np.ndarray:
    """How much each problem's gradient counts, c_x above, f64 [N]; 1 / N each where all trees are kept.

    Args:
      signal_N: of each problem the chance that its tree has a signal.
      looked_at: problems at which a step looks (L); at most all of them.
    """
    problems, counts = len(signal_N), []
    for problem in range(problems):
        # Subsets of the others by size and number of signals: sums over subsets of the chance of that number.
        mass = np.zeros((looked_at, looked_at))
        mass[0, 0] = 1.0
        for other in (signal for number, signal in enumerate(signal_N) if number != problem):
            mass[1:, :] += (1.0 - other) * mass[:-1, :] + other * np.pad(mass[:-1, :-1], ((0, 0), (1, 0)))
        chance_M = mass[looked_at - 1] / math.comb(problems - 1, looked_at - 1)
        counts.append(looked_at / problems * float(chance_M @ (1.0 / np.arange(1, looked_at + 1))))
    return np.array(counts)


def compare_gradients(truths: Sequence[TreeTruth], looked_at: int) -> dict[str, float]:
    """The expected gradient of a batch beside that of one in which all trees are kept.

    Args:
      truths: of all problems, each with parameters of its own.
      looked_at: as for `compute_counts`.

    Returns:
      `cosine` of the two; `scale`, the one's part along the other over its norm; and how much the problem that counts
      least, and most, does, over the mean of all: `least` and `most`.
    """
    count_N = compute_counts([truth.signal for truth in truths], looked_at)
    gradient_N = [np.concatenate([part_CM.ravel() for part_CM in truth.gradient]) for truth in truths]
    kept = np.concatenate(gradient_N) / len(truths)
    batch = np.concatenate([count * part for count, part in zip(count_N, gradient_N, strict=True)])
    along, relative_N = float(batch @ kept), count_N / count_N.mean()
    return {
        "cosine": along / float(np.linalg.norm(batch) * np.linalg.norm(kept)),
        "scale": along / float(kept @ kept),
        "least": float(relative_N.min()),
        "most": float(relative_N.max()),
    }
