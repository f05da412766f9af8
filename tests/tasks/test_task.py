"""Tasks found by name: built-in records, records and plain functions of a user's own, and what graders can do."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from c3jax.rewards import Evaluator
from c3jax.schema import ConfigError
from c3jax.tasks.code.task import read_check
from c3jax.tasks.jsonl import TaskError, read_rows
from c3jax.tasks.sections import CodeTask
from c3jax.tasks.task import TASKS, Task, find_task, make_verdict, open_task
from c3jax.types import Problem, UserError, Verdict

PROBLEM = Problem(0, "p", "how many ?", "7", {"hint": "odd"})

OWN = '''
import os, sys, time
from c3jax.tasks.task import Task
from c3jax.types import Verdict

def grade(problem, answer):
    """Do what the answer asks for."""
    if answer == "sleep":
        while True:
            time.sleep(60)
    if answer == "fork" and os.fork() == 0:
        return 1.0  # the child's word must not count
    if answer == "print":
        print("[1, [1.0, \\"correct\\", null, \\"\\", null]]", flush=True)
        os.write(1, b"[1, [1.0]]\\n")
    if answer == "text":
        return "1.0"
    if answer == "nan":
        return float("nan")
    if answer == "exit":
        raise SystemExit(0)
    if answer == "interrupt":
        raise KeyboardInterrupt
    if answer == "half":
        return 0.5
    return answer == problem.answer

def reward(completions, hint, **others):
    return [1.0 if hint[0] in text and others["prompts"] == ["how many ?"] else 0.0 for text in completions]

def narrow(completions, answer):
    return [float(text == wanted) for text, wanted in zip(completions, answer)]

RIDDLES = Task(grade)
LAMBDA = Task(lambda problem, answer: 1.0)
NUMBER = 3

def one(answer):
    return 1.0
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_riddles.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield "own_riddles"
    sys.modules.pop("own_riddles", None)


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind != "reasoning"])
def test_a_built_in_task_says_what_its_section_is_called(kind):
    task = find_task(kind)
    assert isinstance(task, Task)
    assert task.section.model_fields["kind"].annotation.__args__ == (kind,)


def test_what_a_users_grader_does_costs_that_answer_alone(own):
    answers = ["7", "8", "half", "text", "nan", "exit", "interrupt", "print", "fork", "sleep", "7"]
    with Evaluator(find_task(f"{own}:RIDDLES").grade, workers=2, timeout_s=2.0) as evaluator:
        verdicts = evaluator.score([PROBLEM] * len(answers), answers, budget=len(answers))
        assert evaluator.calls == len(answers)
    names = [verdict.verdict for verdict in verdicts]
    assert names == ["correct", "wrong", "partial", *["error"] * 4, "wrong", "wrong", "timeout", "correct"]
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.5, *[0.0] * 7, 1.0]
    assert verdicts[3].detail == "TypeError: the grader returned '1.0'"


def test_reward_functions_of_trl_are_tasks(own):
    assert find_task(f"{own}:reward").grade(PROBLEM, "an odd one") == 1.0
    assert find_task(f"{own}:reward").grade(PROBLEM, "even") == 0.0
    assert find_task(f"./{own}.py:narrow").grade(PROBLEM, "7") == 1.0
    with Evaluator(find_task(f"{own}:narrow").grade, workers=1) as evaluator:  # it is sent to another process
        assert evaluator.score([PROBLEM], ["7"], budget=1) == [Verdict(1.0, "correct", None)]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("NUMBER", "task.kind: expected a Task, or a function (problem, answer) that grades, at own_riddles:NUMBER"),
        ("one", "task.kind: expected a function of (problem, answer), or of completions, not of (answer), at own_"),
    ],
)
def test_what_cannot_grade_is_refused(own, name, complaint):
    with pytest.raises(ConfigError) as caught:
        find_task(f"{own}:{name}")
    assert str(caught.value).startswith(complaint)


def test_a_grader_that_cannot_be_sent_by_name_is_refused(own):
    with pytest.raises(UserError, match="expected a function at the top level of a module, got <function"):
        Evaluator(find_task(f"{own}:LAMBDA").grade, workers=1)


def test_a_task_that_runs_programs_is_bound_to_its_limits(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"question": "Q", "tests": ["assert f(0)"]}\n')

    def read_limits(task: Task) -> tuple[float, ...]:
        check = read_check(task.load(str(path))[0].answer)
        return check.timeout_s, check.wall_s, check.memory_mb, check.output_mb, task.timeout_s

    assert read_limits(open_task("code", None, is_contained=False)) == (15.0, 120.0, 1024, 32, 180.0)
    # A call that may take less than the wall clock of a program ends the program sooner.
    assert read_limits(open_task("code", None, 60.0, is_contained=False)) == (15.0, 58.0, 1024, 32, 60.0)
    given = {"kind": "code", "path": "-", "heldout_path": "-", "timeout": 1.0, "wall": 9.0, "memory": 64, "output": 2}
    task = open_task("code", CodeTask(**given), is_contained=False)
    assert read_limits(task) == (1.0, 9.0, 64, 2, 69.0) and task.is_contained is False
    with pytest.raises(ConfigError, match="^grade_timeout: expected grade_timeout to be 2 seconds or more above"):
        open_task("code", None, grade_timeout=16.0)
    with pytest.raises(ConfigError, match="^task.timeout: expected grade_timeout to be 2 seconds or more above"):
        open_task("code", CodeTask(**given), grade_timeout=2.0)
    with pytest.raises(ConfigError, match=r"^task.wall: expected at least task.timeout \(1\), got 0.5"):
        open_task("code", CodeTask(**given | {"wall": 0.5}))


def test_a_call_may_take_what_the_config_says_or_else_the_task():
    assert open_task("math", None).timeout_s == 10.0
    assert open_task("math", None, grade_timeout=3.0).timeout_s == 3.0


@pytest.mark.parametrize(
    "given", ["1.0", None, 1.5, -0.1, float("inf"), Verdict(1.0, "perfect", None), Verdict(1.0, "correct", 7)]
)
def test_what_is_no_verdict_is_refused(given):
    with pytest.raises(TypeError, match="^the grader returned "):
        make_verdict(given)


def test_true_and_numbers_are_verdicts():
    assert make_verdict(True) == Verdict(1.0, "correct", None)
    assert make_verdict(0) == Verdict(0.0, "wrong", None)
    assert make_verdict(0.25) == Verdict(0.25, "partial", None)


def test_rows_of_any_set_with_a_question(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "Who?", "answer": ["Ada"], "level": 2}\n{"id": 7, "question": "When?"}\n')
    load = Task(lambda problem, answer: 1.0).load
    assert load(str(path)) == [
        Problem(0, "0", "Who?", '["Ada"]', {"level": 2}),
        Problem(1, "7", "When?", ""),
    ]
    path.write_text('{"question": "Who?", "answer": NaN}\n')
    with pytest.raises(TaskError, match="line 1: the line is not JSON .NaN is no finite number"):
        load(str(path))


def test_sets_may_be_gzipped(tmp_path):
    path = tmp_path / "set.jsonl.gz"
    packed = gzip.compress(b'{"question": "Who?"}\n')
    path.write_bytes(packed)
    assert [problem.question for problem in Task(lambda problem, answer: 1.0).load(str(path))] == ["Who?"]
    path.write_bytes(packed[:-9])
    with pytest.raises(TaskError, match="set.jsonl.gz: this is no whole gzip file"):
        read_rows(str(path))
