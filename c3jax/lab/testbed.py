"""A test bed for estimators: problems of one family under one policy, and what an estimator makes of them.

Dimension key: G problem    B batch of independent samples    S sample    N credited message of a turn
    C context of a turn    M message of a turn
"""

from __future__ import annotations

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.analysis.fidelity import compute_spearman
from c3jax.analysis.statistics import Interval
from c3jax.credit import shrink
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import Plan, make_tree
from c3jax.lab import analyse, measure, oracle, play, policies
from c3jax.lab.config import BenchStudy, Case
from c3jax.lab.families import make_family
from c3jax.lab.games import Game, GameShape, make_game
from c3jax.lab.policies import Params, Policy
from c3jax.lab.sections import Estimator, list_tokens, list_trained, make_plan

BIAS_LEVEL = 0.999
_CHUNK = 250  # most samples of every problem in memory at once; a batch is a whole number of chunks
_RANKED_SAMPLES = 256  # samples of every problem whose messages are ranked
_RANKED = 160  # of these, messages of a context: all their pairs are compared
_PROBLEMS, _POLICY, _CRITIC, _PILOT, _DRAWS = range(5)  # streams


class Bed(NamedTuple):
    """What all estimators of a case meet: problems [G] of one family under one policy."""

    shape: GameShape
    policy: Policy
    params: Params
    games: Game
    components: shrink.Components  # of earlier draws, for what is chosen by them
    key: jax.Array


class Measured(NamedTuple):
    """One estimator on a bed."""

    plan: Plan
    figures: dict[int, analyse.Figures]  # by trained turn
    squared_bias: dict[int, Interval]
    spearman: dict[int, np.ndarray]  # [G]: rank fidelity of each problem, NaN where no context has one


def make_bed(config: BenchStudy, case: Case, key: jax.Array) -> Bed:
    """Problems and policy of a case, and the variance components of an independent pilot on them."""
    family = make_family(case.game)
    indices = jnp.arange(config.problems)
    games = jax.vmap(lambda index: make_game(family, jax.random.fold_in(key, _PROBLEMS), index))(indices)
    policy = _make_policy(family.shape, config.problems, config.policy_scale)
    params = policy.init(jax.random.fold_in(key, _POLICY))
    fan_out = (2,) * len(family.shape.messages)
    plan = make_tree(fan_out)

    def step(components: shrink.Components, step_key: jax.Array) -> tuple[shrink.Components, None]:
        keys = jax.random.split(step_key, config.problems)
        drawn = jax.vmap(lambda g, k: play.sample_plan(family.shape, g, policy, params, plan, k))(games, keys)
        return shrink.update_components(components, drawn.return_L, fan_out, decay=0.99), None

    keys = jax.random.split(jax.random.fold_in(key, _PILOT), config.pilot_steps)
    components = jax.lax.scan(step, shrink.init_components(len(fan_out)), keys)[0]
    return Bed(family.shape, policy, params, games, jax.device_get(components), key)


# One policy for games of one shape, and with it one compiled program of each recipe.
_make_policy = functools.lru_cache(policies.make_tabular)


def measure_estimator(config: BenchStudy, case: Case, estimator: Estimator, bed: Bed) -> Measured:
    """One estimator: sums over samples, then figures for each turn it trains."""
    trained = list_trained(case.game)
    plan = choose_plan(estimator, bed, trained, list_tokens(case.game))
    recipe = measure.make_recipe(estimator.method, plan, estimator.normalise, estimator.decay, estimator.share)
    weights = make_weights(estimator.method, plan, bed.components, trained)
    target = _make_targets(bed.shape, bed.policy, bed.params, bed.games, estimator.critic_error, bed.key)
    fixed = (bed.params, bed.games, target, weights, bed.key)
    samples = config.samples // config.batches
    sums, draws = jax.device_get(_sum_batches(bed.shape, bed.policy, recipe, samples, config.batches, *fixed))
    gradient = _compute_gradients(bed.shape, bed.policy, bed.params, bed.games)
    found, squared_bias, spearman = {}, {}, {}
    for turn in [turn for turn, is_on in enumerate(trained) if is_on]:
        advantage_GCM = np.asarray(target.advantage[turn], np.float64)
        gradient_GCM = np.asarray(gradient[turn], np.float64)
        found[turn] = analyse.compute_figures(sums, turn, samples, gradient_GCM)
        squared_bias[turn] = analyse.compute_bias(sums, turn, advantage_GCM, BIAS_LEVEL)
        spearman[turn] = rank_within_contexts(*(part[turn] for part in draws), advantage_GCM)
    return Measured(plan, found, squared_bias, spearman)


def choose_plan(estimator: Estimator, bed: Bed, trained: tuple[bool, ...], tokens: tuple[float, ...]) -> Plan:
    """The estimator's plan; `auto` takes the fan-out that the pilot's components promise the least noise for."""
    section = estimator.plan
    if section.kind != "auto":
        return make_plan(section, len(trained))
    return make_tree(
        shrink.choose_fan_out(
            bed.components, section.budget, section.unit, estimator.method, section.criterion, trained, tokens
        )
    )


def make_weights(method: str, plan: Plan, components: shrink.Components, trained: tuple[bool, ...]) -> measure.Weights:
    """The weights of a method; those of the shrunk baseline come from the components of earlier draws."""
    if method == "shrunk":
        matrix, mean = shrink.make_shrunk_matrix(components, plan.fan_out, trained), jnp.asarray(components.mean)
    else:
        matrix, mean = make_credit_matrix(method, plan, trained), jnp.float32(0.0)
    return measure.Weights(jax.tree.map(lambda block: jnp.asarray(block, jnp.float32), matrix), mean)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _sum_batches(
    shape: GameShape,
    policy: Policy,
    recipe: measure.Recipe,
    samples: int,
    batches: int,
    params: Params,
    games: Game,
    target: measure.Target,
    weights: measure.Weights,
    key: jax.Array,
) -> tuple[measure.Sums, measure.Draws]:
    """Sums with leading axes [G, B], and some of the draws themselves, [G, S, N]."""
    chunks = next(count for count in range(-(-samples // _CHUNK), samples + 1) if samples % count == 0)
    kept = max(1, _RANKED_SAMPLES // (batches * chunks))

    def draw_chunk(chunk_key: jax.Array) -> tuple[measure.Sums, measure.Draws]:
        keys = jax.random.split(chunk_key, len(games.index))

        def draw(game: Game, aim: measure.Target, k: jax.Array) -> tuple[measure.Sums, measure.Draws]:
            draws = measure.draw_credit(shape, policy, recipe, samples // chunks, params, game, aim, weights, k)
            return measure.sum_draws(aim, draws), jax.tree.map(lambda x_SN: x_SN[:kept], draws)

        return jax.vmap(draw)(games, target, keys)

    def draw_batch(batch_key: jax.Array) -> tuple[measure.Sums, measure.Draws]:
        sums, draws = jax.lax.map(draw_chunk, jax.random.split(batch_key, chunks))
        return jax.tree.map(lambda part: part.sum(axis=0), sums), draws

    sums, draws = jax.lax.map(draw_batch, jax.random.split(jax.random.fold_in(key, _DRAWS), batches))
    per_problem = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0).reshape(x.shape[2], -1, x.shape[-1]), draws)
    return jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), sums), per_problem


@partial(jax.jit, static_argnums=(0, 1))
def _make_targets(
    shape: GameShape, policy: Policy, params: Params, games: Game, critic_error: float, key: jax.Array
) -> measure.Target:
    keys = jax.random.split(jax.random.fold_in(key, _CRITIC), len(games.index))
    return jax.vmap(lambda game, k: measure.make_target(shape, policy, params, game, critic_error, k))(games, keys)


@partial(jax.jit, static_argnums=(0, 1))
def _compute_gradients(shape: GameShape, policy: Policy, params: Params, games: Game) -> tuple[jax.Array, ...]:
    return jax.vmap(lambda game: oracle.compute_policy_gradient(shape, game, policy, params))(games)


def rank_within_contexts(
    context_GSN: np.ndarray, message_GSN: np.ndarray, advantage_GSN: np.ndarray, exact_GCM: np.ndarray
) -> np.ndarray:
    """Mean over a problem's contexts of Spearman's correlation of advantages with A*; [G], NaN where there is none."""
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
