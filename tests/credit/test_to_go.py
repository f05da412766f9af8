"""Rewards on the way: credit of what is still to come."""

import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit.apply import apply_credit, sum_past
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_tree

# What environments pay on the way: a tree of two first messages, each answered once, and two last ones below each.
PAID = {
    # Rewards .25 and .75, scores 1 0 0 1: returns 1.25 .25 .75 1.75. At the first turn all of it is to come; at the
    # last one the scores alone, and with two alternatives each is compared with the other.
    "c3": (
        (2, 1, 2),
        [[0.25, 0.75]],
        [[1.25, 0.25, 0.75, 1.75]],
        [[0.75, 1.25]],
        [[-0.5, 0.5]],
        [[1.0, -1.0, -1.0, 1.0]],
    ),
    # Two episodes, rewards .25 and .75, scores 1 and 0. By its whole return the first would be credited with .5 for a
    # last message that was worth 1 more.
    "rloo": ((2, 1, 1), [[0.25, 0.75]], [[1.25, 0.75]], [[1.25, 0.75]], [[0.5, -0.5]], [[1.0, -1.0]]),
}


@pytest.mark.parametrize("make", [np.array, jnp.array])
@pytest.mark.parametrize("method", PAID)
def test_a_message_is_worth_what_is_still_to_come(method, make):
    fan_out, rewards, returns, value, first, last = PAID[method]
    past = sum_past((None, make(rewards, np.float32), None), len(returns[0]))
    per = len(returns[0]) // 2
    np.testing.assert_array_equal(past[0], np.zeros((1, 2 * per)))
    np.testing.assert_array_equal(past[1], past[0])
    np.testing.assert_array_equal(past[2], np.repeat(rewards, per, axis=1))
    matrix = make_credit_matrix(method, make_tree(fan_out), (True, False, True))
    credit = apply_credit(matrix, make(returns, np.float32), normalise="none", past=past)
    np.testing.assert_allclose(credit.value[0], value, atol=1e-6)
    np.testing.assert_allclose(credit.advantage[0], first, atol=1e-6)
    np.testing.assert_allclose(credit.advantage[2], last, atol=1e-6)
    np.testing.assert_allclose(credit.value[2], np.array(returns) - np.repeat(rewards, per, axis=1), atol=1e-6)


def test_nothing_is_paid_where_no_environment_answers():
    assert sum_past((None, None), 4) == ()
