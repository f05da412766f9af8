"""What generated tasks share: draws at an address, and splits that have no question in common.

A draw is a hash of its address, never a state that depends on what was drawn before it. A question belongs to a split
by the hash of its text, so splits share none, whatever their seeds and specifications.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from c3jax.tasks.jsonl import TaskError
from c3jax.types import Problem

# Tenths of all questions.
SPLITS = {"train": range(0, 8), "validation": range(8, 9), "test": range(9, 10)}
LONGEST_SEARCH = 2_000  # draws for one problem; a tenth of them fit the smallest split

Write = Callable[[str, int, int], tuple[str, str]]  # (split, index, attempt) -> question and answer


def make_splits(load: Callable[..., list[Problem]], task: Any, seed: int) -> tuple[list[Problem], list[Problem]]:
    """The problems to train on and the held-out ones.

    Args:
      load: gives the problems of (task, seed, split, how many).
      task: section of the config.
      seed: of the run.
    """
    return load(task, seed, "train", task.train_problems), load(task, seed, "test", task.heldout_problems)


def draw_problems(name: str, write: Write, split: str, count: int, advice: str = "") -> list[Problem]:
    """The first problems of a split, each the first attempt whose question is of the split and new.

    Args:
      name: of the task, for complaints.
      write: an attempt at the problem of an index.
      split: of SPLITS.
      count: how many.
      advice: what is said where none is found.

    Returns:
      Problems whose id is the split and the index, as in "train-17".

    Raises:
      TaskError: there is no such split, or LONGEST_SEARCH attempts bring no new question.
    """
    if split not in SPLITS:
        raise TaskError(f"{name}: expected a split of {', '.join(SPLITS)}, got {split!r}")
    problems: list[Problem] = []
    asked: set[str] = set()
    for index in range(count):
        for attempt in range(LONGEST_SEARCH):
            question, answer = write(split, index, attempt)
            if hash_address("question", question) % 10 in SPLITS[split] and question not in asked:
                break
        else:
            raise TaskError(
                f"{name}: no new question for problem {index} of split {split!r} in {LONGEST_SEARCH} draws{advice}"
            )
        asked.add(question)
        problems.append(Problem(index=index, id=f"{split}-{index}", question=question, answer=answer))
    return problems


def draw_uniform(*address: object) -> float:
    """A number in [0, 1) drawn at an address: 53 bits of a hash, which is all that a float holds."""
    return (hash_address(*address) >> 11) / 2**53


def hash_address(*address: object) -> int:
    """64 bits that depend on the address alone: Python's own hash() differs from process to process."""
    digest = hashlib.sha256("/".join(map(str, address)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
