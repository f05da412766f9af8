"""Turns that an environment answers: a host step between two calls of the sampler.

A call of the sampler draws the turns up to the next that no policy speaks in. There the messages so far come to the
host, worker processes lead every episode from its beginning to the answer (tasks/environment.py), and the answers go
on as messages of which nothing was drawn. Equal transcripts of a problem are answered once.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.models import sharding
from c3jax.models.policy import Weights
from c3jax.processes import share_rows
from c3jax.protocol import TurnPlan
from c3jax.rewards import CallKind, Evaluator
from c3jax.rollout.collect import Drawn, decode_messages, fetch_messages
from c3jax.rollout.tree import RolloutCounts, TreeSampler, find_skipped
from c3jax.tasks.environment import Answer, Call, Message, Observation, Opened, make_failed, run_call
from c3jax.types import FanOut, Frame, Messages, Observed, Problem, Rollout, Tokenizer, UserError


class Acting(NamedTuple):
    """What answers the turns of environments."""

    evaluator: Evaluator  # of calls of `run_call`
    turns: tuple[int | None, ...]  # which environment answers each turn; None: a policy speaks
    plans: tuple[TurnPlan, ...]
    tokenizer: Tokenizer
    mesh: sharding.Mesh | None


class Start(NamedTuple):
    """What a tree goes on from, where it does not begin."""

    given: tuple[Messages, ...] = ()  # messages of the first turns
    first: tuple[int, ...] = ()  # number of a problem's first message of each turn, for the address


@contextlib.contextmanager
def open_acting(
    opened: Opened,
    workers: int,
    plans: tuple[TurnPlan, ...],
    tokenizer: Tokenizer,
    mesh: sharding.Mesh | None = None,
    problem: Problem | None = None,
) -> Iterator[Acting | None]:
    """Start the worker processes that environments run in, inside a `with` block.

    Args:
      opened: the protocol's environments; with none of them nothing is started.
      workers: processes.
      plans, tokenizer, mesh: the team's.
      problem: one that they are tried on.

    Yields:
      What `draw_trees` takes.

    Raises:
      UserError: an environment answers the same messages of the same episode otherwise the second time.
    """
    if not opened.environments:
        yield None
        return
    run = functools.partial(run_call, opened.environments)
    with Evaluator(run, workers, opened.timeout_s, CallKind(Answer, Answer, make_failed)) as evaluator:
        if problem is not None:
            _try_environments(evaluator, opened, problem)
        yield Acting(evaluator, opened.turns, plans, tokenizer, mesh)


def _try_environments(evaluator: Evaluator, opened: Opened, problem: Problem) -> None:
    heard = (Message("try", "try", problem.question),)
    calls = [Call(number, 0, (heard,)) for number in range(len(opened.environments)) for _ in range(2)]
    answers = evaluator.score([problem] * len(calls), calls, budget=len(calls))
    for number, (one, other) in enumerate(zip(answers[::2], answers[1::2], strict=True)):
        if one.observations != other.observations and not (one.failure or other.failure):
            first, second = (answer.observations[0][0] for answer in (one, other))
            raise UserError(
                f"protocol.turns.{opened.turns.index(number)}.environment: expected one that answers the same messages"
                " of the same problem and seed the same, or its state could not be restored for alternatives, got"
                f" {first!r:.60} and then {second!r:.60}"
            )


class _Reply(NamedTuple):
    """An environment's answer as its message has it; the fields are JSON's types."""

    tokens: list[int]
    is_cut: bool
    reward: float
    is_done: bool
    has_failed: bool


def draw_trees(  # noqa: PLR0913
    sample_tree: TreeSampler,
    acting: Acting | None,
    weights: Weights,
    problems: Sequence[Problem],
    question: Frame,
    key: jax.Array,
    problem_P: jax.Array,
    fan_out: FanOut,
    start: Start | None = None,
    episode_key: jax.Array | None = None,
) -> tuple[Rollout, RolloutCounts]:
    """Draw a tree a problem, with the answers of environments in it.

    Args:
      sample_tree, weights, question, key, problem_P, fan_out: the sampler and what it takes.
      acting: what answers; None for a protocol of policies alone.
      problems: P of them, as the environments are given them.
      start: what the trees go on from; None: they begin with the question.
      episode_key: by which episodes are addressed; None takes the step's own.

    Returns:
      The trees, and what the policies' messages in them cost.
    """
    start = start or Start()
    rollout, counts = sample_tree(weights, question, key, problem_P, fan_out, start.given, start.first)
    if acting is None:
        return rollout, counts
    episode_key = key if episode_key is None else episode_key
    while (turn := len(rollout.turns)) < len(acting.plans):
        answered = answer_turn(acting, problems, episode_key, rollout, math.prod(fan_out[: turn + 1]))
        rollout = rollout._replace(turns=(*rollout.turns, answered))
        if turn + 1 < len(acting.plans) and not acting.plans[turn + 1].is_environment:
            rollout, more = sample_tree(weights, question, key, problem_P, fan_out, rollout.turns, start.first)
            counts = jax.tree.map(lambda one, other: one + other, counts, more)
    return rollout, counts


def count_answers(acting: Acting | None) -> int:
    """Calls of environments so far, by this process."""
    return 0 if acting is None else acting.evaluator.calls


def describe_observed(drawn: Sequence[Drawn]) -> dict[str, float]:
    """Means over all answers of environments: their reward, and the shares that ended an episode or failed."""
    observed = [turn.observed for part in drawn for turn in part.rollout.turns if turn.observed is not None]
    parts = [jnp.concatenate([part.astype(jnp.float32) for part in parts]) for parts in zip(*observed, strict=True)]
    names = ("environment_reward", "environment_done_share", "environment_failed_share")
    return {name: float(part_N.mean()) for name, part_N in zip(names, parts, strict=True)}


def _address_episodes(key: jax.Array, problems: Sequence[Problem]) -> list[int]:
    """A seed for the episodes of each problem."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return [int(np.random.SeedSequence([*words, problem.index]).generate_state(1)[0]) for problem in problems]


def answer_turn(
    acting: Acting, problems: Sequence[Problem], key: jax.Array, rollout: Rollout, per_problem: int
) -> Messages:
    """What environments answer to transcripts, in the turn that comes next.

    Args:
      acting: what answers.
      problems: P of them.
      key: by which episodes are addressed.
      rollout: the messages so far.
      per_problem: transcripts of a problem.

    Returns:
      The messages, P * per_problem of them.
    """
    turn, seeds = len(rollout.turns), _address_episodes(key, problems)
    own = sharding.list_own(acting.mesh, len(problems))
    turns = fetch_messages(acting.mesh, rollout, len(problems))
    texts = [decode_messages(acting.tokenizer, messages) for messages in turns]
    skipped = find_skipped(acting.plans[turn], turns, len(own) * per_problem)
    skipped_N = np.zeros(len(own) * per_problem, bool) if skipped is None else np.asarray(skipped)
    asked: dict[tuple[int, Call], list[int]] = {}  # rows that are the same transcript of a problem
    for row in range(len(own) * per_problem):
        if not skipped_N[row]:
            number = own[row // per_problem]
            parts = _cut_episode(acting, texts, turn, row, len(own) * per_problem)
            call = Call(acting.turns[turn] or 0, seeds[number], parts)
            asked.setdefault((problems[number].index, call), []).append(row)
    rows_of_calls = list(asked.values())
    numbers = [own[rows[0] // per_problem] for rows in rows_of_calls]
    calls = [call for _, call in asked]
    answers = acting.evaluator.score([problems[number] for number in numbers], calls, budget=len(calls))
    replies = [_Reply([], False, 0.0, True, False)] * (len(own) * per_problem)
    for rows, answer in zip(rows_of_calls, answers, strict=True):
        if not answer.failure and not _is_restored(acting, turns, turn, rows[0], len(replies), answer):
            answer = make_failed("error", "the same messages were answered otherwise before")
        for row in rows:
            replies[row] = _read_answer(acting, turn, answer)
    by_problem = [replies[first : first + per_problem] for first in range(0, len(replies), per_problem)]
    shared = [_Reply(*one) for of_problem in share_rows(own, by_problem) for one in of_problem]
    return sharding.shard_problems(acting.mesh, _write_messages(shared, acting.plans[turn].max_tokens))


def _cut_episode(
    acting: Acting, texts: Sequence[Sequence[str]], turn: int, row: int, rows: int
) -> tuple[tuple[Message, ...], ...]:
    """What was said on the way to a row, cut at each of the environment's own answers."""
    parts: list[tuple[Message, ...]] = []
    since: list[Message] = []
    for earlier, of_turn in enumerate(texts):
        if acting.turns[earlier] is not None and acting.turns[earlier] == acting.turns[turn]:
            parts.append(tuple(since))
            since = []
        else:
            plan = acting.plans[earlier]
            since.append(Message(plan.name, plan.role, of_turn[row * len(of_turn) // rows]))
    return (*parts, tuple(since))


def _is_restored(acting: Acting, turns: Sequence[Messages], turn: int, row: int, rows: int, answer: Answer) -> bool:
    """Whether an episode that was led through the same messages again has given the same answers."""
    own = [earlier for earlier in range(turn) if acting.turns[earlier] == acting.turns[turn]]
    for earlier, found in zip(own, answer.observations, strict=False):
        messages = turns[earlier]
        number = row * len(messages.tokens_NT) // rows
        recorded = np.asarray(messages.tokens_NT)[number][np.asarray(messages.content_NT)[number]].tolist()
        assert messages.observed is not None
        if not messages.observed.failed_N[number] and _encode(acting, earlier, found[0])[0] != recorded:
            return False
    return True


def _read_answer(acting: Acting, turn: int, answer: Answer) -> _Reply:
    if answer.failure:
        return _Reply(_encode(acting, turn, answer.failure)[0] or [], False, 0.0, False, True)
    observation = Observation(*answer.observations[-1])
    tokens, is_cut = _encode(acting, turn, observation.text)
    return _Reply(tokens or [], is_cut, observation.reward, observation.done, tokens is None)


def _encode(acting: Acting, turn: int, text: str) -> tuple[list[int] | None, bool]:
    """Tokens of an answer, as many as the turn has room for, and whether there were more; None: it has none."""
    most = acting.plans[turn].max_tokens
    try:
        tokens = acting.tokenizer.encode_text(text)
    except UserError:
        return None, False
    return tokens[:most], len(tokens) > most


def outline_answers(rows: int, slots: int) -> Messages:
    """Shapes of what environments answer in a turn.

    Args:
      rows: transcripts.
      slots: of the turn (T).

    Returns:
      Messages of jax.ShapeDtypeStruct.
    """
    answers = _write_messages([_Reply([], False, 0.0, True, False)] * rows, slots)
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), answers)


def _write_messages(replies: Sequence[_Reply], slots: int) -> Messages:
    rows = len(replies)
    tokens, content = np.zeros((rows, slots), np.int32), np.zeros((rows, slots), bool)
    for row, one in enumerate(replies):
        tokens[row, : len(one.tokens)] = one.tokens
        content[row, : len(one.tokens)] = True
    columns: Any = [np.array(column) for column in zip(*(one[1:] for one in replies), strict=True)]
    is_cut_N, reward_N, is_done_N, has_failed_N = columns
    return Messages(
        tokens_NT=tokens,  # pyright: ignore[reportArgumentType]
        content_NT=content,  # pyright: ignore[reportArgumentType]
        sampled_NT=np.zeros((rows, slots), bool),  # pyright: ignore[reportArgumentType]
        behaviour_logp_NT=np.zeros((rows, slots), np.float32),  # pyright: ignore[reportArgumentType]
        support_NTK=np.zeros((rows, slots, 0), np.int32),  # pyright: ignore[reportArgumentType]
        truncated_N=is_cut_N,
        observed=Observed(reward_N.astype(np.float32), is_done_N, has_failed_N),
    )
