"""The parts that studies share: games, sampling plans, estimators, and the checks across their fields.

Strict, frozen and typed like a run's config, and read with the same sentences.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic

from c3jax.config.run import RunConfig
from c3jax.credit import plans
from c3jax.credit.methods import METHODS, Normalise, check_normalise, check_pairing, needs_critic
from c3jax.schema import ConfigError, Count, NonNegativeFloat, Positive, PositiveFloat, Section, Seed

MAX_TRANSCRIPTS = 65_536  # joint messages that the oracle enumerates for a problem

AtLeastTwo = Annotated[int, pydantic.Field(ge=2)]

# --------------------------------------------------------------------------------------------------------------------
# Games


class GameSection(Section):
    """What every game has."""

    tokens: tuple[Positive, ...] = ()
    """Tokens a message of each turn takes, for the ledger; empty for one token each."""


class TeamSection(GameSection):
    """What games with a logistic link have. Standard deviations of effects are in logits."""

    messages: AtLeastTwo = 4
    """Messages a turn can choose from."""
    effect: NonNegativeFloat = 1.0
    """Standard deviation of a message's own effect."""
    coupling: NonNegativeFloat = 1.0
    """Standard deviation of the joint effect of two messages: how much a turn's values depend on an earlier one."""
    spread: NonNegativeFloat = 0.5
    """Standard deviation of the problems' own difficulty."""
    noise: Literal["none", "bernoulli", "gaussian"] = "bernoulli"
    """The evaluator: exact, a coin with the mean as its chance, or the mean with gaussian noise of sigma."""
    sigma: NonNegativeFloat = 0.0
    """Standard deviation of the gaussian evaluator."""


class ChainGame(TeamSection):
    """Turns in a row."""

    kind: Literal["chain"]
    turns: AtLeastTwo = 2
    """Turns."""
    reads: Literal["all", "previous", "none"] = "all"
    """Which earlier messages a turn reads."""
    problems: Positive = 32
    """Problems, a set drawn for each seed, that come back."""


class GraphGame(TeamSection):
    """Turns that each read some of the messages before them."""

    kind: Literal["graph"]
    sees: Annotated[tuple[tuple[Count, ...], ...], pydantic.Field(min_length=2)]
    """For each turn, the earlier turns whose messages it reads."""
    problems: Positive = 32
    """Problems, a set drawn for each seed, that come back."""


class TeamMatesGame(TeamSection):
    """A chain with further turns that nobody trains or reads and that speak at random."""

    kind: Literal["team_mates"]
    turns: AtLeastTwo = 2
    """Trained turns."""
    mates: Positive = 2
    """Further turns, untrained."""
    mate_effect: NonNegativeFloat = 1.0
    """Standard deviation of the effect of a team-mate's message."""
    place: Literal["first", "last"] = "last"
    """When the team-mates speak."""
    problems: Positive = 32
    """Problems, a set drawn for each seed, that come back."""


class BanditGame(GameSection):
    """The sequential bandit: additive effects, interactions of pairs, gaussian noise and no link."""

    kind: Literal["bandit"]
    turns: Annotated[int, pydantic.Field(ge=2, le=16)] = 4
    """Turns; each reads all before it."""
    messages: AtLeastTwo = 4
    """Messages a turn can choose from."""
    effect: NonNegativeFloat = 1.0
    """Standard deviation of a message's own effect, in units of return."""
    interaction: NonNegativeFloat = 0.5
    """Standard deviation of the joint effect of two messages, in units of return."""
    sigma: NonNegativeFloat = 0.5
    """Standard deviation of the evaluator's noise, in units of return."""
    problems: Positive = 32
    """Problems, a set drawn for each seed, that come back."""


class FreshGame(TeamSection):
    """A chain whose every problem is new: effects are a fixed random function of what the policy sees of it."""

    kind: Literal["fresh"]
    turns: AtLeastTwo = 2
    """Turns; each reads all before it."""
    features: Positive = 8
    """Numbers that describe a problem."""
    heldout: Positive = 128
    """Problems of the fixed set that is measured on."""


Game = ChainGame | GraphGame | TeamMatesGame | BanditGame | FreshGame


def list_messages(game: Game) -> tuple[int, ...]:
    """Messages that each turn can choose from, in the order the turns speak."""
    if isinstance(game, GraphGame):
        return (game.messages,) * len(game.sees)
    return (game.messages,) * (game.turns + (game.mates if isinstance(game, TeamMatesGame) else 0))


def list_trained(game: Game) -> tuple[bool, ...]:
    """Whether each turn of the game is trained."""
    turns = len(list_messages(game))
    if not isinstance(game, TeamMatesGame):
        return (True,) * turns
    mates = (False,) * game.mates
    return mates + (True,) * game.turns if game.place == "first" else (True,) * game.turns + mates


def list_tokens(game: Game) -> tuple[float, ...]:
    """Tokens of a message of each turn."""
    return tuple(map(float, game.tokens)) or (1.0,) * len(list_messages(game))


# --------------------------------------------------------------------------------------------------------------------
# Estimators: a method and its sampling plan


class TreePlan(Section):
    """A nested tree."""

    kind: Literal["tree"]
    fan_out: Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]
    """Alternatives at each context, a number per turn."""


class FlatPlan(Section):
    """Independent episodes."""

    kind: Literal["flat"]
    episodes: Positive
    """Episodes a problem."""


class ReplayPlan(Section):
    """Alternatives along one reference transcript (replay), which may go on with the best of them (best_branch)."""

    kind: Literal["replay", "best_branch"]
    counts: Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]
    """Continuations of each alternative of a turn."""


class AuxiliaryPlan(Section):
    """Episodes, and fresh continuations of every context they reached."""

    kind: Literal["auxiliary"]
    episodes: Positive
    """Episodes a problem."""
    repeats: Positive
    """Continuations of a context."""


class ArmsPlan(Section):
    """Episodes, each scored again with messages replaced by the null message."""

    kind: Literal["removal", "masked", "coalition"]
    episodes: Positive
    """Episodes a problem."""


PlanSection = TreePlan | FlatPlan | ReplayPlan | AuxiliaryPlan | ArmsPlan


class Estimator(Section):
    """A credit method on a sampling plan."""

    method: str
    """The estimator: a row of c3jax.credit.methods.METHODS."""
    plan: PlanSection = pydantic.Field(discriminator="kind")
    """What is drawn and scored for a problem."""
    normalise: Literal["none", "group", "turn", "batch"]
    """Scope of the standard deviation that advantages are divided by."""
    untrained: tuple[Count, ...] = ()
    """Turns, from 0, that this estimator leaves untrained beside the game's own."""


def make_plan(section: PlanSection, turns: int) -> plans.Plan:
    """The sampling plan of a section, for a game of so many turns."""
    if isinstance(section, TreePlan):
        return plans.make_tree(section.fan_out)
    if isinstance(section, FlatPlan):
        return plans.make_flat(section.episodes, turns)
    if isinstance(section, ReplayPlan):
        return plans.make_replay(section.counts, turns, continues_best=section.kind == "best_branch")
    if isinstance(section, AuxiliaryPlan):
        return plans.make_auxiliary(section.episodes, section.repeats, turns)
    return plans.make_arms(section.kind, section.episodes, turns)


def describe_estimator(estimator: Estimator) -> str:
    """What tables call an estimator: `c3 2x4`, `rloo 8`, `c3_replay 4+4`, `c3 1x8 group, turn 0 untrained`."""
    size = describe_size(estimator.plan)
    scope = "" if estimator.normalise == "none" else f" {estimator.normalise}"
    untrained = "".join(f", turn {turn} untrained" for turn in estimator.untrained)
    return f"{estimator.method} {size}{scope}{untrained}"


def describe_size(section: PlanSection) -> str:
    """The sizes of a plan: 2x4, 8, 4+4, 2+2."""
    if isinstance(section, TreePlan):
        return "x".join(map(str, section.fan_out))
    if isinstance(section, ReplayPlan):
        return "+".join(map(str, section.counts))
    return str(section.episodes) + (f"+{section.repeats}" if isinstance(section, AuxiliaryPlan) else "")


def list_estimator_trained(game: Game, estimator: Estimator) -> tuple[bool, ...]:
    """Whether each turn of the game is trained under this estimator."""
    return tuple(is_on and turn not in estimator.untrained for turn, is_on in enumerate(list_trained(game)))


# --------------------------------------------------------------------------------------------------------------------
# Runs of language models


class TextStudy(Section):
    """Whole training runs of a small language model on the dial's problems, many at a time in one compiled program."""

    kind: Literal["text"]
    seed: Seed
    """The first seed; a run of this seed is the run that `c3jax train` makes with it."""
    seeds: AtLeastTwo
    """Runs of each estimator and learning rate, with seeds one after another, paired over estimators."""
    estimators: Annotated[tuple[Estimator, ...], pydantic.Field(min_length=1)]
    """The estimators, on trees or flat plans; each is compared with the first."""
    learning_rates: Annotated[tuple[PositiveFloat, ...], pydantic.Field(min_length=1)]
    """The policy's peak learning rates, each run with every seed."""
    run: RunConfig
    """The run; seed, estimator and learning rate are those above. In a file, `base` names the YAML of a run, beside the
    study's, that holds all that is not said here."""
    memory_gb: PositiveFloat = 4.0
    """Memory that one compiled program may take, in 10^9 bytes; runs that do not fit together are run in chunks."""


def make_run_config(run: RunConfig, estimator: Estimator, learning_rate: float, seed: int) -> RunConfig:
    """The config by which `c3jax train` makes one run of a study."""
    turns = tuple(
        turn.model_copy(update={"trained": turn.trained and place not in estimator.untrained})
        for place, turn in enumerate(run.protocol.turns)
    )
    fan_out = make_plan(estimator.plan, len(turns)).fan_out
    credit = {
        "method": estimator.method,
        "fan_out": fan_out,
        "budget": math.prod(fan_out),
        "normalise": estimator.normalise,
        "critic": run.credit.critic if needs_critic(estimator.method) else None,
    }
    changes = {
        "seed": seed,
        "protocol": run.protocol.model_copy(update={"turns": turns}),
        "credit": run.credit.model_copy(update=credit),
        "learner": run.learner.model_copy(update={"learning_rate": learning_rate}),
    }
    return run.model_copy(update=changes)


def list_changes(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted overrides: {"learner": {"epochs": 2}} as {"learner.epochs": 2}."""
    changes: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        changes |= list_changes(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return changes


# --------------------------------------------------------------------------------------------------------------------
# Checks


def check_text_estimators(config: TextStudy) -> None:
    """Check that the runs' task, estimators and learning rates fit together. Raises ConfigError."""
    task, turns = config.run.task.kind, config.run.protocol.turns
    if task != "arithmetic":
        raise ConfigError(f"run.task.kind: expected arithmetic, whose answers a device can read, got {task!r}")
    if len(set(config.learning_rates)) < len(config.learning_rates):
        raise ConfigError(f"learning_rates: expected different ones, got {list(config.learning_rates)}")
    labels: list[str] = []
    for place, estimator in enumerate(config.estimators):
        path = f"estimators.{place}"
        if not isinstance(estimator.plan, TreePlan | FlatPlan):
            raise ConfigError(f"{path}.plan.kind: expected tree or flat, got {estimator.plan.kind!r}")
        for turn in estimator.untrained:
            if turn >= len(turns):
                raise ConfigError(f"{path}.untrained: expected turns below {len(turns)}, got {turn}")
        trained = tuple(turn.trained and number not in estimator.untrained for number, turn in enumerate(turns))
        check_estimator(path, estimator.method, estimator.plan, estimator.normalise, trained)
        labels.append(describe_estimator(estimator))
        if labels[-1] in labels[:-1]:
            raise ConfigError(f"{path}: expected each once, got {labels[-1]} twice")


def check_game(path: str, game: Game) -> None:
    """Check what one field of a game says against another. Raises ConfigError."""
    turns = len(list_messages(game))
    if game.tokens and len(game.tokens) != turns:
        raise ConfigError(f"{path}.tokens: expected {turns} numbers, one a turn, got {list(game.tokens)}")
    if isinstance(game, GraphGame):
        for turn, seen in enumerate(game.sees):
            if list(seen) != sorted({earlier for earlier in seen if earlier < turn}):
                raise ConfigError(
                    f"{path}.sees.{turn}: expected turns before turn {turn} in rising order, got {list(seen)}"
                )


def check_enumerable(path: str, game: Game, why: str) -> None:
    """Check that all joint messages of a game can be enumerated. Raises ConfigError, which says what for."""
    transcripts = math.prod(list_messages(game))
    if transcripts > MAX_TRANSCRIPTS:
        raise ConfigError(
            f"{path}: expected at most {MAX_TRANSCRIPTS} joint messages for {why}, got {transcripts} from"
            f" {len(list_messages(game))} turns"
        )


def check_estimator(path: str, method: str, plan: PlanSection, normalise: Normalise, trained: tuple[bool, ...]) -> None:
    """Check that a method on a plan can give credit to the trained turns of a game. Raises ConfigError."""
    turns = len(trained)
    if method not in METHODS:
        raise ConfigError(f"{path}.method: expected one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(plan, TreePlan) and len(plan.fan_out) != turns:
        raise ConfigError(f"{path}.plan.fan_out: expected {turns} numbers, one a turn, got {list(plan.fan_out)}")
    try:
        check_pairing(method, make_plan(plan, turns), trained)
    except ValueError as error:
        raise ConfigError(f"{path}.plan: {error}") from None
    try:
        check_normalise(method, normalise)
    except ValueError as error:
        raise ConfigError(f"{path}.normalise: {error}") from None
