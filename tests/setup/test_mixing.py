"""Whose problems a step takes: shares, epochs, and nothing but the seed and the step."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from c3jax.setup.mixing import choose_further, choose_indices, count_most, find_set, join_sets, name_sets
from c3jax.types import Problem

ENTROPY = (7, 4)
MIXTURES = [  # problems of the sets, weights, problems a step
    ((12,), (1.0,), 5),
    ((30, 20), (1.0, 1.0), 4),
    ((50, 7, 9), (3.0, 1.0, 0.5), 8),
    ((40, 2), (9.75, 0.25), 5),  # a problem of the second set every eighth step
    ((11, 13, 17, 19), (0.1, 0.7, 0.15, 0.05), 13),
    ((5, 3), (5.0, 3.0), 8),  # as many problems as a step takes, at the most
]


def take(counts, weights, size, steps) -> list[list[list[int]]]:
    """Places by step and set, from 0 in each set."""
    starts = np.cumsum([0, *counts])
    taken = []
    for step in range(steps):
        places = choose_indices(counts, weights, size, ENTROPY, step)
        assert len(places) == len(set(places)) == size  # no problem twice in a step
        parts = zip(starts[:-1], starts[1:], strict=True)
        taken.append([[each - low for each in places if low <= each < high] for low, high in parts])
    return taken


@pytest.mark.parametrize(("counts", "weights", "size"), MIXTURES)
def test_sets_get_their_shares_and_every_problem_its_turn(counts, weights, size):
    counts = tuple(map(max, counts, count_most(weights, size)))
    steps = 400
    taken = take(counts, weights, size, steps)
    total = sum(map(Fraction, weights))
    for place, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        drawn = np.cumsum([len(step[place]) for step in taken])
        share = [float(size * (step + 1) * Fraction(weight) / total) for step in range(steps)]
        assert np.abs(drawn - share).max() < len(counts)  # a rounding for each set at the most
        assert drawn[-1] > 0
        stream = [each for step in taken for each in step[place]]
        times = np.bincount(stream, minlength=count)
        if len(stream) > 20 * count:
            # Every epoch leaves out fewer than a step's problems and the roundings, at random.
            assert times.min() > 0 and times.max() <= 2 * len(stream) / count + 10


def test_an_epoch_meets_no_problem_twice():
    """Two equal sets, four a step: 2 of each, so 30 problems last (30 - 1) // 2 = 14 steps and 20 last 9."""
    taken = take((30, 20), (1.0, 1.0), 4, 126)
    for place, steps in ((0, 14), (1, 9)):
        epochs = [sum((step[place] for step in taken[first : first + steps]), []) for first in range(0, 126, steps)]
        assert all(len(set(epoch)) == len(epoch) == 2 * steps for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in an order of its own


def test_one_set_is_taken_as_it_was_before_there_were_several():
    """Epochs of whole steps, each a permutation drawn from the seed, the stream and the epoch."""
    for step in range(9):
        epoch, place = divmod(step, 12 // 5)
        order = np.random.default_rng([*ENTROPY, epoch]).permutation(12)
        assert choose_indices((12,), (0.3,), 5, ENTROPY, step) == order[5 * place : 5 * place + 5].tolist()


def test_weights_are_relative_and_sets_are_in_orders_of_their_own():
    assert choose_indices((9, 9), (1.0, 2.0), 6, ENTROPY, 3) == choose_indices((9, 9), (10.0, 20.0), 6, ENTROPY, 3)
    first, second = take((40, 40), (1.0, 1.0), 40, 1)[0]
    assert first != second
    assert choose_indices((40, 40), (1.0, 1.0), 40, (8, 4), 0) != choose_indices((40, 40), (1.0, 1.0), 40, ENTROPY, 0)


def test_a_curriculum_draws_by_weights_within_each_sets_share():
    """Of 20 problems two weigh 9 times as much as each other one: 18 of 36 where one is drawn, so half of the time."""
    weight_N = np.array([9.0, 9.0] + [1.0] * 18)
    first = [choose_indices((20,), (1.0,), 1, ENTROPY, step, weight_N)[0] for step in range(2000)]
    assert abs(np.mean(np.array(first) < 2) - 0.5) < 4 * 0.5 / 2000**0.5
    for step in range(50):
        mixed = choose_indices((12, 8), (1.0, 3.0), 8, ENTROPY, step, weight_N)
        assert len(set(mixed)) == 8 and sum(index < 12 for index in mixed) == 2  # as without weights
        assert mixed == choose_indices((12, 8), (1.0, 3.0), 8, ENTROPY, step, 7.0 * weight_N)
    assert choose_indices((20,), (1.0,), 8, ENTROPY, 0, weight_N) != choose_indices(
        (20,), (1.0,), 8, ENTROPY, 1, weight_N
    )


def test_further_problems_are_others_in_an_order_of_their_own():
    for step in range(200):
        chosen = choose_indices((12, 8), (1.0, 3.0), 4, ENTROPY, step)
        further = choose_further((12, 8), (1.0, 3.0), 16, ENTROPY, step, chosen)
        assert sorted(chosen + further) == list(range(20))  # all the others, each once
        assert further[:5] == choose_further((12, 8), (1.0, 3.0), 5, ENTROPY, step, chosen)
    # A set's share of the first of them is its weight over the weights, where none of either is taken yet.
    first = [choose_further((12, 8), (1.0, 3.0), 1, ENTROPY, step, [])[0] for step in range(2000)]
    assert abs(np.mean(np.array(first) >= 12) - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5
    weight_N = np.array([1.0] * 12 + [1.0] * 7 + [21.0])
    first = [choose_further((12, 8), (1.0, 3.0), 1, ENTROPY, step, [], weight_N)[0] for step in range(2000)]
    assert abs(np.mean(np.array(first) == 19) - 0.75 * 0.75) < 4 * 0.5 / 2000**0.5  # 21 of 28 of its set


def test_problems_keep_their_index_and_get_ids_of_their_own():
    first = [Problem(0, "0", "q", "1"), Problem(5, "x", "r", "2")]
    second = [Problem(0, "0", "s", "3")]
    assert join_sets(["a"], [first]) == first
    joined = join_sets(["a", "b"], [first, second])
    assert [each.id for each in joined] == ["a:0", "a:x", "b:0"]
    assert [each.index for each in joined] == [0, 5, 1 << 24] and list(map(find_set, joined)) == [0, 0, 1]
    # A longer first set moves no other set's problems.
    assert join_sets(["a", "b"], [[*first, Problem(6, "y", "t", "4")], second])[-1] == joined[-1]
    assert join_sets(["x"] * 128, [second] * 128)[-1].index < 2**31  # an int32 on the device


def test_sets_are_named_shortly_and_apart():
    assert name_sets(["/data/gsm8k/train.jsonl", "math/train.jsonl"]) == ["gsm8k/train", "math/train"]
    assert name_sets(["train.jsonl", "/x.jsonl"]) == ["train", "x"]
    assert name_sets(["/a/gsm8k/train.jsonl", "/b/gsm8k/train.jsonl"]) == [
        *("/a/gsm8k/train.jsonl", "/b/gsm8k/train.jsonl")
    ]
