"""Runs started one after another, each command in a process of its own; what is done is left out.

The process that starts them holds no devices. A terminal sends Ctrl-C to both: the command under way ends by itself,
with a checkpoint, and no other is started. SIGTERM is passed on. Commands that are called in this process instead take
both themselves.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from c3jax.run.interrupt import STOPPED, TERMINATED
from c3jax.types import UserError

PROGRAM = (sys.executable, "-m", "c3jax.cli")
_MOST_SEEDS = 10_000


class Job(NamedTuple):
    """What is left to do for one run: commands that need each other, in order."""

    name: str
    commands: Sequence[Sequence[str]]  # words after the program's name


class Outcome(NamedTuple):
    """How jobs ended."""

    failed: list[str]  # the job and how it ended, of each that did
    code: int  # STOPPED or TERMINATED where a signal ended them, else 0


class _Signals:
    """The signals that came, and the process that they are passed on to."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, and pass on what a terminal does not send to every process."""
        self.received.append(number)
        if number == signal.SIGTERM and self.process is not None:
            self.process.send_signal(number)

    @property
    def code(self) -> int:
        """The exit code that they ask for; 0 where none came."""
        return STOPPED if signal.SIGINT in self.received else TERMINATED if self.received else 0


def parse_seeds(text: str) -> list[int]:
    """Seeds as they are written: 0,1,7, or with ranges, 0:5 for 0 to 4. Raises UserError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, has_range, end = part.partition(":")
        if not first.isdecimal() or (has_range and not (end.isdecimal() and int(first) < int(end))):
            raise UserError(f"--seeds: expected numbers with commas between them, or a range as 0:5, got {text!r}")
        more = range(int(first), int(end) if has_range else int(first) + 1)
        if len(seeds) + len(more[:_MOST_SEEDS]) >= _MOST_SEEDS:
            raise UserError(f"--seeds: expected fewer than {_MOST_SEEDS:,} seeds, got {text!r}")
        seeds += more
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: expected every seed once, got {max(seeds, key=seeds.count)} twice in {text!r}")
    return seeds


def list_left(train: Sequence[str], run: Path, has_suites: bool, steps: int | None = None) -> list[list[str]]:
    """What is left to do for a run: nothing, its evaluation, or training and evaluation.

    Args:
      train: the words that train it, or resume it.
      run: its directory.
      has_suites: whether there is more to measure than the held-out problems, with which training ends.
      steps: at which training ends; None takes a run that has ended for what is wanted.

    Returns:
      The words of each command.

    Raises:
      UserError: an evaluation that is there cannot be read.
    """
    last = find_last_step(run)
    is_trained = last is not None and steps in (None, last)
    commands = [] if is_trained else [[*train]]
    if not has_suites or (is_trained and last is not None and is_evaluated(run, last)):
        return commands
    return [*commands, ["evaluate", str(run)]]


def find_last_step(run: Path) -> int | None:
    """The step after which a run was evaluated at its end; None where it has not ended. Raises UserError."""
    after = run / "eval" / "after.json"
    return load_evaluation(after)["step"] if after.is_file() else None


def is_evaluated(run: Path, step: int) -> bool:
    """Whether every suite was measured at a step. Raises UserError."""
    suites = run / "eval" / f"suites-{step}.json"
    return suites.is_file() and not any("missing" in row for row in load_evaluation(suites)["results"])


def load_evaluation(path: Path) -> dict[str, Any]:
    """The JSON of RUN/eval/*.json. Raises UserError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: expected the results of an evaluation, cannot be read") from None


def run_jobs(
    jobs: Iterable[Job],
    print_line: Callable[[str], None],
    program: Sequence[str] = PROGRAM,
    call: Callable[[list[str]], int] | None = None,
) -> Outcome:
    """Run jobs one after another. One that fails does not end the others; a signal does.

    Args:
      jobs: taken one by one, each when the one before has ended.
      print_line: is given each command before it starts.
      program: what the words of a command follow.
      call: runs a command's words in this process and gives its exit status, instead of a process for each.

    Returns:
      What failed, and the exit code where a signal ended them.
    """
    failed: list[str] = []
    with _catch_signals() as signals:
        for job in jobs:
            for words in job.commands:
                if signals.code:
                    return Outcome(failed, signals.code)
                print_line(shlex.join(["c3jax", *words]))
                status = call([*words]) if call else _run([*program, *words], signals)
                if signals.code or status in (STOPPED, TERMINATED):
                    return Outcome(failed, signals.code or status)
                if status != 0:
                    how = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
                    failed.append(f"{job.name} ({how})")
                    break
    return Outcome(failed, 0)


def _run(command: Sequence[str], signals: _Signals) -> int:
    """Run a command to its end; its exit status."""
    with subprocess.Popen(command) as process:
        signals.process = process
        if signal.SIGTERM in signals.received:  # it came while the process was made
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        signals.process = None
        return status


@contextmanager
def _catch_signals() -> Iterator[_Signals]:
    signals = _Signals()
    old = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, action in old.items():
            signal.signal(number, action)
