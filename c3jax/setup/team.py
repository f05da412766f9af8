"""A team ready to act: problems, tokenizer, plans of contexts and the policy, put together from a config.

Training, evaluation and asking all start here, and everything that can be wrong with a config and its files is found
here, before anything is compiled or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from c3jax import protocol as protocol_lib
from c3jax.config import run as config_lib
from c3jax.models import load as load_lib
from c3jax.models import sharding
from c3jax.models.huggingface import hub
from c3jax.models.policy import Policy, Weights
from c3jax.models.spec import DecoderSpec
from c3jax.rewards import check_workers
from c3jax.rollout import address, context
from c3jax.rollout.acting import Acting, open_acting
from c3jax.rollout.collect import decode_messages as decode_messages
from c3jax.run.directory import hash_origins
from c3jax.run.files import hash_file
from c3jax.run.records import Written
from c3jax.setup import contamination, memory, mixing
from c3jax.setup.policy import estimate_run, load_policy, outline_policy
from c3jax.setup.problems import (
    Mixture,
    ProblemSet,
    Sources,
    check_resampling,
    describe_data,
    encode_problems,
    keep_apart,
    load_sources,
    mix_sets,
)
from c3jax.tasks import environment
from c3jax.tasks.task import Task, open_task
from c3jax.types import Frame, Messages, Rollout, Tokenizer


class Setup(NamedTuple):
    """Everything fixed that acting takes; the weights are those the run starts from."""

    config: config_lib.RunConfig
    task: Task
    train: ProblemSet
    mixture: Mixture
    overlap: contamination.Passed  # what training and held-out problems had in common
    heldout: ProblemSet
    data: dict[str, Any]  # what the problems are, for the manifest
    inputs: dict[str, dict[str, str]]  # SHA-256 of what is read from outside, by kind and name
    tokenizer: Tokenizer
    plans: tuple[protocol_lib.TurnPlan, ...]
    environments: environment.Opened  # what answers turns in which no policy speaks
    spec: DecoderSpec
    memory: memory.Fit | None  # what training takes; None where nothing is trained
    mesh: sharding.Mesh | None  # None where one device does it all
    rollout_mesh: sharding.Mesh | None  # of devices that draw a run's trees; None where the mesh's do
    policy: Policy
    weights: Weights

    @property
    def drawing_mesh(self) -> sharding.Mesh | None:
        """The mesh over which a run's trees are drawn."""
        return self.rollout_mesh or self.mesh


def make_setup(
    config: config_lib.RunConfig,
    is_contained: bool = True,
    is_training: bool = False,
    uses_mesh: bool = False,
    is_hashed: bool = True,
    begin: Callable[[Setup], None] | None = None,
) -> Setup:
    """Read the problems, load the model and plan the contexts.

    Args:
      config: of the run.
      is_contained: False gives up the sandbox of programs that answers are.
      is_training: the suites that the run will be evaluated on must be there, with no training problem among theirs,
        and the run must fit the device's memory.
      uses_mesh: lay weights and problems over the config's mesh, instead of using one device.
      is_hashed: False leaves out `data` and `inputs`, for whom nothing is compared with: files may be gigabytes.
      begin: is given the set-up with its weights' shapes, of one device alone, before the weights are loaded. Who wants
        that waits for programs: decoding then scans the layers, which is compiled, or read from the cache, in a
        fraction of the time, and takes a token 1.4 times as long on CPU.

    Returns:
      Everything fixed that acting takes, and the weights that the run starts from.

    Raises:
      UserError: in one sentence for the user.
    """
    question_tokens = config.protocol.question_tokens
    check_workers(config.workers)
    task = open_task(config.task.kind, config.task, config.grade_timeout, is_contained)
    if is_training and not is_contained and task.bind is None:
        raise config_lib.ConfigError(f"--unsafe-no-sandbox: expected a task that runs programs, got {config.task.kind}")
    sources = load_sources(task, config.task, config.seed)
    overlap = keep_apart(task, sources, config.data, config.evaluation.suites if is_training else ())
    model = load_lib.describe_model(config.model, list_words(config, task))
    if begin is not None:
        model = model._replace(spec=model.spec._replace(scans_decoding=True))
    spec, tokenizer, _ = model
    plans = protocol_lib.plan_turns(config.protocol, tokenizer)
    protocol_lib.check_lengths(plans, question_tokens, spec.context)
    train = encode_problems(overlap.problems, tokenizer, question_tokens)
    heldout = encode_problems(sources.heldout, tokenizer, question_tokens)
    mixture = mix_sets(sources, train, config.problems)
    check_resampling(config, train)
    if not heldout.problems:
        raise config_lib.ConfigError(
            f"protocol.question_tokens: expected room for at least one held-out question, got {question_tokens}"
        )
    mesh = sharding.make_mesh(config.mesh) if uses_mesh else None
    drawing = sharding.make_rollout_mesh(config.mesh) if uses_mesh else None
    _check_meshes(config, spec, mesh, drawing, is_training)
    needs = None
    if is_training:
        estimates = estimate_run(config, spec, plans, mesh, drawing)
        needs = memory.check_memory(max(estimates, key=lambda each: each.peak), memory.find_limit())
    inputs = hash_inputs(config, sources, model) if is_hashed else {}
    data = describe_data(sources, mixture, overlap, heldout, inputs["problems"]) if is_hashed else {}
    problems = (train, mixture, overlap, heldout, data, inputs)
    answering = open_turns(config, task, is_contained)
    fixed = (config, task, *problems, tokenizer, plans, answering, spec, needs, mesh, drawing)
    if begin is not None:
        begin(Setup(*fixed, *outline_policy(config, spec)))
    policy, weights = load_policy(config, model)
    return Setup(*fixed, policy, sharding.shard_state(mesh, weights))


def outline_setup(config: config_lib.RunConfig, devices: Sequence[Any]) -> Setup:
    """A set-up of which nothing is there but sizes: no problem is read, no weight loaded, no device asked for.

    Args:
      config: of the run.
      devices: over which its mesh is laid; they need not be here.

    Returns:
      A set-up whose weights are shapes, each with where it is laid, and whose sets of problems are empty.

    Raises:
      UserError: as make_setup, but for what problems or memory would have to say.
    """
    task = open_task(config.task.kind, config.task, config.grade_timeout)
    words, platform = list_words(config, task), devices[0].platform
    model = load_lib.describe_model(config.model, words, has_weights=False, platform=platform)
    spec, tokenizer, _ = model
    plans = protocol_lib.plan_turns(config.protocol, tokenizer)
    protocol_lib.check_lengths(plans, config.protocol.question_tokens, spec.context)
    mesh, drawing = sharding.make_mesh(config.mesh, devices), sharding.make_rollout_mesh(config.mesh, devices)
    _check_meshes(config, spec, mesh, drawing)
    policy, weights = outline_policy(config, spec)
    empty, nothing = ProblemSet((), (), 0), contamination.Passed([], (), ())
    problems = (empty, Mixture((), (), ()), nothing, empty, {}, {})
    weights = sharding.list_shapes(mesh, weights)
    answering = open_turns(config, task, None)
    return Setup(config, task, *problems, tokenizer, plans, answering, spec, None, mesh, drawing, policy, weights)


def open_turns(config: config_lib.RunConfig, task: Task, is_contained: bool | None) -> environment.Opened:
    """The environments of a config's protocol.

    Args:
      config: of the run.
      task: its task, which may have an environment.
      is_contained: as for `open_environments` of tasks.
    """
    sections = [turn.environment for turn in config.protocol.turns]
    return environment.open_environments(sections, task.environment, is_contained)


def open_environments(setup: Setup) -> AbstractContextManager[Acting | None]:
    """What answers the turns in which no policy speaks, in worker processes, inside a `with` block."""
    tried = setup.heldout.problems[0]
    return open_acting(setup.environments, setup.config.workers, setup.plans, setup.tokenizer, setup.mesh, tried)


def hash_inputs(
    config: config_lib.RunConfig, sources: Sources | None, model: load_lib.Description
) -> dict[str, dict[str, str]]:
    """The SHA-256 of what a config reads from outside, by kind and name.

    Args:
      config: of the run.
      sources: its problems; None where they are not read.
      model: its model. SmolLM2's folder is made from a file whose hash is known.
    """
    paths = [] if sources is None else [*sources.paths, sources.heldout_path]
    paths += [suite.path for suite in config.evaluation.suites if Path(suite.path).is_file()]
    settings = [turn.environment.settings for turn in config.protocol.turns if turn.environment is not None]
    paths += [
        path for path in (each.get("path") for each in settings) if isinstance(path, str) and Path(path).is_file()
    ]
    is_outside = isinstance(config.model, config_lib.FolderModel | config_lib.HubModel)
    files = hub.list_files(model.folder) if is_outside and model.folder is not None else []
    return {
        "problems": {path: hash_file(path) for path in paths if path is not None},
        "model": {path.name: hash_file(path) for path in files},
        "modules": hash_origins(_list_own_names(config)),
    }


def _list_own_names(config: config_lib.RunConfig) -> list[str]:
    """What stands in the fields that may name an object of the user's own as module:NAME."""
    kinds = [config.task.kind, *(suite.kind for suite in config.evaluation.suites)]
    families = [config.model.family] if isinstance(config.model, config_lib.FolderModel | config_lib.HubModel) else []
    kinds += [turn.environment.kind for turn in config.protocol.turns if turn.environment is not None]
    return [*kinds, *families, config.credit.method, config.learner.loss.kind, *config.trackers]


def choose_problems(setup: Setup, step: int, weight_N: np.ndarray | None = None) -> list[int]:
    """Indices of a step's problems in the training set: of each set its share, no problem twice in a step.

    Args:
      setup: of the run.
      step: from 0.
      weight_N: of all training problems, by which a curriculum draws them; None takes them epoch by epoch.
    """
    entropy, mixture = (setup.config.seed, address.ORDER), setup.mixture
    return mixing.choose_indices(mixture.counts, mixture.weights, setup.config.problems, entropy, step, weight_N)


def choose_further(setup: Setup, step: int, chosen: Sequence[int], weight_N: np.ndarray | None = None) -> list[int]:
    """Indices of the problems that may be drawn in place of a step's own, in order; none where none may.

    Args:
      setup, step, weight_N: as for `choose_problems`.
      chosen: what that gave.
    """
    learner, mixture = setup.config.learner, setup.mixture
    if learner.zero_signal != "resample":
        return []
    size, entropy = learner.resample_rounds * setup.config.problems, (setup.config.seed, address.ORDER)
    return mixing.choose_further(mixture.counts, mixture.weights, size, entropy, step, chosen, weight_N)


def find_sets(setup: Setup, indices: Sequence[int]) -> list[int]:
    """Which set of the mixture each of these training problems is from."""
    return [mixing.find_set(setup.train.problems[index]) for index in indices]


def choose_slots(setup: Setup, problem_set: ProblemSet, indices: Sequence[int]) -> int:
    """Slots of a frame for these questions: the shortest of the lengths that the config has compiled.

    Args:
      setup: of the run.
      problem_set: training or held-out problems.
      indices: of those asked for, in the set.
    """
    needed = max(len(problem_set.tokens[index]) for index in indices)
    return context.choose_length(setup.config.protocol.question_tokens, needed, setup.config.shapes.lengths)


def make_questions(
    setup: Setup, problem_set: ProblemSet, indices: Sequence[int], slots: int | None = None
) -> tuple[Frame, jax.Array]:
    """What a tree sampler is given of problems.

    Args:
      setup: of the run.
      problem_set: training or held-out problems.
      indices: of the problems asked for, in the set.
      slots: of the frame; None takes protocol.question_tokens.

    Returns:
      The questions' frame [P, S], and the problems' own indices [P], by which their draws are addressed.
    """
    rows = [problem_set.tokens[index] for index in indices]
    frame = context.make_frame(rows, slots or setup.config.protocol.question_tokens)
    problem_P: Any = np.asarray([problem_set.problems[index].index for index in indices], np.int32)
    return sharding.shard_problems(setup.mesh, (frame, problem_P))


def decode_turns(setup: Setup, rollout: Rollout) -> list[list[str]]:
    """Of every message the text that others read.

    Args:
      setup: whose tokenizer wrote them.
      rollout: of a tree sampler.

    Returns:
      A list a turn, in path order.
    """
    return [decode_messages(setup.tokenizer, messages) for messages in rollout.turns]


def decode_whole(tokenizer: Tokenizer, messages: Messages) -> list[str]:
    """The text of each message, of one that others read in part too; its stop token is left out."""
    tokens, content, sampled = map(np.asarray, (messages.tokens_NT, messages.content_NT, messages.sampled_NT))
    # What was given, as the null message is, was not sampled.
    whole = content | (sampled & ~np.isin(tokens, tokenizer.stop_tokens))
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, whole, strict=True)]


def write_turns(setup: Setup, turns: Sequence[Messages]) -> list[Written]:
    """The messages of all turns with their texts, and with the visible part of those that are read in part."""
    written = []
    for plan, messages in zip(setup.plans, turns, strict=True):
        visible = decode_messages(setup.tokenizer, messages) if plan.is_read_in_part else None
        written.append(Written(messages, decode_whole(setup.tokenizer, messages), visible))
    return written


def encode_null(setup: Setup) -> tuple[int, ...]:
    """Tokens of the message that stands for one taken out. Raises ConfigError where a turn has no room for it."""
    text = setup.config.credit.null_message
    room = min(plan.visible_tokens or plan.max_tokens for plan in setup.plans)
    tokens = tuple(setup.tokenizer.encode_text(text))
    if len(tokens) > room:
        raise config_lib.ConfigError(
            f"credit.null_message: expected at most {room} tokens, as the shortest turn may write, got {len(tokens)}"
        )
    return tokens


def list_words(config: config_lib.RunConfig, task: Task) -> list[str] | None:
    """The words of the task and of the prompts, in a fixed order, where the model's vocabulary is made of them."""
    if config.model.kind != "random" or task.vocabulary is None:
        return None
    words = list(task.vocabulary)
    for answering in open_turns(config, task, None).environments:
        words += answering.vocabulary
    for turn in config.protocol.turns:
        slots = {name: " " for name in config_lib.slots_of(turn)}
        words += turn.system.format(**slots).split() + turn.user.format(**slots).split()
        words += " ".join(protocol_lib.list_markers(turn.visible)).split()
    return list(dict.fromkeys(words))


def _check_meshes(
    config: config_lib.RunConfig,
    spec: DecoderSpec,
    mesh: sharding.Mesh | None,
    rollout_mesh: sharding.Mesh | None,
    is_training: bool = True,
) -> None:
    """Check that a model can be cut as they ask, and that whatever problems are taken together in training is as many
    on every device. Raises UserError with the numbers.
    """
    for each in (mesh, rollout_mesh):
        sharding.check_spec(each, spec)
    if not is_training:
        return
    minibatch, imitation = config.problems // config.learner.minibatches, config.imitation
    parts, drawing = sharding.count_parts(mesh), sharding.count_parts(rollout_mesh or mesh)
    counts = (
        ("problems", config.problems, parts),
        ("rollout_problems", config.call_problems, drawing),
        ("learner.minibatches", minibatch, parts),
        ("learner.micro_problems", config.learner.micro_problems or minibatch, parts),
        ("imitation.problems", imitation.problems if imitation else parts, parts),
    )
    for field, count, parts in counts:
        if count % parts:
            of = " of so many" if field == "learner.minibatches" else ""
            raise config_lib.ConfigError(
                f"{field}: expected problems{of} that data x fsdp = {parts} parts of the mesh divide, got {count}"
            )
