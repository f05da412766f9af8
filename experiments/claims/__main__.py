"""`python -m experiments.claims`, from a checkout: measure what is not recorded yet, judge all, write the page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from rich.console import Console

from c3jax.analysis.tables import print_table
from c3jax.config.file import parse_section, read_tree
from c3jax.run.directory import open_run_dir, record_start
from c3jax.types import UserError
from experiments.claims import credit, diagnostics, gradients, learning
from experiments.claims.claim import Claim, Rows, Scale, load_claims
from experiments.claims.page import write_page
from experiments.claims.records import load_record, locate_record, save_record

MEASURES: dict[str, Callable[[Scale], Rows]] = {
    "01-unbiased": credit.measure_bias,
    "02-offset": credit.measure_offset,
    "03-variance-law": credit.measure_variance_law,
    "04-leave-one-out-is-scaling": credit.measure_identities,
    "05-fidelity": gradients.measure_fidelity,
    "06-two-rankings": gradients.measure_rankings,
    "07-four-arms": credit.measure_arms,
    "08-removal": credit.measure_removal,
    "09-learning-curves": learning.measure_curves,
    "10-token-arithmetic": gradients.measure_tokens,
    "11-fan-out": learning.measure_fan_out,
    "12-depth": learning.measure_depth,
    "13-team-mates": learning.measure_mates,
    "14-influence": diagnostics.measure_influence,
    "15-diagnostics-confound": diagnostics.measure_confound,
    "16-critic-error": gradients.measure_critic,
    "17-stale-policy": gradients.measure_stale,
    "18-zero-groups": diagnostics.measure_zero_groups,
    "19-message-length": gradients.measure_length,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0 done, 2 the user can mend it, 130 stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.claims",
        description="Measure nineteen claims about counterfactual credit on games whose truth is known, each against"
        " its prediction. What is recorded is not measured again; the page beside the folder shows all that it holds.",
        allow_abbrev=False,
    )
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="N", help="claims to measure (all)")
    config = Path(__file__).with_name("config.yaml")
    parser.add_argument("--config", type=Path, default=config, help="how much is measured (that beside this file)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/claims"), help="records and figures (runs/claims)")
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words)
    try:
        scale, console = _load_scale(arguments.config), Console(highlight=False)
        return run(scale, arguments.only, arguments.run_dir, words, console)
    except UserError as error:
        print(f"claims: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("claims: stopped", file=sys.stderr)
        return 130


def _load_scale(path: Path) -> Scale:
    return parse_section(read_tree(path), Scale)


def run(scale: Scale, only: Sequence[int], run_dir: Path, words: Sequence[str], console: Console) -> int:
    """Measure what is not recorded in `run_dir`, of the claims with these numbers or of all, and write the page.

    Raises UserError for a number that there is not, for another scale than the directory's, and for a broken record.
    """
    # float32 means float32 on every device: accelerators would otherwise round the factors of a product.
    jax.config.update("jax_default_matmul_precision", "float32")
    claims = load_claims()
    numbers = [claim.number for claim in claims]
    for number in only:
        if number not in numbers:
            raise UserError(f"--only: expected a claim from 1 to {max(numbers)}, got {number}")
    with open_run_dir(run_dir, scale, ["python", "-m", "experiments.claims", *words], _load_scale) as opened:
        record_start(opened, sum(locate_record(run_dir, claim).exists() for claim in claims))
        for claim in claims:
            if claim.number in only or not only:
                _measure(claim, scale, run_dir, console)
        recorded = [claim for claim in claims if locate_record(run_dir, claim).exists()]
        page = run_dir.resolve().with_name(f"{run_dir.resolve().name}.md")
        table = write_page(page, run_dir, recorded)
    print_table(console, [{"claim": row["claim"], "verdict": row["verdict"]} for row in table], "Claims")
    console.print(f"page {page}", soft_wrap=True)
    return 0


def _measure(claim: Claim, scale: Scale, run_dir: Path, console: Console) -> None:
    if locate_record(run_dir, claim).exists():
        console.print(f"{claim.name}: recorded ({load_record(run_dir, claim).seconds:g} s)", soft_wrap=True)
        return
    start = time.perf_counter()
    rows = MEASURES[claim.name](scale)
    seconds = time.perf_counter() - start
    save_record(run_dir, claim, scale, seconds, rows)
    console.print(f"{claim.name}: measured in {seconds:.1f} s", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
