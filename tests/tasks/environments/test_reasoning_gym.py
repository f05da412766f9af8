"""Attempts at a generated problem. The generator is one of the package's interface, written here; where the package is
installed, its own are tried too."""

import importlib.util
import json
import sys

import pytest

from c3jax.tasks import reasoning
from c3jax.tasks.environment import Call, Message, open_environments, run_call
from c3jax.tasks.sections import EnvironmentSection, ReasoningTask
from c3jax.types import Problem, UserError

HAS_PACKAGE = importlib.util.find_spec("reasoning_gym") is not None

PACKAGE = '''
class Squares:
    """Pays half for the number itself, as some verifiers do, and evaluates what it is given, as some do."""

    def __init__(self, size, seed):
        self.seed = seed

    def __getitem__(self, index):
        number = self.seed + index + 2
        return {"question": f"{number} squared ?", "answer": str(number**2), "metadata": {"number": number}}

    def score_answer(self, answer, entry):
        value = eval(answer)
        return 1.0 if value == int(entry["answer"]) else 0.5 if value == entry["metadata"]["number"] else 0.0

def create_dataset(name, **settings):
    return DATASETS[name](**settings)

DATASETS = {"countdown": Squares}
'''


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "reasoning_gym"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from .factory import create_dataset")
    (folder / "factory.py").write_text(PACKAGE)
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "reasoning_gym"}
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    reasoning._load_dataset.cache_clear()
    yield
    reasoning._load_dataset.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        del sys.modules[name]
    sys.modules.update(kept)


def make_problem(generator: str, threshold: float = 1.0) -> Problem:
    task = ReasoningTask(
        kind="reasoning", generator=generator, threshold=threshold, train_problems=1, heldout_problems=1
    )
    return reasoning.make_problems(task, 5)[0][0]


def attempt(problem: Problem, *texts: str, **settings) -> list[tuple[str, float, bool]]:
    section = EnvironmentSection(kind="reasoning_gym", settings=settings)
    opened = open_environments([section], None, True)
    parts = tuple((Message("try", "solver", text),) for text in texts)
    return run_call(opened.environments, problem, Call(0, 1, parts))


def test_attempts_are_judged_until_one_is_right(stand_in):
    problem = make_problem("countdown")
    number = int(problem.question.split()[0])
    right = f"<answer>{number}*{number}</answer>"
    texts = ("who knows", "<answer>1</answer>", f"<answer>{number}</answer>", right, right)
    expected = [("no answer", 0.0, False), *[("wrong", 0.0, False)] * 2, ("right", 1.0, True), ("", 0.0, True)]
    assert attempt(problem, *texts) == expected
    assert attempt(problem, *texts, reward=0.25)[3] == ("right", 0.25, True)


def test_what_counts_as_right_is_what_the_task_says(stand_in):
    problem = make_problem("countdown", threshold=0.5)
    assert attempt(problem, f"<answer>{problem.question.split()[0]}</answer>") == [("right", 1.0, True)]


def test_a_verifier_that_evaluates_is_given_no_program(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = "<answer>open('owned', 'w').close()</answer>"
    assert attempt(make_problem("countdown"), program) == [("no answer", 0.0, False)]
    assert not (tmp_path / "owned").exists()


def test_what_cannot_be_judged_is_refused(stand_in, monkeypatch):
    with pytest.raises(UserError, match="problem 7: the answer is no address of a generated problem"):
        attempt(Problem(0, "7", "2 + 2 ?", "4"), "<answer>4</answer>")
    with pytest.raises(UserError, match="environment.settings.reward: expected a number, got 'much'"):
        attempt(make_problem("countdown"), "4", reward="much")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package reasoning-gym \(pip install 'c3jax\[reasoning\]'\)"):
        attempt(make_problem("countdown"), "4")


@pytest.mark.skipif(not HAS_PACKAGE, reason="the package reasoning-gym is not installed")
@pytest.mark.parametrize("generator", ["countdown", "leg_counting", "puzzle24", "spell_backward"])
def test_a_generators_own_answer_is_right_and_others_are_not(generator):
    reasoning._load_dataset.cache_clear()
    problem = make_problem(generator)
    _, settings, size, seed, index, _ = json.loads(problem.answer)
    own = reasoning._load_dataset(generator, json.dumps(settings), size, seed)[index]["answer"]
    judged = attempt(problem, "<answer>-1</answer>", f"<answer>{own}</answer>")
    assert judged == [("wrong", 0.0, False), ("right", 1.0, True)]
