"""The study command: what each kind of study runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from c3jax.lab import bench, learning, text
from c3jax.lab.config import StudyConfig

Runner = Callable[[Any, Path, Console], int]  # (the study's config, its directory, console) -> exit code

RUNNERS: dict[str, Runner] = {
    "learning": learning.run,
    "bench": bench.run,
    "text": text.run,
}


def run_study(config: StudyConfig, run_dir: Path, console: Console) -> int:
    """Run a study in its directory, or resume it; returns the exit code. Raises UserError where it cannot be made."""
    return RUNNERS[config.kind](config, run_dir, console)
