"""The optimiser of a run, its learning-rate schedule in optimiser updates, and how an update is put together.

Dimension key: C micro-batch, B problem of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from c3jax.config.run import Learner
from c3jax.types import Params

Sums = TypeVar("Sums")


def make_optimiser(
    learner: Learner, steps: int, is_per_role: bool = False
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind a global-norm clip, or, where the parameters are a dictionary of roles, one for each role.

    The rate rises linearly over warmup_updates, update u (from 0) taking (u + 1) / warmup_updates of the peak, then is
    constant or falls as a cosine that reaches final_share of the peak at the run's last update,
    steps * epochs * minibatches updates in all.

    Args:
      learner: section of the config.
      steps: of the run.
      is_per_role: whether the parameters are a dictionary of roles.

    Returns:
      The optimiser, and the rate by the count of updates taken.
    """
    updates = steps * learner.epochs * learner.minibatches
    rise = learner.warmup_updates

    def schedule(count: Any) -> jax.Array:
        warm = learner.learning_rate * (count + 1) / max(rise, 1)
        return jnp.where(count < rise, warm, after(count - rise))

    after = (
        optax.constant_schedule(learner.learning_rate)
        if learner.schedule == "constant"
        else optax.cosine_decay_schedule(learner.learning_rate, max(updates - rise - 1, 1), alpha=learner.final_share)
    )
    chain = optax.chain(
        optax.clip_by_global_norm(learner.max_grad_norm),
        optax.adamw(schedule, learner.adam_b1, learner.adam_b2, learner.adam_eps, weight_decay=learner.weight_decay),
    )
    return (_separate_roles(chain) if is_per_role else chain), schedule


def _separate_roles(chain: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser for each role by itself: the clip of one must not see the gradient of another."""

    def init(params: Any) -> dict[str, optax.OptState]:
        return {role: chain.init(part) for role, part in params.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Params, dict[str, optax.OptState]]:
        assert params is not None  # AdamW decays them
        moved = {role: chain.update(part, state[role], params[role]) for role, part in updates.items()}
        return {role: change for role, (change, _) in moved.items()}, {role: new for role, (_, new) in moved.items()}

    return optax.GradientTransformation(init, update)


def add_micro_batches(compute: Callable[[jax.Array], Sums], problem_CB: jax.Array) -> Sums:
    """Sum over micro-batches of what a function makes of each one, one in memory at a time.

    Args:
      compute: of problems [B], a tree of arrays.
      problem_CB: the problems of each micro-batch.

    Returns:
      The sums, in that tree.
    """
    if problem_CB.shape[0] == 1:
        return compute(problem_CB[0])
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, problem_CB[0]))
    return jax.lax.scan(
        lambda sums, problem_B: (jax.tree.map(jnp.add, sums, compute(problem_B)), None), empty, problem_CB
    )[0]


def apply_gradient(
    optimiser: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    gradient: Params,
    loss: jax.Array,
) -> tuple[Params, optax.OptState, jax.Array, jax.Array]:
    """One update, skipped whole where the loss or the gradient is not finite.

    Args:
      optimiser: from `make_optimiser`.
      params, opt_state: before.
      gradient: a tree as params.
      loss: scalar.

    Returns:
      Parameters, optimiser state, whether the update was taken, and the gradient's global norm.
    """
    norm = optax.tree.norm(gradient)
    is_good = jnp.isfinite(norm) & jnp.isfinite(loss)
    changes, new_opt_state = optimiser.update(gradient, opt_state, params)
    moved = (optax.apply_updates(params, changes), new_opt_state)
    # Neither parameters nor moments nor the schedule's count may take a bad update in.
    params, opt_state = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), moved, (params, opt_state))
    return params, opt_state, is_good, norm
