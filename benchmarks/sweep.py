"""What it saves that the runs of a learning study are compiled and made together."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from c3jax.lab import chunks, learning
from c3jax.lab.config import LearningStudy, parse_study

STUDY = {
    **{"kind": "learning", "seed": 0, "seeds": 20, "updates": 500, "every": 25, "problems": 16},
    "cases": [
        {
            "name": "two roles",
            "game": {"kind": "chain", "messages": 6, "coupling": 1.5, "problems": 32},
            "estimators": ["c3 2x4", "no_loo 2x4", "tree_rl 2x4", "rloo 8", "magrpo 8", "shrunk 4x2", "mappo 8"],
        }
    ],
    **{"policy": "tabular", "learning_rates": [0.05]},
}
SMALL = STUDY | {"seeds": 2, "updates": 4, "every": 2}


def bench_sweep(is_small: bool) -> dict[str, Any]:
    """The runs of seven estimators together, and some of them each alone, with a compilation for every run.

    Returns:
      Seconds, and how many times as long all runs take one after another: as they are, and compiled once a program.
    """
    config = parse_study(SMALL if is_small else STUDY)
    assert isinstance(config, LearningStudy)
    blocks, key = learning.make_blocks(config, learning.list_arms(config)), jax.random.key(config.seed)
    runs = sum(len(block.numbers) for block in blocks)
    with without_compilation_cache(), tempfile.TemporaryDirectory() as folder:
        outcome = chunks.run_blocks(blocks, key, config.memory_gb, Path(folder), Console(file=io.StringIO()))
        # Two runs, from a third and from two thirds of the way through all.
        placed = [(block, row) for block in blocks for row in range(len(block.numbers))]
        times = [time_run(*placed[runs * third // 3], key) for third in (1, 2)]
    compiling, running = (float(np.mean(column)) for column in zip(*times, strict=True))
    together = outcome.compile_seconds + outcome.run_seconds
    return {
        "runs": runs,
        "programs": outcome.programs,
        "seconds": {"compiling": outcome.compile_seconds, "running": outcome.run_seconds},
        "seconds_alone": {"compiling": compiling, "running": running},
        "alone_over_together": runs * (compiling + running) / together,
        "alone_compiled_once_over_together": (outcome.programs * compiling + runs * running) / together,
    }


def time_run(block: chunks.Block, row: int, key: jax.Array) -> tuple[float, float]:
    """Seconds of compiling, tracing included, and of running one run of a block in a program of its own."""

    def train(key: jax.Array, lane: chunks.Lanes) -> Any:  # a new function, so that nothing compiled before is found
        return block.train(key, lane)

    lane, began = chunks.take_lanes(block.lanes, row), time.perf_counter()
    program = chunks.compile_lowered(jax.jit(train).lower(key, lane))
    compiled = time.perf_counter()
    jax.block_until_ready(program(key, lane))
    return compiled - began, time.perf_counter() - compiled


@contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compile everything anew inside: a program found on disk would say nothing of what compiling takes."""
    before = jax.config.values["jax_enable_compilation_cache"]
    _use_compilation_cache(False)
    try:
        yield
    finally:
        _use_compilation_cache(before)


def _use_compilation_cache(is_used: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", is_used)
    compilation_cache.reset_cache()  # whether it is used is otherwise decided once a process
