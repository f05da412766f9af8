"""One step of learning, against gradients put together by hand from plain token rows.

By hand means: leave-one-out advantages subtracted leaf by leaf, the derivative of the loss by each token's
log-probability worked out on paper, and only the derivative of a log-probability taken by JAX, over every message's
whole context as one row (`run_flat` in tests/conftest.py). The gradient that the update used is read from Adam's first
moment, which after one update is (1 - b1) times it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c3jax.config import run as config_lib
from c3jax.credit import shrink
from c3jax.credit.plans import make_replay, make_tree
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.models.policy import Weights
from c3jax.protocol import TurnPlan
from c3jax.rollout.tree import take_problems
from c3jax.tasks import sections as task_sections
from c3jax.types import Rollout

CLIP, COEFFICIENT = 0.2, 0.3
RETURN_PL = np.array([[1, 0, 0, 0], [0.5, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 0.25]], np.float32)
KL = {
    "k1": config_lib.KL(coefficient=COEFFICIENT, estimator="k1"),
    "k3": config_lib.KL(coefficient=COEFFICIENT, estimator="k3", target=0.01, horizon=100.0),
}
# Name: whether each turn is trained, and the learner's fields that differ. Every program takes seconds to compile, so
# each differs in several things, and what does not need two turns has the planner's alone.
PROGRAMS: dict[str, tuple[tuple[bool, ...], dict[str, Any]]] = {
    "token": ((True, True), {"kl": KL["k3"]}),
    "token, one by one": ((True, True), {"kl": KL["k3"], "micro_problems": 1}),
    "message": (
        (False, True),
        {"kl": KL["k1"], "micro_problems": 2, "loss": config_lib.PolicyLoss(aggregation="message")},
    ),
    "constant": ((True, False), {"micro_problems": 2, "loss": config_lib.PolicyLoss(aggregation="constant", length=7)}),
    "skip": ((True, True), {"kl": KL["k3"], "micro_problems": 1, "zero_signal": "skip"}),
    "gspo": (
        (True, False),
        {"micro_problems": 2, "loss": config_lib.PolicyLoss(kind="gspo", clip_low=CLIP, clip_high=CLIP)},
    ),
    "minibatches": ((True,), {"epochs": 2, "minibatches": 2, "warmup_updates": 4}),
    "shrunk": ((False, True), {}),
}


class Program(NamedTuple):
    config: config_lib.RunConfig
    plans: list[TurnPlan]
    rollout: Rollout
    return_PL: np.ndarray
    update: Any


def make_config(
    method: str, turns: int, learner: dict[str, Any], sampling: config_lib.Sampling
) -> config_lib.RunConfig:
    speakers = [
        config_lib.Turn(name=name, role=name, user="{question}", max_tokens=tokens)
        for name, tokens in (("planner", 5), ("actor", 4))
    ]
    # Adam's epsilon is far above rounding, so that a gradient of about zero is not blown up to a step of full size.
    fields = {"learning_rate": 1e-2, "max_grad_norm": 1e6, "adam_b1": 0.5, "adam_eps": 1e-3} | learner
    return config_lib.RunConfig(
        seed=0,
        steps=10,
        problems=4,
        task=task_sections.ArithmeticTask(kind="arithmetic"),
        protocol=config_lib.Protocol(turns=tuple(speakers[:turns]), question_tokens=4),
        model=config_lib.RandomModel(kind="random"),
        sampling=sampling,
        credit=config_lib.Credit(method=method, fan_out=(2,) * turns, budget=2**turns, normalise="none"),
        learner=config_lib.Learner(**fields),
    )


@pytest.fixture(scope="module")
def get_program(tiny):
    tree = tiny.get_tree("chain")

    @functools.cache
    def get_program(name: str) -> Program:
        trained, learner = PROGRAMS[name]
        turns = len(trained)
        method = "shrunk" if name == "shrunk" else "c3"
        config = make_config(method, turns, learner, tree.sampling)
        plans = [plan._replace(is_trained=is_on) for plan, is_on in zip(tree.plans[:turns], trained, strict=True)]
        rollout = tree.rollout._replace(turns=tree.rollout.turns[:turns])
        return_PL = RETURN_PL[:, : 2**turns]
        sections = (config.credit, config.learner, config.sampling, config.steps)
        update = update_lib.make_update(*sections, tiny.policy, plans)
        return Program(config, plans, rollout, return_PL, update)

    return get_program


@pytest.fixture(scope="module")
def moved(tiny) -> dict:
    """A policy some way from the one that drew the trees."""
    random = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: leaf + 0.05 * jnp.float32(random.normal(size=leaf.shape)), tiny.params)


def run(program, tiny, params=None, rollout=None, return_PL=None, key=0, state=None):
    """One step; returns the next state and the figures."""
    if state is None:
        state = start(program, tiny, params)
    reference = tiny.params if config_lib.uses_reference(program.config.learner) else None
    rollout = program.rollout if rollout is None else rollout
    return_PL = jnp.asarray(program.return_PL if return_PL is None else return_PL)
    plan = make_tree(program.config.credit.fan_out)
    state, _, figures = program.update(state, {}, reference, (rollout,), return_PL, jax.random.key(key), plan)
    return state, jax.device_get(figures)


def start(program, tiny, params=None):
    weights = Weights(copy(tiny.params if params is None else params), {})
    return state_lib.init_state(tiny.policy, weights, program.plans, program.config.credit, program.config.learner)


def copy(tree):
    return jax.tree.map(jnp.array, tree)  # the update gives up the state's buffers


def gradient_of(state, config):
    (_, mean), *_ = optax.tree.get_all_with_path(state.opt_state, "mu")
    return jax.tree.map(lambda leaf: leaf / (1 - config.learner.adam_b1), mean)


def count_of(state):
    counts = [int(count) for _, count in optax.tree.get_all_with_path(state.opt_state, "count")]
    assert len(set(counts)) == 1
    return counts[0]


def check_close(got, expected, atol=2e-6):
    for (path, one), other in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=str(path))


def check_same(got, expected):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def subtract_by_hand(return_PL) -> list[np.ndarray]:
    """Of two siblings each is the other's baseline; the planner's values are means over its two actors."""
    actor = return_PL.reshape(4, 2, 2)
    planner = actor.mean(axis=2)
    return [(planner - planner[:, ::-1]).ravel(), (actor - actor[:, :, ::-1]).ravel()]


def work_by_hand(  # noqa: PLR0913
    tiny, params, trained=(True, True), aggregation="token", estimator=None, level="token", return_PL=RETURN_PL,
    problems=range(4),
):  # fmt: skip
    """The gradient of the loss, and its figures. A message's ratio is the geometric mean of its tokens'."""
    tree, advantage = tiny.get_tree("chain"), subtract_by_hand(return_PL)
    rows = [each.context + each.message for each in tree.sequences]
    arguments = (rows, tree.supports, tree.sampling.temperature)
    logp_BS, reference_BS = tiny.run_flat(params, *arguments).logp, tiny.run_flat(tiny.params, *arguments).logp
    chosen = [(row, each) for row, each in enumerate(tree.sequences) if trained[each.turn] and each.problem in problems]
    tokens = sum(len(each.message) for _, each in chosen)
    slopes, figures = {}, dict.fromkeys(("policy_loss", "clip_share", "kl"), 0.0)
    for row, each in chosen:
        lengths = {"token": tokens / len(chosen), "message": len(each.message), "constant": 7}
        weight = 1 / (lengths[aggregation] * len(chosen))
        share = 1 / tokens if aggregation == "constant" else weight
        credit = advantage[each.turn][each.row]
        slots = [(row, len(each.context) - 1 + slot) for slot in range(len(each.message))]
        behaviour_T = tree.rollout.turns[each.turn].behaviour_logp_NT[each.row]
        log_ratio_T = [logp_BS[where] - behaviour for where, behaviour in zip(slots, behaviour_T, strict=False)]
        for where, log_ratio in zip(slots, log_ratio_T, strict=True):
            ratio = np.exp(log_ratio if level == "token" else np.mean(log_ratio_T))
            gap = logp_BS[where] - reference_BS[where]
            is_clipped = (credit > 0 and ratio > 1 + CLIP) or (credit < 0 and ratio < 1 - CLIP)
            loss = -np.clip(ratio, 1 - CLIP, 1 + CLIP) * credit if is_clipped else -ratio * credit
            slope = 0.0 if is_clipped else -ratio * credit
            if estimator is not None:
                slope += COEFFICIENT * (gap if estimator == "k1" else 1 - np.exp(-gap))
                figures["kl"] += weight * (gap if estimator == "k1" else np.exp(-gap) - 1 + gap)
            slopes[where] = weight * slope
            figures["policy_loss"] += weight * loss
            figures["clip_share"] += share * is_clipped
    figures["loss"] = figures["policy_loss"] + COEFFICIENT * figures["kl"]
    return tiny.run_flat(params, *arguments, slopes).gradient, figures


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("token", {"estimator": "k3"}),
        ("message", {"estimator": "k1", "aggregation": "message", "trained": (False, True)}),
        ("constant", {"aggregation": "constant", "trained": (True, False)}),
        ("gspo", {"aggregation": "message", "level": "message", "trained": (True, False)}),
    ],
)
def test_gradient_and_figures_by_hand(tiny, get_program, moved, name, by_hand):
    """Far enough from the behaviour policy for some tokens to be clipped; a turn that is not trained plays no part."""
    program = get_program(name)
    state, figures = run(program, tiny, moved)
    expected, by_hand = work_by_hand(tiny, moved, **by_hand)
    assert 0.02 < by_hand["clip_share"] < 0.5
    for figure, value in by_hand.items():
        np.testing.assert_allclose(figures[figure], value, atol=1e-5, err_msg=figure)
    assert optax.tree.norm(expected) > 0.1
    check_close(gradient_of(state, program.config), expected)
    np.testing.assert_allclose(figures["grad_norm"], optax.tree.norm(expected), atol=1e-5)


def test_first_gradient_is_the_policy_gradient_and_the_reference_is_still_the_policy(tiny, get_program):
    """At the behaviour policy the loss's gradient is -sum of advantage * d logp over the tokens, by their number."""
    program, tree, advantage = get_program("token"), tiny.get_tree("chain"), subtract_by_hand(RETURN_PL)
    state, figures = run(program, tiny)
    tokens = sum(len(each.message) for each in tree.sequences)
    weight = {
        (row, len(each.context) - 1 + slot): -advantage[each.turn][each.row] / tokens
        for row, each in enumerate(tree.sequences)
        for slot in range(len(each.message))
    }
    rows = [each.context + each.message for each in tree.sequences]
    flat = tiny.run_flat(tiny.params, rows, tree.supports, tree.sampling.temperature, weight)
    assert optax.tree.norm(flat.gradient) > 0.05
    check_close(gradient_of(state, program.config), flat.gradient)
    assert abs(figures["kl"]) < 1e-6 and figures["first_ratio_deviation"] < 1e-5 and figures["clip_share"] == 0


def test_micro_batches_add_up_to_the_minibatch(tiny, get_program, moved):
    whole, figures = run(get_program("token"), tiny, moved)
    assert float(jnp.abs(whole.params["embedding"] - moved["embedding"]).max()) > 5e-3
    parts, part_figures = run(get_program("token, one by one"), tiny, moved)
    check_close(parts.params, whole.params, atol=1e-6)
    assert figures.keys() == part_figures.keys()
    for figure, value in figures.items():
        np.testing.assert_allclose(part_figures[figure], value, atol=1e-5, err_msg=figure)


def test_the_order_of_problems_in_a_minibatch_changes_nothing(tiny, get_program, moved):
    program = get_program("token")
    rollout = program.rollout
    plain, _ = run(program, tiny, moved)
    order = np.array([2, 0, 3, 1])
    turned, _ = run(program, tiny, moved, take_problems(rollout, 4, order), RETURN_PL[order])
    check_close(turned.params, plain.params, atol=1e-6)
    wrong, _ = run(program, tiny, moved, rollout, RETURN_PL[order])
    assert float(jnp.abs(wrong.params["embedding"] - plain.params["embedding"]).max()) > 1e-3


def test_coefficient_moves_towards_its_target(tiny, get_program, moved):
    """24 messages of a horizon of 100, the error cut at .2: .048 of the coefficient, up or down."""
    far, figures = run(get_program("token"), tiny, moved)
    assert figures["kl"] > 0.012 and figures["kl_coefficient"] == np.float32(COEFFICIENT)
    np.testing.assert_allclose(far.kl_coefficient, COEFFICIENT * 1.048, atol=1e-6)
    near, figures = run(get_program("token"), tiny)
    assert figures["kl"] < 0.008
    np.testing.assert_allclose(near.kl_coefficient, COEFFICIENT * 0.952, atol=1e-6)
    fixed, _ = run(get_program("message"), tiny, moved)
    assert fixed.kl_coefficient == np.float32(COEFFICIENT)


def test_equal_returns_teach_nothing(tiny, get_program):
    return_PL = np.repeat([[0.0], [1.0], [0.3], [0.7]], 2, axis=1).astype(np.float32)
    state, figures = run(get_program("minibatches"), tiny, return_PL=return_PL)
    check_same(state.params, tiny.params)
    assert figures["grad_norm"] == 0 and figures["loss"] == 0
    assert count_of(state) == 4 and int(state.bad_updates) == 0


def test_trees_without_signal_are_left_out_of_the_mean(tiny, get_program, moved):
    """Two of four have equal returns: the loss, its divergence too, is the mean over the tokens of the other two; the
    figures are of all."""
    return_PL = RETURN_PL.copy()
    return_PL[1], return_PL[3] = 0.7, 0.0
    state, figures = run(get_program("skip"), tiny, moved, return_PL=return_PL)
    expected, by_hand = work_by_hand(tiny, moved, estimator="k3", return_PL=return_PL, problems=(0, 2))
    _, of_all = work_by_hand(tiny, moved, estimator="k3", return_PL=return_PL)
    by_hand |= {"skipped_share": 0.5, "kl": of_all["kl"], "clip_share": of_all["clip_share"]}
    for figure, value in by_hand.items():
        np.testing.assert_allclose(figures[figure], value, atol=1e-5, err_msg=figure)
    check_close(gradient_of(state, get_program("skip").config), expected)
    # Where none has any, nothing is learnt, not even to come back to the reference.
    params = copy(moved)
    state, figures = run(get_program("skip"), tiny, moved, return_PL=np.repeat(RETURN_PL[:, :1], 4, axis=1))
    check_same(state.params, params)
    assert figures["loss"] == figures["grad_norm"] == 0 and figures["skipped_share"] == 1
    assert int(state.bad_updates) == 0


def test_later_epochs_leave_the_behaviour_policy(tiny, get_program):
    state, figures = run(get_program("minibatches"), tiny)
    assert count_of(state) == int(state.updates) == 4 and int(state.bad_updates) == 0
    assert figures["first_ratio_deviation"] < 1e-5 < 1e-3 < figures["ratio_deviation"]
    again, _ = run(get_program("minibatches"), tiny)
    check_same(again, state)
    others = [run(get_program("minibatches"), tiny, key=key)[0].params["embedding"] for key in (1, 2, 3)]
    assert any(np.abs(other - state.params["embedding"]).max() > 1e-5 for other in others)


def spoil(rollout, rows, value):
    """Another behaviour log-probability for the first token of some of the planner's messages."""
    (planner,) = rollout.turns
    logp_NT = planner.behaviour_logp_NT.copy()
    logp_NT[rows, 0] = value
    return rollout._replace(turns=(planner._replace(behaviour_logp_NT=logp_NT),))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_bad_update_is_skipped_whole(tiny, get_program, value):
    program = get_program("minibatches")
    before, _ = run(program, tiny)
    kept = copy(before)
    # A message of every problem is spoilt, so all four updates are bad.
    after, figures = run(program, tiny, rollout=spoil(program.rollout, [0, 2, 4, 6], value), state=before)
    check_same(after.params, kept.params)
    check_same(after.opt_state, kept.opt_state)
    assert (int(after.updates), int(after.bad_updates), int(after.bad_in_row)) == (8, 4, 4)
    assert count_of(after) == 4 and not np.isfinite(figures["grad_norm"])
    good, _ = run(program, tiny, state=after)
    assert (int(good.updates), int(good.bad_updates), int(good.bad_in_row)) == (12, 4, 0)
    assert count_of(good) == 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_return_is_a_bad_update_and_not_zero_credit(tiny, get_program, value):
    """One problem's return is broken: of each epoch's two updates the one that takes the problem is skipped."""
    program = get_program("minibatches")
    return_PL = program.return_PL.copy()
    return_PL[2, 1] = value
    state, figures = run(program, tiny, return_PL=return_PL)
    assert (int(state.updates), int(state.bad_updates)) == (4, 2)
    assert not np.isfinite(figures["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_broken_parameters_are_not_made_worse(tiny, get_program):
    broken = copy(tiny.params) | {"final_norm": tiny.params["final_norm"].at[0].set(jnp.inf)}
    state, _ = run(get_program("minibatches"), tiny, broken)
    check_same(state.params, broken)
    assert (int(state.updates), int(state.bad_updates), int(state.bad_in_row)) == (4, 4, 4)
    assert count_of(state) == 0


@pytest.mark.parametrize("problem", range(4))
def test_every_epoch_takes_every_problem_once(tiny, get_program, problem):
    """One spoilt problem spoils one of the two updates of each epoch; the others are taken."""
    program = get_program("minibatches")
    state, _ = run(program, tiny, rollout=spoil(program.rollout, [2 * problem], np.nan), key=problem)
    assert (int(state.updates), int(state.bad_updates)) == (4, 2)
    assert count_of(state) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert float(jnp.abs(state.params["embedding"] - tiny.params["embedding"]).max()) > 1e-3


def test_every_epoch_has_an_order_of_its_own(tiny, get_program):
    """Two spoilt problems spoil one update of an epoch that puts them together and two of one that does not."""
    program, bad = get_program("minibatches"), set()
    for key in range(8):
        state, _ = run(program, tiny, rollout=spoil(program.rollout, [0, 2], np.nan), key=key)
        bad.add(int(state.bad_updates))
    assert bad == {2, 3, 4}


def test_steps_share_one_trace_and_leave_the_reference_alone(tiny, get_program):
    program, reference = get_program("token"), copy(tiny.params)
    state = start(program, tiny)
    for step in range(3):
        state, figures = run(program, tiny, state=state, key=step)
        assert int(state.updates) == count_of(state) == step + 1 and np.isfinite(figures["loss"])
    assert figures["kl"] > 1e-4
    check_same(tiny.params, reference)
    assert program.update._cache_size() == 1


def test_the_rate_rises_with_good_updates_only(tiny, get_program):
    """Four updates of warm-up: 1/4 + 2/4 + 3/4 + 4/4 of .01 have the mean .00625; bad ones stay at the first."""
    program = get_program("minibatches")
    _, figures = run(program, tiny)
    np.testing.assert_allclose(figures["learning_rate"], 0.00625, atol=1e-8)
    _, figures = run(program, tiny, rollout=spoil(program.rollout, [0, 2, 4, 6], np.nan))
    np.testing.assert_allclose(figures["learning_rate"], 0.0025, atol=1e-8)


def test_only_a_run_that_adapts_carries_what_it_learnt(tiny, get_program):
    assert run(get_program("minibatches"), tiny)[0].adaptive is None


def test_the_shrunk_baseline_is_of_earlier_steps(tiny, get_program):
    """Credit is that of the components before the step; the state carries those after it."""
    program, fan_out, trained = get_program("shrunk"), (2, 2), (False, True)
    earlier = shrink.update_components(shrink.init_components(2), RETURN_PL[:, ::-1] * 0.5, fan_out, 0.9)
    state = start(program, tiny)
    state = state._replace(adaptive=state.adaptive._replace(components=copy(earlier)))
    return_PL = jnp.asarray(RETURN_PL)
    after, credit, figures = program.update(
        state, {}, None, (program.rollout,), return_PL, jax.random.key(0), make_tree(fan_out)
    )
    expected = shrink.apply_shrunk(earlier, return_PL, fan_out, trained, normalise="none")
    check_close(credit, expected, atol=1e-6)
    assert np.abs(expected.advantage[1]).max() > 0.1 and np.isfinite(figures["loss"])
    np.testing.assert_array_equal(credit.advantage[0], 0.0)
    later = shrink.update_components(earlier, return_PL, fan_out, 0.9)
    check_close(after.adaptive.components, later, atol=1e-6)
    assert abs(float(later.mean - earlier.mean)) > 0.05
    tokens = [np.mean(turn.sampled_NT.sum(axis=1)) for turn in program.rollout.turns]
    # The first lengths seen were the most that the turns may write; two steps weigh the same.
    before = [turn.max_tokens for turn in program.config.protocol.turns]
    np.testing.assert_allclose(after.adaptive.tokens_K, np.add(before, tokens) / 2, atol=1e-6)


def test_a_broken_return_stays_out_of_the_shrunk_baseline(tiny, get_program):
    program = get_program("shrunk")
    return_PL = RETURN_PL.copy()
    return_PL[0, 3] = np.nan
    state, _ = run(program, tiny, return_PL=return_PL)
    assert (int(state.updates), int(state.bad_updates)) == (1, 1)
    check_same(state.adaptive, start(program, tiny).adaptive)
    good, _ = run(program, tiny, state=state)
    assert (int(good.bad_in_row), int(good.adaptive.components.steps)) == (0, 1)


def test_a_replay_learns_from_the_alternatives_of_each_decision(tiny):
    """Its two branches taken from the chain's tree: the plans, and the answers to the first of them."""
    tree, plan = tiny.get_tree("chain"), make_replay((1, 1), 2)
    learner = config_lib.Learner(learning_rate=1e-3, max_grad_norm=1e6)
    section = config_lib.Credit(method="c3_replay", draws={"alternatives": 2}, budget=4, normalise="none")
    update = update_lib.make_update(section, learner, tree.sampling, 10, tiny.policy, tree.plans)
    planners, actors = tree.rollout.turns
    kept = [row for row in range(16) if row % 4 < 2]
    answers = [jax.tree.map(lambda leaf: leaf[::2], planners), jax.tree.map(lambda leaf: leaf[np.array(kept)], actors)]
    rollouts = (tree.rollout._replace(turns=(planners,)), tree.rollout._replace(turns=tuple(answers)))
    return_PL = np.random.default_rng(5).uniform(size=(4, 4)).astype(np.float32)
    state = state_lib.init_state(tiny.policy, Weights(copy(tiny.params), {}), tree.plans, section, learner)
    state, credit, _ = update(state, {}, None, rollouts, jnp.asarray(return_PL), jax.random.key(0), plan)

    signs = np.array([1.0, -1.0])
    by_hand = [(return_PL[:, first] - return_PL[:, first + 1])[:, None] * signs for first in (0, 2)]
    for got, expected in zip(credit.advantage, by_hand, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    chosen = [(row, each) for row, each in enumerate(tree.sequences) if each.alternative < 2]
    tokens, slopes = sum(len(each.message) for _, each in chosen), {}
    for row, each in chosen:
        for slot in range(len(each.message)):
            slopes[row, len(each.context) - 1 + slot] = -by_hand[each.turn][each.problem, each.alternative] / tokens
    rows = [each.context + each.message for each in tree.sequences]
    expected = tiny.run_flat(tiny.params, rows, tree.supports, tree.sampling.temperature, slopes).gradient
    (_, mean), *_ = optax.tree.get_all_with_path(state.opt_state, "mu")
    check_close(jax.tree.map(lambda leaf: leaf / (1 - learner.adam_b1), mean), expected)
