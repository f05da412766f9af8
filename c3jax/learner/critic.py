"""The critic of a run: what it reads, the credit it takes part in, and how it learns from a step's trees.

A value critic (mappo) reads a turn's context and nothing of the message; an action-value critic (value_assisted,
value_only) reads context and message. Every turn counts the same in its loss, however many messages it has.

Dimension key beside types.py: U update, C micro-batch, B problem of a micro-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from c3jax.config.run import Credit as CreditSection
from c3jax.config.run import Critic, Learner
from c3jax.credit.apply import apply_credit
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.methods import find_method
from c3jax.credit.plans import FanOut
from c3jax.learner import forward, losses
from c3jax.learner.optimiser import add_micro_batches, apply_gradient, make_optimiser
from c3jax.models import sharding
from c3jax.models.critic import compute_score, init_critic, merge_network
from c3jax.models.policy import Policy, Weights, find_start
from c3jax.protocol import TurnPlan
from c3jax.rollout import tree
from c3jax.types import Credit, Params, Rollout


class CriticState(NamedTuple):
    """All that a critic carries from step to step."""

    params: Params
    opt_state: optax.OptState
    updates: jax.Array  # optimiser updates tried
    bad_updates: jax.Array  # of these, skipped for a non-finite loss or gradient
    bad_in_row: jax.Array  # skipped since the last good one


class CriticProgram(NamedTuple):
    """What is fixed for a step of a run that has a critic; all but the matrix is static."""

    credit: CreditSection
    section: Critic
    policy: Policy
    plans: tuple[TurnPlan, ...]
    fan_out: FanOut
    matrix: CreditMatrix
    optimiser: optax.GradientTransformation
    is_action_value: bool
    mesh: sharding.Mesh | None

    @property
    def taken(self) -> tuple[int, ...]:
        """Turns that a policy takes."""
        return tuple(turn for turn, plan in enumerate(self.plans) if not plan.is_environment)


class CriticBatch(NamedTuple):
    """A step's trees with what the critic learns from each message; rows in path order.

    A tuple entry a turn that a policy takes: no critic reads what an environment answers.
    """

    rollout: Rollout
    hidden: tuple[jax.Array, ...]  # [N, D] what the head reads, where the network stands still; else empty
    old_score: tuple[jax.Array, ...]  # [N] the scores that credit was given with
    target: tuple[jax.Array, ...]  # [N] in units of return


def init_critic_state(section: Critic, learner: Learner, policy: Policy, weights: Weights) -> CriticState:
    """The critic before the first step.

    Args:
      section, learner: of the config.
      policy, weights: the starting policy, of which the critic's network is a copy where it has one of its own.

    Returns:
      The state, its buffers its own.
    """
    params = init_critic(section.network, find_start(policy, weights))
    counts = (jnp.int32(0), jnp.int32(0), jnp.int32(0))
    optimiser = _make_optimiser(section, learner, 1)  # its state is the same for any number of steps
    return CriticState(params, optimiser.init(params), *counts)


def make_critic_program(
    credit: CreditSection,
    learner: Learner,
    steps: int,
    policy: Policy,
    plans: Sequence[TurnPlan],
    fan_out: FanOut,
    matrix: CreditMatrix,
    mesh: sharding.Mesh | None = None,
) -> CriticProgram | None:
    """What the functions below take.

    Args:
      credit, learner: sections of the config.
      steps: of the run, by which its schedule ends.
      policy, plans: the team's.
      fan_out: alternatives a turn, of the step.
      matrix: the method's rows on that tree.
      mesh: over which weights and problems are laid; None for one device.

    Returns:
      The program; None for a method without a critic.
    """
    section = credit.critic
    if section is None:
        return None
    is_action_value = find_method(credit.method).critic == "action_value"
    optimiser = _make_optimiser(section, learner, steps)
    return CriticProgram(credit, section, policy, tuple(plans), fan_out, matrix, optimiser, is_action_value, mesh)


def compute_critic_credit(
    program: CriticProgram,
    critic: Params,
    weights: Weights,
    rollout: Rollout,
    return_PL: jax.Array,
    micro: int,
    past: tuple[jax.Array, ...] = (),
) -> tuple[Credit, CriticBatch]:
    """Credit by the critic as it stands, and what it may learn from the same trees.

    Args:
      program: of the step.
      critic: its parameters.
      weights: of the policy that drew the trees.
      rollout, return_PL: the trees and their returns.
      micro: problems that are read at a time.
      past: [P, L] per turn, what environments paid before it.

    Returns:
      Credit of every message, and the critic's batch.
    """
    section, normalise = program.section, program.credit.normalise
    hidden = _read_all(program, critic, weights, rollout, micro)
    old_score = tuple(compute_score(critic, hidden_ND) for hidden_ND in hidden)
    value: list[jax.Array | None] = [None] * len(program.plans)
    for turn, score_N in zip(program.taken, old_score, strict=True):
        value[turn] = _as_value(program, score_N).reshape(len(return_PL), -1)
    options: dict[str, Any] = {"discount": section.discount, "decay": section.decay, "share": section.share}
    inputs = CreditInputs(program.matrix, program.fan_out, critic=tuple(value), past=past, **options)
    credit = compute_credit(program.credit.method, inputs, return_PL, normalise=normalise)
    learnt = apply_credit(program.matrix, return_PL, normalise="none") if program.is_action_value else credit
    target = tuple(learnt.value[turn].reshape(-1) for turn in program.taken)
    return credit, CriticBatch(rollout, hidden if section.network == "trunk" else (), old_score, target)


def train_critic(
    program: CriticProgram, state: CriticState, weights: Weights, batch: CriticBatch, problem_UCB: jax.Array
) -> tuple[CriticState, dict[str, jax.Array]]:
    """All the critic's updates of a step.

    explained_variance = 1 - Var(target - value) / Var(target) over all messages, 0 where all targets are equal; the
    values are those from before the updates, so none of these returns had been seen.

    Args:
      program: of the step.
      state: the critic's.
      weights: of the policy, read where the critic is a head on it.
      batch: of the step.
      problem_UCB: problems of each micro-batch of each update.

    Returns:
      The next state, and figures: the mean loss, and how well credit's values explained the returns.
    """
    state, loss_U = jax.lax.scan(
        lambda s, problem_CB: _apply_minibatch(program, s, weights, batch, problem_CB), state, problem_UCB
    )
    value = jnp.concatenate([_as_value(program, score_N) for score_N in batch.old_score])
    target = jnp.concatenate(batch.target)
    spread = jnp.var(target)
    explained = jnp.where(spread > 0, 1.0 - jnp.var(target - value) / jnp.where(spread > 0, spread, 1.0), 0.0)
    return state, {"critic_loss": jnp.mean(loss_U), "explained_variance": explained}


def compute_critic_loss(program: CriticProgram, critic: Params, weights: Weights, batch: CriticBatch) -> jax.Array:
    """Mean over turns of the mean loss of a turn's messages (of a value of contexts: of its contexts).

    Args:
      program, weights, batch: as for `train_critic`.
      critic: its parameters, by which the loss is differentiated.

    Returns:
      A scalar, f32.
    """
    hidden = batch.hidden or _read(program, critic, weights, batch.rollout)
    means = []
    for hidden_ND, old_N, target_N in zip(hidden, batch.old_score, batch.target, strict=True):
        score_N = compute_score(critic, hidden_ND)
        if program.is_action_value:
            loss_N = losses.compute_score_loss(score_N, target_N, program.section.loss)
        else:
            loss_N = losses.compute_value_loss(score_N, target_N, old_N, program.section.clip)
        means.append(jnp.mean(loss_N))
    return jnp.mean(jnp.stack(means))


def _make_optimiser(section: Critic, learner: Learner, steps: int) -> optax.GradientTransformation:
    own = section.model_dump(include={"learning_rate", "warmup_updates", "epochs"})
    return make_optimiser(learner.model_copy(update=own), steps)[0]


def _apply_minibatch(
    program: CriticProgram, state: CriticState, weights: Weights, batch: CriticBatch, problem_CB: jax.Array
) -> tuple[CriticState, jax.Array]:
    # Micro-batches, and devices, have equally many messages, so the mean of their means is the minibatch's.
    problems = len(batch.rollout.question.tokens_NS)
    share = 1.0 / (problem_CB.shape[0] * sharding.count_parts(program.mesh))

    def compute_loss(critic: Params, weights: Weights, part: CriticBatch) -> jax.Array:
        return share * compute_critic_loss(program, critic, weights, part)

    arguments = (sharding.cut_weights(weights), sharding.CUT)
    differentiate = sharding.value_and_grad(program.mesh, compute_loss, arguments)

    def compute(problem_B: jax.Array) -> tuple[jax.Array, Params]:
        return differentiate(state.params, weights, tree.take_problems(batch, problems, problem_B))

    loss, gradient = add_micro_batches(compute, problem_CB)
    return apply_gradient(program.optimiser, state, gradient, loss)[0], loss


def _read_all(
    program: CriticProgram, critic: Params, weights: Weights, rollout: Rollout, micro: int
) -> tuple[jax.Array, ...]:
    """What the head reads of every message, a micro-batch at a time."""
    problems = len(rollout.question.tokens_NS)
    arguments = (sharding.cut_weights(critic), sharding.cut_weights(weights), sharding.CUT)
    read = sharding.map_problems(program.mesh, functools.partial(_read, program), arguments, sharding.CUT)
    parts = jax.lax.map(
        lambda problem_B: read(critic, weights, tree.take_problems(rollout, problems, problem_B)),
        jnp.arange(problems).reshape(-1, micro),
    )
    return tuple(part_CND.reshape(-1, part_CND.shape[-1]) for part_CND in parts)


def _read(program: CriticProgram, critic: Params, weights: Weights, rollout: Rollout) -> tuple[jax.Array, ...]:
    """What the head reads [N, D] of the messages of every turn that a policy takes."""
    compute = forward.compute_message_hidden if program.is_action_value else forward.compute_context_hidden
    hidden = []
    for turn in program.taken:
        model = merge_network(program.policy, critic, weights, program.plans[turn].role)
        hidden.append(compute(model, program.plans, turn, rollout, program.fan_out))
    return tuple(hidden)


def _as_value(program: CriticProgram, score_N: jax.Array) -> jax.Array:
    """A score in units of return; an action-value critic's is the logit of a return in [0, 1]."""
    return jax.nn.sigmoid(score_N) if program.is_action_value else score_N
