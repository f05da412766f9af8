"""The configuration of a study: what is compared on which enumerable game, and how it is measured.

Strict, frozen and typed like a run's config, and read with the same sentences. One section a kind of study; what the
kinds share is in sections.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from c3jax.config import file as config_file
from c3jax.config.checks import check_loss
from c3jax.config.fields import Field, list_kinds
from c3jax.config.run import PolicyLoss, RunConfig
from c3jax.credit.methods import find_method
from c3jax.credit.pairing import needs_critic
from c3jax.lab import sections
from c3jax.lab.sections import AtLeastTwo, Estimator, Game, describe_estimator
from c3jax.schema import ConfigError, Count, NonNegativeFloat, Positive, PositiveFloat, Section, Seed, expect

EstimatorText = Annotated[
    Estimator, pydantic.PlainValidator(sections.parse_estimator), pydantic.PlainSerializer(describe_estimator)
]
Estimators = Annotated[tuple[EstimatorText, ...], pydantic.Field(min_length=1)]

# --------------------------------------------------------------------------------------------------------------------
# Studies


class Case(Section):
    """One game, and the estimators that are compared on it."""

    name: Annotated[str, pydantic.Field(min_length=1)]
    """What tables and figures call it."""
    game: Game = pydantic.Field(discriminator="kind")
    """The game."""
    estimators: Estimators
    """Method and sizes, as tables print them: `c3 2x4`, `rloo 8 group`, `shrunk auto 8 calls`. In a study of training
    runs each is compared with the first, in a bench the first one's costs are the budget of all."""


class CasesStudy(Section):
    """What studies on games have."""

    seed: Seed
    """Every draw of the study is addressed from this."""
    cases: Annotated[tuple[Case, ...], pydantic.Field(min_length=1)]
    """The games and what is compared on each."""


class SweepStudy(Section):
    """What studies of whole training runs have, many at a time in one compiled program."""

    seeds: AtLeastTwo
    """Runs of each estimator and learning rate, paired over estimators."""
    learning_rates: Annotated[tuple[PositiveFloat, ...], pydantic.Field(min_length=1)]
    """The policy's learning rates, of a schedule the peak, each run with every seed."""
    memory_gb: PositiveFloat = 4.0
    """What one compiled program may take of a device's memory, in 10^9 bytes; more runs than fit are run in chunks."""


class LearningStudy(CasesStudy, SweepStudy):
    """Training runs on games."""

    kind: Literal["learning"]
    updates: Positive
    """Updates a run."""
    every: Positive
    """Updates between measurements; divides updates."""
    problems: Positive
    """Problems an update."""
    policy: Literal["tabular", "mlp"]
    """What is trained, a critic too: free logits for each problem, context and message, for problems that come back, or
    a network a turn, of the problem's features and the messages that it reads."""
    policy_scale: NonNegativeFloat = 0.0
    """Standard deviation of the first logits of a table; 0 is uniform."""
    policy_width: Positive = 32
    """Hidden units of a network."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """How policy and critic are updated: Optax's transformation."""
    critic_learning_rate: PositiveFloat = 0.1
    """The critic's."""
    episodes: Count = 0
    """Episodes a problem that a measurement samples, the same draws every time; 0: the exact expected return."""
    losses: Annotated[tuple[PolicyLoss, ...], pydantic.Field(min_length=1)] = (PolicyLoss(),)
    """Policy losses, each run with every estimator and learning rate; the first estimator's first is compared with."""
    epochs: Positive = 1
    """Passes over an update's sample; a critic takes one step whatever it is."""
    minibatches: Positive = 1
    """Optimiser steps a pass; each takes whole problems."""
    writing: Literal["word", "unary"] = "word"
    """How messages are tokens to the loss: one each, or message m as m words and a stop, so that lengths differ."""


class BenchStudy(CasesStudy):
    """Estimators against the exact truth, under one policy that stands still."""

    kind: Literal["bench"]
    problems: AtLeastTwo
    """Problems of each game, over which the intervals are."""
    samples: Positive
    """Draws of each estimator on each problem, in all batches together."""
    batches: Annotated[int, pydantic.Field(ge=3)] = 16
    """Independent batches, by which sampling noise is told from bias."""
    policy_scale: NonNegativeFloat = 1.0
    """Standard deviation of the common policy's logits."""
    pilot_steps: Positive = 16
    """Earlier draws of a tree of every problem, for what is chosen by variance components."""
    ours: tuple[EstimatorText, ...] = ()
    """Estimators that are compared with each rival of their game."""
    rivals: tuple[EstimatorText, ...] = ()
    """What they are compared with."""


class TextStudy(SweepStudy):
    """Training runs of a small language model on the dial's problems."""

    kind: Literal["text"]
    seed: Seed
    """The first seed, the others follow it; a run of a seed is the run that `c3jax train` makes with it."""
    estimators: Estimators
    """The estimators, of trees or episodes; each is compared with the first."""
    run: RunConfig
    """The run; seed, estimator and learning rate are those above. In a file, `base` names the YAML of a run, beside the
    study's, that holds all that is not given here."""


StudyConfig = LearningStudy | BenchStudy | TextStudy


class Kind(NamedTuple):
    """A kind of study: its section, and the check across its fields."""

    section: type[StudyConfig]
    check: Callable[[Any], None]


# --------------------------------------------------------------------------------------------------------------------
# Files


# Fields that were renamed, as patterns of their paths, and what they are now.
_RENAMED = {
    r"policy\..*": "policy, policy_scale and policy_width",
    r"optimiser\..*": "optimiser, learning_rates and critic_learning_rate",
    r"evaluation\..*": "episodes, 0 for exact evaluation",
    r"gae\..*": "discount and decay of an estimator, as in mappo 8, decay 0.5",
    r"compare_alone": "python -m benchmarks sweep",
    r"cases\.\d+\.game\.place": "mates_speak",
    r"cases\.\d+\.game\.sees\..*": "reads",
    r"cases\.\d+\.game\.heldout": "problems",
    r"(cases\.\d+\.)?estimators\.\d+\..*": "method and sizes in one line, as in c3 2x4",
}


def load_study(path: str | Path, overrides: dict[str, Any] | None = None) -> StudyConfig:
    """Read a study's YAML and check it.

    Args:
      path: of the file.
      overrides: values by their fields' dotted paths, which replace the file's.

    Raises:
      ConfigError: it cannot be read, is that of a run, or has a field that is not as it should be.
    """
    tree = config_file.read_tree(path, overrides)
    if "task" in tree and "kind" not in tree:
        raise ConfigError(f"config {path}: expected that of a study, got that of a run (c3jax train {path})")
    run = tree.get("run")
    if isinstance(run, dict) and "base" in run:
        base = run.pop("base")
        expect(isinstance(base, str), "run.base", "the path of a run's YAML", repr(base))
        tree["run"] = config_file.read_tree(
            config_file.find_config(path).parent / base, dict(_list_leaves(run, (dict,)))
        )
    return parse_study(tree)


def make_loader(config: StudyConfig) -> Callable[[Path], StudyConfig]:
    """How to read a study that may be this one: fields that change no result are as here."""
    here = config.model_dump(include={"memory_gb"})

    def load(path: Path) -> StudyConfig:
        there = load_study(path)
        return there.model_copy(update=here) if there.kind == config.kind else there

    return load


def parse_study(tree: dict[str, Any]) -> StudyConfig:
    """Check a study given as plain mappings and lists. Raises ConfigError, which names what a renamed field is now."""
    name = tree.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        raise ConfigError(f"kind: expected one of {', '.join(KINDS)}, got {'nothing' if name is None else repr(name)}")
    for path, _ in _list_leaves(tree, (dict, list)):
        for pattern, now in _RENAMED.items():
            expect(re.fullmatch(pattern, path) is None, path, f"{now} instead", "the old name")
    config = config_file.parse_section(tree, KINDS[name].section)
    KINDS[name].check(config)
    return config


def _list_leaves(tree: Any, within: tuple[type, ...], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What stands within nested mappings (and lists), by dotted paths: {"learner": {"epochs": 2}} as learner.epochs."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, within):
            yield from _list_leaves(value, within, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def list_study_fields() -> list[Field]:
    """Every field of every kind of study, in order."""
    return list_kinds([kind.section for kind in KINDS.values()], "", "What the study does.")


# --------------------------------------------------------------------------------------------------------------------
# Checks, each of which raises ConfigError


def check_learning(config: LearningStudy) -> None:
    """Check a study of training runs across its fields."""
    expect(config.updates % config.every == 0, "every", f"a divisor of updates ({config.updates})", config.every)
    _check_rates(config)
    is_even = config.problems % config.minibatches == 0
    expect(is_even, "minibatches", f"a divisor of problems ({config.problems})", config.minibatches)
    for number, loss in enumerate(config.losses):
        check_loss(loss, f"losses.{number}")
        text = sections.describe_loss(loss)
        expect(loss not in config.losses[:number], f"losses.{number}", "each once", f"{text} twice")
    purpose = "a tabular policy" if config.policy == "tabular" else "" if config.episodes else "exact evaluation"
    _check_cases(config, purpose, "untrained", "discount", "decay", "mean")
    for number, case in enumerate(config.cases):
        path, is_fresh, most = f"cases.{number}", case.game.kind == "fresh", case.game.problems
        is_known = config.policy == "mlp" or not is_fresh
        expect(is_known, "policy", f"mlp for {path}, whose problems never come back", repr(config.policy))
        is_small = is_fresh or config.problems <= most
        expect(is_small, "problems", f"at most {most} ({path}.game.problems)", config.problems)
        for row, estimator in enumerate(case.estimators):
            is_blind = find_method(estimator.method).critic in ("none", "value")
            text = f"{estimator.method!r}, whose critic judges messages"
            expect(is_blind, f"{path}.estimators.{row}", "a method with no critic or one of contexts", text)


def check_bench(config: BenchStudy) -> None:
    """Check a bench of estimators across its fields."""
    is_even = config.samples % config.batches == 0
    expect(is_even, "samples", f"a multiple of batches ({config.batches})", config.samples)
    _check_cases(config, "the exact truth", "auto", "error", "decay", "share", "mean")
    known = {estimator for case in config.cases for estimator in case.estimators}
    for field, chosen in (("ours", config.ours), ("rivals", config.rivals)):
        for number, estimator in enumerate(chosen):
            text = repr(describe_estimator(estimator))
            expect(estimator in known, f"{field}.{number}", "an estimator of a case", text)


def _check_rates(config: SweepStudy) -> None:
    rates = config.learning_rates
    expect(len(set(rates)) == len(rates), "learning_rates", "different ones", list(rates))


def _check_cases(config: CasesStudy, purpose: str, *extras: str) -> None:
    for number, case in enumerate(config.cases):
        path, earlier = f"cases.{number}", [before.name for before in config.cases[:number]]
        expect(case.name not in earlier, f"{path}.name", "a name no other case has", repr(case.name))
        sections.check_game(f"{path}.game", case.game, purpose)
        team = sections.list_trained(case.game), sections.list_tokens(case.game)
        sections.check_estimators(f"{path}.estimators", case.estimators, *team, *extras)


def check_text(config: TextStudy) -> None:
    """Check a study of language models' training runs across its fields."""
    task, policy, turns = config.run.task.kind, config.run.policy.kind, config.run.protocol.turns
    expect(task == "arithmetic", "run.task.kind", "arithmetic, whose answers a device can read", repr(task))
    expect(policy == "shared", "run.policy.kind", "shared (one network is warmed up for all runs)", repr(policy))
    signal, has_none = config.run.learner.zero_signal, config.run.curriculum is None
    expect(signal != "resample", "run.learner.zero_signal", "keep or skip (problems are chosen before)", repr(signal))
    expect(has_none, "run.curriculum", "none (problems are chosen before)", "a section")
    _check_rates(config)
    for number, estimator in enumerate(config.estimators):
        is_tree, text = estimator.plan.kind in ("tree", "flat"), repr(describe_estimator(estimator))
        expect(is_tree, f"estimators.{number}", "a method and sizes of trees or episodes", text)
    sections.check_estimators("estimators", config.estimators, [turn.trained for turn in turns], (), "untrained")
    for estimator in config.estimators:
        run = make_run_config(config.run, estimator, config.learning_rates[0], config.seed + config.seeds - 1)
        try:
            config_file.parse_config(run.model_dump(mode="json"))
        except ConfigError as error:
            raise ConfigError(f"run.{error}") from None


def make_run_config(run: RunConfig, estimator: Estimator, learning_rate: float, seed: int) -> RunConfig:
    """The config by which `c3jax train` makes one run of a text study.

    Args:
      run: the study's.
      estimator: gives method, sizes, scope and what is trained.
      learning_rate: the policy's, of a schedule the peak.
      seed: of the run.
    """
    old, credit = run.protocol.turns, run.credit
    trained = sections.choose_trained([turn.trained for turn in old], estimator)
    turns = tuple(turn.model_copy(update={"trained": on}) for turn, on in zip(old, trained, strict=True))
    fan_out = sections.make_plan(estimator.plan, len(turns)).fan_out
    new = {"method": estimator.method, "fan_out": fan_out, "budget": math.prod(fan_out)}
    new |= {"normalise": estimator.normalise, "critic": credit.critic if needs_critic(estimator.method) else None}
    changes = {
        "seed": seed,
        "protocol": run.protocol.model_copy(update={"turns": turns}),
        "credit": credit.model_copy(update=new),
        "learner": run.learner.model_copy(update={"learning_rate": learning_rate}),
    }
    return run.model_copy(update=changes)


KINDS: dict[str, Kind] = {
    "learning": Kind(LearningStudy, check_learning),
    "bench": Kind(BenchStudy, check_bench),
    "text": Kind(TextStudy, check_text),
}
