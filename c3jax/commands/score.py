"""Scoring recorded trees again: what credit another method would have given to the messages that a run has recorded.

The trees are those of records.py, of any shapes, or of another program's traces (traces.py). A method whose sampling a
tree holds needs nothing but its returns, so its credit is that of the training run, by the same code. Normalised over
`turn` or `batch`, a batch is what it was in training: the trees of one step and shape.

Dimension key: P tree    L leaf of one tree    N message of one turn of one tree
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from c3jax.analysis.tables import print_table, to_json
from c3jax.commands.terminal import complain
from c3jax.commands.traces import load_traces
from c3jax.credit.apply import sum_past
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.method import Normalise
from c3jax.credit.methods import METHODS, find_method
from c3jax.credit.pairing import check_normalise, check_pairing
from c3jax.credit.plans import Plan
from c3jax.run.files import explain_failure
from c3jax.run.records import Record, RecordedTree, load_trees, read_number, save_records
from c3jax.types import Credit, UserError

_KEPT = {"gradients": "gradient", "likelihoods": "likelihood"}  # of each message, for what a method reads
_CARRIED = {"critic": "a critic's values", "components": "variance components of all earlier steps"}


class Origin(NamedTuple):
    """Whose traces a source holds, where they are not recorded trees; fields as for `traces.load_traces`."""

    name: str
    return_of: str | None = None


def score_source(
    source: Path, method: str, normalise: Normalise, out: Path, console: Console, origin: Origin | None = None
) -> int:
    """Write the trees of a run or file with a method's credit, whole or not at all.

    Args:
      source: a run directory, a file of recorded trees, or another program's traces.
      method: a row of `METHODS`, or the user's own as module:NAME.
      normalise: scope of the method's standard deviation.
      out: the file, none of the recorded ones.
      console: to print on.
      origin: whose traces they are; None where they are recorded trees.

    Returns:
      0, the exit code.

    Raises:
      UserError: a tree is damaged or does not hold the method's sampling, or the file cannot be written.
    """
    find_method(method, "--method")
    recorded = (source / "rollouts" if source.is_dir() else source).resolve()
    if recorded in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out}: expected a file that is none of the recorded ones, got one of {source}")
    trees = _load(source, origin)
    scored = score_trees(trees, method, normalise)
    with explain_failure(f"--out {out}: cannot be written"):
        save_records(out, scored)
    messages = sum(len(record["nodes"]) for record in scored)
    console.print(f"{len(scored):,} trees, {messages:,} messages, credit of {method}: {out}", soft_wrap=True)
    return 0


def _load(source: Path, origin: Origin | None) -> list[RecordedTree]:
    if origin is None:
        return load_trees(source)
    trees, notes = load_traces(source, *origin)
    for note in notes:
        complain(note)
    return trees


def compare_source(
    source: Path, methods: Sequence[str], as_json: bool, console: Console, origin: Origin | None = None
) -> int:
    """Print where methods disagree in sign on the trees of a run or file.

    Args:
      source, origin: as for `score_source`.
      methods: two or more, as its `method`.
      as_json: whether JSON is printed instead of a table.
      console: to print on.

    Returns:
      0, the exit code.

    Raises:
      UserError: a tree is damaged, or does not hold the sampling of one of the methods.
    """
    if len(set(methods)) < 2 or len(set(methods)) < len(methods):
        raise UserError(f"--compare: expected two or more different methods, got {','.join(methods)!r}")
    for method in methods:
        find_method(method, "--compare")
    rows = compare_methods(_load(source, origin), methods)
    if as_json:
        print(to_json(rows), end="")
    else:
        print_table(console, rows, "signs of the advantages, message by message")
        console.print("share: opposite signs among the messages to which both give credit")
    return 0


def score_trees(trees: Sequence[RecordedTree], method: str, normalise: Normalise) -> list[Record]:
    """The trees' records with the method's name, value, baseline and advantage in every node, in their order.

    Value and baseline are in units of return; so is the advantage unless it is normalised. A turn that was not trained
    has value = baseline.

    Args:
      trees: of any shapes.
      method, normalise: as for `score_source`.

    Raises:
      UserError: a tree does not hold the method's sampling.
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
                    given[id(node)] = {name: x_PN[row, message].item() for name, x_PN in column.items()}
            nodes = [node | given.get(id(node), {}) for node in tree.record["nodes"]]
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
    batches: dict[tuple[Any, Plan, tuple[bool, ...]], list[int]] = {}
    for number, tree in enumerate(trees):
        batches.setdefault((tree.record["step"], tree.plan, tree.trained), []).append(number)
    for batch in batches.values():
        _check_held(trees[batch[0]], method, normalise)
    credited = []
    for (_, plan, trained), batch in batches.items():
        past = _sum_past([trees[number] for number in batch])
        matrix, kept = make_credit_matrix(method, plan, trained), _KEPT.get(find_method(method).reads)
        inputs = CreditInputs(matrix, plan.fan_out, past=past)
        if kept is not None:
            inputs = inputs._replace(**{kept: _list_kept([trees[number] for number in batch], kept)})
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
        check_pairing(method, tree.plan, tree.trained)
    except ValueError as error:
        return str(error)
    carried = find_method(method).carries
    if carried != "nothing":
        return f"method {method}: expected {_CARRIED[carried]}, got a recorded tree, which has none"
    kept = _KEPT.get(find_method(method).reads)
    if kept is not None and any(not _is_whole(nodes, kept) for nodes in _list_read(tree, kept)):
        return f"method {method}: expected the {kept} of every message, which its own runs record, got none"
    return None


def _is_whole(nodes: Sequence[Record], kept: str) -> bool:
    return all(read_number(node.get(kept)) is not None for node in nodes)


def _list_read(tree: RecordedTree, kept: str) -> list[Sequence[Record]]:
    """The messages of the turns of which something kept is read: of likelihoods all, of gradients the trained ones."""
    return [nodes for nodes, on in zip(tree.nodes, tree.trained, strict=True) if on or kept == "likelihood"]


def _list_kept(trees: Sequence[RecordedTree], kept: str) -> tuple[Any, ...]:
    """What was kept of messages, [P, N] per turn, of trees of one plan; None of turns of which it was not."""
    return tuple(
        jnp.array([[node[kept] for node in nodes] for nodes in level], jnp.float32)
        if all(_is_whole(nodes, kept) for nodes in level)
        else None
        for level in zip(*(tree.nodes for tree in trees), strict=True)
    )


def _sum_past(trees: Sequence[RecordedTree]) -> tuple[Any, ...]:
    """What environments paid before each turn of trees of one plan."""
    if trees[0].plan.form != "tree":
        return ()
    rewards: list[Any] = []
    for levels in zip(*(tree.nodes for tree in trees), strict=True):
        has_any = any("reward" in node for nodes in levels for node in nodes)
        read = [[_read_reward(tree, node) for node in nodes] for tree, nodes in zip(trees, levels, strict=True)]
        rewards.append(jnp.array(read, jnp.float32) if has_any else None)
    return sum_past(rewards, len(trees[0].return_L))


def _read_reward(tree: RecordedTree, node: Record) -> float:
    number = read_number(node.get("reward", 0.0))
    if number is None:
        got = f"{node['reward']!r:.80}"
        raise UserError(f"{tree.where}: node {node['index']}: expected a finite number as its reward, got {got}")
    return number
