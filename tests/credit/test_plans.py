"""What plans cost, counted by hand. test_bias.py counts the draws of a sampler against the same closed forms."""

import math

import pytest

from c3jax.credit.plans import (
    Given,
    Plan,
    check_plan,
    count_calls,
    count_credited,
    count_generated,
    is_flat,
    list_branches,
    list_credited,
    list_leaves,
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
        (make_arms("first_removal", 3, 2), 6, (3, 3), (3, 6)),
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
        (
            make_arms("first_removal", 2, 1),
            "turns: expected 2 where the second one's message .* without the first, got 1",
        ),
    ],
)
def test_numbers_that_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        check_plan(plan)


@pytest.mark.parametrize(
    "plan",
    [
        make_tree((2, 3, 2)),
        make_replay((2, 2), 3),
        make_replay((1,) * 3, 2, continues_best=True),
        make_auxiliary(2, 3, 3),
        make_arms("removal", 2, 3),
        make_arms("first_removal", 2, 2),
        *(make_arms(form, 2, 3, answers_again=on) for form in ("masked", "coalition") for on in (False, True)),
    ],
)
def test_branches_draw_what_the_closed_forms_count(plan):
    branches, K = list_branches(plan), plan.turns
    drawn = [0] * K
    for number, branch in enumerate(branches):
        assert branch.first == tuple(drawn)  # so that no two messages have one address
        assert len(branch.fan_out) == K and all(fan == 1 for fan in branch.fan_out[1 : len(branch.given)])
        for given in branch.given:
            assert given is None or (given.branch < number and len(given.rows or (0,)) == branch.fan_out[0])
        for turn in range(len(branch.given), K):
            drawn[turn] += math.prod(branch.fan_out[: turn + 1])
    assert tuple(drawn) == count_generated(plan)
    assert sum(math.prod(branch.fan_out) * branch.calls for branch in branches) == count_calls(plan)
    assert sorted(list_leaves(plan)) == list(range(count_calls(plan)))
    for turn, holder in enumerate(list_credited(plan)):
        assert math.prod(branches[holder].fan_out[: turn + 1]) == count_credited(plan)[turn]


def test_what_is_drawn_for_masks_where_the_last_message_is_judged():
    """Two turns, one episode: without the first message the last turn speaks again, without its own it does not."""
    masked = make_arms("masked", 1, 2, answers_again=True)
    assert [branch.given for branch in list_branches(masked)] == [(), (None,), (Given(0, (0,)), None)]
    coalition = make_arms("coalition", 1, 2, answers_again=True)
    wanted = [(), (None, None), (Given(0, (0,)), None), (None,)]
    assert [branch.given for branch in list_branches(coalition)] == wanted
    assert list_leaves(coalition) == [1, 2, 3, 0]  # nothing, the first, the last, both: bit u says that u is kept
    assert not make_arms("removal", 1, 2, answers_again=True).answers_again
