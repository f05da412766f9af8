"""Traces of other programs, in their formats: which trees they are, what credit these get, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c3jax.cli import main
from c3jax.commands.traces import FORMATS, load_traces
from c3jax.types import UserError


def write_lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def score(source: Path, name: str, method: str, *words: str) -> list[dict[str, Any]]:
    """The trees that the command line writes."""
    out = source.parent / "scored.jsonl"
    assert main(["score", str(source), "--from", name, "--method", method, "--out", str(out), *words]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def list_nodes(tree: dict[str, Any], *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(node[field] for field in fields) for node in tree["nodes"]]


# verifiers: a graph of messages a trace, a trace an agent, an episode a line


def make_trace(agent: str, texts: list[str], reward: float | None, **changes: Any) -> dict[str, Any]:
    """An agent's trace: a user's message before every one of its own."""
    nodes: list[dict[str, Any]] = []
    for text in texts:
        question = {"message": {"role": "user", "content": "Next?"}, "sampled": False, "token_ids": []}
        nodes.append(question | ({"parent": len(nodes) - 1} if nodes else {}))
        answer = {"role": "assistant", "content": text}
        nodes.append({"parent": len(nodes) - 1, "message": answer, "sampled": True, "timestamp": 1.5})
    rewards = {} if reward is None else {"exact": {"score": reward * 2, "weight": 0.5}, "format": {"score": 0.0}}
    named = {"name": agent, "trainable": True, "config": {}} | changes
    return {"version": 1, "id": "t", "agent": named, "nodes": nodes, "rewards": rewards, "ok": True}


def make_episode(key: str, *traces: dict[str, Any], **changes: Any) -> dict[str, Any]:
    task = {"type": "Sums", "data": {"idx": 0, "prompt": "1 + 1?"}, "key": key, "hash": "h"}
    return {"id": "e", "env": {"id": "sums"}, "task": task, "ok": True, "errors": [], "traces": [*traces]} | changes


def test_verifiers_episodes_of_a_team(tmp_path, capsys):
    """Two agents, three messages an episode: rloo by hand. A failed episode is left out, and counted."""

    def make(key, answer, reward):
        return make_episode(key, make_trace("planner", ["a", "b"], None), make_trace("solver", [answer], reward))

    failed = make_episode("one", make_trace("planner", [], None, ok=False), ok=False)
    rows = [make("one", "2", 1.0), make("two", "3", 0.25), failed, make("one", "4", 0.0), make("two", "5", 0.25)]
    source = write_lines(tmp_path / "run" / "traces.jsonl", *rows)
    one, two = score(source.parent, "verifiers", "rloo")
    assert "1 failed episodes left out" in capsys.readouterr().err
    assert (one["problem"], one["question"], one["fan_out"]) == ("one", "1 + 1?", [2, 1, 1])
    assert one["protocol"] == ["planner 1", "planner 2", "solver"] and one["trained"] == [True] * 3
    assert list_nodes(one, "turn", "role", "index", "text", "advantage") == [
        *(("planner 1", "planner", [0], "a", 1.0), ("planner 1", "planner", [1], "a", -1.0)),
        *(("planner 2", "planner", [0, 0], "b", 1.0), ("planner 2", "planner", [1, 0], "b", -1.0)),
        *(("solver", "solver", [0, 0, 0], "2", 1.0), ("solver", "solver", [1, 0, 0], "4", -1.0)),
    ]
    assert {node["advantage"] for node in two["nodes"]} == {0.0}
    assert [node["return"] for node in two["nodes"][-2:]] == [0.25, 0.25]


def test_verifiers_groups_and_steps_of_training(tmp_path):
    """A group is a problem; a step is that of the run; what is not trainable is a turn that is not trained."""
    run = {"type": "train", "id": "r", "work": {"type": "train", "step": 7}}
    opponent = make_trace("opponent", ["x"], 1.0, trainable=False)
    rows = [
        make_episode("k", opponent, make_trace("player", ["y"], 0.5), group={"id": name}, run=run) for name in "aabb"
    ]
    path = write_lines(tmp_path / "step_7" / "train" / "traces.jsonl", *rows)
    trees = load_traces(path.parents[1], "verifiers", "player").trees
    assert [(tree.record["problem"], tree.record["step"], tree.trained) for tree in trees] == [
        *(("a", 7, (False, True)), ("b", 7, (False, True)))
    ]
    with pytest.raises(UserError, match=r":1: expected one return .* or --return-of NAME, got opponent 1, player 0.5"):
        load_traces(path, "verifiers")


def test_verifiers_results_of_an_evaluation(tmp_path, capsys):
    """Rollouts with one, one and two messages: whole episodes; one that raised is left out; half a character."""
    ask = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    reply, tool = {"role": "assistant", "content": "Ada"}, {"role": "tool", "content": "3", "tool_call_id": "c"}
    row = {"example_id": 4, "prompt": ask, "metrics": {}, "is_completed": True, "error": None}
    rows = [
        row | {"completion": completion, "reward": reward} for completion, reward in (([reply], 1), ("Bob\ud83d", 0.5))
    ]
    rows += [row | {"completion": [reply, tool, reply], "reward": 0}]
    rows += [row | {"completion": None, "reward": 0.0, "error": {"error": "ModelError"}}]
    (tree,) = score(write_lines(tmp_path / "results.jsonl", *rows), "verifiers", "rloo")
    assert (tree["problem"], tree["question"], tree["fan_out"]) == ("4", "Who?", [3])
    assert list_nodes(tree, "role", "text") == [("team", "Ada"), ("team", "Bob?"), ("team", "Ada\n\nAda")]
    assert [node["advantage"] for node in tree["nodes"]] == pytest.approx([0.75, 0, -0.75])
    notes = capsys.readouterr().err
    assert "1 failed episodes left out" in notes and "1 problems whose episodes differ in their roles" in notes


# rLLM: an episode a file, written over several lines


def make_trajectory(name: str, texts: list[str], reward: float | None) -> dict[str, Any]:
    steps = [{"model_response": text, "chat_completions": [], "reward": 0.5, "done": True} for text in texts]
    return {"name": name, "uid": "u", "reward": reward, "num_steps": len(texts), "steps": steps}


def write_rllm(folder: Path, identity: str, *trajectories: dict[str, Any], **changes: Any) -> Path:
    episode = {"training_step": 3, "episode_id": identity, "task": {"question": "1 + 1?"}, "is_correct": True}
    episode |= {"termination_reason": "env_done", "trajectories": [*trajectories]} | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"episode_hash0_id{identity.replace(':', '_')}.json"
    path.write_text(json.dumps(episode, indent=2) + "\n")
    return path


def test_rllm_episodes(tmp_path, capsys):
    """The problem is the id up to the colon; the judge's reward is the team's return where that is asked for."""
    folder = tmp_path / "train_step_3_epoch_0"
    for number, reward in enumerate([1.0, 0.0, None, 0.5]):
        solvers = [make_trajectory("solver", [f"{number}{name}"], 0.0) for name in "ab"]
        judge = make_trajectory("judge", [f"{number}c"], reward)
        write_rllm(folder, f"task-9:{number}", *solvers, judge, make_trajectory("idle", [], None))
    write_rllm(folder, "task-9:4", termination_reason="error")
    (folder / "batch_summary.json").write_text("{}")
    (tree,) = score(folder, "rllm", "magrpo", "--return-of", "judge")
    assert (tree["problem"], tree["question"], tree["step"]) == ("task-9", "1 + 1?", 3)
    assert tree["protocol"] == ["solver 1", "solver 2", "judge"] and tree["fan_out"] == [4, 1, 1]
    leaves = tree["nodes"][-4:]
    # The third judge has no reward of its own: that of its last step. The mean of 1, 0, 1/2, 1/2 is 1/2.
    assert [(node["text"], node["return"]) for node in leaves] == [("0c", 1), ("1c", 0), ("2c", 0.5), ("3c", 0.5)]
    assert [node["advantage"] for node in tree["nodes"]] == [0.5, -0.5, 0, 0] * 3
    assert "1 failed episodes left out" in capsys.readouterr().err


def test_rllm_episodes_of_an_evaluation(tmp_path):
    """`rllm eval` writes the fields of its records; an id without a colon is none of a problem, the task is."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Ada"}]
    for number in range(2):
        trajectory = make_trajectory("agent", [""], float(number))
        trajectory["steps"][0]["chat_completions"] = chat
        changes = {"id": f"uuid-{number}", "eval_idx": number, "task": {"id": "q1", "instruction": "Who?"}}
        path = write_rllm(tmp_path / "episodes", f"{number:06d}_q1", trajectory, **changes)
        episode = json.loads(path.read_text())
        del episode["episode_id"], episode["training_step"]
        path.write_text(json.dumps(episode, indent=2))
    (tree,) = load_traces(tmp_path, "rllm").trees
    assert tree.record["question"] == "Who?" and tree.record["step"] == 0
    assert list_nodes(tree.record, "role", "text", "return") == [("agent", "Ada", 0.0), ("agent", "Ada", 1.0)]


# The orchestration schema: a trace a file, no text


def make_orchestration(task: str, rewards: dict[str, float]) -> dict[str, Any]:
    types = {"decide": "orchestrator_decision", "spawn": "spawn", "look": "tool_call", "page": "tool_result"}
    events: list[dict[str, Any]] = [
        {"id": name, "t": time, "type": kind, "agent": "lead", "content_ref": f"ref-{name}"}
        for time, (name, kind) in enumerate(types.items())
    ]
    events.append({"id": "end", "t": 0.5, "type": "message", "agent": "worker", "role": "searcher"})
    costs = {"tokens": 1, "wall_clock_s": 1}
    return {"trace_id": "x", "task_id": task, "events": events, "edges": [], "rewards": rewards, "costs": costs}


def test_orchestration_traces(tmp_path):
    """Events of policies alone, in the order of their times."""
    for number, team in enumerate([1.0, 0.0]):
        record = make_orchestration("task", {"team": team, "tool": 0.5})
        (tmp_path / f"{number}.json").write_text(json.dumps(record, indent=2))
    tree = load_traces(tmp_path, "orchestration").trees[0].record
    assert tree["protocol"] == ["lead 1", "worker", "lead 2"]
    assert [text for (text,) in list_nodes(tree, "text")] == ["ref-decide"] * 2 + [""] * 2 + ["ref-look"] * 2
    assert [node["return"] for node in tree["nodes"][-2:]] == [1.0, 0.0]
    (tool,) = load_traces(tmp_path, "orchestration", "tool").trees
    assert tool.return_L.tolist() == [0.5, 0.5]


# Rows of one's own, which may share prefixes


def make_row(problem: Any, context: str, text: str, outcome: float) -> dict[str, Any]:
    turns = [{"role": "planner", "text": f"plan {context}"}, {"role": "solver", "text": text, "context": context}]
    return {"problem": problem, "question": "?", "return": outcome, "turns": turns}


def test_rows_that_share_prefixes_are_trees(tmp_path):
    """c3 by hand: contexts a (1, 0) and b (0, 0), in any order; plans are worth 1/2 and 0."""
    rows = [make_row(5, *rest) for rest in (("a", "1", 1), ("b", "2", 0), ("b", "3", 0), ("a", "4", 0))]
    (tree,) = score(write_lines(tmp_path / "rows.jsonl", *rows), "rows", "c3")
    assert tree["fan_out"] == [2, 2]
    assert list_nodes(tree, "index", "text", "value", "advantage") == [
        *(([0], "plan a", 0.5, 0.5), ([1], "plan b", 0, -0.5)),
        *(([0, 0], "1", 1, 1), ([0, 1], "4", 0, -1), ([1, 0], "2", 0, 0), ([1, 1], "3", 0, 0)),
    ]


def test_methods_are_compared_on_traces(tmp_path, capsys):
    rows = [make_row(5, *rest) for rest in (("a", "1", 1), ("a", "2", 0), ("b", "3", 1), ("b", "4", 1))]
    source = write_lines(tmp_path / "rows.jsonl", *rows)
    assert main(["score", str(source), "--from", "rows", "--compare", "c3,no_replay", "--json"]) == 0
    by_role = {row["role"]: row for row in json.loads(capsys.readouterr().out)}
    # b's two messages are equal, so c3 gives them nothing; no_replay compares them with a's too.
    assert (by_role["solver"]["messages"], by_role["solver"]["one_zero"]) == (4, 2)


# What is refused, in one sentence with the line


EPISODE = make_episode("k", make_trace("solver", ["2"], 1.0))
ROW = make_row(5, "a", "1", 1.0)
RLLM = {"episode_id": "t:0", "trajectories": [make_trajectory("solver", ["2"], 1.0)]}
TRACE = make_orchestration("task", {"team": 1.0})


@pytest.mark.parametrize(
    ("name", "first", "second", "sentence"),
    [
        ("verifiers", EPISODE, [], "2: expected a JSON object, got another kind of JSON"),
        ("verifiers", EPISODE, EPISODE | {"traces": 1}, "2: traces: expected a list, got 1"),
        ("verifiers", EPISODE, {"traces": []}, "2: ok: expected true or false, got none"),
        ("verifiers", EPISODE, EPISODE | {"task": {}}, "2: task.key: expected it, or group.id or task.hash, got none"),
        ("verifiers", EPISODE, EPISODE | {"traces": [{}]}, "2: traces.0: agent.name: expected a string, got none"),
        ("verifiers", make_episode("k", make_trace("s", ["2"], None)), EPISODE, "1: expected one return for the whole"),
        ("verifiers", make_episode("k", make_trace("s", [], 1.0)), EPISODE, "1: expected messages that a policy drew"),
        ("verifiers", {"example_id": 1, "reward": "high"}, EPISODE, '1: reward: expected a finite number, got "high"'),
        ("verifiers", EPISODE, {"example_id": 1, "reward": 1}, "2: completion: expected a list, got none"),
        ("rllm", RLLM, {"id": 3}, "2: id: expected a string, got 3"),
        ("rllm", RLLM, {"id": "a", "trajectories": [{"name": "b"}]}, "2: trajectories.0: steps: expected a list"),
        ("orchestration", TRACE, {"task_id": "a"}, "2: events: expected a list, got none"),
        ("orchestration", TRACE, TRACE | {"rewards": {}}, "2: rewards.team: expected a finite number, got null"),
        ("rows", ROW, ROW | {"return": 10**400}, "2: return: expected a finite number, got 1000"),
        ("rows", ROW, ROW | {"return": True}, "2: return: expected a finite number, got true"),
        ("rows", ROW, ROW | {"problem": None}, "2: problem: expected its id, got none"),
        ("rows", ROW, ROW | {"turns": [1]}, "2: turns.0: role: expected a string, got none"),
        ("rows", ROW, ROW | {"step": "a"}, '2: step: expected an integer, got "a"'),
        ("rows", ROW, ROW | {"turns": ROW["turns"][:1]}, "1: expected the same roles in all rows of a problem"),
        ("rows", ROW, make_row(6, "b", "2", 0.0) | {"problem": 5}, "1: problem 5: expected equally many alternatives"),
    ],
)
def test_a_bad_row_is_one_sentence(tmp_path, capsys, name, first, second, sentence):
    source = write_lines(tmp_path / "bad.jsonl", first, second, *([ROW, ROW] if name == "rows" else []))
    words = ["score", str(source), "--from", name, "--method", "rloo", "--out", str(tmp_path / "out.jsonl")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"bad.jsonl:{sentence}" in line


def test_damage_is_found_in_its_line(tmp_path):
    path = tmp_path / "episode_0.json"
    path.write_text('{\n  "episode_id": "t:0",\n  oops\n}\n')
    with pytest.raises(UserError, match=r"episode_0.json:3: expected JSON, got something else"):
        load_traces(path, "rllm")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--from", "trl"], f"--from: expected one of {', '.join(FORMATS)}, got 'trl'"),
        (["--from", "verifiers"], "expected traces.jsonl or results.jsonl with episodes of verifiers, found none"),
        (["--return-of", "judge"], "--return-of: expected it with --from alone, got a source of recorded trees"),
    ],
)
def test_what_is_asked_for_must_be_there(tmp_path, capsys, words, sentence):
    assert main(["score", str(tmp_path), "--method", "rloo", "--out", str(tmp_path / "out.jsonl"), *words]) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
