"""The trees that a page shows: a sample that fits it, in columns, with the credit of other methods where there is some.

A tree's messages are lists a turn, in path order, so a message's path of alternatives is its row and needs no words.
What a model wrote is text here and nowhere anything else.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from c3jax.analysis.evaluations import list_turns
from c3jax.report.embed import embed_json
from c3jax.report.sources import RunGroup, Source
from c3jax.run.records import Record, RecordedTree, list_lines, list_trees, parse_tree, read_number
from c3jax.types import ENVIRONMENT, UserError

MOST_TREES = 500  # of a page
MOST_BYTES = 3_400_000  # of a page's trees, as they stand in it
_MOST_STEPS = 20  # of a run
_MOST_CHARACTERS = 1 << 21  # of one message
_MOST_SHORT = 1000  # of an answer, as it was read out of its message, and of a name
_NUMBERS = ("tokens", "logp", "value", "baseline", "advantage")
_CREDIT = ("value", "baseline", "advantage")
_DIGITS = 5

TreeKey = tuple[int, int]  # a tree's step, and its row among those of the step


def make_transcripts(groups: Sequence[RunGroup], scored: Sequence[str]) -> dict[str, Any]:
    """The trees of a page as plain data.

    Of a run with more trees than its share of MOST_TREES and MOST_BYTES those at equal distances are kept, of at most
    twenty of its recorded steps, the first and the last among them.

    Args:
      groups: the groups of runs.
      scored: files that `c3jax score` wrote of the only run's trees.

    Returns:
      {runs, trees, methods}: for each run its name, prompts, kinds of environments and how many trees it has recorded;
      the trees; and the methods whose credit they hold beside the run's own.

    Raises:
      UserError: a tree is damaged, or a file of other credit is not of the run.
    """
    sources = [source for group in groups for source in group.sources]
    if scored and len(sources) > 1:
        raise UserError(f"--scored {scored[0]}: expected one run, whose trees these are, got {len(sources)} runs")
    runs, trees = [], []
    for number, source in enumerate(sources):
        chosen, recorded = _sample_trees(source, MOST_TREES // len(sources))
        others = _load_scored(scored, chosen, source) if scored else {}
        made = [one for key, tree in chosen.items() for one in _make_trees(tree, key, number, others.get(key, {}))]
        kept = _fit(made, MOST_BYTES // len(sources))
        trees += kept
        steps = len({tree["step"] for tree in kept})
        prompts = {turn["name"]: _cut_prompts(turn) for turn in list_turns(source.run.config)}
        kinds = {
            turn["name"]: turn["environment.kind"]
            for turn in list_turns(source.run.config)
            if "environment.kind" in turn
        }
        counts = {"recorded": recorded, "shown": len(kept), "files": len(source.files), "steps": steps}
        named = {"name": source.name, "method": source.run.config["credit.method"]}
        runs.append({**named, "prompts": prompts, "environments": kinds, **counts})
    methods = list(dict.fromkeys(name for tree in trees for name in tree["credits"]))
    return {"runs": runs, "trees": trees, "methods": methods}


# --------------------------------------------------------------------------------------------------------------------
# Choosing


def spread(count: int, kept: int) -> list[int]:
    """So many of the numbers below `count`, at equal distances, the first and the last among them."""
    if kept >= count:
        return list(range(count))
    return [0] if kept == 1 else [round(index * (count - 1) / (kept - 1)) for index in range(kept)]


def _sample_trees(source: Source, most: int) -> tuple[dict[TreeKey, RecordedTree], int]:
    """Chosen trees by step and row, and how many are recorded. Only what is chosen is parsed."""
    most = max(1, most)
    files = {source.files[index] for index in spread(len(source.files), min(most, _MOST_STEPS))}
    share, rest = divmod(most, max(1, len(files)))
    chosen: dict[TreeKey, RecordedTree] = {}
    recorded = 0
    for path in source.files:
        count = sum(1 for _ in list_lines(path))
        recorded += count
        if path not in files:
            continue
        kept, rest = share + (rest > 0), max(0, rest - 1)
        wanted = set(spread(count, kept))
        for number, (where, line) in enumerate(list_lines(path)):
            if number in wanted:
                tree = parse_tree(line.decode("utf-8", "replace"), where)  # bytes that are no UTF-8 are shown
                chosen[tree.record["step"], number] = tree
    if source.files and not recorded:
        raise UserError(f"{source.run.path}: expected recorded trees in its folder rollouts, found none")
    return chosen, recorded


def _fit(trees: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """As many of the trees as so many bytes hold; where one alone does not fit, its longest messages are cut."""
    sizes = [_measure(tree) for tree in trees]
    while len(trees) > 1 and sum(sizes) > most:
        kept = spread(len(trees), max(1, min(len(trees) - 1, int(len(trees) * most / sum(sizes)))))
        trees, sizes = [trees[index] for index in kept], [sizes[index] for index in kept]
    longest = _MOST_CHARACTERS
    while trees and _measure(trees[0]) > most and len(trees) == 1 and longest > 100:
        longest //= 2
        trees = [_cut_texts(trees[0], longest)]
    return trees


def _measure(tree: dict[str, Any]) -> int:
    return len(embed_json(tree).encode())


def _cut_texts(tree: dict[str, Any], longest: int) -> dict[str, Any]:
    turns = []
    for turn in tree["turns"]:
        left_out = [
            max(0, len(text) - longest) + before for text, before in zip(turn["text"], turn["cut"], strict=True)
        ]
        shorter = {name: [text[:longest] for text in turn[name]] for name in ("text", "visible") if name in turn}
        turns.append(turn | shorter | {"cut": left_out})
    return tree | {"turns": turns, "question": tree["question"][:longest]}


# --------------------------------------------------------------------------------------------------------------------
# A tree in columns


def _make_trees(
    tree: RecordedTree, key: TreeKey, run: int, credits: dict[str, RecordedTree]
) -> Iterator[dict[str, Any]]:
    """A tree, or each branch of another plan as one of its own, named after what it is."""
    others = {method: list_trees(other) for method, other in credits.items()}
    for number, (branch, levels) in enumerate(list_trees(tree)):
        scored = {method: trees[number][1] for method, trees in others.items()}
        made = _make_tree(tree, levels, key, run, scored) | {"fan_out": list(branch.fan_out)}
        if tree.plan.form != "tree":
            after = f" after {tree.record['protocol'][len(branch.given) - 1]}" if branch.given else ""
            made |= {"line": f"{key[1]}.{number}", "problem": f"{made['problem']}, {branch.kind}{after}"}
        yield made


def _make_tree(
    tree: RecordedTree,
    levels: Sequence[list[Record]],
    key: TreeKey,
    run: int,
    credits: dict[str, tuple[list[Record], ...]],
) -> dict[str, Any]:
    record, turns = tree.record, []
    for name, nodes, is_trained in zip(record["protocol"], levels, tree.trained, strict=True):
        turn: dict[str, Any] = {"name": str(name), "role": nodes[0]["role"], "trained": is_trained}
        turn["text"] = [_to_text(node.get("text"))[:_MOST_CHARACTERS] for node in nodes]
        turn["cut"] = [max(0, len(_to_text(node.get("text"))) - _MOST_CHARACTERS) for node in nodes]
        if any("visible" in node for node in nodes):  # a null message is read whole
            parts = [_to_text(node.get("visible", node.get("text"))) for node in nodes]
            turn["visible"] = [part[:_MOST_CHARACTERS] for part in parts]
        turn["truncated"] = [node.get("truncated") is True for node in nodes]
        turn |= {field: [_to_number(node.get(field)) for node in nodes] for field in _NUMBERS}
        if nodes[0]["role"] == ENVIRONMENT:
            turn["reward"] = [_to_number(node.get("reward")) for node in nodes]
            turn |= {field: [node.get(field) is True for node in nodes] for field in ("done", "failed")}
        turns.append(turn)
    leaves = levels[-1]
    turns[-1]["return"] = [_to_number(leaf["return"]) for leaf in leaves]
    turns[-1]["verdict"] = [_shorten(leaf.get("verdict")) for leaf in leaves]
    turns[-1]["answer"] = [None if leaf.get("answer") is None else _shorten(leaf["answer"]) for leaf in leaves]
    turns[-1]["detail"] = [_shorten(leaf.get("detail")) for leaf in leaves]
    return {
        "run": run,
        "step": key[0],
        "line": key[1],
        "problem": _shorten(record.get("problem")),
        "question": _to_text(record.get("question")),
        "turns": turns,
        "credits": {
            method: [{field: [_to_number(node.get(field)) for node in nodes] for field in _CREDIT} for nodes in other]
            for method, other in credits.items()
        },
    }


def _to_text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _shorten(value: Any) -> str:
    return _to_text(value)[:_MOST_SHORT]


def _to_number(value: Any) -> float | None:
    number = read_number(value)
    return number if number is None else value if isinstance(value, int) else float(f"{number:.{_DIGITS}g}")


def _cut_prompts(turn: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The prompts of a turn, each as pieces of plain text and slots, in order."""
    prompts = []
    for name in ("system", "user"):
        pieces = []
        for literal, slot, _, _ in string.Formatter().parse(turn[name]):
            pieces += [("text", literal)] if literal else []
            pieces += [("slot", slot)] if slot is not None else []
        prompts += [(name, pieces)] if pieces else []
    return prompts


# --------------------------------------------------------------------------------------------------------------------
# The credit of other methods


def _load_scored(
    paths: Sequence[str], chosen: dict[TreeKey, RecordedTree], source: Source
) -> dict[TreeKey, dict[str, RecordedTree]]:
    """The chosen trees as other methods credited them, by step, row and method."""
    found: dict[TreeKey, dict[str, RecordedTree]] = {key: {} for key in chosen}
    for path in paths:
        seen: dict[int, int] = {}
        matched = 0
        for where, line in list_lines(Path(path)):
            tree = parse_tree(line.decode("utf-8", "replace"), where)
            step = tree.record["step"]
            key = step, seen.get(step, 0)
            seen[step] = key[1] + 1
            if key not in chosen:
                continue
            if not _is_same(tree, chosen[key]):
                raise UserError(f"--scored {where}: expected the tree that {source.run.path} recorded, got another")
            found[key][_name_method(tree.record)] = tree
            matched += 1
        if matched < len(chosen):
            raise UserError(
                f"--scored {path}: expected all trees of {source.run.path} (c3jax score), got {matched} of the"
                f" {len(chosen)} shown"
            )
    return found


def _name_method(record: Record) -> str:
    scope = record.get("normalise", "none")
    return _to_text(record.get("method")) + ("" if scope == "none" else f" / {scope}")


def _is_same(tree: RecordedTree, other: RecordedTree) -> bool:
    def read(one: RecordedTree) -> Any:
        return one.plan, [[node.get("text") for node in nodes] for nodes in one.nodes]

    return tree.record.get("problem") == other.record.get("problem") and read(tree) == read(other)
