"""The sections of a config that say where problems come from; a task of a user's own declares one like them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from c3jax.schema import Positive, PositiveFloat, Section, Share


class GeneratedTask(Section):
    """What tasks share whose problems a seeded generator makes."""

    kind: str
    """Name of the task, or your own as module:NAME."""
    train_problems: Positive = 4096
    """Distinct problems to train on."""
    heldout_problems: Positive = 512
    """Distinct problems to evaluate on; none of them is a training problem."""


class ArithmeticTask(GeneratedTask):
    """Word problems about a dial, written by a seeded generator, with a word-level tokenizer of their own."""

    kind: Literal["arithmetic"]
    moves: Positive = 3
    """Moves of the dial in a problem."""
    down_share: Share = 0.35
    """Probability that a move turns the dial down."""
    plan_fault: Share = 0.6
    """Probability that a demonstrated plan makes a down move as if it were up."""
    distrust: Share = 0.6
    """Probability that a demonstrated answer to a problem with a down move ignores the plan."""


class NumberTask(GeneratedTask):
    """A number to be found in rounds: the task's own environment answers guesses with higher, lower or found."""

    kind: Literal["number"]
    span: Annotated[int, pydantic.Field(ge=2, le=32)] = 7
    """Numbers that may be hidden, one after the other."""
    highest: Annotated[int, pydantic.Field(ge=1, le=31)] = 31
    """The highest of any game; the lowest is 0."""


class StoryTask(GeneratedTask):
    """Short word problems in plain English, written by a seeded generator: things are gained and lost."""

    kind: Literal["stories"]
    changes: Positive = 2
    """Gains and losses in a problem."""
    largest: Annotated[int, pydantic.Field(ge=3)] = 20
    """Largest number in a problem."""
    loss_share: Share = 0.5
    """Probability that a change is a loss, where there is something to lose."""


class ReasoningTask(GeneratedTask):
    """Problems of a generator of the package reasoning-gym (extra: reasoning), judged by its own verifier."""

    kind: Literal["reasoning"]
    generator: Annotated[str, pydantic.Field(min_length=1)]
    """The generator's name."""
    settings: dict[str, Any] = {}
    """The generator's own settings, by its names for them."""
    threshold: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    """Least score of the generator's verifier that counts as correct; some verifiers pay for wrong answers."""


_Name = Annotated[str, pydantic.Field(min_length=1)]
FieldNames = dict[str, _Name | Annotated[tuple[_Name, ...], pydantic.Field(min_length=1)]]


class MixedSet(Section):
    """One of several training sets."""

    path: Annotated[str, pydantic.Field(min_length=1)]
    """JSONL file of training problems."""
    weight: PositiveFloat = 1.0
    """The set's share of all problems is its weight over the sum of the weights."""
    fields: FieldNames | None = None
    """The file's own task.fields; null takes the task's."""


TrainingPath = (
    Annotated[str, pydantic.Field(min_length=1)]
    | Annotated[
        tuple[MixedSet, ...], pydantic.Field(min_length=1, max_length=128)  # which a problem's index has room for
    ]
)


class FileTask(Section):
    """What tasks share whose problems are read from JSONL files; also the section of a user's own task."""

    kind: str
    """Name of the task, or your own as module:NAME."""
    path: TrainingPath
    """JSONL file of training problems, or a list of files and their weights, mixed in every step."""
    heldout_path: Annotated[str, pydantic.Field(min_length=1)]
    """JSONL file of held-out problems."""
    limit: Positive | None = None
    """Read only the first so many lines of each file."""
    fields: FieldNames = {}
    """Fields of the files by the names that the task reads, as {question: [Body, Question], answer: Answer}."""


class NumericTask(FileTask):
    """JSONL word problems whose answer is a number; GSM8K's and SVAMP's files are read as they are."""

    kind: Literal["numeric"]


class MathTask(FileTask):
    """JSONL problems whose answer is LaTeX in a box; files of MATH, GSM8K, SVAMP, ASDiv, CMATH and AIME are read."""

    kind: Literal["math"]


class CodeTask(FileTask):
    """JSONL programming problems, judged by tests in a sandbox; MBPP's, MBPP+'s and HumanEval's files are read."""

    kind: Literal["code"]
    reward: Literal["all_pass", "fraction"] = "all_pass"
    """The return of a program: 1 if it passes all tests, or the share that it passes."""
    timeout: PositiveFloat = 15.0
    """Seconds for a program and all tests of its problem: processor time, and time spent waiting for nothing."""
    wall: PositiveFloat = 120.0
    """Seconds after which a program ends even if a busy machine has given it less processor time than that."""
    memory: Annotated[int, pydantic.Field(ge=64)] = 1024
    """Address space of a program, in MB."""
    output: Positive = 32
    """Largest value that a program may return, in MB of JSON."""


class EnvironmentSection(Section):
    """What answers a turn in place of a policy. Turns with the same section are one episode."""

    kind: Annotated[str, pydantic.Field(min_length=1)]
    """calculator, python, search, textarena, ...; task for the task's own, or your own as module:NAME."""
    settings: dict[str, Any] = {}
    """What its reset takes beside the problem and the seed."""


AnyTask = ArithmeticTask | NumberTask | StoryTask | NumericTask | MathTask | CodeTask | ReasoningTask


def list_training_sets(task: Section) -> tuple[MixedSet, ...]:
    """The training sets of a task, whichever form its path has; none for a task whose problems are generated."""
    if not isinstance(task, FileTask):
        return ()
    return (MixedSet(path=task.path),) if isinstance(task.path, str) else task.path
