"""What a decoder makes of whole messages and of contexts, by the same forward pass that drew them.

Dimension key beside types.py: M row of a context's finest frame, B token of a turn's messages, message after message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.config.run import Sampling
from c3jax.learner.token_loss import DrawnTokens
from c3jax.models.decoder import Decoder
from c3jax.protocol import TurnPlan
from c3jax.rollout import context, decode
from c3jax.rollout import sampling as sampling_lib
from c3jax.types import Frame, Messages, Rollout


class Spoken(NamedTuple):
    """The messages of one turn, in the trees that hold them."""

    turn: int
    rollout: Rollout
    fan_out: Sequence[int]

    def make_path(self, plans: Sequence[TurnPlan]) -> tuple[Frame, ...]:
        """The frames of the turn's contexts, coarse to fine."""
        return context.make_path(plans[self.turn], self.rollout.question, self.rollout.turns, self.fan_out)

    @property
    def messages(self) -> Messages:
        """The turn's own."""
        return self.rollout.turns[self.turn]


def compute_turns_logp(
    model: Decoder,
    plans: Sequence[TurnPlan],
    spoken: Sequence[Spoken],
    sampling: Sampling,
    adapters: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Log-probabilities of turns' messages under a network, in one pass.

    Args:
      model: the network of the turns' roles.
      plans: the turns.
      spoken: the turns' messages.
      sampling: how they were drawn.
      adapters: which of the network's each turn has, where it has several.

    Returns:
      logp_NT of each turn, nats; slots that were not sampled hold junk.
    """
    paths = [each.make_path(plans) for each in spoken]
    return _compute_logp(model, paths, [each.messages for each in spoken], sampling, adapters)


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
    return _compute_logp(model, [path], [messages], sampling)[0]


def _compute_logp(
    model: Decoder,
    paths: Sequence[Sequence[Frame]],
    messages: Sequence[Messages],
    sampling: Sampling,
    adapters: Sequence[int] | None = None,
) -> list[jax.Array]:
    hidden_BD = join_tokens(list(map(flatten_tokens, _compute_drawing_hidden(model, paths, messages, adapters))))
    tokens = [(each.tokens_NT, each.support_NTK) for each in messages]
    token_B, support_BK = join_tokens([jax.tree.map(flatten_tokens, each) for each in tokens])
    logp_B = sampling_lib.compute_token_logp(
        hidden_BD,
        token_B,
        support_BK,
        model.head_weight(),
        sampling,
        model.spec.dtype,
        softcap=model.spec.logit_softcap,
    )
    ends = np.cumsum([each.tokens_NT.size for each in messages])
    parts = jnp.split(logp_B, ends[:-1])
    return [part.reshape(each.tokens_NT.shape) for part, each in zip(parts, messages, strict=True)]


def compute_drawn_tokens(
    model: Decoder, plans: Sequence[TurnPlan], spoken: Sequence[Spoken], adapters: Sequence[int] | None = None
) -> list[tuple[jax.Array, DrawnTokens]]:
    """Tokens of some turns' messages, message after message, and the hidden states that they are drawn from.

    Args:
      model: the network of the turns' roles; all turns pass through it together.
      plans: the turns.
      spoken: the messages.
      adapters: which of the network's each turn has, where it has several.

    Returns:
      Of each turn hidden_BD and the tokens, B = N * T of them.
    """
    paths = [each.make_path(plans) for each in spoken]
    hidden = _compute_drawing_hidden(model, paths, [each.messages for each in spoken], adapters)
    parts = []
    for each, hidden_NTD in zip(spoken, hidden, strict=True):
        is_trained_NT = find_trained(plans[each.turn], each.messages)
        drawn = DrawnTokens(each.messages.tokens_NT, each.messages.support_NTK, is_trained_NT)
        parts.append((flatten_tokens(hidden_NTD), jax.tree.map(flatten_tokens, drawn)))
    return parts


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


def join_tokens(parts: Sequence[Any]) -> Any:
    """Trees of arrays [B, ...] of several turns as one, the turns' tokens one after the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts) if len(parts) > 1 else parts[0]


def _compute_drawing_hidden(
    model: Decoder,
    paths: Sequence[Sequence[Frame]],
    messages: Sequence[Messages],
    adapters: Sequence[int] | None,
) -> list[jax.Array]:
    """The hidden state [N, T, D] that each token is drawn from: the one a slot before it, or the context's last."""
    drawing = []
    for *_, context_MSD, hidden_NTD in _run(model, paths, messages, adapters):
        # A context ends in prompt text, so its last slot is kept.
        first_N1D = jnp.repeat(context_MSD[:, -1:], len(hidden_NTD) // len(context_MSD), axis=0)
        drawing.append(jnp.concatenate([first_N1D, hidden_NTD[:, :-1]], axis=1))
    return drawing


def _run(
    model: Decoder,
    paths: Sequence[Sequence[Frame]],
    messages: Sequence[Messages],
    adapters: Sequence[int] | None = None,
) -> list[tuple[jax.Array, ...]]:
    """Hidden states of contexts' frames and of the messages after each context."""
    # A message's own tokens are all read, whatever part of it others read; after a stop token nothing is drawn.
    spoken = [Frame(each.tokens_NT, each.sampled_NT) for each in messages]
    whole = [(*path, own) for path, own in zip(paths, spoken, strict=True)]
    return model.extend_paths((), whole, adapters=adapters)[0]


def compute_context_hidden(
    model: Decoder, plans: Sequence[TurnPlan], turn: int, rollout: Rollout, fan_out: Sequence[int]
) -> jax.Array:
    """Last hidden state of each of one turn's messages' contexts; nothing of the message is read.

    Args:
      model, plans: as for `compute_turns_logp`.
      turn, rollout, fan_out: the messages, in the trees that hold them.

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
      model, plans: as for `compute_turns_logp`.
      turn, rollout, fan_out: the messages, in the trees that hold them.

    Returns:
      hidden_ND, f32.
    """
    path = context.make_path(plans[turn], rollout.question, rollout.turns, fan_out)
    messages = rollout.turns[turn]
    hidden_NTD = _run(model, [path], [messages])[0][-1]
    last_N = messages.sampled_NT.sum(axis=1) - 1
    return jnp.take_along_axis(hidden_NTD, last_N[:, None, None], axis=1)[:, 0]
