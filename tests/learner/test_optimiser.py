"""The schedule at updates worked out by hand; the clip, AdamW and its decay on a parameter or two; and the first
updates of the other optimisers, worked out on paper.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c3jax.config.run import Learner
from c3jax.learner.optimiser import OPTIMISERS, count_state, make_optimiser


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


SHAPES = {
    "embedding": (300, 130), "final_norm": (130,),
    "blocks": {"query": {"kernel": (2, 130, 140), "bias": (2, 140)}, "down": {"a": (2, 140, 4), "b": (2, 4, 130)}},
}  # fmt: skip
# Numbers kept beside counts and constants. AdamW two a weight; Lion one; Muon one of a projection's matrices and two
# of the rest; Adafactor of a matrix of 128 or more a side a row and a column, of a stack one of each a layer, of
# the rest one a number, and where it keeps nothing an array of one.
MATRICES, REST = 2 * 130 * 140 + 2 * 140 * 4 + 2 * 4 * 130, 300 * 130 + 130 + 2 * 140
FACTORED = 300 + 130 + 1 + 2 * (130 + 140) + 1 + (130 + 2) + 2 * 140 + 2 + 2 * 140 * 4 + 2 + 2 * 4 * 130 + 2
KEPT = {"adamw": 2 * (MATRICES + REST), "lion": MATRICES + REST, "muon": MATRICES + 2 * REST, "adafactor": FACTORED}


def make_params():
    random = np.random.default_rng(0)
    is_shape = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32), SHAPES, is_leaf=is_shape)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_is_kept_beside_the_weights(name):
    learner, params = Learner(learning_rate=0.1, optimiser=name), make_params()
    one = count_state(learner, params)
    assert 0 <= one - KEPT[name] <= 8
    assert count_state(learner, {"planner": params, "actor": params}, is_per_role=True) == 2 * one


@pytest.mark.parametrize("name", OPTIMISERS)
def test_decay_is_decoupled_and_zero_gradients_teach_nothing(name):
    params = make_params()
    for decay in (0.0, 0.5):
        optimiser, _ = make_optimiser(Learner(learning_rate=0.1, optimiser=name, weight_decay=decay), 10)
        changes, _ = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
        expected = jax.tree.map(lambda leaf: -0.1 * decay * leaf, params)  # noqa: B023
        jax.tree.map(lambda got, by: np.testing.assert_allclose(got, by, atol=1e-6), changes, expected)


def step_once(name, gradient, params):
    optimiser, _ = make_optimiser(Learner(learning_rate=0.1, optimiser=name, max_grad_norm=1e6, adam_eps=1e-12), 10)
    return optimiser.update(gradient, optimiser.init(params), params)[0]


def test_first_update_of_muon_by_hand():
    """Newton and Schulz's iteration leaves singular vectors as they are and takes each value s, of a matrix divided by
    its norm, five times to 3.4445 s - 4.775 s^3 + 2.0315 s^5; the change is -rate * .2 * sqrt(longer side) times that.
    """
    gradient, params = make_params(), make_params()
    changes = step_once("muon", gradient, params)
    for above, name in (("query", "kernel"), ("down", "a"), ("down", "b")):
        both = (np.asarray(tree["blocks"][above][name], np.float64) for tree in (gradient, changes))
        for own, change in zip(*both, strict=True):  # a layer each
            left, value, right = np.linalg.svd(own / np.linalg.norm(own), full_matrices=False)
            for _ in range(5):
                value = 3.4445 * value - 4.775 * value**3 + 2.0315 * value**5
            assert 0.3 < value.min() and value.max() < 1.3
            expected = -0.1 * 0.2 * math.sqrt(max(own.shape)) * (left * value) @ right
            np.testing.assert_allclose(change, expected, atol=1e-6)
    # The rest by AdamW with Nesterov's momentum: .9 (.1 g) / (1 - .81) + (.1 g) / (1 - .9), by the root of g^2.
    for name in ("embedding", "final_norm"):
        expected = -0.1 * (0.09 / 0.19 + 1.0) * np.sign(gradient[name])
        np.testing.assert_allclose(changes[name], expected, atol=1e-6)


def test_first_update_of_adafactor_by_hand():
    """v = (row means x column means) / mean of g^2, the change -rate g / sqrt(v); a vector's is -rate sign(g)."""
    gradient, params = make_params(), make_params()
    changes = step_once("adafactor", gradient, params)
    square = np.square(np.float64(gradient["embedding"]))
    moment = np.outer(square.mean(axis=1), square.mean(axis=0)) / square.mean()
    change = np.float64(gradient["embedding"]) / np.sqrt(moment)
    change /= max(1.0, np.sqrt(np.mean(change**2)))
    np.testing.assert_allclose(changes["embedding"], -0.1 * change, atol=1e-6)
    np.testing.assert_allclose(changes["final_norm"], -0.1 * np.sign(gradient["final_norm"]), atol=1e-6)


def test_first_update_of_lion_is_a_sign():
    gradient, params = make_params(), make_params()
    jax.tree.map(
        lambda got, own: np.testing.assert_allclose(got, -0.1 * np.sign(own), atol=1e-7),
        step_once("lion", gradient, params), gradient,
    )  # fmt: skip
