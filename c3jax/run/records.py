"""Recorded trees: one JSON object a problem, in a form that outlives the program that wrote it.

{problem, question, protocol, trained, fan_out, step, method, nodes: [{turn, role, index, text, token_ids, tokens,
truncated, logp, value, baseline, advantage}, ...]}; a leaf's node has answer, return and verdict too. `index` is the
node's path of alternatives, so its parent is its index without the last number; `trained` says it of every turn of the
protocol. A node of a turn that others read in part has `visible`, the text of that part; `text` is the whole message.
What an environment answered has the role `environment`, and reward, done and failed.
A tree that was drawn and did not train has used: false.

What was drawn by another plan than a tree has `plan` (its form and sizes) and `branches` in place of fan_out: a branch
has its kind, its fan_out, and of each turn that is given the branch and rows it goes on from (null: the null message).
A node there has `branch` and `kind` (alternative, factual, auxiliary, counterfactual), and credit where it is credited.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from c3jax.config.run import RunConfig
from c3jax.credit import plans
from c3jax.run.files import explain_failure, save_whole
from c3jax.types import ENVIRONMENT, Credit, FanOut, Messages, Problem, UserError, Verdict

Record = dict[str, Any]

_LARGEST = 1e300  # that a recorded number may be; some more of them can then be added up


class Written(NamedTuple):
    """The messages of a turn with their texts."""

    messages: Messages
    texts: Sequence[str]
    visible: Sequence[str] | None = None  # what others read of them; None where that is all


class RecordedTree(NamedTuple):
    """One recorded tree, checked."""

    where: str  # file:line
    record: Record
    plan: plans.Plan  # what was drawn
    trained: tuple[bool, ...]
    nodes: tuple[list[Record], ...]  # the credited ones, a list a turn, in path order
    return_L: np.ndarray  # in the plan's order
    branches: tuple[tuple[list[Record], ...], ...]  # the nodes of every branch, of the turns that spoke in it


def make_records(
    config: RunConfig,
    plan: plans.Plan,
    step: int,
    problems: Sequence[Problem],
    branches: Sequence[Sequence[Written]],
    credit: Credit,
    verdicts: Sequence[Verdict],
    best: Sequence[np.ndarray] = (),
) -> list[Record]:
    """One record a problem of what a step has drawn.

    Args:
      config: of the run.
      plan: what was drawn of a problem.
      step: its number.
      problems: P of them.
      branches: of each of the plan's branches the messages of all turns, those it went on from included.
      credit: of the credited messages.
      verdicts: one a leaf, problem by problem in the plan's order.
      best: of each branch the alternative that the next one went on with, [P], where that was found from the returns.

    Returns:
      The records, in the order of the problems.
    """
    turns, is_tree = config.protocol.turns, plan.form == "tree"
    parts = plans.list_branches(plan)
    columns = [
        [
            _list_columns(written, credit, turn if plans.list_credited(plan)[turn] == number else None)
            for turn, written in enumerate(levels)
        ]
        for number, levels in enumerate(branches)
    ]
    records, position = [], np.argsort(plans.list_leaves(plan))
    for number, problem in enumerate(problems):
        of_problem = verdicts[number * len(position) : (number + 1) * len(position)]
        in_branches = iter([of_problem[leaf] for leaf in position])
        nodes: list[Record] = []
        for name, branch in enumerate(parts):
            for turn in range(min(len(branch.given), len(turns) - 1), len(turns)):
                shape = branch.fan_out[: turn + 1]
                for offset, index in enumerate(np.ndindex(shape)):
                    row = number * math.prod(shape) + offset
                    node: Record = {} if is_tree else {"branch": name, "kind": _name_kind(branch, turn)}
                    role = turns[turn].role if turns[turn].environment is None else ENVIRONMENT
                    node |= {"turn": turns[turn].name, "role": role, "index": list(index)}
                    node |= {field: column[row] for field, column in columns[name][turn].items()}
                    if turn == len(turns) - 1:
                        node |= _describe_verdicts(list(itertools.islice(in_branches, branch.calls)))
                    nodes.append(node)
        records.append(
            {
                "problem": problem.id,
                "question": problem.question,
                "protocol": [turn.name for turn in turns],
                "trained": [turn.is_trained for turn in turns],
                **({"fan_out": list(plan.fan_out)} if is_tree else _describe_plan(plan, [row[number] for row in best])),
                "step": step,
                "method": config.credit.method,
                "nodes": nodes,
            }
        )
    return records


def _name_kind(branch: plans.Branch, turn: int) -> plans.Kind:
    return "auxiliary" if branch.kind == "alternative" and turn > len(branch.given) else branch.kind


def _describe_verdicts(verdicts: Sequence[Verdict]) -> Record:
    """Of a leaf; of one that was judged more than once all its returns."""
    first = verdicts[0]
    fields: Record = {"answer": first.answer, "return": first.score, "verdict": first.verdict}
    return fields | ({"returns": [verdict.score for verdict in verdicts]} if len(verdicts) > 1 else {})


def _describe_plan(plan: plans.Plan, best: Sequence[int]) -> Record:
    fields = {name: value for name, value in plan._asdict().items() if value and name != "turns"}
    started = []
    for branch in plans.list_branches(plan):
        given = [None if one is None else [one.branch, one.rows or [int(best[one.branch])]] for one in branch.given]
        started.append({"kind": branch.kind, "fan_out": branch.fan_out, "given": given})
    return {"plan": fields, "branches": started}


def save_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as JSON lines, whole or not at all; half a surrogate pair as the escape that JSON has for it."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    save_whole(path, lines.encode("utf-8", "backslashreplace"))


def list_record_files(run: Path) -> list[Path]:
    """The files of a run's recorded trees, in the order of steps."""
    return sorted((run / "rollouts").glob("*.jsonl"), key=lambda path: (len(path.name), path.name))


def list_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file of records that have something in them, each with its file:line.

    Raises:
      UserError: the file cannot be read.
    """
    with explain_failure(f"{path}: cannot be read"):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line


def load_trees(source: Path) -> list[RecordedTree]:
    """Read the trees of a file, or of RUN/rollouts in the order of steps.

    Raises UserError with file, line and reason for what is no whole tree, and where there are no trees.
    """
    paths = [source]
    if source.is_dir():
        paths = list_record_files(source)
    trees = [parse_tree(line, where) for path in paths for where, line in list_lines(path)]
    if not trees:
        where = source / "rollouts" if source.is_dir() else source
        raise UserError(f"{where}: expected recorded trees, found none")
    return trees


def _list_columns(written: Written, credit: Credit, turn: int | None) -> dict[str, list]:
    """What is recorded of each message; its credit where it is of the credited ones of a turn."""
    messages = written.messages
    sampled = np.asarray(messages.sampled_NT)
    counts = sampled.sum(axis=1)
    logp = np.where(sampled, np.asarray(messages.behaviour_logp_NT), 0.0).sum(axis=1) / np.maximum(counts, 1)
    observed: Record = {}
    if messages.observed is not None:  # nothing of it was drawn
        sampled = np.asarray(messages.content_NT)
        counts = sampled.sum(axis=1)
        observed = {name[:-2]: np.asarray(part).tolist() for name, part in messages.observed._asdict().items()}
    drawn = zip(np.asarray(messages.tokens_NT), sampled, strict=True)
    columns = {
        "text": list(written.texts),
        **({} if written.visible is None else {"visible": list(written.visible)}),
        "token_ids": [tokens[is_drawn].tolist() for tokens, is_drawn in drawn],  # the stop token included
        "tokens": counts.tolist(),
        "truncated": np.asarray(messages.truncated_N).tolist(),
        "logp": logp.tolist(),
    }
    kept = {"gradient": messages.gradient_N, "likelihood": messages.likelihood_N}
    columns |= {name: np.asarray(kept_N).tolist() for name, kept_N in kept.items() if kept_N is not None}
    given = {} if turn is None else {name: np.asarray(part[turn]) for name, part in credit._asdict().items()}
    return columns | observed | {name: value_PN.reshape(-1).tolist() for name, value_PN in given.items()}


def parse_tree(line: bytes | str, where: str) -> RecordedTree:
    """Read and check one line of recorded trees.

    Args:
      line: the JSON object.
      where: file:line, for the sentence of an error.

    Raises:
      UserError: it is no whole tree.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: expected a JSON object, got something else") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, got another kind of JSON")
    is_tree = "plan" not in record
    lists = ("protocol", "fan_out", "nodes") if is_tree else ("protocol", "nodes")
    for name, kind, words in (*((name, list, "a list") for name in lists), ("step", int, "an integer")):
        if not isinstance(record.get(name), kind):
            got = json.dumps(record[name]) if name in record else "none"
            raise UserError(f"{where}: {name}: expected {words}, got {got}")
    turns = len(record["protocol"])
    plan = _read_fan_out(record, turns, where) if is_tree else _read_plan(record, turns, where)
    trained = record.get("trained", [True] * turns)
    if not isinstance(trained, list) or len(trained) != turns or not all(type(on) is bool for on in trained):
        raise UserError(
            f"{where}: trained: expected true or false for each of {turns} turns, got {json.dumps(trained)}"
        )
    levels, returns = [], []
    for number, branch in enumerate(plans.list_branches(plan)):
        nodes = record["nodes"]
        if not is_tree:
            nodes = [node for node in nodes if isinstance(node, dict) and node.get("branch") == number]
        first = min(len(branch.given), turns - 1)
        levels.append(_sort_nodes(nodes, record["protocol"], branch.fan_out, first, where))
        returns += [value for leaf in levels[-1][-1] for value in _read_returns(leaf, branch.calls, where)]
    return_L = np.array([returns[leaf] for leaf in plans.list_leaves(plan)], np.float64)
    credited = tuple(levels[branch][turn - turns] for turn, branch in enumerate(plans.list_credited(plan)))
    return RecordedTree(where, record, plan, tuple(trained), credited, return_L, tuple(levels))


def list_trees(tree: RecordedTree) -> list[tuple[plans.Branch, tuple[list[Record], ...]]]:
    """The branches of what was recorded, each with the nodes of all its turns, those it went on from among them.

    Raises:
      UserError: the record does not say what a branch went on from.
    """
    trees = []
    for number, (branch, nodes) in enumerate(zip(plans.list_branches(tree.plan), tree.branches, strict=True)):
        levels, turns = list(nodes), len(branch.fan_out)
        for turn in reversed(range(turns - len(nodes))):
            levels.insert(0, _find_given(tree, number, branch, turn))
        trees.append((branch, tuple(levels)))
    return trees


def _find_given(tree: RecordedTree, number: int, branch: plans.Branch, turn: int) -> list[Record]:
    name = tree.record["protocol"][turn]
    try:
        given = tree.record["branches"][number]["given"][turn]
        if given is None:
            return [{"turn": name, "role": tree.nodes[turn][0]["role"], "text": None}] * branch.fan_out[0]
        source, rows = given
        return [tree.branches[source][turn - tree.plan.turns][row] for row in rows]
    except (IndexError, KeyError, TypeError, ValueError):
        raise UserError(f"{tree.where}: branches.{number}.given: expected a branch and its rows") from None


def _read_fan_out(record: Record, turns: int, where: str) -> plans.Plan:
    fan_out = tuple(record["fan_out"])
    if len(fan_out) != turns or not all(type(f) is int and f > 0 for f in fan_out):
        raise UserError(f"{where}: fan_out: expected a positive integer for each of {turns} turns, got {fan_out}")
    return plans.make_tree(fan_out)


def _read_plan(record: Record, turns: int, where: str) -> plans.Plan:
    fields, sizes = record["plan"], ("episodes", "repeats", "answers_again")
    try:
        counts = tuple(fields.get("counts", ()))
        plan = plans.Plan(fields["form"], turns, counts=counts, **{name: fields.get(name, 0) for name in sizes})
        if plan.form not in get_args(plans.Form) or not all(type(size) is int for size in (*counts, *plan[4:6])):
            raise ValueError("a form or size that is none")
        plans.check_plan(plan)
        if not plans.count_calls(plan) <= 2 * len(record["nodes"]) * max(plan.counts, default=1):
            raise ValueError("fewer nodes than its leaves")
        plans.list_branches(plan)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{where}: plan: expected a form and its sizes, got {json.dumps(fields)}") from None
    return plan


def _sort_nodes(
    nodes: Sequence[Any], protocol: Sequence[Any], fan_out: FanOut, first: int, where: str
) -> tuple[list[Record], ...]:
    """The nodes of a tree, or of a branch whose messages begin with turn `first`, turn by turn in path order."""
    by_index: dict[tuple[int, ...], Record] = {}
    for number, node in enumerate(nodes):
        index = node.get("index") if isinstance(node, dict) else None
        if (
            not isinstance(index, list)
            or not 0 < len(index) <= len(fan_out)
            or not all(type(i) is int and 0 <= i < f for i, f in zip(index, fan_out, strict=False))
        ):
            got = json.dumps(index)
            raise UserError(f"{where}: nodes.{number}: expected an index within fan_out {fan_out}, got {got}")
        if tuple(index) in by_index:
            raise UserError(f"{where}: node {index}: expected every index once, got it twice")
        turn = protocol[len(index) - 1]
        if node.get("turn") != turn or not isinstance(node.get("role"), str):
            got = f"{json.dumps(node.get('turn'))} and {json.dumps(node.get('role'))}"
            raise UserError(f"{where}: node {index}: expected turn {json.dumps(turn)} and a role, got {got}")
        by_index[tuple(index)] = node
    levels, parents = [], [()]
    for turn, fan in enumerate(fan_out):
        finer = []
        for index in ((*parent, alternative) for parent in parents for alternative in range(fan)):
            if turn >= first and index not in by_index:
                raise UserError(f"{where}: expected a node {list(index)}, got none")
            finer.append(index)
        levels.append([by_index[index] for index in finer] if turn >= first else [])
        parents = finer
    return tuple(levels[first:])


def _read_returns(leaf: Record, calls: int, where: str) -> list[float]:
    returns = [_read_return(leaf, where)] if calls == 1 else leaf.get("returns")
    if not isinstance(returns, list) or len(returns) != calls:
        raise UserError(f"{where}: leaf {leaf['index']}: expected {calls} returns, got {json.dumps(returns)}")
    return [_read_return({"index": leaf["index"], "return": value}, where) for value in returns]


def _read_return(leaf: Record, where: str) -> float:
    number = read_number(leaf.get("return"))
    if number is None:
        got = json.dumps(leaf["return"]) if "return" in leaf else "none"
        raise UserError(f"{where}: leaf {leaf['index']}: expected a finite number as its return, got {got:.80}")
    return number


def read_number(value: Any) -> float | None:
    """A number of JSON as a float; None for what is no number, is not finite, or is an integer that no float holds."""
    is_number = type(value) in (int, float) and -_LARGEST <= value <= _LARGEST
    return float(value) if is_number else None
