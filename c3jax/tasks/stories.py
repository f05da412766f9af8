"""Short word problems in plain English, from a seeded generator: something to count is gained and lost.

    Mia has 7 apples. Mia finds 5 more apples. Mia gives 4 apples to a friend. How many apples does Mia have now?

For policies that have learnt to read elsewhere. The answer is a whole number, never negative on the way. All
randomness is addressed (`c3jax.tasks.generated`).
"""

from __future__ import annotations

import functools

from c3jax.tasks import numeric
from c3jax.tasks.generated import draw_problems, draw_uniform, make_splits
from c3jax.tasks.sections import StoryTask
from c3jax.tasks.task import Task
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


def load_problems(task: StoryTask, seed: int, split: str, count: int) -> list[Problem]:
    """Make the first `count` problems of a split, no question twice.

    Args:
      task: the specification.
      seed: of the draws; splits share no question whatever their seeds.
      split: train, validation or test.
      count: how many.

    Raises:
      TaskError: the split is unknown, or so many distinct questions are not found.
    """
    advice = "; ask for fewer problems, more changes or larger numbers"
    return draw_problems("stories", functools.partial(_write_problem, task, seed), split, count, advice)


def _write_problem(task: StoryTask, seed: int, split: str, index: int, attempt: int) -> tuple[str, str]:
    address = ("story", seed, split, index, attempt)

    def choose(what: str, count: int) -> int:
        return int(count * draw_uniform(*address, what))

    name, things = NAMES[choose("name", len(NAMES))], THINGS[choose("things", len(THINGS))]
    held = 2 + choose("start", task.largest - 1)
    sentences = [f"{name} has {held} {things}."]
    for change in range(task.changes):
        is_loss = held > 2 and draw_uniform(*address, change, "kind") < task.loss_share
        forms = LOSSES if is_loss else GAINS
        # Two at least, and one is left: so that "1 apples" is never said.
        most = min(task.largest, held - 1) if is_loss else task.largest
        amount = 2 + choose(f"{change}/amount", most - 1)
        form = forms[choose(f"{change}/form", len(forms))]
        sentences.append(form.format(name=name, amount=amount, things=things))
        held += -amount if is_loss else amount
    return " ".join([*sentences, f"How many {things} does {name} have now?"]), str(held)


STORIES = Task(
    grade=numeric.grade,  # the last number of a message, exactly
    section=StoryTask,
    load=numeric.load_problems,
    make=functools.partial(make_splits, load_problems),
    read_answer=numeric.read_answer,
    canonical=numeric.canonical,
    write_answer=numeric.write_answer,
)
