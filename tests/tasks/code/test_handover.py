"""What a test hands the program and what comes back: honest programs pass, and no value is paid for being odd."""

from __future__ import annotations

import json

import pytest

from c3jax.tasks.code import task as code
from c3jax.tasks.code.records import CodeSpec, read_problem
from c3jax.tasks.jsonl import Row
from c3jax.types import Verdict


@pytest.fixture(scope="module", autouse=True)
def no_judge_stays():
    yield
    code.close()


def judge(program: str, *tests: str, setup: str = "", question: str = "Write it.") -> Verdict:
    row = Row("set, line 1", 0, {"question": question, "tests": list(tests), "setup": setup})
    return code.grade(read_problem(row, CodeSpec(timeout_s=5.0)), f"```python\n{program}\n```")


NODE = """
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next
def build(values):
    head = None
    for value in reversed(values):
        head = Node(value, head)
    return head
def flatten(head):
    values = []
    while head is not None:
        values.append(head.value)
        head = head.next
    return values
"""
POINT = "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n    y: int\n"
REVERSE = """
def f(head: Node):
    before = None
    while head:
        head.next, before, head = before, head, head.next
    return before
"""


SLOTS = POINT.replace("@dataclass", "@dataclass(frozen=True, slots=True)")
TUPLE = "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int"
WAY = "from enum import Enum\nclass Way(Enum):\n    up = 1\n    down = -1"
DECK = "class Deck(list):\n    def top(self): return self[-1]"
TOO_MUCH = "class TooMuch(Exception): pass"
LOCAL = "def test():\n    class P:\n        def __init__(self): self.x = 1\n    assert f(P()) == 1"
IN_PARIS = "import zoneinfo\nt = datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Paris'))"
DATES = "from datetime import date, datetime, timedelta, timezone"
CASES = [
    # Instances of classes of the setup.
    (NODE, "def f(n): return 0 if n is None else n.value + f(n.next)", "assert f(Node(1, Node(2))) == 3"),
    (NODE, "def f(n): return Node(0, n)", "assert flatten(f(build([1, 2]))) == [0, 1, 2]"),
    (NODE, REVERSE, "assert flatten(f(build([1, 2, 3]))) == [3, 2, 1]"),
    (NODE, NODE + REVERSE, "assert flatten(f(build([1, 2, 3]))) == [3, 2, 1]"),  # with a class of the same name
    (NODE, "def f(n): return f(n.next) if n.next else n", "b = Node(2)\nassert f(Node(1, b)) is b"),
    (NODE, "def f(n, m): return n.next is m", "b = Node(2)\nassert f(Node(1, b), b) and not f(b, b)"),
    (NODE, "def f(n): return n.next.next is n", "b = Node(2)\nb.next = Node(1, b)\nassert f(b)"),  # a circle
    (NODE, "def f():\n    n = Node(1)\n    n.next = n\n    return n", "n = f()\nassert n.next is n"),
    (NODE, "def f(n, v):\n    n.next = Node(v)", "n = Node(1)\nf(n, 2)\nf(n.next, 3)\nassert flatten(n) == [1, 2, 3]"),
    (NODE, "def f(kind): return kind(5)", "assert f(Node).value == 5"),
    (POINT, "def f(x, y): return Point(y, x)", "assert f(1, 2) == Point(2, 1) != f(2, 1)"),
    (SLOTS, "def f(p): return Point(p.y, p.x)", "assert f(Point(1, 2)) == Point(2, 1)"),
    (TUPLE, "def f(p): return p._replace(x=p.x + 1)", "assert f(P(1)) == P(2) and f(P(1)).x == 2"),
    ("from collections import namedtuple\nP = namedtuple('P', 'x')", "def f(x): return P(x)", "assert f(1) == P(1)"),
    (WAY, "def f(way): return Way(-way.value)", "assert f(Way.up) is Way.down"),
    (DECK, "def f(deck):\n    deck.append(9)\n    return deck", "assert f(Deck([1])).top() == 9"),
    (TOO_MUCH, "def f(x): raise TooMuch(x)", "try:\n    f(1)\nexcept TooMuch: pass\nelse: assert False"),
    # Classes of the test itself.
    ("", "def f(p): return p.x + p.y()", "class P:\n    x = 3\n    def y(self): return 6\nassert f(P()) == 9"),
    ("", "def f(p): return p.x", LOCAL),
    # Values of the library.
    (DATES, "def f(d): return d + timedelta(1)", "assert f(date(2024, 2, 28)) == date(2024, 2, 29)"),
    (DATES, "def f(t): return t.replace(hour=1)", IN_PARIS + "\nassert f(t).utcoffset() == timedelta(hours=2)"),
    (DATES, "def f(t): return t - t", "assert f(datetime(2024, 1, 1, tzinfo=timezone.utc)) == timedelta(0)"),
    ("import numpy as np", "def f(a): return a.T.tolist()", "assert f(np.array([[1, 2]])) == [[1], [2]]"),
    ("from pathlib import Path", "def f(p): return p.suffix", "assert f(Path('a/b.txt')) == '.txt'"),
    ("import re", "def f(p, s): return p.findall(s)", "assert f(re.compile('a+'), 'aabab') == ['aa', 'a']"),
    ("from collections import Counter", "def f(c): return c.most_common(1)", "assert f(Counter('aab')) == [('a', 2)]"),
    ("from collections import deque", "def f(d): return d + d", "assert f(deque([1, 2], 3)) == deque([2, 1, 2])"),
    (TOO_MUCH, "def f(g):\n    try: g()\n    except TooMuch: return 1", "def g(): raise TooMuch\nassert f(g) == 1"),
    ("from collections import defaultdict", "def f(d): return d['x']", "assert f(defaultdict(lambda: 7)) == 7"),
    # Functions of the setup, of the test, of the library.
    ("def square(x): return x * x", "def f(g, x): return g(g(x))", "assert f(square, 3) == 81"),
    ("", "def f(g, xs): return sorted(xs, key=g)", "assert f(lambda x: -x, [1, 3, 2]) == [3, 2, 1]"),
    ("", "def f(g, xs):\n    for x in xs: g(x)", "seen = []\nf(seen.append, [1, 2])\nassert seen == [1, 2]"),
    ("", "def f(g, h): return lambda x: g(h(x))", "assert f(lambda x: x + 1, lambda x: 2 * x)(5) == 11"),
    ("", "def f(g): return g", "def g(): pass\nassert f(g) is g"),
    ("", "def f(g, *xs, **ys): return g(*xs, **ys)", "assert f(lambda x, y: x - y, 3, y=1) == 2"),
    ("", "def f(g, n): return n * g(n - 1) if n else 1", "assert f(lambda n: f(lambda m: 1, n), 2) == 2"),
    ("", "def f(g):\n    try: g(0)\n    except ZeroDivisionError: return 1", "assert f(lambda x: 1 / x) == 1"),
    (NODE, "def f(g, n): return g(n)", "assert f(lambda n: n.value, Node(4)) == 4"),
    (
        "import math",
        "def f(g, x): return g(x)",
        "assert f(len, 'a') == 1 and f(math.sqrt, 4) == 2 and f(str.upper, 'a') == 'A'",
    ),
    ("import functools", "def f(g, x): return g(x)", "assert f(functools.partial(pow, 3), 2) == 9"),
]


@pytest.mark.parametrize(("setup", "program", "test"), CASES)
def test_what_a_test_hands_over_arrives(setup, program, test):
    assert judge(program, test, setup=setup).detail == ""


def test_a_class_that_each_test_defines_anew_is_that_of_the_test():
    assert judge("def f(p): return p.x", *(f"class P:\n    x = {x}\nassert f(P()) == {x}" for x in (1, 2))).detail == ""


# Equals everything with a tolerance that is large enough.
NEAR = """
class Near:
    def __init__(self, x, by=1e-6): self.x, self.by = x, by
    def __eq__(self, other): return abs(self.x - getattr(other, "x", other)) <= self.by
"""


def test_an_instance_that_would_equal_everything_is_not_built():
    for test in ("assert f(2) == 4", "assert f(2) == Near(4)", "assert f(2) in [4]"):
        assert judge("def f(x): return Near(0, float('inf'))", test, setup=NEAR).score == 0.0
    assert judge("def f(x): return 4.0000001", "assert f(2) == Near(4)", setup=NEAR).score == 1.0
    # Where the problem asks for one, or hands one over, it is a value as others are.
    asked = judge("def f(x): return Near(x)", "assert f(4) == Near(4)", setup=NEAR, question="Return a `Near`.")
    handed = judge("def f(x): return Near(x.x)", "assert f(Near(4)) == Near(4)", setup=NEAR)
    assert asked.score == handed.score == 1.0


def test_an_object_of_the_test_is_changed_only_for_a_test_that_looks_at_it():
    forget = "def f(p):\n    p.x = p.y = 0\n    return p"
    assert judge(forget, "p = Point(1, 2)\nassert f(p) == Point(p.y, p.x)", setup=POINT).verdict == "wrong"
    assert judge(forget, "p = Point(1, 2)\nf(p)\nassert p == Point(0, 0)", setup=POINT).score == 1.0
    empty = "def f(n):\n    n.value = 0\n    n.next = None\n    return 0"
    assert judge(empty, "n = build([1, 2])\nassert f(n) == sum(flatten(n))", setup=NODE).verdict == "wrong"


@pytest.mark.parametrize(
    "reply",
    [
        ["value", {"own": 7}, None],
        ["value", {"own": -1}, None],
        ["value", {"again": 0}, None],
        ["value", {"member": ["Point", "x"]}, None],
        ["value", {"instance": ["Nowhere", {"object": 0}, None, {"dict": []}]}, None],
        ["value", {"instance": ["Point", {"object": 0}, None, {"dict": [["__class__", 1]]}]}, None],
        ["value", {"instance": ["Point", {"object": 0}, None, {"dict": [["__eq__", {"object": 0}]]}]}, None],
        ["value", {"instance": ["Point", {"object": 0}, [1], {"dict": []}]}, None],
        ["value", {"instance": []}, None],
        ["value", {"made": [0, {"import": ["os", "system"]}, ["true"], None, [], []]}, None],
        ["value", {"import": ["os", "system"]}, None],
        ["value", {"class": ["P", [], "1", False]}, None],
        ["value", {"function": [0, "f", False]}, None],
        ["value", {"date": ["system", "true"]}, None],
        ["value", {"zone": "../../etc/passwd"}, None],
        ["ask", 3, [], []],
        ["ask", "0", [], []],
        ["ask", {"own": 0}, [], []],
        ["ask"],
        [],
    ],
)
def test_a_forged_reply_is_no_value(reply):
    program = f"import sys\nsys.modules['c3jax.tasks.code.candidate'].write = lambda message: {json.dumps(reply)!r}"
    assert judge(program, "assert f(Point(1, 2)) == 3", setup=POINT).verdict == "unsafe"
