"""How long credit takes."""

from __future__ import annotations

import statistics
from typing import Any

import jax

from benchmarks.timing import find_fastest, time_in_turn
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_tree


def bench_credit(is_small: bool) -> dict[str, Any]:
    """Credit of 100,000 problems with 10 messages each (fan-out 2, 4), compiled, in milliseconds."""
    problems = 1000 if is_small else 100_000
    matrix = make_credit_matrix("c3", make_tree((2, 4)))
    return_PL = jax.random.uniform(jax.random.key(0), (problems, 8))
    apply = jax.jit(apply_credit, static_argnames="normalise")
    cases = {scope: (lambda scope=scope: apply(matrix, return_PL, normalise=scope)) for scope in ("none", "group")}
    times = time_in_turn(cases, 20)
    return {
        "problems": problems,
        "messages": 10 * problems,
        "milliseconds_median": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "milliseconds_fastest": {name: 1e3 * seconds for name, seconds in find_fastest(times).items()},
    }
