"""The update of one step: credit, loss and optimiser in one jitted call.

Returns become advantages by one einsum, advantages are broadcast to tokens, and every epoch passes over the problems in
an order of its own, a minibatch an optimiser update. Gradients of micro-batches add up to the minibatch's, because all
weights are divided by the whole minibatch's total.

Dimension key beside types.py: U update, C micro-batch, B problem of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from c3jax.config import Learner, RunConfig
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import CreditMatrix
from c3jax.learner import forward, losses
from c3jax.learner.optimiser import make_optimiser
from c3jax.protocol import TurnPlan
from c3jax.rollout import tree
from c3jax.types import Credit, Rollout


class TrainState(NamedTuple):
    """All that a run carries from step to step."""

    params: dict
    opt_state: optax.OptState
    kl_coefficient: jax.Array  # f32
    updates: jax.Array  # optimiser updates tried
    bad_updates: jax.Array  # of these, skipped for a non-finite loss or gradient
    bad_in_row: jax.Array  # skipped since the last good one


class _Batch(NamedTuple):
    """A step's trees with what the loss needs of each message; a tuple entry a turn, rows in path order."""

    rollout: Rollout
    advantage: tuple[jax.Array, ...]  # [N]
    reference_logp: tuple[jax.Array, ...]  # [N, T]; empty where the loss has no divergence


class _Program(NamedTuple):
    """What is fixed for a run."""

    config: RunConfig
    graphdef: nnx.GraphDef
    plans: tuple[TurnPlan, ...]
    optimiser: optax.GradientTransformation
    schedule: optax.Schedule

    @property
    def trained(self) -> tuple[int, ...]:
        return tuple(place for place, plan in enumerate(self.plans) if plan.is_trained)


def init_state(params: dict, config: RunConfig) -> TrainState:
    """The state before the first step."""
    optimiser, _ = make_optimiser(config.learner, config.steps)
    counts = (jnp.int32(0), jnp.int32(0), jnp.int32(0))
    return TrainState(params, optimiser.init(params), jnp.float32(config.learner.kl.coefficient), *counts)


def uses_reference(learner: Learner) -> bool:
    """Whether the loss compares with the policy at the start of the run."""
    return learner.kl.coefficient > 0 or learner.kl.target is not None


def make_update(
    config: RunConfig, graphdef: nnx.GraphDef, plans: Sequence[TurnPlan], credit_matrix: CreditMatrix
) -> Callable[..., tuple[TrainState, Credit, dict[str, jax.Array]]]:
    """Make the jitted update(state, reference, rollout, return_PL, key), which gives state, credit and figures.

    `reference` is the parameters of the policy at the start of the run, or None where uses_reference says no.
    Figures are means over the step's optimiser updates; first_ratio_deviation is the mean |ratio - 1| of the first,
    before any parameter has moved.
    """
    program = _Program(config, graphdef, tuple(plans), *make_optimiser(config.learner, config.steps))
    learner = config.learner
    micro = learner.micro_problems or config.problems // learner.minibatches

    def update(state: TrainState, reference: dict | None, rollout: Rollout, return_PL: jax.Array, key: jax.Array):
        credit = apply_credit(credit_matrix, return_PL, normalise=config.credit.normalise)
        advantage = tuple(advantage_PN.reshape(-1) for advantage_PN in credit.advantage)
        batch = _Batch(rollout, advantage, ())
        if uses_reference(learner):
            batch = batch._replace(reference_logp=_compute_reference(program, reference, batch, micro))
        orders = [
            jax.random.permutation(jax.random.fold_in(key, epoch), config.problems) for epoch in range(learner.epochs)
        ]
        problem_UCB = jnp.stack(orders).reshape(learner.epochs * learner.minibatches, -1, micro)
        state, figures = jax.lax.scan(lambda s, part: _apply_minibatch(program, s, batch, part), state, problem_UCB)
        means = {name: jnp.mean(values_U) for name, values_U in figures.items()}
        means["first_ratio_deviation"] = figures["ratio_deviation"][0]
        means["kl_coefficient"] = state.kl_coefficient
        if learner.kl.target is not None:
            messages = sum(part.size for part in advantage)
            coefficient = losses.update_kl_coefficient(
                state.kl_coefficient, means["kl"], learner.kl.target, learner.kl.horizon, messages
            )
            state = state._replace(
                kl_coefficient=jnp.where(jnp.isfinite(coefficient), coefficient, state.kl_coefficient)
            )
        return state, credit, means

    return jax.jit(update, donate_argnums=0)


def _apply_minibatch(
    program: _Program, state: TrainState, batch: _Batch, problem_CB: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    gradient, figures = _compute_gradient(program, state, batch, problem_CB)
    norm = optax.tree.norm(gradient)
    is_good = jnp.isfinite(norm) & jnp.isfinite(figures["loss"])
    changes, opt_state = program.optimiser.update(gradient, state.opt_state, state.params)
    moved = (optax.apply_updates(state.params, changes), opt_state)
    # A bad update is skipped whole: neither parameters nor moments nor the schedule's count may take it in.
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_good, new, old), moved, (state.params, state.opt_state)
    )
    figures["grad_norm"] = norm
    figures["learning_rate"] = jnp.asarray(program.schedule(state.updates - state.bad_updates), jnp.float32)
    return (
        TrainState(
            params,
            opt_state,
            state.kl_coefficient,
            updates=state.updates + 1,
            bad_updates=state.bad_updates + jnp.where(is_good, 0, 1),
            bad_in_row=jnp.where(is_good, 0, state.bad_in_row + 1),
        ),
        figures,
    )


def _compute_gradient(
    program: _Program, state: TrainState, batch: _Batch, problem_CB: jax.Array
) -> tuple[dict, dict[str, jax.Array]]:
    """Gradient and figures of one minibatch, summed over its micro-batches."""
    problems = program.config.problems
    chosen = tree.take_problems(batch.rollout, problems, problem_CB.reshape(-1))
    total = sum(_weigh(program, chosen, place).sum() for place in program.trained)

    def gradient_of(problem_B: jax.Array):
        part = tree.take_problems(batch, problems, problem_B)
        objective = lambda params: _compute_loss(program, params, part, state.kl_coefficient, total)  # noqa: E731
        (_, figures), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        return gradient, figures

    if problem_CB.shape[0] == 1:
        return gradient_of(problem_CB[0])
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient_of, problem_CB[0]))
    return jax.lax.scan(
        lambda sums, problem_B: (jax.tree.map(jnp.add, sums, gradient_of(problem_B)), None), empty, problem_CB
    )[0]


def _compute_loss(
    program: _Program, params: dict, batch: _Batch, kl_coefficient: jax.Array, total: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This micro-batch's share of the minibatch's loss and figures."""
    learner, sums = program.config.learner, []
    for place, logp_NT in zip(program.trained, _compute_logp(program, params, batch.rollout), strict=True):
        messages = batch.rollout.turns[place]
        weight_NT = _weigh(program, batch.rollout, place)
        # Slots that were not drawn hold junk: they must not reach an exponential, whose infinity times zero is a NaN.
        logp_NT = jnp.where(messages.sampled_NT, logp_NT, messages.behaviour_logp_NT)
        loss_NT, is_clipped_NT = losses.compute_policy_loss(
            logp_NT, messages.behaviour_logp_NT, batch.advantage[place], learner.clip
        )
        figures = {
            "policy_loss": loss_NT,
            "clip_share": is_clipped_NT.astype(jnp.float32),
            "ratio_deviation": jnp.abs(jnp.exp(logp_NT - messages.behaviour_logp_NT) - 1.0),
        }
        if batch.reference_logp:
            reference_NT = jnp.where(messages.sampled_NT, batch.reference_logp[place], logp_NT)
            figures["kl"] = losses.compute_divergence(logp_NT, reference_NT, learner.kl.estimator)
        sums.append({name: jnp.sum(weight_NT * value_NT) / total for name, value_NT in figures.items()})
    figures = jax.tree.map(lambda *parts: sum(parts), *sums)
    figures.setdefault("kl", jnp.float32(0.0))
    figures["loss"] = figures["policy_loss"] + kl_coefficient * figures["kl"]
    return figures["loss"], figures


def _compute_logp(program: _Program, params: dict, rollout: Rollout) -> tuple[jax.Array, ...]:
    """Log-probabilities [N, T] of the trained turns' messages."""
    model = nnx.merge(program.graphdef, params)
    config = program.config
    return tuple(
        forward.compute_turn_logp(model, program.plans, place, rollout, config.credit.fan_out, config.sampling)
        for place in program.trained
    )


def _compute_reference(program: _Program, reference: dict, batch: _Batch, micro: int) -> tuple[jax.Array, ...]:
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
