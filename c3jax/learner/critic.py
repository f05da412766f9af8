"""The critic of a run: what it reads, the credit it takes part in, and how it learns from a step's trees.

A value critic (mappo) reads a turn's context and nothing of the message; an action-value critic (value_assisted,
value_only) reads context and message. Every turn counts the same in its loss, however many messages it has.

Dimension key beside types.py: U update, C micro-batch, B problem of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from c3jax.config.run import Critic, RunConfig
from c3jax.credit.apply import apply_credit
from c3jax.credit.learned import compute_assisted_credit, compute_episode_credit
from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.methods import METHODS
from c3jax.learner import forward, losses
from c3jax.learner.optimiser import add_micro_batches, apply_gradient, make_optimiser
from c3jax.models.critic import compute_score, init_critic, merge_network
from c3jax.models.policy import Policy, Weights, find_start
from c3jax.protocol import TurnPlan
from c3jax.rollout import tree
from c3jax.types import Credit, Rollout


class CriticState(NamedTuple):
    """All that a critic carries from step to step."""

    params: dict
    opt_state: optax.OptState
    updates: jax.Array  # optimiser updates tried
    bad_updates: jax.Array  # of these, skipped for a non-finite loss or gradient
    bad_in_row: jax.Array  # skipped since the last good one


class CriticProgram(NamedTuple):
    """What is fixed for a run that has a critic."""

    config: RunConfig
    section: Critic
    policy: Policy
    plans: tuple[TurnPlan, ...]
    matrix: CreditMatrix
    optimiser: optax.GradientTransformation
    is_action_value: bool


class Lesson(NamedTuple):
    """A step's trees with what the critic learns from each message; a tuple entry a turn, rows in path order."""

    rollout: Rollout
    hidden: tuple[jax.Array, ...]  # [N, D] what the head reads, where the network stands still; else empty
    old_score: tuple[jax.Array, ...]  # [N] the scores that credit was given with
    target: tuple[jax.Array, ...]  # [N] in units of return


def init_critic_state(policy: Policy, weights: Weights, config: RunConfig) -> CriticState | None:
    """The critic before the first step, from the starting policy; None for a method without one."""
    section = config.credit.critic
    if section is None:
        return None
    params = init_critic(section.network, find_start(policy, weights))
    counts = (jnp.int32(0), jnp.int32(0), jnp.int32(0))
    return CriticState(params, _make_optimiser(config, section).init(params), *counts)


def make_critic_program(
    config: RunConfig, policy: Policy, plans: Sequence[TurnPlan], matrix: CreditMatrix
) -> CriticProgram | None:
    """What the functions below take; None for a method without a critic."""
    section = config.credit.critic
    if section is None:
        return None
    is_action_value = METHODS[config.credit.method].critic == "action_value"
    optimiser = _make_optimiser(config, section)
    return CriticProgram(config, section, policy, tuple(plans), matrix, optimiser, is_action_value)


def compute_critic_credit(
    program: CriticProgram, critic: dict, weights: Weights, rollout: Rollout, return_PL: jax.Array, micro: int
) -> tuple[Credit, Lesson]:
    """Credit by the critic as it stands, and what it may learn from the same trees."""
    config, section = program.config, program.section
    hidden = _read_all(program, critic, weights, rollout, micro)
    old_score = tuple(compute_score(critic, hidden_ND) for hidden_ND in hidden)
    value = tuple(_as_value(program, score_N).reshape(config.problems, -1) for score_N in old_score)
    if program.is_action_value:
        credit = compute_assisted_credit(
            program.matrix,
            return_PL,
            value,
            config.credit.fan_out,
            "value_only" if config.credit.method == "value_only" else "value_assisted",
            share=section.share,
            normalise=config.credit.normalise,
        )
        target = apply_credit(program.matrix, return_PL, normalise="none").value
    else:
        credit = compute_episode_credit(
            program.matrix,
            return_PL,
            value,
            discount=section.discount,
            decay=section.decay,
            normalise=config.credit.normalise,
        )
        target = credit.value
    target = tuple(target_PN.reshape(-1) for target_PN in target)
    return credit, Lesson(rollout, hidden if section.network == "trunk" else (), old_score, target)


def train_critic(
    program: CriticProgram, state: CriticState, weights: Weights, lesson: Lesson, problem_UCB: jax.Array
) -> tuple[CriticState, dict[str, jax.Array]]:
    """All the critic's updates of a step. Figures: the mean loss, and how well credit's values explained the returns.

    explained_variance = 1 - Var(target - value) / Var(target) over all messages, 0 where all targets are equal; the
    values are those from before the updates, so none of these returns had been seen.
    """
    state, loss_U = jax.lax.scan(
        lambda s, problem_CB: _apply_minibatch(program, s, weights, lesson, problem_CB), state, problem_UCB
    )
    value = jnp.concatenate([_as_value(program, score_N) for score_N in lesson.old_score])
    target = jnp.concatenate(lesson.target)
    spread = jnp.var(target)
    explained = jnp.where(spread > 0, 1.0 - jnp.var(target - value) / jnp.where(spread > 0, spread, 1.0), 0.0)
    return state, {"critic_loss": jnp.mean(loss_U), "explained_variance": explained}


def compute_critic_loss(program: CriticProgram, critic: dict, weights: Weights, lesson: Lesson) -> jax.Array:
    """Mean over turns of the mean loss of a turn's messages (mappo: of its contexts)."""
    hidden = lesson.hidden or _read(program, critic, weights, lesson.rollout)
    means = []
    for hidden_ND, old_N, target_N in zip(hidden, lesson.old_score, lesson.target, strict=True):
        score_N = compute_score(critic, hidden_ND)
        if program.is_action_value:
            loss_N = losses.compute_score_loss(score_N, target_N, program.section.loss)
        else:
            loss_N = losses.compute_value_loss(score_N, target_N, old_N, program.section.clip)
        means.append(jnp.mean(loss_N))
    return jnp.mean(jnp.stack(means))


def _make_optimiser(config: RunConfig, section: Critic) -> optax.GradientTransformation:
    own: dict[str, Any] = section.model_dump(include={"learning_rate", "warmup_updates", "epochs"})
    return make_optimiser(config.learner.model_copy(update=own), config.steps)[0]


def _apply_minibatch(
    program: CriticProgram, state: CriticState, weights: Weights, lesson: Lesson, problem_CB: jax.Array
) -> tuple[CriticState, jax.Array]:
    # Micro-batches have equally many messages, so the mean of their means is the minibatch's.
    share = 1.0 / problem_CB.shape[0]

    def compute(problem_B: jax.Array) -> tuple[jax.Array, dict]:
        part = tree.take_problems(lesson, program.config.problems, problem_B)
        return jax.value_and_grad(lambda critic: share * compute_critic_loss(program, critic, weights, part))(
            state.params
        )

    loss, gradient = add_micro_batches(compute, problem_CB)
    params, opt_state, is_good, _ = apply_gradient(program.optimiser, state.params, state.opt_state, gradient, loss)
    state = CriticState(
        params,
        opt_state,
        updates=state.updates + 1,
        bad_updates=state.bad_updates + jnp.where(is_good, 0, 1),
        bad_in_row=jnp.where(is_good, 0, state.bad_in_row + 1),
    )
    return state, loss


def _read_all(
    program: CriticProgram, critic: dict, weights: Weights, rollout: Rollout, micro: int
) -> tuple[jax.Array, ...]:
    """What the head reads of every message, a micro-batch at a time."""
    problems = program.config.problems
    parts = jax.lax.map(
        lambda problem_B: _read(program, critic, weights, tree.take_problems(rollout, problems, problem_B)),
        jnp.arange(problems).reshape(-1, micro),
    )
    return tuple(part_CND.reshape(-1, part_CND.shape[-1]) for part_CND in parts)


def _read(program: CriticProgram, critic: dict, weights: Weights, rollout: Rollout) -> tuple[jax.Array, ...]:
    """What the head reads [N, D] of every turn's messages."""
    compute = forward.compute_message_hidden if program.is_action_value else forward.compute_context_hidden
    fan_out, hidden = program.config.credit.fan_out, []
    for place, plan in enumerate(program.plans):
        model = merge_network(program.policy, critic, weights, plan.role)
        hidden.append(compute(model, program.plans, place, rollout, fan_out))
    return tuple(hidden)


def _as_value(program: CriticProgram, score_N: jax.Array) -> jax.Array:
    """A score in units of return; an action-value critic's is the logit of a return in [0, 1]."""
    return jax.nn.sigmoid(score_N) if program.is_action_value else score_N
