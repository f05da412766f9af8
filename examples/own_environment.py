"""An environment of one's own: a number to be found, that says higher or lower. For `environment.kind` in a config.

- name: reply
  environment: {kind: "own_environment:NUMBER", settings: {most: 9}}
  max_tokens: 4
"""

import random
from collections.abc import Sequence

from c3jax.tasks.environment import Environment, Message, Observation
from c3jax.types import Problem


def hide(problem: Problem, seed: int, most: int = 99) -> int:
    """A state: the same for the same problem and seed, so that every alternative meets the same number."""
    return random.Random(seed).randint(0, most)


def judge(number: int, messages: Sequence[Message]) -> Observation:
    """An answer to what was said since the last one; finding the number is worth 1 and ends the episode."""
    guess = messages[-1].text.strip()
    if not guess.isdecimal():
        return Observation("a number please")
    if int(guess) == number:
        return Observation("found", reward=1.0, done=True)
    return Observation("higher" if int(guess) < number else "lower")


NUMBER = Environment(hide, judge, vocabulary=("a", "number", "please", "found", "higher", "lower"))
