"""A tiny run that an alarm ends: its exit code and checkpoint, how it is resumed, and what its rows hold."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from rich.console import Console

from c3jax import train
from c3jax.config.file import parse_config
from c3jax.report.page import render_report
from c3jax.run.alarms import ALARMED
from c3jax.run.checkpoint import list_steps
from c3jax.run.metric_table import find_metric
from c3jax.run.metrics import read_metrics
from tests.tiny_run import TREE

WATCHED: dict[str, Any] = TREE | {
    **{"record_every": 1, "trackers": ["jsonl"], "checkpoint": {"every": 10}},
    "credit": TREE["credit"] | {"method": "value_assisted", "critic": {"network": "trunk", "learning_rate": 1e-3}},
    "learner": {"learning_rate": 1e-3, "kl": {"coefficient": 0.01}},
    "evaluation": {"every": 1, "problems": 2, "samples": 1},
    # The bound of the one is met from the first step on, and no other is.
    "alarms": {"steps": 3, "truncated": 0.0, "zero_credit": None, "duplicates": None, "stop": ["truncated"]},
}


class Watched(NamedTuple):
    """A run that was started twice."""

    path: Path
    codes: list[int]
    saved: list[list[int]]  # steps of its checkpoints after each start
    texts: list[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    path = tmp_path_factory.mktemp("watched") / "run"
    made = Watched(path, [], [], [])
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    for _ in range(2):
        console = Console(file=io.StringIO(), width=200)
        made.codes.append(train.train(parse_config(WATCHED), path, ["train"], console))
        made.saved.append(list_steps(path))
        made.texts.append(console.file.getvalue())
    jax.config.update("jax_disable_most_optimizations", before)
    return made


def test_an_alarm_that_is_to_stop_a_run_stops_it_with_its_checkpoint(watched):
    assert watched.codes[0] == ALARMED == 3
    assert watched.saved[0] == [0, 3]  # where no checkpoint was due
    assert "alarm truncated: 0% of the messages or more have met their token limit for 3 steps" in watched.texts[0]
    assert "stopped after step 3; the same command resumes it" in watched.texts[0]


def test_the_same_command_takes_it_to_its_end(watched):
    assert watched.codes[1] == train.DONE and watched.saved[1] == [0, 3, 4]
    assert "alarm truncated:" not in watched.texts[1]  # it is on, and was printed as it began
    rows = read_metrics(watched.path)
    assert [row.get("alarms") for row in rows] == [None, None, ["truncated"], ["truncated"]]
    note = "Alarm truncated was on after steps 3 to 4: messages met their token limit (alarms.truncated)."
    assert note in re.sub(r"\s+", " ", render_report([str(watched.path)]))


def test_every_figure_that_a_run_writes_is_in_the_table(watched):
    names = {name for row in read_metrics(watched.path) for name in row}
    assert {"critic_loss", "greedy_accuracy", "kl", "alarms", "duplicate_share_answer", "advantage_std"} <= names
    assert [name for name in sorted(names) if find_metric(name) is None] == []


def test_figures_of_turns_agree_with_those_of_the_step(watched):
    for row in read_metrics(watched.path):
        # Of the two plans of either problem, and the four answers.
        of_turns = (row["message_tokens_plan"] + 2 * row["message_tokens_answer"]) / 3
        assert of_turns == pytest.approx(row["message_tokens"])
        shares = [value for name, value in row.items() if find_metric(name).unit == "share"]
        assert all(0.0 <= share <= 1.0 for share in shares) and len(shares) > 12
        assert row["zero_credit_share"] == pytest.approx(
            (row["zero_credit_share_plan"] + row["zero_credit_share_answer"]) / 2
        )
