"""All that a run carries from step to step, before its first step and in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from c3jax.config.run import Credit as CreditSection
from c3jax.config.run import Learner
from c3jax.learner import critic as critic_lib
from c3jax.learner.adapt import AdaptiveState, Passes, init_adaptive
from c3jax.learner.optimiser import make_optimiser
from c3jax.models.policy import Policy, Weights
from c3jax.protocol import TurnPlan
from c3jax.types import FanOut, Params


class TrainState(NamedTuple):
    """All that a run carries from step to step on the device."""

    params: Params  # the trained weights
    opt_state: optax.OptState
    kl_coefficient: jax.Array  # f32
    updates: jax.Array  # optimiser updates tried
    bad_updates: jax.Array  # of these, skipped for a non-finite loss or gradient
    bad_in_row: jax.Array  # skipped since the last good one
    critic: critic_lib.CriticState | None  # None for a method without one
    adaptive: AdaptiveState | None  # None where neither baseline nor fan-out follows the returns
    behind: Params | None = None  # params before the newest step, which draw the next one's trees; None: params do
    passes: Passes | None = None  # None without a curriculum; read and changed on the host

    @property
    def sampler_params(self) -> Params:
        """The trained weights that the next step's trees are drawn by."""
        return self.params if self.behind is None else self.behind


def init_state(
    policy: Policy,
    weights: Weights,
    plans: Sequence[TurnPlan],
    credit: CreditSection,
    learner: Learner,
    is_behind: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      policy, weights: the starting policy.
      plans: the turns.
      credit, learner: sections of the config.
      is_behind: whether a step's trees are drawn by the weights before the step before it.

    Returns:
      The state; it takes hold of the trained weights.
    """
    optimiser, _ = make_optimiser(learner, 1, is_per_role=policy.kind != "shared")  # of any number of steps
    section = credit.critic
    return TrainState(
        params=weights.trained,
        opt_state=optimiser.init(weights.trained),
        kl_coefficient=jnp.float32(learner.kl.coefficient),
        updates=jnp.int32(0),
        bad_updates=jnp.int32(0),
        bad_in_row=jnp.int32(0),
        critic=None if section is None else critic_lib.init_critic_state(section, learner, policy, weights),
        adaptive=init_adaptive(credit, plans),
        behind=jax.tree.map(jnp.copy, weights.trained) if is_behind else None,
    )


def pack_state(state: TrainState, fan_out: FanOut | None) -> dict[str, Any]:
    """What a checkpoint holds: the state, and beside what it has learnt of the returns the fan-out in force.

    Args:
      state: of the run.
      fan_out: alternatives a turn; None before the first choice, which is written as zeros.

    Returns:
      The state's fields by their names.
    """
    saved = state._asdict()
    if state.adaptive is not None:
        chosen = fan_out or (0,) * len(state.adaptive.tokens_K)
        saved["adaptive"] = {**state.adaptive._asdict(), "fan_out_K": np.asarray(chosen, np.int32)}
    return saved


def unpack_state(saved: dict[str, Any]) -> tuple[TrainState, FanOut | None]:
    """The state and the fan-out in force that a checkpoint holds.

    Args:
      saved: as `pack_state` made it.

    Returns:
      The state; and the fan-out, None where none is kept or none was chosen yet.
    """
    adaptive = saved["adaptive"]
    if adaptive is None:
        return TrainState(**saved), None
    fan_out = tuple(np.asarray(adaptive["fan_out_K"]).tolist())
    fields: dict[str, Any] = saved | {"adaptive": AdaptiveState(adaptive["components"], adaptive["tokens_K"])}
    state = TrainState(**fields)
    return state, fan_out if all(fan_out) else None
