"""Restarting from a recorded decision: the same messages again, or what becomes of another one.

Every draw is addressed by what is drawn, so the policy that drew a message draws it, and all that followed, again. That
is token for token where the whole call of the sampler is drawn again: a batch of another shape is rounded otherwise.
With a message of one's own in its place, fresh continuations of it and of the recorded alternatives show what each is
worth in the same context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3jax.commands.ask import load_source
from c3jax.commands.redraw import Team, draw_on, find_problem, open_team, write_messages
from c3jax.credit.plans import Branch
from c3jax.evaluate import compute_interval
from c3jax.rollout import address, tree
from c3jax.rollout.acting import Start, draw_trees
from c3jax.rollout.collect import add_rewards
from c3jax.run.directory import list_steps
from c3jax.run.metrics import read_metrics
from c3jax.run.records import Record, RecordedTree, list_lines, list_record_files, list_trees, load_trees, parse_tree
from c3jax.setup.team import Setup, choose_further, choose_slots, decode_messages, decode_whole, make_questions
from c3jax.types import Frame, Messages, Problem, Rollout, UserError, Verdict

_SHOWN = 60  # characters of a message in a table


class Request(NamedTuple):
    """Which decision, by which policy, and what is to be put in its place."""

    problem: str  # its id
    step: int | None  # of the recorded tree; None takes the first that has the problem
    node: str  # its path of alternatives, as 0.1
    branch: int  # of a plan that is no tree
    checkpoint: str | None  # None: the policy that drew the tree
    message: str | None  # put in the role's mouth; None draws what was drawn
    samples: int  # continuations of a message
    is_alone: bool = False  # draw the message by itself, from its recorded context


class Decision(NamedTuple):
    """A recorded message with its tree: the branch, all nodes of it turn by turn, and the message's row there."""

    recorded: RecordedTree
    number: int  # of the branch
    branch: Branch
    levels: tuple[list[Record], ...]
    turn: int
    row: int

    def find_row(self, turn: int) -> int:
        """The row of the message's ancestor in an earlier turn."""
        return self.row * len(self.levels[turn]) // len(self.levels[self.turn])


def replay_source(
    run: Path,
    request: Request,
    console: Console,
    as_json: bool,
    is_contained: bool = True,
    accepting: Sequence[str] = (),
) -> int:
    """Replay a decision of a run, and print what it gives beside what was recorded.

    Args:
      run: a run directory.
      request: what is asked.
      console: to print on.
      as_json: whether JSON is printed instead.
      is_contained: whether programs run in their sandbox.
      accepting: as `load_source`.

    Returns:
      The exit code: 1 where the policy that drew the messages gives others.

    Raises:
      UserError: the decision is not recorded, or its policy is not kept.
    """
    decision = find_decision(run, request)
    step = decision.recorded.record["step"]
    checkpoint = _choose_checkpoint(run, step) if request.checkpoint is None else request.checkpoint
    setup, weights, drawn_at = load_source(str(run), checkpoint, {}, is_contained, accepting, step)
    problem = find_problem(setup, request.problem)
    with open_team(setup, weights) as team:
        if request.message is not None:
            rows = compare_messages(team, decision, problem, request.message, request.samples)
            _print_values(rows, decision, drawn_at, request.samples, console, as_json)
            return 0
        # Another policy's messages would be other contexts, too.
        is_alone = request.is_alone or drawn_at != step
        again = repeat_messages(team, decision, problem, is_alone)
    is_same = all(line["same"] for line in again)
    _print_again(again, drawn_at, step, None if is_alone else setup.config.call_problems, console, as_json)
    return int(not is_same and drawn_at == step)


def find_decision(run: Path, request: Request) -> Decision:
    """The recorded message that is asked for. Raises UserError where there is none."""
    found = _find_tree(run, request)
    trees = list_trees(found)
    if not 0 <= request.branch < len(trees):
        raise UserError(f"--branch: expected one of the {len(trees)} branches of this record, got {request.branch}")
    branch, levels = trees[request.branch]
    parts = request.node.split(".")
    index = [int(part) for part in parts if part.isdecimal()]
    turn = len(parts) - 1
    if (
        len(index) < len(parts)
        or turn >= len(levels)
        or any(i >= f for i, f in zip(index, branch.fan_out, strict=False))
    ):
        shape = " x ".join(map(str, branch.fan_out))
        raise UserError(f"--node: expected a path of alternatives within {shape}, as 0.1, got {request.node!r}")
    if turn < len(branch.given):
        raise UserError(f"--node: expected a message that branch {request.branch} drew, got one it goes on from")
    row = int(np.ravel_multi_index(index, branch.fan_out[: turn + 1]))
    if any("token_ids" not in node for level in levels for node in level if node.get("text") is not None):
        raise UserError(f"{found.where}: expected messages recorded with their token ids, got one without")
    return Decision(found, request.branch, branch, levels, turn, row)


def _find_tree(run: Path, request: Request) -> RecordedTree:
    steps = []
    for path in list_record_files(run):
        for where, line in list_lines(path):
            if json.dumps(request.problem, ensure_ascii=False).encode() not in line:
                continue
            found = parse_tree(line, where)
            if found.record.get("problem") == request.problem:
                steps.append(found.record["step"])
                if request.step is None or request.step == steps[-1]:
                    return found
    recorded = f" at one of the steps {steps}" if steps else ""
    asked = request.problem if request.step is None else f"{request.problem} at step {request.step}"
    raise UserError(f"--problem: expected a problem of {run}/rollouts{recorded}, got {asked}")


def _choose_checkpoint(run: Path, step: int) -> str:
    kept = list_steps(run)
    if step not in kept:
        raise UserError(
            f"--checkpoint: expected one of {kept}, for the policy of step {step}, which drew this tree, is not kept,"
            " got none"
        )
    return str(step)


def repeat_messages(
    team: Team, decision: Decision, problem: tuple[Problem, Frame], is_alone: bool = False
) -> list[dict[str, Any]]:
    """Draw a message and all below it again, by their own addresses.

    Args:
      team: that is to speak.
      decision: the recorded message.
      problem: of the tree, and its question's frame.
      is_alone: draw these messages alone, from the recorded context, in place of the call that drew them. A batch of
        another shape is rounded otherwise, and now and then that is another token.

    Returns:
      A row a message: its path, what was recorded and what is drawn, and whether they are the same token for token; of
      a leaf also both verdicts.

    Raises:
      UserError: the trees that were drawn together are not all recorded.
    """
    branch, turn, setup = decision.branch, decision.turn, team.setup
    per = [1, *np.cumprod(branch.fan_out[turn + 1 :]).tolist()]
    if is_alone:
        ancestors = [[decision.levels[earlier][decision.find_row(earlier)]] for earlier in range(turn)]
        fan_out = (*(1,) * (turn + 1), *branch.fan_out[turn + 1 :])
        firsts = [0] * turn + [branch.first[turn + below] + decision.row * size for below, size in enumerate(per)]
        key = address.make_step_key(setup.config.seed, address.TRAIN, decision.recorded.record["step"])
        rollout = draw_on(team, problem, ancestors, fan_out, (key, key), tuple(firsts))
    else:
        rollout = draw_call(team, decision)
    rows = []
    for below, messages in enumerate(rollout.turns[turn:]):
        recorded = decision.levels[turn + below][decision.row * per[below] : (decision.row + 1) * per[below]]
        is_kept_NT = np.asarray(messages.sampled_NT if messages.observed is None else messages.content_NT)
        for number, (node, text) in enumerate(zip(recorded, decode_whole(setup.tokenizer, messages), strict=True)):
            drawn = np.asarray(messages.tokens_NT[number])[is_kept_NT[number]].tolist()
            kept = {name: node[name] for name in ("turn", "index")}
            rows.append(kept | {"recorded": node["text"], "drawn": text, "same": drawn == node["token_ids"]})
    leaves = len(decode_messages(setup.tokenizer, rollout.turns[-1]))
    verdicts = _grade(team, problem[0], rollout)
    last = decision.levels[-1][decision.row * per[-1] : (decision.row + 1) * per[-1]]
    for row, node, verdict in zip(rows[-leaves:], last, verdicts, strict=True):
        row |= {"recorded_return": node["return"], "return": verdict.score, "verdict": verdict.verdict}
    return rows


def draw_call(team: Team, decision: Decision) -> Rollout:
    """Draw the whole call of the sampler that drew a message, as the run did.

    Args:
      team: that drew it.
      decision: the recorded message.

    Returns:
      Of its tree the message's ancestors, itself and all below it.

    Raises:
      UserError: the trees that were drawn together are not all recorded.
    """
    setup, step = team.setup, decision.recorded.record["step"]
    path = Path(decision.recorded.where.rpartition(":")[0])
    trees = [found for found in load_trees(path) if found.record["step"] == step]
    number_of = {problem.id: number for number, problem in enumerate(setup.train.problems)}
    numbers = [number_of[name] for found in trees if (name := found.record["problem"]) in number_of]
    # The step's own trees, and where some are replaced those drawn in their place: whole calls one after the other.
    row = next((row for row in read_metrics(path.parent.parent) if row["step"] == step), {})
    size, most = setup.config.call_problems, setup.config.problems + row.get("further_problems", 0)
    if not len(numbers) == len(trees) == most:
        raise UserError(
            f"{path}: expected the {most} trees of step {step}, got {len(numbers)} whose problems are"
            " there, so that their call cannot be drawn again; --alone draws the message by itself"
        )
    own = numbers.index(number_of[decision.recorded.record["problem"]])
    call = range(own // size * size, own // size * size + size)
    slots = choose_slots(setup, setup.train, _list_drawable(setup, step, numbers))
    question, problem_P = make_questions(setup, setup.train, [numbers[each] for each in call], slots)
    levels = [list_trees(trees[each])[decision.number][1] for each in call]
    given = tuple(
        write_messages(setup, turn, [node for of_tree in levels for node in of_tree[turn]])
        for turn in range(len(decision.branch.given))
    )
    key = address.make_step_key(setup.config.seed, address.TRAIN, step)
    asked = ([setup.train.problems[numbers[each]] for each in call], question, key, problem_P)
    start = Start(given, decision.branch.first)
    drawn, _ = draw_trees(team.sample_tree, team.acting, team.weights, *asked, decision.branch.fan_out, start)
    rollout = tree.take_problems(jax.device_get(drawn), size, np.array([own - call[0]]))
    count = len(decision.levels[decision.turn])

    def take(messages: Messages) -> Messages:
        rows = len(messages.tokens_NT)
        begin = decision.row * rows // count
        return jax.tree.map(lambda array: array[begin : begin + max(1, rows // count)], messages)

    return rollout._replace(turns=tuple(map(take, rollout.turns)))


def _list_drawable(setup: Setup, step: int, numbers: list[int]) -> list[int]:
    """The problems whose questions a step's frames have room for: those drawn, and those that might have been.

    Under a curriculum these depend on what was learned by then, and are those drawn alone.
    """
    if setup.config.curriculum is not None:
        return numbers
    own = numbers[: setup.config.problems]
    return [*own, *choose_further(setup, step, own)]


def compare_messages(
    team: Team, decision: Decision, problem: tuple[Problem, Frame], message: str, samples: int
) -> list[dict[str, Any]]:
    """What a message of one's own, and every recorded alternative to it, is worth in the same context.

    Args:
      team, decision, problem: as for `repeat_messages`.
      message: put in the role's mouth; of a turn that is read in part, the part that others read.
      samples: fresh continuations of each message; a last message is graded as it is.

    Returns:
      A row a message, one's own first: its text, the recorded value, and the mean return with its 95 % interval.
    """
    turn, levels, setup = decision.turn, decision.levels, team.setup
    try:
        tokens, plan = setup.tokenizer.encode_text(message), setup.plans[turn]
    except UserError as error:
        raise UserError(f"--say: {error}") from None
    room = plan.visible_tokens or plan.max_tokens
    if len(tokens) > room:
        raise UserError(f"--say: expected at most {room} tokens, as the turn may write, got {len(tokens)}")
    fan = decision.branch.fan_out[turn]
    siblings = levels[turn][decision.row // fan * fan : (decision.row // fan + 1) * fan]
    spoken = [{"text": message, "token_ids": tokens}, *siblings]
    is_last = turn == len(levels) - 1
    repeats = 1 if is_last else samples
    given = [[levels[earlier][decision.find_row(earlier)]] * len(spoken) for earlier in range(turn)] + [spoken]
    fan_out = (len(spoken), *(1,) * turn, *(() if is_last else (repeats, *(1,) * (len(levels) - turn - 2))))
    step = decision.recorded.record["step"]
    keys = [
        address.make_step_key(setup.config.seed, stream, step)
        for stream in (address.ASK, address.TRAIN)  # fresh messages, in the episodes that were recorded
    ]
    rollout = draw_on(team, problem, given, fan_out, (keys[0], keys[1]), (0,) * len(levels))
    verdicts = _grade(team, problem[0], rollout, since=turn)  # as recorded values are: what is still to come
    return [
        _describe_value(node, verdicts[number * repeats : (number + 1) * repeats]) for number, node in enumerate(spoken)
    ]


def _describe_value(node: Record, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    interval = compute_interval(np.array([[verdict.score] for verdict in verdicts]))
    fields = {"message": node["text"], "index": node.get("index"), "recorded_value": node.get("value")}
    return fields | {"value": interval.estimate, "low": interval.low, "high": interval.high, "samples": len(verdicts)}


def _grade(team: Team, problem: Problem, rollout: Rollout, since: int = 0) -> list[Verdict]:
    """Verdicts of a tree's leaves, with what environments gave from a turn on."""
    answers = decode_messages(team.setup.tokenizer, rollout.turns[-1])
    verdicts = team.evaluator.score([problem] * len(answers), answers, budget=len(answers))
    return add_rewards(rollout.turns[since:], verdicts)


def _print_again(
    rows: Sequence[dict[str, Any]], by: int, step: int, together: int | None, console: Console, as_json: bool
) -> None:
    if as_json:
        body = {"checkpoint": by, "step": step, "is_alone": together is None, "messages": rows}
        print(json.dumps(body, ensure_ascii=False, indent=2))
        return
    for row in rows:
        path = ".".join(map(str, row["index"]))
        console.print(Text.assemble((f"{row['turn']} {path}", "bold"), "  same" if row["same"] else "  another"))
        console.print(row["drawn"].strip() or "(nothing)", markup=False, soft_wrap=True)
        if not row["same"]:
            console.print(Text(f"recorded: {row['recorded'].strip() or '(nothing)'}", style="dim"), soft_wrap=True)
        if "verdict" in row:
            console.print(f"{row['verdict']}, return {row['return']:g} (recorded {row['recorded_return']:g})")
    same = sum(row["same"] for row in rows)
    policy = f"the policy of step {by}" + ("" if by == step else f", where step {step}'s drew the recorded ones")
    console.print(f"{same} of {len(rows)} messages are the recorded ones, token for token, by {policy}", soft_wrap=True)
    drawn = "alone" if together is None else f"with its sampler's whole call, of {together} problems"
    console.print(f"drawn {drawn}", soft_wrap=True)


def _print_values(
    rows: Sequence[dict[str, Any]], decision: Decision, by: int, samples: int, console: Console, as_json: bool
) -> None:
    if as_json:
        print(json.dumps({"checkpoint": by, "messages": rows}, ensure_ascii=False, indent=2))
        return
    name = decision.recorded.record["protocol"][decision.turn]
    table = Table(title=f"{name}, in the same context", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("message", overflow="fold")
    for column in ("recorded", "value", "95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        text = row["message"].strip() or "(nothing)"
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        recorded = (
            "yours"
            if row["index"] is None
            else "-"
            if row["recorded_value"] is None
            else f"{row['recorded_value']:.3f}"
        )
        interval = f"{row['low']:.3f}-{row['high']:.3f}" if row["samples"] > 1 else "n = 1"
        table.add_row(Text(shown), recorded, f"{row['value']:.3f}", interval)
    console.print(table)
    graded = "each graded as it is" if rows[0]["samples"] == 1 else f"{samples} fresh continuations of each"
    console.print(f"{graded}, {sum(row['samples'] for row in rows):,} evaluator calls, by the policy of step {by}")
