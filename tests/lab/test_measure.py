"""Sums over draws, against the derivatives of log-probabilities draw by draw and against all draws enumerated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.analysis.statistics import compute_student_interval
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import Plan, make_flat, make_tree
from c3jax.lab import games, measure, oracle, policies

TURNS, MESSAGES = 2, 3
FAMILY = games.make_team(
    messages=(MESSAGES, MESSAGES), sees=games.see_all(TURNS), effect=1.0, coupling=1.5, spread=0.5, noise="none"
)
SHAPE = FAMILY.shape
GAME = games.make_game(FAMILY, jax.random.key(1), 0)
POLICY = policies.make_tabular(SHAPE, problems=1, scale=0.8)
PARAMS = POLICY.init(jax.random.key(2))
ORACLE = oracle.compute_oracle(SHAPE, GAME, POLICY, PARAMS)
TARGET = measure.make_target(ORACLE)
KEY = jax.random.key(4)
SAMPLES = 40


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """Without the compiler's costly passes: programs here compile for seconds and run for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make_weights(method: str, plan: Plan, mean: float = 0.0, share: float = 0.0) -> measure.CreditWeights:
    matrix = make_credit_matrix(method, plan, mean=share)
    matrix = jax.tree.map(lambda block: jnp.asarray(block, jnp.float32), matrix)
    return measure.CreditWeights(matrix, jnp.float32(mean))


def draw(method: str, plan: Plan, samples: int = SAMPLES, target=TARGET, key=KEY, mean=0.0, **fields) -> measure.Draws:
    recipe = measure.make_recipe(method, plan, "none", **fields)
    program = jax.jit(measure.draw_credit, static_argnums=(0, 1, 2, 3))
    return program(SHAPE, POLICY, recipe, samples, PARAMS, GAME, target, make_weights(method, plan, mean), key)


def list_prefixes(turn: int, context_N) -> jax.Array:
    return jnp.asarray(policies.list_contexts(SHAPE, turn))[context_N]


# --------------------------------------------------------------------------------------------------------------------
# Sums of given draws


@pytest.mark.parametrize(("method", "plan"), [("c3", make_tree((2, 3))), ("rloo", make_flat(4, TURNS))])
def test_gradients_are_those_of_the_log_probabilities(method, plan):
    """A sample's gradient: d/d logits of the mean over its messages of advantage x log pi, by automatic derivative."""
    draws = draw(method, plan)
    sums = jax.jit(measure.sum_draws)(TARGET, draws)
    for turn in range(TURNS):

        def score(params, context_N, message_N, advantage_N, turn=turn):
            logits_NM = POLICY.logits(params, GAME, turn, list_prefixes(turn, context_N))
            logp_N = jax.nn.log_softmax(logits_NM)[jnp.arange(len(message_N)), message_N]
            return jnp.mean(advantage_N * logp_N)

        one_by_one = jax.jit(jax.vmap(jax.grad(score), in_axes=(None, 0, 0, 0)))
        found = one_by_one(PARAMS, draws.context[turn], draws.message[turn], draws.advantage[turn])
        gradient_SCM = np.asarray(found[turn][:, 0], np.float64)
        np.testing.assert_allclose(sums.gradient[turn], gradient_SCM.sum(axis=0), atol=2e-6)
        np.testing.assert_allclose(sums.gradient_square[turn], np.square(gradient_SCM).sum(), rtol=1e-5)
        assert np.square(gradient_SCM).sum() > 0.01


def test_cells_are_counted_and_summed_one_by_one():
    draws = jax.device_get(draw("c3", make_tree((2, 3))))
    sums = measure.sum_draws(TARGET, draws)
    for turn in range(TURNS):
        exact_CM = np.asarray(TARGET.advantage[turn])
        count_CM, total_CM, square, error = np.zeros_like(exact_CM), np.zeros_like(exact_CM), 0.0, 0.0
        parts = (part[turn].ravel() for part in draws)
        for context, message, advantage in zip(*parts, strict=True):
            count_CM[context, message] += 1
            total_CM[context, message] += advantage
            square += advantage**2
            error += (advantage - exact_CM[context, message]) ** 2
        np.testing.assert_array_equal(sums.count[turn], count_CM)
        np.testing.assert_allclose(sums.advantage[turn], total_CM, atol=2e-6)
        np.testing.assert_allclose((sums.square[turn], sums.error[turn]), (square, error), rtol=1e-5)


class Enumerated(NamedTuple):
    """Every draw of two episodes, with its chance, and what it adds to each turn's gradient."""

    chance_S: np.ndarray
    gradient: tuple[np.ndarray, ...]  # [S, C, M]


def enumerate_rloo(share: float, mean: float) -> Enumerated:
    """Two episodes: each one's credit is its return less the other's, of which the mean has a share.

    Returns have no noise in this game.
    """
    transcript_AK = games.list_transcripts(SHAPE)
    return_A = np.asarray(games.compute_mean_return(SHAPE, GAME, jnp.asarray(transcript_AK)), np.float64)
    policy = [np.asarray(policy_CM, np.float64) for policy_CM in TARGET.policy]
    chance_A = np.array([policy[0][0, first] * policy[1][first, second] for first, second in transcript_AK])
    chances, gradients = [], ([], [])
    for one, other in itertools.product(range(len(transcript_AK)), repeat=2):
        chances.append(chance_A[one] * chance_A[other])
        for turn in range(TURNS):
            gradient_CM = np.zeros_like(policy[turn])
            for mine, its in ((one, other), (other, one)):
                advantage = return_A[mine] - (1 - share) * return_A[its] - share * mean
                first, second = transcript_AK[mine]
                context, message = (0, first) if turn == 0 else (first, second)
                gradient_CM[context] += advantage * (np.eye(MESSAGES)[message] - policy[turn][context]) / 2
            gradients[turn].append(gradient_CM)
    return Enumerated(np.array(chances), tuple(np.stack(each) for each in gradients))


def compute_square(turn: int, share: float, mean: float) -> float:
    """E|g|^2 of two episodes by the formula of docs/bench.md, whose w is 1 - share."""
    transcript_AK = games.list_transcripts(SHAPE)
    return_A = np.asarray(games.compute_mean_return(SHAPE, GAME, jnp.asarray(transcript_AK)), np.float64)
    policy = [np.asarray(policy_CM, np.float64) for policy_CM in TARGET.policy]
    chance_A = np.array([policy[0][0, first] * policy[1][first, second] for first, second in transcript_AK])
    at_AM = [policy[turn][row[0] if turn else 0] for row in transcript_AK]
    score_A = [1 - 2 * p_M[row[turn]] + p_M @ p_M for p_M, row in zip(at_AM, transcript_AK, strict=True)]
    value, truth_CM = chance_A @ return_A, oracle.compute_policy_gradient(ORACLE)[turn]
    w, variance = 1 - share, chance_A @ np.square(return_A - value)
    off_A = np.square(return_A - w * value - share * mean) + w**2 * variance
    return float(chance_A @ (off_A * score_A) / 2 + (1 + w**2) / 2 * np.square(truth_CM).sum())


@pytest.mark.parametrize(("share", "mean"), [(0.0, 0.0), (0.4, 0.7)])
def test_the_noise_of_rloo_is_that_of_all_its_draws(share, mean):
    """E|g|^2 within 99.9 % of independent batches, and its mean the true gradient within as much in every cell."""
    exact, batches, samples = enumerate_rloo(share, mean), 20, 500
    truth = oracle.compute_policy_gradient(ORACLE)
    plan = make_flat(2, TURNS)
    recipe, weights = measure.make_recipe("rloo", plan, "none"), make_weights("rloo", plan, mean, share)

    def sum_batch(key):
        drawn = measure.draw_credit(SHAPE, POLICY, recipe, samples, PARAMS, GAME, TARGET, weights, key)
        return measure.sum_draws(TARGET, drawn)

    sums = jax.device_get(jax.jit(lambda keys: jax.lax.map(sum_batch, keys))(jax.random.split(KEY, batches)))
    for turn in range(TURNS):
        gradient_SCM = exact.gradient[turn]
        mean_CM = np.tensordot(exact.chance_S, gradient_SCM, axes=1)
        np.testing.assert_allclose(mean_CM, truth[turn], atol=1e-6)
        square = exact.chance_S @ np.square(gradient_SCM).sum(axis=(1, 2))
        np.testing.assert_allclose(compute_square(turn, share, mean), square, rtol=1e-5)
        bound = compute_student_interval(sums.gradient_square[turn] / samples, 0.999)
        assert bound.low < square < bound.high < 1.2 * bound.low
        for cell in np.ndindex(mean_CM.shape):
            bound = compute_student_interval(sums.gradient[turn][:, *cell] / samples, 0.999)
            assert bound.low < mean_CM[cell] < bound.high


# --------------------------------------------------------------------------------------------------------------------
# Draws and their credit


def test_credit_is_the_returns_less_the_siblings():
    """Without noise the last turn's credit is known from its draws: f(first, own) - mean of f(first, siblings)."""
    draws = jax.device_get(draw("c3", make_tree((2, 3))))
    context_SN, message_SN = draws.context[1], draws.message[1]
    return_CM = np.asarray(games.tabulate_mean_return(SHAPE, GAME))
    return_SKN = return_CM[context_SN, message_SN].reshape(SAMPLES, 2, 3)
    assert (context_SN.reshape(SAMPLES, 2, 3) == draws.message[0][:, :, None]).all()
    others = (return_SKN.sum(axis=2, keepdims=True) - return_SKN) / 2
    np.testing.assert_allclose(draws.advantage[1], (return_SKN - others).reshape(SAMPLES, 6), atol=1e-6)
    value_SN = return_SKN.mean(axis=2)
    np.testing.assert_allclose(draws.advantage[0], value_SN - value_SN[:, ::-1], atol=1e-6)


def test_an_exact_critic_leaves_the_episodes_own_luck():
    """mappo, decay 1: R - V(h). Decay 0: Q(h, a) - V(h) at the first turn, whose next context's value is exact."""
    draws = jax.device_get(draw("mappo", make_flat(4, TURNS)))
    one_step = jax.device_get(draw("mappo", make_flat(4, TURNS), decay=0.0))
    return_SN = np.asarray(games.tabulate_mean_return(SHAPE, GAME))[draws.message[0], draws.message[1]]
    for turn in range(TURNS):
        value_SN = np.asarray(ORACLE.v[turn])[draws.context[turn]]
        np.testing.assert_allclose(draws.advantage[turn], return_SN - value_SN, atol=1e-6)
        exact_SN = np.asarray(ORACLE.advantage[turn])[draws.context[turn], draws.message[turn]]
        np.testing.assert_allclose(one_step.advantage[turn], exact_SN, atol=1e-6)


def test_coma_with_an_exact_critic_is_the_truth():
    sums = jax.jit(measure.sum_draws)(TARGET, draw("coma", make_flat(4, TURNS)))
    for turn in range(TURNS):
        assert float(sums.error[turn]) < 1e-9 < float(sums.square[turn])


def test_value_only_compares_the_critics_values():
    draws = jax.device_get(draw("value_only", make_tree((2, 2))))
    q_SKN = np.asarray(ORACLE.q[1])[draws.context[1], draws.message[1]].reshape(SAMPLES, 2, 2)
    np.testing.assert_allclose(draws.advantage[1].reshape(q_SKN.shape), q_SKN - q_SKN[:, :, ::-1], atol=1e-6)


def test_a_mean_is_taken_off_the_returns():
    plain, less = (jax.device_get(draw("reinforce", make_flat(2, TURNS), mean=mean)) for mean in (0.0, 0.3))
    for turn in range(TURNS):
        np.testing.assert_allclose(less.advantage[turn], plain.advantage[turn] - 0.3, atol=1e-6)


def test_estimators_without_a_critic_share_a_recipe():
    plan = make_tree((2, 2))
    recipes = {name: measure.make_recipe(name, plan, "none") for name in ("c3", "no_loo", "shrunk", "value_only")}
    assert recipes["c3"] == recipes["no_loo"] == recipes["shrunk"] != recipes["value_only"]


def test_a_critics_error_is_in_its_values_alone():
    """The root mean square of n normal errors of .3 is within .3 (1 +- 3.29 / sqrt(2 n)) in 99.9 % of draws."""
    keys = jax.random.split(jax.random.key(9), 100)
    wrong = jax.jit(jax.vmap(lambda key: measure.add_critic_error(TARGET, 0.3, key)))(keys)
    wrong = jax.device_get(wrong)
    for turn in range(TURNS):
        np.testing.assert_allclose(wrong.advantage[turn] - TARGET.advantage[turn], 0.0, atol=1e-6)
        np.testing.assert_allclose(wrong.policy[turn] - TARGET.policy[turn], 0.0, atol=1e-6)
        np.testing.assert_array_equal(TARGET.value[turn], ORACLE.v[turn])
        for name in ("value", "action_value"):
            error = np.asarray(getattr(wrong, name)[turn] - getattr(TARGET, name)[turn])
            assert abs(np.sqrt(np.mean(error**2)) / 0.3 - 1) < 3.29 / math.sqrt(2 * error.size)
    value, action_value = wrong.value[0] - TARGET.value[0], wrong.action_value[0] - TARGET.action_value[0]
    correlation = np.corrcoef(np.asarray(value)[:, 0], np.asarray(action_value)[:, 0, 0])[0, 1]
    assert abs(correlation) < 3.29 / math.sqrt(100)
