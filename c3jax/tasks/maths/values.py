"""Arithmetic on the values of formulas: fractions while they are exact, else mpmath's numbers of 350 digits.

Every step is bounded before it is taken, so that no formula costs more than milliseconds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Value = Any  # Fraction, or mpmath's mpf or mpc

_DIGITS = 350  # more than a formula has characters: no fraction in it comes so close to an irrational number
_AGREED_DIGITS = 300
_LARGEST_EXACT = 40_000  # bits of a numerator or denominator
_LARGEST_EXPONENT = 50_000  # of e
_LARGEST_FACTORIAL = 3_000


class NoFormula(ValueError):
    """A text that is no formula, or one that is too large to be worked out."""


class Undefined(ArithmeticError):
    """A formula that has no value at a point."""


@functools.cache
def _reals() -> Any:
    import mpmath  # with the first value that is no fraction: most tasks and most processes never need it

    reals = mpmath.mp.clone()
    reals.dps = _DIGITS
    return reals


def is_integer(value: Value) -> bool:
    """Whether a value is exactly an integer."""
    return isinstance(value, Fraction) and value.denominator == 1


def is_real(value: Value) -> bool:
    """Whether a value is real, but for rounding."""
    return isinstance(value, Fraction) or abs(value.imag) <= abs(value) * _reals().mpf(10) ** -_AGREED_DIGITS


def to_real(value: Value | float) -> Value:
    """The real part of a value, as one of mpmath's numbers: fractions are not ordered among those."""
    return _reals().convert(value).real


def is_negative(value: Value) -> bool:
    """Whether a value, of a complex one its real part, is below zero."""
    return (value if isinstance(value, Fraction) else value.real) < 0


def is_close(left: Value, right: Value) -> bool:
    """Whether two values are the same: fractions and infinities exactly, others but for rounding."""
    if left == right or (isinstance(left, Fraction) and isinstance(right, Fraction)):
        return left == right
    left, right = _reals().convert(left), _reals().convert(right)
    tolerance = _reals().mpf(10) ** -_AGREED_DIGITS
    # What should be 0 comes out as something like 1e-350.
    least = tolerance if left and right else _reals().mpf(10) ** -20
    distance = abs(left - right)
    return _reals().isfinite(distance) and distance <= tolerance * max(abs(left), abs(right), least)


def check(value: Value) -> Value:
    """Refuse a fraction of too many digits. Raises NoFormula."""
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _LARGEST_EXACT:
            raise NoFormula("a fraction of too many digits")
    return value


def divide(over: Value, under: Value) -> Value:
    """The quotient. Raises Undefined for a division by zero."""
    if under == 0:
        raise Undefined("/ 0")
    # mpmath takes fractions on the right alone.
    is_exact = isinstance(over, Fraction) and isinstance(under, Fraction)
    return check(over / under) if is_exact else _reals().convert(over) / under


def power(base: Value, exponent: Value) -> Value:
    """The power, exact where it can be. Raises Undefined where there is none."""
    if base == 0:
        if not isinstance(exponent, Fraction) or exponent <= 0:
            raise Undefined("0 ^ 0")
        return Fraction(0)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        if is_integer(exponent) and abs(exponent) * bits <= _LARGEST_EXACT:
            return base ** int(exponent)
        if is_integer(exponent):
            raise NoFormula("a power of too many digits")
        if base > 0 and (exact := _find_root(base, exponent.denominator)) is not None:
            return power(exact, Fraction(exponent.numerator))
    reals = _reals()
    if abs(exponent * reals.log(base)) > _LARGEST_EXPONENT:
        raise NoFormula("a power that is too large")
    return reals.power(reals.convert(base), reals.convert(exponent))


def _find_root(base: Fraction, index: int) -> Fraction | None:
    """A root that is a fraction, or None."""
    if index > 64:
        return None
    exact = Fraction(*(int(_reals().nint(_reals().root(part, index))) for part in (base.numerator, base.denominator)))
    return exact if exact**index == base else None


def root(value: Value, index: Value) -> Value:
    """The real root of an odd index, else the principal one."""
    if not is_integer(index) or index < 1:
        raise NoFormula("the index of a root")
    if index % 2 and is_real(value) and is_negative(value):
        return -power(-value, 1 / index)
    return power(value, 1 / index)


def factorial(value: Value) -> Value:
    """The factorial of an integer. Raises NoFormula for anything else, or a large one."""
    if not is_integer(value) or value > _LARGEST_FACTORIAL:
        raise NoFormula("a factorial of no integer, or of one that is too large")
    if value < 0:
        raise Undefined("a factorial below 0")
    return check(Fraction(math.factorial(int(value))))


def binomial(total: Value, chosen: Value) -> Value:
    """The binomial coefficient of integers. Raises NoFormula for anything else, or large ones."""
    if not (is_integer(total) and is_integer(chosen) and max(total, chosen) <= _LARGEST_FACTORIAL):
        raise NoFormula("a binomial coefficient of no integers, or of ones that are too large")
    if not total >= 0 <= chosen:
        raise Undefined("a binomial coefficient below 0")
    return Fraction(math.comb(int(total), int(chosen)))


def floor(value: Value) -> Value:
    """The largest integer that is not above. Raises NoFormula for a complex value."""
    if not is_real(value):
        raise NoFormula("a complex number is not rounded")
    real = _reals().convert(value).real
    nearest = Fraction(int(_reals().nint(real)))
    return nearest if is_close(nearest, real) else Fraction(int(_reals().floor(real)))


def ceil(value: Value) -> Value:
    """The smallest integer that is not below. Raises NoFormula for a complex value."""
    return -floor(-value)


CONSTANTS: dict[str, Callable[[], Value]] = {
    "e": lambda: +_reals().e,
    "i": lambda: _reals().mpc(0, 1),
    r"\pi": lambda: +_reals().pi,
    r"\circ": lambda: _reals().pi / 180,
}
FUNCTIONS: dict[str, Callable[[Any], Callable[[Value], Value]]] = {
    **{"sin": lambda reals: reals.sin, "cos": lambda reals: reals.cos, "tan": lambda reals: reals.tan},
    **{"csc": lambda reals: reals.csc, "sec": lambda reals: reals.sec, "cot": lambda reals: reals.cot},
    **{"arcsin": lambda reals: reals.asin, "arccos": lambda reals: reals.acos, "arctan": lambda reals: reals.atan},
    **{"sinh": lambda reals: reals.sinh, "cosh": lambda reals: reals.cosh, "tanh": lambda reals: reals.tanh},
    **{"exp": lambda reals: reals.exp, "log": lambda reals: reals.log},
    **{"ln": lambda reals: reals.log, "lg": lambda reals: reals.log10},
}


def call(name: str, argument: Value) -> Value:
    """Apply a function by its name in LaTeX. Raises NoFormula, Undefined."""
    reals = _reals()
    if name not in FUNCTIONS or (abs(argument) > _LARGEST_EXPONENT and name not in ("ln", "lg", "log")):
        raise NoFormula(name)
    try:
        value = FUNCTIONS[name](reals)(reals.convert(argument))
    except ZeroDivisionError as error:
        raise Undefined(name) from error
    if not reals.isfinite(value) or (abs(value) > 10**_AGREED_DIGITS and name not in ("exp", "sinh", "cosh")):
        raise Undefined(f"a pole of {name}")
    return value
