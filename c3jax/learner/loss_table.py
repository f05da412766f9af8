"""The policy losses: one literal table, and how a config's choice becomes one of its rows.

A row says whose ratio it reads, how far the ratio may go, how tokens are averaged, and which function makes the loss
of a log-probability. A loss of a user's own is such a record in a file of theirs, named in the config as
`my_loss:SOFT_CLIP`. Host code: no JAX here, so that a config can be checked without a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from c3jax.schema import load_named

if TYPE_CHECKING:
    import jax

Level = Literal["token", "message"]
Aggregation = Literal["token", "message", "constant"]
Formula = Literal["clipped", "cispo", "reinforce"]

# (logp, behaviour_logp, advantage, *, clip_low, clip_high) -> (loss, whether the clip holds the gradient back). Arrays
# of one shape; an entry of the results reads that entry of the arguments alone. A loss without a clip is given infinite
# ones.
LossFunction = Callable[..., "tuple[jax.Array, jax.Array]"]


class Loss(NamedTuple):
    """One way to turn log-probabilities and advantages into a loss."""

    level: Level  # token: of each token's log-probability; message: of the mean over a message's tokens
    formula: Formula | LossFunction  # a row of `objective.FORMULAS`, or a function of one's own
    clip_low: float | None  # how far below 1 a ratio has a gradient; None: the loss has no clip
    clip_high: float | None
    aggregation: Aggregation  # `losses.compute_weights`
    source: str
    doc: str


LOSSES: dict[str, Loss] = {
    "ppo": Loss(
        level="token",
        formula="clipped",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="token",
        source="arXiv:1707.06347, equation 7",
        doc="-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r the ratio of each token.",
    ),
    "gspo": Loss(
        level="message",
        formula="clipped",
        clip_low=3e-4,
        clip_high=4e-4,
        aggregation="message",
        source="arXiv:2507.18071, equations 5 and 7",
        doc="ppo with one ratio a message: the geometric mean of its tokens' ratios.",
    ),
    "cispo": Loss(
        level="token",
        formula="cispo",
        clip_low=1.0,  # no lower bound, as in the paper: no ratio is below 0
        clip_high=4.0,
        aggregation="token",
        source="arXiv:2506.13585, equations 4 and 5, which leave the upper bound open",
        doc="-w A log pi, w = clip(r, 1 - clip_low, 1 + clip_high) held fixed: no token is left out.",
    ),
    "reinforce": Loss(
        level="token",
        formula="reinforce",
        clip_low=None,
        clip_high=None,
        aggregation="token",
        source="Williams 1992, Machine Learning 8",
        doc="-A log pi of each token; no ratio and no clip.",
    ),
}


def find_loss(name: str, field: str = "learner.loss.kind") -> Loss:
    """The loss of a name: a row of the table, or with a colon a record in a file of the user's.

    Args:
      name: `ppo`, `my_loss:SOFT_CLIP` or `./my_loss.py:SOFT_CLIP`.
      field: where the name stands, for complaints.

    Raises:
      ConfigError: in one sentence, as `schema.load_named`.
    """
    return load_named(field, name, LOSSES, _find_fault)


def _find_fault(found: Any) -> str | None:
    if not isinstance(found, Loss):
        return "a Loss"
    for name, got, choices in (("level", found.level, Level), ("aggregation", found.aggregation, Aggregation)):
        if got not in get_args(choices):
            return f"a Loss with {name} of {', '.join(get_args(choices))}"
    if not (callable(found.formula) or found.formula in get_args(Formula)):
        return f"a Loss with formula of {', '.join(get_args(Formula))} or a function"
    clips = (found.clip_low, found.clip_high)
    if clips != (None, None) and not all(isinstance(clip, float) and 0 < clip < math.inf for clip in clips):
        return "a Loss whose clip_low and clip_high are both positive numbers, or both None"
    return None
