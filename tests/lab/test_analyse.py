"""Figures from sums made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from c3jax.analysis.statistics import Interval
from c3jax.lab import analyse
from c3jax.lab.measure import Sums
from c3jax.types import UserError


def make_sums(**changes: np.ndarray) -> Sums:
    """One turn with a context of two messages, on one problem: two batches of two draws with two messages each.

    Batch 0 has advantages 1 and 3 for message 0, -1 and -1 for message 1; batch 1 has 2 for message 0 and -2, 0, 1 for
    message 1. The true advantages are 1.5 and -0.5.
    """
    fields = {
        "count": np.array([[[[2, 2]], [[1, 3]]]]),
        "advantage": np.array([[[[4.0, -2.0]], [[2.0, -1.0]]]]),
        "square": np.array([[12.0, 9.0]]),
        # .5^2 + 1.5^2 + .5^2 + .5^2, and .5^2 + 1.5^2 + .5^2 + 1.5^2
        "error": np.array([[3.0, 5.0]]),
        "gradient": np.array([[[[1.0, -1.0]], [[2.0, -2.0]]]]),
        "gradient_square": np.array([[3.0, 5.0]]),
    }
    return Sums(*((x,) for x in (fields | changes).values()))


def make_figures(noise: list[float], signal: list[float]) -> analyse.Figures:
    noise_G, signal_G = np.array(noise), np.array(signal)
    return analyse.Figures(noise_G, noise_G, noise_G, signal_G, signal_G, signal_G)


def test_figures_by_hand():
    figures = analyse.compute_figures(make_sums(), 0, samples=2, gradient_GCM=np.array([[[0.75, -0.75]]]))
    # Message 0: 1, 3, 2 about their mean 2; message 1: -1, -1, -2, 0, 1 about -.6.
    squares = (1 + 1 + 0) + (0.16 + 0.16 + 1.96 + 0.36 + 2.56)
    assert figures.variance_G == pytest.approx([squares / (8 - 2)])
    assert figures.error_G == pytest.approx([8 / 8])
    # Means of a draw's gradient: (.5, -.5) and (1, -1), whose product is 1; E|g|^2 is (1.5 + 2.5) / 2.
    assert figures.signal_G == pytest.approx([1.0])
    assert figures.noise_G == pytest.approx([2.0 - 1.0])
    assert figures.along_G == pytest.approx([0.75 * 0.75 * 2])
    assert figures.truth_G == pytest.approx([2 * 0.75**2])


def test_the_noise_of_one_batch_is_no_signal():
    """Gradients that point against each other: their mean's squared norm is .25 and all of it is noise."""
    opposed = make_sums(gradient=np.array([[[[2.0, 0.0]], [[-1.0, 0.0]]]]))
    figures = analyse.compute_figures(opposed, 0, samples=1, gradient_GCM=np.zeros((1, 1, 2)))
    assert figures.signal_G == pytest.approx([-2.0])


def three_batches(count: list[list[int]], advantage: list[list[float]]) -> Sums:
    shape = (1, 3, 1, len(count[0]))
    return make_sums(count=np.reshape(count, shape), advantage=np.reshape(advantage, shape).astype(float))


def test_the_bias_is_the_mean_product_of_batches():
    """Off by .1, .2 and .3 at one message and by 0, .1 and -.1 at the other, drawn thrice as often."""
    sums = three_batches([[1, 3]] * 3, [[0.1, 0.0], [0.2, 0.3], [0.3, -0.3]])
    bias = analyse.compute_bias(sums, 0, np.zeros((1, 1, 2)), 0.999)
    first = (0.1 * 0.2 + 0.1 * 0.3 + 0.2 * 0.3) / 3
    second = (0.0 * 0.1 - 0.0 * 0.1 - 0.1 * 0.1) / 3
    assert bias.estimate == pytest.approx(first / 4 + 3 * second / 4)
    assert bias.low < bias.estimate < bias.high


def test_the_bias_leaves_out_what_a_batch_never_saw():
    sums = three_batches([[2, 1], [2, 0], [2, 1]], [[0.2, 9.0], [0.4, 0.0], [0.6, 9.0]])
    bias = analyse.compute_bias(sums, 0, np.zeros((1, 1, 2)), 0.999)
    assert bias.estimate == pytest.approx((0.1 * 0.2 + 0.1 * 0.3 + 0.2 * 0.3) / 3)


def test_a_problem_of_which_nothing_is_known_does_not_hide_the_others():
    known, unknown = (
        three_batches([[2], [2], [2]], [[0.2], [0.4], [0.6]]),
        three_batches([[2], [0], [2]], [[1], [0], [1]]),
    )
    both = Sums(*((np.concatenate([a, b]),) for (a,), (b,) in zip(known, unknown, strict=True)))
    expected = analyse.compute_bias(known, 0, np.zeros((1, 1, 1)), 0.999)
    assert analyse.compute_bias(both, 0, np.zeros((2, 1, 1)), 0.999) == pytest.approx(expected)


def test_too_few_draws_for_a_bias_are_said():
    sums = three_batches([[1, 0], [0, 1], [1, 0]], [[1, 0], [0, 1], [1, 0]])
    with pytest.raises(UserError, match=r"^samples: expected so many that .* turn 0 .*, got none$"):
        analyse.compute_bias(sums, 0, np.zeros((1, 1, 2)), 0.999)


def test_noise_over_signal_is_a_ratio_of_sums():
    """(3 + 5) / (1 + 3); 5 / 3 or 3 without one of them: jackknife error |5/3 - 3| / 2, t of one degree."""
    noise = analyse.compute_noise(make_figures([3.0, 5.0], [1.0, 3.0]), 0.95)
    half = 12.706205 * (3 - 5 / 3) / 2
    assert noise == pytest.approx(Interval(2.0, 2.0 - half, 2.0 + half))


def test_noise_is_compared_on_the_same_problems():
    """Half the noise on every problem is half the noise for certain, however much the problems differ."""
    mine, theirs = make_figures([1.0, 7.0, 2.0], [1.0, 2.0, 0.5]), make_figures([2.0, 14.0, 4.0], [1.0, 2.0, 0.5])
    assert analyse.compare_noise(mine, theirs, 0.95) == pytest.approx(Interval(0.5, 0.5, 0.5))


def test_without_a_signal_there_is_no_ratio_and_no_direction():
    silent, sound = make_figures([1.0, 1.0], [0.5, -0.6]), make_figures([1.0, 1.0], [1.0, 1.0])
    for interval in (
        analyse.compute_noise(silent, 0.95),
        analyse.compare_noise(sound, silent, 0.95),
        analyse.compute_cosine(silent, 0.95),
    ):
        assert math.isnan(interval.estimate)


def test_the_cosine_is_of_all_problems_laid_end_to_end():
    """Mean gradients (3, 0) and (0, 4), the truth (3, 0) and (4, 0): 9 / (5 x 5)."""
    empty = np.zeros(2)
    figures = analyse.Figures(empty, empty, empty, np.array([9.0, 16.0]), np.array([9.0, 0.0]), np.array([9.0, 16.0]))
    assert analyse.compute_cosine(figures, 0.95).estimate == pytest.approx(9 / 25)
