"""A testbed for estimators: problems of one family under one policy, their truth, and estimators drawn on them.

Dimension key: G problem    B independent batch of samples    X chunk of a batch    S sample    N credited message of a
    turn    C context of a turn    M message of a turn
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.analysis.fidelity import compute_spearman
from c3jax.analysis.statistics import Interval
from c3jax.credit import shrink
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import find_method
from c3jax.credit.plans import Plan, make_tree
from c3jax.lab import analyse, measure, oracle, play, policies
from c3jax.lab.chunks import list_quick_options
from c3jax.lab.config import BenchStudy, Case
from c3jax.lab.families import make_family
from c3jax.lab.games import Family, Game, GameShape, make_game
from c3jax.lab.policies import GamePolicy, Params
from c3jax.lab.sections import Estimator, find_program, list_tokens, list_trained, make_plan

BIAS_LEVEL = 0.999
_CHUNK = 250  # most samples of every problem in memory at once; a batch is a whole number of chunks
_RANKED_SAMPLES = 256  # samples of every problem whose messages are ranked
_RANKED = 160  # of these, messages of a context: all their pairs are compared
_PROBLEMS, _POLICY, _CRITIC, _PILOT, _DRAWS = range(5)  # streams of a bench's case


class Testbed(NamedTuple):
    """Problems, a policy, and what is true of them; arrays have the problems in front, tuples an entry a turn."""

    shape: GameShape
    policy: GamePolicy
    params: Params
    games: Game
    oracle: oracle.Oracle
    target: measure.Target
    gradient: tuple[np.ndarray, ...]  # [G, C, M] f64, of the expected return by the logits

    @property
    def count(self) -> int:
        """Number of problems, G."""
        return self.games.bias.shape[0]


def draw_testbed(family: Family, count: int, scale: float, games_key: jax.Array, policy_key: jax.Array) -> Testbed:
    """Problems of a family under a random tabular policy.

    Args:
      family: of games that can be enumerated.
      count: problems.
      scale: standard deviation of the policy's logits; 0 for uniform.
      games_key, policy_key: of the problems' effects and of the logits.

    Raises:
      ValueError: if the games have too many transcripts to enumerate.
    """
    games = jax.vmap(lambda index: make_game(family, games_key, index))(jnp.arange(count))
    policy = _make_policy(family.shape, count, scale)
    return make_testbed(family.shape, policy, policy.init(policy_key), games)


# One policy for games of one shape, and with it one compiled program of each recipe.
_make_policy = functools.lru_cache(policies.make_tabular)


def make_testbed(shape: GameShape, policy: GamePolicy, params: Params, games: Game) -> Testbed:
    """The testbed of given problems under a given policy, with a critic that is exact.

    Args:
      shape, policy: static.
      params: of the policy.
      games: [G].

    Raises:
      ValueError: if the games have too many transcripts to enumerate.
    """
    exact = compile_quickly(_compute_oracles, 2)(shape, policy, params, games)
    gradient = tuple(np.asarray(x, np.float64) for x in oracle.compute_policy_gradient(exact))
    return Testbed(shape, policy, params, games, exact, measure.make_target(exact), gradient)


def _compute_oracles(shape: GameShape, policy: GamePolicy, params: Params, games: Game) -> oracle.Oracle:
    return jax.vmap(lambda game: oracle.compute_oracle(shape, game, policy, params))(games)


def set_critic_error(testbed: Testbed, error: float, key: jax.Array) -> Testbed:
    """The same testbed with a critic that is wrong in every cell.

    Args:
      testbed: whose critic is exact.
      error: root mean square of the critic's error, in units of return.
      key: of the error.
    """
    keys = jax.random.split(key, testbed.count)
    return testbed._replace(target=jax.vmap(measure.add_critic_error, (0, None, 0))(testbed.target, error, keys))


@functools.cache
def compile_quickly(function: Callable[..., Any], statics: int) -> Callable[..., Any]:
    """jax.jit, its first `statics` arguments static, for many programs that each run for seconds at most.

    On CPU most of the time goes into LLVM's optimisation; at its first level a program compiles three times as fast
    and runs as fast.

    Args:
      function: of a module's top level, so that its programs are kept from call to call.
      statics: how many of its arguments.
    """
    return jax.jit(function, static_argnums=tuple(range(statics)), compiler_options=list_quick_options())


# --------------------------------------------------------------------------------------------------------------------
# Draws of an estimator


def split_key(key: jax.Array, *counts: int) -> jax.Array:
    """Keys of shape [*counts], every axis split from the one before it."""
    if not counts:
        return key
    return jax.vmap(lambda each: split_key(each, *counts[1:]))(jax.random.split(key, counts[0]))


def make_weights(
    method: str,
    plan: Plan,
    trained: tuple[bool, ...],
    components: shrink.Components | None = None,
    share: float = 0.0,
    error: float = 0.0,
) -> measure.CreditWeights:
    """The weights of a method on a plan.

    Args:
      trained: per turn.
      components: of earlier draws, for a method that carries them.
      share: of the baseline that is their mean.
      error: what that mean is too low by, as one of earlier steps is while returns rise, in units of return.
    """
    row, mean = find_method(method), jnp.float32(0.0)
    if row.carries == "components" or share:
        assert components is not None
        mean = jnp.asarray(components.mean - error, jnp.float32)
    if row.apply == "filter":
        assert components is not None
        matrix = shrink.make_shrunk_matrix(components, plan.fan_out, trained)
    else:
        matrix = make_credit_matrix(method, plan, trained, share)
    return measure.CreditWeights(jax.tree.map(lambda block: jnp.asarray(block, jnp.float32), matrix), mean)


def sum_estimator(
    testbed: Testbed,
    recipe: measure.Recipe,
    weights: measure.CreditWeights,
    samples: int,
    key_BXG: jax.Array,
    kept: int = 0,
) -> tuple[measure.Sums, measure.Draws]:
    """Sums over draws of one estimator, and some of the draws; on the host.

    Args:
      samples: draws of a problem in a chunk; the chunks of a batch are drawn one after another, to save memory.
      key_BXG: the same keys give the same draws of a plan, whatever the method.
      kept: of the draws of a chunk, how many are returned.

    Returns:
      Sums with leading axes [G, B], and draws of shape [G, B * X * kept, N].
    """
    arguments = (testbed.params, testbed.games, testbed.target, weights, key_BXG)
    program = compile_quickly(_sum_estimator, 5)
    return jax.device_get(program(testbed.shape, testbed.policy, recipe, samples, kept, *arguments))


def _sum_estimator(  # noqa: PLR0913
    shape: GameShape,
    policy: GamePolicy,
    recipe: measure.Recipe,
    samples: int,
    kept: int,
    params: Params,
    games: Game,
    target: measure.Target,
    weights: measure.CreditWeights,
    key_BXG: jax.Array,
) -> tuple[measure.Sums, measure.Draws]:
    def draw(game: Game, of_game: measure.Target, key: jax.Array) -> measure.Draws:
        return measure.draw_credit(shape, policy, recipe, samples, params, game, of_game, weights, key)

    return sum_batches(draw, games, target, key_BXG, kept)


def sum_batches(
    draw: Callable[[Game, measure.Target, jax.Array], measure.Draws],
    games: Game,
    target: measure.Target,
    key_BXG: jax.Array,
    kept: int = 0,
) -> tuple[measure.Sums, measure.Draws]:
    """Sums over draws of every problem, batch by batch and in it chunk by chunk; to be jitted.

    Args:
      draw: draws and credits one problem with one key.
      games, target: of all problems, [G].
      kept: of the draws of a chunk, how many are returned.

    Returns:
      Sums with leading axes [G, B], and draws of shape [G, B * X * kept, N].
    """

    def sum_problem(game: Game, of_game: measure.Target, key: jax.Array) -> tuple[measure.Sums, measure.Draws]:
        draws = draw(game, of_game, key)
        return measure.sum_draws(of_game, draws), jax.tree.map(lambda x_SN: x_SN[:kept], draws)

    def sum_batch(key_XG: jax.Array) -> tuple[measure.Sums, measure.Draws]:
        sums, draws = jax.lax.map(lambda key_G: jax.vmap(sum_problem)(games, target, key_G), key_XG)
        return jax.tree.map(lambda part: part.sum(axis=0), sums), draws

    sums, draws = jax.lax.map(sum_batch, key_BXG)
    per_problem = jax.tree.map(
        lambda x_BXGSN: jnp.moveaxis(x_BXGSN, 2, 0).reshape(x_BXGSN.shape[2], -1, x_BXGSN.shape[-1]), draws
    )
    return jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), sums), per_problem


def list_figures(testbed: Testbed, sums: measure.Sums, samples: int) -> list[analyse.Figures]:
    """Figures of every turn from an estimator's sums.

    Args:
      samples: draws of a problem in a batch.
    """
    return [analyse.compute_figures(sums, turn, samples, truth) for turn, truth in enumerate(testbed.gradient)]


# --------------------------------------------------------------------------------------------------------------------
# A case of the bench


class BenchTestbed(NamedTuple):
    """What all estimators of a case meet."""

    testbed: Testbed
    components: shrink.Components  # of earlier draws, for what is chosen by them
    key: jax.Array


class Measured(NamedTuple):
    """One estimator on a testbed."""

    plan: Plan
    figures: dict[int, analyse.Figures]  # by trained turn
    squared_bias: dict[int, Interval]
    spearman: dict[int, np.ndarray]  # [G]: rank fidelity of each problem, NaN where no context has one
    pilot_calls: int = 0  # evaluator calls a problem, made once for all draws, of the pilot that it reads


def make_bench_testbed(config: BenchStudy, case: Case, key: jax.Array) -> BenchTestbed:
    """Problems and policy of a case, and the variance components of an independent pilot on them.

    Args:
      config: the study's.
      case: of it.
      key: the case's, from which streams for problems, policy, pilot and draws are folded.
    """
    keys = (jax.random.fold_in(key, stream) for stream in (_PROBLEMS, _POLICY))
    testbed = draw_testbed(make_family(case.game), config.problems, config.policy_scale, *keys)
    components = draw_components(testbed, config.pilot_steps, jax.random.fold_in(key, _PILOT))
    return BenchTestbed(testbed, components, key)


def draw_components(testbed: Testbed, steps: int, key: jax.Array) -> shrink.Components:
    """Variance components of earlier draws, on the host.

    Args:
      steps: how many, each a draw of a tree 2x2x... of every problem.
    """
    program = compile_quickly(_draw_components, 2)
    arguments = testbed.params, testbed.games, jax.random.split(key, steps)
    return jax.device_get(program(testbed.shape, testbed.policy, *arguments))


def _draw_components(
    shape: GameShape, policy: GamePolicy, params: Params, games: Game, key_X: jax.Array
) -> shrink.Components:
    fan_out = (2,) * len(shape.messages)
    plan = make_tree(fan_out)

    def step(components: shrink.Components, step_key: jax.Array) -> tuple[shrink.Components, None]:
        def draw(game: Game, key: jax.Array) -> jax.Array:
            return play.sample_plan(shape, game, policy, params, plan, key).return_L

        return_GL = jax.vmap(draw)(games, jax.random.split(step_key, games.bias.shape[0]))
        return shrink.update_components(components, return_GL, fan_out, decay=0.99), None

    return jax.lax.scan(step, shrink.init_components(len(fan_out)), key_X)[0]


def measure_estimator(config: BenchStudy, case: Case, estimator: Estimator, bench: BenchTestbed) -> Measured:
    """One estimator: sums over samples, then figures for each turn it trains.

    Args:
      config: says how many samples, in how many batches.
      case: whose game it is.
      estimator: of the case.
      bench: from `make_bench_testbed`; all estimators of a plan meet the same draws.
    """
    trained = list_trained(case.game)
    plan = choose_plan(estimator, bench.components, trained, list_tokens(case.game))
    recipe = measure.make_recipe(estimator.method, plan, estimator.normalise, estimator.decay, estimator.share)
    weights = make_weights(estimator.method, plan, trained, bench.components, estimator.mean, estimator.error)
    testbed = set_critic_error(bench.testbed, estimator.error, jax.random.fold_in(bench.key, _CRITIC))
    samples = config.samples // config.batches
    chunks = next(count for count in range(-(-samples // _CHUNK), samples + 1) if samples % count == 0)
    key_BXG = split_key(jax.random.fold_in(bench.key, _DRAWS), config.batches, chunks, testbed.count)
    kept = max(1, _RANKED_SAMPLES // (config.batches * chunks))
    sums, draws = sum_estimator(testbed, recipe, weights, samples // chunks, key_BXG, kept)
    figures, squared_bias, spearman = {}, {}, {}
    for turn in [turn for turn, is_on in enumerate(trained) if is_on]:
        advantage_GCM = np.asarray(testbed.target.advantage[turn], np.float64)
        figures[turn] = analyse.compute_figures(sums, turn, samples, testbed.gradient[turn])
        squared_bias[turn] = analyse.compute_bias(sums, turn, advantage_GCM, BIAS_LEVEL)
        context, message, credit = (np.asarray(x[turn]) for x in (draws.context, draws.message, draws.advantage))
        spearman[turn] = rank_within_contexts(context, message, credit, advantage_GCM)
    reads_pilot = find_program(estimator) in ("filter", "running_mean") or estimator.plan.kind == "auto"
    pilot_calls = config.pilot_steps * 2 ** len(trained) if reads_pilot else 0
    return Measured(plan, figures, squared_bias, spearman, pilot_calls)


def choose_plan(
    estimator: Estimator, components: shrink.Components, trained: tuple[bool, ...], tokens: tuple[float, ...]
) -> Plan:
    """The estimator's plan; `auto` takes the fan-out that the pilot's components promise the least noise for.

    Args:
      trained, tokens: per turn, the latter of one message.
    """
    section = estimator.plan
    if section.kind != "auto":
        return make_plan(section, len(trained))
    return make_tree(
        shrink.choose_fan_out(
            components, section.budget, section.unit, estimator.method, section.criterion, trained, tokens
        )
    )


def rank_within_contexts(
    context_GSN: np.ndarray, message_GSN: np.ndarray, advantage_GSN: np.ndarray, exact_GCM: np.ndarray
) -> np.ndarray:
    """Mean over a problem's contexts of Spearman's correlation of advantages with A*.

    Args:
      context_GSN, message_GSN, advantage_GSN: of credited messages.
      exact_GCM: A*.

    Returns:
      [G]; NaN where no context of a problem has a correlation.
    """
    problems, contexts, _ = exact_GCM.shape
    estimate, target, keep = (np.zeros((problems, contexts, _RANKED), kind) for kind in (float, float, bool))
    for problem in range(problems):
        context_S, message_S = context_GSN[problem].reshape(-1), message_GSN[problem].reshape(-1)
        for context in range(contexts):
            at = np.flatnonzero(context_S == context)[:_RANKED]
            estimate[problem, context, : len(at)] = advantage_GSN[problem].reshape(-1)[at]
            target[problem, context, : len(at)] = exact_GCM[problem, context, message_S[at]]
            keep[problem, context, : len(at)] = True
    flat = (part.reshape(problems * contexts, _RANKED) for part in (estimate, target, keep))
    correlation_GC = np.asarray(_rank(*flat)).reshape(problems, contexts)
    is_there_GC = ~np.isnan(correlation_GC)
    total_G = np.where(is_there_GC, correlation_GC, 0.0).sum(axis=1)
    return np.where(is_there_GC.any(axis=1), total_G / np.maximum(is_there_GC.sum(axis=1), 1), np.nan)


_rank = jax.jit(compute_spearman)
