"""Plans of a tiny run: sizes and products by hand, what does not fit, and platforms without a compiler here."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.cli import main
from c3jax.commands import plan, programs
from c3jax.commands.target import open_target
from c3jax.config.file import load_config
from c3jax.learner.state import init_state
from c3jax.protocol import Literal
from c3jax.rollout import address
from c3jax.rollout.acting import Start, draw_trees
from c3jax.rollout.context import make_frame
from c3jax.setup.team import make_setup, open_environments, outline_setup
from c3jax.train import make_step

ROOT = Path(__file__).resolve().parents[2]
LAYERS, WIDTH, MLP, QUESTION, TOKENS = 2, 16, 32, 17, (6, 4)
SMALL = {
    **{"steps": 5, "problems": 4, "rollout_problems": 2, "task.train_problems": 16, "task.heldout_problems": 8},
    **{"model.layers": LAYERS, "model.width": WIDTH, "model.heads": 2, "model.key_value_heads": 2},
    **{"model.mlp_width": MLP, "protocol.turns.0.max_tokens": TOKENS[0], "protocol.turns.1.max_tokens": TOKENS[1]},
    **{"imitation": None, "evaluation.problems": 8, "evaluation.batch": 4, "evaluation.every": 2, "workers": 1},
}
WORDS = [word for name, value in SMALL.items() for word in (f"--{name}", json.dumps(value))]
CPU = ("plan", "quickstart", "--platform", "cpu", *WORDS)
GPU = ("plan", "quickstart", "--platform", "cuda", "--topology", "h100:1", *WORDS)


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Compile as little as the tests of other commands; what the command sets for the whole process is set back."""
    precision = jax.config.jax_default_matmul_precision
    is_lazy = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", is_lazy)
    jax.config.update("jax_default_matmul_precision", precision)


def test_a_sampler_is_planned_without_weights_and_its_figures_are_those_of_its_shapes(capsys):
    assert main([*CPU, "--only", "trees", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (row,) = facts["programs"]
    setup = make_setup(load_config("quickstart", SMALL), is_hashed=False)
    # Tokens and mask of two problems, their indices, the key, and the numbers of each turn's first message.
    question = 2 * QUESTION * (4 + 1) + 2 * 4 + 8 + 2 * 4
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(setup.weights))
    state = init_state(setup.policy, setup.weights, setup.plans, setup.config.credit, setup.config.learner)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + weights  # and the reference policy
    assert row["arguments"] == weights + question
    assert row["beside"] == held - weights
    assert row["bytes"] == held + question + row["outputs"] + row["temporaries"]

    # Every slot of every frame goes through the layers, and so does every drawn token but a message's last.
    rows = (2 * 2, 2 * 2 * 4)
    slots = sum(count * (tokens - 1) for count, tokens in zip(rows, TOKENS, strict=True))
    frames = sum(
        sum(2 * math.prod((2, 4)[: frame.level - 1]) * _count_slots(frame) for frame in turn.frames)
        for turn in setup.plans
    )
    layer = WIDTH * (4 * WIDTH + 3 * MLP)
    logits = setup.spec.vocab_size * WIDTH
    contexts = 2 + 4  # logits of a context are computed once, whatever is drawn from it
    products = 2 * (LAYERS * layer * (frames + slots) + logits * (contexts + slots))
    flops = sum(row["flops"].values())
    assert products < flops < 1.5 * products  # the rest is attention's
    assert 2 * (LAYERS * layer + logits) * slots < row["flops_open"] < 1.7 * 2 * (LAYERS * layer + logits) * slots

    assert row["calls"] == 2  # of two problems each
    assert facts["step"] == {
        **{
            "evaluator_calls": 32,
            "environment_calls": 0,
            "messages": 8 + 32,
            "most_tokens": 8 * TOKENS[0] + 32 * TOKENS[1],
        },
        "least_seconds": None,
    }
    assert facts["run"]["evaluations"] == 4  # before, after, and after steps 2 and 4
    assert row["unread_loops"] == 0 and row["traffic"] > row["arguments"]


def _count_slots(frame) -> int:
    sizes = {1: QUESTION, 2: TOKENS[0]}
    return sum(len(piece.tokens) if isinstance(piece, Literal) else sizes[piece.level] for piece in frame.pieces)


@pytest.mark.parametrize("kind", ["shared", "per_role", "adapters"])
def test_an_outline_has_the_shapes_of_a_real_set_up(kind: str):
    config = load_config("quickstart", SMALL)
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"kind": kind})})
    outline, setup = outline_setup(config, jax.devices()[:1]), make_setup(config, is_hashed=False)
    assert outline.policy == setup.policy and outline.plans == setup.plans
    real = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), setup.weights)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), outline.weights) == real


def test_the_shapes_of_all_programs_are_those_that_a_run_calls_them_with():
    config = load_config("quickstart", {**SMALL, "credit.method": "mappo"})
    target = open_target("cpu", "")
    setup = outline_setup(config, target.devices)
    trees, update, greedy, sampled = programs.list_programs(setup, target)
    state, frozen, reference, (rollout,), return_PL, _ = update.arguments
    assert state.critic is not None and frozen == {} and reference is not None
    assert return_PL.shape == (4, 8) and rollout.turns[1].tokens_NT.shape == (4 * 8, TOKENS[1])
    after, _, figures = jax.eval_shape(lambda *given: update.function(*given, **update.static), *update.arguments)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), part) for part in (after, state)]
    assert shapes[0] == shapes[1] and "critic_loss" in figures
    assert [program.calls for program in (trees, update, greedy, sampled)] == [2, 1, 2, 2]
    assert greedy.arguments[4] == sampled.arguments[4] == (1, 1)
    held = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, reference)))
    weights = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    assert trees.beside == held - weights


def test_without_its_compiler_a_program_is_lowered_and_the_estimate_says_what_does_not_fit(capsys):
    assert main([*GPU, "--only", "trees", "--model.width", "65536", "--model.mlp_width", "262144"]) == 0
    text = capsys.readouterr().out
    assert "lowered for cuda and not compiled" in text
    assert "trees does not fit: it takes about" in text and "try policy.kind adapters, or a smaller model" in text
    table = text.splitlines()[2 : [line[:7] for line in text.splitlines()].index("A step:")]
    assert len(table) > 5 and max(map(len, table)) <= 80


def plan_trees(*words: str) -> dict[str, Any]:
    """In a process of its own, which has four devices."""
    command = [sys.executable, "-m", "c3jax.cli", *GPU[:4], "--topology", "h100:4", *words, *WORDS, "--only", "trees"]
    answer = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def test_on_a_mesh_a_device_has_its_share_of_the_products(capsys):
    facts = plan_trees("--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    assert facts["devices"] == 4 and facts["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
    assert main([*GPU, "--only", "trees", "--json"]) == 0
    (part,), (whole,) = facts["programs"], json.loads(capsys.readouterr().out)["programs"]
    assert part["flops"] == {kind: flops / 4 for kind, flops in whole["flops"].items()}
    assert facts["fit"] == ["everything fits the 80.0 GB of a device by our estimate"]
    assert part["unread_loops"] == 0 and part["flops_open"] == whole["flops_open"] / 4
    # Two of the four draw, and hold nothing but what that needs.
    facts = plan_trees("--async_steps", "1", "--mesh.rollout.data", "2")
    assert facts["mesh"] == facts["rollout_mesh"] == {"data": 2, "fsdp": 1, "tensor": 1} and facts["devices"] == 4
    (half,) = facts["programs"]
    assert half["flops"] == {kind: flops / 2 for kind, flops in whole["flops"].items()}
    assert half["estimate"] < whole["estimate"]


def test_what_cannot_be_planned_is_refused_in_a_sentence(capsys):
    for words, sentence in (
        (["--platform", "tpu", "--topology", "v9:2x2"], "--topology: expected one of v4, v5e"),
        (["--platform", "tpu", "--topology", "v5e"], "a colon and sizes, v5e:4x4, got 'v5e'"),
        (["--platform", "cpu", "--topology", "0"], "--topology: expected a number of devices, got '0'"),
        (["--platform", "cpu", "--topology", "99999"], "--topology: expected at most 4,096 devices"),
        (["--platform", "cuda", "--topology", "h100:8", "--target-config", "none"], "--target-config: expected a file"),
        (["--platform", "cpu", "--only", "samples"], "--only: expected names of trees, update, greedy, sampled"),
        (["--platform", "cpu", "--mesh.data", "2"], "mesh: expected sizes"),
    ):
        assert main(["plan", "quickstart", *words, *WORDS]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu is not installed")
def test_a_sampler_is_compiled_for_a_tpu_slice(capsys):
    words = ("--platform", "tpu", "--topology", "v5e:2x2", "--only", "greedy", "--json")
    assert main(["plan", "quickstart", *words, *WORDS, "--rollout_problems", "4", "--learner.minibatches", "1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (row,) = facts["programs"]
    assert facts["devices"] == 4 and facts["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert row["code"] > 0 and row["bytes"] < 16e9 and row["least_seconds"] > 0


def test_a_plan_of_several_trees_has_a_program_for_each(capsys):
    """Two branches of a replay: the second goes on from a message, and the update reads a turn of each."""
    config = load_config("quickstart", {**SMALL, "credit.method": "c3_replay"})
    target = open_target("cpu", "")
    first, second, update, *_ = programs.list_programs(outline_setup(config, target.devices), target)
    assert (first.name, second.name, update.name) == ("branch 0", "branch 1", "update")
    given = second.arguments[-2]
    assert [messages.tokens_NT.shape for messages in given] == [(second.arguments[3].shape[0], TOKENS[0])]
    rollouts = update.arguments[3]
    assert [len(rollout.turns) for rollout in rollouts] == [1, 2]
    assert rollouts[0].turns[0].tokens_NT.shape == (4 * 4, TOKENS[0])
    assert rollouts[1].turns[1].tokens_NT.shape == (4 * 4, TOKENS[1])
    second.function.trace(*second.arguments, **second.static)


def test_a_method_that_reads_answers_has_a_program_for_it():
    config = load_config("quickstart", {**SMALL, "credit.method": "igpo"})
    trees, read, update, *_ = programs.list_programs(
        outline_setup(config, (target := open_target("cpu", "")).devices), target
    )
    assert (trees.name, read.name, update.name) == ("trees", "answers", "update") and read.calls == trees.calls
    assert read.arguments[2].tokens_NT.shape == (trees.arguments[3].shape[0], TOKENS[1])
    assert [turn.likelihood_N.shape for turn in update.arguments[3][0].turns] == [(4 * 8,)] * 2
    read.function.trace(*read.arguments, **read.static)


def test_where_environments_answer_a_sampler_is_planned_for_each_stretch():
    """Its calls are those of a run's own draws, with the same shapes."""
    fields = {name: value for name, value in SMALL.items() if not name.startswith("protocol")}
    config = load_config("tool_arithmetic", fields)
    target = open_target("cpu", "")
    outline = outline_setup(config, target.devices)
    first, second, update, *evaluated = programs.list_programs(outline, target)
    assert [first.name, second.name, update.name] == ["trees 0", "trees 1", "update"]
    assert [program.name for program in evaluated] == ["greedy 0", "greedy 1", "sampled 0", "sampled 1"]
    step = plan.describe_plan(outline, target, [])["step"]
    # Of 4 problems 2 expressions each, an answer to each, and 4 messages to that.
    assert (step["environment_calls"], step["messages"], step["evaluator_calls"]) == (8, 8 + 32, 32)
    assert step["most_tokens"] == 8 * 16 + 32 * 4

    setup = make_setup(config, is_hashed=False)
    sample_tree, drawn = make_step(setup)[0], []

    def record(*asked):
        drawn.append(asked)
        return sample_tree(*asked)

    problems = setup.train.problems[: config.call_problems]
    question = make_frame([setup.tokenizer.encode_text(problem.question) for problem in problems], QUESTION)
    key, index_P = address.make_stream(0, address.TRAIN), np.arange(len(problems), dtype=np.int32)
    with open_environments(setup) as acting:
        start = Start((), first.arguments[-1])
        asked = (setup.weights, problems, question, key, index_P, first.arguments[4], start)
        rollout, _ = draw_trees(record, acting, *asked)  # pyright: ignore[reportArgumentType]
    planned = [program.arguments for program in (first, second)]
    shapes = [jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), asked) for asked in (drawn, planned)]
    assert shapes[0] == shapes[1]
    learned = jax.tree.map(lambda leaf: (2 * leaf.shape[0], *leaf.shape[1:]), rollout.turns)
    assert learned == jax.tree.map(lambda leaf: leaf.shape, update.arguments[3][0].turns)
