"""Warm-up by imitation: cross-entropy on demonstrated messages, in the very contexts the policy will meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from c3jax.config.run import Imitation, Sampling
from c3jax.learner import forward
from c3jax.learner.token_loss import compute_token_loss
from c3jax.models import sharding
from c3jax.models.policy import Policy, Weights, make_model
from c3jax.protocol import TurnPlan
from c3jax.types import Messages, Params, Rollout, UserError

_PLAIN = Sampling()  # imitation fits the whole distribution, before any truncation


class ImitationState(NamedTuple):
    """All that the warm-up carries from update to update."""

    params: Params
    opt_state: optax.OptState


def make_messages(
    token_rows: Sequence[Sequence[int]], stop_token: int, max_tokens: int, skipped_N: jax.Array | None = None
) -> Messages:
    """Demonstrated messages as if sampled, the stop token added.

    Args:
      token_rows: tokens of each message, without a stop token.
      stop_token: what ends them.
      max_tokens: slots of a message (T).
      skipped_N: rows in which nothing is said; None for none.

    Returns:
      Messages, N of them.

    Raises:
      UserError: where one is too long.
    """
    rows = len(token_rows)
    tokens = np.zeros((rows, max_tokens), np.int32)
    content = np.zeros((rows, max_tokens), bool)
    sampled = np.zeros((rows, max_tokens), bool)
    is_skipped = np.zeros(rows, bool) if skipped_N is None else np.asarray(skipped_N)
    for index, row in enumerate(token_rows):
        if is_skipped[index]:
            continue
        if len(row) + 1 > max_tokens:
            raise UserError(
                f"protocol.turns: expected max_tokens of at least {len(row) + 1} for the demonstrations,"
                f" got {max_tokens}"
            )
        tokens[index, : len(row) + 1] = [*row, stop_token]
        content[index, : len(row)] = True
        sampled[index, : len(row) + 1] = True
    return Messages(
        tokens_NT=jnp.asarray(tokens),
        content_NT=jnp.asarray(content),
        sampled_NT=jnp.asarray(sampled),
        behaviour_logp_NT=jnp.zeros((rows, max_tokens), jnp.float32),
        support_NTK=jnp.zeros((rows, max_tokens, 0), jnp.int32),
        truncated_N=jnp.zeros(rows, bool),
    )


def make_imitation(
    section: Imitation, policy: Policy, plans: Sequence[TurnPlan], mesh: sharding.Mesh | None = None
) -> tuple[Callable[[Params], ImitationState], Callable[[ImitationState, Rollout], tuple[ImitationState, jax.Array]]]:
    """Make init(params) and the jitted update(state, rollout), which gives the next state and the loss.

    The rollout is one demonstrated transcript a problem; the loss is the mean negative log-probability of its tokens
    over all turns, nats.

    Args:
      section: of the config.
      policy: whose weights are all trained.
      plans: the turns.
      mesh: over which weights and problems are laid; None for one device.

    Returns:
      init and update; the update gives up the buffers of the state it is given.
    """
    schedule = optax.cosine_decay_schedule(section.learning_rate, section.updates)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    fan_out = (1,) * len(plans)

    def compute_loss(params: Params, rollout: Rollout, tokens: jax.Array) -> jax.Array:
        total = jnp.float32(0.0)
        for turn, plan in enumerate(plans):
            if plan.is_environment:
                continue
            model = make_model(policy, Weights(params, {}), plan.role)
            spoken = [forward.Spoken(turn, rollout, fan_out)]
            [(hidden_BD, drawn)] = forward.compute_drawn_tokens(model, plans, spoken)
            arguments = (lambda logp_B, *_: (-logp_B, {}), _PLAIN, model.spec.dtype)
            softcap = model.spec.logit_softcap
            total += compute_token_loss(hidden_BD, model.head_weight(), drawn, (), *arguments, softcap=softcap)[0]
        return total / tokens

    differentiate = sharding.value_and_grad(mesh, compute_loss, (sharding.CUT, sharding.WHOLE))

    def update(state: ImitationState, rollout: Rollout) -> tuple[ImitationState, jax.Array]:
        tokens = sum(jnp.sum(messages.sampled_NT) for messages in rollout.turns)
        loss, gradient = differentiate(state.params, rollout, tokens)
        changes, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, changes)
        return sharding.shard_state(mesh, ImitationState(params, opt_state)), sharding.replicate(mesh, loss)

    return lambda params: ImitationState(params, optimiser.init(params)), jax.jit(update, donate_argnums=0)
