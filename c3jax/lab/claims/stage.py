"""What the claims measure on: problems under one policy that stands still, their truth, and estimators drawn on them.

Dimension key: G problem    B batch of independent samples    S sample    C context of a turn    M message of a turn
    N credited message of a turn    L leaf of a plan
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from c3jax.analysis.tables import make_columns
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.method import Normalise
from c3jax.credit.methods import METHODS
from c3jax.credit.plans import Plan
from c3jax.lab import games, measure, oracle, play, policies
from c3jax.lab.analyse import Figures, compute_bias, compute_figures
from c3jax.lab.chunks import list_quick_options
from c3jax.lab.claims.claim import BIAS_LEVEL

BATCHES = 16  # independent batches of an estimate; a squared bias is a mean over pairs of them


@functools.cache
def compile_quickly(function: Callable[..., Any], statics: int) -> Callable[..., Any]:
    """jax.jit, its first `statics` arguments static, for many programs that each run for seconds at most.

    On CPU most of the time goes into LLVM's optimisation; at its first level a program compiles three times as fast
    and runs as fast.
    """
    return jax.jit(function, static_argnums=tuple(range(statics)), compiler_options=list_quick_options())


class Stage(NamedTuple):
    """Problems, a policy, and what is true of them; arrays have the problems in front, tuples an entry a turn."""

    shape: games.GameShape
    policy: policies.Policy
    params: policies.Params
    games: games.Game
    target: measure.Target
    oracle: oracle.Oracle
    gradient: tuple[np.ndarray, ...]  # [G, C, M] of the expected return by the logits

    @property
    def count(self) -> int:
        """Number of problems, G."""
        return self.games.bias.shape[0]


def make_stage(family: games.Family, scale: float, count: int, seed: int, shift: float = 0.0) -> Stage:
    """Problems of a family under a random tabular policy.

    Args:
      scale: standard deviation of the policy's logits; 0 for uniform.
      count: problems.
      shift: added to every problem's bias: how easy the problems are.
    """
    games_key, policy_key = jax.random.split(jax.random.key(seed))
    policy = policies.make_tabular(family.shape, count, scale)
    params = policy.init(policy_key)
    problems = jax.vmap(lambda index: games.make_game(family, games_key, index))(jnp.arange(count))
    return set_policy(family.shape, policy, params, problems._replace(bias=problems.bias + shift))


def set_policy(shape: games.GameShape, policy: policies.Policy, params: policies.Params, problems: games.Game) -> Stage:
    """The stage of given problems and a given policy."""
    exact, target, gradient = compile_quickly(_compute_truth, 2)(shape, policy, params, problems)
    return Stage(shape, policy, params, problems, target, exact, tuple(np.asarray(x, np.float64) for x in gradient))


def _compute_truth(
    shape: games.GameShape, policy: policies.Policy, params: policies.Params, problems: games.Game
) -> tuple[oracle.Oracle, measure.Target, tuple[jax.Array, ...]]:
    def of_one(game: games.Game) -> tuple[oracle.Oracle, measure.Target, tuple[jax.Array, ...]]:
        exact = oracle.compute_oracle(shape, game, policy, params)
        target = measure.make_target(shape, policy, params, game, 0.0, jax.random.key(0))
        return exact, target, oracle.compute_policy_gradient(shape, game, policy, params)

    return jax.vmap(of_one)(problems)


@functools.cache
def make_survey_stage(count: int, seed: int) -> Stage:
    """The two-role survey, once a process: claims that draw on the same stage share compiled programs."""
    return make_stage(games.make_survey(), games.SURVEY_LOGIT_SCALE, count, seed)


def blur_critic(stage: Stage, error: float, seed: int) -> Stage:
    """The same stage with a critic that is wrong by `error`, in root mean square, in every cell."""

    keys = jax.random.split(jax.random.key(seed), stage.count)
    return stage._replace(target=compile_quickly(_blur_critics, 2)(*stage[:4], error, keys))


def _blur_critics(
    shape: games.GameShape,
    policy: policies.Policy,
    params: policies.Params,
    problems: games.Game,
    error: jax.Array,
    keys: jax.Array,
) -> measure.Target:
    return jax.vmap(lambda game, key: measure.make_target(shape, policy, params, game, error, key))(problems, keys)


def sum_estimator(
    stage: Stage,
    method: str,
    plan: Plan,
    samples: int,
    seed: int,
    normalise: Normalise = "none",
    decay: float = 1.0,
) -> measure.Sums:
    """Sums over draws of one estimator, leading axes [G, B]; the same seed and plan give the same draws."""
    recipe = measure.make_recipe(method, plan, normalise, decay)
    key = jax.random.key(seed)
    arguments = (stage.params, stage.games, stage.target, make_weights(stage, method, plan), key)
    return jax.device_get(compile_quickly(_sum_batches, 4)(stage.shape, stage.policy, recipe, samples, *arguments))


def _sum_batches(
    shape: games.GameShape,
    policy: policies.Policy,
    recipe: measure.Recipe,
    samples: int,
    params: policies.Params,
    problems: games.Game,
    target: measure.Target,
    weights: measure.Weights,
    key: jax.Array,
) -> measure.Sums:
    def sum_problem(game: games.Game, aim: measure.Target, problem_key: jax.Array) -> measure.Sums:
        draws = measure.draw_credit(shape, policy, recipe, samples, params, game, aim, weights, problem_key)
        return measure.sum_draws(aim, draws)

    def sum_batch(batch_key: jax.Array) -> measure.Sums:
        keys = jax.random.split(batch_key, problems.bias.shape[0])
        return jax.vmap(sum_problem)(problems, target, keys)

    sums = jax.lax.map(sum_batch, jax.random.split(key, BATCHES))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), sums)


def draw_estimator(stage: Stage, method: str, plan: Plan, samples: int, seed: int) -> measure.Draws:
    """Contexts, messages and advantages of each turn, [G, S, N] each."""
    recipe = measure.make_recipe(method, plan, "none")
    arguments = (stage.params, stage.games, stage.target, make_weights(stage, method, plan), jax.random.key(seed))
    return jax.device_get(compile_quickly(_draw_all, 4)(stage.shape, stage.policy, recipe, samples, *arguments))


def _draw_all(
    shape: games.GameShape,
    policy: policies.Policy,
    recipe: measure.Recipe,
    samples: int,
    params: policies.Params,
    problems: games.Game,
    target: measure.Target,
    weights: measure.Weights,
    key: jax.Array,
) -> measure.Draws:
    keys = jax.random.split(key, problems.bias.shape[0])
    return jax.vmap(
        lambda game, aim, k: measure.draw_credit(shape, policy, recipe, samples, params, game, aim, weights, k)
    )(problems, target, keys)


def draw_returns(stage: Stage, plan: Plan, samples: int, seed: int) -> np.ndarray:
    """Returns of the leaves of many draws of a plan, [G, S, L]."""
    arguments = (stage.params, stage.games, jax.random.key(seed))
    return np.asarray(compile_quickly(_draw_leaves, 4)(stage.shape, stage.policy, plan, samples, *arguments))


def _draw_leaves(
    shape: games.GameShape,
    policy: policies.Policy,
    plan: Plan,
    samples: int,
    params: policies.Params,
    problems: games.Game,
    key: jax.Array,
) -> jax.Array:
    def draw(game: games.Game, game_key: jax.Array) -> jax.Array:
        keys = jax.random.split(game_key, samples)
        return jax.vmap(lambda k: play.sample_plan(shape, game, policy, params, plan, k).return_L)(keys)

    return jax.vmap(draw)(problems, jax.random.split(key, problems.bias.shape[0]))


def make_weights(stage: Stage, method: str, plan: Plan) -> measure.Weights:
    """The weights of a method on a stage's trained turns; a critic's part comes from the stage's target."""
    matrix = make_credit_matrix(method, plan, stage.shape.trained)
    return measure.Weights(jax.tree.map(jnp.asarray, matrix), jnp.float32(0.0))


def stack_matrices(methods: tuple[str, ...], plan: Plan, trained: tuple[bool, ...]) -> CreditMatrix:
    """Matrices of several methods on one plan, stacked in front."""
    assert all(METHODS[method].critic == "none" for method in methods)
    matrices = [make_credit_matrix(method, plan, trained) for method in methods]
    return jax.tree.map(lambda *parts: jnp.stack([jnp.asarray(part, jnp.float32) for part in parts]), *matrices)


def figure_turns(stage: Stage, sums: measure.Sums, samples: int) -> list[Figures]:
    """Figures of every turn from an estimator's sums."""
    return [compute_figures(sums, turn, samples, gradient_GCM) for turn, gradient_GCM in enumerate(stage.gradient)]


def list_bias(stage: Stage, sums: measure.Sums, turn: int) -> dict[str, float]:
    """Columns of the squared bias with its 99.9 % interval, and the one-sided p-value that it is zero, over batches."""
    advantage_GCM = np.asarray(stage.target.advantage[turn], np.float64)
    interval = compute_bias(sums, turn, advantage_GCM, BIAS_LEVEL)
    error = (interval.estimate - interval.low) / stats.t.isf((1 - BIAS_LEVEL) / 2, BATCHES - 1)
    p = stats.t.sf(interval.estimate / error, BATCHES - 1) if error > 0 else float(interval.estimate <= 0)
    return {**make_columns("squared_bias", interval), "p": float(p)}
