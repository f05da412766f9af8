"""Which trees teach anything: those with an advantage that is not exactly zero in a trained turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.config.run import Credit as CreditSection
from c3jax.credit.apply import sum_past
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.plans import Plan
from c3jax.credit.shrink import Components
from c3jax.models import sharding
from c3jax.protocol import TurnPlan
from c3jax.types import Credit, Rollout

Kept = tuple[jax.Array | None, ...]
# (plan, components, rollout, return_PL) -> whether each tree has a signal [P], and its credit; on the host
Judge = Callable[[Plan, Components | None, Rollout, np.ndarray], tuple[np.ndarray, Credit]]


def find_signal(credit: Credit, trained: Sequence[int]) -> jax.Array:
    """Whether each problem's tree has an advantage that is not exactly zero in a trained turn: [P], bool.

    Args:
      credit: [P, N] per turn.
      trained: indices of the trained turns.
    """
    return jnp.stack([jnp.any(credit.advantage[turn] != 0.0, axis=1) for turn in trained]).any(axis=0)


def sum_rewards(plan: Plan, rollout: Rollout, return_PL: jax.Array) -> tuple[jax.Array, ...]:
    """What environments paid before each turn of a tree; another plan's branches go on from the same past.

    Args:
      plan: what was drawn; static.
      rollout: the trees.
      return_PL: terminal returns.

    Returns:
      As `apply.sum_past`.
    """
    if plan.form != "tree":
        return ()
    observed = [turn.observed for turn in rollout.turns]
    rewards = [None if one is None else one.reward_N.reshape(len(return_PL), -1) for one in observed]
    return sum_past(rewards, return_PL.shape[1])


def list_kept(rollout: Rollout, problems: int) -> tuple[Kept, Kept]:
    """What was kept of messages for the method: their gradients, and the right answer's likelihoods.

    Args:
      rollout: the trees.
      problems: P of them.

    Returns:
      Each [P, N] per turn; None of a turn of which it was not kept.
    """

    def lay(kept: Sequence[jax.Array | None]) -> Kept:
        return tuple(None if one is None else one.reshape(problems, -1) for one in kept)

    return lay([turn.gradient_N for turn in rollout.turns]), lay([turn.likelihood_N for turn in rollout.turns])


def credit_trees(
    section: CreditSection,
    matrix: CreditMatrix,
    plan: Plan,
    rollout: Rollout,
    return_PL: jax.Array,
    components: Components | None = None,
) -> Credit:
    """Credit of a step's trees by a method without a critic.

    Args:
      section: of the config.
      matrix: the method's rows on the plan.
      plan: what was drawn of a problem.
      rollout: the trees.
      return_PL: terminal returns.
      components: of earlier steps, for a method that carries them.

    Returns:
      Credit, f32, each [P, N] per turn.
    """
    return _credit_read(section, matrix, plan, components, return_PL, _read(plan, rollout, return_PL))


def _read(plan: Plan, rollout: Rollout, return_PL: jax.Array) -> tuple[Kept, ...]:
    """What credit reads of trees beside their returns: past rewards, gradients and likelihoods."""
    return (sum_rewards(plan, rollout, return_PL), *list_kept(rollout, len(return_PL)))


def _credit_read(  # noqa: PLR0913
    section: CreditSection,
    matrix: CreditMatrix,
    plan: Plan,
    components: Components | None,
    return_PL: jax.Array,
    read: tuple[Kept, ...],
) -> Credit:
    past, gradient, likelihood = read
    inputs = CreditInputs(matrix, plan.fan_out, components, past=past, gradient=gradient, likelihood=likelihood)
    return compute_credit(section.method, inputs, return_PL, normalise=section.normalise)


def make_judge(credit: CreditSection, plans: Sequence[TurnPlan], mesh: sharding.Mesh | None) -> Judge:
    """What tells, before the update, which trees have a signal.

    A tree is judged as if it were a batch of its own, so that the trees beside it change nothing; where a method
    compares trees with each other, that is by what the tree itself has.

    Args:
      credit: section of the config; its method has no critic.
      plans: the team's turns.
      mesh: over which problems are laid.

    Returns:
      judge(plan, components, rollout, return_PL): of what was drawn, the running components, trees and their returns.
    """
    trained = [turn for turn, plan in enumerate(plans) if plan.is_trained]

    def judge(
        plan: Plan, components: Components | None, rollout: Rollout, return_PL: jax.Array
    ) -> tuple[jax.Array, Credit]:
        matrix = make_credit_matrix(credit.method, plan, tuple(turn.is_trained for turn in plans))

        def judge_one(return_L: jax.Array, read: tuple[Kept, ...]) -> Credit:
            return_PL, read = jax.tree.map(lambda part: part[None], (return_L, read))
            given = _credit_read(credit, matrix, plan, components, return_PL, read)
            return jax.tree.map(lambda part_PN: part_PN[0], given)

        given = jax.vmap(judge_one)(return_PL, _read(plan, rollout, return_PL))
        return sharding.replicate(mesh, (find_signal(given, trained), given))

    compiled = jax.jit(judge, static_argnums=0)

    def judge_trees(
        plan: Plan, components: Components | None, rollout: Rollout, return_PL: np.ndarray
    ) -> tuple[np.ndarray, Credit]:
        laid_PL = sharding.shard_problems(mesh, return_PL)
        return jax.tree.map(np.asarray, compiled(plan, components, rollout, laid_PL))

    return judge_trees
