"""Trees drawn call by call and graded meanwhile: a call's answers go to the graders while the device runs the next.

Messages are drawn by the address of their problem and all from one policy: in how many calls, and on how many devices
and processes, changes nothing but rounding. Each process grades the problems that it is the first to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from c3jax.models.sharding import Mesh, fetch_own, list_own
from c3jax.processes import share_rows
from c3jax.rewards import Evaluator
from c3jax.rollout.tree import RolloutCounts, take_problems
from c3jax.types import Messages, Problem, Rollout, Tokenizer, Verdict

_PATIENCE_S = 0.02  # between two looks at the device


class Drawn(NamedTuple):
    """The trees of one call, whose answers are being graded."""

    rollout: Rollout  # of the call's problems, and of what fills it up
    counts: RolloutCounts
    own: list[int]  # the problems whose answers this process grades, by their numbers in the whole list
    kept: int  # problems of the call, from the first on, that do not fill it up


def draw_and_submit(  # noqa: PLR0913
    draw: Callable[[list[int]], tuple[Rollout, RolloutCounts]],
    problems: Sequence[Problem],
    size: int,
    decode: Callable[[Messages], list[str]],
    evaluator: Evaluator,
    mesh: Mesh | None,
    calls: int = 1,
    begun: tuple[Rollout, RolloutCounts] | None = None,
) -> Iterator[Drawn]:
    """Draw the trees of all problems, and submit their answers.

    Args:
      draw: gives the trees of the problems of these numbers, `size` of them.
      problems: all of them; the last call is filled up with its last one, which is not graded again.
      size: problems of a call.
      decode: gives the texts of messages.
      evaluator: given the answers; who has taken all trees collects the verdicts of them all.
      mesh: over which the trees are laid.
      calls: evaluator calls an answer.
      begun: the first call's trees, where the caller has them drawn already.

    Yields:
      The trees of each call, in order.
    """
    cuts = [range(first, min(first + size, len(problems))) for first in range(0, len(problems), size)]
    held = list_own(mesh, size)

    def begin(cut: range) -> tuple[Rollout, RolloutCounts]:
        return draw([*cut, *[cut[-1]] * (size - len(cut))])

    begun = begun or begin(cuts[0])
    for call, cut in enumerate(cuts):
        wait_for(begun, evaluator)
        rollout, counts = begun
        if call + 1 < len(cuts):
            begun = begin(cuts[call + 1])
        own = [cut[number] for number in held if number < len(cut)]
        answers = decode(fetch_messages(mesh, rollout._replace(turns=rollout.turns[-1:]), len(cut))[0])
        answers = [answer for answer in answers for _ in range(calls)]
        leaves = len(answers) // max(len(own), 1)
        evaluator.submit([problems[number] for number in own for _ in range(leaves)], answers, budget=len(answers))
        yield Drawn(rollout, counts, own, len(cut))


def fetch_messages(mesh: Mesh | None, rollout: Rollout, kept: int) -> tuple[Messages, ...]:
    """This process's own messages on the host, without their supports, which are large and for the device alone.

    Args:
      mesh: over which the trees are laid.
      rollout: the trees of a call.
      kept: how many of its problems, from the first on, are asked for.
    """
    held = list_own(mesh, len(rollout.question.tokens_NS))
    turns = fetch_own(mesh, tuple(turn._replace(support_NTK=turn.truncated_N) for turn in rollout.turns))
    rows = np.flatnonzero(np.array(held, int) < kept)
    return turns if len(rows) == len(held) else take_problems(turns, len(held), rows)


def decode_messages(tokenizer: Tokenizer, messages: Messages) -> list[str]:
    """Of each message the text that others read: its visible part, or all but the stop token.

    Args:
      tokenizer: that the tokens are of.
      messages: N of them.

    Returns:
      N texts.
    """
    tokens, content = np.asarray(messages.tokens_NT), np.asarray(messages.content_NT)
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, content, strict=True)]


def wait_for(arrays: Any, evaluator: Evaluator) -> None:
    """Wait until arrays are computed; hand out answers and take verdicts in meanwhile.

    Args:
      arrays: a tree of them.
      evaluator: whose workers are kept busy.
    """
    leaves = jax.tree.leaves(arrays)
    while not all(leaf.is_ready() for leaf in leaves) and evaluator.pump(_PATIENCE_S):
        pass
    jax.block_until_ready(arrays)


def pay_verdicts(
    mesh: Mesh | None, drawn: Sequence[Drawn], verdicts: Sequence[Verdict], calls: int = 1
) -> list[Verdict]:
    """The verdicts of this process's leaves with what environments gave on the way to each added to their scores.

    Args:
      mesh: over which the trees are laid.
      drawn: the trees, call by call.
      verdicts: of their leaves, in order.
      calls: evaluator calls a leaf.
    """
    if all(turn.observed is None for turn in drawn[0].rollout.turns):
        return list(verdicts)
    paid, left = [], list(verdicts)
    for part in drawn:
        turns = fetch_messages(mesh, part.rollout, part.kept)
        leaves = len(turns[-1].tokens_NT) * calls
        paid += add_rewards(turns, left[:leaves])
        left = left[leaves:]
    return paid


def add_rewards(turns: Sequence[Messages], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts of trees' leaves with what environments gave on the way to each added to their scores.

    Args:
      turns: the messages.
      verdicts: of the leaves in order, equally many of each.
    """
    reward_L = np.zeros(len(verdicts))
    for turn in turns:
        if turn.observed is not None:
            reward_N = np.asarray(turn.observed.reward_N)
            reward_L += np.repeat(reward_N, len(verdicts) // len(reward_N))
    return [_pay(verdict, float(reward)) for verdict, reward in zip(verdicts, reward_L, strict=True)]


def _pay(verdict: Verdict, reward: float) -> Verdict:
    if reward == 0.0:
        return verdict
    score = verdict.score + reward
    return verdict._replace(score=score, verdict="correct" if score >= 1 else "wrong" if score <= 0 else "partial")


def share_verdicts(own: Sequence[int], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts of every process, in the order of the problems.

    Args:
      own: the problems, by their numbers in the batch, whose answers this process has graded.
      verdicts: of these, as many of each.
    """
    leaves = len(verdicts) // max(len(own), 1)
    cut = [verdicts[first * leaves : (first + 1) * leaves] for first in range(len(own))]
    return [Verdict(*verdict) for of_problem in share_rows(own, cut) for verdict in of_problem]
