"""A sweep: whole training runs of every estimator over paired seeds, and what tables and figures show of them.

A kind of study says how an arm trains, `train(key, lane)`, makes the lanes, and reads its findings off the records.
Runs that one program can make are made together (chunks.py).

Dimension key: A arm    S seed    E entry of a record
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from c3jax.analysis.figures import Axis, plot_curves, save_figure
from c3jax.analysis.statistics import compute_paired, compute_student_interval, correct_holm
from c3jax.analysis.tables import make_columns, print_table, save_table
from c3jax.config.run import PolicyLoss
from c3jax.credit.plans import Plan
from c3jax.lab.chunks import Block, Lanes, Record, Train, run_blocks
from c3jax.lab.sections import Estimator, count_costs, describe_estimator, describe_loss, find_program, make_plan
from c3jax.processes import is_first

LEVEL = 0.95  # of all intervals, over seeds
_LABELS = {"calls": "evaluator calls", "messages": "messages generated", "tokens": "tokens generated"}

TableRow = dict[str, Any]  # a cell by column


class Arm(NamedTuple):
    """What is run with every seed: an estimator at a learning rate."""

    case: str  # what arms are compared within; empty where there is one for all
    name: str  # of tables
    estimator: Estimator
    learning_rate: float
    plan: Plan
    loss: PolicyLoss = PolicyLoss()


class Findings(NamedTuple):
    """What a study read off the records of its runs, by the columns of its tables."""

    compared: dict[str, np.ndarray]  # [A, S]: figures of whole runs, each arm's compared with those of its case's first
    spent: dict[str, np.ndarray]  # [A, E + 1]: of each unit of budget before each entry of the curves, and last in all
    curve: dict[str, np.ndarray]  # [A, S, E]: the one figure of the curves, with an interval
    means: dict[str, np.ndarray]  # [A, S, E]: what else curves hold, the mean over seeds
    shown: dict[str, np.ndarray]  # [A, S]: figures of whole runs that are not compared
    counted: dict[str, np.ndarray]  # [A]: sums over seeds


class Sweep(NamedTuple):
    """A kind of study as a sweep."""

    arms: list[Arm]
    blocks: list[Block]  # from `make_blocks`
    read: Callable[[Record], Findings]  # from what all runs recorded, by field, each [A, S, ...]
    length: str  # of a run: "500 updates"
    figure: str  # what the curves show: "expected return"
    columns: tuple[str, ...]  # of the table that is printed


def run_sweep(sweep: Sweep, seed: int, memory_gb: float, run_dir: Path, console: Console) -> list[TableRow]:
    """Make the runs that a directory does not hold yet; the first process writes tables, curves and figures into it.

    Args:
      seed: of the study's key.
      memory_gb: what one program may take of each device, in 10^9 bytes.

    Returns:
      The table of results, a row an arm.

    Raises:
      UserError: as `run_blocks`.
    """
    outcome = run_blocks(sweep.blocks, jax.random.key(seed), memory_gb, run_dir, console)
    recorded = {name: x.reshape(len(sweep.arms), -1, *x.shape[1:]) for name, x in outcome.recorded.items()}
    findings = sweep.read(recorded)
    results, curves = tabulate_results(sweep.arms, findings), tabulate_curves(sweep.arms, findings)
    if not is_first():
        return results
    title = sweep.figure.capitalize()
    save_table(run_dir / "results", results, f"{title}: results by estimator")
    save_table(run_dir / "curves", curves, f"{title}: curves")
    (value,), panel = findings.curve, "case" if sweep.arms[0].case else None
    for unit in findings.spent:
        x, y = Axis(unit, _LABELS.get(unit, unit)), Axis(value, sweep.figure, has_interval=True)
        figure = plot_curves(curves, x=x, y=y, group="estimator", title=f"{title} against {x.label}", panel=panel)
        save_figure(figure, run_dir / "figures" / f"return_{unit}")
    for case in dict.fromkeys(arm.case for arm in sweep.arms):
        rows = [row for row, arm in zip(results, sweep.arms, strict=True) if arm.case == case]
        shown = [{name: row[name] for name in sweep.columns if name in row} for row in rows]
        print_table(console, shown, f"{case}: after {sweep.length}" if case else f"after {sweep.length}")
    runs = sum(len(block.numbers) for block in sweep.blocks)
    console.print(
        f"{runs - outcome.resumed} runs of {sweep.length}: {outcome.compile_seconds:.1f} s compiling"
        f" {outcome.programs} programs, {outcome.run_seconds:.1f} s running {outcome.chunks} chunks",
        soft_wrap=True,
    )
    console.print(f"results in {run_dir}", soft_wrap=True)
    return results


def list_arms(
    case: str,
    estimators: Sequence[Estimator],
    rates: Sequence[float],
    turns: int,
    losses: Sequence[PolicyLoss] = (PolicyLoss(),),
) -> list[Arm]:
    """Every estimator with every loss and every learning rate, the first estimator's first.

    Args:
      case: what they are compared within; empty where there is one for all.
      estimators: whose plans are of given sizes.
      rates: learning rates.
      turns: of the game or the team.
      losses: of the policy.
    """
    arms = []
    for estimator, loss, rate in itertools.product(estimators, losses, rates):
        parts = [describe_estimator(estimator)]
        parts += [describe_loss(loss)] if len(losses) > 1 else []
        parts += [f"rate {rate:g}"] if len(rates) > 1 else []
        arms.append(Arm(case, ", ".join(parts), estimator, rate, make_plan(estimator.plan, turns), loss))
    return arms


def make_blocks(
    arms: Sequence[Arm], seeds: int, make_train: Callable[[Arm], Train], make_lane: Callable[[Arm, int], Lanes]
) -> list[Block]:
    """The study's runs, those that one program can make together in one block.

    Credit by a matrix is one program for all methods, and a loss one for all its clips; what is made of the rows in
    another way, and another loss, has one of its own.

    Args:
      make_train: the training run of an arm, and of all that differ from it in seed, learning rate, matrix and clips.
      make_lane: the lane of an arm's run, of seeds counted from 0.

    Returns:
      Blocks in which run a * seeds + s is that of arm a and seed s.
    """
    groups: dict[tuple, list[int]] = {}
    for row, arm in enumerate(arms):
        chosen = arm.estimator
        credit = (find_program(chosen), chosen.normalise, chosen.untrained, chosen.discount, chosen.decay)
        same = (arm.case, arm.plan, *credit, arm.loss.model_copy(update={"clip_low": None, "clip_high": None}))
        groups.setdefault(same, []).append(row)
    blocks = []
    for rows in groups.values():
        first, runs = arms[rows[0]], [(row, seed) for row in rows for seed in range(seeds)]
        lanes = [make_lane(arms[row], seed) for row, seed in runs]
        name = f"{first.name} in {first.case}" if first.case else first.name
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)
        blocks.append(Block(name, make_train(first), stacked, tuple(row * seeds + seed for row, seed in runs)))
    return blocks


def count_spent(
    arms: Sequence[Arm], unit: str, step_E: np.ndarray, problems: int, tokens: Callable[[Arm], Sequence[float]]
) -> dict[str, np.ndarray]:
    """What arms have spent after so many updates of so many problems: updates, calls, messages and tokens, [A, E].

    Args:
      unit: what tables call an update.
      tokens: of a message of each turn.
    """
    costs = [
        {unit: 1.0} | {name: problems * cost for name, cost in count_costs(arm.plan, tokens(arm)).items()}
        for arm in arms
    ]
    return {name: np.array([cost[name] * step_E for cost in costs]) for name in costs[0]}


# --------------------------------------------------------------------------------------------------------------------
# Results


def tabulate_results(arms: Sequence[Arm], findings: Findings) -> list[TableRow]:
    """A row an arm: its figures with intervals, those compared with the first of its case, and what was spent.

    Differences are of the same learning rate and paired over seeds; their p-values are Holm's over the case.
    """
    seeds = next(iter(findings.compared.values())).shape[1]
    rows = []
    for case in dict.fromkeys(arm.case for arm in arms):
        of_case = [row for row, arm in enumerate(arms) if arm.case == case]
        rates = len({arms[row].learning_rate for row in of_case})
        compared = [compare_with_first(name, value_AS[of_case], rates) for name, value_AS in findings.compared.items()]
        for row, *columns in zip(of_case, *compared, strict=True):
            cells = _label(arms[row])
            for name, value_AS in findings.shown.items():
                cells |= make_columns(name, compute_student_interval(value_AS[row], LEVEL))
            for own in columns:
                cells |= own
            cells |= {name: int(cost_AE[row, -1]) for name, cost_AE in findings.spent.items()}
            cells |= {name: int(count_A[row]) for name, count_A in findings.counted.items()}
            rows.append(cells | {"seeds": seeds})
    return rows


def compare_with_first(name: str, value_AS: np.ndarray, rates: int) -> list[TableRow]:
    """The columns of one figure, a row an arm; the first `rates` arms are what the others are compared with.

    Gains are paired over seeds, on the first estimator at the same rate; their p-values are of sign flips, after Holm.

    Args:
      name: of the figure.
      value_AS: of one case's arms, two seeds or more.
      rates: how many learning rates there are.
    """
    rows = [make_columns(name, compute_student_interval(value_S, LEVEL)) for value_S in value_AS]
    paired = [compute_paired(value_AS[row], value_AS[row % rates], LEVEL) for row in range(rates, len(value_AS))]
    p_values = correct_holm([each.p_signs for each in paired]) if paired else []
    for row, each, p in zip(rows[rates:], paired, p_values, strict=True):
        row |= make_columns(f"{name}_gain", each.difference) | {f"{name}_p": float(p)}
    return rows


def tabulate_curves(arms: Sequence[Arm], findings: Findings) -> list[TableRow]:
    """A row an arm and entry: what had been spent before it, and what was measured, over seeds."""
    ((name, value_ASE),) = findings.curve.items()
    rows = []
    for row, arm in enumerate(arms):
        for entry in range(value_ASE.shape[-1]):
            cells = _label(arm) | {unit: int(cost_AE[row, entry]) for unit, cost_AE in findings.spent.items()}
            cells |= make_columns(name, compute_student_interval(value_ASE[row, :, entry], LEVEL))
            rows.append(cells | {name: float(mean[row, :, entry].mean()) for name, mean in findings.means.items()})
    return rows


def _label(arm: Arm) -> TableRow:
    return {"case": arm.case, "estimator": arm.name} if arm.case else {"estimator": arm.name}
