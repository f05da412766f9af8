"""A dial to reason about: word problems from a seeded generator, for policies trained from scratch.

    the dial shows 3 . mia up 4 . ben down 2 .

The dial has the digits 0..9 and turns past its end, so the answer is a sum modulo 10. Every text is made of
whole words of `VOCABULARY` with single spaces between them. All randomness is addressed (`c3jax.tasks.generated`).

Demonstrations are deliberately imperfect in a systematic way, so that imitation leaves something to be learnt
by each of two roles: the plan mistakes down for up, and the answer does not trust plans for problems with a
down move.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from c3jax.tasks import numeric
from c3jax.tasks.generated import draw_problems, draw_uniform, make_splits
from c3jax.tasks.jsonl import TaskError
from c3jax.tasks.sections import ArithmeticTask
from c3jax.tasks.task import DemonstratedTurn, Task
from c3jax.types import Problem

LARGEST_MOVE = 5  # so few sums that a policy of 0.1 M parameters learns them in seconds
NAMES = ("mia", "ben", "ada", "leo")  # in turn, so that a question is its moves and nothing else
VOCABULARY: tuple[str, ...] = (
    *"0123456789",
    *(".", "=", ":", "the", "dial", "shows", *NAMES, "up", "down", "question", "plan", "answer"),
)


class Move(NamedTuple):
    """One turn of the dial."""

    direction: str  # "up" or "down"
    amount: int  # 1..LARGEST_MOVE


def load_problems(task: ArithmeticTask, seed: int, split: str, count: int) -> list[Problem]:
    """Make the first `count` problems of a split, no question twice.

    Args:
      task: the specification.
      seed: of the draws; splits share no question whatever their seeds.
      split: train, validation or test.
      count: how many.

    Raises:
      TaskError: the split or count is invalid, or there are too few distinct questions.
    """
    directions = 1 if task.down_share in (0.0, 1.0) else 2
    distinct = 10 * (LARGEST_MOVE * directions) ** task.moves
    if not 1 <= count <= distinct:
        raise TaskError(
            f"arithmetic: expected a count of 1 to {distinct} ({task.moves} steps allow no more), got {count}"
        )
    advice = f"; ask for fewer problems or more than {task.moves} steps"
    return draw_problems("arithmetic", functools.partial(_write_problem, task, seed), split, count, advice)


def _write_problem(task: ArithmeticTask, seed: int, split: str, index: int, attempt: int) -> tuple[str, str]:
    address = ("problem", seed, split, index, attempt)
    start = int(10 * draw_uniform(*address, "start"))
    sentences, moves = [f"the dial shows {start} ."], []
    for step in range(task.moves):
        direction = "down" if draw_uniform(*address, step, "direction") < task.down_share else "up"
        moves.append(Move(direction, 1 + int(LARGEST_MOVE * draw_uniform(*address, step, "amount"))))
        sentences.append(f"{NAMES[step % len(NAMES)]} {direction} {moves[-1].amount} .")
    return " ".join(sentences), str(compute_shown(start, moves)[-1])


_QUESTION = re.compile(r"the dial shows ([0-9]) \.((?: [a-z]+ (?:up|down) [1-9] \.)+)")


def parse_moves(question: str) -> tuple[int, tuple[Move, ...]]:
    """Read the first digit of the dial and the moves back out of a question.

    Raises:
      TaskError: the text is no question of this task.
    """
    match = _QUESTION.fullmatch(question)
    if match is None:
        raise TaskError(f"arithmetic: not a question of this task: {question[:80]!r}")
    moves = re.findall(r"(up|down) ([1-9])", match[2])
    return int(match[1]), tuple(Move(direction, int(amount)) for direction, amount in moves)


def compute_shown(start: int, moves: Sequence[Move]) -> list[int]:
    """Compute what the dial shows at the start and after each move."""
    shown = [start]
    for move in moves:
        turn = move.amount if move.direction == "up" else -move.amount
        shown.append((shown[-1] + turn) % 10)
    return shown


def demonstrate(task: ArithmeticTask, problem: Problem, turn: DemonstratedTurn, address: tuple[int, int]) -> str:
    """Demonstrate what a turn says of a problem, with the faults of the task; the turns of an address go together.

    The plan, for every turn but the last, is a running computation, "3 up 4 = 7 down 2 = 5". With probability
    `plan_fault`, independently for each down move, it writes and makes the move as if it were up ("3 up 4 = 7 up 2 =
    9"): every sum in it is right, the fault is the one word, and it carries through to the last number.
    For a turn that the calculator answers it is the same moves as an expression, "( 3 + 4 - 2 ) % 1 0". For one that a
    Python session answers, "( 3 + 4 - 2 ) % ten": its fault is to write "down" instead of a sign, which is no program,
    and every such turn makes it by itself.
    The answer, for the last turn, is "answer" and the plan's last number. Only for a problem with a down move, and
    there with probability `distrust`, it is the digit the dial showed at first, whatever the plan says.

    Args:
      task: the specification.
      problem: of this task.
      turn: whose message it is.
      address: seed and number of the draw.

    Raises:
      TaskError: the problem is not of this task.
    """
    start, moves = parse_moves(problem.question)
    seed, draw = address
    at = ("demonstration", seed, problem.index, draw)
    made = tuple(
        move._replace(direction="up") if draw_uniform(*at, step) < task.plan_fault else move
        for step, move in enumerate(moves)
    )
    shown = compute_shown(start, made)
    if turn.answered_by == "python":
        is_plain = [draw_uniform(*at, turn.name, step) < task.plan_fault for step in range(len(moves))]
        signs = {"up": "+", "down": "-"}
        parts = [
            f"{move.direction if plain and move.direction == 'down' else signs[move.direction]} {move.amount}"
            for move, plain in zip(moves, is_plain, strict=True)
        ]
        return " ".join(["(", str(start), *parts, ") % ten"])
    if turn.answered_by == "calculator":
        signed = [f"{'-' if move.direction == 'down' else '+'} {move.amount}" for move in made]
        return " ".join(["(", str(start), *signed, ") % 1 0"])
    if not turn.is_last:
        sums = [f"{move.direction} {move.amount} = {digit}" for move, digit in zip(made, shown[1:], strict=True)]
        return " ".join([str(start), *sums])
    is_distrusted = any(move.direction == "down" for move in moves) and (draw_uniform(*at, "distrust") < task.distrust)
    return f"answer {start if is_distrusted else shown[-1]}"


def write_answer(problem: Problem) -> tuple[str, str]:
    """What the last turn says where it is right: "answer", and the digit."""
    return "answer", problem.answer


ARITHMETIC = Task(
    grade=numeric.grade,
    section=ArithmeticTask,
    load=numeric.load_problems,
    make=functools.partial(make_splits, load_problems),
    read_answer=numeric.read_answer,
    canonical=numeric.canonical,
    demonstrate=demonstrate,
    write_answer=write_answer,
    vocabulary=VOCABULARY,
)
