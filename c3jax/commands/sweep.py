"""The cross product of values of a config's fields, over seeds: DIR/CELL/seed-N, a run each, and what they come to.

A cell is a choice of values, and its folder is named by them. Runs are trained one after another, each in a process of
its own; one that is done is skipped, and one that was stopped or killed is resumed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from c3jax.analysis import tables
from c3jax.analysis.evaluations import group_runs, load_run
from c3jax.analysis.histories import list_costs
from c3jax.commands.compare import compare_runs
from c3jax.config.file import load_config, name_config
from c3jax.config.overrides import Choice
from c3jax.config.run import RunConfig
from c3jax.run.directory import check_contents
from c3jax.run.jobs import PROGRAM, Job, list_left, parse_seeds, run_jobs
from c3jax.schema import ConfigError
from c3jax.types import UserError

_LONGEST_NAME = 120  # characters of a folder's name: file systems take 255 bytes


class Sweep(NamedTuple):
    """What is asked for."""

    config: str  # a file, or the name of one that comes with the package
    choices: Mapping[str, Sequence[Choice]]  # values by dotted path
    seeds: str | None  # as they are written; None is the config's own
    out: Path
    options: tuple[str, ...] = ()  # of `c3jax train`, given to every run


class Planned(NamedTuple):
    """A run of a sweep."""

    name: str  # CELL/seed-N
    path: Path
    train: list[str]  # words that train or resume it
    config: RunConfig


def run_sweep(sweep: Sweep, is_printed: bool, console: Console, program: Sequence[str] = PROGRAM) -> int:
    """Train what is left of a sweep, and print and draw what there is then.

    Args:
      sweep: what is asked for.
      is_printed: print the commands that are left, a run a line, and run nothing.
      console: to print on.
      program: what the words of a command follow.

    Returns:
      The exit code: 0 all done, 1 a run failed, STOPPED or TERMINATED by a signal.

    Raises:
      UserError: with nothing run, where a value, a seed or the folder cannot be used, or a run there is another's.
    """
    runs = list_runs(sweep)
    for run in runs:
        check_contents(run.path, run.config)
    left = list_jobs(runs)
    if is_printed:
        for job in left:
            print(" && ".join(shlex.join(["c3jax", *words]) for words in job.commands))
        return 0
    console.print(f"{len(runs)} runs in {sweep.out}, {len(left)} left", soft_wrap=True)
    outcome = run_jobs(left, lambda line: console.print(f"\n{line}", soft_wrap=True), program)
    done = [run for run in runs if not _list_commands(run)]
    if outcome.code:
        console.print(f"stopped: {len(done)} of {len(runs)} runs are done; the same command goes on", soft_wrap=True)
        return outcome.code
    if done:
        _show([str(run.path) for run in done], sweep.out, console)
    for sentence in outcome.failed:
        console.print(f"failed: {sentence}", style="red", soft_wrap=True)
    if len(done) < len(runs):
        console.print(f"{len(done)} of {len(runs)} runs are done; the same command tries the others again")
    return int(len(done) < len(runs))


def list_runs(sweep: Sweep) -> list[Planned]:
    """Every run of a sweep, of each seed in turn, so that all cells have their first before any has its second.

    Returns:
      The runs, of which no two have the same config.

    Raises:
      UserError: a value or a seed cannot be used, two runs would be the same, or the folder is a file.
    """
    if "seed" in sweep.choices:
        raise ConfigError("seed: expected --seeds for a sweep, as in --seeds 0:5")
    if sweep.out.exists() and not sweep.out.is_dir():
        raise UserError(f"--out: expected a folder, got the file {sweep.out}")
    config = load_config(sweep.config)
    seeds = [config.seed] if sweep.seeds is None else parse_seeds(sweep.seeds)
    varied = [path for path, choices in sweep.choices.items() if len(choices) > 1]
    runs = []
    for seed in seeds:
        for chosen in itertools.product(*sweep.choices.values()):
            values = dict(zip(sweep.choices, chosen, strict=True))
            cell = {path: values[path].text for path in varied}
            path = sweep.out / (name_cell(cell) if cell else name_config(sweep.config)) / f"seed-{seed}"
            overrides = {"seed": seed, **{name: choice.value for name, choice in values.items()}}
            words = ["train", sweep.config, f"--run-dir={path}", f"--seed={seed}", *sweep.options]
            words += [f"--{name}={choice.text}" for name, choice in values.items()]
            runs.append(Planned(f"{path.parent.name}, seed {seed}", path, words, _load(sweep.config, overrides, cell)))
    for number, run in enumerate(runs):
        if twin := next((other for other in runs[:number] if other.config == run.config), None):
            raise UserError(f"{run.name}: expected another config than that of {twin.name}, got the same")
    return runs


def _load(config: str, overrides: dict[str, Any], cell: Mapping[str, str]) -> RunConfig:
    try:
        return load_config(config, overrides)
    except ConfigError as error:
        field = str(error).partition(":")[0]
        others = ", ".join(f"{path} {text}" for path, text in cell.items() if path != field)
        raise ConfigError(f"{error} (with {others})" if others else str(error)) from None


def name_cell(cell: Mapping[str, str]) -> str:
    """The folder of a cell, as credit.method=c3,steps=80; what no file's name should have is a hash at its end.

    Args:
      cell: values as they are written, by dotted path.
    """
    plain = ",".join(f"{path}={text}" for path, text in cell.items())
    name = re.sub(r"[^A-Za-z0-9_.=,+@-]+", "-", plain)[:_LONGEST_NAME]
    return name if name == plain else f"{name.strip('-')}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def list_jobs(runs: Sequence[Planned]) -> list[Job]:
    """What is left to do of every run that is not done."""
    jobs = [Job(run.name, _list_commands(run)) for run in runs]
    return [job for job in jobs if job.commands]


def _list_commands(run: Planned) -> list[list[str]]:
    return list_left(run.train, run.path, bool(run.config.evaluation.suites), run.config.steps)


def _show(paths: Sequence[str], out: Path, console: Console) -> None:
    """Tables of the runs that are done, and figures beside them."""
    console.print()
    compare_runs(paths, "terminal", console)
    console.print()
    tables.print_table(console, list_costs(group_runs([load_run(path) for path in paths])), "mean cost of a run")
    console.print()
    try:
        from c3jax.commands.figures import save_figures

        console.print(save_figures(paths, out / "figures")[0], soft_wrap=True)
    except UserError as error:  # matplotlib is an extra, and the tables are there without it
        console.print(str(error), soft_wrap=True)
