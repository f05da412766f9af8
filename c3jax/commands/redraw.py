"""Drawing on from recorded messages: a run's team, and what is recorded as its sampler is given it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp

from c3jax.credit.methods import find_method
from c3jax.models.policy import Weights
from c3jax.rewards import Evaluator
from c3jax.rollout import context, tree, visible
from c3jax.rollout.acting import Acting, Start, draw_trees
from c3jax.run.records import Record
from c3jax.setup.team import Setup, encode_null, open_environments
from c3jax.types import FanOut, Frame, Messages, Observed, Problem, Rollout, UserError


class Team(NamedTuple):
    """A run's team as a checkpoint has it."""

    setup: Setup
    weights: Weights
    sample_tree: tree.TreeSampler
    evaluator: Evaluator
    acting: Acting | None = None  # what answers turns in which no policy speaks


@contextmanager
def open_team(setup: Setup, weights: Weights) -> Iterator[Team]:
    """A run's team with graders, and with what answers turns in which no policy speaks, inside a `with` block."""
    with (
        Evaluator(setup.task.grade, setup.config.workers, setup.task.timeout_s) as evaluator,
        open_environments(setup) as acting,
    ):
        yield Team(setup, weights, make_sampler(setup), evaluator, acting)


def make_sampler(setup: Setup) -> tree.TreeSampler:
    """The sampling of the run's own trees, on one device."""
    config, stop_tokens = setup.config, setup.tokenizer.stop_tokens
    how = (config.sampling, stop_tokens, config.shapes.batches)
    # The run's own program: another may round otherwise.
    keeps_gradients = find_method(config.credit.method).reads == "gradients"
    return tree.make_tree_sampler(setup.policy, setup.plans, *how, keeps_gradients=keeps_gradients)


def find_problem(setup: Setup, name: str) -> tuple[Problem, Frame]:
    """A training problem of a run, and its question's frame. Raises UserError where there is none of that id."""
    for number, problem in enumerate(setup.train.problems):
        if problem.id == name:
            length = setup.config.protocol.question_tokens
            return problem, context.make_frame([setup.train.tokens[number]], length)
    raise UserError(f"--problem: expected a training problem of the run, got {name!r}")


def write_messages(setup: Setup, turn: int, nodes: Sequence[Record]) -> Messages:
    """Recorded messages as the sampler is given them; what it reads of them is their content.

    Args:
      setup: of the run.
      turn: whose messages they are.
      nodes: with `token_ids`, or with text None for the null message.
    """
    plan, stops = setup.plans[turn], set(setup.tokenizer.stop_tokens)
    rows = [list(encode_null(setup)) if node["text"] is None else node["token_ids"] for node in nodes]
    frame = context.make_frame([row[:-1] if row and row[-1] in stops else row for row in rows], plan.max_tokens)
    empty = jnp.zeros(frame.tokens_NS.shape, jnp.float32)
    support = jnp.full((*frame.tokens_NS.shape, setup.config.sampling.top_k), -1, jnp.int32)
    is_none = jnp.zeros(len(rows), bool)
    messages = Messages(frame.tokens_NS, frame.keep_NS, jnp.zeros_like(frame.keep_NS), empty, support, is_none)
    if not plan.is_environment:
        # Of what a role wrote its visible part is read, of the null message and one of the user's own all.
        is_written_N1 = jnp.array([["role" in node and node["text"] is not None] for node in nodes])
        read_NS = visible.narrow_content(plan, messages).content_NT
        return messages._replace(content_NT=jnp.where(is_written_N1, read_NS, frame.keep_NS))
    parts = ([node.get(name, 0) for node in nodes] for name in ("reward", "done", "failed"))
    reward, done, failed = (jnp.array(part) for part in parts)
    return messages._replace(observed=Observed(reward.astype(jnp.float32), done.astype(bool), failed.astype(bool)))


def draw_on(
    team: Team,
    problem: tuple[Problem, Frame],
    given: Sequence[Sequence[Record]],
    fan_out: FanOut,
    keys: tuple[jax.Array, jax.Array],
    first: tuple[int, ...],
) -> Rollout:
    """Draw one problem's tree on from recorded messages.

    Args:
      team: that is to speak.
      problem: and its question's frame.
      given: messages of the first turns, as many as fan_out says.
      fan_out: of the tree.
      keys: of messages, and of environments' episodes.
      first: number of the first message of each turn, by which it is addressed.

    Returns:
      The tree, on the host.
    """
    messages = tuple(write_messages(team.setup, turn, nodes) for turn, nodes in enumerate(given))
    problem_P = jnp.array([problem[0].index], jnp.int32)
    asked = ([problem[0]], problem[1], keys[0], problem_P, fan_out, Start(messages, first), keys[1])
    return jax.device_get(draw_trees(team.sample_tree, team.acting, team.weights, *asked)[0])
