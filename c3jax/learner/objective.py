"""The loss of one turn's messages: a row of the table of losses, the divergence beside it, and their figures.

A token's loss is known from its own log-probability, so one pass over chunks of tokens gives it, its gradient and its
figures (`token_loss.py`). Where the loss is of whole messages, a pass before it finds every message's mean
log-probability l, the loss of that and its derivative; then a message's loss is, to first order, the mean over its T
tokens of loss(l) + loss'(l) (logp_t - logp_t held fixed), whose gradient is the message's: d l / d logp_t = 1 / T.

Dimension key beside types.py: B token of a turn's messages, message after message.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from c3jax.config.run import KL, PolicyLoss, Sampling
from c3jax.learner.forward import join_tokens
from c3jax.learner.loss_table import Aggregation, Level, LossFunction, find_loss
from c3jax.learner.losses import compute_cispo_loss, compute_clipped_loss, compute_divergence, compute_reinforce_loss
from c3jax.learner.token_loss import DrawnTokens, compute_token_loss
from c3jax.rollout import sampling as sampling_lib
from c3jax.schema import ConfigError

FORMULAS: dict[str, LossFunction] = {
    "clipped": compute_clipped_loss,
    "cispo": compute_cispo_loss,
    "reinforce": compute_reinforce_loss,
}


class Objective(NamedTuple):
    """What is minimised: a loss with its numbers filled in, a divergence and an entropy bonus."""

    level: Level
    formula: LossFunction
    clip_low: float
    clip_high: float
    aggregation: Aggregation
    length: int | None  # constant: tokens that a message's sum is divided by; None: the turn's most
    estimator: Literal["k1", "k3"]
    entropy: float = 0.0  # weight of the bonus


class MessageLoss(NamedTuple):
    """What a loss of whole messages says of each of their tokens; [B], no gradient."""

    loss: jax.Array
    slope: jax.Array  # of the loss by the message's mean log-probability
    is_clipped: jax.Array


class TokenTerms(NamedTuple):
    """What the loss of each token reads beside its log-probability; [B], f32."""

    behaviour_logp: jax.Array  # nats
    advantage: jax.Array  # its message's
    reference_logp: jax.Array | None  # nats; None where the loss has no divergence
    kl_coefficient: jax.Array
    weight: jax.Array  # share of the whole loss
    share: jax.Array | None = None  # of the figures that are means; None where it is the weight
    message: MessageLoss | None = None  # None where the loss is of tokens


def make_objective(loss: PolicyLoss, kl: KL, entropy: float = 0.0) -> Objective:
    """The objective that a config asks for.

    Args:
      loss: section of the config; the numbers that it leaves open are the row's.
      kl: section of the config.
      entropy: weight of the entropy bonus.

    Raises:
      ConfigError: as `loss_table.find_loss`, and where a user's formula raises or gives no losses.
    """
    row = find_loss(loss.kind)
    low = row.clip_low if loss.clip_low is None else loss.clip_low
    high = row.clip_high if loss.clip_high is None else loss.clip_high
    formula = row.formula if callable(row.formula) else FORMULAS[row.formula]
    if loss.dual_clip is not None:
        formula = functools.partial(formula, dual_clip=loss.dual_clip)
    objective = Objective(
        level=row.level,
        formula=formula,
        clip_low=math.inf if low is None else low,
        clip_high=math.inf if high is None else high,
        aggregation=loss.aggregation or row.aggregation,
        length=loss.length,
        estimator=kl.estimator,
        entropy=entropy,
    )
    _check_formula(loss.kind, objective)
    return objective


def _check_formula(kind: str, objective: Objective) -> None:
    """A user's function may raise, or give anything."""
    of_three = jax.ShapeDtypeStruct((3,), jnp.float32)
    bounds = {"clip_low": objective.clip_low, "clip_high": objective.clip_high}
    try:
        made = jax.eval_shape(functools.partial(objective.formula, **bounds), of_three, of_three, of_three)
    except Exception as error:
        raise ConfigError(f"learner.loss.kind: {kind} raised {type(error).__name__} ({error})") from error
    got = [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(made)]
    if not isinstance(made, tuple) or got != [((3,), "float32"), ((3,), "bool")]:
        raise ConfigError(
            f"learner.loss.kind: expected of {kind}, for 3 tokens, 3 losses of float32 and 3 of bool, whether each is"
            f" clipped, got {got}"
        )


class TurnTokens(NamedTuple):
    """Tokens of a turn's messages, message after message."""

    hidden_BD: jax.Array  # the states that they are drawn from
    drawn: DrawnTokens
    terms: TokenTerms  # what the loss reads beside their log-probabilities
    messages: int  # their number, all of one number of slots


def compute_turns_loss(
    objective: Objective,
    turns: Sequence[TurnTokens],
    head_VD: jax.Array,
    sampling: Sampling,
    dtype: str,
    softcap: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the messages of turns that one network speaks, weighted as the terms say, and its figures.

    All tokens are in one pass over the head, so there is one sum of its gradient.

    Args:
      objective: static.
      turns: the messages.
      head_VD: output weights.
      sampling: how they were drawn.
      dtype: of the products.
      softcap: of the logits, as the decoder has it.

    Returns:
      The loss, and by name its sum and that of policy_loss, its first part; and the sums, by the terms' share, of
      clip_share, ratio_deviation (|ratio - 1| of tokens), kl and entropy (nats); figures have no gradient.
    """
    if objective.level == "message":
        how = functools.partial(sampling_lib.compute_token_logp, sampling=sampling, dtype=dtype, softcap=softcap)
        turns = [_add_message_loss(objective, turn, head_VD, how) for turn in turns]
    hidden_BD, drawn, terms = join_tokens([turn[:3] for turn in turns])
    loss_fn = functools.partial(compute_token_figures, objective)
    options = {"softcap": softcap, "has_entropy": objective.entropy > 0}
    return compute_token_loss(hidden_BD, head_VD, drawn, terms, loss_fn, sampling, dtype, **options)


def _add_message_loss(
    objective: Objective, turn: TurnTokens, head_VD: jax.Array, compute_logp: Callable[..., jax.Array]
) -> TurnTokens:
    hidden_BD, drawn, terms, messages = turn
    fixed = jax.lax.stop_gradient((hidden_BD, drawn.token_B, drawn.support_BK, head_VD))
    loss = compute_message_loss(objective, compute_logp(*fixed), drawn.is_drawn_B, terms, messages)
    return turn._replace(terms=terms._replace(message=loss))


def compute_message_loss(
    objective: Objective, logp_B: jax.Array, is_drawn_B: jax.Array, terms: TokenTerms, messages: int
) -> MessageLoss:
    """The loss of each whole message, and its derivative by the mean log-probability of the message's tokens.

    Args:
      objective: static.
      logp_B: log-probabilities of the tokens, nats; junk where nothing was drawn.
      is_drawn_B: which were drawn.
      terms: of the tokens; a message's advantage is the same in all of them.
      messages: their number.

    Returns:
      Of each token what its message has.
    """
    is_drawn_NT = is_drawn_B.reshape(messages, -1)
    slots, count_N = is_drawn_NT.shape[1], jnp.maximum(is_drawn_NT.sum(axis=1), 1)  # none of a hidden message's

    def mean(x_B: jax.Array) -> jax.Array:
        return jnp.where(is_drawn_NT, x_B.reshape(messages, -1), 0.0).sum(axis=1) / count_N

    def compute(logp_N: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        behaviour_N, advantage_N = mean(terms.behaviour_logp), terms.advantage.reshape(messages, -1)[:, 0]
        loss_N, is_clipped_N = objective.formula(
            logp_N, behaviour_N, advantage_N, clip_low=objective.clip_low, clip_high=objective.clip_high
        )
        return loss_N.sum(), (loss_N, is_clipped_N)

    slope_N, (loss_N, is_clipped_N) = jax.grad(compute, has_aux=True)(mean(logp_B))
    return jax.tree.map(lambda x_N: jnp.repeat(x_N, slots), MessageLoss(loss_N, slope_N, is_clipped_N))


def compute_token_figures(
    objective: Objective, logp_B: jax.Array, entropy_B: jax.Array, terms: TokenTerms
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What each token adds to the loss and to its figures.

    Args:
      objective: static.
      logp_B: log-probability of the token, nats, by which the loss is differentiated.
      entropy_B: of what it is drawn from, nats; the loss is differentiated by it where there is a bonus.
      terms: what else is read.

    Returns:
      The loss [B], and by name the figures [B], all weighted: losses by the weight, means by the share.
    """
    if terms.message is None:
        policy_B, is_clipped_B = objective.formula(
            logp_B, terms.behaviour_logp, terms.advantage, clip_low=objective.clip_low, clip_high=objective.clip_high
        )
    else:
        message, is_clipped_B = terms.message, terms.message.is_clipped
        policy_B = message.loss + message.slope * (logp_B - jax.lax.stop_gradient(logp_B))
    share = terms.weight if terms.share is None else terms.share
    kl_B = jnp.zeros_like(logp_B)
    if terms.reference_logp is not None:
        kl_B = compute_divergence(logp_B, terms.reference_logp, objective.estimator)
    loss_B = terms.weight * (policy_B + terms.kl_coefficient * kl_B)
    if objective.entropy > 0:
        loss_B -= terms.weight * objective.entropy * entropy_B
    figures = {
        "policy_loss": terms.weight * policy_B,
        "clip_share": share * is_clipped_B.astype(jnp.float32),
        "ratio_deviation": share * jnp.abs(jnp.exp(logp_B - terms.behaviour_logp) - 1.0),
        "kl": share * kl_B,
        "entropy": share * entropy_B,
        "loss": loss_B,
    }
    return loss_B, figures
