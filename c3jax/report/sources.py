"""The runs that a report is about, opened and checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from c3jax.analysis.evaluations import Group, Run, describe_run, group_runs
from c3jax.run.directory import load_manifest
from c3jax.run.metrics import Row, read_metrics
from c3jax.run.records import list_record_files
from c3jax.types import UserError


class Source(NamedTuple):
    """A run with everything that it has recorded, but for its trees, which are read where they are chosen."""

    name: str  # unique among the runs of a report
    run: Run
    manifest: dict[str, Any]
    rows: list[Row]  # of metrics.jsonl, one or more
    files: list[Path]  # of recorded trees; empty only where the config records none


class RunGroup(NamedTuple):
    """Runs that differ only in their seeds, under the name that the page gives them."""

    name: str
    sources: tuple[Source, ...]


def open_sources(paths: Sequence[str]) -> list[RunGroup]:
    """Open runs and put those together that differ only in their seed.

    Args:
      paths: run directories.

    Returns:
      The groups of runs, in the order given.

    Raises:
      UserError: a path is no run, a run has taken no step or lacks the trees that its config records, two runs have
        the same config and seed, or a file of a run is damaged.
    """
    names = _name_paths(paths)
    sources = {path: _open_source(path, name) for path, name in zip(paths, names, strict=True)}
    groups = group_runs([source.run for source in sources.values()])
    return [_name_group(group, sources, len(groups)) for group in groups]


def _name_group(group: Group, sources: dict[str, Source], groups: int) -> RunGroup:
    members = tuple(sources[run.path] for run in group.runs)
    if groups > 1:
        return RunGroup(group.name, members)
    return RunGroup(members[0].name if len(members) == 1 else group.runs[0].config["credit.method"], members)


def _name_paths(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"{paths[parts.index(max(parts, key=parts.count))]}: expected every run once, got it twice")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _open_source(path: str, name: str) -> Source:
    if not Path(path).is_dir():
        raise UserError(f"{path}: expected a run directory, got {'a file' if Path(path).exists() else 'nothing'}")
    run, rows, files = describe_run(path), read_metrics(Path(path)), list_record_files(Path(path))
    if not rows:
        raise UserError(f"{path}: expected a run that has taken a step, got none in metrics.jsonl")
    if not files and run.config["record_every"]:
        raise UserError(f"{path}: expected recorded trees in its folder rollouts, found none")
    return Source(name, run, load_manifest(Path(path) / "manifest.json"), rows, files)
