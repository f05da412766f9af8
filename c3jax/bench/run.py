"""Run one benchmark: its figures, and their ratios, as one JSON object."""

from __future__ import annotations

import json

import jax

from c3jax.bench.credit import bench_credit
from c3jax.bench.rollout import bench_rollout
from c3jax.bench.update import bench_update


def run(what: str, is_small: bool) -> int:
    """Run one benchmark, print its JSON and return the exit code."""
    measure = {"rollout": bench_rollout, "credit": bench_credit, "update": bench_update}[what]
    # A small bench measures nothing, so what it runs need not be fast.
    jax.config.update("jax_disable_most_optimizations", is_small)
    device = jax.devices()[0]
    figures = {"bench": what, "device": device.device_kind, "jax": jax.__version__, **measure(is_small)}
    print(json.dumps(figures, indent=2))
    return 0
