"""The update of a team whose roles do not share their weights: what each role learns, and from what."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config import run as config_lib
from c3jax.credit.plans import make_tree
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.models import policy as policy_lib
from c3jax.models.policy import Policy, Weights
from c3jax.protocol import TurnPlan
from c3jax.rollout.tree import make_tree_sampler
from c3jax.tasks import sections as task_sections
from c3jax.types import Rollout

# Leaves: two actors below each of two planners. Added to the second planner's leaves, SHIFT changes the planners'
# credit and leaves the actors', which is within a planner, alone.
RETURN_PL = np.array([[1, 0, 0, 0], [0.5, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 0.25]], np.float32)
SHIFT = np.array([0, 0, 2, 2], np.float32)
KL = config_lib.KL(coefficient=0.3)


class Program(NamedTuple):
    config: config_lib.RunConfig
    policy: Policy
    plans: tuple[TurnPlan, ...]
    weights: Weights
    rollout: Rollout
    update: Any


@pytest.fixture(scope="module")
def get_program(tiny):
    tree = tiny.get_tree("chain")
    speakers = [
        config_lib.Turn(name=name, role=name, user="{question}", max_tokens=tokens)
        for name, tokens in (("planner", 5), ("actor", 4))
    ]

    @functools.cache
    def get_program(kind: str, dtype: str = "float32") -> Program:
        config = config_lib.RunConfig(
            seed=0,
            steps=10,
            problems=4,
            task=task_sections.ArithmeticTask(kind="arithmetic"),
            protocol=config_lib.Protocol(turns=tuple(speakers), question_tokens=4),
            model=config_lib.RandomModel(kind="random"),
            policy=config_lib.Policy(kind=kind, rank=2),
            sampling=tree.sampling,
            credit=config_lib.Credit(method="c3", fan_out=(2, 2), budget=4, normalise="none"),
            # A norm so small that every gradient is clipped: the clip of one role must not see the other's. Adam's
            # epsilon is far above rounding, so that a gradient of about zero is not blown up to a step of full size.
            learner=config_lib.Learner(learning_rate=1e-2, max_grad_norm=1e-2, adam_eps=1e-4, kl=KL),
        )
        policy, weights = policy_lib.make_policy(
            config.policy, tiny.spec._replace(dtype=dtype), tiny.params, ["planner", "actor"], ["planner", "actor"],
            jax.random.key(5),
        )  # fmt: skip
        sections = (config.credit, config.learner, config.sampling, config.steps)
        update = update_lib.make_update(*sections, policy, tree.plans)
        rollout = tree.rollout
        if dtype != "float32":  # what this policy says itself
            sampler = make_tree_sampler(policy, tree.plans, tree.sampling, tiny.stop_tokens)
            rollout, _ = sampler(weights, tiny.question, tree.key, tiny.problem_P, (2, 2))
        return Program(config, policy, tree.plans, weights, rollout, update)

    return get_program


def run(program: Program, return_PL, state=None, reference=None):
    weights = jax.tree.map(jnp.copy, program.weights)  # the update gives up the state's buffers
    if state is None:
        sections = (program.config.credit, program.config.learner)
        state = state_lib.init_state(program.policy, weights, program.plans, *sections)
    if reference is None:
        reference = {} if program.policy.kind == "adapters" else program.weights.trained
    drawn = ((program.rollout,), jnp.asarray(return_PL), jax.random.key(0), make_tree((2, 2)))
    state, _, figures = program.update(state, program.weights.frozen, reference, *drawn)
    return state, jax.device_get(figures)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("kind", ["per_role", "adapters"])
def test_a_role_learns_from_its_own_turns_alone(get_program, kind):
    program = get_program(kind)
    plain, _ = run(program, RETURN_PL)
    shifted, _ = run(program, RETURN_PL + SHIFT)
    for one, other in zip(leaves(plain.params["actor"]), leaves(shifted.params["actor"]), strict=True):
        np.testing.assert_array_equal(one, other)
    for part in ("planner", "actor"):
        moved = zip(leaves(plain.params[part]), leaves(program.weights.trained[part]), strict=True)
        assert max(np.abs(one - other).max() for one, other in moved) > 1e-3
    gap = zip(leaves(plain.params["planner"]), leaves(shifted.params["planner"]), strict=True)
    assert max(np.abs(one - other).max() for one, other in gap) > 1e-3


@pytest.mark.parametrize("kind", ["per_role", "adapters"])
def test_without_credit_a_role_stands_still(get_program, kind):
    """A planner's two leaves are worth the same, so actors have no credit; at step 0 there is no divergence."""
    program = get_program(kind)
    state, figures = run(program, np.float32([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0.5, 0.5]]))
    for one, other in zip(leaves(state.params["actor"]), leaves(program.weights.trained["actor"]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    moved = zip(leaves(state.params["planner"]), leaves(program.weights.trained["planner"]), strict=True)
    assert max(np.abs(one - other).max() for one, other in moved) > 1e-3
    assert figures["first_ratio_deviation"] < 1e-5 and abs(figures["kl"]) < 1e-6


def test_only_adapters_have_moments_and_the_network_below_them_is_the_reference(get_program, tiny):
    program = get_program("adapters")
    state, _ = run(program, RETURN_PL)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    # Two moments for each trained number, a count or two for each role, and nothing for the network.
    assert sum(sizes) - 2 * sum(leaf.size for leaf in jax.tree.leaves(program.weights.trained)) <= 6
    assert {leaf.size for leaf in jax.tree.leaves(state.params)}.isdisjoint({tiny.params["embedding"].size})
    # b has moved from zero: the divergence is now that from the network without adapters.
    _, figures = run(program, RETURN_PL, state=state)
    assert figures["kl"] > 1e-8


def test_adapters_are_sampled_and_learn_in_bfloat16(get_program):
    program = get_program("adapters", "bfloat16")
    state, figures = run(program, RETURN_PL)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    for role in ("planner", "actor"):
        moved = zip(leaves(state.params[role]), leaves(program.weights.trained[role]), strict=True)
        assert max(np.abs(one - other).max() for one, other in moved) > 1e-3
    # Decoding a token at a time and reading a whole message round the same products otherwise, and no more than that.
    assert figures["first_ratio_deviation"] < 0.05 and np.isfinite(figures["loss"])
