"""Recorded trees: a golden one written by hand, and the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from c3jax.config.file import parse_config
from c3jax.credit.plans import (
    count_calls,
    count_credited,
    count_generated,
    list_branches,
    make_arms,
    make_auxiliary,
    make_replay,
    make_tree,
)
from c3jax.run.records import Written, list_trees, make_records, parse_tree, save_records
from c3jax.types import Credit, Messages, Problem, UserError, Verdict

CONFIG = parse_config(
    {
        "seed": 0,
        "steps": 1,
        "problems": 2,
        "task": {"kind": "arithmetic"},
        "protocol": {
            "question_tokens": 4,
            "turns": [
                {"name": "plan", "role": "planner", "user": "{question} :", "max_tokens": 3},
                {"name": "answer", "role": "solver", "user": "{question} {plan} :", "max_tokens": 2},
            ],
        },
        "model": {"kind": "random"},
        "credit": {"method": "c3", "fan_out": [2, 2], "budget": 4, "normalise": "none"},
        "learner": {"learning_rate": 1.0},
    }
)
PROBLEMS = (Problem(7, "train-7", "sieben grün ?", "7"), Problem(3, "train-3", "three ?", "3"))
TEXTS = (("p0", "p1", "q0", "q1"), ("a00", "a01", "a10", "a11", "b00", "b01", "b10", "grün\n"))
# Problem 0's leaves return 1 0 0 0: plans are worth 1/2 and 0, and the other plan is the baseline of each.
# Problem 1's return 1 1 0 1.
VERDICTS = tuple(
    Verdict(*fields)
    for fields in (
        (1.0, "correct", "7"),
        (0.0, "wrong", "8"),
        (0.0, "unparsable", None, "no number in the message"),
        (0.0, "timeout", None),
        (1.0, "correct", "3"),
        (1.0, "correct", "3.0"),
        (0.0, "wrong", "4"),
        (1.0, "correct", "3"),
    )
)
CREDIT = Credit(
    value=(np.array([[0.5, 0.0], [1.0, 0.5]]), np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]])),
    baseline=(np.array([[0.0, 0.5], [0.5, 1.0]]), np.array([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])),
    advantage=(np.array([[0.5, -0.5], [0.5, -0.5]]), np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0]])),
)


def make_messages(counts: list[int], logps: list[float], truncated: list[bool], slots: int) -> Messages:
    """Messages of so many drawn tokens, each token with its message's log-probability; what was not drawn is 99."""
    sampled_NT = np.arange(slots) < np.array(counts)[:, None]
    return Messages(
        tokens_NT=np.zeros(sampled_NT.shape, np.int32),
        content_NT=sampled_NT,
        sampled_NT=sampled_NT,
        behaviour_logp_NT=np.where(sampled_NT, np.array(logps)[:, None], 99.0),
        support_NTK=np.zeros((*sampled_NT.shape, 0), np.int32),
        truncated_N=np.array(truncated),
    )


@pytest.fixture
def records():
    turns = (
        make_messages([1, 2, 3, 3], [-0.5, -1.0, -1.5, -2.0], [False, False, False, True], 3),
        make_messages([1, 2, 1, 2, 1, 2, 1, 2], [-0.25 * row for row in range(8)], [False] * 6 + [True] * 2, 2),
    )
    return make_records(CONFIG, make_tree((2, 2)), 40, PROBLEMS, [list(map(Written, turns, TEXTS))], CREDIT, VERDICTS)


def plan(index, text, tokens, truncated, logp, value, baseline, advantage):
    return {
        "turn": "plan",
        "role": "planner",
        "index": index,
        "text": text,
        "token_ids": [0] * tokens,
        "tokens": tokens,
        "truncated": truncated,
        "logp": logp,
        "value": value,
        "baseline": baseline,
        "advantage": advantage,
    }


def leaf(index, text, tokens, truncated, logp, value, baseline, advantage, answer, name):
    node = plan(index, text, tokens, truncated, logp, value, baseline, advantage)
    return node | {"turn": "answer", "role": "solver", "answer": answer, "return": value, "verdict": name}


HEAD = {"protocol": ["plan", "answer"], "trained": [True, True], "fan_out": [2, 2], "step": 40, "method": "c3"}
GOLDEN = [
    HEAD
    | {
        "problem": "train-7",
        "question": "sieben grün ?",
        "nodes": [
            plan([0], "p0", 1, False, -0.5, 0.5, 0.0, 0.5),
            plan([1], "p1", 2, False, -1.0, 0.0, 0.5, -0.5),
            leaf([0, 0], "a00", 1, False, 0.0, 1.0, 0.0, 1.0, "7", "correct"),
            leaf([0, 1], "a01", 2, False, -0.25, 0.0, 1.0, -1.0, "8", "wrong"),
            leaf([1, 0], "a10", 1, False, -0.5, 0.0, 0.0, 0.0, None, "unparsable"),
            leaf([1, 1], "a11", 2, False, -0.75, 0.0, 0.0, 0.0, None, "timeout"),
        ],
    },
    HEAD
    | {
        "problem": "train-3",
        "question": "three ?",
        "nodes": [
            plan([0], "q0", 3, False, -1.5, 1.0, 0.5, 0.5),
            plan([1], "q1", 3, True, -2.0, 0.5, 1.0, -0.5),
            leaf([0, 0], "b00", 1, False, -1.0, 1.0, 1.0, 0.0, "3", "correct"),
            leaf([0, 1], "b01", 2, False, -1.25, 1.0, 1.0, 0.0, "3.0", "correct"),
            leaf([1, 0], "b10", 1, True, -1.5, 0.0, 1.0, -1.0, "4", "wrong"),
            leaf([1, 1], "grün\n", 2, True, -1.75, 1.0, 0.0, 1.0, "3", "correct"),
        ],
    },
]


def test_a_tree_is_recorded_as_written_by_hand(records):
    assert records == GOLDEN


def test_a_file_is_json_lines_and_whole(records, tmp_path):
    path = tmp_path / "rollouts" / "step-000040.jsonl"
    save_records(path, records)
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines[-1] == "" and [json.loads(line) for line in lines[:-1]] == GOLDEN
    assert "grün" in lines[0]  # readable without a decoder
    assert '"truncated": false, "logp": -0.5' in lines[0]  # numbers and booleans of JSON, nothing of numpy's
    save_records(path, records[:1])
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == GOLDEN[:1]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_the_old_one(records, tmp_path):
    path = tmp_path / "step-000040.jsonl"
    save_records(path, records)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_records(path, [{"problem": object()}])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "drawn",
    [
        make_replay((2, 2), 2),
        make_replay((1, 1), 2, continues_best=True),
        make_auxiliary(2, 2, 2),
        *(make_arms(form, 2, 2, answers_again=True) for form in ("removal", "masked", "coalition")),
    ],
    ids=lambda drawn: drawn.form,
)
def test_what_another_plan_draws_is_recorded_and_read_back(drawn):
    """Every message drawn has a node, credited ones their credit, and the returns come back in the plan's order."""
    random, problems, parts = np.random.default_rng(0), len(PROBLEMS), list_branches(drawn)
    branches = []
    for number, branch in enumerate(parts):
        rows = [problems * int(np.prod(branch.fan_out[: turn + 1])) for turn in range(2)]
        texts = [[f"{number} {turn} {row}" for row in range(count)] for turn, count in enumerate(rows)]
        levels = [make_messages([1] * count, [-1.0] * count, [False] * count, 3) for count in rows]
        branches.append(list(map(Written, levels, texts)))
    calls, credited = count_calls(drawn), count_credited(drawn)
    # A leaf that is judged twice got one answer, and may get two returns.
    return_PL = random.integers(0, 9, (problems, calls)) / 8
    verdicts = [Verdict(float(value), "partial", None) for value in return_PL.ravel()]
    credit = Credit(*(tuple(random.normal(size=(problems, n)) for n in credited) for _ in range(3)))
    best = [np.array([1, 0])] * 2 if drawn.form == "best_branch" else []
    made = make_records(CONFIG, drawn, 3, PROBLEMS, branches, credit, verdicts, best)

    for number, record in enumerate(json.loads(json.dumps(made))):
        tree = parse_tree(json.dumps(record), "file:1")
        assert tree.plan == drawn and tree.return_L.tolist() == return_PL[number].tolist()
        spoken = [node for node in record["nodes"] if node["text"] and len(node["index"]) > given_of(parts, node)]
        assert len(spoken) == sum(count_generated(drawn))
        for turn, nodes in enumerate(tree.nodes):
            assert [node["advantage"] for node in nodes] == credit.advantage[turn][number].tolist()
        assert sum("advantage" in node for node in record["nodes"]) == sum(credited)
        for branch, levels in list_trees(tree):
            assert [len(level) for level in levels] == [int(np.prod(branch.fan_out[: turn + 1])) for turn in range(2)]
            for turn, given in enumerate(branch.given[:1]):
                (name,) = {node["text"] for node in levels[turn]} if given is None else {None}
                if given is not None:
                    rows = given.rows or (int(best[given.branch][number]),)
                    source = tree.branches[given.branch][turn]
                    assert levels[turn] == [source[row] for row in rows]
                assert name is None


def given_of(parts, node) -> int:
    return len(parts[node["branch"]].given)


def test_a_damaged_plan_is_refused():
    drawn = make_arms("removal", 1, 2)
    parts = [[Written(make_messages([1] * 2, [0.0] * 2, [False] * 2, 3), ["a", "b"])] * 2 for _ in list_branches(drawn)]
    credit = Credit(*((np.zeros((2, 1)),) * 2 for _ in range(3)))
    verdicts = [Verdict(0.0, "wrong", None)] * 2 * count_calls(drawn)
    record = make_records(CONFIG, drawn, 3, PROBLEMS, parts, credit, verdicts)[0]
    for plan in (None, {}, {"form": "grove", "episodes": 1}, {"form": "removal", "episodes": 10**12}, {"form": []}):
        with pytest.raises(UserError, match=r"^file:1: plan: expected a form and its sizes, got "):
            parse_tree(json.dumps(record | {"plan": plan}), "file:1")
    with pytest.raises(UserError, match=r"expected a node \[0, 0\], got none"):
        parse_tree(json.dumps(record | {"nodes": record["nodes"][:-1]}), "file:1")
    tree = parse_tree(json.dumps(record | {"branches": []}), "file:1")
    with pytest.raises(UserError, match=r"branches.1.given: expected a branch and its rows"):
        list_trees(tree)


def test_half_a_surrogate_pair_is_written_as_its_escape_and_read_back(tmp_path):
    record = {"question": "grün \ud800?", "nodes": []}
    save_records(tmp_path / "trees.jsonl", [record, record])
    lines = (tmp_path / "trees.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == ['{"question": "grün \\ud800?", "nodes": []}'] * 2
    assert [json.loads(line) for line in lines] == [record] * 2
