"""A method of the user's own: found by its name, used like any other, refused in one sentence where it will not do."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit.apply import apply_credit
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import METHODS, find_method, find_trainable
from c3jax.credit.pairing import check_auto, check_normalise, check_pairing
from c3jax.credit.plans import make_flat, make_tree
from c3jax.schema import ConfigError
from c3jax.types import UserError

BLENDED = f"{Path(__file__).parents[2] / 'examples' / 'own_method.py'}:BLENDED"
HEAD = """
import numpy as np
from c3jax.credit import rows
from c3jax.credit.method import Method
from c3jax.types import Credit

FIELDS = dict(
    sampling="tree", value=rows.own_leaves, baseline=rows.others_in_context, group="context", min_group=2,
    estimand="A*(h, a)", advantage_bias="none", gradient_bias="none", source="a test", doc="c3 again.",
)
"""
TREE = make_tree((2, 2))


@pytest.fixture
def write(tmp_path, request):
    """Write a module with the field's rows; gives the name of its METHOD."""
    name = f"own_{abs(hash(request.node.name))}"

    def write(body: str) -> str:
        (tmp_path / f"{name}.py").write_text(HEAD + body, encoding="utf-8")
        return f"{tmp_path / name}.py:METHOD"

    return write


def test_a_method_of_ones_own_is_a_row_like_any_other():
    """Two planners of two actors each, by hand: half from the sibling, half from the three others of the turn."""
    row = find_method(BLENDED)
    assert find_trainable(BLENDED) is row and row not in METHODS.values()
    check_pairing(BLENDED, TREE)
    check_normalise(BLENDED, "group")
    matrix = make_credit_matrix(BLENDED, TREE)
    return_PL = jnp.array([[1.0, 0.0, 0.5, 0.5]])
    credit = apply_credit(matrix, return_PL, normalise="none")
    np.testing.assert_allclose(credit.value[0], [[0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(credit.baseline[0], [[0.5, 0.5]], atol=1e-6)  # one other planner under both halves
    third = 1 / 3
    expected = [[0.0 + third * 1.0, 1.0 + third * 2.0, 0.5 + third * 1.5, 0.5 + third * 1.5]]
    np.testing.assert_allclose(credit.baseline[1], np.array(expected) / 2, atol=1e-6)
    by_name = compute_credit(BLENDED, CreditInputs(matrix, (2, 2)), return_PL, normalise="none")
    jax.tree.map(np.testing.assert_array_equal, by_name, credit)


def test_its_plan_is_checked_as_any_other():
    with pytest.raises(ValueError, match="would give turn 1 zero credit: expected at least 2 messages in each context"):
        check_pairing(BLENDED, make_flat(4, 2))
    with pytest.raises(ValueError, match="auto: expected a method of c3, no_loo, shrunk, got "):
        check_auto(BLENDED, (True, True), 8, "calls", (1.0, 1.0))


def test_it_may_make_its_credit_itself(write):
    """Half of c3's, by a function of its own; jitted as eager."""
    name = write("""
def halve(inputs, return_PL, normalise):
    from c3jax.credit.apply import apply_credit
    import jax
    credit = apply_credit(inputs.matrix, return_PL, normalise=normalise)
    return credit._replace(advantage=jax.tree.map(lambda a_PN: a_PN / 2, credit.advantage))

METHOD = Method(**FIELDS, apply=halve)
""")
    matrix, return_PL = make_credit_matrix(name, TREE), jnp.array([[1.0, 0.0, 0.5, 0.0]])
    whole = apply_credit(make_credit_matrix("c3", TREE), return_PL, normalise="none")

    def compute(return_PL):
        return compute_credit(name, CreditInputs(matrix, (2, 2)), return_PL, normalise="none")

    for run in (compute, jax.jit(compute)):
        for half, full in zip(run(return_PL).advantage, whole.advantage, strict=True):
            np.testing.assert_allclose(half, full / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("METHOD = dict(FIELDS)", "expected a Method at .*, got dict"),
        (
            "METHOD = Method(**FIELDS | {'sampling': 'forest'})",
            "expected a Method with sampling of tree, replay, .*flat",
        ),
        (
            "METHOD = Method(**FIELDS | {'value': 'own_leaves'})",
            "value and baseline are functions of a plan and a turn",
        ),
        ("METHOD = Method(**FIELDS, scopes=('role',))", "expected a Method with scopes of none, group, turn, batch"),
        ("METHOD = Method(**FIELDS, scopes=())", "expected a Method with scopes of none, group, turn, batch"),
        ("METHOD = Method(**FIELDS, apply='sum')", "expected a Method with apply of rows, .* or a function"),
        ("METHOD = Method(**FIELDS | {'min_group': 0})", "expected a Method with a positive min_group"),
        ("METHOD = Method(**FIELDS, critic='value')", "carries a critic where it names one, and nowhere else"),
        ("METHOD = Method(**FIELDS, carries='critic')", "carries a critic where it names one, and nowhere else"),
        ("METHOD = Method(sampling='tree')", r"importing .* failed \(TypeError: .*missing .* required"),
        ("raise SystemExit(3)", r"importing .* failed \(SystemExit: 3\)"),
    ],
)
def test_a_record_that_will_not_do_is_one_sentence(write, body, expected):
    with pytest.raises(ConfigError, match=f"^credit.method: .*{expected}"):
        find_method(write(body))


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("lambda plan, turn: 1 / 0", r"baseline of turn 0 raised ZeroDivisionError \(division by zero\)"),
        ("lambda plan: 0", r"baseline of turn 0 raised TypeError"),
        ("lambda plan, turn: np.zeros(4)", r"baseline of turn 0: expected weights \[2, 4\], a row a message and a col"),
        (
            "lambda plan, turn: np.full((2 + 2 * turn, 4), np.nan)",
            "baseline of turn 0: expected finite weights, got some",
        ),
        ("lambda plan, turn: 'none'", r"baseline of turn 0 raised ValueError"),
    ],
)
def test_rows_that_are_no_weights_are_one_sentence(write, baseline, expected):
    name = write(f"METHOD = Method(**FIELDS | {{'baseline': {baseline}}})")
    for check in (check_pairing, make_credit_matrix):
        with pytest.raises(ValueError, match=f"^method .*: {expected}"):
            check(name, TREE)


@pytest.mark.parametrize(
    ("gives", "expected"),
    [
        ("return_PL", "a Credit, got"),
        ("Credit((return_PL,), (return_PL,), (return_PL,))", r"a value of \[\(1, 2\), \(1, 4\)\], got \[\(1, 4\)\]"),
    ],
)
def test_a_function_that_gives_no_credit_is_one_sentence(write, gives, expected):
    name = write(f"METHOD = Method(**FIELDS, apply=lambda inputs, return_PL, normalise: {gives})")
    inputs = CreditInputs(make_credit_matrix(name, TREE), (2, 2))
    with pytest.raises(UserError, match=f"^credit.method: expected of .* {expected}"):
        compute_credit(name, inputs, jnp.ones((1, 4)), normalise="none")


def test_a_study_only_method_of_ones_own_does_not_train(write):
    name = write("METHOD = Method(**FIELDS | {'critic': 'oracle', 'carries': 'critic'})")
    assert find_method(name).critic == "oracle"
    with pytest.raises(ConfigError, match="needs the value of every possible message, which only `c3jax study`"):
        find_trainable(name)
