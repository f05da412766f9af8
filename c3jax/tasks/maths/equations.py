r"""Answers with an equality sign: a value and its name, x = 5, several sides that are equal, and whole equations."""

from __future__ import annotations

import re
from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

from c3jax.tasks.maths import formula, latex, values, words

_WORDS = r"\\(?:text|overline|overrightarrow|vec|hat|tilde|mathcal|mathbb)(?: ?\{[^{}]*\}| ?[A-Za-z])"
_POINTS = r"(?:m ?)?\\(?:measuredangle|angle|triangle) ?\{? ?[A-Z]{0,3} ?\}?|[A-Z]{2,4}|\|[A-Z]{2}\||\[[A-Z]{3,5}\]"
_GREEK = "tau|sigma|(?:var)?phi|mu|nu|[oO]mega|pi|lambda|psi"
_FUNCTION = rf"(?:[dfghpqsvCFGHPQEVSTNLRA]|\\(?:{_GREEK}))(?: ?_ ?[0-9a-z])?'*(?: ?\^ ?\{{-1\}})?"
_FUNCTION += r" ?[(\[][^()]*[)\]]|[A-Za-z] ?\([A-Za-z, ]+\)"
_SETS = r"[A-Z](?: ?\\cap ?[A-Z])*"
_COUNT = rf"\|{_SETS}\||n ?\({_SETS}\)|\\begin ?{{vmatrix}}.*\\end ?{{vmatrix}}"
_COUNT += r"|[_^] ?\{?[0-9n]+\}? ?[CP] ?_ ?\{?[0-9kr]+\}?|\\(?:max|min)"
_COUNT += r"|\\?(?:gcd|lcm|max|min|deg|dim|det) ?(?:\([^()]*\)|[A-Za-z])"
_TUPLE = rf"\( ?{formula.NAME}(?: ?, ?{formula.NAME})+ ?\)"
_DERIVATIVE = r"\\frac ?\{ ?d ?[a-z]? ?\} ?\{ ?d ?[a-z] ?\}(?: ?[(\[][^=]*[)\]])?"
_NAME = re.compile(
    rf"(?:{_WORDS} ?)?(?:{_FUNCTION}|{_COUNT}|{_POINTS}|{_TUPLE}|{_DERIVATIVE}|[A-Za-z][a-z]{{3,}}(?: [a-z]+)*"
    rf"|[\u4e00-\u9fff]{{1,8}}|{formula.NAME}'*|[A-Za-z] ?_ ?\{{? ?\\(?:infty|perp|parallel|max|min) ?\}}?)"
    rf"|\\lim(?![a-z]).*|[a-zA-Z](?: ?: ?[a-zA-Z])+|\\Pr"
    rf"|{_WORDS} ?\([^()=]+\)|{_WORDS}(?: ?_ ?(?:[0-9A-Za-z]|\{{[^{{}}]*\}}))?"
)
# The inverse, transposed, a projection: anything without a number or a sum.
_MATRIX_NAME = re.compile(r"[A-Z] ?\^ ?(?:\{ ?(?:-1|T) ?\}|T)|(?:[A-Za-z_ {}]|\\[A-Za-z]+)+")
_ASKED = re.compile(
    r"(?i)(?:find|compute|evaluate|determine|calculate|convert|express|write|simplify|what is|values? of)(?: the)?"
    r"(?: (?:[a-z]+ )?values? of)? ?\$([^$]+)\$"
)
# The sum or the product of names, where a question asks for one in words.
_JOINED = {
    "sum": re.compile(rf"{formula.NAME}(?: ?\+ ?{formula.NAME})+"),
    "product": re.compile(rf"{formula.NAME}(?:(?: ?\\cdot)? ?{formula.NAME})+"),
}
_ARROW = re.compile(r"\\(?:vec|overrightarrow)\{?([A-Za-z]+)\}?")
_RELATION = re.compile(r"(=|\\le(?![a-z])|\\ge(?![a-z])|<|>)")


class Equation(NamedTuple):
    """An answer that is written as an equation, taken apart."""

    name: str | None  # of the value, before or behind it
    chains: tuple[tuple[str, ...], ...]  # the other sides, equal in a chain; the next chain rounds the one before
    is_part: bool = False  # the name is one of several in what is asked for: x, where x + y is


def read_equation(text: str, question: str) -> Equation | None:
    r"""Read x = 5, A = \pi r^2 = 9\pi, x \in S, 2.5 = 10/4, 1/3 \approx 0.33; None for what has no such sign.

    A name is a letter, a function's value, a segment, an angle, words, or what the question asks for ("find $a+b$").
    2x, x^2 and |x| are none.

    Args:
      text: tidy.
      question: that it answers.
    """
    if text.count("=") > 1 and len(latex.split_top(text, ",")) > 1:
        return None
    text = re.sub(r"\\in(?![a-z])", "=", text)
    chains = [latex.split_top(chain, "=") for chain in latex.split_top(text, r"\approx")]
    if chains == [[text]]:
        return None
    if not all(side for chain in chains for side in chain):
        return None
    asked = {re.sub(r"\\angle ?", "", _ARROW.sub(r" \1 ", latex.tidy(wanted))) for wanted in _ASKED.findall(question)}
    asked = {_spread(wanted) for wanted in asked}
    name = None
    if sum(map(len, chains)) > 1:
        for chain, index in ((chains[0], 0), (chains[-1], -1)):
            is_name = _NAME.fullmatch(chain[index]) or (r"\begin" in text and _MATRIX_NAME.fullmatch(chain[index]))
            is_name = is_name and not words.DENIAL.search(chain[index])
            is_asked = any(_is_same(chain[index], wanted) for wanted in asked) or any(
                word in question.lower() and joined.fullmatch(chain[index]) for word, joined in _JOINED.items()
            )
            if name is None and (is_name or is_asked or _is_known_formula(chain[index], question)):
                name = _squeeze(chain.pop(index))
    is_part = name is not None and name not in map(_squeeze, asked) and any(_is_in(name, wanted) for wanted in asked)
    is_part |= _is_other_value(name, asked) or any(
        is_other(name, question) for is_other in (_is_other_letter, _is_other_angle, _is_other_derivative)
    )
    is_part |= r"\begin" in text and name not in asked and any(sorted(name or "") == sorted(wanted) for wanted in asked)
    is_part |= _is_stray_letter(name, asked, question) and is_constant(chains[-1][-1])
    return Equation(name, tuple(tuple(chain) for chain in chains if chain), is_part)


_ASKED_LETTER = re.compile(
    r"(?i)(?:find|determine|what is|solve for|value of|length of)(?: the)?(?: (?:values?|length) of)?"
    r" \$(?:\\overline ?)?\{?([a-z]|[A-Z]{2})\}?\$(?! ?(?:,|(?:and|or)\b))"
)


def _is_other_letter(name: str | None, question: str) -> bool:
    """Whether a name is a letter or a segment of the question, which asks for the value of another one alone."""
    asked = ["".join(sorted(wanted)) for wanted in _ASKED_LETTER.findall(question)]
    if name is None or not asked or "".join(sorted(name)) in asked:
        return False
    if re.fullmatch("[A-Z]{2}", name):
        return all(len(wanted) == 2 for wanted in asked)
    return re.fullmatch("[A-Za-z]", name) is not None and is_in_question(name, question)


# What a question asks for of a formula, which is then no value of a letter in it.
_OF_FORMULA = re.compile(
    r"\b(?:slope|sum|product|radius|diameter|circumference|perimeter|volume|area|how many|number of"
    r"|degree|discriminant|remainder|distance|probability"
    r"|(?P<extreme>(?:max|min)imum))\b(?! values? of \$[a-z]\$)"
)


def _is_stray_letter(name: str | None, asked: Collection[str], question: str) -> bool:
    """Whether a name is a letter of a formula, of which the value is asked for, its slope or the sum of its roots."""
    letter = re.sub(r"_\{?[0-9]\}?$", "", name or "")
    if name is None or not re.fullmatch("[A-Za-z]", letter) or not is_in_question(letter, question):
        return False
    if asked:
        return name == letter and not any(name == wanted or _is_in(name, wanted) for wanted in asked)
    found = None if f"${name}$" in question else _OF_FORMULA.search(words.find_asking(question))
    return found is not None and not (found["extreme"] and name == "y")


_ANGLE = r"(?:m ?)?\\(?:measured)?angle ?\{?([A-Z]{1,3})\}?"
_ASKED_ANGLE = re.compile(
    rf"(?i:find|determine|compute|what is|(?:measure|value) of)(?: the)?(?: (?:degree )?measure of)?(?: angle)?"
    rf" \${_ANGLE}\$"
)


def _is_other_angle(name: str | None, question: str) -> bool:
    """Whether a name is an angle at another point than the one that is asked for."""
    found, asked = re.fullmatch(_ANGLE, name or ""), _ASKED_ANGLE.findall(question)
    return (
        found is not None
        and bool(asked)
        and found[1][len(found[1]) // 2] not in [letters[len(letters) // 2] for letters in asked]
    )


def is_in_question(name: str, question: str) -> bool:
    """Whether a question has a name in one of its formulas."""
    pattern = rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])"
    return any(re.search(pattern, text) for text in question.split("$")[1::2])


_POWER = r"[A-Z]\^\{?(?:-?[0-9]|T)\}?"  # of a matrix
_VALUE = re.compile(r"(?P<of>[A-Za-z])(?:\^ ?\{ ?-1 ?\})?\((?P<at>[^()]*)\)")


def _is_other_value(name: str | None, asked: Collection[str]) -> bool:
    """Whether a name is f(2) or P(A), where f(3) or P(A and B) is asked for, or dx/dy for dy/dx."""
    if name is None or name in map(_squeeze, asked):
        return False
    given = _VALUE.fullmatch(name)
    for wanted in map(_squeeze, asked):
        value = _VALUE.fullmatch(wanted)
        if given and value and given["of"] == value["of"] and not given["at"].isalpha() & value["at"].isalpha():
            return True
        if value and given and (given["of"] != value["of"] or value["of"] == "P"):
            return True
        if name[:1] == wanted[:1] and re.fullmatch(_POWER, name) and re.fullmatch(_POWER, wanted):
            return True
    return any(re.fullmatch(_DERIVATIVE, wanted) for wanted in asked) and re.fullmatch(_DERIVATIVE, name) is not None


_DERIVATIVE_ASKED = (
    r"(?i)deriv|\\frac ?\{ ?d|differenti|slope|rate|velocity|tangent|prime|image|complement|reflect|导|斜率|像|对称"
)


def _is_other_derivative(name: str | None, question: str) -> bool:
    """Whether a name is a derivative, where none is asked for, or the second one for the first."""
    primes = (name or "").count("'")
    if not primes or "'" * primes in question:
        return False
    return "second" not in question.lower() if primes > 1 else re.search(_DERIVATIVE_ASKED, question) is None


def is_other_name(wanted: str, given: str) -> bool:
    """Whether two names are of different things: two letters, a function and its derivative or its value elsewhere."""
    if wanted == given:
        return False
    if len(wanted) == len(given) == 1 or wanted.replace("'", "") == given.replace("'", ""):
        return True
    names = _APPLIED.fullmatch(wanted), _APPLIED.fullmatch(given)
    return names[0] is not None and names[1] is not None and names[0][1] == names[1][1]


_APPLIED = re.compile(r"([A-Za-z])\(([A-Za-z])\)")


def rename_argument(given: Equation, wanted: Equation) -> Equation:
    """Write f(t) = 2t for f(x) = 2x, where f(x) is expected; f(y) = 2x stays as it is."""
    names = [_APPLIED.fullmatch(equation.name or "") for equation in (given, wanted)]
    if not (names[0] and names[1]) or names[0][1] != names[1][1] or names[0][2] == names[1][2]:
        return given
    old, new = (rf"(?<![A-Za-z\\]){name[2]}(?![A-Za-z])" for name in names if name)
    sides = " ".join(side for chain in given.chains for side in chain)
    if re.search(new, sides) or not re.search(old, sides):
        return given
    chains = tuple(tuple(re.sub(old, names[1][2], side) for side in chain) for chain in given.chains)
    return Equation(wanted.name, chains)


def _is_known_formula(side: str, question: str) -> bool:
    r"""Whether a side is that of a circle, a sphere and the like, \pi r^2, in letters that the question has not."""
    if r"\pi" not in side or not formula.is_formula(side):
        return False
    names = formula.find_names(side)
    return bool(names) and not any(f"${name}" in question or f"{name}$" in question for name in names)


def _is_same(side: str, wanted: str) -> bool:
    """Whether a side is what is asked for, its terms in any order; a constant is so only as it is written."""
    side = _spread(re.sub(r"\\angle ?", "", side))
    return _squeeze(side) == _squeeze(wanted) or (not is_constant(side) and formula.is_equal(side, wanted))


def _is_in(name: str, wanted: str) -> bool:
    """Whether a name stands in a formula: x in x + 3 and in 2xy, f(2) in f(2) + g(1), but not f in f(x)."""
    if re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z_(' ]*[(_'])(?![A-Za-z])", wanted):
        return True
    is_applied = _squeeze(wanted).startswith(f"{name}(")
    return not is_applied and formula.is_formula(wanted) and name in formula.find_names(wanted)


def _spread(text: str) -> str:
    """Write the product xyz, which is no word in a question's formula, as x y z."""
    return " ".join(text) if re.fullmatch("[a-z]{3,4}", text) else text


def _squeeze(text: str) -> str:
    return re.sub(r"(?<!cdot)(?<!times)\s+", "", _ARROW.sub(r" \1 ", text))


def is_constant(text: str) -> bool:
    """Whether a text is a number, or a formula without variables."""
    return latex.parse_number(text) is not None or (formula.is_formula(text) and not formula.find_names(text))


def is_rounded(exact: str, rounded: str) -> bool:
    """Whether a decimal is a number rounded, or cut, to the digits that it has."""
    value, decimals = formula.compute_somewhere(exact), len(rounded.partition(".")[2])
    number = latex.parse_number(rounded)
    if value is None or number is None or not values.is_real(value):
        return False
    return abs(values.to_real(value) - values.to_real(number.value)) < values.to_real(Fraction(1, 10**decimals))


def is_begun(exact: str, begun: str) -> bool:
    r"""Whether digits that go on, 0.4545\ldots, are the first ones of a number."""
    found = re.fullmatch(r"([0-9]*\.[0-9]+) ?(?:\\(?:l|c)?dots|\.{2,3}|…)", begun)
    return found is not None and is_rounded(exact, found[1])


def is_percentage(last: str, side: str) -> bool:
    r"""Whether a side of a chain is the percentage that the chain ends in: 0.25 and \frac14 \cdot 100\% of 25%."""
    number = latex.parse_number(last)
    if number is None or not number.is_percent:
        return False
    value = number.value if side.endswith("%") else number.value / 100
    return formula.is_equal(side.removesuffix("%"), f"{value.numerator}/{value.denominator}")


def is_same_relation(expected: str, answer: str) -> bool:
    """Decide whether two equations, or two inequalities, are the same one but for a factor and their sides' order."""
    wanted, given = _read_relation(expected), _read_relation(answer)
    if wanted is None or given is None or wanted.sign != given.sign:
        return False
    return formula.is_proportional(wanted.difference, given.difference, is_signed=wanted.sign != "=")


class _Relation(NamedTuple):
    sign: str  # =, < or \le
    difference: str


def _read_relation(text: str) -> _Relation | None:
    parts = _RELATION.split(text)
    if len(parts) != 3:
        return None
    left, sign, right = parts if parts[1] not in (">", r"\ge") else parts[::-1]
    return _Relation({">": "<", r"\ge": r"\le"}.get(sign, sign), f"({left})-({right})")


def read_named(text: str) -> list[dict[str, str]] | None:
    """Read x = 3, y = -2, and (x, y) = (3, -2): values of several names, once or more often; None for others."""
    sides = latex.split_top(text, "=")
    if len(sides) == 2 and re.fullmatch(_TUPLE, sides[0]):
        names, values = latex.split_top(sides[0][1:-1], ","), latex.split_enclosed(sides[1])
        if values is None or (values.left, values.right, len(values.parts)) != ("(", ")", len(set(names))):
            return None
        return [dict(zip(names, values.parts, strict=True))]
    parts = [latex.split_top(part, "=") for part in latex.split_top(text, ",")]
    if len(parts) < 2 or any(len(sides) != 2 or not re.fullmatch(formula.NAME, sides[0]) for sides in parts):
        return None
    count = len({name for name, _ in parts})
    named = [dict(parts[start : start + count]) for start in range(0, len(parts), count)]
    return named if count > 1 and all(len(values) == count for values in named) else None


def order_names(text: str, names: Collection[str], question: str) -> list[str]:
    """The order of names in a tuple: as a tuple of the question or of the text has them; else the alphabet's."""
    tuples = [latex.split_top(found, ",") for found in re.findall(r"\(([^()]*)\)", f"{latex.tidy(question)} {text}")]
    return next((order for order in tuples if sorted(order) == sorted(names)), sorted(names))
