"""What every section of a config is made of."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pydantic

from c3jax.types import UserError


class ConfigError(UserError):
    """A config that cannot be run; the message is one sentence for the user."""


class Section(pydantic.BaseModel):
    """A frozen part of the config that refuses unknown fields and converts nothing."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Positive = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]  # JAX takes 32 bits of it: beyond them runs would coincide
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Decay = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0, allow_inf_nan=False)]


def show_value(value: Any) -> str:
    """A value of a config as it is shown in a complaint: JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
