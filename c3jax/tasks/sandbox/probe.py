"""What the sandbox is tried with: a program that attempts what no program may do. Runs inside a sandbox."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import time
from typing import Any

from c3jax.tasks.code.channel import Channel, read, write

_NEW_USER = 0x10000000  # CLONE_NEWUSER
_MB = 1 << 20


def main() -> None:
    """Do what one line of JSON asks: {"try": facts of the host} is answered with what it got through."""
    channel = Channel()
    order, facts = next(iter(read(channel.receive()).items()))
    if order == "try":
        channel.send(write([name for name, attempt in _ATTEMPTS.items() if attempt(facts)]))
    elif order == "spin":
        while True:
            pass
    elif order == "flood":
        while True:
            os.write(channel.outgoing, bytes(_MB))
    elif order == "stay":
        for _ in range(2):
            if os.fork() == 0:
                os.setsid()
        channel.send("!")
        time.sleep(600)


def _reaches_network(facts: dict[str, Any]) -> bool:
    for family, address in ((socket.AF_INET, ("127.0.0.1", facts["port"])), (socket.AF_UNIX, "\0" + facts["socket"])):
        with socket.socket(family) as client, contextlib.suppress(OSError):
            client.settimeout(1.0)
            client.connect(address)
            return True
    return False


def _sees_files(facts: dict[str, Any]) -> bool:
    return any(os.path.exists(path) for path in (facts["file"], "/etc/passwd", "/proc/self", "/sys/kernel"))


def _sees_environment(facts: dict[str, Any]) -> bool:
    return not set(os.environ).isdisjoint(facts["environment"])


def _sees_processes(facts: dict[str, Any]) -> bool:
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return False
    return True


def _has_rights(facts: dict[str, Any]) -> bool:
    library = ctypes.CDLL(None)
    changes = [library.setuid(0), library.setgid(0), library.unshare(_NEW_USER)]
    changes.append(library.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    return 0 in changes or 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) or bool(os.getgroups())


def _writes(facts: dict[str, Any]) -> bool:
    for folder in ("/", "/usr", "/dev", "/dev/shm", "/libraries", "/libraries/numpy", sys.base_prefix):
        with contextlib.suppress(OSError), open(os.path.join(folder, "c3jax_probe"), "wb"):
            return True
    return False


def _fills_disk(facts: dict[str, Any]) -> bool:
    written = 0
    with contextlib.suppress(OSError):
        for number in range(facts["tmp_mb"] + 2):
            with open(f"/tmp/{number}", "wb") as file:
                written += file.write(bytes(_MB))
    for number in range(facts["tmp_mb"] + 2):
        with contextlib.suppress(OSError):
            os.remove(f"/tmp/{number}")
    with contextlib.suppress(OSError), open("/tmp/large", "wb") as file:
        file.truncate((facts["file_mb"] + 1) * _MB)
        return True
    return written > facts["tmp_mb"] * _MB


def _takes_memory(facts: dict[str, Any]) -> bool:
    library = ctypes.CDLL(None)
    if library.shmget(0, _MB, 0o1600) >= 0 or library.memfd_create(b"probe", 0) >= 0:
        return True
    with contextlib.suppress(MemoryError):
        return bool(bytearray(facts["memory_mb"] * _MB))
    return False


def _takes_descriptors(facts: dict[str, Any]) -> bool:
    opened: list[int] = []
    with contextlib.suppress(OSError):
        while len(opened) <= facts["open_files"]:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    for descriptor in opened:
        os.close(descriptor)
    return len(opened) >= facts["open_files"]


def _takes_processes(facts: dict[str, Any]) -> bool:
    children: list[int] = []
    with contextlib.suppress(OSError):
        while len(children) <= facts["processes"]:
            child = os.fork()
            if child == 0:
                time.sleep(600)
                os._exit(0)
            children.append(child)
    return len(children) >= facts["processes"]


_ATTEMPTS = {
    "network": _reaches_network,
    "files": _sees_files,
    "environment": _sees_environment,
    "other processes": _sees_processes,
    "rights": _has_rights,
    "read-only system": _writes,
    "size of files": _fills_disk,
    "memory": _takes_memory,
    "open files": _takes_descriptors,
    "number of processes": _takes_processes,
}
