"""What replacing trees does to the expected gradient: against every order and every outcome, and against draws."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest

from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_flat, make_tree
from c3jax.lab.games import make_game, make_team, see_all
from c3jax.lab.oracle import compute_oracle, compute_policy_gradient
from c3jax.lab.play import sample_plan
from c3jax.lab.policies import make_tabular
from experiments.resampling import TreeTruth, compare_gradients, compute_counts, enumerate_tree

PROBLEMS = 12
FAMILY = make_team(messages=(3, 3), sees=see_all(2), effect=1.0, coupling=1.5, spread=3.0, noise="bernoulli")
POLICY = make_tabular(FAMILY.shape, PROBLEMS, 1.0)
TREE = make_tree((2, 2))


@functools.cache
def list_truths(method: str = "c3") -> list[TreeTruth]:
    params, key = POLICY.init(jax.random.key(1)), jax.random.key(0)
    games = [make_game(FAMILY, key, index) for index in range(PROBLEMS)]
    return [enumerate_tree(FAMILY.shape, game, POLICY, params, TREE, method) for game in games]


@pytest.mark.parametrize("looked_at", [2, 3, 5])
def test_counts_by_every_order_and_outcome(looked_at):
    """By hand: five problems in each of 120 orders, with each of 32 outcomes; the first two with a signal train."""
    signal_N, expected_N = (0.9, 0.5, 0.2, 0.05, 0.7), np.zeros(5)
    for order in itertools.permutations(range(5)):
        for outcome in itertools.product((False, True), repeat=5):
            chance = np.prod([s if z else 1 - s for s, z in zip(signal_N, outcome, strict=True)]) / 120
            used = [x for x in order[:looked_at] if outcome[x]][:2]
            for x in used:
                expected_N[x] += chance / len(used) / signal_N[x]  # of its gradient given a signal, and so of all of it
    np.testing.assert_allclose(compute_counts(signal_N, looked_at), expected_N, rtol=1e-12)


def test_a_problem_looked_at_alone_counts_in_full():
    np.testing.assert_allclose(compute_counts((0.3, 0.6), 1), [0.5, 0.5])
    # Of two in one batch the first counts 1 - s / 2, s the other's chance: docs/method.md.
    np.testing.assert_allclose(compute_counts((0.3, 0.6), 2), [1 - 0.3, 1 - 0.15])


def test_enumerated_trees_are_those_that_are_drawn():
    """Signals counted in 20,000 draws; and c3's expected gradient, which is the true one of the expected return."""
    params, key = POLICY.init(jax.random.key(1)), jax.random.key(0)
    truth, game = list_truths()[3], make_game(FAMILY, key, 3)
    sample = jax.vmap(lambda key: sample_plan(FAMILY.shape, game, POLICY, params, TREE, key).return_L)
    return_SL = sample(jax.random.split(jax.random.key(2), 20_000))
    credit = apply_credit(make_credit_matrix("c3", TREE, (True, True)), return_SL, normalise="none")
    has_signal_S = np.any(np.concatenate([np.asarray(part_SN) != 0 for part_SN in credit.advantage], axis=1), axis=1)
    assert 0.1 < truth.signal < 0.9
    assert abs(has_signal_S.mean() - truth.signal) < 4 * np.sqrt(0.25 / 20_000)
    exact = compute_policy_gradient(compute_oracle(FAMILY.shape, game, POLICY, params))
    for got_CM, expected_CM in zip(truth.gradient, exact, strict=True):
        np.testing.assert_allclose(got_CM, expected_CM, atol=1e-6)


def test_what_is_left_of_the_bias():
    """The table of docs/method.md: batches of 3 of 12 problems, and 0, 1 and 3 rounds."""
    found = [compare_gradients(list_truths(), 3 * (1 + rounds)) for rounds in (0, 1, 3)]
    assert compare_gradients(list_truths(), 1)["cosine"] == pytest.approx(1.0, abs=1e-12)  # one problem at a time
    for row in found:
        assert 0.999 < row["cosine"] < 1.0 and 1.0 < row["most"] / row["least"] < 1.2
    # What is left is of a set that is finite: x itself is not among the others.
    assert found[0]["most"] < found[1]["most"] < found[2]["most"]
    # The true gradient otherwise, scaled up to one over the mean chance of a signal.
    signal = np.mean([truth.signal for truth in list_truths()])
    assert 1.0 < found[0]["scale"] < found[1]["scale"] < found[2]["scale"] < 1.1 / signal


def test_what_cannot_be_enumerated_is_refused():
    game, params = make_game(FAMILY, jax.random.key(0), 0), POLICY.init(jax.random.key(1))
    shape = FAMILY.shape._replace(noise="none")
    with pytest.raises(ValueError, match="expected a tree and a bernoulli evaluator, got tree and none"):
        enumerate_tree(shape, game, POLICY, params, make_flat(2, 2), "rloo")
