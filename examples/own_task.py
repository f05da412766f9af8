"""A task of your own: problems, a grader, and demonstrations to start from. Trained by

    c3jax train own_task.yaml

in the folder that holds both files. `RIDDLES` is a whole task for a policy trained from scratch; `grade_list` shows
that for a JSONL file of {"question", "answer"} rows and a pretrained model one function is enough:
`task: {kind: "own_task:grade_list", path: train.jsonl, heldout_path: test.jsonl}`.
"""

from __future__ import annotations

import random
from typing import Literal

from c3jax.schema import Positive
from c3jax.tasks.sections import GeneratedTask
from c3jax.tasks.task import DemonstratedTurn, Task
from c3jax.types import Problem, Verdict

DIGITS = tuple("0123456789")


class RiddleTask(GeneratedTask):
    """Which of the digits is the largest? Its fields are those of the section `task` in own_task.yaml."""

    kind: Literal["own_task:RIDDLES", "./own_task.py:RIDDLES"]
    digits: Positive = 3
    """Digits of a riddle."""


def make_problems(section: RiddleTask, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Distinct riddles, to train on and held out: "largest of 3 9 4 ?"."""
    rng = random.Random(seed)
    wanted = section.train_problems + section.heldout_problems
    riddles: dict[str, str] = {}
    while len(riddles) < wanted:
        drawn = rng.choices(DIGITS, k=section.digits)
        riddles[f"largest of {' '.join(drawn)} ?"] = max(drawn)
    problems = [Problem(index, str(index), *riddle) for index, riddle in enumerate(riddles.items())]
    return problems[: section.train_problems], problems[section.train_problems :]


def demonstrate(section: RiddleTask, problem: Problem, turn: DemonstratedTurn, address: tuple[int, int]) -> str:
    """What a beginner would write: a plan that is the right digit half of the time, and the answer that it names."""
    drawn = [word for word in problem.question.split() if word in DIGITS]
    rng = random.Random(f"{address}/{problem.index}")
    plan = problem.answer if rng.random() < 0.5 else rng.choice(drawn)
    return f"answer {plan}" if turn.is_last else plan


def grade(problem: Problem, text: str) -> Verdict:
    """One evaluator call: the last digit of the last turn's message decides."""
    digits = [word for word in text.split() if word in DIGITS]
    if not digits:
        return Verdict(0.0, "unparsable", None, "no digit in the message")
    is_right = digits[-1] == problem.answer
    return Verdict(float(is_right), "correct" if is_right else "wrong", digits[-1])


RIDDLES = Task(
    grade=grade,
    section=RiddleTask,
    make=make_problems,
    demonstrate=demonstrate,
    vocabulary=(*DIGITS, "largest", "of", "?", "plan", "answer", ":"),
)


def grade_list(problem: Problem, answer: str) -> float:
    """A plain function is a task too: the share of the expected words that the answer holds."""
    expected = problem.answer.lower().split()
    return sum(word in answer.lower() for word in expected) / len(expected)
