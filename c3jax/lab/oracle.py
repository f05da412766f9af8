"""The truth about a game under a policy, by enumeration: every quantity that an estimator claims to estimate.

All transcripts form a tensor with an axis for each turn. A turn's policy is a factor that varies along its own axis and
those of the turns it reads, so expectations given a context are products summed over the other axes.

Conditioning is on what a turn reads: what it does not see is averaged over its distribution given the context. Contexts
are numbered as policies.context_index does; entries of messages that a turn cannot say, and of contexts that are never
reached, are 0. Games of up to games.MAX_TRANSCRIPTS transcripts.

Dimension key: K turn    M message of a turn    C context of a turn    A transcript    S subset of turns
    B all messages before a turn, read or not, the last one fastest    Y message of a later turn
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.lab.games import Game, GameShape, count_transcripts, list_transcripts, tabulate_mean_return
from c3jax.lab.policies import GamePolicy, Params, count_contexts, list_contexts

MAX_COALITIONS = 2**22  # transcripts times subsets of turns


class Oracle(NamedTuple):
    """Values, f32, in units of return; tuples have an entry a turn."""

    value: jax.Array  # scalar: the problem's, E[R]
    q: tuple[jax.Array, ...]  # [C_u, M]: E[R | h, a], all other turns following the policy
    v: tuple[jax.Array, ...]  # [C_u]: E[R | h]
    advantage: tuple[jax.Array, ...]  # [C_u, M]: q - v
    visit: tuple[jax.Array, ...]  # [C_u]: probability of the context
    policy: tuple[jax.Array, ...]  # [C_u, M]: pi(a | h)


class Variance(NamedTuple):
    """Nested parts of Var R, f32, in squared units of return: for every turn, noise + spread + between = Var R."""

    noise_K: jax.Array  # sigma^2: E Var(R | h, a), the evaluator's noise included
    spread_K: jax.Array  # tau^2: E Var_a Q(h, a)
    between_K: jax.Array  # Var V(h) over contexts
    noise_at: tuple[jax.Array, ...]  # [C_u, M]: Var(R | h, a)
    spread_at: tuple[jax.Array, ...]  # [C_u]: Var_a Q(h, a)


class Removal(NamedTuple):
    """Effect of saying a and not the null message after all earlier messages; [B_u, M] a turn, in units of return."""

    regenerated: tuple[jax.Array, ...]  # later turns speak again
    masked: tuple[jax.Array, ...]  # later turns keep the messages that they had after a, on average


class Influence(NamedTuple):
    """Mutual information of a turn's message and a later turn's, given the former's context; f32, nats."""

    mean_KK: jax.Array  # [turn, later turn], averaged over contexts; 0 where the second is not later
    at: tuple[jax.Array, ...]  # [C_u, K]


def compute_oracle(shape: GameShape, game: Game, policy: GamePolicy, params: Params) -> Oracle:
    """Exact Q, V, A* and visit probabilities of every turn.

    Args:
      shape, policy: static.
      game: one problem; vmap for many.
      params: of the policy.

    Raises:
      ValueError: if the game has too many transcripts to enumerate.
    """
    mean = tabulate_mean_return(shape, game)
    chance = _tabulate_policy(shape, game, policy, params)
    joint = math.prod(chance, start=jnp.ones(()))
    turns = range(len(shape.messages))
    pi = tuple(_pad(shape, chance[turn].reshape(-1, shape.messages[turn])) for turn in turns)
    q = tuple(_average_at(shape, turn, chance, mean) for turn in turns)
    v = tuple((pi[turn] * q[turn]).sum(axis=1) for turn in turns)
    advantage = tuple(_keep_sayable(shape, turn, q[turn] - v[turn][:, None]) for turn in turns)
    visit = tuple(_sum_onto(joint, shape.sees[turn]).reshape(-1) for turn in turns)
    return Oracle((joint * mean).sum(), q, v, advantage, visit, pi)


def compute_policy_gradient(oracle: Oracle) -> tuple[jax.Array, ...]:
    """Gradient of the expected return with respect to the logits at each context: visit(h) pi(a | h) A*(h, a).

    Args:
      oracle: of one problem, or of many with their axis in front.

    Returns:
      An entry a turn, [C_u, M], f32, in units of return.
    """
    parts = zip(oracle.visit, oracle.policy, oracle.advantage, strict=True)
    return tuple(visit[..., None] * pi * advantage for visit, pi, advantage in parts)


def compute_variance(shape: GameShape, game: Game, policy: GamePolicy, params: Params) -> Variance:
    """The law of total variance at every turn: Var R = E Var(R | h, a) + E Var_a Q(h, a) + Var V(h).

    Raises as `compute_oracle`. Alternatives of a tree share all earlier messages, read or not: where a turn does not
    read them all, noise_K holds a part that they share.

    Args:
      shape, game, policy, params: as for `compute_oracle`.
    """
    oracle = compute_oracle(shape, game, policy, params)
    mean = tabulate_mean_return(shape, game)
    square = {"none": mean**2, "bernoulli": mean, "gaussian": mean**2 + shape.sigma**2}[shape.noise]
    chance = _tabulate_policy(shape, game, policy, params)
    turns = range(len(shape.messages))
    noise_at = [_average_at(shape, turn, chance, square) - oracle.q[turn] ** 2 for turn in turns]
    spread_at = [(oracle.policy[turn] * oracle.advantage[turn] ** 2).sum(axis=1) for turn in turns]
    noise_C = [(oracle.policy[turn] * noise_at[turn]).sum(axis=1) for turn in turns]
    return Variance(
        noise_K=jnp.stack([oracle.visit[turn] @ noise_C[turn] for turn in turns]),
        spread_K=jnp.stack([oracle.visit[turn] @ spread_at[turn] for turn in turns]),
        between_K=jnp.stack([oracle.visit[turn] @ (oracle.v[turn] - oracle.value) ** 2 for turn in turns]),
        noise_at=tuple(noise_at),
        spread_at=tuple(spread_at),
    )


def compute_removal(shape: GameShape, game: Game, policy: GamePolicy, params: Params) -> Removal:
    """What removing a message changes: Q(b, a) - Q(b, 0), and E[f(m) - f(m with 0 for a) | b, a].

    b are all earlier messages, and f is the mean return of a whole transcript m. Raises as `compute_oracle`.

    Args:
      shape, game, policy, params: as for `compute_oracle`.
    """
    mean = tabulate_mean_return(shape, game)
    chance = _tabulate_policy(shape, game, policy, params)
    regenerated, masked = [], []
    for turn, count in enumerate(shape.messages):
        known = tuple(range(turn + 1))
        later = math.prod(chance[turn + 1 :], start=jnp.ones((1,) * len(chance)))
        value = _sum_onto(later * mean, known)
        null = jax.lax.slice_in_dim(mean, 0, 1, axis=turn)
        kept = _sum_onto(later * (mean - null), known)
        regenerated.append(_pad(shape, (value - value[..., :1]).reshape(-1, count)))
        masked.append(_pad(shape, kept.reshape(-1, count)))
    return Removal(tuple(regenerated), tuple(masked))


def compute_shapley(shape: GameShape, game: Game) -> jax.Array:
    """Shapley value of every turn in every transcript; a coalition is worth the mean return with all others null.

    phi_u = sum_{S without u} |S|! (K - |S| - 1)! / K! (f(S + u) - f(S)); over turns they sum to f(m) - f(all null).

    Returns:
      [A, K], f32, in units of return, transcripts in the order of games.list_transcripts.

    Raises:
      ValueError: if there are too many transcripts, or transcripts times subsets, to enumerate.
    """
    transcript_AK = list_transcripts(shape)
    K, size = transcript_AK.shape[1], count_transcripts(shape) * 2 ** len(shape.messages)
    if size > MAX_COALITIONS:
        raise ValueError(f"game: expected at most {MAX_COALITIONS} transcripts times subsets of turns, got {size}")
    is_in_SK = (np.arange(2**K)[:, None] >> np.arange(K)) % 2 == 1
    stride_K = np.array([math.prod(shape.messages[turn + 1 :]) for turn in range(K)])
    masked_AS = (transcript_AK * stride_K) @ is_in_SK.T  # the number of the transcript that a coalition leaves
    others_SK = is_in_SK.sum(axis=1, keepdims=True) - is_in_SK
    chance_SK = 1 / (K * np.array([math.comb(K - 1, size) for size in range(K)]))[others_SK]
    weight_SK = jnp.asarray(np.where(is_in_SK, chance_SK, -chance_SK), jnp.float32)
    worth_AS = tabulate_mean_return(shape, game).reshape(-1)[masked_AS]
    return jnp.dot(worth_AS, weight_SK, precision=jax.lax.Precision.HIGHEST)


def compute_influence(shape: GameShape, game: Game, policy: GamePolicy, params: Params) -> Influence:
    """I(A_u; A_w | H_u) for every pair of turns u < w: what u's message says of w's, given u's context.

    sum_{a,y} P(a, y | h) ln(P(a, y | h) / (P(a | h) P(y | h))), and its mean over contexts. Raises as `compute_oracle`.

    Args:
      shape, game, policy, params: as for `compute_oracle`.
    """
    chance = _tabulate_policy(shape, game, policy, params)
    joint = math.prod(chance, start=jnp.ones(()))
    K = len(shape.messages)
    at = [jnp.zeros((count_contexts(shape, turn), K)) for turn in range(K)]
    mean_KK = jnp.zeros((K, K))
    for turn, later in itertools.combinations(range(K), 2):
        sizes = (-1, shape.messages[turn], shape.messages[later])
        joint_CMY = _sum_onto(joint, (*shape.sees[turn], turn, later)).reshape(sizes)
        visit_C = joint_CMY.sum((1, 2))
        nats_C = _mutual_information(_divide(joint_CMY, visit_C[:, None, None]))
        at[turn] = at[turn].at[:, later].set(nats_C)
        mean_KK = mean_KK.at[turn, later].set(visit_C @ nats_C)
    return Influence(mean_KK, tuple(at))


def _mutual_information(joint_CMY: jax.Array) -> jax.Array:
    product_CMY = joint_CMY.sum(2, keepdims=True) * joint_CMY.sum(1, keepdims=True)
    is_possible_CMY = joint_CMY > 0
    ratio_CMY = jnp.where(is_possible_CMY, joint_CMY, 1.0) / jnp.where(is_possible_CMY, product_CMY, 1.0)
    return (joint_CMY * jnp.log(ratio_CMY)).sum((1, 2))


def _tabulate_policy(shape: GameShape, game: Game, policy: GamePolicy, params: Params) -> list[jax.Array]:
    """pi_u(a | h) of every turn, an axis a turn: of length one where it is neither u nor read by u."""
    chance = []
    for turn, count in enumerate(shape.messages):
        logits_CM = policy.logits(params, game, turn, jnp.asarray(list_contexts(shape, turn)))
        own = (*shape.sees[turn], turn)
        sizes = [size if axis in own else 1 for axis, size in enumerate(shape.messages)]
        chance.append(jax.nn.softmax(logits_CM)[:, :count].reshape(sizes))
    return chance


def _average_at(shape: GameShape, turn: int, chance: list[jax.Array], worth: jax.Array) -> jax.Array:
    """E[worth | h, a] at every context and message of a turn, [C, M]."""
    # Without the turn's own factor, so that a message the policy never says still has its value.
    others = math.prod(chance[:turn] + chance[turn + 1 :], start=jnp.ones(shape.messages))
    own = (*shape.sees[turn], turn)
    average = _divide(_sum_onto(others * worth, own), _sum_onto(others, own))
    return _pad(shape, average.reshape(-1, shape.messages[turn]))


def _sum_onto(tensor: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum over all turns but `axes`."""
    return tensor.sum(axis=tuple(axis for axis in range(tensor.ndim) if axis not in axes))


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    is_reached = denominator > 0
    return jnp.where(is_reached, numerator / jnp.where(is_reached, denominator, 1.0), 0.0)


def _pad(shape: GameShape, rows_CM: jax.Array) -> jax.Array:
    return jnp.pad(rows_CM, ((0, 0), (0, max(shape.messages) - rows_CM.shape[1])))


def _keep_sayable(shape: GameShape, turn: int, rows_CM: jax.Array) -> jax.Array:
    return jnp.where(np.arange(rows_CM.shape[1]) < shape.messages[turn], rows_CM, 0.0)
