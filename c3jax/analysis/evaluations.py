"""Evaluations of runs: who belongs together, scores over seeds and problems, and differences between groups.

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

from c3jax.analysis import tables
from c3jax.analysis.statistics import Crossed, Interval, compute_crossed_bootstrap, correct_holm, widen_constant
from c3jax.run.directory import load_run_config
from c3jax.run.jobs import load_evaluation
from c3jax.types import UserError

_LEVEL = 0.95
_LONGEST_NAME = 36  # characters of a group's name
_NAMING = ("kind", "name", "path")  # fields that say which thing the section is

Cell = tuple[str, str]  # suite and profile


class Run(NamedTuple):
    """A run and its evaluations, of which step, results and missing are the newest's."""

    path: str
    seed: int
    config: dict[str, Any]  # without the seed, flat: value by dotted path, entries of a list counted from 1
    evaluations: list[dict[str, Any]]  # {step, results}, in the order of steps
    step: int
    results: dict[Cell, dict[str, Any]]
    missing: dict[str, str]  # reason by suite


class Group(NamedTuple):
    """Runs that differ only in their seeds, in order of seed."""

    name: str
    runs: tuple[Run, ...]


def load_run(path: str) -> Run:
    """Read a run's config and what it keeps of the newest step that was evaluated. Raises UserError."""
    run = describe_run(path)
    if not run.evaluations:
        raise UserError(f"{path}: expected a run with an evaluation, got none yet (c3jax evaluate {path})")
    return run


def describe_run(path: str) -> Run:
    """As `load_run`, but a run that has no evaluation yet has no results, of step 0. Raises UserError."""
    config = load_run_config(path).model_dump(mode="json")
    bodies = [_load_body(file) for file in sorted((Path(path) / "eval").glob("*.json"))]
    bodies.sort(key=lambda body: body["step"])
    step = max((body["step"] for body in bodies), default=0)
    rows = [row for body in bodies if body["step"] == step for row in body["results"]]
    return Run(
        path=path,
        seed=config.pop("seed"),
        config=flatten_config(config),
        evaluations=bodies,
        step=step,
        results={(row["suite"], row["profile"]): row for row in rows if "missing" not in row},
        missing={row["suite"]: row["missing"] for row in rows if "missing" in row},
    )


def _load_body(file: Path) -> dict[str, Any]:
    body = load_evaluation(file)
    is_whole = isinstance(body, dict) and isinstance(body.get("step"), int)
    if not is_whole or not all("missing" in row or "digests" in row for row in body.get("results", [{}])):
        raise UserError(
            f"{file}: expected results with the score of every problem, got an older evaluation: evaluate the run again"
        )
    return body


def flatten_config(value: Any, path: str = "") -> dict[str, Any]:
    """A dumped config's values by their dotted paths; entries of a list of sections are counted from 1."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(number): part for number, part in enumerate(value, start=1)}
    if isinstance(value, dict):
        parts = [flatten_config(part, f"{path}.{name}" if path else name) for name, part in value.items()]
        return {name: part for flat in parts for name, part in flat.items()}
    return {path: value}


def list_turns(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of a flat config's protocol, field by field."""
    turns: list[dict[str, Any]] = []
    while f"protocol.turns.{len(turns) + 1}.name" in config:
        start = f"protocol.turns.{len(turns) + 1}."
        turns.append({name.removeprefix(start): value for name, value in config.items() if name.startswith(start)})
    return turns


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ only in their seed, and name each group by what differs. Raises UserError."""
    together: dict[str, dict[int, Run]] = {}  # by config, then by seed
    for run in runs:
        twin = together.setdefault(json.dumps(run.config), {}).setdefault(run.seed, run)
        if twin is not run:
            raise UserError(f"{run.path}: expected another seed than that of {twin.path}, got {run.seed} in both")
    names = name_groups([next(iter(group.values())) for group in together.values()])
    return [
        Group(name, tuple(group[seed] for seed in sorted(group)))
        for name, group in zip(names, together.values(), strict=True)
    ]


def name_groups(runs: Sequence[Run]) -> list[str]:
    """Name runs, one of each group, by all fields in which they differ, by few, by their folders, or by numbers."""
    different = list_different(runs)
    few = _choose_telling(runs, [path for path in different if max(map(len, _describe(runs, [path]))) <= _LONGEST_NAME])
    folders = [Path(run.path).name for run in runs]
    for names in (_describe(runs, different), _describe(runs, few), folders):
        if len(set(names)) == len(runs) and all(0 < len(name) <= _LONGEST_NAME for name in names):
            return names
    return [f"group {number}" for number in range(1, len(runs) + 1)]


def _describe(runs: Sequence[Run], paths: Sequence[str]) -> list[str]:
    return [", ".join(describe_field(run, path, paths) for path in paths if path in run.config) for run in runs]


def list_different(runs: Sequence[Run]) -> list[str]:
    """The fields of the config, by their dotted paths, in which runs differ."""
    paths = dict.fromkeys(name for run in runs for name in run.config)
    return [name for name in paths if len({json.dumps(run.config.get(name)) for run in runs}) > 1]


def _choose_telling(runs: Sequence[Run], different: list[str]) -> list[str]:
    """Fields, from the first on, each of which tells more of the runs apart."""
    chosen: list[str] = []
    shown = [""] * len(runs)
    for name in different:
        more = [f"{before} {json.dumps(run.config.get(name))}" for before, run in zip(shown, runs, strict=True)]
        if len(set(more)) > len(set(shown)):
            chosen, shown = [*chosen, name], more
    return chosen


def describe_field(run: Run, path: str, beside: Sequence[str]) -> str:
    """A field and its value in words: "method c3", "learning rate 0.004", "turn 2 max tokens 64".

    Args:
      run: whose config has it.
      path: the field's, dotted.
      beside: paths of what else is described; where one ends alike, the name of the section is said too.
    """
    *parents, last = path.split(".")
    if last in _NAMING and parents:  # loss.kind says which loss
        last = parents.pop()
    alike = [name for name in beside if name != path and name.rpartition(".")[2] == last]
    if parents and (alike or parents[-1].isdecimal()):
        last = f"{parents.pop()} {last}"
    if last[:1].isdecimal() and parents:
        last = f"{parents[-1].removesuffix('s')} {last}"
    value = run.config[path]
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    plain = {"null": "none", "true": "yes", "false": "no"}.get(text, text)
    return f"{last.replace('_', ' ')} {plain}"


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
            row |= {"seeds": len(there), "problems": len(list_problems(there))}
            row |= tables.make_columns("avg", compute_mean(there))
            row |= _average_others(there)
            rows.append(row)
    return rows


def _average_others(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean over runs of pass@n and maj@n, at the number of samples that there were."""
    last = [list(result["pass_at"].values())[-1][0] for result in results]
    votes = [result["majority"][0] for result in results if result["majority"] is not None]
    columns = {"pass@n": float(np.mean(last))} if all(result["samples"] > 1 for result in results) else {}
    return columns | ({"maj@n": float(np.mean(votes))} if len(votes) == len(results) else {})


def compute_score(results: Sequence[dict[str, Any]]) -> Interval:
    """As `compute_mean`; of one run as the evaluation itself says it."""
    if len(results) == 1:
        return Interval(*(results[0][name] for name in ("accuracy", "low", "high")))
    return compute_mean(results)


def compute_mean(results: Sequence[Mapping[str, Any]]) -> Interval:
    """The mean return of one suite and profile over runs and problems.

    Args:
      results: of every run, one or more.
    """
    keys = list_problems(results)
    found = compute_crossed_bootstrap(np.array([_spread_scores(result, keys) for result in results]), level=_LEVEL)
    return widen_constant(found.mean, len(keys), (0.0, 1.0), _LEVEL)


def compute_difference(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], is_paired: bool
) -> tuple[Crossed, int] | None:
    """First minus second of the mean returns, over the problems that both have.

    Args:
      first, second: results of one suite and profile, of every run.
      is_paired: whether the runs are of the same seeds, in the same order.

    Returns:
      The difference and the number of problems; None where no problem is in both.
    """
    shared = set(list_problems(second))
    keys = [key for key in list_problems(first) if key in shared]
    if not keys:
        return None
    sides = [np.array([_spread_scores(result, keys) for result in side]) for side in (first, second)]
    found = compute_crossed_bootstrap(*sides, is_paired=is_paired, level=_LEVEL)
    return found._replace(mean=widen_constant(found.mean, len(keys), (-1.0, 1.0), _LEVEL)), len(keys)


def list_differences(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for every suite, profile and pair of groups with problems in common: first minus second, of avg@n."""
    rows = []
    for first, second in itertools.combinations(groups, 2):
        for cell in first.runs[0].results:
            sides = [[run.results[cell] for run in group.runs if cell in run.results] for group in (first, second)]
            if any(len(side) < len(group.runs) for side, group in zip(sides, (first, second), strict=True)):
                continue
            seeds = [[run.seed for run in group.runs] for group in (first, second)]
            difference = compute_difference(*sides, is_paired=seeds[0] == seeds[1])
            if difference is None:
                continue
            found, problems = difference
            row = {"suite": cell[0], "profile": cell[1], "first": first.name, "second": second.name}
            rows.append(row | {"problems": problems, **tables.make_columns("diff", found.mean), "p": found.p})
    corrected = correct_holm([row["p"] for row in rows])
    return [row | {"p_holm": float(p)} for row, p in zip(rows, corrected, strict=True)]


def list_problems(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The problems that any of the results has: id, and the digest of question and answer."""
    pairs = (zip(result["ids"], result["digests"], strict=True) for result in results)
    return list(dict.fromkeys(key for keys in pairs for key in keys))


def _spread_scores(result: Mapping[str, Any], keys: Sequence[tuple[str, str]]) -> list[float]:
    """Mean return of each problem; NaN where the run did not have it."""
    means = [float(np.mean(row)) for row in result["scores"]]
    found = dict(zip(zip(result["ids"], result["digests"], strict=True), means, strict=True))
    return [found.get(key, np.nan) for key in keys]
