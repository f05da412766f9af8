"""The optimiser of a run, its learning-rate schedule in optimiser updates, and how an update is put together.

Dimension key: C micro-batch, B problem of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import jax
import jax.numpy as jnp
import optax

from c3jax.config.run import Learner, ProjectionName
from c3jax.types import Params

Sums = TypeVar("Sums")
State = TypeVar("State", bound=Any)


def make_optimiser(
    learner: Learner, steps: int, is_per_role: bool = False
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """A row of `OPTIMISERS` behind a global-norm clip, or, where parameters are a dictionary of roles, one for each.

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
    rule = OPTIMISERS[learner.optimiser](learner, schedule)
    chain = optax.chain(optax.clip_by_global_norm(learner.max_grad_norm), rule)
    return (_separate_roles(chain) if is_per_role else chain), schedule


def count_state(learner: Learner, params: Params, is_per_role: bool = False) -> int:
    """How many numbers an optimiser keeps of parameters beside them; nothing is allocated.

    Args:
      learner: section of the config.
      params: arrays or their shapes.
      is_per_role: whether they are a dictionary of roles.
    """
    optimiser, _ = make_optimiser(learner, 1, is_per_role)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimiser.init, params)))


def _make_adamw(learner: Learner, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Loshchilov and Hutter, arXiv 1711.05101."""
    return optax.adamw(schedule, learner.adam_b1, learner.adam_b2, learner.adam_eps, weight_decay=learner.weight_decay)


def _make_muon(learner: Learner, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Projections move along their momentum made orthogonal, each layer's by itself; the rest by AdamW.

    An orthogonal step is scaled to a root mean square of .2, about that of AdamW's, so that one rate serves both: Liu
    et al., arXiv 2502.16982, section 2.2. Embedding, head, norms and biases are AdamW's, with Nesterov's momentum.
    """
    return optax.contrib.muon(
        schedule,
        weight_decay=learner.weight_decay,
        adam_b1=learner.adam_b1,
        adam_b2=learner.adam_b2,
        eps=learner.adam_eps,
        adam_weight_decay=learner.weight_decay,
        muon_weight_dimension_numbers=_find_matrices,
        consistent_rms=0.2,
    )


def _find_matrices(params: Any) -> Any:
    """Of each leaf which axes are a projection's inputs and outputs, the layers' standing before; None for the rest."""
    projections = get_args(ProjectionName)

    def find(path: Any, _: Any) -> optax.contrib.MuonDimensionNumbers | None:
        *_, above, name = ["", ""] + [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        is_matrix = above in projections and name != "bias"
        return optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1) if is_matrix else None

    return jax.tree_util.tree_map_with_path(find, params)


def _make_adafactor(learner: Learner, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Second moments as products of a row and a column, and no first: Shazeer and Stern, arXiv 1804.04235, algorithm 4.

    Without its relative step: an update has a root mean square of at most 1 times the rate, whatever the size of the
    weights, as AdamW's, and a matrix that starts at zero (an adapter's) moves at once.
    """
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(learner.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def _make_lion(learner: Learner, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The sign of a momentum: Chen et al., arXiv 2302.06675, algorithm 2, with its decays of .9 and .99."""
    return optax.lion(schedule, weight_decay=learner.weight_decay)


OPTIMISERS: dict[str, Callable[[Learner, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _make_adamw,
    "muon": _make_muon,
    "adafactor": _make_adafactor,
    "lion": _make_lion,
}


def _separate_roles(chain: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser for each role by itself: the clip of one must not see the gradient of another."""

    def init(params: Any) -> dict[str, optax.OptState]:
        return {role: chain.init(part) for role, part in params.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Params, dict[str, optax.OptState]]:
        assert params is not None  # they are decayed
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
    optimiser: optax.GradientTransformation, state: State, gradient: Params, loss: jax.Array
) -> tuple[State, jax.Array]:
    """One update, skipped whole where the loss or the gradient is not finite.

    Args:
      optimiser: from `make_optimiser`.
      state: of a policy or critic before it, with params, opt_state, updates, bad_updates and bad_in_row.
      gradient: a tree as params.
      loss: scalar.

    Returns:
      The state with the update in it and counted, and the gradient's global norm.
    """
    norm = optax.tree.norm(gradient)
    is_good = jnp.isfinite(norm) & jnp.isfinite(loss)
    changes, new_opt_state = optimiser.update(gradient, state.opt_state, state.params)
    moved, before = (optax.apply_updates(state.params, changes), new_opt_state), (state.params, state.opt_state)
    # Neither parameters nor moments nor the schedule's count may take a bad update in.
    params, opt_state = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), moved, before)
    state = state._replace(
        params=params,
        opt_state=opt_state,
        updates=state.updates + 1,
        bad_updates=state.bad_updates + jnp.where(is_good, 0, 1),
        bad_in_row=jnp.where(is_good, 0, state.bad_in_row + 1),
    )
    return state, norm
