"""Tables across runs: who belongs together, what is compared with what, and what is missing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from c3jax import cli
from c3jax.analysis.evaluations import group_runs, list_differences, list_scores, load_run
from c3jax.commands.compare import compare_runs
from c3jax.config.file import dump_config, parse_config
from c3jax.types import UserError

CONFIG = {
    "seed": 0,
    "steps": 5,
    "problems": 4,
    "task": {"kind": "arithmetic"},
    "protocol": {
        "turns": [
            {"name": "plan", "role": "planner", "user": "{question}", "max_tokens": 4},
            {"name": "answer", "role": "solver", "user": "{question} {plan}", "max_tokens": 4},
        ],
        "question_tokens": 32,
    },
    "model": {"kind": "random"},
    "credit": {"method": "c3", "fan_out": [2, 4], "budget": 8, "normalise": "none"},
    "learner": {"learning_rate": 4e-3},
}
SAMPLED = {"pass_at": {"1": [0.5, 0, 1], "2": [0.75, 0, 1]}, "majority": [0.25, 0, 1], "samples": 2}


def make_result(suite: str, scores: list[list[float]], first: int = 0, **fields: Any) -> dict[str, Any]:
    ids = [str(place) for place in range(len(scores))]
    digests = [str(first + place) for place in range(len(scores))]
    plain = {"pass_at": {"1": [0.5, 0, 1]}, "majority": None, "samples": 1}
    return {"suite": suite, "profile": "greedy", "ids": ids, "digests": digests, "scores": scores, **plain, **fields}


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(name: str, seed: int, results: list[dict[str, Any]], **changes: Any) -> str:
        Path(name, "eval").mkdir(parents=True)
        config = parse_config(CONFIG | {"seed": seed} | changes)
        Path(name, "config.yaml").write_text(dump_config(config), encoding="utf-8")
        for file, step, rows in (("before", 0, []), ("after", 5, results)):
            Path(name, "eval", f"{file}.json").write_text(json.dumps({"step": step, "results": rows}))
        return name

    return make


def test_runs_that_differ_in_their_seed_alone_are_a_group(make_run):
    paths = [make_run(f"c3-{seed}", seed, [make_result("heldout", [[1.0]])]) for seed in (1, 0)]
    paths.append(make_run("slow", 0, [make_result("heldout", [[1.0]])], learner={"learning_rate": 1e-3}))
    groups = group_runs([load_run(path) for path in paths])
    assert [(group.name, [run.path for run in group.runs]) for group in groups] == [
        ("learning rate 0.004", ["c3-0", "c3-1"]),
        ("learning rate 0.001", ["slow"]),
    ]
    twin = make_run("twin", 1, [make_result("heldout", [[1.0]])])
    with pytest.raises(UserError, match="^twin: expected another seed than that of c3-1, got 1 in both$"):
        group_runs([load_run(path) for path in [*paths, twin]])


def name_groups(make_run, *changes: dict[str, Any], names: tuple[str, ...] = ("a", "b", "c")) -> list[str]:
    paths = [make_run(name, 0, [], **change) for name, change in zip(names, changes, strict=False)]
    return [group.name for group in group_runs([load_run(path) for path in paths])]


def test_a_group_is_named_in_words_by_what_differs(make_run):
    protocol, credit = CONFIG["protocol"], CONFIG["credit"]
    longer = {**protocol, "turns": [protocol["turns"][0], protocol["turns"][1] | {"max_tokens": 8}]}
    assert name_groups(make_run, {}, {"protocol": longer}) == ["turn 2 max tokens 4", "turn 2 max tokens 8"]
    # What tells them apart is enough where all that a method brings would fill a page.
    critic = {"method": "mappo", "fan_out": [8, 1], "critic": {"network": "own", "learning_rate": 0.1}}
    names = name_groups(make_run, {}, {"credit": credit | critic}, names=("d", "e"))
    assert names == ["method c3", "method mappo"]
    loss = {"learner": CONFIG["learner"] | {"loss": {"kind": "gspo"}}}
    assert name_groups(make_run, loss, {"credit": credit | {"method": "no_loo"}}, names=("f", "g")) == [
        "method c3, loss gspo",
        "method no_loo, loss ppo",
    ]


def test_groups_whose_difference_is_too_long_to_name_are_named_by_their_folders_or_numbers(make_run):
    first, last = CONFIG["protocol"]["turns"]
    asked = [
        {"protocol": CONFIG["protocol"] | {"turns": [first | {"user": f"Think {word * 10} of {{question}}"}, last]}}
        for word in ("hard", "fast")
    ]
    assert name_groups(make_run, *asked) == ["a", "b"]
    names = ("of-a-folder-with-a-name-that-is-long", "of-a-folder-with-a-name-that-is-longer")
    assert name_groups(make_run, *asked, names=names) == ["group 1", "group 2"]


def test_scores_and_differences_by_hand(make_run):
    """Problems 0 to 2 with means 1, 0, 0.5 and seed 1's 0, 0, 0.5; the other group has 1, 1, 1 and lacks problem 2."""
    first = [
        make_run("a0", 0, [make_result("heldout", [[1, 1], [0, 0], [1, 0]], **SAMPLED)]),
        make_run("a1", 1, [make_result("heldout", [[0, 0], [0, 0], [0, 1]], **SAMPLED)]),
    ]
    second = make_run("b0", 0, [make_result("heldout", [[1, 1], [1, 1]], **SAMPLED)], steps=6)
    groups = group_runs([load_run(path) for path in [*first, second]])
    ours, others = list_scores(groups)
    assert ours["avg"] == pytest.approx((1.5 + 0.5) / 6) and (ours["seeds"], ours["problems"]) == (2, 3)
    assert ours["avg_low"] <= ours["avg"] <= ours["avg_high"]
    assert (ours["pass@n"], ours["maj@n"]) == (0.75, 0.25)
    assert (others["group"], others["avg"], others["problems"]) == ("steps 6", 1.0, 2)
    (row,) = list_differences(groups)
    # In common are the first two problems: (0.5 + 0) / 2 against 1.
    assert (row["first"], row["second"], row["problems"]) == ("steps 5", "steps 6", 2)
    assert row["diff"] == pytest.approx(-0.75) and row["diff_high"] <= 0.0 and row["p"] == row["p_holm"]


def test_problems_that_only_share_their_ids_are_not_compared(make_run):
    paths = [make_run("a", 0, [make_result("heldout", [[1.0]])])]
    paths.append(make_run("b", 1, [make_result("heldout", [[0.0]], first=7)]))
    paths.append(make_run("c", 1, [make_result("heldout", [[0.0]], first=9)], steps=6))
    groups = group_runs([load_run(path) for path in paths])
    assert list_scores(groups)[0]["problems"] == 2 and list_scores(groups)[0]["avg"] == 0.5
    assert list_differences(groups) == []


def test_what_a_group_lacks_is_a_row_and_an_exit_code(make_run, capsys):
    both = [make_result("heldout", [[1.0]]), make_result("aime_24", [[1.0]])]
    lacking = [make_result("heldout", [[0.0]]), {"suite": "aime_24", "missing": "no such file"}]
    paths = [make_run("a", 0, both), make_run("b", 0, lacking, steps=6)]
    assert cli.main(["compare", *paths, "--format", "csv"]) == 1
    scores, differences = capsys.readouterr().out.strip().split("\n\n")
    rows = list(csv.DictReader(io.StringIO(scores)))
    assert [(row["suite"], row["group"], row["missing"]) for row in rows] == [
        *(("heldout", "steps 5", ""), ("heldout", "steps 6", ""), ("aime_24", "steps 5", "")),
        ("aime_24", "steps 6", "b: no such file"),
    ]
    assert [row["suite"] for row in csv.DictReader(io.StringIO(differences))] == ["heldout"]
    assert cli.main(["compare", *paths, "--format", "latex"]) == 1
    latex = capsys.readouterr().out
    assert latex.count(r"\begin{tabular}") == 2 and r"aime\_24 & greedy & steps 6" in latex
    assert cli.main(["compare", paths[0], "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("| suite | profile | group |")


def test_the_terminal_shows_it_in_eighty_columns(make_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    results = [make_result("heldout", [[1, 0], [1, 1]], **SAMPLED)]
    methods = ("c3", "no_loo")
    paths = [make_run(f"run-{name}", 0, results, credit=CONFIG["credit"] | {"method": name}) for name in methods]
    assert cli.main(["compare", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "scores" in lines[0]
    assert any(line.split()[:4] == ["heldout", "greedy", "method", "no_loo"] for line in lines)
    assert any(line.startswith("Intervals of a group of one run") for line in lines)


def test_runs_without_what_is_compared_are_said(make_run, tmp_path):
    path = make_run("a", 0, [{"suite": "heldout", "profile": "greedy"}])
    with pytest.raises(UserError, match="an older evaluation"):
        load_run(path)
    for file in (tmp_path / "a" / "eval").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"expected a run with an evaluation, got none yet \(c3jax evaluate a\)"):
        load_run(path)
    with pytest.raises(UserError, match="expected a run"):
        compare_runs([str(tmp_path)], "csv", None)
