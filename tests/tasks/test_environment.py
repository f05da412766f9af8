"""Finding environments: by name, as a user's own record or function, and in one sentence where there is none."""

import pytest

from c3jax.config.file import load_config
from c3jax.schema import ConfigError
from c3jax.tasks.environment import (
    Call,
    Environment,
    Message,
    find_environment,
    open_environments,
    run_call,
)
from c3jax.tasks.sections import EnvironmentSection
from c3jax.types import Problem

PROBLEM = Problem(0, "0", "?", "7")
OWN = """
from c3jax.tasks.environment import Environment, Observation
def tell(problem, messages):
    return problem.question + messages[-1].text
def three(a, b, c):
    return ""
def begin(problem, seed, size=1):
    return [seed, size]
def step(state, messages):
    return "x"
def end(state):
    state.append("ended")
NUMBER = 3
WHOLE = Environment(begin, step, end)
HALF = Environment(begin, None)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own_turns.py"
    path.write_text(OWN)
    return str(path)


def test_a_function_is_an_environment_without_a_state(own):
    found = find_environment(f"{own}:tell", "turn")
    said = (Message("a", "a", "!"),)
    assert run_call([found], PROBLEM, Call(0, 0, (said, said))) == [("?!", 0.0, False)] * 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("oracle", "turn: expected one of calculator, python"),
        ("{own}:three", "turn: expected a function of (problem, messages), not of (a, b, c), at "),
        ("{own}:NUMBER", "turn: expected an Environment, or a function (problem, messages) that answers, at "),
        ("{own}:HALF", "turn: expected an Environment whose reset and step are functions at "),
        ("{own}:nothing", "turn: expected a name that "),
    ],
)
def test_what_is_none_is_refused_in_one_sentence(own, name, sentence):
    with pytest.raises(ConfigError) as caught:
        find_environment(name.format(own=own), "turn")
    assert str(caught.value).startswith(sentence)


def test_turns_with_the_same_section_are_one_episode(own):
    one = EnvironmentSection(kind=f"{own}:WHOLE", settings={"size": 2})
    other = EnvironmentSection(kind=f"{own}:WHOLE", settings={"size": 3})
    opened = open_environments([None, one, None, other, one], None, True)
    assert opened.turns == (None, 0, None, 1, 0)
    assert [environment.reset(PROBLEM, 9) for environment in opened.environments] == [[9, 2], [9, 3]]


def test_settings_that_a_reset_does_not_take_are_refused(own):
    section = EnvironmentSection(kind=f"{own}:WHOLE", settings={"colour": 2})
    with pytest.raises(ConfigError) as caught:
        open_environments([None, section], None, None)
    assert str(caught.value).startswith("protocol.turns.1.environment.settings: expected what the reset of ")
    assert "unexpected keyword argument 'colour'" in str(caught.value)


def test_an_episode_is_closed_whatever_happens():
    ended = []

    def step(state, messages):
        if messages[0].text == "raise":
            raise RuntimeError
        return "fine"

    environment = Environment(lambda problem, seed: [seed], step, ended.append)
    run_call([environment], PROBLEM, Call(0, 1, ((Message("a", "a", ""),),)))
    with pytest.raises(RuntimeError):
        run_call([environment], PROBLEM, Call(0, 2, ((Message("a", "a", "raise"),),)))
    assert ended == [[1], [2]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"credit.fan_out": [2, 2, 2]},
            "credit.fan_out: expected 1 for turn result, which an environment answers, got 2",
        ),
        ({"credit.fan_out": "auto"}, "protocol.turns.1.environment: expected credit.fan_out in numbers, got 'auto'"),
        (
            {"credit.method": "value_only"},
            "protocol.turns.1.environment: expected a method without a critic of messages (its scores are of returns in"
            " [0, 1], and an environment may pay on the way), got value_only",
        ),
        (
            {"credit.method": "shapley"},
            "protocol.turns.1.environment: expected a method that lets later turns speak again where a message is taken"
            " out (what the environment said would not follow from what it is shown), got shapley",
        ),
        (
            {"protocol.turns.1.role": "tool"},
            'protocol.turns.1.role: expected none in an environment\'s turn, got "tool"',
        ),
        (
            {"protocol.turns.1.environment.kind": "abacus"},
            "protocol.turns.1.environment.kind: expected one of calculator",
        ),
        (
            {"protocol.turns.0.unless_done": True},
            "protocol.turns.0.unless_done: expected an environment's turn before it, got none",
        ),
        ({"protocol.turns.0.role": ""}, 'protocol.turns.0.role: expected some text, got ""'),
        (
            {"protocol.turns.1.environment.kind": "task"},
            "protocol.turns.1.environment.kind: expected an environment by name, as the task has none of its own, got",
        ),
    ],
)
def test_what_a_config_can_get_wrong_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config("configs/tool_arithmetic.yaml", changes)
    assert str(caught.value).startswith(sentence)
