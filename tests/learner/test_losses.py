"""Losses by hand and by exact enumeration, eager and jitted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.learner.losses import (
    compute_cispo_loss,
    compute_clipped_loss,
    compute_divergence,
    compute_total,
    compute_weights,
    update_kl_coefficient,
)

LOGITS_A = jnp.array([0.3, -1.2, 0.9, 0.1, -0.4])
REFERENCE_A = jax.nn.log_softmax(jnp.array([-0.5, 0.2, 0.4, 1.0, 0.0]))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_clipped_loss_by_hand(wrap):
    """Clip .2. Advantage 2: -min(2r, 2 clip(r)); advantage -1: -min(-r, -clip(r)); d/dlogp of -rA is -rA."""
    ratio_NT = jnp.array([[0.5, 0.9, 1.0, 1.1, 1.5]] * 3)
    advantage_NT = jnp.repeat(jnp.array([[2.0], [-1.0], [0.0]]), 5, axis=1)
    behaviour_NT = jnp.array([[-1.0, -2.0, -0.5, -3.0, -0.1]] * 3)
    logp_NT = behaviour_NT + jnp.log(ratio_NT)
    compute = wrap(lambda logp: compute_clipped_loss(logp, behaviour_NT, advantage_NT, 0.2, 0.2))
    loss_NT, is_clipped_NT = compute(logp_NT)
    expected_NT = [[-1.0, -1.8, -2.0, -2.2, -2.4], [0.8, 0.9, 1.0, 1.1, 1.5], [0.0] * 5]
    np.testing.assert_allclose(loss_NT, expected_NT, atol=1e-6)
    clipped = [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0] * 5]
    np.testing.assert_array_equal(is_clipped_NT, np.array(clipped, bool))
    gradient_NT = jax.grad(lambda logp: compute(logp)[0].sum())(logp_NT)
    np.testing.assert_allclose(
        gradient_NT, [[-1.0, -1.8, -2.0, -2.2, 0.0], [0.0, 0.9, 1.0, 1.1, 1.5], [0.0] * 5], atol=1e-6
    )


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_dual_clip_by_hand(wrap):
    """Clip .2, c = 3. A = -1: ratios of 4 and 50 cost no more than 3 and pull no further; A = 2 is as without c."""
    ratio_NT = jnp.array([[0.5, 1.0, 2.9, 4.0, 50.0]] * 2)
    advantage_NT = jnp.repeat(jnp.array([[-1.0], [2.0]]), 5, axis=1)
    logp_NT = jnp.log(ratio_NT)
    compute = wrap(lambda logp: compute_clipped_loss(logp, jnp.zeros((2, 5)), advantage_NT, 0.2, 0.2, dual_clip=3.0))
    loss_NT, is_clipped_NT = compute(logp_NT)
    np.testing.assert_allclose(loss_NT, [[0.8, 1.0, 2.9, 3.0, 3.0], [-1.0, -2.0, -2.4, -2.4, -2.4]], atol=1e-6)
    np.testing.assert_array_equal(is_clipped_NT, np.array([[1, 0, 0, 1, 1], [0, 0, 1, 1, 1]], bool))
    gradient_NT = jax.grad(lambda logp: compute(logp)[0].sum())(logp_NT)
    np.testing.assert_allclose(gradient_NT, [[0.0, 1.0, 2.9, 0.0, 0.0], [-1.0, -2.0, 0.0, 0.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_cispo_by_hand(wrap):
    """Bounds .5 and 1.4: -w A logp with w = .5, .9, 1.4, and d/dlogp = -w A however far the ratio is."""
    ratio_N, advantage_N = jnp.array([0.25, 0.9, 8.0]), jnp.array([1.0, -2.0, 1.0])
    behaviour_N = jnp.array([-1.0, -2.0, -3.0])
    logp_N = behaviour_N + jnp.log(ratio_N)
    compute = wrap(lambda logp: compute_cispo_loss(logp, behaviour_N, advantage_N, 0.5, 0.4))
    loss_N, is_clipped_N = compute(logp_N)
    weight_N = np.array([0.5, 0.9, 1.4])
    np.testing.assert_allclose(loss_N, -weight_N * advantage_N * logp_N, atol=1e-6)
    np.testing.assert_array_equal(is_clipped_N, [True, False, True])
    gradient_N = jax.grad(lambda logp: compute(logp)[0].sum())(logp_N)
    np.testing.assert_allclose(gradient_N, [-0.5, 1.8, -1.4], atol=1e-6)


def compute_kl(logits_A, reference_A):
    logp_A = jax.nn.log_softmax(logits_A)
    return jnp.sum(jnp.exp(logp_A) * (logp_A - reference_A))


def expect_divergence(logits_A, estimator):
    """Its expectation on policy; the actions' probabilities are held fixed, as those of samples are."""
    logp_A = jax.nn.log_softmax(logits_A)
    mass_A = jax.lax.stop_gradient(jnp.exp(logp_A))
    return jnp.sum(mass_A * compute_divergence(logp_A[None], REFERENCE_A[None], estimator)[0])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_have_the_divergence_as_mean(estimator):
    exact = compute_kl(LOGITS_A, REFERENCE_A)
    assert exact > 0.1
    np.testing.assert_allclose(expect_divergence(LOGITS_A, estimator), exact, atol=1e-6)


def test_gradient_of_k1_is_that_of_the_divergence():
    exact_A = jax.grad(compute_kl)(LOGITS_A, REFERENCE_A)
    assert jnp.abs(exact_A).max() > 0.1
    for grad in (jax.grad(expect_divergence), jax.jit(jax.grad(expect_divergence), static_argnums=1)):
        np.testing.assert_allclose(grad(LOGITS_A, "k1"), exact_A, atol=1e-6)
    # Differentiated as it stands, k1 = logp - reference would teach nothing: the mean of the score is zero.
    mass_A = jax.nn.softmax(LOGITS_A)
    plain_A = jax.grad(lambda logits: jnp.sum(mass_A * (jax.nn.log_softmax(logits) - REFERENCE_A)))(LOGITS_A)
    np.testing.assert_allclose(plain_A, 0, atol=1e-6)


def test_gradient_of_k3_is_that_of_the_reverse_divergence():
    """d k3 = (1 - q/p) d logp, whose mean is -sum q d logp: the gradient of KL(reference || policy)."""
    reverse_A = jax.grad(lambda logits: jnp.sum(jnp.exp(REFERENCE_A) * -jax.nn.log_softmax(logits)))(LOGITS_A)
    np.testing.assert_allclose(jax.grad(expect_divergence)(LOGITS_A, "k3"), reverse_A, atol=1e-6)


def test_k3_by_hand_and_never_negative():
    """logp - reference = ln 2: 1/2 - 1 + ln 2; -ln 2: 2 - 1 - ln 2; 0: 0."""
    gap_NT = jnp.array([[np.log(2), -np.log(2), 0.0]])
    got_NT = compute_divergence(gap_NT - 1.0, jnp.full((1, 3), -1.0), "k3")
    np.testing.assert_allclose(got_NT, [[np.log(2) - 0.5, 1 - np.log(2), 0]], atol=1e-6)
    np.testing.assert_allclose(compute_divergence(gap_NT - 1.0, jnp.full((1, 3), -1.0), "k1"), gap_NT, atol=1e-6)


def test_weights_count_tokens_or_messages():
    sampled_NT = jnp.array([[True, False, False, False], [True, True, True, True], [True, True, False, False]])
    np.testing.assert_array_equal(compute_weights(sampled_NT, "token"), np.asarray(sampled_NT, np.float32))
    by_message_NT = compute_weights(sampled_NT, "message")
    np.testing.assert_allclose(by_message_NT, [[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], atol=1e-7)
    assert by_message_NT.dtype == jnp.float32
    # Token losses 1..4 each: the mean over all 7 tokens, and the mean of the messages' means 1, 2.5 and 1.5.
    loss_NT = jnp.tile(jnp.arange(1.0, 5.0), (3, 1))
    # Sums of 1, 10 and 3 over a length of 5, the mean of three messages: 14 / 15.
    means = []
    for aggregation in ("token", "message", "constant"):
        weight_NT = compute_weights(sampled_NT, aggregation, 5)
        means.append((weight_NT * loss_NT).sum() / compute_total(weight_NT, aggregation))
    np.testing.assert_allclose(means, [14 / 7, 5 / 3, 14 / 15], atol=1e-6)


def test_leaving_trees_out_weighs_problems_by_what_the_others_have():
    """Two problems, each a message of three tokens, with signals of chance .5 and .1, all four outcomes enumerated.

    A problem with a signal has half of the loss where the other has one too, and all of it where not: on average
    1 - s / 2 of it, s the other's chance, which is 2 - s times the half that it has where nothing is left out.
    """
    chance_P, expected_P = np.array([0.5, 0.1]), np.zeros(2)
    for outcome in itertools.product((True, False), repeat=2):
        has_signal_P = np.array(outcome)
        sampled_NT = jnp.ones((2, 3), bool) & has_signal_P[:, None]
        weight_NT = compute_weights(sampled_NT, "token")
        share_P = np.asarray(weight_NT.sum(axis=1) / np.maximum(compute_total(weight_NT, "token"), 1.0))
        expected_P += np.prod(np.where(has_signal_P, chance_P, 1 - chance_P)) * share_P
    np.testing.assert_allclose(expected_P / (chance_P * 0.5), 2 - chance_P[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [(0.1, 0.5), (0.11, 0.5 * (1 + 0.1 * 0.04)), (0.5, 0.5 * (1 + 0.2 * 0.04)), (0.0, 0.5 * (1 - 0.2 * 0.04))],
)
def test_coefficient_follows_the_target(divergence, expected):
    """400 messages of a horizon of 10 000 are .04 of the way; the error is cut at .2."""
    got = update_kl_coefficient(jnp.float32(0.5), jnp.float32(divergence), 0.1, 10_000.0, 400)
    np.testing.assert_allclose(got, expected, atol=1e-6)
