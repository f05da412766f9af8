"""The paper's tables out of the runs in a folder: scores, differences to C3 and costs, beside the paper's numbers.

A folder holds DIR/NAME/seed-N, NAME that of a config of configs/paper or, for the model before training,
SETTING_untuned. A run counts when its last step was evaluated; what is not there is shown as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from c3jax.analysis import tables
from c3jax.analysis.evaluations import Run, compute_difference, compute_mean, flatten_config, list_problems, load_run
from c3jax.analysis.paper import AVERAGED, CAP, CONTROLS, MERGED, METHODS, SEEDS, find_published
from c3jax.analysis.statistics import Interval, correct_holm
from c3jax.config.file import find_config_folder, load_config, name_config
from c3jax.run.files import explain_failure, save_whole
from c3jax.run.metrics import read_metrics, sum_ledger, sum_seconds
from c3jax.types import UserError

UNTUNED = "untuned"
FORMATS = {".md": tables.to_markdown, ".csv": tables.to_csv}
# Where runs may differ from their config and still be of its settings.
_FREE = (
    *("evaluation.batch", "workers", "trackers", "record_every", "checkpoint.", "rollout_problems", "shapes."),
    *("model.revision", "learner.micro_problems", "model.remat", "mesh.", "grade_timeout"),
)


class Cell(NamedTuple):
    """One method in one setting: its runs that are done, in order of seed, and what is under way."""

    setting: str
    method: str
    runs: tuple[Run, ...]
    waiting: tuple[str, ...]  # a sentence for each run that is there and not done
    cap: int  # most tokens of a message
    differing: tuple[str, ...]  # sections of the runs' configs that are not those of the cell's

    @property
    def compared(self) -> str:
        """The profile that methods are compared by: greedy in the paper, means of samples where messages are longer."""
        return "greedy" if self.cap == CAP else "sampled"


class Part(NamedTuple):
    """A table and its title."""

    title: str
    rows: list[dict[str, Any]]


def table_runs(folder: Path, configs: str, out: Path | None, console: Console) -> int:
    """Print the tables of the runs in a folder, and write them to a file.

    Args:
      folder: of the runs.
      configs: the folder of the configs, or the name of one that comes with the package.
      out: a file of Markdown (.md) or CSV (.csv); None writes none.
      console: to print on.

    Returns:
      0, the exit code.

    Raises:
      UserError: in one sentence, where the folder, the configs, a run or the file cannot be used.
    """
    if out is not None and out.suffix not in FORMATS:
        raise UserError(f"--out: expected a file that ends in {' or '.join(FORMATS)}, got {str(out)!r}")
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of runs, found none")
    cells = load_cells(folder, find_config_folder(configs))
    parts = list_parts(cells)
    for part in parts:
        tables.print_table(console, part.rows, part.title)
        console.print()
    for line in list_notes(cells):
        console.print(line)
    if out is not None:
        _save(out, parts)
    return 0


def _save(out: Path, parts: Sequence[Part]) -> None:
    if out.suffix == ".md":
        text = "\n".join(f"## {part.title}\n\n{tables.to_markdown(part.rows)}" for part in parts)
    else:
        text = tables.to_csv([{"table": part.title, **row} for part in parts for row in part.rows])
    with explain_failure(f"{out}: the tables cannot be written"):
        save_whole(out, text)


# --------------------------------------------------------------------------------------------------------------------
# What is there


def load_cells(folder: Path, configs: Path) -> list[Cell]:
    """Every cell of the configs with what the folder has of it, setting by setting, in the order of METHODS.

    Raises:
      UserError: there is no such config or nothing of them in the folder, or a run cannot be read.
    """
    files = {name_config(file): file for file in sorted(configs.glob("*.yaml"))}
    named = {file: _split_name(file) for file in files}
    settings = dict.fromkeys(setting for setting, _ in named.values())
    cells = []
    for setting in settings:
        methods = [method for other, method in named.values() if other == setting]
        for method in sorted([UNTUNED, *methods], key=METHODS.index):
            twin = files[f"{setting}_{methods[0] if method == UNTUNED else method}"]
            cells.append(_load_cell(folder, setting, method, twin))
    if not any(cell.runs or cell.waiting for cell in cells):
        raise UserError(f"{folder}: expected runs in {folder}/NAME/seed-N, NAME of a config in {configs}, found none")
    return cells


def _split_name(name: str) -> tuple[str, str]:
    for method in METHODS:
        if name.endswith(f"_{method}"):
            return name.removesuffix(f"_{method}"), method
    raise UserError(f"{name}: expected the name of a config to end in one of {', '.join(METHODS)}")


def _load_cell(folder: Path, setting: str, method: str, file: Path) -> Cell:
    config = load_config(file)
    planned = flatten_config(config.model_dump(mode="json", exclude={"seed"}))
    done, waiting, differing = [], [], dict[str, None]()
    for path in sorted((folder / f"{setting}_{method}").glob("seed-*")):
        if not list((path / "eval").glob("*.json")):
            waiting.append(f"{path}: begun")
            continue
        run = load_run(str(path))
        last = 0 if method == UNTUNED else run.config["steps"]
        if run.step < last:
            waiting.append(f"{path}: evaluated at step {run.step} of {last}")
            continue
        done.append(run._replace(results=_merge_sets(_name_heldout(run))))
        fields = [name for name in {**planned, **run.config} if planned.get(name) != run.config.get(name)]
        if method == UNTUNED:
            fields = [name for name in fields if not name.startswith(("credit.", "learner.", "steps"))]
        differing |= {name.partition(".")[0]: None for name in fields if not name.startswith(_FREE)}
    cap = max(turn.max_tokens for turn in config.protocol.turns)
    runs = sorted(done, key=lambda run: run.seed)
    return Cell(setting, method, tuple(runs), tuple(waiting), cap, tuple(differing))


def _name_heldout(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """The results with the held-out problems under the name of their set, data/NAME/test.jsonl, where they have one."""
    path = run.config.get("task.heldout_path")
    name = Path(path).parent.name if isinstance(path, str) else "heldout"
    return {(name if suite == "heldout" else suite, profile): row for (suite, profile), row in run.results.items()}


def _merge_sets(results: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The results with sets that are one suite put together, where a run has them all, with as many samples."""
    merged = dict(results)
    for name, parts in MERGED.items():
        for profile in dict.fromkeys(profile for _, profile in results):
            rows = [results.get((part, profile)) for part in parts]
            there = [row for row in rows if row is not None]
            if len(there) < len(parts) or len({row["samples"] for row in there}) > 1:
                continue
            lists = {field: [each for row in there for each in row[field]] for field in ("ids", "digests", "scores")}
            cut = np.average([row["truncated"] for row in there], weights=[len(row["ids"]) for row in there])
            merged[name, profile] = {"samples": there[0]["samples"], "truncated": float(cut), **lists}
            for part in parts:
                del merged[part, profile]
    return merged


# --------------------------------------------------------------------------------------------------------------------
# Tables


def list_parts(cells: Sequence[Cell]) -> list[Part]:
    """The tables of every setting of which anything is done: scores, differences to C3, costs."""
    parts = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        own = [cell for cell in cells if cell.setting == setting]
        if not any(cell.runs for cell in own):
            continue
        cap = "" if own[0].cap == CAP else f", messages of up to {own[0].cap} tokens (the paper's {CAP})"
        parts.append(Part(f"{setting}: accuracy in %, 95 % interval{cap}", list_scores(own)))
        what = "greedy" if own[0].compared == "greedy" else "pass@1"
        parts.append(Part(f"{setting}: C3 minus the others, {what}, in %; p by Holm", list_differences(own)))
        parts.append(Part(f"{setting}: mean cost of a run{cap}", list_costs(own)))
    return [part for part in parts if part.rows]


def list_scores(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for every suite and method, and for the average over the suites that the paper averages."""
    suites = dict.fromkeys(suite for cell in cells for run in cell.runs for suite, _ in run.results)
    task = cells[0].setting.partition("_")[0]
    averaged = [suite for suite in AVERAGED.get(task, ()) if suite in suites]
    rows = [_list_row(cell, suite) for suite in suites for cell in cells]
    if averaged == list(AVERAGED.get(task, ())) and cells[0].cap == CAP:
        for cell in cells:
            own = [row for row in rows if row["method"] == cell.method and row["suite"] in averaged]
            means = {
                name: float(np.mean([row[name] for row in own]))
                for name in ("greedy", "pass@1", "pass@n")
                if all(name in row for row in own)
            }
            paper = find_published(cell.setting, cell.method, "average", "greedy")
            rows.append(
                {"suite": "average", "method": cell.method, "seeds": own[0]["seeds"]} | means | {"paper": paper}
            )
    return rows


def _list_row(cell: Cell, suite: str) -> dict[str, Any]:
    """A suite's scores of a cell. A run that lacks the suite does not count among its seeds."""
    greedy = [run.results[suite, "greedy"] for run in cell.runs if (suite, "greedy") in run.results]
    sampled = [run.results[suite, "sampled"] for run in cell.runs if (suite, "sampled") in run.results]
    wanted = 1 if cell.method == UNTUNED else len(SEEDS)
    found = len(greedy if cell.compared == "greedy" else sampled)
    seeds = f"{found}/{wanted}" if found else "missing"
    row: dict[str, Any] = {"suite": suite, "method": cell.method, "seeds": seeds}
    row |= _measure("greedy", greedy)
    row |= {"paper": find_published(cell.setting, cell.method, suite, "greedy")}
    row |= _measure("pass@1", sampled)
    counts = {result["samples"] for result in sampled}
    if len(counts) == 1:
        row |= _measure("pass@n", [_count_any(result) for result in sampled]) | {"n": counts.pop()}
        row["paper_pass@n"] = find_published(cell.setting, cell.method, suite, f"pass@{row['n']}")
    if greedy:
        row["cut"] = 100 * float(np.mean([result["truncated"] for result in greedy]))
        row["problems"] = len(list_problems(greedy))
    return row


def _measure(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if not results:
        return {}
    return tables.make_columns(name, _as_percent(compute_mean(results)))


def _count_any(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a problem as whether any of its samples is right: pass@n of n samples."""
    return {**result, "scores": [[float(max(row) >= 1.0)] for row in result["scores"]]}


def _as_percent(interval: Interval) -> Interval:
    return Interval(*(100 * bound for bound in interval))


def list_differences(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for every suite but controls and every other method: C3's accuracy minus its, over common problems."""
    ours = [cell for cell in cells if cell.method == "c3"]
    profile = cells[0].compared
    controls = () if profile == "greedy" else CONTROLS
    rows = []
    for cell in cells:
        for suite in dict.fromkeys(suite for run in cell.runs for suite, _ in run.results):
            sides = [[run for run in part.runs if (suite, profile) in run.results] for part in (*ours, cell)]
            if cell in ours or suite in controls or not all(sides):
                continue
            results = [[run.results[suite, profile] for run in side] for side in sides]
            seeds = [[run.seed for run in side] for side in sides]
            difference = compute_difference(*results, is_paired=seeds[0] == seeds[1])
            if difference is None:
                continue
            found, problems = difference
            row: dict[str, Any] = {"suite": suite, "minus": cell.method} | tables.make_columns(
                "diff", _as_percent(found.mean)
            )
            first, second = (find_published(cell.setting, name, suite, profile) for name in ("c3", cell.method))
            row["paper"] = None if first is None or second is None else first - second
            rows.append(row | {"p": found.p, "problems": problems})
    corrected = correct_holm([row["p"] for row in rows])
    return [row | {"p_holm": float(p)} for row, p in zip(rows, corrected, strict=True)]


def list_costs(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for every trained method: means over its runs of what training took, from their ledgers."""
    rows = []
    for cell in cells:
        if cell.method == UNTUNED:
            continue
        seeds = f"{len(cell.runs)}/{len(SEEDS)}" if cell.runs else "missing"
        row: dict[str, Any] = {"method": cell.method, "seeds": seeds}
        totals = [sum_ledger(read_metrics(Path(run.path))) for run in cell.runs]
        if totals:
            mean = {name: float(np.mean([total.get(name, 0.0) for total in totals])) for name in totals[0]}
            row |= {"M_tokens": mean["generated_tokens"] / 1e6, "hours": sum_seconds(mean) / 3600}
        for name in ("tokens", "hours"):
            row[f"paper_{name}"] = find_published(cell.setting, cell.method, "", name)
        if totals:
            row |= {"M_prefilled": mean["prefilled_tokens"] / 1e6, "k_calls": mean["evaluator_calls"] / 1e3}
            row |= {"k_messages": mean["messages"] / 1e3}
        rows.append(row)
    return rows


def list_notes(cells: Sequence[Cell]) -> list[str]:
    """What the tables do not say: what is missing or under way, and which runs are not of their config's settings."""
    settings = dict.fromkeys(cell.setting for cell in cells)
    empty = [name for name in settings if not any(cell.runs for cell in cells if cell.setting == name)]
    lines = [f"missing: {name}, every method" for name in empty]
    lines += [sentence for cell in cells for sentence in cell.waiting]
    lines += [
        f"{run.path} lacks {suite}: {reason}"
        for cell in cells
        for run in cell.runs
        for suite, reason in run.missing.items()
    ]
    if any(cell.runs and cell.compared != "greedy" for cell in cells):
        lines.append(f"Controls, on which nothing is tested: {', '.join(CONTROLS)}.")
    others = [cell for cell in cells if cell.differing]
    if others:
        sections = ", ".join(sorted({name for cell in others for name in cell.differing}))
        lines.append(
            f"{len(others)} cells have runs of other settings than their config's ({sections}): the paper's numbers are"
            " no measure for them."
        )
    if any(1 < len(cell.runs) < len(SEEDS) for cell in cells):
        lines.append(f"Intervals over fewer than {len(SEEDS)} seeds are too narrow.")
    if any(len(cell.runs) == 1 and cell.method != UNTUNED for cell in cells):
        lines.append("Intervals of one run speak of its problems, not of other seeds.")
    return lines
