"""The rows of every form of sampling beside the plain tree, worked by hand.

Dimension key: N message of one turn of one problem    L leaf of one problem
"""

import numpy as np

from c3jax.credit import rows
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.plans import make_arms, make_auxiliary, make_replay, make_tree


def apply_matrix(matrix: CreditMatrix, return_L: np.ndarray) -> list[np.ndarray]:
    return [
        (value_NL - baseline_NL) @ return_L for value_NL, baseline_NL in zip(matrix.value, matrix.baseline, strict=True)
    ]


def test_unequal_counts_are_not_weighted_equally():
    """Counts 1, 2, 3: b_-0 is uniform over the five leaves of the others, and so not (Q_1 + Q_2)/2."""
    plan = make_replay((1, 2, 3), 1)
    baseline_NL, value_NL = rows.others_in_context(plan, 0), rows.own_leaves(plan, 0)
    np.testing.assert_allclose(baseline_NL[0], [0, *[1 / 5] * 5], atol=1e-12)
    np.testing.assert_allclose(baseline_NL[1], [1 / 4, 0, 0, *[1 / 4] * 3], atol=1e-12)
    np.testing.assert_allclose(baseline_NL[2], [*[1 / 3] * 3, 0, 0, 0], atol=1e-12)
    equal_NL = (value_NL.sum(axis=0) - value_NL) / 2
    assert np.abs(equal_NL - baseline_NL).max(axis=1).min() > 0.04


def test_replay_form_by_hand():
    """Two turns, counts 1 and 2. First block 1 | 0 1: values 1, 1/2. Second block 0 | 1 1: values 0, 1."""
    matrix = make_credit_matrix("c3_replay", make_replay((1, 2), 2))
    first_N, second_N = apply_matrix(matrix, np.array([1, 0, 1, 0, 1, 1.0]))
    np.testing.assert_allclose(first_N, [1 / 2, -1 / 2], atol=1e-12)
    np.testing.assert_allclose(second_N, [-1, 1], atol=1e-12)


def test_tree_rl_by_hand():
    """Root 5/8. Reasoners 1/2, 3/4: twice -1/8, +1/8. Actors: 2 V(n) - 5/8 - 1/2, and 2 V(n) - 5/8 - 3/4."""
    reasoner_N, actor_N = apply_matrix(
        make_credit_matrix("tree_rl", make_tree((2, 4))), np.array([1, 0, 0, 1, 1, 1, 1, 0])
    )
    np.testing.assert_allclose(reasoner_N, [-1 / 4, 1 / 4], atol=1e-12)
    np.testing.assert_allclose(actor_N, [7 / 8, -9 / 8, -9 / 8, 7 / 8, 5 / 8, 5 / 8, 5 / 8, -11 / 8], atol=1e-12)


def test_vine_ppo_by_hand():
    """An episode of return 1; the problem again 0 1; after the first message 1 1: 1 - 1/2, then 1 - 1."""
    first_N, second_N = apply_matrix(
        make_credit_matrix("vine_ppo", make_auxiliary(1, 2, 2)), np.array([1, 0, 1, 1, 1.0])
    )
    np.testing.assert_allclose(first_N, [1 / 2], atol=1e-12)
    np.testing.assert_allclose(second_N, [0], atol=1e-12)


def test_difference_by_hand():
    """Two episodes 1 0; without their first messages 1 1, without their second 0 0."""
    first_N, second_N = apply_matrix(
        make_credit_matrix("difference", make_arms("removal", 2, 2)), np.array([1, 0, 1, 1, 0, 0.0])
    )
    np.testing.assert_allclose(first_N, [0, -1], atol=1e-12)
    np.testing.assert_allclose(second_N, [1, 0], atol=1e-12)


def test_shapley_by_hand():
    """Nobody 1/4, the first alone 1/2, the second alone 0, both 1: (1/4 + 1)/2 and (-1/4 + 1/2)/2; they sum to 3/4."""
    matrix = make_credit_matrix("shapley", make_arms("coalition", 1, 2))
    first_N, second_N = apply_matrix(matrix, np.array([0.25, 0.5, 0, 1]))
    np.testing.assert_allclose([first_N[0], second_N[0]], [5 / 8, 1 / 8], atol=1e-12)


def test_shapley_values_share_out_the_whole_gain():
    matrix = make_credit_matrix("shapley", make_arms("coalition", 2, 4))
    return_L = np.random.default_rng(0).uniform(size=32)
    total_N = sum(apply_matrix(matrix, return_L))
    np.testing.assert_allclose(total_N, return_L[[15, 31]] - return_L[[0, 16]], atol=1e-12)


def test_masked_removal_reads_its_leaves_as_removal_does():
    removal = make_credit_matrix("difference", make_arms("removal", 2, 3))
    masked = make_credit_matrix("difference_masked", make_arms("masked", 2, 3))
    for mine, theirs in zip(masked.value + masked.baseline, removal.value + removal.baseline, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_replay_with_one_turn_and_equal_counts_is_a_tree():
    replay, tree = (
        make_credit_matrix("c3_replay", make_replay((2, 2, 2), 1)),
        make_credit_matrix("c3", make_tree((3, 2)), (True, True)),
    )
    np.testing.assert_array_equal(replay.value[0], tree.value[0])
    np.testing.assert_array_equal(replay.baseline[0], tree.baseline[0])


def test_hgpo_by_hand():
    """Root 5/8. Actors of the first reasoner (1/2): V(n) - 1/3 of 5/8 - 2/3 of 1/2; of the second (3/4) likewise."""
    matrix = make_credit_matrix("hgpo", make_tree((2, 4)))
    reasoner_N, actor_N = apply_matrix(matrix, np.array([1, 0, 0, 1, 1, 1, 1, 0]))
    np.testing.assert_allclose(reasoner_N, [-1 / 8, 1 / 8], atol=1e-12)
    first, second = 5 / 24 + 1 / 3, 5 / 24 + 1 / 2
    expected = [1 - first, -first, -first, 1 - first, *[1 - second] * 3, -second]
    np.testing.assert_allclose(actor_N, expected, atol=1e-12)
