"""The study command: what each kind of study runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from c3jax.lab import bench, learning, text

# (the study's config, its directory, console) -> the exit code
Runner = Callable[[Any, Path, Console], int]

RUNNERS: dict[str, Runner] = {"learning": learning.run, "bench": bench.run, "text": text.run}
