"""What a run learns of its returns from step to step: variance components, by which baselines and fan-outs are chosen,
and pass rates, by which problems are.

All of it is of earlier steps when it is used, so that within a step baselines and counts are fixed before sampling.

Dimension key: K turn    P problem    L leaf of one problem's tree    N problem of the training set
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.config.run import Credit, Curriculum
from c3jax.credit import shrink
from c3jax.credit.methods import find_method
from c3jax.credit.plans import FanOut
from c3jax.protocol import TurnPlan
from c3jax.types import Rollout


class AdaptiveState(NamedTuple):
    """Carried from step to step by a run whose baseline or fan-out follows its returns."""

    components: shrink.Components
    tokens_K: jax.Array  # f32: running mean of the tokens of a turn's message


class Passes(NamedTuple):
    """Of each training problem what its answers were worth, f32; what is older weighs less."""

    passed_N: jax.Array | np.ndarray  # sum of returns
    tried_N: jax.Array | np.ndarray  # answers


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


def init_passes(problems: int) -> Passes:
    """The pass rates of so many problems before the first step: of none anything is known."""
    return Passes(jnp.zeros(problems, jnp.float32), jnp.zeros(problems, jnp.float32))


def update_passes(passes: Passes, decay: float, indices: Sequence[int], return_PL: np.ndarray) -> Passes:
    """Take a step's returns in, on the host.

    Args:
      passes: of earlier steps.
      decay: weight of a problem's earlier answers, whenever it is drawn again.
      indices: the problems, each once.
      return_PL: their returns; one that is not finite, or beyond [0, 1], counts as the nearest that is, NaN as 0.

    Returns:
      The pass rates with this step in them.
    """
    passed_N, tried_N = (np.array(part_N, np.float32) for part_N in passes)
    passed_P = np.clip(np.nan_to_num(return_PL, nan=0.0), 0.0, 1.0).sum(axis=1)
    passed_N[indices] = np.float32(decay) * passed_N[indices] + passed_P
    tried_N[indices] = np.float32(decay) * tried_N[indices] + return_PL.shape[1]
    return Passes(passed_N, tried_N)


def weigh_problems(section: Curriculum, passes: Passes) -> np.ndarray:
    """Weights by which problems are drawn: a share for all alike, the rest in proportion to p (1 - p).

    p = (passed + 1) / (tried + 2), a problem's pass rate by Laplace's rule: 1/2 while nothing is known of it.

    Args:
      section: of the config.
      passes: of earlier steps.

    Returns:
      weight_N, f64, with sum 1.

    Source: Rutherford et al., arXiv 2408.15099, section 4 (sampling for learnability); for language models Foster et
      al., arXiv 2502.12272.
    """
    passed_N, tried_N = (np.asarray(part_N, np.float64) for part_N in passes)
    rate_N = (passed_N + 1.0) / (tried_N + 2.0)
    learnable_N = rate_N * (1.0 - rate_N)
    return section.uniform / len(rate_N) + (1.0 - section.uniform) * learnable_N / learnable_N.sum()
