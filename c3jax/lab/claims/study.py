"""The study of the claims: measure those that are not recorded yet, judge all, write the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from c3jax.analysis.tables import print_table
from c3jax.lab.claims import CLAIMS
from c3jax.lab.claims.claim import Claim, Scale
from c3jax.lab.claims.page import write_page
from c3jax.lab.claims.recorded import Record, load_record, locate_record, save_record
from c3jax.lab.config import ClaimsStudy


def run(config: ClaimsStudy, run_dir: Path, console: Console) -> int:
    """Measure, or go on with what is recorded in `run_dir`, and write the page; returns the exit code.

    Raises UserError where a record is malformed.
    """
    claims = choose_claims(config.only)
    scale = Scale(config.seed, config.games, config.samples, config.seeds, config.updates)
    measure_missing(claims, scale, run_dir, console)
    page = Path(config.page) if config.page else run_dir / "claims.md"
    table = write_page(page, run_dir, claims)
    verdicts = [row["verdict"] for row in table]
    rows = [{"claim": claim.name, "verdict": verdict} for claim, verdict in zip(claims, verdicts, strict=True)]
    print_table(console, rows, "Claims")
    console.print(f"page {page}", soft_wrap=True)
    return 0


def choose_claims(only: Sequence[int]) -> list[Claim]:
    """The claims with these numbers, or all of them where none are named, in order."""
    return [claim for claim in CLAIMS if claim.number in only or not only]


def measure_missing(claims: Sequence[Claim], scale: Scale, run_dir: Path, console: Console) -> None:
    """Measure the claims that have no record, each saved when it is done. Raises UserError for a malformed record."""
    for place, claim in enumerate(claims):
        head = f"{place + 1}/{len(claims)} claim {claim.number} {claim.name}"
        if locate_record(run_dir, claim).exists():
            record = load_record(run_dir, claim)
            console.print(f"{head}: recorded ({record.seconds:g} s)", soft_wrap=True)
            continue
        start = time.perf_counter()
        rows = claim.measure(scale)
        seconds = time.perf_counter() - start
        save_record(run_dir, claim, Record(scale, seconds, tuple(rows)))
        console.print(f"{head}: measured in {seconds:.1f} s", soft_wrap=True)
