"""All that a run compiles, with the shapes of what it is called with, on devices that need not be here."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from c3jax import evaluate, train
from c3jax.commands.target import Target
from c3jax.config.credit import make_plan, widen_fan_out
from c3jax.config.run import uses_reference
from c3jax.credit.plans import Plan, count_calls, list_branches
from c3jax.learner.likelihood import ReadAnswers
from c3jax.learner.state import TrainState, init_state
from c3jax.models import sharding
from c3jax.rollout import address
from c3jax.rollout.acting import outline_answers
from c3jax.rollout.branches import trim_credited
from c3jax.rollout.context import make_frame
from c3jax.rollout.tree import TreeSampler
from c3jax.setup.answers import outline_reading
from c3jax.setup.team import Setup
from c3jax.types import FanOut, Messages, Rollout


class Program(NamedTuple):
    """One of a run's jitted functions, with the shapes of what it is called with."""

    name: str
    when: str  # whose rows of the memory estimate it is: "trees", "update" or "evaluation"
    function: Any  # from jax.jit
    arguments: tuple[Any, ...]
    static: dict[str, Any]  # its static arguments
    calls: int  # in a step, or in an evaluation
    tensor: int  # parts in which the compiler cuts it
    beside: int = 0  # bytes that a device holds meanwhile and the program is not given


def list_programs(setup: Setup, target: Target) -> list[Program]:
    """All that a run compiles for its steps and evaluations, at the full length of its texts.

    Args:
      setup: from `outline_setup`.
      target: that its meshes are of.

    Returns:
      The sampler of trees, what reads right answers where the method does, the update, and a sampler for each profile
      of the evaluation; where environments answer turns, a sampler for each stretch between their answers.
    """
    config, is_apart = setup.config, setup.rollout_mesh is not None
    learning, drawing = (_Layout(target.devices[0], mesh) for mesh in (setup.mesh, setup.drawing_mesh))
    plan = make_plan(widen_fan_out(config.credit, len(setup.plans)), len(setup.plans))
    sample_tree, update, _, read = train.make_step(setup)
    programs, rollouts = _list_drawing(setup, drawing, plan, sample_tree, read)

    weights, state = learning.lay_state(setup.weights), learning.lay_state(_outline_state(setup))
    reference = None if not uses_reference(config.learner) else {} if setup.policy.kind == "adapters" else state.params
    return_PL = jax.ShapeDtypeStruct((config.problems, count_calls(plan)), jnp.float32)
    learned = (state, weights.frozen, reference, *learning.lay((rollouts, return_PL), sharding.CUT), learning.lay_key())
    programs.append(Program("update", "update", update, learned, {"plan": plan}, 1, learning.tensor))

    batch = evaluate.size_batch(setup, config.evaluation.problems)
    asked, calls = _outline_asked(setup, learning, batch), -(-config.evaluation.problems // batch)
    for profile in evaluate.list_profiles(setup):
        function, shape = evaluate.make_sampler(setup, profile)
        outline = _outline_calls(setup, function, asked, shape)
        programs += _list_samplers(learning, profile.name, "evaluation", function, outline, calls)
    beside = _count_bytes((state, weights.frozen, reference)) - _count_bytes(weights)
    does_hold = {"trees": not is_apart, "update": False, "evaluation": True}  # what it is not given of a run's state
    return [program._replace(beside=beside if does_hold[program.when] else 0) for program in programs]


class _Layout(NamedTuple):
    """Where a program runs."""

    device: Any  # of one without a mesh
    mesh: sharding.Mesh | None

    @property
    def tensor(self) -> int:
        """Parts in which the compiler cuts a program."""
        return 1 if self.mesh is None else self.mesh.shape["tensor"]

    def lay(self, tree: Any, spec: PartitionSpec = sharding.WHOLE) -> Any:
        """Shapes with where they are."""
        at = SingleDeviceSharding(self.device) if self.mesh is None else NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree)

    def lay_state(self, tree: Any) -> Any:
        """The same of a run's state."""
        return self.lay(tree) if self.mesh is None else sharding.list_shapes(self.mesh, tree)

    def lay_key(self) -> Any:
        """The same of an address's key."""
        return self.lay(jax.eval_shape(lambda: address.make_stream(0, address.TRAIN)))


class _Outline(NamedTuple):
    """Shapes of what is drawn of some problems, and of what each call that draws it goes on from."""

    asked: tuple[Any, ...]  # weights, question, key and problem_P of every call
    fan_out: FanOut
    first: tuple[int, ...]
    given: list[tuple[Messages, ...]]  # of each call of the sampler, the last of which draws the last turn
    rollout: Rollout


def _list_drawing(
    setup: Setup, layout: _Layout, plan: Plan, sample_tree: TreeSampler, read: ReadAnswers | None
) -> tuple[list[Program], tuple[Rollout, ...]]:
    """What draws a step's trees, and the shapes of all that it draws for credit."""
    config, drawn = setup.config, setup.config.call_problems
    asked, calls = _outline_asked(setup, layout, drawn), config.problems // drawn
    outlines, programs = _outline_branches(setup, sample_tree, plan, asked), []
    for number, outline in enumerate(outlines):
        name = "trees" if plan.form == "tree" else f"branch {number}"
        programs += _list_samplers(layout, name, "trees", sample_tree, outline, calls)
    whole = _outline_branches(setup, sample_tree, plan, _outline_asked(setup, layout, config.problems))
    rollouts = [outline.rollout for outline in whole]
    if read is not None:
        trees, weights = (outlines[0].rollout, rollouts[0]), asked[0]
        (given, _), (_, after) = (outline_reading(read, weights, each, plan.fan_out) for each in trees)
        given, rollouts = (weights, *layout.lay(given, sharding.CUT)), [after]
        programs.append(Program("answers", "trees", read, given, {"fan_out": plan.fan_out}, calls, layout.tensor))
    return programs, trim_credited(plan, rollouts)


def _list_samplers(
    layout: _Layout, name: str, when: str, function: Any, outline: _Outline, calls: int
) -> Iterator[Program]:
    """One of each stretch between answers of environments."""
    names = [name] if len(outline.given) == 1 else [f"{name} {number}" for number in range(len(outline.given))]
    for each, given in zip(names, outline.given, strict=True):
        arguments = (*outline.asked, outline.fan_out, layout.lay(given, sharding.CUT), outline.first)
        yield Program(each, when, function, arguments, {}, calls, layout.tensor)


def _outline_asked(setup: Setup, layout: _Layout, problems: int) -> tuple[Any, ...]:
    """Weights, question, key and problem_P, as a sampler is given them."""
    slots = setup.config.protocol.question_tokens
    frame, index_P = jax.eval_shape(lambda: (make_frame([[]] * problems, slots), jnp.zeros(problems, jnp.int32)))
    laid = layout.lay((frame, index_P), sharding.CUT)
    return layout.lay_state(setup.weights), laid[0], layout.lay_key(), laid[1]


def _outline_branches(setup: Setup, sample_tree: TreeSampler, plan: Plan, asked: tuple[Any, ...]) -> list[_Outline]:
    outlines: list[_Outline] = []
    for branch in list_branches(plan):
        rows, given = len(asked[-1]) * branch.fan_out[0], []
        for turn in range(len(branch.given)):
            like = outlines[0].rollout.turns[turn]
            given.append(
                jax.tree.map(lambda leaf, n=rows: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), like)
            )
        outlines.append(_outline_calls(setup, sample_tree, asked, branch.fan_out, tuple(given), branch.first))
    return outlines


def _outline_calls(  # noqa: PLR0913
    setup: Setup,
    sample_tree: TreeSampler,
    asked: tuple[Any, ...],
    fan_out: FanOut,
    given: tuple[Messages, ...] = (),
    first: tuple[int, ...] = (),
) -> _Outline:
    """What `acting.draw_trees` calls: the sampler, again after every turn that an environment answers."""
    problems, calls = len(asked[-1]), []
    draw = functools.partial(sample_tree, fan_out=fan_out)
    while True:
        calls.append(given)
        rollout, _ = jax.eval_shape(draw, *asked, given=given, first=first)
        given = rollout.turns
        for turn, plan in list(enumerate(setup.plans))[len(given) :]:
            if not plan.is_environment:
                break
            given = (*given, outline_answers(problems * math.prod(fan_out[: turn + 1]), plan.max_tokens))
        if len(given) == len(setup.plans):
            return _Outline(asked, fan_out, first, calls, rollout._replace(turns=given))


def _outline_state(setup: Setup) -> TrainState:
    config = setup.config
    return jax.eval_shape(
        lambda weights: init_state(
            setup.policy, weights, setup.plans, config.credit, config.learner, config.async_steps > 0
        ),
        setup.weights,
    )


def _count_bytes(tree: Any) -> int:
    """Bytes that one device holds of arrays with these shapes."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
