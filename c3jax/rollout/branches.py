"""A sampling plan drawn branch by branch, each of them a tree that goes on from messages of earlier ones.

A nested tree is one branch and one call; the other forms (alternatives along a transcript, auxiliary continuations,
copies without a message) are several. A branch is drawn of all problems before the next is begun; where what goes on
is what was worth most, its returns are waited for.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.credit.plans import Branch, Plan, list_branches, list_credited, list_leaves
from c3jax.models import sharding
from c3jax.rewards import Evaluator
from c3jax.rollout.collect import Drawn, draw_and_submit, pay_verdicts, share_verdicts
from c3jax.rollout.tree import RolloutCounts
from c3jax.types import Messages, Problem, Rollout, Verdict


class DrawBranch(Protocol):
    """Draws one branch of the problems of these numbers, on from the messages given."""

    def __call__(
        self, numbers: list[int], branch: Branch, given: tuple[Messages, ...]
    ) -> tuple[Rollout, RolloutCounts]:
        """Give the branch's trees, the given messages in them, and what the drawing cost.

        Args:
          numbers: of the problems.
          branch: of the plan.
          given: messages of its first turns, a row a start of each problem.
        """
        ...


class Ungraded(NamedTuple):
    """What was drawn of a batch of problems, its answers with the graders."""

    branches: tuple[list[Drawn], ...]  # call by call
    own: list[int]  # numbers of the problems that this process grades
    graded: list[list[Verdict]]  # best_branch: of each branch, by this process
    best: tuple[np.ndarray, ...]  # best_branch: of each branch, the alternative that the next one goes on with, [P]
    waited_s: float  # for verdicts, before the next branch could be drawn


class PlanDraws(NamedTuple):
    """What was drawn of a batch of problems, and what it was worth."""

    branches: tuple[list[Drawn], ...]  # call by call
    own: list[int]  # numbers of the problems that this process graded
    own_verdicts: list[Verdict]  # of these, problem by problem in the order of the plan's leaves
    verdicts: list[Verdict]  # of all problems
    best: tuple[np.ndarray, ...]  # as Ungraded
    waited_s: float  # for verdicts, when nothing more could be drawn

    @property
    def counts(self) -> RolloutCounts:
        """What all of it cost."""
        return jax.tree.map(lambda *parts: sum(parts), *(part.counts for calls in self.branches for part in calls))


def draw_plan(  # noqa: PLR0913
    draw: DrawBranch,
    plan: Plan,
    problems: Sequence[Problem],
    size: int,
    decode: Callable[[Messages], list[str]],
    evaluator: Evaluator,
    mesh: sharding.Mesh | None,
    null: tuple[int, ...] = (),
    begun: tuple[Rollout, RolloutCounts] | None = None,
) -> Ungraded:
    """Draw what a plan asks for of every problem, and give its leaves to be graded.

    Args:
      draw: as the step's sampler and policy do.
      plan: what is drawn of a problem.
      problems: all of them.
      size: problems of a call.
      decode: gives the texts of messages.
      evaluator: grades their answers, and nothing else until `collect_verdicts` has taken them.
      mesh: over which the trees are laid.
      null: tokens of the null message.
      begun: the first call of the first branch, where it is drawn already.

    Returns:
      The branches, whose verdicts `collect_verdicts` waits for.
    """
    branches = list_branches(plan)
    parts: list[list[Drawn]] = []
    best: list[np.ndarray] = []
    graded: list[list[Verdict]] = []  # by this process, of each branch
    waited_s = 0.0

    def draw_next(branch: Branch, numbers: list[int]) -> tuple[Rollout, RolloutCounts]:
        if not branch.given:
            return draw(numbers, branch, ())
        rollouts = tuple(calls[numbers[0] // size].rollout for calls in parts)
        chosen = tuple(sharding.shard_problems(mesh, best_P[numbers]) for best_P in best)
        return draw(numbers, branch, _take_given(mesh, branches, branch, null, rollouts, chosen))

    own: list[int] = []
    for branch in branches:
        advance = functools.partial(draw_next, branch)
        first = None if parts else begun
        parts.append(list(draw_and_submit(advance, problems, size, decode, evaluator, mesh, branch.calls, first)))
        own = [number for part in parts[-1] for number in part.own]
        if plan.form == "best_branch":
            began = time.perf_counter()
            graded.append(pay_verdicts(mesh, parts[-1], evaluator.collect(), branch.calls))
            waited_s += time.perf_counter() - began
            best.append(_find_best(plan, share_verdicts(own, graded[-1])))
    return Ungraded(tuple(parts), own, graded, tuple(best), waited_s)


def collect_verdicts(plan: Plan, drawn: Ungraded, evaluator: Evaluator, mesh: sharding.Mesh | None) -> PlanDraws:
    """Wait for the verdicts of what `draw_plan` drew.

    Args:
      plan, evaluator, mesh: as `draw_plan` was given.
      drawn: its result.
    """
    began, branches, graded = time.perf_counter(), list_branches(plan), drawn.graded
    if plan.form != "best_branch":
        verdicts, leaves = evaluator.collect(), [math.prod(branch.fan_out) * branch.calls for branch in branches]
        ends = np.cumsum([len(drawn.own) * count for count in leaves]).tolist()
        cut = [verdicts[first:end] for first, end in zip([0, *ends], ends, strict=False)]
        graded = [
            pay_verdicts(mesh, calls, verdicts, branch.calls)
            for calls, verdicts, branch in zip(drawn.branches, cut, branches, strict=True)
        ]
    waited_s = drawn.waited_s + time.perf_counter() - began
    own = _order_leaves(plan, graded, len(drawn.own))
    return PlanDraws(drawn.branches, drawn.own, own, share_verdicts(drawn.own, own), drawn.best, waited_s)


def join_credited(mesh: sharding.Mesh | None, plan: Plan, drawn: PlanDraws) -> list[Rollout]:
    """The branches that a learner reads, of all problems, without what follows their credited messages.

    Args:
      mesh: over which the trees are laid.
      plan: what was drawn of a problem.
      drawn: from `draw_plan`.

    Returns:
      A rollout a branch with credited messages, of all P problems.
    """
    rollouts = ([part.rollout for part in calls] for calls in drawn.branches)
    calls = [trim_credited(plan, of_call) for of_call in zip(*rollouts, strict=True)]
    return [sharding.join_problems(mesh, parts) for parts in zip(*calls, strict=True)]


def trim_credited(plan: Plan, rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """Of a plan's branches those with credited messages, without what follows these.

    Args:
      plan: what was drawn of a problem.
      rollouts: one a branch.
    """
    credited, kept = list_credited(plan), []
    for branch in range(max(credited) + 1):
        last = max(turn for turn, holder in enumerate(credited) if holder == branch)
        kept.append(rollouts[branch]._replace(turns=rollouts[branch].turns[: last + 1]))
    return tuple(kept)


def _find_best(plan: Plan, verdicts: Sequence[Verdict]) -> np.ndarray:
    """The alternative of highest mean return, the first of equals, of each problem."""
    score_PJC = np.array([verdict.score for verdict in verdicts]).reshape(-1, len(plan.counts), plan.counts[0])
    return score_PJC.mean(axis=2).argmax(axis=1).astype(np.int32)


def _order_leaves(plan: Plan, graded: Sequence[Sequence[Verdict]], problems: int) -> list[Verdict]:
    """Verdicts of branches as those of problems, each in the order of the plan's leaves."""
    ordered, order = [], list_leaves(plan)
    for number in range(problems):
        leaves: list[Verdict] = []
        for verdicts in graded:
            size = len(verdicts) // problems
            leaves += verdicts[number * size : (number + 1) * size]
        ordered += [leaves[leaf] for leaf in order]
    return ordered


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _take_given(
    mesh: sharding.Mesh | None,
    branches: tuple[Branch, ...],
    branch: Branch,
    null: tuple[int, ...],
    rollouts: tuple[Rollout, ...],
    best: tuple[jax.Array, ...],
) -> tuple[Messages, ...]:
    """The messages that a branch goes on from, a row a start of each problem.

    Args:
      mesh: over which the trees are laid.
      branches: all of the plan's.
      branch: that goes on.
      null: tokens of the null message.
      rollouts: of the earlier branches.
      best: of each earlier branch the alternative that goes on, [P], where that is found from the returns.
    """

    def take_own(rollouts: tuple[Rollout, ...], best: tuple[jax.Array, ...]) -> tuple[Messages, ...]:
        problems, given = len(rollouts[0].question.tokens_NS), []
        for turn, source in enumerate(branch.given):
            if source is None:
                given.append(fill_null(rollouts[0].turns[turn], problems * branch.fan_out[0], null))
                continue
            messages = rollouts[source.branch].turns[turn]
            row_PR = jnp.array(source.rows)[None] if source.rows else best[source.branch][:, None]
            first_P1 = jnp.arange(problems)[:, None] * math.prod(branches[source.branch].fan_out[: turn + 1])
            row_N = (first_P1 + row_PR).reshape(-1)
            given.append(jax.tree.map(lambda array, row_N=row_N: array[row_N], messages))
        return tuple(given)

    return sharding.map_problems(mesh, take_own, (sharding.CUT, sharding.CUT), sharding.CUT)(rollouts, best)


def fill_null(like: Messages, rows: int, null: tuple[int, ...]) -> Messages:
    """The null message, as long as a turn's messages may be; nothing of it was drawn.

    Args:
      like: messages of the turn.
      rows: how many.
      null: its tokens.
    """
    slots = like.tokens_NT.shape[1]
    token_T = jnp.zeros(slots, jnp.int32).at[: len(null)].set(jnp.array(null, jnp.int32))
    empty = jax.tree.map(lambda array: jnp.zeros((rows, *array.shape[1:]), array.dtype), like)
    return empty._replace(
        tokens_NT=jnp.broadcast_to(token_T, (rows, slots)),
        content_NT=jnp.broadcast_to(jnp.arange(slots) < len(null), (rows, slots)),
        support_NTK=jnp.full_like(empty.support_NTK, -1),
    )
