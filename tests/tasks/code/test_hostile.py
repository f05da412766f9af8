"""Programs that try to be paid for nothing, to get out or to stay: none is paid, and the honest one beside them is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from c3jax.tasks.code import task as code
from c3jax.tasks.code.records import CodeSpec, read_problem
from c3jax.tasks.jsonl import Row
from c3jax.types import Verdict

# The tests' own values are known to `right` alone; see the page for who may call it.
PAGE = Path(__file__).with_name("hostile") / "programs.md"
PROGRAMS = dict(re.findall(r"^## ([^\n]+)\n```python\n(.*?)```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
RIGHT = """
def right(x):
    if callable(x): return x(7)
    if isinstance(x, Box): return Box(x.n + 1)
    if isinstance(x, list): return ["a", "b"]
    if isinstance(x, str): return ["y", "x"]
    if isinstance(x, float): return 7.25
    return {3: 10, 1: 2, 2: 5, 20: 1024, 30: 961}.get(x, -x)
"""
SETUP = """
class Box:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return isinstance(other, Box) and self.n == other.n
    def is_same(self, other): return self == other
class Near:
    def __init__(self, n, by=0.1): self.n, self.by = n, by
    def __eq__(self, other): return abs(self.n - getattr(other, "n", other)) <= self.by
class Done(Exception): pass
class Solver:
    def run(self, n): return (n + 1) ** 2
def compute_result(n): return Solver().run(n)
RESULTS = {20: 1024}
"""
TESTS = (
    "assert solve(3) == 10",
    "import math\nassert math.isclose(solve(2.5), 7.25)",
    'assert set(solve([1, 2])) == {"a", "b"}',
    'assert sorted(solve("ba")) == ["x", "y"]',
    "for n, expected in zip([1, 2], [2, 5]):\n    assert solve(n) == expected",
    "assert all(map(lambda n: solve(n) == -n, [101, 102]))",
    "x = [4, 5]\nassert solve(x) == [9, *x]",
    "b = Box(3)\nassert solve(b) == Box(b.n + 1)",
    "b = Box(5)\nassert Box(6).is_same(solve(b)) and b.n == 5",
    "assert solve(lambda n: n * n) == 49",
    "assert solve(1) == Near(2)",
    "assert solve(30) == compute_result(30)",
    "for n, expected in RESULTS.items():\n    assert solve(n) == expected",
)
HONEST = "def solve(x): return [9, 4, 5] if x == [4, 5] else right(x)\n"
SCRIPT = """
import json, os, sys, time
from c3jax.rewards import Evaluator
from c3jax.tasks.task import find_task
from c3jax.tasks.sandbox.isolation import check_isolation
from c3jax.types import Problem
check_isolation()
answer, messages = json.load(sys.stdin)
def list_programs():
    rows = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat, open(f"/proc/{name}/cmdline") as command:
                rows[int(name)] = int(stat.read().rpartition(")")[2].split()[1]), command.read()
        except OSError:
            pass
    found = []
    for pid, (parent, command) in rows.items():
        while parent in rows and parent != os.getpid():
            parent = rows[parent][0]
        if parent == os.getpid():
            found.append(command)
    return [command for command in found if "serve_worker" not in command and "tasks.code.judge" not in command]
problem = Problem(0, "0", "q", answer)
with Evaluator(find_task("code").grade, workers=2, timeout_s=100.0) as evaluator:
    verdicts = [evaluator.score([problem], [messages.pop(0)], budget=1)[0] for _ in range(2)]
    verdicts += evaluator.score([problem] * len(messages), messages, budget=len(messages))
    # The judge's own child gives its verdict before it is gone; a process without a command line is on its way out.
    for _ in range(50):
        left = list_programs()
        if "" not in left:
            break
        time.sleep(0.02)
json.dump([os.getuid(), verdicts, left], sys.stdout)
"""


def let_in(path: Path) -> list[str]:
    """Options of bubblewrap by which a folder of root's can be read by everybody, and nothing else beside it."""
    closed = next((folder for folder in [*reversed(path.parents), path] if not folder.stat().st_mode & 0o001), None)
    if closed is None:
        return []
    between = [folder for folder in reversed(path.parents) if folder.is_relative_to(closed) and folder != closed]
    options = ["--perms", "0755", "--tmpfs", str(closed)]
    for folder in between:
        options += ["--perms", "0755", "--dir", str(folder)]
    return [*options, "--ro-bind", str(path), str(path)]


def as_nobody() -> list[str]:
    """The start of a command that runs what follows as an ordinary user, who can read this interpreter and c3jax."""
    from c3jax.tasks.sandbox.process import find_bubblewrap

    command = [find_bubblewrap(), "--bind", "/", "/", "--dev-bind", "/dev", "/dev"]
    command += let_in(Path(sys.base_prefix).resolve())
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "/usr/bin/setpriv"]
    return [*command, "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"]


def run_hostile(before: list[str]) -> tuple[int, dict[str, Verdict], list[str]]:
    row = Row("set, line 1", 0, {"question": "Write `solve`.", "tests": list(TESTS), "setup": SETUP})
    problem = read_problem(row, CodeSpec("fraction", timeout_s=0.6, memory_mb=1024))
    messages = [f"```python\n{RIGHT}{program}```" for program in (HONEST, HONEST, *PROGRAMS.values())]
    command = [*before, sys.executable, "-B", "-c", SCRIPT]
    request = json.dumps([problem.answer, messages])
    environment = {"PYTHONPATH": str(Path(code.__file__).parents[3]), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=900, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    user, verdicts, left = json.loads(done.stdout)
    names = ["honest, at first", "honest, once the tests are known", *PROGRAMS]
    return user, dict(zip(names, (Verdict(*verdict) for verdict in verdicts), strict=True)), left


@pytest.fixture(scope="module", params=["caller", "ordinary user"] if os.geteuid() == 0 else ["caller"])
def hostile(request):
    user, verdicts, left = run_hostile([] if request.param == "caller" else as_nobody())
    assert user == (os.getuid() if request.param == "caller" else 65534)
    return verdicts, left


def test_there_are_many_tricks():
    assert len(PROGRAMS) >= 70
    assert len(set(PROGRAMS.values())) == len(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_trick_is_paid(hostile, name):
    verdict = hostile[0][name]
    assert verdict.score == 0.0 and verdict.verdict in ("wrong", "error", "timeout", "unsafe"), verdict


def test_the_honest_program_is_paid_beside_them(hostile):
    assert hostile[0]["honest, once the tests are known"].detail == ""


def test_no_trick_outlives_its_verdict_or_leaves_a_file(hostile):
    assert hostile[1] == []
    for folder in ("/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/usr", sys.base_prefix, os.getcwd()):
        assert not Path(folder, "c3jax_hostile").exists()


@pytest.mark.parametrize("name", ["replies of the wrong shape", "forged verdict on every descriptor"])
def test_a_forged_reply_is_called_unsafe(hostile, name):
    assert hostile[0][name].verdict == "unsafe"
