"""Sets of problems on disk: one JSON object a line, every fault named by file and line. Host code."""

from __future__ import annotations

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from c3jax.types import Problem, UserError


class TaskError(UserError):
    """One sentence on what is wrong with a set of problems, or with the request for one."""


class Row(NamedTuple):
    """One line of a file."""

    where: str  # "file, line 3", for messages
    index: int  # from 0
    fields: dict[str, object]


_GZIP = b"\x1f\x8b"  # how such a file starts, and no text in UTF-8 does
_QUESTIONS = ("question", "prompt", "problem")


def load_problems(path: str) -> list[Problem]:
    """Load the problems of a task that says nothing else: rows {"id"?, "question", "answer"?, ...}.

    The question may also be called prompt or problem. An answer that is no text is kept as its JSON, one that is
    missing as an empty text; the other columns are kept as they are.

    Raises:
      TaskError: the file cannot be read, a row has no question, or two ids agree.
    """
    problems = [_read_problem(row) for row in read_rows(path)]
    check_distinct(path, [problem.id for problem in problems])
    return problems


def _read_problem(row: Row) -> Problem:
    name = next((name for name in _QUESTIONS if name in row.fields), _QUESTIONS[0])
    answer = row.fields.get("answer", "")
    return Problem(
        index=row.index,
        id=read_id(row, "id"),
        question=check_text(row.where, name, row.fields.get(name)),
        answer=answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False),
        columns={key: value for key, value in row.fields.items() if key not in ("id", name, "answer")},
    )


def read_rows(path: str) -> list[Row]:
    """Read a UTF-8 file of JSON objects, one a line; it may be gzipped, as public sets are.

    Raises:
      TaskError: the file cannot be read or is empty, or a line is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise TaskError(f"{path}: the file cannot be read ({error.strerror})") from error
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise TaskError(f"{path}: this is no whole gzip file ({error})") from error
    return parse_rows(path, content)


def parse_rows(path: str, content: bytes) -> list[Row]:
    """Read what a file of JSON objects, one a line, holds; `path` is its name in messages.

    Raises:
      TaskError: there is nothing in it, or a line is no JSON object.
    """
    # Split bytes at line feeds only: str.splitlines would also split inside strings, at U+2028 and its like.
    lines = content.removeprefix(codecs.BOM_UTF8).rstrip().split(b"\n") if content.strip() else []
    if not lines:
        raise TaskError(f"{path}: the set is empty")
    rows = []
    for index, line in enumerate(lines):
        where = f"{path}, line {index + 1}"
        rows.append(Row(where, index, _read_object(where, line)))
    return rows


def _read_object(where: str, line: bytes) -> dict[str, object]:
    try:
        fields = json.loads(line.decode("utf-8"), parse_constant=_refuse_number, parse_float=_read_float)
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: byte {error.start + 1} of the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: the line is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise TaskError(f"{where}: expected a JSON object, got {type(fields).__name__}")
    return fields


def _read_float(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refuse_number(text)


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def read_id(row: Row, *names: str) -> str:
    """Read the first of the named fields that the row has as its id, or else take its number. Raises TaskError."""
    identity = next((row.fields[name] for name in names if name in row.fields), str(row.index))
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    return check_text(row.where, "id", identity)


def check_text(where: str, name: str, value: object) -> str:
    """Check that a field is text that is not blank and that a tokenizer can encode. Raises TaskError."""
    if value is None:
        raise TaskError(f"{where}: the field {name!r} is missing")
    if not isinstance(value, str):
        raise TaskError(f"{where}: the field {name!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise TaskError(f"{where}: the field {name!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        # JSON can spell half a surrogate pair; no tokenizer can encode it.
        raise TaskError(f"{where}: the field {name!r} holds half a surrogate pair")
    return value


def check_distinct(path: str, identities: Iterable[str]) -> None:
    """Refuse a file in which two lines, from the first on, have the same id. Raises TaskError."""
    line_of_id: dict[str, int] = {}
    for line_number, identity in enumerate(identities, start=1):
        first = line_of_id.setdefault(identity, line_number)
        if first != line_number:
            raise TaskError(f"{path}, line {line_number}: the id {identity!r} is already that of line {first}")


def check_limit(path: str, limit: int | None) -> None:
    """Refuse a limit on the number of problems that leaves none. Raises TaskError."""
    if limit is not None and limit < 1:
        raise TaskError(f"{path}: the limit must be at least 1 problem, got {limit}")
