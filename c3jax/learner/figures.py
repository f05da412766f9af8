"""What a step's trees and their credit look like, as figures of metrics.jsonl: cheap, and without another pass.

Dimension key beside types.py: C context of a turn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.credit.apply import zero_credit_share
from c3jax.credit.plans import Plan, list_branches, list_credited
from c3jax.learner.state import TrainState
from c3jax.models import sharding
from c3jax.protocol import TurnPlan
from c3jax.rollout.tree import RolloutCounts
from c3jax.types import Credit, Rollout, Verdict, VerdictName


class TurnCounts(NamedTuple):
    """Of the credited messages of each turn: [turns], int32."""

    messages: jax.Array
    tokens: jax.Array  # drawn, stop tokens included
    truncated: jax.Array  # messages that met the token limit
    later: jax.Array  # messages that are not the first of their context
    duplicates: jax.Array  # of these, those with the tokens of an earlier alternative


@functools.partial(jax.jit, static_argnames=("plan", "mesh"))
def count_turns(rollouts: tuple[Rollout, ...], plan: Plan, mesh: sharding.Mesh | None) -> TurnCounts:
    """Count the credited messages of every turn, their tokens, and how many repeat another.

    Args:
      rollouts: the plan's branches that hold credited messages, as the update takes them.
      plan: what was drawn; static.
      mesh: over which the trees are laid; static.
    """
    branches, counts = list_branches(plan), []
    for turn, branch in enumerate(list_credited(plan)):
        messages, alternatives = rollouts[branch].turns[turn], branches[branch].fan_out[turn]
        token_NT = jnp.where(messages.sampled_NT, messages.tokens_NT, -1)
        token_CKT = token_NT.reshape(-1, alternatives, token_NT.shape[1])
        is_same_CKK = (token_CKT[:, :, None] == token_CKT[:, None]).all(axis=-1)
        is_earlier_KK = jnp.tril(jnp.ones((alternatives, alternatives), bool), -1)
        duplicates = (is_same_CKK & is_earlier_KK).any(axis=-1).sum()
        number, contexts = len(token_NT), len(token_CKT)
        counts.append((number, messages.sampled_NT.sum(), messages.truncated_N.sum(), number - contexts, duplicates))
    columns = (jnp.stack([jnp.asarray(value, jnp.int32) for value in column]) for column in zip(*counts, strict=True))
    return sharding.replicate(mesh, TurnCounts(*columns))


def describe_cost(plans: Sequence[TurnPlan], counts: RolloutCounts) -> dict[str, float]:
    """What the drawing of a step cost, of all messages that were drawn.

    Args:
      plans: of the turns.
      counts: of all calls together.
    """
    messages, generated = int(counts.messages), int(counts.generated)
    return {
        "truncated_share": int(counts.truncated) / messages,
        **({"hidden_share": int(counts.hidden) / messages} if any(plan.markers for plan in plans) else {}),
        "message_tokens": generated / messages,
        "messages": messages,
        "generated_tokens": generated,
        "prefilled_tokens": int(counts.prefilled),
    }


def describe_state(state: TrainState) -> dict[str, int]:
    """Updates that were skipped up to a step, of the policy and of a critic."""
    figures = {"bad_updates": int(state.bad_updates), "bad_in_row": int(state.bad_in_row)}
    if state.critic is None:
        return figures
    critic = {"bad_updates": int(state.critic.bad_updates), "bad_in_row": int(state.critic.bad_in_row)}
    return figures | {f"critic_{name}": count for name, count in critic.items()}


def describe_turns(plans: Sequence[TurnPlan], counts: TurnCounts) -> dict[str, float]:
    """Each turn's message length, truncated share and, where it has alternatives, the share of duplicates.

    Args:
      plans: of the turns.
      counts: of the same step.

    Returns:
      Figures by name, the share of duplicates of the trained turns together among them.
    """
    counted, row = jax.tree.map(np.asarray, counts), {}
    trained = np.array([plan.is_trained for plan in plans])
    for turn, plan in enumerate(plans):
        messages, tokens, truncated, later, duplicates = (int(column[turn]) for column in counted)
        row[f"message_tokens_{plan.name}"] = tokens / messages
        row[f"truncated_share_{plan.name}"] = truncated / messages
        if later:
            row[f"duplicate_share_{plan.name}"] = duplicates / later
    later = int(counted.later[trained].sum())
    return row | ({"duplicate_share": int(counted.duplicates[trained].sum()) / later} if later else {})


def describe_credit(plans: Sequence[TurnPlan], credit: Credit) -> dict[str, float]:
    """How far the trained turns' advantages spread, and how many are exactly 0.

    Args:
      plans: of the turns.
      credit: of a step's messages.

    Returns:
      Figures by name: of the trained turns together (the share: the mean over turns), and of each turn.
    """
    advantages = {
        plan.name: np.asarray(advantage_PN, np.float64).ravel()
        for plan, advantage_PN in zip(plans, credit.advantage, strict=True)
        if plan.is_trained
    }
    zero_share = np.asarray(zero_credit_share(credit))
    row = {
        "advantage_std": float(np.std(np.concatenate([*advantages.values()]))),
        "zero_credit_share": float(zero_share[[plan.is_trained for plan in plans]].mean()),
    }
    row |= {f"advantage_std_{name}": float(np.std(advantage)) for name, advantage in advantages.items()}
    return row | {f"zero_credit_share_{plan.name}": float(z) for plan, z in zip(plans, zero_share, strict=True)}


def describe_verdicts(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The mean return of a step's leaves, and the share of every verdict.

    Args:
      verdicts: of all leaves, one or more.

    Returns:
      Figures by name.
    """
    names = [verdict.verdict for verdict in verdicts]
    return {
        "return": sum(verdict.score for verdict in verdicts) / len(verdicts),
        "return_partial": sum(verdict.score for verdict in verdicts if verdict.verdict == "partial") / len(verdicts),
        **{f"{name}_share": names.count(name) / len(names) for name in get_args(VerdictName)},
        "failed_share": (names.count("timeout") + names.count("error")) / len(names),
    }


def describe_sets(names: Sequence[str], set_P: np.ndarray, return_PL: np.ndarray) -> dict[str, Any]:
    """Where several sets are mixed: how many problems of each a step had, and their mean return.

    Args:
      names: of the sets.
      set_P: each problem's set, by its index among them.
      return_PL: of the leaves, in units of return.
    """
    if len(names) == 1:
        return {}
    row: dict[str, Any] = {}
    for index, name in enumerate(names):
        return_SL = return_PL[set_P == index]
        row |= {f"problems_{name}": len(return_SL)} | ({f"return_{name}": return_SL.mean()} if len(return_SL) else {})
    return row
