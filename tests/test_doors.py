"""A run whose method, loss and tracker are the user's own: it trains, resumes, and its trees are scored by them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax import train
from c3jax.commands.score import score_source
from c3jax.config import file as config_file
from c3jax.run.metrics import drop_times, read_metrics

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
BLENDED, SOFT_CLIP, OWN_CSV = (
    str(EXAMPLES / name) for name in ("own_method.py:BLENDED", "own_loss.py:SOFT_CLIP", "own_tracker.py:open_csv")
)
SMALL = {
    **{"steps": 4, "problems": 4, "workers": 1, "record_every": 2, "checkpoint.every": 2, "imitation": None},
    **{"task.train_problems": 64, "task.heldout_problems": 2, "evaluation.problems": 2, "evaluation.batch": 2},
    **{"model.layers": 1, "model.width": 16, "model.mlp_width": 32, "evaluation.samples": 0, "learner.epochs": 2},
    **{"credit.method": BLENDED, "learner.loss.kind": SOFT_CLIP, "learner.loss.clip_high": 0.3},
}


@pytest.fixture(autouse=True)
def compile_quickly():
    """Without the compiler's costly passes: programs here compile for seconds and run for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def run(overrides, path: Path) -> str:
    config, console = config_file.load_config(ROOT / "configs" / "quickstart.yaml", overrides), io.StringIO()
    assert train.train(config, path, ["train"], Console(file=console, width=200)) == train.DONE
    return console.getvalue()


def test_a_run_of_ones_own_parts_trains_resumes_and_is_scored(tmp_path):
    broken = tmp_path / "broken_tracker.py"
    broken.write_text(
        "def start(run):\n    return (lambda step, row: row['no such figure']), print\n", encoding="utf-8"
    )
    overrides = SMALL | {"trackers": ["jsonl", OWN_CSV, f"{broken}:start"]}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    printed = run(overrides, whole)
    assert printed.count(f"tracker {broken}:start is dropped, and the run continues without it (KeyError: ") == 1
    rows = read_metrics(whole)
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and all(row["grad_norm"] > 0 for row in rows)
    csv = (whole / "figures.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in csv[1:]] == [[str(row["step"]), str(row["return"])] for row in rows]

    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "4")
    assert "resumed after step 2" in run(overrides, stopped)
    assert [drop_times(row) for row in read_metrics(stopped)] == [drop_times(row) for row in rows]

    # Its own trees, scored by its own method: what the run recorded, and a second time in a file.
    console = Console(file=io.StringIO(), width=200)
    assert score_source(whole, BLENDED, "none", tmp_path / "scored.jsonl", console) == 0
    recorded = [json.loads(line) for file in sorted((whole / "rollouts").iterdir()) for line in file.open()]
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").open()]
    assert len(scored) == len(recorded) == 8 and {tree["method"] for tree in scored} == {BLENDED}
    advantages = [[node["advantage"] for tree in trees for node in tree["nodes"]] for trees in (scored, recorded)]
    np.testing.assert_allclose(*advantages, atol=1e-6)
    assert np.abs(advantages[0]).max() > 0.1


def test_a_loss_of_whole_messages_trains(tmp_path):
    """On the first epoch its ratio is 1, so its first gradient is ppo's where messages count alike."""
    overrides = SMALL | {"steps": 1, "learner.minibatches": 1, "learner.epochs": 1, "credit.method": "c3"}
    norms = {}
    for kind in ("gspo", "ppo"):
        changes = {"learner.loss": {"kind": kind, "aggregation": "message"}}
        kept = {name: value for name, value in overrides.items() if not name.startswith("learner.loss")}
        run(kept | changes, tmp_path / kind)
        [row] = read_metrics(tmp_path / kind)
        norms[kind] = row["grad_norm"]
    assert norms["ppo"] > 1e-3
    np.testing.assert_allclose(norms["gspo"], norms["ppo"], rtol=1e-4)
