"""What a run learns of its returns from step to step: variance components, by which baselines and fan-outs are chosen.

All of it is of earlier steps when it is used, so that within a step baselines and counts are fixed before sampling.

Dimension key: K turn    P problem    L leaf of one problem's tree
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from c3jax.config.run import Credit
from c3jax.credit import shrink
from c3jax.credit.methods import find_method
from c3jax.credit.plans import FanOut
from c3jax.protocol import TurnPlan
from c3jax.types import Rollout


class AdaptiveState(NamedTuple):
    """Carried from step to step by a run whose baseline or fan-out follows its returns."""

    components: shrink.Components
    tokens_K: jax.Array  # f32: running mean of the tokens of a turn's message


def init_adaptive(section: Credit, plans: Sequence[TurnPlan]) -> AdaptiveState | None:
    """The state before the first step.

    Args:
      section: of the config.
      plans: the turns; a message is taken to be as long as it may be.

    Returns:
      The state; None for a run in which nothing adapts.
    """
    if find_method(section.method).carries != "components" and section.fan_out != "auto":
        return None
    tokens_K = jnp.asarray([plan.max_tokens for plan in plans], jnp.float32)
    return AdaptiveState(shrink.init_components(len(plans)), tokens_K)


def update_adaptive(
    state: AdaptiveState, decay: float, fan_out: FanOut, rollout: Rollout, return_PL: jax.Array
) -> AdaptiveState:
    """Take a step's returns and message lengths in, after its credit.

    A step with a return that is not finite changes nothing: a moving average would never be rid of it.

    Args:
      state: of earlier steps.
      decay: weight of the past, in [0, 1).
      fan_out: alternatives a turn, of this step; static.
      rollout: the step's messages.
      return_PL: terminal returns, in path order.

    Returns:
      The state with this step in it.
    """
    components = shrink.update_components(state.components, return_PL, fan_out, decay)
    tokens_K = jnp.stack([jnp.mean(turn.sampled_NT.sum(axis=1), dtype=jnp.float32) for turn in rollout.turns])
    rate = jnp.maximum(1.0 - decay, 1.0 / components.steps)
    new = AdaptiveState(components, (1.0 - rate) * state.tokens_K + rate * tokens_K)
    is_finite = jnp.isfinite(return_PL).all()
    return jax.tree.map(lambda after, before: jnp.where(is_finite, after, before), new, state)


def choose_fan_out(
    section: Credit, plans: Sequence[TurnPlan], state: AdaptiveState | None, step: int, current: FanOut | None
) -> FanOut | None:
    """The fan-out of a step: the config's, or, where that is auto, the one in force, or a new choice where it is due.

    Args:
      section: of the config.
      plans: the turns.
      state: of earlier steps; not read where the config has a fan-out.
      step: from 0.
      current: the fan-out in force; None where none was chosen yet.

    Returns:
      Alternatives a turn; None where the method draws no tree.
    """
    if section.fan_out != "auto":
        return section.fan_out
    if current is not None and step % section.auto.every:
        return current
    assert state is not None  # init_adaptive makes one where the fan-out is auto
    # A mean of full messages may round to more than the most that the budget was checked with.
    tokens = tuple(min(mean, float(plan.max_tokens)) for mean, plan in zip(state.tokens_K.tolist(), plans, strict=True))
    return shrink.choose_fan_out(
        state.components,
        section.budget,
        section.auto.unit,
        section.method,
        section.auto.criterion,
        tuple(plan.is_trained for plan in plans),
        tokens,
        current,
    )
