"""The sections of a config that say which problems a run trains on."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from c3jax.schema import Decay, Section


class Data(Section):
    """What is done about training problems that are held-out ones too."""

    drop_overlap: bool = False
    """Train without the problems that are in a held-out set, instead of refusing the run."""
    ngram_overlap: Literal["say", "refuse"] = "say"
    """Whether a run of 13 words in common with a held-out problem is only said, or counts as being in the set."""


class Curriculum(Section):
    """Problems are drawn by their pass rate p, the mean return of earlier steps: in proportion to p (1 - p)."""

    uniform: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.25
    """Share of the weight that all problems have alike, so that none is given up for good; 1 weighs nothing else."""
    decay: Decay = 0.9
    """Weight of a problem's earlier answers in its pass rate, whenever it is drawn again."""
