"""Several training sets in one run: whose problems a step takes, as a function of the seed and the step alone.

Problems of all sets are numbered slots, step by step. A set's slots are spread evenly by its weight, so after any
number of slots every set has had its share to within one a set before it. Each set is gone through in an order of its
own, new every epoch; an epoch is as many steps as surely find enough problems, so that no step meets one twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import PurePath

import numpy as np

from c3jax.types import Problem

# A problem's index is part of every draw's address: its set in the upper bits, its row in the lower ones, so that it
# stays the same whatever the sets before it hold, and is that of the row alone in the first set. There is room for
# 128 sets of 16 million rows.
_ROW_BITS = 24
_WEIGHTED, _FURTHER = 1, 2  # the last numbers of seeds that are not those of an epoch's order


def name_sets(paths: Sequence[str]) -> list[str]:
    """Short names of files: folder and file, as in gsm8k/train, or the whole paths where these are not distinct."""
    names = ["/".join(PurePath(path).with_suffix("").parts[-2:]).lstrip("/") for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def join_sets(names: Sequence[str], sets: Sequence[Sequence[Problem]]) -> list[Problem]:
    """Put sets behind each other. Of several sets, a problem's id is that of its set and its own: gsm8k/train:17."""
    return [
        problem._replace(
            index=index << _ROW_BITS | problem.index,
            id=f"{name}:{problem.id}" if len(sets) > 1 else problem.id,
        )
        for index, (name, problems) in enumerate(zip(names, sets, strict=True))
        for problem in problems
    ]


def find_set(problem: Problem) -> int:
    """The index of the set that a problem came from."""
    return problem.index >> _ROW_BITS


def count_most(weights: Sequence[float], size: int) -> list[int]:
    """The most problems of each set that a step of `size` problems can take."""
    shares = _compute_shares(weights)
    return [int(size * share + _bound_error(index, len(shares))) for index, share in enumerate(shares)]


def choose_indices(  # noqa: PLR0913
    counts: Sequence[int],
    weights: Sequence[float],
    size: int,
    entropy: tuple[int, ...],
    step: int,
    weight_N: np.ndarray | None = None,
) -> list[int]:
    """Indices of a step's problems in the sets behind each other, none twice.

    Args:
      counts: problems of each set; at least `count_most`.
      weights: of the sets, above 0; a set's share of all slots is its weight over their sum.
      size: problems a step.
      entropy: what the orders are drawn from, beside the set and the epoch.
      step: from 0.
      weight_N: of all problems, by which a set's are drawn from among them all; None goes through the set by epochs.
    """
    shares = _compute_shares(weights)
    begins, ends = _count_slots(shares, step * size), _count_slots(shares, (step + 1) * size)
    indices: list[int] = []
    for index, (count, share) in enumerate(zip(counts, shares, strict=True)):
        first, wanted = sum(counts[:index]), ends[index] - begins[index]
        if weight_N is not None:
            seeds = (*entropy, step, index, _WEIGHTED)
            indices += [first + row for row in _draw_weighted(weight_N[first : first + count], wanted, seeds)]
            continue
        steps = max(1, int((count - _bound_error(index, len(shares))) / (size * share)))
        epoch = step // steps
        begin = begins[index] - _count_slots(shares, epoch * steps * size)[index]
        # Trailing zeros do not count in a seed: the first set's orders are those of a run with one set.
        order = np.random.default_rng([*entropy, epoch, index]).permutation(count)
        indices += (first + order[begin : begin + wanted]).tolist()
    return indices


def choose_further(  # noqa: PLR0913
    counts: Sequence[int],
    weights: Sequence[float],
    size: int,
    entropy: tuple[int, ...],
    step: int,
    chosen: Sequence[int],
    weight_N: np.ndarray | None = None,
) -> list[int]:
    """Indices of further problems of a step, in the order in which they are taken, none twice and none that it has.

    They are drawn one after another by weights: a set's weight over its problems, or as `weight_N` cuts it.

    Args:
      counts, weights, entropy, step, weight_N: as for `choose_indices`.
      size: of these problems.
      chosen: the step's own problems.
    """
    within = np.split(np.ones(sum(counts)) if weight_N is None else weight_N, np.cumsum(counts)[:-1])
    further_N = np.concatenate([weight * part / part.sum() for weight, part in zip(weights, within, strict=True)])
    further_N[list(chosen)] = 0.0
    return _draw_weighted(further_N, size, (*entropy, step, _FURTHER))


def _draw_weighted(weight_N: np.ndarray, size: int, seeds: tuple[int, ...]) -> list[int]:
    """Indices drawn without replacement, each next one in proportion to the weights of those that are left.

    The largest of log w + Gumbel noise, in falling order. Source: Yellott 1977, J. Math. Psychology 15.
    """
    noise_N = np.random.default_rng(seeds).gumbel(size=len(weight_N))
    score_N = np.where(weight_N > 0.0, np.log(np.where(weight_N > 0.0, weight_N, 1.0)) + noise_N, -np.inf)
    return np.argsort(-score_N, kind="stable")[:size].tolist()


def _compute_shares(weights: Sequence[float]) -> list[Fraction]:
    exact = [Fraction(weight) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def _count_slots(shares: Sequence[Fraction], slots: int) -> list[int]:
    """How many of the first slots are each set's: the first set takes its share rounded down, the next of the rest.

    Each count grows by at most one a slot, because each is a rounded share of a count that does.
    """
    counts, rest, left = [], slots, Fraction(1)
    for share in shares[:-1]:
        counts.append(int(rest * share / left))
        rest, left = rest - counts[-1], left - share
    return [*counts, rest]


def _bound_error(index: int, sets: int) -> int:
    """By how much a set's slots in a row of them can exceed its share: one for each rounding on the way to it."""
    return min(index + 1, sets - 1)
