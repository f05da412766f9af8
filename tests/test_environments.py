"""Runs whose turns an environment answers: what it breaks is its own loss, resumed equals never stopped.

The run is the calculator's of two layers fewer; its environment is one that fails in every way, by problem.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console

from c3jax import train
from c3jax.commands.score import score_trees
from c3jax.config.file import load_config
from c3jax.run.metrics import read_metrics
from c3jax.run.records import load_trees

CONFIG = Path(__file__).parents[1] / "configs" / "tool_arithmetic.yaml"
SMALL = {
    **{"problems": 8, "workers": 2, "learner.minibatches": 1, "record_every": 1, "checkpoint.every": 1},
    **{"imitation": None, "evaluation.problems": 4, "evaluation.samples": 0},
    **{"model.layers": 1, "model.width": 16, "model.mlp_width": 16, "trackers": ["jsonl"]},
    **{"credit.fan_out": [2, 1, 2], "credit.budget": 4, "task.train_problems": 24, "task.heldout_problems": 8},
}
FAULTY = """
import os, time
from c3jax.tasks.environment import Environment, Observation

def begin(problem, seed):
    if problem.index % 8 == 1:
        raise RuntimeError("no episode")
    if problem.index % 8 == 2:
        os._exit(1)
    return problem.index % 8

def answer(state, messages):
    if state == 3:
        raise SystemExit(messages[-1].text)
    if state == 4:
        time.sleep(30)
    if state == 5:
        return Observation("1", reward=float("inf"))
    if state == 6:
        return "words that no tokenizer of this task knows"
    return Observation(str(len(messages[-1].text) % 10), reward=0.25)

FAULTY = Environment(begin, answer, timeout_s=1.0)
"""


MAPPO = {"credit.method": "mappo", "credit.fan_out": [4, 1, 1]}


def start(run: Path, kind: str, steps: int, changes: Mapping[str, Any] = MappingProxyType({})) -> str:
    config = load_config(CONFIG, SMALL | {"protocol.turns.1.environment.kind": kind, "steps": steps} | changes)
    console = Console(file=io.StringIO(), width=80)
    assert train.train(config, run, console=console) == 0
    return console.file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environments")
    (folder / "faulty_turns.py").write_text(FAULTY)
    kind = f"{folder / 'faulty_turns.py'}:FAULTY"
    start(folder / "whole", kind, 2)
    start(folder / "resumed", kind, 1)
    assert "goes on to step 2" in " ".join(start(folder / "resumed", kind, 2).split())
    return folder


def test_what_an_environment_breaks_is_a_failed_answer(folder):
    failed, paid = set(), set()
    for tree in load_trees(folder / "whole"):
        state = int(tree.record["problem"].split("-")[1]) % 8
        for node in tree.nodes[1]:
            assert (node["role"], node["failed"]) == ("environment", 1 <= state <= 6)
            assert node["reward"] == (0.0 if node["failed"] else 0.25)
            failed |= {state} if node["failed"] else set()
        for leaf in tree.nodes[2]:  # the reward is added to what the answer is worth
            assert leaf["return"] - (0.0 if 1 <= state <= 6 else 0.25) in (0.0, 1.0)
            paid.add(leaf["return"])
    assert len(failed) >= 4 and 0.25 in paid
    for row in read_metrics(folder / "whole"):
        assert 0.0 < row["environment_failed_share"] < 1.0 and row["environment_done_share"] == 0.0
        assert row["environment_calls"] <= 2 * SMALL["problems"]
        assert row["environment_reward"] == pytest.approx(0.25 * (1 - row["environment_failed_share"]))


def test_recorded_credit_is_of_what_is_still_to_come_and_scored_alike(folder):
    """The actor's values are the answer's own, without the reward that was paid before it spoke."""
    trees = load_trees(folder / "whole")
    for tree, scored in zip(trees, score_trees(trees, "c3", "none"), strict=True):
        for node, other in zip(tree.record["nodes"], scored["nodes"], strict=True):
            for name in ("value", "baseline", "advantage"):
                assert node[name] == pytest.approx(other[name], abs=1e-6)
        paid = [node["reward"] for node in tree.nodes[1]]
        assert [leaf["value"] for leaf in tree.nodes[2]] == pytest.approx(
            [leaf["return"] - paid[row // 2] for row, leaf in enumerate(tree.nodes[2])]
        )


def check_same(one: Path, other: Path) -> None:
    both = [
        [{name: value for name, value in row.items() if "seconds" not in name} for row in read_metrics(run)]
        for run in (one, other)
    ]
    for row in sum(both, []):
        del row["tokens_per_second"], row["traces"]
    assert both[0] == both[1]
    for step in range(2):
        name = f"rollouts/step-{step:06d}.jsonl"
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_critic_values_what_is_still_to_come_where_a_policy_speaks(folder):
    kind = f"{folder / 'faulty_turns.py'}:FAULTY"
    start(folder / "mappo", kind, 2, MAPPO)
    start(folder / "mappo, resumed", kind, 1, MAPPO)
    start(folder / "mappo, resumed", kind, 2, MAPPO)
    check_same(folder / "mappo", folder / "mappo, resumed")
    for tree in load_trees(folder / "mappo"):
        planner, environment, actor = tree.nodes
        for row, leaf in enumerate(actor):
            paid = environment[row]["reward"]
            # Without discount or decay the value is all that is still paid, and what the critic says is the baseline.
            assert planner[row]["value"] == pytest.approx(leaf["return"], abs=1e-5)
            assert leaf["value"] == pytest.approx(leaf["return"] - paid, abs=1e-5)
            assert environment[row]["advantage"] == 0.0
            for node in (planner[row], leaf):
                assert node["advantage"] == pytest.approx(node["value"] - node["baseline"], abs=1e-5)
    last = read_metrics(folder / "mappo")[-1]
    assert last["critic_loss"] > 0.0 and last["explained_variance"] != 0.0


def test_resumed_equals_never_stopped(folder):
    check_same(folder / "whole", folder / "resumed")
    manifest = json.loads((folder / "whole" / "manifest.json").read_text())
    assert any(name.endswith("faulty_turns.py:FAULTY") for name in manifest["inputs"]["modules"])
