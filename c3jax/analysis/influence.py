"""Influence: how much a message says about what comes after it, as mutual information I(J; Y) in nats.

J is which of a context's messages was drawn, Y what was observed later: another message, or the return. From counts the
plug-in estimate is biased upwards by about (J - 1)(Y - 1) / (2 N) even where nothing is influenced, and cannot exceed
log min(J, Y); so every estimate here stands beside its null. One continuation a message shows nothing.

Dimension key: C context    J message of a context    Y outcome    R resample
Source: arXiv:2603.06859, section on diagnostics; Miller 1955, Information Theory in Psychology (correction).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import special


class Null(NamedTuple):
    """What the plug-in influence comes to, on average over contexts, where there is none; nats."""

    observed: float
    mean: float
    quantile: float  # of the level asked for
    p: float  # share of permutations at least as large as what was observed, itself counted in


def compute_plugin_influence(count_CJY: np.ndarray) -> np.ndarray:
    """Mutual information of the counts' own distribution, sum p_jy log(p_jy / (p_j p_y)).

    Args:
      count_CJY: how often each outcome followed each message, whole numbers.

    Returns:
      [C], nats; NaN where a context has no counts.

    Raises:
      ValueError: unless counts are whole, [C, J, Y] and not negative.
    """
    count_CJY = _check_counts(count_CJY)
    chance_CJY = _divide(count_CJY, count_CJY.sum(axis=(1, 2), keepdims=True))
    product_CJY = chance_CJY.sum(axis=2, keepdims=True) * chance_CJY.sum(axis=1, keepdims=True)
    return np.maximum(0.0, special.rel_entr(chance_CJY, product_CJY).sum(axis=(1, 2)))


def compute_corrected_influence(count_CJY: np.ndarray) -> np.ndarray:
    """Miller and Madow's correction: plug-in - (m_JY - m_J - m_Y + 1) / (2 N), m the outcomes that occurred.

    It may come out below zero, and is then not evidence of anything; keep the sign when averaging over contexts.

    Args:
      count_CJY: how often each outcome followed each message, whole numbers.

    Returns:
      [C], nats; NaN where a context has no counts.
    """
    count_CJY = _check_counts(count_CJY)
    cells_C = (count_CJY > 0).sum(axis=(1, 2))
    messages_C, outcomes_C = (count_CJY.sum(axis=2) > 0).sum(axis=1), (count_CJY.sum(axis=1) > 0).sum(axis=1)
    excess_C = (cells_C - messages_C - outcomes_C + 1) / 2
    return compute_plugin_influence(count_CJY) - _divide(excess_C, count_CJY.sum(axis=(1, 2)))


def compute_null_bias(messages: int, outcomes: int, draws: int) -> float:
    """Leading term of the plug-in's bias where there is no influence, (J - 1)(Y - 1) / (2 N), nats.

    4 messages with 2 continuations each and 2 outcomes have 3/16, whatever the policy.

    Args:
      messages, outcomes: how many there are, J and Y.
      draws: N, of all messages of a context together.
    """
    return (messages - 1) * (outcomes - 1) / (2 * draws)


def compute_permutation_mean(count_CJY: np.ndarray) -> np.ndarray:
    """Mean plug-in over all ways to deal a context's outcomes out anew among its messages.

    sum_jy sum_n P(n) n/N log(N n / (a_j b_y)), a and b the margins, n hypergeometric. Where there is no influence the
    plug-in minus this is zero on average, however few the draws; where a message says nearly all, it errs below.

    Args:
      count_CJY: how often each outcome followed each message, whole numbers.

    Returns:
      [C], nats; NaN where a context has no counts.

    Source: Vinh, Epps and Bailey 2010, JMLR 11, section 4 (the expected mutual information of the adjusted one).
    """
    return np.array([_average_permutations(count_JY) for count_JY in _check_counts(count_CJY)])


def _average_permutations(count_JY: np.ndarray) -> float:
    draws, mean = int(count_JY.sum()), 0.0
    log = special.gammaln(np.arange(draws + 1) + 1.0)  # of factorials
    margins = [np.unique(count_JY.sum(axis=axis), return_counts=True) for axis in (1, 0)]
    for (a, of_a), (b, of_b) in itertools.product(*(zip(*margin, strict=True) for margin in margins)):
        n = np.arange(max(1, a + b - draws), min(a, b) + 1)
        ways = log[a] + log[draws - a] + log[b] + log[draws - b] - log[draws]
        chance = np.exp(ways - log[n] - log[a - n] - log[b - n] - log[draws - a - b + n])
        mean += of_a * of_b * float((chance * n * np.log(draws * n / max(a * b, 1))).sum()) / max(draws, 1)
    return mean if draws else math.nan


def sample_permutation_null(count_CJY: np.ndarray, permutations: int, level: float, seed: int = 0) -> Null:
    """Distribution of the mean plug-in influence when outcomes are dealt out anew among the messages of each context.

    Margins stay as they are, so the null has exactly the bias of the estimate. Contexts without counts are left out.

    Args:
      count_CJY: how often each outcome followed each message, whole numbers.
      permutations: one or more.
      level: of the quantile that is reported.
      seed: of the permutations.

    Raises:
      ValueError: for fewer than one permutation or no counts at all.
    """
    count_CJY = _check_counts(count_CJY)
    count_CJY = count_CJY[count_CJY.sum(axis=(1, 2)) > 0]
    if permutations < 1 or not len(count_CJY):
        raise ValueError(f"expected a permutation and a context with counts, got {permutations} and {len(count_CJY)}")
    random = np.random.default_rng(seed)
    observed = float(compute_plugin_influence(count_CJY).mean())
    null_R = np.mean([_permute(count_JY, permutations, random) for count_JY in count_CJY], axis=0)
    as_large = 1 + int(np.sum(null_R >= observed - 1e-12))
    return Null(observed, float(null_R.mean()), float(np.quantile(null_R, level)), as_large / (permutations + 1))


def _permute(count_JY: np.ndarray, permutations: int, random: np.random.Generator) -> np.ndarray:
    messages, outcomes = count_JY.shape
    message_N = np.repeat(np.arange(messages), count_JY.sum(axis=1))
    outcome_N = np.repeat(np.arange(outcomes), count_JY.sum(axis=0))
    outcome_RN = random.permuted(np.tile(outcome_N, (permutations, 1)), axis=1)
    cell_RN = (np.arange(permutations)[:, None] * messages + message_N) * outcomes + outcome_RN
    count_RJY = np.bincount(cell_RN.ravel(), minlength=permutations * messages * outcomes)
    return compute_plugin_influence(count_RJY.reshape(permutations, messages, outcomes))


def _check_counts(count_CJY: np.ndarray) -> np.ndarray:
    count_CJY = np.asarray(count_CJY)
    if count_CJY.ndim != 3 or not np.issubdtype(count_CJY.dtype, np.integer) or np.any(count_CJY < 0):
        raise ValueError(f"expected whole counts [C, J, Y], got {count_CJY.dtype} of shape {count_CJY.shape}")
    return count_CJY


def _divide(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, part / np.maximum(total, 1), np.nan)
