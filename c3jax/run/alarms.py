"""What a run is watched for while it trains: signs that it is failing, each found in its rows of metrics.jsonl alone.

An alarm is on after a step where a figure was beyond its bound in that step and each of those just before it, as many
as `alarms.steps` says. What it is compared with comes from the run's first rows. So a run that was killed and resumed
has the alarms of one that never was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from c3jax.config.run import RunConfig, Turn, trained_roles
from c3jax.run.metrics import Row

ALARMED = 3  # exit code of a run that an alarm of alarms.stop has ended
_SOLVED = 0.9  # mean return from which alternatives that are alike, and score alike, are no sign of failure


class Rule(NamedTuple):
    """One kind of alarm."""

    meaning: str  # what is so while it is on
    # Of the rows of steps in which the policy learnt: what is so, and what to do; None while it is off.
    find: Callable[[RunConfig, Sequence[Row]], str | None]


class Watch:
    """The alarms of a run that is under way."""

    def __init__(self, config: RunConfig, rows: Sequence[Row], console: Console) -> None:
        """Take up a run's watch.

        Args:
          config: of the run.
          rows: of the steps before the next, from metrics.jsonl.
          console: where a sentence is printed as an alarm begins, and as it ends.
        """
        self._config, self._console = config, console
        self._rows = [*rows]
        self._on: tuple[str, ...] = tuple(rows[-1].get("alarms", ())) if rows else ()
        self.code = 0  # ALARMED where the newest step began an alarm that ends the run

    def check(self, step: int, row: Row) -> dict[str, list[str]]:
        """Look at a finished step, and print what begins and what ends.

        Args:
          step: from 0.
          row: its figures.

        Returns:
          What the row says of it: the alarms that are on, by name; nothing where none is.
        """
        self._rows.append({"step": step} | row)
        found = find_alarms(self._config, self._rows)
        begun = [name for name in found if name not in self._on]
        for name in begun:
            self._print(f"alarm {name}: {found[name]}")
        for name in self._on:
            if name not in found:
                self._print(f"alarm {name} is over after step {step + 1}")
        self.code = ALARMED if set(begun) & set(self._config.alarms.stop) else 0
        self._on = tuple(found)
        return {"alarms": [*found]} if found else {}

    def _print(self, line: str) -> None:
        self._console.print(line, style="yellow", soft_wrap=True, highlight=False)


def find_alarms(config: RunConfig, rows: Sequence[Row]) -> dict[str, str]:
    """The alarms that are on after the last of some rows.

    Args:
      config: of the run.
      rows: of all its steps up to one, in order.

    Returns:
      By name, a sentence that says what is so and what to do.
    """
    critic = config.credit.critic
    learning = rows[0 if critic is None else critic.critic_only_steps :]  # before, the policy's own figures are 0
    if len(learning) < config.alarms.steps:
        return {}
    found = {name: rule.find(config, learning) for name, rule in ALARMS.items()}
    return {name: text for name, text in found.items() if text is not None}


def describe_bad(row: Row, step: int, run: Path) -> str:
    """The sentence about a run that bad updates have stopped.

    Args:
      row: figures of the last step.
      step: of how many steps it has done.
      run: its directory.
    """
    count, who, figures, section = row["bad_in_row"], "", "grad_norm, kl and first_ratio_deviation", "learner"
    if row.get("critic_bad_in_row", 0) > count:
        count, who, figures, section = row["critic_bad_in_row"], " of the critic", "critic_loss", "credit.critic"
    return (
        f"stopped at step {step}: {count} updates{who} in a row had a non-finite loss or gradient and were"
        f" skipped; look at {figures} in {run / 'metrics.jsonl'}, and try a lower"
        f" {section}.learning_rate"
    )


# --------------------------------------------------------------------------------------------------------------------
# What each is on by


def _are_all(config: RunConfig, rows: Sequence[Row], name: str, is_beyond: Callable[[Any], bool]) -> bool:
    return all(name in row and is_beyond(row[name]) for row in rows[-config.alarms.steps :])


def _compute_return(config: RunConfig, rows: Sequence[Row]) -> float:
    """Mean over the steps that are looked at."""
    return sum(row["return"] for row in rows[-config.alarms.steps :]) / config.alarms.steps


def _find_entropy(config: RunConfig, rows: Sequence[Row]) -> str | None:
    bound, steps = config.alarms.entropy, config.alarms.steps
    if bound is None or not _are_all(config, rows, "entropy", lambda value: value < bound):
        return None
    return (
        f"the policy's entropy has been below {bound:g} nats a token for {steps} steps, so its messages hardly vary;"
        " lower learner.learning_rate, or raise sampling.temperature"
    )


def _find_length(config: RunConfig, rows: Sequence[Row]) -> str | None:
    factor, steps = config.alarms.length, config.alarms.steps
    if factor is None:
        return None
    first = sum(row["message_tokens"] for row in rows[:steps]) / steps
    is_longer = _are_all(config, rows, "message_tokens", lambda value: value > factor * first)
    if not is_longer and not _are_all(config, rows, "message_tokens", lambda value: value < first / factor):
        return None
    return (
        f"the mean message has been more than {factor:g} times {'as long as' if is_longer else 'shorter than'} at first"
        f" for {steps} steps ({rows[-1]['message_tokens']:.0f} tokens now, {first:.0f} in the first {steps}); read some"
        " in rollouts/, and raise learner.kl.coefficient or lower learner.learning_rate"
    )


def _find_kl(config: RunConfig, rows: Sequence[Row]) -> str | None:
    bound, steps = config.alarms.kl, config.alarms.steps
    if bound is None or not _are_all(config, rows, "kl", lambda value: value > bound):
        return None
    return (
        f"the divergence from the policy at the start has been above {bound:g} nats a token for {steps} steps"
        f" ({rows[-1]['kl']:.2g} now); raise learner.kl.coefficient or lower learner.learning_rate"
    )


def _find_zero_credit(config: RunConfig, rows: Sequence[Row]) -> str | None:
    bound, steps = config.alarms.zero_credit, config.alarms.steps
    if bound is None or not _are_all(config, rows, "zero_credit_share", lambda value: value >= bound):
        return None
    of_all = "no message has" if bound == 1.0 else f"{bound:.0%} of the messages or more have not"
    mean = _compute_return(config, rows)
    return (
        f"{of_all} had any credit for {steps} steps: where all answers of a tree score the same there is nothing to"
        f" compare (mean return {mean:.2f}); take {'easier' if mean < 0.5 else 'harder'} problems, or raise"
        " credit.fan_out or sampling.temperature"
    )


def _find_idle_role(config: RunConfig, rows: Sequence[Row]) -> str | None:
    bound, steps, turns = config.alarms.idle_role, config.alarms.steps, config.protocol.turns
    if bound is None or _compute_return(config, rows) >= _SOLVED:
        return None
    idle = [
        role
        for role in trained_roles(config.protocol)
        if all(
            _are_all(config, rows, f"zero_credit_share_{turn.name}", lambda value: value >= bound)
            for turn in _list_trained(turns)
            if turn.role == role
        )
    ]
    if not idle or len(idle) == len(trained_roles(config.protocol)):  # all of them is zero_credit
        return None
    return (
        f"role {' and role '.join(idle)} has had {'no' if bound == 1.0 else 'hardly any'} credit for {steps} steps, and"
        " learns nothing by it: what is answered does not depend on its messages, or they are all alike; raise the"
        " fan-out of its turns, or look at its prompt and at what later turns see of it"
    )


def _find_duplicates(config: RunConfig, rows: Sequence[Row]) -> str | None:
    bound, steps = config.alarms.duplicates, config.alarms.steps
    if bound is None or _compute_return(config, rows) >= _SOLVED:
        return None
    same = [
        turn.name
        for turn in _list_trained(config.protocol.turns)
        if _are_all(config, rows, f"duplicate_share_{turn.name}", lambda value: value >= bound)
    ]
    if not same:
        return None
    return (
        f"of turn {' and of turn '.join(same)} {bound:.0%} or more of the alternatives have repeated another of their"
        f" context for {steps} steps, so nothing is tried; raise sampling.temperature, or lower learner.learning_rate"
    )


def _find_truncated(config: RunConfig, rows: Sequence[Row]) -> str | None:
    bound, steps = config.alarms.truncated, config.alarms.steps
    if bound is None or not _are_all(config, rows, "truncated_share", lambda value: value >= bound):
        return None
    shares = [rows[-1].get(f"truncated_share_{turn.name}", 0.0) for turn in config.protocol.turns]
    turn = shares.index(max(shares))
    return (
        f"{bound:.0%} of the messages or more have met their token limit for {steps} steps, most in turn"
        f" {config.protocol.turns[turn].name}; raise protocol.turns.{turn}.max_tokens, or ask for shorter messages"
    )


def _list_trained(turns: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.is_trained]


ALARMS: dict[str, Rule] = {
    "entropy": Rule("the policy's entropy was below alarms.entropy", _find_entropy),
    "length": Rule("messages were far longer or shorter than in the first steps (alarms.length)", _find_length),
    "kl": Rule("the divergence from the policy at the start was above alarms.kl", _find_kl),
    "zero_credit": Rule("no message, or too few, had any credit (alarms.zero_credit)", _find_zero_credit),
    "idle_role": Rule("a trained role had no credit while others had some (alarms.idle_role)", _find_idle_role),
    "duplicates": Rule("alternatives repeated one another (alarms.duplicates)", _find_duplicates),
    "truncated": Rule("messages met their token limit (alarms.truncated)", _find_truncated),
}
