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
