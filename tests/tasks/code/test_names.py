"""What is read off the text of tests and setups: whose a name is, and what of a setup the program may see."""

from __future__ import annotations

import ast

import pytest

from c3jax.tasks.code.names import find_modules, find_undefined, is_mentioned, share_setup


@pytest.mark.parametrize(
    ("test", "names"),
    [
        ("assert chunk([1, 2], 1) == [[1], [2]]", ["chunk"]),
        ("assert list(map(select, numbers(3))) == []", ["select", "numbers"]),
        ("assert copy(math.pi) == math.floor(3)", ["copy"]),
        ("import copy\nassert f(copy.copy([])) == []", ["f"]),
        ("queue = f()\nassert queue.pop() == 1", ["f"]),
        ("assert code.encode('a') == 'b'", []),  # a dotted name starts with a module, if there is one
        ("class P:\n    def area(self): return 1\nassert area(P()) == P().area()", ["area"]),
        ("for n in range(3):\n    assert g(n, key=lambda x: x) == [h for h in 'a']", ["g"]),
    ],
)
def test_a_name_is_the_programs_unless_it_has_a_meaning(test, names):
    assert find_undefined([ast.parse(test)]) == names


def test_modules_are_those_that_dotted_names_start_with():
    assert find_modules(["assert f(x.select, chunk) == math . pi", "def g(): return re.sub"]) == {"math", "re"}


@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        ("RATE", "Use RATE.", True),
        ("make_tree", "Take what make_tree gives.", True),
        ("total", "Give the total of a list.", False),
        ("total", "Use `total` of the list.", True),
        ("total", "Use total(x).", True),
        ("RATE", "Use RATES.", False),
    ],
)
def test_a_question_mentions_code(name, question, expected):
    assert is_mentioned(name, question) is expected


def shares(setup: str, *tests: str, question: str = "Define f.") -> str:
    return share_setup(ast.parse(setup), tests, ["f"], question)


def test_what_only_the_program_uses_is_shared():
    setup = "import math\nRATE = 3\ndef half(x):\n    return x / 2"
    assert shares(setup, "assert f(2) == 6") == setup
    assert shares("def g(x):\n    return x", "assert f(g, 2) == 2") == "def g(x):\n    return x"
    assert shares("RATE = 3", "assert f(2) == 2 * RATE") == "RATE = 3"
    assert shares("", "assert f(2) == 2") == ""


TABLE = "TABLE = {1: 2}"
SOLUTION = "def solve(x):\n    return x"
SOLVER = "class Solver:\n\n    def run(self, x):\n        return x"


@pytest.mark.parametrize(
    ("setup", "test"),
    [
        (SOLUTION, "assert f(3) == solve(3)"),
        (f"{SOLUTION}\ndef again(x):\n    return solve(x)", "assert f(3) == again(3)"),
        (f"{SOLUTION}\nTABLE = {{x: solve(x) for x in range(3)}}", "for x, y in TABLE.items(): assert f(x) == y"),
        (f"{TABLE}\nTABLE[3] = 4", "assert f(3) == TABLE[3]"),
        ("BEST = 42", "assert f(3) == BEST"),
        ("BEST = 42", "assert abs(f(3) - BEST) < 1e-9"),
        ("BEST = 42", "import math\nassert math.isclose(f(3), BEST)"),
        (SOLVER, "assert f(3) == Solver().run(3)"),
        (SOLVER, "solver = Solver()\nassert f(3) == solver.run(3)"),
        (f"{SOLVER}\n{SOLUTION.replace('return x', 'return Solver().run(x)')}", "assert f(3) == solve(3)"),
    ],
)
def test_what_tests_decide_by_is_not(setup, test):
    assert shares(setup, test) == ""
    mentioned = shares(setup, test, question="Use `solve`, `again`, `Solver`, `TABLE` and `BEST`.")
    assert ast.dump(ast.parse(mentioned)) == ast.dump(ast.parse(setup))


@pytest.mark.parametrize(
    "test",
    [
        "assert f(Node(3)) == 3",
        "node = Node(3)\nassert f(node) == 3",
        "node = make(3)\nassert f(node) == 3",
        "assert f(3) == Node(3)",
        "node = Node(3)\nnode.show()\nassert f(node) == 3",
    ],
)
def test_classes_are_shared_with_what_they_are_made_from(test):
    made = "SIZE = [3]\nclass Node:\n    x = SIZE[0]\n    def show(self): pass"
    maker = "def make(x):\n    node = Node()\n    node.show()\n    return node"
    shared = shares(f"{made}\n{maker}", f"{test}\nassert SIZE")
    assert ast.dump(ast.parse(shared)).startswith(ast.dump(ast.parse(made)).removesuffix("], type_ignores=[])"))
