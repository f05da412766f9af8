"""What the runs of a study take when each is made alone: measured on a few of them, in the same process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from c3jax.studies.chunks import Block, compile_lowered


class Alone(NamedTuple):
    """Mean seconds of a run made alone, of `runs` that were."""

    runs: int
    seconds: float  # traced, compiled and run, as a program of its own is
    compile_seconds: float  # of these, tracing and compiling
    run_seconds: float  # of a program that is compiled already


def time_alone(blocks: Sequence[Block], key: jax.Array, count: int) -> Alone:
    """Make `count` of the runs, spread evenly over all, each alone, with a program of its own.

    The same function is traced and compiled anew for every run, with the same compiler options as a study's chunks.
    """
    runs = [(block, place) for block in blocks for place in range(len(block.numbers))]
    chosen = np.linspace(0, len(runs) - 1, min(count, len(runs)) + 2)[1:-1].astype(int)
    seconds = [_time_run(*runs[place], key) for place in chosen]
    compile_seconds, run_seconds = (float(np.mean(column)) for column in zip(*seconds, strict=True))
    return Alone(len(chosen), compile_seconds + run_seconds, compile_seconds, run_seconds)


@contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compile everything anew inside: a program found on disk would say nothing of what compiling takes."""
    before = jax.config.jax_enable_compilation_cache
    _use_compilation_cache(False)
    try:
        yield
    finally:
        _use_compilation_cache(before)


def _use_compilation_cache(is_used: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", is_used)
    compilation_cache.reset_cache()  # whether it is used is otherwise decided once a process


def _time_run(block: Block, place: int, key: jax.Array) -> tuple[float, float]:
    lane: Any = jax.tree.map(lambda leaf: leaf[place], block.lanes)

    def train(key: jax.Array, lane: Any) -> Any:  # a new function, so that nothing compiled before is found again
        return block.train(key, lane)

    begin = time.perf_counter()
    program = compile_lowered(jax.jit(train).lower(key, lane))
    compiled = time.perf_counter()
    jax.block_until_ready(program(key, lane))
    return compiled - begin, time.perf_counter() - compiled
