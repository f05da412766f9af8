"""Environments of the package verifiers, its own classes around a taskset written here. Where it is not installed (it
brings forty packages) only its absence is looked at."""

import asyncio
import importlib.util
import sys

import pytest

from c3jax.tasks.environment import Call, Environment, Message, open_environments, run_call
from c3jax.tasks.environments.verifiers_env import answer, begin, close, load_env
from c3jax.tasks.sections import EnvironmentSection
from c3jax.types import Problem, UserError

HAS_PACKAGE = importlib.util.find_spec("verifiers") is not None
needs_package = pytest.mark.skipif(not HAS_PACKAGE, reason="the package verifiers is not installed")

TASKSET = '''
import random
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Sum(vf.Task[Data]):
    """Pays a right last reply 1, and a short one a tenth."""

    @vf.reward
    async def right(self, task, trace) -> float:
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.1)
    async def short(self, task, trace) -> float:
        return float(len(trace.last_reply) < 4)

class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        for number in range(5):
            random.random()
            data = Data(prompt=f"{number} + {number} ?", system_prompt="Add.", answer=str(2 * number))
            yield Sum(data, self.config.task)

class TutorConfig(vf.EnvConfig):
    pupil: vf.AgentConfig = vf.AgentConfig()

class Tutor(vf.Env[TutorConfig]):
    """Asks until the reply is right, and draws what it says."""

    async def run(self, task, agents):
        async with agents.pupil.interaction(task) as talk:
            segment = await talk.turn()
            while not segment.terminated and segment.last_reply != task.data.answer:
                segment = await talk.turn(f"no, try {random.randint(0, 10**6)}")
        talk.trace.record_reward("patience", talk.trace.num_turns, 0.01)
'''

MODULES = {
    "sums": TASKSET + "\n__all__ = ['Sums']\n",
    "tutored_sums": TASKSET + "\n__all__ = ['Sums', 'Tutor']\n",
    "stopped_sums": TASKSET.replace(
        "    @vf.reward\n",
        "    @vf.stop\n    async def tired(self, trace: vf.Trace) -> bool:\n        return trace.num_turns > 1\n\n"
        "    @vf.reward\n",
    )
    + "\n__all__ = ['Sums', 'Tutor']\n",
    "boxed_sums": TASKSET.replace("def right(self, task, trace)", "def right(self, task, trace, runtime)")
    + "\n__all__ = ['Sums']\n",
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    load_env.cache_clear()
    for name in MODULES:
        sys.modules.pop(name, None)


def open_env(env: dict, **settings) -> tuple[Environment, ...]:
    section = EnvironmentSection(kind="verifiers", settings={"env": env, **settings})
    return open_environments([section], None, True).environments


def lead(env: dict, *parts: str, task: object = 3, seed: int = 1, **settings) -> list[tuple[str, float, bool]]:
    """Messages written as "role text | role text"; before each answer those since the one before."""
    lines = [[line.strip().partition(" ") for line in part.split("|")] if part else [] for part in parts]
    split = tuple(tuple(Message("turn", role, text) for role, _, text in part) for part in lines)
    return run_call(open_env(env, **settings), Problem(0, "0", "", "", {"task": task}), Call(0, seed, split))


@needs_package
def test_a_plain_taskset_shows_its_prompt_and_pays_the_reply():
    env = {"taskset": {"id": "sums"}}
    assert lead(env, "", "solver 6") == [("Add.\n\n3 + 3 ?", 0.0, False), ("", 1.1, True)]
    assert lead(env, "planner 3 + 3 is 6 | solver six") == [("", pytest.approx(0.1), True)]
    assert lead(env, "solver eight", task=4) == [("", 0.0, True)]


@needs_package
def test_an_env_talks_until_it_ends_and_draws_by_the_seed():
    env = {"taskset": {"id": "tutored_sums"}}
    prompt, first, second, end, after = lead(env, "", "solver 5", "solver 7", "solver 6", "solver 6")
    assert prompt == ("Add.\n\n3 + 3 ?", 0.0, False)
    assert first[0].startswith("no, try ") and second[0].startswith("no, try ") and first != second
    assert end == ("", pytest.approx(1.1 + 0.03), True) and after == ("", 0.0, True)
    assert lead(env, "", "solver 5", "solver 7")[1:] == [first, second]
    assert lead(env, "", "solver 5", seed=2)[1] != first


@needs_package
def test_where_a_process_loads_the_taskset_changes_nothing():
    texts = []
    for _ in range(2):  # the first loads it
        state = begin(Problem(0, "0", "", "", {"task": 1}), 1, {"taskset": {"id": "tutored_sums"}})
        answer(state, ())
        texts.append(answer(state, (Message("turn", "solver", "5"),)).text)
        close(state)
    assert texts[0] == texts[1] and texts[0].startswith("no, try ")


@needs_package
def test_a_stop_and_a_limit_of_turns_end_a_conversation():
    for env in (
        {"taskset": {"id": "stopped_sums"}},
        {"taskset": {"id": "tutored_sums"}, "pupil": {"max_turns": 2}},
    ):
        *_, end = lead(env, "", "solver 5", "solver 700")
        assert end == ("", pytest.approx(0.1 + 0.02), True)


@needs_package
def test_seats_are_spoken_for_by_their_roles():
    """The package's simulated user, which opens the conversation and ends it."""
    env = {"id": "user-sim", "taskset": {"id": "sums"}}
    settings = {"roles": {"assistant": "solver", "user": "client"}, "reward_of": "assistant"}
    parts = ["", "solver 6 | client What is 3 + 3?", "solver 6", "client ###DONE###"]
    hello, request, reply, end = lead(env, *parts, **settings)
    assert hello[0] == "Hello! How can I help you today?"
    assert request == ("What is 3 + 3?", 0.0, False)
    assert reply == ("6", 0.0, False)
    assert end == ("", pytest.approx(1.1), True)


@needs_package
def test_what_an_env_holds_open_is_closed():
    open_env({"taskset": {"id": "tutored_sums"}})
    state = begin(Problem(0, "0", "", "", {"task": 1}), 1, {"taskset": {"id": "tutored_sums"}})
    assert answer(state, ()).text == "Add.\n\n1 + 1 ?"
    close(state)
    assert state.run.cancelled() and state.loop.is_closed()
    assert not asyncio.all_tasks(state.loop)


@needs_package
@pytest.mark.parametrize(
    ("env", "settings", "sentence"),
    [
        ({"taskset": {"id": "no_such_sums"}}, {}, r"expected an Env of verifiers \(.*no_such_sums"),
        ({"taskset": {"id": "sums"}, "speed": 3}, {}, r"expected an Env of verifiers \(.*speed"),
        ({"taskset": {"id": "boxed_sums"}}, {}, "expected an Env and tasks without rewards that need a runtime"),
        ({"taskset": {"id": "sums"}}, {"roles": {"pupil": "solver"}}, "expected a role for each of agent, got"),
        ({"id": "user-sim", "taskset": {"id": "sums"}}, {}, "expected a role for each of assistant, user, got"),
        (
            {"id": "user-sim", "taskset": {"id": "sums"}},
            {"roles": {"assistant": "a", "user": "b"}},
            "reward_of: expected the seat whose reward is the team's, one of assistant, user, got None",
        ),
        ({"taskset": {"id": "sums"}}, {"seats": 3}, "settings: expected what the reset of verifiers takes"),
    ],
)
def test_what_cannot_be_held_is_one_sentence_at_set_up(env, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        open_env(env, **settings)


@needs_package
@pytest.mark.parametrize("task", [None, -1, True, "3"])
def test_a_problem_names_its_task(task):
    with pytest.raises(UserError, match="expected problems with a column `task`, a number, got"):
        lead({"taskset": {"id": "sums"}}, "", task=task)
    with pytest.raises(UserError, match="expected a task below 5, got 5"):
        lead({"taskset": {"id": "sums"}}, "", task=5)


@needs_package
def test_the_packages_own_game_of_hangman(tmp_path, monkeypatch):
    """Its Env of TextArena's games, with a word list of five words in place of the one it downloads."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("textarena")
    folder = tmp_path / "nltk_data" / "corpora" / "words"
    folder.mkdir(parents=True)
    for name in ("en", "en-basic", "README"):
        (folder / name).write_text("apple\norange\npear\nlemon\nquince\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    monkeypatch.setattr(nltk, "download", lambda *words, **options: True)
    env = {"taskset": {"id": "textarena", "game": "Hangman-v0"}}
    rules, *boards = lead(env, "", *(f"solver [{letter}]" for letter in "eaplorngmquic"))
    assert "Hangman" in rules[0] and rules[1:] == (0.0, False)
    last = next(number for number, board in enumerate(boards) if board[2])
    assert boards[last] == ("", 1.0, True)
    assert all("C00 C01" in text and reward == 0.0 for text, reward, _ in boards[:last])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package verifiers \(pip install 'c3jax\[verifiers\]'\), found none"
    ):
        open_env({"taskset": {"id": "sums"}})
