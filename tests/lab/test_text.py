"""Language models trained on the device: the evaluator is the grader, a lane is the run of `c3jax train`."""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from rich.console import Console

from c3jax import train
from c3jax.analysis.tables import load_table
from c3jax.config.file import dump_config, load_config, read_tree
from c3jax.config.run import RunConfig
from c3jax.lab import sweep, text
from c3jax.lab.config import TextStudy, load_study, make_run_config, parse_study
from c3jax.lab.text import compute_returns, list_digits
from c3jax.learner.state import TrainState, init_state
from c3jax.models.tokenizer import make_word_tokenizer
from c3jax.run.checkpoint import restore_step
from c3jax.run.jobs import load_evaluation
from c3jax.run.metrics import read_metrics
from c3jax.schema import ConfigError
from c3jax.setup.team import make_setup
from c3jax.tasks import arithmetic, numeric
from c3jax.types import Messages, Problem, UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STEPS, PROBLEMS = 2, 8
RUN = {
    **{"steps": STEPS, "problems": PROBLEMS, "imitation": None, "record_every": 0, "workers": 1},
    **{"task.train_problems": 32, "task.heldout_problems": 8, "evaluation.samples": 0, "evaluation.problems": 8},
    **{"model.layers": 1, "model.width": 16, "model.mlp_width": 16, "model.remat": "none"},
    **{"protocol.turns.0.max_tokens": 3, "protocol.turns.1.max_tokens": 3, "learner.warmup_updates": 3},
    # Adam divides a gradient by its size and so turns rounding into steps where a gradient is near zero: an error d of
    # it moves a weight by up to rate / eps * d. Gradients here are some 1e-2, their rounding is 1e-8: 1e-7 at most.
    **{"learner.adam_eps": 1e-3},
}


def make_tree(**changes: Any) -> dict[str, Any]:
    tree = {"kind": "text", "seed": 3, "seeds": 2, "estimators": ["c3 2x2", "no_loo 2x2"], "learning_rates": [0.01]}
    return tree | {"run": read_tree(CONFIGS / "quickstart.yaml", RUN)} | changes


def make_study(**changes: Any) -> TextStudy:
    config = parse_study(make_tree(**changes))
    assert isinstance(config, TextStudy)
    return config


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """Without the compiler's costly passes: programs here compile for seconds and run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# --------------------------------------------------------------------------------------------------------------------
# The evaluator


TOKENIZER = make_word_tokenizer([*arithmetic.VOCABULARY, "answer:", "so/"])


def make_messages(tokens_NT: np.ndarray, content_NT: np.ndarray) -> Messages:
    rows, slots = tokens_NT.shape
    return Messages(
        tokens_NT=jnp.asarray(tokens_NT, jnp.int32),
        content_NT=jnp.asarray(content_NT),
        sampled_NT=jnp.asarray(content_NT),
        behaviour_logp_NT=jnp.zeros((rows, slots)),
        support_NTK=jnp.zeros((rows, slots, 0), jnp.int32),
        truncated_N=jnp.zeros(rows, bool),
    )


def check_against_grader(tokens_NT: np.ndarray, content_NT: np.ndarray, answer_P: np.ndarray) -> np.ndarray:
    """Returns of the device, eager and jitted, against the grader's verdict on every message's text."""
    leaves = len(tokens_NT) // len(answer_P)
    expected = []
    for row, (tokens, keep) in enumerate(zip(tokens_NT, content_NT, strict=True)):
        problem = Problem(0, "train-0", "", str(answer_P[row // leaves]))
        expected.append(numeric.grade(problem, TOKENIZER.decode(tokens[keep].tolist())).score)
    arguments = (list_digits(TOKENIZER), make_messages(tokens_NT, content_NT), jnp.asarray(answer_P))
    for compute in (compute_returns, jax.jit(compute_returns)):
        np.testing.assert_array_equal(compute(*arguments), np.reshape(expected, (len(answer_P), leaves)))
    return np.array(expected)


def test_every_answer_of_two_words_is_judged_as_the_grader_judges_its_text():
    words = range(TOKENIZER.vocab_size)
    tokens_NT = np.array(list(itertools.product(words, words)))
    for answer in (0, 7):
        score_N = check_against_grader(tokens_NT, np.ones(tokens_NT.shape, bool), np.array([answer]))
        # Right: the answer last, or the answer and then a word that is no digit.
        assert score_N.sum() == len(words) + len(words) - 10


def test_random_answers_are_judged_as_the_grader_judges_their_text():
    random = np.random.default_rng(0)
    digits, others = np.arange(10), np.arange(TOKENIZER.vocab_size)
    tokens_NT = np.where(
        random.random((4000, 9)) < 0.4, random.choice(digits, (4000, 9)), random.choice(others, (4000, 9))
    )
    # A message ends before its last slot, or is any choice of slots: what is no content holds junk digits.
    length_N1 = random.integers(0, 10, (4000, 1))
    content_NT = np.where(np.arange(4000)[:, None] < 3000, np.arange(9) < length_N1, random.random((4000, 9)) < 0.5)
    score_N = check_against_grader(tokens_NT, content_NT, random.integers(0, 10, 1000))
    assert 0.05 < score_N.mean() < 0.2  # neither rule is empty: one digit in ten is right


@pytest.mark.parametrize("word", ["12", "7.", "½", "٣", "-", "$", "\\boxed{", "####"])
def test_words_that_could_be_part_of_a_number_are_refused(word):
    with pytest.raises(UserError, match=f"run.protocol.turns: .*{re.escape(repr(word))}"):
        list_digits(make_word_tokenizer([*arithmetic.VOCABULARY, word]))


# --------------------------------------------------------------------------------------------------------------------
# A lane is the run that `c3jax train` makes


def make_arm(method: str, rate: float) -> tuple[sweep.Arm, RunConfig]:
    """An arm of a study, and the config of its first seed's run."""
    study = make_study(learning_rates=[rate])
    arm = next(each for each in text.list_arms(study) if each.estimator.method == method)
    return arm, make_run_config(study.run, arm.estimator, rate, study.seed)


def make_lane(method: str, seed: int, rate: float) -> text.Lane:
    arm, config = make_arm(method, rate)
    return text.make_lane(config, arm.plan, text.start_runs(config, seed, Console(file=io.StringIO())))


ROWS = (("c3", 5, 0.01), ("no_loo", 5, 0.003), ("c3", 6, 0.01))


@functools.cache
def run_together(*rows: tuple[str, int, float]) -> tuple[TrainState, text.Curve]:
    lanes = jax.tree.map(lambda *leaves: np.stack(leaves), *[make_lane(*row) for row in rows])
    return jax.device_get(make_program()(lanes))


@functools.cache
def make_program() -> Any:
    # Of another seed, method and rate than any lane: none of them may be a constant of the program.
    arm, config = make_arm("no_loo", 1.0)
    return jax.jit(jax.vmap(text.make_run(config, arm.plan, make_setup(config))))


def take_lane(results: Any, row: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[row], results)


def assert_equal_trees(tree: Any, other: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), tree, other)


def test_a_lane_is_the_run_of_the_train_command(tmp_path):
    method, seed, rate = ROWS[0]
    config = make_arm(method, rate)[1].model_copy(update={"seed": seed})
    assert train.train(config, tmp_path / "run", ["train"], Console(file=io.StringIO())) == train.DONE
    setup = make_setup(config)
    sections = (setup.plans, config.credit, config.learner)
    like = jax.eval_shape(lambda: init_state(setup.policy, setup.weights, *sections)._asdict())
    saved = restore_step(tmp_path / "run", STEPS, like)
    state, curve = take_lane(run_together(*ROWS), 0)
    assert_equal_trees(state._asdict(), jax.device_get(saved))
    first = setup.weights.trained
    moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, first)))
    assert moved > 1e-3  # there was credit, and it was learnt from
    metrics = read_metrics(tmp_path / "run")
    np.testing.assert_allclose(curve.sampled_return, [row["return"] for row in metrics], rtol=1e-6)
    np.testing.assert_array_equal(curve.tokens, [row["generated_tokens"] for row in metrics])
    np.testing.assert_allclose(curve.zero_share, [row["zero_credit_share"] for row in metrics], rtol=1e-6)
    evaluated = [load_evaluation(tmp_path / "run" / "eval" / f"{name}.json") for name in ("before", "after")]
    np.testing.assert_allclose(curve.accuracy, [each["results"][0]["accuracy"] for each in evaluated], rtol=1e-6)


def test_a_lane_does_not_depend_on_the_lanes_beside_it():
    mixed = run_together(*ROWS)
    for index, row in enumerate(ROWS):
        uniform = run_together(row, row, row)
        for copy in range(len(ROWS)):
            assert_equal_trees(take_lane(uniform, copy), take_lane(mixed, index))
    embeddings = mixed[0].params["embedding"]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in itertools.combinations(embeddings, 2))  # three runs, not one


# --------------------------------------------------------------------------------------------------------------------
# The study


def test_runs_are_grouped_by_what_a_program_fixes():
    """Methods, rates and seeds share a program; fan-outs, trained turns and critics do not."""
    estimators = ["c3 2x2", "no_replay 2x2", "c3 1x4, turn 0 untrained", "rloo 4", "value_assisted 2x2"]
    estimators += ["value_only 2x2", "shrunk 2x2", "magrpo 4"]
    tree = make_tree(estimators=estimators, learning_rates=[0.01, 0.1])
    tree["run"]["credit"]["critic"] = {"network": "trunk", "learning_rate": 0.01}
    config = parse_study(tree)
    assert isinstance(config, TextStudy)
    arms = text.list_arms(config)
    first = make_run_config(config.run, arms[0].estimator, 0.01, 3)
    start = text.start_runs(first, 3, Console(file=io.StringIO()))
    blocks = text.make_blocks(config, arms, [start, start])
    names = [[arms[number // 2].name for number in block.numbers[::2]] for block in blocks]
    assert names == [
        [f"{method} 2x2, rate {rate}" for method in ("c3", "no_replay") for rate in (0.01, 0.1)],
        [f"c3 1x4, turn 0 untrained, rate {rate}" for rate in (0.01, 0.1)],
        [f"{method} 4, rate {rate}" for method in ("rloo", "magrpo") for rate in (0.01, 0.1)],
        [f"value_assisted 2x2, rate {rate}" for rate in (0.01, 0.1)],
        [f"value_only 2x2, rate {rate}" for rate in (0.01, 0.1)],
        [f"shrunk 2x2, rate {rate}" for rate in (0.01, 0.1)],
    ]
    assert sorted(number for block in blocks for number in block.numbers) == list(range(32))
    np.testing.assert_allclose(blocks[0].lanes.learning_rate, np.float32([0.01, 0.01, 0.1, 0.1] * 2))
    # Traced and not run: programs with a critic and with running components fit together as well.
    for block in (blocks[3], blocks[5]):
        curve = jax.eval_shape(jax.vmap(block.train, in_axes=(None, 0)), jax.random.key(0), block.lanes)
        assert curve.sampled_return.shape == (4, STEPS)


SOLO = {"name": "solo", "role": "solo", "user": "{question} answer :", "max_tokens": 3}


def test_the_study_goes_from_its_file_to_tables_and_figures(tmp_path):
    run = read_tree(CONFIGS / "quickstart.yaml", RUN | {"protocol.turns": [SOLO]})
    config = make_study(estimators=["rloo 4", "igpo 4"], run=run)
    console = Console(file=io.StringIO(), width=100)
    assert text.run(config, tmp_path, console) == 0
    assert "4 runs of 2 steps" in console.file.getvalue()
    results = load_table(tmp_path / "results.json")
    curves = load_table(tmp_path / "curves.json")
    assert [row["estimator"] for row in results] == ["rloo 4", "igpo 4"]
    for row in results:
        mine = [each for each in curves if each["estimator"] == row["estimator"]]
        assert (row["seeds"], row["steps"], row["calls"], row["messages"]) == (2, 2, 2 * 8 * 4, 2 * 8 * 4)
        assert row["messages"] <= row["tokens"] <= 3 * row["messages"]
        assert [each["calls"] for each in mine] == [0, 32]
        assert row["return"] == pytest.approx(np.mean([each["return"] for each in mine]), rel=1e-5)
    # One warm-up and the same draws: estimators differ from the second step on.
    for column in ("accuracy_before", "accuracy_before_low"):
        assert results[0][column] == results[1][column]
    assert curves[0]["return"] == curves[STEPS]["return"]
    names = ("accuracy", "return_steps", "return_calls", "return_messages", "return_tokens")
    assert all((tmp_path / "figures" / f"{name}.svg").stat().st_size > 1000 for name in names)


# --------------------------------------------------------------------------------------------------------------------
# Its config


def test_a_base_is_read_from_beside_the_study(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "studies").mkdir()
    base = dump_config(make_study().run)
    (tmp_path / "runs" / "base.yaml").write_text(base, encoding="utf-8")
    tree = make_tree(run={"base": "../runs/base.yaml", "steps": 7, "learner": {"epochs": 3}})
    path = tmp_path / "studies" / "study.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = load_study(path, {"run.protocol.turns.1.max_tokens": 5, "run.problems": 4})
    assert isinstance(config, TextStudy)
    run = config.run
    assert (run.steps, run.learner.epochs, run.learner.minibatches, run.problems) == (7, 3, 2, 4)
    assert [turn.max_tokens for turn in run.protocol.turns] == [3, 5]
    path.write_text(dump_config(config), encoding="utf-8")  # resolved: it names no other file
    (tmp_path / "runs" / "base.yaml").unlink()
    assert load_study(path) == config


def test_the_shipped_study_is_the_quickstarts():
    config = load_study(CONFIGS / "studies" / "text.yaml")
    assert isinstance(config, TextStudy)
    quickstart = load_config(CONFIGS / "quickstart.yaml")
    changes = {name: getattr(config.run, name) for name in ("steps", "problems", "evaluation")}
    assert config.run == quickstart.model_copy(update=changes)


def test_a_run_is_the_studys_run_with_an_estimator_put_in():
    study = make_study()
    config = make_run_config(study.run, study.estimators[1], 0.5, 9)
    assert (config.seed, config.learner.learning_rate) == (9, 0.5)
    credit = config.credit
    assert (credit.method, credit.fan_out, credit.budget, credit.normalise) == ("no_loo", (2, 2), 4, "none")
    assert config.task == study.run.task


NUMERIC = {"kind": "numeric", "path": "a.jsonl", "heldout_path": "b.jsonl"}


@pytest.mark.parametrize(
    ("changes", "run", "words"),
    [
        ({"learning_rates": [0.1, 0.1]}, {}, ["learning_rates: expected different ones, got [0.1, 0.1]"]),
        ({"seeds": 1}, {}, ["seeds: expected", "got 1"]),
        ({"seed": 2**32 - 1}, {}, ["run.seed: expected", "4294967296"]),
        ({}, {"task": NUMERIC}, ["run.task.kind: expected arithmetic", "'numeric'"]),
        ({}, {"problems": 7}, ["run.learner.minibatches: expected a divisor of problems (7), got 2"]),
        ({}, {"stepz": 7}, ["run.stepz: expected a field of the config (steps?)"]),
        ({}, {"base": "a.yaml"}, ["run.base: expected a field"]),
        (
            {"estimators": ["c3 4"]},
            {},
            ["estimators.0: method c3 would give turn 1 zero credit"],
        ),
        (
            {"estimators": ["c3_replay 2+2"]},
            {},
            ["estimators.0: expected a method and sizes of trees or episodes, got 'c3_replay 2+2'"],
        ),
        (
            {"estimators": ["c3 2x2, turn 2 untrained"]},
            {},
            ["estimators.0: expected untrained turns below 2, got 2"],
        ),
        (
            {"estimators": ["mappo 4"]},
            {},
            ["run.credit.critic: expected a section for method mappo"],
        ),
        (
            {"estimators": ["coma 4"]},
            {},
            ["run.credit.method: coma needs the value of every possible message"],
        ),
        ({"estimators": make_tree()["estimators"][:1] * 2}, {}, ["estimators.1: expected each once, got c3 2x2 twice"]),
    ],
)
def test_a_wrong_study_is_refused_in_one_sentence(changes, run, words):
    tree = make_tree(**changes)
    with pytest.raises(ConfigError) as refused:
        parse_study(tree | {"run": tree["run"] | run})
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence


def test_a_base_that_is_no_file_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    for base, words in (("none.yaml", "none.yaml: expected a YAML file"), (3, "run.base: expected the path")):
        path.write_text(yaml.safe_dump(make_tree(run={"base": base})), encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            load_study(path)
