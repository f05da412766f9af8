"""Formulas: what they are worth, which of them are equal, and what they may cost."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
import sympy

from c3jax.tasks.maths import formula, latex, values

X = {"x": Fraction(3, 2), "y": Fraction(-2, 5), "n": Fraction(5)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Side by side is a product, whatever it is that stands there.
        *(("3(4)", 12), ("(3)(4)", 12), ("(3)4", 12), ("2(3)(4)", 24), ("-3(4)", -12), ("10(0.5)", 5)),
        *((r"\binom{10}{2}\binom{8}{3}", 2520), (r"3\binom{4}{2}", 18), (r"\sqrt{4}\sqrt{9}", 6), (r"5\sqrt{36}", 30)),
        *(("|3||-4|", 12), ("2|-3|", 6), ("3!2!", 12), ("2^{3}(5)", 40), ("2x", 3), ("2xy", Fraction(-6, 5))),
        *((r"\frac{1}{2}\frac{1}{3}", Fraction(1, 6)), (r"4\frac{5}{2}", 10), ("x(x+1)", Fraction(15, 4))),
        # From the left.
        *(("4/3x", 2), ("12/2/3", 2), ("12/2(3)", 18), ("2-3-4", -5), ("2-3+4", 3)),
        # Mixed numbers have a proper fraction and stand alone.
        *(
            (r"2\frac{1}{3}", Fraction(7, 3)),
            (r"-2\frac{3}{4}", Fraction(-11, 4)),
            (r"1+2\frac{1}{3}", Fraction(10, 3)),
        ),
        *((r"(2\frac{1}{2})(2)", 5), (r"x-2\frac{1}{2}", -1)),
        # Powers, roots, rounding, series.
        *(("2^{10}", 1024), ("2^10", 1024), ("-2^2", -4), ("(-2)^2", 4), ("x^{-1}", Fraction(2, 3)), ("8^{2/3}", 4)),
        *((r"\sqrt[3]{-8}", -2), (r"\sqrt{\frac{9}{4}}", Fraction(3, 2)), (r"\lfloor -1.5 \rfloor", -2)),
        *((r"\lceil 1.5 \rceil", 2), (r"\sum_{k=1}^{10} k^2", 385), (r"\prod_{i=1}^{4} i", 24), ("n!", 120)),
        *(("0.1+0.2", Fraction(3, 10)), ("2^{1000}-2^{1000}+1", 1), ("1.5", Fraction(3, 2)), (".5", Fraction(1, 2))),
        (r"1.\overline{3}", Fraction(4, 3)),
    ],
)
def test_a_formula_of_fractions_is_worked_out_exactly(text, value):
    worth = formula.compute(text, X)
    assert worth == value and isinstance(worth, Fraction)


@pytest.mark.parametrize(
    "text",
    [
        *("3 4", "{3}{4}", "3{4}", "x 2", "x2", "e 2", "2 x 3", "2^3 4", "1/2 1/3", "3 4 + 5", r"\frac{1}{2} + 3 4"),
        *(r"2\frac{1}{2}x", r"2\frac{1}{2}\pi", r"x2\frac{1}{2}", r"2\frac{1}{2}^2", r"3\cdot 2\frac{1}{2}\cdot 2"),
        *("", "+", "3+", "(3", "3)", "--3", "3**2", "3!!", "x^", "^2", "_1", r"\frac{1}", r"\sqrt", "|3", "3|", "()"),
        *("abc", "word", "AB", r"\text{x}", r"\foo x", r"\operatorname{eye}(9)", r"\int x dx", "f'(x)", "x@y"),
        *("__import__", "3, 4", "x=3", "x<3", "٣", "x^2^3", r"\sum_{k=1}^{\infty} k", r"\sum_{k=1}^{n+200} k"),
        *("9" * 51, "(" * 13 + "1" + ")" * 13, "x+" * 150 + "x", "|" * 20),
    ],
)
def test_what_is_no_formula_has_no_value(text):
    with pytest.raises(values.NoFormula):
        formula.compute(text, X)
    assert not formula.is_formula(text) and not formula.is_equal(text, text)


@pytest.mark.parametrize("text", ["1/0", r"\frac{1}{0}", "0^0", "0^{-1}", r"\ln 0", r"\tan 90^\circ", "(-1)!"])
def test_what_has_no_value_equals_nothing(text):
    with pytest.raises(values.Undefined):
        formula.compute(text, X)
    assert not formula.is_equal(text, text)


x, y = sympy.symbols("x y")
EXPRESSIONS = [
    *(
        sympy.sqrt(3) / 2,
        3 * sympy.sqrt(7) - sympy.Rational(1, 5),
        (x**2 - 1) / (x + 1),
        sympy.cbrt(x + 7),
        1 / (1 + 1 / x),
    ),
    *(sympy.sin(x), sympy.cos(2 * x) + sympy.tan(x), sympy.log(x + 2), sympy.exp(x) - sympy.exp(-x), sympy.atan(x)),
    *(sympy.sqrt(1 + sympy.sqrt(2 + sympy.sqrt(3))), 2**x * 3**x, sympy.Abs(x - 5), 5 * sympy.pi / 4, x * y * (x - y)),
    *((x + 2) ** 3 - x**3, sympy.sin(sympy.pi / 7) ** 2, sympy.sec(x) * sympy.cot(x), sympy.sin(x) * sympy.cos(y) / 3),
    *(sympy.log(x) / sympy.log(2), x ** sympy.Rational(2, 3), (x * sympy.pi) ** 2 / 7, sympy.I * sympy.sqrt(5) - x),
    *(sympy.floor(7 * x), sympy.ceiling(7 * x), sympy.binomial(9, 4) * x, sympy.factorial(6) / x, sympy.asin(y) * 2),
    *(
        -x - y,
        -(x**2) / (y - 1),
        (x + y) * (x - y) * sympy.exp(x * y),
        sympy.sinh(x) * sympy.cosh(y),
        sympy.Float("0.125") * x,
    ),
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
@pytest.mark.parametrize("settings", [{}, {"mul_symbol": "dot"}, {"fold_short_frac": True}], ids=str)
def test_what_sympy_writes_is_worth_what_sympy_says(expression, settings):
    text = sympy.latex(expression, inv_trig_style="full", ln_notation=True, **settings)
    ours = formula.compute(latex.tidy(text), X)
    theirs = expression.subs({x: sympy.Rational(3, 2), y: sympy.Rational(-2, 5)}).evalf(60)
    assert abs(sympy.sympify(ours) - theirs) < sympy.Float(10) ** -50


@pytest.mark.parametrize(
    ("left", "right", "is_equal"),
    [
        ("R^2-r^2", "r^2-R^2", False),  # letters keep their case
        ("|x|", "x", False),  # points of both signs
        (r"\sqrt{x^2}", "|x|", True),
        (r"\sqrt{\frac{1}{n}}", r"\frac{1}{\sqrt{n}}", True),  # wherever both are real
        (r"\ln x^2", r"2\ln x", True),
        (r"\sin x", "x", False),
        ("x_1+x_2", "x_{2}+x_{1}", True),
        ("x_1", "x_2", False),
        ("e^{i\\pi}", "-1", True),
        ("1+2i", "1-2i", False),
        ("e^{ix}", r"\cos x + i\sin x", True),
        ("0", r"\sin\pi", True),
        ("0", "10^{-300}", False),
        (r"\sqrt{2}", "1.4142135623730950488016887242096980785696718753769", False),
        (r"\sqrt{2}", r"\frac{14142135623730950488}{10000000000000000000}", False),
        (r"10^{20}\sqrt{2}", r"10^{20}\sqrt{2}+1", False),
        (r"2\sqrt{2}\cdot 10^{-20}", r"3\sqrt{2}\cdot 10^{-20}", False),
        ("2^{9999}", "2^{9999}+1", False),
        (r"\frac{1}{1998!}", r"\frac{1}{1999!}", False),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", True),
        ("(n+1)!", "n!(n+1)", True),
        ("(-1)^n", "(-1)^{n+2}", True),
        ("(x+1)^{999}", "(1+x)^{999}", True),
        (r"\sin 2x", r"2\sin x\cos x", True),
        (r"\sin^{-1} x", r"\arcsin x", True),
        (r"\tan x", r"\frac{\sin x}{\cos x}", True),
        ("x", "x", True),
        ("x", "x+0.0000000000000000000000000000000000001", False),
    ],
)
def test_formulas_are_equal_if_their_values_are(left, right, is_equal):
    assert formula.is_equal(left, right) is is_equal is formula.is_equal(right, left)


@pytest.mark.parametrize(
    ("left", "right", "is_signed", "is_proportional"),
    [
        ("x-3", "3-x", False, True),
        ("x-3", "3-x", True, False),
        ("x-3", "2x-6", True, True),
        ("x-3", "x-4", False, False),
        ("x^2+y^2-4", r"\frac{x^2}{4}+\frac{y^2}{4}-1", True, True),
        ("x-3", "0", False, False),
        ("x-3", "(x-3)y", False, False),
    ],
)
def test_equations_are_the_same_if_their_sides_differences_are_proportional(left, right, is_signed, is_proportional):
    assert formula.is_proportional(left, right, is_signed) is is_proportional


COSTLY = [
    *("9^{9^{9}}", "10^{10^{10}}", "((9^{99})^{99})^{99}", "x^{99999}", "2^{x^{9^9}}", "x^{x^{x^{x^{x}}}}", "9999!"),
    *("(9!)!", "2^{9!}", "e^{e^{e^{e^{9}}}}", r"\exp(\exp(\exp(9)))", r"\sqrt[1000000000]{72}", r"\binom{99999}{5}"),
    *("2^{9999}" * 9, "(2^{9999}+1)" * 12, "x^{9999}" * 30, r"(\frac{1}{3^{9999}}+x)" * 9, r"\tan" * 70 + "x"),
    *("2^" * 90 + "2", "x!" * 60, "(x!)" * 60, r"\sin\cos\tan\exp" * 15 + "x", r"\sqrt{" * 12 + "x" + "}" * 12),
    *(r"\sum_{k=1}^{100} \sin(\frac{k}{7}x^{99})", r"\prod_{k=1}^{100} (x^k+1)", "-" * 300, "|" * 12, "x^" * 140 + "x"),
    *("x^{999}^{999}", "(x^{99})^{99}", "((x+1)^{99}+1)^{99}", r"\ln" * 100 + "x", "(" * 12 + "x" + ")^{9}" * 12),
]


@pytest.mark.parametrize("text", COSTLY)
def test_no_formula_takes_long(text):
    began = time.perf_counter()
    formula.is_equal(text, text)
    formula.is_equal(text, "72")
    assert time.perf_counter() - began < 5.0  # milliseconds; what hangs, hangs for years
