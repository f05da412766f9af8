"""Scoring recorded trees again: what credit another method would have given to the messages that a run has recorded.

The trees are those of records.py, of any shapes. A method whose sampling a tree holds needs nothing but its returns, so
its credit is that of the training run, by the same code. Normalised over `turn` or `batch`, a batch is what it was in
training: the trees of one step and shape.

Dimension key: P tree    L leaf of one tree    N message of one turn of one tree
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from c3jax.analysis.tables import print_table, to_json
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.method import Normalise
from c3jax.credit.methods import METHODS, check_normalise, check_pairing, find_method
from c3jax.credit.plans import FanOut, make_tree
from c3jax.run.records import save_records
from c3jax.types import Credit, UserError

_CARRIED = {"critic": "a critic's values", "components": "variance components of all earlier steps"}
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


def score_source(source: Path, method: str, normalise: Normalise, out: Path, console: Console) -> int:
    """Write the trees of a run or file to `out` with the method's credit, whole or not at all. Returns an exit code.

    Raises UserError for a tree that is damaged or does not hold the method's sampling, and for a file it cannot write.
    """
    find_method(method, "--method")
    recorded = (source / "rollouts" if source.is_dir() else source).resolve()
    if recorded in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out}: expected a file that is none of the recorded ones, got one of {source}")
    trees = load_trees(source)
    scored = score_trees(trees, method, normalise)
    try:
        save_records(out, scored)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    messages = sum(len(record["nodes"]) for record in scored)
    console.print(f"{len(scored):,} trees, {messages:,} messages, credit of {method}: {out}", soft_wrap=True)
    return 0


def compare_source(source: Path, methods: Sequence[str], as_json: bool, console: Console) -> int:
    """Print where methods disagree in sign on the trees of a run or file. Returns an exit code. Raises UserError."""
    if len(set(methods)) < 2 or len(set(methods)) < len(methods):
        raise UserError(f"--compare: expected two or more different methods, got {','.join(methods)!r}")
    for method in methods:
        find_method(method, "--compare")
    rows = compare_methods(load_trees(source), methods)
    if as_json:
        print(to_json(rows), end="")
    else:
        print_table(console, rows, "signs of the advantages, message by message")
        console.print("share: opposite signs among the messages to which both give credit")
    return 0


def load_trees(source: Path) -> list[RecordedTree]:
    """Read the trees of a file, or of RUN/rollouts in the order of steps.

    Raises UserError with file, line and reason for what is no whole tree, and where there are no trees.
    """
    paths = [source]
    if source.is_dir():
        paths = sorted((source / "rollouts").glob("*.jsonl"), key=lambda path: (len(path.name), path.name))
    trees = []
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        trees += [_parse_tree(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not trees:
        where = source / "rollouts" if source.is_dir() else source
        raise UserError(f"{where}: expected recorded trees, found none")
    return trees


def score_trees(trees: Sequence[RecordedTree], method: str, normalise: Normalise) -> list[Record]:
    """The trees' records with the method's name, value, baseline and advantage in every node, in their order.

    Value and baseline are in units of return; so is the advantage unless it is normalised. A turn that was not trained
    has value = baseline. Raises UserError for a tree that does not hold the method's sampling.
    """
    scored: list[Record] = [{}] * len(trees)
    for batch, credit in _compute_credit(trees, method, normalise):
        columns = [
            {name: np.asarray(array) for name, array in zip(Credit._fields, turn, strict=True)}
            for turn in zip(*credit, strict=True)
        ]
        for row, number in enumerate(batch):
            tree = trees[number]
            given = {}
            for nodes, column in zip(tree.nodes, columns, strict=True):
                for message, node in enumerate(nodes):
                    given[tuple(node["index"])] = {name: x_PN[row, message].item() for name, x_PN in column.items()}
            nodes = [node | given[tuple(node["index"])] for node in tree.record["nodes"]]
            scored[number] = tree.record | {"method": method, "normalise": normalise, "nodes": nodes}
    return scored


def compare_methods(trees: Sequence[RecordedTree], methods: Sequence[str]) -> list[Record]:
    """For each role and pair of methods: on how many messages of trained turns the advantages' signs are opposite.

    `share` is of the messages to which both give credit, NaN if there are none; where one or both give exactly zero is
    counted apart. A method that must be normalised is; that changes no sign.
    """
    signs = {method: _collect_signs(trees, method) for method in methods}
    rows = []
    for role in dict.fromkeys(role for by_role in signs.values() for role in by_role):
        for first, second in itertools.combinations(methods, 2):
            one, other = np.array(signs[first][role]), np.array(signs[second][role])
            both, opposite = int(np.sum(one * other != 0)), int(np.sum(one * other < 0))
            neither = int(np.sum((one == 0) & (other == 0)))
            rows.append(
                {
                    **{"role": role, "methods": f"{first} / {second}", "messages": len(one)},
                    **{"opposite": opposite, "share": opposite / both if both else math.nan},
                    **{"one_zero": len(one) - both - neither, "both_zero": neither},
                }
            )
    return rows


def _collect_signs(trees: Sequence[RecordedTree], method: str) -> dict[str, list[int]]:
    by_role: dict[str, list[int]] = {}
    for batch, credit in _compute_credit(trees, method, find_method(method).scopes[0]):
        for turn, advantage_PN in enumerate(credit.advantage):
            sign_PN = np.sign(np.asarray(advantage_PN)).astype(int)
            for row, number in enumerate(batch):
                if trees[number].trained[turn]:
                    for node, sign in zip(trees[number].nodes[turn], sign_PN[row].tolist(), strict=True):
                        by_role.setdefault(node["role"], []).append(sign)
    return by_role


def _compute_credit(trees: Sequence[RecordedTree], method: str, normalise: Normalise) -> list[tuple[list[int], Credit]]:
    """Credit of every batch of trees, with the trees' numbers; every method takes the trees in the same order."""
    batches: dict[tuple[Any, FanOut, tuple[bool, ...]], list[int]] = {}
    for number, tree in enumerate(trees):
        batches.setdefault((tree.record["step"], tree.fan_out, tree.trained), []).append(number)
    for batch in batches.values():
        _check_held(trees[batch[0]], method, normalise)
    credited = []
    for (_, fan_out, trained), batch in batches.items():
        inputs = CreditInputs(make_credit_matrix(method, make_tree(fan_out), trained), fan_out)
        return_PL = jnp.asarray(np.stack([trees[number].return_L for number in batch]))
        credited.append((batch, compute_credit(method, inputs, return_PL, normalise=normalise)))
    return credited


def _check_held(tree: RecordedTree, method: str, normalise: Normalise) -> None:
    reason = _find_obstacle(tree, method)
    if reason is not None:
        held = [name for name in METHODS if _find_obstacle(tree, name) is None]
        raise UserError(f"{tree.where}: {reason}; this tree holds {', '.join(held) or 'no method'}")
    try:
        check_normalise(method, normalise)
    except ValueError as error:
        raise UserError(f"--normalise: {error}") from None


def _find_obstacle(tree: RecordedTree, method: str) -> str | None:
    try:
        check_pairing(method, make_tree(tree.fan_out), tree.trained)
    except ValueError as error:
        return str(error)
    carried = find_method(method).carries
    if carried != "nothing":
        return f"method {method}: expected {_CARRIED[carried]}, got a recorded tree, which has none"
    return None


def _parse_tree(line: bytes, where: str) -> RecordedTree:
    try:
        record = json.loads(line)
    except ValueError:
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
