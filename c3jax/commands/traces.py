"""Traces of other programs as recorded trees, for `c3jax score`.

The episodes of a problem are independent ones, fan-out (n, 1, ..., 1), a turn for each message that a policy drew. Only
`rows` can say which episodes share a prefix. The formats:

    verifiers      traces.jsonl, an episode a line (verifiers 0.3 and 0.4, and prime-rl's rollouts), or results.jsonl,
                   a rollout a line (`vf-eval -s`). A problem is a group, or else a task's key.
    rllm           episode_*.json, an episode a file, as EpisodeLogger and `rllm eval` (0.3) write them. A problem is
                   the episode's id up to the colon, or else its task.
    orchestration  *.json, a trace a file, by the schema of xxzcc/awesome-llm-mas-rl. A problem is a task_id.
    rows           *.jsonl: {problem, return, turns: [{role, text, context}, ...]}; question, step, text and context may
                   be missing. A context's id is as `credit.batch` takes it; that of the first turn is not read.

A return is the whole team's. Where agents have rewards of their own they must agree, or one is named.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c3jax.credit.batch import order_rows
from c3jax.run.files import explain_failure
from c3jax.run.records import RecordedTree, parse_tree, read_number
from c3jax.types import UserError


class Turn(NamedTuple):
    """One message that a policy drew."""

    role: str
    text: str
    context: str | None = None  # its id; None: no other episode has been in it
    is_trained: bool = True


class Episode(NamedTuple):
    """One rollout of one problem."""

    where: str  # file:line
    problem: str
    question: str
    step: int
    turns: tuple[Turn, ...]
    outcome: float  # its terminal return


class Traces(NamedTuple):
    """What was read."""

    trees: list[RecordedTree]
    notes: list[str]  # sentences on what was left out or taken together


# A line's or file's object, its file:line and whose reward is the return; None where the program calls it failed.
Parse = Callable[[dict[str, Any], str, str | None], Episode | None]

_POLICY_EVENTS = ("orchestrator_decision", "message", "tool_call", "return", "aggregate")  # not tools, people, spawning
_KINDS = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}


def load_traces(source: Path, name: str, return_of: str | None = None) -> Traces:
    """Read traces as trees.

    Args:
      source: a file, or a folder that is searched for them.
      name: of the format, a key of `FORMATS`.
      return_of: the agent, trajectory or reward channel whose reward is the return.

    Returns:
      A tree a problem (of each folder and step), in the order in which they begin. Episodes whose roles differ are each
      one turn of role `team`.

    Raises:
      UserError: with file, line and reason, for what is not of the format.
    """
    if name not in FORMATS:
        raise UserError(f"--from: expected one of {', '.join(FORMATS)}, got {name!r}")
    patterns, parse = FORMATS[name]
    files = sorted({file for pattern in patterns for file in source.rglob(pattern)}) if source.is_dir() else [source]
    problems: dict[tuple[Path, int, str], list[Episode]] = {}
    failed = 0
    for file in files:
        for where, record in _read_objects(file):
            episode = parse(record, where, return_of)
            if episode is None:
                failed += 1
            else:
                problems.setdefault((file.parent, episode.step, episode.problem), []).append(episode)
    if not problems:
        raise UserError(f"{source}: expected {' or '.join(patterns)} with episodes of {name}, found none")
    uneven = sum(len({_list_roles(episode) for episode in episodes}) > 1 for episodes in problems.values())
    notes = [f"{failed:,} failed episodes left out"] if failed else []
    notes += [f"{uneven:,} problems whose episodes differ in their roles: a turn is a whole episode"] if uneven else []
    return Traces([_make_tree(episodes) for episodes in problems.values()], notes)


def _read_objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, a line each in .jsonl and one otherwise, with their file:line."""
    with explain_failure(f"{file}: cannot be read"):
        content = file.read_bytes()
    parts = content.split(b"\n") if file.suffix == ".jsonl" else [content]
    for number, part in enumerate(parts, 1):
        if part.strip():
            try:
                record = json.loads(part)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}:{number + error.lineno - 1}: expected JSON, got something else") from None
            except (ValueError, RecursionError):
                raise UserError(f"{file}:{number}: expected JSON, got something else") from None
            if not isinstance(record, dict):
                raise UserError(f"{file}:{number}: expected a JSON object, got another kind of JSON")
            yield f"{file}:{number}", record


def _find(record: Any, path: str) -> Any:
    """The value at a path of fields, None where there is none."""
    for name in path.split("."):
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _take(record: Any, path: str, kind: type, where: str) -> Any:
    """The value at a path of fields; raises UserError where it is none of the kind."""
    found = _find(record, path)
    if type(found) is not kind:
        got = "none" if found is None else json.dumps(found)[:80]
        raise UserError(f"{where}: {path}: expected {_KINDS[kind]}, got {got}")
    return found


def _read_number(value: Any, path: str, where: str) -> float:
    number = read_number(value)
    if number is None:
        raise UserError(f"{where}: {path}: expected a finite number, got {json.dumps(value)[:80]}")
    return number


def _find_return(rewards: Sequence[tuple[str, float]], return_of: str | None, where: str) -> float:
    """The reward on which all agree that have one, or all of the name that is asked for."""
    values = {value for name, value in rewards if return_of in (None, name)}
    if len(values) == 1:
        return values.pop()
    got = ", ".join(f"{name} {value:g}" for name, value in rewards) or "none"
    if return_of is None:
        raise UserError(f"{where}: expected one return for the whole team, or --return-of NAME, got {got}")
    raise UserError(f"{where}: expected one reward of {return_of}, got {got}")


def _read_text(content: Any) -> str:
    """The text of a message's content, which may be none, a string or a list of parts."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and type(part.get("text")) is str)
    return content if isinstance(content, str) else ""


def _read_question(prompt: Any) -> str:
    """The question of a prompt: a string, the last message of a user, or a task's field."""
    if isinstance(prompt, dict):
        fields = [prompt[name] for name in ("question", "instruction", "prompt", "problem") if name in prompt]
        return _read_question(fields[0]) if fields else ""
    if isinstance(prompt, list):
        users = [message for message in prompt if isinstance(message, dict) and message.get("role") == "user"]
        return _read_text(users[-1].get("content")) if users else ""
    return prompt if isinstance(prompt, str) else ""


def _parse_verifiers(record: dict[str, Any], where: str, return_of: str | None) -> Episode | None:
    if "example_id" in record:
        return _parse_result(record, where)
    traces = _take(record, "traces", list, where)
    if not _take(record, "ok", bool, where):
        return None
    turns, rewards = [], []
    for number, trace in enumerate(traces):
        here = f"{where}: traces.{number}"
        name = _take(trace, "agent.name", str, here)
        is_trained = trace["agent"].get("trainable", True) is True
        for node in _take(trace, "nodes", list, here):
            if isinstance(node, dict) and node.get("sampled") is True:
                text = _read_text(_take(node, "message", dict, here).get("content"))
                turns.append(Turn(name, text, is_trained=is_trained))
        scores = [reward for reward in _take(trace, "rewards", dict, here).values() if reward is not None]
        if scores:
            rewards.append((name, sum(_weigh(score, here) for score in scores)))
    names = [_find(record, path) for path in ("group.id", "task.key", "task.hash")]
    problem = next((name for name in names if isinstance(name, str)), None)
    if problem is None:
        raise UserError(f"{where}: task.key: expected it, or group.id or task.hash, got none")
    step = _find(record, "run.work.step")
    outcome, question = _find_return(rewards, return_of, where), _read_question(_find(record, "task.data"))
    return Episode(where, problem, question, step if type(step) is int else 0, tuple(turns), outcome)


def _weigh(reward: Any, where: str) -> float:
    weight = _find(reward, "weight")
    score = _read_number(_find(reward, "score"), "rewards.score", where)
    return score * (1.0 if weight is None else _read_number(weight, "rewards.weight", where))


def _parse_result(record: dict[str, Any], where: str) -> Episode | None:
    """A line of results.jsonl, with one agent."""
    if record.get("error") is not None:
        return None
    outcome = _read_number(record.get("reward"), "reward", where)
    completion = record.get("completion")
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    messages = _take({"completion": completion}, "completion", list, where)
    drawn = [one for one in messages if isinstance(one, dict) and one.get("role") == "assistant"]
    turns = tuple(Turn("assistant", _read_text(message.get("content"))) for message in drawn)
    return Episode(where, str(record["example_id"]), _read_question(record.get("prompt")), 0, turns, outcome)


def _parse_rllm(record: dict[str, Any], where: str, return_of: str | None) -> Episode | None:
    name = "episode_id" if "episode_id" in record else "id"
    identity = _take(record, name, str, where)
    trajectories = _take(record, "trajectories", list, where)
    if record.get("termination_reason") == "error":
        return None
    turns, rewards = [], []
    for number, trajectory in enumerate(trajectories):
        here = f"{where}: trajectories.{number}"
        role, steps = _take(trajectory, "name", str, here), _take(trajectory, "steps", list, here)
        if steps:
            turns += [Turn(role, _read_step(step)) for step in steps]
            # As rLLM does: a trajectory without a reward has that of its last step.
            reward = _find(steps[-1], "reward") if trajectory.get("reward") is None else trajectory["reward"]
            rewards.append((role, _read_number(reward, "reward", here)))
    outcome, task, step = _find_return(rewards, return_of, where), record.get("task"), record.get("training_step")
    problem = identity.split(":")[0] if ":" in identity else json.dumps(task, sort_keys=True)
    return Episode(where, problem, _read_question(task), step if type(step) is int else 0, tuple(turns), outcome)


def _read_step(step: Any) -> str:
    """What a step's model wrote: model_response, or else the last message of its chat."""
    chat = _find(step, "chat_completions")
    last = chat[-1] if isinstance(chat, list) and chat else None
    return _read_text(_find(step, "model_response")) or _read_text(_find(last, "content"))


def _parse_orchestration(record: dict[str, Any], where: str, return_of: str | None) -> Episode:
    problem, events = _take(record, "task_id", str, where), _take(record, "events", list, where)
    turns = []
    for number, event in enumerate(events):
        here = f"{where}: events.{number}"
        if _take(event, "type", str, here) in _POLICY_EVENTS:
            time, agent = _read_number(event.get("t"), "t", here), _take(event, "agent", str, here)
            turns.append((time, number, Turn(agent, _read_text(event.get("content_ref")))))
    rewards, channel = _take(record, "rewards", dict, where), return_of or "team"
    outcome = _read_number(rewards.get(channel), f"rewards.{channel}", where)
    return Episode(where, problem, "", 0, tuple(turn for _, _, turn in sorted(turns)), outcome)


def _parse_row(record: dict[str, Any], where: str, return_of: str | None) -> Episode:
    outcome = _read_number(record.get("return"), "return", where)
    turns = []
    for number, turn in enumerate(_take(record, "turns", list, where)):
        role, context = _take(turn, "role", str, f"{where}: turns.{number}"), turn.get("context")
        turns.append(Turn(role, _read_text(turn.get("text")), str(context) if number and context is not None else None))
    if record.get("problem") is None:
        raise UserError(f"{where}: problem: expected its id, got none")
    step = record.get("step", 0)
    if type(step) is not int:
        raise UserError(f"{where}: step: expected an integer, got {json.dumps(step)}")
    return Episode(where, str(record["problem"]), _read_question(record.get("question")), step, tuple(turns), outcome)


def _list_roles(episode: Episode) -> tuple[str, ...]:
    return tuple(turn.role for turn in episode.turns)


def _make_tree(episodes: Sequence[Episode]) -> RecordedTree:
    """The tree of one problem's episodes."""
    first = episodes[0]
    for episode in episodes:
        if not episode.turns:
            raise UserError(f"{episode.where}: expected messages that a policy drew, got none")
    if len({_list_roles(episode) for episode in episodes}) > 1:
        if any(turn.context is not None for episode in episodes for turn in episode.turns):
            raise UserError(f"{first.where}: expected the same roles in all rows of a problem with contexts")
        whole = [(Turn("team", "\n\n".join(turn.text for turn in one.turns)),) for one in episodes]
        episodes = [one._replace(turns=turns) for one, turns in zip(episodes, whole, strict=True)]
    turns = len(episodes[0].turns)
    ids_BK = np.empty((len(episodes), turns), object)
    for row, episode in enumerate(episodes):
        ids_BK[row] = [first.problem, *(row if turn.context is None else turn.context for turn in episode.turns[1:])]
    try:
        ((fan_out, row_PL),) = order_rows(ids_BK).items()
    except UserError as error:
        raise UserError(f"{first.where}: {error}") from None
    names, nodes = _name_turns(_list_roles(episodes[0])), []
    for turn, name in enumerate(names):
        shape = fan_out[: turn + 1]
        of_messages = row_PL[0][:: row_PL.shape[1] // math.prod(shape)].tolist()
        for index, row in zip(np.ndindex(shape), of_messages, strict=True):
            role, text = episodes[row].turns[turn][:2]
            leaf = {"return": episodes[row].outcome} if turn == turns - 1 else {}
            nodes.append({"turn": name, "role": role, "index": list(index), "text": text} | leaf)
    trained = [turn.is_trained for turn in episodes[0].turns]
    record = {"problem": first.problem, "question": first.question, "protocol": names, "trained": trained}
    record |= {"fan_out": list(fan_out), "step": first.step, "nodes": nodes}
    # Half a surrogate pair, which JSON can hold and a file cannot, becomes a question mark.
    return parse_tree(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"), first.where)


def _name_turns(roles: Sequence[str]) -> list[str]:
    """A turn is named by its role, and counted where the role speaks several times."""
    total, counts = Counter(roles), {role: itertools.count(1) for role in roles}
    return [f"{role} {next(counts[role])}" if total[role] > 1 else role for role in roles]


FORMATS: dict[str, tuple[tuple[str, ...], Parse]] = {
    "verifiers": (("traces.jsonl", "results.jsonl"), _parse_verifiers),
    "rllm": (("episode_*.json",), _parse_rllm),
    "orchestration": (("*.json",), _parse_orchestration),
    "rows": (("*.jsonl",), _parse_row),
}
