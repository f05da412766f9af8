"""Evaluation: accuracy with intervals on held-out problems and on other suites, and what went wrong elsewhere."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3jax import processes
from c3jax.analysis.statistics import Interval, compute_bootstrap_interval, compute_wilson_interval, widen_constant
from c3jax.config.run import RunConfig, Sampling, SuiteSection
from c3jax.models.policy import Weights
from c3jax.models.sharding import count_parts
from c3jax.rewards import Evaluator
from c3jax.rollout import address, sampling, tree
from c3jax.rollout.acting import Acting, draw_trees
from c3jax.rollout.collect import Drawn, draw_and_submit, fetch_messages, pay_verdicts, share_verdicts
from c3jax.run.files import save_whole
from c3jax.run.jobs import load_evaluation
from c3jax.run.metrics import read_metrics, sum_ledger, sum_seconds
from c3jax.setup.problems import ProblemSet, encode_problems
from c3jax.setup.team import Setup, decode_messages, make_questions, open_environments
from c3jax.tasks.task import Task, load_file, open_task
from c3jax.types import FanOut, Rollout, UserError, Verdict, VerdictName

HELDOUT = "heldout"  # the suite of the task's own held-out problems
_LEVEL = 0.95


class Profile(NamedTuple):
    """One way to answer: how often, and from which distribution."""

    name: str
    samples: int
    sampling: Sampling


class Suite(NamedTuple):
    """Problems to answer, under the name that tables call them by."""

    name: str
    task: Task  # that grades them
    problems: ProblemSet


class Result(NamedTuple):
    """What one profile measured on one suite. Shares are of all samples, intervals of level 0.95."""

    suite: str
    profile: str
    problems: int
    left_out: int  # problems whose question is too long to be asked
    samples: int
    sampling: dict[str, float]
    accuracy: float  # mean return: avg@n
    low: float
    high: float
    pass_at: dict[int, Interval]
    majority: Interval | None  # maj@n; None where answers cannot be compared, or there is one sample
    truncated: float  # share of transcripts whose answer met the token limit
    verdicts: dict[str, float]  # share of each verdict that there was
    tokens: int  # generated, of thinking that nobody reads too
    ids: tuple[str, ...]
    digests: tuple[str, ...]  # of question and answer: generated problems of two seeds may share their ids
    scores: tuple[tuple[float, ...], ...]  # return of each sample of each problem
    hidden: float | None = None  # share of transcripts whose answer has no visible part; None where it is read whole


class Missing(NamedTuple):
    """A suite that was asked for and could not be evaluated, and why."""

    suite: str
    missing: str


def list_profiles(setup: Setup, samples: int | None = None) -> list[Profile]:
    """The profiles that a config asks for: greedy, and sampled, as in training where it says nothing else."""
    section = setup.config.evaluation
    count = section.samples if samples is None else samples
    sampled = Profile("sampled", count, section.sampling or setup.config.sampling)
    return [Profile("greedy", 1, sampling.GREEDY), *([sampled] if count else [])]


def make_heldout(setup: Setup) -> Suite:
    """The first `evaluation.problems` of the task's own held-out problems."""
    count, held = setup.config.evaluation.problems, setup.heldout
    return Suite(HELDOUT, setup.task, ProblemSet(held.problems[:count], held.tokens[:count], held.left_out))


def make_evaluation(
    setup: Setup, profile: Profile, acting: Acting | None = None
) -> Callable[[Weights, Evaluator, Suite], Result]:
    """Make evaluate(weights, evaluator, suite), compiled once for the profile and each size of batch.

    Draws are addressed by the run's seed and the problem, so two policies are compared on the same random numbers. The
    answers of a batch are graded while the device writes those of the next.

    Args:
      setup: of the team.
      profile: how it answers.
      acting: what answers turns in which no policy speaks; None where there are none.
    """
    sample_tree, fan_out = make_sampler(setup, profile)
    key = address.make_stream(setup.config.seed, address.EVALUATE)

    def evaluate(weights: Weights, evaluator: Evaluator, suite: Suite) -> Result:
        batch = size_batch(setup, len(suite.problems.problems))

        def draw(numbers: list[int]) -> tuple[Rollout, tree.RolloutCounts]:
            question, problem_P = make_questions(setup, suite.problems, numbers)
            problems = [suite.problems.problems[number] for number in numbers]
            return draw_trees(sample_tree, acting, weights, problems, question, key, problem_P, fan_out)

        calls: list[Drawn] = []
        own: list[int] = []  # problems whose answers are graded here
        truncated: list[bool] = []
        hidden: list[bool] = []
        generated = 0
        decode = functools.partial(decode_messages, setup.tokenizer)
        for drawn in draw_and_submit(draw, suite.problems.problems, batch, decode, evaluator, setup.mesh):
            turns = fetch_messages(setup.mesh, drawn.rollout, drawn.kept)
            calls.append(drawn)
            own += drawn.own
            truncated += turns[-1].truncated_N.tolist()
            hidden += (~turns[-1].content_NT.any(axis=1)).tolist()
            generated += sum(int(turn.sampled_NT.sum()) for turn in turns)
        verdicts = share_verdicts(own, pay_verdicts(setup.mesh, calls, evaluator.collect()))
        shared = processes.share([truncated, hidden, generated])
        truncated, hidden = ([each for part in shared for each in part[index]] for index in (0, 1))
        result = compute_result(suite, profile, verdicts, truncated, sum(count for *_, count in shared))
        return result if setup.plans[-1].markers is None else result._replace(hidden=float(np.mean(hidden)))

    return evaluate


def make_sampler(setup: Setup, profile: Profile) -> tuple[tree.TreeSampler, FanOut]:
    """What draws a profile's transcripts, and the fan-out that it is called with."""
    stop_tokens, batches = setup.tokenizer.stop_tokens, setup.config.shapes.batches
    sample_tree = tree.make_tree_sampler(setup.policy, setup.plans, profile.sampling, stop_tokens, batches, setup.mesh)
    return sample_tree, (profile.samples,) + (1,) * (len(setup.plans) - 1)


def size_batch(setup: Setup, problems: int) -> int:
    """Problems of one call of a profile's sampler, where it has so many to answer."""
    parts = count_parts(setup.mesh)
    return -(-min(setup.config.evaluation.batch, problems) // parts) * parts


def compute_result(
    suite: Suite, profile: Profile, verdicts: Sequence[Verdict], truncated: Sequence[bool], tokens: int
) -> Result:
    """Figures of one profile on a suite from its verdicts, samples of a problem side by side.

    Args:
      suite: that was answered.
      profile: how.
      verdicts: one a sample.
      truncated: of each transcript, whether its answer met the token limit.
      tokens: generated in all.
    """
    score_PS = np.array([verdict.score for verdict in verdicts], np.float64).reshape(-1, profile.samples)
    names = [verdict.verdict for verdict in verdicts]
    accuracy = compute_interval(score_PS)
    texts = (f"{problem.question}\0{problem.answer}".encode() for problem in suite.problems.problems)
    correct_P = (score_PS >= 1.0).sum(axis=1)
    pass_at = {
        k: compute_interval(np.array([[compute_pass_at(profile.samples, int(c), k)] for c in correct_P]))
        for k in sorted({*(1, 2, 4, 8, 16, 32, 64, 128), profile.samples})
        if k <= profile.samples
    }
    return Result(
        suite=suite.name,
        profile=profile.name,
        problems=len(score_PS),
        left_out=suite.problems.left_out,
        samples=profile.samples,
        sampling=profile.sampling.model_dump(),
        accuracy=accuracy.estimate,
        low=accuracy.low,
        high=accuracy.high,
        pass_at=pass_at,
        majority=_find_majority(suite.task, verdicts, score_PS),
        truncated=float(np.mean(truncated)),
        verdicts={name: names.count(name) / len(names) for name in get_args(VerdictName) if name in names},
        tokens=tokens,
        ids=tuple(problem.id for problem in suite.problems.problems),
        digests=tuple(hashlib.sha256(text).hexdigest()[:12] for text in texts),
        scores=tuple(map(tuple, score_PS.tolist())),
    )


def _find_majority(task: Task, verdicts: Sequence[Verdict], score_PS: np.ndarray) -> Interval | None:
    canonical = task.canonical
    problems, samples = score_PS.shape
    if canonical is None or samples == 1:
        return None
    answers = [None if verdict.answer is None else canonical(verdict.answer) for verdict in verdicts]
    rows = [answers[index * samples : (index + 1) * samples] for index in range(problems)]
    return compute_interval(np.array([[score_majority(*row)] for row in zip(rows, score_PS.tolist(), strict=True)]))


def score_majority(answers: Sequence[str | None], scores: Sequence[float]) -> float:
    """Return of the answer that most samples give; of two with as many, of the one that was given first.

    Answers are compared as texts; None does not vote, and where nothing votes the return is 0.
    """
    votes = [answer for answer in answers if answer is not None]
    return scores[answers.index(max(votes, key=votes.count))] if votes else 0.0


def compute_pass_at(samples: int, correct: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    Args:
      samples: n, of a problem.
      correct: c of these.
      k: from 1 to n.

    Source: Chen et al., arXiv 2107.03374, equation 1.
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def compute_interval(score_PS: np.ndarray) -> Interval:
    """The mean return over problems with its 95 % interval.

    One sample of 0 or 1 a problem: Wilson's score interval (Wilson 1927). Otherwise the percentile bootstrap over
    problems, since samples of one problem are not independent of each other; where all are equal, as Wilson's.
    """
    problems, samples = score_PS.shape
    if samples == 1 and np.isin(score_PS, (0.0, 1.0)).all():
        return compute_wilson_interval(int(score_PS.sum()), problems, _LEVEL)
    found = compute_bootstrap_interval(score_PS.mean(axis=1), _LEVEL)
    return widen_constant(found, problems, (0.0, 1.0), _LEVEL)


def save_results(path: Path, step: int, results: Sequence[Result | Missing]) -> None:
    """Write an evaluation as one JSON file, a line a result, whole or not at all."""
    lines = ",\n".join(json.dumps(result._asdict()) for result in results)
    save_whole(path, f'{{"step": {step}, "results": [\n{lines}\n]}}\n')


def print_results(console: Console, results: Sequence[Result | Missing], title: str) -> None:
    """A table of the results that fits 80 columns; a suite that is missing has a row, and its reason below.

    Args:
      console: to print on.
      results: a row each.
      title: above the table.
    """
    console.print(Text(title, style="italic"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("suite", "profile", "problems", "n", "avg@n", "95 %", "cut", "unread", "timeout"):
        side = "left" if name in ("suite", "profile") else "right"
        table.add_column(name, justify=side, no_wrap=name != "suite", overflow="fold")
    for result in results:
        if isinstance(result, Missing):
            table.add_row(result.suite, "missing", *("-" for _ in range(7)))
            continue
        shares = (result.truncated, *(result.verdicts.get(name, 0.0) for name in ("unparsable", "timeout")))
        table.add_row(
            result.suite,
            result.profile,
            str(result.problems),
            str(result.samples),
            f"{result.accuracy:.3f}",
            f"{result.low:.3f}-{result.high:.3f}" if result.problems > 1 else "n = 1",
            *(f"{share:.1%}" for share in shares),
        )
    console.print(table)
    for result in results:
        for line in _format_more(result):
            console.print(line, soft_wrap=True)


def _format_more(result: Result | Missing) -> list[str]:
    if isinstance(result, Missing):
        return [f"{result.suite} is missing: {result.missing}"]
    lines = []
    if result.samples > 1:
        shown = [(f"pass@{k}", interval) for k, interval in result.pass_at.items()]
        shown += [(f"maj@{result.samples}", result.majority)] if result.majority else []
        texts = [f"{name} {value.estimate:.3f} ({value.low:.3f}-{value.high:.3f})" for name, value in shown]
        lines.append(f"{result.suite}, {result.samples} samples a problem")
        lines += ["  " + "  ".join(texts[first : first + 2]) for first in range(0, len(texts), 2)]
    if result.hidden:
        lines.append(f"{result.suite}, {result.profile}: {result.hidden:.1%} of the answers have no visible part")
    if result.left_out:
        lines.append(f"{result.suite}: {result.left_out} further problems are too long to be asked")
    return lines


# --------------------------------------------------------------------------------------------------------------------
# Several benchmarks in one command


def evaluate_suites(setup: Setup, weights: Weights) -> list[Result | Missing]:
    """Evaluate a policy on the held-out problems and on every suite of the config, each with its profiles.

    A suite that cannot be had stands in its place with the reason.
    """
    config = setup.config
    results: list[Result | Missing] = []
    programs: dict[str, Any] = {}  # by sampling and samples: suites share what is compiled
    with open_environments(setup) as acting:
        for section in (None, *config.evaluation.suites):
            try:
                suite = make_heldout(setup) if section is None else _load_suite(setup, section)
            except UserError as error:
                results.append(Missing(HELDOUT if section is None else section.name, str(error)))
                continue
            with Evaluator(suite.task.grade, config.workers, suite.task.timeout_s) as evaluator:
                for profile in list_profiles(setup, None if section is None else section.samples):
                    name = f"{profile.samples} {profile.sampling.model_dump_json()}"
                    if name not in programs:
                        programs[name] = make_evaluation(setup, profile, acting)
                    results.append(programs[name](weights, evaluator, suite))
    return results


def _load_suite(setup: Setup, section: SuiteSection) -> Suite:
    task = open_task(section.kind, None, setup.config.grade_timeout, setup.task.is_contained)
    problems = load_file(task, section.path, section.fields)[: section.problems]
    question_tokens = setup.config.protocol.question_tokens
    encoded = encode_problems(problems, setup.tokenizer, question_tokens)
    if not encoded.problems:
        raise UserError(
            f"protocol.question_tokens: expected room for one of its questions at least, got {question_tokens}"
        )
    return Suite(section.name, task, encoded)


# --------------------------------------------------------------------------------------------------------------------
# What a finished run says of itself


def print_summary(console: Console, run: Path, report: Path | None) -> None:
    """Print a run's held-out accuracy before and after, its ledger, and where its files are."""
    before, after = (load_evaluation(run / "eval" / f"{name}.json")["results"] for name in ("before", "after"))
    table = Table(title="held-out accuracy (95 % interval)", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("profile", "before", "after"):
        table.add_column(name, no_wrap=True)
    for old, new in zip(before, after, strict=True):
        table.add_row(old["profile"], *map(_format_accuracy, (old, new)))
    console.print(table)
    totals = sum_ledger(read_metrics(run))
    console.print(
        f"{totals['evaluator_calls']:,} evaluator calls, {totals['messages']:,} messages,"
        f" {totals['generated_tokens']:,} tokens generated, {totals['prefilled_tokens']:,} prefilled,"
        f" {sum_seconds(totals):.0f} s",
        soft_wrap=True,
    )
    if report is not None:
        console.print(f"Report: {report}", soft_wrap=True, markup=False)
    console.print(f"Trees: {run}/rollouts   figures: {run}/metrics.jsonl", soft_wrap=True, markup=False)
    called = Path(sys.argv[0])  # a launcher's c3jax is not on the PATH
    name = os.path.relpath(called) if called.name == "c3jax" and shutil.which("c3jax") is None else "c3jax"
    console.print(f'Next: {shlex.join([name, "ask", str(run)])} "..."', soft_wrap=True, markup=False)


def _format_accuracy(result: dict[str, Any]) -> str:
    interval = f"{result['low']:.3f}-{result['high']:.3f}" if result["problems"] > 1 else "n = 1"
    return f"{result['accuracy']:.3f}  ({interval})"


def find_best_value(config: RunConfig, run: Path, row: dict[str, Any]) -> float | None:
    """The value of the rule that keeps the best checkpoint: of this step, or of the newest evaluation.

    Args:
      config: of the run.
      run: its directory.
      row: the step's figures.

    Returns:
      The value; None where there is no such rule, or in a process that is not the run's first.
    """
    name = config.checkpoint.best
    if not processes.is_first():
        return None
    if name is None or name in row:
        return row[name] if name else None
    rows = [past[name] for past in read_metrics(run) if name in past]
    if rows:
        return rows[-1]
    before = load_evaluation(run / "eval" / "before.json")["results"]
    return next(result["accuracy"] for result in before if f"{result['profile']}_accuracy" == name)
