"""Recorded trees: one JSON object a problem, in a form that outlives the program that wrote it.

{problem, question, protocol, trained, fan_out, step, method, nodes: [{turn, role, index, text, tokens, truncated, logp,
value, baseline, advantage}, ...]}; a leaf's node has answer, return and verdict too. `index` is the node's path of
alternatives, so its parent is its index without the last number; `trained` says it of every turn of the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c3jax.config.run import RunConfig
from c3jax.run.files import save_whole
from c3jax.types import Credit, FanOut, Messages, Problem, Verdict


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
