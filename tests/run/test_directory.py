"""Run directories: made whole, taken up only by their own config, held by one process."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import pytest

import c3jax
from c3jax.config.file import parse_config
from c3jax.config.run import ConfigError, RunConfig
from c3jax.run.directory import RunDirError, load_run_config, open_run_dir, record_start
from c3jax.run.files import save_whole

COMMAND = ["c3jax", "train", "grün.yaml"]
ROOT = Path(__file__).resolve().parents[2]


def make_config(**changes: Any) -> RunConfig:
    turns = [
        {"name": "plan", "role": "planner", "user": "{question}", "max_tokens": 4},
        {"name": "answer", "role": "solver", "user": "{question} {plan}", "max_tokens": 4},
    ]
    tree = {
        "seed": 11,
        "steps": 5,
        "problems": 4,
        "task": {"kind": "arithmetic"},
        "protocol": {"turns": turns, "question_tokens": 32},
        "model": {"kind": "random"},
        "credit": {"method": "c3", "fan_out": [2, 4], "budget": 8, "normalise": "none"},
        "learner": {"learning_rate": 4e-3},
    }
    return parse_config(tree | changes)


def listing(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() if entry.is_file() else b"" for entry in path.iterdir()}


def test_a_new_run_is_made_and_taken_up_again(tmp_path):
    path, config = tmp_path / "runs" / "one", make_config()
    with open_run_dir(path, config, COMMAND) as run:
        assert run.path == path and not run.is_resumed
        assert sorted(listing(path)) == [".lock", "config.yaml", "manifest.json"]
    before = listing(path)
    with open_run_dir(str(path), make_config(), COMMAND) as run:
        assert run.is_resumed
    assert listing(path) == before
    assert load_run_config(path) == config


def test_the_manifest_says_what_began_the_run(tmp_path):
    open_run_dir(tmp_path, make_config(), COMMAND, facts={"unsafe_no_sandbox": False}).lock.close()
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["c3jax"] == c3jax.__version__ and manifest["seed"] == 11 and manifest["command"] == COMMAND
    assert manifest["unsafe_no_sandbox"] is False
    assert manifest["python"] == ".".join(map(str, sys.version_info[:3])) and manifest["starts"] == []
    names = "jax jaxlib flax optax orbax-checkpoint transformers chex numpy".split()
    installed = {package.name.lower().replace("_", "-"): package.version for package in metadata.distributions()}
    assert manifest["versions"] == {name: installed.get(name) for name in names}
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["devices"] == {
        "backend": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
    }


def test_every_start_is_recorded_with_what_changed(tmp_path):
    with open_run_dir(tmp_path, make_config(), COMMAND) as run:
        record_start(run, 0)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["jax"] = "0.0.1"  # as if an older one had begun the run
    path.write_text(json.dumps(manifest))
    with open_run_dir(tmp_path, make_config(), ["c3jax", "train", "--again"], facts={"unsafe_no_sandbox": True}) as run:
        record_start(run, 40)
    first, second = json.loads(path.read_text())["starts"]
    assert (first["step"], first["changes"]) == (0, {})
    assert second["step"] == 40 and set(second["changes"]) == {"versions", "command", "unsafe_no_sandbox"}
    assert second["changes"]["unsafe_no_sandbox"] is True
    assert second["changes"]["versions"]["jax"] == jax.__version__
    assert second["changes"]["command"] == ["c3jax", "train", "--again"]
    times = [datetime.fromisoformat(start["time"]) for start in (first, second)]
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert timedelta(0) <= datetime.now(UTC) - times[0] < timedelta(minutes=5) and times[0] <= times[1]


def test_a_run_is_extended_by_more_steps_alone(tmp_path):
    open_run_dir(tmp_path, make_config(), COMMAND).lock.close()
    save_whole(tmp_path / "eval" / "after.json", "{}")
    with open_run_dir(tmp_path, make_config(steps=9), COMMAND) as run:
        assert run.is_resumed and run.extended == 5
        record_start(run, 5)
    assert load_run_config(tmp_path) == make_config(steps=9)
    assert sorted(listing(tmp_path / "eval")) == ["step-5.json"]  # after the last step is another step now
    (start,) = json.loads((tmp_path / "manifest.json").read_text())["starts"]
    assert start["changes"] == {"extended_from": 5}
    with open_run_dir(tmp_path, make_config(steps=9), COMMAND) as run:
        assert run.extended is None


def test_what_is_read_again_is_what_the_run_was_last_started_with(tmp_path):
    def open_with(accepts_changes: bool = False, **problems: str) -> None:
        facts = {"inputs": {"problems": problems}}
        with open_run_dir(tmp_path, make_config(), COMMAND, facts=facts, accepts_changes=accepts_changes) as run:
            record_start(run, 0)

    open_with(train="a", test="b")
    open_with(train="a")  # what is not read now is not looked at
    refused = (
        f"run directory {tmp_path}: expected problems train as the run was last started with, got another content"
        " (--accept-changes takes it)"
    )
    with pytest.raises(RunDirError, match="^" + re.escape(refused) + "$"):
        open_with(train="c")
    open_with(accepts_changes=True, train="c")
    assert json.loads((tmp_path / "manifest.json").read_text())["starts"][-1]["changes"] == {
        "inputs": {"problems": {"train": "c"}}
    }
    open_with(train="c")
    with pytest.raises(RunDirError, match="^" + re.escape(refused) + "$"):
        open_with(train="a")


@pytest.mark.parametrize("content", ["", "[]", '{"starts": 3}', '{"seed": 1}'])
def test_a_broken_manifest_is_said(tmp_path, content):
    with open_run_dir(tmp_path, make_config(), COMMAND) as run:
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(RunDirError, match="^manifest .*: expected .*, got something else$"):
            record_start(run, 0)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"steps": 4}, "steps is 5 and not 4"),
        ({"steps": 6, "seed": 12}, "seed is 11 and not 12"),
        ({"learner": {"learning_rate": 1e-3}}, "learner.learning_rate is 0.004 and not 0.001"),
        ({"learner": {"learning_rate": 4e-3, "kl": {"coefficient": 0.5}}}, "learner.kl.coefficient is 0.0 and not 0.5"),
        ({"model": {"kind": "random", "layers": 3}, "seed": 12}, "seed is 11 and not 12"),
        ({"imitation": {"updates": 1, "problems": 2, "learning_rate": 0.1}}, 'imitation is null and not {"updates": 1'),
        (
            {"credit": {"method": "c3", "fan_out": [4, 2], "budget": 8, "normalise": "none"}},
            "credit.fan_out.0 is 2 and not 4",
        ),
    ],
)
def test_another_config_is_refused_with_the_first_field_that_differs(tmp_path, changes, difference):
    open_run_dir(tmp_path, make_config(), COMMAND).lock.close()
    (tmp_path / ".lock").unlink()
    before = listing(tmp_path)
    expected = f"run directory {tmp_path}: holds the run of another config, where {difference}"
    with pytest.raises(RunDirError, match="^" + re.escape(expected) + ".* as here$"):
        open_run_dir(tmp_path, make_config(**changes), COMMAND)
    assert listing(tmp_path) == before


def test_another_kind_of_section_is_a_difference(tmp_path):
    open_run_dir(tmp_path, make_config(), COMMAND).lock.close()
    other = make_config(
        task={"kind": "numeric", "path": "a", "heldout_path": "b"}, model={"kind": "folder", "path": "c"}
    )
    with pytest.raises(RunDirError, match='where task.kind is "arithmetic" and not "numeric" as here$'):
        open_run_dir(tmp_path, other, COMMAND)


def test_a_directory_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RunDirError, match="expected a run or nothing, got a directory with thesis.tex and no run"):
        open_run_dir(tmp_path, make_config(), COMMAND)
    assert listing(tmp_path) == {"thesis.tex": b"all of it"}


@pytest.mark.parametrize(
    "left",
    [
        [],
        [".lock"],
        [".lock", ".manifest.json.0a.partial"],
        [".lock", "manifest.json"],
        [".lock", "manifest.json", ".config.yaml.0b.partial"],
    ],
)
def test_a_run_killed_in_its_making_is_made_again(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("{")
    with open_run_dir(tmp_path, make_config(), COMMAND) as run:
        assert not run.is_resumed
        record_start(run, 0)
    assert load_run_config(tmp_path) == make_config()
    assert sorted(listing(tmp_path)) == [".lock", "config.yaml", "manifest.json"]


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path):
    program = """
import sys
from c3jax.run.files import save_whole
from c3jax.run.directory import RunDirError, load_run_config, open_run_dir
try:
    open_run_dir(sys.argv[1], load_run_config(sys.argv[1]), [])
    print("opened")
except RunDirError as error:
    print(error)
"""

    def ask() -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    with open_run_dir(tmp_path, make_config(), COMMAND):
        sentence = f"run directory {tmp_path}: expected to be alone, but another process is running it\n"
        assert ask() == sentence
        with pytest.raises(RunDirError, match="another process is running it"):
            open_run_dir(tmp_path, make_config(), COMMAND)
    assert ask() == "opened\n"


def test_paths_that_cannot_be_a_run_are_said(tmp_path):
    (tmp_path / "file").write_text("text")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for path, reason in [
        (tmp_path / "file", "expected a directory, got a file"),
        (tmp_path / "file" / "below", f"expected a directory, got one inside the file {re.escape(str(tmp_path))}/file"),
        (tmp_path / ("x" * 300), r"cannot be used \(File name too long\)"),
        (tmp_path / "link", "expected a directory, got a link to nothing"),
    ]:
        with pytest.raises(RunDirError, match=f"^run directory {re.escape(str(path))}: {reason}$"):
            open_run_dir(path, make_config(), COMMAND)
    assert sorted(listing(tmp_path)) == ["file", "link"]


def test_a_disk_that_takes_nothing_is_said(tmp_path):
    """A file size limit of zero stands for the full disk: the same OSError at the same calls."""
    program = """
import resource, signal, sys
import jax
from c3jax.config.file import load_config
from c3jax.run.files import save_whole
from c3jax.run.directory import RunDirError, open_run_dir
config = load_config(sys.argv[1])
jax.devices()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
try:
    open_run_dir(sys.argv[2], config, [])
except RunDirError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
    open_run_dir(sys.argv[2], config, [])
    print("opened")
"""
    open_run_dir(tmp_path / "one", make_config(), COMMAND).lock.close()
    command = [sys.executable, "-c", program, str(tmp_path / "one" / "config.yaml"), str(tmp_path / "two")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert answer == f"run directory {tmp_path / 'two'}: cannot be used (File too large)\nopened\n"


def test_where_there_is_no_run_no_config_is_loaded(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            RunDirError, match=f"^run directory {re.escape(str(path))}: expected a run with a config.yaml"
        ):
            load_run_config(path)
    (tmp_path / "config.yaml").write_text("seed: [")
    for use in (load_run_config, lambda path: open_run_dir(path, make_config(), COMMAND)):
        with pytest.raises(ConfigError, match="not valid YAML"):
            use(tmp_path)


def test_the_manifest_names_the_commit_of_the_checkout_and_whether_it_was_changed(tmp_path):
    """A copy of the package in a repository made for it, so that the answer is known."""
    program = """
import json, sys
from c3jax.run.directory import _describe_checkout
print(json.dumps(_describe_checkout()))
"""
    package = tmp_path / "c3jax"
    shutil.copytree(ROOT / "c3jax", package, ignore=shutil.ignore_patterns("__pycache__"))

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *who, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    def ask(environment: dict[str, str]) -> Any:
        command = [sys.executable, "-B", "-c", program]
        answer = subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return json.loads(answer.stdout)

    assert ask({}) is None
    git("init", "-q")
    (tmp_path / "other.txt").write_text("another project's checkout around an installed package")
    git("add", "other.txt")
    git("commit", "-q", "-m", "other")
    assert ask({}) is None
    git("add", "c3jax")
    git("commit", "-q", "-m", "package")
    commit = git("rev-parse", "HEAD")
    assert ask({}) == {"commit": commit, "is_dirty": False}
    (package / "new.py").write_text("")
    assert ask({}) == {"commit": commit, "is_dirty": True}
    assert ask({"PATH": str(tmp_path)}) is None  # no git to be found
