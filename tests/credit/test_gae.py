"""Generalised advantage estimation: by hand, by its identities, and against the double sum of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit.gae import compute_gae

RETURN_N = np.array([1.0, 0.0], np.float32)
VALUE_NK = np.array([[0.5, 0.25, 0.75], [0.5, 1.0, 0.25]], np.float32)
DIALS = [(1.0, 1.0), (1.0, 0.0), (0.9, 0.5), (0.5, 1.0), (0.0, 0.0)]

jitted = jax.jit(compute_gae)


def test_by_hand():
    """Discount 1, decay 1/2. Errors -1/4 1/2 1/4: -1/4 + 1/4 + 1/16, 1/2 + 1/8, 1/4. The other: 1/2 -3/4 -1/4."""
    expected_NK = [[1 / 16, 5 / 8, 1 / 4], [1 / 2 - 3 / 8 - 1 / 16, -3 / 4 - 1 / 8, -1 / 4]]
    for compute in (compute_gae, jitted):
        np.testing.assert_allclose(compute(RETURN_N, VALUE_NK, 1.0, 0.5), expected_NK, atol=1e-6)


def test_without_discount_or_decay_it_is_the_return_less_the_value():
    np.testing.assert_allclose(compute_gae(RETURN_N, VALUE_NK, 1.0, 1.0), RETURN_N[:, None] - VALUE_NK, atol=1e-6)


def test_decay_zero_is_the_next_value_less_this_one():
    next_NK = np.concatenate([0.9 * VALUE_NK[:, 1:], RETURN_N[:, None]], axis=1)
    np.testing.assert_allclose(compute_gae(RETURN_N, VALUE_NK, 0.9, 0.0), next_NK - VALUE_NK, atol=1e-6)


def test_one_turn_knows_no_discount():
    np.testing.assert_allclose(compute_gae(RETURN_N, VALUE_NK[:, :1], 0.3, 0.3), [[0.5], [-0.5]], atol=1e-6)


def test_what_is_paid_on_the_way_is_in_the_error_between_two_turns():
    """Of a return of 1, .25 is paid after the first turn and .5 after the second: 1/4 is left for the last.

    Discount 1/2, decay 1/2. Errors .25 + .125 - .5 = -1/8, .5 + .375 - .25 = 5/8, .25 - .75 = -1/2; a later one counts
    a quarter: -1/8 + (5/8 - 1/8) / 4 = 0, 5/8 - 1/8, -1/2.
    """
    paid_NK = jnp.array([[0.0, 0.25, 0.75]])
    for compute in (compute_gae, jitted):
        advantage_NK = compute(RETURN_N[:1], VALUE_NK[:1], 0.5, 0.5, paid_NK)
        np.testing.assert_allclose(advantage_NK, [[0.0, 0.5, -0.5]], atol=1e-6)
    to_go_NK = RETURN_N[:1, None] - paid_NK
    np.testing.assert_allclose(compute_gae(RETURN_N[:1], VALUE_NK[:1], 1.0, 1.0, paid_NK), to_go_NK - VALUE_NK[:1])


@pytest.mark.parametrize(("discount", "decay"), DIALS)
def test_eager_jitted_and_vmapped_are_the_definition(discount, decay):
    random = np.random.default_rng(0)
    return_PN, value_PNK = random.normal(size=(3, 5)), random.normal(size=(3, 5, 4))
    next_PNK = np.concatenate([discount * value_PNK[..., 1:], return_PN[..., None]], axis=-1)
    delta_PNK = next_PNK - value_PNK
    expected_PNK = np.zeros_like(delta_PNK)
    for turn in range(4):
        for later in range(turn, 4):
            expected_PNK[..., turn] += (discount * decay) ** (later - turn) * delta_PNK[..., later]
    together = jax.vmap(compute_gae, in_axes=(0, 0, None, None))(return_PN, value_PNK, discount, decay)
    np.testing.assert_allclose(together, expected_PNK, atol=1e-6)
    for problem in range(3):
        for compute in (compute_gae, jitted):
            advantage_NK = compute(return_PN[problem], value_PNK[problem], discount, decay)
            np.testing.assert_allclose(advantage_NK, expected_PNK[problem], atol=1e-6)
            assert advantage_NK.dtype == jnp.float32


@pytest.mark.parametrize("value_shape", [(3, 3), (2,)])
def test_shapes_that_do_not_fit(value_shape):
    with pytest.raises(AssertionError):
        compute_gae(RETURN_N, np.zeros(value_shape), 1.0, 1.0)
