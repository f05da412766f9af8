"""Held-out evaluation: its estimates against enumeration and published numbers, and a tiny team evaluated for real."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax.analysis.statistics import Interval
from c3jax.config.file import parse_config
from c3jax.config.run import Sampling
from c3jax.evaluate import (
    Missing,
    Profile,
    Result,
    Suite,
    compute_interval,
    compute_pass_at,
    compute_result,
    list_profiles,
    make_evaluation,
    make_heldout,
    print_results,
    save_results,
    score_majority,
)
from c3jax.rewards import Evaluator
from c3jax.run.jobs import load_evaluation
from c3jax.setup.team import ProblemSet, Setup, make_setup
from c3jax.tasks.task import find_task
from c3jax.types import Problem, Verdict

SAMPLED = Profile("sampled", 4, Sampling())


# --------------------------------------------------------------------------------------------------------------------
# Estimates


@pytest.mark.parametrize("samples", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        is_right = [place < correct for place in range(samples)]
        subsets = list(itertools.combinations(is_right, k))
        share = sum(any(subset) for subset in subsets) / len(subsets)
        assert compute_pass_at(samples, correct, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "problems", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_one_right_or_wrong_answer_a_problem_has_wilsons_interval(correct, problems, low, high):
    score_PS = (np.arange(problems) < correct).astype(float)[:, None]
    assert compute_interval(score_PS) == pytest.approx((correct / problems, low, high), abs=5e-5)


def test_several_samples_a_problem_have_the_interval_of_problem_means():
    """Samples of a problem are not independent: 200 problems of mean m_i have the error sd(m) / sqrt(200)."""
    random = np.random.default_rng(1)
    score_PS = (random.random((200, 4)) < random.random((200, 1))).astype(float)
    mean_P = score_PS.mean(axis=1)
    _, low, high = compute_interval(score_PS)
    reach = 1.96 * mean_P.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((mean_P.mean() - reach, mean_P.mean() + reach), abs=0.005)
    if_independent = 1.96 * score_PS.std() / np.sqrt(800)
    assert high - low > 1.3 * 2 * if_independent
    # Parts of a point are no counts either, so one sample of them has the bootstrap's interval too.
    assert compute_interval(mean_P[:, None]) == pytest.approx((mean_P.mean(), low, high), abs=1e-12)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        chance_P1 = random.beta(2.0, 1.0, (60, 1))  # the mean is 2/3
        _, low, high = compute_interval((random.random((60, 3)) < chance_P1).astype(float))
        covered += low <= 2 / 3 <= high
    assert 0.91 <= covered / 300 <= 0.985  # 0.95, with the error of 300 trials and of 60 problems


def test_a_profile_is_summarised_by_hand():
    # Problem 0 has 1 of 4 right, problem 1 has 2 and a half-right answer, which is not a pass.
    scores = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.0]
    names = ["correct", "wrong", "unparsable", "timeout", "correct", "correct", "partial", "error"]
    answers = ["1", "2", None, None, "5", "5.0", "7", None]
    verdicts = [Verdict(*row) for row in zip(scores, names, answers, strict=True)]
    problems = tuple(Problem(index, name, "", "") for index, name in enumerate("ab"))
    suite = Suite("two", find_task("numeric"), ProblemSet(problems, ((), ()), left_out=3))
    cut = [True, False, False, True, False, False, False, False]
    result = compute_result(suite, SAMPLED, verdicts, cut, tokens=99)
    assert (result.suite, result.profile, result.problems, result.samples) == ("two", "sampled", 2, 4)
    assert (result.left_out, result.tokens, result.ids) == (3, 99, ("a", "b"))
    assert result.scores == (tuple(scores[:4]), tuple(scores[4:]))
    assert result.accuracy == 3.5 / 8 and result.low <= 0.25 and result.high >= 0.625
    # pass@2: 1 - C(3, 2)/C(4, 2) = 1/2 and 1 - C(2, 2)/C(4, 2) = 5/6
    estimates = {k: interval.estimate for k, interval in result.pass_at.items()}
    assert estimates == pytest.approx({1: 3 / 8, 2: 2 / 3, 4: 1.0})
    assert all(interval.low <= interval.estimate <= interval.high for interval in result.pass_at.values())
    # Problem 0's two answers have a vote each, and the first was right; problem 1 gives 5 twice.
    assert result.majority is not None and result.majority.estimate == 1.0
    assert result.truncated == 0.25
    assert result.verdicts == {
        **{"correct": 3 / 8, "partial": 1 / 8, "wrong": 1 / 8, "unparsable": 1 / 8, "timeout": 1 / 8, "error": 1 / 8}
    }
    assert compute_result(suite._replace(task=find_task("code")), SAMPLED, verdicts, cut, tokens=99).majority is None


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        (["a", "b", "b"], 0.2),  # two of three
        (["b", "a", "a", "b"], 0.1),  # a tie: b was first
        ([None, None, "a"], 0.3),  # what cannot be read does not vote
        ([None, None], 0.0),
    ],
)
def test_the_majority_is_paid_what_its_first_answer_is(answers, score):
    assert score_majority(answers, [0.1, 0.2, 0.3, 0.4][: len(answers)]) == score


# --------------------------------------------------------------------------------------------------------------------
# Files and tables


RESULT = Result(
    suite="heldout", profile="greedy", problems=3, left_out=0, samples=1, sampling={"temperature": 1.0}, accuracy=1 / 3,
    low=0.1, high=0.9, pass_at={1: Interval(1 / 3, 0.1, 0.9)}, majority=None, truncated=0.0,
    verdicts={"correct": 1 / 3, "unparsable": 2 / 3}, tokens=40, ids=("a", "b", "c"), digests=("0", "1", "2"),
    scores=((1.0,), (0.0,), (0.0,)),
)  # fmt: skip


def test_results_are_read_back_from_their_file(tmp_path):
    save_results(tmp_path / "eval" / "before.json", 7, [RESULT, Missing("aime", "no such file")])
    read = load_evaluation(tmp_path / "eval" / "before.json")
    assert read["step"] == 7 and read["results"][1] == {"suite": "aime", "missing": "no such file"}
    as_json = {
        "pass_at": {"1": [1 / 3, 0.1, 0.9]},
        "ids": ["a", "b", "c"],
        "digests": ["0", "1", "2"],
        "scores": [[1.0], [0.0], [0.0]],
    }
    assert read["results"][0] == RESULT._asdict() | as_json
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["before.json"]


def test_a_table_of_results_fits_eighty_columns():
    console = Console(file=io.StringIO(), width=80)
    widest = RESULT._replace(
        suite="a-name-of-16-let", profile="sampled", problems=12345, samples=128, accuracy=0.25, low=0.12345, high=1.0,
        pass_at={k: Interval(0.5, 0.25, 0.75) for k in (1, 2, 4)}, majority=Interval(1.0, 0.5, 1.0), truncated=1.0,
        verdicts={"unparsable": 0.25, "timeout": 0.75}, left_out=2,
    )  # fmt: skip
    print_results(console, [RESULT, widest, Missing("aime", "no file")], "runs/[b]one")
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "runs/[b]one" and lines[1].split() == [
        *("suite", "profile", "problems", "n", "avg@n", "95", "%", "cut", "unread", "timeout")
    ]
    assert lines[3].split() == ["heldout", "greedy", "3", "1", "0.333", "0.100-0.900", "0.0%", "66.7%", "0.0%"]
    assert lines[4].split()[2:] == ["12345", "128", "0.250", "0.123-1.000", "100.0%", "25.0%", "75.0%"]
    assert "".join(line.split()[0] for line in lines[4:6]) in ("a-name-of-16-let", "a-name-of-16-letaime")
    assert lines[-5:] == [
        "a-name-of-16-let, 128 samples a problem",
        "  pass@1 0.500 (0.250-0.750)  pass@2 0.500 (0.250-0.750)",
        "  pass@4 0.500 (0.250-0.750)  maj@128 1.000 (0.500-1.000)",
        "a-name-of-16-let: 2 further problems are too long to be asked",
        "aime is missing: no file",
    ]


# --------------------------------------------------------------------------------------------------------------------
# A team

CONFIG = {
    "seed": 5,
    "steps": 1,
    "problems": 2,
    "task": {"kind": "arithmetic", "train_problems": 4, "heldout_problems": 7},
    "protocol": {
        "question_tokens": 17,
        "turns": [
            {"name": "plan", "role": "planner", "user": "{question}", "max_tokens": 3},
            {"name": "answer", "role": "solver", "user": "{plan} answer :", "max_tokens": 2},
        ],
    },
    "model": {"kind": "random", "layers": 1, "width": 8, "heads": 1, "key_value_heads": 1, "mlp_width": 8},
    "credit": {"method": "c3", "fan_out": [2, 2], "budget": 4, "normalise": "none"},
    "learner": {"learning_rate": 1.0},
    "evaluation": {"batch": 4, "samples": 2},
}


class Recorder(Evaluator):
    """An evaluator that remembers what it was asked and what it said."""

    asked: list[tuple[Problem, str]]
    said: list[tuple[Problem, str, Verdict]]

    def submit(self, problems: Sequence[Problem], answers: Sequence[str], budget: int) -> None:
        super().submit(problems, answers, budget)
        self.asked += zip(problems, answers, strict=True)

    def collect(self) -> list[Verdict]:
        verdicts = super().collect()
        self.said = [(*pair, verdict) for pair, verdict in zip(self.asked, verdicts, strict=True)]
        return verdicts


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    """A tiny team, compiled without the costly passes: its programs run for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield make_setup(parse_config(CONFIG))
    jax.config.update("jax_disable_most_optimizations", before)


def test_a_team_is_evaluated_the_same_in_any_batches(setup):
    """Seven problems in batches of four (the second is filled up) and, twice, in one batch of seven."""
    profile = list_profiles(setup)[1]
    in_one = parse_config(CONFIG | {"evaluation": {"batch": 9, "samples": 2}})
    evaluations = [make_evaluation(setup, profile), make_evaluation(setup._replace(config=in_one), profile)]
    results, said = [], []
    with Recorder(find_task("arithmetic").grade, workers=1) as evaluator:
        for evaluate in (evaluations[0], evaluations[1], evaluations[1]):
            evaluator.asked = []
            results.append(evaluate(setup.weights, evaluator, make_heldout(setup)))
            said.append(evaluator.said)
        assert evaluator.calls == 3 * 7 * 2
    assert results[0] == results[1] == results[2] and said[0] == said[1] == said[2]
    assert [problem for problem, _, _ in said[0]] == [p for p in setup.heldout.problems for _ in range(2)]
    assert len({answer for _, answer, _ in said[0]}) > 7  # samples differ
    shown = [verdict.score for _, _, verdict in said[0]]
    assert results[0].accuracy == sum(shown) / 14 and results[0].problems == 7
    # Each of 14 transcripts has 1 to 3 and 1 to 2 tokens; an answer of two words was cut before its stop token.
    assert 2 * 14 <= results[0].tokens <= 5 * 14
    assert results[0].truncated == sum(len(answer.split()) == 2 for _, answer, _ in said[0]) / 14


def test_profiles_are_those_of_the_config(setup):
    assert [(profile.name, profile.samples) for profile in list_profiles(setup)] == [("greedy", 1), ("sampled", 2)]
    assert list_profiles(setup)[0].sampling.top_k == 1 and list_profiles(setup)[1].sampling == setup.config.sampling
    greedy_only = setup._replace(config=parse_config(CONFIG | {"evaluation": {"samples": 0}}))
    assert [profile.name for profile in list_profiles(greedy_only)] == ["greedy"]
    assert list_profiles(greedy_only, samples=3)[1].samples == 3
    own = parse_config(CONFIG | {"evaluation": {"sampling": {"temperature": 0.5}}})
    assert list_profiles(setup._replace(config=own))[1].sampling.temperature == 0.5
