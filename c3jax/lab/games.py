"""Enumerable team games: K turns, a few messages at each, one return at the end. Pure maths on the device.

The expected return of a transcript m is link(bias + sum_k main[k, m_k] + sum_{k<j} pair[k, j, m_k, m_j]), or whether
its last message is the right one, and one evaluator call returns it with or without noise. A problem is a `Game`; a
`Family` draws problems of one `GameShape` from its parameters. vmap over a leading axis of `Game` for many problems.

Message 0 of every turn is the null message. Turns that are not trained are team-mates who only add noise.

Dimension key: N transcript    K turn    M message of a turn    F feature of the problem    X pair of turns
    A transcript of all that are possible    E effect: main, pair and bias, one after another
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from c3jax.lab.sections import MAX_TRANSCRIPTS

Graph = tuple[tuple[int, ...], ...]
Link = Literal["logistic", "identity", "answer"]  # answer: 1 where the last message is `find_answer`'s, else 0
Noise = Literal["none", "bernoulli", "gaussian"]

SURVEY_LOGIT_SCALE = 0.75  # standard deviation of the policies' logits in the games of `make_survey`


class GameShape(NamedTuple):
    """What is fixed about a game: static and hashable."""

    messages: tuple[int, ...]  # per turn, how many messages it can choose from
    sees: Graph  # per turn, the earlier turns whose messages it reads, ascending
    trained: tuple[bool, ...]
    link: Link
    noise: Noise  # bernoulli only with the logistic link
    sigma: float  # standard deviation of the gaussian evaluator, in units of return; 0 for the others


class Game(NamedTuple):
    """One problem, f32. M is the largest number of messages of any turn; what a turn cannot say is never read."""

    index: jax.Array  # int32 scalar: which problem, for policies that keep a table of them
    feature_F: jax.Array  # what policies see of the problem
    main_KM: jax.Array  # effect of message m at turn k
    pair_KKMM: jax.Array  # effect of messages (a, b) at turns k < j; zero elsewhere
    bias: jax.Array  # scalar


class Family(NamedTuple):
    """A distribution of problems. Effects are standard deviations, before the link."""

    shape: GameShape
    effect_K: tuple[float, ...]  # of a turn's own messages
    coupling: float  # of each pair of messages of two trained turns: how much the best message depends on another
    spread: float  # of the problem's bias: what makes some problems easier than others
    features: int  # F
    is_fresh: bool  # effects are a fixed random linear function of feature_F, so an unseen problem can be judged


def see_all(turns: int) -> Graph:
    """The graph of a chain of so many turns: every turn reads all earlier ones."""
    return tuple(tuple(range(turn)) for turn in range(turns))


def see_previous(turns: int) -> Graph:
    """The graph of so many turns in which every turn reads the one before it."""
    return tuple((turn - 1,) if turn else () for turn in range(turns))


def see_none(turns: int) -> Graph:
    """The graph of so many turns in which no turn reads another."""
    return ((),) * turns


def make_team(
    *,
    messages: tuple[int, ...],
    sees: Graph,
    effect: float,
    coupling: float,
    spread: float,
    noise: Noise,
    sigma: float = 0.0,
    features: int = 8,
) -> Family:
    """Trained turns whose success is logistic in main effects and interactions; a fixed set of problems.

    Args:
      messages: how many each turn can choose from, the null message included.
      sees: per turn, the earlier turns it reads; `see_all`, `see_previous`, `see_none`, or any such graph.
      effect: standard deviation of main effects, in logits, as are `coupling` and `spread`.
      noise: of one evaluator call; bernoulli returns are 0 or 1.
      features: numbers that a policy sees of a problem; N(0, 1), independent of its effects.

    Raises:
      ValueError: if the graph does not fit the turns.
    """
    shape = GameShape(tuple(messages), sees, (True,) * len(messages), "logistic", noise, sigma)
    _check_shape(shape)
    return Family(shape, (effect,) * len(messages), coupling, spread, features, is_fresh=False)


def make_bandit(*, turns: int, messages: int, effect: float, interaction: float, sigma: float) -> Family:
    """The literature's sequential bandit: R ~ N(sum_k main + interaction sum_{k<j} pair, sigma^2), on the chain.

    Args:
      turns: up to 16; enumerable while messages^turns is at most `MAX_TRANSCRIPTS`.
      effect: standard deviation of main effects, in units of return, as are `interaction` and `sigma`.

    Source: arXiv:2604.17693.
    """
    shape = GameShape((messages,) * turns, see_all(turns), (True,) * turns, "identity", "gaussian", sigma)
    return Family(shape, (effect,) * turns, interaction, spread=0.0, features=8, is_fresh=False)


def make_answer(*, turns: int, messages: int) -> Family:
    """A chain whose last turn answers: one of its messages is right and returns 1, any other 0.

    Args:
      turns: each reads all before it, and the last one's message alone counts.
      messages: how many each turn can choose from, the null message included.
    """
    shape = GameShape((messages,) * turns, see_all(turns), (True,) * turns, "answer", "none", 0.0)
    _check_shape(shape)
    return Family(shape, (1.0,) * turns, coupling=0.0, spread=0.0, features=8, is_fresh=False)


def make_survey() -> Family:
    """The two-role family of the estimator survey: six messages each, the second role reads the first, strong coupling.

    Play it with tabular policies of scale `SURVEY_LOGIT_SCALE`. The scales were fitted, by exact sums over 600 games,
    to the survey's ratios of gradient noise to signal at 8 evaluator calls, first role / second role. Theirs is from 40
    games; ours is given with the standard deviation over sets of 40:

        RLOO of 8 episodes    4.3 / 7.1     4.5 (0.7) / 7.1 (0.7)
        exact V, lambda 1     3.8 / 5.7     3.9 (0.6) / 5.6 (0.5)
        c3 2x4               11.6 / 9.0    11.2 (1.4) / 8.7 (0.8)
        c3 4x2                6.0 / 12.0    5.9 (0.9) / 12.0 (1.1)
    """
    return make_team(messages=(6, 6), sees=see_all(2), effect=1.0, coupling=2.0, spread=0.0, noise="bernoulli")


def add_mates(family: Family, mates: int, *, effect: float, position: Literal["first", "last"]) -> Family:
    """Add team-mates who are not trained, read nobody and are read by nobody, and shift the return by what they say.

    With a uniform policy they are noise. Speaking first they stand still wherever alternatives share a transcript so
    far; speaking last they are noise under every message.

    Args:
      mates: how many; each chooses from as many messages as the family's widest turn.
      effect: standard deviation of their main effects, before the link.
    """
    old = family.shape
    shift = mates if position == "first" else 0
    seen = tuple(tuple(turn + shift for turn in row) for row in old.sees)

    def join(mine: tuple, theirs: tuple) -> tuple:
        return theirs + mine if position == "first" else mine + theirs

    shape = old._replace(
        messages=join(old.messages, (max(old.messages),) * mates),
        sees=join(seen, ((),) * mates),
        trained=join(old.trained, (False,) * mates),
    )
    return family._replace(shape=shape, effect_K=join(family.effect_K, (effect,) * mates))


def make_fresh(family: Family, features: int) -> Family:
    """The same parameters, but every index is a new problem: feature_F ~ N(0, I), and effects linear in it.

    main = W_main f, pair = W_pair f and bias = w_bias f, with W the family's own and scaled so that effects keep their
    standard deviations.

    Args:
      family: whose parameters these are.
      features: F, how many numbers a policy sees of a problem.
    """
    return family._replace(features=features, is_fresh=True)


def make_game(family: Family, key: jax.Array, index: jax.Array | int) -> Game:
    """Draw the family's problem `index`.

    Args:
      family: static, but for its numbers, which may be traced.
      key: the family's; the same for all its problems.
      index: int32 scalar, the problem's address. vmap over it for many problems.
    """
    K, M = len(family.shape.messages), max(family.shape.messages)
    F, effects = family.features, K * M + (K * M) ** 2 + 1
    family_key, problem_key = jax.random.fold_in(key, 0), jax.random.fold_in(jax.random.fold_in(key, 1), index)
    if family.is_fresh:
        feature_F = jax.random.normal(problem_key, (F,))
        weight_EF = jax.random.normal(family_key, (effects, F)) / math.sqrt(F)
        effect_E = jnp.dot(weight_EF, feature_F, precision=jax.lax.Precision.HIGHEST)
    else:
        feature_F, effect_E = jnp.split(jax.random.normal(problem_key, (F + effects,)), [F])
    is_pair_KK = np.triu(np.outer(family.shape.trained, family.shape.trained), 1)
    main_KM, pair_KKMM = effect_E[: K * M].reshape(K, M), effect_E[K * M : -1].reshape(K, K, M, M)
    return Game(
        index=jnp.asarray(index, jnp.int32),
        feature_F=feature_F,
        main_KM=jnp.asarray(family.effect_K, jnp.float32)[:, None] * main_KM,
        pair_KKMM=jnp.where(is_pair_KK[:, :, None, None], family.coupling * pair_KKMM, 0.0),
        bias=family.spread * effect_E[-1],
    )


def compute_mean_return(shape: GameShape, game: Game, message_NK: jax.Array) -> jax.Array:
    """Expected return of whole transcripts: link(bias + sum_k main[k, m_k] + sum_{k<j} pair[k, j, m_k, m_j]).

    Args:
      shape: static.
      game: one problem.
      message_NK: int32, a message of each turn.

    Returns:
      [N], f32, in units of return.
    """
    K = len(shape.messages)
    chex.assert_shape(message_NK, (None, K))
    chex.assert_shape(game.main_KM, (K, max(shape.messages)))
    if shape.link == "answer":
        return (message_NK[:, -1] == find_answer(shape, game)).astype(jnp.float32)
    score_N = game.bias + game.main_KM[np.arange(K), message_NK].sum(axis=1)
    if K > 1:
        early_X, late_X = np.triu_indices(K, 1)
        pair_NX = game.pair_KKMM[early_X, late_X, message_NK[:, early_X], message_NK[:, late_X]]
        score_N = score_N + pair_NX.sum(axis=1)
    return _apply_link(shape, score_N)


def tabulate_mean_return(shape: GameShape, game: Game) -> jax.Array:
    """`compute_mean_return` of every possible transcript.

    Args:
      shape: static.
      game: one problem.

    Returns:
      A tensor with an axis for each turn, f32, in units of return.

    Raises:
      ValueError: if there are more than `MAX_TRANSCRIPTS`.
    """
    _check_enumerable(shape)
    K = len(shape.messages)
    if shape.link == "answer":
        is_right_M = jnp.arange(shape.messages[-1]) == find_answer(shape, game)
        return jnp.broadcast_to(is_right_M.astype(jnp.float32), shape.messages)

    def spread_out(effect: jax.Array, turns: tuple[int, ...]) -> jax.Array:
        sayable = effect[tuple(slice(shape.messages[turn]) for turn in turns)]
        return sayable.reshape([size if turn in turns else 1 for turn, size in enumerate(shape.messages)])

    score = game.bias + sum(spread_out(game.main_KM[turn], (turn,)) for turn in range(K))
    for early, late in itertools.combinations(range(K), 2):
        score = score + spread_out(game.pair_KKMM[early, late], (early, late))
    return _apply_link(shape, score)


def _apply_link(shape: GameShape, score: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(score) if shape.link == "logistic" else score


def sample_return(shape: GameShape, game: Game, message_NK: jax.Array, key: jax.Array) -> jax.Array:
    """One evaluator call for each transcript, with independent noise.

    Args:
      shape: static.
      game: one problem.
      message_NK: int32, a message of each turn.
      key: of the noise.

    Returns:
      [N], f32, in units of return.
    """
    mean_N = compute_mean_return(shape, game, message_NK)
    if shape.noise == "bernoulli":
        return (jax.random.uniform(key, mean_N.shape) < mean_N).astype(jnp.float32)
    if shape.noise == "gaussian":
        return mean_N + shape.sigma * jax.random.normal(key, mean_N.shape)
    return mean_N


def find_answer(shape: GameShape, game: Game) -> jax.Array:
    """The last turn's message that is the problem's right answer, or stands for it: that of the largest main effect.

    Args:
      shape: static.
      game: one problem.
    """
    return jnp.argmax(game.main_KM[-1, : shape.messages[-1]])


def count_transcripts(shape: GameShape) -> int:
    """Number of possible transcripts, A."""
    return math.prod(shape.messages)


def list_transcripts(shape: GameShape) -> np.ndarray:
    """All transcripts, the last turn fastest.

    Returns:
      [A, K] int32, on the host.

    Raises:
      ValueError: if there are more than `MAX_TRANSCRIPTS`.
    """
    _check_enumerable(shape)
    return np.stack(np.unravel_index(np.arange(count_transcripts(shape)), shape.messages), axis=1).astype(np.int32)


def _check_enumerable(shape: GameShape) -> None:
    count = count_transcripts(shape)
    if count > MAX_TRANSCRIPTS:
        raise ValueError(f"game: expected at most {MAX_TRANSCRIPTS} transcripts to enumerate, got {count}")


def _check_shape(shape: GameShape) -> None:
    if not shape.messages or min(shape.messages) < 1:
        raise ValueError(f"messages: expected a positive number for every turn, got {shape.messages}")
    if len(shape.sees) != len(shape.messages):
        raise ValueError(f"sees: expected {len(shape.messages)} entries, one per turn, got {len(shape.sees)}")
    for turn, seen in enumerate(shape.sees):
        is_ascending = all(a < b for a, b in itertools.pairwise(seen))
        if not is_ascending or not all(0 <= each < turn for each in seen):
            raise ValueError(f"sees.{turn}: expected earlier turns in ascending order, got {seen}")
