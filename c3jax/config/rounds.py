"""Rounds: turns of a protocol that are written once and spoken several times.

    - repeat: 3
      until: done
      history: "{guess} {reply} "
      turns:
        - {name: guess, role: guesser, user: "{question} {history}guess :", max_tokens: 2}
        - {name: reply, environment: {kind: task}, max_tokens: 1}

stands for guess_1, reply_1, guess_2, ... A turn reads those of its own round by their names, and what was said in the
rounds before as {history}: that text once for each of them. Behind the rounds the names are those of the last one, and
{history} is all of them. With `until: done` the rounds after the first are left out of a transcript whose environment
has said that its episode is over.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from c3jax.schema import expect, show_value

_FIELDS = {"repeat", "turns", "history", "until"}


def expand_rounds(tree: dict[str, Any]) -> None:
    """Write out the rounds of a run's config, unchecked so far; where there are none nothing changes.

    Args:
      tree: the config as plain mappings and lists; changed in place.

    Raises:
      ConfigError: rounds lack what they need, or have a field that is none of theirs.
    """
    protocol = tree.get("protocol")
    entries = protocol.get("turns") if isinstance(protocol, dict) else None
    if not isinstance(entries, list) or not isinstance(protocol, dict):
        return
    turns, meant = [], {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or "repeat" not in entry:
            turns.append(_fill(entry, meant))
            continue
        _check(entry, f"protocol.turns.{index}")
        names = [turn.get("name") for turn in entry["turns"]]
        history = ""
        for number in range(1, entry["repeat"] + 1):
            own = {name: f"{{{name}_{number}}}" for name in names}
            for turn in entry["turns"]:
                made = _fill(turn, meant | own | {"history": history}) | {"name": f"{turn.get('name')}_{number}"}
                turns.append(made | ({"unless_done": True} if number > 1 and "until" in entry else {}))
            history += _write(entry.get("history", ""), own)
        meant = meant | own | {"history": history}
    protocol["turns"] = turns


def _check(entry: Mapping[str, Any], path: str) -> None:
    unknown = set(entry) - _FIELDS
    known = f"no field of rounds but {', '.join(sorted(_FIELDS))}"
    expect(not unknown, path, known, min(unknown, default=""))
    repeat, turns, until, history = (entry.get(name) for name in ("repeat", "turns", "until", "history"))
    is_count = type(repeat) is int and repeat > 0
    expect(is_count, f"{path}.repeat", "a number of rounds", show_value(repeat))
    is_list = isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)
    expect(bool(is_list), f"{path}.turns", "the turns of a round", show_value(turns))
    expect(until == "done" or "until" not in entry, f"{path}.until", "done", show_value(until))
    expect(isinstance(history, str) or "history" not in entry, f"{path}.history", "text", show_value(history))


def _fill(turn: Any, meant: Mapping[str, str]) -> Any:
    """A turn with its prompts' slots written out."""
    if not isinstance(turn, dict):
        return turn
    prompts = {name: turn[name] for name in ("system", "user") if isinstance(turn.get(name), str)}
    return turn | {name: _write(text, meant) for name, text in prompts.items()}


def _write(text: str, meant: Mapping[str, str]) -> str:
    """A prompt with some of its slots replaced by prompt text; one that cannot be read is left for the checks."""
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError:
        return text
    written = ""
    for literal, name, spec, conversion in pieces:
        written += literal.replace("{", "{{").replace("}", "}}")
        if name is not None:
            rest = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            written += meant.get(name, f"{{{name}{rest}}}")
    return written
