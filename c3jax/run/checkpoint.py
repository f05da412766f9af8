"""Checkpoints of a run. The only file that knows Orbax.

A checkpoint is the folder RUN/checkpoints/STEP. Orbax writes the arrays into its state/, as a flat dict from tree path
to array; record.json beside it holds what they are checked against: the CRC-32 of every file and of every array, with
the array's path, dtype and shape. The folder is written as STEP.writing and renamed when it is whole, and renamed to
STEP.deleting before it goes, so a folder that is named by its step alone was once complete.

A checksum is needed because silent damage is real: a flipped bit inside a compressed chunk mostly decompresses to other
numbers without a complaint. Files are checked before Orbax parses them, arrays after.

Of several processes each writes and reads its own parts of the arrays, whose checksums are then those of the files
alone, and the first does all else; any number of processes and devices may read what any other wrote. While a run is
under way, others may read its checkpoints with the functions, which write nothing; the store is for the processes of
the run, the first of which holds the run directory's lock.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c3jax import processes
from c3jax.run.directory import list_steps
from c3jax.run.files import explain_failure
from c3jax.types import UserError


class CheckpointError(UserError):
    """Checkpoints that cannot be written or read; the message is one sentence for the user."""


class _Damage(Exception):
    """A checkpoint that is not what was saved; the message says what is wrong with it."""


class CheckpointStore:
    """The checkpoints of the run that this process trains.

    Keeps the newest `keep`, the one of step 0 (the policy that the run's divergence is measured from) and the one with
    the highest best_value, the earlier of equals. `print_line` is given sentences for the user. Leftovers of saves that
    were killed are removed on opening. Raises CheckpointError when the folder cannot be made.
    """

    def __init__(self, run_dir: Path, keep: int, print_line: Callable[[str], None]) -> None:
        self._run_dir, self._keep, self._print_line = run_dir, keep, print_line
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        with explain_failure(f"checkpoints in {_folder(run_dir)}: cannot be written", CheckpointError):
            processes.ask_first(lambda: _clear_folder(_folder(run_dir)))

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(self, step: int, state: Any, best_value: float | None = None) -> None:
        """Save a state as checkpoint `step`.

        Returns when the state is copied to the host, so its buffers may be donated at once; it is written beside the
        caller, after an earlier save is done. Several processes return when it is written.

        Args:
          step: not saved yet.
          state: a pytree of arrays of any shape and dtype (PRNG keys as key data).
          best_value: of the rule that keeps the best; None, or one that is not finite, is no candidate.

        Raises:
          CheckpointError: this save or the one before it cannot be written.
        """
        self.wait()
        if step in list_steps(self._run_dir):
            raise CheckpointError(f"checkpoint {step}: expected a step that is not saved yet, got one that is")
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(_folder(self._run_dir)).free
        if size > free:
            raise CheckpointError(f"checkpoint {step}: expected {size:,} free bytes on its disk, got {free:,}")
        if best_value is not None and not math.isfinite(best_value):
            best_value = None
        if jax.process_count() > 1:
            _write(self._run_dir, step, _name_leaves(state, ""), best_value, self._keep)
            return
        # np.array copies, where device_get gives a view into the device's own buffer on the CPU.
        arrays = {name: np.array(leaf, copy=True) for name, leaf in _name_leaves(state, "").items()}
        self._saving = self._thread.submit(_write, self._run_dir, step, arrays, best_value, self._keep)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises CheckpointError when the last save could not be."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def restore_newest(self, like: Any) -> tuple[int, Any] | None:
        """The newest undamaged checkpoint: its step and its state, or None where nothing was saved.

        `like` is the state's pytree with arrays or jax.ShapeDtypeStructs as leaves; it gives structure and placement.
        The arrays are new ones on the device, free to be donated. Damaged checkpoints that are newer are moved aside,
        each with a sentence. Raises CheckpointError when all are damaged, or when the state has other arrays than
        `like`; then nothing is moved.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in reversed(list_steps(self._run_dir)):
            try:
                state = _read(self._run_dir, step, like, "")
            except _Damage as damage:
                damaged[step] = str(damage)
                continue
            for bad_step, reason in damaged.items():
                name = processes.ask_first(lambda bad_step=bad_step: _move_aside(self._run_dir, bad_step))
                self._print_line(
                    f"checkpoint {bad_step} is damaged ({reason}); it was moved to {name}, an earlier one is used"
                )
            return step, state
        if damaged:
            newest = max(damaged)
            raise CheckpointError(
                f"checkpoints in {_folder(self._run_dir)}: expected one that can be read, got {len(damaged)} damaged"
                f" (the newest, {newest}: {damaged[newest]})"
            )
        return None

    def restore_step(self, step: int, like: Any, part: str = "") -> Any:
        """As the function restore_step, after this process's own save is done."""
        self.wait()
        return restore_step(self._run_dir, step, like, part)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order, after this process's own save is done."""
        self.wait()
        return list_steps(self._run_dir)


# --------------------------------------------------------------------------------------------------------------------
# Reading, also from other processes


def find_best_step(run_dir: Path) -> int | None:
    """The step whose checkpoint has the highest best_value, the earlier of equals; None where none has a value."""
    best: tuple[float, int] | None = None
    for step in list_steps(run_dir):
        try:
            value = _load_record(_folder(run_dir) / str(step))["best_value"]
        except _Damage:
            continue
        if value is not None and (best is None or value > best[0]):
            best = (value, step)
    return None if best is None else best[1]


def restore_step(run_dir: Path, step: int, like: Any, part: str = "") -> Any:
    """Read a checkpoint, or a part of it.

    Args:
      run_dir: of the run.
      step: one that is kept.
      like: pytree of what is read, with arrays or jax.ShapeDtypeStructs as leaves.
      part: dotted path of a subtree, such as "params"; "" is all of it.

    Returns:
      New arrays on the device.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, or has other arrays than `like`.
    """
    steps = list_steps(run_dir)
    if step not in steps:
        raise CheckpointError(f"checkpoint {step}: expected one of the steps {steps} in {_folder(run_dir)}")
    try:
        return _read(run_dir, step, like, part)
    except _Damage as damage:
        raise CheckpointError(f"checkpoint {step}: expected what was saved, got a damaged one ({damage})") from None


def _read(run_dir: Path, step: int, like: Any, part: str) -> Any:
    folder = _folder(run_dir) / str(step)
    record = _load_record(folder)
    wanted = _name_leaves(like, part)
    _check_fits(step, record["arrays"], wanted, part)
    damage = processes.ask_first(lambda: _find_damage(folder, record["files"]))
    if damage is not None:
        raise _Damage(damage)
    arrays = _read_arrays(folder, record["arrays"], wanted)
    # Each array leaves the host as it reaches its device: no moment holds all of them twice.
    placed = [_put(arrays.pop(name), leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def _load_record(folder: Path) -> dict[str, Any]:
    try:
        whole = json.loads((folder / "record.json").read_bytes())
    except OSError as error:
        raise _Damage(f"record.json: {error.strerror}") from None
    except ValueError:
        raise _Damage("record.json is not JSON") from None
    # Python writes the JSON that it has read byte for byte as it was, so the record can hold its own checksum.
    is_whole = isinstance(whole, dict) and set(whole) == {"crc32", "record"}
    if not is_whole or zlib.crc32(json.dumps(whole["record"]).encode()) != whole["crc32"]:
        raise _Damage("record.json is not what was saved")
    return whole["record"]


def _check_fits(step: int, saved: dict[str, Any], wanted: dict[str, Any], part: str) -> None:
    """Refuse a state of another structure: that is another program's or config's, not damage."""
    inside = {name for name in saved if not part or name == part or name.startswith(f"{part}.")}
    for name in [*wanted, *sorted(inside - set(wanted))]:
        got = _show(saved[name]["dtype"], saved[name]["shape"]) if name in saved else "none"
        expected = _show(wanted[name].dtype, wanted[name].shape) if name in wanted else "none"
        if got != expected:
            raise CheckpointError(f"checkpoint {step}: expected {expected} at {name}, got {got}")


def _show(dtype: Any, shape: Any) -> str:
    return f"an array {np.dtype(dtype).name}{list(shape)}"


def _find_damage(folder: Path, files: dict[str, Any]) -> str | None:
    for name, saved in files.items():
        try:
            found = _describe_file(folder / "state" / name)
        except OSError as error:
            return f"file state/{name}: {error.strerror}"
        if found["bytes"] != saved["bytes"]:
            return f"file state/{name} has {found['bytes']} bytes, not {saved['bytes']}"
        if found != saved:
            return f"file state/{name} has other bytes than were saved"
    return None


def _read_arrays(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The arrays whole and on the host, or, for one of several processes, its own parts where they are to be."""
    names = {name: 0 in saved[name]["shape"] for name in wanted}
    empty = {name: np.zeros(saved[name]["shape"], saved[name]["dtype"]) for name, is_empty in names.items() if is_empty}
    stored = {name: 0 for name in names if name not in empty}
    ocp = _import_orbax()

    def choose_form(leaf: Any) -> Any:
        if jax.process_count() > 1:
            return ocp.ArrayRestoreArgs(sharding=leaf.sharding)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    forms = {name: choose_form(wanted[name]) for name in stored}
    with closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
        request = ocp.args.PyTreeRestore(item=stored, restore_args=forms, partial_restore=True)
        arrays = checkpointer.restore(folder / "state", args=request) if stored else {}
    for name in stored:
        found, expected = _describe_array(arrays[name])["crc32"], saved[name]["crc32"]
        if None not in (found, expected) and found != expected:
            raise _Damage(f"the array at {name} is not what was saved")
    return arrays | empty


def _put(array: Any, like: Any) -> jax.Array:
    if isinstance(array, jax.Array):
        return array
    is_placed = isinstance(like, jax.ShapeDtypeStruct) or (isinstance(like, jax.Array) and like.committed)
    # On the CPU, device_put takes over aligned memory of numpy's, whatever may_alias says, and a buffer that numpy also
    # owns is not reused when it is donated, but copied.
    return jax.device_put(array, like.sharding if is_placed else None).copy()


# --------------------------------------------------------------------------------------------------------------------
# Writing


def _clear_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if re.fullmatch(r"\d+\.(writing|deleting)", path.name):
            shutil.rmtree(path)


def _write(run_dir: Path, step: int, arrays: dict[str, Any], best_value: float | None, keep: int) -> None:
    """Write a checkpoint; of several processes each its own parts of the arrays."""
    unfinished = _folder(run_dir) / f"{step}.writing"

    def finish() -> None:
        record = {
            "best_value": best_value,
            "arrays": {name: _describe_array(array) for name, array in arrays.items()},
            "files": {
                path.relative_to(unfinished / "state").as_posix(): _describe_file(path)
                for path in sorted((unfinished / "state").rglob("*"))
                if path.is_file()
            },
        }
        whole = {"crc32": zlib.crc32(json.dumps(record).encode()), "record": record}
        (unfinished / "record.json").write_text(json.dumps(whole), encoding="utf-8")
        unfinished.rename(_folder(run_dir) / str(step))
        _prune(run_dir, keep)

    try:
        if processes.is_first() and unfinished.exists():  # of a save that failed in this process
            shutil.rmtree(unfinished)
        _write_arrays(unfinished / "state", arrays)
        processes.ask_first(finish)
    except (OSError, ValueError) as error:  # TensorStore's own errors, a full disk's among them, are ValueErrors
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {step}: cannot be written ({reason})") from None


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    stored = {name: array for name, array in arrays.items() if array.size}  # Orbax refuses arrays without elements
    ocp = _import_orbax()
    with closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(stored))


def _prune(run_dir: Path, keep: int) -> None:
    steps = list_steps(run_dir)
    kept = {0, find_best_step(run_dir), *steps[-keep:]}
    for step in steps:
        if step not in kept:
            doomed = (_folder(run_dir) / str(step)).rename(_folder(run_dir) / f"{step}.deleting")
            shutil.rmtree(doomed)


def _move_aside(run_dir: Path, step: int) -> str:
    taken = {path.name for path in _folder(run_dir).iterdir()}
    count = 0
    while f"damaged-{step}-{count}" in taken:
        count += 1
    (_folder(run_dir) / str(step)).rename(_folder(run_dir) / f"damaged-{step}-{count}")
    return f"damaged-{step}-{count}"


# --------------------------------------------------------------------------------------------------------------------
# Names and checksums


def _folder(run_dir: Path) -> Path:
    return run_dir.resolve() / "checkpoints"


def _name_leaves(tree: Any, part: str) -> dict[str, Any]:
    """Leaves by their dotted paths below `part`, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    named = {".".join(filter(None, (part, name))): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    if len(named) != len(leaves):
        raise CheckpointError("a state to save: expected arrays with different paths, got keys that hold dots")
    return named


def _describe_array(array: Any) -> dict[str, Any]:
    if isinstance(array, jax.Array):  # a part of it is elsewhere
        return {"dtype": array.dtype.name, "shape": list(array.shape), "crc32": None}
    bytes_B = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "crc32": zlib.crc32(bytes_B.data)}


def _describe_file(path: Path) -> dict[str, int]:
    crc = size = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            crc, size = zlib.crc32(piece, crc), size + len(piece)
    return {"bytes": size, "crc32": crc}


def _import_orbax() -> Any:
    import orbax.checkpoint as ocp  # a second, which a config's model can do without

    # Orbax logs, through absl, warnings on ordinary use and tracebacks of the very errors that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp
