"""The update of one step: credit, loss and optimiser in one jitted call.

Returns become advantages by one einsum (with a critic, where the method has one), these are broadcast to tokens, and
every epoch passes over the problems in an order of its own, a minibatch an optimiser update. Gradients of micro-batches
add up to the minibatch's, because all weights are divided by the whole minibatch's total.

Dimension key beside types.py: U update, C micro-batch, B problem of a micro-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from c3jax.config.run import RunConfig, uses_reference
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.shrink import apply_shrunk
from c3jax.learner import critic as critic_lib
from c3jax.learner import forward, losses
from c3jax.learner.adapt import AdaptiveState, init_adaptive, update_adaptive
from c3jax.learner.optimiser import add_micro_batches, apply_gradient, make_optimiser
from c3jax.learner.token_loss import compute_token_loss
from c3jax.models.policy import Policy, Weights, make_model
from c3jax.protocol import TurnPlan
from c3jax.rollout import tree
from c3jax.types import Credit, Rollout


class TrainState(NamedTuple):
    """All that a run carries from step to step."""

    params: dict  # the trained weights
    opt_state: optax.OptState
    kl_coefficient: jax.Array  # f32
    updates: jax.Array  # optimiser updates tried
    bad_updates: jax.Array  # of these, skipped for a non-finite loss or gradient
    bad_in_row: jax.Array  # skipped since the last good one
    critic: critic_lib.CriticState | None  # None for a method without one
    adaptive: AdaptiveState | None  # None where neither baseline nor fan-out follows the returns


class _Batch(NamedTuple):
    """A step's trees with what the loss needs of each message; a tuple entry a turn, rows in path order."""

    rollout: Rollout
    advantage: tuple[jax.Array, ...]  # [N]
    reference_logp: tuple[jax.Array, ...]  # [N, T]; empty where the loss has no divergence


class _Program(NamedTuple):
    """What is fixed for a run."""

    config: RunConfig
    policy: Policy
    plans: tuple[TurnPlan, ...]
    optimiser: optax.GradientTransformation
    schedule: optax.Schedule
    credit_matrix: CreditMatrix
    critic: critic_lib.CriticProgram | None

    @property
    def trained(self) -> tuple[int, ...]:
        return tuple(place for place, plan in enumerate(self.plans) if plan.is_trained)


def init_state(policy: Policy, weights: Weights, config: RunConfig) -> TrainState:
    """The state before the first step."""
    params = weights.trained
    optimiser, _ = _make_optimiser(config, policy)
    coefficient = jnp.float32(config.learner.kl.coefficient)
    counts = (jnp.int32(0), jnp.int32(0), jnp.int32(0))
    critic = critic_lib.init_critic_state(policy, weights, config)
    return TrainState(params, optimiser.init(params), coefficient, *counts, critic, init_adaptive(config))


def make_update(
    config: RunConfig, policy: Policy, plans: Sequence[TurnPlan], credit_matrix: CreditMatrix
) -> Callable[..., tuple[TrainState, Credit, dict[str, jax.Array]]]:
    """Make the jitted update(state, frozen, reference, rollout, return_PL, key), which gives state, credit and figures.

    `frozen` is the weights' frozen tree; `reference` stands for the trained one in the policy at the start of the run,
    and is None where uses_reference says no.
    Figures are means over the step's optimiser updates; first_ratio_deviation is the mean |ratio - 1| of the first,
    before any parameter has moved. A critic gives credit as it stood, then learns, then the policy does; while the
    critic learns alone, the policy's figures are 0.
    """
    critic = critic_lib.make_critic_program(config, policy, plans, credit_matrix)
    program = _Program(config, policy, tuple(plans), *_make_optimiser(config, policy), credit_matrix, critic)
    learner = config.learner
    micro = learner.micro_problems or config.problems // learner.minibatches

    def update(
        state: TrainState, frozen: dict, reference: dict | None, rollout: Rollout, return_PL: jax.Array, key: jax.Array
    ):
        weights = Weights(state.params, frozen)
        credit, lesson = _compute_credit(program, state, weights, rollout, return_PL, micro)
        advantage = tuple(advantage_PN.reshape(-1) for advantage_PN in credit.advantage)
        batch = _Batch(rollout, advantage, ())
        if state.adaptive is not None:
            # After the credit: what enters it must be of earlier steps.
            state = state._replace(adaptive=update_adaptive(state.adaptive, config, rollout, return_PL))
        problem_UCB = _draw_orders(config, key, range(learner.epochs), micro)
        train_policy = functools.partial(_train_policy, program, frozen, reference, batch, problem_UCB)
        if critic is None:
            state, figures = train_policy(state)
            return state, credit, figures
        later = range(learner.epochs, learner.epochs + critic.section.epochs)
        critic_UCB = _draw_orders(config, key, later, micro)
        critic_state, critic_figures = critic_lib.train_critic(critic, state.critic, weights, lesson, critic_UCB)
        is_alone = state.critic.updates < critic.section.solo_steps * critic_UCB.shape[0]
        state, figures = _train_unless(is_alone, train_policy, state)
        return state._replace(critic=critic_state), credit, figures | critic_figures

    return jax.jit(update, donate_argnums=0)


def _make_optimiser(config: RunConfig, policy: Policy) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The policy's; its schedule ends with the run, also where the critic has the first steps to itself."""
    section = config.credit.critic
    steps = config.steps - (0 if section is None else section.solo_steps)
    return make_optimiser(config.learner, steps, is_per_role=policy.kind != "shared")


def _compute_credit(
    program: _Program, state: TrainState, weights: Weights, rollout: Rollout, return_PL: jax.Array, micro: int
) -> tuple[Credit, critic_lib.Lesson | None]:
    """Credit of every message, and what a critic may learn from the step."""
    section = program.config.credit
    if section.method == "shrunk":
        trained = tuple(plan.is_trained for plan in program.plans)
        components = state.adaptive.components
        return apply_shrunk(components, return_PL, section.fan_out, trained, normalise=section.normalise), None
    if program.critic is None:
        return apply_credit(program.credit_matrix, return_PL, normalise=section.normalise), None
    return critic_lib.compute_critic_credit(program.critic, state.critic.params, weights, rollout, return_PL, micro)


def _draw_orders(config: RunConfig, key: jax.Array, epochs: range, micro: int) -> jax.Array:
    """Problems in the order in which the epochs take them, cut into micro-batches: [U, C, B]."""
    orders = [jax.random.permutation(jax.random.fold_in(key, epoch), config.problems) for epoch in epochs]
    return jnp.stack(orders).reshape(len(epochs) * config.learner.minibatches, -1, micro)


def _train_unless(
    is_idle: jax.Array, train_policy: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]], state: TrainState
) -> tuple[TrainState, dict[str, jax.Array]]:
    _, figures = jax.eval_shape(train_policy, state)
    zeros = jax.tree.map(lambda figure: jnp.zeros(figure.shape, figure.dtype), figures)
    return jax.lax.cond(is_idle, lambda state: (state, zeros), train_policy, state)


def _train_policy(
    program: _Program,
    frozen: dict,
    reference: dict | None,
    batch: _Batch,
    problem_UCB: jax.Array,
    state: TrainState,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """All the policy's updates of a step, and their figures."""
    learner = program.config.learner
    if uses_reference(learner):
        micro = problem_UCB.shape[-1]
        batch = batch._replace(reference_logp=_compute_reference(program, Weights(reference, frozen), batch, micro))
    state, figures = jax.lax.scan(lambda s, part: _apply_minibatch(program, s, frozen, batch, part), state, problem_UCB)
    means = {name: jnp.mean(values_U) for name, values_U in figures.items()}
    means["first_ratio_deviation"] = figures["ratio_deviation"][0]
    means["kl_coefficient"] = state.kl_coefficient
    if learner.kl.target is not None:
        messages = sum(part.size for part in batch.advantage)
        coefficient = losses.update_kl_coefficient(
            state.kl_coefficient, means["kl"], learner.kl.target, learner.kl.horizon, messages
        )
        state = state._replace(kl_coefficient=jnp.where(jnp.isfinite(coefficient), coefficient, state.kl_coefficient))
    return state, means


def _apply_minibatch(
    program: _Program, state: TrainState, frozen: dict, batch: _Batch, problem_CB: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    gradient, figures = _compute_gradient(program, state, frozen, batch, problem_CB)
    params, opt_state, is_good, norm = apply_gradient(
        program.optimiser, state.params, state.opt_state, gradient, figures["loss"]
    )
    figures["grad_norm"] = norm
    figures["learning_rate"] = jnp.asarray(program.schedule(state.updates - state.bad_updates), jnp.float32)
    state = state._replace(
        params=params,
        opt_state=opt_state,
        updates=state.updates + 1,
        bad_updates=state.bad_updates + jnp.where(is_good, 0, 1),
        bad_in_row=jnp.where(is_good, 0, state.bad_in_row + 1),
    )
    return state, figures


def _compute_gradient(
    program: _Program, state: TrainState, frozen: dict, batch: _Batch, problem_CB: jax.Array
) -> tuple[dict, dict[str, jax.Array]]:
    """Gradient and figures of one minibatch, summed over its micro-batches."""
    problems = program.config.problems
    chosen = tree.take_problems(batch.rollout, problems, problem_CB.reshape(-1))
    total = sum(_weigh(program, chosen, place).sum() for place in program.trained)

    def gradient_of(problem_B: jax.Array):
        part = tree.take_problems(batch, problems, problem_B)

        def compute_loss(params: dict):
            return _compute_loss(program, Weights(params, frozen), part, state.kl_coefficient, total)

        (_, figures), gradient = jax.value_and_grad(compute_loss, has_aux=True)(state.params)
        return gradient, figures

    return add_micro_batches(gradient_of, problem_CB)


def _compute_loss(
    program: _Program, weights: Weights, batch: _Batch, kl_coefficient: jax.Array, total: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This micro-batch's share of the minibatch's loss and figures."""
    parts = [
        _compute_turn_loss(program, weights, batch, place, _make_terms(program, batch, place, kl_coefficient, total))
        for place in program.trained
    ]
    return jax.tree.map(lambda *sums: sum(sums), *parts)


def _compute_turn_loss(
    program: _Program, weights: Weights, batch: _Batch, place: int, terms: losses.TokenTerms
) -> tuple[jax.Array, dict[str, jax.Array]]:
    config, model = program.config, make_model(program.policy, weights, program.plans[place].role)
    hidden_BD, drawn = forward.compute_drawn_tokens(model, program.plans, place, batch.rollout, config.credit.fan_out)

    def compute_figures(logp_B: jax.Array, terms: losses.TokenTerms) -> dict[str, jax.Array]:
        figures = losses.compute_token_figures(logp_B, terms, config.learner.clip, config.learner.kl.estimator)
        return {name: terms.weight * value_B for name, value_B in figures.items()}

    loss, logp_B = compute_token_loss(
        hidden_BD,
        model.head_weight(),
        drawn,
        terms,
        lambda logp_B, terms: compute_figures(logp_B, terms)["loss"],
        config.sampling,
        model.spec.dtype,
    )
    # Slots that were not drawn hold junk: they must not reach an exponential, whose infinity times zero is a NaN.
    blank = jax.tree.map(lambda leaf_B: jnp.where(drawn.is_drawn_B, leaf_B, 0.0), (logp_B, terms))
    return loss, {name: jnp.sum(value_B) for name, value_B in compute_figures(*blank).items()}


def _make_terms(
    program: _Program, batch: _Batch, place: int, kl_coefficient: jax.Array, total: jax.Array
) -> losses.TokenTerms:
    """What the loss reads of each token of a turn, message after message."""
    messages = batch.rollout.turns[place]
    spread = functools.partial(jnp.broadcast_to, shape=messages.tokens_NT.shape)
    terms = losses.TokenTerms(
        messages.behaviour_logp_NT,
        spread(batch.advantage[place][:, None]),
        batch.reference_logp[place] if batch.reference_logp else None,
        spread(kl_coefficient),
        _weigh(program, batch.rollout, place) / total,
    )
    return jax.tree.map(forward.flatten_tokens, terms)


def _compute_logp(program: _Program, weights: Weights, rollout: Rollout) -> tuple[jax.Array, ...]:
    """Log-probabilities [N, T] of the trained turns' messages."""
    config, logp = program.config, []
    for place in program.trained:
        model = make_model(program.policy, weights, program.plans[place].role)
        logp.append(
            forward.compute_turn_logp(model, program.plans, place, rollout, config.credit.fan_out, config.sampling)
        )
    return tuple(logp)


def _compute_reference(program: _Program, reference: Weights, batch: _Batch, micro: int) -> tuple[jax.Array, ...]:
    """The reference policy's log-probabilities of all turns' messages, a micro-batch at a time."""
    problems = program.config.problems
    problem_CB = jnp.arange(problems).reshape(-1, micro)
    parts = jax.lax.map(
        lambda problem_B: _compute_logp(program, reference, tree.take_problems(batch.rollout, problems, problem_B)),
        problem_CB,
    )
    filled = dict(zip(program.trained, parts, strict=True))
    return tuple(
        filled[place].reshape(turn.tokens_NT.shape) if place in filled else turn.behaviour_logp_NT
        for place, turn in enumerate(batch.rollout.turns)
    )


def _weigh(program: _Program, rollout: Rollout, place: int) -> jax.Array:
    return losses.compute_weights(rollout.turns[place].sampled_NT, program.config.learner.aggregation)
