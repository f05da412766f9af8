"""The study command: chunks that fit the memory, a killed study that resumes, and what is left in its directory."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from rich.console import Console

from c3jax import cli
from c3jax.lab.chunks import Block, count_saved, run_blocks
from c3jax.lab.config import LearningStudy, parse_study
from c3jax.lab.learning import list_arms, make_blocks, read_findings
from c3jax.lab.sweep import tabulate_curves, tabulate_results
from c3jax.types import UserError

KEY = jax.random.key(0)
CASE = {
    "name": "pair",
    "game": {"kind": "chain", "messages": 2, "problems": 2, "tokens": [3, 1]},
    "estimators": ["c3 2x2", "no_loo 2x2"],
}
TREE = {
    **{"kind": "learning", "seed": 0, "seeds": 3, "updates": 4, "every": 2, "problems": 2},
    **{"cases": [CASE], "policy": "tabular", "optimiser": "sgd", "learning_rates": [1.0]},
}


# --------------------------------------------------------------------------------------------------------------------
# Chunks, of a run that takes no time: it records its lane's multiples


class Recorded(NamedTuple):
    multiple: jax.Array
    draw: jax.Array


def record_multiples(key: jax.Array, lane: jax.Array) -> Recorded:
    draw = jax.random.uniform(jax.random.fold_in(key, lane))
    return Recorded(lane * jnp.arange(1000.0), draw)


def make_multiples() -> list[Block]:
    """Ten runs in two blocks, whose numbers are mixed; run n has lane 10 + n."""
    numbers = ((0, 1, 4, 5, 6, 7, 9), (2, 3, 8))
    return [
        Block(f"block {index}", record_multiples, np.array(mine, np.int32) + 10, mine)
        for index, mine in enumerate(numbers)
    ]


def run_quietly(folder: Path, memory_gb: float = 1.0):
    return run_blocks(make_multiples(), KEY, memory_gb, folder, Console(file=io.StringIO()))


def test_runs_come_back_in_their_order(tmp_path):
    outcome = run_quietly(tmp_path)
    expected = np.arange(10, 20)[:, None] * np.arange(1000.0)
    np.testing.assert_array_equal(outcome.recorded["multiple"], expected)
    assert (outcome.programs, outcome.chunks, outcome.resumed, count_saved(tmp_path)) == (2, 2, 0, 2)


def test_runs_that_do_not_fit_together_are_made_in_chunks(tmp_path):
    """A run records 1001 numbers of 4 bytes: 14 kB hold three runs and their arguments, not four."""
    whole = run_quietly(tmp_path / "whole")
    parts = run_quietly(tmp_path / "parts", memory_gb=14e-6)
    assert parts.chunks == 4  # seven runs as 3 + 3 + 1, and three
    for name, column in whole.recorded.items():
        np.testing.assert_array_equal(parts.recorded[name], column)


def test_a_run_that_fits_nowhere_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(
        UserError, match=r"memory_gb: expected at least \S+ for one run of block 0, got 1e-06"
    ) as refused:
        run_quietly(tmp_path, memory_gb=1e-6)
    assert 4.004e-6 <= float(str(refused.value).split()[4]) < 8e-6  # what it records, and a little more
    assert count_saved(tmp_path) == 0


def test_a_killed_study_resumes_with_the_chunks_it_lacks(tmp_path):
    whole = run_quietly(tmp_path / "whole")
    run_quietly(tmp_path / "killed", memory_gb=14e-6)
    files = sorted((tmp_path / "killed" / "chunks").iterdir())
    kept = {path.name: path.stat().st_mtime_ns for path in files[1:]}
    files[0].unlink()
    (files[0].with_suffix(".partial")).write_bytes(b"half a chunk")
    # With more memory than before: what is missing fits together now.
    again = run_quietly(tmp_path / "killed")
    assert (again.resumed, again.programs, again.chunks) == (7, 1, 1)
    assert {name: (files[0].parent / name).stat().st_mtime_ns for name in kept} == kept
    for name, column in whole.recorded.items():
        np.testing.assert_array_equal(again.recorded[name], column)
    assert run_quietly(tmp_path / "killed").programs == 0


def test_a_broken_chunk_is_named(tmp_path):
    run_quietly(tmp_path)
    path = sorted((tmp_path / "chunks").iterdir())[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path.name}.*broken.*delete it"):
        run_quietly(tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Results


def find_rows(value_AST: np.ndarray, **changes: Any) -> tuple[list[Any], list[Any]]:
    """Results and curves of a study whose runs recorded these values."""
    config = parse_study(TREE | changes)
    assert isinstance(config, LearningStudy)
    arms = list_arms(config)
    findings = read_findings(config, arms, {"value": value_AST, "entropy": 2 * value_AST})
    return tabulate_results(arms, findings), tabulate_curves(arms, findings)


def test_results_are_the_paired_comparison():
    """Differences of .1, .2, .3 over three seeds: mean .2, and t = .2 / (.1 / sqrt 3); all signs alike: p = 2 / 2^3."""
    first_ST = np.array([[0.0, 0.2, 0.4], [0.0, 0.2, 0.2], [0.0, 0.2, 0.3]])
    second_ST = first_ST + np.array([0.1, 0.2, 0.3])[:, None] * np.array([0.0, 0.0, 1.0])
    (one, two), curves = find_rows(np.stack([first_ST, second_ST]))
    assert (one["estimator"], two["estimator"]) == ("c3 2x2", "no_loo 2x2")
    assert one["final"] == pytest.approx(0.3) and two["final"] == pytest.approx(0.5)
    # Over the run by trapezia: (0 + .2) / 2 and (.2 + final) / 2, halved.
    assert one["mean"] == pytest.approx((0.1 + (0.2 + 0.3) / 2) / 2)
    assert two["final_gain"] == pytest.approx(0.2)
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's 97.5 % point with 2 degrees of freedom
    assert (two["final_gain_low"], two["final_gain_high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert two["final_p"] == pytest.approx(0.25)
    assert "final_gain" not in one
    assert [row["value"] for row in curves[3:]] == pytest.approx([0.0, 0.2, 0.5])
    assert [row["entropy"] for row in curves[3:]] == pytest.approx([0.0, 0.4, 1.0])
    assert [row["updates"] for row in curves] == [0, 2, 4] * 2


def test_arms_are_compared_with_the_first_of_their_case_at_their_own_rate():
    """Two cases of two estimators at two rates, all with values of their own: a gain is own less first's."""
    cases = [CASE, CASE | {"name": "other"}]
    final_A = np.array([0.1, 0.2, 0.4, 0.8, 0.3, 0.5, 0.9, 0.6])
    value_AST = np.stack([np.zeros((8, 3)), np.tile(final_A[:, None], 3)], axis=2)
    results, _ = find_rows(value_AST, cases=cases, learning_rates=[1.0, 2.0], every=4)
    gains = {(row["case"], row["estimator"]): row["final_gain"] for row in results if "final_gain" in row}
    expected = {("pair", "no_loo 2x2, rate 1"): 0.3, ("pair", "no_loo 2x2, rate 2"): 0.6}
    assert gains == pytest.approx(
        expected | {("other", "no_loo 2x2, rate 1"): 0.6, ("other", "no_loo 2x2, rate 2"): 0.1}
    )


def test_runs_are_grouped_by_what_a_program_fixes():
    """Methods, rates and seeds share a program; cases, plans, scopes, turns, critics and what makes credit do not."""
    estimators = ["c3 2x2", "rloo 4", "no_loo 2x2", "c3 2x2 turn", "shrunk 2x2", "c3 1x4, turn 0 untrained"]
    estimators += ["mappo 4", "mappo 4, decay 0.5", "magrpo 4x1", "maxrl 4", "rae 4", "rloo 4, mean 0.5"]
    cases = [CASE | {"estimators": estimators}, CASE | {"name": "other"}]
    config = parse_study(TREE | {"cases": cases, "learning_rates": [1.0, 2.0]})
    assert isinstance(config, LearningStudy)
    arms = list_arms(config)
    blocks = make_blocks(config, arms)
    together = [{arms[number // 3].name.partition(", rate")[0] for number in block.numbers} for block in blocks]
    assert together == [
        *({"c3 2x2", "no_loo 2x2"}, {"rloo 4", "magrpo 4x1"}, {"c3 2x2 turn"}, {"shrunk 2x2"}),
        *(
            {"c3 1x4, turn 0 untrained"},
            {"mappo 4"},
            {"mappo 4, decay 0.5"},
            {"maxrl 4"},
            {"rae 4", "rloo 4, mean 0.5"},
        ),
        {"c3 2x2", "no_loo 2x2"},
    ]
    assert sorted(number for block in blocks for number in block.numbers) == list(range(3 * len(arms)))
    lanes = blocks[0].lanes
    np.testing.assert_array_equal(lanes.seed, [0, 1, 2] * 4)
    np.testing.assert_array_equal(lanes.learning_rate, np.repeat([1, 2, 1, 2], 3))
    np.testing.assert_array_equal(np.unique(blocks[8].lanes.matrix.baseline[1]), np.float32([0, 0.5 / 3]))
    # Two alternatives in each context: c3 weighs the other by 1, no_loo both by a half.
    np.testing.assert_array_equal(lanes.matrix.baseline[0][0], [[0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0]])
    np.testing.assert_array_equal(lanes.matrix.baseline[0][-1], np.full((2, 4), 0.25))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """A tiny study through the command line."""
    folder = tmp_path_factory.mktemp("study")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("COLUMNS", "80")
    names = ("jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TREE), encoding="utf-8")
    (folder / "other.yaml").write_text(yaml.safe_dump(TREE | {"seed": 1}), encoding="utf-8")
    assert cli.main(["study", str(folder / "tiny.yaml"), "--run-dir", str(folder / "a")]) == 0
    yield {"folder": folder, "run": folder / "a"}
    patch.undo()
    for name, value in before.items():
        jax.config.update(name, value)


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_a_study_leaves_tables_curves_and_figures(study):
    names = {path.relative_to(study["run"]).as_posix() for path in study["run"].rglob("*") if path.is_file()}
    tables = {f"{stem}.{kind}" for stem in ("results", "curves") for kind in ("csv", "json", "md")}
    units = ("updates", "calls", "messages", "tokens")
    figures = {f"figures/return_{unit}.{kind}" for unit in units for kind in ("svg", "png")}
    assert tables | figures | {"config.yaml", "manifest.json", "chunks/000000.npz"} <= names


def test_budgets_are_those_of_the_plan(study):
    """A 2x2 tree: 4 calls, 2 + 4 messages and 2 * 3 + 4 * 1 tokens a problem; 2 problems, 4 updates."""
    for row in read_rows(study["run"] / "results.csv"):
        assert [row[name] for name in ("updates", "calls", "messages", "tokens")] == ["4", "32", "48", "80"]
    curve = [row for row in read_rows(study["run"] / "curves.csv") if row["estimator"] == "c3 2x2"]
    assert [row["calls"] for row in curve] == ["0", "16", "32"]
    assert all(0.0 < float(row["value_low"]) <= float(row["value"]) < 1.0 for row in curve)
    assert curve[0]["entropy"] == "" and 0.0 < float(curve[1]["entropy"]) <= math.log(2) + 1e-5


def test_memory_is_no_part_of_what_a_study_is(study, capsys):
    """What was refused for its size may be tried again with more memory, in the same directory."""
    words = ["study", str(study["folder"] / "tiny.yaml"), "--run-dir", str(study["folder"] / "small")]
    assert cli.main([*words, "--memory_gb", "1e-9"]) == 2
    assert "memory_gb: expected at least" in capsys.readouterr().err
    assert cli.main(words) == 0
    results = [(study["folder"] / name / "results.csv").read_bytes() for name in ("a", "small")]
    assert results[0] == results[1]


def start_study(folder: Path, run: Path, port: int, index: int) -> subprocess.Popen:
    """One of two processes, each with four devices."""
    command = [sys.executable, "-m", "c3jax.cli", "study", str(folder / "tiny.yaml"), "--run-dir", str(run)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    common = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "C3JAX_COORDINATOR": f"localhost:{port}"}
    common |= {"C3JAX_PROCESSES": "2", "C3JAX_PROCESS": str(index), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    environment = os.environ | common
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_study_on_two_processes_of_four_devices_is_that_on_one(study, tmp_path):
    """Resumed without a finished chunk, one of them taken by a process that was lost."""
    run = tmp_path / "run"
    shutil.copytree(study["run"], run, ignore=shutil.ignore_patterns("*.npz", "results.*"))
    (run / "chunks" / "000000.taken").touch()
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    processes = [start_study(study["folder"], run, port, index) for index in range(2)]
    for process in processes:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    # Six runs in two chunks of one a device: four, and two.
    chunks = [dict(np.load(run / "chunks" / name)) for name in ("000000.npz", "000004.npz")]
    whole = np.load(study["run"] / "chunks" / "000000.npz")
    for name in whole.files:
        np.testing.assert_allclose(np.concatenate([chunk[name] for chunk in chunks]), whole[name], rtol=0, atol=1e-6)
    finals = [[float(row["final"]) for row in read_rows(path / "results.csv")] for path in (run, study["run"])]
    assert finals[0] == pytest.approx(finals[1], abs=1e-6)


def test_a_finished_study_is_shown_again_without_a_run(study, capsys):
    before = {path.name: path.read_bytes() for path in study["run"].glob("*.*") if path.suffix != ".json"}
    words = ["study", str(study["folder"] / "tiny.yaml"), "--run-dir", str(study["run"])]
    assert cli.main(words) == 0
    assert "0 runs of 4 updates" in capsys.readouterr().out
    assert {name: (study["run"] / name).read_bytes() for name in before} == before
    starts = json.loads((study["run"] / "manifest.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["other.yaml"], ["holds the run of another config", "seed is 0 and not 1"]),
        (["tiny.yaml", "--seeds", "many"], ["seeds: expected an integer", '"many"']),
        (["tiny.yaml", "--cases.0.estimators.1", "c5 2x2"], ["estimators.1: expected one of c3, ", '"c5 2x2"']),
        (["nothing.yaml"], ["nothing.yaml", "expected a YAML file"]),
    ],
    ids=["another config", "a word", "a method", "no file"],
)
def test_a_study_that_cannot_be_is_refused(study, capsys, words, expected):
    path, *rest = words
    assert cli.main(["study", str(study["folder"] / path), "--run-dir", str(study["run"]), *rest]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and complaint.startswith("c3jax: ")
    assert all(part in complaint for part in expected), complaint
