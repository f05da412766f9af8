"""The critic through the update, against plain token rows, credit on paper and targets that it is known to reach."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from c3jax.config import run as config_lib
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_tree
from c3jax.learner import critic as critic_lib
from c3jax.learner import forward, losses
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.models.policy import Weights
from c3jax.protocol import TurnPlan
from c3jax.run.checkpoint import CheckpointStore
from c3jax.tasks import sections as task_sections
from c3jax.types import Frame, Rollout

STEPS, ALONE = 40, 30
RETURN_PL = np.array([[1, 0], [0.5, 1], [0, 0], [1, 0.25]], np.float32)  # two episodes a problem
# By problem, so that only a critic that reads its context can tell them.
LEARNABLE_PL = np.array([[0.2, 0.2], [0.9, 0.9], [0.5, 0.5], [0.7, 0.7]], np.float32)
OWN = {"network": "own", "learning_rate": 0.01}
# Every program takes seconds to compile, so each is there for several tests, and what does not need two turns has the
# planner's alone: method, fan-out, critic, and the learner's fields that differ.
PROGRAMS: dict[str, tuple[str, tuple[int, ...], dict[str, Any] | None, dict[str, Any]]] = {
    "trunk": (
        "mappo",
        (2, 1),
        {"network": "trunk", "learning_rate": 0.05, "discount": 0.9, "decay": 0.8, "clip": 0.2},
        {},
    ),
    "own": ("mappo", (2,), OWN, {}),
    "own, alone, one by one": ("mappo", (2,), OWN | {"critic_only_steps": ALONE}, {"micro_problems": 1}),
    "reinforce": ("reinforce", (2,), None, {}),
}


class Program(NamedTuple):
    config: config_lib.RunConfig
    plans: tuple[TurnPlan, ...]
    rollout: Rollout
    update: Any


def make_config(
    method: str, fan_out: tuple[int, ...], critic: dict[str, Any] | None, learner: dict[str, Any]
) -> config_lib.RunConfig:
    speakers = [
        config_lib.Turn(name=name, role=name, user="{question}", max_tokens=tokens)
        for name, tokens in (("planner", 5), ("actor", 4))
    ]
    # Adam's epsilon is far above rounding, so that a gradient of about zero is not blown up to a step of full size.
    fields = {"learning_rate": 1e-2, "max_grad_norm": 1e6, "adam_b1": 0.5, "adam_eps": 1e-3} | learner
    return config_lib.RunConfig(
        seed=0,
        steps=STEPS,
        problems=4,
        task=task_sections.ArithmeticTask(kind="arithmetic"),
        protocol=config_lib.Protocol(turns=tuple(speakers[: len(fan_out)]), question_tokens=4),
        model=config_lib.RandomModel(kind="random"),
        sampling=config_lib.Sampling(temperature=0.7, top_k=20, top_p=0.8),
        credit=config_lib.Credit(
            method=method,
            fan_out=fan_out,
            budget=int(np.prod(fan_out)),
            normalise="none",
            critic=None if critic is None else config_lib.Critic(**critic),
        ),
        learner=config_lib.Learner(**fields),
    )


def flatten(rollout: Rollout, turns: int) -> Rollout:
    """Two episodes a problem: of each planner the first actor."""
    planner, actor = rollout.turns
    return rollout._replace(turns=(planner, jax.tree.map(lambda array: array[::2], actor))[:turns])


@pytest.fixture(scope="module")
def get_program(tiny):
    tree = tiny.get_tree("chain")

    @functools.cache
    def get_program(name: str) -> Program:
        method, fan_out, critic, learner = PROGRAMS[name]
        config, turns = make_config(method, fan_out, critic, learner), len(fan_out)
        plans, sections = tree.plans[:turns], (config.credit, config.learner, config.sampling, config.steps)
        update = update_lib.make_update(*sections, tiny.policy, plans)
        return Program(config, plans, flatten(tree.rollout, turns), update)

    return get_program


def run(program: Program, state, return_PL=RETURN_PL, key=0):
    plan = make_tree(program.config.credit.fan_out)
    state, credit, figures = program.update(
        state, {}, None, (program.rollout,), jnp.asarray(return_PL), jax.random.key(key), plan
    )
    return state, credit, jax.device_get(figures)


def start(program: Program, tiny):
    return init(tiny, program.config, program.plans)


def init(tiny, config, plans):
    return state_lib.init_state(tiny.policy, Weights(copy(tiny.params), {}), plans, config.credit, config.learner)


def copy(tree):
    return jax.tree.map(jnp.array, tree)  # the update gives up the state's buffers


def check_same(got, expected):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def set_head(state, seed=4):
    weight = jnp.float32(0.1 * np.random.default_rng(seed).normal(size=16))
    head = {"weight": weight, "bias": jnp.float32(0.3)}
    return state._replace(critic=state.critic._replace(params={**state.critic.params, "head": head})), head


@functools.partial(jax.jit, static_argnums=0)
def run_plain(graphdef, params, frame):
    return nnx.merge(graphdef, params).extend((), frame)[0]


def read_plain(tiny, rows: list[list[int]]) -> np.ndarray:
    """Last hidden state [N, D] of whole token rows, each repeated in full."""
    tokens, keep = np.zeros((64, 40), np.int32), np.zeros((64, 40), bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)], keep[index, : len(row)] = row, True
    hidden_NSD = np.asarray(run_plain(tiny.policy.graphdef, tiny.params, Frame(tokens, keep)))
    return np.stack([hidden_NSD[index, len(row) - 1] for index, row in enumerate(rows)])


def test_a_critic_reads_the_context_or_context_and_message(tiny):
    """As the repeated prompt does: here the second turn's context is one row for all a problem's alternatives."""
    tree = tiny.get_tree("parallel")

    @jax.jit
    def read(params, rollout):
        model = nnx.merge(tiny.policy.graphdef, params)
        return [
            [compute(model, tree.plans, turn, rollout, tree.fan_out) for turn in range(len(tree.plans))]
            for compute in (forward.compute_context_hidden, forward.compute_message_hidden)
        ]

    of_context, of_message = read(tiny.params, tree.rollout)
    np.testing.assert_allclose(
        np.concatenate(of_context), read_plain(tiny, [each.context for each in tree.sequences]), atol=1e-4
    )
    np.testing.assert_allclose(
        np.concatenate(of_message),
        read_plain(tiny, [each.context + each.message for each in tree.sequences]),
        atol=1e-4,
    )


@pytest.mark.parametrize("wrap", [lambda f, **_: f, jax.jit])
def test_losses_by_hand(wrap):
    """Half the larger of (v - R)^2 and that of the value held within .2 of the old one.

    R = 1, old .4: v = .5 gives .125; v = .9 is held at .6 and gives .08, without a gradient; v = .1 is held at .2,
    which is nearer, so .405 counts. sigmoid(0) = .5: the cross-entropy is log 2 whatever the target.
    """
    value_loss = wrap(losses.compute_value_loss, **({} if wrap is not jax.jit else {"static_argnums": 3}))
    value_N, target_N, old_N = jnp.array([0.5, 0.9, 0.1]), jnp.ones(3), jnp.full(3, 0.4)
    np.testing.assert_allclose(value_loss(value_N, target_N, old_N, 0.2), [0.125, 0.08, 0.405], atol=1e-6)
    np.testing.assert_allclose(value_loss(value_N, target_N, old_N, None), [0.125, 0.005, 0.405], atol=1e-6)
    slope_N = jax.grad(lambda v_N: value_loss(v_N, target_N, old_N, 0.2).sum())(value_N)
    np.testing.assert_allclose(slope_N, [-0.5, 0.0, -0.9], atol=1e-6)
    score_loss = wrap(losses.compute_score_loss, **({} if wrap is not jax.jit else {"static_argnums": 2}))
    logit_N, target_N = jnp.array([0.0, 0.0, np.log(3.0)]), jnp.array([1.0, 0.25, 0.5])
    expected_N = [np.log(2.0), np.log(2.0), -0.5 * np.log(0.75) - 0.5 * np.log(0.25)]
    np.testing.assert_allclose(score_loss(logit_N, target_N, "bce"), expected_N, atol=1e-6)
    np.testing.assert_allclose(score_loss(logit_N, target_N, "mse"), [0.125, 0.03125, 0.03125], atol=1e-6)
    slope_N = jax.grad(lambda z_N: score_loss(z_N, target_N, "bce").sum())(logit_N)
    np.testing.assert_allclose(slope_N, [-0.5, 0.25, 0.25], atol=1e-6)  # q - R


def test_mappo_by_hand_through_the_update(tiny, get_program):
    """Discount .9, decay .8: errors .9 V1 - V0 and R - V1, of which the planner has the second times .72."""
    program = get_program("trunk")
    state, head = set_head(start(program, tiny))
    chosen = [each for each in tiny.get_tree("chain").sequences if each.turn == 0 or each.row % 2 == 0]
    hidden_ND = read_plain(tiny, [each.context for each in chosen])
    value_N = hidden_ND @ np.asarray(head["weight"]) + 0.3
    planner_PN, actor_PN = value_N[:8].reshape(4, 2), value_N[8:].reshape(4, 2)
    assert np.ptp(planner_PN) > 0.05 and np.ptp(actor_PN) > 0.05
    last_PN = RETURN_PL - actor_PN
    first_PN = 0.9 * actor_PN - planner_PN + 0.72 * last_PN

    after, credit, figures = run(program, state)
    for got, expected in zip(credit.baseline, (planner_PN, actor_PN), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    for got, expected in zip(credit.advantage, (first_PN, last_PN), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)

    # The values are the old ones still, so nothing is clipped: the mean over turns of the mean of half the squares, and
    # a gradient of -advantage times what the head reads.
    advantage_N = np.concatenate([first_PN.ravel(), last_PN.ravel()])
    np.testing.assert_allclose(figures["critic_loss"], 0.5 * np.mean(advantage_N**2), atol=1e-5)
    target_N = advantage_N + value_N
    np.testing.assert_allclose(figures["explained_variance"], 1 - np.var(advantage_N) / np.var(target_N), atol=1e-4)
    (_, mean), *_ = optax.tree.get_all_with_path(after.critic.opt_state, "mu")
    np.testing.assert_allclose(
        mean["head"]["weight"] / 0.5, -(advantage_N[:, None] * hidden_ND).mean(axis=0), atol=1e-4
    )
    np.testing.assert_allclose(mean["head"]["bias"] / 0.5, -advantage_N.mean(), atol=1e-5)


@pytest.mark.parametrize(("method", "loss"), [("value_assisted", "bce"), ("value_only", "mse")])
def test_action_values_by_hand(tiny, method, loss):
    """Of two alternatives each is the other's baseline; a message's target is the mean return of its leaves."""
    tree = tiny.get_tree("chain")
    config = make_config(method, (2, 2), {"network": "own", "learning_rate": 0.01, "loss": loss, "share": 0.25}, {})
    matrix, sections = make_credit_matrix(method, make_tree((2, 2))), (config.credit, config.learner, config.steps)
    program = critic_lib.make_critic_program(*sections, tiny.policy, tree.plans, (2, 2), matrix)
    state, head = set_head(init(tiny, config, tree.plans))
    return_PL = np.array([[1, 0, 0, 0], [0.5, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 0.25]], np.float32)

    weights = Weights(tiny.params, {})

    @jax.jit
    def read(critic, rollout):
        credit, batch = critic_lib.compute_critic_credit(program, critic, weights, rollout, return_PL, 2)
        return credit, critic_lib.compute_critic_loss(program, critic, weights, batch)

    credit, got_loss = read(state.critic.params, tree.rollout)
    rows = [each.context + each.message for each in tree.sequences]
    score_N = 1 / (1 + np.exp(-(read_plain(tiny, rows) @ np.asarray(head["weight"]) + 0.3)))
    score = [score_N[:8].reshape(4, 1, 2), score_N[8:].reshape(4, 2, 2)]
    value = [return_PL.reshape(4, 1, 2, 2).mean(axis=3), return_PL.reshape(4, 2, 2)]
    expected_loss = []
    for turn, (q, r) in enumerate(zip(score, value, strict=True)):
        assert np.ptp(q) > 0.02
        if method == "value_only":
            advantage = q - q[:, :, ::-1]
            expected_loss.append(np.mean(0.5 * (q - r) ** 2))
        else:
            advantage = r - 0.75 * r[:, :, ::-1] - 0.25 * q[:, :, ::-1]
            expected_loss.append(np.mean(-r * np.log(q) - (1 - r) * np.log(1 - q)))
        np.testing.assert_allclose(credit.advantage[turn], advantage.reshape(4, -1), atol=1e-5)
    np.testing.assert_allclose(got_loss, np.mean(expected_loss), atol=1e-5)


def test_a_critic_that_knows_nothing_yet_is_reinforce_and_does_not_touch_the_policy(tiny, get_program):
    """Its head is zero; its own update, on the very trees of the policy's, leaves the policy's as it is without one."""
    mappo, reinforce = get_program("own"), get_program("reinforce")
    with_critic, credit, _ = run(mappo, start(mappo, tiny))
    without, expected, figures = run(reinforce, start(reinforce, tiny))
    check_same(credit, expected)
    assert without.critic is None and "critic_loss" not in figures
    for one, other in zip(jax.tree.leaves(with_critic.params), jax.tree.leaves(without.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert jnp.abs(with_critic.params["embedding"] - tiny.params["embedding"]).max() > 1e-3
    head = with_critic.critic.params["head"]
    assert jnp.abs(head["weight"]).max() > 1e-3
    # A head of zero has no gradient for its network: what moved of it would have come from elsewhere.
    check_same(with_critic.critic.params["network"], tiny.params)


def test_micro_batches_add_up_for_the_critic_too(tiny, get_program):
    whole, parts = get_program("own"), get_program("own, alone, one by one")
    from_whole, _, whole_figures = run(whole, set_head(start(whole, tiny))[0])
    from_parts, _, part_figures = run(parts, set_head(start(parts, tiny))[0])
    for one, other in zip(jax.tree.leaves(from_whole.critic), jax.tree.leaves(from_parts.critic), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    assert jnp.abs(from_whole.critic.params["network"]["embedding"] - tiny.params["embedding"]).max() > 1e-3
    for figure in ("critic_loss", "explained_variance"):
        np.testing.assert_allclose(part_figures[figure], whole_figures[figure], atol=1e-5)


def test_alone_it_learns_what_its_contexts_tell_while_the_policy_stands_still(tiny, get_program):
    program = get_program("own, alone, one by one")
    state, explained = start(program, tiny), []
    for step in range(ALONE):
        state, credit, figures = run(program, state, LEARNABLE_PL, key=step)
        explained.append(figures["explained_variance"])
        assert figures["grad_norm"] == 0
    check_same(state.params, tiny.params)
    assert int(state.updates) == 0 and int(state.critic.updates) == ALONE
    assert explained[0] == 0 and explained[-1] > 0.95
    for value_PN in credit.baseline:
        np.testing.assert_allclose(value_PN, LEARNABLE_PL, atol=0.1)
    state, _, figures = run(program, state, RETURN_PL)
    assert int(state.updates) == 1 and figures["grad_norm"] > 0
    assert jnp.abs(state.params["embedding"] - tiny.params["embedding"]).max() > 1e-3
    assert program.update._cache_size() == 1


def test_a_head_alone_learns_too(tiny, get_program):
    """Twelve contexts, sixteen features. With discount and decay below 1 the targets are not the returns themselves."""
    program = get_program("trunk")
    state = start(program, tiny)
    policy = {name: part for name, part in copy(tiny.params).items()}
    for step in range(80):
        state, _, figures = run(program, state._replace(params=copy(policy)), LEARNABLE_PL, key=step)
    assert figures["explained_variance"] > 0.9


def test_a_bad_update_is_skipped_whole_and_counted(tiny, get_program):
    program = get_program("own")
    before, _, _ = run(program, start(program, tiny))
    kept = copy(before)
    after, _, figures = run(program, before, np.full_like(RETURN_PL, np.nan))
    check_same((after.critic.params, after.critic.opt_state), (kept.critic.params, kept.critic.opt_state))
    assert [int(count) for count in after.critic[2:]] == [2, 1, 1] and not np.isfinite(figures["critic_loss"])
    good, _, _ = run(program, after)
    assert [int(count) for count in good.critic[2:]] == [3, 1, 0]


def test_saved_and_restored_it_goes_on_bit_for_bit(tiny, get_program, tmp_path):
    program = get_program("own")
    state, _, _ = run(program, start(program, tiny))
    with CheckpointStore(tmp_path, 2, print) as store:
        store.save(1, state)
        like = jax.eval_shape(lambda: start(program, tiny))
        _, restored = store.restore_newest(like)
    check_same(restored, state)
    one, other = run(program, state, key=1), run(program, restored, key=1)
    check_same(one, other)
