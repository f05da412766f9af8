r"""Word problems whose answer is one number: load a set, read a number out of a message, grade it.

Numbers are compared exactly, as fractions: 1,000 = 1000 = 1000.0, and 72.4 is not 72. Nothing is
evaluated, and every pattern runs in time linear in the message, because messages are untrusted.
"""

from __future__ import annotations

import re
from fractions import Fraction

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
from c3jax.tasks.maths.latex import find_last_box
from c3jax.tasks.sections import NumericTask
from c3jax.tasks.task import Task
from c3jax.types import Problem, Verdict

LONGEST_NUMBER = 400  # characters: turning digits into an integer takes time quadratic in their count
LONGEST_MESSAGE = 100_000  # characters, counted from the end, where the answer stands


def load_problems(path: str, fields: Fields = AS_THEY_ARE) -> list[Problem]:
    """Load a JSONL set: rows {"id"?, "question", "answer"} with a plain number as answer, GSM8K's or SVAMP's own rows.

    Args:
      path: UTF-8 file, one JSON object a line. GSM8K's answers are solutions that end in "#### 18". Names in capitals
        count too, and a "body" stands before its question.
      fields: the file's fields by the names above, where it has others.

    Returns:
      Problems in file order: `index` is the 0-based row, `id` the row's own id or else its row number,
      `answer` the number as it is written in the file.

    Raises:
      TaskError: the file cannot be read, a line is not as above, two ids agree, or the set is empty.
    """
    return read_problems(path, _read_problem, fields, ("id", "question", "answer"))


def _read_problem(row: Row) -> Problem:
    question = read_question(row, "question")
    row = lower_names(row)
    solution = row.fields.get("answer")
    if isinstance(solution, (int, float)) and not isinstance(solution, bool):
        solution = repr(solution)
    answer = check_text(row.where, "answer", solution).rpartition("####")[2].strip()
    if parse_number(answer) is None:
        raise TaskError(f"{row.where}: the answer must be a number, or end in '####' and a number, got {answer[:80]!r}")
    return Problem(index=row.index, id=read_id(row, "id"), question=question, answer=answer)


_CURRENCY = "[$€£¥₹]"
_INTEGER = "(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*|0)"
_NUMBER = re.compile(
    rf"(?:{_CURRENCY} ?)?(?P<sign>[-+]?)(?:{_CURRENCY} ?)?"
    rf"(?:(?:(?P<whole>{_INTEGER}) )?(?P<over>{_INTEGER})/(?P<under>{_INTEGER})"
    # Two digits of exponent at most: 1e999999999 is an integer that fits into no memory.
    rf"|(?P<decimal>(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,2}})?))"
    r"(?: ?%)?"
)


def parse_number(text: str) -> Fraction | None:
    """Parse a text that is one number and nothing else; None for any other text.

    A sign (ASCII or U+2212), a currency sign before the number and a percent sign after it are allowed
    and change nothing but the sign: 72% is 72. Commas must group thousands (1,000 but not 10,00 or 3,5);
    digits are ASCII; integers have no leading zeros (the "000" of "1 000" must not become 0). Decimals,
    fractions (3/4), mixed numbers (2 1/2) and exponents of at most two digits are read. Texts of more than
    `LONGEST_NUMBER` characters are no numbers.
    """
    text = text.strip()
    match = _NUMBER.fullmatch(text.replace("−", "-")) if len(text) <= LONGEST_NUMBER else None
    if match is None:
        return None
    parts = {name: part.replace(",", "") for name, part in match.groupdict("0").items()}
    if match["over"] is None:
        value = Fraction(parts["decimal"])
    elif parts["under"] == "0":
        return None
    else:
        value = Fraction(int(parts["whole"])) + Fraction(int(parts["over"]), int(parts["under"]))
    return -value if parts["sign"] == "-" else value


def canonical(answer: str) -> str:
    """Spell a number that was read out of a message in one way, whatever way it was written in."""
    return str(parse_number(answer))


# A run begins and ends in a digit and takes in all that could belong to it (1.2.3, 3,5, 72٣, 10²), so that a part
# of something that is no number is never read as a number. Superscripts count as digits inside it, not in cm³.
_DIGIT = r"\d¼-¾⅐-⅟"
_RUN = rf"[{_DIGIT}](?:[.,/²³¹⁰⁴-⁹{_DIGIT}]*[²³¹⁰⁴-⁹{_DIGIT}])?"
_SIGNED_RUN = re.compile(
    # A dash after a digit, a letter or a bracket is a minus between two numbers or a hyphen, not a sign.
    r"(?P<sign>(?<![0-9A-Za-z)\]}%-])[-+])?"
    rf"(?:{_CURRENCY} ?)?"
    rf"(?P<run>(?:(?<![0-9A-Za-z.])\.)?{_RUN}(?:[eE][-+]?\d+)?(?: (?=\d+/){_RUN})?)"
)


def read_answer(text: str) -> str | None:
    r"""Read the final number out of a message.

    The last complete \boxed{...} decides; without one, what follows the last "####"; without that, the last
    number in the text. In the first two the number is the first after the last "=". Only the last
    `LONGEST_MESSAGE` characters are looked at.

    Returns:
      The number as it is written, without currency and percent signs, so that `parse_number` reads it; None
      where there is none, or where what stands in its place is malformed (3.1.4, 10,00, digits not ASCII).
    """
    tail = text[-LONGEST_MESSAGE:]
    if len(tail) < len(text):
        tail = tail.lstrip(".,/0123456789")  # the rest of a number that was cut in two
    tail = _simplify(tail)
    box = find_last_box(tail) if "\\boxed" in tail else None
    _, mark, conclusion = tail.rpartition("####")
    if box is not None:
        found = _find_numbers(box.rpartition("=")[2])[:1]
    elif mark:
        first_line = conclusion.strip().partition("\n")[0]
        # A line without a number is a heading of the fourth level, with the answer in the text below it.
        found = _find_numbers(first_line.rpartition("=")[2])[:1] or _find_numbers(conclusion)[-1:]
    else:
        found = _find_numbers(tail)[-1:]
    return found[0] if found and parse_number(found[0]) is not None else None


def _simplify(text: str) -> str:
    r"""Spell numbers written in LaTeX plainly: 1{,}000 or 1\,000, \$5, 7\%, 2\frac{1}{2}."""
    text = text.replace("−", "-")
    if "\\" not in text and "{,}" not in text:
        return text
    spellings = (("\\$", "$"), ("\\%", "%"), ("{,}", ","), ("\\!", ""), ("\\,", ","))
    for spelling, plain in spellings:
        text = text.replace(spelling, plain)
    text = re.sub(r"(?<=[0-9])\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}", r" \1/\2", text)
    return re.sub(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}", r"\1/\2", text)


def _find_numbers(text: str) -> list[str]:
    return [(match["sign"] or "") + match["run"] for match in _SIGNED_RUN.finditer(text)]


def grade(problem: Problem, text: str) -> Verdict:
    """Grade a message: score 1.0 if the number read out of it equals the problem's answer exactly, else 0.0.

    A message without a number is "unparsable", which is not "wrong".

    Raises:
      TaskError: the problem's own answer is not a number.
    """
    expected = parse_number(problem.answer)
    if expected is None:
        raise TaskError(f"problem {problem.id}: the answer {problem.answer[:80]!r} is not a number")
    answer = read_answer(text)
    if answer is None:
        return Verdict(0.0, "unparsable", None, "no number in the message")
    if parse_number(answer) == expected:
        return Verdict(1.0, "correct", answer)
    return Verdict(0.0, "wrong", answer)


def write_answer(problem: Problem) -> tuple[str, str]:
    """A message that is right, up to the number and the number."""
    return "The answer is", f" {problem.answer}"


NUMERIC = Task(
    grade=grade,
    section=NumericTask,
    load=load_problems,
    read_answer=read_answer,
    canonical=canonical,
    write_answer=write_answer,
)
