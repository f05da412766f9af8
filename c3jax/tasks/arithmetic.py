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
from typing import NamedTuple

from c3jax.tasks import numeric
from c3jax.tasks.generated import LONGEST_SEARCH, SPLITS, draw_problems, draw_uniform, search_problem
from c3jax.tasks.numeric import TaskError
from c3jax.types import Problem, Verdict

DIGITS = tuple("0123456789")
LARGEST_MOVE = 5  # so few sums that a policy of 0.1 M parameters learns them in seconds
NAMES = ("mia", "ben", "ada", "leo")  # in turn, so that a question is its moves and nothing else
VOCABULARY: tuple[str, ...] = (
    *DIGITS,
    *(".", "=", ":", "the", "dial", "shows", *NAMES, "up", "down", "question", "plan", "answer"),
)


class ArithmeticSpec(NamedTuple):
    """What the problems and their demonstrations are like; all but `steps` are probabilities."""

    steps: int = 3  # moves of a problem
    down_share: float = 0.35  # that a move is down
    plan_fault: float = 0.6  # that the demonstrated plan makes a down move as if it were up
    distrust: float = 0.6  # that the demonstrated answer to a problem with a down move disregards the plan


class Move(NamedTuple):
    """One turn of the dial."""

    direction: str  # "up" or "down"
    amount: int  # 1..LARGEST_MOVE


class Demonstration(NamedTuple):
    """What the two roles say of one problem."""

    plan: str
    answer: str


def load_problems(spec: ArithmeticSpec, seed: int, split: str, count: int) -> list[Problem]:
    """Make the first `count` problems of a split, no question twice.

    Problem i is `make_problem(spec, seed, split, i)`, drawn again as long as an earlier one asks the same.

    Raises:
      TaskError: the specification, split or count is invalid, or there are too few distinct questions.
    """
    _check_request(spec, split)
    directions = 1 if spec.down_share in (0.0, 1.0) else 2
    distinct = 10 * (LARGEST_MOVE * directions) ** spec.steps
    if not 1 <= count <= distinct:
        raise TaskError(
            f"arithmetic: expected a count of 1 to {distinct} ({spec.steps} steps allow no more), got {count}"
        )
    return draw_problems(functools.partial(_search_problem, spec, seed, split), count)


def make_problem(spec: ArithmeticSpec, seed: int, split: str, index: int) -> Problem:
    """Make the problem at an address; the id is the split and the index, as in "train-17".

    Draws are repeated until the hash of the question's text falls to the split, so that splits share no
    question whatever their seeds.

    Raises:
      TaskError: the specification or the split is invalid.
    """
    _check_request(spec, split)
    return _search_problem(spec, seed, split, index, set())


def _check_request(spec: ArithmeticSpec, split: str) -> None:
    if spec.steps < 1:
        raise TaskError(f"arithmetic.steps: expected at least 1, got {spec.steps}")
    for name in ("down_share", "plan_fault", "distrust"):
        share = spec._asdict()[name]
        if not 0.0 <= share <= 1.0:
            raise TaskError(f"arithmetic.{name}: expected a probability in [0, 1], got {share}")
    if split not in SPLITS:
        raise TaskError(f"arithmetic: expected a split of {', '.join(SPLITS)}, got {split!r}")


def _search_problem(spec: ArithmeticSpec, seed: int, split: str, index: int, asked: set[str]) -> Problem:
    def write(attempt: int) -> tuple[str, str]:
        address = ("problem", seed, split, index, attempt)
        start = int(10 * draw_uniform(*address, "start"))
        moves = tuple(_draw_move(spec, *address, step) for step in range(spec.steps))
        return _write_question(start, moves), str(compute_dial(start, moves)[-1])

    problem = search_problem(write, split, index, asked)
    if problem is None:
        raise TaskError(
            f"arithmetic: no new question for problem {index} of split {split!r} in {LONGEST_SEARCH} draws; "
            f"ask for fewer problems or more than {spec.steps} steps"
        )
    return problem


def _draw_move(spec: ArithmeticSpec, *address: object) -> Move:
    is_down = draw_uniform(*address, "direction") < spec.down_share
    return Move("down" if is_down else "up", 1 + int(LARGEST_MOVE * draw_uniform(*address, "amount")))


def _write_question(start: int, moves: tuple[Move, ...]) -> str:
    sentences = [f"{NAMES[step % len(NAMES)]} {move.direction} {move.amount} ." for step, move in enumerate(moves)]
    return " ".join([f"the dial shows {start} .", *sentences])


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


def compute_dial(start: int, moves: tuple[Move, ...]) -> list[int]:
    """Compute what the dial shows at the start and after each move."""
    shown = [start]
    for move in moves:
        turn = move.amount if move.direction == "up" else -move.amount
        shown.append((shown[-1] + turn) % 10)
    return shown


def demonstrate(spec: ArithmeticSpec, problem: Problem, seed: int, draw: int) -> Demonstration:
    """Demonstrate both roles on a problem, with the faults of the specification; `draw` numbers repetitions.

    The plan is a running computation, "3 up 4 = 7 down 2 = 5". With probability `plan_fault`, independently
    for each down move, it says and makes the move as if it were up ("3 up 4 = 7 up 2 = 9"): every sum in it is
    right, the fault is the one word, and it carries through to the last number.
    The answer is "answer" and the plan's last number. Only for a problem with a down move, and there with
    probability `distrust`, it is the digit the dial showed at first, whatever the plan says.

    Raises:
      TaskError: the problem is not of this task.
    """
    start, moves = parse_moves(problem.question)
    address = ("demonstration", seed, problem.index, draw)
    made = tuple(
        move._replace(direction="up") if draw_uniform(*address, step) < spec.plan_fault else move
        for step, move in enumerate(moves)
    )
    shown = compute_dial(start, made)
    sums = [f"{move.direction} {move.amount} = {digit}" for move, digit in zip(made, shown[1:], strict=True)]
    is_distrusted = any(move.direction == "down" for move in moves) and (
        draw_uniform(*address, "distrust") < spec.distrust
    )
    return Demonstration(plan=" ".join([str(start), *sums]), answer=f"answer {start if is_distrusted else shown[-1]}")


def grade(problem: Problem, text: str) -> Verdict:
    """Grade a message by the last number in it, as `c3jax.tasks.numeric.grade` does."""
    return numeric.grade(problem, text)
