r"""What answers say in words: numbers in English and Chinese, that there is none, and options of a choice."""

from __future__ import annotations

import re
from typing import NamedTuple

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {word: number for number, word in enumerate([*_UNITS, "seventeen", "eighteen", "nineteen"])}
_NUMBERS |= {word: 10 * tens for tens, word in enumerate(_TENS, start=2)}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_WORD = "|".join(sorted([*_NUMBERS, *SCALES], key=len, reverse=True))
_ENGLISH = re.compile(rf"(?i:(?:{_WORD})(?:(?:-| and | )(?:{_WORD}))*)(?![A-Za-z])")
_CHINESE_DIGITS = {**{digit: number for number, digit in enumerate("零一二三四五六七八九")}, "两": 2}
CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_CHINESE = re.compile(f"[{''.join([*_CHINESE_DIGITS, *CHINESE_SCALES])}]+")

_SIGN = re.compile(r"(?i:\\text ?\{ ?(?:minus|negative) ?\} ?|(?:minus|negative) )(?=.)|负(?=.)")


def to_digits(text: str) -> str:
    r"""Write a number that a text begins with in digits: "eight apples", "seventy-two", 二十五, 四分之三."""
    sign = _SIGN.match(text)
    if sign:
        number = to_digits(text[sign.end() :])
        return f"-{number}" if number[0].isdigit() else text
    found = re.fullmatch(rf"(.+)分之({_CHINESE.pattern}|[0-9.]+)(.*)", text)
    if found:
        under, over = ("100" if part == "百" else to_digits(part) for part in found.groups()[:2])
        return (f"{over}%" if under == "100" else rf"\frac{{{over}}}{{{under}}}") + found[3]
    if text.lower() in ("half", "a half", "one half", "one-half"):
        return r"\frac{1}{2}"
    found = _ENGLISH.match(text)
    if found:
        number = _read_english(re.split(r"-| and | ", found[0].lower()))
    else:
        found = None if re.search("[0-9]", text) else _CHINESE.match(text)  # 两地相距120千米 is no 2
        number = _read_chinese(found[0]) if found else None
    return text if found is None or number is None else f"{number}{re.sub('^-', ' ', text[found.end() :])}"


def _read_english(parts: list[str]) -> int | None:
    total = current = 0
    for part in parts:
        if part == "hundred":
            current = max(current, 1) * 100
        elif part in SCALES:
            total, current = total + max(current, 1) * SCALES[part], 0
        elif current % (10 if _NUMBERS[part] < 10 else 100) and current != _NUMBERS[part]:
            return None  # "two three"
        else:
            current += _NUMBERS[part]
    return total + current


def _read_chinese(text: str) -> int | None:
    total = section = digit = 0
    for character in text:
        scale = CHINESE_SCALES.get(character)
        if scale is None:
            if digit:
                return None
            digit = _CHINESE_DIGITS[character]
        elif scale < 10**4:
            section, digit = section + (digit or 1) * scale, 0
        else:
            total, section, digit = total + (section + digit) * scale, 0, 0
    return total + section + digit


# Words that deny what stands beside them, or make something else of it.
DENIAL = re.compile(
    r"(?i)\b(?:not|no|never|wrong|false|incorrect|except|isn't|half|twice|double|triple|minus|negative|times|root|square)\b"
    r"|[不非错]"
)
_SAYINGS = {
    "none": r"(?:there (?:is|are) )?no (?:(?:real|such|integer|positive|valid) )*(?:solutions?|roots?|values?|numbers?"
    r"|integers?|[a-z])(?: exists?)?|none|(?:the )?empty set|\\emptyset|\\\{ ?\\\}|无(?:实数)?解|空集",
    "undefined": r"dne|does not exist|doesn't exist|undefined|不存在",
    "reals": r"\\reals|all real(?:s| numbers)|全体实数",
    "infinity": r"\+? ?\\infty|(?:positive )?infinity|infinitely many(?: solutions)?",
}


def name_saying(text: str) -> str | None:
    """Name what a text says that has no value: that there is none, that it is undefined, that all will do."""
    plain = " ".join(re.sub(r"\\text *\{([^{}]*)\}", r"\1", text).strip(" .").lower().split())
    return next((name for name, pattern in _SAYINGS.items() if re.fullmatch(pattern, plain, re.IGNORECASE)), None)


class Option(NamedTuple):
    """An answer that chooses among lettered options."""

    letter: str
    text: str  # what is written after it


_DRESSED = r"(?:\\(?:text(?:bf)?|mathrm) ?|^)\{([^{}]*)\}|\$"
_OPTION = re.compile(
    r"(?:(?i:option|choice|graph|figure|diagram|statement)|(?:答案|故|应|所以)?(?:选[项择]?)?)?:? ?"
    r"(?:\( ?(?P<inner>[A-J]) ?\)|(?P<bare>[A-J])(?:[).:]|选?项|(?=\s*$)))(?P<text>.*)"
)


def read_option(text: str) -> Option | None:
    r"""Read B, (B), \text{(B)} 14, B. 14, "option B" and 选B."""
    found = _OPTION.fullmatch(re.sub(_DRESSED, r"\1", text).strip())
    return Option(found["inner"] or found["bare"], found["text"].strip()) if found else None


_LABEL = re.compile(r"(?<![A-Za-z])\(?([A-J])(?:\)|\.(?= )|:)")


def find_options(question: str) -> dict[str, str]:
    """Find the options that a question lists, by their letters."""
    parts = _LABEL.split(re.sub(_DRESSED, r"\1", question))
    options = {letter: text.strip(" ,;\n") for letter, text in zip(parts[1::2], parts[2::2], strict=True)}
    return options if {"A", "B"} <= options.keys() else {}


def is_remark(text: str) -> bool:
    """Whether what stands after an option's letter could be its text: it names no other one, and denies nothing."""
    is_other = re.search(r"^[^\w\\-]|(?<![A-Za-z\\])[A-J](?![A-Za-z])", text) is not None
    return not is_other and not DENIAL.search(text)
