"""Games: returns worked by hand, and families whose parameters do what they say.

Dimension key: as in c3jax/studies/games.py    P problem
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from c3jax.lab import games

KEY = jax.random.key(3)


def make_shape(**changes) -> games.GameShape:
    shape = games.GameShape((2, 2), ((), (0,)), (True, True), "identity", "none", 0.0)
    return shape._replace(**changes)


def make_hand_game() -> games.Game:
    """(0, 0) scores .05 + .1 + .3, (0, 1) .05 + .1 - .4, (1, 0) .05 + .2 + .3 - 1, and (1, 1) .05 + .2 - .4 + .5."""
    pair_KKMM = np.zeros((2, 2, 2, 2), np.float32)
    pair_KKMM[0, 1] = [[0.0, 0.0], [-1.0, 0.5]]
    main_KM = jnp.array([[0.1, 0.2], [0.3, -0.4]])
    return games.Game(jnp.int32(0), jnp.zeros(1), main_KM, jnp.asarray(pair_KKMM), jnp.float32(0.05))


HAND_SCORE = np.array([0.45, -0.25, -0.45, 0.35])


def make_problems(family: games.Family, count: int) -> games.Game:
    return jax.jit(jax.vmap(lambda index: games.make_game(family, KEY, index)))(jnp.arange(count))


def make_chain(turns: int = 3, messages: int = 4, **changes) -> games.Family:
    parameters = {"effect": 0.5, "coupling": 2.0, "spread": 3.0, "noise": "none"} | changes
    return games.make_team(messages=(messages,) * turns, sees=games.see_all(turns), **parameters)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_mean_return_by_hand(wrap):
    transcript_AK = games.list_transcripts(make_shape())
    score = wrap(lambda game: games.compute_mean_return(make_shape(), game, transcript_AK))(make_hand_game())
    np.testing.assert_allclose(score, HAND_SCORE, atol=1e-6)
    shape = make_shape(link="logistic")
    chance = wrap(lambda game: games.compute_mean_return(shape, game, transcript_AK))(make_hand_game())
    np.testing.assert_allclose(chance, 1 / (1 + np.exp(-HAND_SCORE)), atol=1e-6)


def test_transcripts_are_all_and_in_order():
    transcript_AK = games.list_transcripts(make_shape(messages=(2, 3)))
    assert transcript_AK.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("messages", [(3,), (3, 2, 4)])
def test_tabulated_returns_are_those_of_the_transcripts(messages):
    family = games.make_team(
        messages=messages, sees=games.see_none(len(messages)), effect=1.0, coupling=1.0, spread=1.0, noise="none"
    )
    game = games.make_game(family, KEY, 0)
    table = jax.jit(lambda game: games.tabulate_mean_return(family.shape, game))(game)
    assert table.shape == messages
    game = jax.device_get(game)
    for transcript in itertools.product(*map(range, messages)):
        score = float(game.bias) + sum(float(game.main_KM[turn, each]) for turn, each in enumerate(transcript))
        for early, late in itertools.combinations(range(len(transcript)), 2):
            score += float(game.pair_KKMM[early, late, transcript[early], transcript[late]])
        np.testing.assert_allclose(table[transcript], 1 / (1 + np.exp(-score)), atol=1e-6)
    transcript_AK = games.list_transcripts(family.shape)
    np.testing.assert_allclose(
        games.compute_mean_return(family.shape, game, transcript_AK), table.reshape(-1), atol=1e-6
    )


def test_enumeration_of_too_many_transcripts_is_refused():
    shape = games.make_bandit(turns=17, messages=2, effect=1.0, interaction=0.0, sigma=1.0).shape
    for enumerate_all in (games.list_transcripts, lambda shape: games.tabulate_mean_return(shape, make_hand_game())):
        with pytest.raises(ValueError, match="at most 65536 transcripts to enumerate, got 131072"):
            enumerate_all(shape)


# Evaluators


def test_bernoulli_returns_are_coins_of_the_mean():
    shape = make_shape(link="logistic", noise="bernoulli")
    calls = 4000
    transcript_NK = np.repeat(games.list_transcripts(shape), calls, axis=0)
    drawn = np.asarray(games.sample_return(shape, make_hand_game(), transcript_NK, KEY)).reshape(4, calls)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    chance = 1 / (1 + np.exp(-HAND_SCORE))
    z_score = (drawn.mean(1) - chance) / np.sqrt(chance * (1 - chance) / calls)
    assert (z_score**2).sum() < stats.chi2.ppf(0.999, 4)


def test_gaussian_returns_have_the_mean_and_sigma():
    shape, calls = make_shape(noise="gaussian", sigma=0.3), 4000
    transcript_NK = np.repeat(games.list_transcripts(shape), calls, axis=0)
    drawn = np.asarray(games.sample_return(shape, make_hand_game(), transcript_NK, KEY)).reshape(4, calls)
    residual = (drawn - HAND_SCORE[:, None]) / 0.3
    assert (residual.mean(1) ** 2).sum() * calls < stats.chi2.ppf(0.999, 4)
    low, high = stats.chi2.ppf([0.0005, 0.9995], 4 * calls)
    assert low < (residual**2).sum() < high


def test_an_exact_evaluator_returns_the_mean():
    transcript_AK = games.list_transcripts(make_shape())
    np.testing.assert_allclose(
        games.sample_return(make_shape(), make_hand_game(), transcript_AK, KEY), HAND_SCORE, atol=1e-6
    )


# Families


def assert_spread(drawn: np.ndarray, std: float) -> None:
    low, high = stats.chi2.ppf([0.0005, 0.9995], drawn.size)
    assert low < ((drawn / std) ** 2).sum() < high


def test_dials_are_the_standard_deviations_of_the_effects():
    problems = make_problems(make_chain(), 200)
    assert_spread(np.asarray(problems.main_KM), 0.5)
    assert_spread(np.asarray(problems.bias), 3.0)
    upper = np.triu(np.ones((3, 3), bool), 1)
    assert_spread(np.asarray(problems.pair_KKMM)[:, upper], 2.0)
    assert not np.asarray(problems.pair_KKMM)[:, ~upper].any()


def test_without_coupling_there_is_no_interaction():
    assert not np.asarray(make_problems(make_chain(coupling=0.0), 5).pair_KKMM).any()


@pytest.mark.parametrize("position, mates, team", [("first", [0, 1], [2, 3]), ("last", [2, 3], [0, 1])])
def test_mates_shift_the_return_and_interact_with_nobody(position, mates, team):
    family = games.add_mates(make_chain(turns=2), 2, effect=1.5, position=position)
    assert [family.shape.trained[turn] for turn in mates + team] == [False, False, True, True]
    assert [family.shape.sees[turn] for turn in mates + team] == [(), (), (), (team[0],)]
    problems = make_problems(family, 200)
    main, pair = np.asarray(problems.main_KM), np.asarray(problems.pair_KKMM)
    assert_spread(main[:, mates], 1.5)
    assert_spread(main[:, team], 0.5)
    assert not pair[:, mates].any() and not pair[:, :, mates].any()
    assert pair[:, team[0], team[1]].all()


def test_fresh_problems_have_effects_linear_in_their_features():
    """200 problems of 3 features span 3 dimensions of effects, and the features give the effects exactly."""
    family = games.make_fresh(make_chain(), 3)
    problems = make_problems(family, 200)
    effects = np.concatenate(
        [np.asarray(e).reshape(200, -1) for e in (problems.main_KM, problems.pair_KKMM, problems.bias)], 1
    )
    feature_PF = np.asarray(problems.feature_F)
    weights = np.linalg.lstsq(feature_PF[:10], effects[:10], rcond=None)[0]
    np.testing.assert_allclose(feature_PF @ weights, effects, atol=1e-4)
    assert np.linalg.matrix_rank(effects, tol=1e-3) == 3
    assert_spread(feature_PF, 1.0)
    repeating = make_problems(make_chain(), 200)
    assert np.linalg.matrix_rank(np.asarray(repeating.main_KM).reshape(200, -1)) == 12


def test_effects_of_fresh_problems_have_the_families_scale():
    """The standard deviation of an effect over families: the weights are drawn anew for each key."""
    family = games.make_fresh(make_chain(), 16)
    keys = jax.random.split(KEY, 400)
    problems = jax.jit(jax.vmap(lambda key: games.make_game(family, key, 0)))(keys)
    np.testing.assert_allclose(np.std(problems.main_KM), 0.5, rtol=0.1)
    np.testing.assert_allclose(np.std(np.asarray(problems.pair_KKMM)[:, 0, 1]), 2.0, rtol=0.1)
    np.testing.assert_allclose(np.std(problems.bias), 3.0, rtol=0.2)


@pytest.mark.parametrize(
    "family, tolerance", [(make_chain(), 0.0), (games.make_fresh(make_chain(), 3), 1e-6)], ids=["repeating", "fresh"]
)
def test_a_problem_is_its_address(family, tolerance):
    many = make_problems(family, 5)
    alone = jax.jit(lambda index: games.make_game(family, KEY, index))(3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b, rtol=0, atol=tolerance), many, alone)
    assert len(np.unique(np.asarray(many.main_KM)[:, 0, 0])) == 5


def test_one_last_message_is_right_whatever_came_before_it():
    family = games.make_answer(turns=3, messages=4)
    problems = make_problems(family, 400)
    right_P = np.asarray(problems.main_KM[:, -1]).argmax(axis=1)
    transcript_AK = games.list_transcripts(family.shape)
    for problem, right in enumerate(right_P[:3]):
        game = jax.tree.map(lambda leaf, at=problem: leaf[at], problems)
        expected = (transcript_AK[:, -1] == right).astype(float)
        assert games.find_answer(family.shape, game) == right
        np.testing.assert_array_equal(games.compute_mean_return(family.shape, game, transcript_AK), expected)
        np.testing.assert_array_equal(games.tabulate_mean_return(family.shape, game).reshape(-1), expected)
    assert stats.chisquare(np.bincount(right_P, minlength=4)).pvalue > 0.001


def test_the_bandit_is_additive_with_interactions_on_a_long_chain():
    family = games.make_bandit(turns=16, messages=3, effect=0.5, interaction=0.0, sigma=1.0)
    assert family.shape.sees[15] == tuple(range(15))
    game = jax.device_get(games.make_game(family, KEY, 0))
    message_NK = np.random.default_rng(0).integers(3, size=(5, 16))
    expected = [sum(float(game.main_KM[turn, each]) for turn, each in enumerate(row)) for row in message_NK]
    np.testing.assert_allclose(games.compute_mean_return(family.shape, game, message_NK), expected, atol=1e-5)


def test_graphs():
    assert games.see_all(3) == ((), (0,), (0, 1))
    assert games.see_previous(3) == ((), (0,), (1,))
    assert games.see_none(3) == ((), (), ())


@pytest.mark.parametrize(
    "messages, sees, complaint",
    [
        ((2, 0), ((), (0,)), "messages: expected a positive number"),
        ((2, 2), ((),), "sees: expected 2 entries, one per turn, got 1"),
        ((2, 2), ((), (1,)), "sees.1: expected earlier turns in ascending order"),
        ((2, 2, 2), ((), (), (1, 0)), "sees.2: expected earlier turns in ascending order"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(messages, sees, complaint):
    with pytest.raises(ValueError, match=complaint):
        games.make_team(messages=messages, sees=sees, effect=1.0, coupling=1.0, spread=1.0, noise="none")
