"""The hidden number: halving finds it, and everything hangs on the episode."""

import pytest

from c3jax.schema import ConfigError
from c3jax.tasks.environment import Call, Message, Observation, run_call
from c3jax.tasks.jsonl import TaskError
from c3jax.tasks.number import NUMBER, demonstrate, make_problems, read_range
from c3jax.tasks.sections import NumberTask
from c3jax.tasks.task import DemonstratedTurn, find_task
from c3jax.types import Problem

SECTION = NumberTask(kind="number", train_problems=200, heldout_problems=50)


def play(problem: Problem, seed: int) -> list[str]:
    """Halve the range until the number is found; the answers."""
    low, high = read_range(problem.question)
    parts: list[tuple[Message, ...]] = []
    while True:
        guess = (low + high) // 2
        parts.append((Message("g", "g", str(guess)),))
        observed = run_call([NUMBER.environment], problem, Call(0, seed, tuple(parts)))
        text, reward, done = observed[-1]
        assert (reward, done) == ((1.0, True) if text == "found" else (0.0, False))
        if text == "found":
            return [text for text, *_ in observed]
        low, high = (guess + 1, high) if text == "higher" else (low, guess - 1)


def test_halving_finds_a_number_of_seven_in_three_rounds():
    train, heldout = make_problems(SECTION, 0)
    assert len({problem.question for problem in train + heldout}) == 250
    rounds = [len(play(problem, seed)) for problem in train[:60] for seed in (1, 2)]
    assert max(rounds) == 3
    # One, two and four of seven numbers are found in the first, second and third round.
    assert rounds.count(1) / 120 == pytest.approx(1 / 7, abs=0.1)
    assert rounds.count(3) / 120 == pytest.approx(4 / 7, abs=0.14)


def test_a_range_that_does_not_fit_is_refused():
    with pytest.raises(TaskError, match="task.span: expected at most task.highest"):
        make_problems(SECTION.model_copy(update={"highest": 5}), 0)
    assert {read_range(p.question) for p in make_problems(SECTION.model_copy(update={"highest": 6}), 0)[0]} == {(0, 6)}


def test_the_number_is_the_episode_s():
    problem = make_problems(SECTION, 0)[0][0]
    hidden = {NUMBER.environment.reset(problem, seed) for seed in range(200)}
    low, high = read_range(problem.question)
    assert hidden == set(range(low, high + 1))


def test_what_is_no_number_is_an_error_and_what_is_no_game_is_refused():
    problem = make_problems(SECTION, 0)[0][0]
    for text in ("", "higher", "-3", "2 3"):
        observed = run_call([NUMBER.environment], problem, Call(0, 0, ((Message("g", "g", text),),)))
        assert observed == [tuple(Observation("error"))]
    with pytest.raises(TaskError, match="number: not a question of this task"):
        read_range("the dial shows 3")


def test_demonstrations_are_anywhere_in_the_range_and_of_the_vocabulary():
    problem = make_problems(SECTION, 0)[0][0]
    turn = DemonstratedTurn("first", "opener", False, "task")
    guesses = [int(demonstrate(SECTION, problem, turn, (0, draw))) for draw in range(300)]
    low, high = read_range(problem.question)
    assert set(guesses) == set(range(low, high + 1))
    assert set(problem.question.split()) | set(map(str, guesses)) <= set(NUMBER.vocabulary)


def test_a_grader_gives_nothing_and_other_tasks_have_no_environment():
    assert NUMBER.grade(Problem(0, "0", "", ""), "found").score == 0.0
    from c3jax.tasks.environment import find_environment

    assert find_environment("task", "x", NUMBER.environment) is NUMBER.environment
    with pytest.raises(ConfigError, match="x: expected an environment by name, as the task has none of its own"):
        find_environment("task", "x", find_task("arithmetic").environment)
