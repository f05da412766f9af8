"""Benchmark of grading: programs judged in their sandboxes a second, beside what no such judging can do without.

A program costs at least one sandbox and one interpreter. Both are started here as often as they will go, by as many
processes at once as there are workers, in turn with the judging: the ratios hold on a busy machine as on an idle one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from c3jax.rewards import Evaluator
from c3jax.tasks.code.task import Check, write_check
from c3jax.tasks.sandbox.isolation import check_isolation
from c3jax.tasks.sandbox.process import find_bubblewrap
from c3jax.tasks.task import TASKS
from c3jax.types import Problem

_SAMPLES = (
    (
        "def f(words):\n    return sorted(words, key=len)\n",
        (
            "assert f(['ccc', 'a', 'bb']) == ['a', 'bb', 'ccc']",
            "assert f([]) == []",
            "assert f(['b', 'a']) == ['b', 'a']",
        ),
    ),
    (
        "def f(n):\n    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))\n",
        ("assert f(97)", "assert not f(91)", "assert not f(1)"),
    ),
    (
        "import re\ndef f(text):\n    return re.findall(r'\\d+', text)\n",
        ("assert f('a1b22') == ['1', '22']", "assert f('') == []", "assert f('7') == ['7']"),
    ),
    (
        "from collections import Counter\ndef f(items):\n    return dict(Counter(items))\n",
        ("assert f('aab') == {'a': 2, 'b': 1}", "assert f([]) == {}", "assert f([(1, 2)]) == {(1, 2): 1}"),
    ),
)
_ANSWERS = (("\\frac{1}{2}", "0.5"), ("(1, 2)", "(1,2)"), ("x^2 + 2x + 1", "(x+1)^2"), ("72", "72.4"))


def run(is_small: bool) -> int:
    """Measure, print the figures as one JSON object and return the exit code. Raises UserError without a sandbox."""
    check_isolation()
    workers = max(2, os.cpu_count() or 1)
    count, rounds = (4, 1) if is_small else (120, 3)
    load = [os.getloadavg()[0]]
    python = [os.path.realpath(sys._base_executable), "-S", "-c", "pass"]  # type: ignore[attr-defined]
    sandbox = [find_bubblewrap(), "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    programs, formulas = _make_programs(count), _make_formulas(10 * count)
    with (
        Evaluator(TASKS["code"].grade, workers, timeout_s=60.0) as code,
        Evaluator(TASKS["math"].grade, workers, timeout_s=60.0) as maths,
    ):
        cases: dict[str, tuple[int, Callable[[], object]]] = {
            "interpreters": (count, lambda: _start_all(python, count, workers)),
            "sandboxes": (count, lambda: _start_all(sandbox, count, workers)),
            "programs": (count, lambda: _score(code, *programs)),
            "formulas": (10 * count, lambda: _score(maths, *formulas)),
        }
        for evaluator, (problems, answers) in ((code, programs), (maths, formulas)):
            _score(evaluator, problems[:workers], answers[:workers])  # the judges start
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, (size, call) in cases.items():
                began = time.perf_counter()
                call()
                rates[name].append(size / (time.perf_counter() - began))
    load.append(os.getloadavg()[0])
    best = {name: max(values) for name, values in rates.items()}
    figures: dict[str, Any] = {
        "bench": "grade",
        "user": "root" if os.geteuid() == 0 else "ordinary",
        "cores": os.cpu_count(),
        "workers": workers,
        "load_average_before_and_after": load,
        "per_second": rates,
        "best_per_second": best,
        "interpreters_per_program": best["interpreters"] / best["programs"],
        "sandboxes_per_program": best["sandboxes"] / best["programs"],
    }
    print(json.dumps(figures, indent=2))
    return 0


def _make_programs(count: int) -> tuple[list[Problem], list[str]]:
    problems, answers = [], []
    for index in range(count):
        solution, tests = _SAMPLES[index % len(_SAMPLES)]
        check = Check(tests, ("f",), "f", keeps=(False,) * len(tests), timeout_s=50.0)
        problems.append(Problem(index, str(index), "", write_check(check)))
        answers.append(f"```python\n{solution}```")
    return problems, answers


def _make_formulas(count: int) -> tuple[list[Problem], list[str]]:
    pairs = [_ANSWERS[index % len(_ANSWERS)] for index in range(count)]
    problems = [Problem(index, str(index), "", answer) for index, (answer, _) in enumerate(pairs)]
    return problems, [f"So the answer is $\\boxed{{{said}}}$." for _, said in pairs]


def _start_all(command: Sequence[str], count: int, at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda _: subprocess.run(command, check=True, stdin=subprocess.DEVNULL), range(count)))


def _score(evaluator: Evaluator, problems: list[Problem], answers: list[str]) -> None:
    verdicts = evaluator.score(problems, answers, budget=len(answers))
    wrong = next((v for v in verdicts if v.verdict not in ("correct", "wrong")), None)
    if wrong is not None:
        raise RuntimeError(f"expected verdicts on all answers of the benchmark, got {wrong.verdict}: {wrong.detail}")
