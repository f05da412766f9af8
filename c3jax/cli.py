"""The command line: parse and call, nothing else."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c3jax
from c3jax.commands import terminal
from c3jax.config import file as config_file
from c3jax.config.overrides import split_overrides
from c3jax.lab import config as study_config
from c3jax.run.interrupt import STOPPED, TERMINATED, Terminated
from c3jax.types import LostError, UserError

_OVERRIDES = """\
Any field of the config may be set by its dotted path:
    --seed 1  --credit.method no_loo  --credit.fan_out "[4, 2]"
    --protocol.turns.0.max_tokens 20  --learner.micro_problems null
Values are written as in YAML. `c3jax fields` lists every field."""

_LIMITS = """\
Limits are set as in a config, and so are fields of the problems by other names:
    --grade-timeout 60  --task.timeout 30  --task.wall 300  --task.memory 2048
    --task.fields "{question: [Body, Question], answer: Answer}"
`c3jax fields` lists what there is."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)  # of standard output: disk full, nobody reads


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 the user can mend it, 130 stopped by
    Ctrl-C, 75 by SIGTERM: what was stopped goes on when it is started again.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _make_parser()
    warnings.showwarning = _print_warning
    try:
        list_known = study_config.list_study_fields if words[:1] == ["study"] else config_file.list_fields
        kept, overrides = split_overrides(words, list_known)
        arguments = parser.parse_args(kept)
        if overrides and not arguments.takes_overrides:
            parser.error(f"unrecognised argument --{next(iter(overrides))}")
        arguments.words = words
        code = arguments.run(arguments, overrides)
        sys.stdout.flush()
        return code
    except UserError as error:
        terminal.complain(str(error))
        return 2
    except LostError as error:
        terminal.complain(str(error))
        sys.stderr.flush()
        os._exit(1)  # the runtime would wait for the lost one at its end
    except KeyboardInterrupt as error:
        terminal.complain("stopped")
        return TERMINATED if isinstance(error, Terminated) else STOPPED
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still holds goes nowhere
        terminal.complain(f"the output cannot be written ({error.strerror})")
        return 1


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="c3jax",
        description="Train teams of language models with a credit of its own for each message.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"c3jax {c3jax.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_run_commands(commands)
    _add_measuring_commands(commands)
    _add_data_commands(commands)
    fields = _add(commands, "fields", _fields, "list every field of a config")
    fields.add_argument("of", nargs="?", choices=("run", "study"), default="run", help="of a run (default) or a study")
    return parser


def _add_run_commands(commands: Any) -> None:
    train = _add(commands, "train", _train, "train a team, or go on with a run", overrides=_OVERRIDES)
    train.add_argument("config", help="YAML file, or the name of one that c3jax brings: quickstart, trio, ...")
    train.add_argument("--run-dir", metavar="DIR", help="where the run is kept (default: runs/<name of the config>)")
    _add_unsafe(train)
    _add_accept(train)

    evaluate = _add(
        commands,
        "evaluate",
        _evaluate,
        "measure a run or an untrained model on held-out problems and suites",
        overrides=_OVERRIDES,
    )
    evaluate.add_argument("source", help="a run directory, or a config for its model as it is before training")
    evaluate.add_argument("--checkpoint", metavar="STEP", default="newest", help="newest (default), best, or a number")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    evaluate.add_argument("--out", metavar="DIR", help="of a config: keep the results here, with the config")
    _add_unsafe(evaluate)
    _add_accept(evaluate)

    compare = _add(commands, "compare", _compare, "tables of evaluations across runs and seeds")
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run directories; configs equal but for the seed group")
    compare.add_argument(
        "--format",
        choices=("terminal", "markdown", "csv", "latex"),
        default="terminal",
        help="of the tables (default: terminal)",
    )

    report = _add(commands, "report", _report, "write runs, their curves and transcripts as one HTML file")
    report.add_argument("runs", metavar="RUN", nargs="+", help="run directories; configs equal but for the seed group")
    report.add_argument(
        "--out", metavar="FILE", help="an .html file (default: report.html in the run, where it is one)"
    )
    report.add_argument(
        "--scored",
        metavar="FILE",
        action="append",
        default=[],
        help="trees of the run as `c3jax score --method` wrote them: their credit is shown too (may be repeated)",
    )

    table = _add(commands, "table", _table, "the paper's tables of the runs in a folder, beside the paper's numbers")
    table.add_argument("folder", metavar="DIR", help="what launch/paper.sh made: DIR/NAME of a config/seed-N")
    table.add_argument("--configs", metavar="DIR", default="paper", help="of the configs (default: paper; paper/long)")
    table.add_argument("--out", metavar="FILE", help="write them to FILE.md or FILE.csv too")

    ask = _add(commands, "ask", _ask, "put a question to a team and read every role's message", overrides=_OVERRIDES)
    ask.add_argument("source", help="a run directory, or a config for its model as it is before training")
    ask.add_argument("question")
    ask.add_argument("--checkpoint", metavar="STEP", default="newest", help="newest (default), best, or a number")
    ask.add_argument("--sample", action="store_true", help="sample as in training (default: greedy)")
    ask.add_argument("--transcript", action="store_true", help="print JSON with every context and message")
    _add_accept(ask)

    export = _add(commands, "export", _export, "write a policy as a Hugging Face folder")
    export.add_argument("source", help="a run directory, or a config for its model as it is before training")
    export.add_argument("--to", metavar="DIR", required=True, help="where to: a folder that is empty or not there yet")
    export.add_argument("--checkpoint", metavar="STEP", default="newest", help="newest (default), best, or a number")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the stored weights (float32)"
    )
    export.add_argument(
        "--adapters",
        choices=("merged", "peft"),
        default="merged",
        help="where roles have adapters: a whole model each (merged, the default), or a folder for PEFT each",
    )
    _add_accept(export)


def _add_measuring_commands(commands: Any) -> None:
    study = _add(commands, "study", _study, "compare credit methods on games with a known truth", overrides=_OVERRIDES)
    study.add_argument("config", help="YAML file of a study, or the name of one that c3jax brings: credit_bench, ...")
    study.add_argument("--run-dir", metavar="DIR", help="where it is kept (default: runs/<name of the config>)")

    score = _add(
        commands, "score", _score, "score a run's recorded trees with another credit method, or compare methods"
    )
    score.add_argument("source", help="a run directory, or a file of recorded trees")
    asked = score.add_mutually_exclusive_group(required=True)
    asked.add_argument("--method", metavar="NAME", help="method whose credit the trees are written with")
    asked.add_argument("--compare", metavar="A,B,...", help="methods to compare: where their signs disagree, by role")
    score.add_argument("--out", metavar="FILE", help="with --method: where the trees are written")
    score.add_argument("--normalise", metavar="SCOPE", default="none", help="with --method: none (default), group, ...")
    score.add_argument("--json", action="store_true", help="with --compare: print JSON instead of a table")


def _add_data_commands(commands: Any) -> None:
    grade = _add(commands, "grade", _grade, "grade answers at hand, as training would", overrides=_LIMITS)
    grade.add_argument("task", metavar="TASK", help="kind of the task: math, numeric, reasoning, ...")
    grade.add_argument("problems", metavar="PROBLEMS.jsonl", help="problems in any format that the task reads")
    grade.add_argument("answers", metavar="ANSWERS.jsonl", help='{"id": ..., "answer": the whole message} a line')
    grade.add_argument("--out", metavar="VERDICTS.jsonl", required=True, help="where the verdicts are written")
    _add_unsafe(grade)

    prepare = _add(commands, "prepare", _prepare, "fetch a public set, check it and write it in our record")
    prepare.add_argument("name", metavar="NAME", help="all, or one of math, gsm8k, mbpp, ... (docs/data.md)")
    prepare.add_argument("--from", dest="folder", metavar="DIR", help="read copies from here instead of fetching")
    prepare.add_argument("--to", metavar="DIR", default="data", help="folder of the prepared sets (default: data)")

    overlap = _add(commands, "overlap", _overlap, "list the problems that a training set shares with held-out sets")
    overlap.add_argument("task", metavar="TASK", help="kind of the task: math, numeric, code, ...")
    overlap.add_argument("train", metavar="TRAIN.jsonl", help="problems in any format that the task reads")
    overlap.add_argument("heldout", metavar="HELDOUT.jsonl", nargs="+", help="the same; exit code 1 where it is shared")


def _add(commands: Any, name: str, run: Any, help_text: str, overrides: str = "") -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=overrides or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=run, takes_overrides=bool(overrides))
    return command


def _add_unsafe(command: argparse.ArgumentParser) -> None:
    # Typed or not there: no config can ask for it.
    command.add_argument(
        "--unsafe-no-sandbox", action="store_true", help="run programs of code tasks with your rights, uncontained"
    )


def _add_accept(command: argparse.ArgumentParser) -> None:
    text = "use a run whose problems, model or modules of your own are not what they were when it was last started"
    command.add_argument("--accept-changes", action="store_true", help=text)


# Rooms that need JAX are imported by the command that uses them: help and a wrong config answer at once.


def _train(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    config, run_dir = config_file.load_config(arguments.config, overrides), _choose_run_dir(arguments)
    from c3jax import processes, train
    from c3jax.commands.runtime import set_up_process

    console = set_up_process(joins=True)
    command, is_contained = ["c3jax", *arguments.words], not arguments.unsafe_no_sandbox
    with processes.explain_loss():
        return train.train(config, run_dir, command, console, is_contained, arguments.accept_changes)


def _choose_run_dir(arguments: argparse.Namespace) -> Path:
    if arguments.run_dir == "":
        raise UserError("--run-dir: expected a folder, got an empty name")
    return Path(arguments.run_dir or Path("runs") / config_file.name_config(arguments.config))


def _accept(arguments: argparse.Namespace) -> list[str]:
    return ["c3jax", *arguments.words] if arguments.accept_changes else []


def _check_source(source: str, overrides: dict[str, Any]) -> None:
    """Refuse at once what needs no model to be refused."""
    if Path(source).is_dir():
        from c3jax.run.directory import load_run_config

        load_run_config(source, overrides)
    else:
        config_file.load_config(config_file.find_config(source, "a run directory, a config file"), overrides)


def _evaluate(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    _check_source(arguments.source, overrides)
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


def _table(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from c3jax.commands import table

    out = arguments.out and Path(arguments.out)
    return table.table_runs(Path(arguments.folder), arguments.configs, out, terminal.make_console())


def _compare(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from c3jax.commands import compare

    return compare.compare_runs(arguments.runs, arguments.format, terminal.make_console())


def _report(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from c3jax.report import page

    return page.write_report(arguments.runs, arguments.out, arguments.scored, terminal.make_console())


def _ask(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    _check_source(arguments.source, overrides)
    from c3jax.commands import ask
    from c3jax.commands.runtime import set_up_process

    return ask.ask_source(
        arguments.source,
        arguments.question,
        arguments.checkpoint,
        overrides,
        set_up_process(),
        is_sampled=arguments.sample,
        as_json=arguments.transcript,
        accepting=_accept(arguments),
    )


def _export(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    _check_source(arguments.source, overrides)
    from c3jax.commands import export
    from c3jax.commands.runtime import set_up_process

    form = export.Form(arguments.dtype, is_peft=arguments.adapters == "peft")
    target, console = Path(arguments.to), set_up_process()
    return export.export_source(arguments.source, arguments.checkpoint, target, form, console, _accept(arguments))


def _study(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    config, run_dir = study_config.load_study(arguments.config, overrides), _choose_run_dir(arguments)
    from c3jax import processes
    from c3jax.commands.runtime import set_up_process
    from c3jax.lab import chunks, run
    from c3jax.run import directory as rundir

    console = set_up_process(joins=config.kind != "bench")
    command, load = ["c3jax", *arguments.words], study_config.make_loader(config)
    with processes.explain_loss(), rundir.open_run_dir(run_dir, config, command, load) as opened:
        rundir.record_start(opened, chunks.count_saved(opened.path))
        return run.run_study(config, opened.path, console)


def _score(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    if (arguments.method is None) != (arguments.out is None):
        raise UserError("--out: expected a file for the trees with --method, and none with --compare")
    from c3jax.commands import score
    from c3jax.commands.runtime import set_up_process

    source, console = Path(arguments.source), set_up_process()
    if arguments.compare is not None:
        return score.compare_source(source, arguments.compare.split(","), arguments.json, console)
    return score.score_source(source, arguments.method, arguments.normalise, Path(arguments.out), console)


def _grade(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from c3jax.commands import grade

    is_contained = not arguments.unsafe_no_sandbox
    files = (arguments.problems, arguments.answers, arguments.out)
    terminal.show(grade.grade_files(arguments.task, *files, is_contained, overrides))
    return 0


def _prepare(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from c3jax.commands.prepare import sets as prepare

    folder = None if arguments.folder is None else Path(arguments.folder)
    prepare.prepare_sets(arguments.name, folder, Path(arguments.to), terminal.show)
    return 0


def _overlap(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from c3jax.setup import contamination

    lines, is_shared = contamination.compare_files(arguments.task, arguments.train, arguments.heldout)
    print("\n".join(lines))
    return int(is_shared)


def _fields(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    lines = []
    for field in study_config.list_study_fields() if arguments.of == "study" else config_file.list_fields():
        lines.append(terminal.wrap(f"--{field.path}  {field.kind}  [{field.default}]", others=terminal.INDENT))
        lines.append(terminal.wrap(field.text, terminal.INDENT, terminal.INDENT))
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # the reader has seen enough: c3jax fields | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print what a user can do something about; what libraries tell each other's developers is not."""
    if category is UserWarning:
        terminal.complain(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
