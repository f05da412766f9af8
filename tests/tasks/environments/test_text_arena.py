"""Games of TextArena, played for real: a guessed number, whose hints are known, and noughts and crosses."""

import functools
import importlib.util
import random
import re
from pathlib import Path

import pytest

from c3jax.rewards import CallKind, Evaluator
from c3jax.tasks.environment import (
    Answer,
    Call,
    Environment,
    Message,
    make_failed,
    open_environments,
    run_call,
)
from c3jax.tasks.environments.text_arena import REFUSED
from c3jax.tasks.sections import EnvironmentSection
from c3jax.types import Problem, UserError

PROBLEM = Problem(0, "0", "Play.", "")
GUESS = {"game": "GuessTheNumber-v0"}  # from 1 to 20, in ten turns
NOUGHTS = {"game": "TicTacToe-v0", "players": ["left", "right"], "reward_of": 0}
# The centre, a corner, and while the right player stays on the upper edge the left one takes a diagonal.
MOVES = ["left [4]", "right [0]", "left [2]", "right [1]", "left [6]"]


def open_game(**settings) -> tuple[Environment, ...]:
    return open_environments([EnvironmentSection(kind="textarena", settings=settings)], None, True).environments


def make_call(parts: list[list[str]], seed: int = 3) -> Call:
    """Messages written as "role text"; before each answer the messages since the one before."""
    split = [[line.partition(" ") for line in part] for part in parts]
    return Call(0, seed, tuple(tuple(Message("turn", role, text) for role, _, text in part) for part in split))


@pytest.mark.parametrize("seed", [3, 4, 2**32 - 1])
def test_a_number_is_found_by_its_hints(seed):
    """Every call begins anew, as in a run, so the hints agree only where the game is one of its seed."""
    hidden, guesses = random.Random(seed).randint(1, 20), [[]]
    environments, low, high = open_game(**GUESS), 1, 20
    while True:
        random.seed(len(guesses))  # what else a process draws changes nothing
        *before, (text, reward, done) = run_call(environments, PROBLEM, make_call(guesses, seed))
        assert not any(earlier[2] for earlier in before)
        if done:
            break
        guess = int(guesses[-1][0].split("[")[1][:-1]) if guesses[-1] else None
        if guess is None:
            assert "between 1 and 20 within 10 turns" in text
        else:
            assert text == f"The target number is {'lower' if guess > hidden else 'higher'}."
            low, high = (low, guess - 1) if guess > hidden else (guess + 1, high)
        guesses.append([f"solver I think [{(low + high) // 2}]"])
    assert (text, reward) == ("Congratulations! You guessed the correct number.", 1.0)
    assert guesses[-1] == [f"solver I think [{hidden}]"]


def test_a_wrong_move_is_named_and_a_second_one_ends_the_game():
    asked = make_call([[], ["planner [1]", "solver well"], ["solver [21]"], ["solver [5]"]])
    _, (first, _, is_over), (last, reward, done), after = run_call(open_game(**GUESS), PROBLEM, asked)
    assert "Player 0 did not respond with valid '[number]'" in first and not is_over
    assert "outside the range" in last and (reward, done) == (0.0, True)
    assert after == ("", 0.0, True)


@pytest.mark.parametrize(("reward_of", "reward"), [(0, 1.0), (1, -1.0), ("mean", 0.0)])
def test_two_players_see_what_is_theirs_and_share_one_reward(reward_of, reward):
    parts = [[], *([move] for move in MOVES[:2]), MOVES[2:4], MOVES[4:]]
    rules, second, third, fourth, end = run_call(
        open_game(**NOUGHTS | {"reward_of": reward_of}), PROBLEM, make_call(parts)
    )
    assert rules[0].startswith("You are Player 0 in Tic Tac Toe.") and second[0].startswith("You are Player 1")
    assert "[Player 0] [4]" in second[0] and "[Player 0]" not in third[0]
    assert "[Player 1] [0]" in third[0] and "Player 1 placed their symbol (X) in cell 0." in third[0]
    assert fourth[0].count("Current Board") == 1 and " X | X | O \n" in fourth[0]
    assert [seen[1:] for seen in (rules, second, third, fourth)] == [(0.0, False)] * 4
    assert end == ("Player 0 has won!", reward, True)


def test_who_is_not_on_turn_moves_nothing():
    talk = [["left [4]", "left [5]", "coach [8]", "right [0]"], ["left [2]", "right [1]", "left [6]"]]
    (board, _, _), end = run_call(open_game(**NOUGHTS), PROBLEM, make_call(talk))
    assert " 3 | O | 5 \n" in board and " 6 | 7 | 8 \n" in board
    assert end == ("Player 0 has won!", 1.0, True)


def test_a_worker_process_plays_the_same_game():
    environments, call = open_game(**NOUGHTS), make_call([[], MOVES[:2], MOVES[2:]])
    kind = CallKind(Answer, Answer, make_failed)
    with Evaluator(functools.partial(run_call, environments), 1, 60.0, kind) as evaluator:
        (answer,) = evaluator.score([PROBLEM], [call], budget=1)
    assert (answer.failure, answer.detail) == ("", "")
    assert list(map(tuple, answer.observations)) == run_call(environments, PROBLEM, call)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"game": "Nine-v0"}, "settings.game: expected one of TextArena's registry, got 'Nine-v0'"),
        ({"game": "Wordle-v0"}, "settings.game: Wordle-v0 is refused, because it downloads word lists"),
        ({"game": "TwentyQuestions-v0"}, "TwentyQuestions-v0 is refused, because a language model"),
        (NOUGHTS | {"players": []}, r"expected a game that 1 can begin, got TicTacToe-v0 \(AssertionError: The number"),
        (GUESS | {"players": ["a", "b"], "reward_of": 1}, "expected a game that 2 can begin, got GuessTheNumber-v0"),
        (NOUGHTS | {"reward_of": None}, "settings.reward_of: expected the number of the player .* got None"),
        (NOUGHTS | {"reward_of": 2}, "settings.reward_of: .* below 2, or mean, .* got 2"),
        (GUESS | {"players": "ab"}, "settings.players: expected a role for each player, got 'ab'"),
        ({"name": "TicTacToe-v0"}, "settings: expected what the reset of textarena takes"),
    ],
)
def test_what_cannot_be_played_is_one_sentence_at_set_up(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        open_game(**settings)


def test_set_up_draws_nothing_from_the_process():
    random.seed(1)
    kept = random.getstate()
    open_game(**GUESS)
    assert random.getstate() == kept


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package textarena \(pip install 'c3jax\[textarena\]'\), found none"
    ):
        open_game(**GUESS)


def test_every_game_that_needs_the_network_is_refused():
    """As the package's own modules say, of which one is a family of games."""
    spec = importlib.util.find_spec("textarena")
    assert spec is not None and spec.origin is not None
    modules = Path(spec.origin).parent.glob("envs/*/env.py")
    needs = re.compile(r"\bnltk\b|OpenRouter|EnglishDictionary\(|requests\.get")
    assert {path.parent.name for path in modules if needs.search(path.read_text())} == set(REFUSED)
