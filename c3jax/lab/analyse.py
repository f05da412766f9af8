"""From sums over draws to what a table says of an estimator: bias, variance, error, gradient. Host code in float64.

The interval of the bias is of the problems at hand, over independent batches of draws. All others are over problems, as
draws from their family: Student's where a figure is their mean, the jackknife where it is a ratio of sums over them.

Dimension key: G problem    B batch of independent samples    C context of a turn    M message of a turn
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from c3jax.analysis.statistics import Interval, compute_jackknife_interval, compute_squared_bias
from c3jax.lab.measure import Sums
from c3jax.types import UserError


class Figures(NamedTuple):
    """What is known of one turn's estimates on each problem, [G] each; gradients are by the turn's logits."""

    variance_G: np.ndarray  # mean over messages of Var(advantage | h, a)
    error_G: np.ndarray  # mean over messages of (advantage - A*)^2
    noise_G: np.ndarray  # trace of the variance of one sample's gradient
    signal_G: np.ndarray  # squared norm of its mean, sampling noise taken out
    along_G: np.ndarray  # inner product of its mean with the true gradient
    truth_G: np.ndarray  # squared norm of the true gradient


def compute_figures(sums: Sums, turn: int, samples: int, gradient_GCM: np.ndarray) -> Figures:
    """Figures of one turn from sums with leading axes [G, B], two batches or more.

    Args:
      turn: whose figures these are.
      samples: draws in a batch.
      gradient_GCM: the true gradient of the expected return.
    """
    count_GCM = np.asarray(sums.count[turn], np.float64).sum(axis=1)
    total_GCM = np.asarray(sums.advantage[turn], np.float64).sum(axis=1)
    square_G = np.asarray(sums.square[turn], np.float64).sum(axis=1)
    between_G = (np.square(total_GCM) / np.maximum(count_GCM, 1)).sum(axis=(1, 2))
    messages_G, cells_G = count_GCM.sum(axis=(1, 2)), (count_GCM > 0).sum(axis=(1, 2))
    mean_GBCM = np.asarray(sums.gradient[turn], np.float64) / samples
    signal_G = _square_batches(mean_GBCM)
    norm_G = np.asarray(sums.gradient_square[turn], np.float64).mean(axis=1) / samples
    return Figures(
        variance_G=(square_G - between_G) / (messages_G - cells_G),
        error_G=np.asarray(sums.error[turn], np.float64).sum(axis=1) / messages_G,
        noise_G=norm_G - signal_G,
        signal_G=signal_G,
        along_G=(mean_GBCM.mean(axis=1) * gradient_GCM).sum(axis=(1, 2)),
        truth_G=np.square(gradient_GCM).sum(axis=(1, 2)),
    )


def compute_bias(sums: Sums, turn: int, advantage_GCM: np.ndarray, level: float) -> Interval:
    """Mean squared bias against A* over the messages of the problems at hand; an unbiased one's interval holds zero.

    Args:
      sums: with leading axes [G, B], three batches or more.
      advantage_GCM: A* of the turn, in units of return.
      level: coverage of the interval.

    Raises:
      UserError: where no message was drawn in every batch.
    """
    average_GBCM, weight_GCM = _average_cells(sums, turn)
    if not weight_GCM.any():
        raise UserError(
            f"samples: expected so many that some message of turn {turn} is drawn in each of the batches, got none"
        )
    batches = average_GBCM.shape[1]
    average_BX = average_GBCM.swapaxes(0, 1).reshape(batches, -1)
    return compute_squared_bias(average_BX, advantage_GCM.reshape(-1), weight_GCM.reshape(-1), level)


def _average_cells(sums: Sums, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean advantage of every context and message in each batch [G, B, C, M], and shares of messages [G, C, M]."""
    count_GBCM, total_GBCM = (np.asarray(x[turn], np.float64) for x in (sums.count, sums.advantage))
    # A cell that some batch never saw has no independent second estimate; it is left out of the bias.
    is_seen_GCM = (count_GBCM > 0).all(axis=1)
    weight_GCM = np.where(is_seen_GCM, count_GBCM.sum(axis=1), 0.0)
    weight_G11 = np.maximum(weight_GCM.sum(axis=(1, 2), keepdims=True), 1)
    return total_GBCM / np.maximum(count_GBCM, 1), weight_GCM / weight_G11


def _square_batches(x_GBCM: np.ndarray) -> np.ndarray:
    """Mean over pairs of different batches of sum_CM x_b x_c: a squared mean without the batches' noise, [G]."""
    batches = x_GBCM.shape[1]
    pairs_GCM = np.square(x_GBCM.sum(axis=1)) - np.square(x_GBCM).sum(axis=1)
    return pairs_GCM.sum(axis=(1, 2)) / (batches * (batches - 1))


def compute_noise(figures: Figures, level: float) -> Interval:
    """Noise over signal of the gradient of one problem's draw: trace of its variance over its mean's squared norm.

    Args:
      figures: of one turn.
      level: coverage of the interval.

    Returns:
      The jackknife's interval of a coverage of `level`; NaN where the draws show no signal.
    """
    return compute_jackknife_interval(lambda kept: _divide_noise(figures, kept), len(figures.noise_G), level)


def compare_noise(figures: Figures, other: Figures, level: float) -> Interval:
    """Ratio of two estimators' noise over signal; NaN where the draws show no signal.

    Args:
      figures, other: of one turn, of the two on the same problems in the same order.
      level: coverage of the interval.
    """
    return compute_jackknife_interval(
        lambda kept: _divide_noise(figures, kept) / _divide_noise(other, kept), len(figures.noise_G), level
    )


def _divide_noise(figures: Figures, kept: np.ndarray) -> float:
    signal = figures.signal_G[kept].sum()
    return figures.noise_G[kept].sum() / signal if signal > 0 else np.nan


def compute_cosine(figures: Figures, level: float) -> Interval:
    """Cosine of the mean gradient of all problems, laid end to end, with the true one; NaN without a signal.

    Args:
      figures: of one turn.
      level: coverage of the interval.
    """

    def cosine(kept: np.ndarray) -> float:
        signal = figures.signal_G[kept].sum()
        return figures.along_G[kept].sum() / np.sqrt(signal * figures.truth_G[kept].sum()) if signal > 0 else np.nan

    return compute_jackknife_interval(cosine, len(figures.along_G), level)
