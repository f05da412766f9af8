"""Where the figures of a run go: its own record, and copies for whoever watches.

A tracker is a pair, write(step, row) and close(), and an opener makes it for a run. `jsonl` is the record and is always
there; what else the config names is a copy: where it raises, that costs a printed sentence and the copy, never the run.
"""

from __future__ import annotations

import importlib.util
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from c3jax.run.files import save_whole
from c3jax.run.metrics import Row, open_metrics, to_plain
from c3jax.schema import ConfigError, load_named
from c3jax.types import UserError

RECORD = "jsonl"


class TrackedRun(NamedTuple):
    """The run that a tracker is opened for."""

    path: Path  # its directory
    first_step: int  # the next step to be written; an earlier start has written those before, and may have later ones
    config: dict[str, Any]


class Tracker(NamedTuple):
    """A pair of functions; any pair will do."""

    write: Callable[[int, Row], None]  # a step's figures: numbers, texts, booleans, None and lists of these
    close: Callable[[], object]


Opener = Callable[[TrackedRun], tuple[Callable[[int, Row], None], Callable[[], object]]]


def find_openers(names: Sequence[str]) -> dict[str, Opener]:
    """The trackers that a config names, the record first, whether it is named or not.

    Args:
      names: rows of TRACKERS, or a user's own openers as module:NAME.

    Raises:
      ConfigError: for a name that is given twice or that nothing is found by, or whose package is not installed.
    """
    openers: dict[str, Opener] = {RECORD: TRACKERS[RECORD]}
    for index, name in enumerate(names):
        field = f"trackers.{index}"
        if name in names[:index]:
            raise ConfigError(f"{field}: expected each tracker once, got {name!r} twice")
        openers[name] = load_named(field, name, TRACKERS, lambda found: None if callable(found) else "a function")
        if name == "wandb" and importlib.util.find_spec("wandb") is None:
            raise ConfigError(f"{field}: expected an installed package wandb (pip install 'c3jax[wandb]'), found none")
    return openers


@contextmanager
def open_trackers(
    openers: dict[str, Opener], run: TrackedRun, print_line: Callable[[str], None]
) -> Iterator[Callable[[int, Row], None]]:
    """Open trackers for the length of a block, and give write(step, row), which writes to all of them.

    Of several processes the first alone writes.

    Args:
      openers: from `find_openers`.
      run: what they are opened for.
      print_line: is given a sentence for a copy that raises and is dropped.

    Raises:
      MetricsError: where the record cannot be written; so does write.
    """
    from c3jax.processes import is_first  # with JAX, which an unknown name needs not wait for

    if not is_first():
        yield lambda step, row: None
        return
    copies: dict[str, Tracker] = {}

    def guard(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call gives; where it raises, the copy is dropped."""
        try:
            return call(*arguments)
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            copies.pop(name, None)
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            print_line(f"tracker {name} is dropped, and the run continues without it ({reason})")

    record = Tracker(*openers[RECORD](run))
    for name, opener in openers.items():
        made = None if name == RECORD else guard(name, lambda opener=opener: Tracker(*opener(run)))
        if made is not None:
            copies[name] = made

    def write(step: int, row: Row) -> None:
        record.write(step, row)
        for name, copy in [*copies.items()]:
            guard(name, copy.write, step, {figure: to_plain(value) for figure, value in row.items()})

    try:
        yield write
    finally:
        record.close()
        for name, copy in [*copies.items()]:
            guard(name, copy.close)


# --------------------------------------------------------------------------------------------------------------------
# Those built in


def _open_tensorboard(run: TrackedRun) -> Tracker:
    """The finite numbers as TensorBoard events; what earlier starts wrote of steps to come is voided."""
    # Imported here because it takes a second. SummaryWriter, which puts a thread and a queue between the program and
    # the file, would lose the last steps in a kill and hang on a full disk.
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    except ModuleNotFoundError:
        raise UserError("expected the package tensorboardX (pip install 'c3jax[tensorboard]'), found none") from None

    folder, first_step = run.path / "tensorboard", run.first_step
    folder.mkdir(exist_ok=True)
    # The name has only the second of its making in it: the step keeps a quick resume from writing over what it resumes.
    events = EventsWriter(str(folder / "events"), filename_suffix=f".{first_step}")
    if first_step:  # hides what earlier files have of this step and later
        start = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))
    events.flush()

    def write(step: int, row: Row) -> None:
        numbers = {name: value for name, value in row.items() if type(value) in (int, float) and math.isfinite(value)}
        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        events.flush()

    return Tracker(write, events.close)


def _open_wandb(run: TrackedRun) -> Tracker:
    """A run of Weights & Biases, by its own settings (WANDB_MODE=offline sends nothing); every start has one id."""
    import wandb

    known = run.path / "wandb" / "id"
    if not known.exists():
        save_whole(known, secrets.token_hex(8))
    session = wandb.init(
        dir=str(run.path), config=run.config, name=run.path.name, id=known.read_text(encoding="utf-8"), resume="allow"
    )

    def write(step: int, row: Row) -> None:
        session.log({name: value for name, value in row.items() if value is not None}, step=step, commit=True)

    return Tracker(write, session.finish)


TRACKERS: dict[str, Opener] = {
    RECORD: lambda run: open_metrics(run.path, run.first_step),
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
}
