"""The table of methods, its checks, and one contract for every method applied to batches of returns.

Dimension key: P problem    L leaf of one problem's tree    N message of one turn of one problem
"""

import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit.apply import apply_credit, zero_credit_share
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import METHODS, check_normalise, check_pairing

PAIRS = [(method, scope) for method, row in METHODS.items() for scope in row.scopes]
TREE_RETURN_PL = np.array([[1, 0, 0, 1, 1, 1, 1, 0]], np.float32)  # fan-out (2, 4)
apply_jitted = jax.jit(apply_credit, static_argnames="normalise")  # one trace a shape and scope, for all methods
THIRD = 0.3  # has no exact float32, nor have its thirds


def fan_out_of(method: str) -> tuple[int, ...]:
    return (4, 1, 1) if METHODS[method].is_flat else (2, 2, 2)


def draw_returns(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.float32) / 4


def assert_close(got, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), got, expected)


# Checks


def test_host_side_needs_no_jax():
    code = "import sys, c3jax.credit.matrix, c3jax.credit.methods; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("method", "fan_out", "trained"),
    [
        ("c3", (2, 4), None),
        ("c3", (2, 2, 2), None),
        ("c3", (8, 1), (True, False)),
        ("c3", (1, 8), (False, True)),
        ("no_loo", (2, 1, 4), (True, False, True)),
        ("no_replay", (2, 1), None),
        ("no_replay", (1, 4), (False, True)),
        ("rloo", (2,), None),
        ("magrpo", (8, 1, 1), None),
        ("reinforce", (1, 1), None),
        ("grpo", (8, 1), (True, False)),
    ],
)
def test_pairings_that_work(method, fan_out, trained):
    check_pairing(method, fan_out, trained)
    assert len(make_credit_matrix(method, fan_out, trained).value) == len(fan_out)


@pytest.mark.parametrize(
    ("method", "fan_out", "trained", "message"),
    [
        ("c4", (2, 4), None, r"method: expected one of c3, .*got 'c4'"),
        ("c3", (), None, r"fan_out: .*positive"),
        ("c3", (2, 0), None, r"fan_out: .*positive.*\(2, 0\)"),
        ("c3", (2, 4), (True,), r"trained: expected 2 entries.*got 1"),
        ("c3", (2, 4), (False, False), r"trained: expected at least one"),
        ("c3", (8, 1), None, r"method c3 .*turn 1 .*at least 2.*got 1 from fan_out \(8, 1\)"),
        ("no_loo", (1, 8), None, r"method no_loo .*turn 0 .*at least 2.*got 1 from fan_out \(1, 8\)"),
        ("no_replay", (1, 4), None, r"method no_replay .*turn 0 .*at least 2.*got 1"),
        ("rloo", (2, 4), None, r"method rloo .*expected fan_out \(B, 1, \.\.\., 1\), got \(2, 4\)"),
        ("reinforce", (1, 2), None, r"method reinforce .*expected fan_out \(B, 1, \.\.\., 1\), got \(1, 2\)"),
        ("magrpo", (2, 1, 2), (True, True, False), r"method magrpo .*\(B, 1, \.\.\., 1\), got \(2, 1, 2\)"),
        ("grpo", (1, 1), None, r"method grpo .*turn 0 .*at least 2.*got 1"),
    ],
)
def test_pairings_that_are_refused(method, fan_out, trained, message):
    with pytest.raises(ValueError, match=message):
        check_pairing(method, fan_out, trained)
    with pytest.raises(ValueError, match=message):
        make_credit_matrix(method, fan_out, trained)


def test_grpo_is_divided_over_the_group_and_nothing_else():
    check_normalise("grpo", "group")
    check_normalise("magrpo", "none")
    with pytest.raises(ValueError, match="method grpo: expected normalise group, got 'none'"):
        check_normalise("grpo", "none")
    with pytest.raises(ValueError, match="method c3: .*none or group or turn or batch, got 'std'"):
        check_normalise("c3", "std")


# Scopes, worked by hand. Reasoners -1/4 +1/4; actors 2/3 -2/3 -2/3 2/3, 1/3 1/3 1/3 -1 (see test_matrix).


@pytest.mark.parametrize("method", ["c3", "no_loo"])
def test_group_scope_makes_leave_one_out_and_mean_the_same(method):
    """A pair becomes -1 +1 whatever its gap. Context 1 has mean square (3/9 + 1)/4 = 1/3 under leave-one-out."""
    credit = apply_credit(make_credit_matrix(method, (2, 4)), TREE_RETURN_PL, normalise="group")
    root3 = math.sqrt(3)
    assert_close(credit.advantage[0], np.array([[-1, 1]]))
    assert_close(credit.advantage[1], np.array([[1, -1, -1, 1, 1 / root3, 1 / root3, 1 / root3, -root3]]))


def test_grpo_by_hand():
    """Five of eight episodes succeed: std = sqrt(5/8 * 3/8) = .484, .375/.484 = .775, -.625/.484 = -1.291."""
    credit = apply_credit(make_credit_matrix("grpo", (8, 1)), TREE_RETURN_PL, normalise="group")
    for advantage_PN in credit.advantage:
        assert_close(advantage_PN, np.where(TREE_RETURN_PL == 1, math.sqrt(3 / 5), -math.sqrt(5 / 3)))


def test_turn_scope_by_hand():
    """The actors' mean square is (4 * 4/9 + 3 * 1/9 + 1)/8 = 28/72; the reasoners' 1/16."""
    matrix = make_credit_matrix("c3", (2, 4))
    plain = apply_credit(matrix, TREE_RETURN_PL, normalise="none").advantage
    scaled = apply_credit(matrix, TREE_RETURN_PL, normalise="turn").advantage
    assert_close(scaled[0], np.array([[-1, 1]]))
    assert_close(scaled[1], plain[1] / math.sqrt(28 / 72))


def test_batch_scope_by_hand():
    """All ten messages: (2/16 + 28/9)/10. With the reasoner untrained the actors are alone: 28/72."""
    matrix = make_credit_matrix("c3", (2, 4))
    plain = apply_credit(matrix, TREE_RETURN_PL, normalise="none").advantage
    scaled = apply_credit(matrix, TREE_RETURN_PL, normalise="batch").advantage
    assert_close(scaled, tuple(a / math.sqrt((2 / 16 + 28 / 9) / 10) for a in plain))
    actor_only = make_credit_matrix("c3", (2, 4), trained=(False, True))
    scaled = apply_credit(actor_only, TREE_RETURN_PL, normalise="batch").advantage
    assert_close(scaled, (np.zeros((1, 2)), plain[1] / math.sqrt(28 / 72)))


def test_batch_scope_spans_problems_and_group_scope_does_not():
    """Pairs (1, 0), (0, 0), (1/2, 0): +-1, 0, +-1/2, mean square 2.5/6."""
    matrix, return_PL = make_credit_matrix("c3", (2,)), np.array([[1, 0], [0, 0], [0.5, 0]], np.float32)
    by_batch = apply_credit(matrix, return_PL, normalise="batch").advantage[0]
    assert_close(by_batch, np.array([[1, -1], [0, 0], [0.5, -0.5]]) / math.sqrt(2.5 / 6))
    by_group = apply_credit(matrix, return_PL, normalise="group").advantage[0]
    assert_close(by_group, np.array([[1, -1], [0, 0], [1, -1]]))


def test_scope_must_be_known():
    with pytest.raises(AssertionError, match="normalise"):
        apply_credit(make_credit_matrix("c3", (2,)), np.zeros((1, 2), np.float32), normalise="std")


def test_returns_must_have_the_tree_s_leaves():
    with pytest.raises(AssertionError):
        apply_credit(make_credit_matrix("c3", (2, 4)), np.zeros((3, 4), np.float32), normalise="none")


# Contract of every method


@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_shapes_types_and_definition(method, scope):
    """One f32 array per turn, [P, f0 * ... * fd]; value and baseline stay in units of return under every scope."""
    fan_out, return_PL = fan_out_of(method), draw_returns(0, (6, math.prod(fan_out_of(method))))
    matrix = make_credit_matrix(method, fan_out)
    credit = apply_jitted(matrix, return_PL, normalise=scope)
    for turn in range(3):
        for array_PN in (credit.value[turn], credit.baseline[turn], credit.advantage[turn]):
            assert array_PN.shape == (6, math.prod(fan_out[: turn + 1]))
            assert array_PN.dtype == jnp.float32
        assert_close(credit.value[turn], return_PL @ matrix.value[turn].T)
        assert_close(credit.baseline[turn], return_PL @ matrix.baseline[turn].T)
        if scope == "none":
            assert_close(credit.advantage[turn], credit.value[turn] - credit.baseline[turn])


@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_jitted_and_vmapped_are_eager(method, scope):
    matrix = make_credit_matrix(method, fan_out_of(method))
    return_SPL = draw_returns(1, (3, 6, math.prod(fan_out_of(method))))  # S seeds
    apply = functools.partial(apply_credit, normalise=scope)
    eager = [apply(matrix, return_PL) for return_PL in return_SPL]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *eager)
    assert_close(apply_jitted(matrix, return_SPL[0], normalise=scope), eager[0])
    assert_close(jax.jit(jax.vmap(apply, in_axes=(None, 0)))(matrix, return_SPL), stacked)


@pytest.mark.parametrize("scope", ["none", "group", "turn", "batch"])
def test_methods_are_an_axis(scope):
    """Stacked matrices of several methods on one fan-out, vmapped, give each method's own credit."""
    methods, return_PL = ("c3", "no_loo", "no_replay"), draw_returns(2, (7, 8))
    matrices = [make_credit_matrix(method, (2, 4)) for method in methods]
    apply = functools.partial(apply_credit, normalise=scope)
    together = jax.jit(jax.vmap(apply, in_axes=(0, None)))(jax.tree.map(lambda *x: np.stack(x), *matrices), return_PL)
    for i, matrix in enumerate(matrices):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), apply(matrix, return_PL))


@pytest.mark.parametrize("fan_out", [(3, 3), (5, 7), (3, 1)])
@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_equal_returns_give_exactly_zero(method, scope, fan_out):
    """Also where float32 means of equal returns differ in the last bit. reinforce has no group to be equal to."""
    if METHODS[method].is_flat:
        fan_out = (math.prod(fan_out), 1)
    trained = tuple(f > 1 or METHODS[method].is_flat for f in fan_out)
    matrix = make_credit_matrix(method, fan_out, trained)
    return_PL = np.full((4, math.prod(fan_out)), THIRD, np.float32)
    credit = apply_jitted(matrix, return_PL, normalise=scope)
    expected = np.float32(THIRD) if (method, scope) == ("reinforce", "none") else 0
    for advantage_PN in credit.advantage:
        np.testing.assert_array_equal(advantage_PN, np.full_like(advantage_PN, expected))
    np.testing.assert_array_equal(zero_credit_share(credit), [expected == 0] * 2)


@pytest.mark.parametrize("scope", ["none", "group", "turn", "batch"])
@pytest.mark.parametrize("method", ["c3", "no_loo"])
def test_one_context_of_equal_values_gets_exactly_zero(method, scope):
    """Context 1 of 3 is all .3 beside contexts that are not; values 2/3 in each alternative of the second problem."""
    first = [THIRD, 0.1, 0.9] + [THIRD] * 3 + [1, 0, 0]
    second = [1, 1, 0] + [1, 0, 1] + [0, 1, 1]
    credit = apply_jitted(make_credit_matrix(method, (3, 3)), np.array([first, second], np.float32), normalise=scope)
    np.testing.assert_array_equal(credit.advantage[1][0, 3:6], [0, 0, 0])
    np.testing.assert_array_equal(credit.advantage[0][1], [0, 0, 0])
    others = np.asarray(credit.advantage[1][0, [0, 1, 2, 6, 7, 8]])
    assert np.isfinite(others).all() and (others != 0).sum() >= 5


@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_permuting_problems_permutes_credit(method, scope):
    matrix = make_credit_matrix(method, fan_out_of(method))
    return_PL = draw_returns(3, (6, math.prod(fan_out_of(method))))
    order = np.array([3, 0, 5, 1, 4, 2])
    credit = apply_jitted(matrix, return_PL, normalise=scope)
    assert_close(apply_jitted(matrix, return_PL[order], normalise=scope), jax.tree.map(lambda x: x[order], credit))


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_permuting_alternatives_of_a_context_permutes_credit(method, scope, turn):
    """Swapping two alternatives of one context, with all that lies below them, swaps their credit and no other."""
    fan_out = (4, 1, 1) if METHODS[method].is_flat else (2, 2, 4)
    if fan_out[turn] == 1:
        turn = 0  # flat sampling has alternatives at the first turn alone: swap two episodes there
    num_messages = [math.prod(fan_out[: d + 1]) for d in range(3)]
    index = np.arange(num_messages[-1]).reshape(fan_out)
    context = (1,) * turn
    swapped = index.copy()
    swapped[context][[0, 1]] = index[context][[1, 0]]
    leaf_order = swapped.ravel()
    assert (leaf_order != index.ravel()).any()
    return_PL = np.round(draw_returns(4, (6, len(leaf_order))))  # 0 or 1: small spreads would magnify rounding
    matrix = make_credit_matrix(method, fan_out)
    before, after = (apply_jitted(matrix, r, normalise=scope) for r in (return_PL, return_PL[:, leaf_order]))
    for d, n in enumerate(num_messages):
        below = len(leaf_order) // n
        # A message moves with its first leaf; above the swap the order of messages stays as it was.
        order = leaf_order[::below] // below if d >= turn else np.arange(n)
        assert_close(after.advantage[d], before.advantage[d][:, order])


@pytest.mark.parametrize(("method", "scope"), [pair for pair in PAIRS if pair[0] != "reinforce"])
def test_shifting_a_problem_s_returns_changes_no_advantage(method, scope):
    matrix = make_credit_matrix(method, fan_out_of(method))
    return_PL = draw_returns(5, (6, math.prod(fan_out_of(method))))
    shift_P1 = np.array([[0], [1], [-0.5], [2], [0], [0.25]], np.float32)
    before, after = (apply_jitted(matrix, r, normalise=scope) for r in (return_PL, return_PL + shift_P1))
    assert_close(after.advantage, before.advantage)


def test_untrained_turn_of_fan_out_one():
    """Fan-out (2, 1, 2), leaves 1 0 | 1 1: first -1/2 +1/2, middle nothing, last +1 -1 0 0."""
    matrix = make_credit_matrix("c3", (2, 1, 2), trained=(True, False, True))
    return_PL = np.array([[1, 0, 1, 1]], np.float32)
    plain = apply_jitted(matrix, return_PL, normalise="none")
    assert_close(plain.advantage, (np.array([[-0.5, 0.5]]), np.zeros((1, 2)), np.array([[1, -1, 0, 0]])))
    assert_close(plain.value[1], np.array([[0.5, 1]]))
    by_group = apply_jitted(matrix, return_PL, normalise="group").advantage
    assert_close(by_group, (np.array([[-1, 1]]), np.zeros((1, 2)), np.array([[1, -1, 0, 0]])))


def test_zero_credit_share_by_hand():
    """Context 1 all right: its four actors of eight get nothing; the reasoners differ, 1/2 against 1."""
    return_PL = np.array([[1, 0, 0, 1, 1, 1, 1, 1]], np.float32)
    credit = apply_jitted(make_credit_matrix("c3", (2, 4)), return_PL, normalise="none")
    np.testing.assert_array_equal(zero_credit_share(credit), [0, 0.5])
