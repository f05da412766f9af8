"""Fields of data files under other names, and what of a problem may not be left out in silence."""

import json
import warnings

import pytest

from c3jax.config.run import ConfigError
from c3jax.setup.problems import load_sources
from c3jax.tasks.jsonl import TaskError
from c3jax.tasks.sections import FileTask, MixedSet
from c3jax.tasks.task import Task, find_task, load_file

BODY, ASKED = "Ann has 3 red apples and 4 green ones.", "How many has she?"
WHOLE = f"{BODY}\n{ASKED}"
SVAMP = {
    "ID": "chal-1",
    "Body": BODY,
    "Question": ASKED,
    "Equation": "( 3.0 + 4.0 )",
    "Answer": 7.0,
    "Type": "Addition",
}
OWN = {"id": 5, "story": BODY, "asked": ASKED, "gold": "7"}
FIELDS = {"question": ("story", "asked"), "answer": "gold"}


def write(folder, *rows, name="set.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.mark.parametrize("kind", ["math", "numeric"])
def test_a_body_stands_before_its_question(tmp_path, kind):
    (problem,) = load_file(find_task(kind), write(tmp_path, SVAMP))
    assert (problem.id, problem.question, problem.answer) == ("chal-1", WHOLE, "7.0")


def test_an_answer_of_asdiv_is_a_number_with_its_unit(tmp_path):
    row = {"body": BODY, "question": ASKED, "solution_type": "Addition", "answer": "7 (apples)", "formula": "3+4=7"}
    task = find_task("math")
    (problem,) = load_file(task, write(tmp_path, row))
    answers = ("7", "7 apples", "7 (apples)", "8", "8 (apples)", "7 oranges")
    assert [task.grade(problem, rf"\boxed{{{answer}}}").score for answer in answers] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("kind", ["math", "numeric"])
def test_fields_put_a_files_own_under_the_names_that_a_task_reads(tmp_path, kind):
    (problem,) = load_file(find_task(kind), write(tmp_path, OWN), FIELDS)
    assert (problem.id, problem.question, problem.answer) == ("5", WHOLE, "7")
    (problem,) = load_file(
        find_task(kind),
        write(tmp_path, OWN | {"options": ["6", "7"]}),
        {"question": ("asked", "options"), "answer": "gold"},
    )
    assert problem.question == f"{ASKED}\n6\n7"
    # Whoever says what a question is made of may leave a part out, and a field of the same name in capitals.
    row = OWN | {"Question": "another", "context": BODY}
    (problem,) = load_file(find_task(kind), write(tmp_path, row), {"question": "asked", "answer": "gold"})
    assert problem.question == ASKED


def test_fields_hold_for_programs_and_for_a_users_own_task(tmp_path):
    row = {"name": "a", "description": "Write `f`.", "asserts": ["assert f(1) == 2"]}
    names = {"id": "name", "question": "description", "tests": "asserts"}
    (problem,) = load_file(find_task("code"), write(tmp_path, row), names)
    assert (problem.id, problem.question) == ("a", "Write `f`.")
    (problem,) = load_file(Task(lambda problem, text: 1.0), write(tmp_path, OWN | {"level": 3}), FIELDS)
    assert (problem.question, problem.answer, problem.columns) == (WHOLE, "7", {"level": 3})


def test_each_set_of_a_mixture_may_have_fields_of_its_own(tmp_path):
    task = find_task("math")
    parts = ({"path": write(tmp_path, OWN, name="own.jsonl")}, {"path": write(tmp_path, SVAMP, name="svamp.jsonl")})
    section = FileTask(
        kind="math",
        path=tuple(MixedSet(**part, fields=fields) for part, fields in zip(parts, (None, {}), strict=True)),
        heldout_path=parts[0]["path"],
        fields=FIELDS,
    )
    sources = load_sources(task, section, seed=0)
    assert [problem.question for problems in (*sources.sets, sources.heldout) for problem in problems] == [WHOLE] * 3


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (
            {"question": ("tale", "asked")},
            "line 1: expected the field 'tale', which is to be in the question, got 'id'",
        ),
        ({"question": ("story", "id")}, "line 1: the field 'id' must be text, got int"),
        ({"qestion": "asked"}, "expected fields for id, question, answer, got some for 'qestion'"),
        ({}, r"line 1: the field 'question' is missing \(task.fields can make it of 'id', 'story', 'asked', 'gold'\)"),
    ],
)
def test_fields_that_cannot_be_are_refused(tmp_path, fields, complaint):
    with pytest.raises(TaskError, match=complaint):
        load_file(find_task("math"), write(tmp_path, OWN), fields)


def test_a_task_that_reads_its_files_by_no_other_names_says_so(tmp_path):
    with pytest.raises(ConfigError, match="expected none for a task whose load takes no fields"):
        load_file(Task(lambda problem, text: 1.0, load=lambda path: []), write(tmp_path, OWN), FIELDS)


PLAIN = {"question": ASKED, "answer": "7"}


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("math", PLAIN | {"Context": BODY}),
        ("numeric", PLAIN | {"passage": BODY}),
        ("math", PLAIN | {"problem": BODY}),
        ("math", PLAIN | {"options": ["A) 6", "B) 7"]}),
        ("code", {"question": ASKED, "story": BODY, "tests": ["assert f(1) == 2"]}),
    ],
)
def test_a_part_of_a_problem_beside_its_question_is_refused(tmp_path, kind, row):
    with pytest.raises(TaskError, match="line 1: expected a whole problem in 'question', got a part of it in '"):
        load_file(find_task(kind), write(tmp_path, row))


def test_other_text_that_nothing_reads_is_said_once(tmp_path):
    path = write(tmp_path, *[PLAIN | {"remarks": f"{number}: {BODY}"} for number in range(3)])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        load_file(find_task("math"), path)
    assert [str(each.message) for each in said] == [
        f"{path}: the field 'remarks' is not read (task.fields can make it a part of the question)"
    ]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("math", {"problem": WHOLE, "question": WHOLE, "solution": WHOLE, "answer": "7", "url": "https://" + "x" * 50}),
        ("math", {"problem": WHOLE, "level": "Level 1", "type": "Algebra", "solution": rf"{WHOLE} \boxed{{7}}"}),
        ("math", {"question": WHOLE, "body": BODY, "text": f"Question: {WHOLE} Answer: 7", "answer": "7", "idx": 0}),
        ("math", {"question": "Is it (A) 6 or (B) 7?", "choices": {"A": "6", "B": "7"}, "answer": "B", "context": ""}),
        ("numeric", {"question": WHOLE, "answer": f"{WHOLE}\n#### 7", "source": WHOLE}),
    ],
)
def test_what_else_sets_have_is_no_fault(tmp_path, kind, row):
    path = write(tmp_path, row)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (problem,) = load_file(find_task(kind), path)
    assert problem.question == row.get("question", row.get("problem"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"question": "Q", "answer": "4", "answer": "5"}', "line 1: .*the field 'answer' is given twice"),
        ('[\n {"question": "Q", "answer": "4"}\n]', "expected a JSON object a line, got one JSON text"),
        ('{\n "question": "Q",\n "answer": "4"\n}', "expected a JSON object a line, got one JSON text"),
        ('{"question": "Q", "answer": ' + "9" * 5000 + "}", "line 1: .*an integer of 5000 digits"),
        ('{"question": "Q", "answer": "4"}\n\n{"question": "Q", "answer": "4"}', "line 2: .*it is blank"),
        ('{"question": "Q", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: .*too many levels"),
        ('{"question": "Q", "answer": "4"}', "expected UTF-8, got UTF-16"),
    ],
    ids=["twice", "list", "pretty", "digits", "blank", "deep", "wide"],
)
def test_a_file_that_is_no_jsonl_is_refused_for_its_reason(tmp_path, content, complaint):
    encoding = "utf-16" if "UTF-16" in complaint else "utf-8"
    (tmp_path / "set.jsonl").write_text(content, encoding=encoding)
    with pytest.raises(TaskError, match=complaint):
        load_file(find_task("math"), str(tmp_path / "set.jsonl"))
