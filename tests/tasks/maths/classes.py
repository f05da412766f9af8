r"""Pairs of answers made from the rows of classes.tsv, each of which stands for a kind of pair, or of another table.

Those of unseen.tsv, later.tsv, fresh.tsv and usual.tsv were written by the kinds of fault alone, before the rules
judged anything of them.

What is between « and » is a Python expression in numbers that are drawn anew for every pair: a, b, c from 2 to 19, all
different; n from 21 to 98; k from 2 to 8; p/q a proper fraction in lowest terms; square, of a small number.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    kind: str
    is_equal: bool
    problem: str
    answer: str
    question: str


def write_pairs(seed: int, rounds: int = 5, table: str = "classes.tsv") -> list[Pair]:
    """Write a number of pairs of every row of a table."""
    rng = random.Random(seed)
    rows = [line.split("\t") for line in (Path(__file__).parent / table).read_text().splitlines()[1:]]
    pairs = []
    for kind, verdict, *texts in rows:
        for _ in range(rounds):
            a, b, c = rng.sample(range(2, 20), 3)
            q = rng.randrange(3, 10)
            p = rng.choice([over for over in range(2, q) if math.gcd(over, q) == 1])
            numbers = {"a": a, "b": b, "c": c, "n": rng.randrange(21, 99), "k": rng.randrange(2, 9), "p": p, "q": q}
            numbers |= {"square": rng.choice((4, 9, 25)), "choose": math.comb, "sqrt": math.isqrt}
            problem, answer, question = (_fill(text, numbers) for text in texts)
            pairs.append(Pair(kind, verdict == "equal", problem, answer, question or "Find the value."))
    return pairs


def _fill(text: str, numbers: dict[str, object]) -> str:
    def compute(found: re.Match[str]) -> str:
        expression, _, layout = found[1].partition(":")
        return format(eval(expression, dict(numbers)), layout)

    return re.sub("«([^»]*)»", compute, text)
