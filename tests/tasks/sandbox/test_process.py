"""The sandbox: its isolation, its limits, its end, and the message where there can be none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from c3jax.tasks.sandbox import probe as sandbox_probe
from c3jax.tasks.sandbox import process as sandbox
from c3jax.tasks.sandbox.isolation import check_isolation
from c3jax.tasks.sandbox.process import Clock, Limits, Lost

ROOT = str(Path(sandbox.__file__).parents[3])
PROBE = ("c3jax.tasks.sandbox.probe", ["c3jax.tasks.code.channel"])


def test_the_sandbox_holds_here():
    check_isolation()


def test_the_probe_gets_through_where_nothing_isolates_it(tmp_path):
    # Only what leaves nothing behind: the attempts are made by this very process.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert sandbox_probe._reaches_network({"port": server.getsockname()[1], "socket": "none"})
    assert sandbox_probe._sees_files({"file": str(tmp_path)})
    assert sandbox_probe._sees_environment({"environment": ["PATH"]})
    assert sandbox_probe._sees_processes({"pid": os.getppid()})
    assert sandbox_probe._takes_descriptors({"open_files": 5})
    assert sandbox_probe._takes_memory({"memory_mb": 1})


@pytest.mark.parametrize("is_contained", [True, False])
def test_a_child_is_lost_for_time_for_output_and_at_its_end(is_contained):
    losses = {"time": b'{"spin": 0}', "output": b'{"flood": 0}', "end": b'{"nothing": 0}'}
    for reason, order in losses.items():
        child = sandbox.start(*PROBE, Limits(output_mb=1), is_contained)
        try:
            sandbox.send(child, order, sandbox.within(30.0))
            with pytest.raises(Lost) as lost:
                while True:
                    sandbox.receive(child, sandbox.within(0.3 if reason == "time" else 30.0))
            assert lost.value.reason == reason
        finally:
            sandbox.stop(child)
            sandbox.stop(child)  # a second time is nothing
        with pytest.raises(ProcessLookupError):
            os.kill(child.process.pid, 0)


def test_a_child_that_does_not_read_costs_its_time_and_no_more():
    child = sandbox.start(*PROBE, Limits())
    try:
        sandbox.send(child, b'{"spin": 0}', sandbox.within(30.0))
        begin = time.monotonic()
        with pytest.raises(Lost) as lost:
            sandbox.send(child, b"x" * (1 << 24), sandbox.within(0.3))
        assert lost.value.reason == "time" and time.monotonic() - begin < 5.0
    finally:
        sandbox.stop(child)


def test_a_sandbox_ends_with_its_caller():
    program = f"""
import os, sys; sys.path.insert(0, {ROOT!r})
from c3jax.tasks.sandbox import process as sandbox
child = sandbox.start({PROBE[0]!r}, {PROBE[1]!r}, sandbox.Limits())
sandbox.send(child, b'{{"stay": 0}}', sandbox.within(30))
sandbox.receive(child, sandbox.within(30))
print(child.first_pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(100):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.05)
    raise AssertionError("it is still there")


def run_without(path: str, program: str) -> str:
    code = f"import sys; sys.path.insert(0, {ROOT!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env={"PATH": path}, capture_output=True, text=True, timeout=60
    )
    return done.stderr.strip().rpartition("\n")[2]


START = """
from c3jax.tasks.sandbox import process as sandbox
sandbox.start("c3jax.tasks.sandbox.probe", ["c3jax.tasks.code.channel"], sandbox.Limits())
"""


def test_a_machine_without_bubblewrap_hears_what_to_install(tmp_path):
    message = run_without(str(tmp_path), START)
    assert message.endswith("expected bubblewrap (install it, or pip install 'c3jax[code]'), found none")


def test_the_message_of_bubblewrap_is_passed_on(tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    message = run_without(str(tmp_path), START)
    assert message.endswith("cannot make one on this machine (No permissions to create new namespace)")


def run_out(order: bytes, budget_s: float, wall_s: float) -> tuple[float, float, float]:
    """Processor seconds, idle seconds and seconds on the wall's clock, until a program's time is over."""
    child = sandbox.start(*PROBE, Limits())
    try:
        sandbox.send(child, order, sandbox.within(30.0))
        clock = Clock([(child, 0.0)], budget_s, wall_s)
        with pytest.raises(Lost) as lost:
            while True:
                sandbox.receive(child, clock.wait)
        assert lost.value.reason == "time"
        return sandbox._measure(clock.children)[0], clock.idle_s, time.monotonic() - clock.begun
    finally:
        sandbox.stop(child)


@pytest.fixture
def crowded():
    """This process and all that it starts share one core with four others."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(4)]
    yield
    os.sched_setaffinity(0, cores)
    for other in others:
        other.kill()
        other.wait()


def test_time_is_processor_time_on_a_machine_that_is_busy(crowded):
    used_s, idle_s, passed_s = run_out(b'{"spin": 0}', 1.0, 60.0)
    assert 0.8 < used_s + idle_s < 2.0 and used_s > 0.8
    assert passed_s > 1.5  # a fifth of a core is its share, or two fifths where another one is free


def test_a_program_that_wants_no_processor_runs_out_of_time_too():
    used_s, idle_s, passed_s = run_out(b'{"stay": 0}', 0.5, 60.0)
    assert used_s < 0.5 <= used_s + idle_s and passed_s < 20.0


def test_a_machine_that_gives_nothing_ends_a_program_in_the_end(crowded):
    _, _, passed_s = run_out(b'{"spin": 0}', 1.0, 1.5)
    assert 1.5 <= passed_s < 20.0


def test_time_is_the_sum_over_all_that_a_program_starts():
    child = sandbox.start("c3jax.tasks.code.candidate", ["c3jax.tasks.code.channel"], Limits())
    try:
        spin = "import os\nfor _ in range(3):\n    if os.fork() == 0: os._exit(min(0, sum(range(4_000_000))))"
        request = ["load", "", "", [f"{spin}\nfor _ in range(3): os.wait()"], True, True]
        sandbox.send(child, json.dumps(request).encode(), sandbox.within(30.0))
        assert json.loads(sandbox.receive(child, sandbox.within(60.0))) == ["value", None, None]
        deadline, is_idle, with_children_s = time.monotonic() + 20.0, False, 0.0
        while not is_idle and time.monotonic() < deadline:  # what has just replied may still be about to wait
            with_children_s, is_idle = sandbox._measure([(child, 0.0)])
        alone_s = time.clock_gettime((~find_last(child.process.pid) << 3) | 2)  # CLOCK_PROCESS_CPUTIME_ID of a process
        assert is_idle and with_children_s > alone_s + 0.05
    finally:
        sandbox.stop(child)


def find_last(pid: int) -> int:
    """The process that a chain of processes ends with."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            return find_last(int(name))
    return pid
