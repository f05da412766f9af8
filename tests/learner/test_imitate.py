"""Imitation: demonstrated messages as arrays, their cross-entropy from plain token rows, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c3jax.config.run import Imitation
from c3jax.learner.imitate import make_imitation, make_messages
from c3jax.types import Rollout, UserError

STOP = 1
PLANS = ([5, 9], [7], [], [12, 13, 14, 15])
ANSWERS = ([3], [4, 4], [8, 9, 10], [11])


def test_messages_by_hand():
    messages = make_messages([[7, 8], [], [4, 5, 6]], stop_token=1, max_tokens=4)
    assert messages.tokens_NT.tolist() == [[7, 8, 1, 0], [1, 0, 0, 0], [4, 5, 6, 1]]
    assert messages.content_NT.astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert messages.sampled_NT.astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert messages.support_NTK.shape == (3, 4, 0) and not messages.truncated_N.any()


def test_a_message_without_room_for_its_stop_token_is_refused():
    with pytest.raises(UserError, match="expected max_tokens of at least 5 for the demonstrations, got 4"):
        make_messages([[1], [4, 5, 6, 7]], stop_token=1, max_tokens=4)


@pytest.fixture(scope="module")
def imitation(tiny):
    plans = tiny.get_tree("chain").plans
    section = Imitation(updates=20, problems=4, learning_rate=2e-2)
    return make_imitation(section, tiny.policy, plans)


def make_rollout(tiny, junk=0):
    turns = []
    for rows, plan in zip((PLANS, ANSWERS), tiny.get_tree("chain").plans, strict=True):
        turn = make_messages(rows, STOP, plan.max_tokens)
        turns.append(turn._replace(tokens_NT=jnp.where(turn.sampled_NT, turn.tokens_NT, junk)))
    return Rollout(tiny.question, tuple(turns))


def copy(tree):
    return jax.tree.map(jnp.array, tree)


def test_loss_and_gradient_by_hand(tiny, imitation):
    """The mean of -logp over all tokens of both turns, stop tokens included, each in its own context."""
    rows, firsts = [], []
    for question, plan, answer in zip(tiny.questions, PLANS, ANSWERS, strict=True):
        before_plan = [4, 5, *question, 12, 13]
        before_answer = [4, *question, 14, *plan, 15, 16]
        rows += [[*before_plan, *plan, STOP], [*before_answer, *answer, STOP]]
        firsts += [len(before_plan) - 1, len(before_answer) - 1]
    where = [(row, slot) for row, first in enumerate(firsts) for slot in range(first, len(rows[row]) - 1)]
    assert len(where) == 3 + 2 + 1 + 5 + 2 + 3 + 4 + 2
    flat = tiny.run_flat(tiny.params, rows, weight=dict.fromkeys(where, -1 / len(where)))
    init, update = imitation
    state, loss = update(init(copy(tiny.params)), make_rollout(tiny))
    np.testing.assert_allclose(loss, -np.mean([flat.logp[each] for each in where]), atol=1e-5)
    # Adam's first moment is .1 of the gradient, which is clipped to a norm of 1.
    norm = float(optax.tree.norm(flat.gradient))
    assert norm > 1
    (_, mean), *_ = optax.tree.get_all_with_path(state.opt_state, "mu")
    for got, expected in zip(jax.tree.leaves(mean), jax.tree.leaves(flat.gradient), strict=True):
        np.testing.assert_allclose(10 * got, expected / norm, rtol=0, atol=2e-6)


def test_loss_goes_down(tiny, imitation):
    init, update = imitation
    state, losses = init(copy(tiny.params)), []
    for _ in range(20):
        state, loss = update(state, make_rollout(tiny))
        losses.append(float(loss))
    assert losses[0] > 3 and losses[-1] < losses[0] / 2
    assert update._cache_size() == 1


def test_what_stands_after_the_stop_token_is_not_learnt(tiny, imitation):
    init, update = imitation
    plain = update(init(copy(tiny.params)), make_rollout(tiny))
    other = update(init(copy(tiny.params)), make_rollout(tiny, junk=17))
    for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)
