"""Credit with a critic's values, by hand and by identities, eager and jitted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit.apply import apply_credit
from c3jax.credit.learned import compute_assisted_credit, compute_episode_credit, compute_score_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_flat, make_tree

FLAT = make_credit_matrix("mappo", make_flat(2, 3))
RETURN_PL = jnp.array([[1.0, 0.0]])
VALUE = (jnp.array([[0.5, 0.5]]), jnp.array([[0.25, 0.75]]), jnp.array([[0.5, 0.0]]))

TREE = make_credit_matrix("value_assisted", make_tree((2, 2)))
LEAF_PL = jnp.array([[1.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
SCORE = (jnp.array([[0.4, 0.6], [0.5, 0.5]]), jnp.array([[0.9, 0.3, 0.2, 0.8], [0.1, 0.7, 0.3, 0.3]]))


def compare(credit, value, baseline, advantage):
    for got, expected in zip(credit, (value, baseline, advantage), strict=True):
        for got_PN, expected_PN in zip(got, expected, strict=True):
            np.testing.assert_allclose(got_PN, expected_PN, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_episode_credit_by_hand(wrap):
    """Discount .5 and decay .5, so a later error counts a quarter.

    Episode 1: errors .5 * .25 - .5 = -.375, .5 * .5 - .25 = 0, 1 - .5 = .5
               advantages .5, 0 + .125, -.375 + .03125 = -.34375
    Episode 2: errors .5 * .75 - .5 = -.125, .5 * 0 - .75 = -.75, 0 - 0 = 0
               advantages 0, -.75, -.125 - .1875 = -.3125
    """
    run = wrap(functools.partial(compute_episode_credit, FLAT, discount=0.5, decay=0.5, normalise="none"))
    advantage = ([[-0.34375, -0.3125]], [[0.125, -0.75]], [[0.5, 0.0]])
    value = [np.asarray(v) + np.asarray(a) for v, a in zip(VALUE, advantage, strict=True)]
    compare(run(RETURN_PL, VALUE), value, VALUE, advantage)


def test_without_discount_the_critic_is_a_baseline_of_the_return():
    credit = compute_episode_credit(FLAT, RETURN_PL, VALUE, discount=1.0, decay=1.0, normalise="none")
    compare(credit, [RETURN_PL] * 3, VALUE, [RETURN_PL - value_PN for value_PN in VALUE])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_an_environment_answers_between_two_turns(wrap):
    """The second turn is an environment's and pays 1/4 in the first episode, which returns 1. Discount and decay 1/2.

    Episode 1: errors 1/4 + .5 * .5 - .5 = 0, 3/4 - 1/2 = 1/4; the later one counts a quarter: 1/16, 1/4
    Episode 2: errors .5 * 0 - .5 = -.5, 0 - 0 = 0
    """
    matrix = make_credit_matrix("mappo", make_flat(2, 3), (True, False, True))
    past = (jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.array([[0.25, 0.0]]))
    run = wrap(functools.partial(compute_episode_credit, matrix, discount=0.5, decay=0.5, normalise="none", past=past))
    advantage = ([[1 / 16, -0.5]], [[0.0, 0.0]], [[0.25, 0.0]])
    value = ([[0.5625, 0.0]], RETURN_PL, [[0.75, 0.0]])
    compare(run(RETURN_PL, (VALUE[0], None, VALUE[2])), value, (VALUE[0], RETURN_PL, VALUE[2]), advantage)


def test_a_critic_of_zeros_is_reinforce():
    reinforce = apply_credit(make_credit_matrix("reinforce", make_flat(2, 3)), RETURN_PL, normalise="batch")
    zeros = [jnp.zeros((1, 2))] * 3
    credit = compute_episode_credit(FLAT, RETURN_PL, zeros, discount=1.0, decay=1.0, normalise="batch")
    compare(credit, *reinforce)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_assisted_credit_by_hand(wrap):
    """A quarter of each baseline is the other alternative's score. Second problem: all returns are 0."""
    run = wrap(
        functools.partial(
            compute_assisted_credit,
            TREE,
            fan_out=(2, 2),
            share=0.25,
            normalise="none",
        )
    )
    value = ([[0.5, 0.5], [0, 0]], [[1.0, 0.0, 0.5, 0.5], [0, 0, 0, 0]])
    baseline = (
        [[0.75 * 0.5 + 0.25 * 0.6, 0.75 * 0.5 + 0.25 * 0.4], [0.125, 0.125]],
        [
            [0.25 * 0.3, 0.75 + 0.25 * 0.9, 0.375 + 0.25 * 0.8, 0.375 + 0.25 * 0.2],
            [0.175, 0.025, 0.075, 0.075],
        ],
    )
    advantage = [np.array(v) - np.array(b) for v, b in zip(value, baseline, strict=True)]
    compare(run(LEAF_PL, SCORE), value, baseline, advantage)


def test_value_only_by_hand():
    """Scores minus the other alternative's, whatever the returns; equal scores are worth nothing."""
    credit = compute_score_credit(TREE, LEAF_PL, SCORE, (2, 2), normalise="none")
    advantage = ([[-0.2, 0.2], [0, 0]], [[0.6, -0.6, -0.6, 0.6], [-0.6, 0.6, 0, 0]])
    baseline = [np.asarray(q) - np.array(a) for q, a in zip(SCORE, advantage, strict=True)]
    compare(credit, SCORE, baseline, advantage)
    assert not credit.advantage[1][1, 2:].any()


def test_with_a_share_of_nothing_value_assisted_is_c3():
    c3 = apply_credit(make_credit_matrix("c3", make_tree((2, 2))), LEAF_PL, normalise="turn")
    credit = compute_assisted_credit(TREE, LEAF_PL, SCORE, (2, 2), share=0.0, normalise="turn")
    compare(credit, *c3)


def test_standardised_within_its_context_the_score_enters_with_a_positive_sign():
    """r_i - (sum q - q_i) / (n - 1) is r_i + q_i / (n - 1) but for a constant of the context.

    Standardised, both have the same spread around their means; here n is 3 and the advantages are divided by the
    standard deviation alone, so they are compared after their means are taken off.
    """
    matrix = make_credit_matrix("value_assisted", make_tree((3,)))
    return_PL, score_PL = jnp.array([[1.0, 0.0, 0.5]]), jnp.array([[0.2, 0.9, 0.4]])
    credit = compute_assisted_credit(matrix, return_PL, (score_PL,), (3,), share=1.0, normalise="group")
    mixed_PL = np.array([[1.0 + 0.1, 0.0 + 0.45, 0.5 + 0.2]])
    expected_PL = (mixed_PL - mixed_PL.mean()) / mixed_PL.std()
    (got_PL,) = credit.advantage
    np.testing.assert_allclose(got_PL - got_PL.mean(), expected_PL, atol=1e-6)


def test_a_turn_that_is_not_trained_has_no_credit_and_its_values_still_count():
    """Turn 1 draws one alternative, which has no other to be compared with."""
    matrix = make_credit_matrix("value_assisted", make_tree((2, 1)), trained=(True, False))
    score = (jnp.array([[0.4, 0.6]]), jnp.array([[0.9, 0.1]]))
    for compute in (functools.partial(compute_assisted_credit, share=1.0), compute_score_credit):
        credit = compute(matrix, RETURN_PL, score, (2, 1), normalise="none")
        assert not credit.advantage[1].any() and credit.advantage[0].all()
    flat = make_credit_matrix("mappo", make_flat(2, 2), trained=(True, False))
    credit = compute_episode_credit(flat, RETURN_PL, score, discount=1.0, decay=0.0, normalise="none")
    np.testing.assert_allclose(credit.advantage[0], [[0.9 - 0.4, 0.1 - 0.6]], atol=1e-6)
    np.testing.assert_allclose(credit.value[1], RETURN_PL, atol=1e-6)  # what the critic learns there
    assert not credit.advantage[1].any()
