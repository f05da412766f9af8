"""What the policy's gradient is made of, problem by problem and role by role, by the run's own loss and credit.

A batch's gradient is the mean over its problems of g_p, P times problem p's share of the batch's loss differentiated by
all trained weights. A role's is that of its own messages, whichever weights others share with it. A gradient is as
large as the weights, so two numbers of it are kept: |g_p|^2 and g_p . G, with G the mean over all problems of all
batches. They take two passes, for G is known after the first.

Dimension key beside types.py: R role, or all of them.
Source: arXiv:1812.06162, appendix A.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.config.run import Credit as CreditSection
from c3jax.config.run import Learner, Sampling
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import Plan
from c3jax.learner import batch_loss
from c3jax.learner.batch_loss import Batch, LossSetting
from c3jax.learner.objective import make_objective
from c3jax.learner.signal import credit_trees
from c3jax.models.policy import Policy, Weights
from c3jax.protocol import TurnPlan
from c3jax.rollout import tree
from c3jax.types import Params, Rollout


class Drawn(NamedTuple):
    """The trees of a batch and their returns, as an update is given them."""

    rollouts: tuple[Rollout, ...]
    return_PL: jax.Array | np.ndarray


class Spread(NamedTuple):
    """What is kept of every problem's gradient, of each role; squared units of the loss by the weights."""

    square_RP: np.ndarray  # |g|^2
    along_RP: np.ndarray  # g . G


# (weights, batch, direction, plan, roles) -> the sum of g over the batch, and its |g|^2 and g . direction [P], of these
# roles' messages together; the last two arguments are static
Measure = Callable[[Weights, Drawn, Params, Plan, tuple[str, ...]], tuple[Params, tuple[jax.Array, jax.Array]]]


def list_parts(plans: Sequence[TurnPlan]) -> list[tuple[str, ...]]:
    """The roles whose messages a gradient is of: each that is trained, as they speak, and all of several together."""
    roles = tuple(dict.fromkeys(plan.role for plan in plans if plan.is_trained))
    return [(role,) for role in roles] + ([roles] if len(roles) > 1 else [])


def make_measure(
    credit: CreditSection, learner: Learner, sampling: Sampling, policy: Policy, plans: Sequence[TurnPlan]
) -> Measure:
    """Make the jitted function that differentiates a batch's loss problem by problem.

    The loss is the policy's, with its entropy bonus, without a divergence from the reference: what its advantages say.

    Args:
      credit, learner, sampling: sections of the config; the method carries nothing.
      policy, plans: the team's.

    Returns:
      The measure. It holds three gradients at once: a problem's, the sum and the direction.
    """
    objective = make_objective(learner.loss, learner.kl, learner.entropy)

    def measure(
        weights: Weights, drawn: Drawn, direction: Params, plan: Plan, roles: tuple[str, ...]
    ) -> tuple[Params, tuple[jax.Array, jax.Array]]:
        problems = len(drawn.return_PL)
        setting = LossSetting(learner, sampling, policy, tuple(plans), objective, problems, plan)
        batch = _credit_batch(setting, credit, drawn)
        totals = batch_loss.add_weights(setting, batch)
        own = tuple(turn._replace(is_trained=turn.is_trained and turn.role in roles) for turn in plans)

        def add(total: Params, problem: jax.Array) -> Any:
            part = tree.take_problems(batch, problems, problem[None])

            def compute_share(trained: Params) -> jax.Array:
                given = (setting._replace(plans=own), Weights(trained, weights.frozen), part, jnp.zeros(()), totals)
                return problems * batch_loss.compute_loss(*given)[0]

            gradient = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.grad(compute_share)(weights.trained))
            found = (_multiply(gradient, gradient), _multiply(gradient, direction))
            return jax.tree.map(jnp.add, total, gradient), found

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, direction), jnp.arange(problems))

    return jax.jit(measure, static_argnames=("plan", "roles"))  # pyright: ignore[reportReturnType]


def measure_spread(
    measure: Measure, parts: Sequence[tuple[str, ...]], weights: Weights, batches: Sequence[Drawn], plan: Plan
) -> Spread:
    """What every problem's gradient is beside the mean over all batches.

    Args:
      measure: from `make_measure`.
      parts: from `list_parts`; one is measured after the other, for a gradient is as large as the weights.
      weights: of the policy that drew the batches.
      batches: of equally many problems.
      plan: what was drawn of a problem.
    """
    found = [_measure_part(measure, roles, weights, batches, plan) for roles in parts]
    square_RP, along_RP = (np.stack(rows) for rows in zip(*found, strict=True))
    return Spread(square_RP, along_RP)


def _measure_part(
    measure: Measure, roles: tuple[str, ...], weights: Weights, batches: Sequence[Drawn], plan: Plan
) -> tuple[np.ndarray, ...]:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), weights.trained)
    total = zeros
    for drawn in batches:
        total = jax.tree.map(jnp.add, total, measure(weights, drawn, zeros, plan, roles)[0])
    problems = sum(len(drawn.return_PL) for drawn in batches)
    mean = jax.tree.map(lambda leaf: leaf / problems, total)
    found = [jax.device_get(measure(weights, drawn, mean, plan, roles)[1]) for drawn in batches]
    return tuple(np.concatenate(part, dtype=np.float64) for part in zip(*found, strict=True))


def _credit_batch(setting: LossSetting, credit: CreditSection, drawn: Drawn) -> Batch:
    trained = tuple(turn.is_trained for turn in setting.plans)
    matrix = make_credit_matrix(credit.method, setting.plan, trained)
    given = credit_trees(credit, matrix, setting.plan, drawn.rollouts[0], jnp.asarray(drawn.return_PL))
    return batch_loss.make_batch(setting, drawn.rollouts, given)


def _multiply(one: Params, other: Params) -> jax.Array:
    """The inner product of two gradients."""
    products = jax.tree.map(lambda left, right: jnp.vdot(left, right), one, other)
    return functools.reduce(jnp.add, jax.tree.leaves(products))
