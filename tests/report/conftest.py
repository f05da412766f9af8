"""Run directories as training leaves them, by hand: two turns of two alternatives, and returns that are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from c3jax.config.file import dump_config, parse_config

CONFIG: dict[str, Any] = {
    "seed": 0,
    "steps": 5,
    "problems": 2,
    "task": {"kind": "arithmetic"},
    "protocol": {
        "turns": [
            {"name": "plan", "role": "planner", "system": "be {{brief}}", "user": "{question} ?", "max_tokens": 4},
            {"name": "answer", "role": "solver", "user": "{question} : {plan} =", "max_tokens": 4},
        ],
        "question_tokens": 32,
    },
    "model": {"kind": "random"},
    "credit": {"method": "c3", "fan_out": [2, 2], "budget": 4, "normalise": "none"},
    "learner": {"learning_rate": 4e-3},
}
MANIFEST = {
    "c3jax": "0.2.0",
    "git": {"commit": "0123456789abcdef", "is_dirty": False},
    "devices": {"backend": "cpu", "kind": "cpu", "count": 1},
    "data": {"overlap": {}, "dropped": []},
    "unsafe_no_sandbox": False,
    "starts": [{"time": "2026-01-02T03:04:05+00:00", "step": 0, "changes": {}}],
}
SECONDS = {"seconds_rollout": 1.0, "seconds_score": 0.5, "seconds_update": 0.25}
LEDGER = {"evaluator_calls": 8, "messages": 12, "generated_tokens": 30, "prefilled_tokens": 20}


def make_tree(
    step: int,
    problem: str,
    returns: Sequence[float] = (1, 0, 1, 1),
    question: str = "1 up 2",
    texts: Sequence[str] = ("plan a", "plan b", "1", "2", "3", "4"),
    truncated: Sequence[int] = (),
) -> dict[str, Any]:
    """A recorded tree with C3's credit: a plan is worth the mean of its answers, and the other plan is its baseline."""
    values = [*((returns[2 * plan] + returns[2 * plan + 1]) / 2 for plan in (0, 1)), *returns]
    pairs = [1, 0, 3, 2, 5, 4]  # the other alternative in the same context
    nodes = []
    for row, index in enumerate([[0], [1], [0, 0], [0, 1], [1, 0], [1, 1]]):
        turn, role = ("plan", "planner") if len(index) == 1 else ("answer", "solver")
        node = {"turn": turn, "role": role, "index": index, "text": texts[row], "tokens": 3, "logp": -0.5}
        node |= {"truncated": row in truncated, "value": values[row], "baseline": values[pairs[row]]}
        node |= {"advantage": values[row] - values[pairs[row]]}
        if len(index) == 2:
            verdict = "correct" if returns[row - 2] == 1 else "wrong"
            node |= {"answer": texts[row], "return": returns[row - 2], "verdict": verdict}
        nodes.append(node)
    head = {"problem": problem, "question": question, "protocol": ["plan", "answer"], "trained": [True, True]}
    return head | {"fan_out": [2, 2], "step": step, "method": "c3", "nodes": nodes}


def make_evaluation(step: int, scores: Sequence[float], **changes: Any) -> dict[str, Any]:
    """An evaluation of one suite, a sample a problem."""
    mean = sum(scores) / len(scores)
    row = {"suite": "heldout", "profile": "greedy", "problems": len(scores), "samples": 1, "accuracy": mean}
    row |= {"low": mean / 2, "high": (1 + mean) / 2, "pass_at": {"1": [mean, 0, 1]}, "majority": None, "truncated": 0.0}
    row |= {"verdicts": {"correct": mean}, "ids": [f"t{n}" for n in range(len(scores))]}
    row |= {"digests": row["ids"], "scores": [[score] for score in scores]}
    return {"step": step, "results": [row | changes]}


MakeRun = Callable[..., str]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run of five steps and gives its path."""

    def make(
        name: str = "run",
        trees: Sequence[dict[str, Any]] | None = None,
        rows: Sequence[dict[str, Any]] | None = None,
        evaluations: Sequence[dict[str, Any]] | None = None,
        manifest: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        folder = tmp_path / name
        for part in ("rollouts", "eval"):
            (folder / part).mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_config(parse_config(CONFIG | changes)), encoding="utf-8")
        (folder / "manifest.json").write_text(json.dumps(MANIFEST | dict(manifest or {})))
        if rows is None:
            rows = [{"return": step / 4, "zero_credit_share": 0.25, "bad_updates": 0} for step in range(5)]
        lines = [json.dumps({"step": step} | LEDGER | SECONDS | row) + "\n" for step, row in enumerate(rows)]
        (folder / "metrics.jsonl").write_text("".join(lines))
        if trees is None:
            trees = [make_tree(0, "p0"), make_tree(0, "p1", (0, 0, 0, 0))]
        by_step: dict[int, list[str]] = {}
        for tree in trees:
            by_step.setdefault(tree["step"], []).append(json.dumps(tree, ensure_ascii=False))
        for step, texts in by_step.items():
            content = "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogatepass")
            (folder / "rollouts" / f"step-{step:06d}.jsonl").write_bytes(content)
        if evaluations is None:
            evaluations = [make_evaluation(0, [0] * 8), make_evaluation(5, [1] * 7 + [0])]
        for body in evaluations:
            (folder / "eval" / f"step-{body['step']}.json").write_text(json.dumps(body))
        return str(folder)

    return make


# What a model may write to take over the page that shows it, or the reader's eye.
HOSTILE = (
    "<script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "</script><script>document.title='taken'</script><!--<script>",
    "\u202egnihton\u202c \u2067abc \u200bzero\u0007bell \ufffd",
    "javascript:alert(1) {{ 7 * 7 }} {% raw %} &lt;b&gt; \u2028 \u2029",
    "x" * (1 << 20),
)
