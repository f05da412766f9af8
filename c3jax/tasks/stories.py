"""Short word problems in plain English, from a seeded generator: something to count is gained and lost.

    Mia has 7 apples. Mia finds 5 more apples. Mia gives 4 apples to a friend. How many apples does Mia have now?

For policies that have learnt to read elsewhere. The answer is a whole number, never negative on the way. Draws are
addressed as in `c3jax.tasks.arithmetic`, and so are the splits: no question is in two of them, whatever their seeds.
"""

from __future__ import annotations

from typing import NamedTuple

from c3jax.tasks import arithmetic
from c3jax.tasks.arithmetic import SPLITS, draw_uniform, hash_address
from c3jax.tasks.numeric import TaskError
from c3jax.types import Problem

NAMES = ("Mia", "Ben", "Ada", "Leo", "Zoe", "Sam", "Eva", "Max")
THINGS = ("apples", "books", "coins", "shells", "stamps", "pencils", "marbles", "cards")
GAINS = (
    "{name} finds {amount} more {things}.",
    "{name} buys {amount} more {things}.",
    "A friend gives {name} {amount} {things}.",
)
LOSSES = (
    "{name} loses {amount} {things}.",
    "{name} gives {amount} {things} to a friend.",
    "{name} sells {amount} {things}.",
)

grade = arithmetic.grade  # the last number of a message, exactly

_LONGEST_SEARCH = 2_000  # draws for one problem; a tenth of them fit the smallest split


class StorySpec(NamedTuple):
    """What the problems are like."""

    changes: int = 2  # gains and losses of a problem
    largest: int = 20  # of the numbers in a problem
    loss_share: float = 0.5  # probability that a change is a loss, where there is something to lose


def load_problems(spec: StorySpec, seed: int, split: str, count: int) -> list[Problem]:
    """Make the first `count` problems of a split, no question twice; the id is the split and the index.

    Raises:
      TaskError: the split is unknown, or so many distinct questions are not found.
    """
    if split not in SPLITS:
        raise TaskError(f"stories: expected a split of {', '.join(SPLITS)}, got {split!r}")
    problems: list[Problem] = []
    asked: set[str] = set()
    for index in range(count):
        problems.append(_search_problem(spec, seed, split, index, asked))
        asked.add(problems[-1].question)
    return problems


def _search_problem(spec: StorySpec, seed: int, split: str, index: int, asked: set[str]) -> Problem:
    for attempt in range(_LONGEST_SEARCH):
        question, answer = _write_problem(spec, ("story", seed, split, index, attempt))
        if hash_address("question", question) % 10 in SPLITS[split] and question not in asked:
            return Problem(index=index, id=f"{split}-{index}", question=question, answer=str(answer))
    raise TaskError(
        f"stories: no new question for problem {index} of split {split!r} in {_LONGEST_SEARCH} draws;"
        " ask for fewer problems, more changes or larger numbers"
    )


def _write_problem(spec: StorySpec, address: tuple[object, ...]) -> tuple[str, int]:
    def choose(what: str, count: int) -> int:
        return int(count * draw_uniform(*address, what))

    name, things = NAMES[choose("name", len(NAMES))], THINGS[choose("things", len(THINGS))]
    held = 2 + choose("start", spec.largest - 1)
    sentences = [f"{name} has {held} {things}."]
    for place in range(spec.changes):
        is_loss = held > 2 and draw_uniform(*address, place, "kind") < spec.loss_share
        forms = LOSSES if is_loss else GAINS
        # Two at least, and one is left: so that "1 apples" is never said.
        most = min(spec.largest, held - 1) if is_loss else spec.largest
        amount = 2 + choose(f"{place}/amount", most - 1)
        form = forms[choose(f"{place}/form", len(forms))]
        sentences.append(form.format(name=name, amount=amount, things=things))
        held += -amount if is_loss else amount
    return " ".join([*sentences, f"How many {things} does {name} have now?"]), held
