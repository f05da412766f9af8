"""The optimiser of a run, and its learning-rate schedule in optimiser updates."""

from __future__ import annotations

import jax
import optax

from c3jax.config import Learner


def make_optimiser(learner: Learner, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind a global-norm clip.

    The rate rises linearly over warmup_updates, update u (from 0) taking (u + 1) / warmup_updates of the peak, then is
    constant or falls as a cosine that reaches final_share of the peak at the run's last update,
    steps * epochs * minibatches updates in all.
    """
    updates = steps * learner.epochs * learner.minibatches
    rise = learner.warmup_updates

    def schedule(count: jax.Array) -> jax.Array:
        warm = learner.learning_rate * (count + 1) / max(rise, 1)
        return jax.numpy.where(count < rise, warm, after(count - rise))

    after = (
        optax.constant_schedule(learner.learning_rate)
        if learner.schedule == "constant"
        else optax.cosine_decay_schedule(learner.learning_rate, max(updates - rise - 1, 1), alpha=learner.final_share)
    )
    chain = optax.chain(
        optax.clip_by_global_norm(learner.max_grad_norm),
        optax.adamw(schedule, learner.adam_b1, learner.adam_b2, learner.adam_eps, weight_decay=learner.weight_decay),
    )
    return chain, schedule
