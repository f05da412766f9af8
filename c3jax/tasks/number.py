"""A game of several rounds: a number is hidden, the team guesses, and hears higher or lower.

    game 4 7 1 : from 2 to 8

The question is the game's name and the range. The hidden number is drawn by the episode, not by the problem, so that
no policy can learn it by heart; nothing is graded but what the environment gives: 1 where the number is found. Every
text is made of whole words of `VOCABULARY` with single spaces between them.

Demonstrations guess anywhere in the range, whatever was heard, so that everything about the game is left to be learnt.
With a range of 2^n - 1 numbers, n rounds of halving always find the number.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from c3jax.tasks.environment import Environment, Message, Observation
from c3jax.tasks.generated import draw_problems, draw_uniform, make_splits
from c3jax.tasks.jsonl import TaskError
from c3jax.tasks.sections import NumberTask
from c3jax.tasks.task import DemonstratedTurn, Task
from c3jax.types import Problem, Verdict

VOCABULARY: tuple[str, ...] = (
    *map(str, range(32)),
    *(":", "game", "from", "to", "guess", "higher", "lower", "found", "error"),
)
_QUESTION = re.compile(r"game [0-9] [0-9] [0-9] : from ([0-9]+) to ([0-9]+)")


def make_problems(task: NumberTask, seed: int) -> tuple[list[Problem], list[Problem]]:
    """The games to train on and the held-out ones. Raises TaskError where there are not so many."""
    if task.span > task.highest + 1:
        raise TaskError(f"task.span: expected at most task.highest + 1 = {task.highest + 1} numbers, got {task.span}")
    return make_splits(_load_problems, task, seed)


def _load_problems(task: NumberTask, seed: int, split: str, count: int) -> list[Problem]:
    return draw_problems("number", functools.partial(_write_problem, task, seed), split, count)


def _write_problem(task: NumberTask, seed: int, split: str, index: int, attempt: int) -> tuple[str, str]:
    address = ("number", seed, split, index, attempt)
    name = [str(int(10 * draw_uniform(*address, digit))) for digit in range(3)]
    low = int((task.highest + 2 - task.span) * draw_uniform(*address, "low"))
    return f"game {' '.join(name)} : from {low} to {low + task.span - 1}", ""


def read_range(question: str) -> tuple[int, int]:
    """The least and the largest number that may be hidden. Raises TaskError where the text is no such question."""
    match = _QUESTION.fullmatch(question)
    if match is None:
        raise TaskError(f"number: not a question of this task: {question[:80]!r}")
    return int(match[1]), int(match[2])


def demonstrate(task: NumberTask, problem: Problem, turn: DemonstratedTurn, address: tuple[int, int]) -> str:
    """A guess anywhere in the range."""
    low, high = read_range(problem.question)
    seed, draw = address
    return str(low + int((high - low + 1) * draw_uniform("guess", seed, problem.index, draw, turn.name)))


def hide(problem: Problem, seed: int) -> int:
    """Begin a game: its number, which is all of its state, is drawn from the episode's seed."""
    low, high = read_range(problem.question)
    return low + int((high - low + 1) * draw_uniform("hidden", seed, problem.index))


def answer(hidden: int, messages: Sequence[Message]) -> Observation:
    """Higher, lower, found (1, and the end), or error where the last message is no number."""
    text = messages[-1].text.strip()
    if not text.isdecimal():
        return Observation("error")
    if int(text) == hidden:
        return Observation("found", reward=1.0, done=True)
    return Observation("higher" if int(text) < hidden else "lower")


def grade(problem: Problem, text: str) -> Verdict:
    """Nothing by itself: what a game is worth its environment gives."""
    return Verdict(0.0, "wrong", text.strip())


NUMBER = Task(
    grade=grade,
    section=NumberTask,
    make=make_problems,
    demonstrate=demonstrate,
    vocabulary=VOCABULARY,
    environment=Environment(hide, answer),
)
