"""Sets of programming problems: records of MBPP, MBPP+, HumanEval, HumanEval+ and our own, read as they are. Host code.

The question that a policy sees names what it has to define: a program that guesses another name passes no test.
"""

from __future__ import annotations

import ast
import functools
import re
from typing import Literal, NamedTuple

from c3jax.schema import ConfigError
from c3jax.tasks.code import names as names_lib
from c3jax.tasks.code.task import Check, grade, read_answer, read_check, write_check
from c3jax.tasks.jsonl import AS_THEY_ARE, Fields, Row, TaskError, check_text, read_id, read_problems, read_question
from c3jax.tasks.sandbox.isolation import check_isolation
from c3jax.tasks.sections import CodeTask
from c3jax.tasks.task import Prepare, Task
from c3jax.types import Problem


class CodeSpec(NamedTuple):
    """How the programs of a set are run and paid."""

    reward: Literal["all_pass", "fraction"] = "all_pass"
    timeout_s: float = 15.0  # processor time of a program and its tests, and time in which neither wants a processor
    memory_mb: int = 1024  # address space of each of a program's processes
    output_mb: int = 32  # one value that a program returns, as JSON
    is_contained: bool = True  # False: no sandbox; programs run with the rights of the caller
    wall_s: float = 120.0  # time on the wall's clock, on a machine that is busy with other things


_PLAIN = CodeSpec()
_OWN = ("id", "question", "tests", "setup", "entry_point", "preamble")


def load_problems(path: str, spec: CodeSpec = _PLAIN, fields: Fields = AS_THEY_ARE) -> list[Problem]:
    """Load a JSONL set of programming problems.

    Records, told apart by their fields:
      ours              {"id"?, "question", "tests": [...], "setup"?, "entry_point"?, "preamble"?}
      MBPP, MBPP+       {"task_id", "text" or "prompt", "code", "test_list", "test"?, "test_setup_code"?}
      HumanEval(+)      {"task_id", "prompt", "entry_point", "test"}
    A test is Python that raises if the program is wrong, and functions test...() that it defines are called. MBPP+'s
    "test" holds the inputs of its "test_list" and more, so it is the one test; "test_imports" hold for it. Of ours,
    "entry_point" is a name or a list of them, and "preamble" a head that a message may continue.

    Args:
      spec: how programs are run.
      fields: the file's fields by the names of a record of ours, where it has others.

    Raises:
      TaskError: the file cannot be read, a line is none of these records, two ids agree, or the set is empty.
    """
    return read_problems(path, lambda row: read_problem(row, spec), fields, _OWN)


def write_record(problem: Problem) -> dict[str, object]:
    """Write a problem as a record of our own, from which read_problem makes the same problem."""
    check = read_check(problem.answer)
    record: dict[str, object] = {"id": problem.id, "question": problem.question, "tests": list(check.tests)}
    record |= {"setup": check.setup} if check.setup.strip() else {}
    record |= {"preamble": check.preamble} if check.preamble.strip() else {}
    return record | {"entry_point": list(check.names) if len(check.names) > 1 else check.entry_point}


_DEMAND = "\n\nYour program must define "


class _Record(NamedTuple):
    question: str
    tests: list[str]
    names: list[str]
    setup: str
    preamble: str = ""


def read_problem(row: Row, spec: CodeSpec = _PLAIN) -> Problem:
    """Read one row, as load_problems does; it does not see whether an id is given twice.

    Args:
      row: one of the records that load_problems reads.
      spec: how programs are run.

    Raises:
      TaskError: it is none of them.
    """
    fields = row.fields
    if "tests" in fields:
        record = _read_own(row)
    elif "test_list" in fields:
        record = _read_mbpp(row)
    elif "test" in fields and "entry_point" in fields:
        record = _read_humaneval(row)
    elif "plus_input" in fields:
        raise TaskError(
            f"{row.where}: expected tests as code, got EvalPlus's inputs, whose tuples JSON has lost: take the set's"
            " edition with a field 'test'"
        )
    else:
        raise TaskError(f"{row.where}: expected one of the fields 'tests', 'test_list' or 'test', found none")
    setup = _parse(row.where, "the setup", record.setup)
    is_head = record.setup == record.preamble
    check = Check(
        tests=tuple(record.tests),
        names=tuple(record.names),
        entry_point=record.names[-1],
        setup=record.setup,
        shared=record.setup if is_head else names_lib.share_setup(setup, record.tests, record.names, record.question),
        named=tuple(name for name in names_lib.find_classes(setup) if names_lib.is_mentioned(name, record.question)),
        preamble=record.preamble,
        test_imports=tuple(sorted(names_lib.find_modules([record.setup, *record.tests]) - set(record.names))),
        keeps=tuple(names_lib.looks_at_arguments(test, record.names) for test in record.tests),
        **spec._asdict(),
    )
    return Problem(row.index, read_id(row, "id", "task_id"), record.question, write_check(check))


def _read_own(row: Row) -> _Record:
    question = read_question(row, "question")
    tests = _read_tests(row, "tests")
    setup, preamble = _read_optional(row, "setup"), _read_optional(row, "preamble")
    _parse(row.where, "the preamble", preamble)
    if "entry_point" in row.fields:
        given = row.fields["entry_point"]
        names = [check_text(row.where, "entry_point", name) for name in (given if isinstance(given, list) else [given])]
    else:
        names = names_lib.find_undefined([*map(ast.parse, tests), _parse(row.where, "the setup", setup)])
    if not names:
        raise TaskError(f"{row.where}: expected tests that use a name which the program is to define, found none")
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", question)]
    if missing:
        question = f"{question.rstrip()}{_DEMAND}{' and '.join(f'`{name}`' for name in missing)}."
    return _Record(question, tests, names, setup, preamble)


def _read_mbpp(row: Row) -> _Record:
    text = row.fields.get("prompt", row.fields.get("text"))
    question = check_text(row.where, "prompt" if "prompt" in row.fields else "text", text)
    solution = _parse(row.where, "the code", check_text(row.where, "code", row.fields.get("code")))
    tests = _read_tests(row, "test_list")
    words = set(re.findall(r"\w+", "\n".join(tests)))
    heads = {name: head for name, head in names_lib.find_definitions(solution).items() if name in words}
    if not heads:
        raise TaskError(f"{row.where}: expected tests that use what the code defines, found none")
    imports = row.fields.get("test_imports", [])
    if not isinstance(imports, list):
        raise TaskError(f"{row.where}: the field 'test_imports' must be a list, got {type(imports).__name__}")
    setup = "\n".join([*map(str, imports), _read_optional(row, "test_setup_code")])
    if "test" in row.fields:
        tests = [_check_test(row, "test", row.fields["test"])]
    question = f"{question.rstrip()}{_DEMAND}{' and '.join(heads.values())}."
    return _Record(question, tests, list(heads), setup)


def _read_humaneval(row: Row) -> _Record:
    prompt = check_text(row.where, "prompt", row.fields.get("prompt"))
    name = check_text(row.where, "entry_point", row.fields.get("entry_point"))
    _parse(row.where, "the prompt", prompt)
    test = _check_test(row, "test", row.fields.get("test")) + f"\n\ncheck({name})\n"
    # Beside the tests, the prompt defines what it offers to both: HumanEval's tests use its other functions.
    return _Record(prompt, [test], [name], setup=prompt, preamble=prompt)


def _read_tests(row: Row, name: str) -> list[str]:
    tests = row.fields.get(name)
    if not isinstance(tests, list) or not tests:
        raise TaskError(f"{row.where}: the field {name!r} must be a list of at least one test")
    return [_check_test(row, f"{name}.{index}", test) for index, test in enumerate(tests)]


# Faults of MBPP+'s and HumanEval+'s own tests, and their mending. By the first two a program is paid for nothing.
_MENDED = (
    # np.allclose spreads an empty list over any shape: [] would be close to every number.
    ("np.allclose(out, exp,", "np.shape(out) == np.shape(exp) and np.allclose(out, exp,"),
    # Three tests of MBPP+ compare, and do nothing with what comes out.
    ("exact_match = exp == (out is not None)\n", "exact_match = exp == (out is not None)\n    assert exact_match\n"),
    # Inputs of MBPP+ 255 have up to 1.7 million right answers of 77 words each: a gigabyte.
    (
        "enumerate(inputs):\n    assertion(combinations_colors(",
        "enumerate(inputs):\n    if inp[1] > 70:\n        continue\n    assertion(combinations_colors(",
    ),
    # Inputs of MBPP+ 599 have its reference add 10^8 numbers, 14 times; EvalPlus's edition without extremes has none.
    (
        "zip(inputs, results)):\n    assertion(sum_average(",
        "zip(inputs, results)):\n    if inp[0] > 10**7:\n        continue\n    assertion(sum_average(",
    ),
)


def _check_test(row: Row, name: str, test: object) -> str:
    text = check_text(row.where, name, test).replace("\r\n", "\n")
    for fault, mending in _MENDED:
        if mending not in text:  # a set that was prepared has been mended before
            text = text.replace(fault, mending)
    try:
        compile(text, name, "exec", dont_inherit=True)  # not parsed: MBPP+ has megabytes of tests
    except (SyntaxError, ValueError, RecursionError) as error:
        raise TaskError(f"{row.where}: the field {name!r} is no Python ({error})") from error
    return text


def _read_optional(row: Row, name: str) -> str:
    text = row.fields.get(name)
    return "" if text is None or text == "" else check_text(row.where, name, text).replace("\r\n", "\n")


def _parse(where: str, what: str, text: str) -> ast.Module:
    try:
        return ast.parse(text.replace("\r\n", "\n"))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise TaskError(f"{where}: {what} is no Python ({error})") from error


# --------------------------------------------------------------------------------------------------------------------
# The task


_JUDGING_S = 2.0  # what judging a program takes beside its own time
_STARTING_S = 60.0  # what may come before it on a busy machine: a judge and two sandboxes start


def bind(section: CodeTask | None, grade_timeout: float | None, is_contained: bool) -> Task:
    """The task with the limits of a section, or the usual ones, and with a sandbox that was tried.

    Args:
      section: None for the usual limits.
      grade_timeout: seconds that one evaluator call may take; None leaves it to the limits.
      is_contained: False runs programs without a sandbox.

    Raises:
      UserError: the limits do not fit each other or grade_timeout, or the sandbox does not hold here.
    """
    spec = CodeSpec(is_contained=is_contained)
    if section is not None:
        limits = (section.timeout, section.memory, section.output)
        spec = CodeSpec(section.reward, *limits, is_contained, section.wall)
    if spec.wall_s < spec.timeout_s:
        raise ConfigError(f"task.wall: expected at least task.timeout ({spec.timeout_s:g}), got {spec.wall_s:g}")
    if grade_timeout is not None and spec.timeout_s + _JUDGING_S > grade_timeout:
        raise ConfigError(
            f"{'grade_timeout' if section is None else 'task.timeout'}: expected grade_timeout to be {_JUDGING_S:g}"
            f" seconds or more above a program's own time, got {grade_timeout:g} and {spec.timeout_s:g}"
        )
    # A program is to end by its own limits, with a verdict of its own, before its grader is ended with it.
    timeout_s = spec.wall_s + _STARTING_S if grade_timeout is None else grade_timeout
    spec = spec._replace(wall_s=min(spec.wall_s, timeout_s - _JUDGING_S))
    if is_contained:
        check_isolation()
    return CODE._replace(load=functools.partial(load_problems, spec=spec), timeout_s=timeout_s)


def _find_overlap_key(problem: Problem) -> tuple[str, str]:
    statement = problem.question.partition(_DEMAND)[0]  # the words of whoever wrote the problem
    return statement, read_check(problem.answer).entry_point.lower()


CODE = Task(
    grade=grade,
    section=CodeTask,
    load=load_problems,
    read_answer=read_answer,
    overlap_key=_find_overlap_key,
    prepare=Prepare(read_problem, write_record),
    bind=bind,
)
