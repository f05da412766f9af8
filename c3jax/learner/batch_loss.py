"""The loss of a step's trees: what each credited message adds to it, and what the weighted sums are divided by.

Dimension key beside types.py: none of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from c3jax.config.run import Learner, Sampling
from c3jax.credit.plans import FanOut, Plan, list_branches, list_credited
from c3jax.learner import forward, losses
from c3jax.learner.objective import Objective, TokenTerms, TurnTokens, compute_turns_loss
from c3jax.learner.signal import find_signal
from c3jax.models.decoder import Decoder
from c3jax.models.policy import Policy, Weights, list_networks, make_joint_model
from c3jax.protocol import TurnPlan
from c3jax.types import Credit, Rollout

Figures = dict[str, jax.Array]


class LossSetting(NamedTuple):
    """What is fixed for the loss of a step; static."""

    learner: Learner
    sampling: Sampling
    policy: Policy
    plans: tuple[TurnPlan, ...]
    objective: Objective
    problems: int
    plan: Plan

    @property
    def trained(self) -> tuple[int, ...]:
        """Indices of the turns whose messages are learned from."""
        return tuple(turn for turn, plan in enumerate(self.plans) if plan.is_trained)

    def list_spoken(self, weights: Weights, rollouts: Sequence[Rollout]) -> list[list[forward.Spoken]]:
        """The messages that are learned from, those of one network together.

        Args:
          weights: of the policy.
          rollouts: the plan's branches that hold credited messages.
        """
        roles = [self.plans[turn].role for turn in self.trained]
        networks = list_networks(self.policy, weights, roles)
        spoken = [forward.Spoken(turn, *self.find_tree(rollouts, turn)) for turn in self.trained]
        return [[spoken[index] for index in indices] for indices in networks]

    def make_network(self, weights: Weights, spoken: Sequence[forward.Spoken]) -> tuple[Decoder, list[int] | None]:
        """The network of messages that `list_spoken` puts together, and which of its adapters each turn has.

        Args:
          weights: of the policy.
          spoken: an entry of that list.
        """
        return make_joint_model(self.policy, weights, [self.plans[each.turn].role for each in spoken])

    def find_tree(self, rollouts: Sequence[Rollout], turn: int) -> tuple[Rollout, FanOut]:
        """The branch that holds the credited messages of a turn, and its fan-out.

        Args:
          rollouts: as for `list_spoken`.
          turn: of the protocol, from 0.
        """
        branch = list_credited(self.plan)[turn]
        return rollouts[branch], list_branches(self.plan)[branch].fan_out

    @property
    def micro(self) -> int:
        """Problems in memory at once."""
        return self.learner.micro_problems or self.problems // self.learner.minibatches


class Batch(NamedTuple):
    """A step's trees with what the loss needs of each credited message; a tuple entry a turn, rows in path order."""

    rollouts: tuple[Rollout, ...]  # a branch each
    advantage: tuple[jax.Array, ...]  # [N]
    reference_logp: tuple[jax.Array, ...]  # [N, T]; empty where the loss has no divergence
    has_signal: tuple[jax.Array, ...]  # [N], whether the message's tree has any credit; empty where all are kept


class Totals(NamedTuple):
    """What the weighted sums of a minibatch are divided by."""

    loss: jax.Array
    share: jax.Array | None  # for figures that are means over all trees' tokens; None where it is the loss's


def make_batch(setting: LossSetting, rollouts: tuple[Rollout, ...], credit: Credit) -> Batch:
    """A step's trees with their credit; without reference log-probabilities.

    Args:
      setting: static.
      rollouts: the plan's branches that hold credited messages.
      credit: [P, N] per turn.
    """
    advantage = tuple(advantage_PN.reshape(-1) for advantage_PN in credit.advantage)
    if setting.learner.zero_signal == "keep":
        return Batch(rollouts, advantage, (), ())
    has_signal_P = find_signal(credit, setting.trained)
    has_signal = tuple(jnp.repeat(has_signal_P, advantage_PN.shape[1]) for advantage_PN in credit.advantage)
    return Batch(rollouts, advantage, (), has_signal)


def compute_loss(
    setting: LossSetting, weights: Weights, batch: Batch, kl_coefficient: jax.Array, totals: Totals
) -> tuple[jax.Array, Figures]:
    """This micro-batch's share of the minibatch's loss and figures.

    Args:
      setting: static.
      weights: that are differentiated by, and the frozen ones.
      batch: the micro-batch.
      kl_coefficient: of the divergence, where the batch has reference log-probabilities.
      totals: of the minibatch.
    """
    parts = []
    for spoken in setting.list_spoken(weights, batch.rollouts):
        model, adapters = setting.make_network(weights, spoken)
        drawn = forward.compute_drawn_tokens(model, setting.plans, spoken, adapters)
        turns = [
            TurnTokens(*tokens, _make_terms(setting, batch, turn, kl_coefficient, totals), len(batch.advantage[turn]))
            for tokens, (turn, *_) in zip(drawn, spoken, strict=True)
        ]
        how = (setting.sampling, model.spec.dtype, model.spec.logit_softcap)
        parts.append(compute_turns_loss(setting.objective, turns, model.head_weight(), *how))
    return jax.tree.map(lambda *sums: sum(sums), *parts)


def _make_terms(setting: LossSetting, batch: Batch, turn: int, kl_coefficient: jax.Array, totals: Totals) -> TokenTerms:
    """What the loss reads of each token of a turn, message after message."""
    messages = setting.find_tree(batch.rollouts, turn)[0].turns[turn]
    spread = functools.partial(jnp.broadcast_to, shape=messages.tokens_NT.shape)
    weight_NT = _weigh(setting, batch, turn)
    terms = TokenTerms(
        messages.behaviour_logp_NT,
        spread(batch.advantage[turn][:, None]),
        batch.reference_logp[turn] if batch.reference_logp else None,
        spread(kl_coefficient),
        weight_NT / totals.loss,
        None if totals.share is None else _weigh(setting, batch._replace(has_signal=()), turn) / totals.share,
    )
    return jax.tree.map(forward.flatten_tokens, terms)


def add_weights(setting: LossSetting, batch: Batch) -> Totals:
    """What the weighted sums of a minibatch are divided by.

    Args:
      setting: static.
      batch: all of the minibatch.
    """
    aggregation = setting.objective.aggregation
    weights = [_weigh(setting, batch, turn) for turn in setting.trained]
    total: Any = sum(losses.compute_total(weight_NT, aggregation) for weight_NT in weights)
    if aggregation != "constant" and not batch.has_signal:
        return Totals(total, None)
    share: Any = sum(_weigh(setting, batch._replace(has_signal=()), turn).sum() for turn in setting.trained)
    # A minibatch without any signal has a loss and a gradient of zero.
    return Totals(jnp.where(total > 0, total, 1.0) if batch.has_signal else total, share)


def _weigh(setting: LossSetting, batch: Batch, turn: int) -> jax.Array:
    messages, objective = setting.find_tree(batch.rollouts, turn)[0].turns[turn], setting.objective
    trained_NT = forward.find_trained(setting.plans[turn], messages)
    if batch.has_signal:
        trained_NT = trained_NT & batch.has_signal[turn][:, None]
    length = objective.length or setting.plans[turn].max_tokens
    return losses.compute_weights(trained_NT, objective.aggregation, length)
