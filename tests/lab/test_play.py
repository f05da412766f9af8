"""Play: every form's leaves are what its plan says, and are drawn from the policy.

Every form is drawn once, for 2,000 keys of a partly-seeing game of three turns with an exact evaluator, and all tests
read these draws.

Dimension key: as in c3jax/studies/play.py    P problem (here: key)    B transcript drawn as one episode
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from c3jax.credit import plans
from c3jax.lab import games, oracle, play, policies

DRAWS, PROBLEMS = 2000, 4
FAMILY = games.make_team(
    messages=(2, 3, 3), sees=((), (0,), (1,)), effect=1.0, coupling=1.0, spread=1.0, noise="none", features=1
)
SHAPE = FAMILY.shape
POLICY = policies.make_tabular(SHAPE, PROBLEMS, 1.0)
PARAMS = POLICY.init(jax.random.key(1))
PLANS = {
    "tree": plans.make_tree((2, 1, 3)),
    "replay": plans.make_replay((2, 1, 3), 3),
    "best_branch": plans.make_replay((2, 1), 3, continues_best=True),
    "auxiliary": plans.make_auxiliary(2, 2, 3),
    "removal": plans.make_arms("removal", 2, 3),
    "masked": plans.make_arms("masked", 2, 3),
    "coalition": plans.make_arms("coalition", 2, 3),
}
ALONE = ("tree", "best_branch", "removal")  # between them, every way of drawing


class Drawn(NamedTuple):
    """The draws as numpy arrays, and the same draw of problem 3's first key made alone."""

    sample: play.Sample  # a leading axis P
    mean_PL: np.ndarray  # the mean return of every leaf's transcript
    alone: play.Sample | None  # for the forms of ALONE


@functools.cache
def draw(form: str) -> Drawn:
    make_games = jax.vmap(lambda index: games.make_game(FAMILY, jax.random.key(0), index))
    problems = make_games(jnp.arange(DRAWS) % PROBLEMS)
    keys = jax.random.split(jax.random.key(2), DRAWS)

    def sample_one(game, key):
        return play.sample_plan(SHAPE, game, POLICY, PARAMS, PLANS[form], key)

    sample = jax.jit(jax.vmap(sample_one))(problems, keys)
    alone = jax.jit(sample_one)(jax.tree.map(lambda leaf: leaf[3], problems), keys[3]) if form in ALONE else None
    compute_means = jax.jit(jax.vmap(lambda game, rows: games.compute_mean_return(SHAPE, game, rows)))
    mean_PL = compute_means(problems, sample.transcript_LK)
    return Drawn(*jax.device_get((sample, mean_PL, alone)))


def compute_chance(transcript: np.ndarray, turn: int, problem: int) -> np.ndarray:
    """pi(message | context) of one turn for rows of transcripts, read off the tables with numpy."""
    table = np.asarray(PARAMS[turn][problem], float)[:, : SHAPE.messages[turn]]
    chance_CM = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    context = transcript[:, SHAPE.sees[turn][0]] if SHAPE.sees[turn] else 0
    return chance_CM[context, transcript[:, turn]]


def assert_episodes(transcript_BK: np.ndarray, problem: int) -> None:
    """Chi-square of independent transcripts against the policy's joint distribution, 99.9 %."""
    everything_AK = games.list_transcripts(SHAPE)
    chance_A = np.prod([compute_chance(everything_AK, turn, problem) for turn in range(3)], axis=0)
    expected_A = len(transcript_BK) * chance_A
    number_B = np.ravel_multi_index(tuple(transcript_BK.T), SHAPE.messages)
    observed_A = np.bincount(number_B, minlength=len(everything_AK))
    is_rare = expected_A < np.sort(expected_A)[4]  # the four rarest count as one
    observed = [*observed_A[~is_rare], observed_A[is_rare].sum()]
    expected = [*expected_A[~is_rare], expected_A[is_rare].sum()]
    assert stats.chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize("form", PLANS)
def test_returns_are_those_of_the_transcripts_and_counts_those_of_the_plan(form):
    drawn, plan = draw(form), PLANS[form]
    assert drawn.sample.return_L.shape == (DRAWS, plans.count_calls(plan))
    assert tuple(message.shape[1] for message in drawn.sample.message) == plans.count_credited(plan)
    np.testing.assert_allclose(drawn.sample.return_L, drawn.mean_PL, atol=1e-6)


@pytest.mark.parametrize("form", ALONE)
def test_a_draw_made_alone_is_the_draw_made_among_many(form):
    """Messages bit for bit; gradients and returns to the last digit, which vector code may round otherwise."""
    drawn = draw(form)
    for name, many, alone in zip(play.Sample._fields, drawn.sample, drawn.alone, strict=True):
        tolerance = 1e-6 if name in ("gradient", "likelihood", "return_L") else 0.0
        jax.tree.map(lambda a, b, atol=tolerance: np.testing.assert_allclose(a[3], b, rtol=0, atol=atol), many, alone)


@pytest.mark.parametrize("form", PLANS)
def test_the_gradient_is_that_of_the_message_in_its_context(form):
    """|d log pi / d logits|^2 of message m is (1 - p_m)^2 and the others' p^2, by all chances of its context."""
    sample = draw(form).sample
    for turn, problem in itertools.product(range(3), range(PROBLEMS)):
        transcript = sample.prefix[turn][problem::PROBLEMS].reshape(-1, 3).copy()
        assert not transcript[:, turn:].any()
        message = sample.message[turn][problem::PROBLEMS].reshape(-1)
        square = np.zeros(len(message))
        for other in range(SHAPE.messages[turn]):
            transcript[:, turn] = other
            square += ((message == other) - compute_chance(transcript, turn, problem)) ** 2
        np.testing.assert_allclose(sample.gradient[turn][problem::PROBLEMS].reshape(-1), square, atol=1e-5)


EPISODES = {
    "tree": lambda leaf_PLK: leaf_PLK[:, 4],  # any one leaf of a tree is an episode
    "replay": lambda leaf_PLK: leaf_PLK[:, 12],  # the reference continues the first alternative
    "auxiliary": lambda leaf_PLK: leaf_PLK[:, :4].reshape(-1, 3),  # two episodes and the problem's two continuations
    "removal": lambda leaf_PLK: leaf_PLK[:, :2].reshape(-1, 3),
    "masked": lambda leaf_PLK: leaf_PLK[:, :2].reshape(-1, 3),
    "coalition": lambda leaf_PLK: leaf_PLK[:, [7, 15]].reshape(-1, 3),
}


@pytest.mark.parametrize("form", EPISODES)
@pytest.mark.parametrize("problem", range(2))
def test_episodes_are_drawn_from_the_policy(form, problem):
    assert_episodes(EPISODES[form](draw(form).sample.transcript_LK[problem::PROBLEMS]), problem)


def test_the_distribution_test_can_fail():
    """The best branch's last context is not one the policy reaches by itself, nor are another problem's episodes."""
    best = draw("best_branch").sample.transcript_LK[0::PROBLEMS, 6]
    for transcript_BK, problem in ((best, 0), (draw("tree").sample.transcript_LK[1::PROBLEMS, 4], 0)):
        with pytest.raises(AssertionError):
            assert_episodes(transcript_BK, problem)


def test_mean_returns_are_the_oracles():
    """Of each message of the first turn, and of the game: 99.9 % for three means."""
    problem = games.make_game(FAMILY, jax.random.key(0), 0)
    exact = jax.jit(lambda game: oracle.compute_oracle(SHAPE, game, POLICY, PARAMS))(problem)
    sample = draw("tree").sample
    returns, first = sample.return_L[0::PROBLEMS, 4], sample.transcript_LK[0::PROBLEMS, 4, 0]
    for drawn, mean in (
        (returns[first == 0], exact.q[0][0, 0]),
        (returns[first == 1], exact.q[0][0, 1]),
        (returns, exact.value),
    ):
        bound = stats.norm.ppf(1 - 0.001 / 6) * drawn.std() / np.sqrt(len(drawn))
        assert abs(drawn.mean() - mean) < bound
    assert abs(returns[first == 0].mean() - exact.value) > 0.01


def join(sample: play.Sample, turn: int) -> np.ndarray:
    """Transcripts up to and with the credited messages of a turn, [P, N, K]."""
    transcript = sample.prefix[turn].copy()
    transcript[:, :, turn] = sample.message[turn]
    return transcript


def test_tree_leaves_descend_in_path_order():
    """Fan-out (2, 1, 3): leaves 0..2 are below message 0 of the first two turns, 3..5 below message 1."""
    sample = draw("tree").sample
    np.testing.assert_array_equal(sample.transcript_LK, join(sample, 2))
    for turn, parent in ((1, [0, 1]), (2, [0, 0, 0, 1, 1, 1])):
        np.testing.assert_array_equal(sample.prefix[turn], join(sample, turn - 1)[:, parent])


@pytest.mark.parametrize("form, counts", [("replay", (2, 1, 3)), ("best_branch", (2, 1))])
def test_replay_leaves_continue_their_alternatives(form, counts):
    sample, calls, n = draw(form).sample, sum(counts), len(counts)
    reference = np.zeros((DRAWS, 3), int)
    for turn in range(3):
        alternative = join(sample, turn)
        np.testing.assert_array_equal(sample.prefix[turn], np.repeat(reference[:, None], n, axis=1))
        leaves = sample.transcript_LK[:, turn * calls : (turn + 1) * calls]
        own = np.repeat(np.arange(n), counts)
        np.testing.assert_array_equal(leaves[:, :, : turn + 1], alternative[:, own, : turn + 1])
        chosen = np.zeros(DRAWS, int)
        if form == "best_branch":
            block = sample.return_L[:, turn * calls : (turn + 1) * calls]
            first, second = block[:, :2].mean(1), block[:, 2]
            chosen = (second > first).astype(int)
            assert 0 < chosen.sum() < DRAWS
            assert turn < 2 or (first == second).any()  # ties go to the first
        reference = alternative[np.arange(DRAWS), chosen]


@pytest.mark.parametrize("form, leaf, other", [("replay", 0, 1), ("replay", 0, 6), ("auxiliary", 0, 4)])
def test_what_follows_a_shared_message_is_drawn_apart(form, leaf, other):
    """Leaves of one alternative, of a turn and the next, of an episode and its continuation: chi-square, 99.9 %."""
    leaf_PLK = draw(form).sample.transcript_LK[0::PROBLEMS]
    np.testing.assert_array_equal(leaf_PLK[:, leaf, 0], leaf_PLK[:, other, 0])
    table = np.zeros((3, 3))
    np.add.at(table, (leaf_PLK[:, leaf, 1], leaf_PLK[:, other, 1]), leaf_PLK[:, leaf, 0] == 0)
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_auxiliary_continues_the_contexts_that_episodes_reached():
    """Two episodes, two repeats: leaves 2..3 are the problem's, 4..7 keep an episode's first message, 8..11 two."""
    sample = draw("auxiliary").sample
    episode = join(sample, 2)
    np.testing.assert_array_equal(sample.transcript_LK[:, :2], episode)
    for turn, start in ((1, 4), (2, 8)):
        kept = sample.transcript_LK[:, start : start + 4]
        np.testing.assert_array_equal(kept[:, :, :turn], episode[:, [0, 0, 1, 1], :turn])
        assert (kept[:, 0] != kept[:, 1]).any() and (kept[:, :, turn:] != episode[:, [0, 0, 1, 1], turn:]).any()


@pytest.mark.parametrize("form", ["removal", "masked"])
def test_removal_puts_the_null_message_in_one_place(form):
    """Leaves 2 + 2u and 3 + 2u are the episodes without turn u; masked keeps what came later, removal does not."""
    sample = draw(form).sample
    episode = join(sample, 2)
    np.testing.assert_array_equal(sample.transcript_LK[:, :2], episode)
    for turn in range(3):
        copy = sample.transcript_LK[:, 2 + 2 * turn : 4 + 2 * turn]
        np.testing.assert_array_equal(copy[:, :, :turn], episode[:, :, :turn])
        assert not copy[:, :, turn].any()
        if form == "masked":
            np.testing.assert_array_equal(copy[:, :, turn + 1 :], episode[:, :, turn + 1 :])
        else:
            assert turn == 2 or (copy[:, :, turn + 1 :] != episode[:, :, turn + 1 :]).any()


def test_removal_speaks_again_after_the_null_message():
    """The second turn reads the first: after a removed first message it follows the policy given message 0."""
    copy = draw("removal").sample.transcript_LK[0::PROBLEMS, 2:4].reshape(-1, 3)
    expected = compute_chance(np.array([[0, each, 0] for each in range(3)]), 1, 0) * len(copy)
    assert stats.chisquare(np.bincount(copy[:, 1], minlength=3), expected).pvalue > 0.001


def test_copies_without_the_first_message_are_those_that_removal_draws():
    family = games.make_team(
        messages=(2, 3), sees=((), (0,)), effect=1.0, coupling=1.0, spread=1.0, noise="none", features=1
    )
    policy = policies.make_tabular(family.shape, 1, 1.0)
    game, params = games.make_game(family, jax.random.key(0), 0), policy.init(jax.random.key(1))

    def sample(form, key):
        return play.sample_plan(family.shape, game, policy, params, plans.make_arms(form, 4, 2), key)

    first, removal = (
        jax.jit(sample, static_argnums=0)(form, jax.random.key(2)) for form in ("first_removal", "removal")
    )
    np.testing.assert_array_equal(first.transcript_LK, removal.transcript_LK[:8])
    np.testing.assert_array_equal(first.return_L, removal.return_L[:8])
    assert not first.transcript_LK[4:, 0].any() and first.transcript_LK[4:, 1].any()


def test_coalitions_keep_the_turns_of_their_bits():
    sample = draw("coalition").sample
    episode = join(sample, 2)
    for number, subset in itertools.product(range(2), range(8)):
        expected = episode[:, number] * [subset >> turn & 1 for turn in range(3)]
        np.testing.assert_array_equal(sample.transcript_LK[:, 8 * number + subset], expected)


def test_evaluator_calls_are_independent():
    """A gaussian evaluator gives every leaf noise of its own, also where transcripts are the same."""
    shape = SHAPE._replace(noise="gaussian", sigma=0.5)
    game = games.make_game(FAMILY, jax.random.key(0), 0)

    def sample_noise(key):
        sample = play.sample_plan(shape, game, POLICY, PARAMS, PLANS["replay"], key)
        return sample.return_L - games.compute_mean_return(shape, game, sample.transcript_LK)

    noise_PL = np.asarray(jax.jit(jax.vmap(sample_noise))(jax.random.split(jax.random.key(4), 500))) / 0.5
    correlation_LL = np.corrcoef(noise_PL.T)
    leaves = len(correlation_LL)
    # The largest of that many correlations of independent columns, 99.9 %.
    bound = stats.norm.ppf(1 - 0.001 / (leaves * (leaves - 1))) / np.sqrt(500)
    assert np.abs(correlation_LL - np.eye(leaves)).max() < bound
    low, high = stats.chi2.ppf([0.0005, 0.9995], noise_PL.size)
    assert low < (noise_PL**2).sum() < high


def test_a_plan_of_other_turns_is_refused():
    game = games.make_game(FAMILY, jax.random.key(0), 0)
    with pytest.raises(ValueError, match="expected 3 turns, those of the game, got 2"):
        play.sample_plan(SHAPE, game, POLICY, PARAMS, plans.make_tree((2, 2)), jax.random.key(0))
