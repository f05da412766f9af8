"""Contamination: no run trains on a problem that it is evaluated on.

What refuses a run is a training problem whose question is a held-out one exactly, normalised or reworded; a run of
thirteen words in common is said, and refuses only where the config asks for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from c3jax.config.file import parse_section
from c3jax.schema import Section
from c3jax.tasks.sections import FieldNames
from c3jax.tasks.task import Task, TaskError, find_task, load_file
from c3jax.types import Problem, UserError

_MOST_IDS = 500  # in a complaint
_COMMONEST_NAME = 3  # problems of a set: a function called solve in all of them tells none from another
GRAM_WORDS = 13
COMMONEST_GRAM = 10  # training problems

Kind = Literal["exact", "normalised", "reworded", "ngram"]


class Entry(NamedTuple):
    """What is compared of a problem."""

    id: str
    text: str  # of the question
    key: str | None = None  # what two problems have in common only if they are one, reworded


class Hit(NamedTuple):
    """A training problem, and the first held-out problem of a set with which it shares the most."""

    kind: Kind
    train: str  # its id
    heldout: str  # its id
    heldout_set: str


class Passed(NamedTuple):
    """What the gate let through, and what it found."""

    problems: list[Problem]  # to train on
    hits: tuple[Hit, ...]
    dropped: tuple[str, ...]  # ids of training problems that were removed


def check_overlap(
    task: Task,
    train: Sequence[Problem],
    heldout: Mapping[str, Sequence[Problem]],
    is_dropping: bool = False,
    is_strict: bool = False,
    tasks: Mapping[str, Task] = {},
) -> Passed:
    """Compare a training set with held-out sets, given by name.

    Args:
      task: the task of all problems.
      tasks: by name, the task of each held-out set that is of another.
      is_dropping: remove from the training set what would refuse the run.
      is_strict: a run of thirteen words in common refuses too.

    Raises:
      TaskError: a training problem is in a held-out set and is not to be dropped, or none is left.
    """
    hits = find_hits(task, train, heldout, tasks)
    refused = dict.fromkeys(hit.train for hit in hits if is_strict or hit.kind != "ngram")
    if refused and not is_dropping:
        listed = list(refused)[:_MOST_IDS]
        more = f" and {len(refused) - len(listed):,} more" if len(refused) > len(listed) else ""
        raise TaskError(
            f"data: {len(refused):,} of {len(train):,} training problems are in a held-out set"
            f" ({describe_hits(hits)}): set data.drop_overlap: true to train without them, or see the pairs with"
            f" c3jax overlap; the ids: {', '.join(listed)}{more}"
        )
    kept = [problem for problem in train if problem.id not in refused]
    if not kept:
        raise TaskError(
            f"data.drop_overlap: expected training problems that are in no held-out set, got {len(train):,}"
            " that all are"
        )
    return Passed(kept, tuple(hits), tuple(refused))


def find_hits(
    task: Task, train: Sequence[Problem], heldout: Mapping[str, Sequence[Problem]], tasks: Mapping[str, Task] = {}
) -> list[Hit]:
    """Find what a training set shares with held-out sets.

    Args:
      task: of the training problems.
      train: these.
      heldout: problems of each held-out set, by its name.
      tasks: of sets that are of another task, by name.
    """
    entries = {name: _make_entries(tasks.get(name, task), problems) for name, problems in heldout.items()}
    # Generated sentences are templates: all of them share runs of words.
    return find_overlaps(_make_entries(task, train), entries, has_grams=task.make is None)


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


def _make_entries(task: Task, problems: Sequence[Problem]) -> list[Entry]:
    if task.overlap_key is None:
        return [Entry(problem.id, problem.question) for problem in problems]
    keys = [task.overlap_key(problem) for problem in problems]
    carriers = Counter(name for _, name in keys)
    return [
        Entry(
            problem.id, text, f"{problem.id.rpartition(':')[2]} {name}" if carriers[name] <= _COMMONEST_NAME else None
        )
        for problem, (text, name) in zip(problems, keys, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------------
# The command


class _Names(Section):
    task: FieldNames = {}
    heldout: FieldNames | None = None


def compare_files(
    kind: str, train_path: str, heldout_paths: Sequence[str], fields: Mapping[str, Any] = {}
) -> tuple[list[str], bool]:
    """Compare files of problems: a line a hit and one that counts, and whether a hit would refuse a run.

    Args:
      kind: a row of `TASKS`, or a task of the user's own as module:NAME.
      train_path: JSONL file of training problems.
      heldout_paths: JSONL files of held-out problems.
      fields: "task.fields", what the fields of all files are called, or one of them as "task.fields.question";
        "heldout.fields", what those of the held-out files are, where they have others.

    Raises:
      UserError: there is no such task, a file is faulty, or `fields` holds something else.
    """
    task = find_task(kind, "TASK")
    names: dict[str, Any] = {}
    for path, value in fields.items():
        owner, _, rest = path.partition(".fields")
        if owner not in ("task", "heldout") or path == owner or (rest and not rest.startswith(".")):
            raise UserError(f"--{path}: expected --task.fields or --heldout.fields, got another field")
        names[owner] = {**names.get(owner, {}), rest[1:]: value} if rest else value
    read = parse_section(names, _Names)
    train = load_file(task, train_path, read.task)
    others = read.task if read.heldout is None else read.heldout
    heldout = {path: load_file(task, path, others) for path in heldout_paths}
    hits = find_hits(task, train, heldout)
    lines = [f"{hit.kind}\t{hit.train}\t{hit.heldout}\t{hit.heldout_set}" for hit in hits]
    found = describe_hits(hits) or "nothing in common"
    return [*lines, f"{len(train):,} training problems: {found}"], any(hit.kind != "ngram" for hit in hits)


# --------------------------------------------------------------------------------------------------------------------
# What two problems share


def find_overlaps(train: Sequence[Entry], heldout: Mapping[str, Sequence[Entry]], has_grams: bool = True) -> list[Hit]:
    """Find the training problems that are in held-out sets.

    Args:
      train: the training problems.
      heldout: the held-out ones, by the name of their set.
      has_grams: whether runs of words in common are looked for.

    Returns:
      One hit at most for a training problem and a held-out set, by the order of the training problems in each set.
    """
    words_of_train = [split_words(entry.text) for entry in train]
    hits = []
    for name, entries in heldout.items():
        index = _make_index(entries, has_grams)
        shared = [[gram for gram in _list_grams(words) if gram in index["ngram"]] for words in words_of_train]
        carriers = Counter(gram for grams in shared for gram in set(grams))
        for entry, words, grams in zip(train, words_of_train, shared, strict=True):
            telling = next((gram for gram in grams if carriers[gram] <= COMMONEST_GRAM), None)
            sought = dict(zip(get_args(Kind), (entry.text, " ".join(words), entry.key, telling), strict=True))
            kind = next((kind for kind, text in sought.items() if text in index[kind]), None)
            if kind is not None:
                hits.append(Hit(kind, entry.id, index[kind][sought[kind]], name))
    return hits


def _make_index(entries: Sequence[Entry], has_grams: bool) -> dict[Kind, dict[str | None, str]]:
    """The id of the first problem that has what two problems may share, by kind."""
    index: dict[Kind, dict[str | None, str]] = {"exact": {}, "normalised": {}, "reworded": {}, "ngram": {}}
    for entry in entries:
        words = split_words(entry.text)
        index["exact"].setdefault(entry.text, entry.id)
        index["normalised"].setdefault(" ".join(words), entry.id)
        if entry.key is not None:
            index["reworded"].setdefault(entry.key, entry.id)
        for gram in _list_grams(words) if has_grams else ():
            index["ngram"].setdefault(gram, entry.id)
    index["normalised"].pop("", None)  # a question of nothing but punctuation is like no other
    return index


_LAYOUT = re.compile(
    r"\\\\|\\[,;:!> ()\[\]]|[${}~`\"'“”‘’]"
    r"|\\(?:left|right|[bB]igg?[lrm]?|(?:display|text|script)style|(?:no)?limits|q?quad|(?:thin|en)space"
    r"|text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf|tt)|operatorname|boldsymbol|rm|bf|it)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"\{,\}|(?<=[0-9]),(?:\\!)?(?=[0-9]{3}(?![0-9]))")
_HYPHEN = re.compile(r"(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})")  # and no minus
_LATEX = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\(le|ge)q(?:slant)?(?![A-Za-z])|\\(ne)q(?![A-Za-z])", r"\\\1\2 "),
    )
)
# Words, numbers, Chinese characters one by one, and the signs that make one formula another (! after what it can be
# a factorial of).
_WORD = re.compile(
    r"[0-9]+(?:\.[0-9]+)?|[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+|[-+*/=<>^|%()\[\]]|(?<=[0-9)])!|(?<=\W[a-z])!|[^\x00-\x7f\w\s。、]"
)


def split_words(text: str) -> list[str]:
    r"""Split a question into its words, numbers and signs, in one spelling.

    Out go case, spacing, punctuation (but for a decimal point), dollar signs, braces, fonts, \left and \right, and
    spaces of LaTeX; \dfrac12 is \frac{1}{2}, \leq is \le, and 1,000 is 1000.
    """
    text = _HYPHEN.sub(" ", _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).replace("−", "-")))
    for pattern, plain in _LATEX if "\\" in text else ():
        text = pattern.sub(plain, text)
    return _WORD.findall(_LAYOUT.sub(" ", text).lower())


def _list_grams(words: Sequence[str]) -> list[str]:
    spoken = [word for word in words if word[0].isalnum()]
    return [" ".join(spoken[start : start + GRAM_WORDS]) for start in range(len(spoken) - GRAM_WORDS + 1)]
