"""Recorded trees: a golden one written by hand, and the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from c3jax.config.file import parse_config
from c3jax.run.records import make_records, save_records
from c3jax.types import Credit, Messages, Problem, Verdict

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
    return make_records(CONFIG, (2, 2), 40, PROBLEMS, turns, TEXTS, CREDIT, VERDICTS)


def plan(index, text, tokens, truncated, logp, value, baseline, advantage):
    return {
        "turn": "plan",
        "role": "planner",
        "index": index,
        "text": text,
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
    with pytest.raises(UnicodeEncodeError):  # text that UTF-8 cannot hold
        save_records(path, [{"problem": "\ud800"}])
    assert path.read_bytes() == before
