"""A step's trees: its problems, what is drawn of them and graded, and what is recorded of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from c3jax import processes
from c3jax.credit.plans import Branch, Plan, list_branches
from c3jax.learner.adapt import Passes, weigh_problems
from c3jax.learner.likelihood import ReadAnswers
from c3jax.learner.signal import Judge, find_signal
from c3jax.learner.state import TrainState
from c3jax.models import sharding
from c3jax.models.policy import Weights
from c3jax.rewards import Evaluator
from c3jax.rollout import address, tree
from c3jax.rollout.acting import Acting, Start, count_answers, draw_trees
from c3jax.rollout.branches import PlanDraws, Ungraded, collect_verdicts, draw_plan
from c3jax.rollout.collect import fetch_messages
from c3jax.rollout.resampling import Batch, draw_batch
from c3jax.run import records
from c3jax.setup.answers import make_answers
from c3jax.setup.team import (
    Setup,
    choose_further,
    choose_problems,
    choose_slots,
    decode_messages,
    make_questions,
    write_turns,
)
from c3jax.types import Credit, Messages, Params, Rollout


class Drawing(NamedTuple):
    """What draws and grades a run's trees."""

    setup: Setup  # from `make_drawer`
    sample_tree: tree.TreeSampler
    judge: Judge | None  # of the trees that may be replaced; None where none is
    null: tuple[int, ...]  # tokens of the message that stands for one that is taken out
    evaluator: Evaluator
    acting: Acting | None
    read: ReadAnswers | None = None  # right answers, for a method that reads how likely they are


class Begun(NamedTuple):
    """A step of which the device draws the first trees."""

    step: int
    plan: Plan
    indices: list[int]  # of its problems, and behind them of those that may be drawn in their place
    # Of trained weights, for an update since may have given up the buffers that the first were drawn by; and then as
    # DrawBranch.
    draw: Callable[..., tuple[Rollout, tree.RolloutCounts]]
    first: tuple[Rollout, tree.RolloutCounts]
    answered: int  # calls of environments in it
    seconds: float


def _choose_indices(setup: Setup, passes: Passes | None, step: int) -> list[int]:
    section = setup.config.curriculum
    weight_N = None if section is None or passes is None else weigh_problems(section, passes)
    chosen = choose_problems(setup, step, weight_N)
    return [*chosen, *choose_further(setup, step, chosen, weight_N)]


def make_drawer(setup: Setup) -> Setup:
    """The set-up that draws trees: where devices of their own do it, that of their mesh, with frozen weights there."""
    if setup.rollout_mesh is None:
        return setup
    frozen = sharding.shard_state(setup.rollout_mesh, setup.weights.frozen)
    return setup._replace(mesh=setup.rollout_mesh, weights=Weights({}, frozen))


def begin_step(drawing: Drawing, params: Params, passes: Passes | None, plan: Plan, step: int) -> Begun:
    """Choose a step's problems and begin to draw their first trees; what the device does is not waited for.

    Args:
      drawing: of the run.
      params: the trained weights that draw them.
      passes: of earlier steps, by which problems are chosen; None without a curriculum.
      plan: what is drawn of a problem.
      step: from 0.
    """
    began, setup, answered_before = time.perf_counter(), drawing.setup, count_answers(drawing.acting)
    config = setup.config
    key = address.make_step_key(config.seed, address.TRAIN, step)
    indices = _choose_indices(setup, passes, step)
    slots, problems = choose_slots(setup, setup.train, indices), [setup.train.problems[index] for index in indices]

    def draw(
        params: Params, numbers: Sequence[int], branch: Branch, given: tuple[Messages, ...]
    ) -> tuple[Rollout, tree.RolloutCounts]:
        question, problem_P = make_questions(setup, setup.train, [indices[number] for number in numbers], slots)
        asked = ([problems[number] for number in numbers], question, key, problem_P, branch.fan_out)
        if setup.rollout_mesh is not None:
            params = sharding.shard_state(setup.mesh, params)
        weights = Weights(params, setup.weights.frozen)
        drawn = draw_trees(drawing.sample_tree, drawing.acting, weights, *asked, Start(given, branch.first))
        if drawing.read is None:
            return drawn
        answers = sharding.shard_problems(setup.mesh, make_answers(setup, asked[0], config.shapes.lengths))
        rollout, tokens = drawing.read(weights, drawn[0], answers, branch.fan_out)
        return rollout, drawn[1]._replace(prefilled=drawn[1].prefilled + tokens)

    first = draw(params, range(config.call_problems), list_branches(plan)[0], ())
    answered = count_answers(drawing.acting) - answered_before
    return Begun(step, plan, indices, draw, first, answered, time.perf_counter() - began)


def draw_step(drawing: Drawing, params: Params, begun: Begun) -> Ungraded:
    """Draw the rest of a step's own trees, and give their leaves to be graded.

    Args:
      drawing: of the run.
      params: that drew the first trees.
      begun: from `begin_step`.
    """
    return _draw_some(drawing, params, begun, range(drawing.setup.config.problems))


def grade_step(drawing: Drawing, state: TrainState, begun: Begun, asked: Ungraded) -> Batch:
    """Wait for a step's verdicts, and draw further trees in place of those without a signal, where the run does.

    Args:
      drawing: of the run.
      state: before the step.
      begun, asked: from `begin_step` and `draw_step`.

    Returns:
      The batch; problems are numbered as in `begun.indices`.
    """
    setup, plan = drawing.setup, begun.plan
    config = setup.config

    def grade(chosen: range) -> PlanDraws:
        drawn = _draw_some(drawing, state.sampler_params, begun, chosen) if chosen.start else asked
        return collect_verdicts(plan, drawn, drawing.evaluator, setup.mesh)

    components = None if state.adaptive is None else state.adaptive.components
    judge = None if drawing.judge is None else functools.partial(drawing.judge, plan, components)
    further = len(begun.indices) - config.problems
    return draw_batch(grade, plan, config.problems, further, config.call_problems, judge, setup.mesh)


def _draw_some(drawing: Drawing, params: Params, begun: Begun, chosen: range) -> Ungraded:
    setup = drawing.setup

    def draw(numbers: list[int], branch: Branch, given: tuple[Messages, ...]) -> tuple[Rollout, tree.RolloutCounts]:
        return begun.draw(params, [chosen[number] for number in numbers], branch, given)

    size, first = setup.config.call_problems, None if chosen.start else begun.first
    asked = [setup.train.problems[begun.indices[number]] for number in chosen]
    decode = functools.partial(decode_messages, setup.tokenizer)
    return draw_plan(draw, begun.plan, asked, size, decode, drawing.evaluator, setup.mesh, drawing.null, first)


def record_step(setup: Setup, begun: Begun, batch: Batch, credit: Credit) -> list[dict[str, Any]]:
    """The records of a step's trees, of all processes: each makes those of the problems that it grades.

    Args:
      setup: of the run, from `make_drawer`.
      begun: from `begin_step`.
      batch: from `grade_step`.
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
        chosen = begun.indices[first : first + count]
        is_used = [row in slots and bool(is_used_P[slots[row]]) for row in range(count)]
        made += _record_trees(setup, begun.plan, begun.step, chosen, drawn, given, is_used)
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
