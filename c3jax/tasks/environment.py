"""Environments: who answers a turn that no policy speaks in. Host code, no JAX.

An environment is two functions. `reset(problem, seed)` begins an episode and gives its state, whatever that is;
`step(state, messages)` is given what was said since it last answered, may change the state, and gives an Observation.
What has no state is one function, (problem, messages) -> text.

`ENVIRONMENTS` names the built-in ones; a user's own is found as module:NAME. All turns of a protocol that name the
same environment with the same settings are one episode.

An episode is begun anew for every call and led through the same messages again. So alternatives to a message meet
exactly the state that the message met, on any process and after any interruption, as long as the environment is a
function of (problem, seed, messages). One that is not is refused where that can be seen before the run; an answer
whose episode went otherwise the second time is a failed one.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import math
import numbers
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from c3jax.schema import ConfigError, load_named
from c3jax.tasks.sections import EnvironmentSection
from c3jax.types import Problem

_LONGEST = 100_000  # characters of an observation that leave the process that made it


class Message(NamedTuple):
    """One message of the transcript."""

    turn: str
    role: str
    text: str


class Observation(NamedTuple):
    """What an environment answers."""

    text: str
    reward: float = 0.0  # added to the return of every transcript that goes on from here
    done: bool = False  # the episode is over: turns that say `unless_done` are left out from here on


class Environment(NamedTuple):
    """What answers turns. Functions are of a module's top level, because worker processes are sent them by name."""

    reset: Callable[..., Any]  # (problem, seed, **settings) -> the state of an episode
    step: Callable[[Any, Sequence[Message]], Observation | str]
    close: Callable[[Any], None] | None = None  # ends an episode's state: what it holds open
    timeout_s: float = 10.0  # that one call may take, the steps before it included
    # All words of all observations, where the tokenizer is made of the task's words.
    vocabulary: tuple[str, ...] = ()
    # (settings, is_contained) -> the environment with its sandbox, for one that runs programs. Raises UserError where
    # the sandbox does not hold.
    bind: Callable[[Mapping[str, Any], bool], Environment] | None = None


class Call(NamedTuple):
    """One answer that is asked for."""

    environment: int  # which of the protocol's
    seed: int
    parts: tuple[tuple[Message, ...], ...]  # before each of its answers the messages since the one before


class Answer(NamedTuple):
    """What one call gave."""

    observations: Sequence[Sequence[Any]]  # of every step as (text, reward, done); empty where the call failed
    failure: Literal["", "error", "timeout"] = ""
    detail: str = ""


ENVIRONMENTS: dict[str, str] = {
    "calculator": "c3jax.tasks.environments.calculator:CALCULATOR",
    "python": "c3jax.tasks.environments.python:PYTHON",
    "reasoning_gym": "c3jax.tasks.environments.reasoning_gym:REASONING_GYM",
    "search": "c3jax.tasks.environments.search:SEARCH",
    "textarena": "c3jax.tasks.environments.text_arena:TEXTARENA",
    "verifiers": "c3jax.tasks.environments.verifiers_env:VERIFIERS",
}


def find_environment(kind: str, field: str, of_task: Environment | None = None) -> Environment:
    """Find an environment by its name, or a user's own as module:NAME.

    Args:
      kind: what the config names; `task` is the task's own.
      field: dotted path of the config's field, for complaints.
      of_task: the task's own.

    Raises:
      ConfigError: there is none, or what is there is neither an Environment nor a function (problem, messages).
    """
    if kind == "task":
        if of_task is None:
            raise ConfigError(f"{field}: expected an environment by name, as the task has none of its own, got 'task'")
        return of_task
    found = load_named(field, kind, ENVIRONMENTS, _find_fault)
    if isinstance(found, Environment):
        return found
    return Environment(_begin_nothing, functools.partial(_answer_alone, found))


class Opened(NamedTuple):
    """The environments of a protocol."""

    environments: tuple[Environment, ...]  # with their settings
    turns: tuple[int | None, ...]  # which of them answers each turn; None: a policy speaks

    @property
    def timeout_s(self) -> float:
        """That one call may take."""
        return max(environment.timeout_s for environment in self.environments)


def open_environments(
    sections: Sequence[EnvironmentSection | None], of_task: Environment | None, is_contained: bool | None
) -> Opened:
    """Find the environments of a protocol and bind their settings and, where they run programs, their sandbox.

    Args:
      sections: one a turn; None where a policy speaks.
      of_task: the task's own.
      is_contained: False gives up the sandbox of programs; None looks for none.

    Raises:
      UserError: as `find_environment`; a reset takes no such settings; the sandbox does not hold here.
    """
    first = {turn: each for turn, each in enumerate(sections) if each is not None and each not in sections[:turn]}
    known = [*first.values()]
    return Opened(
        tuple(_open(each, f"protocol.turns.{turn}.environment", of_task, is_contained) for turn, each in first.items()),
        tuple(None if section is None else known.index(section) for section in sections),
    )


def _open(
    section: EnvironmentSection, field: str, of_task: Environment | None, is_contained: bool | None
) -> Environment:
    found = find_environment(section.kind, f"{field}.kind", of_task)
    if found.bind is not None and is_contained is not None:
        found = found.bind(section.settings, is_contained)
    try:
        inspect.signature(found.reset).bind(None, 0, **section.settings)
        pickle.dumps((found.reset, found.step, found.close))
    except TypeError as error:
        raise ConfigError(
            f"{field}.settings: expected what the reset of {section.kind} takes, got"
            f" {json.dumps(section.settings)} ({error})"
        ) from None
    except (pickle.PicklingError, AttributeError) as error:
        raise ConfigError(f"{field}.kind: expected functions at the top level of a module ({error})") from None
    return found._replace(reset=functools.partial(found.reset, **section.settings))


def check_package(kind: str, package: str, extra: str) -> None:
    """Check, where a run is set up, that the package of an environment is installed.

    Args:
      kind: the environment's.
      package: its name; that of its module has underscores for hyphens.
      extra: of c3jax, which brings it.

    Raises:
      ConfigError: it is not.
    """
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise ConfigError(
            f"environment.kind: {kind} needs the package {package} (pip install 'c3jax[{extra}]'), found none"
        )


def _find_fault(found: Any) -> str | None:
    if isinstance(found, Environment):
        sound = callable(found.reset) and callable(found.step)
        return None if sound else "an Environment whose reset and step are functions"
    if not inspect.isroutine(found):
        return "an Environment, or a function (problem, messages) that answers,"
    names = inspect.signature(found).parameters
    return None if len(names) == 2 else f"a function of (problem, messages), not of ({', '.join(names)}),"


def _begin_nothing(problem: Problem, seed: int) -> Problem:
    return problem


def _answer_alone(answer: Callable[..., Observation | str], problem: Problem, messages: Sequence[Message]) -> Any:
    return answer(problem, messages)


# --------------------------------------------------------------------------------------------------------------------
# In a worker process


def run_call(environments: Sequence[Environment], problem: Problem, call: Call) -> list[tuple[str, float, bool]]:
    """Lead an episode from its beginning to the answer that is asked for.

    Args:
      environments: the protocol's.
      problem: of the episode.
      call: which, and what was said.

    Returns:
      Every observation on the way; after one that ends the episode all are empty.

    Raises:
      TypeError: a step gave neither an Observation nor a text, or a reward that is no finite number.
    """
    environment = environments[call.environment]
    state, observed = environment.reset(problem, call.seed), []
    try:
        for part in call.parts:
            is_over = bool(observed) and observed[-1][2]
            observed.append(("", 0.0, True) if is_over else _check(environment.step(state, part)))
    finally:
        if environment.close is not None:
            environment.close(state)
    return observed


def _check(given: Any) -> tuple[str, float, bool]:
    found = Observation(given) if isinstance(given, str) else given
    is_sound = (
        isinstance(found, Observation)
        and isinstance(found.text, str)
        and isinstance(found.reward, numbers.Real)
        and math.isfinite(found.reward)
        and isinstance(found.done, bool)
    )
    if not is_sound:
        raise TypeError(f"the environment returned {given!r:.200}")
    # A lone surrogate can be neither sent nor tokenised.
    text = found.text[:_LONGEST].encode("utf-8", "replace").decode()
    return text, float(found.reward), found.done


def make_failed(failure: Literal["error", "timeout"], detail: str) -> Answer:
    """A call that raised, was lost or took too long."""
    return Answer((), failure, detail)
