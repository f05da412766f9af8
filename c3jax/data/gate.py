"""The contamination gate: no run trains on a problem that it is evaluated on.

What refuses a run is a training problem whose question is a held-out one exactly, normalised or reworded; a run of
thirteen words in common is said, and refuses only where the config asks for it. See `c3jax.data.overlap`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from c3jax.data.fetch import DataError
from c3jax.data.overlap import Entry, Hit, Kind, find_overlaps
from c3jax.tasks import TASKS, code_records
from c3jax.tasks.code import read_check
from c3jax.types import Problem

_MOST_IDS = 500  # in a complaint
_COMMONEST_NAME = 3  # problems of a set: a function called solve in all of them tells none from another
_GENERATED = ("arithmetic", "stories", "reasoning")  # their sentences are templates: all of them share runs of words


class Passed(NamedTuple):
    """What the gate let through, and what it found."""

    problems: list[Problem]  # to train on
    hits: tuple[Hit, ...]
    dropped: tuple[str, ...]  # ids of training problems that were removed


def check_overlap(
    task: str,
    train: Sequence[Problem],
    heldout: Mapping[str, Sequence[Problem]],
    is_dropping: bool = False,
    is_strict: bool = False,
    kinds: Mapping[str, str] | None = None,
) -> Passed:
    """Compare a training set with held-out sets, given by name.

    Args:
      task: the kind of the task of all problems.
      kinds: by name, the kind of each held-out set that is of another kind of task.
      is_dropping: remove from the training set what would refuse the run.
      is_strict: a run of thirteen words in common refuses too.

    Raises:
      DataError: a training problem is in a held-out set and is not to be dropped, or none is left.
    """
    hits = find_hits(task, train, heldout, kinds)
    refused = dict.fromkeys(hit.train for hit in hits if is_strict or hit.kind != "ngram")
    if refused and not is_dropping:
        listed = list(refused)[:_MOST_IDS]
        more = f" and {len(refused) - len(listed):,} more" if len(refused) > len(listed) else ""
        raise DataError(
            f"data: {len(refused):,} of {len(train):,} training problems are in a held-out set"
            f" ({describe_hits(hits)}): set data.drop_overlap: true to train without them, or see the pairs with"
            f" c3jax overlap; the ids: {', '.join(listed)}{more}"
        )
    kept = [problem for problem in train if problem.id not in refused]
    if not kept:
        raise DataError(
            f"data.drop_overlap: expected training problems that are in no held-out set, got {len(train):,}"
            " that all are"
        )
    return Passed(kept, tuple(hits), tuple(refused))


def find_hits(
    task: str,
    train: Sequence[Problem],
    heldout: Mapping[str, Sequence[Problem]],
    kinds: Mapping[str, str] | None = None,
) -> list[Hit]:
    """Find what a training set shares with held-out sets."""
    entries = {name: _make_entries((kinds or {}).get(name, task), problems) for name, problems in heldout.items()}
    return find_overlaps(_make_entries(task, train), entries, has_grams=task not in _GENERATED)


def describe_hits(hits: Sequence[Hit]) -> str:
    """Count training problems by held-out set and kind: "math500: 3 exact, 1 ngram"."""
    return "; ".join(
        f"{name}: {', '.join(f'{count:,} {kind}' for kind, count in counts.items())}"
        for name, counts in count_hits(hits).items()
    )


def count_hits(hits: Sequence[Hit]) -> dict[str, dict[Kind, int]]:
    """Count training problems by held-out set and kind; what was not met is left out."""
    counts = Counter((hit.heldout_set, hit.kind) for hit in hits)
    sets = dict.fromkeys(hit.heldout_set for hit in hits)
    return {name: {kind: counts[name, kind] for kind in get_args(Kind) if counts[name, kind]} for name in sets}


def _make_entries(task: str, problems: Sequence[Problem]) -> list[Entry]:
    if task != "code":
        return [Entry(problem.id, problem.question) for problem in problems]
    names = [read_check(problem.answer).entry_point.lower() for problem in problems]
    carriers = Counter(names)
    return [
        Entry(
            problem.id,
            code_records.read_statement(problem.question),
            f"{problem.id.rpartition(':')[2]} {name}" if carriers[name] <= _COMMONEST_NAME else None,
        )
        for problem, name in zip(problems, names, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------------
# The command


def compare_files(task: str, train_path: str, heldout_paths: Sequence[str]) -> tuple[list[str], bool]:
    """Compare files of problems: a line a hit and one that counts, and whether a hit would refuse a run.

    Raises DataError where there is no such task, TaskError where a file is faulty.
    """
    if task not in TASKS:
        raise DataError(f"TASK: expected one of {', '.join(TASKS)}, got {task!r}")
    load = TASKS[task].load
    train, heldout = load(train_path), {path: load(path) for path in heldout_paths}
    hits = find_hits(task, train, heldout)
    lines = [f"{hit.kind}\t{hit.train}\t{hit.heldout}\t{hit.heldout_set}" for hit in hits]
    found = describe_hits(hits) or "nothing in common"
    return [*lines, f"{len(train):,} training problems: {found}"], any(hit.kind != "ngram" for hit in hits)
