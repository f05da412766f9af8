"""The dial: problems, splits and demonstrations, checked with an arithmetic of their own."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import c3jax
from c3jax.tasks.arithmetic import (
    VOCABULARY,
    Move,
    demonstrate,
    load_problems,
    parse_moves,
)
from c3jax.tasks.generated import SPLITS
from c3jax.tasks.numeric import grade
from c3jax.tasks.sections import ArithmeticTask
from c3jax.tasks.task import DemonstratedTurn, TaskError, find_task
from c3jax.types import Problem

TASK = ArithmeticTask(kind="arithmetic")
PLAN, ANSWER = DemonstratedTurn("plan", "reasoner", False), DemonstratedTurn("answer", "actor", True)
PROBLEMS = load_problems(TASK, seed=1, split="train", count=600)


def vary(**fields: float) -> ArithmeticTask:
    return TASK.model_copy(update=fields)


def show(task: ArithmeticTask, problem: Problem, seed: int, draw: int) -> tuple[str, str]:
    """What both turns are shown to write of a problem."""
    plan, answer = (demonstrate(task, problem, turn, (seed, draw)) for turn in (PLAN, ANSWER))
    return plan, answer


def walk(text: str) -> list[int]:
    """Walk a dial by hand through all words: "up 4" and "down 2" move it, the first digit sets it."""
    words = text.split()
    shown: list[int] = []
    for place, word in enumerate(words):
        if word.isdigit() and not shown:
            shown.append(int(word))
        elif word in ("up", "down"):
            # Click by click round the rim, where 9 and 0 are neighbours.
            rim = "0123456789" if word == "up" else "9876543210"
            position = rim.index(str(shown[-1]))
            shown.append(int(rim[(position + int(words[place + 1])) % 10]))
    return shown


def assert_share(successes: int, trials: int, probability: float) -> None:
    """Five standard deviations of a binomial: a chance of less than one in a million, were draws not fixed."""
    bound = 5.0 * math.sqrt(trials * probability * (1.0 - probability))
    assert abs(successes - trials * probability) <= bound, (successes, trials, probability)


def test_a_question_reads_as_documented():
    start, moves = parse_moves("the dial shows 3 . mia up 4 . ben down 2 . ada up 5 .")
    assert start == 3
    assert moves == (Move("up", 4), Move("down", 2), Move("up", 5))


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_true_answers_are_right_and_graded_correct(steps):
    problems = load_problems(vary(moves=steps), seed=5, split="train", count=70)
    for problem in problems:
        shown = walk(problem.question)
        assert len(shown) == steps + 1
        assert problem.answer == str(shown[-1])
        assert grade(problem, f"answer {shown[-1]}").score == 1.0
        assert grade(problem, f"answer {(shown[-1] + 1) % 10}").verdict == "wrong"
    assert {problem.answer for problem in problems} == set("0123456789")


def test_grade_reads_the_last_number():
    problem = PROBLEMS[0]._replace(answer="7")
    assert find_task("arithmetic").grade is grade
    assert grade(problem, "3 up 4 = 7").score == 1.0
    assert grade(problem, "answer 7 down 2 = 5").verdict == "wrong"
    assert grade(problem, "answer 1 7").score == 1.0
    assert grade(problem, "answer").verdict == "unparsable"
    assert grade(problem, "answer 1 7 .").answer == "7"


def test_draws_follow_the_specification():
    moves = [move for problem in PROBLEMS for move in parse_moves(problem.question)[1]]
    assert len(moves) == 1800
    assert_share(sum(move.direction == "down" for move in moves), 1800, 0.35)
    for amount in range(1, 6):
        assert_share(sum(move.amount == amount for move in moves), 1800, 1 / 5)
    for digit in range(10):
        assert_share(sum(parse_moves(problem.question)[0] == digit for problem in PROBLEMS), 600, 0.1)


def test_a_problem_is_its_address():
    questions = {
        problem.question for seed in (0, 1) for split in SPLITS for problem in load_problems(TASK, seed, split, 2)
    }
    assert len(questions) == 12
    # A longer set begins with the shorter one.
    assert load_problems(TASK, 1, "train", 50) == PROBLEMS[:50]
    assert [problem.id for problem in PROBLEMS[:3]] == ["train-0", "train-1", "train-2"]
    assert [problem.index for problem in PROBLEMS] == list(range(600))


def test_addresses_give_the_same_draws_in_another_process():
    code = (
        "from c3jax.tasks.arithmetic import *\n"
        "from c3jax.tasks.task import DemonstratedTurn\n"
        "task = ArithmeticTask(kind='arithmetic')\n"
        "problem = load_problems(task, 3, 'test', 10)[9]\n"
        "turn = DemonstratedTurn('plan', 'reasoner', False)\n"
        "print(problem.question, demonstrate(task, problem, turn, (4, 2)))"
    )
    environment = {"PYTHONPATH": str(Path(c3jax.__file__).parent.parent), "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    problem = load_problems(TASK, 3, "test", 10)[9]
    assert done.stdout.strip() == f"{problem.question} {demonstrate(TASK, problem, PLAN, (4, 2))}"


def test_splits_share_no_question_and_repeat_none():
    # 10 * 10 * 10 = 1000 questions in all; seeds and specifications differ, as they do between two runs.
    spec = vary(moves=2)
    train = [problem.question for problem in load_problems(spec, 0, "train", 600)]
    validation = [
        problem.question for problem in load_problems(spec.model_copy(update={"down_share": 0.5}), 1, "validation", 50)
    ]
    test = [problem.question for problem in load_problems(spec, 2, "test", 50)]
    assert len({*train, *validation, *test}) == 700


def test_every_question_of_a_split_can_be_had_and_no_more():
    spec = vary(moves=1, down_share=0.5)  # 10 * 10 = 100 questions
    counts = []
    for split in SPLITS:
        count = 0
        with pytest.raises(TaskError, match=f"no new question for problem .* of split '{split}'"):
            for count in range(1, 101):
                load_problems(spec, 0, split, count)
        counts.append(count - 1)
    assert sum(counts) == 100
    assert counts[0] > 70
    with pytest.raises(TaskError, match="count of 1 to 50 "):
        load_problems(spec.model_copy(update={"down_share": 0.0}), 0, "train", 51)


@pytest.mark.parametrize(
    ("spec", "split", "count", "reason"),
    [
        (TASK, "dev", 1, "split of train, validation, test, got 'dev'"),
        (TASK, "train", 0, "count of 1 to 10000 .* got 0"),
        (TASK, "train", 10001, "count of 1 to 10000 .* got 10001"),
    ],
)
def test_invalid_requests_are_refused(spec, split, count, reason):
    with pytest.raises(TaskError, match=reason):
        load_problems(spec, 0, split, count)


def test_the_vocabulary_covers_every_text_and_has_no_idle_digit_or_name():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert all(word and not any(character.isspace() for character in word) for word in VOCABULARY)
    texts = []
    for problem in load_problems(vary(moves=5), 0, "train", 200):
        plan, answer = show(TASK, problem, 0, 0)
        texts += [problem.question, plan, answer, problem.answer]
    assert all(text == " ".join(text.split()) for text in texts)
    used = {word for text in texts for word in text.split()}
    assert used <= set(VOCABULARY)
    assert set(VOCABULARY) - used == {"question", "plan", ":"}  # for prompts


def test_faultless_demonstrations_are_right():
    spec = vary(plan_fault=0.0, distrust=0.0)
    for problem in PROBLEMS[:200]:
        plan, answer = show(spec, problem, 0, 0)
        shown = walk(problem.question)
        words = plan.split()
        assert [int(word) for word in words[0::4]] == shown
        assert answer == f"answer {shown[-1]}"
        assert grade(problem, plan).score == grade(problem, answer).score == 1.0
    problem = Problem(0, "0", "the dial shows 3 . mia up 4 . ben down 9 .", "8")
    assert show(spec, problem, 0, 0) == ("3 up 4 = 7 down 9 = 8", "answer 8")
    always = vary(plan_fault=1.0, distrust=1.0)
    assert show(always, problem, 0, 0) == ("3 up 4 = 7 up 9 = 6", "answer 3")


def test_faults_are_as_frequent_as_specified_and_carry_through():
    spec = vary(plan_fault=0.6, distrust=0.3)
    faults = downs = distrusted = distinguishable = 0
    for problem in PROBLEMS:
        start, moves = parse_moves(problem.question)
        for draw in range(3):
            plan, answer = show(spec, problem, 8, draw)
            words = plan.split()
            made = list(zip(words[1::4], words[2::4], strict=True))
            assert [amount for _, amount in made] == [str(move.amount) for move in moves]
            assert words[3::4] == ["="] * 3
            # Each sum follows from the digit before it and the word said, so an error stays in the total.
            assert [int(word) for word in words[0::4]] == walk(plan)
            for move, (direction, _) in zip(moves, made, strict=True):
                assert direction == "up" or move.direction == "down"
                downs += move.direction == "down"
                faults += direction != move.direction
            if all(move.direction == "up" for move in moves):
                assert answer == f"answer {words[-1]}" == f"answer {problem.answer}"
            elif words[-1] != str(start):
                assert answer in (f"answer {words[-1]}", f"answer {start}")
                distinguishable += 1
                distrusted += answer == f"answer {start}"
    assert downs > 1500 and distinguishable > 1000
    assert_share(faults, downs, 0.6)
    assert_share(distrusted, distinguishable, 0.3)


def test_demonstrations_are_drawn_at_their_address():
    spec = vary(moves=6, down_share=0.8)
    (problem,) = load_problems(spec, 0, "train", 1)
    assert show(spec, problem, 1, 2) == show(spec, problem, 1, 2)
    assert len({show(spec, problem, 1, draw) for draw in range(20)}) > 5
    assert len({show(spec, problem, seed, 0) for seed in range(20)}) > 5
    assert len({show(spec, problem._replace(index=index), 0, 0) for index in range(20)}) > 5


@pytest.mark.parametrize(
    "question",
    ["", "what is 3 up 4 ?", PROBLEMS[0].question + " what ?", PROBLEMS[0].question.replace("shows", "hides")],
)
def test_other_questions_are_refused(question):
    with pytest.raises(TaskError, match="not a question of this task"):
        parse_moves(question)
