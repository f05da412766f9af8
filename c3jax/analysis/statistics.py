"""What a handful of measurements says: intervals, paired differences, corrections for many comparisons.

Host code in float64. Every interval is two-sided; `level` is its coverage, 0.95 or 0.999 say.

Dimension key: B independent batch    G quantity that the batches estimate (a context and message, say)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded when they are used: asking and training need none

_MOST_ENUMERATED = 20  # differences whose 2^n signs are all tried; of more, as many are sampled


class Interval(NamedTuple):
    """An estimate between its bounds, in the units of what was measured."""

    estimate: float
    low: float
    high: float


class Paired(NamedTuple):
    """Mean of paired differences, with its Student interval and the p-values of two tests that it is zero."""

    difference: Interval
    p_student: float
    p_signs: float  # sign-flip permutation test: exact up to 20 pairs


def compute_student_interval(value_N: Sequence[float] | np.ndarray, level: float) -> Interval:
    """Mean of independent, roughly normal values, mean +- t_{N-1} s / sqrt(N).

    scipy's `ttest_1samp` inverts the distribution from below, which costs digits at high levels, and warns where all
    values are equal; here they have an interval of no width.

    Args:
      value_N: two values or more.
      level: coverage of the interval.

    Raises:
      ValueError: below two values, or for one that is not finite.
    """
    value_N = _check_values(value_N, 2)
    mean, error = float(value_N.mean()), float(value_N.std(ddof=1)) / math.sqrt(len(value_N))
    half = float(scipy.stats.t.isf((1 - level) / 2, len(value_N) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def compute_bootstrap_interval(value_N: Sequence[float] | np.ndarray, level: float, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval, for values whose distribution is far from normal.

    Resamples are so many that fifty lie beyond each bound: 2000 at level 0.95. With few values it is too narrow: use
    Student's below about twenty.

    Args:
      value_N: a value or more; one alone has an interval of no width.
      level: coverage of the interval.
      seed: of the resamples.

    Raises:
      ValueError: without values, or for one that is not finite.
    """
    value_N = _check_values(value_N, 1)
    mean = float(value_N.mean())
    if len(value_N) == 1:
        return Interval(mean, mean, mean)
    found = scipy.stats.bootstrap(
        (value_N,),
        np.mean,
        n_resamples=math.ceil(100 / (1 - level) - 1e-6),
        batch=1000,  # at a time, for memory
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


class Crossed(NamedTuple):
    """A mean over runs and items, or a difference of two, and the p-value that it is zero."""

    mean: Interval
    p: float


def compute_crossed_bootstrap(
    value_SN: np.ndarray,
    other_SN: np.ndarray | None = None,
    is_paired: bool = False,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Crossed:
    """Mean over items of the mean over runs, or its difference to that of other runs, with a bootstrap interval.

    Runs and items are both resampled: the interval speaks of other seeds and of other problems. S runs are drawn S - 1
    at a time, which makes the variance of their mean unbiased (Rao and Wu 1988, JASA 83); one run stands for itself, so
    that the interval then speaks of problems alone. Of two sets the same items are drawn, and of paired ones the same
    runs. With under about five runs the interval is too narrow for want of a t-quantile.

    Args:
      value_SN: value of each item in each run; NaN where a run does not have the item. Every item is in some run.
      other_SN: the other runs; None compares with zero.
      is_paired: row s of both sets is of one seed.
      level: coverage of the interval.
      resamples, seed: how many resamples, and of what seed.

    Returns:
      The interval, and p: twice the smaller share of resamples on either side of zero, the value seen counted in both.

    Source: Owen 2007, Annals of Applied Statistics 1 (the pigeonhole bootstrap, which errs on the cautious side).
    """
    random = np.random.default_rng(seed)
    sides = [value_SN] if other_SN is None else [value_SN, other_SN]
    found: list[np.ndarray] = []
    for size in np.diff(np.append(np.arange(0, resamples, 250), resamples)):
        item_RN = random.multinomial(value_SN.shape[1], np.full(value_SN.shape[1], 1 / value_SN.shape[1]), size=size)
        drawn = ((max(1, len(side) - 1), np.full(len(side), 1 / len(side))) for side in sides)
        runs = [random.multinomial(*counts, size=size).astype(np.float64) for counts in drawn]
        runs = [runs[0]] * len(sides) if is_paired else runs
        means = [_average(side, weight_RS) for side, weight_RS in zip(sides, runs, strict=True)]
        difference_RN = means[0] if other_SN is None else means[0] - means[1]
        weight_RN = item_RN * np.isfinite(difference_RN)
        total_R, count_R = (weight_RN * np.nan_to_num(difference_RN)).sum(axis=1), weight_RN.sum(axis=1)
        found.append(total_R[count_R > 0] / count_R[count_R > 0])  # of few items, those drawn may all be absent
    ones = [np.ones((1, len(side))) for side in sides]
    seen = [_average(side, one)[0] for side, one in zip(sides, ones, strict=True)]
    estimate = float(np.nanmean(seen[0] if other_SN is None else seen[0] - seen[1]))
    mean_R = np.concatenate(found)
    low, high = np.quantile(mean_R, ((1 - level) / 2, (1 + level) / 2))
    tail = min((mean_R <= 0).sum(), (mean_R >= 0).sum())
    return Crossed(Interval(estimate, float(low), float(high)), float(min(1.0, 2 * (tail + 1) / (len(mean_R) + 1))))


def _average(value_SN: np.ndarray, weight_RS: np.ndarray) -> np.ndarray:
    """Mean over runs of each item, the runs weighted; NaN where no run with weight has it."""
    count_RN = weight_RS @ np.isfinite(value_SN)
    return np.where(count_RN > 0, weight_RS @ np.nan_to_num(value_SN) / np.maximum(count_RN, 1e-9), np.nan)


def compute_jackknife_interval(statistic: Callable[[np.ndarray], float], count: int, level: float) -> Interval:
    """A statistic of independent items, a ratio of sums over them say, with its jackknife interval (Student's).

    Args:
      statistic: takes the indices of the items to use, [n] int.
      count: number of items.
      level: coverage of the interval.

    Raises:
      ValueError: below two items.

    Source: Tukey 1958, Annals of Mathematical Statistics 29.
    """
    if count < 2:
        raise ValueError(f"expected at least 2 items, got {count}")
    indices = np.arange(count)
    estimate = float(statistic(indices))
    left_out_N = np.array([statistic(np.delete(indices, index)) for index in indices], np.float64)
    error = math.sqrt((count - 1) / count * np.square(left_out_N - left_out_N.mean()).sum())
    half = float(scipy.stats.t.isf((1 - level) / 2, count - 1)) * error
    return Interval(estimate, estimate - half, estimate + half)


def compute_wilson_interval(successes: int, trials: int, level: float) -> Interval:
    """Wilson's score interval of a share of independent trials; sound for few trials and for shares of 0 and 1.

    Args:
      successes: from 0 to `trials`.
      trials: one or more.
      level: coverage of the interval.

    Raises:
      ValueError: for counts that cannot be.

    Source: Wilson 1927, JASA 22.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials and a trial, got {successes} of {trials}")
    bounds = scipy.stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(successes / trials, float(bounds.low), float(bounds.high))


def widen_constant(interval: Interval, values: int, span: tuple[float, float], level: float) -> Interval:
    """The interval of a mean of equal values, of which a bootstrap gives one without width; any other as it is.

    Of n values that are all v, others are at most a share w, the upper bound of Wilson's interval for none of n; within
    [a, b] they move the mean to v - w (v - a) or v + w (b - v) at most. Of zeros and ones it is Wilson's own.

    Args:
      interval: of the mean.
      values: how many there are (n), independent of each other.
      span: the least and the most that a value can be (a, b).
      level: coverage of the interval.
    """
    if interval.high - interval.low > 1e-9:
        return interval
    share, mean = compute_wilson_interval(0, values, level).high, interval.estimate
    return Interval(mean, mean - share * max(0.0, mean - span[0]), mean + share * max(0.0, span[1] - mean))


def compute_paired(
    value_N: Sequence[float] | np.ndarray, other_N: Sequence[float] | np.ndarray, level: float
) -> Paired:
    """Compare two methods on the same seeds: the mean of value - other, its interval, and whether it is zero.

    Args:
      value_N, other_N: of the two methods, entry n of both of one seed; two seeds or more.
      level: coverage of the interval.

    Returns:
      p_student is the paired t-test's. p_signs is the share of sign flips of the differences whose |mean| is at least
      the one seen: exact up to 20 pairs, else of 2^17 flips drawn from seed 0, with the seen one counted in.

    Raises:
      ValueError: if the two are not equally long, or fewer than two.

    Source: Fisher 1935, section 21.
    """
    value_N, other_N = _check_values(value_N, 2), _check_values(other_N, 2)
    if len(value_N) != len(other_N):
        raise ValueError(f"expected as many values on both sides, got {len(value_N)} and {len(other_N)}")
    difference_N = value_N - other_N
    interval = compute_student_interval(difference_N, level)
    error = float(difference_N.std(ddof=1)) / math.sqrt(len(difference_N))
    if error == 0.0:  # the same difference every time: no spread to compare the mean with
        p_student = 1.0 if interval.estimate == 0.0 else 0.0
    else:
        p_student = float(2 * scipy.stats.t.sf(abs(interval.estimate) / error, len(difference_N) - 1))
    return Paired(interval, p_student, _permute_signs(difference_N))


def _permute_signs(difference_N: np.ndarray) -> float:
    # scipy's permutation_test is the same test; it takes flips one by one, a minute for the 2^20 of twenty pairs.
    seen = abs(difference_N.sum())
    if len(difference_N) <= _MOST_ENUMERATED:
        total_F = np.zeros(1)
        for difference in difference_N:
            total_F = np.concatenate([total_F + difference, total_F - difference])
    else:
        random = np.random.default_rng(0)
        draws = (random.choice((1.0, -1.0), size=(1024, len(difference_N))) @ difference_N for _ in range(128))
        total_F = np.concatenate([[seen], *draws])
    # A flip that gives the same total but for rounding counts as equal.
    return float(np.mean(np.abs(total_F) >= seen - 1e-9 * np.abs(difference_N).sum()))


def correct_holm(p_M: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, in the order given: in ascending order max_{j <= i} min(1, (M - j) p_j), j from 0.

    Rejecting where they are at most alpha keeps the chance of any false rejection at most alpha.

    Raises:
      ValueError: for a p-value outside [0, 1].

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    p_M = np.asarray(p_M, np.float64)
    if p_M.ndim != 1 or not np.all((p_M >= 0) & (p_M <= 1)):
        raise ValueError("expected a list of p-values between 0 and 1")
    order_M = np.argsort(p_M, kind="stable")
    adjusted_M = np.minimum(1.0, (len(p_M) - np.arange(len(p_M))) * p_M[order_M])
    result_M = np.empty_like(p_M)
    result_M[order_M] = np.maximum.accumulate(adjusted_M)
    return result_M


def compute_squared_bias(mean_BG: np.ndarray, target_G: np.ndarray, weight_G: np.ndarray, level: float) -> Interval:
    """Weighted mean square of an estimator's bias with the sampling noise taken out, from independent batches.

    With d_b = mean_b - target, batches b != c err independently, so sum_G w_G d_bG d_cG is unbiased for the squared
    bias sum_G w_G (E d)_G^2, whatever the noise. The estimate is its mean over all pairs; it may be negative where
    there is no bias. It errs by about 4 b^2 s / B + 2 q^2 / B^2 in square, q^2 the summed squares of the covariances of
    one batch and s <= q its noise along the bias. The lower bound takes the jackknife's error; the upper one is where
    the estimate would lie t errors below the truth, with s = q, since an estimate that came out low also has a low
    error. Approximate, and cautious above, for batch means that are roughly normal. `compute_signed_root` turns it into
    a root mean square.

    Args:
      mean_BG: the estimator's mean in every batch. Batches must be independent and identically distributed.
      target_G: what it should be.
      weight_G: non-negative weights; they are scaled to sum to 1.
      level: coverage of the interval.

    Raises:
      ValueError: for fewer than three batches, or shapes and weights that do not fit.
    """
    mean_BG, weight_G = np.asarray(mean_BG, np.float64), np.asarray(weight_G, np.float64)
    batches = len(mean_BG)
    if batches < 3 or mean_BG.shape[1:] != weight_G.shape or np.shape(target_G) != weight_G.shape:
        raise ValueError(
            f"expected means [B >= 3, G], targets [G] and weights [G], "
            f"got {mean_BG.shape}, {np.shape(target_G)} and {weight_G.shape}"
        )
    if not (np.all(weight_G >= 0) and weight_G.sum() > 0):
        raise ValueError("expected weights that are not negative and not all zero")
    off_BG = (mean_BG - target_G) * np.sqrt(weight_G / weight_G.sum())
    product_BB = _pair_products(off_BG)
    total = product_BB.sum()
    estimate = total / (batches * (batches - 1))
    # Leaving batch b out takes its row and its column away.
    left_out_B = (total - 2 * product_BB.sum(axis=1)) / ((batches - 1) * (batches - 2))
    jackknife = (batches - 1) / batches * np.square(left_out_B - left_out_B.mean()).sum()
    noise_BB = _pair_products(off_BG - off_BG.mean(axis=0))
    t = float(scipy.stats.t.isf((1 - level) / 2, batches - 1))
    spread = t * math.sqrt(np.square(noise_BB).sum() / (batches * (batches - 1))) / batches  # t q / B
    inner = 2 * t * spread * (2 * estimate + 2 * t * spread) + 2 * spread**2
    high = estimate + 2 * t * spread + math.sqrt(max(0.0, inner))
    return Interval(float(estimate), float(estimate - t * math.sqrt(jackknife)), float(high))


def compute_signed_root(square: Interval) -> Interval:
    """Root of an estimated square in the units of what was measured: sign(x) sqrt|x| of the estimate and the bounds."""
    return Interval(*(math.copysign(math.sqrt(abs(x)), x) for x in square))


def _pair_products(off_BG: np.ndarray) -> np.ndarray:
    product_BB = off_BG @ off_BG.T
    np.fill_diagonal(product_BB, 0.0)
    return product_BB


def _check_values(value_N: Sequence[float] | np.ndarray, least: int) -> np.ndarray:
    value_N = np.asarray(value_N, np.float64)
    if value_N.ndim != 1 or len(value_N) < least or not np.isfinite(value_N).all():
        raise ValueError(f"expected at least {least} finite values in a row, got shape {value_N.shape}")
    return value_N
