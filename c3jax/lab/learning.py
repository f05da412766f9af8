"""The learning study: whole training runs of every estimator, compared over paired seeds.

Runs are methods x learning rates x seeds on every case's game. Runs of one plan and normalisation are one compiled
program. Results are shown against updates, evaluator calls, messages and generated tokens, since the unit of the
budget decides the ranking.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console

from c3jax.analysis.figures import Axis, plot_curves, save_figure
from c3jax.analysis.statistics import compute_paired, compute_student_interval, correct_holm
from c3jax.analysis.tables import make_columns, print_table, save_table
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import METHODS
from c3jax.credit.plans import Plan, count_calls, count_generated
from c3jax.lab.chunks import Alone, Block, Outcome, run_blocks, time_alone, without_compilation_cache
from c3jax.lab.config import Case, LearningStudy
from c3jax.lab.families import make_family
from c3jax.lab.policies import make_mlp, make_tabular
from c3jax.lab.sections import (
    Estimator,
    FreshGame,
    describe_estimator,
    list_estimator_trained,
    list_messages,
    list_tokens,
    make_plan,
)
from c3jax.lab.training import Critic, Lane, Setting, make_train
from c3jax.run.files import save_whole

LEVEL = 0.95  # of all intervals, over seeds
_SHOWN = ("estimator", "messages", "final", "final_low", "final_high", "final_gain", "final_p", "mean")
_BUDGETS = {
    "updates": "updates",
    "calls": "evaluator calls",
    "messages": "messages generated",
    "tokens": "tokens generated",
}


class Contender(NamedTuple):
    """What is run with every seed: an estimator with a learning rate, on a case."""

    case: Case
    estimator: Estimator
    learning_rate: float
    name: str
    plan: Plan


class Budget(NamedTuple):
    """What an update costs."""

    updates: int
    calls: int
    messages: int
    tokens: int


def run(config: LearningStudy, run_dir: Path, console: Console) -> int:
    """Run the study in its directory, or go on with it; writes tables, curves and figures; returns the exit code."""
    contenders = list_contenders(config)
    blocks = make_blocks(config, contenders)
    key = jax.random.key(config.seed)
    if config.compare_alone:
        with without_compilation_cache():
            outcome = run_blocks(blocks, key, config.memory_gb, run_dir, console)
            alone = None if outcome.resumed else time_alone(blocks, key, config.compare_alone)
    else:
        outcome, alone = run_blocks(blocks, key, config.memory_gb, run_dir, console), None
    value_CST = outcome.recorded["value"].reshape(len(contenders), config.seeds, -1)
    results = summarise(contenders, value_CST, config)
    curves = list_curves(contenders, outcome.recorded, config)
    _save(run_dir, results, curves)
    for case in config.cases:
        rows = [{name: row[name] for name in _SHOWN if name in row} for row in results if row["case"] == case.name]
        print_table(
            console, rows, f"{case.name}: expected return after {config.updates} updates, and its mean over them"
        )
    _report_speed(config, outcome, alone, len(blocks), run_dir, console)
    console.print(f"results in {run_dir}", soft_wrap=True)
    return 0


def list_contenders(config: LearningStudy) -> list[Contender]:
    """Every case's estimators, each with every learning rate."""
    rates = config.optimiser.learning_rates
    contenders = []
    for case in config.cases:
        turns = len(list_messages(case.game))
        for estimator in case.estimators:
            for rate in rates:
                name = describe_estimator(estimator) + (f", rate {rate:g}" if len(rates) > 1 else "")
                contenders.append(Contender(case, estimator, rate, name, make_plan(estimator.plan, turns)))
    return contenders


def make_blocks(config: LearningStudy, contenders: Sequence[Contender]) -> list[Block]:
    """The study's runs, those that one program can make together in one block; run c * seeds + s is contender c's."""
    groups: dict[tuple, list[int]] = {}
    for place, contender in enumerate(contenders):
        estimator = contender.estimator
        trained = list_estimator_trained(contender.case.game, estimator)
        # Credit by a matrix is one program for all methods; a critic and the shrunk baseline are programs of their own.
        credit = "shrunk" if estimator.method == "shrunk" else METHODS[estimator.method].critic
        same = (contender.case.name, contender.plan, trained, estimator.normalise, credit)
        groups.setdefault(same, []).append(place)
    return [_make_block(config, contenders, places) for places in groups.values()]


def _make_block(config: LearningStudy, contenders: Sequence[Contender], places: Sequence[int]) -> Block:
    first = contenders[places[0]]
    lanes = [
        Lane(
            seed=np.uint32(seed),
            learning_rate=np.float32(contenders[place].learning_rate),
            critic_learning_rate=np.float32(config.optimiser.critic_learning_rate),
            matrix=_make_matrix(contenders[place]),
        )
        for place in places
        for seed in range(config.seeds)
    ]
    return Block(
        name=f"{first.name} in {first.case.name}",
        train=make_train(make_setting(config, first)),
        lanes=jax.tree.map(lambda *leaves: np.stack(leaves), *lanes),
        numbers=tuple(place * config.seeds + seed for place in places for seed in range(config.seeds)),
    )


def _make_matrix(contender: Contender) -> Any:
    trained = list_estimator_trained(contender.case.game, contender.estimator)
    matrix = make_credit_matrix(contender.estimator.method, contender.plan, trained)
    return jax.tree.map(np.float32, matrix)


def make_setting(config: LearningStudy, contender: Contender) -> Setting:
    """What the runs of a contender have in common."""
    game, estimator = contender.case.game, contender.estimator
    family = make_family(game)
    problems = game.heldout if isinstance(game, FreshGame) else game.problems
    if config.policy.kind == "tabular":
        policy = make_tabular(family.shape, problems, config.policy.scale)
    else:
        policy = make_mlp(family.shape, family.features, config.policy.width)
    has_critic = METHODS[estimator.method].critic != "none"
    return Setting(
        family=family,
        policy=policy,
        plan=contender.plan,
        trained=list_estimator_trained(game, estimator),
        normalise=estimator.normalise,
        critic=Critic(config.gae.discount, config.gae.decay) if has_critic else None,
        is_shrunk=estimator.method == "shrunk",
        optimiser={"adam": optax.scale_by_adam, "sgd": optax.identity}[config.optimiser.kind](),
        problems=problems,
        batch=config.problems,
        updates=config.updates,
        every=config.every,
        episodes=0 if config.evaluation.kind == "exact" else config.evaluation.episodes,
    )


def compute_budget(contender: Contender, batch: int) -> Budget:
    """What an update of `batch` problems costs a contender."""
    generated = count_generated(contender.plan)
    tokens = list_tokens(contender.case.game)
    return Budget(
        updates=1,
        calls=batch * count_calls(contender.plan),
        messages=batch * sum(generated),
        tokens=batch * sum(n * round(length) for n, length in zip(generated, tokens, strict=True)),
    )


# --------------------------------------------------------------------------------------------------------------------
# Results


def summarise(contenders: Sequence[Contender], value_CST: np.ndarray, config: LearningStudy) -> list[dict[str, Any]]:
    """A row a contender: final expected return, its mean over the run, and both against the case's first estimator.

    value_CST: expected return of contender C and seed S at measurement T. Differences are of the same learning rate and
    paired over seeds; their p-values are Holm's over the case.
    """
    rates = len(config.optimiser.learning_rates)
    final_CS = value_CST[..., -1]
    mean_CS = np.trapezoid(value_CST, axis=-1) / (value_CST.shape[-1] - 1)
    rows = []
    for case in config.cases:
        places = [place for place, contender in enumerate(contenders) if contender.case is case]
        finals = compare_with_first("final", final_CS[places], rates)
        means = compare_with_first("mean", mean_CS[places], rates)
        for place, final, mean in zip(places, finals, means, strict=True):
            spent = Budget(*(config.updates * cost for cost in compute_budget(contenders[place], config.problems)))
            named = {"case": case.name, "estimator": contenders[place].name}
            rows.append(named | final | mean | spent._asdict() | {"seeds": config.seeds})
    return rows


def compare_with_first(name: str, value_CS: np.ndarray, rates: int) -> list[dict[str, Any]]:
    """The columns of one figure, a row a contender C over seeds S; the first `rates` are what others are compared with.

    Gains are paired over seeds, on the first estimator at the same rate; their p-values are of sign flips, after Holm.
    """
    rows = [make_columns(name, compute_student_interval(value_S, LEVEL)) for value_S in value_CS]
    paired = [
        compute_paired(value_S, value_CS[place % rates], LEVEL)
        for place, value_S in enumerate(value_CS)
        if place >= rates
    ]
    p_values = correct_holm([each.p_signs for each in paired]) if paired else []
    for row, each, p in zip(rows[rates:], paired, p_values, strict=True):
        row |= make_columns(f"{name}_gain", each.difference) | {f"{name}_p": float(p)}
    return rows


def list_curves(
    contenders: Sequence[Contender], recorded: dict[str, np.ndarray], config: LearningStudy
) -> list[dict[str, Any]]:
    """A row a contender and measurement: what had been spent, and what was measured, over seeds."""
    rows = []
    for place, contender in enumerate(contenders):
        mine = {name: column[place * config.seeds :][: config.seeds] for name, column in recorded.items()}
        cost = compute_budget(contender, config.problems)
        for entry in range(mine["value"].shape[1]):
            spent = Budget(*(entry * config.every * each for each in cost))
            row = {"case": contender.case.name, "estimator": contender.name, **spent._asdict()}
            row |= make_columns("value", compute_student_interval(mine["value"][:, entry], LEVEL))
            row |= {name: float(mine[name][:, entry].mean()) for name in mine if name != "value"}
            rows.append(row)
    return rows


def _save(run_dir: Path, results: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]]) -> None:
    save_table(run_dir / "results", results, "Learning: expected return by estimator")
    save_table(run_dir / "curves", curves, "Learning curves")
    save_curves(run_dir, curves, _BUDGETS, Axis("value", "expected return", has_interval=True), panel="case")


def save_curves(
    run_dir: Path, curves: Sequence[dict[str, Any]], budgets: dict[str, str], y: Axis, panel: str | None = None
) -> None:
    """A figure of the curves against each budget: columns of `curves`, with their labels."""
    for column, label in budgets.items():
        title = f"{y.label.capitalize()} against {label}"
        figure = plot_curves(curves, x=Axis(column, label), y=y, group="estimator", title=title, panel=panel)
        save_figure(figure, run_dir / "figures" / f"return_{column}")


def _report_speed(
    config: LearningStudy, outcome: Outcome, alone: Alone | None, blocks: int, run_dir: Path, console: Console
) -> None:
    runs = len(outcome.recorded["value"])
    seconds = outcome.compile_seconds + outcome.run_seconds
    line = f"{runs - outcome.resumed} runs of {config.updates} updates in {seconds:.1f} s:"
    line += f" {outcome.compile_seconds:.1f} s compiling {outcome.programs} programs,"
    console.print(f"{line} {outcome.run_seconds:.1f} s running {outcome.chunks} chunks", soft_wrap=True)
    if config.compare_alone and alone is None:
        console.print("not compared with runs made alone: this is a study that was gone on with", soft_wrap=True)
    if alone is None:
        return
    each = runs * alone.seconds
    shared = blocks * alone.compile_seconds + runs * alone.run_seconds
    console.print(
        f"alone, one after another: {each:.0f} s, {each / seconds:.1f} times as long (mean of {alone.runs} runs,"
        f" {alone.seconds:.2f} s each with its own compiling, times {runs})",
        soft_wrap=True,
    )
    console.print(
        f"alone, compiled once a program: {shared:.0f} s, {shared / seconds:.1f} times as long ({alone.run_seconds:.2f}"
        f" s a run times {runs}, and {alone.compile_seconds:.1f} s times {blocks} programs)",
        soft_wrap=True,
    )
    figures = {
        "runs": runs,
        "seconds": seconds,
        "compile_seconds": outcome.compile_seconds,
        "programs": blocks,
        "alone": alone._asdict(),
        "ratio": each / seconds,
        "ratio_compiled_once": shared / seconds,
    }
    save_whole(run_dir / "speed.json", json.dumps(figures, indent=2) + "\n")
