"""Planted faults: estimators that break a condition of unbiasedness, each as somebody would by accident.

Dimension key: G problem    B batch    S sample    K turn    L leaf    N alternative    C continuation of an alternative
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from c3jax.credit.plans import Plan
from c3jax.lab import games, measure, play, policies
from c3jax.lab.claims.stage import BATCHES, Stage, compile_quickly


def give_adaptive_credit(return_SNC: jax.Array) -> jax.Array:
    """Leave-one-out credit where an alternative is continued until its first success, at most C times.

    Q_j = (sum of its c_j returns) / c_j, b_j = sum_{k != j} c_k Q_k / sum_{k != j} c_k; the counts c_j depend on the
    returns, so E Q_j is not Q: an early success counts whole. Returns are 0 or 1; [S, N, C] to [S, N].
    """
    continuations = return_SNC.shape[2]
    is_success_SNC = return_SNC > 0.5
    count_SN = jnp.where(is_success_SNC.any(axis=2), jnp.argmax(is_success_SNC, axis=2) + 1, continuations)
    total_SN = is_success_SNC.any(axis=2).astype(jnp.float32)  # the first success is the last continuation
    rest_count_SN = count_SN.sum(axis=1, keepdims=True) - count_SN
    rest_total_SN = total_SN.sum(axis=1, keepdims=True) - total_SN
    return total_SN / count_SN - rest_total_SN / rest_count_SN


def sum_adaptive(stage: Stage, plan: Plan, samples: int, seed: int) -> measure.Sums:
    """Sums of `give_adaptive_credit` over draws of a replay form of equal counts; leading axes [G, B]."""
    arguments = (stage.params, stage.games, stage.target, jax.random.key(seed))
    return jax.device_get(compile_quickly(_sum_batches, 4)(stage.shape, stage.policy, plan, samples, *arguments))


def _sum_batches(
    shape: games.GameShape,
    policy: policies.Policy,
    plan: Plan,
    samples: int,
    params: policies.Params,
    problems: games.Game,
    target: measure.Target,
    key: jax.Array,
) -> measure.Sums:
    def sum_problem(game: games.Game, aim: measure.Target, problem_key: jax.Array) -> measure.Sums:
        keys = jax.random.split(problem_key, samples)
        drawn = jax.vmap(lambda k: play.sample_plan(shape, game, policy, params, plan, k))(keys)
        return_SKNC = drawn.return_L.reshape(samples, plan.turns, len(plan.counts), plan.counts[0])
        turns = range(plan.turns)
        context = tuple(jax.vmap(partial(policies.context_index, shape, turn))(drawn.prefix[turn]) for turn in turns)
        advantage = tuple(give_adaptive_credit(return_SKNC[:, turn]) for turn in turns)
        return measure.sum_draws(aim, measure.Draws(context, drawn.message, advantage))

    def sum_batch(batch_key: jax.Array) -> measure.Sums:
        return jax.vmap(sum_problem)(problems, target, jax.random.split(batch_key, problems.bias.shape[0]))

    sums = jax.lax.map(sum_batch, jax.random.split(key, BATCHES))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), sums)
