"""A step's trees: its problems, what is drawn of them and graded, and what is recorded of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from c3jax import processes
from c3jax.credit.plans import Branch, Plan
from c3jax.learner.adapt import Passes, weigh_problems
from c3jax.learner.signal import Judge, find_signal
from c3jax.learner.state import TrainState
from c3jax.models.policy import Weights
from c3jax.rewards import Evaluator
from c3jax.rollout import address, tree
from c3jax.rollout.acting import Acting, Start, draw_trees
from c3jax.rollout.branches import PlanDraws, draw_plan
from c3jax.rollout.collect import fetch_messages
from c3jax.rollout.redraw import Batch, draw_batch
from c3jax.run import records
from c3jax.setup.team import (
    Setup,
    choose_further,
    choose_problems,
    choose_slots,
    decode_messages,
    make_questions,
    write_turns,
)
from c3jax.types import Credit, Messages, Rollout


class Drawing(NamedTuple):
    """What draws and grades a run's trees."""

    sample_tree: tree.TreeSampler
    judge: Judge | None  # of the trees that may be replaced; None where none is
    null: tuple[int, ...]  # tokens of the message that stands for one that is taken out
    evaluator: Evaluator
    acting: Acting | None


def choose_indices(setup: Setup, passes: Passes | None, step: int) -> list[int]:
    """Indices of a step's problems in the training set, and behind them of those that may be drawn in their place.

    Args:
      setup: of the run.
      passes: of earlier steps; None without a curriculum.
      step: from 0.
    """
    section = setup.config.curriculum
    weight_N = None if section is None or passes is None else weigh_problems(section, passes)
    chosen = choose_problems(setup, step, weight_N)
    return [*chosen, *choose_further(setup, step, chosen, weight_N)]


def draw_step(
    setup: Setup, drawing: Drawing, state: TrainState, plan: Plan, step: int, indices: Sequence[int]
) -> Batch:
    """Draw a step's trees.

    Args:
      setup, drawing: of the run.
      state: before the step.
      plan: what is drawn of a problem.
      step: from 0.
      indices: from `choose_indices`.

    Returns:
      The batch; problems are numbered as in `indices`.
    """
    config = setup.config
    key = jax.random.fold_in(address.make_stream(config.seed, address.TRAIN), step)
    weights, slots = Weights(state.params, setup.weights.frozen), choose_slots(setup, setup.train, indices)
    size, problems = config.rollout_problems or config.problems, [setup.train.problems[index] for index in indices]

    def draw_some(chosen: range) -> PlanDraws:
        def draw(numbers: list[int], branch: Branch, given: tuple[Messages, ...]) -> tuple[Rollout, tree.RolloutCounts]:
            taken = [chosen[number] for number in numbers]
            question, problem_P = make_questions(setup, setup.train, [indices[number] for number in taken], slots)
            asked = ([problems[number] for number in taken], question, key, problem_P, branch.fan_out)
            return draw_trees(drawing.sample_tree, drawing.acting, weights, *asked, Start(given, branch.first))

        decode = functools.partial(decode_messages, setup.tokenizer)
        asked = [problems[number] for number in chosen]
        return draw_plan(draw, plan, asked, size, decode, drawing.evaluator, setup.mesh, drawing.null)

    components = None if state.adaptive is None else state.adaptive.components
    judge = None if drawing.judge is None else functools.partial(drawing.judge, plan, components)
    return draw_batch(draw_some, plan, config.problems, len(indices) - config.problems, size, judge, setup.mesh)


def record_step(
    setup: Setup, plan: Plan, step: int, indices: Sequence[int], batch: Batch, credit: Credit
) -> list[dict[str, Any]]:
    """The records of a step's trees, of all processes: each makes those of the problems that it grades.

    Args:
      setup, plan, step, indices: as for `draw_step`.
      batch: what that gave.
      credit: of the trees that train; others are recorded with what they were judged by.
    """
    made, first, is_used_P = [], 0, np.ones(setup.config.problems, bool)
    if setup.config.learner.zero_signal != "keep":
        trained = [turn for turn, plan in enumerate(setup.plans) if plan.is_trained]
        is_used_P = np.asarray(find_signal(credit, trained))
    for number, drawn in enumerate(batch.draws):
        count = sum(part.kept for part in drawn.branches[0])
        slots = {used - first: slot for slot, used in enumerate(batch.used) if first <= used < first + count}
        given = credit
        if batch.judged:
            rows, of = list(slots), list(slots.values())
            put = functools.partial(_put_rows, rows=rows, of=of)
            given = jax.tree.map(put, batch.judged[number], credit)
        chosen = indices[first : first + count]
        is_used = [row in slots and bool(is_used_P[slots[row]]) for row in range(count)]
        made += _record_trees(setup, plan, step, chosen, drawn, given, is_used)
        first += count
    return made


def _put_rows(judged_PN: Any, given_PN: Any, rows: list[int], of: list[int]) -> np.ndarray:
    credit_PN = np.array(judged_PN)
    credit_PN[rows] = np.asarray(given_PN)[of]
    return credit_PN


def _record_trees(  # noqa: PLR0913
    setup: Setup,
    plan: Plan,
    step: int,
    indices: Sequence[int],
    drawn: PlanDraws,
    credit: Credit,
    is_used: Sequence[bool],
) -> list[dict[str, Any]]:
    own, written = drawn.own, []
    for calls in drawn.branches:
        parts = [fetch_messages(setup.mesh, part.rollout, part.kept) for part in calls]
        turns: tuple[Messages, ...] = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        written.append(write_turns(setup, turns))
    credit = jax.tree.map(lambda value_PN: np.asarray(value_PN)[own], credit)
    of_own = [setup.train.problems[indices[number]] for number in own]
    best = [best_P[own] for best_P in drawn.best]
    made = records.make_records(setup.config, plan, step, of_own, written, credit, drawn.own_verdicts, best)
    made = [record if is_used[number] else record | {"used": False} for number, record in zip(own, made, strict=True)]
    return processes.share_rows(own, made)
