"""Problems of the package reasoning-gym: any of its generators, by name and seed, judged by its own verifier.

A problem is an address, (generator, settings, size of the set, seed, index): whoever judges it makes it anew, so that
the verifier sees exactly what the generator made. Only a full score counts, unless the set says otherwise, because
some verifiers pay for wrong answers (puzzle24 .01, spell_backward up to .43). Three verifiers give a full score to
wrong ones and have a check of ours before them. Nine evaluate what they are given as Python code; they are given
nothing but lists, plain words and small expressions.
"""

from __future__ import annotations

import ast
import difflib
import functools
import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from c3jax.tasks.jsonl import Row, TaskError, check_text, read_id, read_problems
from c3jax.tasks.maths import latex
from c3jax.tasks.sections import ReasoningTask
from c3jax.tasks.task import Task
from c3jax.types import Problem, Verdict

LONGEST_ANSWER = 10_000  # characters


def make_problems(task: ReasoningTask, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Make problems to train on and held-out ones, all with different questions.

    Args:
      task: generator, its settings, and how many.
      seed: the generator's.

    Raises:
      TaskError: reasoning-gym is not installed, it has no such generator, the generator refuses the settings, or it
        has too few different questions.
    """
    problems: dict[str, Problem] = {}  # by question
    wanted = task.train_problems + task.heldout_problems
    size = 4 * wanted  # some repeat themselves
    for index in range(size):
        problem = _make_problem(task.generator, task.settings, task.threshold, size, seed, index)
        problems.setdefault(problem.question, problem)
        if len(problems) == wanted:
            made = [*problems.values()]
            return made[: task.train_problems], made[task.train_problems :]
    raise TaskError(f"task: expected {wanted} different questions of {task.generator}, got {len(problems)}")


def load_problems(path: str) -> list[Problem]:
    """Load a JSONL set of addresses: {"id"?, "generator", "size", "seed", "index", "settings"?, "threshold"?} a line.

    Raises:
      TaskError: as make_problems, or the file cannot be read, a line is not as above, or two ids agree.
    """
    return read_problems(path, _read_problem)


def _read_problem(row: Row) -> Problem:
    numbers = [row.fields.get(name) for name in ("size", "seed", "index")]
    settings, threshold = row.fields.get("settings", {}), row.fields.get("threshold", 1.0)
    size, seed, index = (number if isinstance(number, int) and number >= 0 else -1 for number in numbers)
    if min(seed, index) < 0 or index >= size:
        raise TaskError(f"{row.where}: expected a size, a seed and an index below the size, got {numbers}")
    if not isinstance(settings, dict):
        raise TaskError(f"{row.where}: expected an object as settings, got {type(settings).__name__}")
    if not isinstance(threshold, (int, float)) or not 0.0 < threshold <= 1.0:
        raise TaskError(f"{row.where}: expected a threshold above 0 and at most 1, got {threshold!r}")
    generator = check_text(row.where, "generator", row.fields.get("generator"))
    problem = _make_problem(generator, settings, float(threshold), size, seed, index)
    return problem._replace(index=row.index, id=read_id(row, "id"))


def _make_problem(
    generator: str, settings: Mapping[str, Any], threshold: float, size: int, seed: int, index: int
) -> Problem:
    key = json.dumps([generator, dict(settings), size, seed, index, threshold])
    entry = _load_dataset(generator, json.dumps(dict(settings)), size, seed)[index]
    return Problem(index=index, id=f"{generator}-{seed}-{index}", question=entry["question"], answer=key)


@functools.lru_cache(maxsize=16)
def _load_dataset(generator: str, settings: str, size: int, seed: int) -> Any:
    try:
        import reasoning_gym  # pyright: ignore[reportMissingImports]
        from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TaskError(
            f"task.kind: reasoning needs the package reasoning-gym (pip install 'c3jax[reasoning]'): {error}"
        ) from error
    if generator not in DATASETS:
        near = difflib.get_close_matches(generator, sorted(DATASETS), n=3)
        known = f"one like {', '.join(near)}" if near else f"one of {', '.join(sorted(DATASETS))}"
        raise TaskError(f"task.generator: expected {known}, got {generator!r}")
    try:
        return reasoning_gym.create_dataset(generator, **{**json.loads(settings), "size": size, "seed": seed})
    except (TypeError, ValueError, AssertionError) as error:
        raise TaskError(f"task.settings: the generator {generator} refuses {settings} ({error})") from error


_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def read_answer(text: str) -> str | None:
    r"""Read the last <answer>...</answer> of a message, or without one its last \boxed{...}; None without either."""
    tags = _TAG.findall(text)
    answer = tags[-1] if tags else latex.find_last_box(text)
    return answer.strip() or None if answer is not None else None


def grade(problem: Problem, text: str) -> Verdict:
    """Grade a message: 1.0 if the generator's verifier gives its answer the threshold or more, else 0.0.

    Raises:
      TaskError: the problem is not of this task.
    """
    answer = read_answer(text)
    if answer is None:
        return Verdict(0.0, "unparsable", None, "no <answer>...</answer> in the message")
    if len(answer) > LONGEST_ANSWER:
        return Verdict(0.0, "unparsable", None, f"the answer is longer than {LONGEST_ANSWER} characters")
    try:
        generator, settings, size, seed, index, threshold = json.loads(problem.answer)
    except (ValueError, TypeError) as error:
        raise TaskError(f"problem {problem.id}: the answer is no address of a generated problem") from error
    is_harmless = _SCREENS.get(generator)
    if is_harmless is not None and not is_harmless(answer):
        return Verdict(0.0, "unparsable", answer, f"not of the form that the verifier of {generator} may be given")
    dataset = _load_dataset(generator, json.dumps(settings), size, seed)
    entry, is_possible = dataset[index], _CHECKS.get(generator)
    if is_possible is not None and not is_possible(answer, entry):
        return Verdict(0.0, "wrong", answer)
    score = float(dataset.score_answer(answer=answer, entry=entry))
    verdict = "correct" if score >= threshold else "wrong"
    return Verdict(float(verdict == "correct"), verdict, answer, f"the verifier gives {score:g}")


# --------------------------------------------------------------------------------------------------------------------
# What verifiers give a full score to, and should not: other numbers than the puzzle's, 0 for any probability, any word


def _has_its_numbers(answer: str, entry: Mapping[str, Any]) -> bool:
    return sorted(map(int, re.findall("[0-9]+", answer))) == sorted(entry["metadata"]["numbers"])


def _is_near(answer: str, entry: Mapping[str, Any]) -> bool:
    given, wanted = latex.parse_number(answer), latex.parse_number(entry["answer"])
    return given is not None and wanted is not None and abs(given.value - wanted.value) <= Fraction(1, 10_000)


def _is_its_word(answer: str, entry: Mapping[str, Any]) -> bool:
    return answer.lower() == str(entry["answer"]).lower()


_CHECKS = {"puzzle24": _has_its_numbers, "coin_flip": _is_near, "game_of_life_halting": _is_its_word}

# --------------------------------------------------------------------------------------------------------------------
# What may be given to verifiers that evaluate it

_WORDS = re.compile(r"[0-9A-Za-z_ \n-]*")
_EXPRESSION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z]+|[-+*/^(), \n])*")
_NAMES = {*"sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt pi Abs".split()}
_POWER = re.compile(
    r"(?:\*\*|\^)(?P<exponent>\s*(?:-?[0-9]{1,2}|\(-?[0-9]{1,2}(?:/[0-9]{1,2})?\))(?!\s*(?:\*\*|\^|[0-9])))?"
)
_LONGEST_EXPRESSION = 500  # characters
_LONGEST_DIGITS = 15


def _is_harmless_list(text: str) -> bool:
    """Words without brackets or dots, which can call nothing, or a Python literal."""
    if _WORDS.fullmatch(text):
        return True
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_harmless_expression(text: str) -> bool:
    """Numbers, single letters, known functions and operators, with small exponents and no towers of them."""
    if len(text) > _LONGEST_EXPRESSION or not _EXPRESSION.fullmatch(text):
        return False
    names = {name for name in re.findall("[A-Za-z]+", text) if len(name) > 1}
    if not names <= _NAMES or re.search(rf"[0-9]{{{_LONGEST_DIGITS + 1}}}", text):
        return False
    powers = list(_POWER.finditer(text))
    return all(power["exponent"] for power in powers) and len(re.findall(r"\)\s*(?:\*\*|\^)", text)) <= 2


# Drawn from the source of reasoning-gym 0.1.25, which is why the version is pinned.
_SCREENS = {
    **dict.fromkeys(("string_insertion", "spiral_matrix", "binary_matrix", "n_queens"), _is_harmless_list),
    **dict.fromkeys(
        ("simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"),
        _is_harmless_expression,
    ),
}


REASONING = Task(
    grade=grade,
    section=ReasoningTask,
    load=load_problems,
    make=make_problems,
    read_answer=read_answer,
    canonical=str.casefold,
)
