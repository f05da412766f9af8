"""One estimator on one problem, under a policy that stands still: sums that give its bias, noise and gradient.

Credit is computed by the code of the training run. All sums are over independent samples of the estimator's plan, so
each sample is one draw of the estimate and batches are independent of each other.

Dimension key: S sample    N credited message of a turn    L leaf    C context of a turn    M message of a turn
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from c3jax.credit.apply import apply_credit
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.method import Normalise
from c3jax.credit.methods import find_method
from c3jax.credit.plans import Plan
from c3jax.lab import play
from c3jax.lab.games import Game, GameShape
from c3jax.lab.oracle import Oracle
from c3jax.lab.policies import GamePolicy, Params, context_index


class Recipe(NamedTuple):
    """What is static about an estimator. Methods without a critic go by one name, so that they share a program."""

    method: str  # "matrix" where weights, and a mean taken off the returns, say it all
    plan: Plan
    normalise: Normalise
    decay: float  # mappo: of advantages over turns
    share: float  # value_assisted: of the baseline that is the critic's


class CreditWeights(NamedTuple):
    """How returns become advantages: arrays, so that estimators of one recipe share a compiled program."""

    matrix: CreditMatrix
    mean: jax.Array  # taken off the returns first; the running mean where the method carries one, else 0


class Target(NamedTuple):
    """What a problem's estimates are held against, and what a critic says of it; a tuple entry a turn."""

    advantage: tuple[jax.Array, ...]  # [C, M]: A*(h, a), in units of return
    policy: tuple[jax.Array, ...]  # [C, M]: pi(a | h)
    value: tuple[jax.Array, ...]  # [C]: the critic's V(h)
    action_value: tuple[jax.Array, ...]  # [C, M]: the critic's Q(h, a)


class Draws(NamedTuple):
    """Credited messages of some samples; a tuple entry a turn, [S, N] each."""

    context: tuple[jax.Array, ...]  # int32
    message: tuple[jax.Array, ...]  # int32
    advantage: tuple[jax.Array, ...]  # f32, in units of return


class Sums(NamedTuple):
    """Sums over samples; tuples have an entry a turn. Advantages and gradients are in units of return."""

    count: tuple[jax.Array, ...]  # [C, M]: messages
    advantage: tuple[jax.Array, ...]  # [C, M]
    square: tuple[jax.Array, ...]  # of advantage^2
    error: tuple[jax.Array, ...]  # of (advantage - A*)^2
    gradient: tuple[jax.Array, ...]  # [C, M]: of a sample's gradient by logits, the mean over the turn's messages
    gradient_square: tuple[jax.Array, ...]  # of that gradient's squared norm


def make_recipe(method: str, plan: Plan, normalise: Normalise, decay: float = 1.0, share: float = 1.0) -> Recipe:
    """The recipe of a method on a plan.

    Args:
      method: a row of `METHODS`.
      decay: mappo's, of advantages over turns.
      share: value_assisted's, of the baseline that is the critic's.
    """
    is_linear = find_method(method).apply in ("rows", "filter", "running_mean")
    return Recipe("matrix" if is_linear else method, plan, normalise, decay, share)


def make_target(exact: Oracle) -> Target:
    """The truth of a problem, or of many, and a critic that knows it."""
    return Target(exact.advantage, exact.policy, exact.v, exact.q)


def add_critic_error(target: Target, error: float | jax.Array, key: jax.Array) -> Target:
    """The target of one problem with a critic that is wrong by an independent normal amount in every cell.

    Args:
      target: whose critic is exact.
      error: its standard deviation, in units of return.
      key: of the error.
    """
    value_key, action_key = jax.random.split(key)

    def add(exact: tuple[jax.Array, ...], key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(exact))
        return tuple(x + error * jax.random.normal(k, x.shape) for x, k in zip(exact, keys, strict=True))

    return target._replace(value=add(target.value, value_key), action_value=add(target.action_value, action_key))


def draw_credit(  # noqa: PLR0913
    shape: GameShape,
    policy: GamePolicy,
    recipe: Recipe,
    samples: int,
    params: Params,
    game: Game,
    target: Target,
    weights: CreditWeights,
    key: jax.Array,
) -> Draws:
    """Draw the plan of one problem many times and credit every draw; jit it, vmap it over problems.

    Args:
      shape, policy, recipe, samples: static, the last how many draws.
      game, target: of one problem.
      weights: of the recipe's method on its plan.
      key: the same key gives the same draws of a plan, whatever the method.
    """
    drawn = jax.vmap(lambda k: play.sample_plan(shape, game, policy, params, recipe.plan, k))(
        jax.random.split(key, samples)
    )
    context = tuple(jax.vmap(partial(context_index, shape, turn))(prefix) for turn, prefix in enumerate(drawn.prefix))
    advantage = _credit(recipe, target, weights, context, drawn, drawn.return_L - weights.mean)
    return Draws(context, drawn.message, advantage)


def _credit(
    recipe: Recipe,
    target: Target,
    weights: CreditWeights,
    context: tuple[jax.Array, ...],
    sample: play.Sample,
    return_SL: jax.Array,
) -> tuple[jax.Array, ...]:
    normalise = recipe.normalise
    if recipe.method == "matrix":
        return apply_credit(weights.matrix, return_SL, normalise=normalise).advantage
    critic = find_method(recipe.method).critic
    if critic == "none":
        inputs = CreditInputs(weights.matrix, recipe.plan.fan_out)
        inputs = inputs._replace(gradient=sample.gradient, likelihood=sample.likelihood)
        return compute_credit(recipe.method, inputs, return_SL, normalise=normalise).advantage
    drawn = tuple(
        q_CM[c_SN, m_SN] for q_CM, c_SN, m_SN in zip(target.action_value, context, sample.message, strict=True)
    )
    if critic == "oracle":
        mean = tuple(
            (p_CM * q_CM).sum(axis=1)[c_SN]
            for p_CM, q_CM, c_SN in zip(target.policy, target.action_value, context, strict=True)
        )
        return tuple(q_SN - v_SN for q_SN, v_SN in zip(drawn, mean, strict=True))
    value = tuple(v_C[c_SN] for v_C, c_SN in zip(target.value, context, strict=True)) if critic == "value" else drawn
    inputs = CreditInputs(weights.matrix, recipe.plan.fan_out, critic=value, decay=recipe.decay, share=recipe.share)
    return compute_credit(recipe.method, inputs, return_SL, normalise=normalise).advantage


def sum_draws(target: Target, draws: Draws) -> Sums:
    """Sums over the samples of one problem's draws."""
    turns = range(len(draws.context))
    per_turn = (_sum_turn(target, u, draws.context[u], draws.message[u], draws.advantage[u]) for u in turns)
    return Sums(*zip(*per_turn, strict=True))


def _sum_turn(
    target: Target, turn: int, context_SN: jax.Array, message_SN: jax.Array, advantage_SN: jax.Array
) -> tuple[jax.Array, ...]:
    exact_CM, policy_CM = target.advantage[turn], target.policy[turn]
    C, M = exact_CM.shape
    cell_SN = context_SN * M + message_SN

    def sum_cells(x_SN: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(x_SN.reshape(-1), cell_SN.reshape(-1), C * M).reshape(C, M)

    advantage_CM = sum_cells(advantage_SN)
    messages = advantage_SN.shape[1]
    # The gradient of log pi(a | c) by c's logits is e_a - pi(. | c), so sums by cell give the sum of gradients.
    gradient_CM = (advantage_CM - policy_CM * advantage_CM.sum(axis=1, keepdims=True)) / messages
    return (
        sum_cells(jnp.ones_like(advantage_SN)),
        advantage_CM,
        jnp.square(advantage_SN).sum(),
        jnp.square(advantage_SN - exact_CM[context_SN, message_SN]).sum(),
        gradient_CM,
        _sum_squared_norms(policy_CM, context_SN, message_SN, advantage_SN / messages),
    )


def _sum_squared_norms(
    policy_CM: jax.Array, context_SN: jax.Array, message_SN: jax.Array, weight_SN: jax.Array
) -> jax.Array:
    """Sum over samples of |sum_j w_j (e_{c_j, a_j} - e_{c_j} pi(. | c_j))|^2, by its products of pairs of messages."""
    chance_SN = policy_CM[context_SN, message_SN]
    norm_SN = jnp.square(policy_CM).sum(axis=1)[context_SN]
    is_same_context_SNN = context_SN[:, :, None] == context_SN[:, None, :]
    is_same_message_SNN = message_SN[:, :, None] == message_SN[:, None, :]
    product_SNN = is_same_message_SNN - chance_SN[:, :, None] - chance_SN[:, None, :] + norm_SN[:, :, None]
    weight_SNN = weight_SN[:, :, None] * weight_SN[:, None, :]
    return jnp.where(is_same_context_SNN, weight_SNN * product_SNN, 0.0).sum()
