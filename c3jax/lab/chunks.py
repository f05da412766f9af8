"""Many runs in one compiled program, in chunks that fit the memory; every finished chunk is kept.

A block is runs that one program can make together. A chunk is as many of them as fit; its file holds what they record,
so a study that was killed goes on with the runs that no file holds. Files are written whole or not at all.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from c3jax.run.files import replacing
from c3jax.types import UserError

GIGABYTE = 1e9
_FOLDER = "chunks"


class Block(NamedTuple):
    """Runs that differ only in their lanes."""

    name: str  # for messages
    train: Callable[[jax.Array, Any], Any]  # (key, lane) -> a NamedTuple of arrays
    lanes: Any  # a pytree of arrays with the runs in front
    numbers: tuple[int, ...]  # each run's place in the study


class Program(NamedTuple):
    """A compiled block."""

    block: Block
    run: Callable[[jax.Array, Any], Any]
    width: int  # runs a call


class Outcome(NamedTuple):
    """What all runs recorded, and what it took."""

    recorded: dict[str, np.ndarray]  # by field, the runs in front in the order of their numbers
    resumed: int  # runs that were there already
    programs: int
    chunks: int
    compile_seconds: float
    run_seconds: float


def run_blocks(blocks: Sequence[Block], key: jax.Array, memory_gb: float, run_dir: Path, console: Console) -> Outcome:
    """Make all runs of all blocks that run_dir does not hold yet.

    Everything is compiled, and so its size known, before anything runs. Raises UserError when a single run of a block
    takes more memory than memory_gb, or when a chunk's file cannot be read.
    """
    folder = run_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    kept = _load_chunks(folder)
    resumed = len(kept)
    begin = time.perf_counter()
    remaining = [_drop_done(block, kept) for block in blocks]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compiler lets other threads go on
        programs = list(
            pool.map(lambda block: compile_block(block, key, memory_gb), [each for each in remaining if each.numbers])
        )
    compiled = time.perf_counter()
    chunks = [(program, first) for program in programs for first in range(0, len(program.block.numbers), program.width)]
    total = sum(len(block.numbers) for block in blocks)
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=resumed)
        for program, first in chunks:
            kept |= _run_chunk(program, first, key, folder)
            bar.update(task, completed=len(kept))
            if not console.is_terminal:
                console.print(f"{len(kept)}/{total} runs", soft_wrap=True)
    rows = [kept[number] for number in sorted(kept)]
    recorded = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Outcome(recorded, resumed, len(programs), len(chunks), compiled - begin, time.perf_counter() - compiled)


def compile_block(block: Block, key: jax.Array, memory_gb: float) -> Program:
    """Compile a block for as many runs a call as fit into memory_gb, in chunks of nearly equal size.

    Raises UserError with the size that is needed when a single run does not fit.
    """
    runs, limit = len(block.numbers), memory_gb * GIGABYTE
    train = jax.jit(jax.vmap(block.train, in_axes=(None, 0)))
    width = runs
    while True:
        program = compile_lowered(train.lower(key, _describe_lanes(block.lanes, width)))
        size = _measure_size(program)
        if size <= limit:
            return Program(block, program, width)
        if width == 1:
            raise UserError(
                f"memory_gb: expected at least {size / GIGABYTE:.3g} for one run of {block.name}, got {memory_gb:g}"
            )
        fitting = max(1, min(width - 1, int(width * limit / size)))
        width = math.ceil(runs / math.ceil(runs / fitting))


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a training run's program, quickly."""
    return lowered.compile(compiler_options=list_quick_options())


def list_quick_options() -> dict[str, Any] | None:
    """Options of a compiler that does without LLVM's costly passes, which on CPU take longer than they save."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def count_saved(run_dir: Path) -> int:
    """Number of finished chunks that a run directory holds."""
    return len(list((run_dir / _FOLDER).glob("*.npz")))


def _describe_lanes(lanes: Any, width: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((width, *leaf.shape[1:]), leaf.dtype), lanes)


def _measure_size(program: jax.stages.Compiled) -> int:
    parts = program.memory_analysis()
    return parts.argument_size_in_bytes + parts.output_size_in_bytes + parts.temp_size_in_bytes


def _drop_done(block: Block, kept: dict[int, Any]) -> Block:
    places = [place for place, number in enumerate(block.numbers) if number not in kept]
    return block._replace(
        lanes=jax.tree.map(lambda leaf: leaf[places], block.lanes),
        numbers=tuple(block.numbers[place] for place in places),
    )


def _run_chunk(program: Program, first: int, key: jax.Array, folder: Path) -> dict[int, dict[str, np.ndarray]]:
    numbers = program.block.numbers[first : first + program.width]
    # The last chunk is filled up with its last run again, so that one program makes all chunks.
    places = np.minimum(np.arange(first, first + program.width), len(program.block.numbers) - 1)
    result = jax.device_get(program.run(key, jax.tree.map(lambda leaf: leaf[places], program.block.lanes)))
    columns = {name: np.asarray(column)[: len(numbers)] for name, column in result._asdict().items()}
    path = folder / f"{numbers[0]:06d}.npz"
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, numbers=np.array(numbers), **columns)
    return _split_runs(numbers, columns)


def _load_chunks(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    kept: dict[int, dict[str, np.ndarray]] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path) as file:
                columns = dict(file)
            numbers = columns.pop("numbers").tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: expected a finished chunk, got a broken file ({error}); delete it") from None
        kept |= _split_runs(numbers, columns)
    return kept


def _split_runs(numbers: Sequence[int], columns: dict[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    return {number: {name: column[place] for name, column in columns.items()} for place, number in enumerate(numbers)}


# --------------------------------------------------------------------------------------------------------------------
# The same runs, one after another


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
