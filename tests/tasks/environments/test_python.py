"""The Python session, in the real sandbox: what programs print, what they keep, and what they may do to themselves."""

import functools

import pytest

from c3jax.schema import ConfigError
from c3jax.tasks.environment import Call, Message, open_environments, run_call
from c3jax.tasks.environments import python
from c3jax.tasks.sections import EnvironmentSection
from c3jax.types import Problem

SETTINGS = {"timeout": 1.0, "characters": 200}


@pytest.fixture(scope="module")
def session():
    bound = python.bind(SETTINGS, True)
    return bound._replace(reset=functools.partial(bound.reset, **SETTINGS))


def answer(session, *programs: str, seed: int = 5) -> list[str]:
    call = Call(0, seed, tuple((Message("a", "a", program),) for program in programs))
    observed = run_call([session], Problem(0, "0", "", ""), call)
    assert all(reward == 0.0 and not done for _, reward, done in observed)
    return [text for text, *_ in observed]


@pytest.mark.parametrize(
    ("programs", "answers"),
    [
        (["1 + 1"], ["2"]),
        (["print('a')\nprint('b')"], ["a\nb"]),
        (["x = 3", "x * 2"], ["", "6"]),
        (
            ["So:\n```python\ndef f(x):\n    return x / 0\nf(1)\n```\nThat is it."],
            ["ZeroDivisionError: division by zero (line 2)"],
        ),
        (["print(", "print('on')"], ["SyntaxError: '(' was never closed (line 1)", "on"]),
        (["import sys; sys.exit(2)", "4"], ["SystemExit: 2 (line 1)", "4"]),
        (["import os; os._exit(3)", "1"], ["ended", "ended"]),
        (["while True: pass", "1"], ["timeout", "timeout"]),
        (["print('x' * 10_000_000)"], ["x" * 200]),
        (["import os\nfor _ in range(50): os.fork()\n1"], None),
        (
            ["import socket; socket.create_connection(('1.1.1.1', 80), 1)"],
            ["OSError: [Errno 101] Network is unreachable (line 1)"],
        ),
        (["open('/etc/passwd')"], ["FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd' (line 1)"]),
        (["chr(0xd800)"], ["'\\ud800'"]),
        (["print(chr(0xd800))"], ["?"]),
        (["globals().clear()", "1 + 2"], ["", "3"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_answered(session, programs, answers):
    got = answer(session, *programs)
    assert got == answers if answers is not None else len(got) == 1


def test_random_numbers_are_the_episode_s(session):
    drawn = "import random\nrandom.random()"
    assert answer(session, drawn) == answer(session, drawn) != answer(session, drawn, seed=6)


def test_names_alone_and_a_setup():
    bound = python.bind({"errors": "name", "setup": "ten = 10"}, True)
    named = bound._replace(reset=functools.partial(bound.reset, errors="name", setup="ten = 10"))
    assert answer(named, "( 3 - 4 ) % ten", "3 4", "up") == ["9", "SyntaxError", "NameError"]


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"errors": "some"}, {"memory": "much"}, {"setup": 3}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match="environment.settings: expected numbers above 0"):
        python.bind(settings, True)


@pytest.mark.parametrize("name", ["colour", "is_contained", "seed"])
def test_settings_that_there_are_not_are_refused_without_a_sandbox_too(name):
    with pytest.raises(ConfigError, match=r"^protocol.turns.0.environment.settings: expected what the reset of python"):
        open_environments([EnvironmentSection(kind="python", settings={name: True})], None, False)
