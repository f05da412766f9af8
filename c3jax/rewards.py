"""Leaf answers to verdicts, and messages to an environment's answers, in worker processes. Host code, no JAX.

One answer is one evaluator call. Calls are counted by the workers that make them, and a worker that dies or
hangs takes one verdict with it and nothing else. Workers are new interpreters that import this module and the
grading function's. They neither fork the caller (JAX keeps threads there) nor run its main module again, as
multiprocessing's workers would.

Chunks of cases go down a pipe, pickled. Lines of JSON come up, [calls begun, verdict or null]: one as the first
case of a chunk begins and one after each case. So the caller knows at which case a worker stopped, and nothing
that a grader might forge is ever unpickled here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from c3jax.tasks.task import make_verdict
from c3jax.types import Problem, UserError, Verdict

Grade = Callable[[Problem, Any], Any]  # for a verdict: (problem, answer) -> a Verdict, or a number in [0, 1]

_START_S = 60.0  # seconds for a worker to import what it needs, on a machine that is busy with other things
_LARGEST_CHUNK = 32  # cases
_MEMORY_BYTES = 2 << 30  # address space of a worker, where the system limits it (Linux)
_WORKER_BYTES = 64 << 20  # that a worker takes, by its own code and a usual task's
# A worker is one of several: thread pools of its own would slow the others, and their stacks count as its memory.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from c3jax.rewards import serve_worker; serve_worker()"


class CallKind(NamedTuple):
    """What is made of calls: records whose fields JSON has. Functions are of a module's top level."""

    record: Callable[..., Any]  # of its fields
    make: Callable[[Any], tuple[Any, ...]]  # of what a call gave; raises TypeError where that will not do
    make_failed: Callable[[Literal["error", "timeout"], str], tuple[Any, ...]]  # of a call that failed, and why


def make_failed_verdict(name: Literal["error", "timeout"], detail: str) -> Verdict:
    """The verdict of an evaluator call that failed."""
    return Verdict(0.0, name, None, detail)


GRADING = CallKind(Verdict, make_verdict, make_failed_verdict)


def check_workers(workers: int) -> None:
    """Check that a machine can hold so many worker processes. Raises UserError with the number that it can hold."""
    cores, memory = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = min(max(64, 8 * cores), max(1, memory // 2 // _WORKER_BYTES))
    if workers > most:
        raise UserError(
            f"workers: expected at most {most} on {cores} cores and {memory / 2**30:.0f} GiB of memory, got {workers:,}"
        )


class Evaluator:
    """A pool of grading processes, open inside a `with` block.

        with Evaluator(find_task("numeric").grade, workers=2) as evaluator:
            verdicts = evaluator.score(problems, answers, budget=len(answers))

    A caller with other work meanwhile submits answers as they come, pumps now and then, and collects in the end.

    Attributes:
      calls: evaluator calls begun so far, as counted by the workers.
    """

    def __init__(self, grade: Grade, workers: int, timeout_s: float = 10.0, kind: CallKind = GRADING) -> None:
        """Take a grading function of an importable module (it is sent by name) and a limit in seconds a call.

        With another kind of calls than grading, answers are whatever the function takes beside a problem, and verdicts
        the records of that kind.

        Raises:
          ValueError: there is no worker, or no time.
          UserError: the function cannot be sent by name.
        """
        if workers < 1 or not timeout_s > 0.0:
            raise ValueError(f"expected at least 1 worker and a timeout above 0 s, got {workers} and {timeout_s}")
        self.calls = 0
        try:
            self._grade = pickle.dumps((grade, kind))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(f"the grader: expected a function at the top level of a module, got {grade!r}") from error
        self._kind = kind
        self._worker_count = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._work = _Work()

    def __enter__(self) -> Evaluator:
        """Start the workers; raises RuntimeError if one cannot start or cannot import the grading function."""
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self.close)
            for _ in range(self._worker_count):
                self._workers.append(_launch_worker(self._grade))
            for worker in self._workers:
                _await_start(worker)
            cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and all that they have started in their process groups."""
        for worker in self._workers:
            _end_worker(worker)
        self._workers = []
        self._work = _Work()

    def score(self, problems: Sequence[Problem], answers: Sequence[Any], budget: int) -> list[Any]:
        """Grade each answer against the problem beside it: one evaluator call an answer, verdicts in order.

        A call that raises, runs out of memory or whose worker dies is an "error", one that takes longer than
        the timeout a "timeout"; both score 0. An exception out of the grading, Ctrl-C included, closes the evaluator.

        Args:
          budget: evaluator calls allowed; checked before any is made.

        Raises:
          ValueError: there are more answers than the budget allows, or not one for each problem.
          RuntimeError: the evaluator is not open, or a worker cannot be replaced.
        """
        if self._work.answers:
            raise RuntimeError("answers that were submitted before are not collected yet")
        self.submit(problems, answers, budget)
        return self.collect()

    def submit(self, problems: Sequence[Problem], answers: Sequence[Any], budget: int) -> None:
        """Take answers to be graded after those submitted before, and hand out what idle workers can take.

        Args:
          problems, answers: as for `score`.
          budget: evaluator calls allowed, of these answers alone.

        Raises:
          ValueError, RuntimeError: as `score`.
        """
        if len(answers) > budget:
            raise ValueError(f"{len(answers)} answers need as many evaluator calls, and the budget is {budget}")
        if len(problems) != len(answers):
            raise ValueError(f"expected an answer for each of {len(problems)} problems, got {len(answers)}")
        if not self._workers:
            raise RuntimeError("the evaluator is not open: use it in a with block")
        work = self._work
        work.waiting.extend(range(len(work.answers), len(work.answers) + len(answers)))
        work.problems.extend(problems)
        work.answers.extend(answers)
        self.pump(0.0)

    def pump(self, seconds: float) -> bool:
        """Hand out answers and take verdicts in, waiting at most so long for one; False if no answer is out."""
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self.close)  # replies still on their way must not meet a later call
            self._hand_out()
            if any(worker.cases for worker in self._workers):
                self._receive(seconds)
                self._hand_out()
            cleanup.pop_all()
        return any(worker.cases for worker in self._workers)

    def collect(self) -> list[Any]:
        """Wait for the verdicts of all answers submitted since the last time, and give them in that order."""
        while self.pump(_START_S):
            pass
        work, self._work = self._work, _Work()
        return [work.verdicts[index] for index in range(len(work.answers))]

    def _hand_out(self) -> None:
        for worker in self._workers:
            if self._work.waiting and not worker.cases:
                self._send_chunk(worker)

    def _send_chunk(self, worker: _Worker) -> None:
        # Chunks shrink as the work runs out, so that no worker is left alone with many cases.
        work = self._work
        size = min(_LARGEST_CHUNK, max(1, len(work.waiting) // (4 * len(self._workers))))
        worker.cases.extend(work.waiting.popleft() for _ in range(size))
        worker.has_begun = False
        worker.deadline = time.monotonic() + self._timeout_s
        cases = [(work.problems[index], work.answers[index]) for index in worker.cases]
        _send(worker, pickle.dumps((cases, size * self._timeout_s + _START_S)))

    def _receive(self, seconds: float) -> None:
        """Wait for replies, the next deadline or so long; put verdicts in order, and replace workers that are lost."""
        busy = [worker for worker in self._workers if worker.cases]
        patience_s = min(seconds, min(worker.deadline for worker in busy) - time.monotonic())
        ready = wait([worker.replies.fileno() for worker in busy], timeout=max(0.0, patience_s))
        now = time.monotonic()  # replacing one worker below must not use up the time of the others
        for worker in busy:
            if worker.replies.fileno() in ready:
                if not self._read_replies(worker):
                    self._replace(worker, "error")
            elif now >= worker.deadline:
                self._replace(worker, "timeout")

    def _read_replies(self, worker: _Worker) -> bool:
        """Read what a worker has sent so far; False if it will send no more."""
        received = os.read(worker.replies.fileno(), 1 << 16)
        *lines, worker.partial_line = (worker.partial_line + received).split(b"\n")
        for line in lines:
            calls, verdict = json.loads(line)
            self.calls += calls - worker.calls
            worker.calls = calls
            worker.has_begun = True
            worker.deadline = time.monotonic() + self._timeout_s
            if verdict is not None:
                self._work.verdicts[worker.cases.popleft()] = self._kind.record(*verdict)
        return received != b""

    def _replace(self, worker: _Worker, name: Literal["error", "timeout"]) -> None:
        """Put a new worker in the place of a lost one; the case it was at gets the verdict, the others wait again."""
        _end_worker(worker)
        details = {
            "error": f"the grading process died (exit status {worker.process.returncode})",
            "timeout": f"no verdict within {self._timeout_s:g} s",
        }
        if worker.has_begun and worker.cases:
            self._work.verdicts[worker.cases.popleft()] = self._kind.make_failed(name, details[name])
        self._work.waiting.extend(worker.cases)
        replacement = _launch_worker(self._grade)
        self._workers[self._workers.index(worker)] = replacement
        _await_start(replacement)


def compute_disagreement(verdicts: Sequence[Verdict]) -> float:
    """Compute the share of answers on which the task's second rule disagrees with the verdict."""
    disagreeing = [verdict for verdict in verdicts if verdict.second not in (None, verdict.verdict == "correct")]
    return len(disagreeing) / len(verdicts)


@dataclass(eq=False)
class _Work:
    """Answers that were submitted and not collected yet; an answer is known by its index among them."""

    problems: list[Problem] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    verdicts: dict[int, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    replies: IO[bytes]
    partial_line: bytes = b""
    calls: int = 0  # evaluator calls that it says it has begun
    cases: deque[int] = field(default_factory=deque)  # indices of the answers it was sent and has not returned
    has_begun: bool = False  # the first case of its chunk
    deadline: float = 0.0  # for the first of its cases, on the monotonic clock


def _launch_worker(grade: bytes) -> _Worker:
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
        # In a session of its own, a worker does not see the terminal's Ctrl-C, and can be ended with all it started.
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    worker = _Worker(process, process.stdin, process.stdout)
    _send(worker, grade)
    return worker


def _send(worker: _Worker, request: bytes) -> None:
    # A worker that has died cannot be written to; the end of its replies is where that is dealt with.
    with contextlib.suppress(BrokenPipeError):
        worker.requests.write(request)
        worker.requests.flush()


def _await_start(worker: _Worker) -> None:
    if not wait([worker.replies.fileno()], timeout=_START_S):
        raise RuntimeError(f"a grading process was not ready within {_START_S:g} s")
    if os.read(worker.replies.fileno(), 1) == b"":
        raise RuntimeError("a grading process died as it started; standard error shows why")


def _end_worker(worker: _Worker) -> None:
    # Before wait(), which would free the process's number for another to take.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    worker.replies.close()
    with contextlib.suppress(BrokenPipeError):  # of a request that it did not live to read
        worker.requests.close()


def serve_worker() -> None:
    """Grade what comes down standard input until it closes: the whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    requests, replies = open(os.dup(0), "rb"), open(os.dup(1), "wb")
    # Neither a grader that prints nor a program that it runs may get at the two pipes.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    threading.Thread(target=_die_with_caller, args=(requests.fileno(),), daemon=True).start()
    grade, kind = pickle.load(requests)
    replies.write(b"!")  # ready
    replies.flush()
    calls = 0
    with contextlib.suppress(EOFError):
        # Libraries that keep what they have computed grow; a new worker begins small.
        while not _has_grown():
            cases, limit_s = pickle.load(requests)
            # For a grader stuck in C code that lets no other thread run, when no caller is left to end it.
            faulthandler.dump_traceback_later(limit_s, exit=True, file=nowhere)
            verdict = None
            for problem, answer in cases:
                calls += 1
                _reply(replies, calls, verdict)
                verdict = _call_grader(grade, kind, problem, answer)
            _reply(replies, calls, verdict)
            faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    if sys.platform == "linux":
        # The soft limit alone, so that a sandbox that is started here may set its own.
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        is_stricter = hard != resource.RLIM_INFINITY and hard < _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (hard if is_stricter else _MEMORY_BYTES, hard))


def _has_grown() -> bool:
    # Not the peak that getrusage gives: Linux hands down the caller's, and a trainer's is larger than any worker's.
    if sys.platform != "linux":
        return False
    resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return resident_pages * resource.getpagesize() > _MEMORY_BYTES // 2


def _die_with_caller(descriptor: int) -> None:
    """Wait until the caller's end is closed, and end this process group whatever it is doing."""
    poller = select.poll()
    poller.register(descriptor, 0)  # no events asked for: only the hang-up is reported
    poller.poll()
    os.killpg(0, signal.SIGKILL)


def _reply(replies: IO[bytes], calls: int, verdict: tuple[Any, ...] | None) -> None:
    replies.write(json.dumps([calls, verdict]).encode() + b"\n")
    replies.flush()


def _call_grader(grade: Grade, kind: CallKind, problem: Problem, answer: Any) -> tuple[Any, ...]:
    caller = os.getpid()
    try:
        return kind.make(grade(problem, answer))
    except BaseException as error:  # whatever an answer sets off in a grader, of a user's own too, is that answer's own
        return kind.make_failed("error", f"{type(error).__name__}: {error}"[:500])
    finally:
        if os.getpid() != caller:
            os._exit(0)  # a child that the grader forked and let run on into this function
