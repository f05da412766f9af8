"""What each command of the command line calls with the words it was given; every function gives an exit code.

Rooms that need JAX are imported by the command that uses them: help and a wrong config answer at once.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from c3jax.commands import terminal
from c3jax.config import file as config_file
from c3jax.config.fields import list_fields
from c3jax.lab import config as study_config
from c3jax.types import UserError


def call_train(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Train, or go on with a run."""
    config, run_dir = config_file.load_config(arguments.config, overrides), _choose_run_dir(arguments)
    from c3jax.rewards import check_workers
    from c3jax.run.directory import check_contents
    from c3jax.run.trackers import find_openers

    # Before JAX is imported, which takes seconds; what the disk refuses is told when the directory is opened.
    check_workers(config.workers)
    if not any(":" in name for name in config.trackers):  # a user's own module may import JAX
        find_openers(config.trackers)
    with suppress(OSError):
        check_contents(run_dir, config)
    from c3jax import processes, train
    from c3jax.commands.runtime import set_up_process

    console = set_up_process(joins=True)
    command, is_contained = ["c3jax", *arguments.words], not arguments.unsafe_no_sandbox
    with processes.explain_loss():
        return train.train(config, run_dir, command, console, is_contained, arguments.accept_changes)


def call_sweep(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Train every combination of values."""
    if not arguments.out:
        raise UserError("--out: expected a folder, got an empty name")
    from c3jax.commands import sweep

    given = {"--unsafe-no-sandbox": arguments.unsafe_no_sandbox, "--accept-changes": arguments.accept_changes}
    options = tuple(option for option, is_given in given.items() if is_given)
    asked = sweep.Sweep(arguments.config, overrides, arguments.seeds, Path(arguments.out), options)
    return sweep.run_sweep(asked, arguments.is_printed, terminal.make_console())


def call_figures(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Draw runs."""
    from c3jax.commands import figures

    only = [*filter(None, arguments.only.split(","))]
    return figures.write_figures(arguments.runs, Path(arguments.out), only, terminal.make_console())


def _choose_run_dir(arguments: argparse.Namespace) -> Path:
    if arguments.run_dir == "":
        raise UserError("--run-dir: expected a folder, got an empty name")
    return Path(arguments.run_dir or Path("runs") / config_file.name_config(arguments.config))


def _accept(arguments: argparse.Namespace) -> list[str]:
    return ["c3jax", *arguments.words] if arguments.accept_changes else []


def _check_source(source: str, overrides: dict[str, Any], checkpoint: str | None) -> None:
    """Refuse at once what needs no model to be refused; without a checkpoint, of a run its config alone."""
    if not source:
        raise UserError("source: expected a run directory or a config, got an empty name")
    from c3jax.run.directory import load_run_config
    from c3jax.run.source import open_source

    if checkpoint is None and Path(source).is_dir():
        load_run_config(source, overrides)
    else:
        open_source(source, checkpoint or "newest", overrides)


def call_evaluate(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Evaluate a run or a config."""
    _check_source(arguments.source, overrides, arguments.checkpoint)
    from c3jax.commands import ask
    from c3jax.commands.runtime import set_up_process

    return ask.evaluate_source(
        arguments.source,
        arguments.checkpoint,
        overrides,
        set_up_process(),
        as_json=arguments.json,
        is_contained=not arguments.unsafe_no_sandbox,
        accepting=_accept(arguments),
        kept_in=None if arguments.out is None else Path(arguments.out),
    )


def call_table(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Print the paper's tables."""
    from c3jax.commands import table

    out = arguments.out and Path(arguments.out)
    return table.table_runs(Path(arguments.folder), arguments.configs, out, terminal.make_console())


def call_compare(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Compare evaluated runs."""
    from c3jax.commands import compare

    return compare.compare_runs(arguments.runs, arguments.format, terminal.make_console())


def call_report(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Write runs as a page."""
    from c3jax.report import page

    return page.write_report(arguments.runs, arguments.out, arguments.scored, terminal.make_console())


def call_ask(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Put a question to a team."""
    if not arguments.question.strip():
        raise UserError("question: expected some text, got none")
    _check_source(arguments.source, overrides, arguments.checkpoint)
    gc.disable()  # what a process of seconds leaves is not worth a twelfth of its time
    try:
        from c3jax.commands import ask
        from c3jax.commands.runtime import set_up_process

        asked = (arguments.source, arguments.question, arguments.checkpoint, overrides, set_up_process())
        return ask.ask_source(*asked, arguments.sample, arguments.transcript, _accept(arguments))
    finally:
        gc.enable()


def call_replay(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Draw recorded messages again, or compare others with them."""
    if arguments.continuations < 1:
        raise UserError(f"--continuations: expected at least 1, got {arguments.continuations}")
    _check_source(arguments.source, overrides, arguments.checkpoint)
    message = arguments.say
    if arguments.say_file is not None:
        try:
            message = Path(arguments.say_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise UserError(f"--say-file {arguments.say_file}: expected a text file, got none ({reason})") from None
    from c3jax.commands import replay
    from c3jax.commands.runtime import set_up_process

    asked = (arguments.problem, arguments.step, arguments.node, arguments.branch, arguments.checkpoint)
    request = replay.Request(*asked, message, arguments.continuations, arguments.alone)
    console = set_up_process()
    is_contained = not arguments.unsafe_no_sandbox
    return replay.replay_source(
        Path(arguments.source), request, console, arguments.json, is_contained, _accept(arguments)
    )


def call_diagnose(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Diagnose a run."""
    for name, least in (("groups", 1), ("alternatives", 2), ("continuations", 1), ("held_out", 1), ("gradients", 0)):
        if getattr(arguments, name) < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: expected at least {least}, got {getattr(arguments, name)}")
    if not Path(arguments.source).is_dir():
        raise UserError(f"{arguments.source}: expected a run directory, got none")
    if arguments.json is not None and Path(arguments.json).is_dir():
        raise UserError(f"--json: expected a file, got {arguments.json or 'an empty name'}")
    _check_source(arguments.source, overrides, arguments.checkpoint)
    from c3jax.commands import diagnose, groups
    from c3jax.commands.runtime import set_up_process

    nulls = () if arguments.placeholder is None else (arguments.placeholder,)
    sizes = groups.Sizes(arguments.alternatives, arguments.continuations, arguments.held_out)
    request = groups.Request(arguments.contexts, arguments.groups, sizes, nulls, arguments.gradients)
    methods, out = [*filter(None, arguments.methods.split(","))], arguments.json and Path(arguments.json)
    run, is_contained = Path(arguments.source), not arguments.unsafe_no_sandbox
    asked = (arguments.checkpoint, request, methods, out)
    return diagnose.diagnose_run(run, *asked, set_up_process(), is_contained, _accept(arguments))


def call_export(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Write a policy as a Hugging Face folder."""
    _check_source(arguments.source, overrides, arguments.checkpoint)
    from c3jax.commands import export
    from c3jax.commands.runtime import set_up_process

    form = export.Form(arguments.dtype, is_peft=arguments.adapters == "peft")
    target, console = Path(arguments.to), set_up_process()
    return export.export_source(arguments.source, arguments.checkpoint, target, form, console, _accept(arguments))


def call_study(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Run a study."""
    config, run_dir = study_config.load_study(arguments.config, overrides), _choose_run_dir(arguments)
    load = study_config.make_loader(config)
    from c3jax.run.directory import check_contents

    with suppress(OSError):
        check_contents(run_dir, config, load)
    from c3jax import processes
    from c3jax.commands.runtime import set_up_process
    from c3jax.lab import chunks, run
    from c3jax.run import directory as rundir

    console = set_up_process(joins=config.kind != "bench")
    command = ["c3jax", *arguments.words]
    with processes.explain_loss(), rundir.open_run_dir(run_dir, config, command, load) as opened:
        rundir.record_start(opened, chunks.count_saved(opened.path))
        return run.RUNNERS[config.kind](config, opened.path, console)


def call_plan(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Compile a run for devices that are not here."""
    config, only = config_file.load_config(arguments.config, overrides), [*filter(None, arguments.only.split(","))]
    from c3jax.commands.target import check_topology

    check_topology(arguments.platform, arguments.topology)
    from c3jax.commands import plan

    file = None if arguments.target_config is None else Path(arguments.target_config)
    target = (arguments.platform, arguments.topology, file)
    return plan.plan_run(config, *target, only, arguments.json)


def call_score(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Score recorded trees again."""
    if (arguments.method is None) != (arguments.out is None):
        raise UserError("--out: expected a file for the trees with --method, and none with --compare")
    if arguments.return_of is not None and arguments.origin is None:
        raise UserError("--return-of: expected it with --from alone, got a source of recorded trees")
    if not Path(arguments.source).exists():
        raise UserError(f"{arguments.source}: cannot be read (No such file or directory)")
    from c3jax.commands import score
    from c3jax.commands.runtime import set_up_process

    source, console = Path(arguments.source), set_up_process()
    origin = None if arguments.origin is None else score.Origin(arguments.origin, arguments.return_of)
    if arguments.compare is not None:
        return score.compare_source(source, arguments.compare.split(","), arguments.json, console, origin)
    return score.score_source(source, arguments.method, arguments.normalise, Path(arguments.out), console, origin)


def call_grade(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Grade answers at hand."""
    from c3jax.commands import grade

    is_contained = not arguments.unsafe_no_sandbox
    files = (arguments.problems, arguments.answers, arguments.out)
    terminal.show(grade.grade_files(arguments.task, *files, is_contained, overrides))
    return 0


def call_prepare(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Fetch a public set."""
    from c3jax.commands.prepare import sets as prepare

    folder = None if arguments.folder is None else Path(arguments.folder)
    prepare.prepare_sets(arguments.name, folder, Path(arguments.to), terminal.show)
    return 0


def call_overlap(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """List what sets share."""
    from c3jax.setup import contamination

    lines, is_shared = contamination.compare_files(arguments.task, arguments.train, arguments.heldout, overrides)
    print("\n".join(lines))
    return int(is_shared)


def call_fields(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """List the fields of a config."""
    lines = []
    for field in study_config.list_study_fields() if arguments.of == "study" else list_fields():
        lines.append(terminal.wrap(f"--{field.path}  {field.kind}  [{field.default}]", others=terminal.INDENT))
        lines.append(terminal.wrap(field.text, terminal.INDENT, terminal.INDENT))
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # the reader has seen enough: c3jax fields | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
