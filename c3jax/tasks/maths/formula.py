r"""The value of a LaTeX formula at a point, and whether two formulas have the same values.

A grammar of its own, because in those of the libraries numbers that stand side by side are added (3(4) is 7). Here a
number, bracket, root, fraction or name before another one is a product; two bare numbers apart are no formula; an
integer before a proper fraction is a mixed number where it stands alone, and else is no formula, for it could be both.

    sum     = term {(+ | -) term}
    term    = factor {(\cdot | \times | * | / | \div | nothing) factor}     from the left: 4/3\pi is (4/3)\pi
    factor  = [+ | -] operand [!] [^ operand]
    operand = number | name | (sum) | |sum| | \frac | \sqrt | \binom | \sum | function (sum) | function {factor}
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from c3jax.tasks.maths import latex, values
from c3jax.tasks.maths.values import NoFormula, Undefined, Value

Point = Mapping[str, Fraction]

LONGEST = 300  # characters
_LONGEST_NUMBER = 50  # characters
_DEEPEST = 12  # brackets in brackets
_MOST_TERMS = 100  # of a sum
_POINTS = 9

_GREEK = "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi"
_GREEK += "|chi|psi|omega|Delta|Phi|Omega"
NAME = rf"(?:[A-Za-z]|\\(?:{_GREEK})(?![A-Za-z]))(?: ?_ ?(?:[0-9A-Za-z]|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}))?"
_TOKEN = re.compile(rf"{NAME}|\\[A-Za-z]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/^_=()\[\]{{}}|!]")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{4}|^(?=.*[A-Za-z]{3})[A-Za-z ]+$|^[A-Z]{2,}$")
_CLOSING = {"(": ")", "[": "]", "{": "}", "|(": "|)", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_TIMES, _OVER = ("*", r"\cdot", r"\times"), ("/", r"\div")
_ENDS = {*_CLOSING.values(), *_TIMES, *_OVER, "+", "-", "=", "^", "_", "!", ""}


def is_formula(text: str) -> bool:
    """Whether the grammar reads a text, and it has a value somewhere."""
    return compute_somewhere(text) is not None


def compute_somewhere(text: str) -> Value | None:
    """The value of a formula where a = 1, b = 2 and so on; None where there is none."""
    try:
        return compute(text, {name: Fraction(sum(map(ord, name)) - 96) for name in find_names(text)})
    except (NoFormula, Undefined):
        return None


def is_equal(expected: str, answer: str) -> bool:
    """Decide whether two formulas are equal wherever both are real; False if either is no formula.

    They are worked out at points that hold every variable's value, of both signs and several sizes: as fractions,
    which must be the same, or to 350 digits, of which 300 must be. Formulas that are nowhere real must agree as
    complex numbers.
    """
    has_real, agreements = False, []
    try:
        for left, right in _sample(expected, answer):
            is_real = values.is_real(left) and values.is_real(right)
            agreements.append(values.is_close(left, right))
            if is_real and not agreements.pop():
                return False
            has_real |= is_real
    except NoFormula:
        return False
    return has_real or (bool(agreements) and all(agreements))


def is_proportional(expected: str, answer: str, is_signed: bool) -> bool:
    """Decide whether one formula is the other one times a number, as the two of one equation are.

    Args:
      is_signed: the number must be above 0, as for inequalities.
    """
    try:
        pairs = [pair for pair in _sample(expected, answer) if not values.is_close(pair[0], Fraction(0))]
    except NoFormula:
        return False
    ratios = [values.divide(right, left) for left, right in pairs]
    if len(ratios) < 2 or values.is_close(ratios[0], Fraction(0)) or (is_signed and values.is_negative(ratios[0])):
        return False
    return all(values.is_close(ratio, ratios[0]) for ratio in ratios)


def _sample(expected: str, answer: str) -> Iterator[tuple[Value, Value]]:
    """The values of two formulas at the points where both have one. Raises NoFormula."""
    names = sorted(find_names(expected) | find_names(answer))
    is_discrete = "!" in expected + answer or r"\binom" in expected + answer
    for point in _make_points(names, is_discrete):
        try:
            yield compute(expected, point), compute(answer, point)
        except Undefined:
            continue


def _make_points(names: Sequence[str], is_discrete: bool) -> list[Point]:
    if not names:
        return [{}]
    rng, points = random.Random(0), []
    for index in range(_POINTS):
        size, signs = (1, 3, 20)[index % 3], (1,) if index < 3 else (1, -1)
        points.append({name: rng.choice(signs) * Fraction(rng.randrange(1, 97) * size, 97) for name in names})
    return [{name: Fraction(rng.randrange(1, 12)) for name in point} for point in points] if is_discrete else points


# --------------------------------------------------------------------------------------------------------------------
# The grammar, over a list of tokens whose last one comes first


def _tokenize(text: str) -> list[str]:
    text = re.sub(r"\^ ?(?:\\circ|\{ ?\\circ ?\})", r"\\circ ", text)
    text = re.sub(r"[0-9]*\.[0-9]*\\overline ?\{[0-9]+\}", _write_repeating, text)
    if not text.startswith(r"\{"):
        text = text.replace(r"\{", "(").replace(r"\}", ")")  # one more sort of brackets
    for pattern in _CHOICES:
        text = re.sub(pattern, _write_choice, text)
    is_large = len(text) > LONGEST or latex.measure_depth(text) > _DEEPEST or text.count("|") > _DEEPEST
    if is_large or _WORD.search(text) or _TOKEN.sub("", text).strip():
        raise NoFormula(text)
    tokens, bars = [], 0
    for token in _TOKEN.findall(text):
        if token == "|":  # becomes "|(" or "|)"
            is_left = bars == 0 or tokens[-1] in (*_TIMES, *_OVER, "+", "-", "=", "(", "{", "|(")
            bars += 1 if is_left else -1
            token = "|(" if is_left else "|)"
        if len(token) > _LONGEST_NUMBER:
            raise NoFormula(text)
        tokens.append(re.sub(r" ?_ ?([0-9A-Za-z])$", r"_{\1}", token))
    return tokens[::-1]


def _write_repeating(found: re.Match[str]) -> str:
    number = latex.parse_number(found[0])
    return rf"\frac{{{number.value.numerator}}}{{{number.value.denominator}}}" if number else found[0]


# C(8, 3), _8C_3, C_8^3 and C^3_8, and with P or A for choices whose order counts.
_TOTAL, _CHOSEN = r"\{? ?(?P<total>[0-9]+|n) ?\}?", r"\{? ?(?P<chosen>[0-9]+|k|r) ?\}?"
_CHOICES = (
    rf"(?:\{{ ?\}} ?)?[_^] ?{_TOTAL} ?(?P<kind>[CPA]) ?_ ?{_CHOSEN}",
    rf"(?<![A-Za-z\\])(?P<kind>[CPA]) ?\( ?{_TOTAL} ?, ?{_CHOSEN} ?\)",
    rf"(?<![A-Za-z\\])(?P<kind>[CPA]) ?_ ?{_TOTAL} ?\^ ?{_CHOSEN}",
    rf"(?<![A-Za-z\\])(?P<kind>[CPA]) ?\^ ?{_CHOSEN} ?_ ?{_TOTAL}",
)


def _write_choice(found: re.Match[str]) -> str:
    ways = rf"\binom{{{found['total']}}}{{{found['chosen']}}}"
    return ways if found["kind"] == "C" else rf"({ways} \cdot ({found['chosen']})!)"


def find_names(text: str) -> set[str]:
    """The variables of a formula. Raises NoFormula."""
    return {token for token in _tokenize(text) if re.fullmatch(NAME, token)} - values.CONSTANTS.keys()


def compute(text: str, point: Point) -> Value:
    """Work a formula out at a point.

    Args:
      text: tidy LaTeX.
      point: a value for each of its variables.

    Raises:
      NoFormula: it is none, or too large.
      Undefined: it has no value there.
    """
    tokens = _tokenize(text)
    if sum(token in (r"\sum", r"\prod") for token in tokens) > 1:
        raise NoFormula(text)  # a sum of sums of sums takes too long
    value = _read_sum(tokens, point)
    if tokens:
        raise NoFormula(text)
    return value


def _peek(tokens: list[str]) -> str:
    return tokens[-1] if tokens else ""


def _take(tokens: list[str], *expected: str) -> str:
    if not tokens or (expected and tokens[-1] not in expected):
        raise NoFormula(_peek(tokens))
    return tokens.pop()


def _read_sum(tokens: list[str], point: Point) -> Value:
    total = _read_term(tokens, point)
    while _peek(tokens) in ("+", "-"):
        is_added = tokens.pop() == "+"
        term = _read_term(tokens, point)
        total = values.check(total + (term if is_added else -term))
    return total


def _read_term(tokens: list[str], point: Point) -> Value:
    mixed = _read_mixed(tokens)
    product = _read_factor(tokens, point) if mixed is None else mixed
    while _peek(tokens) in (*_TIMES, *_OVER) or _peek(tokens) not in _ENDS:
        is_divided = _peek(tokens) in _OVER
        if is_divided or _peek(tokens) in _TIMES:
            tokens.pop()
        if mixed is not None or _read_mixed(tokens) is not None:
            raise NoFormula("a mixed number, or a product")
        factor = _read_factor(tokens, point)
        product = values.divide(product, factor) if is_divided else values.check(product * factor)
    return product


_MIXED = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]+) \\frac \{ (?P<over>[0-9]+) \} \{ (?P<under>[0-9]+) \}")


def _read_mixed(tokens: list[str]) -> Fraction | None:
    r"""Read an integer and a proper fraction, 2 \frac{1}{3}, if they come next."""
    sign = _peek(tokens) if _peek(tokens) in ("+", "-") else ""
    window = tokens[-8 - len(sign) :][::-1]
    found = _MIXED.fullmatch(sign + " ".join(window[len(sign) :]))
    if found is None or int(found["over"]) >= int(found["under"]):
        return None
    del tokens[-len(window) :]
    if _peek(tokens) in ("^", "!"):
        raise NoFormula("a mixed number, or a product")
    value = int(found["whole"]) + Fraction(int(found["over"]), int(found["under"]))
    return -value if sign == "-" else value


def _read_factor(tokens: list[str], point: Point) -> Value:
    sign = tokens.pop() if _peek(tokens) in ("+", "-") else ""
    value = _read_operand(tokens, point)
    if _peek(tokens) == "!":
        tokens.pop()
        value = values.factorial(value)
    if _peek(tokens) == "^":
        tokens.pop()
        is_braced = _peek(tokens) == "{"
        value = values.power(value, _read_exponent(tokens, point))
        value = value if is_braced else _refuse_number(tokens, value)
    return -value if sign == "-" else value


def _read_exponent(tokens: list[str], point: Point) -> Value:
    sign = tokens.pop() if _peek(tokens) == "-" else ""
    if _peek(tokens).isdigit():
        exponent = Fraction(tokens.pop())
    else:
        exponent = _read_group(tokens, point) if _peek(tokens) == "{" else _read_operand(tokens, point)
    return -exponent if sign else exponent


def _read_group(tokens: list[str], point: Point) -> Value:
    closing = _CLOSING[_take(tokens, *_CLOSING)]
    value = _read_sum(tokens, point)
    _take(tokens, closing)
    return {"|)": abs, r"\rfloor": values.floor, r"\rceil": values.ceil}.get(closing, lambda inner: inner)(value)


def _read_operand(tokens: list[str], point: Point) -> Value:
    token = _peek(tokens)
    if token in _CLOSING:
        value = _read_group(tokens, point)
        return _refuse_number(tokens, value) if token == "{" else value
    _take(tokens)
    if token[0].isdigit() or token[0] == ".":
        return _refuse_number(tokens, Fraction(f"0{token}"))
    if token in point:
        return _refuse_number(tokens, point[token])
    if token in values.CONSTANTS:
        value = values.CONSTANTS[token]()
        return value if token == r"\pi" else _refuse_number(tokens, value)  # \pi 3^2, but not e3
    if token == r"\frac":
        return values.divide(_read_group(tokens, point), _read_group(tokens, point))
    if token == r"\binom":
        return values.binomial(_read_group(tokens, point), _read_group(tokens, point))
    if token == r"\sqrt":
        index = _read_group(tokens, point) if _peek(tokens) == "[" else Fraction(2)
        return values.root(_read_group(tokens, point), index)
    if token in (r"\sum", r"\prod"):
        return _read_series(token == r"\sum", tokens, point)
    return _read_function(token[1:], tokens, point)


def _refuse_number(tokens: list[str], value: Value) -> Value:
    """Refuse a number that follows a number or a name without a bracket between them."""
    following = next((token for token in reversed(tokens) if token != "{"), "")
    if following[:1].isdigit() or following[:1] == ".":
        raise NoFormula("two numbers apart")
    return value


def _read_function(name: str, tokens: list[str], point: Point) -> Value:
    base, power = Fraction(10), Fraction(1)
    while _peek(tokens) in ("^", "_") if name == "log" else _peek(tokens) == "^":
        if tokens.pop() == "^":
            power = _read_exponent(tokens, point)
        else:
            base = _read_exponent(tokens, point)
    if power == -1:
        name, power = f"arc{name}", Fraction(1)
    if _peek(tokens) in _CLOSING:
        argument = _read_group(tokens, point)
    else:  # what stands side by side, up to the next function: \sin 2x \cos x
        argument = _read_factor(tokens, point)
        while _peek(tokens) not in _ENDS and _peek(tokens)[1:] not in values.FUNCTIONS:
            argument = values.check(argument * _read_factor(tokens, point))
    value = values.call(name, argument)
    if name == "log":
        value = values.divide(value, values.call(name, base))
    return value if power == 1 else values.power(value, power)


def _read_series(is_sum: bool, tokens: list[str], point: Point) -> Value:
    r"""Read \sum_{k=1}^{9} k, of a number of terms that is known."""
    _take(tokens, "_")
    _take(tokens, "{")
    name = _take(tokens)
    _take(tokens, "=")
    low = _read_sum(tokens, point)
    _take(tokens, "}")
    _take(tokens, "^")
    high = _read_exponent(tokens, point)
    if not (values.is_integer(low) and values.is_integer(high) and 0 <= high - low < _MOST_TERMS):
        raise NoFormula("a sum of too many terms")
    body, total = [*tokens], Fraction(0 if is_sum else 1)
    for index in range(int(low), int(high) + 1):
        tokens[:] = body
        term = _read_term(tokens, {**point, name: Fraction(index)})
        total = values.check(total + term if is_sum else total * term)
    return total
