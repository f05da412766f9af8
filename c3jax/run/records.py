"""Recorded trees: one JSON object a problem, in a form that outlives the program that wrote it.

{problem, question, protocol, trained, fan_out, step, method, nodes: [{turn, role, index, text, tokens, truncated, logp,
value, baseline, advantage}, ...]}; a leaf's node has answer, return and verdict too. `index` is the node's path of
alternatives, so its parent is its index without the last number; `trained` says it of every turn of the protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c3jax.config.run import RunConfig
from c3jax.run.files import save_whole
from c3jax.types import Credit, FanOut, Messages, Problem, UserError, Verdict

_LISTS = ("protocol", "fan_out", "nodes")

Record = dict[str, Any]


class RecordedTree(NamedTuple):
    """One recorded tree, checked."""

    where: str  # file:line
    record: Record
    fan_out: FanOut
    trained: tuple[bool, ...]
    nodes: tuple[list[Record], ...]  # a list a turn, in path order
    return_L: np.ndarray  # in path order


def make_records(
    config: RunConfig,
    fan_out: FanOut,
    step: int,
    problems: Sequence[Problem],
    turns: Sequence[Messages],
    texts: Sequence[Sequence[str]],
    credit: Credit,
    verdicts: Sequence[Verdict],
) -> list[dict[str, Any]]:
    """One record a problem of a step's trees, which have `fan_out` alternatives a turn.

    texts holds every message a turn; verdicts one a leaf, in path order.
    """
    levels = [_level_columns(messages, credit, turn) for turn, messages in enumerate(turns)]
    records = []
    for number, problem in enumerate(problems):
        nodes = []
        for turn, section in enumerate(config.protocol.turns):
            shape = fan_out[: turn + 1]
            first = number * int(np.prod(shape))
            for offset, index in enumerate(np.ndindex(shape)):
                row = first + offset
                node = {"turn": section.name, "role": section.role, "index": list(index), "text": texts[turn][row]}
                node |= {name: column[row] for name, column in levels[turn].items()}
                if turn == len(config.protocol.turns) - 1:
                    verdict = verdicts[row]
                    node |= {"answer": verdict.answer, "return": verdict.score, "verdict": verdict.verdict}
                nodes.append(node)
        records.append(
            {
                "problem": problem.id,
                "question": problem.question,
                "protocol": [turn.name for turn in config.protocol.turns],
                "trained": [turn.trained for turn in config.protocol.turns],
                "fan_out": list(fan_out),
                "step": step,
                "method": config.credit.method,
                "nodes": nodes,
            }
        )
    return records


def save_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as JSON lines, whole or not at all."""
    save_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def list_record_files(run: Path) -> list[Path]:
    """The files of a run's recorded trees, in the order of steps."""
    return sorted((run / "rollouts").glob("*.jsonl"), key=lambda path: (len(path.name), path.name))


def load_trees(source: Path) -> list[RecordedTree]:
    """Read the trees of a file, or of RUN/rollouts in the order of steps.

    Raises UserError with file, line and reason for what is no whole tree, and where there are no trees.
    """
    paths = [source]
    if source.is_dir():
        paths = list_record_files(source)
    trees = []
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        trees += [parse_tree(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not trees:
        where = source / "rollouts" if source.is_dir() else source
        raise UserError(f"{where}: expected recorded trees, found none")
    return trees


def _level_columns(messages: Messages, credit: Credit, turn: int) -> dict[str, list]:
    sampled = np.asarray(messages.sampled_NT)
    counts = sampled.sum(axis=1)
    logp = np.where(sampled, np.asarray(messages.behaviour_logp_NT), 0.0).sum(axis=1) / np.maximum(counts, 1)
    return {
        "tokens": counts.tolist(),
        "truncated": np.asarray(messages.truncated_N).tolist(),
        "logp": logp.tolist(),
        "value": np.asarray(credit.value[turn]).reshape(-1).tolist(),
        "baseline": np.asarray(credit.baseline[turn]).reshape(-1).tolist(),
        "advantage": np.asarray(credit.advantage[turn]).reshape(-1).tolist(),
    }


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
    for name, kind, words in (*((name, list, "a list") for name in _LISTS), ("step", int, "an integer")):
        if not isinstance(record.get(name), kind):
            got = json.dumps(record[name]) if name in record else "none"
            raise UserError(f"{where}: {name}: expected {words}, got {got}")
    fan_out, turns = tuple(record["fan_out"]), len(record["protocol"])
    if len(fan_out) != turns or not all(type(f) is int and f > 0 for f in fan_out):
        raise UserError(f"{where}: fan_out: expected a positive integer for each of {turns} turns, got {fan_out}")
    trained = record.get("trained", [True] * turns)
    if not isinstance(trained, list) or len(trained) != turns or not all(type(on) is bool for on in trained):
        raise UserError(
            f"{where}: trained: expected true or false for each of {turns} turns, got {json.dumps(trained)}"
        )
    nodes = _sort_nodes(record, fan_out, where)
    return_L = np.array([_read_return(leaf, where) for leaf in nodes[-1]], np.float64)
    return RecordedTree(where, record, fan_out, tuple(trained), nodes, return_L)


def _sort_nodes(record: Record, fan_out: FanOut, where: str) -> tuple[list[Record], ...]:
    by_index: dict[tuple[int, ...], Record] = {}
    for number, node in enumerate(record["nodes"]):
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
        turn = record["protocol"][len(index) - 1]
        if node.get("turn") != turn or not isinstance(node.get("role"), str):
            got = f"{json.dumps(node.get('turn'))} and {json.dumps(node.get('role'))}"
            raise UserError(f"{where}: node {index}: expected turn {json.dumps(turn)} and a role, got {got}")
        by_index[tuple(index)] = node
    levels, parents = [], [()]
    for f in fan_out:
        finer = []
        for index in ((*parent, alternative) for parent in parents for alternative in range(f)):
            if index not in by_index:
                raise UserError(f"{where}: expected a node {list(index)}, got none")
            finer.append(index)
        levels.append([by_index[index] for index in finer])
        parents = finer
    return tuple(levels)


def _read_return(leaf: Record, where: str) -> float:
    value: Any = leaf.get("return")
    if type(value) not in (int, float) or not math.isfinite(value):
        got = json.dumps(value) if "return" in leaf else "none"
        raise UserError(f"{where}: leaf {leaf['index']}: expected a finite number as its return, got {got}")
    return float(value)
