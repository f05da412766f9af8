"""A policy loss of one's own: a clip without an edge.

    c3jax train configs/quickstart.yaml --learner.loss.kind ./examples/own_loss.py:SOFT_CLIP --run-dir runs/soft_clip

A loss is a record: whose ratio it reads (each token's, or one of the whole message), how far the ratio may go, how
tokens are averaged, and a function of log-probabilities, advantages and the two bounds. The function is elementwise;
JAX takes its derivative.
"""

import jax
import jax.numpy as jnp

from c3jax.learner.loss_table import Loss


def soften(
    logp: jax.Array, behaviour_logp: jax.Array, advantage: jax.Array, *, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array]:
    """-A g(r), g(1) = 1 and g'(1) = 1: g levels off at 1 + clip_high above, and at 1 - clip_low below.

    g(r) = 1 + c tanh((r - 1) / c), c the bound on the side that r is on.
    """
    excess = jnp.exp(logp - behaviour_logp) - 1.0
    bound = jnp.where(excess > 0, clip_high, clip_low)
    loss = -advantage * (1.0 + bound * jnp.tanh(excess / bound))
    return loss, jnp.abs(excess) > bound


SOFT_CLIP = Loss(
    level="token",
    formula=soften,
    clip_low=0.2,
    clip_high=0.2,
    aggregation="token",
    source="this example",
    doc="ppo with a hyperbolic tangent in place of the clip.",
)
