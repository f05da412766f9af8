"""What a page says before anything is clicked: the verdict, the ledger, the evaluations, and what ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from c3jax.analysis.evaluations import Cell, Group, compute_difference, compute_score, list_differences, list_turns
from c3jax.analysis.statistics import Interval
from c3jax.report.sources import RunGroup, Source
from c3jax.run.metrics import LEDGER, sum_ledger, sum_seconds

_LEDGER_TITLES = {
    "evaluator_calls": "Evaluator calls",
    "messages": "Messages",
    "generated_tokens": "Tokens generated",
    "prefilled_tokens": "Tokens prefilled",
    "seconds": "Seconds",
    "flops": "FLOPs",
}


class Score(NamedTuple):
    """One suite and profile of a group: a row of the table of evaluations."""

    group: str
    suite: str
    profile: str
    problems: int
    step: int  # the newest that was evaluated
    before: Interval | None
    after: Interval | None  # None where only the policy before training was evaluated
    change: Interval | None  # over the problems that both have
    truncated: float
    unparsable: float
    timeout: float
    others: list[tuple[str, Interval]]  # pass@k and maj@n, of a single run


class Overview(NamedTuple):
    """All that the template writes."""

    title: str
    verdict: str
    details: list[str]  # sentences under the verdict
    ledger: list[tuple[str, list[float], list[float]]]  # name, total and a step's mean, a value a group
    scores: list[Score]
    missing: list[str]
    facts: list[tuple[str, list[str]]]  # name and a value a group


def make_overview(groups: Sequence[RunGroup]) -> Overview:
    """All that the page says of some groups of runs in words and tables.

    Returns:
      The overview; its intervals are of level 0.95, over runs and problems.
    """
    scores = [
        _make_score(group, cell)
        for group in groups
        for cell in dict.fromkeys(cell for source in group.sources for cell in source.run.results)
        if all(cell in source.run.results for source in group.sources)
    ]
    missing = [
        f"{source.name}: {suite}: {reason}"
        for group in groups
        for source in group.sources
        for suite, reason in source.run.missing.items()
    ]
    verdict, change = _compare_groups(groups) if len(groups) > 1 else _judge(groups[0], scores)
    details = [*([change] if change else []), *(_describe_progress(group, len(groups) > 1) for group in groups)]
    title = groups[0].name if len(groups) == 1 else " and ".join(group.name for group in groups)
    ledger = _make_ledger(groups)
    columns = [_describe(group) for group in groups]
    facts = [(name, [column[name] for column in columns]) for name in columns[0]]
    return Overview(title, verdict, details, ledger, scores, missing, facts)


# --------------------------------------------------------------------------------------------------------------------
# The verdict


def _format_change(change: Interval) -> str:
    text = f"A difference of {change.estimate:+.3f}, 95 % interval {change.low:+.3f} to {change.high:+.3f}."
    return text.replace("-", "−")


def _judge(group: RunGroup, scores: Sequence[Score]) -> tuple[str, str]:
    """What training did to the accuracy in one sentence, and the difference in another."""
    score = next((score for score in scores if score.change is not None), None)
    if score is None or score.before is None or score.after is None or score.change is None:
        return _judge_returns(group), ""
    where = "Held-out" if score.suite == "heldout" else score.suite
    pair = f"from {score.before.estimate:.3f} to {score.after.estimate:.3f}"
    change = _format_change(score.change)
    if score.change.low > 0:
        return f"{where} accuracy rose {pair}.", change
    if score.change.high < 0:
        return f"{where} accuracy fell {pair}.", change
    return f"No measurable change of {where.lower()} accuracy, {pair}.", change


def _judge_returns(group: RunGroup) -> str:
    """Without evaluations before and after: what the returns of training did."""
    rows = [source.rows for source in group.sources]
    part = [max(1, len(row) // 10) for row in rows]
    first = [row["return"] for rows_of, n in zip(rows, part, strict=True) for row in rows_of[:n]]
    last = [row["return"] for rows_of, n in zip(rows, part, strict=True) for row in rows_of[-n:]]
    return (
        f"Not evaluated after training; the mean return was {sum(first) / len(first):.3f} in the first tenth of the"
        f" steps and {sum(last) / len(last):.3f} in the last."
    )


def _compare_groups(groups: Sequence[RunGroup]) -> tuple[str, str]:
    """How the groups stand to each other: of more than two those that are furthest apart, and the difference."""
    evaluated = [group for group in groups if all(source.run.results for source in group.sources)]
    rows = list_differences([Group(name, tuple(source.run for source in members)) for name, members in evaluated])
    if not rows:
        return f"{len(groups)} configs side by side; no two of them have evaluated problems in common.", ""
    cell = rows[0]["suite"], rows[0]["profile"]
    rows = [row for row in rows if (row["suite"], row["profile"]) == cell]
    row = max(rows, key=lambda row: abs(row["diff"]))
    sign = 1 if row["diff"] >= 0 else -1
    better, other = (row["first"], row["second"]) if sign > 0 else (row["second"], row["first"])
    low, high = sorted((sign * row["diff_low"], sign * row["diff_high"]))
    change = _format_change(Interval(sign * row["diff"], low, high))
    where = "held-out accuracy" if cell[0] == "heldout" else f"accuracy on {cell[0]}"
    if row["p_holm"] < 0.05:
        return f"{better} has a higher {where} than {other}.", change
    if len(rows) > 1:
        return f"No two of {len(groups)} configs differ measurably in {where}.", f"{better} and {other}: {change}"
    return f"No measurable difference in {where} between {better} and {other}.", change


def _describe_progress(group: RunGroup, is_named: bool) -> str:
    steps, planned = [len(source.rows) for source in group.sources], group.sources[0].run.config["steps"]
    totals = sum_ledger(row for source in group.sources for row in source.rows)
    who = f"{group.name}: " if is_named else ""
    taken = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    runs = f"{len(steps)} seeds, {taken} steps each" if len(steps) > 1 else f"{taken} steps"
    unfinished = f" of the {planned} planned (not finished)" if min(steps) < planned else ""
    text = f"{who}{runs}{unfinished}, {totals['evaluator_calls']:,.0f} evaluator calls"
    return f"{text} and {totals['messages']:,.0f} messages."


# --------------------------------------------------------------------------------------------------------------------
# Evaluations


def _make_score(group: RunGroup, cell: Cell) -> Score:
    after = [source.run.results[cell] for source in group.sources]
    before = [_find_before(source, cell) for source in group.sources]
    found = [result for result in before if result is not None]
    is_whole, step = len(found) == len(after), max(source.run.step for source in group.sources)
    change = compute_difference(after, found, is_paired=True) if is_whole and step > 0 else None
    others = []
    if len(after) == 1 and after[0]["samples"] > 1:
        others = [(f"pass@{k}", Interval(*values)) for k, values in after[0]["pass_at"].items() if k != "1"]
        if after[0]["majority"] is not None:
            others.append((f"maj@{after[0]['samples']}", Interval(*after[0]["majority"])))
    return Score(
        group.name,
        *cell,
        problems=after[0]["problems"],
        step=step,
        before=compute_score(found) if is_whole else None,
        after=compute_score(after) if step > 0 else None,
        change=None if change is None else change[0].mean,
        truncated=_mean(result["truncated"] for result in after),
        unparsable=_mean(result["verdicts"].get("unparsable", 0.0) for result in after),
        timeout=_mean(result["verdicts"].get("timeout", 0.0) for result in after),
        others=others,
    )


def _find_before(source: Source, cell: Cell) -> dict[str, Any] | None:
    rows = [row for body in source.run.evaluations if body["step"] == 0 for row in body["results"]]
    return next((row for row in rows if "missing" not in row and (row["suite"], row["profile"]) == cell), None)


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


# --------------------------------------------------------------------------------------------------------------------
# The ledger, and what ran


def _make_ledger(groups: Sequence[RunGroup]) -> list[tuple[str, list[float], list[float]]]:
    """Totals of a run (the mean over seeds) and of one of its steps; FLOPs only where every run has recorded them."""
    columns = []
    for group in groups:
        rows = [row for source in group.sources for row in source.rows]
        totals = sum_ledger(rows)
        column = {name: totals[name] for name in LEDGER}
        column["seconds"] = sum_seconds(totals)
        if all("flops" in row for row in rows):
            column["flops"] = sum(row["flops"] for row in rows)
        columns.append((column, len(group.sources), len(rows)))
    names = [name for name in _LEDGER_TITLES if all(name in column for column, _, _ in columns)]
    return [
        (
            _LEDGER_TITLES[name],
            [column[name] / runs for column, runs, _ in columns],
            [column[name] / steps for column, _, steps in columns],
        )
        for name in names
    ]


def _describe(group: RunGroup) -> dict[str, str]:
    source = group.sources[0]
    config, manifest = source.run.config, source.manifest
    turns = list_turns(config)
    return {
        "Credit method": config["credit.method"],
        "Fan-out": _describe_draws(config),
        "Turns": " → ".join(turn["name"] + ("" if turn["trained"] else " (not trained)") for turn in turns),
        "Task": config["task.kind"],
        "Problems a step": f"{config['problems']:,}",
        "Model": _describe_model(config),
        "Policy": config["policy.kind"].replace("_", " "),
        "Loss": config["learner.loss.kind"],
        "Seed": ", ".join(str(member.run.seed) for member in group.sources),
        "Device": _join({_describe_devices(member.manifest) for member in group.sources}),
        "Commit": _join({_describe_commit(member.manifest) for member in group.sources}),
        "c3jax": str(manifest.get("c3jax", "unknown")),
        "Begun": _join({_find_begin(member.manifest) for member in group.sources}),
        "Directory": ", ".join(member.name for member in group.sources),
    }


def _describe_draws(config: dict[str, Any]) -> str:
    fan_out = config["credit.fan_out"]
    if fan_out is None:  # no tree
        sizes = {name: config.get(f"credit.draws.{name}") for name in ("alternatives", "episodes", "continuations")}
        return ", ".join(f"{size} {name}" for name, size in sizes.items() if size)
    return fan_out if isinstance(fan_out, str) else " × ".join(map(str, fan_out))


def _describe_model(config: dict[str, Any]) -> str:
    kind = config["model.kind"]
    if kind == "random":
        return f"random weights, {config['model.layers']} layers of width {config['model.width']}"
    return str(config.get("model.name") or config.get("model.path") or kind)


def _describe_devices(manifest: dict[str, Any]) -> str:
    devices = manifest.get("devices")
    return f"{devices['count']} × {devices['kind']} ({devices['backend']})" if devices else "unknown"


def _describe_commit(manifest: dict[str, Any]) -> str:
    git = manifest.get("git")
    return "not from a checkout" if not git else git["commit"][:12] + (", with changes" if git["is_dirty"] else "")


def _find_begin(manifest: dict[str, Any]) -> str:
    starts = manifest.get("starts") or [{}]
    again = f", resumed {len(starts) - 1} times" if len(starts) > 2 else ", resumed once" if len(starts) == 2 else ""
    return str(starts[0].get("time", "unknown"))[:16].replace("T", " ") + again


def _join(values: set[str]) -> str:
    return ", ".join(sorted(values))
