"""Task families: problems, and the functions that grade a message against them. Host code, no JAX.

A family is a module with a loader of its own signature (what a set is made from differs) and one
`grade(problem, text) -> Verdict` of a common signature. `TASKS` names the families; a grading function
is at module level, so that it can be sent to a worker process by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from c3jax.tasks import arithmetic, numeric, reasoning, stories
from c3jax.tasks.code import records as code_records
from c3jax.tasks.code import task as code
from c3jax.tasks.jsonl import TaskError
from c3jax.tasks.maths import normal_form
from c3jax.tasks.maths import task as maths
from c3jax.types import Problem, Verdict

__all__ = ["TASKS", "Task", "TaskError", "load_problems"]


class Task(NamedTuple):
    """What every family of tasks offers under one signature."""

    grade: Callable[[Problem, str], Verdict]  # one evaluator call
    read_answer: Callable[[str], str | None]  # what would be judged of a message
    load: Callable[[str], list[Problem]]  # problems from a JSONL file, to grade answers that are at hand
    # What answers that are read out of messages are equal by when they vote; None where they do not.
    canonical: Callable[[str], str] | None


TASKS: dict[str, Task] = {
    "arithmetic": Task(arithmetic.grade, numeric.read_answer, numeric.load_problems, numeric.spell),
    "stories": Task(stories.grade, numeric.read_answer, numeric.load_problems, numeric.spell),
    "numeric": Task(numeric.grade, numeric.read_answer, numeric.load_problems, numeric.spell),
    "math": Task(maths.grade, maths.read_answer, maths.load_problems, normal_form.normalise),
    "reasoning": Task(reasoning.grade, reasoning.read_answer, reasoning.load_problems, str.casefold),
    "code": Task(code.grade, code.read_answer, code_records.load_problems, None),
}


def load_problems(kind: str, path: str, is_contained: bool) -> list[Problem]:
    """Load a JSONL file of problems of a task; `is_contained` false: programs that they ask for get no sandbox.

    Raises:
      TaskError: the file is faulty, or a sandbox is given up for a task that runs no programs.
    """
    if is_contained:
        return TASKS[kind].load(path)
    if kind != "code":
        raise TaskError(f"--unsafe-no-sandbox: expected a task that runs programs, got {kind}")
    return code_records.load_problems(path, spec=code_records.CodeSpec(is_contained=False))
