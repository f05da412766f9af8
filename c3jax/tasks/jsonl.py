"""Sets of problems on disk: one JSON object a line, every fault named by file and line. Host code."""

from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from c3jax.types import Problem, UserError


class TaskError(UserError):
    """One sentence on what is wrong with a set of problems, or with the request for one."""


# The fields of a file that hold what a task reads under a name of its own: {"question": ("Body", "Question")}.
Fields = Mapping[str, str | Sequence[str]]
AS_THEY_ARE: Fields = {}


class Row(NamedTuple):
    """One line of a file."""

    where: str  # "file, line 3", for messages
    index: int  # from 0
    fields: dict[str, object]
    is_question_given: bool = False  # whoever uses the file has said what its questions are made of


_GZIP = b"\x1f\x8b"  # how such a file starts, and no text in UTF-8 does
_QUESTIONS = ("question", "prompt", "problem")


def load_problems(path: str, fields: Fields = AS_THEY_ARE) -> list[Problem]:
    """Load the problems of a task that says nothing else: rows {"id"?, "question", "answer"?, ...}.

    The question may also be called prompt or problem. An answer that is no text is kept as its JSON, one that is
    missing as an empty text; the other columns are kept as they are, and one that reads like a part of the question
    is said.

    Args:
      path: UTF-8 file, one JSON object a line.
      fields: the file's fields by the names above, and by those of other columns.

    Returns:
      Problems in file order.

    Raises:
      TaskError: the file cannot be read, a row has no question or lacks one of `fields`, or two ids agree.
    """
    return read_problems(path, _read_problem, fields=fields)


def read_problems(
    path: str,
    read: Callable[[Row], Problem],
    fields: Fields = AS_THEY_ARE,
    known: Sequence[str] | None = None,
) -> list[Problem]:
    """Read every row of a file as a problem.

    Args:
      path: of the file.
      read: makes a problem of a row.
      fields, known: as for `read_rows`.

    Raises:
      TaskError: as `read_rows` and `read`, and where two ids agree.
    """
    problems = [read(row) for row in read_rows(path, fields, known)]
    check_distinct(path, [problem.id for problem in problems])
    return problems


def _read_problem(row: Row) -> Problem:
    name = next((name for name in _QUESTIONS if name in row.fields), _QUESTIONS[0])
    answer = row.fields.get("answer", "")
    for part in () if row.is_question_given else [part for part in row.fields if part.lower() in _PARTS]:
        _warn_once(row, f"the field {part!r} is given to the grader, and is no part of the question")
    return Problem(
        index=row.index,
        id=read_id(row, "id"),
        question=check_text(row.where, name, row.fields.get(name)),
        answer=answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False),
        columns={key: value for key, value in row.fields.items() if key not in ("id", name, "answer")},
    )


def read_rows(path: str, fields: Fields = AS_THEY_ARE, known: Sequence[str] | None = None) -> list[Row]:
    """Read a UTF-8 file of JSON objects, one a line; it may be gzipped, as public sets are.

    Args:
      path: of the file.
      fields: the file's fields by the names that the task reads; several are texts, put together line by line.
      known: those names; None where it reads any.

    Returns:
      A row a line, its fields by the names that the task reads.

    Raises:
      TaskError: the file cannot be read or is empty, a line is no JSON object or lacks one of `fields`, or those are
        of names that the task does not read.
    """
    for name in fields:
        if known is not None and name not in known:
            raise TaskError(f"fields of {path}: expected fields for {', '.join(known)}, got some for {name!r}")
    return [_rename(row, fields) for row in parse_rows(path, read_content(path))]


def read_content(path: str) -> bytes:
    """Read a file, which may be gzipped. Raises TaskError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise TaskError(f"{path}: the file cannot be read ({error.strerror})") from error
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path}: this is no whole gzip file ({error})") from error


def _rename(row: Row, fields: Fields) -> Row:
    """Put a row's fields under the names that the task reads; what else has such a name is left out."""
    renamed: dict[str, object] = {}
    sources = {name: [source] if isinstance(source, str) else source for name, source in fields.items()}
    for name, given in sources.items():
        missing = next((source for source in given if source not in row.fields), None)
        if missing is not None:
            has = ", ".join(map(repr, row.fields))
            raise TaskError(
                f"{row.where}: expected the field {missing!r}, which is to be in the {name}, got {has:.200}"
            )
        values = [row.fields[source] for source in given]
        if len(given) > 1:  # a part is a text, or the options that it lists
            lists = [value if isinstance(value, list) and value else [value] for value in values]
            pairs = [(source, text) for source, texts in zip(given, lists, strict=True) for text in texts]
            values = ["\n".join(check_text(row.where, *pair).strip() for pair in pairs)]
        renamed[name] = values[0]
    taken = {source for given in sources.values() for source in given}
    rest = {name: value for name, value in row.fields.items() if name not in taken and name.lower() not in renamed}
    return row._replace(fields=rest | renamed, is_question_given="question" in renamed)


def parse_rows(path: str, content: bytes) -> list[Row]:
    """Read what a file of JSON objects, one a line, holds.

    Args:
      path: its name in messages.
      content: UTF-8.

    Raises:
      TaskError: there is nothing in it, or a line is no JSON object.
    """
    # Split bytes at line feeds only: str.splitlines would also split inside strings, at U+2028 and its like.
    lines = content.removeprefix(codecs.BOM_UTF8).rstrip().split(b"\n") if content.strip() else []
    if not lines:
        raise TaskError(f"{path}: the set is empty")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TaskError(f"{path}: expected UTF-8, got UTF-16 (iconv -f UTF-16 -t UTF-8 turns it)")
    try:
        return [_read_row(path, index, line) for index, line in enumerate(lines)]
    except TaskError:
        if _is_json(content) and (len(lines) > 1 or not content.lstrip().startswith(b"{")):
            raise TaskError(
                f"{path}: expected a JSON object a line, got one JSON text (jq -c '.[]' parts a list)"
            ) from None
        raise


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _read_row(path: str, index: int, line: bytes) -> Row:
    where = f"{path}, line {index + 1}"
    try:
        fields = _DECODER.decode(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: byte {error.start + 1} of the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else error if line.strip() else "it is blank"
        raise TaskError(f"{where}: the line is not JSON ({reason})") from error
    if not isinstance(fields, dict):
        raise TaskError(f"{where}: expected a JSON object, got {type(fields).__name__}")
    return Row(where, index, fields)


def _read_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return fields


def _read_integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _read_float(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refuse_number(text)


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


_LONGEST_INTEGER = 4300  # characters: what Python turns into an integer
_DECODER = json.JSONDecoder(
    object_pairs_hook=_read_pairs, parse_int=_read_integer, parse_float=_read_float, parse_constant=_refuse_number
)

# What a question cannot do without, under the names that sets have for it.
_PARTS = (
    *("body", "context", "passage", "story", "paragraph", "article", "document", "background", "premise", "scenario"),
    *("situation", "text", "table", "options", "choices"),
)
# What a problem has beside its question and answer, under any name with one of these in it.
_BESIDE = re.compile(
    "id$|idx|hash|source|url|link|licen[cs]e|citation|author|title|name|date|split|dataset|tag|metadata|comment|note"
    "|type|subject|topic|categor|domain|level|difficult|grade|skill|solution|answer|golden|truth|target|label|rationale"
    "|explanation|reason|thought|cot$|step|proof|hint|code|program|equation|formula|expression|output|response|completion"
    "|generat|predict|message|conversation|prompt|translat|original|test|setup|preamble"
)
_LONG = 40  # characters of a text that a reader would miss


def read_question(row: Row, *names: str) -> str:
    """Read the first of the named fields that a row has, in any case, as its question: behind its body (SVAMP, ASDiv).

    Another long text that nothing reads is said, once a file.

    Raises:
      TaskError: there is none, it is no text, or the row has a field beside it that a question cannot do without.
    """
    written = {name.lower(): name for name in row.fields}
    name = next((written[name] for name in names if name in written), None)
    if name is None:
        has = ", ".join(map(repr, row.fields))
        raise TaskError(f"{row.where}: the field {names[0]!r} is missing (task.fields can make it of {has:.200})")
    asked = question = check_text(row.where, name, row.fields.get(name))
    if row.is_question_given:
        return question
    body = row.fields.get(written.get("body", ""))
    if isinstance(body, str) and body.strip() and not _holds(question, body):
        question = f"{check_text(row.where, 'body', body).strip()}\n{question.strip()}"
    for lower, other in written.items():
        value = row.fields[other]
        if not value or not isinstance(value, str | list | dict) or _holds(question, value) or _holds(value, asked):
            continue
        if lower in _PARTS or lower in names:
            order = (other, name) if isinstance(value, str) else (name, other)
            raise TaskError(
                f"{row.where}: expected a whole problem in {name!r}, got a part of it in {other!r} (task.fields says"
                f" what a question is made of, as {{question: [{', '.join(order)}]}})"
            )
        if isinstance(value, str) and len(value) >= _LONG and not _BESIDE.search(lower):
            _warn_once(row, f"the field {other!r} is not read (task.fields can make it a part of the question)")
    return question


def _holds(text: object, part: object) -> bool:
    """Whether a text has all of the words of a part of it, which may be a list or an object of texts."""
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else [part]
    words = " ".join(str(text).split())
    return all(" ".join(str(each).split()) in words for each in parts)


def _warn_once(row: Row, fault: str) -> None:
    warnings.warn(f"{row.where.rpartition(', line ')[0]}: {fault}", stacklevel=2)  # Python says a text once


def lower_names(row: Row) -> Row:
    """A row with the names of its fields in small letters."""
    return row._replace(fields={name.lower(): value for name, value in row.fields.items()})


def read_id(row: Row, *names: str) -> str:
    """Read the first of the named fields that the row has as its id, or else take its number. Raises TaskError."""
    identity = next((row.fields[name] for name in names if name in row.fields), str(row.index))
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    return check_text(row.where, "id", identity)


def check_text(where: str, name: str, value: object) -> str:
    """Check that a field is text that is not blank and that a tokenizer can encode.

    Args:
      where: file and line, for messages.
      name: of the field.
      value: None where the row lacks it.

    Returns:
      The value.

    Raises:
      TaskError: it is anything else.
    """
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
