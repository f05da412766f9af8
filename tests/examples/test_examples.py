"""The examples, each run as a user would: against the installed wheel, from an empty folder, by the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel unpacked in it, as pip installs it, and nothing of the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "c3jax", source / "c3jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(command, check=True, cwd=source)
    return target


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where these runs cache what they compile."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(wheel: Path, home: Path, tmp_path: Path):
    """Run Python in an empty folder that holds the examples asked for, with the wheel's c3jax."""

    def run_python(*words: str, files: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        for name in files:
            shutil.copy(EXAMPLES / name, tmp_path)
        # The wheel is found before the editable install. Programs here compile for seconds and run for milliseconds.
        quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
        environment = os.environ | {"PYTHONPATH": str(wheel), "XDG_CACHE_HOME": str(home)} | quick
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return run_python


def train(run, tmp_path: Path, config: str, files: tuple[str, ...], *overrides: str) -> Path:
    program = "import sys, c3jax.cli; print(c3jax.__file__); sys.exit(c3jax.cli.main())"
    small = ("--steps", "2", "--problems", "8", "--evaluation.problems", "8")
    small += ("--evaluation.batch", "8", "--evaluation.samples", "0", "--model.layers", "1")
    done = run("-c", program, "train", config, *small, *overrides, files=files)
    assert str(ROOT) not in done.stdout.partition("\n")[0]
    return tmp_path / "runs" / Path(config).stem


def read_metrics(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_task_of_ones_own_trains(run, tmp_path):
    warm_up = ("--imitation.updates", "2", "--imitation.problems", "8")
    path = train(run, tmp_path, "own_task.yaml", ("own_task.py", "own_task.yaml"), *warm_up)
    rows = read_metrics(path)
    assert len(rows) == 2 and all(row["error_share"] == 0.0 for row in rows)
    assert list(json.loads((path / "manifest.json").read_text())["inputs"]["modules"]) == ["own_task:RIDDLES"]


def test_a_plain_function_grades(run, tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"id": "a", "question": "Who?", "answer": "Ada Lovelace"}\n')
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "answer": "It was Ada, I think."}\n')
    words = ("grade", "own_task:grade_list", "problems.jsonl", "answers.jsonl", "--out", "verdicts.jsonl")
    run("-m", "c3jax.cli", *words, files=("own_task.py",))
    assert json.loads((tmp_path / "verdicts.jsonl").read_text()) == {
        "id": "a",
        "return": 0.5,
        "verdict": "partial",
        "detail": "",
    }


def test_the_answers_at_hand_are_graded(run, tmp_path):
    words = ("grade", "math", "problems.jsonl", "answers.jsonl", "--out", "verdicts.jsonl")
    run("-m", "c3jax.cli", *words, files=("problems.jsonl", "answers.jsonl"))
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [(row["id"], row["return"]) for row in verdicts] == [
        *(("sides", 1.0), ("half", 1.0), ("roots", 1.0), ("length", 0.0))
    ]


def test_an_environment_of_ones_own_answers(run, tmp_path):
    turn = "--protocol.turns.1"
    named = (f"{turn}.environment.kind", "own_environment:NUMBER", f"{turn}.environment.settings", "{most: 9}")
    small = ("--imitation", "null", "--credit.fan_out", "[2,1,2]", "--credit.budget", "4", f"{turn}.max_tokens", "3")
    path = train(run, tmp_path, "tool_arithmetic", ("own_environment.py",), *named, *small)
    trees = [json.loads(line) for line in (path / "rollouts" / "step-000000.jsonl").read_text().splitlines()]
    answers = [node for tree in trees for node in tree["nodes"] if node["turn"] == "result"]
    assert len(answers) == 16 and {node["role"] for node in answers} == {"environment"}
    assert {node["text"] for node in answers} <= {"a number please", "found", "higher", "lower"}
    assert not any(node["failed"] for node in answers)
    modules = json.loads((path / "manifest.json").read_text())["inputs"]["modules"]
    assert list(modules) == ["own_environment:NUMBER"]


def test_the_configs_come_along(run):
    names = ("quickstart", "trio", "debate", "math_qwen")
    code = f"from c3jax.config.file import load_config; print([load_config(name).seed for name in {names}])"
    assert run("-c", code).stdout == "[0, 0, 0, 0]\n"


def test_a_protocol_of_ones_own_trains(run, tmp_path):
    path = train(run, tmp_path, "own_protocol.yaml", ("own_protocol.yaml",), "--imitation", "null")
    (tree,) = [json.loads(line) for line in (path / "rollouts" / "step-000000.jsonl").read_text().splitlines()][:1]
    assert [node["turn"] for node in tree["nodes"]] == ["first"] * 2 + ["second"] * 4 + ["referee"] * 8


def test_a_method_a_loss_and_a_tracker_of_ones_own_train(run, tmp_path):
    files = ("own_task.py", "own_task.yaml", "own_method.py", "own_loss.py", "own_tracker.py")
    names = ("own_method:BLENDED", "./own_loss.py:SOFT_CLIP", "own_tracker:open_csv")
    overrides = (
        "--imitation",
        "null",
        "--credit.method",
        names[0],
        "--learner.loss.kind",
        names[1],
        "--trackers",
        f"[{names[2]!r}]",
    )
    path = train(run, tmp_path, "own_task.yaml", files, *overrides, "--imitation", "null")
    assert len(read_metrics(path)) == 2  # the record is written whether it is named or not
    assert (path / "figures.csv").read_text().splitlines()[0] == "step,return,kl,tokens_per_second"
    assert list(json.loads((path / "manifest.json").read_text())["inputs"]["modules"]) == ["own_task:RIDDLES", *names]
    run("-m", "c3jax.cli", "score", str(path), "--method", names[0], "--out", "scored.jsonl")
    scored = json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])
    recorded = json.loads((path / "rollouts" / "step-000000.jsonl").read_text().splitlines()[0])
    for node, other in zip(scored["nodes"], recorded["nodes"], strict=True):
        assert abs(node["advantage"] - other["advantage"]) < 1e-6


def test_the_library_takes_a_step_by_hand(run):
    done = run("library.py", "own_task.yaml", files=("library.py", "own_task.py", "own_task.yaml"))
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{4 * (2 + 8)} messages, ") and lines[1].startswith("question: largest of ")
    assert [line.partition(":")[0] for line in lines[4:]] == ["c3", "no_loo", "one update"]


# Other people's trainers. Their packages and torch are not here: each example meets the names that it imports, and
# arrays and objects of the shapes that its docstring states.

TORCH = "from numpy import asarray as as_tensor\n"
REGISTRY = "FUNCTIONS = {}\ndef NAME(name):\n    return lambda function: FUNCTIONS.setdefault(name, function)\n"
TRAINERS = {
    "verl_estimator.py": {
        "torch.py": TORCH,
        "verl/trainer/ppo/core_algos.py": REGISTRY.replace("NAME", "register_adv_est"),
    },
    "rllm_estimator.py": {
        "rllm/trainer/algorithms/advantage.py": REGISTRY.replace("NAME", "register_rllm_adv_estimator"),
    },
    "prime_rl_algorithm.py": {
        "prime_rl/orchestrator/algo/base.py": "class Algorithm: ...\n\n"
        "def iter_trainable_traces(episodes):\n    return ((e, trace) for e in episodes for trace in e.traces)\n",
        "prime_rl/orchestrator/algo/routing.py": "def assign_advantages(trace, values):\n    trace.credit = values\n",
    },
    "trl_trainer.py": {
        "torch.py": "from trl import Rewards as as_tensor\n",
        "trl.py": """
import numpy

class GRPOTrainer:
    def _calculate_rewards(self, inputs):
        return Rewards([[row["reward"], 0.0] for row in inputs])

    def _generate_and_score_completions(self, inputs):
        self._calculate_rewards(inputs)
        mask = numpy.array([[1, 1, 0, 1, 0]] * len(inputs))
        return {"advantages": None, "completion_mask": mask, "tool_mask": numpy.ones_like(mask)}

class Rewards(numpy.ndarray):
    device = "cpu"
    def __new__(cls, rows):
        return numpy.array(rows).view(cls)
    def to(self, device):
        return self
    def nansum(self, dim):
        return numpy.nansum(numpy.asarray(self), axis=dim)
""",
    },
}


@pytest.fixture
def run_trainer(run, tmp_path: Path):
    """Run a program that uses an example, which must not load JAX; what it prints, as JSON."""

    def run_program(example: str, program: str) -> list:
        for name, text in TRAINERS[example].items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        check = "\nimport sys; assert 'jax' not in sys.modules"
        return json.loads(run("-c", program + check, files=(example,)).stdout)

    return run_program


def test_verl_has_an_estimator(run_trainer):
    """Leave-one-out within a uid; with uids of contexts c3, a message a run of the mask, what is shared once."""
    program = """
import json, numpy as np, verl_estimator
from verl.trainer.ppo.core_algos import FUNCTIONS
rewards, mask = np.zeros((4, 4)), np.array([[1, 1, 0, 1]] * 4)
rewards[:, 3] = [1, 0, 0, 0.5]
arguments = {"token_level_rewards": rewards, "response_mask": mask, "config": None}
flat, returns = FUNCTIONS["c3jax"](index=np.array(["u", "u", "v", "v"], object), **arguments)
assert returns is flat
verl_estimator.METHOD = "c3"
tree, _ = FUNCTIONS["c3jax"](index=np.array(["q/a", "q/b", "q/b", "q/a"], object), **arguments)
print(json.dumps([flat.tolist(), tree.tolist()]))
"""
    flat, tree = run_trainer("verl_estimator.py", program)
    assert flat == [[x, x, 0, x] for x in (1, -1, -0.5, 0.5)]
    # Context a: 1 and 1/2, so its message is worth 3/4; b: 0. Rows 0 and 1 are the first of theirs.
    assert tree == [[0.75, 0.75, 0, 0.5], [-0.75, -0.75, 0, 0], [0, 0, 0, 0], [0, 0, 0, -0.5]]


def test_rllm_has_an_estimator(run_trainer):
    program = """
import json, numpy as np, rllm_estimator
from types import SimpleNamespace as N
from rllm.trainer.algorithms.advantage import FUNCTIONS
groups = [N(trajectories=[N(info=info) for info in infos]) for infos in ([{}] * 3, [{"context": c} for c in "abab"])]
rewards = [np.array([1.0, 0, 0]), np.array([1.0, 0, 0.5, 0])]
advantages, _ = FUNCTIONS["c3jax"](rewards=rewards, algorithm_config=None, traj_groups=groups)
print(json.dumps([part.tolist() for part in advantages]))
"""
    assert run_trainer("rllm_estimator.py", program) == [[1, -0.5, -0.5], [0.5, 0, -0.5, 0]]


def test_prime_rl_has_an_algorithm(run_trainer):
    """Two proposals, two attempts each: the proposals are worth 1/2 and 0."""
    program = """
import asyncio, json, prime_rl_algorithm
from types import SimpleNamespace as N
make = lambda name, reward: N(agent=N(name=name), reward=reward)
attempts = {"a": (1.0, 0.0), "b": (0.0, 0.0)}
episodes = [N(id=i, traces=[make("proposer", 9), *(make("solver", r) for r in rs)]) for i, rs in attempts.items()]
asyncio.run(prime_rl_algorithm.C3Algorithm().score_group(episodes))
print(json.dumps([[trace.credit for trace in episode.traces] for episode in episodes]))
"""
    assert run_trainer("prime_rl_algorithm.py", program) == [[0.5, 1, -1], [-0.5, 0, 0]]


def test_trl_has_a_trainer_and_a_reward_function(run_trainer):
    program = """
import json, trl, trl_trainer
from types import SimpleNamespace as N
trainer = trl_trainer.CreditTrainer()
trainer.num_generations, trainer.model, trainer.reward_weights = 4, N(training=True), trl.Rewards([1.0, 1.0])
rows = [{"reward": reward} for reward in (1, 0, 0, 1)]
flat = trainer._generate_and_score_completions(rows)["advantages"].tolist()
trl_trainer.METHOD = "c3"
rows = [row | {"context": [c]} for row, c in zip(rows, "aabb")]
tree = trainer._generate_and_score_completions(rows)["advantages"].tolist()
reward = trl_trainer.reward_as_advantage("ppqq", ["is 4", "is 5", "is 6", "six"], list("4466"), completion_ids=[])
print(json.dumps([flat, tree, reward]))
"""
    flat, tree, reward = run_trainer("trl_trainer.py", program)
    assert flat == [pytest.approx([x, x, 0, x, 0]) for x in (2 / 3, -2 / 3, -2 / 3, 2 / 3)]
    assert tree == [[0, 0, 0, 1, 0], [0, 0, 0, -1, 0], [0, 0, 0, -1, 0], [0, 0, 0, 1, 0]]
    assert reward == [1, -1, 1, -1]
