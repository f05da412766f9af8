"""Trackers: the record whatever is named, TensorBoard's and W&B's files as their own formats say, and a user's own."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from c3jax.run.metrics import MetricsError, read_metrics
from c3jax.run.trackers import TrackedRun, find_openers, open_trackers
from c3jax.schema import ConfigError

OWN_CSV = f"{Path(__file__).parents[2] / 'examples' / 'own_tracker.py'}:open_csv"


def write_rows(path: Path, names: list[str], rows: list[dict], first_step: int = 0) -> list[str]:
    """Write rows of steps from first_step; gives what was printed."""
    printed: list[str] = []
    run = TrackedRun(path, first_step, {"seed": 3})
    with open_trackers(find_openers(names), run, printed.append) as write:
        for step, row in enumerate(rows, first_step):
            write(step, row)
    return printed


@pytest.fixture
def make_own(tmp_path, request):
    """Write a module with an opener; gives its name."""

    def make(body: str) -> str:
        file = tmp_path / f"own_{abs(hash((request.node.name, body)))}.py"
        file.write_text(body, encoding="utf-8")
        return f"{file}:start"

    return make


@pytest.mark.parametrize("names", [[], ["jsonl"], ["tensorboard"], ["tensorboard", "jsonl"]])
def test_the_record_is_written_whatever_is_named(tmp_path, names):
    assert write_rows(tmp_path, names, [{"loss": 0.5}, {"loss": 0.25}]) == []
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25}]
    assert (tmp_path / "tensorboard").exists() == ("tensorboard" in names)


def load_events(path: Path) -> list[Event]:
    """TFRecord by its definition: length, its checksum, that many bytes, their checksum."""
    content, events = path.read_bytes(), []
    while content:
        [length] = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_tensorboard_has_the_finite_numbers_and_forgets_what_is_written_again(tmp_path):
    run, row = TrackedRun(tmp_path, 0, {}), {"loss": np.float32(0.5), "bad": math.nan, "note": "text", "flag": True}
    with open_trackers(find_openers(["tensorboard"]), run, print) as write:
        write(0, row | {"list": [1.0], "calls": 8})
        write(1, {"loss": 0.25})
        [path] = (tmp_path / "tensorboard").iterdir()
        _, first, second = load_events(path)  # on the disk before closing; the first is the file's version
    assert [(value.tag, value.simple_value) for value in first.summary.value] == [("loss", 0.5), ("calls", 8.0)]
    assert (first.step, second.step) == (0, 1)
    write_rows(tmp_path, ["tensorboard"], [], first_step=1)
    [resumed] = set((tmp_path / "tensorboard").iterdir()) - {path}
    start = load_events(resumed)[1]
    assert (start.step, start.session_log.status) == (1, 1)  # SessionLog.START: events of step 1 and later are void
    assert len(load_events(path)) == 3


def test_a_tracker_of_ones_own_is_opened_for_the_run(tmp_path):
    rows = [{"return": 0.5, "kl": 0.0, "tokens_per_second": 7.0, "loss": 1.0}] * 2
    assert write_rows(tmp_path, [OWN_CSV], rows) == []
    assert write_rows(tmp_path, [OWN_CSV], rows[:1], first_step=2) == []
    text = (tmp_path / "figures.csv").read_text().splitlines()
    assert text == ["step,return,kl,tokens_per_second", "0,0.5,0.0,7.0", "1,0.5,0.0,7.0", "2,0.5,0.0,7.0"]


def test_any_pair_will_do_and_gets_rows_of_its_own(tmp_path, make_own):
    """It reads the config, and what it does to a row reaches nobody else."""
    own = make_own("""
import json
def start(run):
    file = open(run.path / "seen.json", "a")
    def write(step, row):
        json.dump([step, run.config["seed"], row], file)
        row["list"].clear()
        row.clear()
    return write, file.close
""")
    assert write_rows(tmp_path, [own, "tensorboard"], [{"list": np.array([1.0, 2.0]), "loss": 0.5}]) == []
    assert json.loads((tmp_path / "seen.json").read_text()) == [0, 3, {"list": [1.0, 2.0], "loss": 0.5}]
    assert read_metrics(tmp_path) == [{"step": 0, "list": [1.0, 2.0], "loss": 0.5}]
    [events] = (tmp_path / "tensorboard").iterdir()
    assert [value.tag for value in load_events(events)[1].summary.value] == ["loss"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def start(run): raise OSError('no room')", "OSError: no room"),
        ("def start(run): raise SystemExit(3)", "SystemExit: 3"),
        ("def start(run): return 7", "TypeError: .*"),
        ("def start(run): return (lambda step, row: 1 / 0), print", "ZeroDivisionError: division by zero"),
        ("def start(run): return (lambda step: None), print", "TypeError: .*"),
        ("def start(run): return (lambda step, row: None), (lambda: {}['x'])", "KeyError: 'x'"),
    ],
)
def test_one_that_raises_costs_a_sentence_and_not_the_run(tmp_path, make_own, body, reason):
    own = make_own(body)
    printed = write_rows(tmp_path, [own, "tensorboard"], [{"loss": 0.5}, {"loss": 0.25}])
    [sentence] = printed
    expected = f"tracker {own} is dropped, and the run continues without it ("
    assert sentence.startswith(expected) and re.fullmatch(reason, sentence[len(expected) : -1])
    assert [row["loss"] for row in read_metrics(tmp_path)] == [0.5, 0.25]
    [events] = (tmp_path / "tensorboard").iterdir()
    assert len(load_events(events)) == 3


def test_a_bare_install_leaves_tensorboard_out_and_says_how_to_have_it(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # what Python has of a package that is not there
    [sentence] = write_rows(tmp_path, ["jsonl", "tensorboard"], [{"loss": 0.5}])
    assert sentence.startswith("tracker tensorboard is dropped") and "pip install 'c3jax[tensorboard]'" in sentence
    assert [row["loss"] for row in read_metrics(tmp_path)] == [0.5] and not (tmp_path / "tensorboard").exists()


def test_the_record_is_no_copy_and_its_failure_stops_the_run(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MetricsError, match="cannot be read"):
        write_rows(tmp_path, [], [])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["wand"], "trackers.0: expected one of jsonl, tensorboard, wandb, or your own as module:NAME, got 'wand'"),
        (["jsonl", "jsonl"], "trackers.1: expected each tracker once, got 'jsonl' twice"),
        (["jsonl", "math:pi"], "trackers.1: expected a function at math:pi, got float"),
    ],
)
def test_names_that_will_not_do_are_one_sentence(names, sentence):
    with pytest.raises(ConfigError) as caught:
        find_openers(names)
    assert str(caught.value) == sentence


def load_wandb(path: Path) -> list:
    """LevelDB's log format, as W&B writes it: blocks of 32 KiB of records with checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole, records = path.read_bytes(), 7, b"", []
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def test_weights_and_biases_has_every_figure_offline(tmp_path, monkeypatch):
    """Two starts of a run are one run there, and what was not a number is what it was."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = [{"loss": 0.5, "bad": math.nan, "fan_out": [2, 4]}, {"loss": 0.25, "bad": 1.0, "fan_out": [8, 1]}]
    assert write_rows(tmp_path, ["wandb"], rows) == []
    assert write_rows(tmp_path, ["wandb"], rows[1:], first_step=1) == []
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    runs, seen = [], []
    for file in files:
        for record in load_wandb(file):
            if record.WhichOneof("record_type") == "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                runs.append((record.run.run_id, record.run.display_name, config["seed"]))
            elif record.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                seen.append((record.history.step.num, row["loss"], row["bad"], row["fan_out"]))
    assert len(files) == 2 and len(set(runs)) == 1 and runs[0][1:] == (tmp_path.name, 3)
    assert seen[0][:2] == (0, 0.5) and seen[0][3] == [2, 4] and str(seen[0][2]).lower() == "nan"
    assert seen[1:] == [(1, 0.25, 1.0, [8, 1])] * 2
