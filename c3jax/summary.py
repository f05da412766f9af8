"""What a finished run says of itself: before and after, what it cost, and where to look next."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from c3jax.evaluate import load_results
from c3jax.metrics import read_metrics, sum_ledger


def print_summary(console: Console, run: Path) -> None:
    """Print a run's held-out accuracy before and after, and its ledger."""
    before, after = (load_results(run / "eval" / f"{name}.json")["results"] for name in ("before", "after"))
    table = Table(title="held-out accuracy (95 % interval)", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("profile", "before", "after"):
        table.add_column(name, no_wrap=True)
    for old, new in zip(before, after, strict=True):
        table.add_row(old["profile"], *(f"{r['accuracy']:.3f}  ({r['low']:.3f}-{r['high']:.3f})" for r in (old, new)))
    console.print(table)
    totals = sum_ledger(read_metrics(run))
    seconds = sum(totals.get(f"seconds_{part}", 0.0) for part in ("rollout", "score", "update"))
    console.print(
        f"{totals['evaluator_calls']:,} evaluator calls, {totals['messages']:,} messages,"
        f" {totals['generated_tokens']:,} tokens generated, {totals['prefilled_tokens']:,} prefilled, {seconds:.0f} s",
        soft_wrap=True,
    )
    console.print(f"Trees: {run}/rollouts   figures: {run}/metrics.jsonl", soft_wrap=True, markup=False)
    console.print(f'Next: c3jax ask {run} "..."   tensorboard --logdir {run}', soft_wrap=True, markup=False)
