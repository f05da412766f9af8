r"""Pairs of answers to measure the verdicts with: templates that the rules were not written from.

It was written before the rules were changed, by kinds of fault that users reported, and no rule was made by looking
at what it yields; `generate.py` is what the rules were developed on. Whoever changes a rule because of a pair in here
should write other templates to measure with.

    python tests/tasks/maths/sweep.py kinds heldout SEED
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple


class Pair(NamedTuple):
    kind: str
    is_equal: bool
    problem: str
    answer: str
    question: str = "Find the value."


Rows = Iterator[tuple[bool, str, str] | tuple[bool, str, str, str]]


def write_fraction(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return (
        f"{sign}{abs(value)}"
        if value.denominator == 1
        else rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    )


def write_products(rng: random.Random) -> Rows:
    a, b, c, d = rng.sample(range(2, 20), 4)
    forms = [
        rf"{a}\left({b}\right)",
        f"({a}) ({b})",
        rf"{a} \bigl( {b} \bigr)",
        rf"[{a}]({b})",
        rf"{{{a}}}({b})",
        rf"({a}){{({b})}}",
        rf"\frac{{{a}}}{{1}}({b})",
        rf"{a}\sqrt{{{b * b}}}",
        rf"\sqrt{{{a * a}}}\sqrt{{{b * b}}}",
        rf"|{a}||-{b}|",
    ]
    form = rng.choice(forms)
    yield True, str(a * b), form
    yield False, str(a + b), form
    yield (
        False,
        str(a + b),
        rng.choice((f"{a} {b}", rf"{a}\;{b}", rf"{a}\quad {b}", f"{{{a}}} {{{b}}}", f"${a}$ ${b}$")),
    )
    yield False, str(a * b), rng.choice((f"{a} {b}", rf"{a}\ {b}"))
    n, k, m, j = rng.randrange(5, 10), rng.randrange(2, 4), rng.randrange(4, 8), rng.randrange(1, 4)
    left, right = math.comb(n, k), math.comb(m, j)
    form = rng.choice(
        (rf"\binom{{{n}}}{{{k}}}\binom{{{m}}}{{{j}}}", rf"\dbinom{n}{k} \tbinom{m}{j}", rf"{left}\binom{m}{j}")
    )
    yield True, str(left * right), form
    yield False, str(left + right), form
    form = rf"\binom{n}{k}({c})"
    yield True, str(left * c), form
    yield False, str(left + c), form
    over = rng.randrange(2, 9)
    under = rng.choice([number for number in range(2, 9) if math.gcd(number, over) == 1])
    ratio = Fraction(over, under)
    if ratio > 1:  # improper: a product
        yield True, write_fraction(a * ratio), rf"{a}\frac{{{over}}}{{{under}}}"
        yield False, write_fraction(a + ratio), rf"{a}\frac{{{over}}}{{{under}}}"
    else:  # a mixed number
        yield True, write_fraction(a + ratio), rf"{a}\dfrac{{{over}}}{{{under}}}"
        yield True, write_fraction(-(a + ratio)), f"-{a} {over}/{under}"
        yield False, write_fraction(a * ratio), rf"{a}\tfrac{over}{under}"
    yield True, rf"\frac{{{over}\pi}}{{{under}}}", rf"{over}/{under}\pi"
    yield False, rf"\frac{{{over}}}{{{under}\pi}}", rf"{over}/{under} \pi"
    yield True, rf"\frac{{{over}}}{{{under}}} \pi r^3", rf"{over}/{under} \pi r^{{3}}"
    yield True, rf"{a}x^2 + {a * b}x", rf"{a}x(x+{b})"
    yield False, rf"x^2 + {a}x + {b}", rf"x(x+{a})({b})"
    yield True, rf"x^2+{a + b}x+{a * b}", rf"(x+{a})(x+{b})"
    yield False, rf"2x+{a + b}", rf"(x+{a})(x+{b})"
    yield True, rf"{a * c}\sqrt{{{b * d}}}", rf"({a}\sqrt{{{b}}})({c}\sqrt{{{d}}})"
    yield True, str(math.factorial(3) * a), rf"3!({a})"
    yield False, str(math.factorial(3) + a), rf"3!({a})"
    decimal = rng.choice((5, 25, 75)) / 100
    yield True, f"{a * decimal * 4:g}", f"{4 * a}({decimal})"
    yield False, f"{4 * a + decimal:g}", f"{4 * a}({decimal})"
    yield True, rf"{2**c * a}", rf"2^{{{c}}}({a})"
    yield True, rf"{a}\ln {b}", rf"\ln({b}) \cdot {a}"
    yield True, rf"{a}\sin x\cos x", rf"{a} \cos x \sin x"


def write_thousands(rng: random.Random) -> Rows:
    n = rng.randrange(1, 999)
    m, last = rng.randrange(0, 1000), rng.randrange(0, 1000)
    number, longer = 1000 * n + m, 10**6 * n + 1000 * m + last
    yield True, f"{number:,}", str(number)
    yield True, str(longer), f"{longer:,}".replace(",", rng.choice(("{,}", r"\,", r"{\,}", "~", r"\ ", r",\!", r"\;")))
    yield True, f"{longer:,}", f"{longer}.0"
    yield True, f"({number:,}, 5)", f"({number}, 5)"
    yield True, rf"\${number:,}", f"{number}"
    yield False, f"{number:,}", f"{n}, {m}"
    yield False, f"{number:,}", f"{m}, {n}"
    yield False, f"{number:,}", rf"{n} \text{{ and }} {m}"
    yield False, str(number), rf"\{{{n}, {m}\}}"
    yield False, f"{longer:,}", f"{n}, {m}, {last}"
    yield False, str(n + m), f"{n},{m:03}"
    yield False, f"{n},{m:03},{last:03}", f"{n},{m:03}"
    yield False, str(number), f"{n}.{m:03}"
    x, y = rng.sample(range(2, 99), 2)
    yield True, f"{x}, {y}", f"{y},{x}"


def write_equations(rng: random.Random) -> Rows:
    v = rng.randrange(2, 60)
    k = rng.randrange(2, 9)
    for left in rng.sample(
        [
            f"{k}x",
            "x^2",
            "|x|",
            rf"\frac{{x}}{{{k}}}",
            f"x+{k}",
            f"{k}-y",
            "-x",
            r"\sqrt{x}",
            "2^x",
            f"x/{k}",
            f"{k}(x+1)",
            r"\frac{1}{n}",
            "x^{-1}",
            "xy",
            "n!",
            f"{v + 1}",
            rf"{k}\cdot {v}",
            r"\sqrt{x+1}",
            "3a+1",
            r"\frac{a}{b+1}",
        ],
        4,
    ):
        yield (
            False,
            str(v),
            rng.choice(
                (
                    f"{left}={v}",
                    f"{left} = {v}",
                    f"x = {left} = {v}"
                    if "x" not in left and left[0].isdigit() and left.isdigit()
                    else f"{left} = {v}",
                )
            ),
        )
    name = rng.choice(
        (
            "x",
            "n",
            "y",
            "k",
            "t",
            "AB",
            "f(3)",
            "P(A)",
            r"\angle ABC",
            r"S_{10}",
            "a_5",
            r"\text{Area}",
            r"\text{Total cost}",
            r"m",
            r"\theta",
            r"|AB|",
            r"\overline{AB}",
            r"[ABC]",
            r"\triangle",
            "PQ",
            r"V_{\text{max}}",
            r"\lambda",
            r"x_1",
            "f(x)",
            r"\mathrm{area}",
        )
    )
    yield True, str(v), f"{name} = {v}"
    yield True, f"x = {v}", f"{v} = x"
    yield True, str(v), f"{v - k} + {k} = {v}"
    yield True, str(v * k), rf"x = {v} \times {k} = {v * k}"
    yield True, str(v * k), rf"{v * k} = {v} \cdot {k}"
    yield True, rf"{v}\pi", rf"A = \pi r^2 = {v}\pi"
    yield False, str(v * k), rf"{v} \times {k} = {v * k + 1}"
    yield False, str(v * k), rf"{v} \times {k + 1} = {v * k}"
    yield False, str(v * k), rf"x = {v * k + 1} = {v * k}"
    yield False, str(v), f"x = {v + 1}"
    yield False, f"x = {v}", f"y = {v}"
    yield False, str(v), rng.choice((rf"x \neq {v}", f"x < {v}", rf"x \geq {v}", rf"x \approx {v + k}"))
    yield True, str(v), f"a+b = {v}", "Let a and b be as above. What is $a+b$?"
    yield True, f"y = {k}x + {v}", f"{k}x - y + {v} = 0"
    yield False, f"y = {k}x + {v}", f"{k}x + y + {v} = 0"
    yield True, f"x^2 + y^2 = {v}", f"y^2 + x^2 - {v} = 0"
    yield True, f"{k}x + {v}", f"f(x) = {v} + {k}x"


_NUMERALS = "zero one two three four five six seven eight nine ten eleven".split()
# What no number may be followed by unread.
_TRAILING = tuple(
    "negative,lakh,hundredths,thousand,million,tenths,dozen,crore,squared,or more,at least,to the "
    "fourth,below zero,billion,and a half,percent,cubed,factorial,minus one,plus two,thousandths,is "
    "wrong,not,times ten,mod 7,or so,or less,more than that".split(",")
)


def write_units(rng: random.Random) -> Rows:
    v = rng.randrange(2, 90)
    yield (
        False,
        str(v),
        rf"{v}\text{{ {rng.choice(_TRAILING)}}}",
    )
    for left, right in rng.sample(
        [
            ("kg", "g"),
            ("mph", "km/h"),
            ("m/s", "m/s^2"),
            ("cm", "m"),
            ("hours", "minutes"),
            ("ft", "in"),
            ("liters", "mL"),
            ("miles", "km"),
            ("days", "weeks"),
            ("cm^2", "cm^3"),
            ("pounds", "ounces"),
            ("dollars", "cents"),
            ("J", "kJ"),
            ("N", "kg"),
            ("square feet", "feet"),
            ("seconds", "hours"),
            ("m^2", "m^3"),
            ("degrees", "radians"),
            ("gallons", "quarts"),
            ("meters per second", "meters per minute"),
            ("years", "months"),
            ("dollars", "euros"),
            ("W", "V"),
            ("kg/m^3", "kg/m^2"),
            ("apples", "oranges"),
            ("boys", "girls"),
            ("yards", "feet"),
        ],
        4,
    ):
        yield False, rf"{v}\text{{ {left}}}", rf"{v}\text{{ {right}}}"
        yield (
            False,
            rf"{v}\ \mathrm{{{right}}}" if " " not in right else rf"{v}\text{{ {right}}}",
            f"{v} \\text{{ {left} }}",
        )
        yield True, rf"{v}\text{{ {left}}}", rf"{v}\,\text{{{left}}}"
        yield True, f"{v}", rf"{v}\text{{ {right}}}"
        yield True, rf"{v}\text{{ {left}}}", f"{v}"
    for small, large, times in rng.sample(
        [
            ("cm", "m", 100),
            ("minutes", "hours", 60),
            ("g", "kg", 1000),
            ("mm", "cm", 10),
            ("seconds", "minutes", 60),
            ("inches", "feet", 12),
            ("mL", "L", 1000),
            ("days", "weeks", 7),
            ("ft", "yd", 3),
            ("m", "km", 1000),
            ("cents", "dollars", 100),
            ("ounces", "pounds", 16),
            ("hours", "days", 24),
            ("cm^2", "m^2", 10000),
            ("quarts", "gallons", 4),
            ("months", "years", 12),
            ("feet", "miles", 5280),
            ("square inches", "square feet", 144),
        ],
        3,
    ):
        yield True, rf"{v}\text{{ {large}}}", rf"{v * times}\text{{ {small}}}"
        yield True, rf"{v}\text{{ {small}}}", rf"\frac{{{v}}}{{{times}}}\text{{ {large}}}"
        yield False, rf"{v}\text{{ {large}}}", rf"{v * times + 1}\text{{ {small}}}"
        yield False, rf"{v * times}\text{{ {large}}}", rf"{v}\text{{ {small}}}"
    yield True, rf"{5 * v}\text{{ m/s}}", rf"{18 * v}\text{{ km/h}}"
    yield True, rf"{v}\text{{ m/s}}", rf"{v}\text{{ meters per second}}"
    yield True, rf"{v}\text{{ mph}}", rf"{v}\text{{ miles per hour}}"
    yield True, rf"{v}\text{{ cm}}^3", rf"{v}\text{{ cubic centimeters}}"
    yield True, rf"{v}\pi\text{{ in}}^2", rf"{v}\pi\text{{ square inches}}"
    yield True, f"{v * 10**6}", rf"{v}\text{{ million}}"
    yield True, rf"{v}\text{{ million dollars}}", rf"\${v},000,000"
    yield True, f"{v * 100000}", rf"{v}\text{{ lakh}}"
    yield True, f"{v / 100:g}", rf"{v}\text{{ hundredths}}"
    yield True, rf"{12 * v}", rf"{v}\text{{ dozen}}"
    yield True, str(v), rf"{v}\text{{ dozen}}", "How many dozen eggs are there?"
    yield False, rf"\${v}", rf"{v}\text{{ cents}}"
    yield True, rf"\${v}", rf"{100 * v}\text{{ cents}}"
    yield False, rf"\${v}", f"€{v}"
    yield True, rf"\${v}.50", f"{v}.5"
    yield False, rf"{v}^\circ", rf"{v}\text{{ rad}}"
    yield False, rf"{v}^\circ\text{{C}}", rf"{v}^\circ"
    yield False, rf"{v}^\circ\text{{C}}", rf"{v}^{{\circ}}\text{{F}}"
    yield True, rf"{v}^\circ C", rf"{v}^{{\circ}}\mathrm{{C}}"
    yield True, rf"{5 * v}^\circ\text{{C}}", rf"{9 * v + 32}^\circ\text{{F}}"
    yield True, r"180^\circ", r"\pi\text{ radians}"
    yield True, rf"{v}\%", rf"{v}\text{{ percent}}"
    yield False, f"{v}", rf"{v}\%"
    yield False, f"{v}", f"{v}_7", "Let $x_{1}$ and $x_{2}$ be the roots. Find $x_{1}x_{2}$."
    h, m = rng.randrange(1, 9), rng.choice((15, 30, 45))
    yield True, rf"{h}\text{{ hours }}{m}\text{{ minutes}}", rf"{60 * h + m}\text{{ minutes}}"
    yield False, rf"{h}\text{{ hours }}{m}\text{{ minutes}}", rf"{h}.{m}\text{{ hours}}"
    noun = rng.choice(
        (
            "marbles",
            "students",
            "ways",
            "books",
            "small boxes",
            "people",
            "triangles",
            "integers",
            "units",
            "square units",
            "coins",
            "steps",
            "points",
            "games",
        )
    )
    yield True, str(v), rf"{v}\text{{ {noun}}}"
    yield True, str(v), f"{v} ({noun})"
    yield True, f"{v} ({noun})", str(v)
    yield True, f"{v} ({noun})", rf"{v}\text{{ {noun}}}"
    yield False, f"{v} ({noun})", str(v + 1)


def write_chinese(rng: random.Random) -> Rows:
    v = rng.randrange(2, 90)
    unit = rng.choice(
        (
            "元",
            "个",
            "千克",
            "米",
            "厘米",
            "小时",
            "分钟",
            "天",
            "人",
            "本",
            "平方米",
            "棵",
            "岁",
            "吨",
            "页",
            "辆",
            "升",
            "公里",
            "平方厘米",
            "个人",
            "朵花",
            "角",
        )
    )
    yield (
        True,
        str(v),
        rng.choice(
            (
                f"{v}{unit}",
                rf"{v}\text{{{unit}}}",
                rf"{v}\,\text{{ {unit}}}",
                rf"\text{{{v}{unit}}}",
                f"{v} {unit}",
                f"{v}（{unit}）",
                f"{v}({unit})",
            )
        ),
    )
    yield False, str(v), f"{v + 1}{unit}"
    left, right = rng.choice(
        (
            ("千克", "克"),
            ("米", "厘米"),
            ("小时", "分钟"),
            ("元", "角"),
            ("吨", "千克"),
            ("平方米", "平方厘米"),
            ("公里", "米"),
            ("升", "毫升"),
            ("天", "小时"),
        )
    )
    yield False, f"{v}{left}", f"{v}{right}"
    yield True, f"{v}{left}", rf"{v}\text{{{left}}}"
    yield True, f"{v}千米", f"{v * 1000}米"
    yield True, f"{v}小时", f"{v * 60}分钟"
    yield True, f"{v}米", rf"{v}\text{{ m}}"
    yield False, str(v), f"{v}万"
    yield True, str(v * 10000), f"{v}万元"
    letter = rng.choice("ABCD")
    other = rng.choice([x for x in "ABCD" if x != letter])
    yield (
        True,
        letter,
        rng.choice(
            (
                f"选{letter}",
                f"选项{letter}",
                f"答案是{letter}",
                rf"\text{{选 {letter}}}",
                f"{letter}。",
                f"故选{letter}",
                f"（{letter}）",
            )
        ),
    )
    yield False, letter, rng.choice((f"选{other}", f"选项{other}", f"不选{letter}"))
    yield True, str(v), f"答：{v}"
    yield True, str(v), "".join(chr(ord(c) + 0xFEE0) for c in str(v))
    yield False, str(v), rng.choice((f"{v}以上", f"{v}多", f"负{v}", f"不是{v}", f"{v}分之一", f"{v}倍"))
    yield True, r"\frac{3}{4}", "四分之三"
    yield True, "25", "二十五"
    yield True, r"\text{无解}", r"\text{no solution}"


def write_options(rng: random.Random) -> Rows:
    letters = "ABCDE"
    values = rng.sample(range(2, 99), 5)
    question = "Which one? " + " ".join(
        rng.choice(
            (
                f"({a}) {v}",
                f"$\\textbf{{({a})}}\\ {v}$",
            )
        )
        for a, v in zip(letters, values, strict=False)
    )
    index, other = rng.sample(range(5), 2)
    a, v, b, w = letters[index], values[index], letters[other], values[other]
    good = rng.choice(
        (
            f"({a}) {v}",
            f"{a}) {v}",
            f"{a}. {v}",
            rf"\text{{({a}) }} {v}",
            rf"\text{{{a}}}",
            rf"\textbf{{({a})}}\ {v}",
            f"{a}: {v}",
            rf"\text{{Option {a}}}",
            rf"\mathbf{{{a}}}",
            f"{a}.",
            f"({a})",
            rf"\text{{({a}) {v}}}",
        )
    )
    yield True, a, good, question
    yield True, rf"\text{{({a})}}", good, question
    yield False, a, good.replace(a, b) if a not in ("t", "x") else b, question
    yield False, a, f"({a}) {w}", question
    yield False, a, f"({b}) {v}", question
    yield False, rf"\text{{{a}}}", f"{a}, {b}", question
    yield False, a, f"{a}{b}", question
    yield False, a, str(w), question


def write_matrices(rng: random.Random) -> Rows:
    a, b, c, d = (rng.randrange(-9, 10) for _ in range(4))
    gold = rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {d} \end{{pmatrix}}"
    yield True, gold, rf"\left[\begin{{array}}{{cc}} {a} & {b} \\ {c} & {d} \end{{array}}\right]"
    yield True, gold, rf"\left(\begin{{array}}{{rr}}{a}&{b}\\{c}&{d}\end{{array}}\right)"
    yield (
        True,
        gold,
        rf"\begin{{bmatrix}} {a} & {b} \\[{rng.choice(('4pt', '0.5em', '1ex'))}] {c} & {d} \end{{bmatrix}}",
    )
    yield True, gold, rf"\begin{{bmatrix}}{a}.0&{b}\\{2 * c}/2&{d}\\\end{{bmatrix}}"
    yield False, gold, rf"\left[\begin{{array}}{{cc}} {a} & {b} \\ {c} & {d + 1} \end{{array}}\right]"
    yield False, gold, rf"\left|\begin{{array}}{{cc}} {a} & {b} \\ {c} & {d} \end{{array}}\right|"
    yield False, gold, rf"\begin{{vmatrix}} {a} & {b} \\ {c} & {d} \end{{vmatrix}}"
    yield b == c, gold, rf"\begin{{pmatrix}} {a} & {c} \\[3mm] {b} & {d} \end{{pmatrix}}"
    yield False, gold, f"({a}, {b}, {c}, {d})"
    column = rf"\begin{{pmatrix}} {a} \\ {b} \\ {c} \end{{pmatrix}}"
    yield True, column, rf"\left(\begin{{array}}{{c}}{a}\\{b}\\{c}\end{{array}}\right)"
    yield True, column, rf"\left\langle {a}, {b}, {c} \right\rangle"
    yield False, column, rf"\left\langle {a}, {b}, {c + 1} \right\rangle"
    yield True, f"({a}, {b})", rf"\langle {a}, {b} \rangle"


def write_notation(rng: random.Random) -> Rows:
    v, w = rng.randrange(2, 90), rng.randrange(2, 12)
    yield True, rf"e^{{{w}}}", rf"\exp({w})"
    yield True, rf"e^{{{w}x}}", rf"\exp\left({w}x\right)"
    yield False, rf"e^{{{w}}}", rf"\exp({w + 1})"
    yield True, rf"{w}e", rf"{w}\mathrm{{e}}"
    yield True, rf"\mathrm{{e}}^{{{w}}} - 1", rf"e^{{{w}}}-1"
    yield False, rf"{w}e", rf"{w + 1}\mathrm{{e}}"
    yield (
        True,
        f"{v}",
        rng.choice(
            (
                rf"\underline{{{v}}}",
                rf"\color{{red}}{{{v}}}",
                rf"\color{{blue}}{v}",
                rf"\textcolor{{red}}{{{v}}}",
                rf"\( {v} \)",
                rf"\[ {v} \]",
                rf"\mathbf{{{v}}}",
                rf"\large {v}",
                rf"**{v}**",
                rf"\displaystyle {v}",
                rf"{{\color{{red}} {v}}}",
                rf"\mathrm{{{v}}}",
                rf"\boldsymbol{{{v}}}",
                rf"\bf{{{v}}}",
                f"${v}$",
            )
        ),
    )
    yield False, f"{v}", rng.choice((rf"\underline{{{v + 1}}}", rf"\color{{red}}{{{v + 1}}}", rf"\( {v + 1} \)"))
    digit, under = rng.choice(((3, 3), (6, 9), (1, 9), (2, 9), (4, 9), (7, 9)))
    value = Fraction(digit, 9)
    yield (
        True,
        write_fraction(value),
        rng.choice(
            (
                rf"0.\dot{{{digit}}}",
                rf"0.\dot{digit}",
                rf"0.\overline{{{digit}}}",
                rf"0.\bar{{{digit}}}",
                rf"0.({digit})",
            )
        ),
    )
    yield False, write_fraction(value), rng.choice((f"0.{digit}", f"0.{digit}{digit}{digit}", rf"0.0\dot{{{digit}}}"))
    yield (
        True,
        write_fraction(Fraction(10 * w + 7, 99)),
        rf"0.\dot{{{(10 * w + 7) // 10}}}\dot{{7}}" if w < 9 else rf"\frac{{{10 * w + 7}}}{{99}}",
    )
    n = rng.randrange(3, 12)
    yield True, f"1e-{n:02}", f"10^{{-{n}}}"
    yield True, rf"10^{{-{n}}}", f"1e-{n}"
    yield True, rf"{w} \times 10^{{-{n}}}", f"{w}e-{n}"
    yield False, f"1e-{n:02}", f"10^{{-{n + 1}}}"
    yield False, f"1e-{n:02}", f"10^{{{n}}}"
    noun = rng.choice(("apples", "ways", "students", "cm", "dollars"))
    yield True, f"{v}", rf"\text{{{v} {noun}}}"
    yield False, f"{v}", rf"\text{{{v + 1} {noun}}}"
    yield True, f"{v}", rf"\text{{The answer is }} {v}"
    yield True, "0", r"\text{zero}"
    yield True, f"{w}", r"\text{" + _NUMERALS[w] + "}"
    yield True, r"\frac{1}{\sqrt{n}}", r"\sqrt{\frac{1}{n}}"
    yield True, rf"\log_{{10}} {w}", rf"\lg {w}"
    yield True, str(w * (w + 1) // 2), rf"\sum_{{k=1}}^{{{w}}} k"
    yield True, str(w), rf"\lfloor {w}.5 \rfloor"
    yield True, str(w), rf"\lceil {w - 1}.5 \rceil"
    yield False, str(w), rf"\lceil {w}.5 \rceil"
    yield True, rf"{v}:{v + 1}", rf"\frac{{{v}}}{{{v + 1}}}"
    yield False, rf"{v}:{v + 1}", rf"{v + 1}:{v}"


def write_tuples(rng: random.Random) -> Rows:
    a, b, c = rng.sample(range(-9, 10), 3)
    names = rng.choice(("xy", "ab", "mn", "pq"))
    yield True, f"({a},{b})", rf"({names[0]}, {names[1]}) = ({a}, {b})"
    yield True, f"({names[0]},{names[1]})=({a},{b})", f"({a},{b})"
    yield False, f"({a},{b})", f"({names[0]},{names[1]})=({b},{a})"
    yield True, f"({a},{b})", rf"{names[0]} = {a}, {names[1]} = {b}"
    yield True, f"({a},{b})", rf"{names[0]} = {a} \text{{ and }} {names[1]} = {b}"
    yield True, f"{names[0]}={a}, {names[1]}={b}", rf"{names[1]} = {b}, \quad {names[0]} = {a}"
    yield False, f"({a},{b})", rf"{names[0]} = {b}, {names[1]} = {a}"
    yield True, f"({a},{b},{c})", f"(x,y,z) = ({a}, {b}, {c})"
    yield True, rf"\{{{a}, {b}\}}", rf"x={a} \text{{ or }} x={b}"
    yield True, rf"{a}, {b}", rf"x = {b} \text{{ or }} x = {a}"
    yield True, rf"x \in \{{{a},{b}\}}", rf"x={b}, x={a}"
    yield True, rf"{a}, {b}", rf"x_1 = {a}, x_2 = {b}"
    yield False, rf"\{{{a}, {b}\}}", rf"x={a} \text{{ or }} x={c}"
    yield False, rf"\{{{a}, {b}\}}", rf"x={a}"
    yield True, f"({a},{b}), ({b},{c})", f"({b}, {c}) \\text{{ and }} ({a}, {b})"
    yield False, f"({a},{b}), ({b},{c})", f"({b},{a}), ({b},{c})"


def write_sets(rng: random.Random) -> Rows:
    a = rng.randrange(-9, 5)
    b, c = a + rng.randrange(1, 5), a + rng.randrange(6, 9)
    yield (
        True,
        rf"(-\infty,{a})\cup({a},\infty)",
        rng.choice(
            (
                rf"\mathbb{{R}} \setminus \{{{a}\}}",
                rf"\mathbb{{R}}\backslash\{{{a}\}}",
                rf"x \ne {a}",
                rf"\{{x \mid x \neq {a}\}}",
                rf"\{{x \in \mathbb{{R}} : x \ne {a}\}}",
                rf"\mathbb R - \{{{a}\}}",
                rf"(-\infty,\infty)\setminus\{{{a}\}}",
            )
        ),
    )
    yield (
        False,
        rf"(-\infty,{a})\cup({a},\infty)",
        rng.choice((rf"\mathbb{{R}} \setminus \{{{b}\}}", rf"x \ne {b}", r"\mathbb{R}")),
    )
    yield (
        True,
        rf"(-\infty,{a})\cup({a},{b})\cup({b},\infty)",
        rng.choice(
            (
                rf"\mathbb{{R}}\setminus\{{{b},{a}\}}",
                rf"x \ne {a}, {b}",
                rf"x \neq {a} \text{{ and }} x \neq {b}",
                rf"({b},\infty)\cup(-\infty,{a})\cup({a},{b})",
            )
        ),
    )
    yield (
        False,
        rf"(-\infty,{a})\cup({a},{b})\cup({b},\infty)",
        rng.choice((rf"\mathbb{{R}}\setminus\{{{a}\}}", rf"\mathbb{{R}}\setminus [{a},{b}]")),
    )
    yield (
        True,
        rf"[{a},{c})",
        rng.choice(
            (
                rf"\{{x \mid {a} \le x < {c}\}}",
                rf"\{{x : {a} \leq x < {c}\}}",
                rf"\{{ x \in \mathbb{{R}} \mid {c} > x \ge {a} \}}",
                rf"x \ge {a} \text{{ and }} x < {c}",
                rf"{{x | {a} <= x < {c}}}" if False else rf"{a} \leq t < {c}",
            )
        ),
    )
    yield (
        False,
        rf"[{a},{c})",
        rng.choice((rf"\{{x \mid {a} < x < {c}\}}", rf"\{{x : {a} \leq x \le {c}\}}", rf"\{{x \mid x < {c}\}}")),
    )
    yield True, rf"(-\infty, {a}] \cup [{b}, {c})", rf"[{b},{c}) \cup (-\infty,{a}]"
    yield True, rf"(-\infty, {a}] \cup [{b}, \infty)", rf"x \geq {b} \text{{ or }} x \leq {a}"
    yield True, rf"(-\infty, {a}] \cup [{b}, \infty)", rf"\mathbb{{R}} \setminus ({a},{b})"
    yield False, rf"(-\infty, {a}] \cup [{b}, \infty)", rf"[{b},\infty) \cup (-\infty, {a})"
    yield True, rf"({a},{c})", rf"({a},{b}] \cup ({b},{c})"
    yield True, rf"\{{{a}\}} \cup ({b},{c})", rf"({b},{c}) \cup \{{{a}\}}"
    yield False, rf"\{{{a}\}} \cup ({b},{c})", rf"({b},{c})"
    yield True, rf"({a},{b})\cup({b},{c})", rf"({a},{c}) \setminus \{{{b}\}}"
    yield (
        True,
        r"\emptyset",
        rng.choice(
            (
                r"\{\}",
                r"\text{no solution}",
                r"\varnothing",
                r"\text{No solutions}",
                r"\{ \}",
                r"\text{no real solutions}",
                r"\text{empty set}",
                "∅",
            )
        ),
    )
    yield True, r"\text{no solution}", rng.choice((r"\{\}", r"\emptyset", r"\text{No real solution}", r"\text{none}"))
    yield (
        False,
        rng.choice((r"\emptyset", r"\text{no solution}")),
        rng.choice((r"\{0\}", "0", r"\mathbb{R}", r"\text{all real numbers}")),
    )
    yield True, r"(-\infty,\infty)", rng.choice((r"\mathbb{R}", r"\text{all real numbers}", r"\mathbf{R}"))


WRITERS: dict[str, Callable[[random.Random], Rows]] = {
    "implicit products": write_products,
    "thousands": write_thousands,
    "equations": write_equations,
    "units": write_units,
    "Chinese": write_chinese,
    "options": write_options,
    "matrices": write_matrices,
    "notation": write_notation,
    "tuples and lists": write_tuples,
    "sets": write_sets,
}


def write_pairs(seed: int, rounds: int = 40) -> list[Pair]:
    rng = random.Random(seed)
    return [Pair(kind, *row) for kind, write in WRITERS.items() for _ in range(rounds) for row in write(rng)]
