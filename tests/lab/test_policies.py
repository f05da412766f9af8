"""Policies: what a turn reads, and what it says.

Dimension key: as in c3jax/studies/policies.py
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.lab import games, policies

KEY = jax.random.key(5)
FAMILY = games.make_team(
    messages=(2, 3, 4, 2),
    sees=((), (0,), (0, 1), (1, 2)),
    effect=1.0,
    coupling=1.0,
    spread=0.0,
    noise="none",
    features=3,
)
SHAPE = FAMILY.shape._replace(trained=(True, False, True, True))
GAME = games.make_game(FAMILY, KEY, 1)
TRANSCRIPT_AK = games.list_transcripts(SHAPE)


def shake(params):
    """Random numbers instead of every parameter, so that nothing is uniform."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(random.normal(size=leaf.shape)), params)


POLICIES = {
    "tabular": policies.make_tabular(SHAPE, problems=2, scale=1.0),
    "mlp": policies.make_mlp(SHAPE, features=3, width=5),
}


def test_context_index_by_hand():
    """Turn 2 reads messages of 2 and 3 kinds: (1, 2) is 1 * 3 + 2. Turn 3 reads 3 and 4 kinds: (2, 3) is 2 * 4 + 3."""
    prefix_NK = jnp.array([[1, 2, 3, 0], [0, 1, 2, 1]])
    index = [policies.context_index(SHAPE, turn, prefix_NK).tolist() for turn in range(4)]
    assert index == [[0, 0], [1, 0], [5, 1], [11, 6]]
    assert [policies.count_contexts(SHAPE, turn) for turn in range(4)] == [1, 2, 6, 12]


@pytest.mark.parametrize("turn", range(4))
def test_listed_contexts_are_numbered_in_order(turn):
    prefix_CK = policies.list_contexts(SHAPE, turn)
    assert policies.context_index(SHAPE, turn, prefix_CK).tolist() == list(range(policies.count_contexts(SHAPE, turn)))
    unread = [each for each in range(4) if each not in SHAPE.sees[turn]]
    assert not prefix_CK[:, unread].any()


def test_tabular_reads_its_table_at_problem_and_context():
    policy = POLICIES["tabular"]
    params = policy.init(KEY)
    assert [table.shape for table in params] == [(2, 1, 4), (2, 2, 4), (2, 6, 4), (2, 12, 4)]
    logits_NM = jax.jit(lambda params, game: policy.logits(params, game, 2, TRANSCRIPT_AK))(params, GAME)
    context_N = TRANSCRIPT_AK[:, 0] * 3 + TRANSCRIPT_AK[:, 1]
    np.testing.assert_array_equal(logits_NM, np.asarray(params[2])[1, context_N])


def test_mlp_is_a_layer_on_features_and_one_hot_messages():
    params = shake(POLICIES["mlp"].init(KEY))
    logits_NM = POLICIES["mlp"].logits(params, GAME, 3, TRANSCRIPT_AK)
    layers = jax.device_get(params[3])
    for row, transcript in zip(np.asarray(logits_NM)[:, :2], TRANSCRIPT_AK, strict=True):
        x = np.concatenate([np.asarray(GAME.feature_F), np.eye(3)[transcript[1]], np.eye(4)[transcript[2]]])
        expected = np.tanh(x @ layers.hidden_IH + layers.bias_H) @ layers.output_HM + layers.bias_M
        np.testing.assert_allclose(row, expected[:2], atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("turn", range(4))
def test_a_turn_says_what_it_can_and_reads_what_it_sees(name, turn):
    """Rows that agree on what the turn reads agree on its logits; and what it reads does matter."""
    params = shake(POLICIES[name].init(KEY))
    logits_NM = np.asarray(POLICIES[name].logits(params, GAME, turn, TRANSCRIPT_AK))
    assert np.isneginf(logits_NM[:, SHAPE.messages[turn] :]).all()
    assert np.isfinite(logits_NM[:, : SHAPE.messages[turn]]).all()
    context_N = np.asarray(policies.context_index(SHAPE, turn, TRANSCRIPT_AK))
    firsts = [logits_NM[context_N == context][0] for context in np.unique(context_N)]
    for row, context in zip(logits_NM, context_N, strict=True):
        np.testing.assert_array_equal(row, firsts[context])
    assert all((a != b).any() for a, b in itertools.combinations(firsts, 2))


@pytest.mark.parametrize("name", POLICIES)
def test_turns_that_are_not_trained_start_uniform(name):
    logits_NM = POLICIES[name].logits(POLICIES[name].init(KEY), GAME, 1, TRANSCRIPT_AK)
    np.testing.assert_array_equal(logits_NM[:, :3], 0.0)


def test_scale_is_the_spread_of_the_first_logits():
    params = policies.make_tabular(SHAPE, problems=500, scale=0.3).init(KEY)
    np.testing.assert_allclose([np.std(params[turn]) for turn in (0, 2, 3)], 0.3, rtol=0.1)
    assert not np.asarray(params[1]).any()
    uniform = policies.make_tabular(SHAPE, problems=2, scale=0.0).init(KEY)
    assert not any(np.asarray(table).any() for table in uniform)


@pytest.mark.parametrize("name", POLICIES)
def test_games_may_be_an_axis(name):
    policy = POLICIES[name]
    params = shake(policy.init(KEY))
    many = jax.vmap(lambda index: games.make_game(FAMILY, KEY, index))(jnp.arange(2))
    logits_PNM = jax.jit(jax.vmap(lambda game: policy.logits(params, game, 2, TRANSCRIPT_AK)))(many)
    np.testing.assert_allclose(logits_PNM[1], policy.logits(params, GAME, 2, TRANSCRIPT_AK), atol=1e-6)
    assert (logits_PNM[0] != logits_PNM[1]).any()
