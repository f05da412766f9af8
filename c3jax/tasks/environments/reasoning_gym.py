"""Several attempts at a problem of the task `reasoning`: each message is judged as an answer would be.

The verifier is the generator's own, behind the checks of c3jax.tasks.reasoning: those that evaluate what they are
given are given nothing but lists, plain words and small expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from c3jax.schema import ConfigError
from c3jax.tasks import reasoning
from c3jax.tasks.environment import Environment, Message, Observation, check_package
from c3jax.types import Problem


class Attempts(NamedTuple):
    """The state of an episode; attempts before leave nothing behind."""

    problem: Problem
    reward: float


def begin(problem: Problem, seed: int, reward: float = 1.0) -> Attempts:
    """Begin with a problem.

    Args:
      problem: of the task `reasoning`.
      seed: nothing is drawn.
      reward: of a right attempt.
    """
    return Attempts(problem, reward)


def judge(state: Attempts, messages: Sequence[Message]) -> Observation:
    """Whether the last message is right, wrong or gives no answer that can be judged; a right one ends the episode.

    Raises:
      TaskError: the problem is not of the task `reasoning`.
    """
    verdict = reasoning.grade(state.problem, messages[-1].text)
    if verdict.verdict == "correct":
        return Observation("right", reward=state.reward * verdict.score, done=True)
    return Observation("no answer" if verdict.verdict == "unparsable" else "wrong")


def bind(settings: Mapping[str, Any], is_contained: bool) -> Environment:
    """Check where a run is set up that the package is installed.

    Args:
      settings: of `begin`.
      is_contained: verifiers are no programs of a policy's.

    Raises:
      ConfigError: it is not, or the reward is no number.
    """
    check_package("reasoning_gym", "reasoning-gym", "reasoning")
    reward = settings.get("reward", 1.0)
    if not isinstance(reward, (int, float)):
        raise ConfigError(f"environment.settings.reward: expected a number, got {reward!r}")
    return REASONING_GYM


REASONING_GYM = Environment(reset=begin, step=judge, timeout_s=60.0, bind=bind)
