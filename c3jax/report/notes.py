"""What a reader should know before trusting a run's figures: said of what is recorded, and only where it applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from c3jax.report.overview import Score
from c3jax.report.sources import RunGroup
from c3jax.run.alarms import ALARMS

_MENTIONED = 0.01  # shares below are not worth a sentence
_FEW_SEEDS = 5
_MOST_SPANS = 3  # of an alarm


def list_notes(groups: Sequence[RunGroup], scores: Sequence[Score]) -> list[str]:
    """Sentences on truncation, credit, alarms, skipped updates, contamination, isolation, changed inputs and seeds.

    Args:
      groups: the groups of runs.
      scores: their evaluations.

    Returns:
      The sentences, each only where its condition holds; of several runs each begins with the run's name.
    """
    sources = [source for group in groups for source in group.sources]
    notes = [note for score in scores for note in _list_evaluation_notes(score, len(groups) > 1)]
    named: dict[str, list[str]] = {}  # what is the same of several runs is said once
    for source in sources:
        for note in (*_list_training_notes(source.rows), *_list_manifest_notes(source.manifest)):
            named.setdefault(note, []).append(source.name)
    for note, names in named.items():
        notes.append(note if len(sources) == 1 else f"{', '.join(names)}: {note[0].lower()}{note[1:]}")
    return notes + _list_seed_notes(groups)


def _list_evaluation_notes(score: Score, is_named: bool) -> list[str]:
    where = f"{score.group}, {score.suite}, {score.profile}" if is_named else f"{score.suite}, {score.profile}"
    notes = []
    if score.truncated >= _MENTIONED:
        notes.append(
            f"{where}: {_percent(score.truncated)} of the answers met the token limit, so"
            " the accuracy measures the limit, too."
        )
    if score.unparsable >= _MENTIONED:
        notes.append(f"{where}: no answer could be read out of {_percent(score.unparsable)} of the transcripts.")
    if score.timeout >= _MENTIONED:
        notes.append(f"{where}: {_percent(score.timeout)} of the answers were not judged in time.")
    return notes


def _list_training_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    last = rows[-max(1, len(rows) // 10) :]
    notes = []
    zero = [row["zero_credit_share"] for row in last if "zero_credit_share" in row]
    if zero and np.mean(zero) >= 0.5:
        notes.append(
            f"In the last tenth of the steps {_percent(float(np.mean(zero)))} of the messages had no credit: all"
            " alternatives of their contexts scored the same."
        )
    cut = [row["truncated_share"] for row in last if "truncated_share" in row]
    if cut and np.mean(cut) >= _MENTIONED:
        notes.append(
            f"In the last tenth of the steps {_percent(float(np.mean(cut)))} of the messages met their token limit."
        )
    for name in dict.fromkeys(name for row in rows for name in row.get("alarms", ())):
        notes.append(_describe_alarm(name, [row["step"] + 1 for row in rows if name in row.get("alarms", ())]))
    bad = rows[-1].get("bad_updates", 0) + rows[-1].get("critic_bad_updates", 0)
    if bad:
        notes.append(f"Updates that were skipped for a loss or gradient that is not finite: {bad}.")
    return notes


def _describe_alarm(name: str, steps: Sequence[int]) -> str:
    meaning = ALARMS[name].meaning if name in ALARMS else name
    spans: list[list[int]] = []
    for step in steps:
        if spans and spans[-1][1] == step - 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    texts = [f"{first} to {last}" if last > first else f"{first}" for first, last in spans[:_MOST_SPANS]]
    more = f" and {len(spans) - _MOST_SPANS} times later" if len(spans) > _MOST_SPANS else ""
    return f"Alarm {name} was on after steps {', '.join(texts)}{more}: {meaning}."


def _list_manifest_notes(manifest: dict[str, Any]) -> list[str]:
    notes, data = [], manifest.get("data") or {}
    if data.get("overlap"):
        dropped = len(data.get("dropped") or ())
        notes.append(
            "Training problems share something with held-out problems"
            + (f"; {dropped:,} were dropped." if dropped else ", and were kept.")
        )
    if manifest.get("unsafe_no_sandbox"):
        notes.append("Programs ran without their sandbox.")
    changed = {name for start in (manifest.get("starts") or ())[1:] for name in start.get("changes", {})}
    if "inputs" in changed:
        notes.append("What the run reads from outside changed between its starts (manifest.json has the hashes).")
    if "git" in changed or "c3jax" in changed:
        notes.append("The program changed between the starts of the run.")
    if (manifest.get("git") or {}).get("is_dirty"):
        notes.append("The program differed from its commit.")
    return notes


def _list_seed_notes(groups: Sequence[RunGroup]) -> list[str]:
    fewest = min(len(group.sources) for group in groups)
    if fewest == 1:
        return ["Intervals of a single run speak of its problems, not of other seeds."]
    if fewest < _FEW_SEEDS:
        return [f"Intervals over fewer than {_FEW_SEEDS} seeds are too narrow."]
    return []


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u202f%"
