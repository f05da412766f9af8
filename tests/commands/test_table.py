"""The paper's tables: which runs count, figures by hand, the paper's numbers beside them, and what is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from c3jax import cli
from c3jax.analysis.paper import METHODS, PUBLISHED, find_published
from c3jax.commands.table import list_costs, list_differences, list_notes, list_scores, load_cells
from c3jax.config.file import dump_config, find_config_folder, load_config, name_config

CONFIGS = find_config_folder("paper")
SETTING = "maths_qwen3_4b_duo"


def make_result(suite: str, profile: str, scores: list[list[float]]) -> dict[str, Any]:
    ids = [str(index) for index in range(len(scores))]
    return {
        **{"suite": suite, "profile": profile, "ids": ids, "digests": ids, "scores": scores, "truncated": 0.25},
        **{"samples": len(scores[0]), "pass_at": {"1": [0.5, 0, 1]}, "majority": None},
    }


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Write a run's config and its evaluation: of MATH500's problems greedy 0 or 1 each, and samples of each."""
    monkeypatch.chdir(tmp_path)

    def make(method: str, seed: int, greedy: list[float], sampled: list[list[float]], **changes: Any) -> Path:
        path = Path("runs", f"{SETTING}_{method}", f"seed-{seed}")
        (path / "eval").mkdir(parents=True)
        twin = "c3" if method == "untuned" else method
        config = load_config(CONFIGS / f"{SETTING}_{twin}.yaml", {"seed": seed, **changes})
        (path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        rows = [make_result("heldout", "greedy", [[score] for score in greedy])]
        rows += [make_result("heldout", "sampled", sampled), make_result("cmath", "greedy", [[1.0]])]
        rows += [make_result("gsm8k", "greedy", [[0.0], [1.0]]), {"suite": "aime25", "missing": "no such file"}]
        step = 0 if method == "untuned" else config.steps
        (path / "eval" / f"suites-{step}.json").write_text(json.dumps({"step": step, "results": rows}))
        ledger = {"generated_tokens": 2e6, "prefilled_tokens": 1e6, "evaluator_calls": 3000, "messages": 5000}
        steps = [{"step": step, **ledger, "seconds_rollout": 1800, "seconds_update": 1800} for step in range(2)]
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in steps))
        return path

    return make


def find_row(rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row.get(name) == value for name, value in values.items())]
    return row


def load_setting() -> list[Any]:
    return [cell for cell in load_cells(Path("runs"), CONFIGS) if cell.setting == SETTING]


def test_scores_by_hand(make_run):
    """Greedy means 3/4 of four problems by two seeds; of samples 5/16, and any right in 3 of 4 problems each."""
    make_run("c3", 0, [1, 1, 0, 1], [[1, 0], [0, 0], [1, 0], [1, 0]])
    make_run("c3", 1, [1, 1, 1, 0], [[1, 0], [0, 0], [0, 1], [0, 0]])
    make_run("untuned", 0, [0, 0, 0, 1], [[0, 0]] * 4)
    rows = list_scores(load_setting())
    row = find_row(rows, suite="math500", method="c3")
    assert (row["seeds"], row["problems"], row["n"], row["cut"], row["paper"]) == ("2/5", 4, 2, 25.0, 82.8)
    assert row["greedy"] == 75.0 and 0 <= row["greedy_low"] < 75.0 < row["greedy_high"] <= 100
    assert row["pass@1"] == pytest.approx(100 * 5 / 16) and row["pass@n"] == pytest.approx(100 * 5 / 8)
    before = find_row(rows, suite="math500", method="untuned")
    assert (before["seeds"], before["greedy"], before["paper"]) == ("1/1", 25.0, 47.5)
    average = find_row(rows, suite="average", method="c3")
    assert average["greedy"] == pytest.approx((75 + 100 + 50) / 3) and "greedy_low" not in average


def test_the_papers_pass_at_10_stands_beside_ten_samples_alone(make_run):
    make_run("c3", 0, [1], [[1] + [0] * 9])
    assert find_row(list_scores(load_setting()), suite="math500", method="c3")["paper_pass@n"] == 91.4
    make_run("magrpo", 0, [1], [[1, 0]])
    assert find_row(list_scores(load_setting()), suite="math500", method="magrpo")["paper_pass@n"] is None


def test_what_is_missing_is_shown_as_missing(make_run):
    make_run("c3", 0, [1, 0], [[1, 0], [0, 0]])
    rows = list_scores(load_setting())
    assert [row["method"] for row in rows if row["suite"] == "math500"] == list(METHODS)
    row = find_row(rows, suite="math500", method="mappo")
    assert (row["seeds"], row["paper"]) == ("missing", 69.3) and "greedy" not in row
    notes = list_notes(load_cells(Path("runs"), CONFIGS))
    assert "missing: maths_qwen2.5_3b_trio, every method" in notes
    assert f"runs/{SETTING}_c3/seed-0 lacks aime25: no such file" in notes


def test_a_run_that_is_not_at_its_end_does_not_count(make_run):
    path = make_run("c3", 0, [1, 0], [[1, 0], [0, 0]])
    make_run("c3", 1, [1, 1], [[1, 0], [0, 0]])
    (path / "eval" / "suites-590.json").unlink()
    (path / "eval" / "before.json").write_text('{"step": 0, "results": []}')
    Path("runs", f"{SETTING}_magrpo", "seed-3").mkdir(parents=True)
    cells = load_setting()
    assert find_row(list_scores(cells), suite="math500", method="c3")["seeds"] == "1/5"
    notes = list_notes(cells)
    assert f"{path}: evaluated at step 0 of 590" in notes and f"runs/{SETTING}_magrpo/seed-3: begun" in notes


def test_differences_are_to_c3_over_common_problems(make_run):
    for seed in (0, 1):
        make_run("c3", seed, [1, 1, 0, 1], [[1, 0]] * 4)
        make_run("no_loo", seed, [1, 0, 0, 0], [[1, 0]] * 4)
    row = find_row(list_differences(load_setting()), suite="math500", minus="no_loo")
    assert row["diff"] == 50.0 and row["diff_low"] <= 50.0 <= row["diff_high"]
    assert row["paper"] == pytest.approx(82.8 - 79.0) and row["problems"] == 4 and row["p"] <= row["p_holm"]


@pytest.fixture
def long_cells(make_run):
    """Two seeds of two methods where messages are long: AIME's two sets have one and two problems, gsm8k two."""
    for method, right in (("c3", 1.0), ("magrpo", 0.0)):
        for seed in (0, 1):
            path = make_run(method, seed, [0, 0], [[right, 1], [0, 0]])
            config = load_config(CONFIGS / "long" / f"{SETTING}_{method}.yaml", {"seed": seed})
            (path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
            rows = [make_result("heldout", "greedy", [[0.0], [0.0]])]
            rows += [make_result("heldout", "sampled", [[right, 1], [0, 0]])]
            rows += [make_result("gsm8k", "sampled", [[right, right], [1, 1]])]
            rows += [make_result("aime24", "sampled", [[right] * 4]) | {"truncated": 0.5, "digests": ["24"]}]
            rows += [make_result("aime25", "sampled", [[0] * 4, [right, 0, 0, 0]]) | {"truncated": 0.2}]
            (path / "eval" / "suites-590.json").write_text(json.dumps({"step": 590, "results": rows}))
    return [cell for cell in load_cells(Path("runs"), CONFIGS / "long") if cell.setting == SETTING]


def test_the_two_sets_of_aime_are_one_suite_problem_by_problem(long_cells):
    rows = list_scores(long_cells)
    row = find_row(rows, suite="aime", method="c3")
    assert (row["seeds"], row["n"], row["pass@1"]) == ("2/5", 4, pytest.approx(100 * (1 + 0 + 0.25) / 3))
    assert not [row for row in rows if row["suite"] in ("aime24", "aime25", "average")]


def test_long_messages_are_compared_by_means_of_samples_and_not_on_controls(long_cells):
    rows = list_differences(long_cells)
    assert [(row["suite"], row["minus"]) for row in rows] == [("math500", "magrpo"), ("aime", "magrpo")]
    assert [row["diff"] for row in rows] == [pytest.approx(25.0), pytest.approx(100 * 1.25 / 3)]
    assert "Controls, on which nothing is tested: gsm8k, cmath." in list_notes(long_cells)


def test_costs_are_the_mean_ledger_of_a_run(make_run):
    make_run("c3", 0, [1], [[1, 0]])
    rows = list_costs(load_setting())
    row = find_row(rows, method="c3")
    assert (row["M_tokens"], row["hours"], row["k_calls"], row["k_messages"]) == (4.0, 2.0, 6.0, 10.0)
    assert (row["paper_tokens"], row["paper_hours"]) == (418.0, 76.6)
    assert find_row(rows, method="magrpo") == {
        "method": "magrpo", "seeds": "missing", "paper_tokens": 703.0, "paper_hours": 87.4
    }  # fmt: skip


def test_runs_of_other_settings_than_their_configs_are_told(make_run):
    make_run("c3", 0, [1], [[1, 0]], workers=7, **{"evaluation.batch": 8})
    assert not [cell for cell in load_setting() if cell.differing]
    make_run("no_loo", 0, [1], [[1, 0]], **{"policy.kind": "adapters", "learner.learning_rate": 2e-5})
    make_run("untuned", 0, [1], [[1, 0]], steps=600)
    (note,) = [note for note in list_notes(load_setting()) if "other settings" in note]
    assert note.startswith("1 cells have runs of other settings than their config's (learner, policy)")


def test_the_tables_are_printed_in_80_columns_and_written(make_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    make_run("c3", 0, [1, 1, 0, 1], [[1] + [0] * 9] * 4)
    make_run("magrpo", 0, [1, 0, 0, 1], [[1] + [0] * 9] * 4)
    assert cli.main(["table", "runs", "--out", "tables.csv"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert f"{SETTING}: accuracy in %" in printed and "82.8" in printed and "missing" in printed
    with open("tables.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    row = find_row(rows, table=f"{SETTING}: accuracy in %, 95 % interval", suite="math500", method="c3")
    assert (row["greedy"], row["paper"]) == ("75.0", "82.8")
    assert cli.main(["table", "runs", "--out", "tables.md"]) == 0
    assert f"## {SETTING}: mean cost of a run\n\n| method | seeds |" in Path("tables.md").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("none", "none: expected a folder of runs, found none"),
        (". --configs other", "other: expected a folder of configs, found none"),
        (". --configs empty", "empty: expected a folder of configs, found none"),
        (". --out tables.txt", "--out: expected a file that ends in .md or .csv, got 'tables.txt'"),
        (". --configs paper/parts", "base: expected the name of a config to end in one of untuned, mappo"),
        (".", ".: expected runs in ./NAME/seed-N, NAME of a config in "),
    ],
)
def test_what_cannot_be_tabled_is_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert cli.main(["table", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"c3jax: {sentence}") and error.count("\n") == 1


def test_the_papers_numbers_belong_to_cells_of_ours():
    cells = {name_config(file) for file in CONFIGS.glob("*.yaml")}
    cells |= {f"{name.removesuffix('_c3')}_untuned" for name in cells if name.endswith("_c3")}
    assert {f"{row.setting}_{row.method}" for row in PUBLISHED} <= cells
    assert len({row[:4] for row in PUBLISHED}) == len(PUBLISHED)
    assert find_published(SETTING, "c3", "math500", "greedy") == 82.8
    assert find_published(SETTING, "c3", "mbpp", "greedy") is None
