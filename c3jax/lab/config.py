"""The configuration of a study: what is compared on which enumerable game, and how it is measured.

Strict, frozen and typed like a run's config, and read with the same sentences. One section a kind of study; what the
kinds share is in study_sections.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from c3jax.config import file as config_file
from c3jax.credit.methods import METHODS, check_auto, check_normalise
from c3jax.lab.sections import (
    ArmsPlan,
    AtLeastTwo,
    AuxiliaryPlan,
    Estimator,
    FlatPlan,
    FreshGame,
    Game,
    ReplayPlan,
    TextStudy,
    TreePlan,
    check_enumerable,
    check_estimator,
    check_game,
    check_text_estimators,
    describe_estimator,
    describe_size,
    list_changes,
    list_estimator_trained,
    list_messages,
    list_tokens,
    list_trained,
    make_run_config,
)
from c3jax.schema import ConfigError, Count, NonNegativeFloat, Positive, PositiveFloat, Section, Seed, Share

# --------------------------------------------------------------------------------------------------------------------
# Studies


class TabularPolicy(Section):
    """Free logits for each problem, context and message; for problems that come back."""

    kind: Literal["tabular"]
    scale: NonNegativeFloat = 0.0
    """Standard deviation of the first logits; 0 is uniform."""


class MlpPolicy(Section):
    """A network a turn, of the problem's features and the messages that it reads."""

    kind: Literal["mlp"]
    width: Positive = 32
    """Hidden units."""


class Optimiser(Section):
    """How policy and critic are updated; every learning rate is a hyper-parameter, run with every seed."""

    kind: Literal["adam", "sgd"] = "adam"
    """Optax's transformation."""
    learning_rates: Annotated[tuple[PositiveFloat, ...], pydantic.Field(min_length=1)]
    """The policy's learning rates."""
    critic_learning_rate: PositiveFloat = 0.1
    """The critic's."""


class Gae(Section):
    """Advantages from a critic, for the methods that have one."""

    discount: Share = 1.0
    """Weight of the next turn's value."""
    decay: Share = 1.0
    """Weight of the next turn's advantage."""


class ExactEvaluation(Section):
    """The expected return by enumeration of all transcripts."""

    kind: Literal["exact"]


class SampledEvaluation(Section):
    """The mean return of sampled episodes, the same draws at every measurement."""

    kind: Literal["sampled"]
    episodes: Positive = 8
    """Episodes a problem."""


class Case(Section):
    """One game, and the estimators that are compared on it."""

    name: Annotated[str, pydantic.Field(min_length=1)]
    """What tables and figures call it."""
    game: Game = pydantic.Field(discriminator="kind")
    """The game."""
    estimators: Annotated[tuple[Estimator, ...], pydantic.Field(min_length=1)]
    """The estimators; each is compared with the first, at the same learning rate."""


class LearningStudy(Section):
    """Whole training runs, many at a time in one compiled program."""

    kind: Literal["learning"]
    seed: Seed
    """Every draw of the study is addressed from this."""
    seeds: AtLeastTwo
    """Runs of each estimator and learning rate, paired over estimators."""
    updates: Positive
    """Updates a run."""
    every: Positive
    """Updates between measurements; divides updates."""
    problems: Positive
    """Problems an update."""
    cases: Annotated[tuple[Case, ...], pydantic.Field(min_length=1)]
    """The games and what is compared on each."""
    policy: TabularPolicy | MlpPolicy = pydantic.Field(discriminator="kind")
    """What is trained; a critic is made of the same."""
    optimiser: Optimiser
    """How it is updated."""
    gae: Gae = Gae()
    """Advantages from a critic."""
    evaluation: ExactEvaluation | SampledEvaluation = pydantic.Field(discriminator="kind")
    """How well a policy plays."""
    memory_gb: PositiveFloat = 4.0
    """Memory that one compiled program may take, in 10^9 bytes; runs that do not fit together are run in chunks."""
    compare_alone: Count = 0
    """Runs that are made once more alone, to measure what running together saves; 0 measures nothing."""


class AutoPlan(Section):
    """A tree whose fan-out is chosen from a pilot's variance components, for the least noise within a budget."""

    kind: Literal["auto"]
    budget: Positive
    """What a problem may cost."""
    unit: Literal["calls", "messages", "tokens"]
    """What is counted."""
    criterion: Literal["gradient", "credit"] = "gradient"
    """Least noise of the gradient, or least error of the credit."""


class BenchEstimator(Section):
    """A credit method on a sampling plan, and its critic."""

    method: str
    """The estimator: a row of c3jax.credit.methods.METHODS."""
    plan: TreePlan | FlatPlan | ReplayPlan | AuxiliaryPlan | ArmsPlan | AutoPlan = pydantic.Field(discriminator="kind")
    """What is drawn and scored for a problem."""
    normalise: Literal["none", "group", "turn", "batch"] = "none"
    """Scope of the standard deviation that advantages are divided by."""
    critic_error: NonNegativeFloat = 0.0
    """Standard deviation of the critic's error in every context (and message), in units of return; 0 is exact."""
    decay: Share = 1.0
    """mappo: weight of the next turn's advantage."""
    share: Share = 1.0
    """value_assisted: share of the baseline that the critic gives."""
    compare: Literal["none", "ours", "rival"] = "none"
    """Each of ours is compared with each rival of its game."""


class BenchCase(Section):
    """One game, and the estimators that are measured on it; the first one's costs are the budget of the others."""

    name: Annotated[str, pydantic.Field(min_length=1)]
    """What tables and figures call it."""
    game: Game = pydantic.Field(discriminator="kind")
    """The game; all its joint messages are enumerated."""
    estimators: Annotated[tuple[BenchEstimator, ...], pydantic.Field(min_length=1)]
    """The estimators."""


class BenchStudy(Section):
    """Estimators against the exact truth, under one policy that stands still."""

    kind: Literal["bench"]
    seed: Seed
    """Every draw of the study is addressed from this."""
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
    cases: Annotated[tuple[BenchCase, ...], pydantic.Field(min_length=1)]
    """The games and what is measured on each."""


StudyConfig = LearningStudy | BenchStudy | TextStudy


class Kind(NamedTuple):
    """A kind of study: its section, and the check across its fields."""

    section: type[StudyConfig]
    check: Callable[[Any], None]
    free: tuple[str, ...] = ()  # fields that change no result, and may differ when a study is gone on with


def load_study(path: str | Path, overrides: dict[str, Any] | None = None) -> StudyConfig:
    """Read a study's YAML, apply dotted overrides and check it. Raises ConfigError."""
    tree = config_file.read_tree(path, overrides)
    run = tree.get("run")
    if isinstance(run, dict) and "base" in run:
        tree["run"] = _read_run(Path(path).parent, run)
    return parse_study(tree)


def _read_run(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The run of a text study: the base it names, with its own fields put over it."""
    if not isinstance(run["base"], str):
        raise ConfigError(f"run.base: expected the path of a run's YAML, got {run['base']!r}")
    return config_file.read_tree(folder / run["base"], list_changes({k: v for k, v in run.items() if k != "base"}))


def make_loader(config: StudyConfig) -> Callable[[Path], StudyConfig]:
    """How to read a study that may be this one: fields that change no result are as here."""
    here = config.model_dump(include=set(KINDS[config.kind].free))

    def load(path: Path) -> StudyConfig:
        there = load_study(path)
        return there.model_copy(update=here) if there.kind == config.kind else there

    return load


def parse_study(tree: dict[str, Any]) -> StudyConfig:
    """Check a study given as plain mappings and lists. Raises ConfigError with one sentence."""
    name = tree.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        raise ConfigError(f"kind: expected one of {', '.join(KINDS)}, got {'nothing' if name is None else repr(name)}")
    config = config_file.parse_section(tree, KINDS[name].section)
    KINDS[name].check(config)
    return config


def list_study_fields() -> list[config_file.Field]:
    """Every field of every kind of study, in order."""
    return config_file.list_kinds([kind.section for kind in KINDS.values()], "", "What the study does.")


def describe_bench_estimator(estimator: BenchEstimator) -> str:
    """What tables call an estimator: `c3 2x4`, `shrunk auto 8 calls`, `mappo 8, error 0.1`."""
    plan = estimator.plan
    if isinstance(plan, AutoPlan):
        size = f"auto {plan.budget} {plan.unit}" + ("" if plan.criterion == "gradient" else f", {plan.criterion}")
    else:
        size = describe_size(plan)
    extras = {"error": (estimator.critic_error, 0.0), "decay": (estimator.decay, 1.0), "share": (estimator.share, 1.0)}
    named = "".join(f", {name} {value:g}" for name, (value, usual) in extras.items() if value != usual)
    scope = "" if estimator.normalise == "none" else f" {estimator.normalise}"
    return f"{estimator.method} {size}{scope}{named}"


def check_learning(config: LearningStudy) -> None:
    """Check a study of training runs across its fields. Raises ConfigError."""
    if config.updates % config.every:
        raise ConfigError(f"every: expected a divisor of updates ({config.updates}), got {config.every}")
    if len(set(config.optimiser.learning_rates)) < len(config.optimiser.learning_rates):
        raise ConfigError(
            "optimiser.learning_rates: expected different ones, got"
            f" {', '.join(map(str, config.optimiser.learning_rates))}"
        )
    for place, case in enumerate(config.cases):
        path = f"cases.{place}"
        _check_case_name(path, case.name, [before.name for before in config.cases[:place]])
        check_game(f"{path}.game", case.game)
        if not isinstance(case.game, FreshGame) and config.problems > case.game.problems:
            raise ConfigError(
                f"problems: expected at most {case.game.problems} ({path}.game.problems), got {config.problems}"
            )
        if config.policy.kind == "tabular" and isinstance(case.game, FreshGame):
            raise ConfigError(f"policy.kind: expected mlp for {path}, whose problems never come back, got 'tabular'")
        if config.policy.kind == "tabular":
            check_enumerable(f"{path}.game", case.game, "a tabular policy")
        if config.evaluation.kind == "exact":
            check_enumerable(f"{path}.game", case.game, "exact evaluation")
        labels: list[str] = []
        for number, estimator in enumerate(case.estimators):
            _check_learner_estimator(f"{path}.estimators.{number}", case.game, estimator)
            _add_label(f"{path}.estimators.{number}", labels, describe_estimator(estimator))


def _check_case_name(path: str, name: str, earlier: list[str]) -> None:
    if name in earlier:
        raise ConfigError(f"{path}.name: expected a name no other case has, got {name!r}")


def _add_label(path: str, labels: list[str], label: str) -> None:
    """Take a case's estimator up among those before it, from which tables must be able to tell it."""
    if label in labels:
        raise ConfigError(f"{path}: expected each once, got {label} twice")
    labels.append(label)


def _check_learner_estimator(path: str, game: Game, estimator: Estimator) -> None:
    turns = len(list_messages(game))
    for turn in estimator.untrained:
        if turn >= turns:
            raise ConfigError(f"{path}.untrained: expected turns below {turns}, got {turn}")
    trained = list_estimator_trained(game, estimator)
    check_estimator(path, estimator.method, estimator.plan, estimator.normalise, trained)
    if METHODS[estimator.method].critic not in ("none", "value"):
        raise ConfigError(
            f"{path}.method: expected a method with no critic or one of contexts, got {estimator.method!r}, whose"
            " critic judges messages"
        )


def check_bench(config: BenchStudy) -> None:
    """Check a bench of estimators across its fields. Raises ConfigError."""
    if config.samples % config.batches:
        raise ConfigError(f"samples: expected a multiple of batches ({config.batches}), got {config.samples}")
    for place, case in enumerate(config.cases):
        path = f"cases.{place}"
        _check_case_name(path, case.name, [before.name for before in config.cases[:place]])
        check_game(f"{path}.game", case.game)
        check_enumerable(f"{path}.game", case.game, "the exact truth")
        labels: list[str] = []
        for number, estimator in enumerate(case.estimators):
            _check_bench_estimator(f"{path}.estimators.{number}", case.game, estimator)
            _add_label(f"{path}.estimators.{number}", labels, describe_bench_estimator(estimator))


def _check_bench_estimator(path: str, game: Game, estimator: BenchEstimator) -> None:
    plan, trained = estimator.plan, list_trained(game)
    if not isinstance(plan, AutoPlan):
        check_estimator(path, estimator.method, plan, estimator.normalise, trained)
        return
    if estimator.method not in METHODS:
        raise ConfigError(f"{path}.method: expected one of {', '.join(METHODS)}, got {estimator.method!r}")
    try:
        check_auto(estimator.method, trained, plan.budget, plan.unit, list_tokens(game))
    except ValueError as error:
        raise ConfigError(f"{path}.plan: {error}") from None
    try:
        check_normalise(estimator.method, estimator.normalise)
    except ValueError as error:
        raise ConfigError(f"{path}.normalise: {error}") from None


def check_text(config: TextStudy) -> None:
    """Check a study of language models' training runs across its fields. Raises ConfigError."""
    check_text_estimators(config)
    if config.run.policy.kind != "shared":
        raise ConfigError(
            f"run.policy.kind: expected shared (one network is warmed up for all runs), got {config.run.policy.kind!r}"
        )
    last = config.seed + config.seeds - 1
    for estimator in config.estimators:
        run = make_run_config(config.run, estimator, config.learning_rates[0], last)
        try:
            config_file.parse_config(run.model_dump(mode="json"))
        except ConfigError as error:
            raise ConfigError(f"run.{error}") from None


KINDS: dict[str, Kind] = {
    "learning": Kind(LearningStudy, check_learning, free=("memory_gb", "compare_alone")),
    "bench": Kind(BenchStudy, check_bench),
    "text": Kind(TextStudy, check_text, free=("memory_gb",)),
}
