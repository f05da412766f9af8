"""What two sets share: planted pairs of every kind, near misses, and the gate that refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from c3jax.cli import main
from c3jax.setup.contamination import Entry, check_overlap, find_hits, find_overlaps, split_words
from c3jax.tasks import arithmetic
from c3jax.tasks.code import records as code_records
from c3jax.tasks.generated import make_splits
from c3jax.tasks.sections import ArithmeticTask
from c3jax.tasks.task import TaskError, find_task
from c3jax.types import Problem

FORMULA = r"If $\frac{1}{2} \left(x+1\right) \leq 1{,}000$, what is the largest integer $x^{2}$ can be?"
STORY = "Mia walks from her house to the old school by the lake every day and counts 17 ducks on her way."
CHINESE = "小明有三个苹果，他给了小红一个苹果以后还剩几个？"


@pytest.mark.parametrize(
    ("planted", "original", "kind"),
    [
        (STORY, STORY, "exact"),
        (STORY.upper(), STORY, "normalised"),
        (f"  {STORY.replace(' ', '   ')}\n", STORY, "normalised"),
        (STORY.replace("day and", "day, and").rstrip("."), STORY, "normalised"),
        (FORMULA.replace("$", "").replace("?", " ?"), FORMULA, "normalised"),
        (
            r"If \( \dfrac12 \bigl( x + 1 \bigr) \le\; 1,000 \), what is the largest integer \, $x^2$ can be?",
            FORMULA,
            "normalised",
        ),
        (r"Find $\text{lcm}(4, 6)\!\cdot 10,\!080.$", r"Find $\mathrm{lcm}(4,6) \cdot 10080$", "normalised"),
        (r"A well-known “sum”: 3 − 2", "A well known sum: 3 - 2", "normalised"),
        (CHINESE.replace("，", ", ").replace("？", "?"), CHINESE, "normalised"),
        (STORY.replace("17", "18"), STORY, "ngram"),  # the other 17 words before it and 5 after it are the same
        (STORY.replace("lake", "river"), STORY, None),  # 12 words before, 10 after
        (f"Now then. {STORY} How many more?", STORY, "ngram"),
        (CHINESE.replace("三", "四"), CHINESE, "ngram"),
        # Other problems: a sign, a bracket, a digit or a point makes them so
        ("What is 3 + 5?", "What is 3 - 5?", None),
        ("What is 2*(3+4)?", "What is (2*3)+4?", None),
        ("What is 5!?", "What is 5?", None),
        ("What is 3.5 squared?", "What is 35 squared?", None),
        ("What is x^2?", "What is x2?", None),
        ("Is 3 < 5?", "Is 3 > 5?", None),
        (r"Find $\frac{12}{3}$", r"Find $\frac{1}{23}$", None),
        ("?!", "...", None),
    ],
)
def test_planted_pairs_are_told_by_their_kind(planted, original, kind):
    hits = find_overlaps([Entry("t", planted), Entry("u", "Something else.")], {"set": [Entry("h", original)]})
    assert [tuple(hit) for hit in hits] == ([(kind, "t", "h", "set")] if kind else [])


def test_words_are_spelt_one_way():
    assert split_words(r"Let $\overline{AB} \ge 1{,}234.5$ cm.") == "let overline ab ge 1234.5 cm".split()
    assert split_words(r"\begin{align*}a&=\tfrac{1}{3}\\[2pt] b\end{align*}") == (
        "begin align * a = frac 1 3 [ 2 pt ] b end align *".split()
    )
    assert split_words("x² + 10 % of ½") == ["x", "2", "+", "10", "%", "of", "1", "⁄", "2"]


def test_a_phrase_of_many_training_problems_is_no_overlap():
    phrase = " ".join(f"word{place}" for place in range(13)).replace("word", "w")
    heldout = {"set": [Entry("h", f"{phrase} and so on")]}
    for carriers, found in ((10, 10), (11, 0)):
        train = [Entry(f"t{place}", f"{phrase} number {place} of many") for place in range(carriers)]
        assert len(find_overlaps(train, heldout)) == found
    assert find_overlaps([Entry("t", f"{phrase} here")], heldout, has_grams=False) == []


def test_every_set_is_told_apart_and_the_first_of_equals_is_named():
    train = [Entry("a", "One?"), Entry("b", "Two?")]
    heldout = {"x": [Entry("1", "two"), Entry("2", "Two?")], "y": [Entry("3", "Three?")], "z": [Entry("4", "ONE?")]}
    assert [tuple(hit) for hit in find_overlaps(train, heldout)] == [
        ("exact", "b", "2", "x"),
        ("normalised", "a", "4", "z"),
    ]


# --------------------------------------------------------------------------------------------------------------------
# A run


def make_problems(*questions: str) -> list[Problem]:
    return [Problem(place, f"p{place}", question, "1") for place, question in enumerate(questions)]


TRAIN = make_problems("Add 1 and 2.", "Add 2 and 2.", STORY.replace("17", "18"), "Add 5 and 6.")
HELDOUT = {"easy": make_problems("ADD 2 AND 2", "Add 9 and 9."), "hard": make_problems("add 1 and 2", STORY)}


def test_the_gate_refuses_and_names_every_id():
    with pytest.raises(TaskError) as caught:
        check_overlap(find_task("math"), TRAIN, {"easy": HELDOUT["easy"][1:], "hard": HELDOUT["hard"]})
    assert str(caught.value) == (
        "data: 1 of 4 training problems are in a held-out set (hard: 1 normalised, 1 ngram): set"
        " data.drop_overlap: true to train without them, or see the pairs with c3jax overlap; the ids: p0"
    )
    with pytest.raises(TaskError, match=r"3 of 4 .*\(easy: 1 exact; hard: .*; the ids: p1, p0, p2$"):
        check_overlap(find_task("math"), TRAIN, {"easy": TRAIN[1:2], "hard": HELDOUT["hard"]}, is_strict=True)
    many = make_problems(*(f"Add {place} and 1." for place in range(600)))
    with pytest.raises(TaskError, match="600 of 600 .*, p499 and 100 more$"):
        check_overlap(find_task("math"), many, {"all": many})


def test_the_gate_drops_what_it_would_refuse_and_counts_it():
    passed = check_overlap(find_task("math"), TRAIN, HELDOUT, is_dropping=True)
    assert passed.problems == TRAIN[2:] and passed.dropped == ("p1", "p0")
    assert [(hit.kind, hit.train) for hit in passed.hits] == [
        ("normalised", "p1"),
        ("normalised", "p0"),
        ("ngram", "p2"),
    ]
    assert check_overlap(find_task("math"), TRAIN, HELDOUT, is_dropping=True, is_strict=True).problems == TRAIN[3:]
    assert check_overlap(find_task("math"), TRAIN, {"none": HELDOUT["easy"][1:]}) == (TRAIN, (), ())
    with pytest.raises(TaskError, match="^data.drop_overlap: expected training problems .* got 2 that all are$"):
        check_overlap(find_task("math"), TRAIN[:2], HELDOUT, is_dropping=True)


def test_generated_problems_pass_the_gate():
    """Templates share runs of words; whole questions are what a generator must keep apart, and does."""
    task = ArithmeticTask(kind="arithmetic", moves=4, train_problems=300, heldout_problems=300)
    train, heldout = make_splits(arithmetic.load_problems, task, 3)
    assert check_overlap(find_task("arithmetic"), train, {"heldout": heldout}) == (train, (), ())
    with pytest.raises(TaskError, match="^data: 1 of 300 .*1 exact"):
        check_overlap(find_task("arithmetic"), train, {"heldout": [*heldout, train[7]]})


def test_programs_are_one_problem_where_id_and_function_are(tmp_path):
    """The demand that our reader adds to a question says nothing; id and name tell a problem that was reworded."""

    def load(name: str, *rows: tuple[int, str, str, str]) -> list[Problem]:
        lines = [
            {"task_id": number, "text": text, "code": f"def {head}:\n    return 1", "test_list": [test]}
            for number, text, head, test in rows
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return code_records.load_problems(str(tmp_path / name))

    train = load(
        "train.jsonl",
        (1, "Find a lucid number.", "get_Lucid(n)", "assert get_Lucid(1) == 1"),
        (2, "Sort a list.", "sort_it(xs)", "assert sort_it(1) == 1"),
        (3, "Count the letters.", "count(s)", "assert count(1) == 1"),
    )
    heldout = load(
        "heldout.jsonl",
        (1, "Return every lucid number up to the given one.", "get_lucid(limit)", "assert get_lucid(1) == 1"),
        (9, "Sort a list!", "ordered(values)", "assert ordered(1) == 1"),
        (4, "Count the vowels.", "count(s)", "assert count(1) == 1"),
    )
    assert [tuple(hit) for hit in find_hits(find_task("code"), train, {"plus": heldout})] == [
        ("reworded", "1", "1", "plus"),
        ("normalised", "2", "9", "plus"),
    ]
    # Where every function is called the same, equal numbers say nothing.
    first = [(number, f"Add {number}.", "solve(x)", "assert solve(1) == 1") for number in range(4)]
    second = [(number, f"Take {number} away.", "solve(x)", "assert solve(1) == 1") for number in range(4)]
    assert find_hits(find_task("code"), load("first.jsonl", *first), {"second": load("second.jsonl", *second)}) == []


# --------------------------------------------------------------------------------------------------------------------
# The command


def test_files_are_compared_from_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, problems in (("train", TRAIN), *HELDOUT.items()):
        lines = [json.dumps({"id": each.id, "question": each.question, "answer": "1"}) for each in problems]
        Path(f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert main("overlap math train.jsonl easy.jsonl hard.jsonl".split()) == 1
    assert capsys.readouterr().out.splitlines() == [
        "normalised\tp1\tp0\teasy.jsonl",
        "normalised\tp0\tp0\thard.jsonl",
        "ngram\tp2\tp1\thard.jsonl",
        "4 training problems: easy.jsonl: 1 normalised; hard.jsonl: 1 normalised, 1 ngram",
    ]
    Path("apart.jsonl").write_text('{"question": "Add 7 and 7.", "answer": 14}', encoding="utf-8")
    assert main("overlap numeric train.jsonl apart.jsonl".split()) == 0
    assert capsys.readouterr().out == "4 training problems: nothing in common\n"
    assert main("overlap chess train.jsonl apart.jsonl".split()) == 2
    assert capsys.readouterr().err.startswith(
        "c3jax: TASK: expected one of arithmetic, number, stories, numeric, math, "
    )
    assert main("overlap math nowhere.jsonl apart.jsonl".split()) == 2
    assert "nowhere.jsonl: the file cannot be read" in capsys.readouterr().err
    # Files with fields of other names, all of them or the training file alone.
    words = "overlap math told.jsonl {} --task.fields".split()
    Path("told.jsonl").write_text('{"Story": "Mia has 7.", "Ask": "Add 7.", "gold": 14}', encoding="utf-8")
    Path("asked.jsonl").write_text('{"question": "mia has 7. add 7", "answer": 14}', encoding="utf-8")
    names, shared = (
        "{question: [Story, Ask], answer: gold}",
        "normalised\t0\t0\t{0}\n1 training problems: {0}: 1 normalised\n",
    )
    assert main([*words[:3], "asked.jsonl", *words[4:], names, "--heldout.fields", "{}"]) == 1
    assert capsys.readouterr().out == shared.format("asked.jsonl")
    assert main([*words[:3], "told.jsonl", *words[4:], names]) == 1
    assert capsys.readouterr().out == shared.format("told.jsonl").replace("normalised", "exact")
    assert main([*words[:3], "asked.jsonl", *words[4:], names]) == 2
    assert "asked.jsonl, line 1: " in capsys.readouterr().err
    assert main([*words[:3], "asked.jsonl", "--task.limit", "3"]) == 2
    assert capsys.readouterr().err == (
        "c3jax: --task.limit: expected --task.fields or --heldout.fields, got another field\n"
    )
