"""What a command is pointed at: a run and one of its checkpoints, or a config for its model before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from c3jax.config.file import find_config, load_config
from c3jax.config.run import RunConfig
from c3jax.run.directory import list_steps, load_run_config
from c3jax.types import UserError


class SourceError(UserError):
    """A run directory or config that holds no policy to use."""


class Source(NamedTuple):
    """A config and, where it is that of a run, the checkpoint that was asked for."""

    config: RunConfig
    run: Path | None  # None: a config's model before training
    step: int


def open_source(source: str | Path, checkpoint: str, overrides: Mapping[str, Any] = {}) -> Source:
    """Open a run directory or a config file.

    Args:
      source: either's path.
      checkpoint: of a run: newest, best or a step.
      overrides: fields of the config by their dotted paths.

    Raises:
      UserError: it is neither, the checkpoint is not there, or an override cannot be used.
    """
    path = Path(source)
    if not path.is_dir():
        path = find_config(source, "a run directory, a config file")
    if path.is_file():
        if checkpoint != "newest":
            raise SourceError(f"--checkpoint: expected a run directory to take {checkpoint!r} from, got a config")
        return Source(load_config(path, dict(overrides)), None, 0)
    if not path.is_dir():
        raise SourceError(f"{source}: expected a run directory or a config file, got neither")
    return Source(load_run_config(path, overrides), path, _choose_step(path, checkpoint))


def _choose_step(run: Path, checkpoint: str) -> int:
    steps = list_steps(run)
    if not steps:
        raise SourceError(f"{run}: expected a run with a checkpoint, got none yet")
    if checkpoint == "newest":
        return steps[-1]
    if checkpoint == "best":
        from c3jax.run.checkpoint import find_best_step  # with JAX, which nothing else here needs

        best = find_best_step(run)
        if best is None:
            raise SourceError(f"--checkpoint: expected a run whose config keeps the best (checkpoint.best), got {run}")
        return best
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        raise SourceError(f"--checkpoint: expected newest, best or one of {steps}, got {checkpoint!r}")
    return int(checkpoint)
