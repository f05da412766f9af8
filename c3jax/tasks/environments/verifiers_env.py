"""Environments of the package verifiers (0.4): its `Env.run` leads an episode, and the team's messages are its agents'.

An Env of that package is a coroutine that holds conversations with agents, each a seat of its config: it sends a text
and is given a reply. Here a seat's conversation stops where a reply is asked for. The text is what this environment
answers, and the next message of the seat's role the reply. Where the coroutine ends, the task's rewards are the team's.

A seat is a conversation and no more: tasks with tools, containers, judges or hooks into requests are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from c3jax.schema import ConfigError
from c3jax.tasks.environment import Environment, Message, Observation, check_package
from c3jax.tasks.jsonl import TaskError
from c3jax.types import Problem

# --------------------------------------------------------------------------------------------------------------------
# The package's side: agents of a conversation


class Question(NamedTuple):
    """What an Env sends to a seat, until there is a reply."""

    seat: str
    text: str
    reply: asyncio.Future[str]


@dataclasses.dataclass(eq=False)
class Seat:
    """What an Env takes for an Agent; it sets `trainable` itself."""

    name: str
    config: Any
    questions: asyncio.Queue[Question]
    traces: list[Any]  # of all seats, in the order in which they ended
    trainable: bool = True

    async def run(self, task: Any, **borrowed: Any) -> Any:
        """One reply to a task's prompt, and its trace."""
        async with self.interaction(task) as conversation:
            await conversation.turn()
        return conversation.trace

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any, **borrowed: Any) -> AsyncIterator[Conversation]:
        """A conversation about a task, scored as it ends."""
        fault = find_fault(task)
        if fault is not None:
            raise TaskError(f"environment.settings.env: expected a task without {fault}")
        conversation = Conversation(self, task)
        yield conversation
        conversation.trace.stop("user_closed")
        await task.score(conversation.trace)
        conversation.trace.ok = True
        self.traces.append(conversation.trace)


class Conversation:
    """What an Env takes for an Interaction: the messages between it and a seat, as a trace.

    Args:
      seat: who replies.
      task: what about.
    """

    def __init__(self, seat: Seat, task: Any):
        import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
        from verifiers.v1.state import state_cls  # pyright: ignore[reportMissingImports]

        self.seat, self.task = seat, task
        self.trace = vf.Trace(
            task=_describe(task),
            state=state_cls(type(task))(),
            agent=vf.AgentInfo(config=seat.config, name=seat.name, trainable=seat.trainable),
        )

    async def turn(self, message: Any = None) -> Any:
        """Send a message, or the task's prompt, and wait for the reply; a conversation that has ended has none."""
        import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]

        if await self._has_ended():
            return vf.Segment(messages=[], terminated=True)
        text = _read_prompt(self.task.data) if message is None else _read_text(message)
        self._record(vf.UserMessage(content=text), is_sampled=False)
        reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await self.seat.questions.put(Question(self.seat.name, text, reply))
        replied = vf.AssistantMessage(content=await reply)
        self._record(replied, is_sampled=True)
        return vf.Segment(messages=[replied])

    async def _has_ended(self) -> bool:
        from verifiers.v1 import Trace  # pyright: ignore[reportMissingImports]
        from verifiers.v1.session import call_hook  # pyright: ignore[reportMissingImports]

        most = self.seat.config.max_turns
        if most is not None and self.trace.num_turns >= most:
            self.trace.stop("max_turns")
        for stop in self.task.hooks("stop"):
            if await call_hook(stop, {Trace: self.trace}):
                self.trace.stop(stop.__name__)
        return self.trace.is_completed

    def _record(self, message: Any, is_sampled: bool) -> None:
        from verifiers.v1 import MessageNode  # pyright: ignore[reportMissingImports]

        parent = len(self.trace.nodes) - 1 if self.trace.nodes else None
        self.trace.nodes.append(MessageNode(parent=parent, message=message, sampled=is_sampled))


def find_fault(task: Any) -> str | None:
    """What a task needs that a conversation has not; None where it can be held."""
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
    from verifiers.v1.session import hook_boundary  # pyright: ignore[reportMissingImports]
    from verifiers.v1.utils.decorators import discover_decorated  # pyright: ignore[reportMissingImports]

    kind = type(task)
    scores = [*task.hooks("reward"), *task.hooks("metric")]
    faults = {
        "tools": bool(task.toolsets(task.config)),
        "a container": kind.NEEDS_CONTAINER or task.data.image is not None,
        "setup or finalize, which need a runtime": (kind.setup, kind.finalize) != (vf.Task.setup, vf.Task.finalize),
        "judges": bool(task.config.judges),
        "rewards that need a runtime": any(
            parameter.name == "runtime" and parameter.default is parameter.empty
            for score in scores
            for parameter in inspect.signature(score).parameters.values()
        ),
        "hooks into requests and responses": bool(discover_decorated(task, "intercept"))
        or any(hook_boundary(stop, allow_trace=True) is not vf.Trace for stop in task.hooks("stop")),
    }
    return next((fault for fault, is_there in faults.items() if is_there), None)


def _describe(task: Any) -> Any:
    from verifiers.v1 import TraceTask  # pyright: ignore[reportMissingImports]

    return TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)


def _read_prompt(data: Any) -> str:
    if data.prompt is None:
        raise ValueError("a task without a prompt was asked for its first reply")
    return "\n\n".join(filter(None, (data.system_prompt, data.prompt_text)))


def _read_text(message: Any) -> str:
    from verifiers.v1.dialects import parse_message  # pyright: ignore[reportMissingImports]
    from verifiers.v1.types import content_text  # pyright: ignore[reportMissingImports]

    if isinstance(message, str):
        return message
    parsed = [parse_message(part) if isinstance(part, dict) else part for part in message]
    return "\n\n".join(content_text(part.content) for part in parsed)


# --------------------------------------------------------------------------------------------------------------------
# c3jax's side


@dataclasses.dataclass(eq=False)
class Episode:
    """The state of an episode: the coroutine that leads it, and what it waits for."""

    loop: asyncio.AbstractEventLoop
    run: asyncio.Task[None]
    questions: asyncio.Queue[Question]
    traces: list[Any]
    roles: Mapping[str, str]
    reward_of: str | None
    question: Question | None = None


def begin(
    problem: Problem,
    seed: int,
    env: Mapping[str, Any],
    roles: Mapping[str, str] | None = None,
    reward_of: str | None = None,
) -> Episode:
    """Begin an episode of the task that the problem names.

    Args:
      problem: with the task's number in the taskset in its column `task`.
      seed: of Python's and numpy's global generators.
      env: config of an Env of verifiers: {taskset: {id: ...}, ...}.
      roles: who speaks for a seat, by the seat's name; without them whoever spoke last.
      reward_of: the seat whose reward is the team's, of several.

    Raises:
      TaskError: the problem names no task, or the taskset has none of that number.
    """
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]

    loaded = load_env(json.dumps(env, sort_keys=True))
    task = loaded.find_task(problem.columns.get("task"))
    # Only now, as a taskset may draw where it is loaded, which a process does once.
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - environments of others may draw from it
    questions: asyncio.Queue[Question] = asyncio.Queue()
    traces: list[Any] = []
    agents = vf.Agents(loaded.env.config, lambda name, config: Seat(name, config, questions, traces))  # pyright: ignore[reportArgumentType]
    loop = asyncio.new_event_loop()
    run = loop.create_task(_lead(loaded.env, task, agents, traces))
    return Episode(loop, run, questions, traces, roles or {}, reward_of)


def answer(state: Episode, messages: Sequence[Message]) -> Observation:
    """What the Env sends to a seat next, or at its end nothing, and the reward.

    Raises:
      Exception: whatever the Env raises.
    """
    _advance(state)
    for message in messages if state.roles else messages[-1:]:
        if state.question is None:
            break
        if state.roles and message.role != state.roles[state.question.seat]:
            continue
        state.question.reply.set_result(message.text)
        state.question = None
        _advance(state)
    if state.question is not None:
        return Observation(state.question.text)
    state.run.result()
    rewards = [trace.reward for trace in state.traces if state.reward_of in (None, trace.agent.name)]
    return Observation("", reward=float(np.mean(rewards)) if rewards else 0.0, done=True)


def close(state: Episode) -> None:
    """End the coroutine, wherever it is, and its loop."""
    state.run.cancel()
    state.loop.run_until_complete(asyncio.wait({state.run}))
    state.loop.run_until_complete(state.loop.shutdown_asyncgens())
    state.loop.close()


async def _lead(env: Any, task: Any, agents: Any, traces: list[Any]) -> None:
    """What the package's own runner does for an episode, without its servers."""
    from verifiers.v1 import EnvInfo, Episode  # pyright: ignore[reportMissingImports]

    await env.setup(agents)
    await env.run(task, agents)
    episode = Episode(env=EnvInfo(id=env.config.env_id), task=_describe(task))
    episode.traces = traces
    await env.finalize(task, episode)


def _advance(state: Episode) -> None:
    """Let the coroutine run until it waits for a reply or ends."""
    if state.question is None and not state.run.done():
        state.question = state.loop.run_until_complete(_wait(state))


async def _wait(state: Episode) -> Question | None:
    asking = asyncio.ensure_future(state.questions.get())
    await asyncio.wait({asking, state.run}, return_when=asyncio.FIRST_COMPLETED)
    if asking.done():
        return asking.result()
    asking.cancel()
    return None


class LoadedEnv:
    """An Env and the tasks that were asked for so far, which may be without end.

    Args:
      env: of verifiers.
    """

    def __init__(self, env: Any):
        self.env, self.tasks = env, []
        self.more: Iterator[Any] = iter(env.taskset)

    def find_task(self, number: object) -> Any:
        """The task of a number, from 0.

        Raises:
          TaskError: it is none.
        """
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise TaskError(f"environment: expected problems with a column `task`, a number, got {number!r}")
        self.tasks += itertools.islice(self.more, max(number + 1 - len(self.tasks), 0))
        if number >= len(self.tasks):
            raise TaskError(f"environment: expected a task below {len(self.tasks)}, got {number}")
        return self.tasks[number]


@functools.lru_cache(maxsize=4)
def load_env(config: str) -> LoadedEnv:
    """Load an Env; each process does it once.

    Args:
      config: of the Env, as JSON.
    """
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]

    return LoadedEnv(vf.load_environment(vf.resolve_env_config(json.loads(config))))


def bind(settings: Mapping[str, Any], is_contained: bool) -> Environment:
    """Check, where a run is set up, that the Env can be loaded and its first task be held as a conversation.

    Args:
      settings: of `begin`.
      is_contained: the Env is the user's choice, and runs as it is.

    Raises:
      ConfigError: the package is not installed, the Env cannot be loaded, it or its first task needs what is not
        here, or its seats are not those of the settings.
    """
    check_package("verifiers", "verifiers", "verifiers")
    if "env" not in settings or set(settings) - {"env", "roles", "reward_of"}:
        return VERIFIERS  # whoever opens it complains
    try:
        loaded = load_env(json.dumps(settings["env"], sort_keys=True))
        fault = _find_fault_of_env(loaded.env) or find_fault(loaded.find_task(0))
    except Exception as error:  # whatever a package of others raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"environment.settings.env: expected an Env of verifiers ({reason:.300})") from error
    if fault is not None:
        raise ConfigError(f"environment.settings.env: expected an Env and tasks without {fault}")
    _check_seats(loaded.env.config, settings.get("roles") or {}, settings.get("reward_of"))
    return VERIFIERS


def _find_fault_of_env(env: Any) -> str | None:
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]

    if env.taskset.toolsets(env.taskset.config):
        return "tools"
    is_plain = (type(env).start, type(env).stop) == (vf.Env.start, vf.Env.stop)
    return None if is_plain else "start and stop, which serve all episodes"


def _check_seats(config: Any, roles: Mapping[str, str], reward_of: str | None) -> None:
    from verifiers.v1.configs.agent import agent_config_fields  # pyright: ignore[reportMissingImports]

    seats = list(agent_config_fields(config))
    if set(roles) != set(seats) and (roles or len(seats) > 1):
        raise ConfigError(f"environment.settings.roles: expected a role for each of {', '.join(seats)}, got {roles}")
    if reward_of not in (seats if len(seats) > 1 else [None, *seats]):
        raise ConfigError(
            f"environment.settings.reward_of: expected the seat whose reward is the team's, one of"
            f" {', '.join(seats)}, got {reward_of!r}"
        )


VERIFIERS = Environment(reset=begin, step=answer, close=close, timeout_s=120.0, bind=bind)
