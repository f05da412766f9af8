"""A calculator: the last message is an expression, the answer is its value.

Whole numbers, + - * / % and parentheses, exactly (a fraction that does not come out is p/q). Spaces are nothing, also
between digits. It answers `error` to whatever is no expression.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction

from c3jax.tasks.environment import Environment, Message, Observation
from c3jax.types import Problem

_LONGEST = 1000  # characters of an expression
_LARGEST = 10**100
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


def begin(problem: Problem, seed: int) -> None:
    """It keeps nothing in mind."""


def answer(state: None, messages: Sequence[Message]) -> Observation:
    """The value of the last message."""
    try:
        value = compute_value(messages[-1].text)
    except (ValueError, ZeroDivisionError):
        return Observation("error")
    return Observation(str(value))


def compute_value(text: str) -> Fraction:
    """The value of an expression.

    Raises:
      ValueError: it is none, or it or one of its parts is too large.
      ZeroDivisionError: it divides by zero.
    """
    if len(text) > _LONGEST:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of a text like 2and3
            tree = ast.parse("".join(text.split()), mode="eval")
    except (SyntaxError, MemoryError, RecursionError, ValueError):
        raise ValueError("no expression") from None
    return _compute(tree.body)


def _compute(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = Fraction(node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_compute(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_compute(node.left), _compute(node.right))
    else:
        raise ValueError("no expression of numbers")
    if abs(value.numerator) > _LARGEST or value.denominator > _LARGEST:
        raise ValueError("too large")
    return value


CALCULATOR = Environment(
    reset=begin, step=answer, vocabulary=(*"0123456789", "+", "-", "*", "/", "%", "(", ")", "error")
)
