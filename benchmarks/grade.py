"""Benchmark of grading: programs judged in their sandboxes a second, beside what no such judging can do without.

A program costs at least one sandbox and one interpreter. Both are started here as often as they will go, by as many
processes at once as there are workers, in turn with the judging: the ratios hold on a busy machine as on an idle one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from c3jax.rewards import Evaluator
from c3jax.tasks.code import task as code
from c3jax.tasks.code.records import CodeSpec, load_problems
from c3jax.tasks.jsonl import read_rows
from c3jax.tasks.maths import task as maths
from c3jax.tasks.sandbox.isolation import check_isolation
from c3jax.tasks.sandbox.process import find_bubblewrap
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


def bench_grade(is_small: bool) -> dict[str, Any]:
    """Programs and formulas judged a second, and bare interpreters and sandboxes started a second, in turn.

    Raises:
      UserError: no sandbox can be made here.
    """
    check_isolation()
    workers = max(2, os.cpu_count() or 1)
    count, rounds = (4, 1) if is_small else (120, 3)
    load = [os.getloadavg()[0]]
    rates = _measure_rates(workers, count, rounds)
    load.append(os.getloadavg()[0])
    best = {name: max(values) for name, values in rates.items()}
    return {
        "user": "root" if os.geteuid() == 0 else "ordinary",
        "cores": os.cpu_count(),
        "workers": workers,
        "load_average_before_and_after": load,
        "per_second": rates,
        "best_per_second": best,
        "interpreters_per_program": best["interpreters"] / best["programs"],
        "sandboxes_per_program": best["sandboxes"] / best["programs"],
    }


def _measure_rates(workers: int, count: int, rounds: int) -> dict[str, list[float]]:
    python = [os.path.realpath(sys._base_executable), "-S", "-c", "pass"]  # type: ignore[attr-defined]
    sandbox = [find_bubblewrap(), "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    programs, formulas = make_programs(count), make_formulas(10 * count)
    with (
        Evaluator(code.grade, workers, timeout_s=60.0) as programmer,
        Evaluator(maths.grade, workers, timeout_s=60.0) as mathematician,
    ):
        cases: dict[str, tuple[int, Callable[[], object]]] = {
            "interpreters": (count, lambda: _start_all(python, count, workers)),
            "sandboxes": (count, lambda: _start_all(sandbox, count, workers)),
            "programs": (count, lambda: _score(programmer, *programs)),
            "formulas": (10 * count, lambda: _score(mathematician, *formulas)),
        }
        for evaluator, (problems, answers) in ((programmer, programs), (mathematician, formulas)):
            _score(evaluator, problems[:workers], answers[:workers])  # the judges start
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, (size, call) in cases.items():
                began = time.perf_counter()
                call()
                rates[name].append(size / (time.perf_counter() - began))
    return rates


def make_programs(count: int) -> tuple[list[Problem], list[str]]:
    """Problems of code, and an answer to each that is right."""
    problems, answers = [], []
    for index in range(count):
        solution, tests = _SAMPLES[index % len(_SAMPLES)]
        check = code.Check(tests, ("f",), "f", keeps=(False,) * len(tests), timeout_s=50.0)
        problems.append(Problem(index, str(index), "", code.write_check(check)))
        answers.append(f"```python\n{solution}```")
    return problems, answers


def make_formulas(count: int) -> tuple[list[Problem], list[str]]:
    """Problems of mathematics, and an answer to each; the fourth of every four is wrong."""
    pairs = [_ANSWERS[index % len(_ANSWERS)] for index in range(count)]
    problems = [Problem(index, str(index), "", answer) for index, (answer, _) in enumerate(pairs)]
    return problems, [f"So the answer is $\\boxed{{{text}}}$." for _, text in pairs]


def _start_all(command: Sequence[str], count: int, at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda _: subprocess.run(command, check=True, stdin=subprocess.DEVNULL), range(count)))


def _score(evaluator: Evaluator, problems: list[Problem], answers: list[str]) -> None:
    verdicts = evaluator.score(problems, answers, budget=len(answers))
    wrong = next((v for v in verdicts if v.verdict not in ("correct", "wrong")), None)
    if wrong is not None:
        raise RuntimeError(f"expected verdicts on all answers of the benchmark, got {wrong.verdict}: {wrong.detail}")


def judge_solutions(path: str, left_out: Sequence[str]) -> int:
    """Judge every reference solution of a set of code problems, one after another.

    Prints a line for each that fails, and at last how many pass and how many were judged a second.

    Args:
      path: JSONL in a public set's own record, with its reference solutions.
      left_out: ids of problems that are not judged.

    Returns:
      How many failed.

    Raises:
      UserError: the file cannot be read, or no sandbox can be made here.
    """
    # Far beyond what training allows: some references compute for a minute.
    problems = load_problems(path, spec=CodeSpec(timeout_s=120.0, memory_mb=4096, output_mb=512, wall_s=600.0))
    rows: list[Any] = [row.fields for row in read_rows(path)]
    pairs = [pair for pair in zip(problems, rows, strict=True) if pair[0].id not in left_out]
    began, failed = time.monotonic(), 0
    try:
        for problem, row in pairs:
            solution = row["code"] if "code" in row else row["prompt"] + row["canonical_solution"]
            verdict = code.grade(problem, f"```python\n{solution}\n```")
            if verdict.verdict != "correct":
                failed += 1
                print(f"{problem.id}: {verdict.verdict}, {verdict.detail}")
    finally:
        code.close()
    seconds = time.monotonic() - began
    print(f"{len(pairs) - failed} of {len(pairs)} pass; {seconds:.1f} s, {len(pairs) / seconds:.1f} a second")
    return failed
