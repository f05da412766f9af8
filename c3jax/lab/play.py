"""Playing a game under a sampling plan: the messages that get credit, and the returns of the plan's leaves.

Everything is drawn from the policy given, which is the behaviour policy. Leaves and credited messages are in the order
that credit/plans.py documents. One problem at a time: vmap over games and keys for many.

Randomness is an address: a draw's key is folded from the problem's key by block * (K + 1) + slot, where slot is the
turn, or K for evaluator calls. Blocks: 0 for a tree, and for the episodes and all evaluator calls of the forms made of
episodes; u for all that replay and best_branch draw at turn u; 1 + the subset's number for coalition; 1 + u for what
the others draw again for turn u.

Dimension key: N row    K turn    M message of a turn    L leaf    E episode    S subset of turns    X leaf of one block
    J alternative
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.credit.plans import Plan, make_flat
from c3jax.lab.games import Game, GameShape, find_answer, sample_return
from c3jax.lab.policies import GamePolicy, Params


class Sample(NamedTuple):
    """One problem's draws under a plan. Tuples have an entry a turn, whose rows are the turn's credited messages."""

    prefix: tuple[jax.Array, ...]  # [N_u, K] int32: messages before the credited one, 0 from turn u on
    message: tuple[jax.Array, ...]  # [N_u] int32
    gradient: tuple[jax.Array, ...]  # [N_u] f32: |d log pi / d logits|^2 of the credited message
    likelihood: tuple[jax.Array, ...]  # [N_u] f32: of the right answer as the last message, null messages after prefix
    return_L: jax.Array  # f32, in units of return
    transcript_LK: jax.Array  # int32: what each evaluator call judged


class _Team(NamedTuple):
    shape: GameShape
    game: Game
    policy: GamePolicy
    params: Params


class _Spoken(NamedTuple):
    message_N: jax.Array
    gradient_N: jax.Array
    transcript_NK: jax.Array  # the prefix with the message at its turn


def sample_plan(shape: GameShape, game: Game, policy: GamePolicy, params: Params, plan: Plan, key: jax.Array) -> Sample:
    """Draw what the plan asks for one problem, and judge its leaves.

    Args:
      shape, policy, plan: static.
      game: one problem.
      params: of the policy.
      key: the problem's; the same key gives the same messages whatever is vmapped round it.

    Raises:
      ValueError: if the plan is for another number of turns.
    """
    if plan.turns != len(shape.messages):
        raise ValueError(f"plan: expected {len(shape.messages)} turns, those of the game, got {plan.turns}")
    team = _Team(shape, game, policy, params)
    if plan.form in ("replay", "best_branch"):
        return _sample_replay(team, plan, key)
    fan_out = plan.fan_out if plan.form == "tree" else make_flat(plan.episodes, plan.turns).fan_out
    spoken, prefix = _sample_tree(team, fan_out, key)
    transcript_LK = _add_leaves(team, plan, spoken[-1].transcript_NK, key)
    return_L = sample_return(shape, game, transcript_LK, _fold_key(team, key, 0, plan.turns))
    return _make_sample(team, prefix, spoken, return_L, transcript_LK)


def _sample_tree(team: _Team, fan_out: tuple[int, ...], key: jax.Array) -> tuple[list[_Spoken], list[jax.Array]]:
    transcript_NK = jnp.zeros((1, len(fan_out)), jnp.int32)
    spoken, prefix = [], []
    for turn, fan in enumerate(fan_out):
        prefix.append(jnp.repeat(transcript_NK, fan, axis=0))
        spoken.append(_speak(team, prefix[-1], turn, _fold_key(team, key, 0, turn)))
        transcript_NK = spoken[-1].transcript_NK
    return spoken, prefix


def _add_leaves(team: _Team, plan: Plan, episode_EK: jax.Array, key: jax.Array) -> jax.Array:
    """The leaves of every form that starts from a tree or from episodes: those, and what else is judged."""
    turns = range(plan.turns)
    if plan.form == "tree":
        return episode_EK
    last = plan.turns - 1
    if plan.form == "coalition":
        is_kept_SK = (np.arange(2**plan.turns)[:, None] >> np.arange(plan.turns)) % 2 == 1
        left_ESK = jnp.where(is_kept_SK, episode_EK[:, None], 0)
        for subset in range(2**last, 2**plan.turns - 1) if plan.answers_again else ():
            left_ESK = left_ESK.at[:, subset].set(_speak_from(team, left_ESK[:, subset], last, key, 1 + subset))
        return left_ESK.reshape(-1, plan.turns)
    if plan.form == "auxiliary":
        # Before the first turn all episodes share one context, the problem's.
        starts = [jnp.repeat(episode_EK[: 1 if turn == 0 else None], plan.repeats, axis=0) for turn in turns]
        more = [_speak_from(team, starts[turn], turn, key, 1 + turn) for turn in turns]
    else:
        speaks_on = plan.form in ("removal", "first_removal")
        removed = range(1) if plan.form == "first_removal" else turns
        more = [_put_message(episode_EK, turn, jnp.zeros((), jnp.int32)) for turn in removed]
        if speaks_on or plan.answers_again:
            first = [turn + 1 if speaks_on or turn == last else last for turn in turns]
            more = [_speak_from(team, more[turn], first[turn], key, 1 + turn) for turn in removed]
    return jnp.concatenate([episode_EK, *more])


def _sample_replay(team: _Team, plan: Plan, key: jax.Array) -> Sample:
    n, counts_J = len(plan.counts), np.array(plan.counts)
    is_own_JX = np.repeat(np.eye(n, dtype=np.float32), counts_J, axis=1)
    reference_K = jnp.zeros(plan.turns, jnp.int32)
    spoken, prefix, returns, transcripts = [], [], [], []
    for turn in range(plan.turns):
        prefix.append(jnp.tile(reference_K, (n, 1)))
        spoken.append(_speak(team, prefix[-1], turn, _fold_key(team, key, turn, turn)))
        start_XK = spoken[-1].transcript_NK[np.repeat(np.arange(n), counts_J)]
        transcripts.append(_speak_from(team, start_XK, turn + 1, key, turn))
        evaluator_key = _fold_key(team, key, turn, plan.turns)
        returns.append(sample_return(team.shape, team.game, transcripts[-1], evaluator_key))
        best = 0
        if plan.form == "best_branch":
            mean_J = jnp.dot(is_own_JX, returns[-1], precision=jax.lax.Precision.HIGHEST) / counts_J
            best = jnp.argmax(mean_J)  # the first of equals
        reference_K = spoken[-1].transcript_NK[best]
    return _make_sample(team, prefix, spoken, jnp.concatenate(returns), jnp.concatenate(transcripts))


def _speak_from(team: _Team, transcript_NK: jax.Array, first: int, key: jax.Array, block: int) -> jax.Array:
    """Turns `first` and later speak (again) after what came before them; their earlier messages are not read."""
    for turn in range(first, len(team.shape.messages)):
        transcript_NK = _speak(team, transcript_NK, turn, _fold_key(team, key, block, turn)).transcript_NK
    return transcript_NK


def _speak(team: _Team, prefix_NK: jax.Array, turn: int, key: jax.Array) -> _Spoken:
    logits_NM = team.policy.logits(team.params, team.game, turn, prefix_NK)
    message_N = jax.random.categorical(key, logits_NM).astype(jnp.int32)
    logp_NM = jax.nn.log_softmax(logits_NM)
    is_drawn_NM = np.arange(logp_NM.shape[1]) == message_N[:, None]
    gradient_N = jnp.square(jnp.where(is_drawn_NM, jnp.expm1(logp_NM), jnp.exp(logp_NM))).sum(axis=1)
    return _Spoken(message_N, gradient_N, _put_message(prefix_NK, turn, message_N[:, None]))


def _put_message(transcript_NK: jax.Array, turn: int, message_N1: jax.Array) -> jax.Array:
    # A select and not a scatter: it fuses with its neighbours, and scatters are slow on CPU.
    return jnp.where(np.arange(transcript_NK.shape[1]) == turn, message_N1, transcript_NK)


def _fold_key(team: _Team, key: jax.Array, block: int, slot: int) -> jax.Array:
    return jax.random.fold_in(key, block * (len(team.shape.messages) + 1) + slot)


def _read_answer(team: _Team, prefix_NK: jax.Array) -> jax.Array:
    last = len(team.shape.messages) - 1
    chance_NM = jax.nn.softmax(team.policy.logits(team.params, team.game, last, prefix_NK))
    return chance_NM[:, find_answer(team.shape, team.game)]


def _make_sample(
    team: _Team, prefix: list[jax.Array], spoken: list[_Spoken], return_L: jax.Array, transcript_LK: jax.Array
) -> Sample:
    return Sample(
        prefix=tuple(prefix),
        message=tuple(each.message_N for each in spoken),
        gradient=tuple(each.gradient_N for each in spoken),
        likelihood=tuple(_read_answer(team, prefix_NK) for prefix_NK in prefix),
        return_L=return_L,
        transcript_LK=transcript_LK,
    )
