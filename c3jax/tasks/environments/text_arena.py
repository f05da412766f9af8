"""Games of the package TextArena: messages are moves, the answer is what the next player sees, the end a reward.

The team plays one or several of the players. A game is of one player, whose move is the last message, or its players
are named by their roles in order, and a message is a move where it is its role's turn; all other messages are talk.

Games draw from Python's and numpy's global generators. Both are seeded as an episode begins, and a worker process
leads one episode at a time, so a game is a function of its seed and the moves.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from c3jax.schema import ConfigError, expect
from c3jax.tasks.environment import Environment, Message, Observation, check_package
from c3jax.types import Problem

_NO_WORDS = "it downloads word lists of nltk as it begins"
_NO_MODEL = "a language model behind a web service plays or judges in it"
# Families of games, by their modules in TextArena 0.7.
REFUSED = {
    **dict.fromkeys(("Codenames", "DontSayIt", "Hangman", "LetterAuction", "SpellingBee"), _NO_WORDS),
    **dict.fromkeys(("WordChains", "WordLadder", "WordSearch", "Wordle"), _NO_WORDS),
    **dict.fromkeys(("Debate", "GuessWho", "ScenarioPlanning", "TwentyQuestions"), _NO_MODEL),
}
RewardOf = int | Literal["mean"]


class Game(NamedTuple):
    """The state of an episode."""

    env: Any  # of TextArena, which keeps the state itself
    players: tuple[str, ...]  # the role of each; empty: one player, the last to speak
    reward_of: RewardOf


def begin(
    problem: Problem, seed: int, game: str, players: Sequence[str] = (), reward_of: RewardOf | None = None
) -> Game:
    """Begin a game.

    Args:
      problem: says nothing to a game.
      seed: of all that is drawn in it.
      game: its id in TextArena's registry.
      players: the role of each player; empty for the one player of a game of one.
      reward_of: number of the player whose reward is the team's, or the mean over all players.
    """
    import textarena  # pyright: ignore[reportMissingImports]

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that some games use
    env = textarena.make(game)
    env.reset(num_players=max(len(players), 1), seed=seed)
    return Game(env, tuple(players), 0 if reward_of is None else reward_of)


def play(state: Game, messages: Sequence[Message]) -> Observation:
    """Make the moves and show the next player what it has not seen, or why the game is over."""
    env = state.env
    for message in messages if state.players else messages[-1:]:
        if state.players and message.role != state.players[env.state.current_player_id]:
            continue
        is_over, _ = env.step(action=message.text)
        if is_over:
            return _end(state)
    return Observation(_show(env))


def _show(env: Any) -> str:
    """What came to the next player since it last saw something, without its own moves and boards that have changed."""
    from textarena import GAME_ID, ObservationType  # pyright: ignore[reportMissingImports]

    own, seen, lines = env.state.current_player_id, env.state.get_current_player_observation(), []
    boards = [number for number, (_, _, kind) in enumerate(seen) if kind == ObservationType.GAME_BOARD]
    for number, (sender, text, kind) in enumerate(seen):
        is_old = number in boards[:-1] or (sender == own and kind == ObservationType.PLAYER_ACTION)
        if not is_old:
            name = "" if sender == GAME_ID else f"[{env.state.role_mapping.get(sender, f'Player {sender}')}] "
            lines.append(f"{name}{text}")
    return "\n".join(lines)


def _end(state: Game) -> Observation:
    rewards, of_players = state.env.close()
    rewards = rewards or {}  # of a game that ended without a result
    if state.reward_of == "mean":
        reward, player = sum(rewards.values()) / max(len(state.players), 1), 0
    else:
        reward, player = rewards.get(state.reward_of, 0.0), state.reward_of
    return Observation(str(of_players[player].get("reason") or "the game is over"), reward=float(reward), done=True)


def bind(settings: Mapping[str, Any], is_contained: bool) -> Environment:
    """Check, where a run is set up, that the game can be played: it is begun once.

    Args:
      settings: of `begin`.
      is_contained: moves are no programs.

    Raises:
      ConfigError: the package is not installed, or has no such game; the game needs what is not here, or another
        number of players; or of several players none is named whose reward is the team's.
    """
    check_package("textarena", "textarena", "textarena")
    if "game" not in settings or set(settings) - {"game", "players", "reward_of"}:
        return TEXTARENA  # whoever opens it complains
    _check_players(settings.get("players", ()), settings.get("reward_of"))
    _check_game(settings["game"])
    kept = random.getstate()
    try:
        begin(Problem(0, "0", "", ""), 0, **settings)
    except Exception as error:  # whatever a game raises
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        raise ConfigError(
            f"environment.settings: expected a game that {max(len(settings.get('players', ())), 1)} can begin, got"
            f" {settings['game']} ({reason:.200})"
        ) from error
    finally:
        random.setstate(kept)
    return TEXTARENA


def _check_players(players: Any, reward_of: Any) -> None:
    is_list = isinstance(players, list | tuple) and all(isinstance(role, str) for role in players)
    expect(is_list, "environment.settings.players", "a role for each player", repr(players))
    numbers = range(max(len(players), 1))
    is_number = isinstance(reward_of, int) and not isinstance(reward_of, bool) and reward_of in numbers
    if not (is_number or reward_of == "mean" or (reward_of is None and len(numbers) == 1)):
        raise ConfigError(
            f"environment.settings.reward_of: expected the number of the player whose reward is the team's, below"
            f" {len(numbers)}, or mean, which is 0 where what one wins another loses; got {reward_of!r}"
        )


def _check_game(game: Any) -> None:
    from textarena.envs.registration import ENV_REGISTRY  # pyright: ignore[reportMissingImports]

    expect(game in ENV_REGISTRY, "environment.settings.game", "one of TextArena's registry", repr(game))
    family = str(ENV_REGISTRY[game].entry_point).split(".")[2]
    if family in REFUSED:
        raise ConfigError(f"environment.settings.game: {game} is refused, because {REFUSED[family]}")


TEXTARENA = Environment(reset=begin, step=play, timeout_s=60.0, bind=bind)
