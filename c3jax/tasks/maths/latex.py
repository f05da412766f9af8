r"""LaTeX answers as text: the last box, a plain spelling, parts between commas, exact numbers.

Nothing here is evaluated, and every function runs in time linear in its text, times the few levels of nesting.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from c3jax.tasks.maths import words

_BRACE = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)(?:\s*(?=[0-9])|\s)(?P<token>[0-9A-Za-z])(?![0-9A-Za-z])"
    r"|\\[{}]|(?P<open>\{)|(?P<close>\})"
)


def find_last_box(text: str) -> str | None:
    r"""Find what the last \boxed{...} (or \fbox{...}, \boxed 5) with balanced braces holds, in one pass over them."""
    start, end = _find_last_box(text)
    return None if start < 0 else text[start:end]


_JOINT = re.compile(r"\}\s*\$?\s*(?:,\s*(?:and|or)?|and|or|[和或、])\s*\$?\s*\\boxed\s*\{$")
_MOST_BOXES = 10


def find_last_boxes(text: str) -> str | None:
    r"""Find what the last box holds; of \boxed{5} and \boxed{7}, which one word or a comma joins, 5, 7."""
    start, end = _find_last_box(text)
    if start < 0:
        return None
    boxes = [text[start:end]]
    while (joint := _JOINT.search(text, max(0, start - 50), start)) and len(boxes) < _MOST_BOXES:
        start, end = _find_last_box(text[: joint.start() + 1])
        if end != joint.start():
            break
        boxes.append(text[start:end])
    return ", ".join(box for box in reversed(boxes) if box.strip())


def _find_last_box(text: str) -> tuple[int, int]:
    """Where the content of the last box starts and ends; -1 where there is none."""
    opened: list[int] = []  # where the content of each open box starts, -1 for other braces
    start, end = -1, -1
    for brace in _BRACE.finditer(text):
        if brace["box"] or brace["open"]:
            opened.append(brace.end() if brace["box"] else -1)
        elif brace["token"]:
            start, end = brace.span("token")
        elif brace["close"] and opened:
            candidate = opened.pop()
            if candidate > start:
                start, end = candidate, brace.start()
    return start, end


# --------------------------------------------------------------------------------------------------------------------
# One spelling

_SYMBOLS = {
    **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "θ": r"\theta "},
    **{"∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in "},
    **{"±": r"\pm ", "√": r"\sqrt ", "≈": r"\approx ", "∅": r"\emptyset ", "ℝ": r"\reals ", "℃": r"^\circ C "},
    **{"¢": r" \text{cents}", "㎡": "m^2 ", "㎥": "m^3 ", "㎝": "cm ", "㎞": "km ", "㎏": "kg "},
    **{power: f"^{digit}" for digit, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{"½": " 1/2", "¼": " 1/4", "¾": " 3/4"},
    **{"。": ".", "、": ",", "￥": "¥", **dict.fromkeys("\n\t\xa0\u2009\u202f\u3000", " ")},
    # The wide letters, digits and signs of Chinese fonts.
    **{chr(code + 0xFEE0): chr(code) for code in range(ord("!"), ord("~") + 1)},
}
_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("mbox", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "mathrm"), r"\text"),
    **dict.fromkeys("mathbf mathit mathsf mathtt boldsymbol bm pmb underline emph ensuremath mathop".split(), ""),
    **dict.fromkeys(("boxed", "fbox", "framebox", "hbox"), ""),
    **dict.fromkeys("left right middle big Big bigl bigr Bigl Bigr bigg Bigg biggl biggr Biggl Biggr".split(), ""),
    **dict.fromkeys("rm bf it tt bfseries small normalsize large Large LARGE huge therefore checkmark".split(), ""),
    **dict.fromkeys(("displaystyle", "textstyle", "scriptstyle", "limits", "nolimits"), ""),
    **dict.fromkeys(("quad", "qquad", "thinspace", "enspace"), " "),
    **{"lt": "<", "gt": ">", "leq": r"\le", "leqslant": r"\le", "geq": r"\ge", "geqslant": r"\ge", "neq": r"\ne"},
    **{"lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "vert": "|", "lvert": "|", "rvert": "|"},
    **{"varnothing": r"\emptyset", "degree": r"^\circ", "mid": "|", "colon": ":", "bar": r"\overline"},
    **{"bigcup": r"\cup", "bigcap": r"\cap"},
    **{"backslash": r"\setminus", "smallsetminus": r"\setminus", "simeq": r"\approx", "euro": "€", "pounds": "£"},
    **{"langle": "⟨", "rangle": "⟩", "lor": r"\text{or}", "vee": r"\text{or}", "land": ",", "wedge": ","},
}
_COMMAND = re.compile(r"\\([A-Za-z]+)\s*")
_SPACING = re.compile(r"\\([,;:!> ()\[\]])|(?<!\\)~")
_SPACED_THOUSANDS = re.compile(
    r"(?<![0-9.,_^])[0-9]{1,3}(?:(?:,\\!|\{,\}|\{?\\[,;: ]\}?|\\thinspace ?|[~ ])[0-9]{3})+(?![0-9])"
)
_DIGIT_ARGUMENT = re.compile(
    r"(\\frac|\\binom)\s*([0-9A-Za-z]|\\pi)\s*(?=[0-9A-Za-z{\\])|(\\sqrt|\\pmod|\\overline)\s*([0-9]+|[A-Za-z])"
)
# What introduces an answer: "the value of x is", "so the answer is", "center:", 答案是.
_LEAD = (
    r"(?i:(?:so|thus|hence|then|therefore|finally), "
    r"|(?:(?:so|thus|hence|then|therefore|finally),? )?(?:(?:the )?(?:final |correct )?answer(?: is)? ?:?"
    r"|the (?:(?!not|no|wrong|false|incorrect)[a-z]+ ){1,4}(?:is|are)"
    r"|(?:the )?(?:final |total )?(?:value|result|solution|(?:mid)?point"
    r"|coordinates|center|centre|vertex|focus|area|volume|perimeter|radius|length|width"
    r"|height|sum|total"
    r"|product|difference|ratio|probability|domain|range|slope|maximum|minimum|cost|price|profit|distance|speed|time|age"
    r"|remainder|mean|median|mode|average|change) ?:)"
    r"|(?:所以|故|因此|正确|最终|原?方程的?)*(?:答案?|解|结果)(?:是|为|得| ?:))"
)
# What says that a number follows: 一共有 6 人, 人数是 6, there are 6 people.
_LEAD_OF_NUMBER = (
    r"(?:(?:人数|总数|数量)?(?:[一总]?共|共?计|合计|结果|等于|还?有|是|为|得|需?要)+ ?:?|时速"
    r"|(?i:(?:there (?:is|are)|equals|is)"
    r"(?: (?:a|in) total(?: of)?)?|(?:(?:a|the|in) )?(?:total|remainder)(?: of| is)? ?:?))"
)
_OF_NAME = r"(?i:^\\text ?\{ ?(?:so )?(?:the )?value of ?\} ?(?:[a-z]|\\[a-z]+) ?\\text ?\{ ?(?:is|equals) ?:? ?\} ?)"
_LEADS = re.compile(
    f"{_OF_NAME}|"
    + "|".join(
        rf"^(?:\\text ?\{{ ?{lead} ?\}}|{lead}) ?(?={rest})"
        for lead, rest in ((_LEAD, "."), (_LEAD_OF_NUMBER, r"-?[0-9\\($零一二三四五六七八九十两]"))
    )
)
# What is written in several ways, before the commands are spelled plainly and after it.
_BEFORE = (
    (r"\\\\ ?\[ ?-?[0-9.]+ ?[a-z]{2} ?\]", r"\\\\ "),  # the end of a matrix's row, with some space
    (r"\\(?:fcolorbox ?\{[^{}]*\}|(?:text)?color(?:box)?|[hv]space\*?|tag) ?\{[^{}]*\}", ""),
    (r"(?:\\text ?)?\{([,:&])\}", r"\1"),
    (r"(?<=[0-9} ])([cdkm]?m|ft|in)([23])(?![0-9])", r"\1^\2"),
    (r"(?<=[0-9]) ?[xX] ?(?=10 ?\^)", r"\\times "),
    (r"\\log ?_ ?(?:e(?![a-z])|\{ ?e ?\})", r"\\ln "),
    (r"\\cr(?![a-z])", r"\\\\ "),
    (r"\{([^{}]*)\\choose([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"(?<![A-Za-z\\])d([a-z]) ?/ ?d([a-z])(?![a-z])", r"\\frac{d\1}{d\2}"),
    (r"\\%", "%"),
    *((r"<=", r"\\le "), (r">=", r"\\ge ")),
    (r"\\math(?:bb|bf) ?(?:\{ ?R ?\}|R(?![A-Za-z]))", r"\\reals "),
    (r"\\(?:mathrm|text|operatorname) ?(?:\{ ?([eixyz]) ?\}|([eixyz])(?![A-Za-z]))", r"\1\2 "),
    (r"\\begin ?\{cases\}(.*)\\end ?\{cases\}", lambda found: re.sub(r" ?,? ?\\\\", ", ", found[1])),
    (r"\\operatorname\*? ?\{ ?([A-Za-z]+) ?\}", r"\\\1 "),
    (r"\\(?:mathbf|boldsymbol|bm) ?\{ ?([A-Za-z]) ?\}", r"\1 "),
)
_ARGUMENT = r"\([^()]*\)|[0-9.]+ ?\^ ?\\circ|\\frac ?\{[^{}]*\} ?\{[^{}]*\}"


def _write_half_line(found: re.Match[str]) -> str:
    sign = (">", "<", r"\ge ", r"\le ")[(found[1].lower() == "less") + 2 * bool(found[2])]
    return f"x {sign}"


_SIGNED = r"(?:[<>]|\\[lgn]e(?![a-z]))"  # an inequality
_AFTER = (
    (r"(?<=[0-9]) ?(?:\\text\{)? ?and (?:a|one) half(?![a-z]) ?\}?", r"\\frac{1}{2}"),
    (r"(?<=[)\]]) ?\\text ?\{ ?or ?\} ?(?=[(\[].*\\infty)", r"\\cup "),
    (r"(?<=[0-9]) ?(?:\\text\{ ?)?in the (?:afternoon|evening) ?\}?$", r"\\text{pm}"),
    (r"(?<=[0-9]) ?(?:\\text\{ ?)?in the morning ?\}?$", r"\\text{am}"),
    # Of two letters, "or" leaves open which: no comma.
    (r"^\(?([A-J]|[IV]{1,3})\)? ?(?:\\text ?\{ ?or ?\}|or) ?\(?([A-J]|[IV]{1,3})\)?$", r"\1 \\text{either} \2"),
    *(
        (rf"(?=.*{_SIGNED}),? ?(?:\\text ?\{{ ?{word} ?\}}|(?<![A-Za-z\\]){word}(?![A-Za-z]))", sign)
        for word, sign in (("or", r"\\cup"), ("and", r"\\cap"))
    ),
    (r"\s*,?\s*(?:\\text\s*\{\s*,?\s*(?:and|or|&)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|或者?|和)\s*", ", "),
    (r"\\text\s*\{\s*(?:percent|per cent|%)\s*\}|(?<=[0-9]) ?(?:percent|per cent)(?![a-z])", "%"),
    (r"(?<=[0-9]) ?\\text ?\{ ?per ?cent (?=[a-z])", r"%\\text{"),
    (r"(?<=[0-9])个半(?=小时|月|星期)", r"\\frac{1}{2}"),
    (r"(?<=[.0-9])\\dot ?\{? ?([0-9]) ?\}?(?:([0-9]*) ?\\dot ?\{? ?([0-9]) ?\}?)?", r"\\overline{\1\2\3}"),
    (r"(?<=[0-9]\.)\(([0-9]+)\)", r"\\overline{\1}"),
    (r"\\text ?\{ ?[.,;:]? ?\}", ""),
    (r"\\text \{", r"\\text{"),
    (r"(?<=[0-9]) ?\\text\{ ?k ?\} ?\\Omega$", r"\\text{kiloohm}"),
    (r"(?<=[0-9]) ?\\ell$", r"\\text{L}"),
    (r"(?<=[0-9]) ?\\Omega$", r"\\text{ohm}"),
    (r"(?<=[0-9]) ?\\mu ?\\text\{ ?(?=[a-zA-Z])", r"\\text{u"),
    # A set by its condition.
    (r"\\\{ ?[A-Za-z](?: ?\\in ?(?:\\reals|R))? ?[|:]((?:[^{}]|(?<!\\)\{[^{}]*\})*)\\\}", r"\1"),
    (r"(?i)^(?:\\text\{)?all real[a-z ]* (?:except|other than) ?\}? ?(?:x ?= ?)?(.*)$", r"\\reals \\setminus \\{\1\\}"),
    (r"(?i)^(?:\\text\{ ?)?(?:for )?all (?:real )?(?:numbers )?\}? ?(?=[a-z] ?" + _SIGNED + ")", ""),
    (r"(?<=[^ ]) ?(?:\\text\{ ?only ?\}|only ?(\}?))$", r"\1"),
    (r"(?i)^(?:\\text\{)?all real(?:s| numbers)? ?\}? ?(?=[<>]|\\[lg]e(?![a-z]))", "x "),
    (r"(?i)^(?:\\text\{)?all real[a-z ]* (greater|less) than (or equal to )?\}?", _write_half_line),
    (
        r"(?i)^(?:\\text\{)?(?:the set of )?(?:all )?positive real(?:s| numbers)$|\\reals ?\^ ?\{? ?\+ ?\}?",
        r"(0, \\infty)",
    ),
    (r"(?<=[0-9}]) ?\\text\{ ?\(([^()]*)\) ?\}$", r" (\1)"),
    (r"[a-z] ?\\in ?\\reals ?, ?", ""),
    (r"^\]([^\[\],]+,[^\[\],]+)(?=[\[\]]$)", r"(\1"),  # ]1, 2[ is (1, 2)
    (r"^([(\[][^()\[\],]+,[^()\[\],]+)\[$", r"\1)"),
    # Where a formula has a value: x + 1, x \ne 1.
    (rf"^((?:(?!{_SIGNED})[^,=])+)(?:,|\\text\{{ ?(?:for|where|with|if) ?\}}) ?[a-z] ?\\ne ?[^,=<>]+$", r"\1"),
    (rf"\\?(?:\\text ?\{{ ?)?(?<![A-Za-z])cis ?\}}? ?({_ARGUMENT})", r"(\\cos \1 + i \\sin \1)"),
    (r" ?\((?:%|percent)\)", "%"),
    (r" ?; ?", ", "),
    (r"(?<=[0-9])\{(\\frac\{[^{}]*\}\{[^{}]*\})\}", r"\1"),
    (r"(?<![A-Za-z\\])(sin|cos|tan|log|ln|exp|sqrt)(?![A-Za-z])", r"\\\1 "),
    (r"^[\"“`](.*)[\"”`]$", r"\1"),
    (r"^\*\*(.*)\*\*$", r"\1"),
    (r"^(?:\\text\{ ?)?(?:in|on|at) ?\}? (?=[0-9])", ""),
    (r"^([A-Za-z]|\\[a-z]+) (?:\\text\{ ?)?(?:is|equals|is equal to) ?\}? ?(?=[-0-9\\(])", r"\1 = "),
    (r"^(?:=|\\approx) ?(?=.)", ""),
    (rf"^.*(?:=|{_SIGNED}).*\\(?:implies|iff|(?:Long|long)?(?:R|Leftr|r)ightarrow)(?![a-z]) ?(?=.)", ""),
    (r"(?<=.) ?,? ?\(?(?:\\text\{ ?for (?:all|every|any)(?: real)? ?\}|for all|\\forall) ?[a-z](?: ?\\in.*)?\)?$", ""),
    (r"\\text\{([^{}]*)\} ?\\text\{", r"\\text{\1 "),
)


def tidy(text: str) -> str:
    r"""Spell a formula plainly: no sizes, fonts, colours, spacing and dollar signs, one name for what has several.

    \dfrac12 becomes \frac{1}{2}, 1{,}000 and 1\,000 become 1,000, and "and" or "or" between two answers a comma.
    """
    text = text.translate(str.maketrans(_SYMBOLS))
    text = _SPACED_THOUSANDS.sub(lambda found: ",".join(re.findall("[0-9]+", found[0])), text)
    for pattern, plain in _BEFORE:
        text = re.sub(pattern, plain, text)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # some write every stroke twice
    rows = text.split(r"\\")  # between the rows of a matrix; a command must not begin with its second stroke
    rows = [_COMMAND.sub(_write_command, _SPACING.sub(_space, row)) for row in rows]
    text = strip_braces(re.sub(r"\s+", " ", _take_off_dollars(r"\\".join(rows))).strip())
    text = words.to_digits(_LEADS.sub("", _LEADS.sub("", text)))  # 答：一共有 6 人
    for pattern, plain in _AFTER:
        text = re.sub(pattern, plain, text)
    text = _DIGIT_ARGUMENT.sub(lambda found: f"{found[1] or found[3]}{{{found[2] or found[4]}}}", text)
    return strip_braces(_brace_second_arguments(text).strip().rstrip(" .,;"))


def _space(found: re.Match[str]) -> str:
    return "" if found[1] and found[1] in "!()[]" else " "


def _take_off_dollars(text: str) -> str:
    r"""Take off the dollars round formulas; \$, and a lone dollar before a number, are money."""
    if len(re.findall(r"(?<!\\)\$", text)) % 2:
        text = re.sub(r"(?<!\\)\$(?=[0-9])", r"\\$", text, count=1)
    return re.sub(r"(?<!\\)\$", "", text)


def _write_command(found: re.Match[str]) -> str:
    spelled = _COMMANDS.get(found[1])
    if spelled is None:
        return f"\\{found[1]} " if found[0][-1].isspace() else found[0]
    return f"{spelled} " if spelled[-1:].isalpha() else spelled


def _brace_second_arguments(text: str) -> str:
    r"""Spell \frac{a}2 as \frac{a}{2}."""
    pieces, start = [], 0
    for command in re.finditer(r"\\(?:frac|binom)\s*(?=\{)", text):
        end = _find_close(text, command.end()) + 1
        if end > start and text[end : end + 1].isalnum():
            pieces.append(f"{text[start:end]}{{{text[end]}}}")
            start = end + 1
    return "".join([*pieces, text[start:]])


def strip_braces(text: str) -> str:
    r"""Take off braces, and \text{...}, that hold the whole text."""
    while True:
        inner = text.removeprefix(r"\text")
        if not (inner.startswith("{") and _find_close(inner, 0) == len(inner) - 1):
            return text
        text = inner[1:-1].strip()


# --------------------------------------------------------------------------------------------------------------------
# Parts

_OPENS, _CLOSES = "([{⟨", ")]}⟩"


def _count_levels(text: str) -> Iterator[int]:
    """How many brackets of any shape are open after each character."""
    return itertools.accumulate((character in _OPENS) - (character in _CLOSES) for character in text)


def _find_close(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`, whatever its shape, or -1."""
    return next((index for index, depth in enumerate(_count_levels(text[start:]), start) if depth == 0), -1)


def measure_depth(text: str) -> int:
    """Count the levels of brackets in brackets."""
    return max([0, *_count_levels(text)])


def split_top(text: str, mark: str) -> list[str]:
    """Split at a mark, where it stands in no bracket of any shape ([1,2) is one)."""
    depths, parts, start = [*_count_levels(text)], [], 0
    for found in re.finditer(re.escape(mark), text):
        if depths[found.start()] == 0:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [*parts, text[start:].strip()]


_GROUPED = re.compile(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")


def join_thousands(text: str) -> str:
    """Take the commas out of numbers whose thousands they group: 1,000 but not 1, 000 nor 1,000,00."""
    return _GROUPED.sub(lambda found: found[0].replace(",", ""), text)


class Enclosed(NamedTuple):
    """A tuple, an interval or a set, as its brackets and its parts."""

    left: str  # ( or [ or \{
    parts: tuple[str, ...]
    right: str  # ) or ] or \}


def split_enclosed(text: str) -> Enclosed | None:
    r"""Read (a, b, ...), [a, b), ⟨a, b⟩ (as if with round brackets) or \{a, b\}; None for any other text."""
    left = r"\{" if text.startswith(r"\{") else text[:1]
    right = r"\}" if text.endswith(r"\}") else text[-1:]
    pairs = {"([": ")]", "⟨": "⟩", r"\{": r"\}"}
    if not any(left and left in lefts and right and right in rights for lefts, rights in pairs.items()):
        return None
    if _find_close(text, len(left) - 1) != len(text) - 1:
        return None
    parts = tuple(split_top(text[len(left) : -len(right)].strip(), ","))
    return Enclosed(left.replace("⟨", "("), parts, right.replace("⟩", ")"))


# --------------------------------------------------------------------------------------------------------------------
# Numbers

LONGEST_NUMBER = 400  # characters: turning digits into an integer takes time quadratic in their count
_INTEGER = "[0-9]+"
_DECIMAL = rf"(?:{_INTEGER}\.?(?:[0-9]*)|\.[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?(?:"
    rf"(?:(?P<whole>{_INTEGER}) ?)?\\frac ?\{{ ?(?P<over>-?{_INTEGER}) ?\}} ?\{{ ?(?P<under>-?{_INTEGER}) ?\}}"
    rf"|(?:(?P<mixed>{_INTEGER}) )?(?P<top>{_INTEGER}) ?/ ?(?P<bottom>{_INTEGER})"
    rf"|(?P<start>[0-9]*\.[0-9]*)\\overline ?\{{ ?(?P<repeat>{_INTEGER}) ?\}}"
    rf"|(?P<decimal>{_DECIMAL})"
    r"(?: ?\\(?:times|cdot) ?10 ?\^ ?(?:\{ ?(?P<power>-?[0-9]{1,2}) ?\}|(?P<digit>[0-9])))?"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,2}))?"
    r")(?P<percent> ?\\?%)?"
)


class ExactNumber(NamedTuple):
    """A number as it is written."""

    value: Fraction  # without regard to a percent sign
    is_percent: bool


def parse_number(text: str) -> ExactNumber | None:
    r"""Parse a text that is one number and nothing else, exactly; None for any other text.

    Read are integers, with thousands grouped or not, decimals, repeating decimals (0.\overline{3}), fractions, mixed
    numbers (an integer and a proper fraction), scientific notation and a percent sign. 1/0 is no number.
    """
    if len(text) > LONGEST_NUMBER:
        return None
    text = re.sub(r"^([-+]? ?)(?=10 ?\^)", r"\g<1>1\\cdot ", join_thousands(text.strip()))  # 10^{-7}
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    over, under = found["over"] or found["top"], found["under"] or found["bottom"]
    whole = found["whole"] or found["mixed"]
    if under is not None and (int(under) == 0 or (whole and not 0 <= int(over) < int(under))):
        return None
    if found["repeat"] is not None:
        start, decimals = Fraction("0" + found["start"]), len(found["start"].partition(".")[2])
        value = start + Fraction(int(found["repeat"]), (10 ** len(found["repeat"]) - 1) * 10**decimals)
    elif over is not None and under is not None:
        value = int(whole or 0) + Fraction(int(over), int(under))
    else:
        exponent = int(found["power"] or found["digit"] or 0) + int(found["exponent"] or 0)
        value = Fraction("0" + found["decimal"].rstrip(".")) * Fraction(10) ** exponent
    return ExactNumber(-value if found["sign"] == "-" else value, found["percent"] is not None)
