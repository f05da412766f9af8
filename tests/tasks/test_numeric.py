r"""Numbers in text, sets on disk, and messages that try to break the reader."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest

from c3jax.tasks.numeric import grade, load_problems, parse_number, read_answer
from c3jax.tasks.task import TaskError, find_task
from c3jax.types import Problem, Verdict

EIGHTEEN = Problem(0, "0", "how many ?", "18")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("18", 18),
        (" 1000 ", 1000),
        ("1,000", 1000),
        ("1000.0", 1000),
        ("12,345,678.50", Fraction(24691357, 2)),
        ("-3", -3),
        ("+3", 3),
        ("\u22123", -3),
        ("$18", 18),
        ("€ 0.10", Fraction(1, 10)),
        ("-$5", -5),
        ("$-5", -5),
        ("72%", 72),
        ("12.5 %", Fraction(25, 2)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("6/8", Fraction(3, 4)),
        ("1,000/3", Fraction(1000, 3)),
        ("2 1/2", Fraction(5, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        ("1e3", 1000),
        ("1.5E-3", Fraction(3, 2000)),
        ("9" * 400, 10**400 - 1),
    ],
)
def test_a_number_is_read_exactly(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-", "$", ".", "five", "18 eggs", "1 2", "(5)", "--5", "3:00"),
        *("1,00", "10,00", "3,5", "1,0000", ",100", "1,000,", "1,,000", "0,123", "1 000"),  # no thousands
        *("1.2.3", "5.", "18.", "1/0", "1/2/3", "1.5/2", "1/-2"),
        *("007", "00", "00.5"),
        *("1e999999999", "1e100", "1e", "9**9", "0x10", "1_000", "inf", "nan"),
        *("٣", "１８", "1٣", "10²", "½", "2½", "०"),  # int() takes some of these
        "9" * 401,
    ],
)
def test_what_is_not_one_number_is_none(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the answer is 72.", "72"),
        ("So she makes $18, every day!", "18"),
        ("3 apples and 4 pears make 7", "7"),
        ("it costs $1,234.50.", "1,234.50"),
        ("**72**", "72"),
        ("72%.", "72"),
        ("x=-5", "-5"),
        ("it fell to \u2212$5", "-5"),
        ("10-15", "15"),
        ("(8)-3", "3"),
        ("a well-2", "2"),
        ("答案是-18。", "-18"),
        ("half of it is .5", ".5"),
        ("so it is...18", "18"),
        ("about 2 1/2 cups", "2 1/2"),
        ("it holds 980cm³", "980"),
        ("1e3", "1e3"),
        ("5, 6", "6"),
        # What follows the last "####" comes before any later number.
        ("7 8\n#### 18", "18"),
        ("#### 3\n#### $18 a day for 5 days", "18"),
        ("#### 3 * 6 = 18.", "18"),
        ("####\n18\n(from 5 and 6)", "18"),
        ("#### Conclusion\nWith 3 ducks it is 18.", "18"),
        # The last complete box comes before everything.
        (r"\boxed{18} and 5 #### 7", "18"),
        (r"\boxed{5} then \boxed{18}", "18"),
        (r"\boxed{x = 18}", "18"),
        (r"\boxed{18 \text{ eggs in } 2 \text{ days}}", "18"),
        (r"\boxed {18}", "18"),
        (r"\boxed{\text{it is {18}}} 5", "18"),
        (r"\boxed{\boxed{18}} 5", "18"),
        (r"\boxed{18} \boxed{19", "18"),
        (r"\boxed{18", "18"),
        (r"\boxed{\{18\}} 5", "18"),
        (r"\boxed{1{,}000} 5", "1,000"),
        (r"\boxed{1\,000}", "1,000"),
        (r"\boxed{\$18}", "18"),
        (r"\boxed{18\%}", "18"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\boxed{-\dfrac{3}{4}}", "-3/4"),
        (r"\boxed{2\frac{1}{2}}", "2 1/2"),
    ],
)
def test_the_final_number_is_read_out_of_a_message(text, answer):
    assert read_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        *("", "no number", "five", r"18 \boxed{}", r"18 \boxed{none}", "18 ####", "cm³"),
        # Malformed at the end: no part of it is taken instead, nor an earlier number.
        *("18 or 1.2.3", "18 or 10,00", "it costs 1 000", "on 12/25/2023", "1e999999999", "18 or 3/0", "at 2:00"),
        *("18 or 1٣", "18 or ٣", "18 or 10²", "18 or 2½", "18 or ½", "18 or １８"),
    ],
)
def test_a_message_without_a_final_number_has_no_answer(text):
    assert read_answer(text) is None


def test_grade_tells_correct_wrong_and_unparsable_apart():
    assert find_task("numeric").grade is grade
    assert grade(EIGHTEEN, "so #### 18.0") == Verdict(1.0, "correct", "18.0")
    assert grade(EIGHTEEN._replace(answer="1,800"), "$1800") == Verdict(1.0, "correct", "1800")
    assert grade(EIGHTEEN, "19") == Verdict(0.0, "wrong", "19")
    assert grade(EIGHTEEN._replace(answer="72"), "72.4") == Verdict(0.0, "wrong", "72.4")
    assert grade(EIGHTEEN._replace(answer="72"), "72.0000000000000001").verdict == "wrong"
    assert grade(EIGHTEEN, "-18").verdict == "wrong"
    none = grade(EIGHTEEN, "eighteen")
    assert (none.score, none.verdict, none.answer) == (0.0, "unparsable", None)
    with pytest.raises(TaskError, match="problem 0: the answer 'many' is not a number"):
        grade(EIGHTEEN._replace(answer="many"), "18")


@pytest.mark.parametrize(
    "unit",
    [
        *("1", ",", "{", "}", ".", "-", "#", "1,", "1 ", "1/", "1e", "1.", "$ ", " ", "=", "\\", "٣"),
        *("\\boxed{", "\\boxed ", "\\boxed{1}", "#### 1", "\\frac{", "\\frac{1}{", "2\\frac{1}{2}", "{,}", "\\,"),
    ],
)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("\\boxed{", "}"), ("#### ", "")])
def test_a_message_of_a_megabyte_is_graded_at_once(unit, before, after):
    text = before + unit * (1_000_000 // len(unit)) + after
    began = time.perf_counter()
    verdict = grade(EIGHTEEN, text)
    # Hundredths of a second; anything quadratic in the length takes minutes.
    assert time.perf_counter() - began < 0.7
    assert verdict.score == 0.0


def test_nested_boxes_by_the_thousand_and_an_answer_at_the_end_of_a_long_message():
    depth = 10_000
    assert read_answer("\\boxed{" * depth + "18" + "}" * depth) == "18"
    assert read_answer("5 " * 500_000 + "so it is 18") == "18"
    # The number is cut where the reader stops looking back: no part of it may be taken for a number.
    assert read_answer("123456" + " " * 99_998) is None


def write(tmp_path, *lines) -> str:
    path = tmp_path / "set.jsonl"
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(encoded))
    return str(path)


ROW = {"question": "Q", "answer": "18"}


def test_load_reads_both_formats(tmp_path):
    path = write(
        tmp_path,
        {"question": "Janet\u2019s ducks \u2028?", "answer": "She has <<16-3=13>>13.\n#### 1,018"},
        '{"question": "one\u2028line", "answer": "-3"}'.encode(),
        {"id": "b", "question": "Q", "answer": "$18"},
        {"id": 7, "question": "Q", "answer": 18, "other": [1]},
        {"question": "Q", "answer": 0.5},
        b'{"question": "Q", "answer": "3/4"}\r',
        *(b"", b"  ", b""),
    )
    problems = load_problems(path)
    assert problems == [
        Problem(0, "0", "Janet\u2019s ducks \u2028?", "1,018"),
        Problem(1, "1", "one\u2028line", "-3"),
        Problem(2, "b", "Q", "$18"),
        Problem(3, "7", "Q", "18"),
        Problem(4, "4", "Q", "0.5"),
        Problem(5, "5", "Q", "3/4"),
    ]
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(b"\xef\xbb\xbf" + content)
    assert load_problems(path) == problems


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"question": "Q", "answer": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"question": "\xff", "answer": "1"}', "byte 15 of the line is not UTF-8"),
        (b'{"question": "\\ud800", "answer": "1"}', "'question' holds half a surrogate pair"),
        (b"[1]", "expected a JSON object, got list"),
        ({"answer": "18"}, "'question' is missing"),
        ({"question": "Q"}, "'answer' is missing"),
        ({"question": " ", "answer": "18"}, "'question' is empty"),
        ({"question": "Q", "answer": ""}, "'answer' is empty"),
        ({"question": 5, "answer": "18"}, "'question' must be text, got int"),
        ({"question": "Q", "answer": ["18"]}, "'answer' must be text, got list"),
        ({"question": "Q", "answer": True}, "'answer' must be text, got bool"),
        ({"question": "Q", "answer": "18", "id": None}, "'id' is missing"),
        ({"question": "Q", "answer": "18", "id": ""}, "'id' is empty"),
        ({"question": "Q", "answer": "18", "id": 1.5}, "'id' must be text, got float"),
        ({"question": "Q", "answer": "eighteen"}, "the answer must be a number"),
        ({"question": "Q", "answer": "18 eggs"}, "the answer must be a number"),
        ({"question": "Q", "answer": "18 ####"}, "the answer must be a number"),
        (b'{"question": "Q", "answer": NaN}', "the line is not JSON (NaN is no finite number)"),
        (b'{"question": "Q", "answer": 1e400}', "the line is not JSON (1e400 is no finite number)"),
    ],
)
def test_a_faulty_line_is_named_with_its_reason(tmp_path, line, reason):
    path = write(tmp_path, ROW, line, ROW)
    with pytest.raises(TaskError) as caught:
        load_problems(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in str(caught.value)


def test_a_faulty_file_is_named_with_its_reason(tmp_path):
    with pytest.raises(TaskError, match=r"nowhere\.jsonl: .*No such file"):
        load_problems(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(TaskError, match="Is a directory"):
        load_problems(str(tmp_path))
    with pytest.raises(TaskError, match="the set is empty"):
        load_problems(write(tmp_path, b"\n \n"))
    # Line 3 has no id, so its row number 2 is its id, which line 2 has taken.
    with pytest.raises(TaskError, match=r"set\.jsonl, line 3: the id '2' is already that of line 2"):
        load_problems(write(tmp_path, ROW, ROW | {"id": "2"}, ROW))
    assert issubclass(TaskError, ValueError)
