"""Diagnostics of groups: n alternatives in one context, each continued several times, all i.i.d. from one policy.

Every figure is a mean over contexts, or a function of such means, with a percentile bootstrap over the problems: one
context a problem, so that a context is what is drawn again. What is undefined in a context is left out of the mean and
counted. Host code in float64.

Dimension key: C context, one a problem    N alternative    M continuation of an alternative    J distinct message
    Y distinct outcome    R resample    X quantity that is averaged    P problem
Source: arXiv:2603.06859, section on diagnostics; Spearman 1904, American Journal of Psychology 15 (attenuation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from c3jax.analysis import influence
from c3jax.analysis.fidelity import compute_spearman, compute_within_context_variance
from c3jax.analysis.statistics import Interval, compute_signed_root, compute_wilson_interval

_PERMUTATIONS = 999  # so that the least p is 1/1000
_RESAMPLES = 2000  # of which fifty lie beyond each bound at level 0.95
_NOTHING = Interval(math.nan, math.nan, math.nan)


class GroupFidelity(NamedTuple):
    """How well credit orders the messages of a context by their value, known from two held-out halves."""

    observed: Interval  # mean rank correlation with a half
    reliability: Interval  # mean rank correlation of the halves with each other
    corrected: Interval  # observed / sqrt(reliability); bounds NaN where resamples have a reliability of 0 or less
    linear: Interval  # correlation of credit with value pooled within contexts, the halves' noise taken out
    beyond_length: Interval  # mean partial rank correlation with both halves together, the length held fixed
    defined: int  # contexts of the first three: in the others a half has one value and no order


class GroupInfluence(NamedTuple):
    """What a message says of an outcome, of the alternatives drawn; nats."""

    plugin: Interval
    corrected: Interval  # Miller and Madow's: for the size, where draws are many more than pairs of message and outcome
    excess: Interval  # plug-in minus its mean over permutations: 0 where there is none, however few the draws
    null: influence.Null  # of the plug-in's mean


class ArmBias(NamedTuple):
    """How far a null message's value is from the context's, V(h) - Q(h, null), in units of return."""

    mean: Interval
    root_mean_square: Interval  # with the noise taken out by independent halves; its sign is the square's


class NoiseScale(NamedTuple):
    """How much gradients vary from problem to problem beside their mean G; Sigma is their covariance."""

    scale: Interval  # tr Sigma / |G|^2, problems; NaN beyond what resolves it, see `compute_noise_scale`
    least: float  # problems: a lower bound of the scale that holds where it is not resolved; NaN without one
    noise: Interval  # tr Sigma
    signal: Interval  # |G|^2


def compute_mean_interval(value_C: np.ndarray, level: float) -> Interval:
    """Mean over the contexts that have a value, with its bootstrap interval; NaN where none has.

    Args:
      value_C: NaN where it is undefined.
      level: coverage of the interval.
    """
    defined = np.asarray(value_C, np.float64)
    defined = defined[np.isfinite(defined)]
    return bootstrap_means(defined[None], lambda mean_X: mean_X[0], level) if len(defined) else _NOTHING


def bootstrap_means(value_XC: np.ndarray, combine: Callable[[np.ndarray], np.ndarray], level: float) -> Interval:
    """A function of several means over contexts, with its percentile bootstrap interval over the contexts.

    Args:
      value_XC: finite; one context or more.
      combine: from means [X, ...] to [...]; NaN where the function is undefined.
      level: coverage of the interval.

    Returns:
      The interval; its bounds are NaN where the function is undefined in more resamples than lie beyond a bound.
    """
    contexts = value_XC.shape[1]
    weight_RC = np.random.default_rng(0).multinomial(contexts, np.full(contexts, 1 / contexts), size=_RESAMPLES)
    found_R = combine((weight_RC @ value_XC.T / contexts).T)
    estimate = float(combine(value_XC.mean(axis=1)))
    if math.isnan(estimate) or np.isnan(found_R).mean() > (1 - level) / 2:
        return Interval(estimate, math.nan, math.nan)
    low, high = np.nanquantile(found_R, ((1 - level) / 2, (1 + level) / 2))
    return Interval(estimate, float(low), float(high))


def compute_group_fidelity(
    credit_CN: np.ndarray, first_CN: np.ndarray, second_CN: np.ndarray, length_CN: np.ndarray, level: float
) -> GroupFidelity:
    """Fidelity of a method's credit to what the messages are worth.

    The contexts are those whose halves have an order, the same for every method: left out where its own credit is
    constant, a method would be judged by the contexts that are easiest for it. Constant credit correlates by 0.

    `corrected` is Spearman's correction, mean rho(credit, half) / sqrt(mean rho(halves)), approximate for ranks.
    `linear` is sum cov(credit, Q) / sqrt(sum var(credit) sum var(Q)) over contexts: independent halves give every sum
    without bias, however noisy they are, so it is consistent.

    Args:
      credit_CN: the method's.
      first_CN, second_CN: mean returns of equally many held-out continuations, independent of each other and of those
        that the credit is made of.
      length_CN: of the messages, tokens.
      level: coverage of the intervals.
    """
    both_CN, halves_C = (first_CN + second_CN) / 2, _rank(first_CN, second_CN)
    with_halves_C = (_rank_credit(credit_CN, first_CN) + _rank_credit(credit_CN, second_CN)) / 2
    ranks_XC = np.stack([with_halves_C, halves_C])[:, np.isfinite(halves_C)]
    observed = reliability = corrected = _NOTHING
    if ranks_XC.shape[1]:
        observed, reliability = (compute_mean_interval(row_C, level) for row_C in ranks_XC)
        corrected = bootstrap_means(ranks_XC, lambda mean_X: _divide_root(mean_X[0], mean_X[1]), level)
    products_XC = np.stack([_covary(credit_CN, both_CN), _covary(credit_CN, credit_CN), _covary(first_CN, second_CN)])
    linear = bootstrap_means(products_XC, lambda mean_X: _divide_root(mean_X[0], mean_X[1] * mean_X[2]), level)
    beyond = compute_mean_interval(_correlate_beyond(credit_CN, both_CN, length_CN), level)
    return GroupFidelity(observed, reliability, corrected, linear, beyond, ranks_XC.shape[1])


def compute_split_noise(left_CN: np.ndarray, right_CN: np.ndarray, continuations: int, level: float) -> Interval:
    """Variance of one continuation's return at a message, from means of two halves: n E[(left - right)^2] / 2.

    A mean of m continuations has this over m, if they are drawn independently.

    Args:
      left_CN, right_CN: the halves' mean returns.
      continuations: n of each half.
      level: coverage of the interval.
    """
    return compute_mean_interval(continuations * np.square(left_CN - right_CN).mean(axis=1) / 2, level)


def compute_credit_variance(credit_CN: np.ndarray, level: float) -> Interval:
    """Mean over contexts of the sample variance of the messages' credit, in squared units of the credit.

    Args:
      credit_CN: a method's, two alternatives or more.
      level: coverage of the interval.
    """
    variance_C = compute_within_context_variance(jnp.asarray(credit_CN), jnp.ones(credit_CN.shape, bool))
    return compute_mean_interval(np.asarray(variance_C), level)


def compute_zero_share(credit_CN: np.ndarray, level: float) -> Interval:
    """Share of groups in which no message has credit, and which therefore have no gradient; Wilson's interval.

    Args:
      credit_CN: a method's, in a row a group.
      level: coverage of the interval.
    """
    return compute_wilson_interval(int((credit_CN == 0).all(axis=1).sum()), len(credit_CN), level)


def compute_duplicate_share(message_CN: np.ndarray, level: float) -> Interval:
    """Mean over contexts of the share of alternatives that say what an earlier one says.

    Args:
      message_CN: number of each alternative's text, from `number_distinct`.
      level: coverage of the interval.
    """
    share_C = [1 - len(set(row)) / len(row) for row in message_CN.tolist()]
    return compute_mean_interval(np.array(share_C), level)


def compute_rank_correlation(left_CN: np.ndarray, right_CN: np.ndarray, level: float) -> Interval:
    """Mean over contexts of Spearman's correlation: of length and value, or of two halves, whose reliability it is.

    Args:
      left_CN, right_CN: what is ranked in each context; one that is constant on a side is left out.
      level: coverage of the interval.
    """
    return compute_mean_interval(_rank(left_CN, right_CN), level)


def number_distinct(texts: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Numbers in place of texts: within each context equal ones have the same number, from 0 in order of appearance.

    Args:
      texts: of each context equally many.

    Returns:
      int, [C, texts of a context].
    """
    numbers = []
    for row in texts:
        known = {text: number for number, text in enumerate(dict.fromkeys(row))}
        numbers.append([known[text] for text in row])
    return np.array(numbers)


def count_outcomes(message_CN: np.ndarray, outcome_CNM: np.ndarray) -> np.ndarray:
    """How often each outcome followed each message; alternatives that say the same are one message.

    Args:
      message_CN, outcome_CNM: numbers from `number_distinct`.

    Returns:
      count_CJY, int.
    """
    contexts = len(message_CN)
    count_CJY = np.zeros((contexts, message_CN.max() + 1, outcome_CNM.max() + 1), int)
    np.add.at(count_CJY, (np.arange(contexts)[:, None, None], message_CN[:, :, None], outcome_CNM), 1)
    return count_CJY


def compute_group_influence(count_CJY: np.ndarray, level: float) -> GroupInfluence:
    """Mutual information of a context's message and an outcome, beside what it comes to where there is none.

    It is that of the alternatives drawn: on average below I(message; outcome | h) of the policy by the divergence of
    their mixture of outcomes from the policy's, a term of order 1 / n.

    Args:
      count_CJY: from `count_outcomes`.
      level: coverage of the intervals, and of the null's quantile.
    """
    plugin_C = influence.compute_plugin_influence(count_CJY)
    return GroupInfluence(
        compute_mean_interval(plugin_C, level),
        compute_mean_interval(influence.compute_corrected_influence(count_CJY), level),
        compute_mean_interval(plugin_C - influence.compute_permutation_mean(count_CJY), level),
        influence.sample_permutation_null(count_CJY, _PERMUTATIONS, level),
    )


def compute_arm_bias(return_CNM: np.ndarray, null_CM: np.ndarray, level: float) -> ArmBias:
    """Bias map of a null arm: V(h) - Q(h, null), the offset of credit that compares with the null message.

    Args:
      return_CNM: of the alternatives' continuations, two alternatives or more.
      null_CM: of continuations of the null message, two or more unless the evaluator is deterministic and it is the
        last message.
      level: coverage of the intervals.
    """
    value_CN = return_CNM.mean(axis=2)
    off_C = value_CN.mean(axis=1) - null_CM.mean(axis=1)
    null_CM = np.repeat(null_CM, 2, axis=1) if null_CM.shape[1] == 1 else null_CM
    halves = [value_CN[:, half::2].mean(axis=1) - null_CM[:, half::2].mean(axis=1) for half in (0, 1)]
    square = compute_mean_interval(halves[0] * halves[1], level)
    return ArmBias(compute_mean_interval(off_C, level), compute_signed_root(square))


def compute_noise_scale(square_P: np.ndarray, along_P: np.ndarray, level: float) -> NoiseScale:
    """The simple noise scale tr Sigma / |G|^2: the batch from which on more problems a step hardly make it better.

    Of P gradients g, batches of 1 and of P give both parts without bias (arXiv:1812.06162, appendix A.1):
    |G|^2 is estimated by (P |mean g|^2 - mean |g|^2) / (P - 1), the mean of h_p = g_p . mean of the others, and
    tr Sigma by mean |g|^2 less that. Resampled are the first-order terms of the U-statistic, 2 mean* h - mean h; where
    G is 0 these vary twice as much as it does, so that an interval is rather too wide there than too narrow.

    Where more resamples have |G|^2 <= 0 than lie beyond a bound, |G|^2 cannot be told from 0, and a ratio would be
    noise by noise: the scale's bounds are NaN, and `least` is the lower bound of tr Sigma by the upper one of |G|^2.

    Args:
      square_P: |g_p|^2 of each problem, two or more.
      along_P: g_p . mean g, the problem's own gradient in the mean.
      level: coverage of the intervals.
    """
    problems = len(square_P)
    other_P = (problems * along_P - square_P) / (problems - 1)
    sum_XP, mean = np.stack([square_P, other_P]), other_P.mean()

    def find_signal(mean_X: np.ndarray) -> np.ndarray:
        return 2 * mean_X[1] - mean

    def divide(mean_X: np.ndarray) -> np.ndarray:
        signal = find_signal(mean_X)
        return np.where(signal > 0, (mean_X[0] - signal) / np.where(signal > 0, signal, 1.0), np.nan)

    signal = bootstrap_means(sum_XP, find_signal, level)
    noise = bootstrap_means(sum_XP, lambda mean_X: mean_X[0] - find_signal(mean_X), level)
    least = max(noise.low, 0.0) / signal.high if signal.high > 0 else math.nan
    return NoiseScale(bootstrap_means(sum_XP, divide, level), least, noise, signal)


def _correlate_beyond(credit_CN: np.ndarray, target_CN: np.ndarray, length_CN: np.ndarray) -> np.ndarray:
    """Partial rank correlation, (r_ct - r_cl r_tl) / sqrt((1 - r_cl^2)(1 - r_tl^2)); NaN where it is undefined."""
    plain_C, of_credit_C, of_target_C = (
        _rank_credit(credit_CN, target_CN),
        _rank_credit(credit_CN, length_CN),
        _rank(target_CN, length_CN),
    )
    # Where all lengths are equal they explain nothing.
    is_constant_C = (length_CN == length_CN[:, :1]).all(axis=1)
    of_credit_C, of_target_C = np.where(is_constant_C, 0.0, (of_credit_C, of_target_C))
    left_C = (1 - of_credit_C**2) * (1 - of_target_C**2)
    return np.where(left_C > 1e-6, (plain_C - of_credit_C * of_target_C) / np.sqrt(np.maximum(left_C, 1e-6)), np.nan)


def _rank(left_CN: np.ndarray, right_CN: np.ndarray) -> np.ndarray:
    keep_CN = jnp.ones(left_CN.shape, bool)
    return np.asarray(compute_spearman(jnp.asarray(left_CN), jnp.asarray(right_CN), keep_CN), np.float64)


def _rank_credit(credit_CN: np.ndarray, other_CN: np.ndarray) -> np.ndarray:
    is_constant_C = (credit_CN == credit_CN[:, :1]).all(axis=1)
    return np.where(is_constant_C, 0.0, _rank(credit_CN, other_CN))


def _covary(left_CN: np.ndarray, right_CN: np.ndarray) -> np.ndarray:
    product_CN = (left_CN - left_CN.mean(axis=1, keepdims=True)) * (right_CN - right_CN.mean(axis=1, keepdims=True))
    return product_CN.sum(axis=1) / (left_CN.shape[1] - 1)


def _divide_root(part: np.ndarray, square: np.ndarray) -> np.ndarray:
    return np.where(square > 0, part / np.sqrt(np.where(square > 0, square, 1.0)), np.nan)
