"""Programs judged by tests: what is read out of a message, what passes, and what must not."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path

import pytest

from c3jax.rewards import Evaluator
from c3jax.tasks.code import channel as code_channel
from c3jax.tasks.code import task as code
from c3jax.tasks.code.records import CodeSpec, load_problems
from c3jax.tasks.code.task import Check, Program, grade, read_answer, read_check, read_program, write_check
from c3jax.tasks.jsonl import TaskError
from c3jax.tasks.task import find_task
from c3jax.types import Problem, Verdict

SAMPLE = Path(__file__).with_name("sample.jsonl")


@pytest.fixture(scope="module", autouse=True)
def no_judge_stays():
    yield
    code.close()


def make_problem(*tests: str, **fields: object) -> Problem:
    check = {"tests": tests, "names": ("f",), "entry_point": "f", "keeps": (False,) * len(tests), **fields}
    return Problem(0, "0", "q", write_check(Check(**check)))


def judge(program: str, *tests: str, **fields: object) -> Verdict:
    return grade(make_problem(*tests, **fields), f"```python\n{program}\n```")


FUNCTION = "def f(x):\n    return x + 1\n"
QUOTING = 'def f(x):\n    """As in\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"```python\n{FUNCTION}```", Program((FUNCTION,), True)),
        (f"Here:\n```py\n{FUNCTION}```\nIt adds.", Program((FUNCTION,), True)),
        (f"```\n{FUNCTION}```", Program((FUNCTION,), True)),
        (f"~~~Python3 title=x\n{FUNCTION}~~~", Program((FUNCTION,), True)),
        (f"````python\n{FUNCTION}````", Program((FUNCTION,), True)),
        (f"```python\r\n{FUNCTION}".replace("\n", "\r\n") + "```", None),
        (f"```python\n{FUNCTION}```<|im_end|>", Program((FUNCTION,), True)),
        (f"```python\n{FUNCTION}", None),  # the message was cut off
        (f"```bash\npip install f\n```\n```python\n{FUNCTION}```", Program((FUNCTION,), True)),
        (f"```python\n{FUNCTION}```\nThen:\n```python\nprint(f(1))\n```", Program((FUNCTION,), True)),
        (f"```python\nimport re\n```\n```python\n{FUNCTION}```", Program(("import re\n", FUNCTION), True)),
        # In lists, nested ones too, and in quotations, a block is as far in as its fence.
        ("1. So:\n   ```python\n   def f(x):\n       return x + 1\n   ```\n2. Done.", Program((FUNCTION,), True)),
        ("* a\n  * b\n\n    ```python\n    def f(x):\n        return x + 1\n    ```", Program((FUNCTION,), True)),
        ("- ```python\n  def f(x):\n      return x + 1\n  ```", Program((FUNCTION,), True)),
        ("12) a\n\n\t```python\n\tdef f(x):\n\t    return x + 1\n\t```", Program((FUNCTION,), True)),
        ("> ```python\n> def f(x):\n>     return x + 1\n> ```", Program((FUNCTION,), True)),
        ("```python\n    def f(x):\n        return x + 1\n```", Program((FUNCTION,), True)),
        # On one line, and with the end of the block on the last line of the code.
        ("```python def f(x): return x + 1```", Program(("def f(x): return x + 1\n",), True)),
        ("So: ```def f(x): return x + 1``` it is.", Program(("def f(x): return x + 1\n",), True)),
        ("```python\ndef f(x):\n    return x + 1```\nIt adds.", Program((FUNCTION,), True)),
        # Fences in texts of the code are none.
        (f"```python\n{QUOTING}```", Program((QUOTING,), True)),
        (QUOTING, Program((QUOTING,), False)),
        # The last block may only use what others, or the text beside them, define.
        (f"{FUNCTION}```\nIt adds.", Program((f"{FUNCTION}```\nIt adds.",), False)),
        (FUNCTION, Program((FUNCTION,), False)),
        (f"{FUNCTION}<|im_end|>", Program((FUNCTION,), False)),
        (f"Sure, from the list I take:\n\n{FUNCTION}", Program((FUNCTION,), False)),
        ("Use `def f(x): return x + 1`.", "none"),
        ("I cannot do that.", "none"),
        ("", "none"),
        ("```text\nno code\n```", "none"),
        ("```python\n\n```", "none"),
    ],
)
def test_what_is_read_out_of_a_message(message, expected):
    program = read_program(message, "f")
    if expected == "none":
        assert program is None and read_answer(message) is None
    elif expected is None:
        assert program is not None and program.is_fenced and program.blocks[-1].strip() == FUNCTION.strip()
    else:
        assert program == expected
        assert read_answer(message) == "\n".join(expected.blocks)


def test_reading_takes_time_linear_in_the_message():
    pieces = ("```\n", "~~~ x\n", "<|", "def ", "import a", "````", "- ", "> ", "    ```\n", "```def ", "a=", ":")
    for message in [before + piece * 60_000 for piece in pieces for before in ("", "def f():\n")]:
        read_program(message, "f", has_head=True)  # seconds if it were quadratic


def test_verdicts_and_their_scores():
    tests = ("assert f(1) == 2", "assert f(2) == 3")
    assert judge(FUNCTION, *tests)[:2] == (1.0, "correct")
    half = "def f(x): return 2"
    assert judge(half, *tests)[:2] == (0.0, "partial")
    assert judge(half, *tests, reward="fraction")[:2] == (0.5, "partial")
    assert judge("def f(x): return None", *tests, reward="fraction")[:2] == (0.0, "wrong")
    assert judge("def f(x): return 1 / 0", *tests)[:2] == (0.0, "error")
    assert judge("def f(x) return x", *tests)[:2] == (0.0, "error")
    assert judge("def g(x): return x", *tests)[:2] == (0.0, "error")
    assert judge("def f(x):\n    while True: pass", *tests, timeout_s=0.5)[:2] == (0.0, "timeout")
    # The first test is passed before the time is over.
    slow = "def f(x):\n    while x == 2: pass\n    return x + 1"
    assert judge(slow, *tests, timeout_s=0.5, reward="fraction")[:2] == (0.5, "partial")
    assert grade(make_problem(*tests), "No.")[:2] == (0.0, "unparsable")


def test_a_judge_that_hangs_is_replaced():
    assert judge(FUNCTION, "f(1)\nwhile True: pass", timeout_s=0.3)[:2] == (0.0, "timeout")
    assert judge(FUNCTION, "f(1)\nimport os; os._exit(3)")[:2] == (0.0, "error")
    assert judge(FUNCTION, "assert f(1) == 2").score == 1.0


def test_code_in_several_blocks_and_among_prose():
    problem = make_problem("assert f(1) == 2")
    assert grade(problem, "```\nf = lambda x: x + 1\n```\n```\nf(1)\n```\n```\nf(2)\n```").score == 1.0
    helper = "```python\nimport math\nONE = 1\nprint(undefined)\ndef g(x): return math.floor(x) + ONE\n```"
    assert grade(problem, f"{helper}\nThen:\n```python\ndef f(x): return g(x)\n```").score == 1.0
    sketch = "```python\ndef f(x): ... something\n```"
    assert (
        grade(problem, f"{sketch}\nBetter:\n```python\n{FUNCTION}```\nUse:\n```python\nprint(f(input()))\n```").score
        == 1.0
    )
    assert grade(problem, f"Of course.\n\n{FUNCTION}\nThis function's result is x plus one.\nDone!").score == 1.0
    main = FUNCTION + "if __name__ == '__main__':\n    raise SystemExit(f(1))\n"
    assert grade(problem, main).score == 1.0
    data = "from dataclasses import dataclass\n@dataclass\nclass D:\n    x: int\ndef f(x): return D(x).x + 1"
    assert grade(problem, data).score == 1.0


VALUES = """[
    None, True, 0, -7, 2**53, -2**200, 0.1, float("inf"), -0.0, 1+2j, "", "é \\ud800 \\n\\x00", b"\\x00\\xff",
    bytearray(b"a"),
    [], [1, [2.0, "3"]], (), (1, (2,)), {}, {1: "a", (1, 2): [3]}, set(), {1, "a"}, frozenset({(1, 2)}), range(0, 9, 2),
    int, list, __import__("fractions").Fraction(1, 3), __import__("decimal").Decimal("1.50"),
    __import__("collections").deque([1, 2]),
]"""
KINDS = f"""
values = {VALUES}
for index, value in enumerate(values):
    got = f(index)
    assert got == value and type(got) is type(value), (got, value)
    assert repr(got) == repr(value) or isinstance(value, (set, frozenset))
got = f(2)
assert got is not None and f(1) is True and f(0) is None
"""


def test_messages_are_json_and_nothing_else_is_read():
    nested = [[1, -2.5, float("inf"), None, True], {"a\n\ud800é": [2**200, '\\"', {}]}, []]
    assert code_channel.write(nested) == json.dumps(nested, separators=(",", ":"))
    assert code_channel.read(json.dumps(nested)) == nested
    assert math.isnan(code_channel.read("[NaN]")[0])
    for line in ("", "[1", "[1] [2]", "nul", "{1: 2}", "[1,]", "1" * 5000, "\ud800", '"\n"'):
        with pytest.raises(ValueError):
            code_channel.read(line)
    with pytest.raises(RecursionError):
        code_channel.read("[" * 100_000)


def test_plain_values_cross_as_they_are_and_both_ways():
    assert judge(f"def f(index): return {VALUES}[index]", KINDS).detail == ""
    assert judge("def f(x): return x", f"for value in {VALUES}:\n    assert f(value) == value, value").detail == ""
    assert (
        judge("def f(x): return x", "assert f(f) is not f(1)", "import math\nassert math.isnan(f(math.nan))").score
        == 1.0
    )


def test_subclasses_of_plain_types_cross_as_these():
    program = """
import collections, enum
class Colour(enum.IntEnum):
    red = 3
Point = collections.namedtuple("Point", "x y")
def f(x):
    mappings = collections.Counter("aab"), collections.OrderedDict(a=1), collections.defaultdict(int)
    return [Colour.red, Point(1, 2), *mappings]
"""
    test = "got = f(0)\nassert got == [3, (1, 2), {'a': 2, 'b': 1}, {'a': 1}, {}]\n"
    test += "assert [type(item) for item in got] == [int, tuple, dict, dict, dict]"
    assert judge(program, test).detail == ""
    assert (
        judge(
            "import numpy\ndef f(x): return numpy.float64(x), numpy.int64(3), numpy.bool_(True)",
            "assert f(0.5) == (0.5, 3, True)",
        ).detail
        == ""
    )


def test_iterators_are_fetched_as_they_are_read():
    endless = "import itertools\ndef f(x): return itertools.count(x)"
    assert (
        judge(endless, "import itertools\nassert list(itertools.islice(f(5), 3000)) == list(range(5, 3005))").detail
        == ""
    )
    assert (
        judge("def f(x): return map(str, x)", "assert list(f([1, 2])) == ['1', '2']", "assert f([1]) != ['1']").detail
        == ""
    )
    assert (
        judge(
            "def f(x): return {1: 2}.items()", "assert f(0) == {1: 2}.items()", "assert sorted(f(0)) == [(1, 2)]"
        ).score
        == 1.0
    )
    breaking = "def f(x):\n    yield 1\n    yield 2\n    raise KeyError(x)"
    test = (
        "g = f(3)\nassert next(g) == 1 and next(g) == 2\ntry:\n    next(g)\nexcept KeyError: pass\nelse: assert False"
    )
    assert judge(breaking, test).detail == ""


def test_objects_and_classes_of_the_program_stay_there_and_can_be_used():
    program = """
class Pair:
    def __init__(self, a, b=0): self.a, self.b = a, b
    def total(self, *, times=1): return (self.a + self.b) * times
def f(pairs): return max(pairs, key=lambda pair: pair.total())
"""
    test = "p = Pair(1, b=2)\nq = Pair(5)\nassert f([p, q]) is q and f([q, p]) == q != p\n"
    test += "assert p.a == 1 and p.total(times=2) == 6"
    assert judge(program, test, names=("Pair", "f")).detail == ""
    assert judge("def f(x): return lambda y: x + y", "assert f(1)(2) == 3").score == 1.0
    assert judge("import re\ndef f(x): return re.match('a', x)", "assert f('a')", "assert not f('b')").score == 1.0


def test_exceptions_that_a_test_expects():
    test = "try:\n    f(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False"
    assert judge("def f(x): raise ValueError('negative')", test).score == 1.0
    assert judge("def f(x): raise KeyError('negative')", test).verdict == "error"
    assert judge("def f(x): return 1", test).verdict == "wrong"


def test_arguments_are_changed_only_for_a_test_that_looks_at_them():
    in_place = "x = [3, 1, 2]\nf(x)\nassert x == [1, 2, 3]"
    assert judge("def f(x): x.sort()", in_place, keeps=(True,)).score == 1.0
    assert judge("def f(x): return sorted(x)", in_place, keeps=(True,)).verdict == "wrong"
    # A program that empties what it is given makes any sum of it right.
    compared = "x = [3, 1, 2]\nassert f(x) == sum(x)"
    assert judge("def f(x):\n    x.clear()\n    return 0", compared).verdict == "wrong"


def test_functions_named_test_are_called_and_a_test_must_call_the_program():
    assert judge(FUNCTION, "def test_one():\n    assert f(1) == 2").score == 1.0
    assert judge(FUNCTION, "def test_one():\n    assert f(1) == 3").verdict == "wrong"
    for test in ("assert True", "def check(f):\n    assert f(1) == 2", "f", "if False: f(1)"):
        verdict = judge(FUNCTION, test)
        assert verdict.verdict == "error" and "never calls the program" in verdict.detail


def test_a_test_that_catches_everything_does_not_hide_a_program_that_ends():
    test = "try:\n    assert f(1) == 2\nexcept BaseException:\n    pass"
    assert judge("import os\ndef f(x): os._exit(0)", test, reward="fraction")[:2] == (0.0, "error")
    assert judge("def f(x):\n    while True: pass", test, timeout_s=0.3)[:2] == (0.0, "timeout")


def test_what_cannot_cross_is_an_error():
    assert judge("def f(g): return g", "import threading\nassert f(threading.Lock()) == 1").verdict == "error"
    assert judge("class P:\n    pass\ndef f(x): return P()", "p = f(0)\np.a = 1").verdict == "error"
    assert (
        judge("class P:\n    def __len__(self): return 2\ndef f(x): return P()", "assert len(f(0)) == 2").verdict
        == "error"
    )


def test_without_the_sandbox_only_where_it_is_asked_for():
    assert not Check(tests=(), names=(), entry_point="f")._replace(is_contained=False).is_contained
    assert (
        judge("import os\ndef f(x): return os.path.exists('/proc/self')", "assert f(0)", is_contained=False).score
        == 1.0
    )
    assert judge("import os\ndef f(x): return os.path.exists('/proc/self')", "assert f(0)").score == 0.0
    assert judge("def f(x):\n    while True: pass", "f(0)", is_contained=False, timeout_s=0.3).verdict == "timeout"


def write_rows(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


MBPP = {
    "text": "Write a function to add one.",
    "code": "import sys\r\nclass P:\r\n    def __init__(self, a): pass\r\ndef f(x, y=1):\r\n    return x + y",
    "task_id": 11,
    "test_setup_code": "",
    "test_list": ["assert f(1) == 2", "assert f(len(sys.argv)) > 1"],
    "challenge_test_list": [],
}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\ndef g(x: int) -> int:\n    return x + 1\n\n"
    'def f(x: List[int]) -> int:\n    """Sum g."""\n',
    "entry_point": "f",
    "canonical_solution": "    return sum(map(g, x))\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == g(1) + g(2)\n",
}


def test_records_of_mbpp_name_what_is_to_be_defined(tmp_path):
    (problem,) = load_problems(write_rows(tmp_path / "set", MBPP), spec=CodeSpec(reward="fraction"))
    assert problem.id == "11" and problem.question.endswith("Your program must define `f(x, y=1)`.")
    check = read_check(problem.answer)
    assert (check.names, check.test_imports, check.reward) == (("f",), ("sys",), "fraction")
    assert grade(problem, "```\ndef f(x): return x + 1\n```").score == 1.0
    assert "f(1)" not in problem.question


def test_records_of_mbpp_plus_use_their_one_full_test(tmp_path):
    test = "import numpy as np\nfor x, y in zip([1, 2], [2.0, 3.0]):\n    assert np.allclose(f(x), y)"
    rows = write_rows(tmp_path / "set", {**MBPP, "prompt": "Add one.", "test": test, "test_imports": ["import math"]})
    (problem,) = load_problems(rows)
    assert len(read_check(problem.answer).tests) == 1
    assert grade(problem, "```\ndef f(x): return x + 1\n```").score == 1.0
    assert (
        grade(problem, "```\ndef f(x): return math.floor(x) + 1\n```").score == 1.0
    )  # its imports hold for the program
    assert grade(problem, "```\ndef f(x): return 2\n```").verdict == "wrong"


PLUS = """import numpy as np

def assertion(out, exp, atol):
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp

assertion(f(1), 2.5, 1e-6)
assertion(f(2), [0.5, 1.5], 1e-6)
"""
PLUS_OF_MATCHES = """
def assertion(out, exp, atol):
    if isinstance(out, bool):
        exact_match = out == exp
    else:
        exact_match = exp == (out is not None)

assertion(f(1), True, 0)
assertion(f(2), False, 0)
"""


@pytest.mark.parametrize(
    ("test", "right", "wrong"),
    [
        (PLUS, "return 2.5000001 if x == 1 else (0.5, 1.5)", ["[]", "()", "[2.5]", "2.5", "[[]]"]),
        (PLUS_OF_MATCHES, "return __import__('re').match('1', str(x))", ["None", "x", "True", "False"]),
    ],
)
def test_faults_of_the_plus_sets_tests_are_mended(tmp_path, test, right, wrong):
    (problem,) = load_problems(write_rows(tmp_path / "set", {**MBPP, "prompt": "Halve.", "test": test}))
    assert grade(problem, f"```\ndef f(x): {right}\n```").detail == ""
    for value in wrong:  # at least [] and, where nothing was asserted, all of them used to be paid
        assert grade(problem, f"```\ndef f(x): return {value}\n```").score == 0.0


def test_records_of_humaneval_take_whole_functions_and_what_completes_the_prompt(tmp_path):
    (problem,) = load_problems(write_rows(tmp_path / "set", HUMANEVAL))
    assert problem.question == HUMANEVAL["prompt"]
    assert grade(problem, f"```python\n{HUMANEVAL['canonical_solution']}```").score == 1.0
    assert grade(problem, f"```python\n{HUMANEVAL['prompt']}{HUMANEVAL['canonical_solution']}```").score == 1.0
    assert grade(problem, "```python\ndef f(x: List[int]): return sum(x) + len(x)\n```").score == 1.0
    assert grade(problem, "```python\ndef g(x): return 0\ndef f(x): return 0\n```").verdict == "wrong"


COMPLETIONS = Path(__file__).with_name("completions.jsonl")
BODY = "    total = 0\n    for item in x:\n        total += g(item)\n    return total\n"


def test_bodies_alone_complete_prompts_of_humaneval():
    """Problems of our own in HumanEval's format, whose solutions are bodies."""
    rows = [json.loads(line) for line in COMPLETIONS.read_text(encoding="utf-8").splitlines()]
    for problem, row in zip(load_problems(str(COMPLETIONS)), rows, strict=True):
        body = row["canonical_solution"]
        for message in (
            body,
            body.strip(),
            f"```python\n{body}```",
            f"{body}\n\n\ndef unfinished(x",
            row["prompt"] + body,
        ):
            assert grade(problem, message).detail == "", (row["task_id"], message)
        for message in ("    pass\n", "    return None\n", "\n", "I do not know.", '    """No."""\n'):
            assert grade(problem, message).score == 0.0, (row["task_id"], message)


@pytest.mark.parametrize(
    "message",
    [
        BODY,
        BODY.strip(),
        textwrap.dedent(BODY),
        BODY.replace("    ", "\t"),
        BODY.replace("    ", "  "),
        BODY.replace("\n", "\r\n"),
        f"{BODY}<|endoftext|>",
        f"{BODY}```\nIt adds.",
        f"The body is:\n\n{BODY}",
        f"{BODY}\nIt adds what g gives.",
        f"{BODY}\nprint(f([1]))\n",
        f"{BODY}\nif __name__ == '__main__':\n    import doctest\n    doctest.testmod()\n",
        "    import math\n    return int(math.fsum(map(g, x)))",
        "import math\n    return int(math.fsum(map(g, x)))",
        "    return help(x)\n\ndef help(x):\n    return sum(map(g, x))\n",
        "    def help(x):\n        return g(x)\n    return sum(help(item) for item in x)\n",
        f"```python\n{textwrap.dedent(BODY)}```",
        f"- So:\n  ```python\n{textwrap.indent(BODY, '  ')}  ```",
        "```python\ndef help(x): return g(x)\n\ndef f(x): return sum(map(help, x))\n```",
        "def help(x): return g(x)\n\ndef f(x): return sum(map(help, x))\n",
        f"```python\n    def f(x):\n{textwrap.indent(BODY, '    ')}```",
    ],
)
def test_a_body_counts_with_its_indentation_lost_or_text_around_it(tmp_path, message):
    (problem,) = load_problems(write_rows(tmp_path / "set", HUMANEVAL))
    assert grade(problem, message).detail == ""


def test_records_of_our_own(tmp_path):
    own = {"id": "a", "question": "Define add.", "tests": ["assert add(ONE, 1) == 2"], "setup": "import re\nONE = 1"}
    shadow = {"question": "Add.", "tests": ["assert sum(1, 1) == 2"], "entry_point": "sum"}
    first, second = load_problems(write_rows(tmp_path / "set", own, shadow))
    assert first.question == "Define add." and second.question == "Add.\n\nYour program must define `sum`."
    # The setup holds for the program, too.
    assert grade(first, "```\ndef add(a, b): return len(re.findall('1', '11'))\n```").score == 1.0
    assert grade(first, "```\ndef add(a, b): return ONE + ONE\n```").score == 1.0
    assert grade(second, "```\ndef sum(a, b): return a + b\n```").score == 1.0
    keeps = {"question": "Define f.", "tests": ["x = [2, 1]\nf(x)\nassert x == [1, 2]", "assert f([]) is None"]}
    (third,) = load_problems(write_rows(tmp_path / "set", keeps))
    assert read_check(third.answer).keeps == (True, False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "line 2: expected one of the fields 'tests', 'test_list' or 'test'"),
        ({"question": "q", "tests": []}, "line 2: the field 'tests' must be a list of at least one test"),
        ({"question": "q", "tests": ["assert"]}, "line 2: the field 'tests.0' is no Python"),
        ({"question": "q", "tests": ["assert True"]}, "line 2: expected tests that use a name"),
        ({"question": "q", "tests": ["f()"], "setup": "("}, "line 2: the setup is no Python"),
        ({"tests": ["f()"]}, "line 2: the field 'question' is missing"),
        ({**MBPP, "task_id": 12, "code": "x = 1"}, "line 2: expected tests that use what the code defines"),
        ({**MBPP, "task_id": 12, "code": 3}, "line 2: the field 'code' must be text"),
        ({"question": "q", "tests": ["assert math.pi"]}, "line 2: expected tests that use a name"),
        (MBPP, "line 2: the id '11' is already that of line 1"),
        ({**HUMANEVAL, "test": "def check("}, "line 2: the field 'test' is no Python"),
        ({"task_id": "Mbpp/2", "plus_input": [[1]]}, "line 2: .*whose tuples JSON has lost"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path, row, message):
    with pytest.raises(TaskError, match=message):
        load_problems(write_rows(tmp_path / "set", MBPP, row))


def test_reference_solutions_of_a_sample_pass():
    """Problems of our own in MBPP's and MBPP+'s formats; the sweep of the sets themselves is in docs/code_tasks.md."""
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    problems = load_problems(str(SAMPLE), spec=CodeSpec(timeout_s=8.0))
    answers = [f"```python\n{row['code']}\n```" for row in rows]
    with Evaluator(find_task("code").grade, workers=2, timeout_s=30.0) as evaluator:
        verdicts = evaluator.score(problems, answers, budget=len(answers))
    assert [verdict.detail for verdict in verdicts] == [""] * len(verdicts)
    assert {verdict.verdict for verdict in verdicts} == {"correct"}
