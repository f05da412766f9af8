"""Whole training runs on the device: a lane is the run made alone, and runs do what is known of them from outside."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c3jax.config.run import KL, PolicyLoss
from c3jax.credit import plans
from c3jax.credit.matrix import make_credit_matrix
from c3jax.lab import games, play, policies
from c3jax.lab.chunks import compile_lowered, take_lanes
from c3jax.lab.training import Critic, Curve, Lane, Setting, _compute_loss, _speak_again, make_train
from c3jax.learner.objective import make_objective

KEY = jax.random.key(11)
PROBLEMS, MESSAGES = 6, 3
FAMILY = games.make_team(
    messages=(MESSAGES, MESSAGES), sees=games.see_all(2), effect=1.0, coupling=1.5, spread=0.5, noise="bernoulli"
)
TREE, FLAT = plans.make_tree((2, 2)), plans.make_flat(4, 2)


def make_setting(plan: plans.Plan = TREE, **changes: Any) -> Setting:
    setting = Setting(
        family=FAMILY,
        policy=policies.make_tabular(FAMILY.shape, PROBLEMS, 0.0),
        plan=plan,
        trained=(True, True),
        normalise="none",
        critic=None,
        optimiser=optax.identity(),
        problems=PROBLEMS,
        batch=4,
        updates=60,
        every=20,
        episodes=0,
    )
    return setting._replace(**changes)


def make_lanes(setting: Setting, *rows: tuple[str, int, float], critic_rates: tuple[float, ...] = ()) -> Lane:
    """A lane for each (method, seed, learning rate)."""
    methods, seeds, rates = zip(*rows, strict=True)
    matrices = [make_credit_matrix(method, setting.plan, setting.trained) for method in methods]
    return Lane(
        seed=np.array(seeds, np.uint32),
        learning_rate=np.array(rates, np.float32),
        critic_learning_rate=np.array(critic_rates or np.zeros(len(rows)), np.float32),
        matrix=jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *matrices),
    )


def run_together(setting: Setting, lanes: Lane) -> Curve:
    program = jax.jit(jax.vmap(make_train(setting), in_axes=(None, 0)))
    return jax.device_get(compile_lowered(program.lower(KEY, lanes))(KEY, lanes))


def run_alone(setting: Setting, lanes: Lane, *rows: int) -> list[Curve]:
    """Some of the lanes, one after another, in a program that knows of one lane."""
    chosen = [take_lanes(lanes, row) for row in rows]
    program = compile_lowered(jax.jit(make_train(setting)).lower(KEY, chosen[0]))
    return [jax.device_get(program(KEY, lane)) for lane in chosen]


def assert_equal_lane(curve: Curve, row: int, other: Curve) -> None:
    for name, column, alone in zip(Curve._fields, curve, other, strict=True):
        np.testing.assert_allclose(column[row], alone, rtol=1e-6, atol=1e-6, err_msg=name)


def tabulate_chances(seed: int, index: int, family: games.Family = FAMILY) -> np.ndarray:
    """Mean return of each joint message of a problem, [a, b], written out: bias, two effects, one interaction."""
    game = games.make_game(family, jax.random.fold_in(jax.random.fold_in(KEY, seed), 0), index)
    main, pair, bias = (np.asarray(leaf, np.float64) for leaf in (game.main_KM, game.pair_KKMM, game.bias))
    return 1 / (1 + np.exp(-(bias + main[0][:, None] + main[1][None] + pair[0, 1])))


def compute_uniform_value(seed: int) -> float:
    """Mean of it over problems and joint messages."""
    return float(np.mean([tabulate_chances(seed, index) for index in range(PROBLEMS)]))


@functools.cache
def run_tree() -> tuple[Setting, Lane, Curve]:
    setting = make_setting()
    rows = (
        ("c3", 0, 2.0),
        ("no_loo", 0, 4.0),
        ("c3", 1, 0.5),
        ("no_replay", 2, 2.0),
        ("c3", 0, 0.0),
        ("no_loo", 0, 0.0),
    )
    lanes = make_lanes(setting, *rows)
    return setting, lanes, run_together(setting, lanes)


def test_a_lane_is_the_run_made_alone():
    setting, lanes, together = run_tree()
    for row, alone in zip((0, 2, 3), run_alone(setting, lanes, 0, 2, 3), strict=True):
        assert_equal_lane(together, row, alone)


def test_a_clip_is_an_axis_as_a_seed_is():
    """Three steps on a sample with three clips: each lane is the run of its own objective, and they differ."""
    changes = {"updates": 4, "every": 2, "epochs": 3, "minibatches": 2, "is_unary": True}
    setting, rows = make_setting(**changes), [("c3", 0, 4.0)] * 3
    clips = (np.float32([0.2, 0.01, 1.0]), np.float32([0.2, 0.01, 9.0]))
    lanes = make_lanes(setting, *rows)._replace(clips=clips)
    together = run_together(setting, lanes)
    for row, alone in enumerate(run_alone(setting, lanes, 0, 1, 2)):
        assert_equal_lane(together, row, alone)
    assert len(set(together.value[:, -1].tolist())) == 3
    [own] = run_alone(
        make_setting(**changes, objective=make_objective(PolicyLoss(clip_low=0.01, clip_high=0.01), KL())),
        make_lanes(setting, rows[0]),
        0,
    )
    assert_equal_lane(together, 1, own)


LOSSES_OF = {
    "ppo": PolicyLoss(),
    "message": PolicyLoss(aggregation="message"),
    "constant": PolicyLoss(aggregation="constant"),
    "gspo": PolicyLoss(kind="gspo", clip_low=0.2, clip_high=0.2),
    "cispo": PolicyLoss(kind="cispo", clip_high=0.1),
    "reinforce": PolicyLoss(kind="reinforce"),
}


def write_unary(chance_M: np.ndarray, message: int) -> list[float]:
    """Log-probabilities of a message's tokens by hand: at each slot, that it is this one, or a later one."""
    goes_on = [math.log(chance_M[slot + 1 :].sum() / chance_M[slot:].sum()) for slot in range(message)]
    return [*goes_on, math.log(chance_M[message] / chance_M[message:].sum())]


def lose_by_hand(name: str, new: list[list[float]], old: list[list[float]], advantage: np.ndarray) -> float:
    """A turn's loss, written out token by token, or message by message."""
    sums, lengths = [], [len(tokens) for tokens in new]
    for after, before, a in zip(new, old, advantage, strict=True):
        ratios = np.exp(np.subtract(after, before))
        if name == "gspo":
            ratio = math.exp(np.mean(np.subtract(after, before)))
            sums.append(-min(ratio * a, min(max(ratio, 0.8), 1.2) * a) * len(after))
        elif name in ("cispo", "reinforce"):
            weights = np.ones(len(after)) if name == "reinforce" else np.minimum(ratios, 1.1)
            sums.append(-(weights * a * np.array(after)).sum())
        else:
            sums.append(-np.minimum(ratios * a, np.clip(ratios, 0.8, 1.2) * a).sum())
    if name in ("message", "gspo"):
        return float(np.mean(np.divide(sums, lengths)))
    return sum(sums) / (MESSAGES * len(sums) if name == "constant" else sum(lengths))


@pytest.mark.parametrize("name", LOSSES_OF)
def test_losses_of_messages_in_unary_by_hand(name):
    """Off policy: a flat sample of one problem, drawn by one table of logits and learnt from by another."""
    plan = plans.make_flat(6, 2)
    setting = make_setting(plan, is_unary=True, objective=make_objective(LOSSES_OF[name], KL()))
    old, new = (setting.policy.init(jax.random.key(seed)) for seed in (0, 1))
    scale = np.random.default_rng(0)
    old, new = ([jnp.float32(scale.normal(size=part.shape)) for part in params] for params in (old, new))
    game = jax.tree.map(lambda part: part[None], games.make_game(FAMILY, KEY, 0))
    sample = jax.vmap(lambda game: play.sample_plan(FAMILY.shape, game, setting.policy, old, plan, jax.random.key(3)))(
        game
    )
    advantage = [jnp.float32(scale.normal(size=(1, 6))) for _ in range(2)]
    behaviour = tuple(_speak_again(setting, old, game, sample, turn)[0] for turn in range(2))
    loss, _ = _compute_loss(new, setting, setting.objective, game, sample, tuple(advantage), behaviour)

    expected = 0.0
    for turn in range(2):
        written = []
        for params in (new, old):
            chance_CM = np.asarray(jax.nn.softmax(params[turn][0]), np.float64)
            context_N = [0] * 6 if turn == 0 else np.asarray(sample.message[0])[0]
            pairs = zip(context_N, np.asarray(sample.message[turn])[0], strict=True)
            written.append([write_unary(chance_CM[context], message) for context, message in pairs])
        expected += lose_by_hand(name, *written, np.asarray(advantage[turn])[0])
    np.testing.assert_allclose(loss, expected, atol=1e-6)


def test_a_policy_that_stands_still_stays_what_it_was():
    """At rate 0 a uniform policy stays uniform: its value is the plain mean, its entropy log M, whatever the method."""
    _, _, curve = run_tree()
    expected = compute_uniform_value(0)
    for row in (4, 5):
        np.testing.assert_allclose(curve.value[row], expected, rtol=1e-6)
        np.testing.assert_allclose(curve.entropy[row, 1:], math.log(MESSAGES), rtol=1e-6)
    # Paired: the same seed met the same problems, and drew the same messages and verdicts.
    np.testing.assert_array_equal(curve.sampled_return[4], curve.sampled_return[5])
    np.testing.assert_array_equal(curve.zero_share[4], curve.zero_share[5])
    # A quarter of an update's 4 problems x 4 leaves x 20 updates = 320 draws; four standard errors.
    assert abs(np.mean(curve.sampled_return[4, 1:]) - expected) < 4 * math.sqrt(0.25 / (3 * 320))


def test_nothing_is_known_of_updates_before_the_first():
    _, _, curve = run_tree()
    assert curve.value.shape == (6, 4)
    assert np.isfinite(curve.value).all()
    for column in (curve.sampled_return, curve.entropy, curve.zero_share):
        assert np.isnan(column[:, 0]).all() and np.isfinite(column[:, 1:]).all()


def test_leave_one_out_is_the_mean_at_twice_the_rate():
    """With two alternatives everywhere, c3's advantages are n / (n - 1) = 2 times no_loo's."""
    _, _, curve = run_tree()
    for column in curve:
        np.testing.assert_allclose(column[0], column[1], rtol=1e-5, atol=1e-5)
    assert abs(curve.value[0, -1] - curve.value[4, -1]) > 0.05  # and it did move


def test_a_critic_that_never_learns_is_no_baseline():
    """A critic that stays at zero leaves mappo the return itself, which is reinforce; one that learns does better."""
    adam = make_setting(FLAT, optimiser=optax.scale_by_adam())
    setting = adam._replace(critic=Critic(1.0, 1.0))
    lanes = make_lanes(setting, ("mappo", 0, 0.05), ("mappo", 0, 0.05), critic_rates=(0.0, 0.1))
    together = run_together(setting, lanes)
    (reinforce,) = run_alone(adam, make_lanes(adam, ("reinforce", 0, 0.05)), 0)
    assert_equal_lane(together, 0, reinforce)
    (alone,) = run_alone(setting, lanes, 1)
    assert_equal_lane(together, 1, alone)
    assert together.value[1, -1] > together.value[0, -1] > together.value[0, 0] + 0.05


class ByHand(NamedTuple):
    """mappo's run with all written out but the draws: a table of logits, one of values, and what each update gave."""

    logits: list[np.ndarray]  # a turn's, [problem, context, message]
    values: list[np.ndarray]  # [problem, context]
    advantage: list[np.ndarray]  # an update's, [turn, P, N]
    size: list[np.ndarray]  # [P]: the largest amount that entered each problem's credit
    sampled_return: list[float]


def train_by_hand(setting: Setting, rate: float, critic_rate: float) -> ByHand:
    """Plain ascent by the sum over turns of a turn's mean of A d log pi, and of the critic towards V + A.

    A_1 = R - V_1 and A_0 = (discount V_1 - V_0) + discount decay A_1; the gradient of log pi(a | c) is e_a - pi(. | c).
    """
    assert setting.critic is not None
    sizes, shape = [(PROBLEMS, 1), (PROBLEMS, MESSAGES)], setting.family.shape
    logits, values = [np.zeros((*size, MESSAGES)) for size in sizes], [np.zeros(size) for size in sizes]
    found = ByHand(logits, values, [], [], [])
    lane_key = jax.random.fold_in(KEY, 0)
    for update in range(setting.updates):
        update_key = jax.random.fold_in(jax.random.fold_in(lane_key, 3), update)
        index_P = [(update * setting.batch + row) % PROBLEMS for row in range(setting.batch)]
        ascent, climb = [np.zeros_like(part) for part in logits], [np.zeros_like(part) for part in values]
        advantage, size, returns = [], [], []
        for index in index_P:
            game = games.make_game(setting.family, jax.random.fold_in(lane_key, 0), index)
            tables = tuple(jnp.asarray(part, jnp.float32) for part in logits)
            drawn = play.sample_plan(
                shape, game, setting.policy, tables, setting.plan, jax.random.fold_in(update_key, index)
            )
            message_KN, return_L = np.array(drawn.message), np.asarray(drawn.return_L, np.float64)
            context_KN = [np.zeros_like(message_KN[0]), message_KN[0]]
            value_KN = [values[turn][index][context_KN[turn]] for turn in (0, 1)]
            last_N = return_L - value_KN[1]
            first_N = setting.critic.discount * value_KN[1] - value_KN[0]
            advantage_KN = np.array([first_N + setting.critic.discount * setting.critic.decay * last_N, last_N])
            share = 1 / (len(index_P) * len(return_L))
            for turn, row in itertools.product((0, 1), range(len(return_L))):
                at, a = (index, context_KN[turn][row]), advantage_KN[turn, row]
                chance_M = np.exp(logits[turn][at]) / np.exp(logits[turn][at]).sum()
                ascent[turn][at] += share * a * (np.eye(MESSAGES)[message_KN[turn, row]] - chance_M)
                climb[turn][at] += share * a
            advantage.append(advantage_KN)
            size.append(np.abs([return_L, *value_KN, *(value_KN + advantage_KN)]).max())
            returns.append(return_L.mean())
        for turn in (0, 1):
            logits[turn] += rate * ascent[turn]
            values[turn] += critic_rate * climb[turn]
        found.advantage.append(np.stack(advantage, axis=1))
        found.size.append(np.array(size))
        found.sampled_return.append(float(np.mean(returns)))
    return found


def make_critic_setting(noise: games.Noise, updates: int, critic: Critic) -> Setting:
    shape = FAMILY.shape._replace(noise=noise, sigma=0.3 if noise == "gaussian" else 0.0)
    family = FAMILY._replace(shape=shape)
    return make_setting(FLAT, family=family, critic=critic, updates=updates, every=updates)


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_mappo_is_what_it_comes_to_by_hand(noise):
    """Four updates with a critic that learns, returns of either sign among them; the policy's value by enumeration."""
    setting = make_critic_setting(noise, 4, Critic(discount=0.9, decay=0.5))
    (curve,) = run_alone(setting, make_lanes(setting, ("mappo", 0, 8.0), critic_rates=(4.0,)), 0)
    by_hand = train_by_hand(setting, 8.0, 4.0)
    chance = [np.exp(part) / np.exp(part).sum(axis=-1, keepdims=True) for part in by_hand.logits]
    values = [chance[0][p, 0] @ (chance[1][p] * tabulate_chances(0, p)).sum(axis=1) for p in range(PROBLEMS)]
    assert abs(np.mean(values) - compute_uniform_value(0)) > 0.01
    np.testing.assert_allclose(curve.value, [compute_uniform_value(0), np.mean(values)], rtol=1e-6)
    np.testing.assert_allclose(curve.sampled_return[1], np.mean(by_hand.sampled_return), rtol=1e-6)


def test_what_is_left_of_a_critic_of_nearly_nothing_is_rounding():
    """Values of 1e-8 beside returns of one: a message of an episode without a return has no credit, not -1e-8 of it."""
    setting = make_critic_setting("bernoulli", 4, Critic(discount=1.0, decay=1.0))
    (curve,) = run_alone(setting, make_lanes(setting, ("mappo", 0, 0.0), critic_rates=(1e-7,)), 0)
    by_hand = train_by_hand(setting, 0.0, 1e-7)
    size_UP = np.stack(by_hand.size)[:, None, :, None]
    advantage_UKPN = np.stack(by_hand.advantage)
    is_nothing = advantage_UKPN == 0.0
    is_dropped = is_nothing | (np.abs(advantage_UKPN) < 1e-6 * size_UP)
    assert is_nothing.mean() + 0.05 < is_dropped.mean() < 0.9
    np.testing.assert_allclose(curve.zero_share[1], is_dropped.mean(), rtol=1e-6)


def test_a_turn_with_one_alternative_learns_nothing():
    """Untrained, the first role stays uniform: no policy of the second alone is worth more than its best answers."""
    setting = make_setting(plans.make_tree((1, 4)), trained=(False, True), updates=200, every=200)
    curve = run_together(setting, make_lanes(setting, ("c3", 0, 8.0)))
    family_key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    best_one, best_two = [], []
    for index in range(PROBLEMS):
        game = games.make_game(FAMILY, family_key, index)
        all_NK = np.array(list(itertools.product(range(MESSAGES), repeat=2)), np.int32)
        chance = np.asarray(games.compute_mean_return(FAMILY.shape, game, all_NK)).reshape(MESSAGES, MESSAGES)
        best_one.append(chance.max(axis=1).mean())
        best_two.append(chance.max())
    assert curve.value[0, -1] <= np.mean(best_one) + 1e-6
    assert curve.value[0, -1] > np.mean(best_one) - 0.1  # it learnt nearly all it could
    assert np.mean(best_two) > np.mean(best_one) + 0.05  # which is less than two roles could


@functools.cache
def run_fresh(episodes: int, rate: float) -> Curve:
    family = games.make_fresh(FAMILY._replace(coupling=0.0), 4)
    setting = make_setting(
        FLAT,
        family=family,
        policy=policies.make_mlp(family.shape, 4, 16),
        optimiser=optax.scale_by_adam(),
        problems=64,
        batch=16,
        updates=100,
        every=50,
        episodes=episodes,
    )
    return run_together(setting, make_lanes(setting, ("rloo", 0, rate), ("rloo", 1, 0.0)))


def test_a_network_answers_problems_it_never_met():
    curve = run_fresh(0, 0.03)
    assert curve.value[0, -1] > curve.value[0, 0] + 0.1
    np.testing.assert_allclose(curve.value[1], curve.value[1, 0], rtol=1e-6)  # its neighbour stood still


def test_a_sampled_measurement_is_near_the_exact_one():
    """64 problems x 32 episodes of returns in [0, 1]: a standard error below 0.5 / sqrt(2048); 99.9 % is 3.3 of it."""
    exact, sampled = run_fresh(0, 0.03), run_fresh(32, 0.03)
    np.testing.assert_array_equal(exact.sampled_return, sampled.sampled_return)  # measuring changes no run
    assert np.abs(exact.value - sampled.value).max() < 3.3 * 0.5 / math.sqrt(2048)
    np.testing.assert_array_equal(sampled.value[1], sampled.value[1, 0])  # the same draws at every measurement


@pytest.mark.parametrize(
    ("method", "plan"),
    [
        ("c3_replay", plans.make_replay((2, 1), 2)),
        ("at_grpo", plans.make_replay((2, 2), 2, continues_best=True)),
        ("vine_ppo", plans.make_auxiliary(2, 2, 2)),
        ("difference", plans.make_arms("removal", 2, 2)),
        ("shapley", plans.make_arms("coalition", 2, 2)),
        ("ccpo", plans.make_arms("first_removal", 2, 2)),
        ("otb", plans.make_flat(2, 2)),
        ("igpo", plans.make_flat(2, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_form_of_sampling_trains(method: str, plan: plans.Plan):
    """Traced and not run: shapes of credit and samples fit for every form; what they hold is other tests' matter."""
    setting = make_setting(plan)
    lane = take_lanes(make_lanes(setting, (method, 0, 1.0)), 0)
    curve = jax.eval_shape(make_train(setting), KEY, lane)
    assert {leaf.shape for leaf in curve} == {(4,)}
