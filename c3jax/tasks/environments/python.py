"""A Python session: the program in the last message is run in the sandbox, and what it prints is the answer.

One sandbox an episode: later programs see what earlier ones defined. As in a notebook, the value of a last expression
is shown. `random` is seeded by the episode; what depends on the time, or on anything else outside, cannot be restored.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from c3jax.schema import ConfigError
from c3jax.tasks.code import channel as code_channel
from c3jax.tasks.code.task import read_program
from c3jax.tasks.environment import Environment, Message, Observation
from c3jax.tasks.environments import python_session
from c3jax.tasks.sandbox import process as sandbox
from c3jax.tasks.sandbox.isolation import check_isolation
from c3jax.tasks.sandbox.process import Child, Clock, Limits, Lost
from c3jax.types import Problem

_WALL = 10  # times a program's own seconds, on a machine that gives it less processor time than that
_NAMES = ("SyntaxError", "NameError", "TypeError", "ValueError", "ZeroDivisionError", "Exception", "timeout", "ended")


class Settings(NamedTuple):
    """What `begin` is given."""

    timeout: float
    memory: int
    setup: str
    errors: str
    characters: int
    is_contained: bool


@dataclass(eq=False)
class Session:
    """An episode's sandbox; None before its first program, and after it was lost."""

    settings: Settings
    seed: int
    child: Child | None = None
    lost: str = ""


def bind(settings: Mapping[str, Any], is_contained: bool) -> Environment:
    """The environment with a sandbox that was tried.

    Args:
      settings: of `begin`.
      is_contained: False runs programs without the isolation.

    Raises:
      UserError: a setting is none, or the sandbox does not hold here.
    """
    reset = functools.partial(begin, is_contained)
    kinds = {"timeout": (int, float), "memory": int, "setup": str, "errors": str, "characters": int}
    # Whoever opens it complains of other names.
    chosen = reset(None, 0, **{name: value for name, value in settings.items() if name in kinds}).settings
    is_sound = all(isinstance(getattr(chosen, name), kind) for name, kind in kinds.items())
    if not is_sound or chosen.errors not in ("whole", "name") or min(chosen.timeout, chosen.memory) <= 0:
        raise ConfigError(
            "environment.settings: expected numbers above 0 as timeout and memory, and errors of whole or name, got"
            f" {json.dumps(dict(settings))}"
        )
    if is_contained:
        check_isolation()
    return PYTHON._replace(reset=reset, timeout_s=chosen.timeout * _WALL + 60.0)


def begin(
    is_contained: bool,
    problem: Problem | None,
    seed: int,
    timeout: float = 5.0,
    memory: int = 512,
    setup: str = "",
    errors: str = "whole",
    characters: int = 2000,
) -> Session:
    """A session without a sandbox yet.

    Args:
      is_contained: False: programs run without the isolation.
      problem: not read.
      seed: of `random`.
      timeout: seconds that all programs of an episode may compute.
      memory: MB.
      setup: a program that runs before the first.
      errors: whole, or name for an exception's name without its message.
      characters: of an answer, counted from its end, where an error stands.
    """
    return Session(Settings(timeout, memory, setup, errors, characters, is_contained), seed)


def run(session: Session, messages: Sequence[Message]) -> Observation:
    """What the program in the last message prints; without a fence the whole message is the program."""
    settings, text = session.settings, messages[-1].text
    program = read_program(text, "")
    code = "\n".join(program.blocks) if program is not None and program.is_fenced else text
    if not session.lost:
        try:
            if session.child is None:
                session.child = _start(session)
            shown = _ask(session.child, code, settings)
            return Observation(shown[-settings.characters :])
        except Lost as lost:
            session.lost = {"time": "timeout", "end": "ended", "output": "ended"}[lost.reason]
            close(session)
    return Observation(session.lost)


def _start(session: Session) -> Child:
    settings = session.settings
    limits = Limits(cpu_s=settings.timeout, memory_mb=settings.memory, output_mb=4)
    child = sandbox.start(python_session.__name__, [code_channel.__name__], limits, settings.is_contained)
    session.child = child
    _ask(child, f"import random\nrandom.seed({session.seed})\ndel random\n{settings.setup}", settings)
    return child


def _ask(child: Child, code: str, settings: Settings) -> str:
    clock = Clock([(child, 0.0)], settings.timeout, settings.timeout * _WALL)
    sandbox.send(child, json.dumps([code, settings.errors]).encode("ascii"), clock.wait)
    reply = json.loads(sandbox.receive(child, clock.wait))
    # Whatever the program wrote there itself is its own answer, too.
    return reply if isinstance(reply, str) else json.dumps(reply)


def close(session: Session) -> None:
    """End the sandbox and all that runs in it."""
    if session.child is not None:
        sandbox.stop(session.child)
        session.child = None


PYTHON = Environment(
    reset=functools.partial(begin, True),
    step=run,
    close=close,
    vocabulary=(*"0123456789", "+", "-", "*", "/", "%", "(", ")", *_NAMES),
    bind=bind,
)
