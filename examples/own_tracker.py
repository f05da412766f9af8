"""A tracker of one's own: a line of CSV a step.

    c3jax train configs/quickstart.yaml --trackers '[jsonl, "./examples/own_tracker.py:open_csv"]' --run-dir runs/csv

A tracker is a pair of functions, write(step, row) and close(), made by a function of the run. If one of them raises,
the run prints so once and continues without the tracker.
"""

import csv
from typing import Any

from c3jax.run.trackers import TrackedRun, Tracker

COLUMNS = ("return", "kl", "tokens_per_second")


def open_csv(run: TrackedRun) -> Tracker:
    """Append to RUN/figures.csv."""
    file = (run.path / "figures.csv").open("a", newline="")
    writer = csv.writer(file)
    if run.first_step == 0:
        writer.writerow(("step", *COLUMNS))

    def write(step: int, row: dict[str, Any]) -> None:
        writer.writerow((step, *(row[name] for name in COLUMNS)))
        file.flush()

    return Tracker(write, file.close)
