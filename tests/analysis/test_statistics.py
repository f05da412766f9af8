"""Intervals and tests of few measurements: by hand, from tables, by enumeration, and by how often they cover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from c3jax.analysis.statistics import (
    Interval,
    compute_bootstrap_interval,
    compute_crossed_bootstrap,
    compute_jackknife_interval,
    compute_paired,
    compute_signed_root,
    compute_squared_bias,
    compute_student_interval,
    compute_wilson_interval,
    correct_holm,
    widen_constant,
)


def test_students_interval_by_hand():
    # Mean 3, s = sqrt(10/4), error sqrt(2.5/5) = sqrt(1/2); tables: t_4 = 2.7764
    student = compute_student_interval([1, 2, 3, 4, 5], 0.95)
    assert student == pytest.approx((3, 3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)), abs=1e-5)
    assert compute_student_interval([2.0, 2.0], 0.999) == (2.0, 2.0, 2.0)


def test_the_bootstrap_has_the_quantiles_of_all_resamples():
    # Of [0, 0, 1] the mean of a resample is k/3 with k ~ Binomial(3, 1/3): P(0) = 8/27, P(3) = 1/27 = 0.037 > 0.025.
    assert compute_bootstrap_interval([0, 0, 1], 0.95) == pytest.approx((1 / 3, 0.0, 1.0))
    # At level 0.9 the upper 5 % ends inside k = 2.
    assert compute_bootstrap_interval([0, 0, 1], 0.9) == pytest.approx((1 / 3, 0.0, 2 / 3))
    value_N = np.random.default_rng(0).normal(size=400)
    wide = compute_bootstrap_interval(value_N, 0.999)
    assert wide[1:] == pytest.approx(stats.norm.interval(0.999, value_N.mean(), value_N.std() / 20), abs=0.02)
    assert compute_bootstrap_interval(value_N, 0.999) == wide != compute_bootstrap_interval(value_N, 0.999, seed=1)
    assert compute_bootstrap_interval([0.5], 0.95) == (0.5, 0.5, 0.5)  # one problem, asked many times


def test_the_jackknife_by_hand():
    """Of a mean it is Student's interval; of a ratio of sums, the spread of the ratios with one item left out."""
    value_N, weight_N = np.array([1.0, 2.0, 6.0, 3.0]), np.array([1.0, 1.0, 2.0, 4.0])
    of_mean = compute_jackknife_interval(lambda kept: value_N[kept].mean(), 4, 0.95)
    assert of_mean == pytest.approx(tuple(compute_student_interval(value_N, 0.95)))
    of_ratio = compute_jackknife_interval(lambda kept: value_N[kept].sum() / weight_N[kept].sum(), 4, 0.95)
    left_out = [11 / 7, 10 / 7, 6 / 6, 9 / 4]
    error = math.sqrt(3 / 4 * sum((ratio - sum(left_out) / 4) ** 2 for ratio in left_out))
    assert of_ratio == pytest.approx((1.5, 1.5 - 3.182446 * error, 1.5 + 3.182446 * error), rel=1e-6)
    with pytest.raises(ValueError, match="at least 2 items"):
        compute_jackknife_interval(len, 1, 0.95)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(successes, trials, low, high):
    assert compute_wilson_interval(successes, trials, 0.95) == pytest.approx((successes / trials, low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_has_no_interval(successes, trials):
    with pytest.raises(ValueError, match="0 <= successes <= trials"):
        compute_wilson_interval(successes, trials, 0.95)


def test_a_paired_difference_by_hand():
    # Differences 1 2 3: mean 2, s = 1, error 1/sqrt 3, t = 2 sqrt 3 with two degrees: p = 1 - t / sqrt(2 + t^2).
    paired = compute_paired([2, 4, 6], [1, 2, 3], 0.95)
    t = 2 * math.sqrt(3)
    assert paired.p_student == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)
    assert paired.difference == pytest.approx((2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)
    assert paired.p_signs == 2 / 8  # only +++ and --- are as far from zero
    assert compute_paired([1, 2], [0, 1], 0.95).p_student == 0.0  # the same difference twice
    assert compute_paired([1, 2], [1, 2], 0.95)[1:3] == (1.0, 1.0)


@pytest.mark.parametrize("pairs", [2, 5, 9])
def test_sign_flips_are_all_tried(pairs):
    difference_N = np.random.default_rng(pairs).normal(0.3, 1.0, pairs)
    means = [abs(np.dot(signs, difference_N)) for signs in itertools.product((1, -1), repeat=pairs)]
    share = np.mean([mean >= means[0] - 1e-12 for mean in means])
    assert compute_paired(difference_N, np.zeros(pairs), 0.95).p_signs == pytest.approx(share, abs=1e-12)


def test_many_pairs_are_exact_to_twenty_and_sampled_beyond():
    # All equal and positive: only the two flips that keep every sign are as far.
    assert compute_paired(np.ones(20), np.zeros(20), 0.95).p_signs == 2.0**-19
    difference_N = np.random.default_rng(3).normal(0.25, 1.0, 60)
    paired = compute_paired(difference_N, np.zeros(60), 0.95)
    assert paired.p_signs == pytest.approx(paired.p_student, abs=0.01)  # the tests agree on many normal values


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone.
    assert correct_holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert correct_holm([0.9, 0.6]).tolist() == [1.0, 1.0] and correct_holm([]).tolist() == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        correct_holm([0.1, float("nan")])


@pytest.mark.parametrize("function", [compute_student_interval, compute_bootstrap_interval])
def test_values_that_allow_no_interval_are_refused(function):
    for values in ([], [1.0, float("nan")], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="finite values in a row"):
            function(values, 0.95)
    with pytest.raises(ValueError, match="as many values on both sides"):
        compute_paired([1, 2], [1, 2, 3], 0.95)


def test_the_squared_bias_by_hand():
    # One quantity, target 1, batches 2 4 6, so off by 1 3 5: pairs 3 5 15, mean 23/3. Leaving one out: 15, 5, 3.
    square = compute_squared_bias([[2.0], [4.0], [6.0]], np.ones(1), np.ones(1), 0.95)
    error = math.sqrt(2 / 3 * ((15 - 23 / 3) ** 2 + (5 - 23 / 3) ** 2 + (3 - 23 / 3) ** 2))
    assert (square.estimate, square.low) == pytest.approx((23 / 3, 23 / 3 - 4.302653 * error), rel=1e-6)
    # Above: the truth b^2 that lies t errors from 23/3. Centred the batches are -2 0 2, so q^2 = 2 (2 * 2)^2 / 6.
    q = math.sqrt(16 / 3)
    assert square.high - 23 / 3 == pytest.approx(
        4.302653 * math.sqrt(4 * square.high * q / 3 + 2 * q * q / 9), rel=1e-6
    )
    # Weights are shares: a second quantity of weight 3 that is always off by 2 adds 4 * 3/4.
    both = compute_squared_bias([[2.0, 2.0], [4.0, 2.0], [6.0, 2.0]], np.array([1.0, 0.0]), np.array([1.0, 3.0]), 0.95)
    assert both.estimate == pytest.approx(23 / 12 + 3)
    assert compute_signed_root(Interval(4.0, -1.0, 9.0)) == (2.0, -1.0, 3.0)


@pytest.mark.parametrize(("bias", "quantities"), [(0.0, 1), (0.0, 12), (0.3, 1), (0.3, 12), (2.0, 1), (2.0, 12)])
def test_the_noise_is_out_of_the_squared_bias_and_its_interval_covers(bias, quantities):
    """Batches of noise 1 round a known bias: unbiased over 400 repeats, and covered by at least 95 of 100."""
    random = np.random.default_rng(quantities)
    squares = [
        compute_squared_bias(
            random.normal(bias, 1.0, (20, quantities)), np.zeros(quantities), np.ones(quantities), 0.95
        )
        for _ in range(400)
    ]
    estimate = compute_student_interval([square.estimate for square in squares], 0.999)
    assert estimate.low <= bias**2 <= estimate.high
    covered = sum(square.low <= bias**2 <= square.high for square in squares)
    assert covered >= stats.binom.ppf(0.001, 400, 0.95)


def test_a_real_bias_is_told_from_none():
    random = np.random.default_rng(0)
    draws_BG = random.normal(size=(60, 5))
    assert compute_squared_bias(draws_BG, np.zeros(5), np.ones(5), 0.999).low < 0
    assert compute_squared_bias(draws_BG + 1.0, np.zeros(5), np.ones(5), 0.999).low > 0.5


def test_shapes_and_weights_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match="B >= 3"):
        compute_squared_bias(np.zeros((2, 1)), np.zeros(1), np.ones(1), 0.95)
    with pytest.raises(ValueError, match="B >= 3"):
        compute_squared_bias(np.zeros((3, 2)), np.zeros(1), np.ones(2), 0.95)
    with pytest.raises(ValueError, match="weights"):
        compute_squared_bias(np.zeros((3, 1)), np.zeros(1), np.zeros(1), 0.95)


# --------------------------------------------------------------------------------------------------------------------
# Runs and items


def test_three_runs_are_drawn_two_at_a_time():
    """Runs of 0, 3 and 6 on every item: two of them have a mean of 0 to 6, each end with probability 1/9."""
    found = compute_crossed_bootstrap(np.array([[0.0] * 5, [3.0] * 5, [6.0] * 5]))
    assert found.mean == (3.0, 0.0, 6.0)


def test_one_run_has_the_bootstrap_of_its_items():
    value_N = np.random.default_rng(0).random(300)
    assert compute_crossed_bootstrap(value_N[None]).mean == pytest.approx(
        compute_bootstrap_interval(value_N, 0.95), abs=0.004
    )


def test_equal_values_have_the_bounds_of_those_that_may_not_have_been_met():
    """None of 100 has a share of at most w = z^2 / (100 + z^2), z = 1.95996; half of them, of (0, 1), moves w / 2."""
    w = 3.841459 / 103.841459
    for value, span, bounds in (
        (0.0, (0, 1), (0.0, w)),
        (1.0, (0, 1), (1 - w, 1.0)),
        (0.5, (0, 1), (0.5 - w / 2, 0.5 + w / 2)),
        (0.0, (-1, 1), (-w, w)),
    ):
        same = compute_crossed_bootstrap(np.full((3, 100), value)).mean
        assert widen_constant(same, 100, span, 0.95) == pytest.approx((value, *bounds), abs=1e-7)
    assert widen_constant(same, 100, (0, 1), 0.95)[1:] == compute_wilson_interval(0, 100, 0.95)[1:]
    assert widen_constant(Interval(0.5, 0.4, 0.6), 100, (0, 1), 0.95) == (0.5, 0.4, 0.6)


def test_paired_runs_and_items_leave_a_constant_difference_alone():
    value_SN = np.random.default_rng(0).random((4, 30))
    found = compute_crossed_bootstrap(value_SN + 1.0, value_SN, is_paired=True)
    assert found.mean == pytest.approx((1.0, 1.0, 1.0), abs=1e-12) and found.p == 2 / 4001
    low, high = compute_crossed_bootstrap(value_SN + 1.0, value_SN).mean[1:]
    assert low < 1.0 < high
    assert compute_crossed_bootstrap(value_SN, value_SN, is_paired=True).p == 1.0


def test_an_item_counts_where_a_run_has_it():
    """Two runs with one item in common: means of 1, 2 (of 1 and 3) and 5."""
    value_SN = np.array([[1.0, 1.0, np.nan], [np.nan, 3.0, 5.0]])
    low, high = compute_crossed_bootstrap(value_SN).mean[1:]
    assert compute_crossed_bootstrap(value_SN).mean.estimate == pytest.approx(8 / 3)
    assert (low, high) == (1.0, 5.0)  # one run is drawn at a time, and of it one item now and then
