r"""Judges a set's own answers written otherwise, and answers made from them that say something else.

    PYTHONPATH=CHECKOUT python tests/tasks/maths/mutations.py MODULE FILE.jsonl ... > verdicts.jsonl

MODULE has `load_problems` and `grade`: `c3jax.tasks.maths.task`, or in the checkout of another commit what it was then
called. The lines of two runs over the same files are about the same answers, in the same order. On the error stream are
the counts of both sorts of answers.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator


def spell_otherwise(answer: str) -> Iterator[tuple[str, str]]:
    """Write an answer in other ways."""
    yield "as it is", answer
    yield "dollars round it", f"${answer}$"
    yield "a full stop", f"{answer}."
    yield "braces", f"{{{answer}}}"
    yield "a lead", rf"\text{{The answer is }} {answer}"
    yield "wide space", answer.replace(" ", r"\, ") if "text" not in answer and "\\ " not in answer else answer
    yield "large fractions", re.sub(r"\\[dt]?frac", r"\\dfrac", answer)
    yield "small fractions", re.sub(r"\\[dt]?frac", r"\\tfrac", answer)
    yield "fractions with a stroke", re.sub(r"^(-?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}$", r"\1\2/\3", answer)
    yield "sized brackets", answer if "\\left" in answer else answer.replace("(", r"\left(").replace(")", r"\right)")
    yield "a named number", f"x = {answer}" if re.fullmatch("-?[0-9.]+", answer) else answer
    if re.fullmatch("[0-9]+", answer):
        yield from (("two decimals", f"{answer}.00"), ("commas", f"{int(answer):,}"), ("dollars", rf"\${answer}"))
        yield from (("thin spaces", f"{int(answer):,}".replace(",", r"\,")), ("a sum", f"{int(answer) + 3}-3"))
        yield "a product", rf"\frac{{1}}{{2}}({2 * int(answer)})"


def say_otherwise(answer: str, other: str) -> Iterator[tuple[str, str]]:
    """Make answers that say something else: but for a zero, a list turned round and the like."""
    yield "another problem's", other
    yield "first number higher", re.sub("[0-9]+", lambda found: str(int(found[0]) + 1), answer, count=1)
    yield "last number higher", re.sub(r"[0-9]+(?=[^0-9]*$)", lambda found: str(int(found[0]) + 1), answer)
    yield "its negative", answer[1:] if answer.startswith("-") else f"-{answer}"
    yield "signs turned", answer[:1] + answer[1:].translate(str.maketrans("+-", "-+"))
    yield "brackets of another kind", answer.translate(str.maketrans("()[]", "[]()"))
    yield "no root", answer.replace(r"\sqrt", "")
    yield "no pi", answer.replace(r"\pi", "")
    yield "another letter", re.sub(r"(?<![A-Za-z\\])x(?![A-Za-z])", "y", answer)
    yield "ten times", f"10({answer})"
    yield "one more", rf"{answer} + 1"
    yield "an unknown more", f"{answer} + z"
    yield "two answers", rf"{answer} \text{{ or }} 123456"
    if re.fullmatch("[0-9]+", answer):
        yield from ((unit, rf"{answer}\text{{ {unit}}}") for unit in ("hundredths", "dozen", "million", "or more"))
        yield from (("a square", f"x^2 = {answer}"), ("an inequality", f"x > {answer}"), ("a power", f"{answer}^2"))
        yield from (("a digit more", f"{answer}5"), ("letters", f"{answer}xxxx"), ("a percentage", rf"{answer}\%"))
    if len(answer) > 4 and answer.isdigit():
        yield "parts", f"{answer[:-3]}, {answer[-3:]}"


def main(module: str, *paths: str) -> None:
    maths = importlib.import_module(module)
    counts, rng = Counter(), random.Random(0)
    for path in paths:
        problems = maths.load_problems(path)
        for problem in problems:
            other = rng.choice(problems).answer
            sorts = {"same": spell_otherwise(problem.answer), "other": say_otherwise(problem.answer, other)}
            for sort, answers in sorts.items():
                # Of one text the last kind counts; what a change leaves as it was is no answer of the other sort.
                kinds = {text: kind for kind, text in answers if sort == "same" or text != problem.answer}
                for text, kind in kinds.items():
                    verdict = maths.grade(problem, rf"\boxed{{{text}}}").verdict
                    row = {"sort": sort, "kind": kind, "problem": problem.answer, "answer": text, "verdict": verdict}
                    print(json.dumps(row, ensure_ascii=False))
                    counts[path, sort, verdict] += 1
    for (path, sort, verdict), count in sorted(counts.items()):
        print(f"{path}: {sort}, {verdict}: {count}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
