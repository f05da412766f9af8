"""The section of a config that says how messages are credited, and the sampling plan that it asks for."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from c3jax.credit import plans
from c3jax.credit.method import Sampling
from c3jax.credit.methods import find_trainable
from c3jax.schema import ConfigError, Count, Decay, Positive, PositiveFloat, Section, Share, expect


class Critic(Section):
    """What learns to predict the return, for the methods that need it; its optimiser is else the learner's."""

    network: Literal["own", "trunk"]
    """own: a copy of the starting policy, trained; trunk: the policy's last hidden state, of which it trains a head."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    warmup_updates: Count = 0
    """Critic updates over which the rate rises from zero."""
    critic_only_steps: Count = 0
    """First steps in which only the critic learns and the policy stands still."""
    epochs: Positive = 1
    """Passes over a step's contexts or messages, in the learner's minibatches."""
    discount: Share = 1.0
    """mappo: worth of the next turn's value in this turn's."""
    decay: Share = 1.0
    """mappo: lambda; 1 takes the return as it came, below 1 the critic's error enters the advantage."""
    clip: PositiveFloat | None = None
    """mappo: how far a step may move a value, in units of return; none sets no bound."""
    loss: Literal["bce", "mse"] = "bce"
    """value_assisted, value_only: cross-entropy or squared error of the score in [0, 1]."""
    share: Share = 1.0
    """value_assisted: share of the baseline that the critic gives; the rest comes from the returns."""


class Auto(Section):
    """How the fan-out is chosen where it is auto: by the least error that the returns of earlier steps promise."""

    unit: Literal["calls", "messages", "tokens"] = "calls"
    """What credit.budget counts for a problem."""
    criterion: Literal["gradient", "credit"] = "gradient"
    """Least noise of the gradient, or least error of the credit."""
    every: Positive = 20
    """Steps between choices; a fan-out not met before is compiled."""


class Draws(Section):
    """What is drawn for a problem where it is no tree: alternatives along one transcript, or episodes and copies."""

    alternatives: Positive | None = None
    """c3_replay, at_grpo: messages at each decision of the transcript, one of which it goes on with."""
    episodes: Positive | None = None
    """vine_ppo, difference, ccpo, difference_masked, shapley: transcripts whose messages are trained on."""
    continuations: Positive = 1
    """c3_replay, at_grpo: of each alternative; vine_ppo: of each context that an episode reached."""


class Credit(Section):
    """Which share of the outcome a message is given. Nothing here has a default: the paper varies all of it."""

    method: str
    """A row of c3jax.credit.methods.METHODS, or module:NAME; --credit.method brings what it draws and its critic."""
    fan_out: Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)] | Literal["auto"] | None = None
    """Alternatives a turn draws at each context, a number per turn; or auto, for c3, no_loo and shrunk."""
    draws: Draws | None = None
    """What is drawn instead by a method that draws no such tree (c3_replay, at_grpo, vine_ppo, those with copies)."""
    null_message: str = ""
    """difference, ccpo, difference_masked, shapley, igpo: what stands for a message that is not there."""
    budget: Positive
    """Evaluator calls a problem, exactly those of the plan; for auto the most a problem may cost in auto.unit."""
    normalise: Literal["none", "group", "turn", "batch"]
    """Scope of the standard deviation that advantages are divided by."""
    critic: Critic | None = None
    """The critic, for a method that learns one."""
    auto: Auto = Auto()
    """How fan_out auto is chosen."""
    decay: Decay = 0.9
    """For shrunk and auto: weight of earlier steps in the running variance components."""


def make_plan(credit: Credit, turns: int, fan_out: plans.FanOut | None = None) -> plans.Plan:
    """What a step of a run draws for a problem.

    Args:
      credit: the section.
      turns: of the protocol.
      fan_out: the one in force, where the section's is auto.

    Raises:
      ConfigError: where the section lacks what its method draws, or has what it does not.
    """
    form = find_trainable(credit.method).sampling
    if form in ("tree", "flat"):
        chosen = credit.fan_out if fan_out is None else fan_out
        wanted = f"none for method {credit.method}, which draws a tree"
        expect(credit.draws is None, "credit.draws", wanted, "a section")
        if not isinstance(chosen, tuple):
            raise ConfigError("credit.fan_out: expected a value, got nothing")
        return plans.make_tree(chosen)
    draws = Draws() if credit.draws is None else credit.draws
    number, other = draws.alternatives, draws.episodes
    if form not in ("replay", "best_branch"):
        number, other = other, number
    if number is None or other is not None or credit.fan_out is not None:
        wanted = "alternatives" if form in ("replay", "best_branch") else "episodes"
        raise ConfigError(
            f"credit.draws: expected {wanted} alone, and no fan_out, for method {credit.method}, got"
            f" {draws.model_dump(exclude_none=True)} and fan_out {credit.fan_out}"
        )
    is_fit = form not in plans.ARMS or draws.continuations == 1
    expect(is_fit, "credit.draws.continuations", f"1 for method {credit.method}", draws.continuations)
    return size_plan(form, number, draws.continuations, turns)


def size_plan(form: Sampling, number: int, continuations: int, turns: int) -> plans.Plan:
    """A plan that draws no tree, as a run of language models draws it.

    Args:
      form: of the plan.
      number: of alternatives or episodes.
      continuations: of an alternative or of a context.
      turns: of the protocol.
    """
    if form == "replay" or form == "best_branch":
        return plans.make_replay((continuations,) * number, turns, continues_best=form == "best_branch")
    if form == "auxiliary":
        return plans.make_auxiliary(number, continuations, turns)
    assert form != "tree" and form != "flat"
    # The evaluator reads the last message alone.
    return plans.make_arms(form, number, turns, answers_again=True)


def widen_fan_out(credit: Credit, turns: int) -> Credit:
    """The section with numbers where the run chooses its fan-out: those of the most messages that it may choose."""
    if credit.fan_out != "auto":
        return credit
    return credit.model_copy(update={"fan_out": (credit.budget,) + (1,) * (turns - 1)})
