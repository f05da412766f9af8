"""The contexts of a run at whose turns groups are drawn: a transcript a problem, recorded or still to be drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from c3jax.commands.redraw import Team
from c3jax.run.records import Record, RecordedTree, list_lines, list_record_files, list_trees, parse_tree
from c3jax.setup.team import choose_problems
from c3jax.types import UserError

Origin = Literal["recorded", "fresh"]

_KEPT = ("turn", "role", "text", "token_ids", "reward", "done", "failed")  # of a transcript's messages


class Sizes(NamedTuple):
    """What is drawn at a context."""

    alternatives: int  # n
    continuations: int  # of an alternative, that credit is made of
    held_out: int  # more of them in each of two halves, that credit is held against

    @property
    def all_continuations(self) -> int:
        """Of an alternative, M."""
        return self.continuations + 2 * self.held_out


class Request(NamedTuple):
    """Which contexts, and what is drawn there."""

    origin: Origin
    problems: int
    sizes: Sizes
    nulls: tuple[str, ...]  # messages that are continued in the alternatives' stead
    gradients: int = 0  # problems, at least, whose trees' gradients are measured


class Context(NamedTuple):
    """A problem and the transcript at whose turns groups are drawn."""

    problem: int  # its number in the training set
    name: str  # its id
    question: str
    step: int  # at which the transcript was recorded; of a fresh one the policy's
    transcript: tuple[Record, ...] | None  # a message a turn but the last; None: still to be drawn


def list_contexts(team: Team, run: Path, step: int, request: Request) -> list[Context]:
    """The contexts asked for: of each problem one transcript.

    Recorded ones are those of the steps nearest to the policy's, later ones first; fresh ones are of the problems that
    the policy's next steps train on.

    Args:
      team: that draws.
      run: its directory.
      step: of its checkpoint.
      request: what is asked.

    Returns:
      As many as are asked for, or all there are.

    Raises:
      UserError: there are none, or a record lacks its token ids.
    """
    number_of = {problem.id: number for number, problem in enumerate(team.setup.train.problems)}
    most = min(request.problems, len(number_of))
    found: dict[str, Context] = {}
    if request.origin == "recorded":
        for tree in _list_nearest(run, step):
            name = tree.record.get("problem", "")
            if name in number_of and name not in found:
                problem = team.setup.train.problems[number_of[name]]
                spoken = (tree.record["step"], _find_transcript(tree))
                found[name] = Context(number_of[name], name, problem.question, *spoken)
            if len(found) == most:
                break
    else:
        for number in itertools.chain.from_iterable(choose_problems(team.setup, step + ahead) for ahead in range(most)):
            problem = team.setup.train.problems[number]
            found.setdefault(problem.id, Context(number, problem.id, problem.question, step, None))
            if len(found) == most:
                break
    if not found:
        raise UserError(
            f"{run}: expected a recorded tree of a training problem, found none; --contexts fresh needs none"
        )
    return list(found.values())[:most]


def _list_nearest(run: Path, step: int) -> Iterator[RecordedTree]:
    files = list_record_files(run)
    if not files:
        raise UserError(f"{run}/rollouts: expected recorded trees, found none; --contexts fresh needs none")
    steps = {path: int(part) for path in files if (part := path.stem.rpartition("-")[2]).isdigit()}
    for path in sorted(steps, key=lambda path: (abs(steps[path] - step), -steps[path])):
        for where, line in list_lines(path):
            yield parse_tree(line, where)


def _find_transcript(tree: RecordedTree) -> tuple[Record, ...]:
    """The first path of a record's first branch, without its last message."""
    _, levels = list_trees(tree)[0]
    nodes = [level[0] for level in levels[:-1]]
    if any("token_ids" not in node for node in nodes):
        raise UserError(f"{tree.where}: expected messages recorded with their token ids, got one without")
    return tuple({name: node[name] for name in _KEPT if name in node} for node in nodes)
