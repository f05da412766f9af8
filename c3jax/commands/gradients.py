"""The gradient noise scale of a run's policy: trees as the run's next steps draw them, and their gradients.

The trees are of whole steps, all drawn by the policy of one checkpoint; the first step's are those that the run itself
draws there. What is kept of them in RUN/diagnose is two numbers a problem and role, and they are not drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c3jax.analysis import diagnostics
from c3jax.analysis.tables import format_cell, make_columns
from c3jax.commands.redraw import Team
from c3jax.config.credit import make_plan
from c3jax.credit.methods import find_method
from c3jax.credit.plans import Plan, count_calls
from c3jax.learner import noise
from c3jax.rollout.branches import collect_verdicts, join_credited
from c3jax.run.files import save_whole
from c3jax.setup.answers import make_reader
from c3jax.setup.drawing import Drawing, begin_step, draw_step
from c3jax.setup.team import Setup, choose_problems, encode_null
from c3jax.types import UserError


class Measured(NamedTuple):
    """What is kept: of each problem, and of each role or all of them."""

    parts: list[str]
    spread: noise.Spread


def find_plan(setup: Setup) -> Plan | str:
    """What a step draws for a problem; or why its gradient is not made of its trees alone."""
    credit = setup.config.credit
    carries = find_method(credit.method).carries
    if carries != "nothing":
        return f"the credit of {credit.method} carries {carries} from step to step"
    if credit.fan_out == "auto":
        return "the run chooses its fan-out as it learns (credit.fan_out: auto)"
    return make_plan(credit, len(setup.plans))


def measure_gradients(
    team: Team, run: Path, plan: Plan, step: int, problems: int, announce: Callable[[int, int], None]
) -> Measured:
    """The spread of the gradients of whole steps' problems, kept or drawn and graded.

    Args:
      team: that draws.
      run: its directory, where they are kept.
      plan: from `find_plan`.
      step: of the team's checkpoint.
      problems: asked for; as many whole steps are taken as have them.
      announce: given, before anything is drawn, how many problems there are and the evaluator calls that they take.
    """
    setup = team.setup
    count = -(-max(problems, 2) // setup.config.problems)
    steps, path = range(step, step + count), run / "diagnose" / f"gradients-{step}-{count}.json"
    asked = [setup.train.problems[number] for each in steps for number in choose_problems(setup, each)]
    key = [[problem.id, problem.question] for problem in asked]
    kept = _load(path, key)
    announce(len(asked), 0 if kept else len(asked) * count_calls(plan))
    if kept is not None:
        return kept
    read = make_reader(setup) if find_method(setup.config.credit.method).reads == "likelihoods" else None
    drawing = Drawing(setup, team.sample_tree, None, encode_null(setup), team.evaluator, team.acting, read)
    batches = [_draw(team, drawing, plan, each) for each in steps]
    config, parts = setup.config, noise.list_parts(setup.plans)
    measure = noise.make_measure(config.credit, config.learner, config.sampling, setup.policy, setup.plans)
    spread = noise.measure_spread(measure, parts, team.weights, batches, plan)
    found = Measured([roles[0] if len(roles) == 1 else "all roles" for roles in parts], spread)
    body = {"problems": key, "parts": found.parts, **{name: rows.tolist() for name, rows in spread._asdict().items()}}
    save_whole(path, json.dumps(body, ensure_ascii=False) + "\n")
    return found


def _draw(team: Team, drawing: Drawing, plan: Plan, step: int) -> noise.Drawn:
    setup, trained = team.setup, team.weights.trained
    begun = begin_step(drawing, trained, None, plan, step)
    drawn = collect_verdicts(plan, draw_step(drawing, trained, begun), team.evaluator, setup.mesh)
    returns = np.array([verdict.score for verdict in drawn.verdicts], np.float32)
    return noise.Drawn(tuple(join_credited(setup.mesh, plan, drawn)), returns.reshape(setup.config.problems, -1))


def _load(path: Path, key: list[list[str]]) -> Measured | None:
    if not path.exists():
        return None
    try:
        body = json.loads(path.read_bytes())
        spread = noise.Spread(np.array(body["square_RP"], float), np.array(body["along_RP"], float))
        return Measured(body["parts"], spread) if body["problems"] == key else None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: expected kept gradients, got something else") from None


def describe_noise(measured: Measured, level: float) -> list[dict[str, Any]]:
    """A row a role, and one of all: the noise scale in problems, the least that it can be, and what it is made of."""
    rows = []
    for part, square_P, along_P in zip(measured.parts, *measured.spread, strict=True):
        found = diagnostics.compute_noise_scale(square_P, along_P, level)
        row: dict[str, Any] = {"role": part} | make_columns("noise_scale", found.scale)
        row |= {"is_resolved": bool(np.isfinite(found.scale).all())}
        row |= {"at_least": found.least, "problems": len(square_P)}
        rows.append(row | make_columns("noise", found.noise) | make_columns("signal", found.signal))
    return rows


def explain_unresolved(row: Mapping[str, Any]) -> str:
    """The sentence for a row whose noise scale is not resolved."""
    least = f"; it is {format_cell(row['at_least'], 2)} problems or more" if row["at_least"] > 0 else ""
    return f"{row['role']}: the noise scale is not resolved, for ‖G‖² may be 0{least}"
