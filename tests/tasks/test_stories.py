"""Stories, read and counted again by the test."""

from __future__ import annotations

import re

import pytest

from c3jax.tasks.sections import StoryTask
from c3jax.tasks.stories import load_problems
from c3jax.tasks.task import TaskError, find_task

TASK = StoryTask(kind="stories", changes=3, largest=12, loss_share=0.6)


def count(question: str) -> tuple[int, list[int]]:
    """What is held at the end, and every number. A word of losing decides the sign."""
    *sentences, asked = re.findall(r"[^.?]+[.?]", question)
    numbers = [int(number) for sentence in sentences for number in re.findall("[0-9]+", sentence)]
    assert len(numbers) == len(sentences) and not re.search("[0-9]", asked)
    held = numbers[0]
    for sentence, number in zip(sentences[1:], numbers[1:], strict=True):
        held += -number if re.search(r" loses |to a friend| sells ", sentence) else number
        assert held >= 1
    return held, numbers


def test_every_answer_is_what_the_story_counts_to():
    problems = load_problems(TASK, 3, "train", 300)
    for problem in problems:
        held, numbers = count(problem.question)
        assert problem.answer == str(held)
        assert len(numbers) == 4 and 2 <= min(numbers) and max(numbers) <= 12
    text = " ".join(problem.question for problem in problems)
    losses = sum(text.count(word) for word in (" loses ", " to a friend", " sells "))
    assert 0.5 < losses / 900 < 0.62  # .6 of the changes, but for those with too little to lose
    assert len({problem.question for problem in problems}) == 300


def test_splits_share_no_question_whatever_their_seeds_and_a_set_is_the_start_of_a_longer_one():
    train, test = load_problems(TASK, 3, "train", 200), load_problems(TASK, 4, "test", 200)
    assert not {problem.question for problem in train} & {problem.question for problem in test}
    assert train[:50] == load_problems(TASK, 3, "train", 50) != load_problems(TASK, 4, "train", 50)


def test_an_answer_is_the_last_number_of_a_message():
    problem = load_problems(TASK, 0, "test", 1)[0]
    grade = find_task("stories").grade
    assert grade(problem, f"First 99, then {problem.answer}.").score == 1.0
    assert grade(problem, f"{problem.answer}, or 99").verdict == "wrong"


@pytest.mark.parametrize(
    ("task", "split", "sentence"),
    [
        (TASK, "dev", "stories: expected a split of train, validation, test, got 'dev'"),
        (
            StoryTask(kind="stories", changes=1, largest=3),
            "test",
            "stories: no new question for problem [0-9]+ of split 'test'",
        ),
    ],
)
def test_what_cannot_be_had_is_one_sentence(task, split, sentence):
    with pytest.raises(TaskError, match=sentence):
        load_problems(task, 0, split, 4096)
