"""A credit method of one's own: half of the baseline from the message's own context, half from the whole turn.

    c3jax train configs/quickstart.yaml --credit.method ./examples/own_method.py:BLENDED --run-dir runs/blended
    c3jax score runs/quickstart --method ./examples/own_method.py:BLENDED --out blended.jsonl

A method is a record of two functions, what a message is worth and what that is compared with. Each takes the sampling
plan and a turn and gives weights over the returns of a problem's leaves, a row a message: row times returns is the
estimate. Everything else says what the method needs and what is known of its estimate.
"""

import numpy as np

from c3jax.credit import rows
from c3jax.credit.method import Method
from c3jax.credit.plans import Plan


def blend(plan: Plan, turn: int) -> np.ndarray:
    """Mean of two leave-one-out baselines: neither reads the message's own leaves, so the gradient is unbiased."""
    return 0.5 * rows.others_in_context(plan, turn) + 0.5 * rows.others_of_turn(plan, turn)


BLENDED = Method(
    sampling="tree",
    value=rows.own_leaves,
    baseline=blend,
    group="context",
    min_group=2,
    estimand="A*(h, a) + s/2 (V(h) - V(x)), s the share of the turn's other messages that answer other contexts",
    advantage_bias="offset",
    gradient_bias="none",
    source="this example",
    doc="Value minus the mean of c3's baseline and no_replay's.",
)
