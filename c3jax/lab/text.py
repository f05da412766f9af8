"""Whole training runs of a small language model in one compiled program: trees, evaluator, credit and update.

Sampling, credit, loss and optimiser are those of `c3jax train`, with its addresses of randomness, and only the
evaluator is another one: `text_reward.py` on the device. So a lane is the run that `c3jax train` makes of the same
config; where many run together, sums may be rounded differently in their last bit.

Dimension key beside types.py: E held-out problem    C contender    U step
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from c3jax.analysis.figures import Axis, plot_points, save_figure
from c3jax.analysis.statistics import compute_student_interval
from c3jax.analysis.tables import make_columns, print_table, save_table
from c3jax.config.run import RunConfig, uses_reference
from c3jax.credit.apply import zero_credit_share
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.methods import needs_critic
from c3jax.credit.plans import Plan, count_calls, count_generated
from c3jax.lab.chunks import Block, Outcome, run_blocks
from c3jax.lab.learning import LEVEL, compare_with_first, save_curves
from c3jax.lab.sections import Estimator, TextStudy, describe_estimator, make_plan, make_run_config
from c3jax.learner import update as update_lib
from c3jax.learner.update import TrainState
from c3jax.models.policy import Weights
from c3jax.protocol import plan_turns
from c3jax.rollout import address, sampling, tree
from c3jax.setup.imitation import warm_up
from c3jax.setup.team import ProblemSet, Team, choose_problems, make_questions, make_team
from c3jax.types import Frame, Messages, Tokenizer, UserError

_SHOWN = (
    *("estimator", "accuracy_before", "accuracy", "accuracy_low", "accuracy_high", "accuracy_gain", "accuracy_p"),
    *("return", "tokens"),
)
_BUDGETS = {
    "steps": "steps",
    "calls": "evaluator calls",
    "messages": "messages generated",
    "tokens": "tokens generated",
}


class Problems(NamedTuple):
    """Problems as the device needs them."""

    question: Frame  # [P, S]
    index_P: jax.Array  # by which draws are addressed
    answer_P: jax.Array  # the digit that the dial shows in the end


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


class Contender(NamedTuple):
    """What is run with every seed: an estimator with a learning rate."""

    estimator: Estimator
    name: str
    plan: Plan
    config: RunConfig  # of the first seed


class Start(NamedTuple):
    """What the runs of one seed have in common."""

    team: Team
    params: dict
    train: Problems
    heldout: Problems


# --------------------------------------------------------------------------------------------------------------------
# One run


def make_run(contender: Contender, team: Team) -> Callable[[Lane], tuple[TrainState, Curve]]:
    """The training run of a contender, seed and learning rate left open: run(lane) gives the last state and the curve.

    Pure, to be jitted and vmapped over lanes. Methods of one fan-out share a program, each with its lane's matrix, but
    those with a critic and shrunk, whose baselines are no fixed matrix.

    Args:
      contender: of its config all is read but the seed and the learning rate, of its method what the lane's matrix
        does not say.
      team: of any seed; its tokenizer and the model's definition are read.
    """
    config, policy, stop_tokens = contender.config, team.policy, team.tokenizer.stop_tokens
    plans = plan_turns(config.protocol, team.tokenizer)  # the team's, but for the turns that are trained
    digit_V, fan_out = list_digits(team.tokenizer), contender.plan.fan_out
    sample_tree = tree.make_tree_sampler(policy, plans, config.sampling, stop_tokens)
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
            rollout, counts = sample_tree(Weights(state.params, {}), problems.question, key, problems.index_P, fan_out)
            return_PL = compute_returns(digit_V, rollout.turns[-1], problems.answer_P)
            order_key = jax.random.fold_in(order_stream, step)
            state, credit, _ = update(state, {}, reference, rollout, return_PL, order_key, fan_out)
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

        start = update_lib.init_state(policy, Weights(lane.params, {}), plans, config.credit, config.learner)
        state, columns = jax.lax.scan(take_step, start, (jnp.arange(config.steps), lane.train))
        ends = jax.tree.map(lambda *leaves: jnp.stack(leaves), lane.params, state.params)
        return state, Curve(**columns, accuracy=jax.lax.map(measure, ends))

    return run


def make_lane(contender: Contender, start: Start) -> Lane:
    """The lane of a contender's run with a seed, for the program that `make_run` makes of its config."""
    trained = tuple(turn.trained for turn in contender.config.protocol.turns)
    matrix = make_credit_matrix(contender.estimator.method, contender.plan, trained)
    return Lane(
        seed=jnp.uint32(start.team.config.seed),
        learning_rate=jnp.float32(contender.config.learner.learning_rate),
        matrix=jax.tree.map(np.float32, matrix),
        params=start.params,
        train=start.train,
        heldout=start.heldout,
    )


def make_train_problems(team: Team) -> Problems:
    """The problems of every step of a run, the steps in front, in the order in which `c3jax train` meets them."""
    steps = [_make_problems(team, team.train, choose_problems(team, step)) for step in range(team.config.steps)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)


def make_heldout_problems(team: Team) -> Problems:
    """The problems that a run is evaluated on."""
    count = min(team.config.evaluation.problems, len(team.heldout.problems))
    return _make_problems(team, team.heldout, range(count))


def _make_problems(team: Team, problem_set: ProblemSet, places: Sequence[int]) -> Problems:
    question, index_P = make_questions(team, problem_set, places)
    return Problems(question, index_P, jnp.array([int(problem_set.problems[place].answer) for place in places]))


# --------------------------------------------------------------------------------------------------------------------
# All runs


def run(config: TextStudy, run_dir: Path, console: Console) -> int:
    """Run the study in its directory, or go on with it; writes tables, curves and figures; returns the exit code.

    A study that is gone on with keeps its finished runs; the warm-ups are made again, the same to the last bit.
    """
    contenders = list_contenders(config)
    starts = [start_runs(contenders[0].config, config.seed + place, console) for place in range(config.seeds)]
    blocks = make_blocks(contenders, starts)
    outcome = run_blocks(blocks, jax.random.key(config.seed), config.memory_gb, run_dir, console)
    recorded = {name: column.reshape(len(contenders), config.seeds, -1) for name, column in outcome.recorded.items()}
    results = summarise(contenders, recorded, len(config.learning_rates))
    _save(run_dir, results, list_curves(contenders, recorded))
    rows = [{name: row[name] for name in _SHOWN if name in row} for row in results]
    print_table(console, rows, f"greedy held-out accuracy before and after {config.run.steps} steps, and their return")
    _report_speed(outcome, config.run.steps, console)
    console.print(f"results in {run_dir}", soft_wrap=True)
    return 0


def list_contenders(config: TextStudy) -> list[Contender]:
    """Every estimator with every learning rate, the first estimator's first."""
    rates, turns = config.learning_rates, len(config.run.protocol.turns)
    return [
        Contender(
            estimator,
            describe_estimator(estimator) + (f", rate {rate:g}" if len(rates) > 1 else ""),
            make_plan(estimator.plan, turns),
            make_run_config(config.run, estimator, rate, config.seed),
        )
        for estimator in config.estimators
        for rate in rates
    ]


def make_blocks(contenders: Sequence[Contender], starts: Sequence[Start]) -> list[Block]:
    """The study's runs, those that one program can make together in one block; run c * seeds + s is contender c's."""
    groups: dict[tuple, list[int]] = {}
    for place, contender in enumerate(contenders):
        credit, turns = contender.config.credit, contender.config.protocol.turns
        # The update knows these by name; of the others it reads nothing but the matrix.
        named = credit.method if needs_critic(credit.method) or credit.method == "shrunk" else None
        groups.setdefault((credit.fan_out, credit.normalise, named, turns), []).append(place)
    return [_make_block(contenders, starts, places) for places in groups.values()]


def _make_block(contenders: Sequence[Contender], starts: Sequence[Start], places: Sequence[int]) -> Block:
    first = contenders[places[0]]
    run_lane = make_run(first, starts[0].team)
    lanes = [make_lane(contenders[place], start) for place in places for start in starts]
    return Block(
        name=first.name,
        train=lambda key, lane: run_lane(lane)[1],
        lanes=jax.tree.map(lambda *leaves: np.stack(leaves), *lanes),
        numbers=tuple(place * len(starts) + number for place in places for number in range(len(starts))),
    )


def start_runs(config: RunConfig, seed: int, console: Console) -> Start:
    """Make a seed's problems and policy, warmed up as `c3jax train` does it."""
    team = make_team(config.model_copy(update={"seed": seed}))
    params = warm_up(team, console, is_stopping=lambda: False)
    assert params is not None  # nothing tells it to stop
    return Start(team, params, make_train_problems(team), make_heldout_problems(team))


# --------------------------------------------------------------------------------------------------------------------
# Results


def summarise(contenders: Sequence[Contender], recorded: dict[str, np.ndarray], rates: int) -> list[dict[str, Any]]:
    """A row a contender: accuracy before and after, mean sampled return, both against the first estimator, and cost.

    recorded: the fields of the runs' curves, each [C, seeds, entries]. Differences are of the same learning rate (of
    `rates`) and paired over seeds; their p-values are Holm's.
    """
    columns = {"accuracy": recorded["accuracy"][..., -1], "return": recorded["sampled_return"].mean(axis=-1)}
    compared = [compare_with_first(name, value_CS, rates) for name, value_CS in columns.items()]
    rows = []
    for place, contender in enumerate(contenders):
        before = compute_student_interval(recorded["accuracy"][place, :, 0], LEVEL)
        row = {"estimator": contender.name} | make_columns("accuracy_before", before)
        for of_contenders in compared:
            row |= of_contenders[place]
        spent = {name: int(cost_U[-1]) for name, cost_U in _list_spent(contender, recorded["tokens"][place]).items()}
        bad_updates = int(recorded["bad_updates"][place, :, -1].sum())
        rows.append(row | spent | {"bad_updates": bad_updates, "seeds": recorded["accuracy"].shape[1]})
    return rows


def list_curves(contenders: Sequence[Contender], recorded: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row a contender and step: what had been spent before it, and what was measured in it, over seeds."""
    rows = []
    for place, contender in enumerate(contenders):
        spent = _list_spent(contender, recorded["tokens"][place])
        for step in range(contender.config.steps):
            row = {"estimator": contender.name, **{name: int(cost_U[step]) for name, cost_U in spent.items()}}
            return_S = recorded["sampled_return"][place, :, step]
            row |= make_columns("return", compute_student_interval(return_S, LEVEL))
            rows.append(row | {"zero_share": float(recorded["zero_share"][place, :, step].mean())})
    return rows


def _list_spent(contender: Contender, tokens_SU: np.ndarray) -> dict[str, np.ndarray]:
    """What a run had spent before each of its steps, and in all; tokens are the mean over seeds of what was drawn."""
    config = contender.config
    step_U = np.arange(config.steps + 1)
    return {
        "steps": step_U,
        "calls": step_U * config.problems * count_calls(contender.plan),
        "messages": step_U * config.problems * sum(count_generated(contender.plan)),
        "tokens": np.concatenate([[0.0], np.cumsum(tokens_SU.mean(axis=0))]),
    }


def _save(run_dir: Path, results: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]]) -> None:
    save_table(run_dir / "results", results, "Text: held-out accuracy and return by estimator")
    save_table(run_dir / "curves", curves, "Sampled return by step")
    save_curves(run_dir, curves, _BUDGETS, Axis("return", "sampled return", has_interval=True))
    columns = {"before the first step": "accuracy_before", "after the last": "accuracy"}
    points = [
        {"estimator": row["estimator"], "when": when}
        | {f"accuracy{bound}": row[f"{column}{bound}"] for bound in ("", "_low", "_high")}
        for when, column in columns.items()
        for row in results
    ]
    figure = plot_points(
        points,
        category="estimator",
        value=Axis("accuracy", "greedy accuracy", has_interval=True),
        group="when",
        title="Held-out accuracy",
    )
    save_figure(figure, run_dir / "figures" / "accuracy")


def _report_speed(outcome: Outcome, steps: int, console: Console) -> None:
    runs = len(outcome.recorded["accuracy"])
    console.print(
        f"{runs - outcome.resumed} runs of {steps} steps: {outcome.compile_seconds:.1f} s compiling"
        f" {outcome.programs} programs, {outcome.run_seconds:.1f} s running {outcome.chunks} chunks",
        soft_wrap=True,
    )


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
