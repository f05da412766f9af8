"""The command that grades: the verdicts of training, one for each answer in its order, or one sentence."""

from __future__ import annotations

import gzip
import json

import pytest

from c3jax import cli
from c3jax.commands.grade import count_verdicts, grade_files
from c3jax.rewards import Evaluator
from c3jax.tasks.task import find_task
from c3jax.types import UserError, Verdict

PROBLEMS = [
    {"id": "half", "question": "Q", "answer": r"\frac{1}{2}"},
    {"id": 7, "problem": "Q", "solution": r"so \boxed{5}"},
    {"id": "x", "question": "Q", "answer": "#### 1,018"},
]
ANSWERS = [
    {"id": "x", "answer": r"\boxed{1018}"},
    {"id": "half", "answer": r"it is \boxed{0.5} é"},
    {"id": 7, "answer": ""},
]


@pytest.fixture
def files(tmp_path):
    def write(problems, answers) -> list[str]:
        for name, rows in (("problems.jsonl", problems), ("answers.jsonl", answers)):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [str(tmp_path / name) for name in ("problems.jsonl", "answers.jsonl", "verdicts.jsonl")]

    return write


def test_verdicts_are_written_in_the_order_of_the_answers(files, capsys):
    problems, answers, out = files(PROBLEMS, ANSWERS)
    assert cli.main(["grade", "math", problems, answers, "--out", out]) == 0
    with open(out, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert rows == [
        {"id": "x", "return": 1.0, "verdict": "correct", "detail": ""},
        {"id": "half", "return": 1.0, "verdict": "correct", "detail": ""},
        {"id": "7", "return": 0.0, "verdict": "unparsable", "detail": r"no \boxed{...} in the message"},
    ]
    assert capsys.readouterr().out == (
        "3 answers, mean return 0.6667: 66.7% correct, 33.3% unparsable, the second rule disagrees on 0.0%\n"
    )


def test_it_is_what_training_is_paid(files):
    problems, answers, out = files(PROBLEMS, ANSWERS)
    grade_files("math", problems, answers, out)
    asked = [find_task("math").load(problems)[place] for place in (2, 0, 1)]
    with Evaluator(find_task("math").grade, workers=1) as evaluator:
        verdicts = evaluator.score(asked, [row["answer"] for row in ANSWERS], budget=3)
    with open(out, encoding="utf-8") as file:
        assert [json.loads(line)["return"] for line in file] == [verdict.score for verdict in verdicts]


def test_tasks_of_numbers_are_graded_too(files):
    problems, answers, out = files([{"question": "Q", "answer": 18}], [{"id": "0", "answer": "so it is 18"}])
    assert grade_files("numeric", problems, answers, out) == "1 answers, mean return 1.0000: 100.0% correct"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (ANSWERS[:2], "there is no answer for the problem '7'"),
        (ANSWERS[:1], "there is no answer for the problem 'half' nor for 1 more"),
        ([*ANSWERS, {"id": "y", "answer": ""}], "line 4: expected the id of a problem in"),
        ([*ANSWERS, ANSWERS[0]], "line 4: the id 'x' is already that of line 1"),
        ([*ANSWERS[:2], {"id": 7}], "line 3: expected text as answer, got None"),
        ([*ANSWERS[:2], {"id": 7, "answer": 5}], "line 3: expected text as answer, got 5"),
        ([{"answer": "5"}], "line 1: the field 'id' is missing"),
        ([[1]], "expected a JSON object a line, got one JSON text"),
        ([], "the set is empty"),
    ],
)
def test_answers_that_are_not_one_for_each_problem_are_refused(files, capsys, tmp_path, answers, reason):
    words = files(PROBLEMS, answers)
    assert cli.main(["grade", "math", *words[:2], "--out", words[2]]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.startswith(f"c3jax: {words[1]}") and len(said.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "problems.jsonl"]


def test_other_requests_that_cannot_be_met_are_refused(files, tmp_path):
    problems, answers, out = files(PROBLEMS, ANSWERS)
    with pytest.raises(UserError, match="TASK: expected one of .*math.*, got 'maths'"):
        grade_files("maths", problems, answers, out)
    with pytest.raises(UserError, match="--out: expected a file in a folder that exists, got"):
        grade_files("math", problems, answers, str(tmp_path / "nowhere" / "verdicts.jsonl"))
    with pytest.raises(UserError, match="No such file"):
        grade_files("math", str(tmp_path / "none.jsonl"), answers, out)
    (tmp_path / "folder").mkdir()
    for place in (str(tmp_path / "folder"), ""):
        with pytest.raises(UserError, match="--out: expected a file in a folder that exists, got"):
            grade_files("math", problems, answers, place)
    for place in (problems, str(tmp_path / "folder" / ".." / "answers.jsonl")):
        with pytest.raises(UserError, match="--out: expected another file than those that are read, got"):
            grade_files("math", problems, answers, place)


PEEK = "import os\ndef f(x): return os.path.exists('/proc/self')"


def test_programs_meet_the_machine_only_where_that_is_typed(files, capsys):
    """A sandbox has no /proc. There are no walls to try without one, so the second call also runs where none can be."""
    problem = {"id": "a", "question": "Q", "tests": ["assert f(0)"], "entry_point": "f"}
    problems, answers, out = files([problem], [{"id": "a", "answer": f"```python\n{PEEK}\n```"}])
    words = ["grade", "code", problems, answers, "--out", out]
    assert cli.main(words) == 0 and cli.main([*words, "--unsafe-no-sandbox"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "100.0% wrong" in shown[0] and "100.0% correct" in shown[1]
    problems, answers, out = files(PROBLEMS, ANSWERS)
    with pytest.raises(UserError, match="--unsafe-no-sandbox: expected a task that runs programs, got math"):
        grade_files("math", problems, answers, out, is_contained=False)


BUSY = """import time
def f(x):
    while time.process_time() < 1.5:
        pass
    return x == 0"""


def test_limits_are_set_as_in_a_config(files, capsys):
    problem = {"id": "a", "question": "Q", "tests": ["assert f(0)"], "entry_point": "f"}
    problems, answers, out = files([problem], [{"id": "a", "answer": f"```python\n{BUSY}\n```"}])
    words = ["grade", "code", problems, answers, "--out", out]
    assert cli.main(words) == 0 and cli.main([*words, "--task.timeout=0.5", "--task.wall", "60"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "100.0% correct" in shown[0] and "100.0% timeout" in shown[1]


def test_fields_of_other_names_are_given_as_in_a_config(files):
    problems, answers, out = files(
        [{"id": "a", "story": "3 and 4 apples.", "ask": "How many?", "gold": 7}], [{"id": "a", "answer": r"\boxed{7}"}]
    )
    words = ["grade", "math", problems, answers, "--out", out, "--task.fields.answer", "gold"]
    assert cli.main([*words, "--task.fields.question", "[story, ask]"]) == 0
    assert cli.main([*words, "--task.fields.question", "tale"]) == 2


@pytest.mark.parametrize(
    ("kind", "limits", "complaint"),
    [
        ("math", {"task.timeout": 3.0}, "^task.timeout: expected one of grade_timeout, task.fields to grade by"),
        (
            "code",
            {"task.path": "x"},
            "^task.path: expected one of grade_timeout, task.fields, task.reward, task.timeout",
        ),
        ("code", {"seed": 1}, "^seed: expected one of grade_timeout, task.fields"),
        ("code", {"task.timeout": "no"}, '^task.timeout: expected a number, got "no"'),
        ("code", {"task.memory": 3}, "^task.memory: expected greater than or equal to 64, got 3"),
        ("math", {"grade_timeout": 0}, "^grade_timeout: expected greater than 0, got 0"),
    ],
)
def test_limits_that_cannot_be_are_refused(files, kind, limits, complaint):
    with pytest.raises(UserError, match=complaint):
        grade_files(kind, *files(PROBLEMS, ANSWERS), limits=limits)


def test_what_is_published_gzipped_is_graded_so(files, tmp_path):
    problems, answers, out = files(PROBLEMS, ANSWERS)
    (tmp_path / "problems.jsonl.gz").write_bytes(gzip.compress((tmp_path / "problems.jsonl").read_bytes()))
    assert grade_files("math", f"{problems}.gz", answers, out) == grade_files("math", problems, answers, out)


def test_the_summary_names_every_kind_of_verdict_there_is():
    names = ("correct", "partial", "wrong", "unparsable", "timeout", "error", "unsafe", "wrong")
    verdicts = [Verdict({"correct": 1.0, "partial": 0.5}.get(name, 0.0), name, None) for name in names]
    assert count_verdicts(verdicts) == (
        "8 answers, mean return 0.1875: 12.5% correct, 12.5% partial, 25.0% wrong, 12.5% unparsable, 12.5% timeout,"
        " 12.5% error, 12.5% unsafe"
    )
