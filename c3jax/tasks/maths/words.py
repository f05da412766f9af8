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
_CHINESE = re.compile(f"(?:(?!千[克米瓦卡])[{''.join([*_CHINESE_DIGITS, *CHINESE_SCALES])}])+")

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
        if not re.fullmatch("[0-9.]+", under):
            return text
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
    "none": r"(?:there (?:is|are) |(?:the |this )?(?:equation|inequality|system) has )?"
    r"no (?:(?:real|such|integer|positive|valid) )*(?:solutions?|roots?|values?|numbers?|integers?|[a-z])(?: exists?)?"
    r"|(?:there (?:is|are) )?none|(?:the )?empty set|\\emptyset|\\\{ ?\\\}|无(?:实数)?解|空集",
    "undefined": r"(?:the (?:limit|value|sum|expression) (?:is )?)?"
    r"(?:dne|does not exist|doesn't exist|undefined|不存在)",
    "reals": r"\\reals|all real(?:s| numbers)|全体实数",
    "true": "对|正确",
    "false": "错误?|不对|不正确",
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


_DRESSED = r"(?:\\(?:text(?:bf)?|mathrm) ?|^)\{([^{}]*)\}|(?<!\\)\$"
_OPTION = re.compile(
    r"(?:(?i:option|choice|graph|figure|diagram|statement)|(?:答案|故|应|所以|[本此该]题)?(?:选[项择]?)?)?:? ?"
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
    if options:
        options[parts[-2]] = re.split(r"\.\s|\n|。", options[parts[-2]])[0]  # and not what is asked after the last one
    return options if {"A", "B"} <= options.keys() else {}


def is_remark(text: str) -> bool:
    """Whether what stands after an option's letter could be its text: it names no other one, and denies nothing."""
    is_other = re.search(r"^[^\w\\-]|(?<![A-Za-z\\])[A-J](?![A-Za-z])", text) is not None
    return not is_other and not DENIAL.search(text)


# --------------------------------------------------------------------------------------------------------------------
# Answers in a sentence

# What makes something else of the number that follows it.
_ESTIMATE = re.compile(
    r"(?i)\b(?:than|most|least|about|around|approximately|roughly|nearly|almost|over|under|below|above|between|up to"
    r"|only if|unless|nor|neither|without)\b"
)
_SMALL_WORDS = set(
    "a an the is are was were be been will would can have had has of in at to on for it he she they we you there this"
    " that its his her their so then thus therefore hence answer equals total all exactly left now"
    " together each must".split()
)
_VERBS = re.compile(
    "(?:make|need|cost|earn|save|pay|buy|eat|weigh|travel|receive|collect|use|walk|own|read|get|give|take|run|spend)s?"
    "|spent|ha(?:s|ve|d)|made|earned|paid|bought|ate|gave|collected|used|walked|took|ran|got|travell?ed|saved"
)
_SENTENCE = re.compile(
    r"(?:\\text ?\{ ?)?(?P<lead>[A-Za-z][A-Za-z', ]*?) ?\}? ?:? ?(?P<rest>-?(?:\\\$)? ?(?:\.?[0-9]|\\frac|\\sqrt).*)"
)


def take_off_restated(answer: str, question: str) -> str | None:
    """Take off what stands before a number and the question asks with: 两地相距 120 千米, "Mary is 14".

    None where the answer begins with a number, or with words that are not the question's: "John is 14", 妈妈36岁.
    """
    for begun in (r"[-0-9\\]", f"[{''.join([*_CHINESE_DIGITS, '十'])}]"):
        found = re.fullmatch(rf"(?P<lead>[\u4e00-\u9fff][\u4e00-\u9fff,:]{{0,11}}?) ?(?P<rest>{begun}.*)", answer)
        rest = to_digits(found["rest"]) if found else ""
        if found and re.match(r"[-0-9\\]", rest) and _is_restated(found["lead"].replace("剩下", "剩"), question):
            return rest
    found = _SENTENCE.fullmatch(answer)
    if found is None or DENIAL.search(found["lead"]) or _ESTIMATE.search(found["lead"]):
        return None
    clause = find_asking(question)
    asking = {_stem(word) for word in re.findall("[a-z]+", clause.lower())}
    if re.search(r"\b(?:he|she|they|it)\b", clause):  # whose names stand before it
        names = re.findall(r"[A-Z][a-z]+|(?<=^A )[a-z]+|(?<=^The )[a-z]+", question)
        asking |= {_stem(name.lower()) for name in names}
    lead = re.findall("[a-z]+", found["lead"].lower().replace("'s", ""))
    own = [word for word in lead if word not in _SMALL_WORDS and not _VERBS.fullmatch(word)]
    if not (own or any(map(_VERBS.fullmatch, lead))) or any(_stem(word) not in asking for word in own):
        return None
    is_closed = found["rest"].count("}") - found["rest"].count("{") == 1
    return found["rest"].rstrip(" }") if is_closed else found["rest"]


# What a question may have in other words, or not at all.
_JOINING = re.compile("一共|总共|等于|需要|应该|总?人数|总数|数量|现价|[是为得有共这那该,:]")


def _is_restated(lead: str, question: str) -> bool:
    """Whether words are those of the clause that asks, before what is asked for or behind it, but for some left out."""
    before, clause = _find_chinese_asking(question)
    asking = re.split("多少|几", clause, maxsplit=1)
    own = _JOINING.sub("", lead)
    for word in ("今年", "现在"):  # which may stand elsewhere
        own = own.replace(word, "") if word in question else own
    if len(asking) < 2:
        return lead != own and _is_subsequence(own, question)
    if re.fullmatch("还?剩", own):
        return "剩" in asking[0] or "了" not in asking[0]
    if len(own) < 2:
        return not own or asking[0].startswith(own) or asking[0].endswith(own)
    return any(_is_subsequence(own, before + part) and _is_subsequence(own[-2:], part) for part in asking)


def _find_chinese_asking(question: str) -> tuple[str, str]:
    """What stands before the clause that asks how many, and that clause, or else the last one."""
    clauses = re.split("[，。,;；？?]", question)
    index = max((index for index, clause in enumerate(clauses) if re.search("多少|几", clause)), default=-1)
    return "".join(clauses[:index]), clauses[index]


def find_asking(question: str) -> str:
    """The last sentence of a question that asks, or else its last one."""
    if re.search("多少|几", question):
        return _find_chinese_asking(question)[1]
    sentences = re.split(r"(?<=[.?!])\s+", question.strip())
    return next((sentence for sentence in reversed(sentences) if "?" in sentence), sentences[-1])


def _stem(word: str) -> str:
    return {"sold": "sell"}.get(word, word)[:4]


# Quantities of which one is not the other, in all their words; those of shapes have letters.
_SHAPES = (
    *("areas?|面积", "volumes?|体积|容积", "(?:perimeter|circumference)s?|周长", "radi(?:us|i)|半径"),
    *("diameters?|直径", "(?:length|distance)s?|long|far", "slopes?|gradient|斜率", "width|wide", "bases?|底"),
    "(?:height|altitude)s?|high|tall|高",
)
_QUANTITIES = [
    re.compile(rf"(?<![A-Za-z])(?i:{names})(?![a-z])")
    for names in (
        *_SHAPES,
        *("both", "neither", "mean|averages?|平均", "medians?|中位数", "mode|众数", "domain|定义域", "range|值域"),
        *("sums?|total", "products?", "quotient", "remainders?", "numerator|分子", "denominator|分母"),
        "max(?:im(?:um|al|ize))?|greatest|largest|highest|most|biggest|最[大高多]",
        "min(?:im(?:um|al|ize))?|least|smallest|lowest|fewest|最[小低少]",
        *("speeds?|rate|velocity|fast", "times?|long|soon|when|hours|minutes|days", "weigh(?:t|s)?|mass|heavy"),
        *("ages?|old|年龄", "probability|chances?|likely|概率", "increased?", "decreased?", "loss|亏损"),
        *("profit|利润|盈利", "boys?|males?|男生?", "girls?|females?|女生?", "first", "second", "third"),
        *("x-[a-z]+", "y-[a-z]+"),
    )
]
_SIGNS = {
    **{"A": "area", "V": "volume", "P": "perimeter", "C": "circumference", "r": "radius", "R": "radius"},
    **{"d": "diameter distance", "w": "width", "b": "base", "h": "height"},
}
_NAMED = re.compile(
    r"[^A-Za-z\u4e00-\u9fff]*([A-Za-z\u4e00-\u9fff][A-Za-z\u4e00-\u9fff_'() -]*?)\s*(?:\b(?:is|are)\b|[:=是为])"
)


def is_other_quantity(answer: str, question: str) -> bool:
    r"""Whether an answer names another quantity than is asked for: \text{Perimeter: } or P =, where it is the area."""
    found = _NAMED.match(re.sub(r"\\(?!max|min)[A-Za-z]+|[{}$\\]", " ", answer))
    if found is None or f"${found[1]}$" in question:
        return False
    clause = re.split(r"\b(?:with|if|when|whose|given|for which|as)\b", find_asking(question))[0]
    asked, named = (
        {index for index, pattern in enumerate(_QUANTITIES) if pattern.search(text)}
        for text in (clause, found[1].replace("otal", "") if len(found[1]) > 1 else _SIGNS.get(found[1], ""))
    )
    is_shape = len(found[1]) > 1 or min(asked, default=len(_SHAPES)) < len(_SHAPES)
    return is_shape and bool(named - asked and asked - named)


def _is_subsequence(letters: str, text: str) -> bool:
    left = iter(text)
    return all(letter in left for letter in letters)


_TEXT = re.compile(r"\\text|(?<![A-Za-z\\])(?:[A-Za-z]{3,}|[A-Z]{2,}|[ap]\.?m)|^[A-Z]$|[^\x00-\x7f]")
_MONTH = re.compile("(?i)(?:jan|febr)uary|march|april|may|june|july|august|(?:septem|octo|novem|decem)ber")
# What a sentence has round an answer in a word: "it will be a Friday", "an odd function".
_ROUND_IT = set("it is was will be a an the on at this that they are would so function day month person number".split())


def is_same_text(expected: str, answer: str, question: str) -> bool:
    """Whether two texts say the same word: in any case, in a short sentence, a date in either order."""
    if _TEXT.search(expected) is None:
        return False
    if _plain(expected) == _plain(answer):
        return True
    wanted, given = (
        [re.sub("(?<=[0-9])(?:st|nd|rd|th)$", "", word) for word in _list_words(text)] for text in (expected, answer)
    )
    if any(map(_MONTH.fullmatch, wanted)):
        return sorted(wanted) == sorted(word for word in given if word not in ("on", "of", "the"))
    if not wanted or not all(map(str.isalpha, wanted)) or DENIAL.search(answer) or set(wanted) & _ROUND_IT:
        return False
    asked = set(re.findall("[a-z]+est", question.lower())) | set(
        re.findall("(?:which|what) ([a-z]+)", question.lower())
    )
    return wanted == [word for word in given if word not in _ROUND_IT | asked]


def _list_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", re.sub(r"\\text|[{}.\"'`]", " ", text.lower()))


def _plain(text: str) -> str:
    text = re.sub(r"\\text|[{}]", "", text).strip()
    return re.sub(r"^(?:an?|the|on) |[\s().:\"'`]", "", text.lower())
