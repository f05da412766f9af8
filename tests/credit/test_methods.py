"""The checks of the table of methods, and trees of returns worked by hand under every scope.

Dimension key: P problem    L leaf of one problem's tree    N message of one turn of one problem
"""

import functools
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from c3jax.credit import plans
from c3jax.credit.apply import apply_credit, zero_credit_share
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.methods import METHODS, find_trainable
from c3jax.credit.pairing import check_normalise, check_pairing, needs_critic

WITHOUT_BASELINE = {"reinforce", "mappo", "coma", "shrunk", "rae"}  # they compare no messages; see test_contract
COMPARING = {m: row for m, row in METHODS.items() if row.sampling in ("tree", "flat") and m not in WITHOUT_BASELINE}
PAIRS = [(method, scope) for method, row in COMPARING.items() for scope in row.scopes]
TREE_RETURN_PL = np.array([[1, 0, 0, 1, 1, 1, 1, 0]], np.float32)  # fan-out (2, 4)
apply_jitted = jax.jit(apply_credit, static_argnames="normalise")  # one trace a shape and scope, for all methods
THIRD = 0.3  # has no exact float32, nor have its thirds


def make_matrix(method: str, fan_out: tuple[int, ...], trained: tuple[bool, ...] | None = None) -> CreditMatrix:
    return make_credit_matrix(method, plans.make_tree(fan_out), trained)


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
    check_pairing(method, plans.make_tree(fan_out), trained)
    assert len(make_matrix(method, fan_out, trained).value) == len(fan_out)


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
        check_pairing(method, plans.make_tree(fan_out), trained)
    with pytest.raises(ValueError, match=message):
        make_matrix(method, fan_out, trained)


@pytest.mark.parametrize(
    ("method", "plan"),
    [
        ("c3_replay", plans.make_replay((1, 3), 2)),
        ("at_grpo", plans.make_replay((2, 2), 3, continues_best=True)),
        ("vine_ppo", plans.make_auxiliary(1, 1, 2)),
        ("difference", plans.make_arms("removal", 1, 2)),
        ("difference_masked", plans.make_arms("masked", 1, 2)),
        ("shapley", plans.make_arms("coalition", 1, 5)),
        ("ccpo", plans.make_arms("first_removal", 2, 2)),
    ],
)
def test_forms_beside_the_tree_that_work(method, plan):
    check_pairing(method, plan, (True,) * plan.turns)


@pytest.mark.parametrize(
    ("method", "plan", "message"),
    [
        ("shapley", plans.make_tree((2, 4)), "method shapley: expected a plan of form coalition, got tree"),
        ("c3", plans.make_replay((1, 1), 2), "method c3: expected a plan of form tree, got replay"),
        ("rloo", plans.make_arms("removal", 2, 2), "method rloo: expected a plan of form tree, got removal"),
        ("c3_replay", plans.make_replay((1, 1), 2, continues_best=True), "expected a plan of form replay, got best_br"),
        ("at_grpo", plans.make_replay((1, 1), 2), "expected a plan of form best_branch, got replay"),
        ("difference", plans.make_arms("masked", 2, 2), "expected a plan of form removal, got masked"),
        (
            "c3_replay",
            plans.make_replay((4,), 2),
            r"turn 0 zero credit: expected at least 2 .*got 1 from counts \(4,\)",
        ),
        ("vine_ppo", plans.make_auxiliary(2, 0, 2), "repeats: expected at least 1, got 0"),
        (
            "ccpo",
            plans.make_arms("first_removal", 1, 2),
            "turn 0 zero credit: expected at least 2 .*got 1 from episodes 1",
        ),
        ("ccpo", plans.make_arms("first_removal", 2, 3), "turns: expected 2 where the second one's message .*, got 3"),
    ],
)
def test_forms_that_are_refused(method, plan, message):
    with pytest.raises(ValueError, match=message):
        check_pairing(method, plan)


def test_what_a_training_run_can_use():
    critics = {"mappo", "value_assisted", "value_only"}
    for method in METHODS.keys() - {"coma"}:
        assert find_trainable(method) is METHODS[method]
        assert needs_critic(method) == (method in critics)
    for method in ("coma", "c4"):
        with pytest.raises(ValueError, match="expected one of c3, no_loo, .*, value_only, shrunk, c3_replay"):
            find_trainable(method)
    with pytest.raises(ValueError, match="^credit.method: coma needs the value of every possible message, which only"):
        find_trainable("coma")


def test_grpo_is_divided_over_the_group_and_nothing_else():
    check_normalise("grpo", "group")
    check_normalise("magrpo", "none")
    check_normalise("dr_mas", "turn")
    with pytest.raises(ValueError, match="method grpo: expected normalise group, got 'none'"):
        check_normalise("grpo", "none")
    with pytest.raises(ValueError, match="method dr_mas: expected normalise turn, got 'group'"):
        check_normalise("dr_mas", "group")
    with pytest.raises(ValueError, match="method c3: .*none or group or turn or batch, got 'std'"):
        check_normalise("c3", "std")


# Scopes, worked by hand. Reasoners -1/4 +1/4; actors 2/3 -2/3 -2/3 2/3, 1/3 1/3 1/3 -1 (see test_matrix).


@pytest.mark.parametrize("method", ["c3", "no_loo"])
def test_group_scope_makes_leave_one_out_and_mean_the_same(method):
    """A pair becomes -1 +1 whatever its gap. Context 1 has mean square (3/9 + 1)/4 = 1/3 under leave-one-out."""
    credit = apply_credit(make_matrix(method, (2, 4)), TREE_RETURN_PL, normalise="group")
    root3 = math.sqrt(3)
    assert_close(credit.advantage[0], np.array([[-1, 1]]))
    assert_close(credit.advantage[1], np.array([[1, -1, -1, 1, 1 / root3, 1 / root3, 1 / root3, -root3]]))


def test_grpo_by_hand():
    """Five of eight episodes succeed: std = sqrt(5/8 * 3/8) = .484, .375/.484 = .775, -.625/.484 = -1.291."""
    credit = apply_credit(make_matrix("grpo", (8, 1)), TREE_RETURN_PL, normalise="group")
    for advantage_PN in credit.advantage:
        assert_close(advantage_PN, np.where(TREE_RETURN_PL == 1, math.sqrt(3 / 5), -math.sqrt(5 / 3)))


def test_dr_mas_by_hand():
    """Problems 1 0 and 1 1: advantages 1/2 -1/2 0 0 at either turn, mean square 1/8 over both. grpo gives +1 -1 0 0."""
    credit = apply_credit(make_matrix("dr_mas", (2, 1)), np.array([[1, 0], [1, 1]], np.float32), normalise="turn")
    for advantage_PN in credit.advantage:
        assert_close(advantage_PN, np.array([[math.sqrt(2), -math.sqrt(2)], [0, 0]]))


def test_turn_scope_by_hand():
    """The actors' mean square is (4 * 4/9 + 3 * 1/9 + 1)/8 = 28/72; the reasoners' 1/16."""
    matrix = make_matrix("c3", (2, 4))
    plain = apply_credit(matrix, TREE_RETURN_PL, normalise="none").advantage
    scaled = apply_credit(matrix, TREE_RETURN_PL, normalise="turn").advantage
    assert_close(scaled[0], np.array([[-1, 1]]))
    assert_close(scaled[1], plain[1] / math.sqrt(28 / 72))


def test_batch_scope_by_hand():
    """All ten messages: (2/16 + 28/9)/10. With the reasoner untrained the actors are alone: 28/72."""
    matrix = make_matrix("c3", (2, 4))
    plain = apply_credit(matrix, TREE_RETURN_PL, normalise="none").advantage
    scaled = apply_credit(matrix, TREE_RETURN_PL, normalise="batch").advantage
    assert_close(scaled, tuple(a / math.sqrt((2 / 16 + 28 / 9) / 10) for a in plain))
    actor_only = make_matrix("c3", (2, 4), trained=(False, True))
    scaled = apply_credit(actor_only, TREE_RETURN_PL, normalise="batch").advantage
    assert_close(scaled, (np.zeros((1, 2)), plain[1] / math.sqrt(28 / 72)))


def test_batch_scope_spans_problems_and_group_scope_does_not():
    """Pairs (1, 0), (0, 0), (1/2, 0): +-1, 0, +-1/2, mean square 2.5/6."""
    matrix, return_PL = make_matrix("c3", (2,)), np.array([[1, 0], [0, 0], [0.5, 0]], np.float32)
    by_batch = apply_credit(matrix, return_PL, normalise="batch").advantage[0]
    assert_close(by_batch, np.array([[1, -1], [0, 0], [0.5, -0.5]]) / math.sqrt(2.5 / 6))
    by_group = apply_credit(matrix, return_PL, normalise="group").advantage[0]
    assert_close(by_group, np.array([[1, -1], [0, 0], [1, -1]]))


def test_scope_must_be_known():
    with pytest.raises(AssertionError, match="normalise"):
        apply_credit(make_matrix("c3", (2,)), np.zeros((1, 2), np.float32), normalise="std")


def test_returns_must_have_the_tree_s_leaves():
    with pytest.raises(AssertionError):
        apply_credit(make_matrix("c3", (2, 4)), np.zeros((3, 4), np.float32), normalise="none")


# What a batch of trees gets


@pytest.mark.parametrize("fan_out", [(3, 3), (5, 7), (3, 1)])
@pytest.mark.parametrize(("method", "scope"), PAIRS)
def test_equal_returns_give_exactly_zero(method, scope, fan_out):
    """Also where float32 means of equal returns differ in the last bit."""
    is_flat = METHODS[method].sampling == "flat"
    if is_flat:
        fan_out = (math.prod(fan_out), 1)
    trained = tuple(f > 1 or is_flat for f in fan_out)
    matrix = make_matrix(method, fan_out, trained)
    return_PL = np.full((4, math.prod(fan_out)), THIRD, np.float32)
    credit = apply_jitted(matrix, return_PL, normalise=scope)
    for advantage_PN in credit.advantage:
        np.testing.assert_array_equal(advantage_PN, np.zeros_like(advantage_PN))
    np.testing.assert_array_equal(zero_credit_share(credit), [1, 1])


@pytest.mark.parametrize("scope", ["none", "group", "turn", "batch"])
@pytest.mark.parametrize("method", ["c3", "no_loo"])
def test_one_context_of_equal_values_gets_exactly_zero(method, scope):
    """Context 1 of 3 is all .3 beside contexts that are not; values 2/3 in each alternative of the second problem."""
    first = [THIRD, 0.1, 0.9] + [THIRD] * 3 + [1, 0, 0]
    second = [1, 1, 0] + [1, 0, 1] + [0, 1, 1]
    credit = apply_jitted(make_matrix(method, (3, 3)), np.array([first, second], np.float32), normalise=scope)
    np.testing.assert_array_equal(credit.advantage[1][0, 3:6], [0, 0, 0])
    np.testing.assert_array_equal(credit.advantage[0][1], [0, 0, 0])
    others = np.asarray(credit.advantage[1][0, [0, 1, 2, 6, 7, 8]])
    assert np.isfinite(others).all() and (others != 0).sum() >= 5


def test_untrained_turn_of_fan_out_one():
    """Fan-out (2, 1, 2), leaves 1 0 | 1 1: first -1/2 +1/2, middle nothing, last +1 -1 0 0."""
    matrix = make_matrix("c3", (2, 1, 2), trained=(True, False, True))
    return_PL = np.array([[1, 0, 1, 1]], np.float32)
    plain = apply_jitted(matrix, return_PL, normalise="none")
    assert_close(plain.advantage, (np.array([[-0.5, 0.5]]), np.zeros((1, 2)), np.array([[1, -1, 0, 0]])))
    assert_close(plain.value[1], np.array([[0.5, 1]]))
    by_group = apply_jitted(matrix, return_PL, normalise="group").advantage
    assert_close(by_group, (np.array([[-1, 1]]), np.zeros((1, 2)), np.array([[1, -1, 0, 0]])))


def test_zero_credit_share_by_hand():
    """Context 1 all right: its four actors of eight get nothing; the reasoners differ, 1/2 against 1."""
    return_PL = np.array([[1, 0, 0, 1, 1, 1, 1, 1]], np.float32)
    credit = apply_jitted(make_matrix("c3", (2, 4)), return_PL, normalise="none")
    np.testing.assert_array_equal(zero_credit_share(credit), [0, 0.5])
