"""The directory of a run: config.yaml, manifest.json and the lock.

config.yaml is written last, by a rename, and makes a directory a run: one without it was killed in its making, and is
made again. The manifest says what program began the run; every start, the first too, adds an entry to its `starts`.
"""

from __future__ import annotations

import fcntl
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from c3jax import __version__
from c3jax.config.file import dump_config, load_config
from c3jax.config.run import RunConfig
from c3jax.run.files import PARTIAL, explain_failure, hash_file, save_whole
from c3jax.schema import Section, find_origin, show_value
from c3jax.types import UserError

Inputs = Mapping[str, Mapping[str, str]]  # SHA-256 by kind and name

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "chex", "numpy")
_LOCK, _CONFIG, _MANIFEST = ".lock", "config.yaml", "manifest.json"
_UNFINISHED = {_LOCK, _MANIFEST}  # all that a run killed in its making can hold, beside files not finished


class RunDirError(UserError):
    """A run directory that cannot be used; the message is one sentence for the user."""


class RunDir(NamedTuple):
    """A run directory, locked for this process until it is closed."""

    path: Path
    is_resumed: bool  # the run was there already
    extended: int | None  # the steps that it had, where it is to have more now
    command: list[str]
    lock: TextIO | None  # None in a process that is not the run's first
    facts: Mapping[str, Any]  # what else the manifest says

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.close()


def open_run_dir(
    path: str | Path,
    config: Section,
    command: list[str],
    load: Callable[[Path], Section] = load_config,
    facts: Mapping[str, Any] = {},
    accepts_changes: bool = False,
) -> RunDir:
    """Make the directory of a new run, or take up the run that is there, if its config is equal.

    Args:
      path: where it is, or is to be.
      config: of the run.
      command: the command line, for the manifest.
      load: reads the kind of config that is to be there.
      facts: what else the manifest says; its `inputs` are the SHA-256 of what is read from outside, by kind and name.
      accepts_changes: whether a run is taken up whose inputs are not those that it was last started with.

    Returns:
      The directory. Of several processes the first opens it, and the others have its word.

    Raises:
      RunDirError: with nothing written, when the path holds another config's run or something else, when another
        process has the run, when an input changed, or when the disk does not take it.
    """
    from c3jax.processes import ask_first  # JAX takes seconds, and the others here need none

    made: list[RunDir] = []

    def open_first() -> tuple[bool, int | None]:
        made.append(_open(Path(path), config, command, load, facts, accepts_changes))
        return made[0].is_resumed, made[0].extended

    is_resumed, extended = ask_first(open_first)
    return made[0] if made else RunDir(Path(path), is_resumed, extended, command, None, facts)


def _open(
    path: Path,
    config: Section,
    command: list[str],
    load: Callable[[Path], Section],
    facts: Mapping[str, Any],
    accepts_changes: bool,
) -> RunDir:
    with explain_failure(f"run directory {path}: cannot be used", RunDirError):
        check_contents(path, config, load)
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as on_error:
            lock = on_error.enter_context(_lock(path))
            # Again: before the lock another process could write here.
            is_resumed, extended = check_contents(path, config, load)
            for partial in path.glob(f".*{PARTIAL}"):  # of a process that was killed
                partial.unlink()
            if not is_resumed:
                seed = config.model_dump()["seed"]
                manifest = _describe_program() | {"seed": seed, "command": command, **facts, "starts": []}
                save_whole(path / _MANIFEST, _to_json(manifest))
                save_whole(path / _CONFIG, dump_config(config))
            elif not accepts_changes:
                check_inputs(path, facts.get("inputs", {}))
            if extended is not None:
                after = path / "eval" / "after.json"  # it is of a step on the way now
                if after.exists():
                    after.rename(after.with_name(f"step-{extended}.json"))
                save_whole(path / _CONFIG, dump_config(config))
            on_error.pop_all()
    return RunDir(path, is_resumed, extended, command, lock, facts)


def record_start(run: RunDir, step: int) -> None:
    """Add to the manifest that the run starts from `step` now, and what differs from the start that began it.

    Raises:
      RunDirError: the manifest cannot be read or written.
    """
    if run.lock is None:
        return
    path = run.path / _MANIFEST
    facts = _describe_program() | {"command": run.command, **run.facts}
    facts |= {} if run.extended is None else {"extended_from": run.extended}
    with explain_failure(f"manifest {path}: cannot be used", RunDirError):
        manifest = load_manifest(path)
        changes = {name: value for name, value in facts.items() if manifest.get(name) != value}
        start = {"time": _tell_time(), "step": step, "changes": changes}
        manifest["starts"].append(start)
        save_whole(path, _to_json(manifest))


def describe_extension(config: RunConfig, steps: int) -> str:
    """The sentence about a run that goes on.

    Args:
      config: with its new number of steps.
      steps: the number it had.
    """
    text = f"the run of {steps} steps goes on to step {config.steps}"
    if config.learner.schedule == "cosine":
        text += f"; the cosine of its rate, which ended at step {steps}, ends there now, so the rate rises again"
    return text


def check_inputs(path: Path, inputs: Inputs, step: int = 0, accepting: Sequence[str] = ()) -> None:
    """Check what is read again from outside against what a run was last started with.

    Args:
      path: of the run.
      inputs: the SHA-256 by name, by kind; what only one of the two has is not looked at.
      step: of the checkpoint that is used.
      accepting: the command line that takes what is not what it was: then the manifest says so, among the starts. The
        run is still to be started with what it was.

    Raises:
      RunDirError: something is not what it was, and is not accepted, or the manifest cannot be written.
    """
    manifest = load_manifest(path / _MANIFEST)
    newest = next((start["changes"] for start in reversed(manifest["starts"]) if start.get("trains", True)), {})
    known = newest.get("inputs", manifest.get("inputs", {}))
    changed = {
        kind: {name: value for name, value in hashes.items() if known.get(kind, {}).get(name, value) != value}
        for kind, hashes in inputs.items()
    }
    kind, name = next(((kind, name) for kind, hashes in changed.items() for name in hashes), ("", ""))
    if not name:
        return
    if not accepting:
        raise RunDirError(
            f"run directory {path}: expected {kind} {name} as the run was last started with, got another"
            " content (--accept-changes takes it)"
        )
    merged = {kind: {**known.get(kind, {}), **changed.get(kind, {})} for kind in {**known, **changed}}
    changes = {"command": list(accepting), "inputs": merged}
    manifest["starts"].append({"time": _tell_time(), "step": step, "trains": False, "changes": changes})
    with explain_failure(f"manifest {path / _MANIFEST}: cannot be used", RunDirError):
        save_whole(path / _MANIFEST, _to_json(manifest))


def load_run_config(path: str | Path, overrides: Mapping[str, Any] = {}) -> RunConfig:
    """The config of the run in a directory. Raises RunDirError where there is none, ConfigError where it is broken."""
    if not (Path(path) / _CONFIG).is_file():
        raise RunDirError(f"run directory {path}: expected a run with a {_CONFIG}, found none")
    return load_config(Path(path) / _CONFIG, dict(overrides))


def list_steps(run_dir: Path) -> list[int]:
    """Steps with a checkpoint, in order. Whether they can be read is not looked at."""
    folder = run_dir.resolve() / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def hash_origins(names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of the files that a config's `module:NAME`s are from, by name; rows of a table have none."""
    origins = (find_origin(name) for name in dict.fromkeys(names))
    return {origin.name: hash_file(origin.path) for origin in origins if origin is not None}


# --------------------------------------------------------------------------------------------------------------------
# What is there


def check_contents(
    path: Path, config: Section, load: Callable[[Path], Section] = load_config
) -> tuple[bool, int | None]:
    """Look whether a directory holds the run of a config.

    Args:
      path: of the directory.
      config: of the run.
      load: reads the kind of config that is to be there.

    Returns:
      Whether the run is there, and its steps where the config has more of them and differs in nothing else.

    Raises:
      RunDirError: anything else is there.
    """
    if path.is_symlink() and not path.exists():
        raise RunDirError(f"run directory {path}: expected a directory, got a link to nothing")
    if not path.exists():
        if file := next((str(parent) for parent in path.parents if parent.is_file()), None):
            raise RunDirError(f"run directory {path}: expected a directory, got one inside the file {file}")
        return False, None
    if not path.is_dir():
        raise RunDirError(f"run directory {path}: expected a directory, got a file")
    if (path / _CONFIG).exists():
        # On which devices a run goes on changes nothing but rounding; the manifest's start says it.
        there, here = (part.model_dump(mode="json", exclude={"mesh"}) for part in (load(path / _CONFIG), config))
        is_longer = isinstance(config, RunConfig) and here["steps"] > there["steps"]
        difference = _find_difference(there, here | {"steps": there["steps"]} if is_longer else here, "")
        if difference is not None:
            raise RunDirError(f"run directory {path}: holds the run of another config, where {difference} here")
        return True, there["steps"] if is_longer else None
    names = {entry.name for entry in path.iterdir() if entry.suffix != PARTIAL}
    others = sorted(names - _UNFINISHED)
    if others:
        raise RunDirError(
            f"run directory {path}: expected a run or nothing, got a directory with {others[0]} and no run"
        )
    return False, None


def _find_difference(there: Any, here: Any, name: str) -> str | None:
    """The first field, in the order of the config, that differs: its path and both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            difference = _find_difference(there.get(key), here.get(key), f"{name}.{key}" if name else key)
            if difference is not None:
                return difference
        return None
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        found = (_find_difference(*pair, f"{name}.{index}") for index, pair in pairs)
        return next((difference for difference in found if difference is not None), None)
    return None if there == here else f"{name} is {show_value(there)} and not {show_value(here)} as"


def _lock(path: Path) -> TextIO:
    lock = (path / _LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RunDirError(f"run directory {path}: expected to be alone, but another process is running it") from None
    except OSError:
        lock.close()
        raise
    return lock


def load_manifest(path: Path) -> dict[str, Any]:
    """What a manifest.json holds. Raises RunDirError where it cannot be read, or is none."""
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise RunDirError(f"manifest {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RunDirError(f"manifest {path}: expected JSON, got something else") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("starts"), list):
        raise RunDirError(f"manifest {path}: expected an object with a list of starts, got something else")
    return manifest


def _tell_time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _to_json(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


# --------------------------------------------------------------------------------------------------------------------
# What the program is


def _describe_program() -> dict[str, Any]:
    import jax  # finds the devices, which takes seconds; only a run that is to start needs it

    devices = jax.devices()
    return {
        "c3jax": __version__,
        "git": _describe_checkout(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _find_version(name) for name in PACKAGES},
        "devices": {"backend": jax.default_backend(), "kind": devices[0].device_kind, "count": len(devices)},
    }


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _describe_checkout() -> dict[str, Any] | None:
    """Commit of the git checkout that this package lies in, and whether its files differ from it; None without one."""
    # A package installed somewhere inside another project's checkout is not a part of it: git must know this file.
    if _ask_git("ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return None
    commit, changes = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain", "--", ".")
    return None if commit is None or changes is None else {"commit": commit, "is_dirty": bool(changes)}


def _ask_git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parents[1]  # of the whole package
    try:
        answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no git, or one that hangs on a slow disk
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
