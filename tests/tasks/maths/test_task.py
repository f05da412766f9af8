r"""LaTeX answers: pairs that are equal and that are not, hostile messages, sets on disk, and the limits of it all."""

from __future__ import annotations

import builtins
import json
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from c3jax.rewards import Evaluator, compute_disagreement
from c3jax.tasks.maths import latex, normal_form
from c3jax.tasks.maths.task import DEEPEST_ANSWER, LONGEST_ANSWER, grade, load_problems, read_answer
from c3jax.tasks.task import TaskError, find_task
from c3jax.types import Problem, Verdict

HERE = Path(__file__).parent
# verdict, the problem's answer, the answer given, the question where it matters
PAIRS = [line.split("\t") for line in (HERE / "pairs.tsv").read_text().splitlines()[1:]]
SEVENTY_TWO = Problem(0, "0", "how many ?", "72")


def box(answer: str) -> str:
    return rf"So, after all, it is $\boxed{{{answer}}}$."


@pytest.mark.parametrize(
    ("expected", "answer", "question"),
    [row[1:] for row in PAIRS if row[0] == "equal"],
    ids=lambda text: text[:30] or "-",
)
def test_equal_answers_are_correct(expected, answer, question):
    verdict = grade(Problem(0, "0", question or "how many ?", expected), box(answer))
    assert (verdict.score, verdict.verdict) == (1.0, "correct")


@pytest.mark.parametrize(
    ("expected", "answer", "question"),
    [row[1:] for row in PAIRS if row[0] == "different"],
    ids=lambda text: text[:30] or "-",
)
def test_other_and_hostile_answers_are_not(expected, answer, question, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments):
        raise AssertionError(f"evaluates {arguments!r:.200}")

    grade(SEVENTY_TWO, box(r"\sqrt{5184}"))  # what is loaded with the first formula may use eval
    monkeypatch.setattr(builtins, "eval", refuse)
    monkeypatch.setattr(builtins, "exec", refuse)
    began = time.perf_counter()
    verdict = grade(Problem(0, "0", question or "how many ?", expected), box(answer))
    assert verdict.score == 0.0 and verdict.verdict in ("wrong", "unparsable")
    assert time.perf_counter() - began < 5.0  # milliseconds; what hangs, hangs for years
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_as_large_as_it_is_meant_to_be():
    assert {row[0] for row in PAIRS} == {"equal", "different"}
    assert len({tuple(row) for row in PAIRS}) == len(PAIRS) >= 300


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5} then \boxed{18}", "18"),
        (r"\boxed{\frac{1}{2}} and 5", r"\frac{1}{2}"),
        (r"\boxed {18}", "18"),
        (r"\fbox{18}", "18"),
        (r"\boxed{\boxed{18}}", "18"),
        (r"\boxed{18} \boxed{19", "18"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed 9", "9"),  # as TeX reads it, which would put the 7 of \boxed 72 into the box
        # The last box alone is an answer: no other phrase, and no number outside.
        *((text, None) for text in ("", "72", "the answer is 72", "#### 72", r"\boxed{72", r"\boxed{}", r"\boxed{ }")),
        *((text, None) for text in (r"\boxed 72", "boxed{72}", r"\boxed72", r"\text{72}")),
    ],
)
def test_the_last_complete_box_is_the_answer(text, answer):
    assert read_answer(text) == find_task("math").read_answer(text) == answer


def test_a_verdict_says_what_was_read_and_what_the_second_rule_says():
    assert find_task("math").grade is grade
    assert grade(SEVENTY_TWO, box("72")) == Verdict(1.0, "correct", "72", second=True)
    assert grade(SEVENTY_TWO, box("73")) == Verdict(0.0, "wrong", "73", second=False)
    # The normal form knows no arithmetic, and takes off what it cannot read.
    assert grade(SEVENTY_TWO, box(r"\frac{144}{2}")) == Verdict(1.0, "correct", r"\frac{144}{2}", second=False)
    assert grade(SEVENTY_TWO, box(r"72\%")) == Verdict(0.0, "wrong", r"72\%", second=True)
    none = grade(SEVENTY_TWO, "72")
    assert none == Verdict(0.0, "unparsable", None, r"no \boxed{...} in the message", second=False)


def test_disagreement_counts_verdicts_that_the_second_rule_would_turn():
    def verdict(name, second):
        return Verdict(float(name == "correct"), name, "", second=second)

    agreeing = [verdict("correct", True), verdict("wrong", False), verdict("unparsable", False), verdict("error", None)]
    assert compute_disagreement(agreeing) == 0.0
    assert compute_disagreement([*agreeing, verdict("correct", False), verdict("wrong", True)]) == 2 / 6


@pytest.mark.parametrize(
    ("left", "right", "is_same"),
    [
        (r"\dfrac{1}{2}", r"\frac12", True),
        ("0.5", r"\frac{1}{2}", True),
        ("1/2", r"\frac{1}{2}", True),
        (r"5\text{ cm}^2", "5", True),
        (r"\left( 3, 4 \right)", "(3,4)", True),
        (r"x=5", "5", True),
        (r"1{,}000", "1000", True),
        ("3.50", "3.5", True),
        (r"\sqrt3", r"\sqrt{3}", True),
        ("1,2", "2,1", False),
        (r"\frac{2}{4}", r"\frac{1}{2}", False),
        ("5", "5.1", False),
    ],
)
def test_the_normal_form(left, right, is_same):
    assert normal_form.is_same(left, right) is is_same


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_equal_exactly_when_their_fractions_are(seed):
    rng = random.Random(seed)

    def spell(number: Fraction) -> str:
        sign = "-" if number < 0 else ""
        over, under = abs(number.numerator), number.denominator
        times = rng.randrange(1, 5)
        fraction = rf"{sign}\frac{{{over * times}}}{{{under * times}}}"
        whole, rest = divmod(over, under)
        mixed = rf"{sign}{whole}\frac{{{rest}}}{{{under}}}" if whole and rest else fraction
        places = len(str(under)) if set(str(under)) <= {"1", "0"} else None
        decimal = fraction if places is None else f"{sign}{over // under}.{over % under * 10 // under:01d}"
        return rng.choice((fraction, mixed, decimal if under == 10 else fraction, f"{sign}{over}/{under}"))

    for _ in range(200):
        left = Fraction(rng.randrange(-40, 40), rng.choice((1, 2, 3, 7, 10)))
        right = left if rng.random() < 0.5 else Fraction(rng.randrange(-40, 40), rng.choice((1, 2, 3, 7, 10)))
        verdict = grade(Problem(0, "0", "how many ?", spell(left)), box(spell(right)))
        assert (verdict.verdict == "correct") is (left == right)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"12.\overline{09}", Fraction(133, 11)),
        (r"-2\frac{1}{2}", Fraction(-5, 2)),
        (r"6.02 \times 10^{-2}", Fraction(301, 5000)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("5.", Fraction(5)),
        (r"0.\overline{3}\%", Fraction(1, 3)),
        ("10^{-7}", Fraction(1, 10**7)),
        ("-10^2", Fraction(-100)),
        ("1e-07", Fraction(1, 10**7)),
        ("-2 1/2", Fraction(-5, 2)),
        # A mixed number has a proper fraction; what has another one is a product.
        *((text, None) for text in (r"2\frac{5}{3}", "2 5/3", r"2\frac{-1}{3}", "0,123", "1 000")),
        *((text, None) for text in ("1/0", r"\frac{1}{0}", "1,00", "--5", "5 5", "1e999", "٣", "", ".", "9" * 401)),
    ],
)
def test_numbers_in_latex_are_read_exactly(text, value):
    number = latex.parse_number(text)
    assert (number.value if number is not None else None) == value


UNITS = [
    *(
        "(",
        "{",
        "[",
        ")",
        "}",
        "1",
        "1,",
        "-",
        "!",
        "x",
        "^",
        "_a",
        "2^",
        "|",
        " ",
        "=",
        "\\",
        "\\\\",
        "~",
        "$",
        "e",
        "٣",
    ),
    *("\\frac{", "\\frac{1}{", "\\sqrt{", "\\boxed{", "\\boxed{1}", "\\left(", "\\text{", "\\text{ and }", "\\quad "),
    "m" * 99 + "!",
    *("x=", "x<", "\\cup(1,2)", "\\{", "{,}", "\\,", "\\begin{pmatrix}", "&", "1 and ", "_{a}", "0.", "\\pm "),
]


SILENT = (" ", "}", "~", "$", "\\,", "\\quad ", "{,}", "\\text{ and }")  # say nothing after a number


@pytest.mark.parametrize("unit", UNITS)
def test_long_answers_are_graded_at_once_and_never_correct(unit):
    for length in (100, 990, 1_000_000):
        text = unit * (length // len(unit))
        for message in (box(text), box("72" + text), text + box("73") + text):
            began = time.perf_counter()
            verdict = grade(SEVENTY_TWO, message)
            # Milliseconds; anything worse than quadratic in a box, or in a message, takes minutes.
            assert time.perf_counter() - began < 5.0
            assert verdict.verdict != "correct" or unit in SILENT


def test_boxes_beyond_the_bounds_are_unparsable():
    for inside in ("1" * (LONGEST_ANSWER + 1), "(" * (DEEPEST_ANSWER + 1) + "72" + ")" * (DEEPEST_ANSWER + 1)):
        verdict = grade(SEVENTY_TWO, box(inside))
        assert verdict.verdict == "unparsable" and "exceeds 1000 characters and 20 levels" in verdict.detail
    assert grade(SEVENTY_TWO, box("(" * 5 + "72" + ")" * 5)).verdict == "correct"


def test_what_is_graded_in_a_worker_is_what_is_graded_here():
    problems = [Problem(index, str(index), row[3] or "how many ?", row[1]) for index, row in enumerate(PAIRS)]
    answers = [box(row[2]) for row in PAIRS]
    with Evaluator(find_task("math").grade, workers=2) as evaluator:
        verdicts = evaluator.score(problems, answers, budget=len(answers))
    assert [verdict.verdict == "correct" for verdict in verdicts] == [row[0] == "equal" for row in PAIRS]
    assert {verdict.verdict for verdict in verdicts} <= {"correct", "wrong", "unparsable"}


def run_sweep(*words: str) -> list[dict]:
    command = [sys.executable, str(HERE / "sweep.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[2], timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_sweep_of_broken_answers_finds_no_crash_no_hang_and_no_false_correct():
    (report,) = run_sweep("fuzz", "300", "7")
    assert report["rest"] == []
    assert report["wrong"] + report["unparsable"] == 300
    assert report["wrong"] > 200


def test_a_sweep_of_a_set_against_itself_is_all_correct(tmp_path):
    written = sorted({row[1] for row in PAIRS if row[0] == "equal"})
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps({"question": "Q", "answer": answer}) + "\n" for answer in written))
    as_written, in_other_words = run_sweep("gold", str(path))
    assert as_written["rest"] == [] and as_written["correct"] == 1.0 and as_written["answers"] == len(written)
    assert in_other_words["rest"] == []


# --------------------------------------------------------------------------------------------------------------------
# Sets on disk


def write(tmp_path, *lines) -> str:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return str(path)


def test_load_reads_the_benchmarks_own_records(tmp_path):
    path = write(
        tmp_path,
        {"id": "own", "question": "Q", "answer": r"\frac{1}{2}"},
        {"problem": "MATH", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{3}$, so $\boxed{x=5}$."},
        {"problem": "MATH500", "solution": r"\boxed{1}", "answer": "7", "unique_id": "test/algebra/1.json"},
        {"question": "GSM8K", "answer": "16-3=<<16-3=13>>13.\n#### 1,018"},
        {"id": 17, "question": "CMATH", "golden": "34", "grade": 1, "reasoning_step": 2},
        {"ID": "2024-I-1", "Problem": "AIME", "Solution": "...", "Answer": 204},
        {"question": "a number", "answer": 0.5},
        {"question": "a box", "answer": r"we get $\boxed{\{1,2\}}$"},
    )
    problems = load_problems(path)
    assert problems == [
        Problem(0, "own", "Q", r"\frac{1}{2}"),
        Problem(1, "1", "MATH", "x=5"),
        Problem(2, "test/algebra/1.json", "MATH500", "7"),
        Problem(3, "3", "GSM8K", "1,018"),
        Problem(4, "17", "CMATH", "34"),
        Problem(5, "2024-I-1", "AIME", "204"),
        Problem(6, "6", "a number", "0.5"),
        Problem(7, "7", "a box", r"\{1,2\}"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "expected a JSON object, got list"),
        ({"question": "Q"}, "'answer' is missing"),
        ({"answer": "1"}, "'question' is missing"),
        ({"problem": " ", "answer": "1"}, "'problem' is empty"),
        ({"problem": "Q", "answer": ""}, "'answer' is empty"),
        ({"problem": "Q", "answer": ["1"]}, "'answer' must be text, got list"),
        ({"problem": "Q", "answer": True}, "'answer' must be text, got bool"),
        ({"problem": "Q", "solution": "it is 5"}, "or a solution with a \\boxed{...}, got 'it is 5'"),
        ({"problem": "Q", "answer": "so ####"}, "expected an answer of 1 to 1000 characters, got 0"),
        ({"problem": "Q", "answer": "1" * 1001}, "expected an answer of 1 to 1000 characters, got 1001"),
        ({"id": "0", "question": "Q", "answer": "1"}, "the id '0' is already that of line 1"),
    ],
)
def test_a_faulty_line_is_named_with_its_reason(tmp_path, line, reason):
    path = write(tmp_path, {"question": "Q", "answer": "1"}, line)
    with pytest.raises(TaskError) as caught:
        load_problems(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5} and \boxed{7}", "5, 7"),
        (r"$\boxed{5}$, $\boxed{7}$, and $\boxed{9}$.", "5, 7, 9"),
        (r"First \boxed{10}, which is wrong; in fact \boxed{12}.", "12"),
        (r"\boxed{1}\boxed{2}", "2"),
        (r"3} and \boxed{2}", "2"),
        (r"\boxed{} and \boxed{2}", "2"),
        (r"\boxed{9} and also \boxed{}", None),
    ],
)
def test_boxes_are_one_answer_only_where_a_word_or_a_comma_joins_them(text, answer):
    assert read_answer(text) == answer
