"""What plans cost, counted by hand. test_bias.py counts the draws of a sampler against the same closed forms."""

import pytest

from c3jax.credit.plans import (
    Plan,
    check_plan,
    count_calls,
    count_credited,
    count_generated,
    is_flat,
    make_arms,
    make_auxiliary,
    make_flat,
    make_replay,
    make_tree,
)


@pytest.mark.parametrize(
    ("plan", "calls", "credited", "generated"),
    [
        (make_tree((2, 4)), 8, (2, 8), (2, 8)),  # 10 messages, against 16 of eight episodes
        (make_tree((2, 2, 2)), 8, (2, 4, 8), (2, 4, 8)),  # 14 against 24
        (make_flat(8, 2), 8, (8, 8), (8, 8)),
        # Two alternatives a turn, one continuation each: turn 1 has 2 of its own and 2 that continue turn 0.
        (make_replay((1, 1), 3), 6, (2, 2, 2), (2, 4, 6)),
        (make_replay((1, 3), 2), 8, (2, 2), (2, 6)),
        (make_replay((4,) * 2, 2, continues_best=True), 16, (2, 2), (2, 10)),
        # Two episodes; three continuations of the problem and of the two contexts of turn 1, and so of turn 2.
        (make_auxiliary(2, 3, 3), 17, (2, 2, 2), (5, 11, 17)),
        (make_arms("removal", 3, 3), 12, (3, 3, 3), (3, 6, 9)),  # the copy without turn 0 speaks at turns 1 and 2
        (make_arms("masked", 3, 3), 12, (3, 3, 3), (3, 3, 3)),
        (make_arms("coalition", 3, 3), 24, (3, 3, 3), (3, 3, 3)),
    ],
)
def test_counts(plan, calls, credited, generated):
    check_plan(plan)
    assert count_calls(plan) == calls
    assert count_credited(plan) == credited
    assert count_generated(plan) == generated


def test_flat_is_a_tree_without_later_branches():
    assert is_flat(make_flat(4, 3)) and is_flat(make_tree((5,)))
    assert not is_flat(make_tree((1, 2))) and not is_flat(make_arms("masked", 1, 2))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (make_tree(()), r"fan_out: expected a positive entry for every turn, got \(\)"),
        (make_tree((2, 0)), r"fan_out: .*got \(2, 0\)"),
        (make_replay((1, 1), 0), "turns: expected at least 1, got 0"),
        (make_replay((), 2), r"counts: expected a positive entry for every alternative, got \(\)"),
        (make_replay((1, 0), 2, continues_best=True), r"counts: .*got \(1, 0\)"),
        (make_arms("coalition", 0, 2), "episodes: expected at least 1, got 0"),
        (make_auxiliary(1, 0, 2), "repeats: expected at least 1, got 0"),
        (Plan("removal", 2), "episodes: expected at least 1, got 0"),
    ],
)
def test_numbers_that_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        check_plan(plan)
