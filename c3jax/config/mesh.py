"""The section of a config that says how a run is laid over several devices."""

from __future__ import annotations

from typing import Literal

from c3jax.schema import Positive, Section


class RolloutMesh(Section):
    """Devices that draw trees and do nothing else; each size as the mesh's own."""

    data: Positive = 1
    """Parts in which the problems of a call are cut, each with all weights."""
    fsdp: Positive = 1
    """Parts in which problems are cut, and the weights with them."""
    tensor: Positive = 1
    """Parts in which heads, features of the MLP and the vocabulary are cut."""


class Mesh(Section):
    """How a run is laid over several devices; it changes no result but its rounding. One size may be -1: the rest."""

    data: Positive | Literal[-1] = -1
    """Parts in which a step's problems are cut, each with all weights."""
    fsdp: Positive | Literal[-1] = 1
    """Parts in which problems are cut, and the weights with them."""
    tensor: Positive | Literal[-1] = 1
    """Parts in which heads, features of the MLP and the vocabulary are cut."""
    rollout: RolloutMesh | None = None
    """The last devices, laid out so, which draw the next step's trees while the others learn; None: all do both."""
