r"""Whether two LaTeX answers say the same: rules for what has a structure, math-verify for the formulas in it.

The first rule that applies decides. Numbers are equal if they are equal as fractions, and in no other case. Tuples
and intervals have an order and their brackets, lists and sets have none. An inequality in one variable is the
interval it describes. A name before the answer (x = 5), its unit and the base of its digits may be left out; what
is there must not contradict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from c3jax.tasks.maths import latex, symbolic
from c3jax.tasks.maths.latex import Enclosed


class Hints(NamedTuple):
    """What the question says of how its answer is to be read."""

    asks_percent: bool  # so that 5% may stand for 5
    asks_base: bool  # so that 101_2 may stand for 101


def read_hints(question: str) -> Hints:
    """Look for percentages and number bases in a question."""
    text = question.lower()
    return Hints("percent" in text or "%" in text, "base" in text or "binary" in text or "_{" in text)


def is_equal(expected: str, answer: str, hints: Hints) -> bool:
    """Decide whether an answer says what is expected; both are tidy (`latex.tidy`)."""
    if _squeeze(expected) == _squeeze(answer):
        return True
    for rule in _RULES:
        decision = rule(expected, answer, hints)
        if decision is not None:
            return decision
    return symbolic.is_equal(expected, answer)


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


# --------------------------------------------------------------------------------------------------------------------
# Rules. Each decides, or gives None where it does not apply.

# Possessive, so that a text of many subscripts is read in one way only.
_NAME = re.compile(
    r"(?=.*[A-Za-z])(?:\\(?:text|mathcal) ?\{[^{}]*\}|[^0-9+\-*/,<>={}_]|_\{?+[0-9A-Za-z]++\}?+)++", re.DOTALL
)


_MARK = re.compile(r"=|\\in(?![a-z])")


class _Named(NamedTuple):
    name: str | None
    rest: str


def _read_name(text: str) -> _Named:
    left, *rest = _MARK.split(text, maxsplit=1)
    if not rest or not _NAME.fullmatch(left.strip().replace("^{-1}", "")):
        return _Named(None, text)
    return _Named(_squeeze(left), rest[0].strip())


def _match_names(expected: str, answer: str, hints: Hints) -> bool | None:
    if any(len(latex.split_top(text, ",")) > 1 and text.count("=") > 1 for text in (expected, answer)):
        return None  # a list of named values
    wanted, given = _read_name(expected), _read_name(answer)
    if "=" not in expected and "=" in given.rest and "=" not in (sides := latex.split_top(given.rest, "="))[-1]:
        # "10/4 = 2.5": the last side is the answer, and no number before it may be another one.
        numbers = [side for side in sides[:-1] if latex.parse_number(side) is not None]
        return all(is_equal(expected, side, hints) for side in [sides[-1], *numbers])
    if wanted.name is None and given.name is None or "=" in wanted.rest or "=" in given.rest:
        return None
    if wanted.name and given.name and wanted.name != given.name and len(wanted.name) == len(given.name) == 1:
        return False
    return is_equal(wanted.rest, given.rest, hints)


def _match_numbers(expected: str, answer: str, hints: Hints) -> bool | None:
    wanted, given = latex.parse_number(expected), latex.parse_number(answer)
    if wanted is None or given is None:
        return None
    if wanted.is_percent == given.is_percent:
        return wanted.value == given.value
    if wanted.is_percent:  # the sign may be left out, or worked out
        return given.value in (wanted.value, wanted.value / 100)
    return given.value / 100 == wanted.value or (hints.asks_percent and given.value == wanted.value)


class _Region(NamedTuple):
    variable: str | None
    intervals: tuple[Enclosed, ...]


_RELATION = re.compile(r"(\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|<|>)")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|phi)|f ?\([a-z]\)")
_LOWEST, _HIGHEST = r"-\infty", r"\infty"


def _read_region(text: str) -> _Region | None:
    """Read a union of intervals, or inequalities in one variable joined by "or"."""
    if _squeeze(text) == r"\reals":
        return _Region(None, (Enclosed("(", (_LOWEST, _HIGHEST), ")"),))
    pieces = latex.split_top(text, r"\cup")
    found = [latex.split_enclosed(piece) for piece in pieces]
    intervals = tuple(piece for piece in found if piece is not None and len(piece.parts) == 2 and piece.left in "([")
    if len(intervals) == len(pieces):
        return _Region(None, intervals)
    regions = [_read_inequality(part) for part in latex.split_top(text, ",")]
    known = [region for region in regions if region is not None]
    if len(known) < len(regions) or len({region.variable for region in known}) > 1:
        return None
    return _Region(known[0].variable, tuple(interval for region in known for interval in region.intervals))


def _read_inequality(text: str) -> _Region | None:
    first, *rest = (piece.strip() for piece in _RELATION.split(text))
    relations, sides = rest[0::2], [first, *rest[1::2]]
    places = [place for place, side in enumerate(sides) if _VARIABLE.fullmatch(side)]
    if len(places) != 1 or not 1 <= len(relations) <= 2 or not all(sides):
        return None
    place = places[0]
    if relations == [r"\ne"]:
        hole = sides[1 - place]
        return _Region(sides[place], (Enclosed("(", (_LOWEST, hole), ")"), Enclosed("(", (hole, _HIGHEST), ")")))
    if relations[0] in (">", r"\ge"):  # turn it round, so that it rises from left to right
        relations = [{">": "<", r"\ge": r"\le"}.get(relation, ">") for relation in reversed(relations)]
        sides, place = sides[::-1], len(sides) - 1 - place
    if not set(relations) <= {"<", r"\le"} or (len(relations) == 2 and place != 1):
        return None
    has_low, has_high = place > 0, place < len(sides) - 1
    return _Region(
        sides[place],
        (
            Enclosed(
                "[" if has_low and relations[0] == r"\le" else "(",
                (sides[0] if has_low else _LOWEST, sides[-1] if has_high else _HIGHEST),
                "]" if has_high and relations[-1] == r"\le" else ")",
            ),
        ),
    )


def _match_regions(expected: str, answer: str, hints: Hints) -> bool | None:
    wanted, given = _read_region(expected), _read_region(answer)
    if wanted is None or given is None:
        return None
    if wanted.variable and given.variable and wanted.variable != given.variable:
        return False

    def is_same(left: Enclosed, right: Enclosed) -> bool:
        return (left.left, left.right) == (right.left, right.right) and _is_sequence_equal(
            left.parts, right.parts, hints
        )

    return _is_rearranged(wanted.intervals, given.intervals, is_same)


def _is_sequence_equal(expected: Sequence[str], answer: Sequence[str], hints: Hints) -> bool:
    return len(expected) == len(answer) and all(
        is_equal(wanted.removeprefix("+"), given.removeprefix("+"), hints)
        for wanted, given in zip(expected, answer, strict=True)
    )


def _is_rearranged(expected: Sequence, answer: Sequence, is_same) -> bool:
    """Whether two sequences are equal up to their order; equality holds between all or none of those it joins."""
    left = list(answer)
    for wanted in expected:
        place = next((place for place, given in enumerate(left) if is_same(wanted, given)), None)
        if place is None:
            return False
        del left[place]
    return not left


def _match_lists(expected: str, answer: str, hints: Hints) -> bool | None:
    wanted, given = _read_list(latex.join_thousands(expected)), _read_list(latex.join_thousands(answer))
    if (wanted, given) == ([latex.join_thousands(expected)], [latex.join_thousands(answer)]):
        return None
    if len(wanted) != len(given):  # what looks like one number may be a list: 10,100
        wanted, given = _read_list(expected), _read_list(answer)
    return len(wanted) == len(given) and _is_rearranged(wanted, given, lambda left, right: is_equal(left, right, hints))


def _read_list(text: str) -> list[str]:
    r"""The elements of a list or a set; one that says \pm is two."""
    enclosed = latex.split_enclosed(text)
    parts = enclosed.parts if enclosed is not None and enclosed.left == r"\{" else latex.split_top(text, ",")
    return [element for part in parts for element in _expand_sign(part)]


def _expand_sign(text: str) -> list[str]:
    if text.count(r"\pm") != 1:
        return [text]
    return [text.replace(r"\pm", sign).strip().removeprefix("+").strip() for sign in "+-"]


def _match_enclosed(expected: str, answer: str, hints: Hints) -> bool | None:
    wanted, given = latex.split_enclosed(expected), latex.split_enclosed(answer)
    if wanted is None and given is None:
        return None
    is_point = [enclosed is not None and len(enclosed.parts) > 1 for enclosed in (wanted, given)]
    if wanted is not None and given is not None and any(is_point):
        same = (wanted.left, wanted.right) == (given.left, given.right)
        return same and _is_sequence_equal(wanted.parts, given.parts, hints)
    if any(is_point):
        return False
    # Brackets round one thing only hold it together.
    inner = [whole if part is None else part.parts[0] for whole, part in ((expected, wanted), (answer, given))]
    return is_equal(inner[0], inner[1], hints)


_MATRIX = re.compile(r"\\begin ?\{(?P<kind>[pb]?matrix)\}(?P<inside>.*)\\end ?\{(?P=kind)\}")


def _read_matrix(text: str) -> list[list[str]] | None:
    found = _MATRIX.fullmatch(text)
    if found is None or r"\begin" in found["inside"]:
        return None
    rows = [row for row in found["inside"].split(r"\\") if row.strip()]
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def _match_matrices(expected: str, answer: str, hints: Hints) -> bool | None:
    wanted, given = _read_matrix(expected), _read_matrix(answer)
    if wanted is None or given is None:
        return None if wanted is None and given is None else False
    return len(wanted) == len(given) and all(map(lambda *rows: _is_sequence_equal(*rows, hints), wanted, given))


_BASED = re.compile(r"(?P<digits>[0-9A-F]+(?:\.[0-9A-F]+)?) ?_ ?\{?(?:\\text\{)? ?(?P<base>[0-9]{1,2}|[a-z]+) ?\}{0,2}")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}


def _match_bases(expected: str, answer: str, hints: Hints) -> bool | None:
    wanted, given = _BASED.fullmatch(expected), _BASED.fullmatch(answer)
    if wanted is None and given is None:
        return None
    if wanted is None or given is None:
        digits = [whole if part is None else part["digits"] for whole, part in ((expected, wanted), (answer, given))]
        return digits[0] == digits[1] and (wanted is not None or hints.asks_base)
    bases = {_BASES.get(part["base"], part["base"]) for part in (wanted, given)}
    return wanted["digits"] == given["digits"] and len(bases) == 1


_UNIT_NAMES = {
    **dict.fromkeys(("cm", "centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("m", "meter", "metre"), "m"),
    **dict.fromkeys(("km", "kilometer", "kilometre"), "km"),
    **dict.fromkeys(("in", "inch", "inche"), "in"),
    **dict.fromkeys(("ft", "foot", "feet"), "ft"),
    **dict.fromkeys(("yd", "yard"), "yd"),
    **dict.fromkeys(("mi", "mile"), "mi"),
    **dict.fromkeys(("sec", "second"), "second"),
    **dict.fromkeys(("min", "minute"), "minute"),
    **dict.fromkeys(("hr", "hour"), "hour"),
    **dict.fromkeys(("gm", "gram"), "gram"),
    **dict.fromkeys(("kg", "kilogram"), "kg"),
    **dict.fromkeys(("lb", "pound"), "pound"),
    **dict.fromkeys(("am",), "am"),
    **dict.fromkeys(("pm",), "pm"),
    **{name: name for name in ("day", "week", "month", "year", "degree", "radian", "dollar", "cent", "mph", "liter")},
}
# Words that change what is said: no unit.
_NO_UNIT = re.compile(
    r"and|or|to|more|less|most|least|plus|minus|times|half|dozen|hundred|thousand|[mbtr]+illion|squared|cubed|pi|base|mod|none"
)
_POWER = r"(?:\s*\^\s*\{?\s*(?P<power>[23])\s*\}?)?"
_TEXT_UNIT = re.compile(rf"(?P<head>.*\S)\s*\\text\{{(?P<unit>[^{{}}]*)\}}{_POWER}")
_WORD_UNIT = re.compile(
    rf"(?P<head>.*[0-9)}}]|.*\\pi)\s*(?P<unit>(?:(?:square|sq|cubic|cu) )?(?:[a-z]\.?){{2,}}){_POWER}"
)
_DEGREES = re.compile(r"(?P<head>.*[0-9)}]) ?\^ ?\{? ?\\circ ?\}? ?(?:\\text\{ ?[CF] ?\}|[CF])?")


_OF_AN_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")  # where a degree is more than a unit


class _Measured(NamedTuple):
    head: str
    unit: str | None  # as one name, where it is a known one
    power: str | None


def _read_unit(text: str) -> _Measured:
    degrees = _DEGREES.fullmatch(text)
    if degrees is not None and not _OF_AN_ANGLE.search(text):
        return _Measured(degrees["head"].strip(), "degree", None)
    found = _TEXT_UNIT.fullmatch(text)
    if found is None:
        found = _WORD_UNIT.fullmatch(text)
        if found is None or _name_unit(found["unit"])[0] is None:
            return _Measured(text, None, None)
    unit, power = _name_unit(found["unit"])
    if any(_NO_UNIT.fullmatch(word) for word in re.findall("[a-z]+", found["unit"].lower())):
        return _Measured(text, None, None)
    return _Measured(found["head"].strip().removesuffix(r"\cdot").strip(), unit, found["power"] or power)


def _name_unit(text: str) -> tuple[str | None, str | None]:
    words = text.lower().replace(".", "").split()
    power = None
    if words and words[0] in ("square", "sq", "cubic", "cu"):
        power = "2" if words[0].startswith("sq") else "3"
        words = words[1:]
    name = words[0] if len(words) == 1 else ""
    return _UNIT_NAMES.get(name) or _UNIT_NAMES.get(name.removesuffix("s")), power


def _match_units(expected: str, answer: str, hints: Hints) -> bool | None:
    wanted, given = _read_unit(expected), _read_unit(answer)
    if wanted.head == expected and given.head == answer:
        return None
    if wanted.unit and given.unit and (wanted.unit, wanted.power) != (given.unit, given.power):
        return False
    return is_equal(wanted.head, given.head, hints)


_WORD = re.compile(r"\\text|(?<![A-Za-z\\])(?:[A-Za-z]{3,}|[A-Z]{2,})|[^\x00-\x7f]")


def _match_texts(expected: str, answer: str, hints: Hints) -> bool | None:
    is_option = re.fullmatch(r"[A-Z]", expected) is not None
    if not is_option and not _WORD.search(expected) and not _WORD.search(answer):
        return None
    return _plain(expected) == _plain(answer)


def _plain(text: str) -> str:
    return re.sub(r"\\text|[\s{}().:\"'`]", "", text).lower()


_RULES = (
    _match_names,
    _match_numbers,
    _match_regions,
    _match_lists,
    _match_enclosed,
    _match_matrices,
    _match_bases,
    _match_units,
    _match_texts,
)
