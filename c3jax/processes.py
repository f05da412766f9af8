"""Several processes of one run, each with devices of its own, on one machine or many.

All of them run the same program on the same config. What they must know of each other goes through `share`: returns and
figures of a step, whether one was told to stop. The first writes the run directory; that must be a folder all can see.

    C3JAX_COORDINATOR=host:port  C3JAX_PROCESSES=N  C3JAX_PROCESS=i    processes that are started by hand
    C3JAX_DISTRIBUTED=1                                                TPU slices, Slurm, Open MPI: JAX finds the rest
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from c3jax.types import LostError, UserError

_HEARTBEAT_S = 30  # without a word of a process, after which the others end


def join_others() -> None:
    """Meet the other processes of this run, where the environment says that there are any.

    Raises:
      UserError: the variables cannot be used, or the others do not come.
    """
    names = ("C3JAX_COORDINATOR", "C3JAX_PROCESSES", "C3JAX_PROCESS")
    coordinator, count, index = (os.environ.get(name, "") for name in names)
    options: dict[str, Any] = {"heartbeat_timeout_seconds": _HEARTBEAT_S}
    if coordinator or count or index:
        if not (coordinator and count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise UserError(
                f"{', '.join(names)}: expected host:port, a number of processes and this one's below it, got"
                f" {coordinator or 'none'}, {count or 'none'} and {index or 'none'}"
            )
        options |= {"coordinator_address": coordinator, "num_processes": int(count), "process_id": int(index)}
    elif os.environ.get("C3JAX_DISTRIBUTED") != "1":
        return
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run: {str(error).splitlines()[0]}") from None
    share(None)  # while all are here: later one may wait long for another that still loads its model


@contextmanager
def explain_loss() -> Iterator[None]:
    """Say in one sentence where the run cannot go on because another of its processes is gone.

    Raises:
      LostError: instead of what the runtime raises.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        reason = str(error).splitlines()[0]
        raise LostError(f"{who}: another process of this run is gone; start all again to go on ({reason})") from error


def is_first() -> bool:
    """Whether this process writes."""
    return jax.process_index() == 0


def share(value: Any) -> list[Any]:
    """What every process gives, in their order; each waits here for all. JSON's types."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def share_rows(own: Sequence[int], rows: Sequence[Any]) -> list[Any]:
    """The rows of every process in one list, in the order of their numbers; JSON's types.

    Args:
      own: the numbers of this process's.
      rows: one a number.
    """
    if jax.process_count() == 1:
        return list(rows)
    given = [row for part in share(list(zip(own, rows, strict=True))) for row in part]
    return [row for _, row in sorted(given, key=lambda pair: pair[0])]


def ask_first(call: Callable[[], Any]) -> Any:
    """What a call gives in the first process, which alone makes it. A UserError of its is every process's."""
    if jax.process_count() == 1:
        return call()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": call()}
        except UserError as error:
            outcome = {"error": str(error)}
    outcome = share(outcome)[0]
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]
