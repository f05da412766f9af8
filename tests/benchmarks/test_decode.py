"""The lengths that the decoding benchmark asks for, and the steps that it counts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import decode


@pytest.mark.parametrize(
    ("batches", "steps"),
    [
        # Tokens 1, 1, 1, 4: after the first token one row is alive, in a batch of all four or of one.
        (1, 3 * 4),
        (2, 3 * 2),
        (3, 3 * 1),
    ],
)
def test_rows_leave_in_so_many_sizes_of_batch(batches: int, steps: int):
    assert decode.count_row_steps(np.array([1, 1, 4, 1]), batches) == steps


def test_lengths_have_the_mean_and_the_tail_of_real_solutions():
    length_N = decode.choose_lengths(64, 200)
    # 32 quantiles twice, scaled to a mean of 0.4 * 200 = 80 tokens before the longest are cut off at 200.
    scale = 80.0 / np.mean(decode.SOLUTION_TOKENS)
    expected = [min(200, round(scale * tokens)) for tokens in decode.SOLUTION_TOKENS]
    assert sorted(length_N) == sorted(2 * expected)
