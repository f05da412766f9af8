"""A team ready to act: problems, tokenizer, plans of contexts and the policy, put together from a config.

Training, evaluation and asking all start here, and everything that can be wrong with a config and its files is found
here, before anything is compiled or written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c3jax import protocol as protocol_lib
from c3jax.config import run as config_lib
from c3jax.models import load as load_lib
from c3jax.models.critic import count_network
from c3jax.models.decoder import DecoderSpec
from c3jax.models.policy import Policy, Weights, count_weights, make_policy
from c3jax.rollout import address, context
from c3jax.run.files import compute_sha256
from c3jax.setup import contamination as gate
from c3jax.setup import memory, mixing
from c3jax.tasks import arithmetic, reasoning, stories
from c3jax.tasks import sections as task_sections
from c3jax.tasks.code import records as code_records
from c3jax.tasks.sandbox.isolation import check_isolation
from c3jax.tasks.task import TASKS
from c3jax.tasks.task import load_problems as load_task_problems
from c3jax.types import Frame, Messages, Problem, Rollout, Tokenizer


class ProblemSet(NamedTuple):
    """Problems whose question fits its frame, with their tokens."""

    problems: tuple[Problem, ...]
    tokens: tuple[tuple[int, ...], ...]
    left_out: int  # problems whose question is longer than protocol.question_tokens


class Mixture(NamedTuple):
    """The sets that the training problems are from; a field's entries are in the order of the config."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    counts: tuple[int, ...]  # problems, as they lie behind each other in Team.train


class Team(NamedTuple):
    """Everything fixed that acting takes; the weights are those the run starts from."""

    config: config_lib.RunConfig
    train: ProblemSet
    mixture: Mixture
    overlap: gate.Passed  # what training and held-out problems had in common
    heldout: ProblemSet
    tokenizer: Tokenizer
    plans: tuple[protocol_lib.TurnPlan, ...]
    spec: DecoderSpec
    memory: memory.Fit | None  # what training takes; None where nothing is trained
    policy: Policy
    weights: Weights


def make_team(config: config_lib.RunConfig, is_contained: bool = True, is_training: bool = False) -> Team:
    """Read the problems, load the model and plan the contexts.

    `is_contained` false lets programs of a code task run without their sandbox, and no wall of it is tried.
    `is_training`: the suites that the run will be evaluated on must be there, with no training problem among theirs,
    and the run must fit the device's memory. Raises ValueError with one sentence for the user.
    """
    sets, heldout = _load_problems(config, is_contained)
    names, shares = _list_sets(config)
    overlap = _check_overlap(config, mixing.join_sets(names, sets), heldout, is_training)
    model = load_lib.describe_model(config.model, list_words(config))
    spec, tokenizer, _ = model
    plans = protocol_lib.plan_turns(config.protocol, tokenizer)
    protocol_lib.check_lengths(plans, config.protocol.question_tokens, spec.context)
    train_set = encode_problems(overlap.problems, tokenizer, config.protocol.question_tokens)
    heldout_set = encode_problems(heldout, tokenizer, config.protocol.question_tokens)
    if len(train_set.problems) < config.problems:
        raise config_lib.ConfigError(
            f"problems: expected at most the {len(train_set.problems)} training problems whose question fits"
            f" protocol.question_tokens, got {config.problems}"
        )
    counts = Counter(map(mixing.find_set, train_set.problems))
    mixture = Mixture(names, shares, tuple(counts[place] for place in range(len(sets))))
    _check_mixture(config, mixture)
    if not heldout_set.problems:
        raise config_lib.ConfigError(
            "protocol.question_tokens: expected room for at least one held-out question,"
            f" got {config.protocol.question_tokens}"
        )
    needs = _check_memory(config, spec, plans) if is_training else None
    policy, weights = _load_policy(config, model)
    return Team(config, train_set, mixture, overlap, heldout_set, tokenizer, plans, spec, needs, policy, weights)


def _check_overlap(
    config: config_lib.RunConfig, train: Sequence[Problem], heldout: list[Problem], is_training: bool
) -> gate.Passed:
    """Keep the training problems apart from the held-out ones, and from those of all suites."""
    suites = config.evaluation.suites if is_training else ()
    sets = {"heldout": heldout} | {
        suite.name: load_task_problems(suite.kind, suite.path, is_contained=True)[: suite.problems] for suite in suites
    }
    return gate.check_overlap(
        config.task.kind,
        train,
        sets,
        is_dropping=config.data.drop_overlap,
        is_strict=config.data.ngram_overlap == "refuse",
        kinds={suite.name: suite.kind for suite in suites},
    )


def choose_problems(team: Team, step: int) -> list[int]:
    """Places of a step's problems in the training set: of each set its share, no problem twice in a step."""
    entropy = (team.config.seed, address.ORDER)
    return mixing.choose_places(team.mixture.counts, team.mixture.weights, team.config.problems, entropy, step)


def find_sets(team: Team, places: Sequence[int]) -> list[int]:
    """Which set of the mixture each of these training problems is from."""
    return [mixing.find_set(team.train.problems[place]) for place in places]


def describe_data(team: Team) -> dict[str, Any]:
    """What the problems of a run are, for its manifest: files with their SHA-256, counts, and what was dropped."""
    task = team.config.task
    if isinstance(task, task_sections.GeneratedTask):
        paths, heldout = [None], None
    else:
        paths, heldout = [part.path for part in task_sections.list_training_sets(task)], task.heldout_path
    train = [
        {"name": name, **_describe_file(path), "weight": weight, "problems": count}
        for name, path, weight, count in zip(team.mixture.names, paths, *team.mixture[1:], strict=True)
    ]
    return {
        "train": train,
        "heldout": {**_describe_file(heldout), "problems": len(team.heldout.problems)},
        "overlap": gate.count_hits(team.overlap.hits),
        "dropped": list(team.overlap.dropped),
    }


def _describe_file(path: str | None) -> dict[str, str]:
    return {} if path is None else {"path": path, "sha256": compute_sha256(Path(path).read_bytes())}


def choose_slots(team: Team, problem_set: ProblemSet, places: Sequence[int]) -> int:
    """Slots of a frame for these questions: the shortest of the lengths that the config has compiled."""
    needed = max(len(problem_set.tokens[place]) for place in places)
    return context.choose_length(team.config.protocol.question_tokens, needed, team.config.shapes.lengths)


def make_questions(
    team: Team, problem_set: ProblemSet, places: Sequence[int], slots: int | None = None
) -> tuple[Frame, jax.Array]:
    """The questions' frame [P, S] and the problems' indices [P], by which their draws are addressed.

    The frame has protocol.question_tokens slots where no other number is given.
    """
    rows = [problem_set.tokens[place] for place in places]
    frame = context.make_frame(rows, slots or team.config.protocol.question_tokens)
    return frame, jnp.asarray([problem_set.problems[place].index for place in places], jnp.int32)


def decode_turns(team: Team, rollout: Rollout) -> list[list[str]]:
    """Every message's text, a list a turn, in path order."""
    return [decode_messages(team.tokenizer, messages) for messages in rollout.turns]


def decode_messages(tokenizer: Tokenizer, messages: Messages) -> list[str]:
    """The text of each message, its stop token left out."""
    tokens, content = np.asarray(messages.tokens_NT), np.asarray(messages.content_NT)
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, content, strict=True)]


def arithmetic_spec(task: task_sections.ArithmeticTask) -> arithmetic.ArithmeticSpec:
    """The generator's settings of a config."""
    return arithmetic.ArithmeticSpec(task.moves, task.down_share, task.plan_fault, task.distrust)


def list_words(config: config_lib.RunConfig) -> list[str] | None:
    """The words of the task and of the prompts, in a fixed order, where the model's vocabulary is made of them."""
    if config.model.kind != "random":
        return None
    words = list(arithmetic.VOCABULARY)
    for turn in config.protocol.turns:
        slots = {name: " " for name in config_lib.slots_of(turn)}
        words += turn.system.format(**slots).split() + turn.user.format(**slots).split()
    return list(dict.fromkeys(words))


def _check_memory(
    config: config_lib.RunConfig, spec: DecoderSpec, plans: tuple[protocol_lib.TurnPlan, ...]
) -> memory.Fit:
    """What training will take. Raises UserError with the numbers, and what would fit, where that is not there."""
    trained, frozen = count_weights(config.policy, spec, *_list_roles(config))
    has_reference = config.policy.kind != "adapters" and config_lib.uses_reference(config.learner)
    critic = config.credit.critic
    own = count_network(spec) if critic is not None and critic.network == "own" else 0
    counts = memory.Weights(trained, frozen, jnp.dtype(_frozen_dtype(config)).itemsize, has_reference, own)
    if config.credit.fan_out == "auto":  # the tree with the most messages that may be chosen
        widest = (config.credit.budget,) + (1,) * (len(plans) - 1)
        config = config.model_copy(update={"credit": config.credit.model_copy(update={"fan_out": widest})})
    return memory.check_memory(config, spec, plans, counts, memory.find_limit())


def _load_policy(config: config_lib.RunConfig, model: load_lib.Description) -> tuple[Policy, Weights]:
    key = address.make_stream(config.seed, address.INIT)
    params = load_lib.load_params(config.model, model, key, _frozen_dtype(config))
    key = address.make_stream(config.seed, address.ADAPT)
    return make_policy(config.policy, model.spec, params, *_list_roles(config), key)


def _list_roles(config: config_lib.RunConfig) -> tuple[list[str], list[str]]:
    """All roles, and the trained ones."""
    roles = list(dict.fromkeys(turn.role for turn in config.protocol.turns))
    return roles, config_lib.trained_roles(config.protocol)


def _frozen_dtype(config: config_lib.RunConfig) -> str:
    """The type that the loaded network is held in: f32 where it is trained, that of the products where it is not."""
    return config.model.dtype if config.policy.kind == "adapters" else "float32"


def _list_sets(config: config_lib.RunConfig) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and weights of the training sets; a generator's problems are one set."""
    task = config.task
    if isinstance(task, task_sections.GeneratedTask):
        return (task.kind,), (1.0,)
    parts = task_sections.list_training_sets(task)
    return tuple(mixing.name_sets([part.path for part in parts])), tuple(part.weight for part in parts)


def _load_problems(config: config_lib.RunConfig, is_contained: bool) -> tuple[list[list[Problem]], list[Problem]]:
    """The training sets and the held-out problems."""
    task = config.task
    if task.kind == "arithmetic":
        spec = arithmetic_spec(task)
        return (
            [arithmetic.load_problems(spec, config.seed, "train", task.train_problems)],
            arithmetic.load_problems(spec, config.seed, "test", task.heldout_problems),
        )
    if task.kind == "stories":
        story = stories.StorySpec(task.changes, task.largest, task.loss_share)
        return (
            [stories.load_problems(story, config.seed, "train", task.train_problems)],
            stories.load_problems(story, config.seed, "test", task.heldout_problems),
        )
    if task.kind == "reasoning":
        made = reasoning.ReasoningSpec(task.generator, task.settings, task.threshold)
        train, heldout = reasoning.make_problems(made, config.seed, task.train_problems, task.heldout_problems)
        return [train], heldout
    load = _make_code_loader(task, config.grade_timeout, is_contained) if task.kind == "code" else TASKS[task.kind].load
    paths = [part.path for part in task_sections.list_training_sets(task)]
    return [load(path)[: task.limit] for path in paths], load(task.heldout_path)[: task.limit]


def _make_code_loader(
    task: task_sections.CodeTask, grade_timeout: float, is_contained: bool
) -> Callable[[str], list[Problem]]:
    if task.timeout + 2.0 > grade_timeout:
        raise config_lib.ConfigError(
            f"task.timeout: expected at most grade_timeout ({grade_timeout:g}) less 2 seconds, got {task.timeout:g}"
        )
    if is_contained:
        check_isolation()
    spec = code_records.CodeSpec(task.reward, task.timeout, task.memory, is_contained=is_contained)
    return lambda path: code_records.load_problems(path, None, spec)


def _check_mixture(config: config_lib.RunConfig, mixture: Mixture) -> None:
    """Check that no set has to give a problem twice in a step. Raises ConfigError."""
    most = mixing.count_most(mixture.weights, config.problems)
    for place, (count, needed) in enumerate(zip(mixture.counts, most, strict=True)):
        if needed > count:
            raise config_lib.ConfigError(
                f"task.path.{place}.weight: expected a share of the {config.problems} problems of a step that the"
                f" {count} problems of {mixture.names[place]} can give, got one of up to {needed}"
            )


def encode_problems(problems: list[Problem], tokenizer: Tokenizer, question_tokens: int) -> ProblemSet:
    """The problems whose question fits its frame, with their tokens."""
    rows = [(problem, tuple(tokenizer.encode_text(problem.question))) for problem in problems]
    fitting = [(problem, tokens) for problem, tokens in rows if len(tokens) <= question_tokens]
    return ProblemSet(
        tuple(problem for problem, _ in fitting), tuple(tokens for _, tokens in fitting), len(rows) - len(fitting)
    )
