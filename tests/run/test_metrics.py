"""Metrics: whole lines, exact resumption, and the clock kept apart."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from c3jax.run.metrics import (
    MetricsError,
    Progress,
    announce,
    drop_times,
    is_time_figure,
    open_metrics,
    read_metrics,
    sum_ledger,
)


def figures(step: int, seconds: float) -> dict:
    return {"loss": 1 / (step + 1), "evaluator_calls": 8 * step, "seconds_rollout": seconds, "tokens_per_second": 9.0}


def write_steps(run_dir: Path, first: int, last: int, seconds: float = 1.0) -> None:
    write, close = open_metrics(run_dir, first)
    for step in range(first, last):
        write(step, figures(step, seconds))
    close()


def test_a_line_is_one_strict_json_object(tmp_path):
    odd = {
        "loss": math.nan,
        "grad_norm": np.float32(np.inf),
        "low": -math.inf,
        "half": np.float32(0.5),
        "count": np.int64(3),
        "accuracy_by_turn": np.array([0.25, np.nan]),
        "is_resumed": True,
        "missing": None,
        "note": "grün",
    }
    write, close = open_metrics(tmp_path, 0)
    write(0, odd)
    # Read while the writer has it open: the line is whole already.
    line = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    close()
    assert line == (
        '{"step": 0, "loss": "NaN", "grad_norm": "Infinity", "low": "-Infinity", "half": 0.5, "count": 3,'
        ' "accuracy_by_turn": [0.25, "NaN"], "is_resumed": true, "missing": null, "note": "grün"}\n'
    )
    [row] = read_metrics(tmp_path)
    assert math.isnan(row["loss"]) and row["grad_norm"] == math.inf and row["low"] == -math.inf
    assert row["accuracy_by_turn"][0] == 0.25 and math.isnan(row["accuracy_by_turn"][1])
    assert (row["half"], row["count"], row["is_resumed"], row["missing"], row["note"]) == (0.5, 3, True, None, "grün")


def test_a_figure_that_json_cannot_say_is_refused_and_nothing_is_written(tmp_path):
    write, close = open_metrics(tmp_path, 0)
    with pytest.raises(TypeError):
        write(0, {"loss": object()})
    close()
    assert read_metrics(tmp_path) == []


def test_a_resumed_file_is_the_uninterrupted_one_but_for_times(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    write_steps(whole, 0, 9)
    write_steps(resumed, 0, 7, seconds=2.0)
    with (resumed / "metrics.jsonl").open("ab") as file:  # killed at step 7, three steps after its checkpoint of step 4
        file.write(b'{"step": 7, "loss": 0.1')
    before = (resumed / "metrics.jsonl").read_bytes().splitlines()
    write_steps(resumed, 4, 9, seconds=3.0)
    after = (resumed / "metrics.jsonl").read_bytes().splitlines()
    assert after[:4] == before[:4] and len(after) == 9
    assert [row["seconds_rollout"] for row in read_metrics(resumed)] == [2.0] * 4 + [3.0] * 5
    assert [drop_times(row) for row in read_metrics(resumed)] == [drop_times(row) for row in read_metrics(whole)]
    assert sorted(path.name for path in resumed.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (b"", []),
        (b'{"step": 0}\n{"step": 1}\n', [0, 1]),
        (b'{"step": 0}\n{"step": 1', [0]),
        (b'{"step": 0}\n{"step"', [0]),
        (b'{"step": 0}\n{"step": 1}', [0, 1]),  # whole but for the end of its line
        (b'{"step": 0}\n{"step": 1}\n{"step": 2}\n', [0, 1]),
        (b'{"step": 0}\n\xff\xfe', [0]),
    ],
)
def test_what_is_kept_at_step_two(tmp_path, content, steps):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    _, close = open_metrics(tmp_path, 2)
    close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps({"step": step}) + "\n" for step in steps)


@pytest.mark.parametrize("line", [b"", b"nonsense", b"[1]", b'{"loss": 1}', b'{"step": "one"}', b"\xff"])
def test_a_damaged_line_before_the_last_is_one_sentence(tmp_path, line):
    content = b'{"step": 0}\n' + line + b'\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    for use in (read_metrics, lambda run_dir: open_metrics(run_dir, 1)):
        with pytest.raises(MetricsError, match="expected a JSON object with a step in line 2, got b"):
            use(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_paths_that_cannot_be_used_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricsError, match="cannot be written .File exists"):
        open_metrics(tmp_path / "file", 0)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MetricsError, match="cannot be read .Is a directory"):
        read_metrics(tmp_path)


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_time_figures_are_known_by_their_names():
    assert [name for name in ("seconds", "seconds_update", "tokens_per_second", "loss", "per_second_loss") if
            is_time_figure(name)] == ["seconds", "seconds_update", "tokens_per_second"]  # fmt: skip
    assert drop_times({"step": 1, "seconds": 2.0, "seconds_update": 3.0, "calls_per_second": 4.0}) == {"step": 1}


def test_ledger_sums_calls_tokens_messages_and_seconds():
    rows = [
        {"step": 0, "evaluator_calls": 8, "generated_tokens": 100, "prefilled_tokens": 40, "messages": 10, "loss": 9.0},
        {"step": 1, "evaluator_calls": 8, "generated_tokens": 90, "messages": 10, "seconds_rollout": 1.5},
        {"step": 2, "evaluator_calls": 0, "seconds_rollout": 0.25, "seconds_update": 2.0, "calls_per_second": 7.0},
    ]
    assert sum_ledger(rows) == {
        "evaluator_calls": 16,
        "generated_tokens": 190,
        "prefilled_tokens": 40,
        "messages": 20,
        "seconds_rollout": 1.75,
        "seconds_update": 2.0,
    }
    assert sum_ledger([]) == {"evaluator_calls": 0, "generated_tokens": 0, "prefilled_tokens": 0, "messages": 0}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_takes_long_is_announced_and_alarms_stand_beside_the_figures(is_terminal):
    row = {"return": 0.0, "kl": 0.0, "message_tokens": 5.0, "truncated_share": 0.0, "tokens_per_second": 9.0}
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80, highlight=False)
    with announce(console, "evaluating"):
        pass
    with Progress(console, 40, 3) as progress:
        for step in range(3, 40):
            alarms = {"alarms": ["kl", "length"]} if step == 39 else {}
            progress.show(step, row | {"zero_credit_share": 0.5, "bad_updates": 0} | alarms)
    text = console.file.getvalue()
    if not is_terminal:
        lines = text.splitlines()
        assert lines[:2] == ["evaluating", "compiling the first step, or finding it cached"]
        assert lines[2] == "compiled or found cached, and a step taken, in 0 s"
        assert lines[3].startswith("4/40 ") and lines[4].startswith("6/40 ")
    assert text.count("alarm kl, length") == 1
