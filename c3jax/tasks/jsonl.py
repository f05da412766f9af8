"""Sets of problems on disk: one JSON object a line, every fault named by file and line. Host code."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from typing import NamedTuple

from c3jax.types import UserError


class TaskError(UserError):
    """One sentence on what is wrong with a set of problems, or with the request for one."""


class Row(NamedTuple):
    """One line of a file."""

    place: str  # "file, line 3", for messages
    index: int  # from 0
    fields: dict[str, object]


def read_rows(path: str) -> list[Row]:
    """Read a UTF-8 file of JSON objects, one a line.

    Raises:
      TaskError: the file cannot be read or is empty, or a line is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise TaskError(f"{path}: the file cannot be read ({error.strerror})") from error
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
        place = f"{path}, line {index + 1}"
        rows.append(Row(place, index, _read_object(place, line)))
    return rows


def _read_object(place: str, line: bytes) -> dict[str, object]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TaskError(f"{place}: byte {error.start + 1} of the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{place}: the line is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise TaskError(f"{place}: expected a JSON object, got {type(fields).__name__}")
    return fields


def read_id(row: Row, *names: str) -> str:
    """Read the first of the named fields that the row has as its id, or else take its number. Raises TaskError."""
    identity = next((row.fields[name] for name in names if name in row.fields), str(row.index))
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    return check_text(row.place, "id", identity)


def check_text(place: str, name: str, value: object) -> str:
    """Check that a field is text that is not blank and that a tokenizer can encode. Raises TaskError."""
    if value is None:
        raise TaskError(f"{place}: the field {name!r} is missing")
    if not isinstance(value, str):
        raise TaskError(f"{place}: the field {name!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise TaskError(f"{place}: the field {name!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        # JSON can spell half a surrogate pair; no tokenizer can encode it.
        raise TaskError(f"{place}: the field {name!r} holds half a surrogate pair")
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
