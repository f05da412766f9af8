"""The shrunk baseline against the Gaussian conditional mean, its components by their exact expectation, its gradient by
enumeration.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit import shrink
from c3jax.credit.apply import apply_credit
from c3jax.credit.plans import compute_cost

FAN_OUTS = [(2, 4), (4, 2), (8, 1), (3, 1, 2), (2, 2, 2), (1, 4), (1, 3, 2), (5,)]


def make_components(fan_out: tuple[int, ...], seed: int = 0) -> shrink.Components:
    problem, *message = np.random.default_rng(seed).uniform(0.02, 0.5, len(fan_out) + 1)
    return shrink.Components(jnp.float32(0.4), jnp.float32(problem), jnp.asarray(message, jnp.float32), jnp.int32(3))


def make_covariance(components: shrink.Components, fan_out: tuple[int, ...]) -> np.ndarray:
    """Covariance [L, L] of a problem's leaves: the components of all that two leaves have in common."""
    num_leaves = math.prod(fan_out)
    covariance = np.full((num_leaves, num_leaves), float(components.problem))
    paths = list(np.ndindex(fan_out))
    for (i, a), (j, b) in itertools.product(enumerate(paths), enumerate(paths)):
        for turn in range(len(fan_out)):
            if a[: turn + 1] == b[: turn + 1]:
                covariance[i, j] += float(components.message_K[turn])
    return covariance


@pytest.mark.parametrize("fan_out", FAN_OUTS)
def test_the_baseline_is_the_conditional_mean_of_the_context_given_all_leaves_outside(fan_out):
    components = make_components(fan_out)
    covariance = make_covariance(components, fan_out)
    matrix = shrink.make_shrunk_matrix(components, fan_out)
    paths = list(np.ndindex(fan_out))
    for turn in range(len(fan_out)):
        for row, node in enumerate(np.ndindex(fan_out[: turn + 1])):
            outside = [i for i, path in enumerate(paths) if path[: turn + 1] != node]
            # Cov(V(h), a leaf): the problem's component and those of the context's own messages the leaf shares.
            shared = [
                float(components.problem)
                + sum(float(components.message_K[k]) for k in range(turn) if paths[i][: k + 1] == node[: k + 1])
                for i in outside
            ]
            expected = np.zeros(len(paths))
            if outside:
                expected[outside] = np.linalg.solve(covariance[np.ix_(outside, outside)], shared)
            np.testing.assert_allclose(matrix.baseline[turn][row], expected, atol=2e-6)
            own_variance = float(components.problem) + sum(float(s) for s in components.message_K[:turn])
            error = own_variance - float(np.dot(shared, expected[outside]))
            predicted = shrink.predict_error(components, fan_out, "shrunk", "gradient")[turn]
            below = sum(
                float(components.message_K[k]) / math.prod(fan_out[turn + 1 : k + 1])
                for k in range(turn + 1, len(fan_out))
            )
            own = float(components.message_K[turn]) + below
            assert predicted == pytest.approx((own + error) / math.prod(fan_out[: turn + 1]), rel=1e-5)


@pytest.mark.parametrize("fan_out", [(2, 4), (4, 2), (2, 2, 2), (2, 3, 2)])
def test_components_are_unbiased(fan_out):
    """A quadratic form's expectation is the trace of its matrix times the covariance: no sampling is needed."""
    truth, problems = make_components(fan_out, seed=1), 3
    unknown = shrink.init_components(len(fan_out))

    def estimate(return_PL):
        found = shrink.update_components(unknown, return_PL, fan_out, decay=0.9)
        return jnp.concatenate([found.problem[None], found.message_K])

    num_leaves = math.prod(fan_out)
    hessian = np.asarray(jax.hessian(estimate)(jnp.zeros((problems, num_leaves)))).reshape(
        len(fan_out) + 1, problems * num_leaves, problems * num_leaves
    )
    covariance = np.kron(np.eye(problems), make_covariance(truth, fan_out))
    expected = [0.5 * np.trace(quadratic @ covariance) for quadratic in hessian]
    np.testing.assert_allclose(expected, [truth.problem, *truth.message_K], rtol=1e-4, atol=1e-6)


def test_turns_that_were_not_drawn_apart_share_in_their_running_proportions():
    running = make_components((8, 1))._replace(message_K=jnp.array([0.03, 0.01], jnp.float32))
    return_PL = jnp.asarray(np.random.default_rng(0).normal(size=(50, 8)), jnp.float32)
    found = shrink.update_components(running, return_PL, (8, 1), decay=0.0)
    between = np.var(np.asarray(return_PL), axis=1, ddof=1).mean()
    rate = max(1.0, 1 / 4)
    np.testing.assert_allclose(found.message_K, rate * between * np.array([0.75, 0.25]), rtol=1e-5)


def test_a_single_problem_says_nothing_about_the_spread_of_problems():
    running = shrink.init_components(2)
    found = shrink.update_components(running, jnp.asarray([[0.0, 1.0, 1.0, 1.0]]), (2, 2), decay=0.9)
    assert float(found.problem) == shrink.UNKNOWN
    assert float(found.mean) == 0.75


def test_steps_are_averaged_plainly_at_first_and_then_with_the_decay():
    rng, running, means = np.random.default_rng(2), shrink.init_components(2), []
    for step in range(12):
        return_PL = rng.uniform(size=(6, 4)).astype(np.float32)
        means.append(return_PL.mean())
        running = jax.jit(shrink.update_components, static_argnums=(2, 3))(running, return_PL, (2, 2), 0.8)
        if step == 4:
            assert float(running.mean) == pytest.approx(np.mean(means), rel=1e-5)
    weighted = np.mean(means[:5])
    for mean in means[5:]:
        weighted = 0.8 * weighted + 0.2 * mean
    assert float(running.mean) == pytest.approx(weighted, rel=1e-5)
    assert int(running.steps) == 12


RETURN_AB = np.array([[0.9, 0.1], [0.2, 0.6]])  # of the messages of the two turns
POLICY_A, POLICY_AB = np.array([0.3, 0.7]), np.array([[0.6, 0.4], [0.2, 0.8]])


def expect_gradient(fan_out, credit_of) -> tuple[np.ndarray, np.ndarray]:
    """Exact expected score-weighted credit of both turns' logits, over all draws of a tree on a 2 x 2 game."""
    gradient_A, gradient_AB = np.zeros(2), np.zeros((2, 2))
    for first in itertools.product((0, 1), repeat=fan_out[0]):
        for second in itertools.product((0, 1), repeat=math.prod(fan_out)):
            contexts = np.repeat(first, fan_out[1])
            probability = np.prod(POLICY_A[list(first)]) * np.prod(POLICY_AB[contexts, second])
            advantage = credit_of(RETURN_AB[contexts, second][None].astype(np.float32))
            for message, a in zip(first, np.asarray(advantage[0])[0], strict=True):
                gradient_A += probability * a * (np.eye(2)[message] - POLICY_A) / len(first)
            for context, message, a in zip(contexts, second, np.asarray(advantage[1])[0], strict=True):
                score = np.eye(2)[message] - POLICY_AB[context]
                gradient_AB[context] += probability * a * score / len(second)
    return gradient_A, gradient_AB


def true_gradient() -> tuple[np.ndarray, np.ndarray]:
    value_A = (POLICY_AB * RETURN_AB).sum(axis=1)
    gradient_A = POLICY_A * (value_A - POLICY_A @ value_A)
    return gradient_A, POLICY_A[:, None] * POLICY_AB * (RETURN_AB - value_A[:, None])


@pytest.mark.parametrize("fan_out", [(2, 2), (4, 1), (1, 3)])
def test_the_gradient_is_unbiased_whatever_the_components(fan_out):
    for seed in (0, 1):
        components = make_components(fan_out, seed)
        matrix = shrink.make_shrunk_matrix(components, fan_out)
        apply = jax.jit(
            lambda return_PL, matrix=matrix, mean=components.mean: (
                apply_credit(matrix, return_PL - mean, normalise="none").advantage
            )
        )
        for found, expected in zip(expect_gradient(fan_out, apply), true_gradient(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_components_of_the_same_step_would_bias_the_gradient():
    """The fault planted: a mean that the message's own return has entered."""

    def apply(return_PL):
        components = shrink.update_components(make_components((2, 2)), return_PL, (2, 2), decay=0.0)
        matrix = shrink.make_shrunk_matrix(components, (2, 2))
        return apply_credit(matrix, return_PL - components.mean, normalise="none").advantage

    found, expected = expect_gradient((2, 2), jax.jit(apply)), true_gradient()
    assert max(np.abs(f - e).max() for f, e in zip(found, expected, strict=True)) > 0.01


def test_an_untrained_turn_gets_no_advantage():
    matrix = shrink.make_shrunk_matrix(make_components((1, 4)), (1, 4), (False, True))
    np.testing.assert_array_equal(matrix.baseline[0], matrix.value[0])


@pytest.mark.parametrize(("tau2", "sigma2"), [(0.01, 0.2), (0.1, 0.1), (0.4, 0.02)])
def test_the_credit_criterion_finds_the_number_of_alternatives_of_the_variance_law(tau2, sigma2):
    """n* = 1 + sqrt(1 + B tau^2 / sigma^2), rounded as the law itself prefers among divisors of B."""
    budget = 64
    components = shrink.Components(
        jnp.float32(0.5), jnp.float32(0.1), jnp.array([tau2, sigma2], jnp.float32), jnp.int32(1)
    )
    law = {n: (sigma2 * n**2 / budget + tau2) / (n - 1) for n in (2, 4, 8, 16, 32, 64)}
    for n, variance in law.items():
        found = shrink.predict_error(components, (n, budget // n), "c3", "credit")[0]
        assert found == pytest.approx(variance, rel=1e-5)
    chosen = shrink.choose_fan_out(components, budget, "calls", "c3", "credit", (True, False), (1.0, 1.0))
    best = 1 + math.sqrt(1 + budget * tau2 / sigma2)
    assert abs(chosen[0] - best) <= 1.0 + best / budget * chosen[0]


def test_a_choice_keeps_within_the_budget_of_its_unit():
    components = make_components((2, 4))
    for unit, tokens, limit in (("calls", (1.0, 1.0), 8), ("messages", (1.0, 1.0), 16), ("tokens", (90.0, 10.0), 400)):
        chosen = shrink.choose_fan_out(components, limit, unit, "shrunk", "gradient", (True, True), tokens)
        assert compute_cost(chosen, unit, tokens) <= limit
    assert compute_cost((2, 4), "tokens", (90.0, 10.0)) == 2 * 90 + 8 * 10


def test_a_choice_is_kept_unless_another_is_clearly_better():
    components = make_components((2, 4))
    free = shrink.choose_fan_out(components, 8, "calls", "shrunk", "gradient", (True, True), (1.0, 1.0))
    errors = {
        fan_out: sum(shrink.predict_error(components, fan_out, "shrunk", "gradient"))
        for fan_out in [(8, 1), (4, 2), (2, 4)]
    }
    assert errors[free] == min(errors.values())
    for current, error in errors.items():
        chosen = shrink.choose_fan_out(components, 8, "calls", "shrunk", "gradient", (True, True), (1.0, 1.0), current)
        assert chosen == (current if errors[free] > 0.95 * error else free)


def test_a_budget_too_small_is_refused_by_its_numbers():
    with pytest.raises(ValueError, match=r"expected a budget of at least 6 messages for method c3, got 5"):
        shrink.choose_fan_out(make_components((2, 2)), 5, "messages", "c3", "gradient", (True, True), (1.0, 1.0))
