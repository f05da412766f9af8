"""The command that grades answers at hand: by the very functions, processes and limits that training uses."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic

from c3jax.config.file import parse_section
from c3jax.rewards import Evaluator, compute_disagreement
from c3jax.run.files import explain_failure, save_whole
from c3jax.schema import PositiveFloat, Section
from c3jax.tasks.jsonl import Row, TaskError, check_distinct, read_id, read_rows
from c3jax.tasks.sections import FileTask
from c3jax.tasks.task import find_task, load_file, open_task
from c3jax.types import Problem, UserError, Verdict, VerdictName

_MOST_WORKERS = 8


def grade_files(
    kind: str,
    problems_path: str,
    answers_path: str,
    out_path: str,
    is_contained: bool = True,
    limits: Mapping[str, Any] | None = None,
) -> str:
    """Grade a file of answers, one for each problem of a file, and write the verdicts in the order of the answers.

    Args:
      kind: a row of `TASKS`, or a task of the user's own as module:NAME.
      problems_path: JSONL that the task reads.
      answers_path: JSONL, {"id": of a problem, "answer": the whole final message} a line.
      out_path: where {"id", "return", "verdict", "detail"} is written, a line an answer; whole or not at all.
      is_contained: False runs programs without their sandbox, which is else tried first.
      limits: values by the dotted path of a config's field: grade_timeout, what the fields of the problems' file are
        called (task.fields), and how a task runs programs (task.timeout).

    Returns:
      One line on how many answers got which verdict.

    Raises:
      UserError: there is no such task, a limit is none of it or does not fit, a file is faulty, the answers are not one
        for each problem, or the verdicts cannot be written.
    """
    _check_out(out_path, (problems_path, answers_path))
    section, grade_timeout = _read_limits(kind, limits or {})
    task = open_task(kind, section, grade_timeout, is_contained, field="TASK")
    if not is_contained and task.bind is None:
        raise UserError(f"--unsafe-no-sandbox: expected a task that runs programs, got {kind}")
    loaded = load_file(task, problems_path, section.fields if isinstance(section, FileTask) else {})
    problems, answers = pair_answers(loaded, problems_path, answers_path)
    with Evaluator(task.grade, min(_MOST_WORKERS, os.cpu_count() or 1), task.timeout_s) as evaluator:
        verdicts = evaluator.score(problems, answers, budget=len(answers))
    rows = [
        {"id": problem.id, "return": verdict.score, "verdict": verdict.verdict, "detail": verdict.detail}
        for problem, verdict in zip(problems, verdicts, strict=True)
    ]
    with explain_failure(f"--out: {out_path} cannot be written"):
        save_whole(Path(out_path), "".join(json.dumps(row) + "\n" for row in rows))
    return count_verdicts(verdicts)


def _check_out(out_path: str, read: Sequence[str]) -> None:
    out = Path(out_path)
    if not out_path or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out: expected a file in a folder that exists, got {out_path or 'an empty name'}")
    for path in read:
        if out.exists() and Path(path).exists() and out.samefile(path):
            raise UserError(f"--out: expected another file than those that are read, got {out_path}")


class _Limits(Section):
    task: Section | None = None
    grade_timeout: PositiveFloat | None = None


def _read_limits(kind: str, limits: Mapping[str, Any]) -> tuple[Section | None, float | None]:
    """Read the limits as the config would: the section of a task that runs programs, and grade_timeout."""
    task = find_task(kind, field="TASK")
    own = ["fields"] if issubclass(task.section, FileTask) else []
    if own and task.bind is not None:
        own += [name for name in task.section.model_fields if name not in FileTask.model_fields]
    of_task: dict[str, Any] = {}
    for path, value in limits.items():
        first, _, rest = path.removeprefix("task.").partition(".")
        if path != "grade_timeout" and not (
            path.startswith("task.") and first in own and (not rest or first == "fields")
        ):
            known = ["grade_timeout", *(f"task.{name}" for name in own)]
            raise UserError(f"{path}: expected one of {', '.join(known)} to grade by, got another field of a config")
        if rest:
            of_task["fields"] = {**of_task.get("fields", {}), rest: value}
        elif path != "grade_timeout":
            of_task[first] = value
    given: dict[str, Any] = {"grade_timeout": limits.get("grade_timeout")}
    declared = _Limits
    if of_task:
        # The files are those of the command, and a section has to name some.
        given["task"] = {"kind": kind, **dict.fromkeys(("path", "heldout_path"), "-"), **of_task}
        declared = pydantic.create_model("Limits", __base__=_Limits, task=(task.section, ...))
    read = parse_section(given, declared)
    return read.task, read.grade_timeout


def pair_answers(problems: Sequence[Problem], problems_path: str, answers_path: str) -> tuple[list[Problem], list[str]]:
    """Read one answer for each problem; give both in the order of the answers.

    Args:
      problems: of the file.
      problems_path: its name in messages.
      answers_path: JSONL, {"id": of a problem, "answer": the whole final message} a line.

    Raises:
      TaskError: the file is faulty, or has not one answer for each problem.
    """
    rows = read_rows(answers_path)
    identities = [_read_answer_id(row) for row in rows]
    check_distinct(answers_path, identities)
    problem_of_id = {problem.id: problem for problem in problems}
    for row, identity in zip(rows, identities, strict=True):
        if identity not in problem_of_id:
            raise TaskError(f"{row.where}: expected the id of a problem in {problems_path}, got {identity!r}")
        if not isinstance(row.fields.get("answer"), str):
            raise TaskError(f"{row.where}: expected text as answer, got {row.fields.get('answer')!r:.80}")
    answered = set(identities)
    missing = [problem.id for problem in problems if problem.id not in answered]
    if missing:
        others = f" nor for {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TaskError(f"{answers_path}: there is no answer for the problem {missing[0]!r}{others}")
    return [problem_of_id[identity] for identity in identities], [str(row.fields["answer"]) for row in rows]


def _read_answer_id(row: Row) -> str:
    if "id" not in row.fields:
        raise TaskError(f"{row.where}: the field 'id' is missing")
    return read_id(row, "id")


def count_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Say in one line how many verdicts there are of each kind, and where the second rule disagrees."""
    names = [verdict.verdict for verdict in verdicts]
    shares = [f"{names.count(name) / len(names):.1%} {name}" for name in get_args(VerdictName) if name in names]
    if any(verdict.second is not None for verdict in verdicts):
        shares.append(f"the second rule disagrees on {compute_disagreement(verdicts):.1%}")
    mean = sum(verdict.score for verdict in verdicts) / len(verdicts)
    return f"{len(verdicts)} answers, mean return {mean:.4f}: {', '.join(shares)}"
