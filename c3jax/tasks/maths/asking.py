"""What a question asks for: the unit, the things or the rate that an answer must not contradict."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from c3jax.tasks.maths import units, words
from c3jax.tasks.maths.units import Measure


class _Asked(NamedTuple):
    text: str  # the whole question, plain
    clause: str  # its part that asks
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
    *((gone, "left") for gone in ("eaten", "sold", "used", "spent", "given", "gone")),
    *(("passed", "failed"), ("won", "lost"), ("present", "absent"), ("boys", "girls"), ("men", "women")),
)


def convert_to_asked(measure: Measure, question: str) -> str | None:
    """Write the head of a measure for the unit that a question asks for: "how many hours", "in square inches", 几天.

    None where the measure is in another unit, which is then no answer, of a thing (metres for trees), or the opposite
    (a decrease for an increase). 5 feet 3 inches are 63 inches, and miles per hour are mph.
    """
    asked, given = _find_asked(question), units.parse(measure.unit)
    scale = re.search("(?:多少|几)([万亿])", asked.text)
    if scale and measure.unit and scale[1] not in measure.unit:
        return None  # 12 people, where it is asked how many times ten thousand
    if is_stray(measure, "", question):
        return None
    is_temperature = given == {"degree": 1} and any("degree_" in name for unit in asked.units for name in unit)
    if given in asked.units or is_temperature:
        return measure.head
    asked = asked._replace(units=[unit for unit in asked.units if _is_measured(unit)])
    if not _is_measured(given) or "unit" in given:
        return None if _is_other_thing(measure, asked) else measure.head
    if not asked.units:
        first = measure.unit.removeprefix("square ").split(" ")[0]
        is_of_things = first == "a" or not units.parse(first)  # cookies a day
        return None if asked.is_no_unit or (asked.is_thing and not is_of_things) else measure.head
    is_area = _AREA.search(asked.text) and len(given) == 1 and [{name: 1} for name in given] == asked.units
    if is_area or _is_rate(given, asked):
        return measure.head
    smaller = units.parse(measure.smaller)
    one = next((unit for unit in asked.units if unit == smaller or units.find_scale(given, unit) == (1, 0)), None)
    return None if one is None else units.convert_head(measure.head, given, one)


def is_stray(measure: Measure, wanted: str, question: str) -> bool:
    """Whether a measure says the opposite, or is for each of something, and no wanted unit nor the question is."""
    asked, unit = _find_asked(question), measure.unit
    for one, other in (pair for both in _OPPOSITES for pair in (both, both[::-1])):
        is_named = re.search(rf"(?<![a-z]){one}(?![a-z])", unit) is not None
        if is_named and any(other in text and one not in text for text in (asked.text, asked.clause)):
            return True
    return not re.search("per |/|每", wanted) and _is_stray_rate(unit, asked)


def _is_stray_rate(unit: str, asked: _Asked) -> bool:
    clause = asked.clause
    each = re.search(r"(?:\bper |/ ?|每)(?P<one>[a-z]+|[\u4e00-\u9fff]+)", unit)
    counted = set(units.parse(unit[: each.start()])) if each else set()
    if each is None or not counted <= _MONEY or (not counted and each[0] in asked.text):
        return False
    if not each["one"].isascii():
        is_each = f"每{each['one']}" in clause or ("每" not in clause or not units.parse(each["one"]))
        return not (is_each and re.search("每|平均|单价|速", clause))
    if each["one"] in _TIMES:
        is_timed = re.search(rf"\b(?:{'|'.join(_TIMES)})s?\b", clause) is not None
        is_rate = not is_timed and re.search(r"\b(?:rate|speed|average)\b", clause) is not None
        return not (is_rate or re.search(rf"\b{each['one']}\b|{each['one'][:2]}ily|{each['one']}ly|每", clause))
    is_known = each["one"][:4] in asked.text or each["one"] in ("item", "person") or units.parse(each["one"])
    return not (is_known and re.search(rf"\b(?:an? {each['one']}|{_EACH})\b|每", clause))


_MONEY = {*units.CURRENCIES.values(), "cent"}
_TIMES = ("second", "minute", "hour", "day", "week", "month", "year")
_EACH = "per|each|every|one|single|rate|speed|average|unit|hourly|daily|weekly|monthly|yearly|annual(?:ly)?"


def _is_other_thing(measure: Measure, asked: _Asked) -> bool:
    """Whether a count is of other things than a question's: eggs for dollars, friends for clips, 页 for 本."""
    is_measured, unit = bool(asked.units), measure.unit.lower()
    phrases = _CHINESE_ASKED.findall(asked.text)
    groups = [_MEASURE_WORDS.get(phrase[0]) for phrase in phrases]
    given = _MEASURE_WORDS.get(unit[:1], unit[:1])
    if given >= "一" and (any(groups) or is_measured):
        is_here = given in groups or any(unit in phrase for phrase in phrases)
        is_here |= any(units.parse(unit[:end]) in asked.units for end in (1, 2))  # 8块钱
        return not is_here and (is_measured or given != "个")
    things = re.findall(
        rf"(?<![a-z])({_THINGS})(?: (?:[a-z]+ed|sold|made|eaten|left|on|in|at|an?|per|each|every)\b.*)?$", unit
    )
    if not things or measure.head.endswith("%"):
        return False
    nouns, one = re.findall("[a-z]{3,}", unit), things[0].removesuffix("s")
    is_known = re.search(rf"\b{one}", asked.text) is not None
    counted = [re.split(_ENDS, phrase)[0].split() for phrase in _COUNTED.findall(asked.clause)]
    if not counted or re.search(rf"pairs of (?:[a-z]+ )?{things[0]}", asked.text):
        return is_measured or (is_known and _PART_ASKED.search(asked.text) is not None)
    heads = {phrase[0] for phrase in counted}
    starts = [word[:4] for phrase in counted for word in phrase]
    is_here = any(noun[:4] in starts for noun in nouns) or any(
        head.removesuffix("s") in unit.replace(" ", "") for head in heads
    )
    if heads & _ANY and not is_here:
        return one in asked.clause and not set(nouns) & (_GENERAL | _PEOPLE)
    if " of " in unit and heads & set(nouns[1:]) and nouns[0] not in _GENERAL:
        return True  # classes of students
    general = heads & _GENERAL if is_known else set(nouns) & (_PEOPLE if heads & _PEOPLE else _GENERAL)
    return is_measured or not (is_here or general)


_PEOPLE = set("people persons students pupils children kids guests members adults boys girls men women".split())
_ANY = {"people", "persons", "items", "things", "objects", "animals"}
# Words for things of any sort, which may stand for those that a question names.
_GENERAL = set(
    "pieces items things objects animals outcomes possibilities"
    " ways combinations arrangements permutations choices options solutions values numbers integers cases times units"
    " pairs sets points elements terms total tuples triples quadruples subsets sequences lists words digits".split()
)
_THINGS = "(?:[a-z]{3,}s|people|men|women|children)"
_ENDS = r" (?:than|on|in|at|to|from|with|that|who)\b"
# The first words of what is counted, unless a verb comes first, and no things are named.
_COUNTED = re.compile(
    r"(?:how many|number of) (?:(?:total|other|different|more|fewer|less) )*"
    r"(?!(?:(?:do|does|did|will|would|is|are|was|were|has|have|had|can|could|should|must)(?:n't)?|of|in|more|fewer|less)\b)"
    r"([a-z]+[a-z'-]*(?: [a-z'-]+){0,2})"
)


def is_asked(measure: Measure, question: str) -> bool:
    """Whether a question asks for just the unit of a measure."""
    return units.parse(measure.unit) in _find_asked(question).units


def _plain(question: str) -> str:
    return re.sub(r"\\text|\\mathrm|[${}]", "", question.lower())


@functools.lru_cache(256)  # several rules ask, of every answer to a question
def _find_asked(question: str) -> _Asked:
    asking, clause = _plain(question), _plain(words.find_asking(question))
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
    return _Asked(asking, clause, list(filter(None, asked)), bool(is_no_unit), is_thing)


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


def _is_rate(given: dict[str, int], asked: _Asked) -> bool:
    """Whether a measure is dollars a day, and the question is how many dollars there are every day."""
    for name in [name for name, power in given.items() if power == -1]:
        chinese = "|".join(word for word, unit in units.CHINESE_UNITS.items() if unit == name)
        each = rf"\b(?:every|each|per|an?|one) (?:single )?{name}\b|\b(?:{name}|{name[:2]}i)ly\b|每一?(?:{chinese})"
        is_each = re.search(each, asked.clause)
        if is_each and {other: power for other, power in given.items() if other != name} in asked.units:
            return True
    return False
