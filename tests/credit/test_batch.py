"""Rows with ids against trees written out by hand, in any order, of one shape or several."""

import subprocess
import sys

import numpy as np
import pytest

from c3jax.credit.apply import apply_credit
from c3jax.credit.batch import compute_batch_credit, spread_over_tokens
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import METHODS
from c3jax.credit.plans import make_tree
from c3jax.types import UserError

# Two problems of fan-out (2, 2), shuffled: problem x has the contexts a (returns 1, 0) and b (0, 0), y has c and d.
CONTEXT_BK = [["x", "a"], ["y", "d"], ["x", "b"], ["y", "c"], ["x", "b"], ["y", "c"], ["x", "a"], ["y", "d"]]
RETURN_B = [1.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_c3_by_hand():
    """x: the message before a is worth 1/2, that before b 0. y: c 1/2 and d 1/4. Last turn: own minus the other's."""
    credit = compute_batch_credit("c3", RETURN_B, CONTEXT_BK, normalise="none")
    first = {"a": 0.5, "b": -0.5, "c": 0.25, "d": -0.25}
    np.testing.assert_allclose(credit.advantage_BK[:, 0], [first[context] for _, context in CONTEXT_BK])
    np.testing.assert_allclose(credit.advantage_BK[:, 1], [1, 0.5, 0, 1, 0, -1, -1, -0.5])
    np.testing.assert_allclose(credit.value_BK[:, 0], [0.5, 0.25, 0, 0.5, 0, 0.5, 0.5, 0.25])
    np.testing.assert_allclose(credit.value_BK - credit.baseline_BK, credit.advantage_BK)
    np.testing.assert_array_equal(credit.is_first_BK, [[True, True]] * 4 + [[False, True]] * 4)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.sampling in ("tree", "flat")])
def test_ids_that_count_within_their_context_are_dense_trees(method):
    """Rows of three problems in path order, the ids counted anew in every context: the credit of the dense arrays."""
    row = METHODS[method]
    fan_out = (4, 1, 1) if row.sampling == "flat" else (2, 2, 2)
    index = list(np.ndindex(*fan_out))
    context_BK = [[problem, *path[:-1]] for problem in range(3) for path in index]
    return_PL = np.random.default_rng(0).integers(0, 3, (3, len(index))) / 2
    if row.carries != "nothing" or row.reads != "returns":
        with pytest.raises(UserError, match=f"method {method}: expected one that needs nothing but returns"):
            compute_batch_credit(method, return_PL.ravel(), context_BK, normalise=row.scopes[0])
        return
    credit = compute_batch_credit(method, return_PL.ravel(), context_BK, normalise=row.scopes[0])
    expected = apply_credit(make_credit_matrix(method, make_tree(fan_out)), return_PL, normalise=row.scopes[0])
    for turn in range(3):
        rows_of_message = len(index) // np.prod(fan_out[: turn + 1])
        value_B = np.repeat(expected.value[turn].ravel(), rows_of_message)
        np.testing.assert_allclose(credit.value_BK[:, turn], value_B)
        if row.apply == "rows":
            advantage_B = np.repeat(expected.advantage[turn].ravel(), rows_of_message)
            np.testing.assert_allclose(credit.advantage_BK[:, turn], advantage_B, atol=1e-6)
        assert credit.is_first_BK[:, turn].sum() == 3 * np.prod(fan_out[: turn + 1])


def test_problems_of_several_shapes():
    """Leave-one-out within each problem; what compares over the batch asks for one shape."""
    uid_BK = [[name] for name in "aabbbaab"]
    credit = compute_batch_credit("rloo", [1, 0, 1, 0, 0, 0, 0, 1], uid_BK, normalise="none")
    np.testing.assert_allclose(credit.advantage_BK[:, 0], [1, -1 / 3, 2 / 3, -2 / 3, -2 / 3, -1 / 3, -1 / 3, 2 / 3])
    shapes = [["a"], ["a"], ["b"], ["b"], ["b"]]
    for method, scope in (("dr_mas", "turn"), ("rloo", "batch"), ("tree_grpo", "none")):
        with pytest.raises(UserError, match=r"expected problems of one shape, got \(2,\) and \(3,\)"):
            compute_batch_credit(method, [0, 1, 0, 1, 1], shapes, normalise=scope)


def test_an_untrained_turn():
    credit = compute_batch_credit("c3", RETURN_B, CONTEXT_BK, normalise="none", trained=(False, True))
    assert not credit.advantage_BK[:, 0].any() and credit.advantage_BK[:, 1].any()


@pytest.mark.parametrize(
    ("method", "returns", "contexts", "scope", "sentence"),
    [
        (
            "c3",
            [1, 0, 1],
            [["x", "a"], ["x", "a"], ["x", "b"]],
            "none",
            "problem x: expected equally many alternatives",
        ),
        ("c3", [1, 0], ["x", "x"], "none", r"expected returns \[B\] and contexts \[B, K\], got \(2,\) and \(2,\)"),
        ("c3", [1, 0], [["x", "a"], ["x", "b"]], "none", "method c3 would give turn 1 zero credit"),
        ("grpo", [1, 0], [["x"], ["x"]], "none", "method grpo: expected normalise group"),
        ("rloo", [1, 0, 1, 0], CONTEXT_BK[::2], "none", "method rloo compares whole episodes"),
        ("difference", [1, 0], [["x"], ["x"]], "none", "expected a plan of form removal"),
    ],
)
def test_complaints(method, returns, contexts, scope, sentence):
    with pytest.raises(ValueError, match=sentence):
        compute_batch_credit(method, returns, contexts, normalise=scope)


def test_tokens_have_their_message_s_advantage():
    """The k-th run of kept tokens is turn k; under one column every run has the row's."""
    advantage_BK = np.array([[1, 2], [3, 4]], np.float32)
    mask_BT = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(spread_over_tokens(advantage_BK, mask_BT), [[0, 1, 1, 0, 2], [3, 0, 0, 0, 0]])
    np.testing.assert_array_equal(spread_over_tokens(advantage_BK[:, :1], mask_BT), [[0, 1, 1, 0, 1], [3, 0, 0, 0, 0]])
    with pytest.raises(UserError, match="expected at most 2 messages in a row, a turn each, got 3"):
        spread_over_tokens(advantage_BK, [[1, 0, 1, 0, 1], [1, 0, 0, 0, 0]])


def test_credit_of_numpy_loads_no_jax():
    program = (
        "import sys, numpy as np, c3jax\n"
        "uid = np.array([['a'], ['a'], ['b'], ['b']])\n"
        "c3jax.compute_batch_credit('grpo', np.ones(4), uid, normalise='group')\n"
        "matrix = c3jax.make_credit_matrix('c3', c3jax.make_tree((2, 2)))\n"
        "c3jax.apply_credit(matrix, np.ones((1, 4)), normalise='batch')\n"
        "print([name for name in ('jax', 'chex', 'flax') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
