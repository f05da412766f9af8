"""Configs laid over others: what merges, what replaces, and where a complaint says that its field stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from c3jax.config.file import load_config, name_config, read_tree
from c3jax.schema import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PAPER = sorted((CONFIGS / "paper").glob("*.yaml"))


def write(folder: Path, **texts: str) -> Path:
    """Files of the folder by their stems; the path of the last."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(reversed(texts))}.yaml"


def list_refusal(path: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# Merging


def test_sections_merge_and_lists_and_scalars_replace(tmp_path):
    path = write(
        tmp_path,
        below="a: {b: 1, c: {d: 2, e: 3}, f: [1, 2]}\ng: 4\nh: {i: 5}",
        above="base: below.yaml\na: {c: {d: 6}, f: [7]}\ng: {j: 8}\nh: null",
    )
    assert read_tree(path) == {"a": {"b": 1, "c": {"d": 6, "e": 3}, "f": [7]}, "g": {"j": 8}, "h": None}


def test_a_section_of_another_kind_replaces_the_whole(tmp_path):
    path = write(tmp_path, below="m: {kind: x, only: 1}\nn: {kind: x, only: 1}", above="base: below.yaml\nm: {kind: y}")
    assert read_tree(path) == {"m": {"kind": "y"}, "n": {"kind": "x", "only": 1}}


def test_indices_change_entries_of_a_list(tmp_path):
    path = write(
        tmp_path, below="t: [{a: 1, b: 2}, {a: 3}, 4]", above="base: below.yaml\nt: {0: {b: 5}, 2: 6}", empty="t: {}"
    )
    assert read_tree(tmp_path / "above.yaml") == {"t": [{"a": 1, "b": 5}, {"a": 3}, 6]}
    path.write_text("base: below.yaml\nt: {}")
    assert read_tree(path) == read_tree(tmp_path / "below.yaml")


def test_later_bases_win_and_a_shared_one_is_laid_below_all(tmp_path):
    """Read through each of its heirs, the root would undo what the first of them changes."""
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", root="a: 1\nb: 1\nc: 1\nd: 1")
    write(tmp_path, left="base: deep/root.yaml\na: 2\nb: 2", right="base: deep/root.yaml\nb: 3\nc: 3")
    path = write(tmp_path, top="base: [left.yaml, right.yaml]\nc: 4")
    assert read_tree(path) == {"a": 2, "b": 3, "c": 4, "d": 1}


def test_a_base_is_looked_for_beside_its_config_and_then_among_those_of_the_package(tmp_path):
    path = write(tmp_path, mine="base: quickstart\nsteps: 3")
    assert load_config(path) == load_config("quickstart", {"steps": 3})
    write(tmp_path, quickstart="steps: 7")
    path.write_text("base: quickstart.yaml")
    assert read_tree(path) == {"steps": 7}


def test_overrides_are_laid_over_bases_too(tmp_path):
    path = write(tmp_path, mine="base: quickstart\nsteps: 3")
    config = load_config(path, {"steps": 4, "credit.method": "magrpo"})
    assert (config.steps, config.credit.method, config.credit.fan_out) == (4, "magrpo", (8, 1))


# --------------------------------------------------------------------------------------------------------------------
# Complaints


def test_a_complaint_names_the_file_and_line_where_its_field_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path,
        below="learner:\n  epochs: 0\n  minibatches: 2\n  unknown: 1\ncredit: {fan_out:\n  [2, 0]}",
        above="base: [quickstart, below.yaml]\n\nlearner:\n  minibatches: 5\n",
    )
    ok = {"learner.epochs": 1, "learner.unknown": None, "credit.fan_out": [2, 4]}

    def refuse(*left: str) -> str:
        return list_refusal(path, {name: value for name, value in ok.items() if name not in left})

    assert refuse("learner.epochs").endswith(
        "learner.epochs: expected greater than or equal to 1, got 0 (below.yaml, line 2)"
    )
    assert refuse("credit.fan_out").endswith("got 0 (below.yaml, line 6)")
    (tmp_path / "below.yaml").write_text("learner:\n  minibatches: 2\n\n  unknown: 1\n")
    assert list_refusal(path).endswith("got an unknown one (below.yaml, line 4)")
    (tmp_path / "below.yaml").write_text("seed: 1")
    assert list_refusal(path) == (
        "learner.minibatches: expected a divisor of problems (64), got 5 (above.yaml, line 4)"
    )
    assert list_refusal(path, {"learner.minibatches": 7}).endswith("got 7")  # of the command line
    assert list_refusal(path, {"learner": {"minibatches": 7}}).startswith("learner.learning_rate: expected a value")


def test_what_stands_in_a_replaced_section_is_not_where_a_complaint_points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path,
        below="base: quickstart\nmodel: {kind: hub,\n  name: some/model}",
        above="base: below.yaml\nmodel:\n  kind: folder\n",
    )
    assert list_refusal(path) == "model.path: expected a value, got nothing (above.yaml, line 2)"


def test_a_config_without_bases_is_complained_of_as_ever(tmp_path):
    path = write(tmp_path, mine=yaml.safe_dump(read_tree("quickstart") | {"steps": 0}))
    assert list_refusal(path) == "steps: expected greater than or equal to 1, got 0"


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({"a": "\nbase: none.yaml"}, "base: expected a YAML file, found none at none.yaml (a.yaml, line 2)"),
        ({"a": "base: a.yaml"}, "config a.yaml: expected bases that end somewhere, got a.yaml -> a.yaml"),
        (
            {"c": "base: b.yaml", "b": "base: [c.yaml]", "a": "base: b.yaml"},
            "config a.yaml: expected bases that end somewhere, got b.yaml -> c.yaml -> b.yaml",
        ),
        ({"a": "base: 3"}, "base: expected a YAML file or a list of them, got 3 (a.yaml, line 1)"),
        (
            {"a": "base: [x.yaml, 3]"},
            'base: expected a YAML file or a list of them, got ["x.yaml", 3] (a.yaml, line 1)',
        ),
        ({"b": "seed: [", "a": "base: b.yaml"}, "config b.yaml: not valid YAML (line 1: expected the node content"),
        ({"b": "- 1", "a": "base: b.yaml"}, "config b.yaml: expected a mapping of sections, got [1]"),
        (
            {"b": "t: [1, 2]", "a": "base: b.yaml\nt: {2: 3}"},
            "t.2: expected an index below 2 in the list, got 2 (a.yaml, line 2)",
        ),
    ],
)
def test_bases_that_cannot_be_are_refused_in_one_sentence(tmp_path, monkeypatch, texts, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, **texts)
    assert list_refusal(Path("a.yaml")).startswith(sentence)


# --------------------------------------------------------------------------------------------------------------------
# The paper's runs


def test_the_papers_runs_are_every_team_and_method_of_every_model():
    runs = ("maths_qwen2.5_3b", "maths_qwen3_4b", "code_qwen2.5_coder_3b")
    methods = ("c3", "magrpo", "mappo", "no_loo", "no_replay")
    expected = {f"{run}_{team}_{method}" for run in runs for team in ("duo", "trio") for method in methods}
    assert {name_config(path) for path in PAPER} == expected
    deeper = {f"maths_qwen3_4b_{team}_{method}" for team in ("chain5", "chain10", "branch") for method in methods[:2]}
    assert {name_config(path) for path in (CONFIGS / "paper" / "long").glob("*.yaml")} == expected | deeper


@pytest.mark.parametrize("path", PAPER, ids=name_config)
def test_a_run_of_the_paper_has_the_settings_that_its_name_and_the_paper_say(path):
    name = name_config(path)
    config, learner = load_config(path), load_config(path).learner
    method = next(method for method in ("c3", "magrpo", "mappo", "no_loo", "no_replay") if name.endswith(method))
    flat = method in ("magrpo", "mappo")
    is_duo = "_duo_" in name
    assert config.credit.method == method and config.credit.budget == 8
    assert config.credit.fan_out == (((8, 1) if flat else (2, 4)) if is_duo else ((8, 1, 1) if flat else (2, 2, 2)))
    assert config.credit.normalise == ("batch" if method == "mappo" else "none")
    assert config.model.name.lower().replace("-", "_").startswith(f"qwen/{name.split('_', 1)[1].split('b_')[0]}b")
    assert config.task.kind == ("math" if name.startswith("maths") else "code")
    roles = ["reasoner", "actor"] + ["verifier"] * (not is_duo)
    assert [turn.role for turn in config.protocol.turns] == roles
    assert {turn.max_tokens for turn in config.protocol.turns} == {512}
    assert config.sampling.model_dump() == {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
    assert (config.problems, config.evaluation.samples) == (256, 10)
    assert (learner.epochs, learner.learning_rate, learner.schedule, learner.final_share) == (5, 1e-6, "cosine", 0.1)
    assert learner.warmup_updates == -(-config.steps * learner.epochs * 3 // 100)
    assert (learner.adam_b1, learner.adam_b2, learner.max_grad_norm) == (0.9, 0.95, 1.0)
    assert (learner.loss.clip_low, learner.loss.clip_high) == (0.2, 0.2)
    assert (learner.kl.coefficient, learner.kl.target, learner.kl.estimator) == (0.01, 0.1, "k3")
    assert (config.credit.critic is not None) == (method == "mappo")
    assert config.credit.critic is None or config.credit.critic.learning_rate == 5e-5


@pytest.mark.parametrize("path", PAPER, ids=name_config)
def test_a_long_run_differs_in_the_cap_and_in_what_mathematics_is_measured_on(path):
    short, long = load_config(path), load_config(path.parent / "long" / path.name)
    caps = {f"protocol.turns.{turn}.max_tokens": 2048 for turn in range(len(short.protocol.turns))}
    suites = ["minerva_math", "amc23", "aime24", "aime25", "gsm8k", "cmath"]
    measured = {"evaluation.samples": 4, "evaluation.suites": long.model_dump()["evaluation"]["suites"]}
    is_maths = path.name.startswith("maths")
    assert [suite.name for suite in long.evaluation.suites] == (suites if is_maths else ["mbppplus"])
    assert long == load_config(path, caps | measured if is_maths else caps) != short


def test_a_run_of_the_paper_is_found_by_its_name():
    name = "paper/long/maths_qwen2.5_3b_duo_c3"
    assert load_config(name) == load_config(CONFIGS / f"{name}.yaml")
    assert name_config(name) == "maths_qwen2.5_3b_duo_c3"
    with pytest.raises(
        ConfigError,
        match=r"^paper/maths: expected a YAML file, or one of .*math_qwen, paper/\.\.\., quickstart, .*, found none$",
    ):
        load_config("paper/maths")
