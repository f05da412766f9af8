"""Groups drawn at a run's contexts, and kept: n alternatives, each continued several times, by one policy.

A context is a problem's transcript up to a turn in which a policy speaks, recorded while the run trained or drawn
afresh. At every such turn of it the policy of one checkpoint draws alternatives and their continuations, and continues
null messages in their stead. Every draw is addressed by what is drawn; what is drawn is kept in RUN/diagnose, a problem
a line, and not drawn again.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.commands.contexts import Context, Request, Sizes
from c3jax.commands.redraw import Team, write_messages
from c3jax.protocol import TurnPlan
from c3jax.rollout import address
from c3jax.rollout.acting import Start, draw_trees
from c3jax.rollout.collect import add_rewards
from c3jax.run.files import save_whole
from c3jax.run.records import Record
from c3jax.setup.team import Setup, decode_messages, make_questions
from c3jax.types import Messages, Rollout, UserError, Verdict

_STREAM = 0x64696167  # apart from the other draws of the stream ASK
_FRESH, _ALTERNATIVES, _NULL = range(3)  # what is drawn, as part of its address; of a null message with its hash


class Group(NamedTuple):
    """What was drawn of one problem, at all turns."""

    alternatives: Record
    nulls: dict[str, Record]  # by their text


def count_calls(turns: int, sizes: Sizes, is_null: bool) -> int:
    """Evaluator calls a problem: n M at each turn but the last and n there; of a null message n, and 1 there.

    Args:
      turns: in which policies speak.
      sizes: of a group.
      is_null: whether it is a null message that is continued.
    """
    n = sizes.alternatives
    return (turns - 1) * n + 1 if is_null else (turns - 1) * n * sizes.all_continuations + n


def load_lines(path: Path) -> list[Record]:
    """What is kept so far: alternatives or a null message of one problem a line.

    A last line that was not finished is dropped from the file.

    Raises:
      UserError: another line is no group.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        save_whole(path, b"".join(line + b"\n" for line in lines[:-1]))
    kept = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            kept.append(json.loads(line))
            _ = (_identify(kept[-1]), kept[-1]["transcript"], kept[-1]["turns"])
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}:{number}: expected a recorded group, got something else") from None
    return kept


# The question is part of it: a run may be used with problems that are not what they were.
_Key = tuple[str, str, str, int, str | None]


def _identify(line: Record) -> _Key:
    return line["problem"], line["question"], line["origin"], line["step"], line["null"]


def complete_groups(
    team: Team, path: Path, step: int, contexts: Sequence[Context], request: Request, announce: Callable[[int], None]
) -> list[Group]:
    """The groups of all contexts: those kept, and the others drawn, graded and kept batch by batch.

    Args:
      team: that draws.
      path: the file they are kept in.
      step: of the team's checkpoint.
      contexts: asked for.
      request: what is drawn at each.
      announce: given, before anything is drawn, the evaluator calls that this takes.

    Returns:
      The groups, in the order of the contexts.
    """
    known = {_identify(line): line for line in load_lines(path)}

    def find_key(context: Context, null: str | None) -> _Key:
        return context.name, context.question, request.origin, context.step, null

    arms = (None, *request.nulls)
    missing = {null: [each for each in contexts if find_key(each, null) not in known] for null in arms}
    turns = len(list_decisions(team.setup))
    announce(sum(len(of) * count_calls(turns, request.sizes, null is not None) for null, of in missing.items()))
    path.parent.mkdir(exist_ok=True)
    for null in arms:
        size = min(_choose_size(team, request.sizes), max(len(missing[null]), 1))
        for batch in _cut_batches(missing[null], size, by_step=team.acting is not None):
            if null is not None:  # at the transcripts of the alternatives
                spoken = [known[find_key(each, None)]["transcript"] for each in batch]
                batch = [each._replace(transcript=tuple(nodes)) for each, nodes in zip(batch, spoken, strict=True)]
            drawn = draw_lines(_Batch(team, step, batch, size), request, null)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in drawn))
            known |= {_identify(line): line for line in drawn}
    return [
        Group(known[find_key(each, None)], {null: known[find_key(each, null)] for null in request.nulls})
        for each in contexts
    ]


def list_decisions(setup: Setup) -> list[int]:
    """The turns in which a policy speaks."""
    return [turn for turn, plan in enumerate(setup.plans) if not plan.is_environment]


def _cut_batches(contexts: Sequence[Context], size: int, by_step: bool) -> Iterator[list[Context]]:
    """Contexts of a call each. An environment's episodes are addressed by the step, and a call has one."""
    for _, found in itertools.groupby(contexts, key=lambda context: by_step and context.step):
        of_step = list(found)
        for first in range(0, len(of_step), size):
            yield of_step[first : first + size]


def _choose_size(team: Team, sizes: Sizes) -> int:
    """Problems of a call: about as many messages of a turn as a call of the run's training draws."""
    config = team.setup.config
    rows = config.call_problems * config.credit.budget
    return max(1, rows // (sizes.alternatives * sizes.all_continuations))


class _Batch(NamedTuple):
    """Some contexts being drawn, as many at once as are compiled for."""

    team: Team
    step: int
    contexts: Sequence[Context]
    size: int  # contexts of a call; where there are fewer the last one fills it up

    def sample(
        self, kind: tuple[int, ...], given: Sequence[Sequence[Record]], counts: Mapping[int, int] = MappingProxyType({})
    ) -> Rollout:
        """Draw trees that go on from given messages, a list a turn with one of each context.

        Args:
          kind: what is drawn, the last part of its address.
          given: nodes of the first turns.
          counts: alternatives of turns; 1 at those that it does not name.

        Returns:
          The trees of the batch's own contexts, on the host.
        """
        setup, owed = self.team.setup, self.size - len(self.contexts)
        key = address.make_stream(setup.config.seed, address.ASK)
        for part in (_STREAM, self.step, *kind):
            key = jax.random.fold_in(key, part)
        # The episodes that were recorded, or would be at a fresh transcript's step.
        episode_key = address.make_step_key(setup.config.seed, address.TRAIN, self.contexts[0].step)
        numbers = [context.problem for context in self.contexts]
        question, problem_P = make_questions(setup, setup.train, numbers + numbers[-1:] * owed)
        rows = [[*nodes, *[nodes[-1]] * owed] for nodes in given]
        messages = tuple(write_messages(setup, turn, nodes) for turn, nodes in enumerate(rows))
        fan_out = tuple(counts.get(turn, 1) for turn in range(len(setup.plans)))
        problems = [setup.train.problems[number] for number in numbers + numbers[-1:] * owed]
        asked = (problems, question, key, jnp.asarray(problem_P), fan_out, Start(messages), episode_key)
        rollout, _ = draw_trees(self.team.sample_tree, self.team.acting, self.team.weights, *asked)
        kept = len(self.contexts)
        return jax.tree.map(lambda array: array[: len(array) // self.size * kept], jax.device_get(rollout))


def draw_lines(batch: _Batch, request: Request, null: str | None) -> list[Record]:
    """Draw and grade, of a batch of problems, the alternatives at all turns or what follows a null message there.

    Args:
      batch: the contexts.
      request: what is drawn.
      null: the message that is continued; None draws alternatives.

    Returns:
      A record a problem: the transcript, and of each turn in which a policy speaks the address of its draws, the
      alternatives with the next messages, and answers and returns: a list an alternative, or one list. Where
      environments answer, returns have all that they paid, and beside them stands what was paid before the turn, and
      whether the episode was over there, so that nobody spoke.
    """
    setup, transcript = batch.team.setup, _complete_transcripts(batch)
    decisions = list_decisions(setup)
    parts = [_draw_turn(batch, request.sizes, transcript[:turn], null) for turn in decisions]
    numbers, answers = [], []
    for part in parts:
        per = len(part.answers) // len(batch.contexts)
        numbers += [row // per for row in range(len(part.answers))]
        answers += part.answers
    problems = [setup.train.problems[batch.contexts[number].problem] for number in numbers]
    verdicts = iter(batch.team.evaluator.score(problems, answers, budget=len(answers)))
    graded = [add_rewards(part.paying, [next(verdicts) for _ in part.answers]) for part in parts]
    shared = {"checkpoint": batch.step, "origin": request.origin, "null": null, **request.sizes._asdict()}
    lines = []
    for number, context in enumerate(batch.contexts):
        turns = []
        for turn, part, scored in zip(decisions, parts, graded, strict=True):
            kind, plan = [address.ASK, _STREAM, batch.step, *_address(turn, null)], setup.plans[turn]
            described = _describe_turn(part, scored, number, len(batch.contexts))
            if batch.team.acting is not None:
                described |= _describe_past(plan, [nodes[number] for nodes in transcript[:turn]])
            turns.append({"turn": plan.name, "role": plan.role, "address": kind, **described})
        spoken = [nodes[number] for nodes in transcript]
        named = {"problem": context.name, "question": context.question, "step": context.step}
        named["index"] = setup.train.problems[context.problem].index  # by which its draws are addressed
        lines.append({**named, **shared, "transcript": spoken, "turns": turns})
    return lines


def _address(turn: int, null: str | None) -> tuple[int, ...]:
    return (_ALTERNATIVES, turn) if null is None else (_NULL, turn, zlib.crc32(null.encode()))


def _complete_transcripts(batch: _Batch) -> list[list[Record]]:
    """Messages of all turns but the last, a list a turn with one of each context."""
    plans = batch.team.setup.plans[:-1]
    if any(context.transcript is None for context in batch.contexts):
        rollout = batch.sample((_FRESH,), ())
        drawn = [_describe_messages(batch.team, messages) for messages in rollout.turns[:-1]]
        return [
            [{"turn": plan.name, "role": plan.role, **node} for node in nodes]
            for plan, nodes in zip(plans, drawn, strict=True)
        ]
    return [
        [context.transcript[turn] for context in batch.contexts if context.transcript] for turn in range(len(plans))
    ]


class _Turn(NamedTuple):
    """What was drawn at one turn; lists go through the contexts, of each through its alternatives, and so on."""

    messages: list[Record]  # the alternatives; none where a null message is continued
    next: list[str]  # of the turn after; none at the last
    answers: list[str]  # the last messages
    paying: tuple[Messages, ...]  # of all turns, in which environments may have paid


def _draw_turn(batch: _Batch, sizes: Sizes, given: Sequence[Sequence[Record]], null: str | None) -> _Turn:
    setup, turn, n = batch.team.setup, len(given), sizes.alternatives
    tokenizer = setup.tokenizer
    # Environments answer one way, so what is continued several times is the next message that a policy writes.
    following = next((later for later in list_decisions(setup) if later > turn), None)
    if null is None:
        counts = {turn: n} | ({} if following is None else {following: sizes.all_continuations})
        rollout = batch.sample(_address(turn, null), given, counts)
        after = [] if following is None else decode_messages(tokenizer, rollout.turns[following])
        messages = _describe_messages(batch.team, rollout.turns[turn])
        return _Turn(messages, after, decode_messages(tokenizer, rollout.turns[-1]), rollout.turns)
    node = {"text": null, "token_ids": tokenizer.encode_text(null)}
    begun = [*given, [node] * len(batch.contexts)]
    if turn == len(setup.plans) - 1:
        paying = tuple(write_messages(setup, earlier, nodes) for earlier, nodes in enumerate(given))
        return _Turn([], [], [tokenizer.decode(node["token_ids"])] * len(batch.contexts), paying)
    rollout = batch.sample(_address(turn, null), begun, {} if following is None else {following: n})
    return _Turn([], [], decode_messages(tokenizer, rollout.turns[-1]), rollout.turns)


def _describe_messages(team: Team, messages: Messages) -> list[Record]:
    texts, nodes = decode_messages(team.setup.tokenizer, messages), []
    for row, text in enumerate(texts):
        kept_NT, truncated = messages.sampled_NT, bool(messages.truncated_N[row])
        paid = {}
        if (observed := messages.observed) is not None:
            paid = {"reward": float(observed.reward_N[row])}
            paid |= {"done": bool(observed.done_N[row]), "failed": bool(observed.failed_N[row])}
            kept_NT = messages.content_NT
        token_ids = np.asarray(messages.tokens_NT[row])[np.asarray(kept_NT[row])].tolist()
        nodes.append({"text": text, "token_ids": token_ids, "tokens": len(token_ids), "truncated": truncated} | paid)
    return nodes


def _describe_past(plan: TurnPlan, nodes: Sequence[Record]) -> Record:
    """What environments paid before a turn, and whether one had ended the episode."""
    is_over = any(nodes[turn].get("done", False) for turn in plan.skipped_by)
    return {"past": sum(node.get("reward", 0.0) for node in nodes), "is_over": is_over}


def _describe_turn(part: _Turn, graded: Sequence[Verdict], number: int, contexts: int) -> Record:
    """One context's share of a turn."""

    def cut(rows: Sequence[Any], pieces: int, piece: int) -> list[Any]:
        per = len(rows) // pieces
        return list(rows[piece * per : (piece + 1) * per])

    verdicts, messages = cut(graded, contexts, number), cut(part.messages, contexts, number)
    answers, returns = [verdict.answer for verdict in verdicts], [verdict.score for verdict in verdicts]
    if not messages:
        return {"answers": answers, "returns": returns}
    after, n = cut(part.next, contexts, number), len(messages)
    folded = {"next": after, "answers": answers, "returns": returns}
    return {"messages": messages} | {name: [cut(rows, n, row) for row in range(n)] for name, rows in folded.items()}
