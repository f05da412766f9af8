"""Ctrl-C and SIGTERM: stop after the step where there is one, and at once where there is none, in C++ code too.

Python handles a signal between two of its own instructions, and XLA may compile for a minute without one. So a thread
hears of signals as well, from the file descriptor that C writes their numbers to.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED, TERMINATED = 130, 75  # exit codes, after Ctrl-C and after SIGTERM: what stopped may be started again
_PATIENCE_S = 2.0  # in which a process that is told to stop at once is to come out of its last call


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


class Interrupts:
    """What signals have asked of this process. The main thread and the watching one each note all of them."""

    def __init__(self) -> None:
        self.is_gentle = False  # the first signal lets a step come to its end
        self.handled: list[int] = []
        self.watched: list[int] = []

    @property
    def code(self) -> int:
        """The exit code of a process that the signals so far have stopped; 0 where none has come."""
        numbers = (*self.handled, *self.watched)
        return STOPPED if signal.SIGINT in numbers else TERMINATED if numbers else 0

    def is_stopping(self) -> bool:
        """Whether a signal has come."""
        return self.code != 0

    def is_urgent(self) -> bool:
        """Whether a signal has come that waits for nothing."""
        if not self.is_gentle:
            return self.is_stopping()
        return signal.SIGINT in (*self.handled[1:], *self.watched[1:])

    def check(self) -> None:
        """Raise KeyboardInterrupt where one is due: Python drops those that a garbage collector's callback raises."""
        if self.is_urgent():
            raise KeyboardInterrupt if self.code == STOPPED else Terminated


@contextmanager
def exit_in_imports() -> Iterator[None]:
    """Before `catch_signals`, SIGTERM ends the process at once with its exit code, and so does SIGINT in an import.

    Nothing is raised there, for what an import or a garbage collector's callback raises is lost, or becomes another
    error. Elsewhere SIGINT is Python's KeyboardInterrupt.
    """

    def leave(code: int) -> None:
        os.write(2, b"c3jax: stopped\n")
        os._exit(code)

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            leave(TERMINATED)
        while frame is not None:
            if frame.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib"):
                leave(STOPPED)
            frame = frame.f_back
        raise KeyboardInterrupt

    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    is_main = threading.current_thread() is threading.main_thread()
    changed = {
        number: default for number, default in defaults.items() if is_main and signal.getsignal(number) is default
    }
    for number in changed:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, default in changed.items():
            signal.signal(number, default)


def leave_others(code: int) -> None:
    """Where this is one of several processes, end it without what Python does at its end, which waits for the others.

    The first holds the connection, and whoever loses that aborts, so it goes last: all are told to stop at once.

    Args:
      code: the exit code.
    """
    jax = sys.modules.get("jax")  # who has not imported it has no others
    if jax is None or not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(_PATIENCE_S + 1.0)
    os._exit(code)


@contextmanager
def catch_signals(print_line: Callable[[str], None]) -> Iterator[Interrupts]:
    """Catch SIGINT and SIGTERM: they raise KeyboardInterrupt, or, once `is_gentle` is set, the first does not.

    Where the process then does not come out of a call within 2 s, it exits with the signals' code. Threads other than
    the main one cannot catch signals; there nothing ever asks to stop.

    Args:
      print_line: is given the sentence that says what is waited for.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(number: int, frame: FrameType | None) -> None:
        interrupts.handled.append(number)
        interrupts.check()

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    is_over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reader, interrupts, is_over, print_line), daemon=True)
    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    old_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield interrupts
    finally:
        is_over.set()
        signal.set_wakeup_fd(old_descriptor)
        for number, action in old.items():
            signal.signal(number, action)
        writer.close()
        watcher.join()
        reader.close()


def _watch(
    reader: socket.socket, interrupts: Interrupts, is_over: threading.Event, print_line: Callable[[str], None]
) -> None:
    while numbers := reader.recv(64):
        interrupts.watched += [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
        if interrupts.is_urgent():
            if not is_over.wait(_PATIENCE_S):
                print("c3jax: stopped", file=sys.stderr, flush=True)
                leave_others(interrupts.code)
                os._exit(interrupts.code)
        elif interrupts.is_stopping():
            print_line("stopping after this step, with a checkpoint (Ctrl-C again: at once)")
