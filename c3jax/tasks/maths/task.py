r"""Problems with a LaTeX answer, as in MATH: load a set, read the last \boxed{...}, grade it.

A message is judged by its last complete box alone: a number or a formula elsewhere in it, "the answer is 5" included,
is no answer, so that a policy learns one way to answer and cannot offer several.
"""

from __future__ import annotations

import importlib.util

from c3jax.tasks.jsonl import (
    AS_THEY_ARE,
    Fields,
    Row,
    TaskError,
    check_text,
    lower_names,
    read_id,
    read_problems,
    read_question,
)
from c3jax.tasks.maths import equality, latex, normal_form, words
from c3jax.tasks.sections import MathTask
from c3jax.tasks.task import Prepare, Task
from c3jax.types import Problem, Verdict

LONGEST_MESSAGE = 100_000  # characters, counted from the end, where the answer stands
LONGEST_ANSWER = 1_000  # characters in a box
DEEPEST_ANSWER = 20  # brackets in brackets

_QUESTIONS = ("question", "problem", "input")
_ANSWERS = ("answer", "golden", "solution")
_IDS = ("id", "unique_id")


def load_problems(path: str, fields: Fields = AS_THEY_ARE) -> list[Problem]:
    r"""Load a JSONL set: rows with a question and an answer, or a benchmark's own rows.

    Read as they are: {"id"?, "question", "answer"}, MATH ({"problem", "solution"}), MATH500 (also "answer" and
    "unique_id"), GSM8K (answers that end in "#### 18"), CMATH ("golden", in its first edition with "input"), AIME,
    SVAMP and ASDiv ("body", which stands before the question); names in capitals count too. An answer that holds a
    \boxed{...} is what the last one holds.

    Args:
      path: UTF-8 file, one JSON object a line.
      fields: the file's fields by the names "id", "question" and "answer", where it has others.

    Returns:
      Problems in file order: `index` is the 0-based row, `id` the row's own id or else its row number.

    Raises:
      TaskError: the file cannot be read, a line is not as above, two ids agree, the set is empty, or the extra `maths`
        is not installed.
    """
    for package in ("mpmath", "pint"):  # here, and not in every worker at its first formula
        if importlib.util.find_spec(package) is None:
            raise TaskError(f"task.kind: math needs the package {package} (pip install 'c3jax[maths]'), found none")
    return read_problems(path, read_problem, fields, ("id", "question", "answer"))


def read_problem(row: Row) -> Problem:
    """Read one row, as load_problems does; it does not see whether an id is given twice. Raises TaskError."""
    question = read_question(row, *_QUESTIONS)
    row = lower_names(row)
    fields = row.fields
    source = next((name for name in _ANSWERS if name in fields), _ANSWERS[0])
    solution = fields.get(source)
    if isinstance(solution, (int, float)) and not isinstance(solution, bool):
        solution = repr(solution)
    text = check_text(row.where, source, solution)
    box = latex.find_last_box(text)
    if box is None and source == "solution":
        raise TaskError(rf"{row.where}: expected an answer, or a solution with a \boxed{{...}}, got {text[-80:]!r}")
    answer = (text.rpartition("####")[2] if box is None else box).strip()
    if not answer or len(answer) > LONGEST_ANSWER:
        raise TaskError(f"{row.where}: expected an answer of 1 to {LONGEST_ANSWER} characters, got {len(answer)}")
    return Problem(index=row.index, id=read_id(row, *_IDS), question=question, answer=answer)


def read_answer(text: str) -> str | None:
    r"""Read what the last complete \boxed{...} of a message holds; None where there is none, or nothing in it.

    Boxes that "and", "or" or a comma alone joins are one answer: \boxed{5} and \boxed{7} is 5, 7.
    """
    box = latex.find_last_boxes(text[-LONGEST_MESSAGE:])
    return box.strip() or None if box is not None else None


def grade(problem: Problem, text: str) -> Verdict:
    r"""Grade a message: score 1.0 if what its last box holds says the same as the problem's answer, else 0.0.

    A message without a box, and a box that is too long or too deep to be read, is "unparsable", which is not
    "wrong". `Verdict.second` is what the normal form alone says.
    """
    answer = read_answer(text)
    if answer is None:
        return Verdict(0.0, "unparsable", None, r"no \boxed{...} in the message", second=False)
    if len(answer) > LONGEST_ANSWER or latex.measure_depth(answer) > DEEPEST_ANSWER:
        bounds = f"{LONGEST_ANSWER} characters and {DEEPEST_ANSWER} levels"
        return Verdict(0.0, "unparsable", answer[:LONGEST_ANSWER], f"the box exceeds {bounds}", second=False)
    second = normal_form.is_same(problem.answer, answer)
    is_other = words.is_other_quantity(answer, problem.question)
    if not is_other and equality.is_equal(latex.tidy(problem.answer), latex.tidy(answer), problem.question):
        return Verdict(1.0, "correct", answer, second=second)
    return Verdict(0.0, "wrong", answer, second=second)


def write_answer(problem: Problem) -> tuple[str, str]:
    r"""A message that is right, up to the opened \boxed{ and what it holds."""
    return r"The answer is $\boxed{", problem.answer


def _read_published(row: Row) -> Problem | None:
    """A row of a published set; None for one without an answer, as some files have them."""
    fields = lower_names(row).fields
    answer = next((fields[name] for name in _ANSWERS if name in fields), None)
    return read_problem(row) if answer is not None and str(answer).strip() else None


def _write_record(problem: Problem) -> dict[str, object]:
    return {"id": problem.id, "question": problem.question, "answer": problem.answer}


MATH = Task(
    grade=grade,
    section=MathTask,
    load=load_problems,
    read_answer=read_answer,
    canonical=normal_form.normalise,
    write_answer=write_answer,
    prepare=Prepare(_read_published, _write_record),
)
