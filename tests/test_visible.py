"""A run whose turns are read in part: what it records, replays, and resumes."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from c3jax import train
from c3jax.commands import ask, redraw, replay
from c3jax.config import file as config_file
from c3jax.config.run import ConfigError
from c3jax.run.jobs import load_evaluation
from c3jax.run.metrics import drop_times, read_metrics
from c3jax.run.records import load_trees
from c3jax.setup.team import encode_null, make_setup

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = {
    **{"steps": 2, "problems": 2, "workers": 1, "learner.minibatches": 1, "record_every": 1, "checkpoint.every": 1},
    **{"checkpoint.keep": 9, "evaluation.problems": 2, "evaluation.samples": 0, "trackers": ["jsonl"]},
    **{"model.layers": 1, "model.width": 16, "model.mlp_width": 16, "imitation": None},
    **{"credit.fan_out": [2, 2], "credit.budget": 4},
    # The untrained policy writes any word as often, so a marker stands in some messages and not in others.
    "protocol.turns.0": {"visible": {"after": ":"}, "visible_tokens": 5, "train_on": "visible"},
    "protocol.turns.1": {"visible": {"after": ":"}},
}


def load(**changes):
    tree = config_file.read_tree(CONFIGS / "quickstart.yaml", {k: v for k, v in SMALL.items() if "turns" not in k})
    for turn in (0, 1):
        tree["protocol"]["turns"][turn] |= SMALL[f"protocol.turns.{turn}"]
    return config_file.parse_config(tree | changes)


def run(path: Path, **changes) -> list[dict]:
    assert train.train(load(**changes), path, console=Console(file=io.StringIO())) == 0
    return [drop_times(row) for row in read_metrics(path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, run(path)


def test_records_have_the_whole_message_and_what_was_read_of_it(whole):
    path, rows = whole
    hidden, nodes = [0, 0], [0, 0]
    for tree in load_trees(path):
        for node in [node for level in tree.nodes for node in level]:
            words = node["text"].split()
            part = words[len(words) - words[::-1].index(":") :] if ":" in words else []
            part = part[:5] if node["turn"] == "reasoner" else part
            assert node["visible"].split() == part
            assert len(words) == node["tokens"] - (not node["truncated"])
            hidden[tree.record["step"]] += not part
            nodes[tree.record["step"]] += 1
    assert [row["hidden_share"] for row in rows] == pytest.approx(np.divide(hidden, nodes))
    assert 0 < hidden[0] < nodes[0] == 2 * (2 + 4)
    (result,) = load_evaluation(path / "eval" / "after.json")["results"]
    assert result["hidden"] in (0.0, 0.5, 1.0)


def test_a_resumed_run_is_the_run(whole, tmp_path):
    """The run as it was after its first step, resumed."""
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    shutil.rmtree(path / "checkpoints" / "2")
    (path / "rollouts" / "step-000001.jsonl").unlink()
    (path / "eval" / "after.json").unlink()
    assert run(path) == whole[1]
    for name in ("rollouts/step-000001.jsonl", "eval/after.json"):
        assert (path / name).read_text() == (whole[0] / name).read_text()


def test_replay_reads_of_recorded_messages_what_was_read(whole, capsys):
    path, _ = whole
    problem = load_trees(path)[0].record["problem"]
    request = replay.Request(problem, 0, "1.0", 0, None, None, 1, is_alone=True)
    assert replay.replay_source(path, request, Console(file=io.StringIO()), as_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)["messages"]
    assert row["same"] and row["drawn"] == row["recorded"] and row["return"] == row["recorded_return"]


def test_ask_shows_both(whole, capsys):
    console = Console(file=io.StringIO())
    question = load_trees(whole[0])[0].record["question"]
    assert ask.ask_source(str(whole[0]), question, "newest", {}, console, is_sampled=True, as_json=True) == 0
    first, last = json.loads(capsys.readouterr().out)["turns"]
    assert last["context"].endswith(" ".join(f"plan : {first['visible']} answer : <|assistant|>".split()))
    assert ask.ask_source(str(whole[0]), question, "newest", {}, console, is_sampled=True, as_json=False) == 0
    assert console.file.getvalue().count("read by others:") == 2


def test_what_others_read_of_given_messages():
    """Of what a role wrote, with its path in a tree or without, the part; of the null message and one's own all."""
    setup = make_setup(load())
    written = {"role": "reasoner", "text": "1 : 2", "token_ids": setup.tokenizer.encode_text("1 : 2")}
    own = {"text": "1 : 2", "token_ids": written["token_ids"]}
    given = redraw.write_messages(setup, 0, [written | {"index": [0]}, written, own])
    assert given.content_NT.sum(axis=1).tolist() == [1, 1, 3]
    nothing = redraw.write_messages(setup, 0, [{"role": "reasoner", "text": None}])
    assert given.tokens_NT[0, 2] == setup.tokenizer.encode_text("2")[0] and not nothing.content_NT.any()


def test_a_null_message_has_the_room_of_a_visible_part():
    setup = make_setup(load())
    assert encode_null(setup) == ()
    words = {"credit": setup.config.credit.model_copy(update={"null_message": ": : : : :"})}
    with pytest.raises(ConfigError, match="expected at most 4 tokens"):
        encode_null(setup._replace(config=setup.config.model_copy(update=words)))
