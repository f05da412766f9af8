"""What a decoder makes of whole messages and of contexts, by the same forward pass that drew them.

Dimension key beside types.py: M row of a context's finest frame, B token of a turn's messages, message after message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from c3jax.config.run import Sampling
from c3jax.learner.token_loss import DrawnTokens
from c3jax.models.decoder import Decoder
from c3jax.protocol import TurnPlan
from c3jax.rollout import context, decode
from c3jax.rollout import sampling as sampling_lib
from c3jax.types import Frame, Messages, Rollout


def compute_turn_logp(
    model: Decoder, plans: Sequence[TurnPlan], turn: int, rollout: Rollout, fan_out: Sequence[int], sampling: Sampling
) -> jax.Array:
    """Log-probability of every token of one turn's messages in their contexts.

    Args:
      model: the network of the turn's role.
      plans: the turns.
      turn: which of them.
      rollout: the questions and messages.
      fan_out: alternatives a turn.
      sampling: how the messages were drawn: the log-probability is of that distribution.

    Returns:
      logp_NT, nats; slots that were not sampled hold junk.
    """
    path = context.make_path(plans[turn], rollout.question, rollout.turns, fan_out)
    return compute_message_logp(model, path, rollout.turns[turn], sampling)


def compute_message_logp(model: Decoder, path: Sequence[Frame], messages: Messages, sampling: Sampling) -> jax.Array:
    """Log-probability of every token of messages after a path of frames.

    Args:
      model: the network.
      path: the frames of the contexts, coarse to fine.
      messages: N of them.
      sampling: how they were drawn.

    Returns:
      logp_NT, nats; slots that were not sampled hold junk.
    """
    hidden_NTD = _compute_drawing_hidden(model, path, messages)
    N, T, D = hidden_NTD.shape
    logp_B = sampling_lib.compute_token_logp(
        hidden_NTD.reshape(N * T, D),
        messages.tokens_NT.reshape(-1),
        messages.support_NTK.reshape(N * T, -1),
        model.head_weight(),
        sampling,
        model.spec.dtype,
        softcap=model.spec.logit_softcap,
    )
    return logp_B.reshape(N, T)


def compute_drawn_tokens(
    model: Decoder, plans: Sequence[TurnPlan], turn: int, rollout: Rollout, fan_out: Sequence[int]
) -> tuple[jax.Array, DrawnTokens]:
    """Tokens of one turn's messages, message after message, and the hidden states that they are drawn from.

    Args:
      model, plans, turn, rollout, fan_out: as for `compute_turn_logp`.

    Returns:
      hidden_BD and the tokens, B = N * T of them.
    """
    messages = rollout.turns[turn]
    path = context.make_path(plans[turn], rollout.question, rollout.turns, fan_out)
    hidden_NTD = _compute_drawing_hidden(model, path, messages)
    drawn = DrawnTokens(messages.tokens_NT, messages.support_NTK, find_trained(plans[turn], messages))
    return flatten_tokens(hidden_NTD), jax.tree.map(flatten_tokens, drawn)


def find_trained(plan: TurnPlan, messages: Messages) -> jax.Array:
    """The tokens of a turn's messages that enter the loss.

    Args:
      plan: the turn.
      messages: of it.

    Returns:
      trained_NT, bool: all that were drawn, or the visible ones and the token that ends them, a stop token mostly.
    """
    sampled_NT, seen_NT = messages.sampled_NT, messages.content_NT
    if not plan.trains_visible:
        return sampled_NT
    follows_NT = jnp.pad(seen_NT[:, :-1], ((0, 0), (1, 0)))
    return sampled_NT & (seen_NT | follows_NT)


def flatten_tokens(array_NT: jax.Array) -> jax.Array:
    """An array [N, T, ...] as [N * T, ...]."""
    return array_NT.reshape(math.prod(array_NT.shape[:2]), *array_NT.shape[2:])


def _compute_drawing_hidden(model: Decoder, path: Sequence[Frame], messages: Messages) -> jax.Array:
    """The hidden state [N, T, D] that each token is drawn from: the one a slot before it, or the context's last."""
    *_, context_MSD, hidden_NTD = _run(model, path, messages)
    # A context ends in prompt text, so its last slot is kept.
    first_N1D = jnp.repeat(context_MSD[:, -1:], len(hidden_NTD) // len(context_MSD), axis=0)
    return jnp.concatenate([first_N1D, hidden_NTD[:, :-1]], axis=1)


def _run(model: Decoder, path: Sequence[Frame], messages: Messages) -> tuple[jax.Array, ...]:
    """Hidden states of a context's frames and of the messages after it."""
    # A message's own tokens are all read, whatever part of it others read; after a stop token nothing is drawn.
    return model.extend_path((), (*path, Frame(messages.tokens_NT, messages.sampled_NT)))[0]


def compute_context_hidden(
    model: Decoder, plans: Sequence[TurnPlan], turn: int, rollout: Rollout, fan_out: Sequence[int]
) -> jax.Array:
    """Last hidden state of each of one turn's messages' contexts; nothing of the message is read.

    Args:
      model, plans, turn, rollout, fan_out: as for `compute_turn_logp`.

    Returns:
      hidden_ND, f32.
    """
    path = context.make_path(plans[turn], rollout.question, rollout.turns, fan_out)
    _, hidden_MD = decode.prefill(model, path)
    N = rollout.turns[turn].tokens_NT.shape[0]
    return jnp.repeat(hidden_MD, N // hidden_MD.shape[0], axis=0)


def compute_message_hidden(
    model: Decoder, plans: Sequence[TurnPlan], turn: int, rollout: Rollout, fan_out: Sequence[int]
) -> jax.Array:
    """Hidden state after each of one turn's messages in its context, the stop token read too.

    Args:
      model, plans, turn, rollout, fan_out: as for `compute_turn_logp`.

    Returns:
      hidden_ND, f32.
    """
    path = context.make_path(plans[turn], rollout.question, rollout.turns, fan_out)
    messages = rollout.turns[turn]
    hidden_NTD = _run(model, path, messages)[-1]
    last_N = messages.sampled_NT.sum(axis=1) - 1
    return jnp.take_along_axis(hidden_NTD, last_N[:, None, None], axis=1)[:, 0]
