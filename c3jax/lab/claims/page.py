"""The page of the claims, made from recorded rows alone: a table of verdicts, then each claim's figure or rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c3jax.analysis.figures import save_figure
from c3jax.analysis.tables import format_cell, to_markdown
from c3jax.lab.claims.claim import ALPHA, Claim, Finding
from c3jax.lab.claims.recorded import Record, correct_rows, load_record, locate_record
from c3jax.run.files import save_whole
from c3jax.types import UserError

_HEAD = """# Claims, measured

Each claim has a prediction that was written before anything was measured and is not changed afterwards. Everything is
measured on small games whose truth is known by enumeration. Bounds in parentheses are 95 % intervals (99.9 % for
checks of bias) over problems or over paired seeds.
{tests}
A claim *holds* if every part of its prediction is met, *fails* if a part without which it means nothing is not, and
else *holds only under* the conditions that were met.

"""


def judge_claims(folder: Path, claims: Sequence[Claim]) -> list[tuple[Claim, Record, list[dict[str, Any]], Finding]]:
    """Judge what is recorded of each claim. Raises UserError naming a file that is missing or lacks a row."""
    records = [load_record(folder, claim) for claim in claims]
    corrected = correct_rows([record.rows for record in records])
    return [
        (claim, record, rows, _judge(folder, claim, rows))
        for claim, record, rows in zip(claims, records, corrected, strict=True)
    ]


def _judge(folder: Path, claim: Claim, rows: list[dict[str, Any]]) -> Finding:
    try:
        return claim.judge(rows)
    except KeyError as error:
        raise UserError(f"{locate_record(folder, claim)}: expected {error.args[0]} among its rows, got none") from None


def write_page(path: Path, folder: Path, claims: Sequence[Claim]) -> list[dict[str, str]]:
    """Write the page, and beside it a folder of its name with figures and records; returns the table of verdicts.

    The same records give the same bytes. Raises UserError as `judge_claims`.
    """
    judged = judge_claims(folder, claims)
    beside = path.with_suffix("")
    table = [
        {
            "no.": str(claim.number),
            "claim": claim.statement,
            "prediction": claim.prediction,
            "measured": finding.measured,
            "p (Holm)": _describe_p(rows),
            "verdict": _describe_verdict(finding),
        }
        for claim, _, rows, finding in judged
    ]
    parts = [_HEAD.format(tests=_describe_tests([rows for _, _, rows, _ in judged])), to_markdown(table)]
    for claim, record, rows, finding in judged:
        parts += [
            f"\n## {claim.number}. {claim.statement}\n\n",
            f"{_describe_verdict(finding, bold=True)}. {finding.sentence}\n\n",
        ]
        if claim.plot is None:
            parts.append(to_markdown(_drop_empty(rows)))
        else:
            stem = beside / locate_record(beside, claim).stem
            save_figure(_plot(folder, claim, rows), stem)
            stem.with_suffix(".png").unlink()  # the page shows the other form
            parts.append(f"![{claim.statement}]({beside.name}/{locate_record(beside, claim).stem}.svg)\n")
        parts.append(
            f"\n{_describe_scale(record)} [Recorded rows]({beside.name}/{locate_record(beside, claim).name}).\n"
        )
        if beside.resolve() != folder.resolve():
            save_whole(locate_record(beside, claim), locate_record(folder, claim).read_text(encoding="utf-8"))
    save_whole(path, "".join(parts))
    return table


def _plot(folder: Path, claim: Claim, rows: list[dict[str, Any]]) -> Any:
    try:
        return claim.plot(rows, f"Claim {claim.number}")
    except UserError as error:
        raise UserError(f"{locate_record(folder, claim)}: {error}") from None


def _describe_verdict(finding: Finding, *, bold: bool = False) -> str:
    verdict = f"**{finding.verdict}**" if bold else finding.verdict
    return verdict + (f" ({finding.condition})" if finding.condition else "")


def _describe_p(rows: Sequence[dict[str, Any]]) -> str:
    """The smallest and largest adjusted p-value of a claim's tests, and how many there are."""
    adjusted = sorted(row["p_holm"] for row in rows if math.isfinite(row["p_holm"]))
    if not adjusted:
        return "-"
    if len(adjusted) == 1:
        return format_cell(adjusted[0], 2)
    rejected = sum(p <= ALPHA for p in adjusted)
    bounds = f"{format_cell(adjusted[0], 2)} to {format_cell(adjusted[-1], 2)}"
    return f"{rejected} of {len(adjusted)} at most {ALPHA:g}; {bounds}"


def _describe_tests(all_rows: Sequence[Sequence[dict[str, Any]]]) -> str:
    tests = sum(math.isfinite(row["p_holm"]) for rows in all_rows for row in rows)
    if not tests:
        return ""
    return (
        f"The {tests} tests of all claims are corrected together by Holm's method: the chance of any false rejection\n"
        f"is at most {ALPHA:g}. A test of a predicted value, zero for no bias, speaks against the prediction where\n"
        "it rejects.\n"
    )


def _describe_scale(record: Record) -> str:
    scale = record.scale
    return (
        f"{record.seconds:g} s; {scale.games} games, {scale.samples} samples, {scale.seeds} seeds,"
        f" {scale.updates} updates,"
        f" seed {scale.seed}."
    )


def _drop_empty(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the columns in which nothing is known of any."""
    known = {name for row in rows for name, cell in row.items() if isinstance(cell, str) or math.isfinite(cell)}
    return [{name: cell for name, cell in row.items() if name in known} for row in rows]
