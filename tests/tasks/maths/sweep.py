r"""Grades whole benchmarks against themselves, and thousands of broken answers, by the workers that training uses.

    python tests/tasks/maths/sweep.py gold FILE.jsonl ...
    python tests/tasks/maths/sweep.py fuzz COUNT [SEED]
    python tests/tasks/maths/sweep.py kinds (classes | heldout | unseen | later | fresh | FOLDER) [SEED] [beside]

`gold` boxes every problem's own answer in a sentence: once as it is written, and once in other words (a fraction as a
decimal or expanded, a list turned round, an interval as an inequality, a formula in brackets times one). `fuzz` makes
answers out of numbers, formulas, LaTeX, Python and noise, and grades each against a number chosen at random. `kinds`
counts the false verdicts on pairs of which is known what is right, kind by kind: those of classes.py, heldout.py,
unseen.tsv, later.tsv or fresh.tsv, or problems.jsonl, answers.jsonl and expect.json of a folder; `beside` adds
math-verify's. All print one line of JSON a sweep, with every answer that was judged other than it should be.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import classes  # beside this file, which is run as a script
import heldout

from c3jax.rewards import Evaluator, compute_disagreement
from c3jax.tasks.maths import formula, latex
from c3jax.tasks.maths import task as maths
from c3jax.types import Problem

TIMEOUT_S = 5.0
PAIRS = {
    "classes": classes.write_pairs,
    "heldout": heldout.write_pairs,
    "unseen": lambda seed: classes.write_pairs(seed, 1, "unseen.tsv"),
    "later": lambda seed: classes.write_pairs(seed, 1, "later.tsv"),
    "fresh": lambda seed: classes.write_pairs(seed, 1, "fresh.tsv"),
}


def sweep_gold(path: str) -> list[dict]:
    problems = maths.load_problems(path)
    reports = []
    for name, spell in (("as written", str), ("in other words", respell)):
        answers = [
            rf"So, in the end, we find that it is $\boxed{{{spell(problem.answer)}}}$. Done." for problem in problems
        ]
        began = time.perf_counter()
        with Evaluator(maths.grade, workers=2, timeout_s=TIMEOUT_S) as evaluator:
            verdicts = evaluator.score(problems, answers, budget=len(answers))
        rest = [
            {"id": problem.id, "problem": problem.answer, "answer": spell(problem.answer), "verdict": verdict.verdict}
            for problem, verdict in zip(problems, verdicts, strict=True)
            if verdict.verdict != "correct"
        ]
        reports.append(
            {
                "file": path,
                "spelled": name,
                "answers": len(answers),
                "correct": 1.0 - len(rest) / len(answers),
                "disagreement": compute_disagreement(verdicts),
                "seconds": round(time.perf_counter() - began, 1),
                "rest": rest,
            }
        )
    return reports


def respell(answer: str) -> str:
    """Say the same in other words, where these rules know how."""
    text = latex.join_thousands(latex.tidy(answer))
    number = latex.parse_number(text)
    if number is not None and not number.is_percent:
        return respell_number(number.value)
    half_line = re.fullmatch(r"(?P<bracket>[(\[])(?P<end>[^,()\[\]]+),\s*\\infty ?\)", text)
    if half_line:
        return rf"x {'>' if half_line['bracket'] == '(' else chr(92) + 'geq '} {half_line['end']}"
    parts = latex.split_top(text, ",")
    if len(parts) > 1:
        return ", ".join(reversed(parts))
    # A letter of a choice, a count with its unit: 9 (apples).
    is_other = re.fullmatch(r"\(?[A-Z]\)?|[0-9.]+ \([A-Za-z -]+\)", text)
    if formula.is_formula(text) and not is_other and not re.search(r"[<>=,_]|\\le|\\ge|\\ne|\\infty|\[", text):
        return rf"1 \cdot \left( {text} \right)"
    return answer


def respell_number(value: Fraction) -> str:
    if value.denominator == 1:
        return f"{value.numerator}.0"
    for places in range(1, 7):
        if (value * 10**places).denominator == 1:
            sign = "-" if value < 0 else ""
            digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
            return f"{sign}{digits[:-places]}.{digits[-places:]}"
    return rf"\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}"


PIECES = r"""
0 1 2 7 9 10 99 72 1000 123456789 0.5 .25 3.14 1e9 1e999 -1 -7 1/2 2/3 1/0 x y z a b n e i pi A R \pi \infty
-\infty \theta \alpha + - * / ** ^ _ = < > \le \ge \ne \neq \pm \cdot \times \div ! !! , ; : . ' " ( ) [ ] \{ \} {
} | \left( \right) \left[ \right] \left\{ \right\} \frac \dfrac \frac12 \frac{1}{2} \frac{x}{y} \sqrt \sqrt2
\sqrt{3} \sqrt[3]{8} \binom{9}{4} \binom \log \ln \sin \cos \tan \arctan \exp \sum \prod \int \lim \to \mod \text{
\text{cm} \text{and} \text{or} \mbox{x} \mathrm{d} \mathbb{R} \mathbf{v} \begin{pmatrix} \end{pmatrix}
\begin{cases} & \\ \% % $ $$ \$ ^\circ ^{\circ} \degree \cup \cap \in \emptyset \boxed{ \boxed{5}
\operatorname{eye} \operatorname{rank} \overline{3} \overline{AB} 0.\overline{3} \ldots ... and or yes True None
lambda import __import__('os').system('false') eval( exec( open( .__class__ [0] f( #### ~ @ # ` é √ π ½ ٣ １ − × ∞ ≤
答 10^{10} 10^{10^{10}} 9^{9^{9}} 99999! (9!)! 2^{1000} x^{99} (x+1)^{20} e^{e^{9}} \t \x00 \u200b
""".split()


def fuzz_answer(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.15:  # numbers of all sorts
        digits = "".join(rng.choices("0123456789.,/-+e ^", k=rng.choice((3, 8, 30, 300))))
        return digits
    if kind < 0.2:  # long or deep
        unit = rng.choice(
            ("(", "{", "[", r"\frac{", r"\sqrt{", "x^{", "2^", "-", "!", "1,", r"\left(", "|", "((1+", r"\text{", "_a")
        )
        return unit * rng.choice((10, 100, 1000, 100_000))
    if kind < 0.25:
        return "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(1, 0x3000)))) for _ in range(rng.randrange(60))
        )
    pieces = rng.choices(PIECES, k=rng.choice((1, 2, 3, 5, 8, 13, 40)))
    text = rng.choice(("", " ")).join(pieces)
    if kind < 0.6:  # brackets put right, so that more of it is read
        text = text.replace("{", "").replace("}", "")
        return re.sub(r"(\\frac|\\binom)", lambda found: f"{found[0]}{{{rng.randrange(9)}}}{{x}}", text)
    return text


def sweep_fuzz(count: int, seed: int) -> dict:
    rng = random.Random(seed)
    problems, answers = [], []
    for index in range(count):
        number = Fraction(rng.randrange(-(10**9), 10**9), rng.choice((1, 1, 3, 7, 8, 1000)))
        problems.append(Problem(index, str(index), "What is it?", f"{number.numerator}/{number.denominator}"))
        box = rf"\boxed{{{fuzz_answer(rng)}}}"
        answers.append(rng.choice((box, f"The answer is ${box}$.", f"{box} {box}", f"{{{box}")))
    began = time.perf_counter()
    with Evaluator(maths.grade, workers=2, timeout_s=TIMEOUT_S) as evaluator:
        verdicts = evaluator.score(problems, answers, budget=count)
    names = Counter(verdict.verdict for verdict in verdicts)
    return {
        "answers": count,
        "seed": seed,
        "timeout_s": TIMEOUT_S,
        **dict(sorted(names.items())),
        "seconds": round(time.perf_counter() - began, 1),
        "rest": [
            {"problem": problem.answer, "answer": answer[:300], "verdict": verdict.verdict, "detail": verdict.detail}
            for problem, answer, verdict in zip(problems, answers, verdicts, strict=True)
            if verdict.verdict not in ("wrong", "unparsable")
        ],
    }


def sweep_kinds(source: str, seed: int, is_beside: bool) -> dict:
    if source in PAIRS:
        rows = list(dict.fromkeys(PAIRS[source](seed)))
        kinds, expected = [row.kind for row in rows], [row.is_equal for row in rows]
        problems = [Problem(index, str(index), row.question, row.problem) for index, row in enumerate(rows)]
        answers = [rf"So it is $\boxed{{{row.answer}}}$." for row in rows]
    else:
        problems = maths.load_problems(f"{source}/problems.jsonl")
        answers = [json.loads(line)["answer"] for line in Path(source, "answers.jsonl").read_text().splitlines()]
        expected = json.loads(Path(source, "expect.json").read_text())
        kinds = [Path(source).name] * len(problems)
    began = time.perf_counter()
    with Evaluator(maths.grade, workers=2, timeout_s=TIMEOUT_S) as evaluator:
        verdicts = evaluator.score(problems, answers, budget=len(answers))
    seconds = round(time.perf_counter() - began, 1)
    judges = {"ours": [verdict.verdict == "correct" for verdict in verdicts]}
    if is_beside:
        cases = zip(problems, answers, strict=True)
        judges["math-verify"] = [verify(problem.answer, answer) for problem, answer in cases]
    table = {kind: Counter() for kind in kinds}
    for name, judged in judges.items():
        for kind, right, taken in zip(kinds, expected, judged, strict=True):
            table[kind][f"{name}: {'equal' if right else 'different'}"] += 1
            table[kind][f"{name}: {'false rejects' if right else 'false accepts'}"] += right != taken
    rest = [
        {"problem": problem.answer, "answer": answer, "question": problem.question, "equal": right}
        for problem, answer, right, taken in zip(problems, answers, expected, judges["ours"], strict=True)
        if right != taken
    ]
    return {"source": source, "seed": seed, "kinds": table, "seconds": seconds, "rest": rest}


def verify(expected: str, answer: str) -> bool:
    """What math-verify says of a message, read as it reads it of itself."""
    import math_verify

    return math_verify.verify(math_verify.parse(rf"\boxed{{{expected}}}"), math_verify.parse(answer))


def main(words: list[str]) -> None:
    kind, *rest = words
    if kind == "gold":
        reports = [report for path in rest for report in sweep_gold(path)]
    elif kind == "kinds":
        seeds = [int(word) for word in rest[1:] if word.isdigit()] or [0]
        reports = [sweep_kinds(rest[0], seeds[0], "beside" in rest)]
    else:
        reports = [sweep_fuzz(*map(int, [*rest, "0"][:2]))]
    for report in reports:
        print(json.dumps(report, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1:])
