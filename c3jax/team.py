"""A team ready to act: problems, tokenizer, plans of contexts and the policy, put together from a config.

Training, evaluation and asking all start here, and everything that can be wrong with a config and its files is found
here, before anything is compiled or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from c3jax import config as config_lib
from c3jax import protocol as protocol_lib
from c3jax.models import load as load_lib
from c3jax.models.decoder import DecoderSpec
from c3jax.rollout import address, context
from c3jax.tasks import arithmetic, code_records, maths, numeric, reasoning
from c3jax.tasks.sandbox_walls import check_walls
from c3jax.types import Frame, Messages, Problem, Rollout, Tokenizer


class ProblemSet(NamedTuple):
    """Problems whose question fits its frame, with their tokens."""

    problems: tuple[Problem, ...]
    tokens: tuple[tuple[int, ...], ...]
    left_out: int  # problems whose question is longer than protocol.question_tokens


class Team(NamedTuple):
    """Everything fixed that acting takes; params are those the model starts from."""

    config: config_lib.RunConfig
    train: ProblemSet
    heldout: ProblemSet
    tokenizer: Tokenizer
    plans: tuple[protocol_lib.TurnPlan, ...]
    spec: DecoderSpec
    graphdef: nnx.GraphDef
    params: dict


def make_team(config: config_lib.RunConfig, is_contained: bool = True) -> Team:
    """Read the problems, load the model and plan the contexts.

    `is_contained` false lets programs of a code task run without their sandbox, and no wall of it is tried. Raises
    ValueError with one sentence for the user.
    """
    train, heldout = _load_problems(config, is_contained)
    words = _list_words(config) if config.model.kind == "random" else None
    model = load_lib.load_model(config.model, words, address.make_stream(config.seed, address.INIT))
    plans = protocol_lib.plan_turns(config.protocol, model.tokenizer)
    protocol_lib.check_lengths(plans, config.protocol.question_tokens, model.spec.context)
    train_set = encode_problems(train, model.tokenizer, config.protocol.question_tokens)
    heldout_set = encode_problems(heldout, model.tokenizer, config.protocol.question_tokens)
    if len(train_set.problems) < config.problems:
        raise config_lib.ConfigError(
            f"problems: expected at most the {len(train_set.problems)} training problems whose question fits"
            f" protocol.question_tokens, got {config.problems}"
        )
    if not heldout_set.problems:
        raise config_lib.ConfigError(
            "protocol.question_tokens: expected room for at least one held-out question,"
            f" got {config.protocol.question_tokens}"
        )
    return Team(config, train_set, heldout_set, model.tokenizer, plans, model.spec, model.graphdef, model.params)


def choose_problems(team: Team, step: int) -> list[int]:
    """Places of a step's problems in the training set: every epoch a new order, no problem twice in a step."""
    count, size = len(team.train.problems), team.config.problems
    epoch, place = divmod(step, count // size)
    order = np.random.default_rng([team.config.seed, address.ORDER, epoch]).permutation(count)
    return order[place * size : (place + 1) * size].tolist()


def make_questions(team: Team, problem_set: ProblemSet, places: Sequence[int]) -> tuple[Frame, jax.Array]:
    """The questions' frame [P, S] and the problems' indices [P], by which their draws are addressed."""
    frame = context.make_frame([problem_set.tokens[place] for place in places], team.config.protocol.question_tokens)
    return frame, jnp.asarray([problem_set.problems[place].index for place in places], jnp.int32)


def decode_turns(team: Team, rollout: Rollout) -> list[list[str]]:
    """Every message's text, a list a turn, in path order."""
    return [decode_messages(team.tokenizer, messages) for messages in rollout.turns]


def decode_messages(tokenizer: Tokenizer, messages: Messages) -> list[str]:
    """The text of each message, its stop token left out."""
    tokens, content = np.asarray(messages.tokens_NT), np.asarray(messages.content_NT)
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, content, strict=True)]


def arithmetic_spec(task: config_lib.ArithmeticTask) -> arithmetic.ArithmeticSpec:
    """The generator's settings of a config."""
    return arithmetic.ArithmeticSpec(task.moves, task.down_share, task.plan_fault, task.distrust)


def _load_problems(config: config_lib.RunConfig, is_contained: bool) -> tuple[list[Problem], list[Problem]]:
    task = config.task
    if task.kind == "arithmetic":
        spec = arithmetic_spec(task)
        return (
            arithmetic.load_problems(spec, config.seed, "train", task.train_problems),
            arithmetic.load_problems(spec, config.seed, "test", task.heldout_problems),
        )
    if task.kind == "reasoning":
        made = reasoning.ReasoningSpec(task.generator, task.settings, task.threshold)
        return reasoning.make_problems(made, config.seed, task.train_problems, task.heldout_problems)
    if task.kind == "code":
        return _load_code(task, config.grade_timeout, is_contained)
    if task.kind == "math":
        return maths.load_problems(task.path, task.limit), maths.load_problems(task.heldout_path, task.limit)
    return numeric.load_problems(task.path, task.limit), numeric.load_problems(task.heldout_path, task.limit)


def _load_code(
    task: config_lib.CodeTask, grade_timeout: float, is_contained: bool
) -> tuple[list[Problem], list[Problem]]:
    if task.timeout + 2.0 > grade_timeout:
        raise config_lib.ConfigError(
            f"task.timeout: expected at most grade_timeout ({grade_timeout:g}) less 2 seconds, got {task.timeout:g}"
        )
    if is_contained:
        check_walls()
    spec = code_records.CodeSpec(task.reward, task.timeout, task.memory, is_contained=is_contained)
    sets = [code_records.load_problems(path, task.limit, spec) for path in (task.path, task.heldout_path)]
    return sets[0], sets[1]


def _list_words(config: config_lib.RunConfig) -> list[str]:
    """The words of the task and of the prompts, in a fixed order."""
    words = list(arithmetic.VOCABULARY)
    for turn in config.protocol.turns:
        slots = {name: " " for name in config_lib.slots_of(turn)}
        words += turn.system.format(**slots).split() + turn.user.format(**slots).split()
    return list(dict.fromkeys(words))


def encode_problems(problems: list[Problem], tokenizer: Tokenizer, question_tokens: int) -> ProblemSet:
    """The problems whose question fits its frame, with their tokens."""
    rows = [(problem, tuple(tokenizer.encode_text(problem.question))) for problem in problems]
    fitting = [(problem, tokens) for problem, tokens in rows if len(tokens) <= question_tokens]
    return ProblemSet(
        tuple(problem for problem, _ in fitting), tuple(tokens for _, tokens in fitting), len(rows) - len(fitting)
    )
