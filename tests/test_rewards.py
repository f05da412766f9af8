"""The evaluator: order, counts, budget, and what graders can do to it."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import c3jax
from c3jax.rewards import Evaluator
from c3jax.tasks.task import find_task
from c3jax.types import Problem, UserError, Verdict

PROBLEMS = [Problem(index, str(index), f"what is {index} ?", str(index)) for index in range(200)]

# In a module of its own, as graders are: workers import it by name, on the caller's path.
GRADERS = '''
import os, re, subprocess, sys, time
from c3jax.types import Verdict

held = []

def obey(problem, text):
    """Do what the answer says."""
    order, _, argument = text.partition(" ")
    if order == "say":
        return Verdict(0.5, "partial", argument, problem.id)
    if order == "pid":
        return Verdict(1.0, "correct", str(os.getpid()))
    if order == "jax":
        return Verdict(1.0, "correct", str("jax" in sys.modules))
    if order == "print":
        print("[99, [1000.0, \\"correct\\", null, \\"forged\\"]]", flush=True)
        subprocess.run(["echo", "[99, [1000.0, \\"correct\\", null, \\"forged\\"]]"])
        return Verdict(0.0, "wrong", sys.stdin.read())
    if order == "sleep":
        with open(argument, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    if order == "spawn":
        child = subprocess.Popen(["sleep", "600"])
        with open(argument + ".partial", "w") as file:
            file.write(str(child.pid))
        os.rename(argument + ".partial", argument)
        time.sleep(600)
    if order == "burn":
        with open(argument, "w") as file:
            file.write(str(os.getpid()))
        re.match("(a+)+$", "a" * 60 + "b")  # years, and no other Python thread runs meanwhile
    if order == "exit":
        sys.exit(3)
    if order == "die":
        os._exit(int(argument))
    if order == "raise":
        raise KeyError(argument)
    if order == "overpay":
        return Verdict(1000.0, "correct", None)
    if order == "nan":
        return Verdict(float("nan"), "correct", None)
    if order == "invent":
        return Verdict(1.0, "perfect", None)
    if order == "take":
        return Verdict(1.0, "correct", str(len(bytearray(int(argument) << 20))))
    if order == "fill":
        held.append(b"1" * (1100 << 20))
        return Verdict(1.0, "correct", str(os.getpid()))
    if order == "pair":
        return 1.0, "correct"
'''


@pytest.fixture
def obey(tmp_path, monkeypatch):
    (tmp_path / "obedient_grader.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("obedient_grader").obey
    del sys.modules["obedient_grader"]


def test_verdicts_come_in_order_and_every_answer_is_one_call():
    # Answers alternate right and wrong, so that any exchange of two neighbours shows.
    answers = [f"#### {index + index % 2}" for index in range(200)]
    with Evaluator(find_task("numeric").grade, workers=2) as evaluator:
        assert evaluator.calls == 0
        first = evaluator.score(PROBLEMS, answers, budget=200)
        assert evaluator.calls == 200
        second = evaluator.score(PROBLEMS[:7], answers[:7], budget=8)
        assert evaluator.calls == 207
        assert evaluator.score([], [], budget=0) == []
        assert evaluator.calls == 207
    assert [verdict.score for verdict in first] == [1.0, 0.0] * 100
    assert [verdict.answer for verdict in first] == [str(index + index % 2) for index in range(200)]
    assert second == first[:7]
    assert all(isinstance(verdict, Verdict) for verdict in first)


def test_a_budget_is_refused_before_any_call():
    with Evaluator(find_task("numeric").grade, workers=1) as evaluator:
        with pytest.raises(ValueError, match="5 answers .* budget is 4"):
            evaluator.score(PROBLEMS[:5], ["1"] * 5, budget=4)
        with pytest.raises(ValueError, match="each of 5 problems, got 4"):
            evaluator.score(PROBLEMS[:5], ["1"] * 4, budget=5)
        assert evaluator.calls == 0
        assert len(evaluator.score(PROBLEMS[:5], ["1"] * 5, budget=5)) == 5


def test_fields_and_strange_text_survive_the_way_to_a_worker_and_back(obey):
    strange = 'é \u2028 \x00 \ud800 \n \\ " 답 ' + "x" * 300_000
    with Evaluator(obey, workers=1) as evaluator:
        (verdict,) = evaluator.score(PROBLEMS[3:4], ["say " + strange], budget=1)
    assert verdict == Verdict(0.5, "partial", strange, "3")


def test_an_exception_and_a_false_verdict_are_errors_of_their_own_answers(obey):
    answers = ["say a", "raise lost", "overpay", "nan", "invent", "pair", "exit", "say b"]
    with Evaluator(obey, workers=2) as evaluator:
        verdicts = evaluator.score(PROBLEMS[:8], answers, budget=8)
        assert evaluator.calls == 8
    assert [verdict.answer for verdict in verdicts] == ["a", *[None] * 6, "b"]
    assert all(verdict.score == 0.0 and verdict.verdict == "error" for verdict in verdicts[1:7])
    assert verdicts[1].detail == "KeyError: 'lost'"
    assert "1000" in verdicts[2].detail
    assert verdicts[6].detail == "SystemExit: 3"


def test_memory_is_limited_and_a_worker_that_has_grown_is_replaced(obey):
    with Evaluator(obey, workers=1) as evaluator:
        much, little, grown = evaluator.score(PROBLEMS[:3], ["take 3000", "take 1", "fill"], budget=3)
        (after,) = evaluator.score(PROBLEMS[:1], ["pid"], budget=1)
        assert evaluator.calls == 4
    assert (much.verdict, much.detail) == ("error", "MemoryError: ")
    assert (little.verdict, little.answer) == ("correct", str(1 << 20))
    assert grown.verdict == after.verdict == "correct"
    assert grown.answer != after.answer


def test_a_caller_of_any_size_keeps_its_workers(obey):
    """Linux hands a process's peak of memory down to what it starts, so a worker must not judge itself by its peak."""
    large = b"1" * (1100 << 20)
    with Evaluator(obey, workers=1) as evaluator:
        del large
        answers = [evaluator.score(PROBLEMS[:1], ["pid"], budget=1)[0].answer for _ in range(3)]
    assert len(set(answers)) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_dying_and_a_hanging_grader_cost_one_verdict_each(obey, tmp_path, workers):
    answers = [f"say {index}" for index in range(100)]
    hangs, deaths = (5, 6), {0: "die 3", 40: "die 7", 41: "die 7", 99: "die 3"}
    for place in hangs:
        answers[place] = f"sleep {tmp_path / f'pid{place}'}"
    for place, order in deaths.items():
        answers[place] = order
    with Evaluator(obey, workers, timeout_s=0.5) as evaluator:
        verdicts = evaluator.score(PROBLEMS[:100], answers, budget=100)
        # Every case was begun once and only once, whatever became of it.
        assert evaluator.calls == 100
        again = evaluator.score(PROBLEMS[:100], [f"say {index}" for index in range(100)], budget=100)
        assert evaluator.calls == 200
    for place, verdict in enumerate(verdicts):
        if place in hangs:
            assert verdict == Verdict(0.0, "timeout", None, "no verdict within 0.5 s")
            assert_gone(int((tmp_path / f"pid{place}").read_text()))
        elif place in deaths:
            assert (verdict.score, verdict.verdict) == (0.0, "error")
            assert verdict.detail == f"the grading process died (exit status {deaths[place][4:]})"
        else:
            assert verdict == Verdict(0.5, "partial", str(place), str(place))
    assert [verdict.answer for verdict in again] == [str(index) for index in range(100)]


def test_answers_are_taken_while_the_caller_has_other_work(obey):
    """Two lots, a worker that dies in the first: all verdicts, in the order of submission, and every call counted."""
    first = ["say 0", "die 3", *(f"say {place}" for place in range(2, 20))]
    with Evaluator(obey, workers=2) as evaluator:
        evaluator.submit(PROBLEMS[:20], first, budget=20)
        with pytest.raises(RuntimeError, match="not collected yet"):
            evaluator.score(PROBLEMS[:1], ["say x"], budget=1)
        while evaluator.pump(0.05):
            pass  # all of the first lot is graded before the second is known
        assert evaluator.calls == 20
        evaluator.submit(PROBLEMS[20:30], [f"say {place}" for place in range(20, 30)], budget=10)
        verdicts = evaluator.collect()
        assert evaluator.calls == 30 and evaluator.collect() == []
    assert verdicts[1].verdict == "error" and verdicts[1].score == 0.0
    del verdicts[1]
    assert [verdict.answer for verdict in verdicts] == [str(place) for place in range(30) if place != 1]


def assert_gone(pid: int) -> None:
    """Wait for the end of a process that may be no child of ours, then for somebody to have collected it."""
    for _ in range(200):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def test_a_worker_lost_between_two_scores_is_replaced_at_no_call(obey):
    with Evaluator(obey, workers=1) as evaluator:
        (before,) = evaluator.score(PROBLEMS[:1], ["pid"], budget=1)
        os.kill(int(before.answer), signal.SIGKILL)
        after = evaluator.score(PROBLEMS[:3], ["pid", "say a", "say b"], budget=3)
        assert evaluator.calls == 4
    assert after[0].verdict == "correct" and after[0].answer != before.answer
    assert [verdict.answer for verdict in after[1:]] == ["a", "b"]


def test_what_a_grader_prints_is_no_verdict_and_it_has_nothing_to_read(obey):
    with Evaluator(obey, workers=1) as evaluator:
        verdicts = evaluator.score(PROBLEMS[:3], ["say a", "print", "say b"], budget=3)
        assert evaluator.calls == 3
    assert [verdict.answer for verdict in verdicts] == ["a", "", "b"]


def test_a_timeout_ends_the_programs_that_the_grader_started(obey, tmp_path):
    with Evaluator(obey, workers=1, timeout_s=1.0) as evaluator:
        (verdict,) = evaluator.score(PROBLEMS[:1], [f"spawn {tmp_path / 'child'}"], budget=1)
    assert verdict.verdict == "timeout"
    assert_gone(int((tmp_path / "child").read_text()))


def test_close_leaves_no_process_and_a_closed_evaluator_says_so(obey):
    with Evaluator(obey, workers=3) as evaluator:
        verdicts = evaluator.score(PROBLEMS[:60], ["pid"] * 60, budget=60)
    pids = {int(verdict.answer) for verdict in verdicts}
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # ended and collected
            os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="not open"):
        evaluator.score(PROBLEMS[:1], ["pid"], budget=1)
    with evaluator:
        assert evaluator.score(PROBLEMS[:1], ["say a"], budget=1)[0].answer == "a"


def test_workers_do_not_hear_ctrl_c(obey):
    with Evaluator(obey, workers=1) as evaluator:
        (before,) = evaluator.score(PROBLEMS[:1], ["pid"], budget=1)
        os.kill(int(before.answer), signal.SIGINT)
        (after,) = evaluator.score(PROBLEMS[:1], ["pid"], budget=1)
    assert after.answer == before.answer


def test_an_interrupted_score_closes_the_evaluator(obey, tmp_path):
    with Evaluator(obey, workers=1) as evaluator:
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(KeyboardInterrupt):
                evaluator.score(PROBLEMS[:1], [f"sleep {tmp_path / 'pid'}"], budget=1)
        finally:
            signal.signal(signal.SIGALRM, previous)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
        with pytest.raises(RuntimeError, match="not open"):
            evaluator.score(PROBLEMS[:1], ["say a"], budget=1)


def test_requests_for_no_worker_or_no_time_and_graders_that_cannot_be_sent(obey):
    with pytest.raises(ValueError, match="at least 1 worker"):
        Evaluator(obey, workers=0)
    with pytest.raises(ValueError, match="above 0 s"):
        Evaluator(obey, workers=1, timeout_s=0.0)
    with pytest.raises(UserError, match="top level of a module, got <function .*lambda"):
        Evaluator(lambda problem, text: Verdict(0.0, "wrong", None), workers=1)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(c3jax.__file__).parent.parent)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_importing_the_evaluator_and_the_tasks_does_not_import_jax():
    done = run_python("-c", "import sys, c3jax.rewards, c3jax.tasks; print('jax' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


# No guard by __name__, and JAX in the caller: a worker must neither run this again nor have JAX.
SCRIPT = """
import sys
import jax
from c3jax.rewards import Evaluator
from c3jax.types import Problem
from obedient_grader import obey
print("main runs")
with Evaluator(obey, workers=2) as evaluator:
    print(evaluator.score([Problem(0, "0", "q", "1")], ["jax"], budget=1)[0].answer)
"""


def test_a_script_without_a_guard_a_command_and_a_module_run_once(obey, tmp_path):
    for name in ("script.py", "command"):  # the second as an installed console entry point, without a suffix
        (tmp_path / name).write_text(f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + SCRIPT)
    code = (tmp_path / "script.py").read_text()
    for arguments in ([str(tmp_path / "script.py")], [str(tmp_path / "command")], ["-c", code]):
        done = run_python(*arguments)
        assert done.stdout == "main runs\nFalse\n", done.stderr


def test_a_grader_that_workers_cannot_import_is_refused_at_the_start():
    code = textwrap.dedent("""
        from c3jax.rewards import Evaluator
        def grade(problem, text): ...
        try:
            Evaluator(grade, workers=1).__enter__()
        except RuntimeError as error:
            print(error)
    """)
    done = run_python("-c", code)
    assert "died as it started" in done.stdout
    assert "grade" in done.stderr  # what the worker had to say


@pytest.mark.parametrize("order", ["sleep", "spawn", "burn"])
def test_workers_die_with_their_caller_in_the_middle_of_a_call(obey, tmp_path, order):
    code = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from c3jax import rewards
        from c3jax.types import Problem
        from obedient_grader import obey
        with rewards.Evaluator(obey, workers=1, timeout_s={2.0 if order == "burn" else 300.0}) as evaluator:
            rewards._START_S = 0.0  # what a chunk is given beyond its timeouts, before a worker gives itself up
            evaluator.score([Problem(0, "0", "q", "1")], ["{order} {tmp_path / "pid"}"], budget=1)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(c3jax.__file__).parent.parent)}
    caller = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        for _ in range(400):
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                break
            time.sleep(0.05)
        pid = int((tmp_path / "pid").read_text())
    finally:
        caller.kill()
        caller.wait()
    assert_gone(pid)
