"""A run's problems: read or made by its task, kept apart from the held-out ones, mixed, and cut into tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from c3jax.config.run import ConfigError, Data, Protocol, RunConfig, SuiteSection
from c3jax.schema import Section
from c3jax.setup import contamination, mixing
from c3jax.tasks.sections import FileTask, list_training_sets
from c3jax.tasks.task import Task, find_task, load_file
from c3jax.types import Problem, Tokenizer


class Sources(NamedTuple):
    """The problems as a task gives them; entries of a field are in the order of the config."""

    names: tuple[str, ...]  # of the training sets
    paths: tuple[str | None, ...]  # their files; None for generated problems
    weights: tuple[float, ...]
    sets: tuple[list[Problem], ...]
    heldout_path: str | None
    heldout: list[Problem]


class ProblemSet(NamedTuple):
    """Problems whose question fits its frame, with their tokens."""

    problems: tuple[Problem, ...]
    tokens: tuple[tuple[int, ...], ...]
    left_out: int  # problems whose question is longer than protocol.question_tokens


class Mixture(NamedTuple):
    """The sets that the training problems are from; a field's entries are in the order of the config."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    counts: tuple[int, ...]  # problems, as they lie behind each other in the training set


def load_sources(task: Task, section: Section, seed: int) -> Sources:
    """Read, or make, the training sets and the held-out problems of a task.

    Args:
      task: that reads or makes them.
      section: the task's of the config.
      seed: of generated problems.

    Raises:
      UserError: a file is faulty, or the task cannot make as many problems.
    """
    if task.make is not None:
        train, heldout = task.make(section, seed)
        return Sources((section.model_dump()["kind"],), (None,), (1.0,), (train,), None, heldout)
    if not isinstance(section, FileTask):
        raise ConfigError(f"task: expected a section that is a FileTask, or a Task with `make`, got {section!r:.80}")
    parts = list_training_sets(section)
    paths = tuple(part.path for part in parts)
    return Sources(
        tuple(mixing.name_sets(paths)),
        paths,
        tuple(part.weight for part in parts),
        tuple(
            load_file(task, part.path, section.fields if part.fields is None else part.fields)[: section.limit]
            for part in parts
        ),
        section.heldout_path,
        load_file(task, section.heldout_path, section.fields)[: section.limit],
    )


def keep_apart(task: Task, sources: Sources, data: Data, suites: Sequence[SuiteSection]) -> contamination.Passed:
    """Keep the training problems apart from the held-out ones, and from those of suites.

    Args:
      task: of the run.
      sources: its problems.
      data: section of the config.
      suites: that the run will be evaluated on.

    Raises:
      UserError: they share problems and the config does not say to drop them, or a suite cannot be read.
    """
    tasks = {suite.name: find_task(suite.kind, f"evaluation.suites.{index}.kind") for index, suite in enumerate(suites)}
    sets = {suite.name: load_file(tasks[suite.name], suite.path, suite.fields)[: suite.problems] for suite in suites}
    return contamination.check_overlap(
        task,
        mixing.join_sets(sources.names, sources.sets),
        {"heldout": sources.heldout} | sets,
        is_dropping=data.drop_overlap,
        is_strict=data.ngram_overlap == "refuse",
        tasks=tasks,
    )


def encode_problems(problems: Sequence[Problem], tokenizer: Tokenizer, question_tokens: int) -> ProblemSet:
    """The problems whose question fits its frame of `question_tokens`, with their tokens.

    Args:
      problems: of a set.
      tokenizer: the team's.
      question_tokens: of a frame.
    """
    rows = [(problem, tuple(tokenizer.encode_text(problem.question))) for problem in problems]
    fitting = [(problem, tokens) for problem, tokens in rows if len(tokens) <= question_tokens]
    return ProblemSet(
        tuple(problem for problem, _ in fitting), tuple(tokens for _, tokens in fitting), len(rows) - len(fitting)
    )


def mix_sets(sources: Sources, train: ProblemSet, size: int) -> Mixture:
    """What a step takes from each training set.

    Args:
      sources: the training sets.
      train: their problems whose question fits.
      size: problems of a step.

    Raises:
      ConfigError: there are fewer problems than a step takes, or a set would have to give one twice in a step.
    """
    if len(train.problems) < size:
        raise ConfigError(
            f"problems: expected at most the {len(train.problems)} training problems whose question fits"
            f" protocol.question_tokens, got {size}"
        )
    counts = Counter(map(mixing.find_set, train.problems))
    mixture = Mixture(sources.names, sources.weights, tuple(counts[index] for index in range(len(sources.sets))))
    most = mixing.count_most(mixture.weights, size)
    for index, (count, needed) in enumerate(zip(mixture.counts, most, strict=True)):
        if needed > count:
            raise ConfigError(
                f"task.path.{index}.weight: expected a share of the {size} problems of a step that the"
                f" {count} problems of {mixture.names[index]} can give, got one of up to {needed}"
            )
    return mixture


def check_resampling(config: RunConfig, train: ProblemSet) -> None:
    """Check that a step's further problems can all be others. Raises ConfigError with the numbers."""
    rounds, most = config.learner.resample_rounds, len(train.problems) // config.problems - 1
    if config.learner.zero_signal == "resample" and rounds > most:
        raise ConfigError(
            f"learner.resample_rounds: expected at most {most}, for no problem is drawn twice in a step and there are"
            f" {len(train.problems)} training problems for steps of {config.problems}, got {rounds}"
        )


def describe_data(
    sources: Sources, mixture: Mixture, overlap: contamination.Passed, heldout: ProblemSet, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """What the problems of a run are, for its manifest: files with their SHA-256 by path, counts, what was dropped.

    Args:
      sources, mixture: the training sets.
      overlap: what they had in common with held-out ones.
      heldout: the held-out problems.
      hashes: SHA-256 of the files, by path.
    """

    def describe_file(path: str | None) -> dict[str, str]:
        return {} if path is None else {"path": path, "sha256": hashes[path]}

    train = [
        {"name": name, **describe_file(path), "weight": weight, "problems": count}
        for name, path, weight, count in zip(mixture.names, sources.paths, mixture.weights, mixture.counts, strict=True)
    ]
    return {
        "train": train,
        "heldout": {**describe_file(sources.heldout_path), "problems": len(heldout.problems)},
        "overlap": contamination.count_hits(overlap.hits),
        "dropped": list(overlap.dropped),
    }


def print_left_out(
    console: Console, overlap: contamination.Passed, sets: Mapping[str, ProblemSet], protocol: Protocol
) -> None:
    """Print which problems are in two sets, and how many are too long to be asked.

    Args:
      console: to print on.
      overlap: what training and held-out problems have in common.
      sets: of problems, by what a sentence calls them.
      protocol: section of the config.
    """
    if overlap.hits:
        dropped = f", of which {len(overlap.dropped):,} are dropped" if overlap.dropped else ""
        shared = contamination.describe_hits(overlap.hits)
        line = f"training problems that share something with a held-out set: {shared}{dropped}"
        console.print(line, soft_wrap=True, highlight=False)
    for name, problems in sets.items():
        if problems.left_out:
            console.print(
                f"{problems.left_out} of {problems.left_out + len(problems.problems)} {name} problems are left out:"
                f" the question is longer than protocol.question_tokens ({protocol.question_tokens})",
                soft_wrap=True,
            )
