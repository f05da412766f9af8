"""The calculator: values by Python's own fractions, and everything that is no expression."""

from fractions import Fraction

import pytest

from c3jax.tasks.environment import Call, Message, run_call
from c3jax.tasks.environments.calculator import CALCULATOR, compute_value
from c3jax.types import Problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 4 - 2", 5),
        ("( 3 + 4 - 9 ) % 1 0", 8),  # -2 modulo 10; spaces are nothing
        ("2*(3+4)", 14),
        ("-7 % 3", 2),
        ("1/3 + 1/6", Fraction(1, 2)),
        ("12345678901234567890 * 98765432109876543210", 12345678901234567890 * 98765432109876543210),
        ("-(2 - 5)", 3),
    ],
)
def test_values(text, value):
    assert compute_value(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x + 1",
        "2 ** 9",
        "1 / 0",
        "5 % 0",
        "1.5 + 1",
        "f(3)",
        "(1, 2)",
        "3 +",
        "9" * 120,
        "1" * 2000,
        "__import__('os')",
    ]
    + ["(" * 900 + "1" + ")" * 900, "True + 1", "2if 3else 4", "0x10 +", "\ud800", "1;2", "3 // 2"],
)
def test_what_is_no_expression_is_an_error(text):
    observed = run_call([CALCULATOR], Problem(0, "0", "", ""), Call(0, 0, ((Message("a", "a", text),),)))
    assert observed == [("error", 0.0, False)]


def test_the_last_message_is_computed():
    said = (Message("a", "a", "1 + 1"), Message("b", "b", "2 + 3"))
    assert run_call([CALCULATOR], Problem(0, "0", "", ""), Call(0, 0, (said, said[:1]))) == [
        ("5", 0.0, False),
        ("2", 0.0, False),
    ]
