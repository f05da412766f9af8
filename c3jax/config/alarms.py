"""The section of a config that says which failures a run is watched for, and which of them end it."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from c3jax.schema import Positive, PositiveFloat, Section, Share

AlarmName = Literal["entropy", "length", "kl", "zero_credit", "idle_role", "duplicates", "truncated"]


class Alarms(Section):
    """Failures that a run is watched for, each with its bound; null watches for none of the kind."""

    steps: Positive = 10
    """Steps in a row, the newest the last, in each of which a figure is beyond its bound while an alarm is on."""
    entropy: PositiveFloat | None = 0.01
    """Least entropy, nats a token, where a run records it."""
    length: Annotated[float, pydantic.Field(gt=1.0, allow_inf_nan=False)] | None = 4.0
    """How many times longer or shorter than in the first `steps` steps the mean message may be."""
    kl: PositiveFloat | None = 1.0
    """Largest divergence from the policy at the start, nats a token, where the loss has one."""
    zero_credit: Share | None = 1.0
    """Share of the trained turns' messages with advantage 0 from which there is too little to learn from."""
    idle_role: Share | None = 1.0
    """The same of one trained role's messages, while other roles have credit and the mean return is below 0.9."""
    duplicates: Share | None = 0.99
    """Share of a trained turn's alternatives with the tokens of an earlier one, while the mean return is below 0.9."""
    truncated: Share | None = 0.5
    """Share of messages that met their token limit."""
    stop: tuple[AlarmName, ...] = ()
    """Alarms that end the run as they begin: with a checkpoint, and exit code 3; the same command resumes it."""
