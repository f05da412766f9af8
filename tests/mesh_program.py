"""Two steps of a small team on several meshes of eight devices, compared with one device; run by test_mesh.py. And a
run whose trees are drawn on devices of their own, compared with one where one device does it all.

Prints one JSON object: for each case how far messages, credit, figures and parameters are from one device's.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from tiny_run import TREE

from c3jax import train
from c3jax.config.file import load_config, parse_config
from c3jax.credit.plans import make_tree
from c3jax.learner.state import init_state
from c3jax.models import sharding
from c3jax.models.policy import Weights
from c3jax.rollout import address
from c3jax.setup.team import choose_problems, make_questions, make_setup

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SMALL = {
    **{"steps": 5, "problems": 16, "rollout_problems": 8, "task.train_problems": 64, "task.heldout_problems": 16},
    **{"model.layers": 1, "model.width": 16, "model.heads": 4, "model.key_value_heads": 2, "model.mlp_width": 32},
    **{"imitation.problems": 8, "learner.epochs": 2, "learner.micro_problems": 8},
    **{"learner.minibatches": 1, "shapes.batches": 2},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "all": ({"credit.method": "mappo"}, {"data": 2, "fsdp": 2, "tensor": 2}),
}


def run(overrides: dict[str, Any], mesh: dict[str, int]) -> dict[str, Any]:
    """Two steps with returns that are made up; everything on the host."""
    sizes = {f"mesh.{name}": mesh.get(name, 1) for name in sharding.AXES}
    config = load_config(QUICKSTART, {**SMALL, **overrides, **sizes})
    setup = make_setup(config, uses_mesh=True)
    sample_tree, update, *_ = train.make_step(setup)
    state = init_state(setup.policy, setup.weights, setup.plans, config.credit, config.learner)
    state = sharding.shard_state(setup.mesh, state)
    reference, made = jax.tree.map(lambda leaf: leaf.copy(), state.params), []
    held = {"params": count_bytes(state.params), "opt_state": count_bytes(state.opt_state)}
    fan_out: Any = config.credit.fan_out
    for step in range(2):
        key = jax.random.fold_in(address.make_stream(config.seed, address.TRAIN), step)
        indices, parts = choose_problems(setup, step), []
        for first in (0, 8):
            question, problem_P = make_questions(setup, setup.train, indices[first : first + 8])
            parts.append(sample_tree(Weights(state.params, {}), question, key, problem_P, fan_out))
        rollout = sharding.join_problems(setup.mesh, [part for part, _ in parts])
        leaves = rollout.turns[-1].truncated_N.shape[0] // 16
        return_PL = np.random.default_rng(step).integers(0, 2, (16, leaves)).astype(np.float32)
        placed = sharding.shard_problems(setup.mesh, return_PL)
        state, credit, figures = update(state, {}, reference, (rollout,), placed, key, make_tree(fan_out))
        made.append(jax.device_get((rollout.turns, [counts for _, counts in parts], credit, figures)))
    return {"steps": made, "params": jax.device_get(state.params), "traces": update._cache_size(), "held": held}


def train_apart(folder: Path) -> dict[str, Any]:
    """A whole run with two devices that learn and two that draw, beside that of one: metrics and records."""
    found, apart = {}, {"data": 2, "rollout": {"data": 2}}
    for name, mesh in (("one", {"data": 1}), ("apart", apart)):
        config = parse_config(TREE | {"async_steps": 1, "record_every": 1, "steps": 3, "mesh": mesh})
        console = Console(file=io.StringIO())
        assert train.train(config, folder / name, console=console) == train.DONE
        lines = [path.read_text() for path in sorted((folder / name / "rollouts").glob("*.jsonl"))]
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        found[name] = {"said": console.file.getvalue(), "rows": rows, "records": lines}  # type: ignore[attr-defined]
    return found


def count_bytes(tree: Any) -> tuple[int, int]:
    """Bytes of a tree on the first device, and in all."""
    first = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    return first, sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The largest differences, and whether all that is whole numbers is the same."""
    pairs = [*zip(jax.tree.leaves(one["steps"]), jax.tree.leaves(other["steps"]), strict=True)]
    whole = [(a, b) for a, b in pairs if not np.issubdtype(np.asarray(a).dtype, np.floating)]
    floats = [(a, b) for a, b in pairs if np.issubdtype(np.asarray(a).dtype, np.floating)]
    params = [*zip(jax.tree.leaves(one["params"]), jax.tree.leaves(other["params"]), strict=True)]
    return {
        "same_messages": all(np.array_equal(a, b) for a, b in whole),
        "figures": max(float(np.max(np.abs(a - b))) for a, b in floats),
        "params": max(float(np.max(np.abs(a - b))) for a, b in params),
        "moved": max(float(np.max(np.abs(a))) for a, _ in params),
        "traces": other["traces"],
        "held": other["held"],
    }


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "float32")
    singles = {name: run(dict(name), {}) for name in {tuple(overrides.items()) for overrides, _ in CASES.values()}}
    found = {name: compare(singles[tuple(o.items())], run(o, mesh)) for name, (o, mesh) in CASES.items()}
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(found | train_apart(Path(folder))))
    sys.exit(0)
