"""Runs of every sampling, and one that replaces trees and has a curriculum: killed in the middle of a step and resumed
they end, bit for bit, as if never killed; and what is replaced is counted, recorded and the same in any batch."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax import train
from c3jax.commands import replay
from c3jax.commands.ask import load_source
from c3jax.commands.redraw import Team, find_problem, make_sampler
from c3jax.commands.score import score_trees
from c3jax.config.file import parse_config
from c3jax.credit.methods import METHODS
from c3jax.credit.plans import count_calls, make_arms, make_auxiliary, make_flat, make_replay, make_tree
from c3jax.learner.adapt import init_passes
from c3jax.learner.state import init_state, pack_state
from c3jax.models.policy import Weights
from c3jax.rewards import Evaluator
from c3jax.run.checkpoint import restore_step
from c3jax.run.directory import list_steps
from c3jax.run.metrics import drop_times, read_metrics
from c3jax.run.records import load_trees
from c3jax.setup.team import make_setup
from c3jax.types import UserError
from tests import tiny_run

STEPS = 2
TREE: dict[str, Any] = tiny_run.TREE | {
    **{"steps": STEPS, "record_every": 1, "trackers": ["jsonl"], "checkpoint": {"every": 1}},
    "task": tiny_run.TREE["task"] | {"train_problems": 12, "heldout_problems": 1},
    "learner": {"learning_rate": 1e-2},
    "evaluation": {"problems": 1, "samples": 0, "batch": 1},
}
# What each draws, and by hand the plan that this is.
DRAWN: dict[str, tuple[dict[str, Any], Any]] = {
    "c3": ({"fan_out": [2, 2]}, make_tree((2, 2))),
    "igpo": ({"fan_out": [2, 1]}, make_flat(2, 2)),
    "c3_replay": ({"draws": {"alternatives": 2}}, make_replay((1, 1), 2)),
    "at_grpo": ({"draws": {"alternatives": 2}}, make_replay((1, 1), 2, continues_best=True)),
    "vine_ppo": ({"draws": {"episodes": 2}}, make_auxiliary(2, 1, 2)),
    "difference": ({"draws": {"episodes": 2}}, make_arms("removal", 2, 2, answers_again=True)),
    "ccpo": ({"draws": {"episodes": 2}}, make_arms("first_removal", 2, 2)),
    "difference_masked": ({"draws": {"episodes": 2}}, make_arms("masked", 2, 2, answers_again=True)),
    "shapley": ({"draws": {"episodes": 2}}, make_arms("coalition", 2, 2, answers_again=True)),
}


COIN = """
import zlib
from typing import Literal
from c3jax.tasks.arithmetic import ARITHMETIC
from c3jax.tasks.sections import ArithmeticTask
from c3jax.types import Verdict

class CoinTask(ArithmeticTask):
    kind: Literal["coin:COIN"]

def grade(problem, answer):
    is_won = zlib.crc32(f"{problem.id} {answer}".encode()) % 6 == 0
    return Verdict(float(is_won), "correct" if is_won else "wrong", answer)

COIN = ARITHMETIC._replace(section=CoinTask, grade=grade)
"""
CRITIC = {"network": "own", "learning_rate": 1e-3}
REDRAWN = {
    "steps": STEPS,
    "task": {"kind": "coin:COIN", "moves": 1, "train_problems": 14, "heldout_problems": 1},
    "learner": {"learning_rate": 1e-2, "zero_signal": "resample", "resample_rounds": 6},
    "curriculum": {"decay": 0.5},
}


def make_tree_of(name: str) -> dict[str, Any]:
    if name == "redrawn":
        return copy.deepcopy(TREE) | copy.deepcopy(REDRAWN)
    drawn, plan = DRAWN[name]
    return copy.deepcopy(TREE) | {"credit": {"method": name, "normalise": "none", "budget": count_calls(plan), **drawn}}


def start(tree: dict[str, Any], run: Path) -> int:
    return train.train(parse_config(tree), run, ["train"], Console(file=io.StringIO(), width=200))


def start_and_copy(tree: dict[str, Any], run: Path, copied: Path, step: int, patch: pytest.MonkeyPatch) -> int:
    """Start a run; what its directory holds while a step's answers are out is copied: what a kill would leave."""
    graded = Evaluator.collect

    def collect(evaluator: Evaluator) -> list[Any]:
        if (run / "eval" / "before.json").exists() and len(read_metrics(run)) == step and not copied.exists():
            shutil.copytree(run, copied)
        return graded(evaluator)

    with patch.context() as patched:
        patched.setattr(Evaluator, "collect", collect)
        return start(tree, run)


def read_state(tree: dict[str, Any], run: Path) -> dict[str, Any]:
    setup = make_setup(parse_config(tree))
    sections = (setup.plans, setup.config.credit, setup.config.learner)
    passes = init_passes(len(setup.train.problems)) if "curriculum" in tree else None

    def make(weights: Weights) -> dict[str, Any]:
        return pack_state(init_state(setup.policy, weights, *sections)._replace(passes=passes), None)

    return restore_step(run, STEPS, jax.eval_shape(make, setup.weights))


@pytest.fixture(scope="module")
def coin(tmp_path_factory):
    """A task whose every sixth answer is right, by its hash."""
    path = tmp_path_factory.mktemp("coin")
    (path / "coin.py").write_text(COIN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        yield


@pytest.fixture(scope="module")
def redrawn(coin, tmp_path_factory):
    """A run in which trees without a signal are replaced, and a copy of it as a kill in its second step leaves it."""
    path, tree = tmp_path_factory.mktemp("redrawn"), make_tree_of("redrawn")
    with pytest.MonkeyPatch.context() as patch:
        assert start_and_copy(tree, path / "whole", path / "broken", 1, patch) == train.DONE
    return path


def read_trees(run: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()]


def has_signal(record: dict[str, Any]) -> bool:
    """By hand: alternatives of an answer that are not all worth the same, or plans that are not."""
    leaves = [node["return"] for node in record["nodes"] if "return" in node]
    return len(set(leaves)) > 1


def test_every_sampling_is_here():
    trainable = {method.sampling for method in METHODS.values() if method.apply != "oracle"}
    assert trainable == {METHODS[name].sampling for name in DRAWN}


@pytest.mark.parametrize("method", DRAWN)
def test_killed_in_the_middle_of_a_step_equals_never_killed(method, tmp_path, monkeypatch):
    tree, whole, broken = make_tree_of(method), tmp_path / "whole", tmp_path / "broken"
    assert start_and_copy(tree, whole, broken, 1, monkeypatch) == train.DONE
    assert_resumed_equals(tree, whole, broken)
    calls = [row["evaluator_calls"] for row in read_metrics(whole)]
    assert calls == [2 * count_calls(DRAWN[method][1])] * STEPS


def assert_resumed_equals(tree: dict[str, Any], whole: Path, broken: Path) -> None:
    assert len(read_metrics(broken)) == 1 and list_steps(broken)[-1] <= 1  # in the second step
    assert start(tree, broken) == train.DONE
    assert [drop_times(row) for row in read_metrics(broken)] == [drop_times(row) for row in read_metrics(whole)]
    jax.tree.map(np.testing.assert_array_equal, read_state(tree, broken), read_state(tree, whole))
    files = sorted(path.relative_to(whole) for part in ("rollouts", "eval") for path in (whole / part).iterdir())
    assert len(files) == STEPS + 2
    for file in files:
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize(
    ("method", "drawn", "budget"),
    [("otb", {"fan_out": [4, 1]}, 4), ("igpo", {"fan_out": [4, 1]}, 4), ("ccpo", {"draws": {"episodes": 4}}, 8)],
)
def test_records_hold_all_that_credit_was_made_of(coin, tmp_path, method, drawn, budget):
    """Scored again, a run's trees have the credit that its update gave, from the returns and what else they hold."""
    tree = make_tree_of("redrawn") | {"credit": {"method": method, "normalise": "none", "budget": budget, **drawn}}
    assert start(tree, tmp_path / "run") == train.DONE
    recorded = load_trees(tmp_path / "run")
    given = [node for each in recorded for node in each.record["nodes"]]
    again = [node for record in score_trees(recorded, method, "none") for node in record["nodes"]]
    for name in ("value", "baseline", "advantage"):
        got, expected = ([node[name] for node in nodes if name in node] for nodes in (again, given))
        np.testing.assert_allclose(got, expected, atol=1e-6)
    # Trees that were replaced are among them; under igpo what an answer gains is a signal of every tree.
    assert np.abs(expected).max() > 0.2 and (len(expected) > STEPS * 2 * 2 * 4) == (method != "igpo")


def test_a_run_that_replaces_trees_keeps_its_books(redrawn):
    further, replaced = [], []
    for step, row in enumerate(read_metrics(redrawn / "whole")):
        trees = read_trees(redrawn / "whole", step)
        further.append(row["further_problems"])
        assert len(trees) == len({tree["problem"] for tree in trees}) == 2 + further[-1]  # no problem twice in a step
        assert row["evaluator_calls"] == 4 * len(trees) and row["messages"] == (2 + 4) * len(trees)
        drawn = [node for tree in trees for node in tree["nodes"]]
        assert row["generated_tokens"] == sum(node["tokens"] for node in drawn)
        used = [tree for tree in trees if tree.get("used", True)]
        # By hand: the first trees with a signal, in the order of drawing, are those that train.
        assert [tree["problem"] for tree in used] == [tree["problem"] for tree in trees if has_signal(tree)][:2]
        first = sum(not has_signal(tree) for tree in trees[:2])
        assert row["replaced_share"] == (len(used) - (2 - first)) / 2
        assert row["skipped_share"] == pytest.approx(1 - len(used) / 2)
        assert row["return"] == np.mean(
            [node["return"] for tree in trees[:2] for node in tree["nodes"] if "return" in node]
        )
        replaced.append(row["replaced_share"])
    assert max(replaced) > 0 and sum(further) < STEPS * 12  # some slots were filled, and not after all that there was


def test_a_tree_that_was_drawn_in_place_of_another_is_replayed_with_its_call(redrawn, tmp_path):
    """The last tree of a step, of a later call than the step's own: rounded as it was, to the last bit."""
    run = redrawn / "whole"
    step, trees = next((step, trees) for step in range(STEPS) if len(trees := read_trees(run, step)) > 2)
    name, nodes = trees[-1]["problem"], trees[-1]["nodes"]
    request = replay.Request(name, step, "1", 0, None, None, 1)
    setup, weights, _ = load_source(str(run), str(step), {})
    with Evaluator(setup.task.grade, 1, setup.task.timeout_s) as evaluator:
        team = Team(setup, weights, make_sampler(setup), evaluator)
        decision = replay.find_decision(run, request)
        rows = replay.repeat_messages(team, decision, find_problem(setup, name))
        drawn = replay.draw_call(team, decision).turns
    assert len(rows) == 3 and all(row["same"] for row in rows)
    logp = []
    for turn in drawn:
        drawn_NT = np.asarray(turn.sampled_NT)
        logp += (np.where(drawn_NT, turn.behaviour_logp_NT, 0).sum(axis=1) / drawn_NT.sum(axis=1)).tolist()
    assert logp == [node["logp"] for node in nodes if node["index"][0] == 1]
    # Which call it was of follows from all that was drawn before it.
    path = shutil.copytree(run / "rollouts", tmp_path / "rollouts") / f"step-{step:06d}.jsonl"
    shutil.copy(run / "metrics.jsonl", tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for missing in (1, 2):  # a tree, and a whole call
        path.write_bytes(b"".join(lines[missing:]))
        with pytest.raises(UserError, match=f"expected the {len(lines)} trees of step {step}, got"):
            replay.draw_call(team, replay.find_decision(tmp_path, request))


def test_pass_rates_are_of_all_that_was_needed(redrawn):
    """Laid up by hand from the records: with decay 1/2, in the order of the steps."""
    passed, tried = np.zeros(14), np.zeros(14)
    for step in range(STEPS):
        trees = read_trees(redrawn / "whole", step)
        last = max([1, *(place for place, tree in enumerate(trees) if tree.get("used", True))])
        enough = sum(tree.get("used", True) for tree in trees) == 2
        for tree in trees[: last + 1 if enough else None]:
            number, leaves = (
                int(tree["problem"].removeprefix("train-")),
                [node["return"] for node in tree["nodes"] if "return" in node],
            )
            passed[number], tried[number] = 0.5 * passed[number] + sum(leaves), 0.5 * tried[number] + 4
    passes = read_state(make_tree_of("redrawn"), redrawn / "whole")["passes"]
    np.testing.assert_array_equal(passes.passed_N, passed)
    np.testing.assert_array_equal(passes.tried_N, tried)


def test_trees_are_replaced_alike_in_calls_of_any_size(redrawn, tmp_path):
    """One problem a call in place of two: the same trees train, and fewer are drawn for nothing."""
    tree, run = make_tree_of("redrawn") | {"rollout_problems": 1}, tmp_path / "run"
    assert start(tree, run) == train.DONE
    for step in range(STEPS):
        alone, together = (
            [(each["problem"], [node["text"] for node in each["nodes"]]) for each in trees if each.get("used", True)]
            for trees in (read_trees(run, step), read_trees(redrawn / "whole", step))
        )
        assert alone == together
    states = [read_state(tree, path) for path in (run, redrawn / "whole")]
    jax.tree.map(np.testing.assert_array_equal, *(state["passes"] for state in states))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *(state["params"] for state in states))
    counts = [sum(row["evaluator_calls"] for row in read_metrics(path)) for path in (run, redrawn / "whole")]
    assert counts[0] <= counts[1]


def test_a_run_that_replaces_trees_is_resumed_as_if_never_killed(redrawn):
    assert_resumed_equals(make_tree_of("redrawn"), redrawn / "whole", redrawn / "broken")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"task": TREE["task"]},  # 12 problems for steps of 2
            "learner.resample_rounds: expected at most 5, for no problem is drawn twice in a step and there are 12"
            " training problems for steps of 2, got 6",
        ),
        (
            {"credit": {"method": "mappo", "fan_out": [4, 1], "budget": 4, "normalise": "none", "critic": CRITIC}},
            "learner.zero_signal: expected keep or skip for method mappo, whose critic has a say in which trees have a"
            " signal, got 'resample'",
        ),
        ({"curriculum": {"uniform": 0.0}}, "curriculum.uniform: expected greater than 0, got 0.0"),
        ({"curriculum": {"decay": 1.0}}, "curriculum.decay: expected less than 1, got 1.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(coin, changes, expected):
    with pytest.raises(UserError) as caught:
        make_setup(parse_config(make_tree_of("redrawn") | changes), is_training=True)
    assert str(caught.value) == expected
