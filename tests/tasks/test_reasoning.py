"""Generated problems: their addresses, what is paid, and what the package's verifiers must never be given.

The package is optional and large. These tests run on one of the same interface, written here; where the real one is
installed, its own generators are tried too.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from c3jax.tasks import reasoning
from c3jax.tasks.reasoning import grade, load_problems, make_problems, read_answer
from c3jax.tasks.sections import ReasoningTask
from c3jax.tasks.task import TaskError, find_task
from c3jax.types import Problem

HAS_PACKAGE = importlib.util.find_spec("reasoning_gym") is not None

PACKAGE = '''
from random import Random

def create_dataset(name, **settings):
    return DATASETS[name](**settings)

class Doubling:
    """Doubles a number; pays .5 for a number that is off by one, as some verifiers do."""

    def __init__(self, size, seed, largest=10**6):
        if largest < 1:
            raise ValueError("largest must be positive")
        self.size, self.seed, self.largest = size, seed, largest

    def __getitem__(self, index):
        assert 0 <= index < self.size
        number = Random(self.seed + index).randrange(self.largest)
        return {"question": f"twice {number} ?", "answer": str(2 * number), "metadata": {"numbers": [number]}}

    def score_answer(self, answer, entry):
        distance = abs(int(answer) - int(entry["answer"]))
        return {0: 1.0, 1: 0.5}.get(distance, 0.01)

class Evaluating(Doubling):
    def score_answer(self, answer, entry):
        return float(eval(answer) == int(entry["answer"]))

class Generous(Doubling):
    def score_answer(self, answer, entry):
        return 1.0

DATASETS = {"doubling": Doubling, "countdown": Evaluating, "spiral_matrix": Evaluating, "puzzle24": Generous,
            "coin_flip": Generous, "game_of_life_halting": Generous}
'''


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
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


def make(
    generator: str, settings: dict[str, object], seed: int, train: int, heldout: int, threshold: float = 1.0
) -> tuple[list[Problem], list[Problem]]:
    task = ReasoningTask(
        kind="reasoning",
        generator=generator,
        settings=settings,
        threshold=threshold,
        train_problems=train,
        heldout_problems=heldout,
    )
    return make_problems(task, seed)


def tag(answer: object) -> str:
    return f"I think <answer>{answer}</answer>"


def test_problems_are_distinct_and_the_same_for_the_same_address():
    train, heldout = make("doubling", {}, 3, 20, 10)
    assert (len(train), len(heldout)) == (20, 10)
    assert len({problem.question for problem in train + heldout}) == 30
    assert (train, heldout) == make("doubling", {}, 3, 20, 10)
    assert make("doubling", {}, 100, 20, 10)[0] != train
    assert len({problem.id for problem in train + heldout}) == 30
    # Six numbers are too few for seven questions, and enough for four.
    few = {"largest": 6}
    assert len({problem.question for problem in make("doubling", few, 0, 3, 1)[0]}) == 3
    with pytest.raises(TaskError, match="expected 7 different questions of doubling, got [1-6]"):
        make("doubling", few, 0, 5, 2)


def test_only_a_full_score_counts_unless_the_threshold_says_otherwise():
    (problem,), _ = make("doubling", {}, 1, 1, 1)
    right = 2 * int(problem.question.split()[1])
    assert find_task("reasoning").grade is grade
    verdict = grade(problem, tag(right))
    assert (verdict.score, verdict.verdict, verdict.answer) == (1.0, "correct", str(right))
    assert grade(problem, rf"\boxed{{{right}}}").score == 1.0
    near = grade(problem, tag(right + 1))
    assert (near.score, near.verdict, near.detail) == (0.0, "wrong", "the verifier gives 0.5")
    assert grade(problem, str(right)).verdict == "unparsable"
    (lenient,), _ = make("doubling", {}, 1, 1, 1, threshold=0.5)
    assert grade(lenient, tag(right + 1)).score == 1.0
    assert grade(lenient, tag(right + 2)).score == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (tag(5), "5"),
        ("<answer>5</answer> no: <answer> 6 </answer>", "6"),
        ("<answer>5 <answer>6</answer>", "6"),
        ("<answer>1\n2</answer>", "1\n2"),
        (r"\boxed{7}", "7"),
        (r"<answer>5</answer> \boxed{7}", "5"),
        *((text, None) for text in ("", "5", "<answer>5", "<answer></answer>", r"\boxed{}")),
    ],
)
def test_the_last_tag_or_box_is_the_answer(text, answer):
    assert read_answer(text) == answer


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch owned')",
        "open('owned', 'w').close()",
        "exec('1')",
        "[].__class__",
        "x.real",
        "(lambda: 1)()",
        "9**9**9",
        "((9**99)**99)**99**9",
        "[open('owned','w')]",
        "f'{1}'",
        "factorial(99999999)",
        "S('1')",
        "N.x",
    ],
)
@pytest.mark.parametrize("generator", ["countdown", "spiral_matrix"])
def test_verifiers_that_evaluate_are_given_nothing_that_can_do_harm(attack, generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (problem,), _ = make(generator, {}, 1, 1, 1)
    assert grade(problem, tag(attack)).verdict in ("unparsable", "wrong")
    assert not (tmp_path / "owned").exists()
    assert not reasoning._SCREENS[generator](attack)


def test_verifiers_that_evaluate_are_given_plain_answers():
    (problem,), _ = make("countdown", {}, 1, 1, 1)
    number = problem.question.split()[1]
    assert grade(problem, tag(f"({number} + {number})*1")).score == 1.0
    assert grade(problem, tag(f"{number} * 3")).score == 0.0
    for text in (
        "-34*x**8/15 - 5*x/4 + C",
        "-4*(-2*x - 8)**(3/2)/3 + C",
        "2*x*sin(x) + exp(x)",
        "10*(8 - 5) - 6",
        "x^2",
    ):
        assert reasoning._SCREENS["countdown"](text)
    for text in ("1 2 3", "[[1, 0], [0, 1]]", "['a', 'b']", "_ _ Q _\n_ Q _ _", "ABCDE"):
        assert reasoning._SCREENS["spiral_matrix"](text)


def test_verifiers_that_pay_wrong_answers_in_full_have_a_check_before_them():
    entry = {"answer": "0.3125", "metadata": {"numbers": [8, 3, 3, 1]}}
    assert reasoning._CHECKS["puzzle24"]("8*3*(3-1)", entry | {"metadata": {"numbers": [8, 3, 3, 1]}})
    assert not reasoning._CHECKS["puzzle24"]("4*6*1*1", entry)
    assert reasoning._CHECKS["coin_flip"]("5/16", entry) and not reasoning._CHECKS["coin_flip"]("0", entry)
    word = {"answer": "False"}
    assert reasoning._CHECKS["game_of_life_halting"]("false", word)
    assert not reasoning._CHECKS["game_of_life_halting"]("True", word)
    (problem,), _ = make("game_of_life_halting", {}, 1, 1, 1)
    assert grade(problem, tag("True")).verdict == "wrong"


def test_what_cannot_be_made_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(TaskError, match="task.generator: expected one like doubling, got 'dubling'"):
        make("dubling", {}, 0, 1, 1)
    with pytest.raises(TaskError, match="task.generator: expected one of coin_flip, countdown, .*, got 'qqq'"):
        make("qqq", {}, 0, 1, 1)
    with pytest.raises(TaskError, match=r"task.settings: the generator doubling refuses \{.*\} \(largest must"):
        make("doubling", {"largest": 0}, 0, 1, 1)
    with pytest.raises(TaskError, match="task.settings: .* unexpected keyword"):
        make("doubling", {"smallest": 0}, 0, 1, 1)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    reasoning._load_dataset.cache_clear()
    with pytest.raises(TaskError, match=r"task.kind: reasoning needs the package reasoning-gym \(pip install"):
        make("doubling", {}, 0, 1, 1)


def test_a_problem_of_another_task_is_refused():
    with pytest.raises(TaskError, match="problem 0: the answer is no address"):
        grade(Problem(0, "0", "Q", "18"), tag(18))


def test_load_reads_addresses(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [
        {"generator": "doubling", "size": 10, "seed": 1, "index": 4},
        {"id": "a", "generator": "doubling", "size": 10, "seed": 1, "index": 5, "threshold": 0.5},
        {"id": "b", "generator": "doubling", "size": 10, "seed": 1, "index": 5, "settings": {"largest": 1}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    plain, lenient, small = load_problems(str(path))
    assert (plain.id, lenient.id, small.id) == ("0", "a", "b")
    assert (plain.index, lenient.index) == (0, 1)
    assert small.question == "twice 0 ?" and grade(small, tag(0)).score == 1.0
    for change, reason in (
        ({"index": 10}, r"an index below the size, got \[10, 1, 10\]"),
        ({"seed": -1}, "expected a size, a seed and an index"),
        ({"settings": []}, "expected an object as settings, got list"),
        ({"threshold": 0}, "expected a threshold above 0 and at most 1, got 0"),
        ({"generator": 5}, "'generator' must be text, got int"),
    ):
        path.write_text(json.dumps(rows[0] | change))
        with pytest.raises(TaskError, match=f"set.jsonl, line 1: .*{reason}"):
            load_problems(str(path))


REAL = ["basic_arithmetic", "countdown", "spell_backward", "spiral_matrix", "puzzle24", "leg_counting", "coin_flip"]


@pytest.mark.parametrize("generator", REAL if HAS_PACKAGE else ["doubling"])
def test_a_generators_own_answers_are_correct_and_others_are_not(generator, monkeypatch):
    if HAS_PACKAGE:
        monkeypatch.undo()  # the stand-in goes, the real package comes back
        for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
            del sys.modules[name]
    problems, _ = make(generator, {}, 5, 3, 1)
    for problem in problems:
        _, settings, size, seed, index, _ = json.loads(problem.answer)
        entry = reasoning._load_dataset(generator, json.dumps(settings), size, seed)[index]
        assert grade(problem, tag(entry["answer"])).score == 1.0
        assert grade(problem, tag("-1")).verdict == "wrong"
