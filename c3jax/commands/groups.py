"""Groups drawn at a run's contexts, and kept: n alternatives, each continued several times, by one policy.

A context is a problem's transcript up to a turn, recorded while the run trained or drawn afresh. At every turn of it
the policy of one checkpoint draws alternatives and their continuations, and continues null messages in their stead.
Every draw is addressed by what is drawn; what is drawn is kept in RUN/diagnose, a problem a line, and not drawn again.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.commands.redraw import Team, write_messages
from c3jax.rollout import address
from c3jax.run.files import save_whole
from c3jax.run.records import Record, RecordedTree, list_record_files, list_trees, parse_tree
from c3jax.setup.team import choose_problems, decode_messages, make_questions
from c3jax.types import Messages, Rollout, UserError, Verdict

Origin = Literal["recorded", "fresh"]

_STREAM = 0x64696167  # apart from the other draws of the stream ASK
_FRESH, _ALTERNATIVES, _NULL = range(3)  # what is drawn, as part of its address; of a null message with its hash


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


class Context(NamedTuple):
    """A problem and the transcript at whose turns groups are drawn."""

    problem: int  # its number in the training set
    name: str  # its id
    question: str
    step: int  # at which the transcript was recorded; of a fresh one the policy's
    transcript: tuple[Record, ...] | None  # a message a turn but the last; None: still to be drawn


class Group(NamedTuple):
    """What was drawn of one problem, at all turns."""

    alternatives: Record
    nulls: dict[str, Record]  # by their text


def count_calls(turns: int, sizes: Sizes, is_null: bool) -> int:
    """Evaluator calls a problem: n M at each turn but the last and n there; of a null message n, and 1 there.

    Args:
      turns: of the protocol.
      sizes: of a group.
      is_null: whether it is a null message that is continued.
    """
    n = sizes.alternatives
    return (turns - 1) * n + 1 if is_null else (turns - 1) * n * sizes.all_continuations + n


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
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                yield parse_tree(line, f"{path}:{number}")


def _find_transcript(tree: RecordedTree) -> tuple[Record, ...]:
    """The first path of a record's first branch, without its last message."""
    _, levels = list_trees(tree)[0]
    nodes = [level[0] for level in levels[:-1]]
    if any("token_ids" not in node for node in nodes):
        raise UserError(f"{tree.where}: expected messages recorded with their token ids, got one without")
    return tuple({name: node[name] for name in ("turn", "role", "text", "token_ids")} for node in nodes)


def name_file(run: Path, step: int, sizes: Sizes) -> Path:
    """Where groups of these sizes, by the policy of a step, are kept."""
    form = f"{sizes.alternatives}x{sizes.continuations}+{2 * sizes.held_out}"
    return run / "diagnose" / f"step-{step}-{form}.jsonl"


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
    team: Team,
    path: Path,
    step: int,
    contexts: Sequence[Context],
    request: Request,
    announce: Callable[[int], None],
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
    turns = len(team.setup.plans)
    announce(sum(len(of) * count_calls(turns, request.sizes, null is not None) for null, of in missing.items()))
    path.parent.mkdir(exist_ok=True)
    for null in arms:
        size = min(_choose_size(team, request.sizes), max(len(missing[null]), 1))
        for first in range(0, len(missing[null]), size):
            batch = missing[null][first : first + size]
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

    def sample(self, kind: tuple[int, ...], given: Sequence[Sequence[Record]], fan_out: tuple[int, ...]) -> Rollout:
        """Draw trees that go on from given messages, a list a turn with one of each context.

        Args:
          kind: what is drawn, the last part of its address.
          given: nodes of the first turns.
          fan_out: of the first turns; 1 at those after.

        Returns:
          The trees of the batch's own contexts, on the host.
        """
        setup, owed = self.team.setup, self.size - len(self.contexts)
        key = address.make_stream(setup.config.seed, address.ASK)
        for part in (_STREAM, self.step, *kind):
            key = jax.random.fold_in(key, part)
        numbers = [context.problem for context in self.contexts]
        question, problem_P = make_questions(setup, setup.train, numbers + numbers[-1:] * owed)
        rows = [[*nodes, *[nodes[-1]] * owed] for nodes in given]
        messages = tuple(write_messages(setup, turn, nodes) for turn, nodes in enumerate(rows))
        fan_out = (fan_out + (1,) * len(setup.plans))[: len(setup.plans)]
        rollout, _ = self.team.sample_tree(self.team.weights, question, key, jnp.asarray(problem_P), fan_out, messages)
        kept = len(self.contexts)
        return jax.tree.map(lambda array: array[: len(array) // self.size * kept], jax.device_get(rollout))


def draw_lines(batch: _Batch, request: Request, null: str | None) -> list[Record]:
    """Draw and grade, of a batch of problems, the alternatives at all turns or what follows a null message there.

    Args:
      batch: the contexts.
      request: what is drawn.
      null: the message that is continued; None draws alternatives.

    Returns:
      A record a problem: the transcript, and of each turn the address of its draws, the alternatives with the next
      messages, and answers and returns: a list an alternative, or one list.
    """
    setup, transcript = batch.team.setup, _complete_transcripts(batch)
    parts = [_draw_turn(batch, request.sizes, transcript[:turn], null) for turn in range(len(setup.plans))]
    numbers, answers = [], []
    for part in parts:
        per = len(part.answers) // len(batch.contexts)
        numbers += [row // per for row in range(len(part.answers))]
        answers += part.answers
    problems = [setup.train.problems[batch.contexts[number].problem] for number in numbers]
    verdicts = iter(batch.team.evaluator.score(problems, answers, budget=len(answers)))
    graded = [[next(verdicts) for _ in part.answers] for part in parts]
    shared = {"checkpoint": batch.step, "origin": request.origin, "null": null, **request.sizes._asdict()}
    lines = []
    for number, context in enumerate(batch.contexts):
        turns = []
        for turn, plan in enumerate(setup.plans):
            kind = [address.ASK, _STREAM, batch.step, *_address(turn, null)]
            described = _describe_turn(parts[turn], graded[turn], number, len(batch.contexts))
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
        rollout = batch.sample((_FRESH,), (), ())
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


def _draw_turn(batch: _Batch, sizes: Sizes, given: Sequence[Sequence[Record]], null: str | None) -> _Turn:
    turn, tokenizer, n = len(given), batch.team.setup.tokenizer, sizes.alternatives
    is_last = turn == len(batch.team.setup.plans) - 1
    if null is None:
        rollout = batch.sample(_address(turn, null), given, (*(1,) * turn, n, sizes.all_continuations))
        following = [] if is_last else decode_messages(tokenizer, rollout.turns[turn + 1])
        messages = _describe_messages(batch.team, rollout.turns[turn])
        return _Turn(messages, following, decode_messages(tokenizer, rollout.turns[-1]))
    node = {"text": null, "token_ids": tokenizer.encode_text(null)}
    if is_last:
        return _Turn([], [], [tokenizer.decode(node["token_ids"])] * len(batch.contexts))
    begun = [*given, [node] * len(batch.contexts)]
    rollout = batch.sample(_address(turn, null), begun, (*(1,) * (turn + 1), n))
    return _Turn([], [], decode_messages(tokenizer, rollout.turns[-1]))


def _describe_messages(team: Team, messages: Messages) -> list[Record]:
    texts, nodes = decode_messages(team.setup.tokenizer, messages), []
    for row, text in enumerate(texts):
        token_ids = np.asarray(messages.tokens_NT[row])[np.asarray(messages.sampled_NT[row])].tolist()
        truncated = bool(messages.truncated_N[row])
        nodes.append({"text": text, "token_ids": token_ids, "tokens": len(token_ids), "truncated": truncated})
    return nodes


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
