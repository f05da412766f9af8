"""The bench: what its tables make of figures written by hand, and a bench that is stopped and resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from c3jax import cli
from c3jax.analysis.statistics import Interval
from c3jax.credit import plans
from c3jax.lab import bench
from c3jax.lab.analyse import Figures
from c3jax.lab.config import BenchStudy, parse_study
from c3jax.lab.testbed import Measured

PAIR = {"kind": "chain", "messages": 2, "tokens": [3, 1]}
RLOO, C3, SHRUNK = "rloo 4", "c3 2x2", "shrunk 2x2"
TREE: dict[str, Any] = {
    **{"kind": "bench", "seed": 0, "problems": 3, "samples": 192, "batches": 3, "pilot_steps": 4},
    **{"ours": [SHRUNK], "rivals": [RLOO, C3]},
    "cases": [
        {"name": "one", "game": PAIR, "estimators": [RLOO, C3, SHRUNK]},
        {"name": "other", "game": PAIR | {"coupling": 3.0}, "estimators": [C3, SHRUNK]},
    ],
}

# --------------------------------------------------------------------------------------------------------------------
# Tables, from figures made by hand


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (plans.make_flat(4, 2), "tree 4x1"),
        (plans.make_tree((2, 2)), "tree 2x2"),
        (plans.make_replay((1, 2), 2), "replay 1+2"),
        (plans.make_arms("removal", 2, 2), "removal 2"),
        (plans.make_auxiliary(1, 2, 2), "auxiliary 1, 2 each"),
    ],
)
def test_a_plan_in_a_word(plan, name):
    assert bench.describe_plan(plan) == name


def make_measured(plan: plans.Plan, noise: float, squared_bias: tuple[float, float, float]) -> Measured:
    """Two problems of signal 1 with so much noise each, at both turns."""
    one_G = np.ones(2)
    figures = Figures(one_G, 2 * one_G, noise * one_G, one_G, one_G, one_G)
    spearman_G = np.array([0.5, np.nan])
    return Measured(plan, {0: figures, 1: figures}, {0: Interval(*squared_bias)} | {1: Interval(0, -1, 1)}, {
        0: spearman_G, 1: np.array([0.2, 0.4])
    })  # fmt: skip


CONFIG = parse_study(TREE)
assert isinstance(CONFIG, BenchStudy)


def test_noise_is_scaled_to_the_budget_of_the_first():
    """A tree of 4 calls, 6 messages and 10 tokens against episodes of 4 calls, 8 messages and 16 tokens."""
    measured = [
        make_measured(plans.make_flat(4, 2), 5.0, (0.04, 0.01, 0.09)),
        make_measured(plans.make_tree((2, 2)), 8.0, (-1e-4, -1e-2, 1e-9)),
    ]
    rows = bench.describe_case(
        CONFIG.cases[0].model_copy(update={"estimators": CONFIG.cases[0].estimators[:2]}), measured
    )
    assert [(row["estimator"], row["turn"]) for row in rows] == [
        ("rloo 4", 0),
        ("rloo 4", 1),
        ("c3 2x2", 0),
        ("c3 2x2", 1),
    ]
    assert [rows[0][f"noise_per_{unit}"] for unit in bench.UNITS] == [5.0] * 3
    assert [rows[2][f"noise_per_{unit}"] for unit in bench.UNITS] == pytest.approx([8.0, 8 * 6 / 8, 8 * 10 / 16])
    assert [rows[2][f"noise_per_{unit}_high"] for unit in bench.UNITS] == pytest.approx([8.0, 6.0, 5.0])
    assert (rows[0]["bias"], rows[0]["bias_low"], rows[0]["bias_high"]) == pytest.approx((0.2, 0.1, 0.3))
    assert [row["unbiased"] for row in rows] == [False, True, True, True]
    assert rows[2]["bias_low"] == pytest.approx(-0.1)
    assert (rows[0]["variance"], rows[0]["mse"], rows[0]["cosine"]) == (1.0, 2.0, 1.0)
    # Of one problem there is no interval, hence no figure.
    assert math.isnan(rows[0]["fidelity"]) and rows[1]["fidelity"] == pytest.approx(0.3)


def test_ours_is_held_against_every_rival_and_the_worst_is_named():
    measured = [
        make_measured(plans.make_flat(4, 2), 5.0, (0, 0, 0)),
        make_measured(plans.make_tree((2, 2)), 8.0, (0, 0, 0)),
        make_measured(plans.make_tree((2, 2)), 4.0, (0, 0, 0)),
    ]
    rows = bench.compare_case(CONFIG, CONFIG.cases[0], measured)
    assert [(row["ours"], row["rival"], row["turn"]) for row in rows] == [
        ("shrunk 2x2", rival, turn) for rival in ("rloo 4", "c3 2x2") for turn in (0, 1)
    ]
    assert [rows[0][f"ratio_per_{unit}"] for unit in bench.UNITS] == pytest.approx([0.8, 0.8 * 6 / 8, 0.8 * 10 / 16])
    assert [rows[2][f"ratio_per_{unit}"] for unit in bench.UNITS] == pytest.approx([0.5] * 3)
    worst = bench.find_worst_ratios(rows)
    assert [row["unit"] for row in worst] == list(bench.UNITS)
    assert [(row["against"], row["ratio"]) for row in worst] == [
        ("rloo 4, turn 0", pytest.approx(0.8)),
        ("rloo 4, turn 0", pytest.approx(0.6)),
        ("rloo 4, turn 0", pytest.approx(0.5)),
    ]
    rows[3]["ratio_per_calls"] = math.nan
    unknown = bench.find_worst_ratios(rows)[0]
    assert unknown["against"] == "c3 2x2, turn 1" and math.isnan(unknown["ratio"])


# --------------------------------------------------------------------------------------------------------------------
# A tiny bench through the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bench")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("COLUMNS", "100")
    names = ("jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    before["jax_disable_most_optimizations"] = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)  # programs compile for seconds and run for milliseconds
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TREE), encoding="utf-8")
    yield folder
    patch.undo()
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    assert cli.main(["study", str(folder / "tiny.yaml"), "--run-dir", str(folder / "whole")]) == 0
    return folder / "whole"


def list_results(run: Path) -> list[Path]:
    """What a bench leaves of its results, beside the record of its starts."""
    kept = (".csv", ".json", ".md", ".svg", ".png", ".yaml")
    files = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.suffix in kept]
    return [path for path in files if path.name != "manifest.json"]


def test_a_bench_leaves_its_tables_and_figures(whole):
    names = {path.as_posix() for path in list_results(whole)}
    tables = {f"{stem}.{kind}" for stem in ("bench", "against") for kind in ("csv", "json", "md")}
    stems = [f"figures/{case}-{name}" for case in ("00", "01") for name in ("noise", "credit")]
    figures = {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    cases = {f"cases/{name}.json" for name in ("00", "00-against", "01", "01-against")}
    assert names == tables | figures | cases | {"config.yaml"}
    rows = json.loads((whole / "bench.json").read_text())
    assert [(row["game"], row["estimator"], row["turn"]) for row in rows] == [
        *(("one", name, turn) for name in ("rloo 4", "c3 2x2", "shrunk 2x2") for turn in (0, 1)),
        *(("other", name, turn) for name in ("c3 2x2", "shrunk 2x2") for turn in (0, 1)),
    ]
    assert [row["pilot_calls"] for row in rows] == [0, 0, 0, 0, 16, 16, 0, 0, 16, 16]  # four trees of two by two
    against = json.loads((whole / "against.json").read_text())
    assert [(row["game"], row["rival"]) for row in against] == [
        *(("one", rival) for rival in ("rloo 4", "c3 2x2") for _ in (0, 1)),
        *(("other", "c3 2x2") for _ in (0, 1)),
    ]


def test_a_bench_stopped_after_its_first_case_resumes_to_the_same_files(whole, folder):
    run = folder / "stopped"
    words = ["study", str(folder / "tiny.yaml"), "--run-dir", str(run)]
    assert cli.main(words) == 0
    # As a start leaves it that was killed in the second case: its comparison written, its rows not yet.
    for path in list_results(run):
        if path.as_posix() not in ("config.yaml", "cases/00.json", "cases/00-against.json", "cases/01-against.json"):
            (run / path).unlink()
    # A first case made again would have its true figure again.
    rows = json.loads((run / "cases" / "00.json").read_text())
    before = rows[0]["mse"]
    rows[0]["mse"] = 0.125
    (run / "cases" / "00.json").write_text(json.dumps(rows), encoding="utf-8")
    assert cli.main(words) == 0
    assert json.loads((run / "bench.json").read_text())[0]["mse"] == 0.125 != before
    rows[0]["mse"] = before
    (run / "cases" / "00.json").write_text(json.dumps(rows), encoding="utf-8")
    assert cli.main(words) == 0
    assert list_results(run) == list_results(whole)
    for path in list_results(whole):
        if path.suffix != ".json" or path.parent.name != "cases":
            assert (run / path).read_bytes() == (whole / path).read_bytes(), path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--samples", "193"], "samples: expected a multiple of batches (3), got 193"),
        (["--cases.0.estimators.1", "c5 2x2"], "cases.0.estimators.1: expected one of c3, "),
        (["--ours", "[shrunk 4x2]"], "ours.0: expected an estimator of a case, got 'shrunk 4x2'"),
        (
            ["--cases.0.estimators.2", "c3 auto 3 messages"],
            "cases.0.estimators.2: auto: expected a budget of at least 6 messages for method c3, got 3",
        ),
        (
            ["--cases.0.estimators.0", "rloo auto 8 calls"],
            "cases.0.estimators.0: auto: expected a method of c3, no_loo, shrunk, got 'rloo'",
        ),
        (
            ["--cases.1.game.turns", "20", "--cases.1.game.tokens", "[]"],
            "cases.1.game: expected at most 65536 joint messages for the exact truth, got 1048576 from 20 turns",
        ),
        (["--cases.1.estimators.1", "c3 1x4"], "zero credit"),
        (["--cases.1.name", "one"], "cases.1.name: expected a name no other case has, got 'one'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0].removeprefix("--"),
)
def test_a_bench_that_cannot_be_is_refused_in_one_sentence(folder, tmp_path, capsys, words, expected):
    assert cli.main(["study", str(folder / "tiny.yaml"), "--run-dir", str(tmp_path / "run"), *words]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("c3jax: ") and complaint.count("\n") == 1 and expected in complaint, complaint
