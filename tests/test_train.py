"""Whole runs: they learn, and killed and resumed they equal a run that was never killed, bit for bit."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax import train
from c3jax.config import file as config_file
from c3jax.config.run import RandomModel
from c3jax.credit.plans import make_tree
from c3jax.learner.state import init_state, pack_state, unpack_state
from c3jax.models.decoder import make_decoder
from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.huggingface.families import FAMILIES
from c3jax.models.load import describe_model, load_params
from c3jax.models.policy import Weights
from c3jax.models.sharding import join_problems
from c3jax.models.spec import QKV, DecoderSpec
from c3jax.models.tokenizer import make_word_tokenizer
from c3jax.rollout import address
from c3jax.rollout.collect import decode_messages
from c3jax.run.checkpoint import restore_step
from c3jax.run.directory import list_steps
from c3jax.run.jobs import load_evaluation
from c3jax.run.metrics import drop_times, read_metrics
from c3jax.setup.team import choose_problems, make_questions, make_setup

CONFIGS = Path(__file__).parent.parent / "configs"
STEPS = 8
SMALL = {
    "steps": STEPS,
    "problems": 8,
    "task.train_problems": 64,
    "task.heldout_problems": 16,
    "model.layers": 1,
    "model.width": 16,
    "model.mlp_width": 32,
    "imitation.updates": 3,
    "imitation.problems": 4,
    "learner.epochs": 2,
    "evaluation.every": 3,
    "evaluation.problems": 16,
    "evaluation.batch": 16,
    "checkpoint.every": 2,
    "checkpoint.best": "sampled_accuracy",
    "record_every": 3,
    "workers": 1,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A compilation cache of this file's own, so that only its first process compiles."""
    return tmp_path_factory.mktemp("cache")


def start(run: Path, cache: Path, overrides: dict[str, Any], is_quick: bool = True, **others: str) -> subprocess.Popen:
    """The quickstart with other settings, compiled quickly, for milliseconds of work, or as a user's is."""
    words = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "c3jax.cli", "train", str(CONFIGS / "quickstart.yaml"), "--run-dir", str(run)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(is_quick).lower()}
    if not is_quick:
        environment.pop("XLA_FLAGS", None)
    environment |= others
    return subprocess.Popen(
        [*command, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


def wait_for_rows(process: subprocess.Popen, run: Path, rows: int) -> None:
    for _ in range(20_000):
        file = run / "metrics.jsonl"
        if file.exists() and file.read_text().count("\n") >= rows:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"no {rows} rows within seven minutes")


def describe_saved(setup):
    """Shapes of what a checkpoint of the team's run holds."""
    config = setup.config
    sections = (setup.plans, config.credit, config.learner, config.async_steps > 0)
    return jax.eval_shape(lambda weights: pack_state(init_state(setup.policy, weights, *sections), None), setup.weights)


def load_state(run: Path):
    config = config_file.load_config(run / "config.yaml")
    setup = make_setup(config)
    return restore_step(run, STEPS, describe_saved(setup))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    code, text = finish(start(run, cache, SMALL))
    assert code == 0, text
    return run


def test_killed_and_resumed_equals_never_killed(unbroken, cache, tmp_path):
    run = tmp_path / "run"
    process = start(run, cache, SMALL | {"steps": 5})
    wait_for_rows(process, run, 3)
    process.send_signal(signal.SIGTERM)  # a wish: the step ends and its checkpoint is written
    code, text = finish(process)
    assert code == 75 and "the same command resumes it" in text
    assert list_steps(run)[-1] == len(read_metrics(run))

    process = start(run, cache, SMALL)  # of more steps
    wait_for_rows(process, run, 6)
    process.kill()  # no warning at all
    assert "the run of 5 steps goes on to step 8" in finish(process)[1]
    assert list_steps(run)[-1] < STEPS

    newest = run / "checkpoints" / str(list_steps(run)[-1])
    largest = max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])  # a damaged newest checkpoint, too
    code, text = finish(start(run, cache, SMALL))
    assert code == 0, text
    assert "damaged" in text

    assert [drop_times(row) for row in read_metrics(run)] == [drop_times(row) for row in read_metrics(unbroken)]
    jax.tree.map(np.testing.assert_array_equal, load_state(run), load_state(unbroken))
    for name in ("eval/before.json", "eval/after.json", "eval/step-3.json", "rollouts/step-000006.jsonl"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name


def start_two(run: Path, cache: Path) -> list[subprocess.Popen]:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    common = {"C3JAX_COORDINATOR": f"localhost:{port}", "C3JAX_PROCESSES": "2"}
    return [start(run, cache, SMALL, **common, C3JAX_PROCESS=str(index)) for index in range(2)]


def test_two_processes_end_together_and_one_goes_on_with_what_they_saved(unbroken, cache, tmp_path):
    run = tmp_path / "run"
    first, second = start_two(run, cache)
    wait_for_rows(first, run, 3)
    second.kill()
    began = time.monotonic()
    code, text = finish(first)
    assert time.monotonic() - began < 60 and code not in (0, 2)
    # Our sentence, or, where the runtime notices first, its own.
    assert "another process of this run is gone" in text or "another task died" in text, text
    second.wait()

    code, text = finish(start(run, cache, SMALL))
    assert code == 0, text
    for row, right in zip(*(read_metrics(path) for path in (run, unbroken)), strict=True):
        assert drop_times(row) | {"traces": 2} == pytest.approx(drop_times(right), rel=1e-4, abs=1e-5)


def test_a_run_keeps_its_books(unbroken):
    rows = read_metrics(unbroken)
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row in rows:
        assert row["evaluator_calls"] == 8 * 8  # problems times budget, counted where the calls are made
        assert row["messages"] == 8 * (2 + 8)
        assert row["traces"] == 2  # one of sampling and one of the update, in the whole run
        assert row["first_ratio_deviation"] < 1e-5
        assert 0 <= row["zero_credit_share"] <= 1
        assert row["generated_tokens"] <= 8 * (2 * 16 + 8 * 4)
    trees = [json.loads(line) for line in (unbroken / "rollouts" / "step-000003.jsonl").read_text().splitlines()]
    assert len(trees) == 8
    assert sum("return" in node for node in trees[0]["nodes"]) == 8
    assert sum(node["return"] for tree in trees for node in tree["nodes"] if "return" in node) / 64 == pytest.approx(
        rows[3]["return"]
    )
    kept = {"config.yaml", "manifest.json", "metrics.jsonl", "report.html", "tensorboard"}
    assert kept <= {p.name for p in unbroken.iterdir()}


def test_the_finished_run_is_not_trained_again(unbroken, cache):
    before = (unbroken / "metrics.jsonl").read_bytes()
    code, text = finish(start(unbroken, cache, SMALL))
    assert code == 0 and "held-out accuracy" in text
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_a_run_of_another_config_is_refused(unbroken, cache):
    before = {file: file.stat().st_mtime_ns for file in unbroken.rglob("*") if file.is_file() and file.name != ".lock"}
    code, text = finish(start(unbroken, cache, SMALL | {"seed": 1}))
    assert code == 2
    assert text.count("\n") == 1 and "seed" in text
    assert before == {
        file: file.stat().st_mtime_ns for file in unbroken.rglob("*") if file.is_file() and file.name != ".lock"
    }


def test_the_saved_config_is_a_config(unbroken):
    config = config_file.load_config(unbroken / "config.yaml")
    assert config.steps == STEPS and config.credit.fan_out == (2, 4)


@pytest.fixture
def quick_compiler():
    """Without the compiler's costly passes, where programs compile for seconds and run for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("quick_compiler")
def test_a_run_of_several_sets_says_what_it_mixed_and_dropped(tmp_path, monkeypatch):
    section = RandomModel(kind="random", layers=1, width=8, heads=1, key_value_heads=1, mlp_width=8)
    model = describe_model(section, "how many are one two three plus ? : a".split())
    hf_weights.save_folder(tmp_path / "model", model.spec, load_params(model, jax.random.key(0)))
    model.tokenizer.save(str(tmp_path / "model"))
    sets = {
        "easy/train": ["one plus one ?", "one plus two ?", "two plus one ?"],
        "hard/train": ["one plus one plus one ?", "how many are three ?", "three plus three ?"],
        "test": ["one  plus two ?"],  # but for a space, the second of easy/train
    }
    for name, questions in sets.items():
        lines = [json.dumps({"question": question, "answer": 2}) for question in questions]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tree = {
        **{"seed": 0, "steps": 2, "problems": 3, "workers": 1, "record_every": 1},
        "task": {
            "kind": "numeric",
            "path": [{"path": "easy/train.jsonl"}, {"path": "hard/train.jsonl", "weight": 2.0}],
            "heldout_path": "test.jsonl",
        },
        "data": {"drop_overlap": True},
        "protocol": {
            "question_tokens": 8,
            "turns": [{"name": "answer", "role": "a", "user": "{question} :", "max_tokens": 2}],
        },
        "model": {"kind": "folder", "path": "model"},
        "credit": {"method": "rloo", "fan_out": [2], "budget": 2, "normalise": "none"},
        "learner": {"learning_rate": 1e-3},
        "evaluation": {"samples": 0},
    }
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO(), width=80)
    assert train.train(config_file.parse_config(tree), tmp_path / "run", ["train"], console) == train.DONE
    said = "training problems that share something with a held-out set: heldout: 1 normalised, of which 1 are dropped"
    assert said in console.file.getvalue()
    for row in read_metrics(tmp_path / "run"):
        assert (row["problems_easy/train"], row["problems_hard/train"]) == (1, 2)
        assert row["return"] == pytest.approx((row["return_easy/train"] + 2 * row["return_hard/train"]) / 3)
    trees = [json.loads(line)["problem"] for line in (tmp_path / "run" / "rollouts" / "step-000000.jsonl").open()]
    assert [problem.partition(":")[0] for problem in trees] == ["easy/train", "hard/train", "hard/train"]
    data = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert [part["problems"] for part in data["train"]] == [2, 3] and data["dropped"] == ["easy/train:1"]
    assert data["train"][0]["sha256"] == hashlib.sha256(Path("easy/train.jsonl").read_bytes()).hexdigest()


@pytest.mark.usefixtures("quick_compiler")
def test_the_settings_for_qwen_run_with_a_small_one(tmp_path, monkeypatch):
    """bfloat16, adapters, lengths and batches cut, trees in two calls: all but the sizes as the file has it."""
    overrides = {
        **{"steps": 2, "problems": 4, "rollout_problems": 2, "workers": 1, "learner.epochs": 1},
        **{"evaluation.problems": 2, "evaluation.batch": 2, "evaluation.samples": 0},
        **{"protocol.question_tokens": 8, "protocol.turns.0.max_tokens": 6, "protocol.turns.1.max_tokens": 6},
        **{"shapes.lengths": 2, "shapes.batches": 2},
        "model": {"kind": "folder", "path": "model", "dtype": "bfloat16", "remat": "layer"},
    }
    tree = config_file.read_tree(CONFIGS / "math_qwen.yaml", overrides)
    asked, boxed = ["one and one ?", "two and two ?", "one and two ?", "two and one ?", "two ?", "one ?"], "\\boxed{2}"
    texts = [turn[part].replace("{{}}", "{}") for turn in tree["protocol"]["turns"] for part in ("system", "user")]
    words = dict.fromkeys(" ".join([*texts, *asked, boxed]).split())
    tokenizer = make_word_tokenizer([word for word in words if word not in ("{question}", "{reasoner}")])
    spec = DecoderSpec(
        vocab_size=tokenizer.vocab_size, layers=1, width=16, heads=4, kv_heads=2, head_dim=4, mlp_width=24, context=256,
        rope_theta=1e6, norm_eps=1e-6, tied=True, family=FAMILIES["qwen2"], biases=QKV,
    )  # fmt: skip
    hf_weights.save_folder(tmp_path / "model", spec, make_decoder(spec, jax.random.key(0))[1], "bfloat16")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    tokenizer.save(str(tmp_path / "model"))
    for path, questions in ((tree["task"]["path"], asked[:4]), (tree["task"]["heldout_path"], asked[4:])):
        (tmp_path / path).parent.mkdir(parents=True)
        lines = [json.dumps({"id": text, "question": text, "answer": "2"}) for text in questions]
        (tmp_path / path).write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config, console = config_file.parse_config(tree), Console(file=io.StringIO(), width=80)
    assert train.train(config, tmp_path / "run", ["train"], console) == train.DONE
    for row in read_metrics(tmp_path / "run"):
        assert row["evaluator_calls"] == 4 * 8 and row["bad_updates"] == 0
        assert row["grad_norm"] > 0 and row["first_ratio_deviation"] < 0.05


@pytest.mark.usefixtures("quick_compiler")
def test_updates_that_stay_bad_stop_the_run(tmp_path, monkeypatch):
    # A learning rate past float32's range makes every parameter infinite, and every gradient after it.
    overrides = {"learner.learning_rate": 1e38, "learner.max_bad_updates": 2, "learner.warmup_updates": 0}
    config = load_short({**overrides, "imitation": None})
    monkeypatch.setenv("COLUMNS", "80")
    console = Console(file=io.StringIO(), width=80)
    assert train.train(config, tmp_path / "run", ["train"], console) == train.FAILED
    said = " ".join(console.file.getvalue().split())
    assert any(f"{count} updates in a row" in said for count in (2, 3, 4)) and "metrics.jsonl" in said


def load_short(overrides):
    """A run of five short steps with a checkpoint each."""
    shared = SMALL | {
        "steps": 5,
        "problems": 4,
        "learner.epochs": 1,
        "evaluation": {"problems": 2, "samples": 0, "batch": 2},
        "checkpoint": {"every": 1, "keep": 5},
        "record_every": 0,
    }
    kept = {name: value for name, value in shared.items() if not name.startswith(("evaluation.", "checkpoint."))}
    if "imitation" in overrides:
        kept = {name: value for name, value in kept.items() if not name.startswith("imitation.")}
    return config_file.load_config(CONFIGS / "quickstart.yaml", kept | overrides)


def run_stopped_and_whole(config, cache, tmp_path):
    """The rows of a run, after it was also gone on with in a copy that was killed in its fourth step: both the same."""
    (tmp_path / "config.yaml").write_text(config_file.dump_config(config), encoding="utf-8")
    # Programs here compile for seconds and run for milliseconds.
    quick = {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}

    def start_here(run: Path) -> list[dict]:
        command = [sys.executable, "-m", "c3jax.cli", "train", str(tmp_path / "config.yaml"), "--run-dir", str(run)]
        made = subprocess.run(command, env=os.environ | quick, capture_output=True, text=True, timeout=300)
        assert made.returncode == 0, made.stdout + made.stderr
        return [drop_times(row) for row in read_metrics(run)]

    rows = start_here(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for step in (4, 5):
        shutil.rmtree(tmp_path / "stopped" / "checkpoints" / str(step))
    again = start_here(tmp_path / "stopped")
    setup = make_setup(config)
    states = [restore_step(tmp_path / name, 5, describe_saved(setup)) for name in ("whole", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    return rows, again, unpack_state(states[0])


def test_a_run_that_chooses_its_fan_outs_goes_on_as_if_never_stopped(cache, tmp_path):
    """Choices, calls and the shrunk baseline are of the steps before: taken up in the middle, a run ends the same."""
    config = load_short(
        {
            "credit.method": "shrunk",
            "credit.fan_out": "auto",
            "credit.budget": 6,
            "credit.auto.every": 2,
            "imitation": None,
        }
    )
    rows, again, (state, fan_out) = run_stopped_and_whole(config, cache, tmp_path)
    assert [row | {"traces": 0} for row in rows] == [row | {"traces": 0} for row in again]
    met = set()
    for row in rows:
        assert row["evaluator_calls"] == 4 * np.prod(row["fan_out"]) <= 4 * 6
        assert row["messages"] == 4 * np.cumprod(row["fan_out"]).sum()
        met.add(tuple(row["fan_out"]))
        assert row["traces"] == 2 * len(met)  # one of sampling and one of the update for each fan-out
    assert rows[0]["fan_out"] == rows[1]["fan_out"] and rows[2]["fan_out"] == rows[3]["fan_out"]
    assert list(fan_out) == rows[4]["fan_out"]
    assert int(state.adaptive.components.steps) == 5


def test_roles_with_weights_of_their_own_go_on_as_if_never_stopped(cache, tmp_path):
    """In few shapes: of a question's and of the messages' lengths two each, so at most 2 + 4 traces."""
    alarms = {"steps": 4, "truncated": 0.0}  # on from the fourth step, by rows of both starts
    config = load_short({"policy.kind": "per_role", "shapes.lengths": 2, "shapes.batches": 2, "alarms": alarms})
    rows, again, (state, _) = run_stopped_and_whole(config, cache, tmp_path)
    assert 2 <= rows[-1]["traces"] <= 6
    assert [row | {"traces": 0} for row in rows] == [row | {"traces": 0} for row in again]
    assert ["truncated" in row.get("alarms", ()) for row in rows] == [False] * 3 + [True] * 2
    assert set(state.params) == {"reasoner", "actor"}
    embeddings = [part["embedding"] for part in state.params.values()]
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-4


def learn_behind(setup, sample_tree, update):
    """The last weights, and figures of each step, where trees are drawn by the weights before the update before."""
    config = setup.config
    copy = functools.partial(jax.tree.map, lambda leaf: leaf.copy())  # an update gives up what it is given
    state = init_state(setup.policy, setup.weights, setup.plans, config.credit, config.learner, is_behind=True)
    held, figures = [copy(state.params)], []
    for step in range(config.steps):
        key = jax.random.fold_in(address.make_stream(config.seed, address.TRAIN), step)
        order = jax.random.fold_in(address.make_stream(config.seed, address.ORDER), step)
        indices, older, parts = choose_problems(setup, step), Weights(held[max(0, step - 1)], {}), []
        for first in range(0, config.problems, config.rollout_problems):
            question, problem_P = make_questions(setup, setup.train, indices[first : first + config.rollout_problems])
            parts.append(sample_tree(older, question, key, problem_P, config.credit.fan_out)[0])
        rollout = join_problems(None, parts)
        answers = decode_messages(setup.tokenizer, rollout.turns[-1])
        asked = [setup.train.problems[index] for index in indices for _ in range(config.credit.budget)]
        scores = [setup.task.grade(*pair).score for pair in zip(asked, answers, strict=True)]
        return_PL = np.array(scores, np.float32).reshape(config.problems, -1)
        plan = make_tree(config.credit.fan_out)
        state, _, found = update(state._replace(behind=copy(held[0])), {}, None, (rollout,), return_PL, order, plan)
        held.append(copy(state.params))
        figures.append({name: float(value) for name, value in found.items()})
    return held[-1], figures


@pytest.mark.usefixtures("quick_compiler")
def test_trees_a_step_behind_are_that_schedule_and_go_on_as_if_never_stopped(tmp_path, monkeypatch):
    config = load_short({"async_steps": 1, "rollout_problems": 2, "imitation": None, "learner.kl.coefficient": 0.0})
    setup = make_setup(config)
    programs = train.make_step(setup)
    monkeypatch.setattr(train, "make_step", lambda setup: programs)  # compiled once

    def run(path: Path) -> list[dict]:
        assert train.train(config, path, ["train"], Console(file=io.StringIO(), width=80)) == train.DONE
        return [drop_times(row) | {"traces": 0} for row in read_metrics(path)]

    rows = run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for step in (4, 5):
        shutil.rmtree(tmp_path / "stopped" / "checkpoints" / str(step))
    assert run(tmp_path / "stopped") == rows
    states = [restore_step(tmp_path / name, 5, describe_saved(setup)) for name in ("whole", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *states)

    params, figures = learn_behind(setup, *programs[:2])
    jax.tree.map(np.testing.assert_array_equal, params, states[0]["params"])
    assert figures == [{name: row[name] for name in figures[0]} for row in rows]
    assert [row["staleness"] for row in rows] == [0, 1, 1, 1, 1]
    assert rows[0]["first_ratio_deviation"] < 1e-5 and rows[0]["first_clip_share"] == 0.0
    assert all(row["first_ratio_deviation"] > 1e-3 and row["evaluator_calls"] == 4 * 8 for row in rows[1:])


def test_the_quickstart_learns(cache, tmp_path):
    """A quarter of the quickstart: from a team that follows its demonstrators' faults to one that has unlearnt them."""
    code, text = finish(start(tmp_path / "run", cache, {"steps": 30, "record_every": 0}, is_quick=False))
    assert code == 0, text
    before, after = (
        load_evaluation(tmp_path / "run" / "eval" / f"{name}.json")["results"] for name in ("before", "after")
    )
    for old, new in zip(before, after, strict=True):
        assert old["accuracy"] <= 0.55
        assert new["accuracy"] >= 0.80
        assert new["low"] > old["high"]
