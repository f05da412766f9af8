"""Scoring recorded trees again: what a run recorded comes back, other methods by hand, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax.cli import main
from c3jax.commands.score import compare_methods, score_source, score_trees
from c3jax.config.file import parse_config
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_tree
from c3jax.run.records import Written, load_trees, make_records, save_records
from c3jax.types import Messages, Problem, UserError, Verdict

TURNS = ("plan", "check", "answer")


def make_config(fan_out, method, normalise, trained):
    names = TURNS[-len(fan_out) :]
    turns = [
        {
            **{"name": name, "role": f"{name}er", "max_tokens": 1, "trained": on},
            "user": "".join(f"{{{slot}}} : " for slot in ("question", *names[:place])),
        }
        for place, (name, on) in enumerate(zip(names, trained, strict=True))
    ]
    budget = math.prod(fan_out)
    return parse_config(
        {
            "seed": 0,
            "steps": 1,
            "problems": 2,
            "task": {"kind": "arithmetic"},
            "protocol": {"question_tokens": 4, "turns": turns},
            "model": {"kind": "random"},
            "credit": {"method": method, "fan_out": list(fan_out), "budget": budget, "normalise": normalise},
            "learner": {"learning_rate": 1.0},
        }
    )


def record_step(step, fan_out, method, normalise="none", trained=None, problems=2) -> list[dict[str, Any]]:
    """A step's records as a run writes them, of random returns."""
    trained = trained or (True,) * len(fan_out)
    return_PL = np.random.default_rng(step).choice([0.0, 0.3, 1.0], size=(problems, math.prod(fan_out)))
    matrix, random = make_credit_matrix(method, make_tree(fan_out), trained), np.random.default_rng(step)
    gradient = tuple(random.uniform(size=(problems, len(value_NL))) for value_NL in matrix.value)
    inputs = CreditInputs(matrix, fan_out, gradient=gradient, likelihood=gradient)
    credit = compute_credit(method, inputs, return_PL, normalise=normalise)
    rows = [problems * math.prod(fan_out[: turn + 1]) for turn in range(len(fan_out))]
    levels = tuple(
        Messages(
            tokens_NT=np.zeros((n, 1), np.int32),
            content_NT=np.zeros((n, 1), bool),
            sampled_NT=np.zeros((n, 1), bool),
            behaviour_logp_NT=np.zeros((n, 1), np.float32),
            support_NTK=np.zeros((n, 1, 0), np.int32),
            truncated_N=np.zeros(n, bool),
            gradient_N=gradient[turn].reshape(-1) if method == "otb" else None,
            likelihood_N=gradient[turn].reshape(-1) if method == "igpo" else None,
        )
        for turn, n in enumerate(rows)
    )
    return make_records(
        make_config(fan_out, method, normalise, trained),
        make_tree(fan_out),
        step,
        [Problem(index, f"train-{index}", "?", "1") for index in range(problems)],
        [[Written(level, [f"m{row}" for row in range(n)]) for level, n in zip(levels, rows, strict=True)]],
        credit,
        [Verdict(float(value), "partial", None) for value in return_PL.ravel()],
    )


def make_record(return_L, fan_out=(2, 2), **changes) -> dict[str, Any]:
    """A tree with nothing in it but what scoring reads."""
    nodes: list[dict[str, Any]] = []
    for depth, turn in enumerate(TURNS[-len(fan_out) :]):
        nodes += [{"turn": turn, "role": f"{turn}er", "index": list(i)} for i in np.ndindex(fan_out[: depth + 1])]
    for leaf, value in zip(nodes[-len(return_L) :], return_L, strict=True):
        leaf["return"] = value
    return {"protocol": TURNS[-len(fan_out) :], "fan_out": list(fan_out), "step": 0, "nodes": nodes} | changes


def list_advantages(record) -> list[float]:
    return [node["advantage"] for node in record["nodes"]]


@pytest.mark.parametrize(
    ("fan_out", "method", "normalise", "trained"),
    [
        ((2, 2), "c3", "none", (True, True)),
        ((2, 2, 2), "c3", "batch", (True, False, True)),
        ((1, 4), "c3", "group", (False, True)),
        ((4, 2), "no_loo", "group", (True, True)),
        ((2, 3), "no_replay", "turn", (True, True)),
        ((2, 2), "tree_rl", "none", (True, True)),
        ((8, 1), "rloo", "none", (True, True)),
        ((4, 1, 1), "magrpo", "batch", (True, True, False)),
        ((4, 1), "grpo", "group", (True, True)),
        ((4, 1), "reinforce", "none", (True, True)),
        ((4, 1), "otb", "none", (True, False)),
        ((4, 1), "igpo", "group", (True, False)),
    ],
)
def test_a_run_scored_with_its_own_method_is_what_it_recorded(tmp_path, fan_out, method, normalise, trained):
    recorded = []
    for step in (7, 40):
        recorded += record_step(step, fan_out, method, normalise, trained)
        save_records(tmp_path / "run" / "rollouts" / f"step-{step:06d}.jsonl", recorded[-2:])
    assert score_source(tmp_path / "run", method, normalise, tmp_path / "out.jsonl", Console(quiet=True)) == 0
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    for before, after in zip(recorded, scored, strict=True):
        assert after.pop("normalise") == normalise
        for old, new in zip(before.pop("nodes"), after.pop("nodes"), strict=True):
            for name in ("value", "baseline", "advantage"):
                assert new.pop(name) == pytest.approx(old.pop(name), abs=1e-6)
            assert new == old
        assert after == before


def test_other_methods_by_hand(tmp_path):
    save_records(tmp_path / "trees.jsonl", [make_record([1, 0, 0, 0])])
    trees = load_trees(tmp_path / "trees.jsonl")
    # Plans are worth 1/2 and 0; leaves are compared with their sibling, or with the three others.
    assert list_advantages(score_trees(trees, "c3", "none")[0]) == pytest.approx([0.5, -0.5, 1, -1, 0, 0], abs=1e-6)
    assert list_advantages(score_trees(trees, "no_replay", "none")[0]) == pytest.approx(
        [0.5, -0.5, 1, -1 / 3, -1 / 3, -1 / 3], abs=1e-6
    )
    # (V - 1/4) + (V - V(parent)): plans 1/4 + 1/4, leaves 3/4 + 1/2, -1/4 - 1/2, -1/4 + 0.
    (record,) = score_trees(trees, "tree_rl", "none")
    assert list_advantages(record) == pytest.approx([0.5, -0.5, 1.25, -0.75, -0.25, -0.25], abs=1e-6)
    assert [node["value"] - node["baseline"] for node in record["nodes"]] == pytest.approx(list_advantages(record))
    assert (record["method"], record["normalise"]) == ("tree_rl", "none")


def test_nodes_may_stand_in_any_order_and_shapes_may_differ(tmp_path):
    shuffled = make_record([1, 0, 0, 0])
    shuffled["nodes"].reverse()
    other = make_record([0, 1, 1, 0, 1, 0], (3, 2))
    save_records(tmp_path / "trees.jsonl", [shuffled, other, make_record([0, 0, 0, 1]), make_record([1, 0], (2,))])
    scored = score_trees(load_trees(tmp_path / "trees.jsonl"), "c3", "none")
    assert [record["fan_out"] for record in scored] == [[2, 2], [3, 2], [2, 2], [2]]
    assert list_advantages(scored[0]) == pytest.approx([0, 0, -1, 1, -0.5, 0.5], abs=1e-6)
    assert list_advantages(scored[1]) == pytest.approx([0, 0, 0, -1, 1, 1, -1, 1, -1], abs=1e-6)
    assert list_advantages(scored[2]) == pytest.approx([-0.5, 0.5, 0, 0, -1, 1], abs=1e-6)
    assert list_advantages(scored[3]) == pytest.approx([1, -1], abs=1e-6)


def test_a_batch_is_the_trees_of_one_step(tmp_path):
    """Advantages of one turn +-1 and +-3, std sqrt(5) together and 1 and 3 apart."""
    for steps, expected in (((0, 0), [1 / 5**0.5, 3 / 5**0.5]), ((0, 1), [1.0, 1.0])):
        records = [make_record([r, 0], (2,), step=step) for r, step in zip((1, 3), steps, strict=True)]
        save_records(tmp_path / "trees.jsonl", records)
        scored = score_trees(load_trees(tmp_path / "trees.jsonl"), "c3", "turn")
        assert [list_advantages(record)[0] for record in scored] == pytest.approx(expected, abs=1e-6)


def test_a_run_is_read_in_the_order_of_its_steps(tmp_path):
    for name, step in (("step-1000000", 1000000), ("step-000009", 9), ("step-999999", 999999)):
        save_records(tmp_path / "rollouts" / f"{name}.jsonl", [make_record([1, 0], (2,), step=step)])
    assert [tree.record["step"] for tree in load_trees(tmp_path)] == [9, 999999, 1000000]


HELD = "this tree holds c3, no_loo, no_replay, "


@pytest.mark.parametrize(
    ("method", "normalise", "record", "message"),
    [
        ("shapley", "none", make_record([1, 0, 0, 0]), f"expected a plan of form coalition, got tree; {HELD}"),
        ("mappo", "none", make_record([1, 0], (2, 1)), "method mappo: expected a critic's values, got a recorded tree"),
        ("shrunk", "none", make_record([1, 0, 0, 0]), f"expected variance components of all earlier steps, .*; {HELD}"),
        ("rloo", "none", make_record([1, 0, 0, 0]), rf"expected fan_out \(B, 1, ..., 1\), got \(2, 2\); {HELD}"),
        ("c3", "none", make_record([1, 0], (2, 1)), "method c3 would give turn 1 zero credit: .* holds .*rloo, .*grpo"),
        ("c3", "none", make_record([1], (1,)), "c3 would give turn 0 zero credit: .*; this tree holds reinforce$"),
        ("otb", "none", make_record([1, 0], (2, 1)), "expected the gradient of every message, which .* got none; this"),
        ("c3", "std", make_record([1, 0, 0, 0]), "^--normalise: method c3: expected normalise none or .*, got 'std'"),
        (
            "grpo",
            "none",
            make_record([1, 0], (2, 1)),
            "^--normalise: method grpo: expected normalise group, got 'none'",
        ),
        ("c4", "none", make_record([1, 0, 0, 0]), "^--method: expected one of c3, .*, got 'c4'"),
    ],
)
def test_a_method_that_the_tree_does_not_hold_is_refused_by_name(tmp_path, method, normalise, record, message):
    save_records(tmp_path / "trees.jsonl", [record])
    with pytest.raises(UserError, match=message) as refusal:
        score_source(tmp_path / "trees.jsonl", method, normalise, tmp_path / "out.jsonl", Console(quiet=True))
    assert str(refusal.value).startswith(("--", f"{tmp_path}/trees.jsonl:1: ")) and "\n" not in str(refusal.value)
    assert not (tmp_path / "out.jsonl").exists()


def change(path: str, value: Any) -> str:
    """The line of a good record with one thing in it changed, or taken out where the value is ..."""
    record = json.loads(json.dumps(make_record([1, 0, 0, 0])))
    *parents, last = path.split(".")
    at: Any = record
    for name in parents:
        at = at[int(name) if name.isdigit() else name]
    last = int(last) if last.isdigit() else last
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "expected a JSON object, got something else"),
        ("\udcff", "expected a JSON object, got something else"),
        ("[]", "expected a JSON object, got another kind of JSON"),
        (change("nodes", ...), "nodes: expected a list, got none"),
        (change("protocol", 3), "protocol: expected a list, got 3"),
        (change("step", "x"), 'step: expected an integer, got "x"'),
        (change("fan_out", [2]), "fan_out: expected a positive integer for each of 2 turns, got (2,)"),
        (change("fan_out.1", 0), "fan_out: expected a positive integer for each of 2 turns, got (2, 0)"),
        (change("fan_out.1", 10**12), "expected a node [0, 2], got none"),
        (change("fan_out.1", 1), "nodes.3: expected an index within fan_out (2, 1), got [0, 1]"),
        (change("trained", [True]), "trained: expected true or false for each of 2 turns, got [true]"),
        (change("nodes.0", 3), "nodes.0: expected an index within fan_out (2, 2), got null"),
        (change("nodes.0.index", [0.0]), "nodes.0: expected an index within fan_out (2, 2), got [0.0]"),
        (change("nodes.5.index", [1, 0]), "node [1, 0]: expected every index once, got it twice"),
        (change("nodes.1", ...), "expected a node [1], got none"),
        (change("nodes.4", ...), "expected a node [1, 0], got none"),
        (change("nodes.1.turn", "answer"), 'node [1]: expected turn "check" and a role, got "answer" and "checker"'),
        (change("nodes.1.role", ...), 'node [1]: expected turn "check" and a role, got "check" and null'),
        (change("nodes.2.return", ...), "leaf [0, 0]: expected a finite number as its return, got none"),
        (change("nodes.2.return", "1"), 'leaf [0, 0]: expected a finite number as its return, got "1"'),
        (change("nodes.2.return", True), "leaf [0, 0]: expected a finite number as its return, got true"),
        (change("nodes.2.return", math.nan), "leaf [0, 0]: expected a finite number as its return, got NaN"),
        (change("nodes.2.return", 10**400), "leaf [0, 0]: expected a finite number as its return, got 1" + 79 * "0"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path, line, reason):
    path = tmp_path / "trees.jsonl"
    good = json.dumps(make_record([1, 0, 0, 0]))
    path.write_bytes(f"{good}\n{line}\n{good}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as refusal:
        load_trees(path)
    assert str(refusal.value) == f"{path}:2: {reason}"


def test_no_trees_are_said(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, message in (
        ("empty.jsonl", "empty.jsonl: expected recorded trees, found none"),
        ("", "rollouts: expected recorded trees, found none"),
        ("nothing.jsonl", r"nothing.jsonl: cannot be read \(No such file or directory\)"),
    ):
        with pytest.raises(UserError, match=message):
            load_trees(tmp_path / name)


def test_signs_are_compared_by_role_by_hand(tmp_path):
    # c3 +.5 -.5 | +1 -1 0 0 and no_replay +.5 -.5 | +1 -1/3 -1/3 -1/3; for the returns 0 0 0 1, mirrored.
    # For 1 .5 0 0: c3's leaves +.5 -.5 0 0, no_replay's +5/6 +1/6 -1/2 -1/2: opposite once, in [0, 1].
    save_records(
        tmp_path / "a.jsonl", [make_record([1, 0, 0, 0]), make_record([0, 0, 0, 1]), make_record([1, 0.5, 0, 0])]
    )
    rows = compare_methods(load_trees(tmp_path / "a.jsonl"), ["c3", "no_replay"])
    shared = {"methods": "c3 / no_replay"}
    assert rows == [
        shared | {"role": "checker", "messages": 6, "opposite": 0, "share": 0.0, "one_zero": 0, "both_zero": 0},
        shared | {"role": "answerer", "messages": 12, "opposite": 1, "share": 1 / 6, "one_zero": 6, "both_zero": 0},
    ]
    # A turn that was not trained has no credit to compare, and no credit at all has no share.
    save_records(tmp_path / "b.jsonl", [make_record([1, 1, 1, 1], trained=[False, True])])
    (row,) = compare_methods(load_trees(tmp_path / "b.jsonl"), ["c3", "no_replay"])
    assert (row["role"], row["both_zero"]) == ("answerer", 4) and math.isnan(row["share"])


@pytest.fixture
def shell(tmp_path, monkeypatch) -> Iterator[None]:
    """An empty working directory; what a command sets for the whole process is set back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    before = {
        "jax_default_matmul_precision": jax.config.jax_default_matmul_precision,
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
        "jax_persistent_cache_min_compile_time_secs": jax.config.jax_persistent_cache_min_compile_time_secs,
    }
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_command(shell, capsys):
    save_records(Path("run/rollouts/step-000000.jsonl"), record_step(0, (4, 1), "rloo"))
    assert main("score run --method magrpo --out out/scored.jsonl".split()) == 0
    assert capsys.readouterr().out == "2 trees, 16 messages, credit of magrpo: out/scored.jsonl\n"
    assert json.loads(Path("out/scored.jsonl").read_text().splitlines()[0])["method"] == "magrpo"
    recorded = Path("run/rollouts/step-000000.jsonl").read_bytes()
    for out in ("run/rollouts/step-000000.jsonl", "run/rollouts/new.jsonl"):
        assert main(["score", "run", "--method", "magrpo", "--out", out]) == 2
        sentence = f"c3jax: --out {out}: expected a file that is none of the recorded ones, got one of run\n"
        assert capsys.readouterr().err == sentence
    assert Path("run/rollouts/step-000000.jsonl").read_bytes() == recorded
    assert main("score run --compare rloo,grpo,reinforce".split()) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and shown.count("rloo / grpo") == 2
    assert main("score run --compare rloo,magrpo --json".split()) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["role"], row["opposite"], row["messages"]) for row in rows] == [("checker", 0, 8), ("answerer", 0, 8)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--method c3", "--out: expected a file for the trees with --method, and none with --compare"),
        ("--compare c3,rloo --out x", "--out: expected a file for the trees with --method, and none with --compare"),
        ("--compare c3", "--compare: expected two or more different methods, got 'c3'"),
        ("--compare c3,c3", "--compare: expected two or more different methods, got 'c3,c3'"),
        ("--method c3 --out x", "nothing: cannot be read (No such file or directory)"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(shell, capsys, words, sentence):
    source = "nothing" if sentence.startswith("nothing") else "."
    assert main(["score", source, *words.split()]) == 2
    assert capsys.readouterr() == ("", f"c3jax: {sentence}\n")
