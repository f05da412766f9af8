"""Many runs in one compiled program, in chunks that fit the memory; every finished chunk is kept.

A block is runs that one program can make together. A chunk is as many of them as fit; its file holds what they record,
so a study that was killed resumes with the runs that no file holds. Files are written whole or not at all.

The runs of a chunk are cut over a process's devices. Each of several processes takes chunks until none is left. What a
process had taken that is lost is taken again when the study is started again.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from c3jax.processes import ask_first, share
from c3jax.run.files import replacing
from c3jax.types import UserError

GIGABYTE = 1e9
_FOLDER, _TAKEN = "chunks", ".taken"

Lanes = Any  # a pytree of arrays: all in which runs of one program differ; of several runs, with the runs in front
Train = Callable[[jax.Array, Lanes], Any]  # (the study's key, one run's lane) -> a NamedTuple of what the run records
Record = dict[str, np.ndarray]  # what one run recorded, by field


class Block(NamedTuple):
    """Runs that differ only in their lanes."""

    name: str  # for messages
    train: Train
    lanes: Lanes
    numbers: tuple[int, ...]  # by which the study knows each run


class CompiledBlock(NamedTuple):
    """A block, and the program that makes some of its runs at a time."""

    block: Block
    run: Train  # of `width` lanes
    width: int


class Outcome(NamedTuple):
    """What all runs recorded, and what it took in this process."""

    recorded: Record  # the runs in front, in the order of their numbers
    resumed: int  # runs that were there already
    programs: int
    chunks: int
    compile_seconds: float
    run_seconds: float


def run_blocks(blocks: Sequence[Block], key: jax.Array, memory_gb: float, run_dir: Path, console: Console) -> Outcome:
    """Make all runs of all blocks that a directory does not hold yet.

    Everything is compiled, and so its size known, before anything runs.

    Args:
      key: the study's, the same for all runs.
      memory_gb: what one program may take of each device, in 10^9 bytes.
      run_dir: where finished chunks are, and new ones are written.

    Returns:
      The same records in every process, once all chunks are finished.

    Raises:
      UserError: a single run of a block takes more memory, or a chunk's file cannot be read.
    """
    folder = run_dir / _FOLDER
    ask_first(lambda: _forget_taken(folder))
    kept = _load_chunks(folder)
    share(None)  # all know the same chunks, and so cut what remains alike
    resumed = len(kept)
    begin = time.perf_counter()
    remaining = [block for block in (_drop_done(block, kept) for block in blocks) if block.numbers]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # other threads run while the compiler does
        programs = list(pool.map(lambda block: compile_block(block, key, memory_gb), remaining))
    compiled = time.perf_counter()
    chunks = [(program, first) for program in programs for first in range(0, len(program.block.numbers), program.width)]
    total = sum(len(block.numbers) for block in blocks)
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=resumed)
        for program, first in chunks:
            if _take(folder, program.block.numbers[first]):
                kept |= _run_chunk(program, first, key, folder)
            bar.update(task, completed=len(kept))
            if not console.is_terminal:
                console.print(f"{len(kept)}/{total} runs", soft_wrap=True)
    while len(kept) < total:  # the others' are on their way; the runtime ends this process where one of them is lost
        time.sleep(1.0)
        kept = _load_chunks(folder)
    records = [kept[number] for number in sorted(kept)]
    recorded = {name: np.stack([record[name] for record in records]) for name in records[0]}
    return Outcome(recorded, resumed, len(programs), len(chunks), compiled - begin, time.perf_counter() - compiled)


def compile_block(block: Block, key: jax.Array, memory_gb: float) -> CompiledBlock:
    """Compile a block for as many runs a call as fit into the devices' memory, in chunks of nearly equal size.

    A call is of the same number of runs on every device, and there is a chunk for every process where runs suffice.

    Args:
      block: one run or more.
      key: the study's.
      memory_gb: what the program may take of each device, in 10^9 bytes.

    Raises:
      UserError: a single run does not fit; it says what would do.
    """
    runs, limit = len(block.numbers), memory_gb * GIGABYTE
    mesh, one, cut = Mesh(jax.local_devices(), "lanes"), PartitionSpec(), PartitionSpec("lanes")
    train = jax.vmap(block.train, in_axes=(None, 0))
    train = jax.jit(jax.shard_map(train, mesh=mesh, in_specs=(one, cut), out_specs=cut, check_vma=False))
    width = _divide(runs, jax.process_count(), mesh.size)
    while True:
        shapes = jax.tree.map(lambda leaf, n=width: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), block.lanes)
        program = compile_lowered(train.lower(key, shapes))
        parts = program.memory_analysis()
        assert parts is not None  # it is only where a backend does not say
        size = parts.argument_size_in_bytes + parts.output_size_in_bytes + parts.temp_size_in_bytes
        if size <= limit:
            return CompiledBlock(block, program, width)
        if width == mesh.size:
            raise UserError(
                f"memory_gb: expected at least {size / GIGABYTE:.3g} for one run of {block.name}, got {memory_gb:g}"
            )
        fitting = max(mesh.size, min(width - mesh.size, int(width * limit / size) // mesh.size * mesh.size))
        width = _divide(runs, math.ceil(runs / fitting), mesh.size)


def _divide(runs: int, parts: int, devices: int) -> int:
    """The least width with which so many chunks hold all runs, the same on every device."""
    return math.ceil(math.ceil(runs / parts) / devices) * devices


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a training run's program, quickly."""
    return lowered.compile(compiler_options=list_quick_options())


def list_quick_options() -> dict[str, Any] | None:
    """Options of a compiler that does without LLVM's costly passes, which on CPU take longer than they save."""
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return None  # the latter does without more of them
    return {"xla_backend_optimization_level": 1}


def count_saved(run_dir: Path) -> int:
    """Number of finished chunks that a run directory holds."""
    return len(list((run_dir / _FOLDER).glob("*.npz")))


def _drop_done(block: Block, kept: dict[int, Record]) -> Block:
    rows = [row for row, number in enumerate(block.numbers) if number not in kept]
    return block._replace(lanes=take_lanes(block.lanes, rows), numbers=tuple(block.numbers[row] for row in rows))


def take_lanes(lanes: Lanes, rows: Any) -> Lanes:
    """The lanes at these indices, or at one."""
    return jax.tree.map(lambda leaf: leaf[rows], lanes)


def _run_chunk(program: CompiledBlock, first: int, key: jax.Array, folder: Path) -> dict[int, Record]:
    numbers = program.block.numbers[first : first + program.width]
    # The last chunk is filled up with its last run again, so that one program makes all chunks.
    rows = np.minimum(np.arange(first, first + program.width), len(program.block.numbers) - 1)
    result = jax.device_get(program.run(key, take_lanes(program.block.lanes, rows)))
    columns = {name: np.asarray(column)[: len(numbers)] for name, column in result._asdict().items()}
    with replacing(folder / f"{numbers[0]:06d}.npz") as partial, partial.open("wb") as file:
        np.savez(file, numbers=np.array(numbers), **columns)  # pyright: ignore[reportArgumentType]  # no such option
    return _split_runs(numbers, columns)


def _take(folder: Path, number: int) -> bool:
    """Whether the chunk that begins with this run is this process's to make: no other took it before."""
    if jax.process_count() > 1:
        try:
            (folder / f"{number:06d}{_TAKEN}").touch(exist_ok=False)
        except FileExistsError:
            return False
    return True


def _forget_taken(folder: Path) -> None:
    """What was taken before this start and is not finished is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"*{_TAKEN}"):
        path.unlink()


def _load_chunks(folder: Path) -> dict[int, Record]:
    kept: dict[int, Record] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path) as file:
                columns = dict(file)
            numbers = columns.pop("numbers").tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: expected a finished chunk, got a broken file ({error}); delete it") from None
        kept |= _split_runs(numbers, columns)
    return kept


def _split_runs(numbers: Sequence[int], columns: Record) -> dict[int, Record]:
    return {number: {name: column[row] for name, column in columns.items()} for row, number in enumerate(numbers)}
