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

Search = Callable[[int, set[str]], Problem]  # (index, questions that are taken) -> the problem


def check_split(task: str, split: str) -> None:
    """Refuse a split that there is not. Raises TaskError."""
    if split not in SPLITS:
        raise TaskError(f"{task}: expected a split of {', '.join(SPLITS)}, got {split!r}")


def make_splits(load: Callable[..., list[Problem]], task: Any, seed: int) -> tuple[list[Problem], list[Problem]]:
    """The problems to train on and the held-out ones.

    Args:
      load: gives the problems of (task, seed, split, how many).
      task: section of the config.
      seed: of the run.
    """
    return load(task, seed, "train", task.train_problems), load(task, seed, "test", task.heldout_problems)


def draw_problems(search: Search, count: int) -> list[Problem]:
    """The first `count` problems, no question twice."""
    problems: list[Problem] = []
    asked: set[str] = set()
    for index in range(count):
        problems.append(search(index, asked))
        asked.add(problems[-1].question)
    return problems


def search_problem(
    write: Callable[[int], tuple[str, str]], split: str, index: int, asked: set[str], lack: str, advice: str = ""
) -> Problem:
    """The problem at an index: the first attempt whose question is of the split and new.

    Args:
      write: gives question and answer of an attempt.
      split: of SPLITS.
      index: in the split.
      asked: questions that are taken.
      lack, advice: what is said to be missing where none is found, and what to do about it.

    Raises:
      TaskError: none is, in LONGEST_SEARCH attempts.
    """
    for attempt in range(LONGEST_SEARCH):
        question, answer = write(attempt)
        if hash_address("question", question) % 10 in SPLITS[split] and question not in asked:
            return Problem(index=index, id=f"{split}-{index}", question=question, answer=answer)
    raise TaskError(f"{lack} for problem {index} of split {split!r} in {LONGEST_SEARCH} draws{advice}")


def draw_uniform(*address: object) -> float:
    """A number in [0, 1) drawn at an address: 53 bits of a hash, which is all that a float holds."""
    return (hash_address(*address) >> 11) / 2**53


def hash_address(*address: object) -> int:
    """64 bits that depend on the address alone: Python's own hash() differs from process to process."""
    digest = hashlib.sha256("/".join(map(str, address)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
