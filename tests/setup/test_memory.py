"""The estimate of a run's memory: rows by hand, and the whole against what the compiler plans for the real programs."""

import functools
import io
import math
import re

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from c3jax.config import run as config_lib
from c3jax.credit.plans import make_tree
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.models import decoder, sharding
from c3jax.models import policy as policy_lib
from c3jax.models.policy import Policy
from c3jax.protocol import FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout.tree import make_tree_sampler
from c3jax.setup import memory
from c3jax.setup.memory import Limit, Weights, check_memory, estimate_memory
from c3jax.setup.policy import count_held, estimate_run
from c3jax.tasks import sections as task_sections
from c3jax.types import Frame, UserError

SPEC = decoder.DecoderSpec(
    vocab_size=3000, layers=3, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=256, context=512,
    rope_theta=100.0, norm_eps=1e-5, tied=True,
)  # fmt: skip
QUESTION = FramePlan(1, (Slot(1), Literal((4, 5))))
PLANS = (
    TurnPlan("planner", "planner", (QUESTION,), 8, is_trained=True),
    TurnPlan("actor", "actor", (QUESTION, FramePlan(2, (Slot(2), Literal((6,))))), 16, is_trained=True),
)


def make_config(turns=2, **learner) -> config_lib.RunConfig:
    speakers = [
        config_lib.Turn(name=plan.name, role=plan.role, user="{question}", max_tokens=plan.max_tokens) for plan in PLANS
    ]
    fan_out = (2, 4)[:turns]
    return config_lib.RunConfig(
        seed=0,
        steps=10,
        problems=4,
        task=task_sections.ArithmeticTask(kind="arithmetic"),
        protocol=config_lib.Protocol(turns=tuple(speakers[:turns]), question_tokens=30),
        model=config_lib.RandomModel(kind="random"),
        evaluation=config_lib.Evaluation(problems=2, samples=0),
        credit=config_lib.Credit(method="c3", fan_out=fan_out, budget=math.prod(fan_out), normalise="none"),
        learner=config_lib.Learner(learning_rate=1e-3, **learner),
    )


def change(section, name: str, value):
    """A section with one field changed, named with dots."""
    first, _, rest = name.partition(".")
    return section.model_copy(update={first: change(getattr(section, first), rest, value) if rest else value})


def rows_of(estimate) -> dict[str, int]:
    return {row.name: row.bytes for row in estimate.rows}


def test_rows_by_hand():
    weights = Weights(trained=1000, frozen=500, frozen_bytes=2, has_reference=True)
    rows = rows_of(estimate_memory(make_config(), SPEC, PLANS, weights))
    assert (rows["trained weights"], rows["optimiser state"], rows["reference policy"]) == (4000, 8000, 4000)
    assert (rows["frozen weights"], rows["gradients"]) == (1000, 4000)
    # The actor's context: 4 rows of 30 + 2 slots and 8 of 8 + 1, held twice; its messages: 32 of 16. A slot holds keys
    # and values, 2 heads of 16 numbers each, in 3 layers.
    assert rows["keys and values"] == (2 * (4 * 32 + 8 * 9) + 32 * 16) * 2 * 2 * 16 * 3 * 4
    assert rows["layers taken apart"] == 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256) * 4
    split = rows_of(estimate_memory(make_config(micro_problems=1), SPEC, PLANS, weights))
    assert split["gradients"] == 8000
    assert 4 * split["kept by layers, remat none"] == rows["kept by layers, remat none"]
    half = rows_of(estimate_memory(make_config(), SPEC._replace(dtype="bfloat16"), PLANS, weights))
    assert 2 * half["keys and values"] == rows["keys and values"] and half["gradients"] == rows["gradients"]
    assert "frozen weights" not in rows_of(estimate_memory(make_config(), SPEC, PLANS, Weights(1000)))


def test_what_an_optimiser_keeps_is_counted():
    """AdamW two a weight, Lion one, Muon one of the projections' and two of the rest's; beside them a few counts."""
    critic = config_lib.Critic(network="own", learning_rate=1e-3)
    credit = config_lib.Credit(method="mappo", fan_out=(8, 1), budget=8, normalise="none", critic=critic)
    blocks = decoder.define_decoder(SPEC)[1]["blocks"]
    projections = sum(leaf.size for leaf in jax.tree.leaves(blocks) if len(leaf.shape) == 3)
    for optimiser, per_projection, per_other in (("adamw", 2, 2), ("lion", 1, 1), ("muon", 1, 2)):
        config = make_config(optimiser=optimiser).model_copy(update={"credit": credit})
        held = count_held(config, SPEC, None)
        expected = per_projection * projections + per_other * (held.trained - projections)
        assert 0 <= held.optimiser - expected <= 8 and held.critic_optimiser == held.optimiser
    kept = Weights(1000, critic=10, optimiser=30, critic_optimiser=7)
    rows = rows_of(estimate_memory(make_config(), SPEC, PLANS, kept))
    assert rows["optimiser state"] == 4 * 30 and rows["critic's network and optimiser state"] == 4 * (10 + 7)


def test_a_message_read_in_part_takes_fewer_slots_of_later_contexts():
    shorter = PLANS[1]._replace(frames=(QUESTION, FramePlan(2, (Slot(2, 3), Literal((6,))))))
    rows = rows_of(estimate_memory(make_config(), SPEC, (PLANS[0]._replace(visible_tokens=3), shorter), Weights(1000)))
    assert rows["keys and values"] == (2 * (4 * 32 + 8 * 4) + 32 * 16) * 2 * 2 * 16 * 3 * 4


def test_turns_of_one_network_go_through_a_layer_together():
    spec, apart = SPEC._replace(remat="layer"), config_lib.Policy(kind="per_role")
    config = make_config()
    shared = rows_of(estimate_memory(config, spec, PLANS, Weights(1000, head=100)))
    per_role = rows_of(estimate_memory(config.model_copy(update={"policy": apart}), spec, PLANS, Weights(1000)))
    # With the actor's frames the planner's: 4 rows of 32 slots, and 8 messages of 8.
    more = (4 * 32 + 8 * 8) * (4 * 256 + 5 * 64 + 3 * 64 + 3 * 32) * 4
    assert shared["inside of one layer"] - per_role["inside of one layer"] == more
    # A head whose parts are on several devices has its gradient whole twice: of this device's tokens, and of all.
    assert shared["gradients"] - per_role["gradients"] == 2 * 4 * 100


def test_an_adapters_product_stands_beside_the_networks_own():
    spec, config = SPEC._replace(remat="layer"), make_config()
    rows = {}
    for targets in ((), ("query",), ("gate", "down"), ("gate", "up")):
        policy = config_lib.Policy(kind="adapters", targets=targets) if targets else config_lib.Policy()
        estimate = estimate_memory(config.model_copy(update={"policy": policy}), spec, PLANS, Weights(1000))
        rows[targets] = rows_of(estimate)["inside of one layer"]
    slots = 2 * 4 * 32 + 8 * 8 + 8 * 9 + 32 * 16  # of both turns' frames and messages
    assert rows[()] == rows["query",]
    assert [rows[both] - rows[()] for both in (("gate", "down"), ("gate", "up"))] == [
        2 * 256 * slots * 4,
        4 * 256 * slots * 4,
    ]


def test_a_kernel_holds_no_scores():
    spec, config = SPEC._replace(remat="layer"), make_config()
    plans = (PLANS[0], PLANS[1]._replace(max_tokens=200))
    blocks, kernel = (
        rows_of(estimate_memory(config, spec._replace(attention=kernel), plans, Weights(1000)))["inside of one layer"]
        for kernel in (None, "splash")
    )
    # 32 messages of 200 slots, four heads: scores with a block of the path, three times; sums for each of 128 lanes.
    queries = 32 * 200 * 4
    assert blocks - kernel == 4 * queries * (3 * min(30 + 2 + 8 + 1 + 200, max(4_000_000 // queries, 128)) - 128)


def test_a_batch_of_evaluation_by_hand():
    evaluation = config_lib.Evaluation(problems=6, samples=3, batch=8)
    config = make_config().model_copy(update={"evaluation": evaluation})
    rows = rows_of(estimate_memory(config, SPEC, PLANS, Weights(1000)))
    # Six problems, three transcripts each: contexts of 6 rows of 32 slots and 18 of 9, 18 messages of 16, and one layer
    # of the context's frames, which is more than the logits of a decoding step, 4 * 18 * 3000.
    caches = (2 * (6 * 32 + 18 * 9) + 18 * 16) * 2 * 2 * 16 * 3 * 4
    layer = (6 * 32 + 18 * 9) * (2 * 256 + 4 * 64)
    assert rows["the same as drawing trees, for a batch"] == rows["layers taken apart"] + caches + 4 * layer


def test_a_critics_own_network_by_hand():
    weights = Weights(trained=10, frozen=1000, critic=700)
    rows = rows_of(estimate_memory(make_config(), SPEC, PLANS, weights))
    assert rows["critic's network and optimiser state"] == 3 * 4 * 700
    assert rows["gradients"] == 4 * 700  # the policy's are fewer, and come later
    plans = (PLANS[0]._replace(is_trained=False), PLANS[1])
    one, both = (rows_of(estimate_memory(make_config(), SPEC, plans, Weights(10, critic=count))) for count in (0, 700))
    # It reads the planner's turn too: frames of 4 rows of 32 slots, and 8 messages of 8.
    slot = 3 * (64 + 4 * 256 + 5 * 64 + 3 * 64 + 3 * 32) * 4
    assert both["kept by layers, remat none"] - one["kept by layers, remat none"] == (4 * 32 + 8 * 8) * slot
    assert both["logits, in chunks"] == one["logits, in chunks"]


def test_the_compiler_plans_what_was_estimated():
    """One program of each kind, for the compiler's time; docs/memory.md has more."""
    config, plans, spec = make_config(1), PLANS[:1], SPEC
    graphdef, params = decoder.define_decoder(spec)
    policy, weights = Policy("shared", graphdef, None), policy_lib.Weights(params, {})
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    estimate = estimate_memory(config, spec, plans, Weights(count))
    slots = jax.ShapeDtypeStruct((4, 30), jnp.int32)
    question, key = Frame(slots, jax.ShapeDtypeStruct(slots.shape, bool)), jax.eval_shape(lambda: jax.random.key(0))
    fan_out, sections = config.credit.fan_out, (config.credit, config.learner)
    sample_tree = make_tree_sampler(policy, plans, config.sampling, (0,))
    drawing = (weights, question, key, jax.ShapeDtypeStruct((4,), jnp.int32))
    rollout, _ = jax.eval_shape(functools.partial(sample_tree, fan_out=fan_out), *drawing)
    update = update_lib.make_update(*sections, config.sampling, config.steps, policy, plans)
    state = jax.eval_shape(lambda weights: state_lib.init_state(policy, weights, plans, *sections), weights)
    return_PL = jax.ShapeDtypeStruct((4, config.credit.budget), jnp.float32)

    def plan(program, *arguments):
        planned = program.lower(*arguments).compile().memory_analysis()
        held = planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
        return held + planned.temp_size_in_bytes

    ratios = (
        (4 * count + estimate.total("trees")) / plan(sample_tree, *drawing, fan_out),
        (estimate.total("always") + estimate.total("update"))
        / plan(update, state, {}, None, (rollout,), return_PL, key, make_tree(fan_out)),
    )
    assert all(1 / 1.5 < ratio < 1.5 for ratio in ratios), ratios


@pytest.mark.parametrize(
    ("changes", "share", "complaint"),
    [
        ({}, 0.9, r"of which kept by layers, remat none in the update .* MB: try model.remat layer, or learner.micro_"),
        (
            {"micro_problems": 1},
            0.9,
            r"of which gradients in the update 8.8 MB: try policy.kind adapters, or a smaller",
        ),
        ({}, 0.01, r"of which optimiser state all the time 8.0 MB: try policy.kind adapters, or a smaller model$"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_takes_the_most_and_its_field(changes, share, complaint):
    config, weights = make_config(**changes), Weights(10**6)
    needed = estimate_memory(config, SPEC, PLANS, weights)
    assert check_memory(needed, Limit("device", needed.peak)).estimate == needed
    limit = Limit("device", int(needed.peak * share))
    with pytest.raises(UserError, match=r"^memory: expected at most the .*B of device, got about .*B, ") as error:
        check_memory(estimate_memory(config, SPEC, PLANS, weights), limit)
    assert re.search(complaint, str(error.value)), error.value


def test_devices_that_only_draw_hold_weights_and_trees_and_the_others_no_trees():
    (whole, same), (learning, drawing) = (
        estimate_run(make_config(), SPEC, PLANS, jax.sharding.AbstractMesh((1, 2, 1), sharding.AXES), apart)
        for apart in (None, jax.sharding.AbstractMesh((1, 1, 1), sharding.AXES))
    )
    assert whole is same and rows_of(whole) == {**rows_of(whole), **rows_of(learning)}
    assert {row.when for row in whole.rows} - {row.when for row in learning.rows} == {"trees"}
    assert {row.name for row in drawing.rows if row.when != "trees"} == {"trained weights"}
    assert rows_of(drawing)["trained weights"] == 2 * rows_of(learning)["trained weights"]
    assert whole.peak >= learning.peak


def test_what_is_advised_makes_a_run_smaller():
    evaluation = config_lib.Evaluation(problems=64, samples=2, batch=64)
    config, weights = make_config().model_copy(update={"evaluation": evaluation, "problems": 32}), Weights(1000)
    peaks = {}
    for name, value in (("evaluation.batch", 16), ("rollout_problems", 8), ("learner.micro_problems", 4)):
        peaks[name] = estimate_memory(config, SPEC, PLANS, weights).peak
        config = change(config, name, value)
    assert sorted(peaks.values(), reverse=True) == list(peaks.values())
    assert estimate_memory(config, SPEC, PLANS, weights).peak < min(peaks.values())


def test_the_table_fits_80_columns():
    out = io.StringIO()
    estimate = estimate_memory(make_config(), SPEC, PLANS, Weights(10**6))
    fit = memory.Fit(estimate, Limit("NVIDIA H100 80GB HBM3", 80 * 10**9))
    Console(file=out, width=80).print(memory.make_table(fit))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("optimiser state" in line and "8.0 MB" in line for line in lines)
    assert any("80.0 GB" in line for line in lines)


def test_the_machine_has_a_limit():
    assert memory.find_limit().bytes > 10**8
