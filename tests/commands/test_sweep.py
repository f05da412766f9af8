"""Sweeps: a real one that is stopped, killed and started again, and its rules with a stand-in for the program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from c3jax import cli
from c3jax.commands import terminal
from c3jax.commands.sweep import Sweep, name_cell, run_sweep
from c3jax.config.overrides import read_choices
from c3jax.run.jobs import parse_seeds
from c3jax.types import UserError
from tests.tiny_run import TREE

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
CONFIG: dict[str, Any] = TREE | {"steps": STEPS, "evaluation": {"samples": 0}, "checkpoint": {"every": 1}}
WORDS = ["sweep", "tiny.yaml", "--seeds", "0:2", "--credit.method", "c3,magrpo", "--out", "s"]
CELLS = ("credit.method=c3", "credit.method=magrpo")
RUNS = [f"s/{cell}/seed-{seed}" for seed in (0, 1) for cell in CELLS]


class Swept(NamedTuple):
    """The folder of a sweep, and what its command printed each time that it was started."""

    folder: Path
    stopped: tuple[int, str]
    finished: tuple[int, str]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Swept:
    """A sweep that Ctrl-C stops in its first run, SIGKILL then ends there, and the third start finishes."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu", "COLUMNS": "80"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "c3jax.cli", *WORDS]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    with start() as process:
        _wait_for_checkpoint(folder / RUNS[0], 1)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
        stopped = process.communicate(timeout=120)[0]
        code = process.returncode
    with start() as process:
        _wait_for_checkpoint(folder / RUNS[0], _find_newest(folder / RUNS[0]) + 1)
        os.killpg(process.pid, signal.SIGKILL)
    with start() as process:
        finished = process.communicate(timeout=300)[0]
    return Swept(folder, (code, stopped), (process.returncode, finished))


def _find_newest(run: Path) -> int:
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _wait_for_checkpoint(run: Path, step: int) -> None:
    end = time.monotonic() + 120
    while _find_newest(run) < step:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_every_combination_is_a_run_with_the_config_of_its_command(swept):
    assert swept.finished[0] == 0
    assert sorted(str(path.parent.relative_to(swept.folder)) for path in swept.folder.rglob("config.yaml")) == sorted(
        RUNS
    )
    for run, (method, fan_out, seed) in zip(
        RUNS, [("c3", [2, 2], 0), ("magrpo", [4, 1], 0), ("c3", [2, 2], 1), ("magrpo", [4, 1], 1)], strict=True
    ):
        config = yaml.safe_load((swept.folder / run / "config.yaml").read_text())
        # A method brings its own draws, of the same budget.
        assert (config["credit"]["method"], config["credit"]["fan_out"], config["seed"]) == (method, fan_out, seed)
        assert config["credit"]["budget"] == 4
        rows = [json.loads(line) for line in (swept.folder / run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [*range(STEPS)]
        assert json.loads((swept.folder / run / "eval" / "after.json").read_text())["step"] == STEPS


def test_ctrl_c_stops_with_a_checkpoint_and_says_how_to_go_on(swept):
    code, text = swept.stopped
    assert code == 130 and "4 runs in s, 4 left" in text
    assert "; the same command resumes it" in text  # of the run, after its checkpoint
    assert text.splitlines()[-1] == "stopped: 0 of 4 runs are done; the same command goes on"
    assert CELLS[1] not in text


def test_a_run_that_was_stopped_or_killed_is_resumed(swept):
    starts = json.loads((swept.folder / RUNS[0] / "manifest.json").read_text())["starts"]
    assert [start["step"] > 0 for start in starts] == [False, True, True]
    assert starts[1]["step"] < starts[2]["step"] < STEPS
    assert f"resumed after step {starts[2]['step']}" in swept.finished[1]


def test_it_ends_with_tables_and_figures_in_eighty_columns(swept):
    lines = swept.finished[1].splitlines()
    tables = lines[lines.index("scores: mean over seeds and problems, 95 % interval") :]
    costs = tables[tables.index("mean cost of a run") :]
    drawn = [line.split() for line in costs if line.startswith("method ")]
    # 2 problems of 4 calls a step; a tree of (2, 2) has 6 messages, 4 episodes have 8.
    assert [row[-5:-4] + row[-2:-1] for row in drawn] == [["160", "240"], ["160", "320"]]
    assert (swept.folder / "s" / "figures" / "learning.png").stat().st_size > 1000
    assert lines[-1] == "figures: s/figures/ with learning, cost, mechanism, ablation as png, svg, pdf"
    assert (
        max(len(line) for line in tables if ": step " not in line) <= 80
    )  # lines of text are broken for a terminal alone


def test_what_is_done_is_skipped_and_what_is_left_is_printed(swept, monkeypatch, capsys):
    monkeypatch.chdir(swept.folder)
    before = {path: (Path(path) / "manifest.json").read_bytes() for path in RUNS}
    assert cli.main(WORDS) == 0
    assert capsys.readouterr().out.startswith("4 runs in s, 0 left\n\nscores: ")
    assert {path: (Path(path) / "manifest.json").read_bytes() for path in RUNS} == before
    assert cli.main([*WORDS, "--print"]) == 0 and capsys.readouterr().out == ""
    assert cli.main([*WORDS[:3], "1:3", *WORDS[4:], "--print", "--unsafe-no-sandbox"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"c3jax train tiny.yaml --run-dir=s/{cell}/seed-2 --seed=2 --unsafe-no-sandbox --{cell}" for cell in CELLS
    ]
    # More steps are the same runs, and they go on.
    assert cli.main([*WORDS, "--steps", "30", "--print"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_folder_with_another_configs_run_is_refused_before_anything_runs(swept, monkeypatch, capsys):
    monkeypatch.chdir(swept.folder)
    assert cli.main([*WORDS, "--learner.learning_rate", "0.1"]) == 2
    assert capsys.readouterr().err.startswith(f"c3jax: run directory {RUNS[0]}: holds the run of another config, where")


# --------------------------------------------------------------------------------------------------------------------
# Rules, with a stand-in

# In place of `python -m c3jax.cli`: notes its words, fails where they hold what the file `failing` says, and waits at
# the word that the file `waiting` says until a signal comes; else leaves what a training run leaves.
STAND_IN = """
import json, os, sys, time
from pathlib import Path
words = sys.argv[1:]
with open("calls", "a") as file:
    file.write(json.dumps(words) + "\\n")
if Path("waiting").exists():
    time.sleep(600)
if Path("failing").exists() and any(Path("failing").read_text() in word for word in words):
    sys.exit(1)
if words[0] == "train":
    options = dict(word[2:].split("=", 1) for word in words[2:])
    file = Path(options["run-dir"], "eval", "after.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"step": 20, "results": []}))
else:
    Path(words[1], "eval", "suites-20.json").write_text(json.dumps({"step": 20, "results": []}))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty folder with the config and the stand-in; runs a sweep there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def run(choices: Mapping[str, str], seeds: str | None = None, is_printed: bool = False) -> int:
        read = {path: read_choices(path, text) for path, text in choices.items()}
        sweep = Sweep("tiny.yaml", read, seeds, Path("s"))
        return run_sweep(sweep, is_printed, terminal.make_console(), [sys.executable, "stand_in.py"])

    return run


def list_calls() -> list[list[str]]:
    return [json.loads(line) for line in Path("calls").read_text().splitlines()] if Path("calls").exists() else []


def test_one_that_fails_does_not_end_the_others(tiny, monkeypatch, capsys):
    monkeypatch.setattr("c3jax.commands.sweep._show", lambda paths, out, console: None)  # a stand-in leaves no config
    Path("failing").write_text("--credit.method=c3")
    assert tiny({"credit.method": "c3,no_loo"}, "0,1") == 1
    assert [call[-1] for call in list_calls()] == ["--credit.method=c3", "--credit.method=no_loo"] * 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "failed: credit.method=c3, seed 0 (exit status 1)",
        "failed: credit.method=c3, seed 1 (exit status 1)",
        "2 of 4 runs are done; the same command tries the others again",
    ]


def test_suites_are_measured_after_training_and_where_they_are_missing(tiny, capsys):
    tree = CONFIG | {
        "evaluation": {"samples": 0, "suites": [{"kind": "numeric", "name": "more", "path": "more.jsonl"}]}
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert tiny({}, is_printed=True) == 0
    train = "c3jax train tiny.yaml --run-dir=s/tiny/seed-0 --seed=0"
    assert capsys.readouterr().out == f"{train} && c3jax evaluate s/tiny/seed-0\n"


def test_a_signal_to_the_sweep_alone_reaches_the_run_and_ends_all(tiny, tmp_path):
    (tmp_path / "waiting").touch()
    program = (
        "import sys; from pathlib import Path; from c3jax.commands import terminal; from c3jax.commands.sweep import *;"
        "from c3jax.config.overrides import read_choices;"
        "sweep = Sweep('tiny.yaml', {'credit.method': read_choices('credit.method', 'c3,no_loo')}, None, Path('s'));"
        "sys.exit(run_sweep(sweep, False, terminal.make_console(), [sys.executable, 'stand_in.py']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not list_calls():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.terminate()
        out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 75 and len(list_calls()) == 1
    assert out.splitlines()[-1] == "stopped: 0 of 2 runs are done; the same command goes on"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--credit.method", "c3,c4"], "credit.method: expected "),
        (["--credit.method", "c3,c3"], "credit.method: expected every value once, got c3 twice in 'c3,c3'"),
        (["--steps", "2,,3"], "steps: expected values with commas between them, got '2,,3'"),
        (["--seed", "0,1"], "seed: expected --seeds for a sweep, as in --seeds 0:5"),
        (["--seeds", "5:0"], "--seeds: expected numbers with commas between them, or a range as 0:5, got '5:0'"),
        (["--seeds", "0:2,1"], "--seeds: expected every seed once, got 1 twice in '0:2,1'"),
        (
            ["--learner.learning_rate", "1,1.0"],
            "learner.learning_rate=1.0, seed 0: expected another config than that of learner.learning_rate=1, seed 0",
        ),
        (["--out", ""], "--out: expected a folder, got an empty name"),
        (["--out", "tiny.yaml"], "--out: expected a folder, got the file tiny.yaml"),
        (
            ["--credit.method", "c3,magrpo", "--credit.fan_out", "[2,2],[4,1]"],
            "credit.fan_out: method c3 would give turn 1 zero credit: expected at least 2 messages",
        ),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(tiny, capsys, words, sentence):
    assert cli.main(["sweep", "tiny.yaml", "--out", "s", *words]) == 2
    assert capsys.readouterr().err.startswith(f"c3jax: {sentence}") and not Path("s").exists()


@pytest.mark.parametrize(
    ("path", "text", "values"),
    [
        ("credit.method", "c3,rloo", ["c3", "rloo"]),
        ("learner.learning_rate", "1e-3,3e-4", [1e-3, 3e-4]),
        ("credit.fan_out", "[2, 4]", [[2, 4]]),
        ("credit.fan_out", "[2,4],[4,2]", [[2, 4], [4, 2]]),
        ("learner.micro_problems", "null,8", [None, 8]),
        ("task.fields", "{question: [a, b], answer: c}", [{"question": ["a", "b"], "answer": "c"}]),
        ("protocol.turns.0.user", "{question}, then don't, plan", ["{question}, then don't, plan"]),
        ("protocol.turns.0.user", "'a,b',c", ["a,b", "c"]),
        ("protocol.turns.0.system", "{a,b} c,d", ["{a,b} c", "d"]),
    ],
)
def test_a_comma_parts_values_where_it_is_no_part_of_one(path, text, values):
    assert [choice.value for choice in read_choices(path, text)] == values


def test_a_cells_folder_is_named_by_its_values():
    assert name_cell({"credit.method": "c3", "learner.learning_rate": "1e-3"}) == (
        "credit.method=c3,learner.learning_rate=1e-3"
    )
    names = {name_cell({"model.path": path}) for path in ("a/b", "a b", "a-b", "x" * 300, "x" * 301)}
    assert len(names) == 5 and all("/" not in name and len(name) <= 130 for name in names)


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0:3,7") == [0, 1, 2, 7]
    for text in ("", "a", "1-3", "3:3", "1:"):
        with pytest.raises(UserError, match="--seeds: expected numbers"):
            parse_seeds(text)
    for text in ("0:99999999999999999999", "0:9000,10000:11000"):
        with pytest.raises(UserError, match="--seeds: expected fewer than 10,000 seeds"):
            parse_seeds(text)


def test_help_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("sweep", "figures"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
