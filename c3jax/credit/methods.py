"""The critic-free credit methods: one literal table, and the check that a method fits a sampling plan.

A method compares each message's value (the mean return of the leaves below it) with a baseline
taken from a *group* of messages. The rows of `METHODS` differ in nothing but who is in the group
and how the baseline is formed from it. Host code: NumPy only, so that a config can be checked
without a device.

Dimension key: G group of messages of one turn    K message of a group    L leaf of one problem's tree
Source: arXiv:2603.06859 (c3 and its ablations); the other rows name their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

FanOut = tuple[int, ...]
Group = Literal["context", "turn"]
Normalise = Literal["none", "group", "turn", "batch"]
Bias = Literal["none", "scale", "offset", "reweighted"]

SCOPES: tuple[Normalise, ...] = ("none", "group", "turn", "batch")


class Method(NamedTuple):
    """One way to turn leaf returns into advantages.

    The biases are those of the estimate before any division by a standard deviation, except where the
    method itself prescribes the division. They hold when alternatives are independent draws from the
    policy being updated and their numbers were fixed before sampling.
    """

    baseline: Callable[[np.ndarray], np.ndarray]  # value_GKL -> baseline_GKL
    group: Group  # compared with: siblings in exactly the same context, or all the problem's messages of the turn
    min_group: int  # messages a trained turn must have in each group
    is_flat: bool  # true: only for independent episodes, fan-out (B, 1, ..., 1)
    scopes: tuple[Normalise, ...]  # normalisations the method allows
    estimand: str  # E[advantage | h, a]; V(x) is the value of the problem, n the size of the group
    advantage_bias: Bias  # against A*(h, a)
    gradient_bias: Bias  # of the score-weighted sum, against the policy gradient
    source: str
    doc: str


def leave_one_out(value_GKL: np.ndarray) -> np.ndarray:
    """Mean of the other members' values, b_-j = (sum_k v_k - v_j) / (K - 1); all members have equally many leaves.

    [G, K, L] in and out. Exactly zero on the member's own leaves, which no other member shares.
    Source: arXiv:2603.06859, fig. 1.
    """
    return (value_GKL.sum(axis=1, keepdims=True) - value_GKL) / (value_GKL.shape[1] - 1)


def group_mean(value_GKL: np.ndarray) -> np.ndarray:
    """Mean of the group's values, the member's own included; [G, K, L] in and out."""
    return np.broadcast_to(value_GKL.mean(axis=1, keepdims=True), value_GKL.shape).copy()


def no_baseline(value_GKL: np.ndarray) -> np.ndarray:
    """Zero; [G, K, L] in and out. For R - constant pass returns with the constant already taken off."""
    return np.zeros_like(value_GKL)


METHODS: dict[str, Method] = {
    "c3": Method(
        baseline=leave_one_out,
        group="context",
        min_group=2,
        is_flat=False,
        scopes=SCOPES,
        estimand="A*(h, a)",
        advantage_bias="none",
        gradient_bias="none",
        source="arXiv:2603.06859",
        doc="Value minus the mean value of the other alternatives drawn in exactly the same context.",
    ),
    "no_loo": Method(
        baseline=group_mean,
        group="context",
        min_group=2,
        is_flat=False,
        scopes=SCOPES,
        estimand="(n - 1)/n A*(h, a)",
        advantage_bias="scale",
        gradient_bias="scale",
        source="arXiv:2603.06859, ablation",
        doc="Value minus the mean value of all alternatives in the same context, its own included.",
    ),
    "no_replay": Method(
        baseline=leave_one_out,
        group="turn",
        min_group=2,
        is_flat=False,
        scopes=SCOPES,
        estimand="A*(h, a) + s (V(h) - V(x)), s the share of the baseline drawn in other contexts",
        advantage_bias="offset",
        gradient_bias="none",
        source="arXiv:2603.06859, ablation",
        doc="Value minus the mean value of all the problem's other messages of the turn, whatever their contexts.",
    ),
    "rloo": Method(
        baseline=leave_one_out,
        group="turn",
        min_group=2,
        is_flat=True,
        scopes=SCOPES,
        estimand="A*(h, a) + V(h) - V(x)",
        advantage_bias="offset",
        gradient_bias="none",
        source="arXiv:2402.14740",
        doc="The episode's return minus the mean return of the problem's other episodes.",
    ),
    "magrpo": Method(
        baseline=group_mean,
        group="turn",
        min_group=2,
        is_flat=True,
        scopes=SCOPES,
        estimand="(n - 1)/n (A*(h, a) + V(h) - V(x))",
        advantage_bias="offset",
        gradient_bias="scale",
        source="arXiv:2508.04652",
        doc="The episode's return minus the mean return of all the problem's episodes, its own included.",
    ),
    "reinforce": Method(
        baseline=no_baseline,
        group="turn",
        min_group=1,
        is_flat=True,
        scopes=SCOPES,
        estimand="A*(h, a) + V(h)",
        advantage_bias="offset",
        gradient_bias="none",
        source="Williams 1992, Machine Learning 8",
        doc="The episode's return; take a constant off the returns for a constant baseline.",
    ),
    "grpo": Method(
        baseline=group_mean,
        group="turn",
        min_group=2,
        is_flat=True,
        scopes=("group",),
        estimand="(R - mean) / std, not a multiple of A*",
        advantage_bias="reweighted",
        gradient_bias="reweighted",
        source="arXiv:2402.03300",
        doc="magrpo divided by the standard deviation of the problem's returns, which reweights problems.",
    ),
}


def group_size(method: Method, fan_out: FanOut, turn: int) -> int:
    """Number of messages in the group of a message of `turn`, itself included."""
    return fan_out[turn] if method.group == "context" else math.prod(fan_out[: turn + 1])


def check_pairing(method: str, fan_out: FanOut, trained: tuple[bool, ...] | None = None) -> None:
    """Check that `method` can give credit to every trained turn of a tree of this fan-out.

    Args:
      method: a key of `METHODS`.
      fan_out: alternatives per context, one entry per turn.
      trained: per turn, whether its messages are trained on; None for all turns. Only a turn that is not
        trained may have too few messages to compare, since it gets no credit.

    Raises:
      ValueError: in one sentence naming the method or turn, what was expected and what was got.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not fan_out or min(fan_out) < 1:
        raise ValueError(f"fan_out: expected a positive entry for every turn, got {fan_out}")
    is_trained = (True,) * len(fan_out) if trained is None else trained
    if len(is_trained) != len(fan_out):
        raise ValueError(f"trained: expected {len(fan_out)} entries, one per turn of fan_out, got {len(is_trained)}")
    if not any(is_trained):
        raise ValueError("trained: expected at least one trained turn, got none")
    row = METHODS[method]
    if row.is_flat and any(f != 1 for f in fan_out[1:]):
        raise ValueError(f"method {method} compares whole episodes: expected fan_out (B, 1, ..., 1), got {fan_out}")
    for turn, turn_is_trained in enumerate(is_trained):
        size = group_size(row, fan_out, turn)
        if turn_is_trained and size < row.min_group:
            where = "in each context" if row.group == "context" else "for each problem"
            raise ValueError(
                f"method {method} would give turn {turn} zero credit: expected at least {row.min_group} messages "
                f"{where} of a trained turn, got {size} from fan_out {fan_out}"
            )


def check_normalise(method: str, normalise: Normalise) -> None:
    """Check that `method` may be normalised over the scope `normalise`; raises ValueError naming both."""
    if normalise not in METHODS[method].scopes:
        expected = " or ".join(METHODS[method].scopes)
        raise ValueError(f"method {method}: expected normalise {expected}, got {normalise!r}")
