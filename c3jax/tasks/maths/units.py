r"""Quantities: a formula with its unit, a count of things or money; pint says which units are of one quantity."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Any, NamedTuple

from c3jax.tasks.maths import formula, latex, words


class Measure(NamedTuple):
    r"""A quantity, 5 \text{ km/h}, or a count, 5 \text{ red apples}."""

    head: str  # a formula
    unit: str  # plain text: "km/h", "square feet", "red apples", "cm^2"
    smaller: str = ""  # the last unit of several: 2 hours 30 minutes


# A word of a unit: in \text, in Chinese, or a word of four letters or a known short one, for letters side by side
# are a product of names.
_TEXT = r"\\text\{(?:[^{}]|\{[^{}]*\})*+\}"
_SHORT = "[cdkm]m|[km]g|m[lL]|ft|in|yd|mi|lbs?|oz|hrs?|mins?|sec|[mk]ph|rad|deg|days?|men|cups?|tons?|sq|cu|USD|[ap]m"
_BARE = (
    rf"(?:(?<=[0-9)}}i ])(?:{_SHORT})(?![A-Za-z])|(?<= )(?:[a-z]++-)+[a-z]{{3,}}+|(?<![A-Za-z\\])[A-Za-z]{{4,}}+"
    r"|(?<= )[a-z]{2,3}(?= [a-z]{3})|(?<=[a-z]{2} )[a-z]{2,3}(?![A-Za-z]))\.?"
)
_WORD = rf"(?:{_TEXT}|[\u4e00-\u9fff]++|{_BARE})"
_POWER = r"(?: ?\^ ?\{? ?-?[1-9] ?\}?)?"
_TAIL = rf"{_WORD}(?:{_POWER} ?(?:(?:/|\\cdot|\*) ?(?:{_TEXT}|[A-Za-z]++|[\u4e00-\u9fff]++)|{_WORD}))*{_POWER}"
_MEASURED = re.compile(
    rf"(?P<head>.*?(?:[0-9)}}\]!%.]|\\pi|(?:^|(?<=[0-9)}} ]))(?:[a-zA-Z](?= ?\\text)|[a-z](?=[\u4e00-\u9fff]))))"
    rf"\s*(?P<tail>{_TAIL})"
)
_BRACKETED = re.compile(
    rf"(?P<head>.*[0-9}}]) ?\( ?(?P<tail>{_TAIL}|(?<= \()(?:[A-Za-z]+[A-Za-z.' /-]+|[gLms])|[\u4e00-\u9fff]+) ?\)"
)
_DEGREES = re.compile(r"(?P<head>.*[0-9)}]) ?\^ ?\{? ?\\circ ?\}? ?(?:(?:\\text ?\{)? ?(?P<scale>[CF]) ?\}?)?")
_RAISED = r"\\text\{([^{}]*)\} ?((?:\^ ?\{?[1-9]\}?)?)"
_QUOTIENT = re.compile(rf"\\frac ?\{{ ?{_RAISED} ?\}} ?\{{ ?{_RAISED} ?\}}")
_PART = rf"[0-9]+(?:\.[0-9]+)? ?{_WORD}"
_COMPOUND = re.compile(rf"{_PART}(?: ?,? ?{_PART})+")
_MONEY = re.compile(
    r"(?P<before>[-+]?) ?(?:\\text\{ ?)?(?:US ?\}? ?)?(?:\\text\{)?(?P<sign>\\\$|[€£¥₹]|Rs|USD)\.? ?\}? ?(?P<head>.+)"
)
CURRENCIES = {r"\$": "dollar", "€": "euro", "£": "pound", "¥": "yuan", "₹": "rupee", "Rs": "rupee", "USD": "dollar"}
_FEET = re.compile(
    r"(?P<feet>[0-9]+) ?(?:\^ ?\\prime|['′’]) ?(?P<inches>[0-9.]+) ?(?:\^ ?\{?(?: ?\\prime){2} ?\}?|''|[\"″”])"
)
_ARC = re.compile(r"(?P<degrees>[0-9]+) ?\^ ?\{? ?\\circ ?\}? ?(?P<minutes>[0-9]+) ?(?:\^ ?\{? ?\\prime ?\}?|['′’])")
_MULTIPLES = {"pair": 2, "ten": 10, "dozen": 12, "k": 1000, "lakh": 10**5, "M": 10**6, "crore": 10**7}
_PARTS = "half third quarter fifth sixth seventh eighth ninth tenth twelfth hundredth thousandth millionth".split()
_PARTS = dict(zip(_PARTS, (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 100, 1000, 10**6), strict=True)) | {"halve": 2, "fourth": 4}
_MAGNITUDES = {word: Fraction(value) for word, value in (words.SCALES | words.CHINESE_SCALES | _MULTIPLES).items()}
_MAGNITUDES |= {word: Fraction(1, value) for word, value in _PARTS.items()}
# Words that say more than what is counted: with one of them a text is no quantity.
_STATING = re.compile(
    r"\b(?:and|or|not?|non|but|if|than|to|more|less|most|least|fewer|over|under|below|above|about|around"
    r"|plus|minus|negative|positive|times|twice|double|triple|squared?|cubed?|root|power|factorial|mod|modulo|base|point"
    r"|remainder|repeating|recurring|approximately|roughly|almost|nearly|maybe|probably|wrong|false|incorrect|true"
    r"|infinite|undefined|none|nothing|zero|one|two|three|four|five|six|seven|eight|nine|inverse|reciprocal"
    r"|score|gross|so|up|down|off|except|without|percent|percentage|x|pi"
    r"|too|opposite|fails?|impossible|binary|octal|hexadecimal"
    r"|per ?mille?|basis|grand|mil|bn|bce?|[a-z]*illions?|googol"
    r"|(?:eleven|[a-z]+teen|[a-z]+tie)ths?)\b|[不非负没多余倍折约或以]|的(?:平方|立方)|一半|倒数|分之|左右|年级|年[前后]|([a-z])\1\1"
)
# Words that say what a number is beside another one, which count where the question has them too.
_COMPARING = re.compile(
    r"\b(?:short|shy|late|early|older|younger|taller|shorter|longer|heavier|lighter|higher|lower|faster|slower|bigger"
    r"|larger|smaller|cheaper|greater|ago|hence|left|remaining|ahead|behind|extra|additional|missing|lost|owed|wasted|missed)\b"
)
# The same words, where they are part of what is counted: square feet, times as many.
_COUNTING = re.compile(r"(?<=\w) to (?=[a-z]{2})|\bsquare (?=\w)|(?<=\w) (?:squared|cubed)\b|\btimes(?: as [a-z ]+)?$")
# A pair of these is one thing, and of what a question counts by pairs.
_SINGLE_PAIR = re.compile(
    r"(?i)pairs? of (?:[a-z]+ )*(?:(?:eye|sun)?glasses|goggles|binoculars|scissors|pliers|tweezers|tongs|shorts|jeans"
    r"|trousers|pants|slacks|leggings|tights|overalls|pajamas|pyjamas)"
)


def read_measure(text: str, question: str) -> Measure | None:
    """Read a formula and its unit; None where a text is no such thing.

    A magnitude word multiplies ("5 lakh"), unless the question counts in it ("how many lakh ..."); 2 hours 30 minutes
    are 2 + 1/2 hours.

    Args:
      text: tidy.
      question: that it answers.
    """
    text = _QUOTIENT.sub(r"\\text{\1\2/\3\4}", text)
    text = re.sub(r"(\\text\{[^{}0-9]*)([0-9][0-9.]*) ([^{}0-9]*\})", r"\1} \2 \\text{\3", text)  # hours and 30 minutes
    if _COMPOUND.fullmatch(text):
        return _add_parts([read_measure(part, question) for part in re.findall(_PART, text)])
    feet = _FEET.fullmatch(text)
    if feet:
        return Measure(rf"{feet['feet']} + \frac{{{feet['inches']}}}{{12}}", "feet", "inches")
    if inches := re.fullmatch(r"([0-9.]+) ?(?:''|[\"″”]|\^ ?\{ ?(?:\\prime ?){2}\})", text):
        return Measure(inches[1], "inches")
    if feet := re.fullmatch(r"([0-9.]+) ?(?:['′’]|\^ ?\{? ?\\prime ?\}?)", text):
        return Measure(feet[1], "feet")
    arc = _ARC.fullmatch(text)
    if arc:
        return Measure(rf"{arc['degrees']} + \frac{{{arc['minutes']}}}{{60}}", "degrees")
    money = _MONEY.fullmatch(re.sub(r"^(.*[0-9]) ?\\\$$", r"\\$\1", text))
    if money:
        money_head = re.sub(r"^([0-9.,]+) ?/ ?(?=\\text\{)", r"\1\\text{per}", money["head"])
        head = money["before"] + re.sub(
            r"(?<=[0-9]) ?(?:\\text\{ ?)?K ?\}?$", r"\\text{k}", money_head.replace(r"\$", "")
        )
        inner = read_measure(head, question)
        each = f" {inner.unit}" if inner and re.match("/|per ", inner.unit) else ""
        return Measure(inner.head if inner else head, CURRENCIES[money["sign"]] + each)
    degrees = _DEGREES.fullmatch(text)
    if degrees and r"\circ" not in degrees["head"] and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        return Measure(degrees["head"].strip(), f"deg{degrees['scale']}" if degrees["scale"] else "degrees")
    found = _BRACKETED.fullmatch(text) or _MEASURED.fullmatch(text)
    if found is None:
        return None
    # Letters beside a number are a product, if no unit: 72xxxx.
    if re.match("[A-Za-z]", found["tail"]) and text[found.start("tail") - 1].isalnum() and not parse(found["tail"]):
        return None
    tail = re.sub(r"\\text ?|[{}]|\.(?! ?[0-9])", "", found["tail"].replace(r"\cdot", "*"))
    head = found["head"].strip().removesuffix(r"\cdot").strip().removesuffix("-")
    return _read_words(head, re.sub(r"\s+", " ", tail).strip(), question)


def _add_parts(parts: list[Measure | None]) -> Measure | None:
    known = [part for part in parts if part is not None]
    heads = [convert(part, known[0].unit) for part in known]
    if len(known) < len(parts) or not all(heads) or len({part.unit for part in known}) < len(parts):
        return None
    return Measure(" + ".join(f"({head})" for head in heads), known[0].unit, known[-1].unit)


def _read_words(head: str, unit: str, question: str) -> Measure | None:
    counted = _find_counted(question)
    pair = re.fullmatch(r"(?i)pairs? of (.+)", unit)
    if pair and (_SINGLE_PAIR.match(unit) or re.search(rf"(?i)\bpairs? of (?:[a-z]+ )?{pair[1]}", question)):
        unit = pair[1]
    while (first := _split_magnitude(unit)) and first[0] not in counted:
        head, unit = rf"({head}) \cdot ({_MAGNITUDES[first[0]]})", first[1]
    unit = re.sub("^of (?:the|all|these|his|her|their|its) [a-z ]+", "", unit.rstrip(" ,").lstrip(" -")).removeprefix(
        "of "
    )
    mixed = latex.parse_number(head)
    head = rf"\frac{{{mixed.value.numerator}}}{{{mixed.value.denominator}}}" if mixed and "/" in head else head
    is_plain = re.fullmatch(r"(?:[A-Za-z\u4e00-\u9fff][^0-9,]*(?:\^ ?-?[1-9][^0-9,]*)*)?", unit) is not None
    stated = [found[0] for found in _STATING.finditer(_COUNTING.sub("", unit.lower()))]
    stated += [word for word in re.findall(r"\w+", unit) if _split_magnitude(word)]
    if not re.search(r"(?i)\b(?:more|fewer|less|difference|than)\b", question):
        is_rest = re.search(r"(?i)\b(?:left|remain|still|ha(?:s|ve)\b)", question) is not None
        compared = [word for word in _COMPARING.findall(unit.lower()) if word not in question.lower()]
        stated += [word for word in compared if not (is_rest and word in ("left", "remaining"))]
    if not is_plain or len(unit.split()) > 6 or any(word.removesuffix("s") not in counted for word in stated):
        return None
    return Measure(head, unit) if formula.is_formula(latex.join_thousands(head).removesuffix("%")) else None


def _split_magnitude(unit: str) -> tuple[str, str] | None:
    """Split a magnitude word off the front of a unit; k and M are ones as they are, K is a kelvin."""
    if re.match("千[克米卡瓦]", unit):
        return None
    first, _, rest = unit.partition(" ") if unit[:1].isascii() else (unit[:1], "", unit[1:])
    spelled = (first,) if len(first) == 1 else (first.lower(), first.lower().removesuffix("s"))
    return next(((word, rest) for word in spelled if word in _MAGNITUDES), None)


def _find_counted(question: str) -> set[str]:
    """The words that a question counts in: "how many more dozen eggs", "how many 'down votes'", 多少元."""
    text = re.sub("[\"'‘’“”]", "", question.lower())
    counted = re.findall(r"(?:how (?:many|much)|number of) ((?:[a-z]+ ?){1,3})", text)
    counted += re.findall(rf"\bin ({'|'.join(words.SCALES)})s\b", text)
    counted += re.findall(r"\b[0-9]{2,} (quarters)\b", text)  # coins: nobody writes so many as a fraction
    nouns = {word.removesuffix("s") for phrase in counted for word in phrase.split()}
    nouns |= {"than"} if nouns & {"more", "fewer", "less"} else set()
    return nouns | {
        found[:end] for found in re.findall("(?:多少|几)([\u4e00-\u9fff]{1,3})", question) for end in (1, 2, 3)
    }


def read_letters(text: str) -> Measure | None:
    """Read 5 m and 5 m/s, whose units are letters, as names are; None where they are no known unit."""
    found = re.fullmatch(
        r"(?P<head>-?[0-9.,]*[0-9]) ?(?=.{1,16}$)"  # a word of many letters can be cut in very many ways
        r"(?P<unit>[A-Za-z]{1,2}(?:[ /*]?[A-Za-z]{1,3}| ?\^ ?\{?-?[1-9]\}?)*)",
        text,
    )
    unit = re.sub("[{}]", "", found["unit"]) if found else ""
    return Measure(found["head"], unit) if found and parse(unit) else None


# --------------------------------------------------------------------------------------------------------------------
# Units that differ

CHINESE_UNITS: dict[str, str] = {
    **{"千克": "kg", "公斤": "kg", "克": "g", "吨": "tonne", "斤": "jin", "升": "L", "毫升": "mL", "度": "degree"},
    **{"千米": "km", "公里": "km", "米": "m", "分米": "dm", "厘米": "cm", "毫米": "mm", "年": "year", "秒": "second"},
    **{"元": "yuan", "块": "yuan", "角": "jiao", "美元": "dollar"},
    **{"天": "day", "日": "day", "周": "week", "岁": "year"},
    **{"英里": "mile", "英尺": "foot", "英寸": "inch", "磅": "pound", "盎司": "ounce", "码": "yard", "加仑": "gallon"},
    **{"公顷": "hectare", "亩": "mu"},
    **{"小时": "hour", "时": "hour", "分钟": "minute", "分": "minute", "星期": "week", "月": "month", "个月": "month"},
}
# What pint has no name for, or another one.
_DEFINITIONS = (
    *("dollar = [dollar] = USD = usd = buck", "cent = dollar / 100", "euro = [euro] = EUR", "rupee = [rupee] = Rs"),
    *("yuan = [yuan] = RMB = CNY", "jiao = yuan / 10", "jin = kilogram / 2", "gm = gram", "unit = [unit]"),
    *("mu = 2000 / 3 * meter ** 2", "dime = dollar / 10", "nickel = dollar / 20"),
    "kilometer_per_hour = kilometer / hour = kmh = kmph = kph",
)


@functools.cache
def _registry() -> Any:
    import pint  # with the first two units that differ

    number: Any = Fraction  # which pint takes, and its signature does not say
    registry = pint.UnitRegistry(non_int_type=number)
    for line in _DEFINITIONS:
        registry.define(line)
    return registry


def convert(measure: Measure, unit: str) -> str | None:
    """Write the head of a measure for another unit.

    Args:
      measure: in its own unit, or in none.
      unit: plain text, as a measure has it; empty where the other side has none.

    Returns:
      A formula; None where the units are not of one quantity.
    """
    if not measure.unit or not unit or re.sub(r"[\s.]", "", measure.unit) == re.sub(r"[\s.]", "", unit):
        return measure.head
    source, target = parse(measure.unit), parse(unit)
    if source or target:
        return convert_head(measure.head, source, target)
    # Things that are counted: red apples are apples.
    nouns = [{word.removesuffix("s") for word in re.split(r"\W+", text.lower())} for text in (measure.unit, unit)]
    is_same = "^" not in measure.unit + unit and (nouns[0] <= nouns[1] or nouns[1] <= nouns[0])
    return measure.head if is_same else None


def convert_head(head: str, source: dict[str, int], target: dict[str, int]) -> str | None:
    """Write a formula of one unit for another one; None where they are not of one quantity."""
    if (source, target) in (({"degree": 1}, {"radian": 1}), ({"radian": 1}, {"degree": 1})):
        return rf"({head}) \cdot " + (r"\frac{\pi}{180}" if "radian" in target else r"\frac{180}{\pi}")
    if source == target:
        return head
    scale = find_scale(source, target)
    return None if scale is None else rf"({head}) \cdot ({scale[0]}) + ({scale[1]})"


def find_scale(source: dict[str, int], target: dict[str, int]) -> tuple[Fraction, Fraction] | None:
    """Factor and offset from one unit to another; None where they are not of one quantity."""
    registry = _registry()
    start, end = registry.UnitsContainer(source), registry.UnitsContainer(target)
    dimension = registry.get_dimensionality(start)
    if not dimension or dimension != registry.get_dimensionality(end):
        return None  # pint counts bits, turns and degrees alike as numbers
    shift, image = (registry.convert(Fraction(value), start, end) for value in (0, 1))
    return image - shift, shift


_SCALES = re.compile(r"(?i)\b(?:degrees? |deg ?)?(celsius|fahrenheit)\b|\b(?:degrees? |deg )(c|f)\b")


def parse(unit: str) -> dict[str, int]:
    """Read a unit as pint's names and their powers; empty where no word of it is a unit's name."""
    unit = _SCALES.sub(lambda found: f"deg{(found[1] or found[2])[0].upper()}", unit)
    unit = unit.replace("平方", "square ").replace("立方", "cubic ").replace("每", "/")
    powers: dict[str, int] = {}
    sign, power = 1, 1
    tokens = re.findall(r"/|\^ ?-?[1-9]|[A-Za-z_]+|[\u4e00-\u9fff]+", unit)
    for index, token in enumerate(tokens):
        word = token.lower()
        if word in ("/", "per"):
            sign = -1
        elif word in ("square", "sq", "cubic", "cu"):
            power = 2 if word.startswith("sq") else 3
        elif powers and (token[0] == "^" or word in ("squared", "cubed")):
            powers[[*powers][-1]] *= int(token[1:]) if token[0] == "^" else 2 if word == "squared" else 3
        elif index and power == 1 and word in ("in", "at", "a"):
            break  # 5 dollars at first, 5 birds in a tree: no atmospheres, inches, years
        elif name := _find_unit(CHINESE_UNITS.get(token) or token):
            powers[name] = powers.get(name, 0) + sign * power
            power = 1
        elif powers:
            break  # 5 cups of flour
    return powers


@functools.lru_cache(10_000)
def _find_unit(word: str) -> str | None:
    """pint's name of a unit: by its symbol as it is, by its name in any case."""
    for spelled in (word, word.lower()) if len(word) <= 30 else ():
        for prefix, name, _ in _registry().parse_unit_name(spelled):
            # No prefix before a symbol in a long word: "pins" are no pico-inches.
            if not prefix or len(word) <= 3 or spelled.startswith(prefix):
                return prefix + name
    return None
