"""Task families: problems, and the functions that grade a message against them. Host code, no JAX.

A family is a module with a loader of its own signature (what a set is made from differs) and one
`grade(problem, text) -> Verdict` of a common signature. `TASKS` names the families; a grading function
is at module level, so that it can be sent to a worker process by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from c3jax.tasks import arithmetic, code, code_records, maths, numeric, reasoning, stories
from c3jax.tasks.jsonl import TaskError
from c3jax.types import Problem, Verdict

__all__ = ["TASKS", "Task", "TaskError"]


class Task(NamedTuple):
    """What every family of tasks offers under one signature."""

    grade: Callable[[Problem, str], Verdict]  # one evaluator call
    read_answer: Callable[[str], str | None]  # what would be judged of a message
    load: Callable[[str], list[Problem]]  # problems from a JSONL file, to grade answers that are at hand


TASKS: dict[str, Task] = {
    "arithmetic": Task(arithmetic.grade, numeric.read_answer, numeric.load_problems),
    "stories": Task(stories.grade, numeric.read_answer, numeric.load_problems),
    "numeric": Task(numeric.grade, numeric.read_answer, numeric.load_problems),
    "math": Task(maths.grade, maths.read_answer, maths.load_problems),
    "reasoning": Task(reasoning.grade, reasoning.read_answer, reasoning.load_problems),
    "code": Task(code.grade, code.read_answer, code_records.load_problems),
}
