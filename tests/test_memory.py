"""The estimate of a run's memory: rows by hand, and the whole against what the compiler plans for the real programs."""

import io
import math

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from c3jax import config as config_lib
from c3jax import memory, task_sections
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_tree
from c3jax.learner import update as update_lib
from c3jax.memory import Limit, Weights, check_memory, estimate_memory
from c3jax.models import decoder
from c3jax.models import policy as policy_lib
from c3jax.models.policy import Policy
from c3jax.protocol import FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout.tree import make_tree_sampler
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
        credit=config_lib.Credit(method="c3", fan_out=fan_out, budget=math.prod(fan_out), normalise="none"),
        learner=config_lib.Learner(learning_rate=1e-3, **learner),
    )


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


def test_the_compiler_plans_what_was_estimated():
    """One program of each kind, for the compiler's time; docs/memory.md has more."""
    config, plans, spec = make_config(1), PLANS[:1], SPEC
    graphdef, params = decoder.define_decoder(spec)
    policy, weights = Policy("shared", graphdef, None), policy_lib.Weights(params, {})
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    estimate = estimate_memory(config, spec, plans, Weights(count))
    slots = jax.ShapeDtypeStruct((4, 30), jnp.int32)
    question, key = Frame(slots, jax.ShapeDtypeStruct(slots.shape, bool)), jax.eval_shape(lambda: jax.random.key(0))
    sample_tree = make_tree_sampler(policy, plans, config.credit.fan_out, config.sampling, (0,))
    drawing = (weights, question, key, jax.ShapeDtypeStruct((4,), jnp.int32))
    rollout, _ = jax.eval_shape(sample_tree, *drawing)
    matrix = make_credit_matrix("c3", make_tree(config.credit.fan_out))
    update = update_lib.make_update(config, policy, plans, matrix)
    state = jax.eval_shape(lambda weights: update_lib.init_state(policy, weights, config), weights)
    return_PL = jax.ShapeDtypeStruct((4, config.credit.budget), jnp.float32)

    def plan(program, *arguments):
        planned = program.lower(*arguments).compile().memory_analysis()
        held = planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
        return held + planned.temp_size_in_bytes

    ratios = (
        (4 * count + estimate.total("trees")) / plan(sample_tree, *drawing),
        (estimate.total("always") + estimate.total("update")) / plan(update, state, {}, None, rollout, return_PL, key),
    )
    assert all(1 / 1.5 < ratio < 1.5 for ratio in ratios), ratios


def test_what_does_not_fit_is_refused_with_what_would():
    config, weights = make_config(), Weights(10**6)
    needed = estimate_memory(config, SPEC, PLANS, weights)
    assert check_memory(config, SPEC, PLANS, weights, Limit("device", needed.peak)) == needed
    smaller = estimate_memory(make_config(micro_problems=2), SPEC, PLANS, weights)
    with pytest.raises(UserError, match=r"^memory: expected at most the .* MB of device, got about .* MB; ") as error:
        check_memory(config, SPEC, PLANS, weights, Limit("device", smaller.peak))
    assert f"learner.micro_problems 2 would take {smaller.peak / 1e6:.1f} MB" in str(error.value)
    with pytest.raises(UserError, match=r"12.0 MB of it all the time: try policy.kind adapters"):
        check_memory(config, SPEC, PLANS, weights, Limit("device", 10**7))


def test_the_table_fits_80_columns():
    out = io.StringIO()
    estimate = estimate_memory(make_config(), SPEC, PLANS, Weights(10**6))
    Console(file=out, width=80).print(memory.make_table(estimate, Limit("NVIDIA H100 80GB HBM3", 80 * 10**9)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("optimiser state" in line and "8.0 MB" in line for line in lines)
    assert any("80.0 GB" in line for line in lines)


def test_the_machine_has_a_limit():
    assert memory.find_limit().bytes > 10**8
