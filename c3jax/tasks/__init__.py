"""Task families: problems, and the functions that grade a message against them. Host code, no JAX.

A family is a module with a loader of its own signature (what a set is made from differs) and one
`grade(problem, text) -> Verdict` of a common signature. `TASKS` names the families; a grading function
is at module level, so that it can be sent to a worker process by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from c3jax.tasks import arithmetic, numeric
from c3jax.tasks.numeric import TaskError
from c3jax.types import Problem, Verdict

__all__ = ["TASKS", "Task", "TaskError"]


class Task(NamedTuple):
    """What every family of tasks offers under one signature."""

    grade: Callable[[Problem, str], Verdict]  # one evaluator call


TASKS: dict[str, Task] = {
    "arithmetic": Task(grade=arithmetic.grade),
    "numeric": Task(grade=numeric.grade),
}
