"""Evaluations across runs and seeds: means with intervals, and paired differences between groups of runs.

Runs whose configs differ in nothing but the seed are a group. What is compared is what each run keeps of its newest
evaluated step, in eval/*.json: after training, or by `c3jax evaluate`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from c3jax.analysis import tables
from c3jax.analysis.statistics import compute_crossed_bootstrap, correct_holm
from c3jax.run.directory import load_run_config
from c3jax.types import UserError

FORMATS = ("terminal", "markdown", "csv", "latex")
_FEW_SEEDS = 5
_LONGEST_NAME = 28  # characters of a group's name

Cell = tuple[str, str]  # suite and profile


class Run(NamedTuple):
    """A run's newest evaluation."""

    path: str
    seed: int
    config: dict[str, Any]  # without the seed, flat: value by dotted path
    step: int
    results: dict[Cell, dict[str, Any]]
    missing: dict[str, str]  # reason by suite


class Group(NamedTuple):
    """Runs that differ only in their seeds, in order of seed."""

    name: str
    runs: tuple[Run, ...]


def compare_runs(paths: Sequence[str], form: str, console: Console) -> int:
    """Print a table of scores and one of differences. Returns 1 where a group lacks what another one has, else 0.

    Raises UserError where a run cannot be used, or two runs of one config have the same seed.
    """
    groups = group_runs([load_run(path) for path in paths])
    scores, differences = list_scores(groups), list_differences(groups)
    parts = [("scores: mean over seeds and problems, 95 % interval", scores)]
    if differences:
        parts.append(("differences over common problems, p corrected by Holm", differences))
    for title, rows in parts:
        if form == "terminal":
            tables.print_table(console, rows, title)
            console.print()
        else:
            write = {"markdown": tables.to_markdown, "csv": tables.to_csv, "latex": tables.to_latex}[form]
            print(write(rows))
    if form == "terminal":
        for line in _format_more(groups):
            console.print(line, soft_wrap=True)
    return int(any("missing" in row for row in scores))


def load_run(path: str) -> Run:
    """Read a run's config and what it keeps of the newest step that was evaluated. Raises UserError."""
    config = load_run_config(path).model_dump(mode="json")
    bodies = [_load_body(file) for file in sorted((Path(path) / "eval").glob("*.json"))]
    if not bodies:
        raise UserError(f"{path}: expected a run with an evaluation, got none yet (c3jax evaluate {path})")
    step = max(body["step"] for body in bodies)
    rows = [row for body in bodies if body["step"] == step for row in body["results"]]
    return Run(
        path=path,
        seed=config.pop("seed"),
        config=flatten_config(config),
        step=step,
        results={(row["suite"], row["profile"]): row for row in rows if "missing" not in row},
        missing={row["suite"]: row["missing"] for row in rows if "missing" in row},
    )


def _load_body(file: Path) -> dict[str, Any]:
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{file}: expected the results of an evaluation, cannot be read") from None
    if not isinstance(body, dict) or not all("missing" in row or "digests" in row for row in body.get("results", [{}])):
        raise UserError(
            f"{file}: expected results with the score of every problem, got an older evaluation: evaluate the run again"
        )
    return body


def flatten_config(value: Any, path: str = "") -> dict[str, Any]:
    """A dumped config's values by their dotted paths; a list counts as one value."""
    if isinstance(value, dict):
        parts = [flatten_config(part, f"{path}.{name}" if path else name) for name, part in value.items()]
        return {name: part for flat in parts for name, part in flat.items()}
    return {path: value}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ only in their seed, and name each group by what it alone has. Raises UserError."""
    together: list[list[Run]] = []
    for run in runs:
        found = next((group for group in together if group[0].config == run.config), None)
        if found is None:
            together.append([run])
            continue
        twin = next((other for other in found if other.seed == run.seed), None)
        if twin is not None:
            raise UserError(f"{run.path}: expected another seed than that of {twin.path}, got {run.seed} in both")
        found.append(run)
    paths = dict.fromkeys(name for group in together for name in group[0].config)
    different = [name for name in paths if len({json.dumps(group[0].config.get(name)) for group in together}) > 1]
    groups = [
        Group(_name_group(group, different), tuple(sorted(group, key=lambda run: run.seed))) for group in together
    ]
    if len({group.name for group in groups}) < len(groups):
        return [group._replace(name=f"{index + 1} {group.name}") for index, group in enumerate(groups)]
    return groups


def _name_group(runs: list[Run], different: list[str]) -> str:
    values = (runs[0].config.get(name) for name in different)
    texts = [value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) for value in values]
    name = " ".join(texts)
    return name if 0 < len(name) <= _LONGEST_NAME else Path(runs[0].path).name[:_LONGEST_NAME]


def list_scores(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for every suite, profile and group: avg@n, pass@n and maj@n, or why a group lacks it."""
    cells = dict.fromkeys(cell for group in groups for run in group.runs for cell in run.results)
    lost = dict.fromkeys(name for group in groups for run in group.runs for name in run.missing)
    known = {suite for suite, _ in cells}
    rows = []
    for suite, profile in [*cells, *((name, "-") for name in lost if name not in known)]:
        for group in groups:
            results = [run.results.get((suite, profile)) for run in group.runs]
            row: dict[str, Any] = {"suite": suite, "profile": profile, "group": group.name}
            there = [result for result in results if result is not None]
            if len(there) < len(results):
                run = group.runs[results.index(None)]
                reason = run.missing.get(suite, "not evaluated")
                rows.append(row | {"missing": f"{run.path}: {reason}"})
                continue
            keys = list_problems(there)
            found = compute_crossed_bootstrap(np.array([spread_scores(result, keys) for result in there]))
            row |= {"seeds": len(there), "problems": len(keys), **tables.make_columns("avg", found.mean)}
            row |= _average_others(there)
            rows.append(row)
    return rows


def _average_others(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean over runs of pass@n and maj@n, at the number of samples that there were."""
    last = [list(result["pass_at"].values())[-1][0] for result in results]
    votes = [result["majority"][0] for result in results if result["majority"] is not None]
    columns = {"pass@n": float(np.mean(last))} if all(result["samples"] > 1 for result in results) else {}
    return columns | ({"maj@n": float(np.mean(votes))} if len(votes) == len(results) else {})


def list_differences(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for every suite, profile and pair of groups with problems in common: first minus second, of avg@n."""
    rows = []
    for first, second in itertools.combinations(groups, 2):
        for cell in first.runs[0].results:
            sides = [[run.results[cell] for run in group.runs if cell in run.results] for group in (first, second)]
            if any(len(side) < len(group.runs) for side, group in zip(sides, (first, second), strict=True)):
                continue
            seeds = [[run.seed for run in group.runs] for group in (first, second)]
            shared = set(list_problems(sides[1]))
            keys = [key for key in list_problems(sides[0]) if key in shared]
            if not keys:
                continue
            values = [np.array([spread_scores(result, keys) for result in side]) for side in sides]
            found = compute_crossed_bootstrap(*values, is_paired=seeds[0] == seeds[1])
            row = {"suite": cell[0], "profile": cell[1], "first": first.name, "second": second.name}
            rows.append(row | {"problems": len(keys), **tables.make_columns("diff", found.mean), "p": found.p})
    corrected = correct_holm([row["p"] for row in rows])
    return [row | {"p_holm": float(p)} for row, p in zip(rows, corrected, strict=True)]


def list_problems(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The problems that any of the results has: id, and the digest of question and answer."""
    pairs = (zip(result["ids"], result["digests"], strict=True) for result in results)
    return list(dict.fromkeys(key for keys in pairs for key in keys))


def spread_scores(result: Mapping[str, Any], keys: Sequence[tuple[str, str]]) -> list[float]:
    """Mean return of each problem; NaN where the run did not have it."""
    means = [float(np.mean(row)) for row in result["scores"]]
    found = dict(zip(zip(result["ids"], result["digests"], strict=True), means, strict=True))
    return [found.get(key, np.nan) for key in keys]


def _format_more(groups: Sequence[Group]) -> list[str]:
    lines = []
    for group in groups:
        steps = sorted({run.step for run in group.runs})
        runs = ", ".join(f"{run.path} (seed {run.seed})" for run in group.runs)
        lines.append(f"{group.name}: step {' and '.join(map(str, steps))} of {runs}")
    if any(1 < len(group.runs) < _FEW_SEEDS for group in groups):
        lines.append(f"Intervals over fewer than {_FEW_SEEDS} seeds are too narrow.")
    if any(len(group.runs) == 1 for group in groups):
        lines.append("Intervals of a group of one run speak of its problems, not of other seeds.")
    return lines
