"""What a run learns of its returns from step to step: variance components, and the fan-out chosen by them.

All of it is of earlier steps when it is used, so that within a step baselines and counts are fixed before sampling.

Dimension key: K turn    P problem    L leaf of one problem's tree
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.config.run import RunConfig
from c3jax.credit import shrink
from c3jax.credit.plans import FanOut
from c3jax.types import Rollout


class AdaptiveState(NamedTuple):
    """Carried from step to step by a run whose baseline or fan-out follows its returns."""

    components: shrink.Components
    tokens_K: jax.Array  # f32: running mean of the tokens of a turn's message
    fan_out_K: jax.Array  # int32: the fan-out in force; zeros before the first choice


def init_adaptive(config: RunConfig) -> AdaptiveState | None:
    """The state before the first step; None for a run in which nothing adapts."""
    credit, turns = config.credit, config.protocol.turns
    if credit.method != "shrunk" and credit.fan_out != "auto":
        return None
    return AdaptiveState(
        shrink.init_components(len(turns)),
        jnp.asarray([turn.max_tokens for turn in turns], jnp.float32),
        jnp.asarray((0,) * len(turns) if credit.fan_out == "auto" else credit.fan_out, jnp.int32),
    )


def update_adaptive(state: AdaptiveState, config: RunConfig, rollout: Rollout, return_PL: jax.Array) -> AdaptiveState:
    """Take a step's returns and message lengths in, after its credit. The config's fan-out is the step's own.

    A step with a return that is not finite changes nothing: a moving average would never be rid of it.
    """
    components = shrink.update_components(state.components, return_PL, config.credit.fan_out, config.credit.decay)
    tokens_K = jnp.stack([jnp.mean(turn.sampled_NT.sum(axis=1), dtype=jnp.float32) for turn in rollout.turns])
    rate = jnp.maximum(1.0 - config.credit.decay, 1.0 / components.steps)
    new = state._replace(components=components, tokens_K=(1.0 - rate) * state.tokens_K + rate * tokens_K)
    is_finite = jnp.isfinite(return_PL).all()
    return jax.tree.map(lambda after, before: jnp.where(is_finite, after, before), new, state)


def choose_fan_out(config: RunConfig, state: AdaptiveState | None, step: int) -> AdaptiveState | None:
    """The state with the fan-out for `step`: a new choice where one is due, else the one in force."""
    if state is None or config.credit.fan_out != "auto" or step % config.credit.auto.every:
        return state
    current = None if step == 0 else _read_fan_out(state)
    return state._replace(fan_out_K=jnp.asarray(_choose(config, state, current), jnp.int32))


def fix_fan_out(config: RunConfig, state: AdaptiveState | None) -> RunConfig:
    """The config with the fan-out in force, and its product as the budget."""
    if config.credit.fan_out != "auto":
        return config
    fan_out = _read_fan_out(state)
    fixed = config.credit.model_copy(update={"fan_out": fan_out, "budget": int(np.prod(fan_out))})
    return config.model_copy(update={"credit": fixed})


def _read_fan_out(state: AdaptiveState) -> FanOut:
    return tuple(np.asarray(state.fan_out_K).tolist())


def _choose(config: RunConfig, state: AdaptiveState, current: FanOut | None) -> FanOut:
    credit, turns = config.credit, config.protocol.turns
    # A mean of full messages may round to more than the most that the budget was checked with.
    tokens = tuple(min(mean, float(turn.max_tokens)) for mean, turn in zip(state.tokens_K.tolist(), turns, strict=True))
    return shrink.choose_fan_out(
        state.components,
        credit.budget,
        credit.auto.unit,
        credit.method,
        credit.auto.criterion,
        tuple(turn.trained for turn in turns),
        tokens,
        current,
    )
