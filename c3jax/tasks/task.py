"""The record of a task: everything that is known of a family of problems, in one place. Host code, no JAX.

`TASKS` names the built-in ones, each a record at the end of its own module. A task of a user's own is the same record,
or a plain function that grades, in a file of theirs: `task.kind: "riddles:RIDDLES"`.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from c3jax.schema import ConfigError, Section, load_named
from c3jax.tasks.environment import Environment
from c3jax.tasks.jsonl import AS_THEY_ARE, Fields, Row, load_problems
from c3jax.tasks.jsonl import TaskError as TaskError  # what a user's own task raises
from c3jax.tasks.sections import FileTask
from c3jax.types import Problem, Verdict, VerdictName

Grade = Callable[[Problem, str], Any]


class DemonstratedTurn(NamedTuple):
    """The turn of the protocol that a demonstration is asked for."""

    name: str
    role: str
    is_last: bool  # the turn that answers
    answered_by: str | None = None  # kind of the environment that answers the message


class Prepare(NamedTuple):
    """How `c3jax prepare` reads a row of a published set and writes it down."""

    read: Callable[[Row], Problem | None]  # None where the row was published without an answer
    write: Callable[[Problem], dict[str, object]]


class Task(NamedTuple):
    """A family of problems, and all that is particular to it.

    Functions are of a module's top level, because worker processes are sent them by name.
    """

    # One evaluator call: a Verdict, or a number in [0, 1] (True and False too), of a problem and the last message.
    grade: Grade
    section: type[Section] = FileTask  # its part of the config; `kind` and what else it needs
    # Problems of a JSONL file: to train on where the section has `path`, for suites and to grade answers at hand. One
    # with a parameter `fields` is given the file's fields by the names that it reads.
    load: Callable[..., list[Problem]] = load_problems
    # Generated problems, to train on and held-out ones, from the section and the run's seed; None: they are loaded.
    make: Callable[[Any, int], tuple[list[Problem], list[Problem]]] | None = None
    read_answer: Callable[[str], str | None] = str.strip  # what would be judged of a message
    canonical: Callable[[str], str] | None = None  # by which answers are equal when they vote; None: they do not vote
    # What a turn might say: (section, problem, turn, (seed, draw)) -> text, for a warm-up by imitation.
    demonstrate: Callable[[Any, Problem, DemonstratedTurn, tuple[int, int]], str] | None = None
    # A last message that is right, as (what comes before the answer, the answer), for credit that reads how likely the
    # answer is; None: no such text is known.
    write_answer: Callable[[Problem], tuple[str, str]] | None = None
    vocabulary: tuple[str, ...] | None = None  # all words of all texts, for a tokenizer made of them
    # (the text by which two problems are compared, a name that with the id tells a reworded problem)
    overlap_key: Callable[[Problem], tuple[str, str]] | None = None
    environment: Environment | None = None  # that `environment: {kind: task}` names
    prepare: Prepare | None = None  # for public sets that `c3jax prepare` fetches
    timeout_s: float = 10.0  # that one evaluator call may take, where the config's grade_timeout says nothing
    # For a task that runs programs: (section or None, grade_timeout or None, is_contained) -> the task with the limits
    # of the section, and the sandbox, bound into `load`. Raises UserError where the sandbox does not hold.
    bind: Callable[[Any, float | None, bool], Task] | None = None
    is_contained: bool = True  # whether programs, of this task or of a suite beside it, run in a sandbox


# By the name in a config; loaded when one is asked for, so that nobody waits for another task's libraries.
TASKS: dict[str, str] = {
    "arithmetic": "c3jax.tasks.arithmetic:ARITHMETIC",
    "number": "c3jax.tasks.number:NUMBER",
    "stories": "c3jax.tasks.stories:STORIES",
    "numeric": "c3jax.tasks.numeric:NUMERIC",
    "math": "c3jax.tasks.maths.task:MATH",
    "reasoning": "c3jax.tasks.reasoning:REASONING",
    "code": "c3jax.tasks.code.records:CODE",
}


def find_task(kind: str, field: str = "task.kind") -> Task:
    """Find a task by its name, or a user's own as module:NAME: a Task, or a function that grades.

    A function takes (problem, answer) and gives a number in [0, 1]; one with a parameter `completions` is called as a
    reward function of TRL: (prompts, completions, and the other columns of the rows, each a list) -> list of numbers.

    Args:
      kind: what the config names.
      field: dotted path of the config's field, for complaints.

    Raises:
      ConfigError: there is no such task, or what is there is neither a Task nor a function that can grade.
    """
    found = load_named(field, kind, TASKS, _find_fault)
    if isinstance(found, Task):
        return found
    if "completions" in inspect.signature(found).parameters:
        return Task(functools.partial(_grade_by_reward, found))
    return Task(found)


def _find_fault(found: Any) -> str | None:
    if isinstance(found, Task):
        return None if callable(found.grade) else "a Task whose grade is a function"
    if not inspect.isroutine(found):
        return "a Task, or a function (problem, answer) that grades,"
    parameters = inspect.signature(found).parameters
    required = [each for each in parameters.values() if each.default is each.empty and each.kind not in _VARIADIC]
    if "completions" in parameters or len(required) == 2:
        return None
    return f"a function of (problem, answer), or of completions, not of ({', '.join(parameters)}),"


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _grade_by_reward(reward: Callable[..., Sequence[float]], problem: Problem, text: str) -> float:
    given = {**problem.columns, "prompts": problem.question, "completions": text, "answer": problem.answer}
    parameters = inspect.signature(reward).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    (score,) = reward(**{name: [value] for name, value in given.items()})
    return score


def open_task(
    kind: str,
    section: Section | None,
    grade_timeout: float | None = None,
    is_contained: bool = True,
    field: str = "task.kind",
) -> Task:
    """Find a task and bind into it how long a call may take, and how its programs are run, where it runs any.

    Args:
      kind: as for `find_task`.
      section: its part of the config; None for a suite or a file of answers, which have none.
      grade_timeout: seconds that one evaluator call may take; None takes the task's own.
      is_contained: False gives up the sandbox of programs.
      field: dotted path of the config's field, for complaints.

    Raises:
      UserError: there is no such task, its limits do not fit, or the sandbox does not hold here.
    """
    task = find_task(kind, field)
    if task.bind is not None:
        task = task.bind(section, grade_timeout, is_contained)
    timeout_s = task.timeout_s if grade_timeout is None else grade_timeout
    return task._replace(timeout_s=timeout_s, is_contained=is_contained)


def load_file(task: Task, path: str, fields: Fields = AS_THEY_ARE) -> list[Problem]:
    """Load the problems of a JSONL file.

    Args:
      task: which reads it.
      path: of the file.
      fields: the file's fields by the names that the task reads, where it has others.

    Raises:
      UserError: the file or a row is faulty, or the task reads its files by no other names.
    """
    if not fields:
        return task.load(path)
    if "fields" not in inspect.signature(task.load).parameters:
        raise ConfigError(f"fields of {path}: expected none for a task whose load takes no fields, got {list(fields)}")
    return task.load(path, fields=fields)


def make_verdict(given: Any) -> Verdict:
    """Make a verdict of what a grader gave: a Verdict, or a number in [0, 1].

    Raises:
      TypeError: it is neither, its score is not finite or outside [0, 1], or its parts are not what a verdict has.
    """
    verdict = given
    if isinstance(given, numbers.Real):
        score = float(given)
        verdict = Verdict(score, "correct" if score == 1.0 else "wrong" if score == 0.0 else "partial", None)
    is_sound = (
        isinstance(verdict, Verdict)
        and isinstance(verdict.score, numbers.Real)
        and math.isfinite(verdict.score)
        and 0.0 <= verdict.score <= 1.0
        and verdict.verdict in get_args(VerdictName)
        and isinstance(verdict.answer, str | None)
        and isinstance(verdict.detail, str)
        and isinstance(verdict.second, bool | None)
    )
    if not is_sound:
        raise TypeError(f"the grader returned {given!r:.200}")
    return verdict._replace(score=float(verdict.score))
