"""`python -m benchmarks NAME [--small]`: run one benchmark and print its figures as one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from c3jax.types import UserError

NAMES = ("rollout", "decode", "update", "credit", "sweep", "grade")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the words ask for. Returns the exit code: 0 done, 1 some solutions failed, 2 it cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure c3jax on this machine.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--small", action="store_true", help="tiny sizes: checks that it runs, measures nothing")
    parser.add_argument("--solutions", metavar="FILE", help="grade: judge a code set's own solutions instead")
    parser.add_argument("--without", metavar="ID", nargs="+", default=[], help="problems of the set that are left out")
    arguments = parser.parse_args(argv)
    if arguments.name != "grade" and (arguments.solutions or arguments.without):
        parser.error(f"--solutions and --without: expected with grade, got {arguments.name}")
    try:
        if arguments.solutions:
            from benchmarks.grade import judge_solutions

            return min(judge_solutions(arguments.solutions, arguments.without), 1)
        figures = _measure(arguments.name, arguments.small)
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"bench": arguments.name, **figures}, indent=2))
    return 0


def _measure(name: str, is_small: bool) -> dict[str, Any]:
    if name == "grade":  # needs no JAX
        from benchmarks.grade import bench_grade

        return bench_grade(is_small)
    import jax

    from benchmarks.credit import bench_credit
    from benchmarks.decode import bench_decode
    from benchmarks.rollout import bench_rollout
    from benchmarks.sweep import bench_sweep
    from benchmarks.update import bench_update

    # As in a run: float32 means float32 on every device.
    jax.config.update("jax_default_matmul_precision", "float32")
    # A small benchmark measures nothing, so what it runs need not be fast.
    jax.config.update("jax_disable_most_optimizations", is_small)
    measures = {
        **{"rollout": bench_rollout, "decode": bench_decode, "update": bench_update},
        **{"credit": bench_credit, "sweep": bench_sweep},
    }
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__, **measures[name](is_small)}


if __name__ == "__main__":
    sys.exit(main())
