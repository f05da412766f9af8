"""Credit by any row of the table: what it carries goes where it belongs, eager and jitted."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit import shrink
from c3jax.credit.apply import apply_credit
from c3jax.credit.compute import APPLY, CreditInputs, compute_credit, find_apply
from c3jax.credit.learned import compute_assisted_credit, compute_episode_credit, compute_score_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.method import Apply
from c3jax.credit.methods import METHODS
from c3jax.credit.plans import make_arms, make_flat, make_tree

RETURN_PL = jnp.array([[1.0, 0.0, 0.25, 0.5], [0.0, 0.0, 1.0, 0.75]])
COMPONENTS = shrink.Components(jnp.float32(0.4), jnp.float32(0.1), jnp.array([0.2, 0.05]), jnp.int32(3))
TREE = (jnp.array([[0.4, 0.6], [0.2, 0.9]]), jnp.array([[0.9, 0.3, 0.2, 0.8], [0.7, 0.1, 0.3, 0.3]]))
FLAT = (jnp.array([[0.4, 0.6, 0.5, 0.1], [0.2, 0.9, 0.8, 0.4]]), TREE[1])


def replace_advantage(matrix, compute):
    credit = apply_credit(matrix, RETURN_PL, normalise="none")
    return credit._replace(advantage=tuple(map(compute, credit.value)))


def add_gains(credit, gain_PN, mean_P1):
    added = (gain_PN, jnp.broadcast_to(mean_P1, gain_PN.shape), gain_PN - mean_P1)
    return type(credit)(*((first + more, last) for (first, last), more in zip(credit, added, strict=True)))


EXPECTED = {
    "shrunk": lambda matrix: shrink.apply_shrunk(COMPONENTS, RETURN_PL, (2, 2), normalise="none"),
    "mappo": lambda matrix: compute_episode_credit(matrix, RETURN_PL, FLAT, discount=0.9, decay=0.7, normalise="none"),
    "value_assisted": lambda matrix: compute_assisted_credit(
        matrix, RETURN_PL, TREE, (2, 2), share=0.25, normalise="none"
    ),
    "rae": lambda matrix: replace_advantage(matrix, lambda value_PN: value_PN - 0.4)._replace(
        baseline=(jnp.full((2, 4), 0.4),) * 2
    ),
    "maxrl": lambda matrix: replace_advantage(matrix, lambda value_PN: value_PN / RETURN_PL.mean(1)[:, None] - 1.0),
    "tree_grpo": lambda matrix: replace_advantage(
        matrix,
        lambda value_PN: (
            (value_PN - RETURN_PL.mean(1)[:, None]) / RETURN_PL.std(1)[:, None]
            + (value_PN - RETURN_PL.mean()) / RETURN_PL.std()
        ),
    ),
    # Weights of 1, 2, 0, 1: (1 + 2 * 0 + .5) / 4; of 0, 0, 1, 1; all of 0, which is the mean; 2, 1, 1, 0.
    "otb": lambda matrix: apply_credit(matrix, RETURN_PL, normalise="none")._replace(
        baseline=tuple(jnp.broadcast_to(jnp.array(b)[:, None], (2, 4)) for b in ([0.375, 0.875], [0.4375, 0.25])),
        advantage=(RETURN_PL - jnp.array([[0.375], [0.875]]), RETURN_PL - jnp.array([[0.4375], [0.25]])),
    ),
    # Gains of 0, .4, .2, .2 and of 0, 0, .4, -.4; the last turn has none.
    "igpo": lambda matrix: add_gains(
        apply_credit(matrix, RETURN_PL, normalise="none"),
        jnp.array([[0, 0.4, 0.2, 0.2], [0, 0, 0.4, -0.4]]),
        jnp.array([[0.2], [0.0]]),
    ),
    "value_only": lambda matrix: compute_score_credit(matrix, RETURN_PL, TREE, (2, 2), normalise="none"),
}
GRADIENT = (jnp.array([[1.0, 2, 0, 1], [0, 0, 1, 1]]), jnp.array([[0.0, 0, 0, 0], [2, 1, 1, 0]]))
LIKELIHOOD = (jnp.array([[0.2] * 4, [0.4] * 4]), jnp.array([[0.2, 0.6, 0.4, 0.4], [0.4, 0.4, 0.8, 0.0]]))
ON_TREES = [name for name, row in METHODS.items() if row.sampling in ("tree", "flat") and row.critic != "oracle"]


@pytest.mark.parametrize("method", ON_TREES)
def test_every_method_is_applied_by_its_row(method):
    is_flat = METHODS[method].sampling == "flat"
    fan_out = (4, 1) if is_flat else (2, 2)
    matrix = make_credit_matrix(method, make_flat(4, 2) if is_flat else make_tree(fan_out))
    carried = (COMPONENTS, FLAT if is_flat else TREE)
    inputs = CreditInputs(matrix, fan_out, *carried, discount=0.9, decay=0.7, share=0.25, gradient=GRADIENT)
    inputs = inputs._replace(likelihood=LIKELIHOOD)
    scope = "none" if "none" in METHODS[method].scopes else METHODS[method].scopes[0]

    def compute(return_PL):
        return compute_credit(method, inputs, return_PL, normalise=scope)

    plain = lambda matrix: apply_credit(matrix, RETURN_PL, normalise=scope)  # noqa: E731
    expected = EXPECTED.get(method, plain)(matrix)
    for run in (compute, jax.jit(compute)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), run(RETURN_PL), expected)
    assert any(np.abs(a_PN).max() > 0.05 for a_PN in expected.advantage)


def test_what_a_row_carries_is_what_its_function_reads():
    assert {row.apply for row in METHODS.values()} == set(get_args(Apply)) == {*APPLY, "oracle"}
    carried = {
        "critic": {"gae", "assisted", "scores", "oracle"},
        "components": {"filter", "running_mean"},
        "nothing": {"rows", "mean_scaled", "tree_and_batch", "gradient_weighted", "removal_bonus", "information_gain"},
    }
    for row in METHODS.values():
        assert row.apply in carried[row.carries]


def test_a_method_that_needs_every_message_is_refused():
    with pytest.raises(ValueError, match="expected one that values of drawn messages are enough for"):
        find_apply(METHODS["coma"])


def test_maxrl_by_hand():
    """Mean 1/4: a success is worth 3, a failure -1. No success, or no failure, teaches nothing."""
    inputs = CreditInputs(make_credit_matrix("maxrl", make_flat(4, 2)), (4, 1))
    return_PL = jnp.array([[1.0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    for advantage_PN in compute_credit("maxrl", inputs, return_PL, normalise="none").advantage:
        np.testing.assert_allclose(advantage_PN, [[3, -1, -1, -1], [0] * 4, [0] * 4], atol=1e-6)


def test_tree_grpo_by_hand():
    """Trees 1 1 0 0 and 1 1 1 1: standardised within the tree, where it has a spread, and over all eight (3/4)."""
    inputs = CreditInputs(make_credit_matrix("tree_grpo", make_tree((2, 2))), (2, 2))
    credit = compute_credit("tree_grpo", inputs, jnp.array([[1.0, 1, 0, 0], [1, 1, 1, 1]]), normalise="none")
    std = np.sqrt(3 / 16)
    up, down = 1 + 0.25 / std, -1 - 0.75 / std
    np.testing.assert_allclose(credit.advantage[0], [[up, down], [0.25 / std] * 2], rtol=1e-6)
    np.testing.assert_allclose(credit.advantage[1], [[up, up, down, down], [0.25 / std] * 4], rtol=1e-6)
    for advantage_PN in compute_credit("tree_grpo", inputs, jnp.full((2, 4), 0.3), normalise="none").advantage:
        assert not advantage_PN.any()
    untrained = CreditInputs(make_credit_matrix("tree_grpo", make_tree((2, 2)), (True, False)), (2, 2))
    assert not compute_credit("tree_grpo", untrained, jnp.eye(4), normalise="none").advantage[1].any()


def test_igpo_by_hand():
    """Two episodes of three turns, returns 1 and 0; gains of .2 and then -.1, and of 0 and then .4: of mean 1/8."""
    likelihood = tuple(jnp.array([[*p]]) for p in ((0.1, 0.1), (0.3, 0.1), (0.2, 0.5)))
    inputs = CreditInputs(make_credit_matrix("igpo", make_flat(2, 3)), (2, 1, 1), likelihood=likelihood)
    return_PL = jnp.array([[1.0, 0.0]])
    # To come: .1 and .4 less 2/8, -.1 and .4 less 1/8, and nothing.
    gained = ([-0.15, 0.15], [-0.225, 0.275], [0.0, 0.0])
    std = np.std([0.2, -0.1, 0.0, 0.4])
    credit = compute_credit("igpo", inputs, return_PL, normalise="none")
    scaled = compute_credit("igpo", inputs, return_PL, normalise="group")
    for turn, more in enumerate(gained):
        np.testing.assert_allclose(credit.advantage[turn], [np.array([0.5, -0.5]) + more], atol=1e-6)
        np.testing.assert_allclose(credit.value[turn] - credit.baseline[turn], credit.advantage[turn], atol=1e-6)
        np.testing.assert_allclose(scaled.advantage[turn], [np.array([1, -1]) + np.array(more) / std], rtol=1e-5)
    # Nothing gained and nothing won apart is no signal, and without a turn before the last there are returns alone.
    flat = inputs._replace(likelihood=(jnp.full((1, 2), 0.3),) * 3)
    for scope in ("none", "group"):
        for advantage_PN in compute_credit("igpo", flat, jnp.ones((1, 2)), normalise=scope).advantage:
            assert not advantage_PN.any()
    alone = CreditInputs(make_credit_matrix("igpo", make_flat(2, 1)), (2,), likelihood=likelihood[:1])
    np.testing.assert_allclose(compute_credit("igpo", alone, return_PL, normalise="none").advantage[0], [[0.5, -0.5]])
    part = inputs._replace(matrix=make_credit_matrix("igpo", make_flat(2, 3), (False, True, True)))
    assert not compute_credit("igpo", part, return_PL, normalise="none").advantage[0].any()


def test_ccpo_by_hand():
    """Four episodes 1 0 1 0. One of four copies is right: a success has 1/10 more. Three are: a failure has 1/10 less.
    Two are: nothing. Without the first turn's training nothing either."""
    plan = make_arms("first_removal", 4, 2)
    inputs = CreditInputs(make_credit_matrix("ccpo", plan), ())
    return_PL = jnp.array([[1.0, 0, 1, 0, *copies] for copies in ([1.0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0])])
    plain, untrained = np.tile([0.5, -0.5], (3, 2)), make_credit_matrix("ccpo", plan, (False, True))
    credit = compute_credit("ccpo", inputs, return_PL, normalise="none")
    np.testing.assert_allclose(credit.value[0][:, :2], [[1.1, 0], [1, -0.1], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(credit.baseline[0][:, 0], [0.55, 0.45, 0.5], atol=1e-6)
    np.testing.assert_allclose(credit.advantage[0], plain * [[1.1], [1.1], [1.0]], atol=1e-6)
    np.testing.assert_allclose(credit.advantage[1], plain, atol=1e-6)
    # Over its group a standard deviation takes the bonus away; all wrong and all copies right is no signal.
    np.testing.assert_allclose(compute_credit("ccpo", inputs, return_PL, normalise="group").advantage[0], 2 * plain)
    lost = jnp.array([[0.0] * 4 + [1.0] * 4])
    for scope in ("none", "group"):
        assert not compute_credit("ccpo", inputs, lost, normalise=scope).advantage[0].any()
    first, second = compute_credit("ccpo", inputs._replace(matrix=untrained), return_PL, normalise="none").advantage
    assert not first.any()
    np.testing.assert_allclose(second, plain, atol=1e-6)


def test_rae_by_hand():
    """The mean of earlier steps, and of nothing in this one."""
    components = shrink.init_components(2)._replace(mean=jnp.float32(0.25))
    inputs = CreditInputs(make_credit_matrix("rae", make_flat(2, 2), (True, False)), (2, 1), components)
    credit = compute_credit("rae", inputs, jnp.array([[1.0, 0.0], [0.25, 0.5]]), normalise="none")
    np.testing.assert_allclose(credit.advantage[0], [[0.75, -0.25], [0, 0.25]], atol=1e-7)
    np.testing.assert_allclose(credit.baseline[0], 0.25)
    assert not credit.advantage[1].any()


def test_a_mean_has_the_weight_that_a_baseline_lacks():
    """rloo with a quarter of its baseline the mean .4: .75 of the other episode's return, and .1; value as it is."""
    components = shrink.init_components(2)._replace(mean=jnp.float32(0.4))
    matrix = make_credit_matrix("rloo", make_flat(2, 2), (True, False), mean=0.25)
    credit = APPLY["running_mean"](CreditInputs(matrix, (2, 1), components), jnp.array([[1.0, 0.2]]), "none")
    np.testing.assert_allclose(credit.value[0], [[1.0, 0.2]], atol=1e-7)
    np.testing.assert_allclose(credit.baseline[0], [[0.25, 0.85]], atol=1e-7)
    np.testing.assert_allclose(credit.advantage[0], [[0.75, -0.65]], atol=1e-7)
    assert not credit.advantage[1].any()
