"""Trains and evaluates the paper's runs: every config of a folder with every seed, and the models before training.

    paper.py [--tiny] [--long] [--seeds 0:5] [--runs DIR] [--dry-run] [NAME ...] [-- OVERRIDE ...]

NAME is a cell (maths_qwen3_4b_duo_c3, maths_qwen3_4b_duo_untuned) or a pattern of cells (maths_qwen3_4b_*); without one
it is the whole matrix. What is done is skipped, what was stopped is resumed. A cell that fails is named at the end and
the others go on. Overrides are given to every `c3jax` command: paper.sh 'maths_*_duo_c3' -- --policy.kind adapters

Exit status: 0 all done, 1 a cell failed, 2 the command line, 75 stopped on request, start again to resume.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from c3jax.config.file import read_tree
from c3jax.config.run import slots_in
from c3jax.run.jobs import PROGRAM, Job, is_evaluated, list_left, parse_seeds, run_jobs
from c3jax.types import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "paper"
UNTUNED = "untuned"
TEAMS = ("duo", "trio", "chain5", "chain10", "branch")
# What programs gain in speed is not worth its compiling where a run has four steps.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}


class Cell(NamedTuple):
    """A config, whose model is trained with a method, or evaluated as it is."""

    name: str
    config: Path
    is_trained: bool


def main(words: list[str]) -> int:
    """Run what the command line asks for."""
    own, overrides = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    arguments = _parse(own)
    folder = CONFIGS / "long" if arguments.long else CONFIGS
    runs = Path(arguments.runs or ("runs/tiny" if arguments.tiny else "runs/paper")) / (
        "long" if arguments.long else ""
    )
    cells = [cell for cell in list_cells(folder) if _is_asked(cell.name, arguments.names)]
    if not cells:
        print(f"paper: expected names or patterns of {folder}, got {' '.join(arguments.names)}.", file=sys.stderr)
        return 2
    if arguments.tiny and not arguments.dry_run:
        cells = [cell._replace(config=write_tiny(runs / "configs", cell)) for cell in cells]
    jobs = list_jobs(cells, arguments.seeds, runs, overrides)
    table = f"c3jax table {runs}" + (" --configs paper/long" if arguments.long else "")
    if arguments.dry_run:
        lines = [shlex.join([*PROGRAM, *command]) for job in jobs for command in job.commands]
        print("\n".join([*lines, table]))
        return 0
    call = prepare_calls() if arguments.tiny else None
    outcome = run_jobs(jobs, lambda line: print(f"paper: {line}", flush=True), PROGRAM, call)
    for sentence in outcome.failed:
        print(f"paper: failed: {sentence}", file=sys.stderr)
    if outcome.code:
        print("paper: stopped on request; start again to resume.", file=sys.stderr)
        return outcome.code
    print(table)
    return 1 if outcome.failed else 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="paper.sh", usage=__doc__, add_help=True, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seeds")
    parser.add_argument("--runs")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args(words)
    try:
        arguments.seeds = parse_seeds(arguments.seeds or ("0" if arguments.tiny else "0:5"))
    except UserError as error:
        parser.error(str(error))
    return arguments


def _is_asked(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def list_cells(folder: Path) -> list[Cell]:
    """Every config of the folder, and before the first of each setting its model as it is before training."""
    cells = []
    for config in sorted(folder.glob("*.yaml")):
        name = config.name.removesuffix(".yaml")
        if name.endswith("_c3"):  # the first of its setting
            cells.append(Cell(f"{name.removesuffix('_c3')}_{UNTUNED}", config, False))
        cells.append(Cell(name, config, True))
    return cells


def write_tiny(folder: Path, cell: Cell) -> Path:
    """The cell's method on the quickstart's policy and task, for a few steps, with as many roles as the cell has."""
    name = cell.config.name.removesuffix(".yaml")
    team = next(team for team in TEAMS if f"_{team}_" in name)
    method = name.partition(f"_{team}_")[2]
    parts = [CONFIGS / "parts" / f"{part}.yaml" for part in (f"{team}_{method}", "tiny", f"tiny_{method}")]
    bases = [ROOT / "configs" / ("quickstart.yaml" if team == "duo" else "trio.yaml"), *parts]
    tiny: dict[str, Any] = {"base": [str(base) for base in bases if base.exists()]}
    if team not in ("duo", "trio"):
        tiny |= {"protocol": {"turns": _shorten_turns(read_tree(cell.config)["protocol"]["turns"])}}
        tiny |= {"model": {"context": 256}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.name}.yaml"
    path.write_text(json.dumps(tiny) + "\n", encoding="utf-8")
    return path


def _shorten_turns(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns that read the messages which these read, with prompts of one word: a word of the policy's vocabulary."""
    return [
        {
            **{"name": turn["name"], "role": turn["role"], "max_tokens": 4 if turn is turns[-1] else 16},
            "user": " ".join([*(f"{{{slot}}}" for slot in slots_in(turn["user"])), turn["name"], ":"]),
        }
        for turn in turns
    ]


def prepare_calls() -> Callable[[list[str]], int]:
    """What runs commands of c3jax in this process. Programs that are equal in several runs are traced once: of a run
    that has four steps, imports and tracing are nearly all that it takes, and no cache on disk keeps them.
    """
    os.environ.update(QUICK)  # before JAX is loaded
    from c3jax import cli
    from c3jax.learner import imitate, update
    from c3jax.rollout import tree

    cache: Any = functools.cache  # their arguments are equal where their sections, policy and plans are
    tree.make_tree_sampler = cache(tree.make_tree_sampler)
    update.make_update = cache(update.make_update)
    imitate.make_imitation = cache(imitate.make_imitation)
    return cli.main


def list_jobs(cells: Sequence[Cell], seeds: Sequence[int], runs: Path, overrides: list[str]) -> Iterator[Job]:
    """What is left to do, seed by seed; a model before training is evaluated with the first of them."""
    for seed in seeds:
        for cell in cells:
            if cell.is_trained or seed == seeds[0]:
                path = runs / cell.name / f"seed-{seed}"
                yield Job(f"{cell.name}, seed {seed}", list_commands(cell, seed, path, overrides))


def list_commands(cell: Cell, seed: int, path: Path, overrides: list[str]) -> list[list[str]]:
    """What is left to do for a cell and a seed: nothing, its evaluation, or training and evaluation."""
    if not cell.is_trained:
        evaluate = ["evaluate", str(cell.config), "--seed", str(seed), "--out", str(path), *overrides]
        return [] if is_evaluated(path, 0) else [evaluate]
    train = ["train", str(cell.config), "--seed", str(seed), "--run-dir", str(path), *overrides]
    return list_left(train, path, has_suites(cell.config))


def has_suites(config: Path) -> bool:
    """Whether there is more to measure than the held-out problems."""
    return bool(read_tree(config).get("evaluation", {}).get("suites"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
