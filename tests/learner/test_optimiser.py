"""The schedule at updates worked out by hand, and the clip, AdamW and its decay on a parameter or two."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c3jax.config.run import Learner
from c3jax.learner.optimiser import make_optimiser


def run(learner: Learner, gradients: list[list[float]], start: list[float]) -> np.ndarray:
    optimiser, _ = make_optimiser(learner, steps=10)
    params = jnp.array(start)
    state = optimiser.init(params)
    for gradient in gradients:
        changes, state = optimiser.update(jnp.array(gradient), state, params)
        params = optax.apply_updates(params, changes)
    return np.asarray(params)


@pytest.mark.parametrize(
    ("learner", "steps", "expected"),
    [
        # Four updates of warm-up: 1/4, 2/4, 3/4, 4/4 of the peak, and then the peak.
        (Learner(learning_rate=8.0, warmup_updates=4), 3, {0: 2.0, 1: 4.0, 2: 6.0, 3: 8.0, 4: 8.0, 1000: 8.0}),
        (Learner(learning_rate=8.0), 3, {0: 8.0, 7: 8.0}),
        # 3 steps of 2 epochs of 2 minibatches are 12 updates, 0 to 11; warm-up takes 3, and the cosine falls from the
        # peak at update 3 to a tenth of it at update 11, half-way (.55 of the peak) at update 7.
        (
            Learner(learning_rate=8.0, epochs=2, minibatches=2, schedule="cosine", warmup_updates=3),
            3,
            {0: 8 / 3, 2: 8.0, 3: 8.0, 7: 4.4, 11: 0.8, 12: 0.8},
        ),
        # A quarter of the way down: 1/2 (1 + cos(pi/4)) of the way from the end to the peak.
        (
            Learner(learning_rate=1.0, schedule="cosine", final_share=0.0),
            9,
            {0: 1.0, 2: (1 + math.sqrt(0.5)) / 2, 4: 0.5, 8: 0.0},
        ),
        (Learner(learning_rate=8.0, schedule="cosine", warmup_updates=20), 10, {0: 0.4, 9: 4.0}),
        (Learner(learning_rate=8.0, schedule="cosine"), 1, {0: 8.0}),
    ],
    ids=["constant", "no warm-up", "cosine", "cosine to zero", "warm-up longer than the run", "one update"],
)
def test_rate_by_hand(learner, steps, expected):
    _, schedule = make_optimiser(learner, steps)
    got = [float(schedule(jnp.int32(update))) for update in expected]
    np.testing.assert_allclose(got, list(expected.values()), atol=1e-6)


def test_first_updates_of_adam_by_hand():
    """Bias correction makes the first change -rate * sign; then m = (b1 m + g (1 - b1)) / (1 - b1^2), v alike."""
    learner = Learner(learning_rate=0.1, max_grad_norm=100.0, adam_b1=0.5, adam_b2=0.75, adam_eps=1e-12)
    np.testing.assert_allclose(run(learner, [[3.0, -0.2]], [1.0, 1.0]), [0.9, 1.1], atol=1e-6)
    # Gradients 3, then 1: m = (1.5 * .5 + .5) / .75 = 5/3; v = (2.25 * .75 + .25) / .4375 = 31/7.
    second = 0.9 - 0.1 * (5 / 3) / math.sqrt(31 / 7)
    np.testing.assert_allclose(run(learner, [[3.0], [1.0]], [1.0]), [second], atol=1e-6)


def test_gradient_is_clipped_by_its_global_norm():
    """(6, 8) has norm 10: clipped to 1 it is (.6, .8), and eps = .2 shows the size: .1 g / (g + .2)."""
    learner = Learner(learning_rate=0.1, max_grad_norm=1.0, adam_eps=0.2)
    expected = [-0.1 * 0.6 / 0.8, -0.1 * 0.8 / 1.0]
    np.testing.assert_allclose(run(learner, [[6.0, 8.0]], [0.0, 0.0]), expected, atol=1e-6)
    # (.06, .08) has norm .1 and stays.
    expected = [-0.1 * 0.06 / 0.26, -0.1 * 0.08 / 0.28]
    np.testing.assert_allclose(run(learner, [[0.06, 0.08]], [0.0, 0.0]), expected, atol=1e-6)


def test_weight_decay_is_decoupled():
    """Without a gradient a weight shrinks by rate * decay, whatever its size."""
    learner = Learner(learning_rate=0.1, weight_decay=0.5)
    np.testing.assert_allclose(run(learner, [[0.0, 0.0]], [4.0, -2.0]), [3.8, -1.9], atol=1e-6)
