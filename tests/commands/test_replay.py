"""Replay: recorded messages drawn again, token for token, and others put in their place, in runs of one step."""

import io
import itertools
import json
import shutil
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax import train
from c3jax.commands import redraw, replay
from c3jax.commands.ask import load_source
from c3jax.config import file as config_file
from c3jax.rewards import Evaluator
from c3jax.run.records import list_trees, load_trees
from c3jax.setup.team import open_environments
from c3jax.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    **{"steps": 1, "problems": 2, "workers": 1, "learner.minibatches": 1},
    **{"imitation.updates": 2, "imitation.problems": 4, "evaluation.problems": 2, "evaluation.samples": 0},
    **{"model.layers": 1, "model.width": 16, "model.mlp_width": 16, "trackers": ["jsonl"]},
}
RUNS = {
    "c3": ("quickstart", {"credit.fan_out": [2, 2], "credit.budget": 4, "problems": 4, "rollout_problems": 2}),
    "shapley": ("quickstart", {"credit.method": "shapley", "credit.budget": 8, "credit.null_message": "0"}),
    "calculator": ("tool_arithmetic", {"credit.fan_out": [2, 1, 2], "credit.budget": 4}),
}


@pytest.fixture(scope="module")
def quick_compiler():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def get_run(tmp_path_factory, quick_compiler):
    @cache
    def make(name: str) -> Path:
        run = tmp_path_factory.mktemp(name) / "run"
        config = config_file.load_config(CONFIGS / f"{RUNS[name][0]}.yaml", SMALL | RUNS[name][1])
        assert train.train(config, run, console=Console(file=io.StringIO())) == 0
        return run

    return make


def ask(problem: str, node: str = "0", **changes) -> replay.Request:
    fields = {"step": None, "branch": 0, "checkpoint": None, "message": None, "samples": 8}
    return replay.Request(problem=problem, node=node, **fields | changes)


@pytest.mark.parametrize("name", RUNS)
def test_every_recorded_message_is_drawn_again(get_run, name):
    """All nodes of all branches, alone and with their whole call: the same tokens, and the same verdicts.

    An environment's, too, from the state that the messages before led it to. Rounding is not what is tested: batches
    of this size are rounded alike.
    """
    run = get_run(name)
    setup, weights, _ = load_source(str(run), "0", {})
    drawn = 0
    with (
        Evaluator(setup.task.grade, 1, setup.task.timeout_s) as evaluator,
        open_environments(setup) as acting,
    ):
        team = redraw.Team(setup, weights, redraw.make_sampler(setup), evaluator, acting)
        for tree in load_trees(run):
            problem = redraw.find_problem(setup, tree.record["problem"])
            for number, (branch, levels) in enumerate(list_trees(tree)):
                nodes = [node for level in levels[len(branch.given) :] for node in level]
                for node, is_alone in itertools.product(nodes, (True, False)):
                    path = ".".join(map(str, node["index"]))
                    decision = replay.find_decision(run, ask(tree.record["problem"], path, branch=number))
                    rows = replay.repeat_messages(team, decision, problem, is_alone)
                    assert all(row["same"] and row["recorded"] == row["drawn"] for row in rows), (number, path)
                    assert rows[0]["index"] == node["index"]
                    assert all(row["return"] == row["recorded_return"] for row in rows if "return" in row)
                    drawn += 1
    assert drawn == 2 * {"c3": 4 * 6, "shapley": 2 * (4 + 2), "calculator": 2 * (2 + 2 + 4)}[name]


def test_a_call_drawn_again_is_rounded_as_it_was(get_run):
    """To the last bit: the mean log-probabilities of the second call's messages are those that were recorded."""
    run = get_run("c3")
    setup, weights, _ = load_source(str(run), "0", {})
    with Evaluator(setup.task.grade, 1, setup.task.timeout_s) as evaluator:
        team = redraw.Team(setup, weights, redraw.make_sampler(setup), evaluator)
        decision = replay.find_decision(run, ask(load_trees(run)[3].record["problem"], "1"))
        first, last = replay.draw_call(team, decision).turns
    for messages, nodes in ((first, decision.levels[0][1:]), (last, decision.levels[1][2:])):
        logp_N = np.where(messages.sampled_NT, messages.behaviour_logp_NT, 0).sum(axis=1) / messages.sampled_NT.sum(
            axis=1
        )
        assert logp_N.tolist() == [node["logp"] for node in nodes]


def test_trees_a_step_behind_are_drawn_by_the_weights_that_drew_them(tmp_path, quick_compiler):
    """Of the second step's own checkpoint, the older ones: those after the first update say it otherwise."""
    few = {"steps": 2, "async_steps": 1, "record_every": 1, "checkpoint.every": 1, "learner.learning_rate": 0.01}
    config = config_file.load_config(CONFIGS / "quickstart.yaml", SMALL | RUNS["c3"][1] | few)
    run, console = tmp_path / "run", Console(file=io.StringIO(), width=80)
    assert train.train(config, run, console=Console(file=io.StringIO())) == 0
    name, node = (load_trees(run)[4].record[key] for key in ("problem", "nodes"))
    assert replay.replay_source(run, ask(name, step=1), console, as_json=False) == 0
    decision, logp = replay.find_decision(run, ask(name, step=1)), {}
    for drawing in (1, None):
        setup, weights, _ = load_source(str(run), "1", {}, drawing=drawing)
        with Evaluator(setup.task.grade, 1, setup.task.timeout_s) as evaluator:
            team = redraw.Team(setup, weights, redraw.make_sampler(setup), evaluator)
            first = replay.draw_call(team, decision).turns[0]
        logp[drawing] = np.where(first.sampled_NT, first.behaviour_logp_NT, 0).sum() / first.sampled_NT.sum()
    assert logp[1] == node[0]["logp"] != logp[None]


def test_what_was_drawn_with_it_is_said(get_run):
    run, console = get_run("c3"), Console(file=io.StringIO(), width=80)
    name = load_trees(run)[2].record["problem"]
    assert replay.replay_source(run, ask(name), console, as_json=False) == 0
    assert "3 of 3 messages are the recorded ones" in console.file.getvalue()
    assert "drawn with its sampler's whole call, of 2 problems" in console.file.getvalue()
    console.file.truncate(0)
    assert replay.replay_source(run, ask(name, is_alone=True), console, as_json=False) == 0
    assert "drawn alone" in console.file.getvalue()


def test_a_call_that_is_not_recorded_whole_is_refused(get_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(get_run("c3"), run)
    file = run / "rollouts" / "step-000000.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]))
    name = json.loads(lines[0])["problem"]
    with pytest.raises(UserError, match=r"expected the 4 trees of step 0, got 2 whose problems are there.*--alone"):
        replay.replay_source(run, ask(name), Console(file=io.StringIO()), as_json=False)


def test_a_message_of_ones_own_stands_beside_the_recorded_ones(get_run, capsys):
    """A last message is graded as it is: the right answer is worth 1, whatever the others are."""
    run = get_run("c3")
    tree = load_trees(run)[0]
    name, right = tree.record["problem"], next(p for p in read_problems(run) if p.id == tree.record["problem"]).answer
    console = Console(file=io.StringIO(), width=80)
    request = ask(name, "1.0", message=f"answer {right}")
    assert replay.replay_source(run, request, console, as_json=True) == 0
    first, *others = json.loads(capsys.readouterr().out)["messages"]
    assert (first["message"], first["value"], first["index"]) == (f"answer {right}", 1.0, None)
    assert [row["index"] for row in others] == [[1, 0], [1, 1]]
    assert [row["value"] for row in others] == [node["return"] for node in tree.nodes[1][2:]]

    assert replay.replay_source(run, ask(name, "1", message="0", samples=16), console, as_json=False) == 0
    shown = console.file.getvalue()
    assert "reasoner, in the same context" in shown and "yours" in shown
    assert "16 fresh continuations of each, 48 evaluator calls, by the policy of step 0" in shown
    assert max(map(len, shown.splitlines())) <= 80


def read_problems(run):
    return load_source(str(run), "0", {})[0].train.problems


def test_another_policy_is_said(get_run):
    """The newest checkpoint's messages are its own; that they differ is no failure."""
    run, console = get_run("c3"), Console(file=io.StringIO(), width=80)
    name = load_trees(run)[0].record["problem"]
    assert replay.replay_source(run, ask(name, checkpoint="newest"), console, as_json=False) == 0
    assert "by the policy of step 1, where step 0's drew the recorded" in " ".join(console.file.getvalue().split())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"problem": "none"}, "--problem: expected a problem of .*/rollouts, got none"),
        ({"step": 7}, r"--problem: expected a problem of .*/rollouts at one of the steps \[0\], got .* at step 7"),
        ({"node": "0.5"}, "--node: expected a path of alternatives within 2 x 2, as 0.1, got '0.5'"),
        ({"node": "0.0.0"}, "--node: expected a path"),
        ({"node": "x"}, "--node: expected a path"),
        ({"branch": 3}, "--branch: expected one of the 1 branches of this record, got 3"),
        ({"checkpoint": "7"}, "--checkpoint: expected newest, best or one of"),
        ({"message": "0 " * 40}, "--say: expected at most 16 tokens, as the turn may write, got 40"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(get_run, changes, sentence):
    run = get_run("c3")
    request = ask(load_trees(run)[0].record["problem"])._replace(**changes)
    with pytest.raises(UserError, match=f"^{sentence}"):
        replay.replay_source(run, request, Console(file=io.StringIO()), as_json=False)
