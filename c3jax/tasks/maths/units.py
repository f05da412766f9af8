r"""Quantities: a formula with its unit, a count of things or money; pint says which units are of one quantity."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Any, NamedTuple

from c3jax.tasks.maths import formula, latex


class Measure(NamedTuple):
    r"""A quantity, 5 \text{ km/h}, or a count, 5 \text{ red apples}."""

    head: str  # a formula
    unit: str  # plain text: "km/h", "square feet", "red apples", "cm^2"


_TEXT = r"\\text\{(?:[^{}]|\{[^{}]*\})*+\}"
_CHINESE = r"[\u4e00-\u9fff]++"
_POWER = r"(?: ?\^ ?\{? ?-?[1-9] ?\}?)"
# A word of a unit that stands in a formula without \text; short ones could be variables side by side.
_SHORT = (
    "cm|mm|km|dm|kg|mg|ml|mL|ft|in|yd|mi|lb|lbs|oz|hr|hrs|min|mins|sec|mph|kph|rad|deg|day|men|cup|ton|sq|cu|USD|am|pm"
)
_BARE = (
    rf"(?:(?<=[0-9)}}i ])(?:{_SHORT})(?![A-Za-z])|(?<= )[A-Za-z]{{3}}(?= |$)(?<=s)|(?<![A-Za-z\\])[A-Za-z]{{4,}}+)\.?"
)
_WORD = rf"(?:{_TEXT}|{_CHINESE}|{_BARE})"
_TAIL = rf"{_WORD}(?:{_POWER}? ?(?:(?:/|\\cdot|\*) ?(?:{_TEXT}|[A-Za-z]++)|{_WORD}))*{_POWER}?"
_QUOTIENT = re.compile(r"\\frac ?\{ ?\\text\{([^{}]*)\} ?\} ?\{ ?\\text\{([^{}]*)\} ?\}")
_MEASURED = re.compile(rf"(?P<head>.*?(?:[0-9)}}\]!%.]|\\pi|(?<=[0-9)}} ])[a-zA-Z](?= ?\\text)))\s*(?P<tail>{_TAIL})")
_BRACKETED = re.compile(
    rf"(?P<head>.*[0-9}}]) ?\( ?(?P<tail>{_TAIL}|(?<= \()[A-Za-z]+[A-Za-z.' /-]+|[\u4e00-\u9fff]+) ?\)"
)
_DEGREES = re.compile(r"(?P<head>.*[0-9)}]) ?\^ ?\{? ?\\circ ?\}? ?(?P<scale>(?:\\text ?\{)? ?(?P<letter>[CF]) ?\}?)?")
_PART = rf"[0-9]+(?:\.[0-9]+)? ?{_WORD}"
_COMPOUND = re.compile(rf"{_PART}(?: ?,? ?{_PART})+")
_MONEY = re.compile(r"(?P<before>[-+]?) ?(?:US ?)?(?P<sign>\\\$|[€£¥₹]|Rs\.?) ?(?P<head>[-+]?[0-9.].*)")
_CURRENCIES = {
    r"\$": "dollars",
    "€": "euros",
    "£": "pounds",
    "¥": "yuan",
    "₹": "rupees",
    "Rs": "rupees",
    "Rs.": "rupees",
}
_MAGNITUDES = {
    "ten": 10,
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
}
_MAGNITUDES |= {"trillion": 10**12, "dozen": 12, "half": Fraction(1, 2), "halve": Fraction(1, 2)}
_MAGNITUDES |= {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_MAGNITUDES |= {
    word: Fraction(1, n) for n, word in enumerate("third fourth fifth sixth seventh eighth ninth tenth".split(), 3)
}
_MAGNITUDES |= {"quarter": Fraction(1, 4), "hundredth": Fraction(1, 100), "thousandth": Fraction(1, 1000)}
_MAGNITUDES |= {"millionth": Fraction(1, 10**6)}
# Words that say more than what is counted: with one of them a text is no quantity.
_STATING = re.compile(
    r"\b(?:and|or|not|no|non|but|if|is|are|was|be|than|to|more|less|most|least|fewer|over|under|below|above|about|around"
    r"|plus|minus|negative|positive|times|twice|double|triple|squared?|cubed?|root|power|factorial|mod|modulo|base|point"
    r"|remainder|repeating|recurring|approximately|roughly|almost|nearly|maybe|probably|wrong|false|incorrect|true"
    r"|infinite|undefined|none|nothing|zero|one|two|three|four|five|six|seven|eight|nine|ten|inverse|reciprocal|pairs?"
    r"|score|gross|so|up|down|except|without|percent|percentage|thereof|half|x|pi)\b"
    r"|[不非负没多余倍约或以]|分之|左右"
)


def read_measure(text: str, question: str) -> Measure | None:
    """Read a formula and its unit; None where a text is no such thing.

    A magnitude word multiplies ("5 lakh"), unless the question counts in it ("how many lakh ..."); 2 hours 30 minutes
    are 2 + 1/2 hours.
    """
    if _COMPOUND.fullmatch(text):
        parts = [read_measure(part, question) for part in re.findall(_PART, text)]
        heads = [convert(part, parts[0].unit) if part and parts[0] else None for part in parts]
        if all(heads) and len({part.unit for part in parts}) == len(parts):
            return Measure(" + ".join(f"({head})" for head in heads), parts[0].unit)
        return None
    text = _QUOTIENT.sub(r"\\text{\1/\2}", text)
    money = _MONEY.fullmatch(text)
    if money:
        head = money["before"] + money["head"].replace(r"\$", "")
        inner = read_measure(head, question)
        return Measure(inner.head if inner else head, _CURRENCIES[money["sign"]])
    degrees = _DEGREES.fullmatch(text)
    if degrees and r"\circ" not in degrees["head"] and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        return Measure(degrees["head"].strip(), f"deg{degrees['letter']}" if degrees["letter"] else "degrees")
    found = _BRACKETED.fullmatch(text) or _MEASURED.fullmatch(text.removesuffix(r"\$"))
    if found is None:
        return Measure(text.removesuffix(r"\$"), "dollars") if text.endswith(r"\$") else None
    head = found["head"].strip().removesuffix(r"\cdot").strip().removesuffix("-")
    tail = re.sub(r"\\text ?|[{}]|\.(?! ?[0-9])", "", found["tail"].replace(r"\cdot", "*"))
    return _read_words(head, re.sub(r"\s+", " ", tail).strip(), question)


def read_letters(text: str) -> Measure | None:
    """Read 5 m and 5 m/s, whose units are letters, as names are; None where they are no known unit."""
    found = re.fullmatch(r"(?P<head>-?[0-9.,]*[0-9]) ?(?P<unit>[A-Za-z]{1,2}(?:[ /*^A-Za-z0-9{}-]*))", text)
    unit = re.sub("[{}]", "", found["unit"]) if found else ""
    return Measure(found["head"], unit) if found and _parse(unit) else None


def _read_words(head: str, unit: str, question: str) -> Measure | None:
    counted = find_counted(question)
    while (first := _split_magnitude(unit)) and first[0] not in counted:
        head, unit = rf"({head}) \cdot ({Fraction(_MAGNITUDES[first[0]])})", first[1]
    unit = unit.strip(" ,").removeprefix("of ")
    is_plain = re.fullmatch(r"(?:[A-Za-z\u4e00-\u9fff][^0-9,]*(?:\^ ?-?[1-9][^0-9,]*)*)?", unit) is not None
    said = [
        *_STATING.findall(_drop_squares(unit.lower())),
        *(w for w in re.findall(r"\w+", unit) if _split_magnitude(w)),
    ]
    if not is_plain or len(unit.split()) > 6 or any(word.removesuffix("s") not in counted for word in said):
        return None
    if not formula.is_formula(latex.join_thousands(head).removesuffix("%")):
        return None
    return Measure(head, unit)


def _split_magnitude(unit: str) -> tuple[str, str] | None:
    """Split a magnitude word off the front of a unit."""
    if re.match("千[克米卡瓦]", unit):
        return None
    first, _, rest = unit.partition(" ") if unit[:1].isascii() else (unit[:1], "", unit[1:])
    singular = first.lower() if first.lower() in _MAGNITUDES else first.lower().removesuffix("s")
    return (singular, rest) if singular in _MAGNITUDES else None


def _drop_squares(unit: str) -> str:
    return re.sub(r"\bsquare (?=\w)|(?<=\w) (?:squared|cubed)\b|\btimes(?: as [a-z ]+)?$|\bpairs?(?= of)", "", unit)


def find_counted(question: str) -> frozenset[str]:
    """The words that a question counts in: "how many more dozen eggs", 多少元."""
    counted = re.findall(r"how (?:many|much) ((?:[a-z]+ ?){1,3})", question.lower())
    words = {word.removesuffix("s") for words in counted for word in words.split()}
    chinese = re.findall("(?:多少|几)([\u4e00-\u9fff]{1,3})", question)
    return frozenset({*words, *(text[:end] for text in chinese for end in range(1, len(text) + 1)), *words})


# --------------------------------------------------------------------------------------------------------------------
# Units that differ

_CHINESE_UNITS = {
    **{"千克": "kg", "公斤": "kg", "克": "g", "吨": "tonne", "千米": "km", "公里": "km", "分米": "dm", "厘米": "cm"},
    **{
        "毫米": "mm",
        "米": "m",
        "毫升": "mL",
        "升": "L",
        "小时": "hour",
        "时": "hour",
        "分钟": "minute",
        "分": "minute",
    },
    **{"秒": "second", "天": "day", "日": "day", "星期": "week", "周": "week", "个月": "month", "月": "month"},
    **{"年": "year", "元": "yuan", "角": "jiao", "美元": "dollar", "度": "degree", "块": "yuan", "斤": "jin"},
}
# What pint has no name for, or another one.
_DEFINITIONS = (
    *("dollar = [dollar] = USD = usd", "cent = dollar / 100", "euro = [euro] = EUR", "rupee = [rupee] = Rs"),
    *("yuan = [yuan] = RMB = CNY", "jiao = yuan / 10", "jin = kilogram / 2"),
    *("km_per_hour = kilometer / hour = kmh = kmph = kph", "gm = gram", "unit = [unit]", "sec = second"),
)


@functools.cache
def _registry() -> Any:
    import pint  # with the first two units that differ

    registry = pint.UnitRegistry(non_int_type=Fraction)
    for line in _DEFINITIONS:
        registry.define(line)
    return registry


def convert(measure: Measure, unit: str) -> str | None:
    """Write the head of a measure for another unit; None where the units are not of one quantity."""
    if _normalise(measure.unit) == _normalise(unit):
        return measure.head
    source, target = _parse(measure.unit), _parse(unit)
    if not (source and target):
        nouns = [{word.removesuffix("s") for word in text.lower().split()} for text in (measure.unit, unit)]
        is_same = (
            not source
            and not target
            and "^" not in measure.unit + unit
            and (nouns[0] <= nouns[1] or nouns[1] <= nouns[0])
        )
        return measure.head if is_same else None
    if (source, target) in (({"degree": 1}, {"radian": 1}), ({"radian": 1}, {"degree": 1})):
        return rf"({measure.head}) \cdot " + (r"\frac{\pi}{180}" if "radian" in target else r"\frac{180}{\pi}")
    registry = _registry()
    start, end = registry.UnitsContainer(source), registry.UnitsContainer(target)
    dimension = registry.get_dimensionality(start)
    if not dimension or dimension != registry.get_dimensionality(end):
        return None  # pint counts bits, turns and degrees alike as numbers
    shift, image = (registry.convert(Fraction(value), start, end) for value in (0, 1))
    return rf"({measure.head}) \cdot \frac{{{(image - shift).numerator}}}{{{(image - shift).denominator}}} + {shift}"


def contradicts(measure: Measure, question: str) -> bool:
    """Whether a question counts in a unit, "how many dollars", and the measure is in another one."""
    asked = re.search("how many ([a-z]{4,})|(?:多少|几)([\u4e00-\u9fff]{1,3})", question.lower())
    wanted, given = (_parse(asked[1] or asked[2]), _parse(measure.unit)) if asked else ({}, {})
    return bool(wanted and given) and wanted != given and "unit" not in given


def _normalise(unit: str) -> str:
    return re.sub(r"[\s.]", "", unit.lower()).removesuffix("s")


_SCALES = re.compile(r"(?i)\b(?:degrees? |deg ?)?(celsius|fahrenheit)\b|\b(?:degrees? |deg )(c|f)\b")


def _parse(unit: str) -> dict[str, int]:
    """Read a unit as pint's names and their powers; empty where no word of it is a unit's name."""
    unit = _SCALES.sub(lambda found: f"deg{(found[1] or found[2])[0].upper()}", unit)
    unit = unit.replace("平方", "square ").replace("立方", "cubic ")
    powers: dict[str, int] = {}
    sign, power = 1, 1
    for token in re.findall(r"/|\^ ?-?[1-9]|[A-Za-z_]+|[\u4e00-\u9fff]+", unit):
        word = token.lower()
        if word in ("/", "per"):
            sign = -1
        elif word in ("square", "sq", "cubic", "cu"):
            power = 2 if word.startswith("sq") else 3
        elif powers and (token[0] == "^" or word in ("squared", "cubed")):
            last = [*powers][-1]
            powers[last] *= int(token[1:]) if token[0] == "^" else 2 if word == "squared" else 3
        elif name := _find_unit(_CHINESE_UNITS.get(token, token)):
            powers[name] = powers.get(name, 0) + sign * power
            power = 1
        elif powers:
            break  # 5 cups of flour
    return powers


def _find_unit(word: str) -> str | None:
    """pint's name of a unit: by its symbol as it is, by its name in any case."""
    if len(word) > 30:
        return None
    registry = _registry()
    for spelled in (word, word.lower()):
        for prefix, name, _ in registry.parse_unit_name(spelled):
            # No prefix before a symbol in a long word: "pins" are no pico-inches.
            if not prefix or len(word) <= 3 or spelled.startswith(prefix):
                return prefix + name
    return None
