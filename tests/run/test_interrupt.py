"""Signals: the first lets a step end, the second does not, and neither waits for C++."""

import signal
import subprocess
import sys
import time

import pytest

BEGIN = """
import gc, hashlib, os, signal, sys, threading, time
from c3jax.run.interrupt import catch_signals
def send(number, *seconds):
    for second in seconds:
        threading.Timer(second, os.kill, (os.getpid(), number)).start()
def compile_for_a_minute():  # holds the main thread outside of Python
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
def say(line):  # at once, where print writes a line and its end apart
    os.write(1, f"{line}\\n".encode())
def wait(is_over):
    while not is_over():
        time.sleep(0.01)
with catch_signals(say) as interrupts:
"""


def run(body: str) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    done = subprocess.run([sys.executable, "-c", BEGIN + lines], capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_a_step_end(number):
    done, _ = run(
        f"interrupts.is_gentle = True\nsend({int(number)}, 0)\nwait(interrupts.is_stopping)\nsay('a checkpoint')"
    )
    assert done.returncode == 0 and done.stderr == ""
    # The sentence comes from another thread, before or after what the run itself prints.
    lines = done.stdout.splitlines()
    assert sorted(lines) == ["a checkpoint", "stopping after this step, with a checkpoint (Ctrl-C again: at once)"]


def test_the_second_ctrl_c_is_heard_at_once():
    done, _ = run("interrupts.is_gentle = True\nsend(signal.SIGINT, 0, 0.5)\nwait(lambda: False)")
    assert done.returncode != 0 and done.stderr.endswith("KeyboardInterrupt\n")


def test_before_the_first_step_the_first_is():
    done, _ = run("send(signal.SIGTERM, 0.1)\nwait(lambda: False)")
    assert done.returncode != 0 and done.stderr.endswith("interrupt.Terminated\n")


def test_one_that_python_drops_is_raised_again():
    body = """class Cell: pass
cell = Cell()
cell.cell = cell
def drop(phase, info):
    send(signal.SIGINT, 0)
    wait(lambda: False)
gc.callbacks.append(drop)
gc.collect()
gc.callbacks.clear()
print('lost')
interrupts.check()"""
    done, _ = run(body)
    assert (
        done.stdout == "lost\n" and "Exception ignored" in done.stderr and done.stderr.endswith("KeyboardInterrupt\n")
    )


def test_a_compile_is_not_waited_for():
    done, seconds = run("send(signal.SIGINT, 0.1)\ncompile_for_a_minute()")
    assert done.returncode == 130 and done.stderr == "c3jax: stopped\n" and seconds < 30


@pytest.mark.parametrize(("process", "least"), [(0, 1.0), (1, 0.0)])
def test_of_several_processes_the_first_goes_last(process, least):
    code = f"""
import atexit, sys, time, types
from c3jax.run import interrupt
interrupt._PATIENCE_S = 0.0
atexit.register(print, "waits for the others")
interrupt.leave_others(75)  # there are none
others = types.SimpleNamespace(is_initialized=lambda: True)
sys.modules["jax"] = types.SimpleNamespace(distributed=others, process_index=lambda: {process})
print("alone", flush=True)
interrupt.leave_others(75)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (75, "alone\n")
    assert time.monotonic() - began >= least


def test_afterwards_signals_do_what_they_did():
    code = BEGIN + "    pass\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
