"""One contract for every row of the table, on the plan that the row samples, under every scope that it allows.

Leaves and messages get labels here, read off the description of the forms, so that a permutation of alternatives is
known without the code under test.

Dimension key: P problem    L leaf of one problem    N message of one turn    S seed
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit import plans
from c3jax.credit.apply import apply_credit, zero_credit_share
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import METHODS
from c3jax.credit.shrink import Components

PLANS = {
    "flat": plans.make_flat(4, 3),
    "tree": plans.make_tree((2, 2, 2)),
    "replay": plans.make_replay((1, 2, 2, 3), 3),
    "best_branch": plans.make_replay((1, 2, 2, 3), 3, continues_best=True),
    "auxiliary": plans.make_auxiliary(2, 3, 3),
    "removal": plans.make_arms("removal", 3, 3),
    "first_removal": plans.make_arms("first_removal", 3, 2),
    "masked": plans.make_arms("masked", 3, 3),
    "coalition": plans.make_arms("coalition", 2, 3),
}
PAIRS = [(method, scope) for method, row in METHODS.items() for scope in row.scopes]
WITHOUT_BASELINE = {"reinforce", "mappo", "coma", "shrunk", "rae"}  # their rows sum to 1; others make the baseline
THIRD = 0.3  # has no exact float32, nor have its thirds

apply_jitted = jax.jit(apply_credit, static_argnames="normalise")  # one trace a shape and scope, for all methods


def plan_of(method: str) -> plans.Plan:
    return PLANS[METHODS[method].sampling]


def draw_returns(seed: int, method: str, problems: int = 6) -> np.ndarray:
    shape = (problems, plans.count_calls(plan_of(method)))
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.float32) / 4


def assert_close(got, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), got, expected)


# The matrices


def test_every_sampling_has_a_row():
    assert {row.sampling for row in METHODS.values()} == set(PLANS)


@pytest.mark.parametrize("method", METHODS)
def test_shapes_are_the_closed_form(method):
    plan, matrix = plan_of(method), make_credit_matrix(method, plan_of(method))
    calls, credited = plans.count_calls(plan), plans.count_credited(plan)
    assert [v.shape for v in matrix.value] == [b.shape for b in matrix.baseline] == [(n, calls) for n in credited]
    assert [g.shape for g in matrix.group] == [(n, n) for n in credited]


@pytest.mark.parametrize("method", METHODS)
def test_row_sums(method):
    """Rows of value - baseline sum to 0, so a constant added to all returns of a problem changes nothing."""
    matrix = make_credit_matrix(method, plan_of(method))
    for value_NL, baseline_NL, group_NN in zip(*matrix, strict=True):
        np.testing.assert_allclose(value_NL.sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(baseline_NL.sum(axis=1), method not in WITHOUT_BASELINE, atol=1e-12)
        np.testing.assert_allclose(group_NN.sum(axis=1), 1, atol=1e-12)
        assert value_NL.min() >= 0


@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_turn_has_no_advantage_and_changes_no_other(method):
    plan = plan_of(method)
    trained = (True, False, True)[: plan.turns]
    full, part = make_credit_matrix(method, plan), make_credit_matrix(method, plan, trained)
    assert part.group[1] is None and not (part.value[1] - part.baseline[1]).any()
    for turn in range(plan.turns):
        np.testing.assert_array_equal(part.value[turn], full.value[turn])
        if turn != 1:
            np.testing.assert_array_equal(part.baseline[turn], full.baseline[turn])


# Applied to batches of returns


@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_shapes_types_and_definition(method, scope):
    """One f32 array per turn; value and baseline stay in units of return under every scope."""
    return_PL, matrix = draw_returns(0, method), make_credit_matrix(method, plan_of(method))
    credit = apply_jitted(matrix, return_PL, normalise=scope)
    for turn, num_messages in enumerate(plans.count_credited(plan_of(method))):
        for array_PN in (credit.value[turn], credit.baseline[turn], credit.advantage[turn]):
            assert array_PN.shape == (6, num_messages)
            assert array_PN.dtype == jnp.float32
        assert_close(credit.value[turn], return_PL @ matrix.value[turn].T)
        assert_close(credit.baseline[turn], return_PL @ matrix.baseline[turn].T)
        if scope == "none":
            assert_close(credit.advantage[turn], credit.value[turn] - credit.baseline[turn])


@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_jitted_and_vmapped_are_eager(method, scope):
    matrix = make_credit_matrix(method, plan_of(method))
    return_SPL = np.stack([draw_returns(seed, method) for seed in (1, 2, 3)])
    jitted = [apply_jitted(matrix, return_PL, normalise=scope) for return_PL in return_SPL]
    stacked = jax.tree.map(lambda *x: np.stack(x), *jitted)
    assert_close(apply_credit(matrix, jnp.asarray(return_SPL[0]), normalise=scope), jitted[0])
    assert_close(_vmap_over_seeds(scope)(matrix, return_SPL), stacked)


@pytest.mark.parametrize(("method", "scope"), [pair for pair in PAIRS if METHODS[pair[0]].carries != "critic"])
def test_numpy_is_jitted(method, scope):
    """The whole method, what it carries included; of NumPy's arrays NumPy's arrays come."""
    plan, return_PL = plan_of(method), draw_returns(7, method)
    carried = Components(np.float32(0.4), np.float32(0.1), np.array([0.2, 0.1, 0.05], np.float32), np.int32(3))
    random = np.random.default_rng(8)
    gradient = tuple(random.uniform(size=(6, n)).astype(np.float32) for n in plans.count_credited(plan))
    inputs = CreditInputs(make_credit_matrix(method, plan), plan.fan_out, carried)
    inputs = inputs._replace(gradient=gradient, likelihood=gradient)
    credit = compute_credit(method, inputs, return_PL.astype(np.float64), normalise=scope)
    assert {(type(x), x.dtype.name) for x in jax.tree.leaves(credit)} == {(np.ndarray, "float32")}
    assert_close(credit, _jit_compute(method, plan.fan_out, scope)(inputs.matrix, carried, gradient, return_PL))
    assert max(abs(advantage_PN).max() for advantage_PN in credit.advantage) > 0.1


@functools.cache
def _jit_compute(method, fan_out, scope):
    def compute(matrix, carried, gradient, return_PL):
        inputs = CreditInputs(matrix, fan_out, carried, gradient=gradient, likelihood=gradient)
        return compute_credit(method, inputs, return_PL, normalise=scope)

    return jax.jit(compute)


@functools.cache
def _vmap_over_seeds(scope):
    return jax.jit(jax.vmap(functools.partial(apply_credit, normalise=scope), in_axes=(None, 0)))


@pytest.mark.parametrize("scope", ["none", "group", "turn", "batch"])
@pytest.mark.parametrize("sampling", ["tree", "flat"])
def test_methods_are_an_axis(sampling, scope):
    """Stacked matrices of all methods of one plan, vmapped, give each method's own credit."""
    methods = [method for method, row in METHODS.items() if row.sampling == sampling]
    matrices = [make_credit_matrix(method, PLANS[sampling]) for method in methods]
    # Returns of 0 and 1, here and below: small spreads would magnify rounding.
    return_PL, apply = np.round(draw_returns(2, methods[0])), functools.partial(apply_credit, normalise=scope)
    together = jax.jit(jax.vmap(apply, in_axes=(0, None)))(jax.tree.map(lambda *x: np.stack(x), *matrices), return_PL)
    for i, matrix in enumerate(matrices):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), apply_jitted(matrix, return_PL, normalise=scope))


@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_equal_returns_give_exactly_zero(method, scope):
    """Also where float32 means of equal returns differ in the last bit. Without a baseline the return is left."""
    return_PL = np.full_like(draw_returns(0, method), THIRD)
    credit = apply_jitted(make_credit_matrix(method, plan_of(method)), return_PL, normalise=scope)
    expected = np.float32(THIRD) if method in WITHOUT_BASELINE and scope == "none" else 0
    for advantage_PN in credit.advantage:
        np.testing.assert_array_equal(advantage_PN, np.full_like(advantage_PN, expected))
    np.testing.assert_array_equal(zero_credit_share(credit), [expected == 0] * plan_of(method).turns)


@pytest.mark.parametrize(("method", "scope"), [pair for pair in PAIRS if pair[0] not in WITHOUT_BASELINE])
def test_shifting_a_problem_s_returns_changes_no_advantage(method, scope):
    matrix, return_PL = make_credit_matrix(method, plan_of(method)), np.round(draw_returns(5, method))
    shift_P1 = np.array([[0], [1], [-0.5], [2], [0], [0.25]], np.float32)
    before, after = (apply_jitted(matrix, r, normalise=scope) for r in (return_PL, return_PL + shift_P1))
    assert_close(after.advantage, before.advantage)


@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_permuting_problems_permutes_credit(method, scope):
    matrix, return_PL = make_credit_matrix(method, plan_of(method)), draw_returns(3, method)
    order = np.array([3, 0, 5, 1, 4, 2])
    credit = apply_jitted(matrix, return_PL, normalise=scope)
    assert_close(apply_jitted(matrix, return_PL[order], normalise=scope), jax.tree.map(lambda x: x[order], credit))


@pytest.mark.parametrize(("method", "scope"), [pair for pair in PAIRS if pair[1] in ("none", "group")])
def test_other_problems_change_no_credit(method, scope):
    """Problems that fill up a batch are harmless where the scope is within a problem."""
    matrix, return_PL = make_credit_matrix(method, plan_of(method)), draw_returns(6, method)
    padded_PL = np.concatenate([return_PL[:2], np.zeros_like(return_PL[2:])])
    full, padded = (apply_jitted(matrix, r, normalise=scope) for r in (return_PL, padded_PL))
    assert_close(jax.tree.map(lambda x: x[:2], padded), jax.tree.map(lambda x: x[:2], full))


# Permutations of alternatives, by labels


def list_labels(plan: plans.Plan) -> tuple[list[tuple], list[list[tuple]]]:
    """Labels of the leaves in order, and of each turn's credited messages in order."""
    turns, episodes = range(plan.turns), range(plan.episodes)
    if plan.form == "tree":
        levels = [list(np.ndindex(*plan.fan_out[: turn + 1])) for turn in turns]
        return levels[-1], levels
    if plan.form in ("replay", "best_branch"):
        leaves = [(turn, j, c) for turn in turns for j, count in enumerate(plan.counts) for c in range(count)]
        return leaves, [[(turn, j) for j in range(len(plan.counts))] for turn in turns]
    if plan.form == "coalition":
        leaves = [("episode", e, subset) for e in episodes for subset in range(2**plan.turns)]
    elif plan.form == "auxiliary":
        leaves = [("episode", e) for e in episodes] + [("problem", c) for c in range(plan.repeats)]
        leaves += [("episode", e, turn, c) for turn in turns[1:] for e in episodes for c in range(plan.repeats)]
    else:
        removed = range(1) if plan.form == "first_removal" else turns
        leaves = [("episode", e) for e in episodes] + [("episode", e, turn) for turn in removed for e in episodes]
    return leaves, [[("episode", e) for e in episodes]] * plan.turns


def swap(plan: plans.Plan, turn: int, label: tuple) -> tuple:
    """The label with two alternatives swapped: 0, 1 in a context of a tree, 1, 2 of a decision, or episodes 0, 1."""
    if plan.form == "tree":
        turn = 0 if plan.fan_out[turn] == 1 else turn
        context = (1,) * turn
        is_below = len(label) > turn and label[:turn] == context and label[turn] < 2
        return (*context, 1 - label[turn], *label[turn + 1 :]) if is_below else label
    if plan.form in ("replay", "best_branch"):
        return (turn, 3 - label[1], *label[2:]) if label[0] == turn and label[1] in (1, 2) else label
    return (label[0], 1 - label[1], *label[2:]) if label[0] == "episode" and label[1] < 2 else label


@pytest.mark.parametrize(
    ("method", "scope", "turn"), [(*pair, turn) for pair in PAIRS for turn in range(plan_of(pair[0]).turns)]
)
def test_permuting_alternatives_permutes_credit(method, scope, turn):
    """Swapping two alternatives, with all that was drawn for them, swaps their credit and no other."""
    plan, matrix = plan_of(method), make_credit_matrix(method, plan_of(method))
    leaves, messages = list_labels(plan)
    leaf_order = np.array([leaves.index(swap(plan, turn, label)) for label in leaves])
    assert (leaf_order != np.arange(len(leaves))).any()
    return_PL = np.round(draw_returns(4, method))
    before, after = (apply_jitted(matrix, r, normalise=scope) for r in (return_PL, return_PL[:, leaf_order]))
    for labels, before_PN, after_PN in zip(messages, before.advantage, after.advantage, strict=True):
        order = [labels.index(swap(plan, turn, label)) for label in labels]
        assert_close(after_PN, before_PN[:, np.array(order)])
