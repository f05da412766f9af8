"""A step's batch of trees, in which those without a signal are replaced by trees of further problems.

Further problems come in an order that is fixed before anything is drawn, and the first of them that have a signal take
the slots of those that have none: which trees train does not depend on how many are drawn in a call, and only what is
drawn beyond the last that was needed does. Source: dynamic sampling, DAPO, arXiv 2503.14476, section 3.2.

Dimension key beside types.py: none of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.credit.plans import Plan
from c3jax.models import sharding
from c3jax.rollout.branches import PlanDraws, join_credited
from c3jax.rollout.tree import RolloutCounts, take_problems
from c3jax.types import Credit, Rollout


class Batch(NamedTuple):
    """The trees that a step trains on, and all that were drawn for it."""

    draws: tuple[PlanDraws, ...]  # of the step's own problems, then of further ones
    rollouts: tuple[Rollout, ...]  # that train: the plan's branches with credited messages, of all problems
    return_PL: np.ndarray  # of these
    own_return_PL: np.ndarray  # of the step's own problems
    drawn_return_PL: np.ndarray  # of these and all further ones up to the last that was needed
    used: list[int]  # number of the problem, among all that were drawn, of each tree that trains
    judged: tuple[Credit, ...]  # of all trees, draw by draw, on the host; nothing where none may be replaced

    @property
    def counts(self) -> RolloutCounts:
        """What all of it cost."""
        return jax.tree.map(lambda *parts: sum(parts), *(drawn.counts for drawn in self.draws))


def draw_batch(  # noqa: PLR0913
    draw: Callable[[range], PlanDraws],
    plan: Plan,
    problems: int,
    further: int,
    size: int,
    judge: Callable[[Rollout, np.ndarray], tuple[np.ndarray, Credit]] | None,
    mesh: sharding.Mesh | None,
) -> Batch:
    """Draw a step's trees, and further ones in place of those without a signal while there are any left.

    Args:
      draw: draws and grades the trees of the problems of these numbers; the step's own are the first.
      plan: what is drawn of a problem.
      problems: of the batch (P).
      further: problems that may be drawn beside them, in calls of `size`.
      size: problems of a call; divides both.
      judge: tells which trees have a signal [P], and their credit; None replaces none.
      mesh: over which the trees are laid.

    Returns:
      The batch; slots for which no tree with a signal was found keep the tree that they had.
    """
    draws = [draw(range(problems))]
    rollouts, own_PL = tuple(join_credited(mesh, plan, draws[0])), _read_returns(draws[0], problems)
    return_PL, returns, used, judged, needed = own_PL, [own_PL], list(range(problems)), [], problems
    if judge is None:
        return Batch(tuple(draws), rollouts, own_PL, own_PL, own_PL, used, ())
    has_signal_P, credit = judge(rollouts[0], own_PL)
    judged.append(credit)
    empty, total = np.flatnonzero(~has_signal_P).tolist(), problems
    while empty and total < problems + further:
        count = min(-(-len(empty) // size) * size, problems + further - total)
        draws.append(draw(range(total, total + count)))
        more, more_PL = tuple(join_credited(mesh, plan, draws[-1])), _read_returns(draws[-1], count)
        has_signal_P, credit = judge(more[0], more_PL)
        judged.append(credit)
        returns.append(more_PL)
        found = np.flatnonzero(has_signal_P)[: len(empty)].tolist()
        row_P = np.arange(problems)
        for slot, number in zip(empty, found, strict=False):
            row_P[slot], used[slot] = problems + number, total + number
        rollouts = _take_rows(mesh, problems + count, row_P, rollouts, more)
        return_PL = np.concatenate([return_PL, more_PL])[row_P]
        needed = total + (found[-1] + 1 if len(found) == len(empty) else count)
        empty, total = empty[len(found) :], total + count
    drawn_PL = np.concatenate(returns)[:needed]
    return Batch(tuple(draws), rollouts, return_PL, own_PL, drawn_PL, used, tuple(judged))


def _read_returns(drawn: PlanDraws, problems: int) -> np.ndarray:
    return np.array([verdict.score for verdict in drawn.verdicts], np.float32).reshape(problems, -1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _take_rows(mesh: sharding.Mesh | None, problems: int, row_P: np.ndarray, *parts: Any) -> Any:
    """Of the problems of several batches, one after the other, those of these rows."""
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return sharding.shard_problems(mesh, take_problems(joined, problems, row_P))
