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
    """Run a study in its directory, or resume it.

    Args:
      config: of any kind.
      run_dir: where tables, figures and finished parts are, and new ones are written.
      console: where progress and tables are shown.

    Returns:
      The exit code.

    Raises:
      UserError: it cannot be made, or what is in the directory cannot be read.
    """
    return RUNNERS[config.kind](config, run_dir, console)
