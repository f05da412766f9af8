"""Alarms: when each begins and ends, found in rows made by hand, and a run that one of them ends."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from c3jax.config.file import parse_config
from c3jax.run.alarms import ALARMED, ALARMS, Watch, find_alarms

TREE: dict[str, Any] = {
    **{"seed": 0, "steps": 20, "problems": 2, "workers": 1},
    "task": {"kind": "arithmetic"},
    "protocol": {
        "question_tokens": 9,
        "turns": [
            {"name": "plan", "role": "planner", "user": "{question} plan :", "max_tokens": 8},
            {"name": "answer", "role": "solver", "user": "{plan} answer :", "max_tokens": 4},
            {"name": "audit", "role": "auditor", "user": "{answer} :", "max_tokens": 4, "trained": False},
        ],
    },
    "model": {"kind": "random"},
    "credit": {"method": "c3", "fan_out": [2, 2, 1], "budget": 4, "normalise": "none"},
    "learner": {"learning_rate": 1e-3},
    "alarms": {"steps": 3},
}
GOOD = {
    **{"return": 0.25, "entropy": 0.5, "kl": 0.1, "message_tokens": 20.0, "truncated_share": 0.1},
    **{"truncated_share_plan": 0.0, "truncated_share_answer": 0.2, "truncated_share_audit": 0.0},
    **{"zero_credit_share": 0.5, "zero_credit_share_plan": 0.5, "zero_credit_share_answer": 0.5},
    **{"zero_credit_share_audit": 1.0, "duplicate_share_plan": 0.1, "duplicate_share_answer": 0.5},
}


def make_rows(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Four good steps, and those that differ from them."""
    return [{"step": step} | GOOD | change for step, change in enumerate([{}, {}, {}, {}, *changes])]


def make_config(**alarms: Any):
    return parse_config(TREE | {"alarms": TREE["alarms"] | alarms})


IDLE = {"zero_credit_share": 0.8, "zero_credit_share_plan": 1.0}
BAD = [
    ("entropy", {"entropy": 0.009}, {"entropy": 0.01}, "below 0.01 nats a token for 3 steps"),
    ("length", {"message_tokens": 81.0}, {"message_tokens": 80.0}, "more than 4 times as long as at first"),
    ("length", {"message_tokens": 4.9}, {"message_tokens": 5.0}, "shorter than at first for 3 steps (5 tokens now, 20"),
    ("kl", {"kl": 1.1}, {"kl": 1.0}, "above 1 nats a token for 3 steps (1.1 now)"),
    ("zero_credit", {"zero_credit_share": 1.0}, {"zero_credit_share": 0.99}, "(mean return 0.25); take easier"),
    ("idle_role", IDLE, IDLE | {"zero_credit_share_plan": 0.99}, "role planner has had no credit for 3 steps"),
    ("duplicates", {"duplicate_share_answer": 1.0}, {}, "of turn answer 99% or more of the alternatives"),
    ("truncated", {"truncated_share": 0.5}, {"truncated_share": 0.49}, "most in turn answer; raise protocol.turns.1."),
]


@pytest.mark.parametrize(("name", "bad", "better", "text"), BAD, ids=[f"{row[0]}-{n}" for n, row in enumerate(BAD)])
def test_an_alarm_is_on_while_as_many_steps_in_a_row_are_beyond_its_bound(name, bad, better, text):
    config = make_config()
    assert find_alarms(config, make_rows(bad, bad)) == {}
    found = find_alarms(config, make_rows(bad, bad, bad))
    assert [*found] == [name] and text in found[name]
    assert find_alarms(config, make_rows(bad, bad, bad, bad)).keys() == {name}
    assert find_alarms(config, make_rows(bad, better, bad)) == {}  # the bound itself is not beyond it
    assert find_alarms(config, make_rows(bad, bad, bad, better)) == {}
    assert find_alarms(make_config(**{name: None}), make_rows(bad, bad, bad)) == {}


def test_every_alarm_has_a_case_and_a_bound():
    assert {row[0] for row in BAD} == set(ALARMS) == set(make_config().alarms.model_dump()) - {"steps", "stop"}


def test_of_roles_that_all_lack_credit_none_is_named():
    bad = {"zero_credit_share": 1.0, "zero_credit_share_plan": 1.0, "zero_credit_share_answer": 1.0, "return": 0.9}
    found = find_alarms(make_config(), make_rows(bad, bad, bad))
    assert [*found] == ["zero_credit"] and "take harder problems" in found["zero_credit"]


@pytest.mark.parametrize("bad", [IDLE, {"duplicate_share_answer": 1.0}])
def test_what_is_solved_may_be_alike(bad):
    """Of three returns the mean counts: 0.89 is on and 0.91 is off."""
    for least, names in ((0.87, 1), (0.93, 0)):
        steps = [bad | {"return": value} for value in (0.95, 0.85, least)]
        assert len(find_alarms(make_config(), make_rows(*steps))) == names


def test_figures_that_are_missing_or_not_finite_raise_no_alarm():
    rows = make_rows(*3 * [{"kl": float("nan"), "message_tokens": float("nan"), "truncated_share": float("nan")}])
    assert find_alarms(make_config(), rows) == {}
    bare = [{name: value for name, value in row.items() if name != "entropy"} for row in rows]
    assert find_alarms(make_config(), bare) == {}


def test_steps_in_which_a_critic_learns_alone_are_not_looked_at():
    credit = TREE["credit"] | {
        "method": "value_assisted",
        "critic": {"network": "trunk", "learning_rate": 1e-3, "critic_only_steps": 3},
    }
    config = parse_config(TREE | {"credit": credit})
    idle = {
        "entropy": 0.0,
        "message_tokens": 200.0,
    }  # the policy's figures are 0 then; other lengths are no first steps
    rows = [{"step": step} | GOOD | (idle if step < 3 else {}) for step in range(8)]
    assert all(find_alarms(config, rows[:count]) == {} for count in range(9))
    late = [*rows, *({"step": 8 + step} | GOOD | {"message_tokens": 90.0} for step in range(3))]
    assert [*find_alarms(config, late)] == ["length"]


def watch(config, rows: list[dict[str, Any]], first: int, known: list[dict[str, Any]]) -> tuple[list, list, str]:
    """The rows from `first` on as a run writes them, the exit codes after each, and what is printed."""
    console = Console(file=io.StringIO(), width=80)
    watch, written, codes = Watch(config, known, console), [], []
    for row in rows[first:]:
        written.append(row | watch.check(row["step"], row))
        codes.append(watch.code)
    return written, codes, console.file.getvalue()


def test_a_run_taken_up_anywhere_has_the_same_alarms_and_says_each_once():
    bad, worse = {"kl": 2.0}, {"kl": 2.0, "truncated_share": 1.0}
    rows, config = make_rows(bad, bad, bad, worse, worse, worse, worse, {}, {}), make_config(stop=["truncated"])
    whole, codes, text = watch(config, rows, 0, [])
    on = [row.get("alarms", []) for row in whole]
    assert on == [[]] * 6 + [["kl"]] * 3 + [["kl", "truncated"]] * 2 + [[]] * 2
    assert codes == [0] * 9 + [ALARMED] + [0] * 3  # as it begins, so that a run that is started again goes on
    lines = text.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "alarm kl",
        "alarm truncated",
        "alarm kl is over after step 12",
        "alarm truncated is over after step 12",
    ]
    for first in range(1, len(rows)):
        again, codes_again, _ = watch(config, rows, first, whole[:first])
        assert again == whole[first:] and codes_again == codes[first:]
