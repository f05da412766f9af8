"""Command: grade every reference solution of a set. `python -m c3jax.bench.code_sweep FILE [ID TO LEAVE OUT ...]`"""

from __future__ import annotations

import json
import sys
import time

from c3jax.tasks.code import task as code
from c3jax.tasks.code.records import CodeSpec, load_problems


def main(path: str, *left_out: str) -> int:
    """Print a line for each solution that fails, and the count; return how many failed."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    problems = load_problems(path, spec=CodeSpec(timeout_s=120.0, memory_mb=4096, output_mb=512))
    pairs = [pair for pair in zip(problems, rows, strict=True) if pair[0].id not in left_out]
    begin = time.monotonic()
    failed = 0
    for problem, row in pairs:
        solution = row["code"] if "code" in row else row["prompt"] + row["canonical_solution"]
        verdict = code.grade(problem, f"```python\n{solution}\n```")
        if verdict.verdict != "correct":
            failed += 1
            print(f"{problem.id}: {verdict.verdict}, {verdict.detail}")
    seconds = time.monotonic() - begin
    print(f"{len(pairs) - failed} of {len(pairs)} pass; {seconds:.1f} s, {len(pairs) / seconds:.1f} a second")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
