"""The words of the command line: which commands there are, and what each of them takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import c3jax
from c3jax.commands import calls, terminal
from c3jax.config.fields import list_fields
from c3jax.config.overrides import split_overrides, split_sweep
from c3jax.lab import config as study_config

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

_FIELDS = """\
Fields of the files by other names than the task reads, of all files and where
the held-out ones have others ({} for those that need none):
    --task.fields "{question: [Body, Question], answer: Answer}"
    --heldout.fields "{}"
"""

_SWEPT = """\
Any field of the config may be given one value, or several with commas between
them; runs are made of every combination:
    c3jax sweep quickstart --seeds 0:5 --credit.method c3,magrpo --out runs/m
    --credit.fan_out "[2,4],[4,2]"  --learner.learning_rate 1e-3,3e-4
Values are written as in YAML; docs/sweeps.md says when a comma is part of one."""


def parse_words(words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Read a command line.

    Args:
      words: without the program's name.

    Returns:
      What the command's parser made of its words, with `run` to call, and the fields of a config among them.

    Raises:
      SystemExit: after help, the version or the usage was printed.
      UserError: a field is none of the config's, or has no value.
    """
    parser = make_parser()
    list_known = study_config.list_study_fields if words[:1] == ["study"] else list_fields
    kept, overrides = split_sweep(words) if words[:1] == ["sweep"] else split_overrides(words, list_known)
    arguments = parser.parse_args(kept)
    if overrides and not arguments.takes_overrides:
        parser.error(f"unrecognised argument --{next(iter(overrides))}")
    arguments.words = words
    return arguments, overrides


class _Parser(argparse.ArgumentParser):
    """One whose complaints are broken between words, as all others are; subcommands' parsers are of its class."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        terminal.complain(message)
        sys.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own passes over a full disk
        (file or sys.stderr).flush()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="c3jax",
        description="Train teams of language models with a credit of its own for each message.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"c3jax {c3jax.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_run_commands(commands)
    _add_policy_commands(commands)
    _add_diagnose(commands)
    _add_measuring_commands(commands)
    _add_data_commands(commands)
    fields = _add(commands, "fields", calls.call_fields, "list every field of a config")
    kinds = ("run", "study")
    fields.add_argument("of", metavar="OF", nargs="?", choices=kinds, default=kinds[0], help="run (default) or study")
    return parser


def _add_run_commands(commands: Any) -> None:
    train = _add(commands, "train", calls.call_train, "train a team, or go on with a run", overrides=_OVERRIDES)
    train.add_argument("config", help="YAML file, or the name of one that c3jax brings: quickstart, trio, ...")
    train.add_argument("--run-dir", metavar="DIR", help="where the run is kept (default: runs/<name of the config>)")
    _add_unsafe(train)
    _add_accept(train)

    sweep = _add(commands, "sweep", calls.call_sweep, "train every combination of values, over seeds", overrides=_SWEPT)
    sweep.add_argument("config", help="YAML file, or the name of one that c3jax brings: quickstart, trio, ...")
    sweep.add_argument("--seeds", metavar="A:B", help="0:5 for 0 to 4, or 0,1,7 (default: the config's own)")
    sweep.add_argument("--out", metavar="DIR", required=True, help="where the runs are kept, as DIR/CELL/seed-N")
    sweep.add_argument("--print", dest="is_printed", action="store_true", help="print what is left, a run a line")
    _add_unsafe(sweep)
    _add_accept(sweep)

    about = "measure a run or an untrained model on held-out problems and suites"
    evaluate = _add(commands, "evaluate", calls.call_evaluate, about, overrides=_OVERRIDES)
    evaluate.add_argument("source", help="a run directory, or a config for its model as it is before training")
    evaluate.add_argument("--checkpoint", metavar="STEP", default="newest", help="newest (default), best, or a number")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    evaluate.add_argument("--out", metavar="DIR", help="of a config: keep the results here, with the config")
    _add_unsafe(evaluate)
    _add_accept(evaluate)

    compare = _add(commands, "compare", calls.call_compare, "tables of evaluations across runs and seeds")
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run directories; configs equal but for the seed group")
    compare.add_argument(
        "--format",
        choices=("terminal", "markdown", "csv", "latex"),
        default="terminal",
        help="of the tables (default: terminal)",
    )

    report = _add(commands, "report", calls.call_report, "write runs, their curves and transcripts as one HTML file")
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

    table = _add(
        commands, "table", calls.call_table, "the paper's tables of the runs in a folder, beside the paper's numbers"
    )
    table.add_argument("folder", metavar="DIR", help="what launch/paper.sh made: DIR/NAME of a config/seed-N")
    table.add_argument("--configs", metavar="DIR", default="paper", help="of the configs (default: paper; paper/long)")
    table.add_argument("--out", metavar="FILE", help="write them to FILE.md or FILE.csv too")

    about = "draw curves, costs and comparisons of runs"
    figures = _add(commands, "figures", calls.call_figures, about)
    figures.add_argument("runs", metavar="RUN", nargs="+", help="run directories, or folders of them")
    figures.add_argument(
        "--out", metavar="DIR", required=True, help="where NAME.png, NAME.svg and NAME.pdf are written"
    )
    figures.add_argument("--only", metavar="A,B,...", default="", help="some of learning, cost, ... (docs/sweeps.md)")


def _add_policy_commands(commands: Any) -> None:
    ask = _add(
        commands, "ask", calls.call_ask, "put a question to a team and read every role's message", overrides=_OVERRIDES
    )
    ask.add_argument("source", help="a run directory, or a config for its model as it is before training")
    ask.add_argument("question")
    ask.add_argument("--checkpoint", metavar="STEP", default="newest", help="newest (default), best, or a number")
    ask.add_argument("--sample", action="store_true", help="sample as in training (default: greedy)")
    ask.add_argument("--transcript", action="store_true", help="print JSON with every context and message")
    _add_accept(ask)

    replay = _add(commands, "replay", calls.call_replay, "draw a recorded message again, or put another in its place")
    replay.add_argument("source", metavar="RUN", help="a run directory")
    replay.add_argument("--problem", metavar="ID", required=True, help="of the recorded tree, as train-2257")
    replay.add_argument("--node", metavar="PATH", required=True, help="the message's path of alternatives, as 0.1")
    replay.add_argument("--step", metavar="STEP", type=int, help="of the tree (default: the first with the problem)")
    replay.add_argument("--branch", metavar="N", type=int, default=0, help="of a record that is no tree (default: 0)")
    spoken = replay.add_mutually_exclusive_group()
    spoken.add_argument("--say", metavar="TEXT", help="put this in the role's mouth, beside the recorded alternatives")
    spoken.add_argument("--say-file", metavar="FILE", help="the same, read from a file")
    replay.add_argument("--continuations", metavar="M", type=int, default=32, help="fresh ones, of each (default: 32)")
    replay.add_argument("--checkpoint", metavar="STEP", help="another policy than the one that drew it: newest, ...")
    replay.add_argument("--alone", action="store_true", help="draw the message alone, not its sampler's whole call")
    replay.add_argument("--json", action="store_true", help="print JSON")
    _add_unsafe(replay)
    _add_accept(replay)

    export = _add(commands, "export", calls.call_export, "write a policy as a Hugging Face folder")
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


def _add_diagnose(commands: Any) -> None:
    about = "draw groups of alternatives at a run's contexts: fidelity and spread of credit, influence, null messages"
    diagnose = _add(commands, "diagnose", calls.call_diagnose, about)
    diagnose.add_argument("source", metavar="RUN", help="a run directory")
    diagnose.add_argument("--checkpoint", metavar="STEP", default="newest", help="newest (default), best, or a number")
    origins = ("recorded", "fresh")
    diagnose.add_argument("--contexts", choices=origins, default=origins[0], help="where they are from (recorded)")
    diagnose.add_argument(
        "--groups", metavar="P", type=int, default=64, help="problems, at most; a group a turn (default: 64)"
    )
    diagnose.add_argument("--alternatives", metavar="N", type=int, default=8, help="of a group (default: 8)")
    diagnose.add_argument(
        "--continuations", metavar="C", type=int, default=4, help="of an alternative, for credit (default: 4)"
    )
    diagnose.add_argument(
        "--held-out", metavar="H", type=int, default=4, help="more, twice, for its target (default: 4)"
    )
    diagnose.add_argument("--placeholder", metavar="TEXT", help="a null message with words (credit.null_message)")
    diagnose.add_argument(
        "--methods", metavar="A,B,...", default="", help="whose credit (default: all that groups hold)"
    )
    diagnose.add_argument(
        "--gradients", metavar="P", type=int, default=64, help="problems, for the gradient noise scale (64; 0: none)"
    )
    diagnose.add_argument("--json", metavar="FILE", help="write the figures to a file too")
    _add_unsafe(diagnose)
    _add_accept(diagnose)


def _add_measuring_commands(commands: Any) -> None:
    study = _add(
        commands, "study", calls.call_study, "compare credit methods on games with a known truth", overrides=_OVERRIDES
    )
    study.add_argument("config", help="YAML file of a study, or the name of one that c3jax brings: credit_bench, ...")
    study.add_argument("--run-dir", metavar="DIR", help="where it is kept (default: runs/<name of the config>)")

    plan = _add(commands, "plan", calls.call_plan, "compile a run for devices that are not here", overrides=_OVERRIDES)
    plan.add_argument("config", help="YAML file, or the name of one that c3jax brings: quickstart, trio, ...")
    plan.add_argument("--platform", choices=("tpu", "cuda", "cpu"), required=True, help="what the devices are")
    plan.add_argument("--topology", metavar="NAME", default="", help="v5e:4x4, h100:1x1x8, or a number of CPU devices")
    plan.add_argument("--target-config", metavar="FILE", help="of a GPU, for its compiler (docs/scaling.md)")
    plan.add_argument("--only", metavar="A,B,...", default="", help="some of trees, update, greedy, sampled")
    plan.add_argument("--json", action="store_true", help="print JSON instead of tables")

    about = "score a run's recorded trees with another credit method, or compare methods"
    score = _add(commands, "score", calls.call_score, about)
    score.add_argument("source", help="a run directory, or a file of recorded trees")
    traces = "the source holds traces of verifiers, rllm, orchestration or rows (docs/other_trainers.md)"
    score.add_argument("--from", dest="origin", metavar="NAME", help=traces)
    score.add_argument("--return-of", metavar="NAME", help="with --from: the agent whose reward is the team's return")
    asked = score.add_mutually_exclusive_group(required=True)
    asked.add_argument("--method", metavar="NAME", help="method whose credit the trees are written with")
    asked.add_argument("--compare", metavar="A,B,...", help="methods to compare: where their signs disagree, by role")
    score.add_argument("--out", metavar="FILE", help="with --method: where the trees are written")
    score.add_argument("--normalise", metavar="SCOPE", default="none", help="with --method: none (default), group, ...")
    score.add_argument("--json", action="store_true", help="with --compare: print JSON instead of a table")


def _add_data_commands(commands: Any) -> None:
    grade = _add(commands, "grade", calls.call_grade, "grade answers at hand, as training would", overrides=_LIMITS)
    grade.add_argument("task", metavar="TASK", help="kind of the task: math, numeric, reasoning, ...")
    grade.add_argument("problems", metavar="PROBLEMS.jsonl", help="problems in any format that the task reads")
    grade.add_argument("answers", metavar="ANSWERS.jsonl", help='{"id": ..., "answer": the whole message} a line')
    grade.add_argument("--out", metavar="VERDICTS.jsonl", required=True, help="where the verdicts are written")
    _add_unsafe(grade)

    prepare = _add(commands, "prepare", calls.call_prepare, "fetch a public set, check it and write it in our record")
    prepare.add_argument("name", metavar="NAME", help="all, or one of math, gsm8k, mbpp, ... (docs/data.md)")
    prepare.add_argument("--from", dest="folder", metavar="DIR", help="read copies from here instead of fetching")
    prepare.add_argument("--to", metavar="DIR", default="data", help="folder of the prepared sets (default: data)")

    about = "list the problems that a training set shares with held-out sets"
    overlap = _add(commands, "overlap", calls.call_overlap, about, overrides=_FIELDS)
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
