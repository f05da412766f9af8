"""The record of a credit method: what it samples, the weights it gives to returns, and what its estimate is.

The built-in methods are the rows of `methods.py`; one of a user's own is such a record in a file of theirs, which the
config names as `my_credit:HINDSIGHT`. Host code: no JAX here, so that a config can be checked without a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from c3jax.credit.plans import Form
from c3jax.credit.rows import Rows

if TYPE_CHECKING:
    import jax

    from c3jax.credit.compute import CreditInputs
    from c3jax.types import Credit

Sampling = Form | Literal["flat"]  # flat: a tree of independent episodes, fan-out (B, 1, ..., 1)
Group = Literal["context", "turn"]
Normalise = Literal["none", "group", "turn", "batch"]
Critic = Literal["none", "value", "action_value", "oracle"]
Bias = Literal["none", "scale", "offset", "reweighted", "other"]
Carries = Literal["nothing", "critic", "components"]
Apply = Literal[
    "rows",
    "filter",
    "gae",
    "assisted",
    "scores",
    "oracle",
    "running_mean",
    "mean_scaled",
    "tree_and_batch",
    "gradient_weighted",
    "removal_bonus",
    "information_gain",
]
Reads = Literal["returns", "gradients", "likelihoods"]
Predicts = Literal["nothing", "leave_one_out", "filter"]

SCOPES: tuple[Normalise, ...] = ("none", "group", "turn", "batch")
SCOPES_WITHOUT_GROUP: tuple[Normalise, ...] = ("none", "turn", "batch")


class Method(NamedTuple):
    """One way to turn returns into advantages.

    The biases are those of the estimate before any division by a standard deviation, except where the method itself
    prescribes the division, and with the exact critic where it has one. They hold when alternatives are independent
    draws from the policy being updated and their numbers were fixed before sampling:
      none        exact
      scale       times a positive factor, one a turn
      offset      of an advantage: that, plus an amount that depends on the context alone
      reweighted  of a gradient: times a positive factor that changes with the context
      other       none of these
    """

    sampling: Sampling
    value: Rows  # what a message is worth
    baseline: Rows  # what it is compared with
    estimand: str  # E[advantage | h, a]; V(x) is the problem's value, n the group's size, q and v the critic's values
    advantage_bias: Bias  # against A*(h, a)
    gradient_bias: Bias  # of the score-weighted sum, against the policy gradient
    source: str
    doc: str
    group: Group = "turn"  # siblings in exactly the same context, or all the problem's messages of the turn
    min_group: int = 1  # messages a trained turn must have in each group
    condition: str = ""  # what the biases further depend on
    critic: Critic = "none"  # V(h), Q(h, a) of sampled messages, or Q of every message (enumerable games)
    scopes: tuple[Normalise, ...] = SCOPES  # normalisations the method allows
    carries: Carries = "nothing"  # what a run learns from step to step for it
    # What makes credit of the rows, the returns and what is carried: a row of `compute.APPLY`, or a function of one's
    # own; oracle: only an enumerable game can.
    apply: Apply | Callable[[CreditInputs, jax.Array, Normalise], Credit] = "rows"
    # What is kept of messages beside: `types.Messages.gradient_N`, or `likelihood_N`, for which right answers are read.
    reads: Reads = "returns"
    predicts: Predicts = "nothing"  # how variance components foretell its baseline's error, to choose fan-outs by


_CHOICES: dict[str, tuple[str, ...]] = {
    "sampling": (*get_args(Form), "flat"),
    "group": get_args(Group),
    "advantage_bias": get_args(Bias),
    "gradient_bias": get_args(Bias),
    "critic": get_args(Critic),
    "carries": get_args(Carries),
    "reads": get_args(Reads),
    "predicts": get_args(Predicts),
}


def find_fault(found: Any) -> str | None:
    """What else is expected of an object that is to be a method, as in "a Method"; None where it will do."""
    if not isinstance(found, Method):
        return "a Method"
    for name, choices in _CHOICES.items():
        if found._asdict()[name] not in choices:
            return f"a Method with {name} of {', '.join(choices)}"
    if not (callable(found.value) and callable(found.baseline)):
        return "a Method whose value and baseline are functions of a plan and a turn"
    if not (callable(found.apply) or found.apply in get_args(Apply)):
        return f"a Method with apply of {', '.join(get_args(Apply))} or a function"
    if not found.scopes or not set(found.scopes) <= set(SCOPES):
        return f"a Method with scopes of {', '.join(SCOPES)}"
    if type(found.min_group) is not int or found.min_group < 1:
        return "a Method with a positive min_group"
    if (found.carries == "critic") != (found.critic != "none"):
        return "a Method that carries a critic where it names one, and nowhere else"
    if found.reads != "returns" and found.sampling not in ("tree", "flat"):
        return f"a Method that reads {found.reads} of a tree"
    return None
