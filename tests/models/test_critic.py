"""The critic's parameters, its head by hand, and which gradients its network lets through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.models.critic import compute_score, count_network, init_critic, merge_network
from c3jax.models.policy import Weights
from c3jax.types import Frame

FRAME = Frame(jnp.array([[4, 7, 9], [11, 3, 0]], jnp.int32), jnp.array([[True, True, True], [True, True, False]]))


@pytest.mark.parametrize("run", [compute_score, jax.jit(compute_score)])
def test_the_head_by_hand(run):
    """1 * 2 + -1 * 3 + .5 * 4 + .25 = 1.25, and the bias alone for a state of zeros."""
    critic = {"head": {"weight": jnp.array([1.0, -1.0, 0.5]), "bias": jnp.float32(0.25)}}
    np.testing.assert_allclose(run(critic, jnp.array([[2.0, 3.0, 4.0], [0.0, 0.0, 0.0]])), [1.25, 0.25], atol=1e-6)


@pytest.mark.parametrize("network", ["own", "trunk"])
def test_every_score_starts_at_zero(tiny, network):
    critic = init_critic(network, tiny.params)
    hidden_NSD, _ = merge_network(tiny.policy, critic, Weights(tiny.params, {}), "any").extend((), FRAME)
    np.testing.assert_array_equal(compute_score(critic, hidden_NSD[:, -1]), [0.0, 0.0])


def test_the_own_network_is_a_copy_of_the_policy_without_its_output_head(tiny):
    policy = {**tiny.params, "head": tiny.params["embedding"]}
    critic = init_critic("own", policy)
    assert set(critic["network"]) == set(tiny.params) and "network" not in init_critic("trunk", policy)
    for copy, original in zip(jax.tree.leaves(critic["network"]), jax.tree.leaves(tiny.params), strict=True):
        np.testing.assert_array_equal(copy, original)
        # Its buffers are its own: the policy's are given up by its first update.
        assert copy.unsafe_buffer_pointer() != original.unsafe_buffer_pointer()
    held = sum(leaf.size for leaf in jax.tree.leaves(critic["network"]))
    assert [count_network(tiny.spec._replace(tied=is_tied)) for is_tied in (True, False)] == [held, held]


@pytest.mark.parametrize("network", ["own", "trunk"])
def test_the_critic_teaches_the_policy_nothing(tiny, network):
    critic = init_critic(network, tiny.params)
    critic["head"]["weight"] = jnp.ones(tiny.spec.width)

    @jax.jit
    def gradient_of(critic, policy):
        def run(critic, policy):
            hidden_NSD, _ = merge_network(tiny.policy, critic, Weights(policy, {}), "any").extend((), FRAME)
            return jnp.square(compute_score(critic, hidden_NSD[:, -1])).sum()

        return jax.grad(run, argnums=(0, 1))(critic, policy)

    of_critic, of_policy = gradient_of(critic, tiny.params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(of_policy))
    assert jnp.abs(of_critic["head"]["weight"]).max() > 1e-3
    if network == "own":
        assert all(leaf.any() for leaf in jax.tree.leaves(of_critic["network"]))


def test_the_own_network_is_read_and_the_policy_is_not(tiny):
    critic = init_critic("own", tiny.params)
    other = jax.tree.map(lambda leaf: leaf + 0.1, tiny.params)

    def read(critic, params):
        return merge_network(tiny.policy, critic, Weights(params, {}), "any").extend((), FRAME)[0]

    before = read(critic, tiny.params)
    np.testing.assert_array_equal(read(critic, other), before)
    of_trunk = read(init_critic("trunk", tiny.params), other)
    assert jnp.abs(of_trunk - before).max() > 1e-2
