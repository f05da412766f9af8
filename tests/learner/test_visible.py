"""Training on the visible part of messages alone, against a gradient put together by hand from plain token rows.

At the behaviour policy the gradient of the mean over messages of their geometric-mean ratio times advantage is the sum
over trained tokens of advantage * d logp, divided by the message's trained tokens and the number of messages that have
some.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from c3jax.config import run as config_lib
from c3jax.credit.plans import make_tree
from c3jax.learner import forward
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.models.policy import Weights
from c3jax.protocol import TurnPlan
from c3jax.types import Messages

RETURN_PL = np.array([[1, 0], [0, 0.5], [1, 0], [0, 1]], np.float32)


def test_the_part_and_the_token_that_ends_it_are_trained():
    sampled = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    content = np.array([[0, 1, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    messages = Messages(*[jnp.zeros((3, 5))] * 6)._replace(content_NT=jnp.array(content), sampled_NT=jnp.array(sampled))
    plan = TurnPlan("turn", "role", (), 5, True)
    np.testing.assert_array_equal(forward.find_trained(plan, messages), sampled)
    trained = np.array([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(forward.find_trained(plan._replace(trains_visible=True), messages), trained)


def test_the_gradient_is_of_the_visible_tokens(tiny):
    """Of the planner's messages all but the first token of the longer ones are visible; the others are hidden."""
    chain = tiny.get_tree("chain")
    (plan, _), (drawn, _) = chain.plans, chain.rollout.turns
    lengths = drawn.sampled_NT.sum(axis=1)
    slot_T = np.arange(drawn.tokens_NT.shape[1])
    content_NT = drawn.content_NT & (slot_T > 0) & (lengths > 2)[:, None]
    rollout = chain.rollout._replace(turns=(drawn._replace(content_NT=content_NT),))
    loss = config_lib.PolicyLoss(kind="gspo")
    learner = config_lib.Learner(learning_rate=1e-2, max_grad_norm=1e6, adam_b1=0.5, loss=loss)
    credit = config_lib.Credit(method="c3", fan_out=(2,), budget=2, normalise="none")
    plans = (plan._replace(trains_visible=True),)
    update = update_lib.make_update(credit, learner, chain.sampling, 10, tiny.policy, plans)
    params = jax.tree.map(jnp.array, tiny.params)
    state = state_lib.init_state(tiny.policy, Weights(params, {}), plans, credit, learner)
    state, _, figures = update(state, {}, None, (rollout,), jnp.array(RETURN_PL), jax.random.key(0), make_tree((2,)))

    advantage_N = (RETURN_PL - RETURN_PL[:, ::-1]).ravel()
    sequences = [each for each in chain.sequences if each.turn == 0]
    weight, messages = {}, int((lengths > 2).sum())
    assert 2 <= messages < len(sequences)
    for row, each in enumerate(sequences):
        for slot in range(1, len(each.message)) if len(each.message) > 2 else ():
            share = -advantage_N[row] / (len(each.message) - 1) / messages
            weight[row, len(each.context) - 1 + slot] = share
    rows = [each.context + each.message for each in sequences]
    supports = {at: support for at, support in chain.supports.items() if at[0] < len(rows)}
    flat = tiny.run_flat(tiny.params, rows, supports, chain.sampling.temperature, weight)
    (_, mean), *_ = optax.tree.get_all_with_path(state.opt_state, "mu")
    assert optax.tree.norm(flat.gradient) > 0.05 and np.isfinite(figures["loss"])
    for got, expected in zip(jax.tree.leaves(mean), jax.tree.leaves(flat.gradient), strict=True):
        np.testing.assert_allclose(2 * got, expected, rtol=0, atol=2e-6)
