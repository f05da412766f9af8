"""Proof, on this machine and as this user, that the sandbox isolates and limits what runs in it. Host code."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import tempfile
from collections.abc import Iterator

from c3jax.tasks.code import channel as code_channel
from c3jax.tasks.sandbox import probe as sandbox_probe
from c3jax.tasks.sandbox import process as sandbox
from c3jax.tasks.sandbox.process import Child, Limits, Lost
from c3jax.types import UserError

_PATIENCE_S = 60.0  # on a machine that is busy with other things
_LIMITS = Limits(cpu_s=0.0, memory_mb=512, output_mb=2)


def check_isolation() -> None:
    """Try all that the sandbox is to keep out; takes about 3 s.

    Network, files, environment, other processes, rights, the read-only system, size of files, memory, open files and
    number of processes are tried from inside, by one program; processor time, wall time, output and the end of all
    that a program has started by one program each.

    Raises:
      UserError: a sandbox cannot be made, or something gets through; it names what.
    """
    with _order("spin") as spinning:  # its processor time runs while the others are tried
        breaches = _try_from_inside()
        with _order("flood") as flooding:
            breaches += [] if _is_lost(flooding, "output", _PATIENCE_S) else ["output"]
        breaches += [] if _ends_all() else ["wall time"]
        breaches += [] if _is_lost(spinning, "end", _PATIENCE_S) else ["processor time"]
    if breaches:
        raise UserError(f"the sandbox: expected it to hold on this machine, got through: {', '.join(breaches)}")


@contextlib.contextmanager
def _order(order: str, facts: object = None) -> Iterator[Child]:
    child = sandbox.start(sandbox_probe.__name__, [code_channel.__name__], _LIMITS)
    try:
        try:
            sandbox.send(child, json.dumps({order: facts}).encode(), sandbox.within(_PATIENCE_S))
        except Lost as lost:
            raise UserError("the sandbox: expected a program to run in it, but it ended at once") from lost
        yield child
    finally:
        sandbox.stop(child)


def _try_from_inside() -> list[str]:
    name = secrets.token_hex(8)
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local, tempfile.NamedTemporaryFile() as file:
        server.bind(("127.0.0.1", 0))
        local.bind("\0" + name)
        server.listen()
        local.listen()
        own = {"PYTHONHASHSEED", "OPENBLAS_NUM_THREADS", "PWD", "LC_CTYPE"}  # ours, bubblewrap's and Python's
        facts = {
            "port": server.getsockname()[1],
            "socket": name,
            "file": os.path.realpath(file.name),
            "environment": sorted(set(os.environ) - own),
            "pid": os.getpid(),
            **_LIMITS._asdict(),
        }
        with _order("try", facts) as child:
            try:
                return json.loads(sandbox.receive(child, sandbox.within(_PATIENCE_S)))
            except Lost as lost:
                reason = f"the sandbox: expected its probe to conclude, but it was lost ({lost.reason})"
                raise UserError(reason) from lost


def _ends_all() -> bool:
    """Whether a program's time ends, and with it all that it started: each process holds the pipe's other end open."""
    with _order("stay") as child, os.fdopen(os.dup(child.replies), "rb", buffering=0) as pipe:
        try:
            has_begun = sandbox.receive(child, sandbox.within(_PATIENCE_S)) == b"!"
        except Lost:
            return False
        return has_begun and _is_lost(child, "time", 0.1) and _is_over(child, pipe.fileno())


def _is_over(child: Child, pipe: int) -> bool:
    sandbox.stop(child)
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while poller.poll(0):
        if not os.read(pipe, 1 << 16):
            return True
    return False


def _is_lost(child: Child, reason: str, patience_s: float) -> bool:
    wait = sandbox.within(patience_s)
    try:
        while True:
            sandbox.receive(child, wait)
    except Lost as lost:
        return lost.reason == reason
