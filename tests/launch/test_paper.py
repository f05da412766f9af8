"""The matrix of the paper's runs: what is left to run, with a stand-in for the program that does it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from c3jax.config.credit import make_plan
from c3jax.config.file import load_config
from c3jax.config.run import slots_in
from c3jax.credit.plans import count_calls
from c3jax.run.jobs import Job, run_jobs
from launch import paper

ROOT = Path(__file__).resolve().parents[2]
LONG = paper.CONFIGS / "long"
# In place of `python -m c3jax.cli`: notes its words, and leaves what a training run or an evaluation leaves.
STAND_IN = """
import json, os, sys, time
from pathlib import Path
words = sys.argv[1:]
with open("calls", "a") as file:
    file.write(json.dumps(words) + "\\n")
code = json.loads(Path("codes").read_text()).get(words[0], 0)
if "wait" in words:
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    Path("waiting").touch()
    time.sleep(600)
if code == 0:
    is_run = words[0] == "evaluate" and "--out" not in words
    folder = words[1] if is_run else words[words.index("--run-dir" if words[0] == "train" else "--out") + 1]
    step = 0 if "--out" in words else 590
    file = Path(folder, "eval", "after.json" if words[0] == "train" else f"suites-{step}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"step": step, "results": []}))
sys.exit(code)
"""


@pytest.fixture
def run_matrix(tmp_path, monkeypatch, capsys):
    """Run paper.py in an empty folder, where `c3jax` ends with these exit statuses; its status and c3jax's words."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(paper, "PROGRAM", [sys.executable, str(tmp_path / "stand_in.py")])

    def run(*words: str, **codes: int) -> tuple[int, list[list[str]]]:
        (tmp_path / "codes").write_text(json.dumps(codes))
        (tmp_path / "calls").write_text("")
        status = paper.main(list(words))
        return status, [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return run


def test_a_cell_is_trained_and_evaluated_over_seeds_and_then_skipped(run_matrix):
    cell = "maths_qwen3_4b_duo_c3"
    config = str(ROOT / "configs" / "paper" / f"{cell}.yaml")
    status, calls = run_matrix(cell, "--seeds", "0,3", "--", "--policy.kind", "adapters")
    assert status == 0
    assert calls == [
        words
        for seed in ("0", "3")
        for path in [f"runs/paper/{cell}/seed-{seed}"]
        for words in (
            ["train", config, "--seed", seed, "--run-dir", path, "--policy.kind", "adapters"],
            ["evaluate", path],
        )
    ]
    assert run_matrix(cell, "--seeds", "0,3") == (0, [])
    Path("runs/paper", cell, "seed-3", "eval", "suites-590.json").unlink()
    assert run_matrix(cell, "--seeds", "0,3") == (0, [["evaluate", f"runs/paper/{cell}/seed-3"]])


def test_an_evaluation_that_lacks_a_suite_is_made_again(run_matrix):
    cell = "code_qwen2.5_coder_3b_trio_mappo"
    run_matrix(cell, "--seeds", "0")
    path = Path("runs/paper", cell, "seed-0")
    rows = [{"suite": "mbppplus", "missing": "no such file"}]
    (path / "eval" / "suites-590.json").write_text(json.dumps({"step": 590, "results": rows}))
    assert run_matrix(cell, "--seeds", "0") == (0, [["evaluate", str(path)]])


def test_a_model_is_evaluated_before_training_once_whatever_the_seeds(run_matrix):
    status, calls = run_matrix("maths_*_duo_untuned", "--seeds", "1,2")
    assert status == 0 and [words[0] for words in calls] == ["evaluate"] * 2
    assert calls[0][2:] == ["--seed", "1", "--out", "runs/paper/maths_qwen2.5_3b_duo_untuned/seed-1"]


def test_a_cell_that_fails_is_named_and_the_others_go_on(run_matrix, capsys):
    status, calls = run_matrix("code_*_duo_c3", "code_*_duo_magrpo", "--seeds", "0", train=2)
    assert status == 1 and [words[0] for words in calls] == ["train", "train"]
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        f"paper: failed: code_qwen2.5_coder_3b_duo_{method}, seed 0 (exit status 2)" for method in ("c3", "magrpo")
    ]


def test_a_run_that_stopped_on_request_stops_the_matrix(run_matrix):
    status, calls = run_matrix("maths_qwen3_4b_duo_*", "--seeds", "0", train=75)
    assert status == 75 and [words[0] for words in calls] == ["evaluate", "train"]


def test_a_request_to_stop_reaches_the_run(tmp_path):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "codes").write_text("{}")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from launch import paper;"
        f" paper.PROGRAM = [sys.executable, 'stand_in.py'];"
        " sys.exit(paper.main(['maths_qwen3_4b_duo_c3', '--', 'wait']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "waiting").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 75


def test_commands_in_this_process_stop_at_a_signal_and_one_that_fails_is_named():
    called = []

    def call(words: list[str]) -> int:
        called.append(words[0])
        if words[0] == "c":
            os.kill(os.getpid(), signal.SIGTERM)
        return 2 if words[0] == "b" else 0

    outcome = run_jobs([Job(name, [[name]]) for name in "abcd"], lambda line: None, call=call)
    assert outcome == (["b (exit status 2)"], 75) and called == ["a", "b", "c"]


def test_the_whole_matrix_and_the_long_one(run_matrix, capsys):
    assert run_matrix("--dry-run", "--seeds", "0") == (0, [])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 + 30 * 2 + 1 and lines[-1] == "c3jax table runs/paper"
    assert run_matrix("--dry-run", "--long", "--seeds", "0,1,2,3,4")[0] == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (6 + 3) + (30 + 6) * 2 * 5 + 1 and "configs/paper/long/" in lines[0]
    assert lines[-1] == "c3jax table runs/paper/long --configs paper/long"


@pytest.mark.parametrize(
    "cell", [cell for cell in paper.list_cells(paper.CONFIGS) if cell.is_trained], ids=lambda cell: cell.name
)
def test_a_tiny_cell_is_its_method_on_the_quickstarts_policy_and_task(tmp_path, cell):
    config, full = load_config(paper.write_tiny(tmp_path, cell)), load_config(cell.config)
    twin = load_config("trio" if "_trio_" in cell.name else "quickstart")
    assert (config.model, config.protocol, config.task.kind) == (twin.model, twin.protocol, "arithmetic")
    assert (config.credit.method, config.credit.fan_out) == (full.credit.method, full.credit.fan_out)
    assert config.steps <= 4 and config.imitation is not None and config.imitation.updates <= 20


@pytest.mark.parametrize("team", ["chain5", "chain10", "branch"])
@pytest.mark.parametrize("method", ["c3", "magrpo"])
def test_a_tiny_cell_of_many_roles_reads_what_its_roles_read(tmp_path, team, method):
    (cell,) = [cell for cell in paper.list_cells(LONG) if cell.name == f"maths_qwen3_4b_{team}_{method}"]
    config, full = load_config(paper.write_tiny(tmp_path, cell)), load_config(cell.config)
    assert config.credit == full.credit and config.task.kind == "arithmetic"
    reads = [[(turn.role, slots_in(turn.user)) for turn in each.protocol.turns] for each in (config, full)]
    assert reads[0] == reads[1]


@pytest.mark.parametrize("team", ["chain5", "chain10", "branch", "duo", "trio"])
def test_a_context_holds_a_roles_ancestors_and_their_ancestors(team):
    turns = load_config(LONG / f"maths_qwen3_4b_{team}_c3.yaml").protocol.turns
    reads = {turn.name: set(slots_in(turn.user)) for turn in turns}
    assert all(reads[name] <= read for read in reads.values() for name in read - {"question"})
    names = [turn.name for turn in turns]
    if team == "branch":
        reads_of_integrator = {"question", "planner", "solver_a", "solver_b"}
        assert [*reads.values()] == [{"question"}, *[{"question", "planner"}] * 2, reads_of_integrator]
    else:
        assert [*reads.values()] == [{"question", *names[:index]} for index in range(len(names))]


@pytest.mark.parametrize(("team", "calls"), [("chain5", 10), ("chain10", 20), ("branch", 8)])
def test_methods_of_many_roles_cost_the_same_calls(team, calls):
    configs = [load_config(LONG / f"maths_qwen3_4b_{team}_{method}.yaml") for method in ("c3", "magrpo")]
    plans = [make_plan(config.credit, len(config.protocol.turns)) for config in configs]
    assert [count_calls(plan) for plan in plans] == [config.credit.budget for config in configs] == [calls] * 2


def test_samples_hold_the_sampling_error_of_a_suite_to_about_a_point_and_a_half():
    """sqrt(p (1 - p) / (N k)), with the authors' accuracies before training; AIME's two sets are one suite of 60."""
    evaluation = load_config(LONG / "maths_qwen3_4b_duo_c3.yaml").evaluation
    samples = {suite.name: suite.samples or evaluation.samples for suite in evaluation.suites}
    samples["math500"] = evaluation.samples
    known = {"math500": (500, 0.89), "minerva_math": (272, 0.64), "amc23": (40, 0.75), "aime24": (60, 0.30)}
    errors = {name: 100 * math.sqrt(p * (1 - p) / (n * samples[name])) for name, (n, p) in known.items()}
    assert {name: round(error, 1) for name, error in errors.items()} == {
        "math500": 0.7, "minerva_math": 1.5, "amc23": 1.7, "aime24": 1.5
    }  # fmt: skip
    assert samples["aime25"] == samples["aime24"] and {samples["gsm8k"], samples["cmath"]} == {4}
    caps = {turn.max_tokens for turn in load_config(LONG / "maths_qwen3_4b_chain10_c3.yaml").protocol.turns}
    assert caps == {2048}


def test_what_cannot_be_asked_for_is_said(run_matrix, capsys):
    assert run_matrix("maths_qwen9")[0] == 2
    assert capsys.readouterr().err.startswith("paper: expected names or patterns of ")
    with pytest.raises(SystemExit) as caught:
        run_matrix("--seeds", "a")
    assert (
        caught.value.code == 2
        and "--seeds: expected numbers with commas between them, or a range as 0:5, got 'a'" in capsys.readouterr().err
    )
