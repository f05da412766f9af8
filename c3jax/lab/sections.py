"""What studies share: games, and estimators in the words in which tables print them.

Strict, frozen and typed like a run's config, and read with the same sentences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

import pydantic
from pydantic_core import PydanticCustomError

from c3jax.config.run import PolicyLoss
from c3jax.credit import plans, rows
from c3jax.credit.method import Normalise, Sampling
from c3jax.credit.methods import METHODS, find_method
from c3jax.credit.pairing import check_auto, check_normalise, check_pairing
from c3jax.schema import ConfigError, Count, NonNegativeFloat, Positive, Section, expect

MAX_TRANSCRIPTS = 65_536  # joint messages that the oracle enumerates for a problem

AtLeastTwo = Annotated[int, pydantic.Field(ge=2)]


# --------------------------------------------------------------------------------------------------------------------
# Games


class GameSection(Section):
    """What every game has."""

    tokens: tuple[Positive, ...] = ()
    """Tokens a message of each turn takes, for the ledger; empty for one token each."""
    messages: AtLeastTwo = 4
    """Messages a turn can choose from."""
    problems: Positive = 32
    """Problems, a set drawn for each seed, that come back; where none does (fresh), those that are measured on."""


class TeamGame(GameSection):
    """Turns in a row, and a logistic link. Standard deviations of effects are in logits."""

    kind: Literal["chain", "fresh"]
    """Whether problems come back, or every one is new: effects are then a fixed random function of its features."""
    turns: AtLeastTwo = 2
    """Trained turns."""
    reads: Literal["all", "previous", "none"] | tuple[tuple[Count, ...], ...] = "all"
    """Which earlier messages a turn reads, or for each turn the turns whose messages it reads."""
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
    mates: Count = 0
    """Team-mates: further turns that nobody trains or reads and that speak at random."""
    mate_effect: NonNegativeFloat = 1.0
    """Standard deviation of the effect of a team-mate's message."""
    mates_speak: Literal["first", "last"] = "last"
    """When the team-mates speak."""
    features: Positive = 8
    """Numbers that a network sees of a problem."""


class BanditGame(GameSection):
    """The sequential bandit: additive effects, interactions of pairs, gaussian noise and no link."""

    kind: Literal["bandit"]
    turns: Annotated[int, pydantic.Field(ge=2, le=16)] = 4
    """Turns; each reads all before it."""
    effect: NonNegativeFloat = 1.0
    """Standard deviation of a message's own effect, in units of return."""
    interaction: NonNegativeFloat = 0.5
    """Standard deviation of the joint effect of two messages, in units of return."""
    sigma: NonNegativeFloat = 0.5
    """Standard deviation of the evaluator's noise, in units of return."""


class AnswerGame(GameSection):
    """Turns in a row of which the last one answers: one of its messages is right and returns 1, any other 0."""

    kind: Literal["answer"]
    turns: AtLeastTwo = 2
    """Turns; each reads all before it."""


Game = TeamGame | BanditGame | AnswerGame


def list_trained(game: Game) -> tuple[bool, ...]:
    """Whether each turn of the game is trained, in the order the turns speak."""
    own, mates = (True,) * game.turns, (False,) * (game.mates if isinstance(game, TeamGame) else 0)
    return mates + own if isinstance(game, TeamGame) and game.mates_speak == "first" else own + mates


def list_messages(game: Game) -> tuple[int, ...]:
    """Messages that each turn can choose from."""
    return (game.messages,) * len(list_trained(game))


def list_tokens(game: Game) -> tuple[float, ...]:
    """Tokens of a message of each turn."""
    return tuple(map(float, game.tokens)) or (1.0,) * len(list_trained(game))


def count_costs(plan: plans.Plan, tokens: Sequence[float]) -> dict[str, float]:
    """What a problem's draw costs in evaluator calls, messages and tokens, of which each turn's message has so many."""
    generated = plans.count_generated(plan)
    drawn = sum(n * length for n, length in zip(generated, tokens, strict=True))
    return {"calls": float(plans.count_calls(plan)), "messages": float(sum(generated)), "tokens": float(drawn)}


def check_game(path: str, game: Game, purpose: str) -> None:
    """Check what one field of a game says against another. Raises ConfigError.

    Args:
      path: the game's.
      purpose: what all its joint messages are enumerated for; empty where they are not.
    """
    turns, transcripts = len(list_trained(game)), math.prod(list_messages(game))
    expect(len(game.tokens) in (0, turns), f"{path}.tokens", f"{turns} numbers, one a turn", list(game.tokens))
    if isinstance(game, TeamGame) and not isinstance(game.reads, str):
        expect(len(game.reads) == game.turns, f"{path}.reads", f"{game.turns} lists, one a turn", len(game.reads))
        for turn, seen in enumerate(game.reads):
            is_rising = list(seen) == sorted({earlier for earlier in seen if earlier < turn})
            expect(is_rising, f"{path}.reads.{turn}", f"turns before turn {turn} in rising order", list(seen))
    is_small, size = not purpose or transcripts <= MAX_TRANSCRIPTS, f"at most {MAX_TRANSCRIPTS} joint messages"
    expect(is_small, path, f"{size} for {purpose}", f"{transcripts} from {turns} turns")


# --------------------------------------------------------------------------------------------------------------------
# Estimators


class Sizes(NamedTuple):
    """What is drawn and scored for a problem, whatever the number of turns."""

    kind: Sampling
    numbers: tuple[int, ...]  # alternatives a turn; of a replay continuations of each alternative; else of credit.plans


class Auto(NamedTuple):
    """A tree whose fan-out is chosen from a pilot's variance components, for the least noise within a budget."""

    kind: Literal["auto"]
    budget: int  # what a problem may cost
    unit: plans.Unit
    criterion: Literal["gradient", "credit"]  # least noise of the gradient, or least error of the credit


class Estimator(NamedTuple):
    """A credit method on a sampling plan."""

    method: str  # a row of c3jax.credit.methods.METHODS, or the user's own as module:NAME
    plan: Sizes | Auto
    normalise: Normalise = "none"  # scope of the standard deviation that advantages are divided by
    untrained: tuple[int, ...] = ()  # turns, from 0, that are left untrained beside the game's own
    error: float = 0.0  # in units of return: a critic's in every context, its deviation; what a mean is too low by
    discount: float = 1.0  # mappo: weight of the next turn's value
    decay: float = 1.0  # mappo: weight of the next turn's advantage
    share: float = 1.0  # value_assisted: share of the baseline that the critic gives
    mean: float = 0.0  # share of the baseline that is the mean of earlier steps


_AMOUNTS = ("error", "discount", "decay", "share", "mean")
_COUNT, _AMOUNT = "[1-9][0-9]*", r"[0-9]*\.?[0-9]+(?:e[-+]?[0-9]{1,2})?"
_ESTIMATOR = re.compile(
    rf"(\S+) (?:(?P<sizes>{_COUNT}(?:[x+]{_COUNT})*)|auto (?P<budget>{_COUNT}) (?P<unit>calls|messages|tokens))"
    r"(?: (?P<normalise>group|turn|batch))?(?P<untrained>(?:, turn [0-9]+ untrained)*)(?P<credit>, credit)?"
    + "".join(f"(?:, {field} (?P<{field}>{_AMOUNT}))?" for field in _AMOUNTS)
)
_EXAMPLES = {"tree": "2x4", "flat": "8", "replay": "4+4", "best_branch": "4+4", "auxiliary": "2+2"}


def parse_estimator(text: object) -> Estimator:
    """Read an estimator as tables print it: `c3 2x4`, `rloo 8 group`, `c3_replay 4+4`, `shrunk auto 8 calls, credit`.

    After method, sizes and scope may stand, in this order and after commas, `turn 0 untrained`, `credit` (the criterion
    of `auto`), `error 0.15`, `discount 0.9`, `decay 0`, `share 0.5` and `mean 0.5`.

    Raises:
      PydanticCustomError: a ValueError that says what was expected.
    """
    found = _ESTIMATOR.fullmatch(" ".join(text.split())) if isinstance(text, str) else None
    if found is None:
        raise _expect("an estimator in one line, as in c3 2x4, rloo 8 group, c3_replay 4+4 or shrunk auto 8 calls")
    method, part = found[1], cast(dict[str, Any], found.groupdict())
    if method not in METHODS and ":" not in method:
        raise _expect(f"one of {', '.join(METHODS)}, or your own as module:NAME, and its sizes")
    try:
        sampling = find_method(method).sampling
    except ConfigError as error:
        raise _expect(f"a method that can be loaded ({error})") from error
    if part["sizes"] is None:
        plan = Auto("auto", int(part["budget"]), part["unit"], "credit" if part["credit"] else "gradient")
    else:
        plan = _read_sizes(method, sampling, part["sizes"])
        if part["credit"]:
            raise _expect("credit, a criterion, only where auto chooses the sizes")
    untrained = tuple(int(turn) for turn in re.findall("[0-9]+", part["untrained"]))
    amounts = {field: float(part[field]) for field in _AMOUNTS if part[field]}
    if any(value > 1.0 for field, value in amounts.items() if field != "error"):
        raise _expect("at most 1 for discount, decay, share and mean")
    return Estimator(method, plan, part["normalise"] or "none", untrained, **amounts)


def _read_sizes(method: str, sampling: Sampling, text: str) -> Sizes:
    mark = "x" if sampling in ("tree", "flat") else "+"
    numbers = text.split(mark)
    count = {"auxiliary": 2, **dict.fromkeys(plans.ARMS, 1)}.get(sampling, len(numbers))
    if len(numbers) != count or not all(map(str.isdecimal, numbers)):
        raise _expect(f"sizes of {method} as in {method} {_EXAMPLES.get(sampling, '2')}")
    kind = sampling if mark == "+" else "tree" if len(numbers) > 1 else "flat"
    return Sizes(kind, tuple(map(int, numbers)))


def _expect(what: str) -> PydanticCustomError:
    return PydanticCustomError("estimator", what)  # pyright: ignore[reportArgumentType]  # its text need not be literal


def describe_estimator(estimator: Estimator) -> str:
    """An estimator as tables print it and as studies are written; `parse_estimator` reads it back."""
    plan, values = estimator.plan, estimator._asdict()
    if plan.kind == "auto":
        sizes = f"auto {plan.budget} {plan.unit}"
    else:
        sizes = ("x" if plan.kind in ("tree", "flat") else "+").join(map(str, plan.numbers))
    scope = "" if estimator.normalise == "none" else f" {estimator.normalise}"
    parts = [f"{estimator.method} {sizes}{scope}", *(f"turn {turn} untrained" for turn in estimator.untrained)]
    parts += ["credit"] if plan.kind == "auto" and plan.criterion == "credit" else []
    for field in _AMOUNTS:
        if values[field] != Estimator._field_defaults[field]:
            short = f"{values[field]:g}"  # where six digits are all of it: a name must not hide what differs
            parts.append(f"{field} {short if float(short) == values[field] else repr(values[field])}")
    return ", ".join(parts)


def describe_loss(loss: PolicyLoss) -> str:
    """A loss as tables print it: its kind, and what it does not leave to that: `ppo clip_high 0.28`."""
    given = loss.model_dump(exclude_defaults=True, exclude={"kind"})
    return " ".join([loss.kind, *(f"{name} {value}" for name, value in given.items())])


def make_plan(sizes: Sizes | Auto, turns: int) -> plans.Plan:
    """The sampling plan of these sizes, for a game of so many turns."""
    assert sizes.kind != "auto", "a fan-out that is chosen needs a pilot"
    kind, numbers = sizes.kind, sizes.numbers
    if kind == "tree":
        return plans.make_tree(numbers)
    if kind == "flat":
        return plans.make_flat(numbers[0], turns)
    if kind == "replay" or kind == "best_branch":
        return plans.make_replay(numbers, turns, continues_best=kind == "best_branch")
    if kind == "auxiliary":
        return plans.make_auxiliary(numbers[0], numbers[1], turns)
    return plans.make_arms(kind, numbers[0], turns)


def choose_trained(trained: Sequence[bool], estimator: Estimator) -> tuple[bool, ...]:
    """Whether each turn is trained, of those that a team trains, under this estimator."""
    return tuple(is_on and turn not in estimator.untrained for turn, is_on in enumerate(trained))


def find_program(estimator: Estimator) -> str:
    """What makes an estimator's credit of its rows, as the column `apply` of methods says it."""
    return "running_mean" if estimator.mean else str(find_method(estimator.method).apply)


def check_estimators(
    path: str, estimators: Sequence[Estimator], trained: Sequence[bool], tokens: tuple[float, ...], *extras: str
) -> None:
    """Check that each estimator can give credit to a team's turns, and that no two are the same. Raises ConfigError.

    Args:
      path: of the list of estimators.
      trained: per turn, whether the team trains it.
      tokens: of a message of each turn.
      extras: fields of `Estimator` that this kind of study reads beside method, plan and scope; "auto" for that plan.
    """
    for number, estimator in enumerate(estimators):
        where, text, values = f"{path}.{number}", describe_estimator(estimator), estimator._asdict()
        given = {name for name, usual in Estimator._field_defaults.items() if values[name] != usual}
        given |= {"auto"} & {estimator.plan.kind}
        expect(given <= {"normalise", *extras}, where, f"beside sizes and scope only {', '.join(extras)}", repr(text))
        expect(estimator not in estimators[:number], where, "each once", f"{text} twice")
        plan, turns = estimator.plan, len(trained)
        expect(plan.kind != "tree" or len(plan.numbers) == turns, where, f"{turns} sizes, one a turn", repr(text))
        latest, on = max(estimator.untrained, default=0), choose_trained(trained, estimator)
        expect(latest < turns, where, f"untrained turns below {turns}", latest)
        row, mean = find_method(estimator.method), estimator.mean
        expect(not callable(row.apply), where, "a method whose credit is made as a built-in one's", repr(text))
        has_baseline = row.apply == "rows" and row.baseline is not rows.nothing
        expect(not mean or has_baseline, where, "a mean beside a baseline of returns (rae is all mean)", repr(text))
        try:
            if plan.kind == "auto":
                check_auto(estimator.method, on, plan.budget, plan.unit, tokens)
            else:
                check_pairing(estimator.method, make_plan(plan, turns), on)
            check_normalise(estimator.method, estimator.normalise)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
