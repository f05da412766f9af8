"""Several benchmarks in one command: the held-out problems and the suites of a config, none left out silently."""

from __future__ import annotations

from typing import Any

from c3jax.config import SuiteSection
from c3jax.evaluate import HELDOUT, Missing, Result, Suite, list_profiles, make_evaluation, make_heldout
from c3jax.models.policy import Weights
from c3jax.rewards import Evaluator
from c3jax.tasks import TASKS, load_problems
from c3jax.tasks.sandbox_walls import check_walls
from c3jax.team import Team, encode_problems
from c3jax.types import UserError

_CODE_S = 7.0  # a program's own limit, and what judging it takes besides


def evaluate_suites(team: Team, weights: Weights, is_contained: bool) -> list[Result | Missing]:
    """Evaluate a policy on the held-out problems and on every suite of the config, each with its profiles.

    A suite that cannot be had stands in its place with the reason.
    """
    config = team.config
    results: list[Result | Missing] = []
    programs: dict[str, Any] = {}  # by sampling and samples: suites share what is compiled
    for section in (None, *config.evaluation.suites):
        try:
            suite = make_heldout(team) if section is None else _load_suite(team, section, is_contained)
        except UserError as error:
            results.append(Missing(HELDOUT if section is None else section.name, str(error)))
            continue
        with Evaluator(TASKS[suite.kind].grade, config.workers, config.grade_timeout) as evaluator:
            for profile in list_profiles(team, None if section is None else section.samples):
                name = f"{profile.samples} {profile.sampling.model_dump_json()}"
                if name not in programs:
                    programs[name] = make_evaluation(team, profile)
                results.append(programs[name](weights, evaluator, suite))
    return results


def _load_suite(team: Team, section: SuiteSection, is_contained: bool) -> Suite:
    if section.kind == "code":
        if is_contained:
            check_walls()
        if team.config.grade_timeout < _CODE_S:
            raise UserError(f"grade_timeout: expected at least {_CODE_S:g} for a suite of programs")
    problems = load_problems(section.kind, section.path, is_contained or section.kind != "code")[: section.problems]
    question_tokens = team.config.protocol.question_tokens
    encoded = encode_problems(problems, team.tokenizer, question_tokens)
    if not encoded.problems:
        raise UserError(
            f"protocol.question_tokens: expected room for one of its questions at least, got {question_tokens}"
        )
    return Suite(section.name, section.kind, encoded)
