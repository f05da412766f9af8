"""Fidelity: ranks by hand and by scipy, undefined contexts counted and never 1, eager and jitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from c3jax.analysis.diagnostics import compute_group_fidelity, compute_mean_interval
from c3jax.analysis.fidelity import compute_spearman, compute_within_context_variance

NAN = float("nan")
BOTH = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jitted"])


@BOTH
def test_rank_correlation_by_hand(run):
    # 1 - 6 sum d^2 / (n (n^2 - 1)): d = 0 1 -1 0 gives 0.8; reversed -1. Ties: ranks 1.5 1.5 3 against 1 2 3 are
    # centred -.5 -.5 1 and -1 0 1: 1.5 / sqrt(1.5 * 2).
    estimate_CN = jnp.array([[1.0, 3.0, 2.0, 4.0], [4.0, 3.0, 2.0, 1.0], [5.0, 5.0, 9.0, 0.0]])
    target_CN = jnp.array([[10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 9.0]])
    keep_CN = jnp.array([[True] * 4, [True] * 4, [True, True, True, False]])
    expected_C = [0.8, -1.0, 1.5 / np.sqrt(3.0)]
    np.testing.assert_allclose(run(compute_spearman)(estimate_CN, target_CN, keep_CN), expected_C, atol=1e-6)


@BOTH
def test_it_is_scipys_with_ties_and_padding(run):
    random = np.random.default_rng(0)
    estimate_CN, target_CN = random.integers(0, 5, (2, 40, 9)).astype(np.float32)
    estimate_CN[:, 0] = target_CN[:, 1] = 9  # no context is constant
    kept_C = random.integers(4, 10, 40)
    keep_CN = np.arange(9) < kept_C[:, None]
    expected_C = [
        stats.spearmanr(estimate_N[:kept], target_N[:kept])[0]
        for estimate_N, target_N, kept in zip(estimate_CN, target_CN, kept_C, strict=True)
    ]
    found_C = run(compute_spearman)(jnp.asarray(estimate_CN), jnp.asarray(target_CN), jnp.asarray(keep_CN))
    np.testing.assert_allclose(found_C, expected_C, atol=1e-6)


@BOTH
def test_a_context_without_an_order_is_counted_and_never_one(run):
    value_CN = jnp.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    target_CN = jnp.array([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    keep_CN = jnp.array([[True] * 3, [True] * 3, [False, True, False], [True] * 3])
    correlation_C = run(compute_spearman)(value_CN, target_CN, keep_CN)
    np.testing.assert_allclose(correlation_C, [NAN, NAN, NAN, 1.0], atol=1e-6)
    assert compute_mean_interval(np.asarray(correlation_C), 0.95).estimate == pytest.approx(1.0, abs=1e-6)
    assert np.isnan(compute_mean_interval(np.asarray(correlation_C[:3]), 0.95)).all()


def test_an_offset_of_the_context_and_rounding_are_no_order():
    target_CN = jnp.array([[0.1, 0.2, 0.3]])
    keep_CN = jnp.ones((1, 3), bool)
    offset_CN = jnp.array([[100.0, 101.0, 102.0]])
    np.testing.assert_allclose(compute_spearman(offset_CN, target_CN, keep_CN), [1.0], atol=1e-6)
    third = jnp.float32(1 / 3)
    rounded_CN = jnp.array([[third, jnp.nextafter(third, 1.0), third]])
    assert jnp.isnan(compute_spearman(rounded_CN, target_CN, keep_CN)).all()


def test_split_halves_by_hand():
    # Contexts of four. Rho with the halves 1 and 0.8, of the halves 0.8. A credit that is constant correlates by 0 with
    # halves that agree by 1: (0.9 + 0) / 2 over sqrt((0.8 + 1) / 2). In a third one the halves have no order.
    credit_CN = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    first_CN = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    second_CN = np.array([[1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    found = compute_group_fidelity(credit_CN, first_CN, second_CN, np.zeros((3, 4)), 0.95)
    figures = [found.observed.estimate, found.reliability.estimate, found.corrected.estimate, found.defined]
    np.testing.assert_allclose(figures, [0.45, 0.9, 0.45 / np.sqrt(0.9), 2], atol=1e-6)
    against = compute_group_fidelity(credit_CN, second_CN, -second_CN, np.zeros((3, 4)), 0.95)
    assert np.isnan(against.corrected.estimate) and against.reliability.estimate == pytest.approx(-1.0, abs=1e-6)


def test_split_halves_take_the_noise_of_the_target_out():
    """Of 4000 contexts of 8, estimate and halves are the truth plus noise: corrected is the fidelity to the truth."""
    random = np.random.default_rng(1)
    truth_CN = random.normal(size=(4000, 8))
    estimate_CN, first_CN, second_CN = truth_CN + random.normal(0, [[[0.7]], [[1.0]], [[1.0]]], (3, 4000, 8))
    exact = float(compute_spearman(estimate_CN, truth_CN, jnp.ones((4000, 8), bool)).mean())
    split = compute_group_fidelity(estimate_CN, first_CN, second_CN, np.zeros((4000, 8)), 0.95)
    assert split.observed.estimate < exact - 0.15  # the noise hides a good part of it
    assert split.corrected.estimate == pytest.approx(exact, abs=0.03)


def test_fidelity_to_the_same_samples_is_one_by_construction_and_to_held_out_ones_is_not():
    """The fault that a held-out target mends: credit of pure noise agrees perfectly with the noise it was made of."""
    noise_CN, other_CN = np.random.default_rng(2).normal(size=(2, 2000, 4))
    keep_CN = jnp.ones((2000, 4), bool)
    credit_CN = (noise_CN - noise_CN.mean(axis=1, keepdims=True)) * 4 / 3
    assert float(compute_spearman(credit_CN, noise_CN, keep_CN).mean()) == pytest.approx(1, abs=1e-6)
    held_out = float(compute_spearman(credit_CN, other_CN, keep_CN).mean())
    assert abs(held_out) < 3.3 / np.sqrt(3 * 2000)  # variance of a context's rho of 4: 1/(n - 1) = 1/3


@BOTH
def test_variance_within_a_context_by_hand(run):
    credit_CN = jnp.array([[1.0, 2.0, 6.0], [5.0, 7.0, 99.0], [3.0, 0.0, 0.0]])
    keep_CN = jnp.array([[True, True, True], [True, True, False], [True, False, False]])
    np.testing.assert_allclose(run(compute_within_context_variance)(credit_CN, keep_CN), [7.0, 2.0, NAN], atol=1e-6)
    # Leave-one-out credit of n is n/(n - 1) times mean-centred credit.
    value_CN = credit_CN[:1]
    loo_CN = value_CN - (value_CN.sum() - value_CN) / 2
    assert float(compute_within_context_variance(loo_CN, keep_CN[:1])[0]) == pytest.approx(7.0 * 9 / 4, rel=1e-6)


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        compute_spearman(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.ones((2, 3), bool))
