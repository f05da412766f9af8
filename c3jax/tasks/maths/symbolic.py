r"""Whether two formulas are equal, by math-verify: sympy objects from LaTeX, compared exactly.

What the grammar of math-verify is given is bounded before it is parsed: plain characters, a list of commands, no
operator that makes or evaluates large objects, small exponents. All else counts as no formula. On this way no text
is ever evaluated as Python: the LaTeX grammar builds the objects (the other way into math-verify, for plain
expressions, calls sympy's parse_expr, and is not used). What is slow all the same is the business of the process's
limits.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

from c3jax.tasks.maths import latex

LONGEST_FORMULA = 300  # characters
_DEEPEST = 12  # brackets in brackets
_LONGEST_DIGITS = 50
_MOST_SUBSCRIPTS = 4  # the grammar takes twice the time with each one in a chain of them
_LARGEST_EXPONENT = 10_000  # product of all exponents of numbers: bounds the digits of what is computed
_LARGEST_DEGREE = 20  # of a sum: expanding it takes so many terms
_AGREED_DIGITS = 40

_FUNCTIONS = "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh log ln"
_LETTERS = "alpha beta delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega"
_ALLOWED = {*f"frac sqrt binom pi cdot times div infty le ge ne {_FUNCTIONS} {_LETTERS}".split()}
_CHARACTERS = re.compile(r"[0-9A-Za-z+\-*/^_=<>()\[\]{}|!.,\\ ]*")


def is_equal(expected: str, answer: str) -> bool:
    """Decide whether two formulas are equal for all values of their variables; False if either is no formula."""
    formulas = [_spell_decimals(latex.join_thousands(text)) for text in (expected, answer)]
    if not all(is_formula(formula) for formula in formulas) or _has_both_cases("".join(formulas)):
        return False
    wanted, given = [_parse(formula) for formula in formulas]
    return bool(wanted and given and not _is_refuted(wanted[0], given[0]) and _verify(wanted[0], given[0]))


# math-verify, and sympy with it, is loaded with the first formula: most tasks and most processes never need it.


@functools.cache
def _make_rules() -> tuple[Any, ...]:
    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    # It says once a process that its own time limit, which needs a signal, is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # Units are taken off before: math-verify's own list takes off letters (3t becomes 3).
    normal = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="last")
    return (math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal),)


def _parse(formula: str) -> list[Any]:
    rules = _make_rules()
    import math_verify

    return math_verify.parse(rf"\boxed{{{formula}}}", rules, fallback_mode="no_fallback", parsing_timeout=0)


def _verify(expected: Any, answer: Any) -> bool:
    import math_verify
    import sympy

    if isinstance(expected, sympy.Expr) and isinstance(answer, sympy.Expr):
        # Worked out first: math-verify compares a lone variable by its name.
        expected, answer = expected.doit(), answer.doit()
    return math_verify.verify(expected, answer, timeout_seconds=None)


def _spell_decimals(text: str) -> str:
    """Write decimals as fractions: math-verify compares floating-point numbers to six digits."""

    def spell(found: re.Match[str]) -> str:
        digits = found[0].rstrip(".")
        whole, point, places = digits.partition(".")
        return rf"(\frac{{{int(whole + places)}}}{{{10 ** len(places)}}})" if point else digits

    return re.sub(r"[0-9]+\.[0-9]*|\.[0-9]+", spell, text) if len(text) <= LONGEST_FORMULA else text


def is_formula(text: str) -> bool:
    """Whether a text is within the bounds of what is parsed at all."""
    if len(text) > LONGEST_FORMULA or not _CHARACTERS.fullmatch(text) or "**" in text:
        return False
    commands = re.findall(r"\\([A-Za-z]*)", text)
    if not {*commands} <= _ALLOWED or latex.measure_depth(text) > _DEEPEST:
        return False
    letters = re.sub(r"\\[A-Za-z]+", " ", text)
    if re.search(r"[A-Za-z]{3}", letters) or re.search(rf"[0-9]{{{_LONGEST_DIGITS + 1}}}", text):
        return False
    if text.count("_") > _MOST_SUBSCRIPTS:
        return False
    return _has_small_factorials(text) and _has_small_powers(text)


def _has_small_factorials(text: str) -> bool:
    # A binomial coefficient of numbers is computed as it is parsed.
    binomials = len(re.findall(r"\\binom ?\{ ?(?:[0-9]{1,3}|[a-z]) ?\} ?\{ ?(?:[0-9]{1,3}|[a-z]) ?\}", text))
    factorials = len(re.findall(r"(?<![0-9])[0-9]{1,3}!(?!!)|(?<![A-Za-z])[a-z]!(?!!)", text))
    return text.count(r"\binom") == binomials and text.count("!") == factorials <= 3


def _has_small_powers(text: str) -> bool:
    has_variables = re.search(r"(?<!\\)(?<![A-Za-z])[a-df-hj-z]", text) is not None
    total = 1
    for caret in re.finditer(r"(?P<base>\S)?\s*\^\s*", text):
        exponent = _read_exponent(text, caret.end())
        largest = max([int(digits) for digits in re.findall("[0-9]+", exponent)], default=1)
        if "!" in exponent or r"\binom" in exponent or largest > _LARGEST_EXPONENT:
            return False
        if "^" in exponent and not re.fullmatch(r"\{?-?[0-9]?[a-df-hj-z] ?\^ ?\{?[0-9]\}?\}?", exponent):
            return False
        if (caret["base"] or "") in ")]}|" and has_variables and largest > _LARGEST_DEGREE:
            return False
        total *= max(1, largest)
    # A root's index, or a power of a power, is an exponent too; in a polynomial each power stands for itself.
    bound = 10**12 if has_variables and not re.search(r"[)}\]] ?\^", text) else _LARGEST_EXPONENT
    return total <= bound and re.search(r"\\sqrt ?\[(?! ?[0-9]{1,2} ?\])", text) is None


def _read_exponent(text: str, start: int) -> str:
    if text[start : start + 1] != "{":
        command = re.compile(r"\\[A-Za-z]+|-?[0-9]+|.?").match(text, start)
        return command[0] if command else ""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start : place + 1]
    return text[start:]


def _has_both_cases(text: str) -> bool:
    """Whether a letter stands in both cases: math-verify would take R and r for the same."""
    letters = {*re.sub(r"\\[A-Za-z]+", "", text)}
    return any(letter.upper() in letters for letter in letters if letter.islower())


def _is_refuted(expected: Any, answer: Any) -> bool:
    """Whether two expressions differ in value, all variables set to positive numbers, by more than rounding.

    It spares most wrong answers the cost of simplifying; and math-verify takes for zero what is below 1e-15.
    """
    import sympy

    if not isinstance(expected, sympy.Expr) or not isinstance(answer, sympy.Expr) or expected == answer:
        return False
    variables = sorted(expected.free_symbols | answer.free_symbols, key=str)
    point = [(variable, sympy.Rational(37 + 14 * place, 29 + 4 * place)) for place, variable in enumerate(variables)]
    left, right = (side.subs(point).doit().evalf(_AGREED_DIGITS + 20) for side in (expected, answer))
    if not (left.is_finite and right.is_finite and left.is_number and right.is_number):
        return not variables
    return not sympy.Abs(left - right) <= sympy.Abs(left) * sympy.Float(10) ** -_AGREED_DIGITS
