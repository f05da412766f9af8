"""Whole training runs of a small language model in one compiled program: trees, evaluator, credit and update.

Sampling, credit, loss and optimiser are those of `c3jax train`, with its addresses of randomness, and only the
evaluator is another one, on the device. So a lane is the run that `c3jax train` makes of the same
config; where many run together, sums may be rounded differently in their last bit.

Dimension key beside types.py: A arm    S seed    E entry of a record    U step
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from c3jax.analysis.figures import Axis, plot_points, save_figure
from c3jax.config.run import RunConfig, uses_reference
from c3jax.credit.apply import zero_credit_share
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.methods import find_method
from c3jax.credit.plans import Plan
from c3jax.lab import sweep
from c3jax.lab.chunks import Block, Record, Train
from c3jax.lab.config import TextStudy, make_run_config
from c3jax.lab.sweep import Arm, Findings
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.learner.state import TrainState
from c3jax.models.policy import Weights
from c3jax.processes import is_first
from c3jax.protocol import plan_turns
from c3jax.rollout import address, sampling, tree
from c3jax.setup.answers import make_answers, make_reader
from c3jax.setup.imitation import warm_up
from c3jax.setup.team import ProblemSet, Setup, choose_problems, make_questions, make_setup
from c3jax.types import Frame, Messages, Tokenizer, UserError


class Problems(NamedTuple):
    """Problems as the device needs them."""

    question: Frame  # [P, S]
    index_P: jax.Array  # by which draws are addressed
    answer_P: jax.Array  # the digit that the dial shows in the end
    answers: Messages | None  # the same as messages, where the method reads them


class Lane(NamedTuple):
    """One run: all that differs between the runs of a program. Every field gets a leading axis under vmap."""

    seed: jax.Array  # uint32 scalar
    learning_rate: jax.Array  # f32 scalar
    matrix: CreditMatrix
    params: dict  # of the policy before the first step
    train: Problems  # of each step: arrays with the steps in front
    heldout: Problems


class Curve(NamedTuple):
    """What a run records, f32 and int32."""

    sampled_return: jax.Array  # [U] mean over leaves
    zero_share: jax.Array  # [U] share of messages without credit, the mean over turns
    tokens: jax.Array  # [U] generated
    bad_updates: jax.Array  # [U] skipped for a non-finite loss or gradient, so far
    accuracy: jax.Array  # [2] greedy, on the held-out problems: before the first step and after the last


class Start(NamedTuple):
    """What the runs of one seed have in common."""

    setup: Setup
    params: dict
    train: Problems
    heldout: Problems


# --------------------------------------------------------------------------------------------------------------------
# One run


def make_run(config: RunConfig, plan: Plan, setup: Setup) -> Callable[[Lane], tuple[TrainState, Curve]]:
    """The training run of a config, its seed and learning rate left open.

    Args:
      config: of its method only what a lane's matrix leaves open is read: whether it has a critic, or is shrunk.
      plan: what a step samples for a problem; that of the config.
      setup: of any seed; its tokenizer and the model's definition are read.

    Returns:
      run(lane), which gives the last state and the curve; pure, to be jitted and vmapped over lanes.
    """
    policy, stop_tokens = setup.policy, setup.tokenizer.stop_tokens
    plans = plan_turns(config.protocol, setup.tokenizer)  # the team's, but for the turns that are trained
    digit_V, fan_out = list_digits(setup.tokenizer), plan.fan_out
    reads = find_method(config.credit.method).reads
    keeps_gradients = reads == "gradients"
    sample_tree = tree.make_tree_sampler(policy, plans, config.sampling, stop_tokens, keeps_gradients=keeps_gradients)
    read = make_reader(setup._replace(config=config, plans=plans, mesh=None)) if reads == "likelihoods" else None
    answer_greedily = tree.make_tree_sampler(policy, plans, sampling.GREEDY, stop_tokens)

    def run(lane: Lane) -> tuple[TrainState, Curve]:
        # The schedule takes its peak by plain arithmetic, so the lane's may be an array.
        learner = config.learner.model_copy(update={"learning_rate": lane.learning_rate})
        update = update_lib.make_update(
            config.credit, learner, config.sampling, config.steps, policy, plans, lane.matrix
        )
        reference = lane.params if uses_reference(learner) else None
        train_stream, order_stream, evaluation_stream = (
            address.make_stream(lane.seed, stream) for stream in (address.TRAIN, address.ORDER, address.EVALUATE)
        )

        def take_step(state: TrainState, inputs: tuple[jax.Array, Problems]) -> tuple[TrainState, dict[str, jax.Array]]:
            step, problems = inputs
            key = jax.random.fold_in(train_stream, step)
            weights = Weights(state.params, {})
            rollout, counts = sample_tree(weights, problems.question, key, problems.index_P, fan_out)
            if read is not None and problems.answers is not None:
                rollout, _ = read(weights, rollout, problems.answers, fan_out)
            return_PL = compute_returns(digit_V, rollout.turns[-1], problems.answer_P)
            order_key = jax.random.fold_in(order_stream, step)
            state, credit, _ = update(state, {}, reference, (rollout,), return_PL, order_key, plan)
            return state, {
                "sampled_return": return_PL.mean(),
                "zero_share": zero_credit_share(credit).mean(),
                "tokens": counts.generated,
                "bad_updates": state.bad_updates,
            }

        def measure(params: dict) -> jax.Array:
            rollout, _ = answer_greedily(
                Weights(params, {}), lane.heldout.question, evaluation_stream, lane.heldout.index_P, (1,) * len(plans)
            )
            return compute_returns(digit_V, rollout.turns[-1], lane.heldout.answer_P).mean()

        start = state_lib.init_state(policy, Weights(lane.params, {}), plans, config.credit, config.learner)
        state, columns = jax.lax.scan(take_step, start, (jnp.arange(config.steps), lane.train))
        ends = jax.tree.map(lambda *leaves: jnp.stack(leaves), lane.params, state.params)
        return state, Curve(**columns, accuracy=jax.lax.map(measure, ends))

    return run


def make_lane(config: RunConfig, plan: Plan, start: Start) -> Lane:
    """The lane of a config's run, for the program that `make_run` makes of config and plan.

    Args:
      config: whose learning rate, method and trained turns the lane has; its seed is not read.
      plan: what a step samples for a problem.
      start: of the lane's seed.
    """
    trained = tuple(turn.trained for turn in config.protocol.turns)
    matrix = make_credit_matrix(config.credit.method, plan, trained)
    return Lane(
        seed=jnp.uint32(start.setup.config.seed),
        learning_rate=jnp.float32(config.learner.learning_rate),
        matrix=jax.tree.map(np.float32, matrix),
        params=start.params,
        train=start.train,
        heldout=start.heldout,
    )


def make_train_problems(setup: Setup, has_answers: bool = False) -> Problems:
    """The problems of every step of a run, the steps in front, in the order in which `c3jax train` meets them."""
    chosen = [choose_problems(setup, step) for step in range(setup.config.steps)]
    steps = [_make_problems(setup, setup.train, indices, has_answers) for indices in chosen]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)


def make_heldout_problems(setup: Setup) -> Problems:
    """The problems that a run is evaluated on."""
    count = min(setup.config.evaluation.problems, len(setup.heldout.problems))
    return _make_problems(setup, setup.heldout, range(count))


def _make_problems(
    setup: Setup, problem_set: ProblemSet, indices: Sequence[int], has_answers: bool = False
) -> Problems:
    question, index_P = make_questions(setup, problem_set, indices)
    chosen = [problem_set.problems[index] for index in indices]
    answers = make_answers(setup, chosen) if has_answers else None
    return Problems(question, index_P, jnp.array([int(problem.answer) for problem in chosen]), answers)


# --------------------------------------------------------------------------------------------------------------------
# All runs


def run(config: TextStudy, run_dir: Path, console: Console) -> int:
    """Run the study in its directory, or resume it.

    A resumed study keeps its finished runs; the warm-ups are made again, the same to the last bit.

    Args:
      config, run_dir, console: as for `learning.run`.

    Returns:
      0, the exit code.
    """
    arms = list_arms(config)
    has_answers = any(find_method(arm.estimator.method).reads == "likelihoods" for arm in arms)
    made = _make_config(config, arms[0])
    starts = [start_runs(made, config.seed + row, console, has_answers) for row in range(config.seeds)]
    study = sweep.Sweep(
        arms,
        make_blocks(config, arms, starts),
        read=lambda recorded: read_findings(config, arms, recorded),
        length=f"{config.run.steps} steps",
        figure="sampled return",
        columns=(
            *("estimator", "accuracy_before", "accuracy", "accuracy_low", "accuracy_high", "accuracy_gain"),
            *("accuracy_p", "return", "tokens"),
        ),
    )
    results = sweep.run_sweep(study, config.seed, config.memory_gb, run_dir, console)
    if is_first():
        save_figure(_plot_accuracy(results), run_dir / "figures" / "accuracy")
    return 0


def list_arms(config: TextStudy) -> list[Arm]:
    """Every estimator with every learning rate."""
    return sweep.list_arms("", config.estimators, config.learning_rates, len(config.run.protocol.turns))


def make_blocks(config: TextStudy, arms: Sequence[Arm], starts: Sequence[Start]) -> list[Block]:
    """The study's runs, in blocks as `sweep.make_blocks` says.

    Args:
      config: the study's.
      arms: from `list_arms`.
      starts: one a seed.
    """

    def make_train(arm: Arm) -> Train:
        run_lane = make_run(_make_config(config, arm), arm.plan, starts[0].setup)
        return lambda key, lane: run_lane(lane)[1]

    return sweep.make_blocks(
        arms, len(starts), make_train, lambda arm, seed: make_lane(_make_config(config, arm), arm.plan, starts[seed])
    )


def _make_config(config: TextStudy, arm: Arm) -> RunConfig:
    return make_run_config(config.run, arm.estimator, arm.learning_rate, config.seed)


def start_runs(config: RunConfig, seed: int, console: Console, has_answers: bool = False) -> Start:
    """Make a seed's problems and its policy, warmed up as `c3jax train` does it.

    Args:
      config: of the runs.
      seed: theirs.
      console: where the warm-up's progress is shown.
      has_answers: whether a method reads right answers.
    """
    setup = make_setup(config.model_copy(update={"seed": seed}))
    params = warm_up(setup, console, is_stopping=lambda: False)
    assert params is not None  # nothing stops it
    return Start(setup, params, make_train_problems(setup, has_answers), make_heldout_problems(setup))


def read_findings(config: TextStudy, arms: Sequence[Arm], recorded: Record) -> Findings:
    """Accuracy before and after, the mean sampled return, and the curves.

    Tokens are the mean over seeds of what was drawn.

    Args:
      config: the study's.
      arms: from `list_arms`.
      recorded: fields of `Curve`, with [A, S] in front.
    """
    accuracy_ASE, return_ASE = recorded["accuracy"], recorded["sampled_return"]
    step_E = np.arange(config.run.steps + 1)
    spent = sweep.count_spent(arms, "steps", step_E, config.run.problems, lambda arm: (0.0,) * arm.plan.turns)
    spent["tokens"][:, 1:] = np.cumsum(recorded["tokens"].mean(axis=1), axis=1)
    return Findings(
        compared={"accuracy": accuracy_ASE[..., -1], "return": return_ASE.mean(axis=-1)},
        spent=spent,
        curve={"return": return_ASE},
        means={"zero_share": recorded["zero_share"]},
        shown={"accuracy_before": accuracy_ASE[..., 0]},
        counted={"bad_updates": recorded["bad_updates"][..., -1].sum(axis=1)},
    )


def _plot_accuracy(results: Sequence[sweep.TableRow]) -> Figure:
    columns = {"before the first step": "accuracy_before", "after the last": "accuracy"}
    points = [
        {"estimator": row["estimator"], "when": when}
        | {f"accuracy{bound}": row[f"{column}{bound}"] for bound in ("", "_low", "_high")}
        for when, column in columns.items()
        for row in results
    ]
    value = Axis("accuracy", "greedy accuracy", has_interval=True)
    return plot_points(points, category="estimator", value=value, group="when", title="Held-out accuracy")


# --------------------------------------------------------------------------------------------------------------------
# The reward, on the device

# Signs, currency, LaTeX and the mark of a conclusion: what else a grader of numbers goes by.
_MARKS = re.compile(r"[-+−$€£¥₹\\#]")
_NONE = -1


def list_digits(tokenizer: Tokenizer) -> np.ndarray:
    """The digit that each token of a word tokenizer is [V], int32; -1 for the words that are no number.

    Raises UserError where a word could be a part of a number and is not one of the ten digits.
    """
    words = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    digits = {digit: value for value, digit in enumerate("0123456789")}
    for word in words:
        if word not in digits and (_MARKS.search(word) or any(map(str.isnumeric, word))):
            raise UserError(
                f"run.protocol.turns: expected prompts whose words have no number or sign in them, got {word!r}"
            )
    return np.array([digits.get(word, _NONE) for word in words], np.int32)


def compute_returns(digit_V: chex.Array, answers: Messages, answer_P: jax.Array) -> jax.Array:
    """Return [P, L] of every answer: 1 where its last digit is the problem's answer, else 0; 0 where it has no digit.

    Args:
      digit_V: from `list_digits`.
      answers: messages of the last turn, in path order.
      answer_P: each problem's answer, a digit.
    """
    chex.assert_equal_shape([answers.tokens_NT, answers.content_NT])
    chex.assert_rank(answer_P, 1)
    digit_NT = jnp.where(answers.content_NT, jnp.asarray(digit_V)[answers.tokens_NT], _NONE)
    slots = digit_NT.shape[1]
    last_N = slots - 1 - jnp.argmax(digit_NT[:, ::-1] != _NONE, axis=1)
    # Where there is no digit at all this points at a slot without one, and -1 is no answer.
    read_N = jnp.take_along_axis(digit_NT, last_N[:, None], axis=1)[:, 0]
    return (read_N.reshape(answer_P.shape[0], -1) == answer_P[:, None]).astype(jnp.float32)
