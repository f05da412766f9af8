"""What a run will take, from its programs compiled for devices that need not be here. Nothing is loaded but sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from c3jax import evaluate
from c3jax.analysis.costs import Costs, compute_costs, share_costs
from c3jax.analysis.hlo import read_module
from c3jax.analysis.roofline import compute_exchange, compute_seconds
from c3jax.commands.programs import Program, list_programs
from c3jax.commands.runtime import set_numerics, set_tpu_compiler
from c3jax.commands.target import Compiled, Target, compile_for, open_target
from c3jax.commands.terminal import make_console
from c3jax.config.credit import make_plan, widen_fan_out
from c3jax.config.run import RunConfig
from c3jax.credit.plans import count_calls, count_generated
from c3jax.setup.memory import Estimate, Limit, find_largest, format_bytes
from c3jax.setup.policy import estimate_run
from c3jax.setup.team import Setup, outline_setup
from c3jax.types import UserError


class Planned(NamedTuple):
    """What is known of a program."""

    program: Program
    compiled: Compiled
    products: Costs  # of the lowered program: its FLOPs, of one device
    traffic: Costs | None  # of the compiled one: bytes and collectives
    estimate: int  # bytes, of setup.memory
    seconds: float | None  # of one call, the least that the chip needs


def plan_run(
    config: RunConfig, platform: str, topology: str, target_config: Path | None, only: Sequence[str], as_json: bool
) -> int:
    """Compile a run's programs for a topology and print what they take.

    Args:
      config: of the run.
      platform, topology, target_config: as `open_target` takes them.
      only: names of programs, where not all are asked for.
      as_json: print JSON instead of tables.

    Returns:
      The exit code: 0, also where something does not fit.

    Raises:
      UserError: in one sentence for the user.
    """
    set_numerics()
    set_tpu_compiler()
    console, target = make_console(), open_target(platform, topology, target_config)
    setup = outline_setup(config, target.devices)
    programs = list_programs(setup, target)
    names = [program.name for program in programs]
    if unknown := set(only) - set(names):
        raise UserError(f"--only: expected names of {', '.join(names)}, got {min(unknown)}")
    learning, drawing = estimate_run(config, setup.spec, setup.plans, setup.mesh, setup.rollout_mesh)
    estimates = {"trees": drawing, "update": learning, "evaluation": learning}
    planned = [
        _plan_one(target, program, estimates[program.when]) for program in programs if program.name in (only or names)
    ]
    facts = describe_plan(setup, target, planned) | {"fit": _describe_fit(target, planned, estimates)}
    if as_json:
        console.print(json.dumps(facts), soft_wrap=True)
    else:
        _print_plan(console, target, facts)
    return 0


def _plan_one(target: Target, program: Program, estimate: Estimate) -> Planned:
    compiled = compile_for(target, program.function, program.arguments, **program.static)
    # Lowered programs are of one device's problems, and cut along tensor by the compiler alone.
    products = share_costs(compute_costs(read_module(compiled.lowered)), program.tensor)
    traffic = None if compiled.optimised is None else compute_costs(read_module(compiled.optimised))
    seconds = None if target.device is None or traffic is None else compute_seconds(target.device, products, traffic)
    size = estimate.total("always") + estimate.total(program.when)
    return Planned(program, compiled._replace(lowered="", optimised=None), products, traffic, size, seconds)


# --------------------------------------------------------------------------------------------------------------------
# What is known of them


def describe_plan(setup: Setup, target: Target, planned: Sequence[Planned]) -> dict[str, Any]:
    """A plan as one JSON object: the ledger of a step and of the run, and a row a program, of one device each."""
    config, mesh, apart = setup.config, setup.mesh, setup.rollout_mesh
    plan = make_plan(widen_fan_out(config.credit, len(setup.plans)), len(setup.plans))
    rows = list(zip([config.problems * messages for messages in count_generated(plan)], setup.plans, strict=True))
    spoken = [(count, turn.max_tokens) for count, turn in rows if not turn.is_environment]
    every = config.evaluation.every
    evaluations = 2 + ((config.steps - 1) // every if every else 0)  # before and after training
    a_step = _add_seconds(planned, [one.program.name for one in planned if one.program.when != "evaluation"])
    an_evaluation = _add_seconds(planned, [profile.name for profile in evaluate.list_profiles(setup)])
    hours = None
    if a_step is not None and an_evaluation is not None:
        hours = (config.steps * a_step + evaluations * an_evaluation) * target.chips / 3600
    return {
        "platform": target.platform,
        "topology": target.topology,
        "devices": len(target.devices) if mesh is None else mesh.size + (0 if apart is None else apart.size),
        "mesh": {} if mesh is None else dict(mesh.shape),
        "rollout_mesh": {} if apart is None else dict(apart.shape),
        "missing": target.missing,
        "step": {
            "evaluator_calls": config.problems * count_calls(plan),
            "environment_calls": sum(count for count, turn in rows if turn.is_environment),  # at most
            "messages": sum(count for count, _ in spoken),
            "most_tokens": sum(count * tokens for count, tokens in spoken),
            "least_seconds": a_step,
        },
        "run": {"steps": config.steps, "evaluations": evaluations, "chip_hours": hours},
        "programs": [_describe_program(target, one) for one in planned],
    }


def _add_seconds(planned: Sequence[Planned], names: Sequence[str]) -> float | None:
    """The least seconds of all calls of some programs; None where one is not known."""
    seconds = [
        one.seconds * one.program.calls for one in planned if one.program.name in names and one.seconds is not None
    ]
    return sum(seconds) if len(seconds) == len(names) else None


def _describe_program(target: Target, one: Planned) -> dict[str, Any]:
    compiled, traffic, memory = one.compiled, one.traffic, one.compiled.memory
    row: dict[str, Any] = {"name": one.program.name, "calls": one.program.calls, "refusal": compiled.refusal}
    row["compile_seconds"] = None if target.missing else compiled.seconds
    if memory is not None:
        row |= {**memory._asdict(), "beside": one.program.beside, "bytes": memory.total + one.program.beside}
    row |= {"estimate": one.estimate, "flops": dict(one.products.total.flops)}
    if traffic is not None:
        total = traffic.total
        moved = {kind: {"calls": total.calls[kind], "bytes": total.moved[kind]} for kind in total.calls}
        row["exchange_seconds"] = None if target.device is None else compute_exchange(target.device, traffic)
        row |= {"traffic": total.bytes, "traffic_open": traffic.open.bytes, "collectives": moved}
    row["flops_open"] = sum(one.products.open.flops.values())
    row["unread_loops"] = one.products.unread + (traffic.unread if traffic else 0)
    return row | {"least_seconds": one.seconds}


def _describe_fit(target: Target, planned: Sequence[Planned], estimates: dict[str, Estimate]) -> list[str]:
    """A sentence for each program that does not fit, with the field that makes it smaller; or one for all that do."""
    if target.device is None:
        return []
    lines, limit = [], Limit(target.device.name, int(target.device.memory * 1e9))
    for one in planned:
        memory = one.compiled.memory
        size = one.estimate if memory is None else memory.total + one.program.beside
        if size <= limit.bytes and not one.compiled.refusal:
            continue
        largest = find_largest(estimates[one.program.when], limit, one.program.when)
        what = f"{one.program.name} does not fit: it takes {'about ' if memory is None else ''}{format_bytes(size)}"
        refusal = f" (the compiler: {one.compiled.refusal})" if one.compiled.refusal else ""
        lines.append(
            f"{what} of the {format_bytes(limit.bytes)} of a device{refusal}; the largest part, {largest.name}, about"
            f" {format_bytes(largest.bytes)}: try {largest.remedy}"
            + ("" if largest.when != "always" else ", or mesh.fsdp with more parts")
        )
    basis = " by our estimate" if target.missing else ""
    return lines or [f"everything fits the {format_bytes(limit.bytes)} of a device{basis}"]


# --------------------------------------------------------------------------------------------------------------------
# The tables

_SIZES = (
    ("arguments", "arguments"),
    ("outputs", "outputs"),
    ("aliased", "  written over arguments"),
    ("temporaries", "temporaries"),
    ("code", "code"),
    ("beside", "held beside it"),
    ("bytes", "in all"),
    ("estimate", "our estimate of that"),
)


def _print_plan(console: Console, target: Target, facts: dict[str, Any]) -> None:
    mesh, apart = (
        ", ".join(f"{name} {size}" for name, size in facts[which].items()) for which in ("mesh", "rollout_mesh")
    )
    laid = f"{f', mesh {mesh}' if mesh else ''}{f', of which draw {apart}' if apart else ''}"
    kind = target.device.name if target.device else "CPU"
    console.print(f"{facts['devices']} x {kind}{laid}; figures are of one device")
    if target.missing:
        console.print(f"lowered for {target.platform} and not compiled: {target.missing}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for row in facts["programs"]:
        table.add_column(row["name"], justify="right", no_wrap=True)
    for label, cells in _list_lines(facts["programs"]):
        table.add_row(label, *cells)
    console.print(table)
    step, run = facts["step"], facts["run"]
    answers = f" {step['environment_calls']:,} of environments at most," if step["environment_calls"] else ""
    console.print(
        f"A step: {step['evaluator_calls']:,} evaluator calls,{answers} {step['messages']:,} messages,"
        f" {step['most_tokens']:,} tokens at most{_format_least(step['least_seconds'])}.",
        soft_wrap=True,
    )
    hours = "" if run["chip_hours"] is None else f": {run['chip_hours']:,.1f} chip-hours at the roofline"
    console.print(f"The run: {run['steps']:,} steps and {run['evaluations']} evaluations{hours}.", soft_wrap=True)
    console.print(
        "Messages are taken to be as long as they may be: decoding, which may end before, is counted to its bound.",
        soft_wrap=True,
    )
    if any(row["unread_loops"] for row in facts["programs"]):
        console.print("Some loops have no bound that can be read; they are counted once.", soft_wrap=True)
    for line in facts["fit"]:
        console.print(line, soft_wrap=True)


def _list_lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The lines of the table, a program a column."""

    def format_all(name: str, form: Callable[[Any], str]) -> list[str]:
        return ["-" if row.get(name) is None else form(row[name]) for row in rows]

    lines = [("calls a step or evaluation", format_all("calls", str))]
    lines.append(("compile, s", format_all("compile_seconds", "{:.0f}".format)))
    lines += [(label, format_all(name, format_bytes)) for name, label in _SIZES]
    lines.append(("TFLOP of products", format_all("flops", lambda flops: f"{sum(flops.values()) / 1e12:.3g}")))
    lines.append(("  of that in decoding", format_all("flops_open", lambda flops: f"{flops / 1e12:.3g}")))
    lines.append(("memory read and written", format_all("traffic", format_bytes)))
    lines.append(("  of that in decoding", format_all("traffic_open", format_bytes)))
    kinds = dict.fromkeys(kind for row in rows for kind in row.get("collectives", {}))
    for kind in kinds:
        cells = [row.get("collectives", {}).get(kind) for row in rows]
        lines.append((kind, [f"{c['calls']:,} x, {format_bytes(c['bytes'])}" if c else "-" for c in cells]))
    lines.append(("seconds of these, over all links", format_all("exchange_seconds", "{:.3g}".format)))
    lines.append(("seconds a call, roofline", format_all("least_seconds", "{:.3g}".format)))
    return [line for line in lines if any(cell != "-" for cell in line[1])]


def _format_least(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.3g} s at the roofline"
