"""The update of one step: credit, loss and optimiser in one jitted call.

Returns become advantages by one einsum (with a critic, where the method has one), these are broadcast to tokens, and
every epoch passes over the problems in an order of its own, a minibatch an optimiser update. Gradients of micro-batches
add up to the minibatch's, because all weights are divided by the whole minibatch's total.

Dimension key beside types.py: U update, C micro-batch, B problem of a micro-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from c3jax.config.run import Credit as CreditSection
from c3jax.config.run import Learner, Sampling, uses_reference
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.plans import Plan
from c3jax.learner import batch_loss, forward, losses
from c3jax.learner import critic as critic_lib
from c3jax.learner.adapt import update_adaptive
from c3jax.learner.batch_loss import Batch, Figures, LossSetting, Totals
from c3jax.learner.objective import make_objective
from c3jax.learner.optimiser import add_micro_batches, apply_gradient, make_optimiser
from c3jax.learner.signal import credit_trees, sum_rewards
from c3jax.learner.state import TrainState
from c3jax.models import sharding
from c3jax.models.policy import Policy, Weights
from c3jax.protocol import TurnPlan
from c3jax.rollout import tree
from c3jax.types import Credit, Params, Rollout


class Update(Protocol):
    """The jitted update of a step; it gives up the buffers of the state it is given."""

    def __call__(
        self,
        state: TrainState,
        frozen: Params,
        reference: Params | None,
        rollouts: tuple[Rollout, ...],
        return_PL: jax.Array,
        key: jax.Array,
        plan: Plan,
    ) -> tuple[TrainState, Credit, Figures]:
        """Learn from a step's trees.

        Args:
          state: before the step.
          frozen: the weights' frozen tree.
          reference: stands for the trained tree in the policy at the start of the run; None where uses_reference says
            no.
          rollouts: the plan's branches that hold credited messages, drawn by the state's policy, or by the one before
            it where `behind` is kept; of a tree it alone.
          return_PL: terminal return of every leaf, in the plan's order.
          key: of the orders in which the epochs take the problems.
          plan: what was drawn of a problem; static, so that another one is another compilation.

        Returns:
          The next state; credit of every message; and figures, means over the step's optimiser updates.
          first_ratio_deviation is the mean |ratio - 1| of the first, before any parameter has moved. While a critic
          learns alone, the policy's figures are 0.
        """
        ...

    def _cache_size(self) -> int: ...  # programs traced so far


class _Step(NamedTuple):
    """What is fixed for a step; all but the matrix is static."""

    loss: LossSetting
    credit: CreditSection
    optimiser: optax.GradientTransformation
    schedule: optax.Schedule
    matrix: CreditMatrix
    critic: critic_lib.CriticProgram | None
    mesh: sharding.Mesh | None


def make_update(
    credit: CreditSection,
    learner: Learner,
    sampling: Sampling,
    steps: int,
    policy: Policy,
    plans: Sequence[TurnPlan],
    matrix: CreditMatrix | None = None,
    mesh: sharding.Mesh | None = None,
) -> Update:
    """Make the jitted update of a run's steps.

    A critic gives credit as it stood, then learns, then the policy does.

    Args:
      credit, learner, sampling: sections of the config; the peak of the learner's rate may be an array.
      steps: of the run, by which schedules end.
      policy, plans: the team's.
      matrix: weights of another method in place of those that the method's rows give; a study's methods are an axis.
      mesh: over which the state and problems are laid; None for one device.

    Returns:
      The update.

    Raises:
      ConfigError: where a loss of the user's will not do.
    """
    alone = 0 if credit.critic is None else credit.critic.critic_only_steps
    # The policy's schedule ends with the run, also where the critic has the first steps to itself.
    optimiser, schedule = make_optimiser(learner, steps - alone, is_per_role=policy.kind != "shared")
    objective = make_objective(learner.loss, learner.kl, learner.entropy)

    def update(
        state: TrainState,
        frozen: Params,
        reference: Params | None,
        rollouts: tuple[Rollout, ...],
        return_PL: jax.Array,
        key: jax.Array,
        plan: Plan,
    ) -> tuple[TrainState, Credit, Figures]:
        trained = tuple(turn.is_trained for turn in plans)
        used = make_credit_matrix(credit.method, plan, trained) if matrix is None else matrix
        critic = critic_lib.make_critic_program(credit, learner, steps, policy, plans, plan.fan_out, used, mesh)
        setting = LossSetting(learner, sampling, policy, tuple(plans), objective, len(return_PL), plan)
        step = _Step(setting, credit, optimiser, schedule, used, critic, mesh)
        behind = None if state.behind is None else state.params
        state, given, figures = _take_step(step, state, frozen, reference, rollouts, return_PL, key)
        state = state._replace(behind=behind)
        return sharding.shard_state(mesh, state), *sharding.replicate(mesh, (given, figures))

    return jax.jit(update, donate_argnums=0, static_argnames="plan")  # pyright: ignore[reportReturnType]


def _take_step(
    step: _Step,
    state: TrainState,
    frozen: Params,
    reference: Params | None,
    rollouts: tuple[Rollout, ...],
    return_PL: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, Credit, Figures]:
    weights, epochs = Weights(state.params, frozen), step.loss.learner.epochs
    credit, critic_batch = _compute_credit(step, state, weights, rollouts[0], return_PL)
    batch = batch_loss.make_batch(step.loss, rollouts, credit)
    if state.adaptive is not None:
        # After the credit: what enters it must be of earlier steps.
        adaptive = update_adaptive(state.adaptive, step.credit.decay, step.loss.plan.fan_out, rollouts[0], return_PL)
        state = state._replace(adaptive=adaptive)
    problem_UCB = _draw_orders(step, key, range(epochs))
    train_policy = functools.partial(_train_policy, step, frozen, reference, batch, problem_UCB)
    if step.critic is None or state.critic is None or critic_batch is None:
        state, figures = train_policy(state)
        return state, credit, figures
    critic, section = step.critic, step.critic.section
    critic_UCB = _draw_orders(step, key, range(epochs, epochs + section.epochs))
    critic_state, critic_figures = critic_lib.train_critic(critic, state.critic, weights, critic_batch, critic_UCB)
    is_alone = state.critic.updates < section.critic_only_steps * critic_UCB.shape[0]
    state, figures = _train_unless(is_alone, train_policy, state)
    return state._replace(critic=critic_state), credit, figures | critic_figures


def _compute_credit(
    step: _Step, state: TrainState, weights: Weights, rollout: Rollout, return_PL: jax.Array
) -> tuple[Credit, critic_lib.CriticBatch | None]:
    """Credit of every message, and what a critic may learn from the step."""
    if step.critic is not None and state.critic is not None:
        params, past = state.critic.params, sum_rewards(step.loss.plan, rollout, return_PL)
        return critic_lib.compute_critic_credit(step.critic, params, weights, rollout, return_PL, step.loss.micro, past)
    components = None if state.adaptive is None else state.adaptive.components
    return credit_trees(step.credit, step.matrix, step.loss.plan, rollout, return_PL, components), None


def _draw_orders(step: _Step, key: jax.Array, epochs: range) -> jax.Array:
    """Problems in the order in which the epochs take them, cut into micro-batches: [U, C, B]."""
    orders = [jax.random.permutation(jax.random.fold_in(key, epoch), step.loss.problems) for epoch in epochs]
    return jnp.stack(orders).reshape(len(epochs) * step.loss.learner.minibatches, -1, step.loss.micro)


def _train_unless(
    is_idle: jax.Array, train_policy: Callable[[TrainState], tuple[TrainState, Figures]], state: TrainState
) -> tuple[TrainState, Figures]:
    _, figures = jax.eval_shape(train_policy, state)
    zeros = jax.tree.map(lambda figure: jnp.zeros(figure.shape, figure.dtype), figures)
    return jax.lax.cond(is_idle, lambda state: (state, zeros), train_policy, state)


def _train_policy(
    step: _Step, frozen: Params, reference: Params | None, batch: Batch, problem_UCB: jax.Array, state: TrainState
) -> tuple[TrainState, Figures]:
    """All the policy's updates of a step, and their figures."""
    kl = step.loss.learner.kl
    if uses_reference(step.loss.learner):
        assert reference is not None  # whoever asks for a divergence has what it is measured from
        batch = batch._replace(reference_logp=_compute_reference(step, Weights(reference, frozen), batch.rollouts))
    state, figures = jax.lax.scan(lambda s, part: _apply_minibatch(step, s, frozen, batch, part), state, problem_UCB)
    means = {name: jnp.mean(values_U) for name, values_U in figures.items()}
    means["first_ratio_deviation"] = figures["ratio_deviation"][0]
    if state.behind is not None:
        means["first_clip_share"] = figures["clip_share"][0]
    means["kl_coefficient"] = state.kl_coefficient
    if batch.has_signal:
        means["skipped_share"] = 1.0 - jnp.mean(batch.has_signal[step.loss.trained[0]], dtype=jnp.float32)
    if kl.target is not None:
        messages = sum(part.size for part in batch.advantage)
        coefficient = losses.update_kl_coefficient(state.kl_coefficient, means["kl"], kl.target, kl.horizon, messages)
        state = state._replace(kl_coefficient=jnp.where(jnp.isfinite(coefficient), coefficient, state.kl_coefficient))
    return state, means


def _apply_minibatch(
    step: _Step, state: TrainState, frozen: Params, batch: Batch, problem_CB: jax.Array
) -> tuple[TrainState, Figures]:
    gradient, figures = _compute_gradient(step, state, frozen, batch, problem_CB)
    figures["learning_rate"] = jnp.asarray(step.schedule(state.updates - state.bad_updates), jnp.float32)
    state, figures["grad_norm"] = apply_gradient(step.optimiser, state, gradient, figures["loss"])
    return state, figures


def _compute_gradient(
    step: _Step, state: TrainState, frozen: Params, batch: Batch, problem_CB: jax.Array
) -> tuple[Params, Figures]:
    """Gradient and figures of one minibatch, summed over its micro-batches."""
    needed = batch._replace(advantage=(), reference_logp=())
    totals = batch_loss.add_weights(step.loss, tree.take_problems(needed, step.loss.problems, problem_CB.reshape(-1)))

    def compute_loss(
        params: Params, frozen: Params, part: Batch, coefficient: jax.Array, totals: Totals
    ) -> tuple[jax.Array, Figures]:
        return batch_loss.compute_loss(step.loss, Weights(params, frozen), part, coefficient, totals)

    arguments = (sharding.cut_weights(frozen), sharding.CUT, sharding.WHOLE, sharding.WHOLE)
    differentiate = sharding.value_and_grad(step.mesh, compute_loss, arguments, has_aux=True)

    def compute_gradient(problem_B: jax.Array) -> tuple[Params, Figures]:
        part = tree.take_problems(batch, step.loss.problems, problem_B)
        (_, figures), gradient = differentiate(state.params, frozen, part, state.kl_coefficient, totals)
        return gradient, figures

    return add_micro_batches(compute_gradient, problem_CB)


def _compute_reference(step: _Step, reference: Weights, rollouts: tuple[Rollout, ...]) -> tuple[jax.Array, ...]:
    """The reference policy's log-probabilities [N, T] of all turns' messages, a micro-batch at a time."""
    setting = step.loss

    def compute(reference: Weights, part: tuple[Rollout, ...]) -> tuple[jax.Array, ...]:
        """Of the trained turns."""
        found: dict[int, jax.Array] = {}
        for spoken in setting.list_spoken(reference, part):
            model, adapters = setting.make_network(reference, spoken)
            logp = forward.compute_turns_logp(model, setting.plans, spoken, setting.sampling, adapters)
            found |= {each.turn: logp_NT for each, logp_NT in zip(spoken, logp, strict=True)}
        return tuple(found[turn] for turn in setting.trained)

    arguments = (sharding.cut_weights(reference), sharding.CUT)
    mapped = sharding.map_problems(step.mesh, compute, arguments, sharding.CUT)

    def compute_part(problem_B: jax.Array) -> tuple[jax.Array, ...]:
        return mapped(reference, tree.take_problems(rollouts, setting.problems, problem_B))

    parts = jax.lax.map(compute_part, jnp.arange(setting.problems).reshape(-1, setting.micro))
    filled = dict(zip(setting.trained, parts, strict=True))
    drawn = [setting.find_tree(rollouts, turn)[0].turns[turn].behaviour_logp_NT for turn in range(len(setting.plans))]
    return tuple(filled[turn].reshape(own.shape) if turn in filled else own for turn, own in enumerate(drawn))
