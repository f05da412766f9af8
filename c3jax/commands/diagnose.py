"""Diagnostics of a run: what its messages are worth, how well credit orders them, and what they change.

Groups are drawn by `groups.py` or taken from the run; credit is computed by the code of the training run; figures are
`analysis/diagnostics.py`'s. Every method is applied to a group as if its context were the problem: a baseline made of
other contexts, as no_replay's is, is here made of the group. docs/diagnose.md says what each figure estimates.

Dimension key: C context, one a problem    N alternative    M continuation    L leaf
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from c3jax.analysis import diagnostics
from c3jax.analysis.statistics import Interval
from c3jax.analysis.tables import format_cell, make_columns, print_table, to_json
from c3jax.commands import contexts, gradients, groups
from c3jax.commands.ask import load_source
from c3jax.commands.redraw import open_team
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.method import Method
from c3jax.credit.methods import METHODS, find_method
from c3jax.credit.plans import Plan, make_arms, make_tree
from c3jax.run.files import explain_failure, save_whole
from c3jax.setup.team import Setup
from c3jax.types import UserError

LEVEL = 0.95
_HELD = ("tree", "flat", "removal")  # samplings that a group holds

Row = dict[str, Any]


class Drawn(NamedTuple):
    """The groups of one turn."""

    turn: str
    is_last: bool
    continuations: int  # of an alternative that credit is made of; the others are held out
    return_CNM: np.ndarray  # with all that environments paid on the way
    past_C: np.ndarray  # what they paid before the context
    null: dict[str, np.ndarray]  # [C, M] of each null message
    length_CN: np.ndarray  # tokens
    message_CN: np.ndarray  # numbers of texts, equal where these are
    outcome: dict[str, np.ndarray]  # [C, N, M]: numbers of answers, and of next messages


def diagnose_run(
    run: Path,
    checkpoint: str,
    request: groups.Request,
    methods: Sequence[str],
    out: Path | None,
    console: Console,
    is_contained: bool = True,
    accepting: Sequence[str] = (),
) -> int:
    """Draw the groups that a run does not have yet, and print its diagnostics.

    Args:
      run: a run directory.
      checkpoint: newest, best or a step.
      request: the groups asked for; of null messages the one with words, none for the run's own.
      methods: whose credit is diagnosed; none for all that a group holds.
      out: where the figures are written as JSON too.
      console: to print on.
      is_contained: whether programs run in their sandbox.
      accepting: as `load_source`.

    Returns:
      The exit code.

    Raises:
      UserError: the run, a method, or what is asked of them cannot be used, or the disk does not take the groups.
    """
    methods = methods or list_held()
    check_methods(methods)
    setup, weights, step = load_source(str(run), checkpoint, {}, is_contained, accepting)
    request = request._replace(nulls=choose_nulls(setup, request.nulls))

    n, continuations, held_out = request.sizes
    path = run / "diagnose" / f"step-{step}-{n}x{continuations}+{2 * held_out}.jsonl"
    plan = gradients.find_plan(setup) if request.gradients else "not asked for"
    with open_team(setup, weights) as team:
        asked = contexts.list_contexts(team, run, step, request)

        def announce(what: str, problems: int, calls: int) -> None:
            console.print(f"{what}{problems} problems: {calls:,} evaluator calls to make", soft_wrap=True)

        with explain_failure(f"{path}: the groups cannot be kept"):
            found = groups.complete_groups(
                team, path, step, asked, request, functools.partial(announce, "", len(asked))
            )
            measured = None
            if not isinstance(plan, str):
                announce_gradients = functools.partial(announce, "gradients of ")
                measured = gradients.measure_gradients(team, run, plan, step, request.gradients, announce_gradients)
        calls = team.evaluator.calls
    drawn = read_groups(found)
    tables = {
        "credit": [row for part in drawn for row in describe_credit(part, methods)],
        "messages": [describe_messages(part) for part in drawn],
        "influence": [row for part in drawn for row in describe_influence(part)],
        "null_messages": [row for part in drawn for row in describe_arms(part)],
        "gradients": [] if measured is None else gradients.describe_noise(measured, LEVEL),
    }
    steps = sorted({context.step for context in asked})
    if out is not None:
        facts = {"run": str(run), "checkpoint": step, "contexts": request.origin, "context_steps": steps}
        facts |= {"problems": len(found), **request.sizes._asdict(), "nulls": request.nulls}
        save_figures(out, facts | {"evaluator_calls": calls, "level": LEVEL}, tables)
    print_tables(console, tables)
    at = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    origin = f"contexts recorded at {at}" if request.origin == "recorded" else "fresh contexts"
    if request.gradients and isinstance(plan, str):
        console.print(f"no gradient noise scale: {plan}", soft_wrap=True)
    console.print(f"{len(found)} problems, {origin}, policy of step {step}; intervals {LEVEL:.0%}", soft_wrap=True)
    console.print(f"{calls:,} evaluator calls made; groups: {path}", soft_wrap=True)
    return 0


def list_held() -> list[str]:
    """The built-in methods whose credit a group holds."""
    return [name for name, row in METHODS.items() if _find_lack(row) is None]


def check_methods(methods: Sequence[str]) -> None:
    """Check that a group holds what methods need. Raises UserError naming one that does not."""
    for method in methods:
        lack = _find_lack(find_method(method, "--methods"))
        if lack is not None:
            raise UserError(f"--methods: {method} {lack}; expected some of {', '.join(list_held())}")


def _find_lack(row: Method) -> str | None:
    if row.carries != "nothing":
        return f"carries {row.carries}"
    if row.sampling not in _HELD:
        return f"needs {row.sampling} sampling"
    return None if row.reads == "returns" else f"reads {row.reads}"


def choose_nulls(setup: Setup, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The null messages of a run: the empty one, and one with words that is asked for or the config's own.

    Raises UserError for words that a turn could not write.
    """
    (text,) = asked or (setup.config.credit.null_message,)
    try:
        tokens = setup.tokenizer.encode_text(text)
    except UserError as error:
        raise UserError(f"--placeholder: {error}") from None
    room = min(setup.plans[turn].max_tokens for turn in groups.list_decisions(setup))
    if len(tokens) > room:
        most = f"expected at most {room} tokens, as the shortest turn may write"
        raise UserError(f"--placeholder: {most}, got {len(tokens)}")
    return ("", text) if text else ("",)


def read_groups(found: Sequence[groups.Group]) -> list[Drawn]:
    """Groups as arrays, turn by turn, without the contexts in which an episode is over and nobody speaks."""
    drawn, last = [], len(found[0].alternatives["turns"]) - 1
    for turn in range(last + 1):
        spoken = [group for group in found if not group.alternatives["turns"][turn].get("is_over", False)]
        if not spoken:
            continue
        parts = [group.alternatives["turns"][turn] for group in spoken]
        texts = [[node["text"] for node in part["messages"]] for part in parts]
        outcome = {} if turn == last else {"answer": "answers", "next message": "next"}
        drawn.append(
            Drawn(
                turn=parts[0]["turn"],
                is_last=turn == last,
                continuations=1 if turn == last else found[0].alternatives["continuations"],
                return_CNM=np.array([part["returns"] for part in parts], float),
                past_C=np.array([part.get("past", 0.0) for part in parts]),
                null={
                    "placeholder" if text else "empty": np.array(
                        [group.nulls[text]["turns"][turn]["returns"] for group in spoken], float
                    )
                    for text in spoken[0].nulls
                },
                length_CN=np.array([[node["tokens"] for node in part["messages"]] for part in parts], float),
                message_CN=diagnostics.number_distinct(texts),
                outcome={name: _number([part[field] for part in parts]) for name, field in outcome.items()},
            )
        )
    return drawn


def _number(rows: Sequence[Sequence[Sequence[Any]]]) -> np.ndarray:
    flat = diagnostics.number_distinct([[text for row in part for text in row] for part in rows])
    return flat.reshape(len(rows), len(rows[0]), -1)


def credit_groups(
    method: str, return_CNM: np.ndarray, null_CM: np.ndarray, past_C: np.ndarray | None = None
) -> np.ndarray:
    """A method's credit of a group's alternatives, by the code of the training run.

    A tree has the alternatives with all their continuations, a flat sampling the first continuation of each; removal
    takes for each also a continuation of the null message. A method that must be normalised is, as it must.

    Args:
      method: one that a group holds.
      return_CNM: of the continuations that credit is made of.
      null_CM: of the null message's, one an alternative, or one where it is the last message.
      past_C: what environments paid before the context; None where none answers.

    Returns:
      advantage_CN, f64.
    """
    row, (contexts, n, count) = find_method(method), return_CNM.shape
    return_CL = return_CNM[:, :, 0]
    plan: Plan = make_tree((n,))
    if row.sampling == "tree" and count > 1:
        plan, return_CL = make_tree((n, count)), return_CNM.reshape(contexts, -1)
    if row.sampling == "removal":
        plan = make_arms("removal", n, 1)
        return_CL = np.concatenate([return_CL, np.broadcast_to(null_CM, return_CL.shape)], axis=1)
    is_trained = (True, False)[: plan.turns]
    past = ()
    if past_C is not None and plan.form == "tree":  # as in training, other plans are given whole returns
        past = (jnp.broadcast_to(jnp.asarray(past_C, jnp.float32)[:, None], return_CL.shape),) * plan.turns
    inputs = CreditInputs(make_credit_matrix(method, plan, is_trained), plan.fan_out, past=past)
    credit = compute_credit(method, inputs, jnp.asarray(return_CL), normalise=row.scopes[0])
    # Equal values must stay tied in rank, and products in float32 round.
    advantage_CN = np.asarray(credit.advantage[0], float)
    scale = np.abs(advantage_CN).max() or 1.0
    return np.round(advantage_CN / scale, 5) * scale


def describe_credit(drawn: Drawn, methods: Sequence[str]) -> list[Row]:
    """A row a method: fidelity, within-context variance and the share of groups without a gradient.

    The last turn has no fidelity: its credit is made of the very return that its messages are worth.
    """
    own = drawn.continuations
    rows: list[Row] = []
    for method in methods:
        arms = drawn.null if find_method(method).sampling == "removal" else {"": np.zeros((len(drawn.return_CNM), 1))}
        for arm, null_CM in arms.items():
            credit_CN = credit_groups(method, drawn.return_CNM[:, :, :own], null_CM, drawn.past_C)
            row: Row = {"turn": drawn.turn, "method": f"{method} {arm}".strip()}
            if not drawn.is_last:
                found = diagnostics.compute_group_fidelity(credit_CN, *split_held_out(drawn), drawn.length_CN, LEVEL)
                for name in ("corrected", "linear", "observed", "beyond_length"):
                    row |= make_columns(name, getattr(found, name))
                row["defined"] = found.defined
            row |= make_columns("variance", diagnostics.compute_credit_variance(credit_CN, LEVEL))
            rows.append(row | make_columns("zero_groups", diagnostics.compute_zero_share(credit_CN, LEVEL)))
    return rows


def split_held_out(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """Mean returns of the two halves of the held-out continuations, [C, N] each."""
    held_CNM = drawn.return_CNM[:, :, drawn.continuations :]
    half = held_CNM.shape[2] // 2
    return held_CNM[:, :, :half].mean(axis=2), held_CNM[:, :, half:].mean(axis=2)


def describe_messages(drawn: Drawn) -> Row:
    """What a turn's alternatives are: their return, how well it is known, how often they repeat, their length."""
    value_CN = drawn.return_CNM.mean(axis=2)
    row: Row = {"turn": drawn.turn} | make_columns("mean_return", _mean(value_CN.mean(axis=1)))
    if not drawn.is_last:
        halves, held_out = split_held_out(drawn), drawn.return_CNM.shape[2] - drawn.continuations
        row |= make_columns("reliability", diagnostics.compute_rank_correlation(*halves, LEVEL))
        row |= make_columns("noise", diagnostics.compute_split_noise(*halves, held_out // 2, LEVEL))
    row |= make_columns("duplicates", diagnostics.compute_duplicate_share(drawn.message_CN, LEVEL))
    row |= make_columns("tokens", _mean(drawn.length_CN.mean(axis=1)))
    by_length = diagnostics.compute_rank_correlation(drawn.length_CN, value_CN, LEVEL)
    differs_C = np.ptp(drawn.length_CN, axis=1) > 0
    return row | make_columns("length_and_value", by_length) | {"length_differs": int(differs_C.sum())}


def _mean(value_C: np.ndarray) -> Interval:
    return diagnostics.compute_mean_interval(value_C, LEVEL)


def describe_influence(drawn: Drawn) -> list[Row]:
    """What a turn's message says of the answer, and of the next message; nats."""
    rows: list[Row] = []
    for name, outcome_CNM in drawn.outcome.items():
        count_CJY = diagnostics.count_outcomes(drawn.message_CN, outcome_CNM)
        found = diagnostics.compute_group_influence(count_CJY, LEVEL)
        row: Row = {"turn": drawn.turn, "of": name}
        for column in ("plugin", "corrected", "excess"):
            row |= make_columns(column, getattr(found, column))
        rows.append(row | {"null_mean": found.null.mean, "null_quantile": found.null.quantile, "p": found.null.p})
    return rows


def describe_arms(drawn: Drawn) -> list[Row]:
    """The bias map: what the context is worth above a null message in the message's stead, in units of return."""
    rows: list[Row] = []
    for name, null_CM in drawn.null.items():
        bias = diagnostics.compute_arm_bias(drawn.return_CNM, null_CM, LEVEL)
        row: Row = {"turn": drawn.turn, "null_message": name}
        rows.append(row | make_columns("mean", bias.mean) | make_columns("root_mean_square", bias.root_mean_square))
    return rows


_SHOWN = (  # title, rows of, text columns, measured columns, plain columns
    ("messages", "messages", ("turn",), ("mean_return", "reliability", "noise"), ()),
    ("messages and their length", "messages", ("turn",), ("tokens", "length_and_value"), ("length_differs",)),
    ("messages that repeat another", "messages", ("turn",), ("duplicates",), ()),
    ("influence, nats", "influence", ("turn", "of"), ("plugin",), ("null_mean", "p")),
    ("influence corrected, nats", "influence", ("turn", "of"), ("corrected", "excess"), ()),
    ("V(h) - Q(h, null)", "null_messages", ("turn", "null_message"), ("mean", "root_mean_square"), ()),
    ("gradient noise scale, problems", "gradients", ("role",), ("noise_scale",), ("at_least", "problems")),
    ("gradients from problem to problem: tr Σ, and ‖G‖²", "gradients", ("role",), ("noise", "signal"), ()),
)


def print_tables(console: Console, tables: dict[str, list[Row]]) -> None:
    """Print the figures with their intervals in brackets, credit a table a turn."""
    turns = dict.fromkeys(row["turn"] for row in tables["credit"])
    for turn in turns:
        rows = [row for row in tables["credit"] if row["turn"] == turn]
        if "corrected" in rows[0]:
            _print(console, rows, f"{turn}: fidelity of credit", ("method",), ("corrected", "linear", "beyond_length"))
        _print(console, rows, f"{turn}: spread of credit", ("method",), ("variance", "zero_groups"))
    for title, name, *columns in _SHOWN:
        _print(console, tables[name], title, *columns)
    for row in tables["gradients"]:
        if not row["is_resolved"]:
            console.print(gradients.explain_unresolved(row), soft_wrap=True)


def _print(
    console: Console,
    rows: Sequence[Row],
    title: str,
    texts: Sequence[str],
    measured: Sequence[str],
    plain: Sequence[str] = (),
) -> None:
    shown = []
    for row in rows:
        cells = {name: row[name] for name in texts} | {name: _format(row, name) for name in measured}
        shown.append(cells | {name: format_cell(row[name]) for name in plain})
    if shown:
        print_table(console, shown, title)
        console.print()


def _format(row: Row, name: str) -> str:
    """An estimate and its interval; a dash where either is undefined."""
    estimate, low, high = (format_cell(row.get(f"{name}{part}"), 2) for part in ("", "_low", "_high"))
    return "-" if low == "-" else f"{estimate} [{low}, {high}]"


def save_figures(out: Path, facts: Mapping[str, Any], tables: Mapping[str, list[Row]]) -> None:
    """Write what was asked and every table as one JSON object.

    Args:
      out: the file.
      facts: what was asked.
      tables: rows by the name of their table.

    Raises:
      UserError: the disk does not take it.
    """
    body = {**facts, **{name: json.loads(to_json(rows)) for name, rows in tables.items()}}
    with explain_failure(f"--json {out}: cannot be written"):
        save_whole(out, json.dumps(body, ensure_ascii=False, indent=1) + "\n")
