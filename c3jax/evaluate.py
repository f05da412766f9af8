"""Held-out evaluation: greedy and sampled accuracy with intervals, unbiased pass@k, and what went wrong elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3jax.config import Sampling
from c3jax.diagnostics.statistics import compute_bootstrap_interval, compute_wilson_interval
from c3jax.models.policy import Weights
from c3jax.records import save_whole
from c3jax.rewards import Evaluator
from c3jax.rollout import address, sampling, tree
from c3jax.team import Team, decode_messages, make_questions
from c3jax.types import Rollout, Verdict


class Profile(NamedTuple):
    """One way to answer: how often, and from which distribution."""

    name: str
    samples: int
    sampling: Sampling


class Result(NamedTuple):
    """What one profile measured. Shares are of all samples."""

    profile: str
    problems: int
    samples: int
    accuracy: float  # mean return
    low: float  # 95 % interval of the accuracy
    high: float
    pass_at: dict[int, float]
    truncated: float  # share of transcripts whose answer met the token limit
    unparsable: float
    failed: float  # share the evaluator could not judge: timeout or error
    tokens: int  # generated


def list_profiles(team: Team) -> list[Profile]:
    """The profiles that a config asks for: greedy, and sampled as in training."""
    section = team.config.evaluation
    profiles = [Profile("greedy", 1, sampling.GREEDY)]
    if section.samples:
        profiles.append(Profile("sampled", section.samples, team.config.sampling))
    return profiles


def make_evaluation(team: Team, profile: Profile) -> Callable[[Weights, Evaluator, int], Result]:
    """Make evaluate(weights, evaluator, problems), compiled once for the profile.

    It answers the first `problems` held-out problems; draws are addressed by the run's seed and the problem, so two
    policies are compared on the same random numbers.
    """
    fan_out = (profile.samples,) + (1,) * (len(team.plans) - 1)
    stop_tokens, batches = team.tokenizer.stop_tokens, team.config.shapes.batches
    sample_tree = tree.make_tree_sampler(team.policy, team.plans, fan_out, profile.sampling, stop_tokens, batches)
    key = address.make_stream(team.config.seed, address.EVALUATE)

    def evaluate(weights: Weights, evaluator: Evaluator, problems: int) -> Result:
        places = list(range(min(problems, len(team.heldout.problems))))
        batch = min(team.config.evaluation.batch, len(places))
        verdicts: list[Verdict] = []
        truncated: list[bool] = []
        generated = 0
        for first in range(0, len(places), batch):
            chunk = places[first : first + batch]
            # The last chunk is filled up to the one compiled shape; what fills it is not scored.
            filled = chunk + [chunk[-1]] * (batch - len(chunk))
            question, problem_P = make_questions(team, team.heldout, filled)
            rollout, _ = sample_tree(weights, question, key, problem_P)
            rollout = _keep_first(jax.device_get(rollout), batch, len(chunk))
            answers = decode_messages(team.tokenizer, rollout.turns[-1])
            asked = [team.heldout.problems[place] for place in chunk for _ in range(profile.samples)]
            verdicts += evaluator.score(asked, answers, budget=len(asked))
            truncated += rollout.turns[-1].truncated_N.tolist()
            generated += sum(int(turn.sampled_NT.sum()) for turn in rollout.turns)
        return summarise(profile, verdicts, truncated, generated)

    return evaluate


def _keep_first(rollout: Rollout, problems: int, kept: int) -> Rollout:
    return jax.tree.map(lambda array: array[: len(array) // problems * kept], rollout)  # rows are in path order


def summarise(profile: Profile, verdicts: Sequence[Verdict], truncated: Sequence[bool], tokens: int) -> Result:
    """Figures of one profile from its verdicts, samples of a problem side by side."""
    score_PS = np.array([verdict.score for verdict in verdicts], np.float64).reshape(-1, profile.samples)
    names = [verdict.verdict for verdict in verdicts]
    low, high = compute_interval(score_PS)
    correct_P = (score_PS >= 1.0).sum(axis=1)
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= profile.samples]
    return Result(
        profile=profile.name,
        problems=len(score_PS),
        samples=profile.samples,
        accuracy=float(score_PS.mean()),
        low=low,
        high=high,
        pass_at={k: float(np.mean([compute_pass_at(profile.samples, int(c), k) for c in correct_P])) for k in ks},
        truncated=float(np.mean(truncated)),
        unparsable=names.count("unparsable") / len(names),
        failed=(names.count("timeout") + names.count("error")) / len(names),
        tokens=tokens,
    )


def compute_pass_at(samples: int, correct: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al., arXiv 2107.03374, equation 1.
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def compute_interval(score_PS: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean return over problems.

    One sample of 0 or 1 a problem: Wilson's score interval (Wilson 1927). Otherwise the percentile bootstrap over
    problems, since samples of one problem are not independent of each other.
    """
    problems, samples = score_PS.shape
    if samples == 1 and np.isin(score_PS, (0.0, 1.0)).all():
        interval = compute_wilson_interval(int(score_PS.sum()), problems, level=0.95)
    else:
        interval = compute_bootstrap_interval(score_PS.mean(axis=1), level=0.95)
    return interval.low, interval.high


def save_results(path: Path, step: int, results: Sequence[Result]) -> None:
    """Write an evaluation as one JSON file, whole or not at all."""
    body = {"step": step, "results": [result._asdict() for result in results]}
    save_whole(path, json.dumps(body, indent=2) + "\n")


def load_results(path: Path) -> dict[str, Any]:
    """Read back what save_results wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def print_results(console: Console, results: Sequence[Result], title: str) -> None:
    """A table of the results that fits 80 columns."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("profile", "problems", "samples", "accuracy", "95 %", "cut", "unparsable", "failed"):
        table.add_column(name, justify="left" if name == "profile" else "right", no_wrap=True)
    for result in results:
        table.add_row(
            result.profile,
            str(result.problems),
            str(result.samples),
            f"{result.accuracy:.3f}",
            f"{result.low:.3f}-{result.high:.3f}",
            *(f"{share:.1%}" for share in (result.truncated, result.unparsable, result.failed)),
        )
    console.print(table)
    for result in results:
        if len(result.pass_at) > 1:
            text = "  ".join(f"pass@{k} {value:.3f}" for k, value in result.pass_at.items())
            console.print(f"{result.profile}: {text}")
