"""What a question asks for: the unit, the things or the rate that an answer must not contradict."""

from __future__ import annotations

import re
from typing import NamedTuple

from c3jax.tasks.maths import units, words
from c3jax.tasks.maths.units import Measure


class _Asked(NamedTuple):
    units: list[dict[str, int]]  # "how many square feet", "in miles per hour", 几天
    is_no_unit: bool  # asked is a part of a whole, or a number of people
    is_thing: bool  # asked is how many bags, which may be told in kilograms, but not in dollars


_PLURAL = r"(?:(?:square|cubic) )?(?:(?!does|was|has)[a-z]{3,}s|feet|inches|people|men|women|children)(?: per [a-z]+)?"
_SYMBOL = r"(?:[cmk]m|[km]g|ft|ml|mph|km/h|m/s)(?: ?\^ ?[23])?(?![a-z])"
_ENGLISH_ASKED = re.compile(
    rf"how many (?:(?:more|fewer|less|total|extra|additional|full|whole|other) )*(?P<count>{_PLURAL}|{_SYMBOL})"
    rf"|\bin (?P<scale>degrees(?: [a-z]+)?|{_PLURAL}|{_SYMBOL})"
)
_CHINESE_ASKED = re.compile("(?:多少|几)(?!时间|分之)个?([\u4e00-\u9fff]{1,4})")
_CHINESE_THINGS = re.compile("(?:多少|几)[人个只名位棵株朵本张条辆架艘把头匹支枝件颗粒盒箱袋瓶包筐页]")
# Words that Chinese counts things by; those of one group are used for the same things.
_MEASURE_WORDS = {
    word: group
    for group in "人名位口 个 本 页 张 条头只匹 辆架艘 把 支枝 件 颗粒 盒箱 袋包 瓶 筐篮 棵株 朵 座 间 层 行 节".split()
    for word in group
}
_PART_ASKED = re.compile("what (?:fraction|percent)|[几百]分之几")
_AREA = re.compile("area|volume|面积|体积")
_OPPOSITES = (
    *(("increase", "decrease"), ("profit", "loss"), ("gain", "loss"), ("gained", "lost"), ("both", "neither")),
    *(("north", "south"), ("east", "west"), ("增加", "减少"), ("盈利", "亏损")),
)


def convert_to_asked(measure: Measure, question: str) -> str | None:
    """Write the head of a measure for the unit that a question asks for: "how many hours", "in square inches", 几天.

    None where the measure is in another unit, which is then no answer, of a thing (metres for trees), or the opposite
    (a decrease for an increase). 5 feet 3 inches are 63 inches, and miles per hour are mph.
    """
    asking, clause = _plain(question), _plain(words.find_asking(question))
    scale = re.search("(?:多少|几)([万亿])", asking)
    if scale and measure.unit and scale[1] not in measure.unit:
        return None  # 12 people, where it is asked how many times ten thousand
    if _is_opposite(measure.unit, asking) or _is_stray_rate(measure.unit, asking, clause):
        return None
    asked, given = _find_asked(question), units.parse(measure.unit)
    if given in asked.units:
        return measure.head
    asked = asked._replace(units=[unit for unit in asked.units if _is_measured(unit)])
    if not _is_measured(given) or "unit" in given:
        return None if _is_other_thing(measure, bool(asked.units), asking, clause) else measure.head
    if not asked.units:
        is_money = given.keys() <= _MONEY
        is_time = measure.unit.split(" ")[0].removesuffix("s") in _TIMES
        return None if asked.is_no_unit or (asked.is_thing and (is_money or is_time)) else measure.head
    is_area = _AREA.search(asking) and len(given) == 1 and [{name: 1} for name in given] == asked.units
    if is_area or _is_rate(given, asked, clause):
        return measure.head
    smaller = units.parse(measure.smaller)
    one = next((unit for unit in asked.units if unit == smaller or units.find_scale(given, unit) == (1, 0)), None)
    return None if one is None else units.convert_head(measure.head, given, one)


def _is_opposite(unit: str, asking: str) -> bool:
    return any(
        re.search(rf"(?<![a-z]){one}(?![a-z])", unit) and other in asking and one not in asking
        for one, other in (pair for both in _OPPOSITES for pair in (both, both[::-1]))
    )


def _is_stray_rate(unit: str, asking: str, clause: str) -> bool:
    """Whether things or money are told for each of something, and the question does not ask for each."""
    each = re.search(r"(?:\bper |/ ?)(?P<one>[a-z]+)", unit)
    counted = set(units.parse(unit[: each.start()])) if each else set()
    if each is None or not counted <= _MONEY or (not counted and each[0] in asking):
        return False
    if each["one"] in _TIMES:
        is_timed = re.search(rf"\b(?:{'|'.join(_TIMES)})s?\b", clause) is not None
        is_rate = not is_timed and re.search(r"\b(?:rate|speed|average)\b", clause) is not None
        return not (is_rate or re.search(rf"\b{each['one']}\b|{each['one'][:2]}ily|{each['one']}ly|每", clause))
    return not re.search(rf"\b(?:{each['one']}|{_EACH})\b|每", clause)


_MONEY = {*units.CURRENCIES.values(), "cent"}
_TIMES = ("second", "minute", "hour", "day", "week", "month", "year")
_EACH = "per|each|every|one|single|rate|speed|average|unit|hourly|daily|weekly|monthly|yearly|annual(?:ly)?"


def _is_other_thing(measure: Measure, is_measured: bool, asking: str, clause: str) -> bool:
    """Whether a count is of other things than a question's: eggs for dollars, friends for clips, 页 for 本."""
    asked = [_MEASURE_WORDS.get(found[0]) for found in _CHINESE_ASKED.findall(asking)]
    given = _MEASURE_WORDS.get(measure.unit[:1])
    if given and (any(asked) or is_measured):
        return given not in asked and (is_measured or given != "个")
    things = re.findall(rf"(?<![a-z]){_THINGS}$", measure.unit)
    if not things or measure.head.endswith("%"):
        return False
    nouns = re.findall("[a-z]{3,}", measure.unit)
    is_known = re.search(rf"\b{things[0].removesuffix('s')}", asking) is not None
    counted = re.search(rf"(?:how many|number of) (?:total |other |different )?(?!{_VERBS})(?P<noun>[a-z]+)", clause)
    if counted is None or re.search(rf"pairs of (?:[a-z]+ )?{things[0]}", asking):
        return is_measured or (is_known and _PART_ASKED.search(asking) is not None)
    phrase = " ".join(clause[counted.start("noun") :].split()[:3])
    is_here = (
        any(noun.removesuffix("s") in phrase for noun in nouns) or counted["noun"].removesuffix("s") in measure.unit
    )
    if counted["noun"] in _ANY and not is_here:
        return things[0].removesuffix("s") in clause and not set(nouns) & (_GENERAL | _PEOPLE)
    if " of " in measure.unit and counted["noun"] in nouns[1:] and nouns[0] not in _GENERAL:
        return True  # classes of students
    if is_known:
        return is_measured or not (is_here or any(noun.removesuffix("s") in clause for noun in nouns))
    general = _GENERAL | (_PEOPLE if counted["noun"] in _PEOPLE else set())
    return is_measured or not (set(nouns) & general or any(noun[:4] in phrase for noun in nouns))


_PEOPLE = set("people persons students children kids guests members adults boys girls men women".split())
_ANY = ("people", "persons", "items", "things", "objects", "animals")
# Words for things of any sort, which may stand for those that a question names.
_GENERAL = set(
    "pieces items things objects animals outcomes possibilities"
    " ways combinations arrangements permutations choices options solutions values numbers integers cases times units"
    " pairs sets points elements terms total tuples triples quadruples subsets sequences lists words digits".split()
)
_THINGS = "(?:[a-z]{3,}s|people|men|women|children)"
# After "how many", where no things are named.
_VERBS = (
    "(?:(?:(?:do|does|did|will|would|is|are|was|were|has|have|had|can|could|should|must)(?:n'?t)?"
    r"|of|in|more|fewer|less)\b)"
)


def is_asked(measure: Measure, question: str) -> bool:
    """Whether a question asks for just the unit of a measure."""
    return units.parse(measure.unit) in _find_asked(question).units


def _plain(question: str) -> str:
    return re.sub(r"\\text|\\mathrm|[${}]", "", question.lower())


def _find_asked(question: str) -> _Asked:
    asking, clause = _plain(question), words.find_asking(question).lower()
    counted = [found["count"] for found in _ENGLISH_ASKED.finditer(asking) if found["count"]]
    asked = [units.parse(unit) for unit in counted]
    is_thing = not all(asked)
    asked += [units.parse(unit.partition(" per ")[0]) for unit in counted]  # how many cups per day: 3 cups
    asked += [units.parse(found["scale"]) for found in _ENGLISH_ASKED.finditer(asking) if found["scale"]]
    for found in _CHINESE_ASKED.findall(asking):
        asked.append(next(filter(None, (units.parse(found[:end]) for end in (4, 3, 2, 1))), {}))
    is_no_unit = _PART_ASKED.search(asking) or (_CHINESE_THINGS.search(asking) and not all(asked))
    currencies = {name for sign, name in units.CURRENCIES.items() if sign.removeprefix("\\") in question}
    if len(currencies) == 1 and not any(asked) and not is_no_unit and _MONEY_ASKED.search(clause):
        asked.append(dict.fromkeys(currencies, 1))
    if re.search(r"\bhow old\b", clause):
        asked.append({"year": 1})
    return _Asked(list(filter(None, asked)), bool(is_no_unit), is_thing)


# Money, where the question has an amount of it.
_MONEY_ASKED = re.compile(
    r"(?:how much(?! (?:time|longer|farther|further|water|more time|weight))|what (?:is|was|are|were|will be)).*"
    r"\b(?:earn(?:ings)?|costs?|pay|paid|spend|spent|saved?|savings|make|money|price|profit|worth|owed?|charged?|bill|tip"
    r"|change|salary|wages?|income|revenue)\b"
)


# What a question may ask for. Bars, bags, hands and points are units too, and mostly something else.
_ORDINARY = re.compile(
    r"(?:(?:kilo|centi|milli|deci|micro|nano)?(?:meter|gram|liter|second|joule|watt|volt|newton|hertz)|mile|foot|inch|yard|pound|ounce|ton|tonne|jin"
    r"|metric_ton|minute|hour|day|week|month|year|gallon|quart|pint|cup|tablespoon|teaspoon|dollar|cent|euro|rupee|yuan"
    r"|ampere|coulomb|ohm|pascal|kelvin|tesla|mole|electron_volt|byte|jiao|dime|nickel|hectare|mu|degree|radian|degree_[A-Z][a-z]+|unit|(?:mile|kilometer)_per_hour)"
)


def _is_measured(unit: dict[str, int]) -> bool:
    return max(unit.values(), default=0) > 0 and all(map(_ORDINARY.fullmatch, unit))


def _is_rate(given: dict[str, int], asked: _Asked, asking: str) -> bool:
    """Whether a measure is dollars a day, and the question is how many dollars there are every day."""
    for name in [name for name, power in given.items() if power == -1]:
        chinese = "|".join(word for word, unit in units.CHINESE_UNITS.items() if unit == name)
        each = rf"\b(?:every|each|per|an?|one) (?:single )?{name}\b|\b(?:{name}|{name[:2]}i)ly\b|每一?(?:{chinese})"
        is_each = re.search(each, asking)
        if is_each and {other: power for other, power in given.items() if other != name} in asked.units:
            return True
    return False
