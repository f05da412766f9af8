"""The oracle: games worked by hand, brute force with Python loops, and the axioms of each quantity.

Dimension key: as in c3jax/studies/oracle.py
"""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.lab import games, oracle, policies

KEY = jax.random.key(7)


class Case:
    """A random game of one problem, a tabular policy on it, and everything the oracle says of them, jitted."""

    def __init__(self, messages, sees, noise="bernoulli", sigma=0.0, coupling=1.5):
        family = games.make_team(
            messages=messages,
            sees=sees,
            effect=1.0,
            coupling=coupling,
            spread=0.5,
            noise=noise,
            sigma=sigma,
            features=1,
        )
        self.shape = family.shape
        self.policy = policies.make_tabular(self.shape, problems=2, scale=1.0)
        game, self.params = games.make_game(family, KEY, 1), self.policy.init(KEY)
        self.game = game

        def compute_all(game, params):
            known = (self.shape, game, self.policy, params)
            exact = oracle.compute_oracle(*known)
            return (
                exact,
                oracle.compute_policy_gradient(exact),
                oracle.compute_variance(*known),
                oracle.compute_removal(*known),
                oracle.compute_influence(*known),
                oracle.compute_shapley(self.shape, game),
                jax.grad(lambda params: oracle.compute_oracle(self.shape, game, self.policy, params).value)(params),
            )

        results = jax.device_get(jax.jit(compute_all)(game, self.params))
        self.oracle, self.gradient, self.variance, self.removal, self.influence, self.shapley, self.autodiff = results
        self.transcripts = [tuple(row) for row in games.list_transcripts(self.shape).tolist()]
        means = games.compute_mean_return(self.shape, game, games.list_transcripts(self.shape))
        self.mean = dict(zip(self.transcripts, np.asarray(means, float).tolist(), strict=True))

    def context(self, transcript, turn):
        """The number of what `turn` reads in a transcript, counted by hand."""
        number = 0
        for seen in self.shape.sees[turn]:
            number = number * self.shape.messages[seen] + transcript[seen]
        return number

    def chance(self, transcript, turns):
        """Probability of what `turns` say in a transcript, given what they read."""
        product = 1.0
        for turn in turns:
            row = np.asarray(self.params[turn], float)[1, self.context(transcript, turn), : self.shape.messages[turn]]
            product *= np.exp(row[transcript[turn]]) / np.exp(row).sum()
        return product

    def keep_context(self, turn, context, message=None):
        """Whether a transcript has this context of `turn`, and there this message where one is given."""
        return lambda transcript: self.context(transcript, turn) == context and message in (None, transcript[turn])

    def average(self, worth, keep):
        """E[worth(transcript)] over transcripts that `keep` keeps, under the policy: a conditional expectation."""
        kept = [transcript for transcript in self.transcripts if keep(transcript)]
        weights = [self.chance(transcript, range(len(transcript))) for transcript in kept]
        return sum(w * worth(transcript) for w, transcript in zip(weights, kept, strict=True)) / sum(weights)


# A hidden turn, a turn that skips one, uneven messages: nothing here is a chain.
GRAPH = ((2, 3, 2, 3), ((), (), (1,), (0, 2)))
CHAIN = ((3, 2, 3), games.see_all(3))


@pytest.fixture(scope="module")
def graph():
    return Case(*GRAPH)


@pytest.fixture(scope="module")
def chain():
    return Case(*CHAIN, noise="gaussian", sigma=0.3)


# By hand: two turns of two messages on an identity link, f = (0, 1; 4, 2), turn 1 reads turn 0

HAND_SHAPE = games.GameShape((2, 2), ((), (0,)), (True, True), "identity", "none", 0.0)
HAND_LOGITS = (np.log([[[0.25, 0.75]]]), np.log([[[0.5, 0.5], [0.8, 0.2]]]))


def make_hand_game():
    """f(0, 0) = 0, f(0, 1) = 1, f(1, 0) = 4, f(1, 1) = 4 + 1 - 3 = 2."""
    pair_KKMM = np.zeros((2, 2, 2, 2), np.float32)
    pair_KKMM[0, 1, 1, 1] = -3.0
    main_KM = jnp.array([[0.0, 4.0], [0.0, 1.0]])
    return games.Game(jnp.int32(0), jnp.zeros(1), main_KM, jnp.asarray(pair_KKMM), jnp.float32(0.0))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_by_hand(wrap):
    """Q(0) = .5, Q(1) = .8 * 4 + .2 * 2 = 3.6, V = .125 + 2.7 = 2.825; contexts have V .5 and 3.6."""
    policy = policies.make_tabular(HAND_SHAPE, 1, 0.0)
    params = tuple(jnp.asarray(table, jnp.float32) for table in HAND_LOGITS)
    known = (HAND_SHAPE, make_hand_game(), policy)
    exact = wrap(lambda params: oracle.compute_oracle(*known, params))(params)
    np.testing.assert_allclose(exact.value, 2.825, atol=1e-6)
    np.testing.assert_allclose(exact.q[0], [[0.5, 3.6]], atol=1e-6)
    np.testing.assert_allclose(exact.q[1], [[0.0, 1.0], [4.0, 2.0]], atol=1e-6)
    np.testing.assert_allclose(exact.v[1], [0.5, 3.6], atol=1e-6)
    np.testing.assert_allclose(exact.advantage[0], [[-2.325, 0.775]], atol=1e-6)
    np.testing.assert_allclose(exact.advantage[1], [[-0.5, 0.5], [0.4, -1.6]], atol=1e-6)
    np.testing.assert_allclose(exact.visit[0], [1.0], atol=1e-6)
    np.testing.assert_allclose(exact.visit[1], [0.25, 0.75], atol=1e-6)


def test_policy_gradient_by_hand():
    """visit * pi * A*: .25 * -2.325 and .75 * .775; .25 * .5 * -.5 and so on."""
    policy = policies.make_tabular(HAND_SHAPE, 1, 0.0)
    params = tuple(jnp.asarray(table, jnp.float32) for table in HAND_LOGITS)
    exact = jax.jit(lambda: oracle.compute_oracle(HAND_SHAPE, make_hand_game(), policy, params))()
    gradient = oracle.compute_policy_gradient(exact)
    np.testing.assert_allclose(gradient[0], [[-0.58125, 0.58125]], atol=1e-6)
    np.testing.assert_allclose(gradient[1], [[-0.0625, 0.0625], [0.24, -0.24]], atol=1e-6)


def test_variance_by_hand():
    """First turn: noise .25 * .25 + .75 * .64 = .5425, spread .25 * .75 * 3.1^2. Second: that noise is spread."""
    policy = policies.make_tabular(HAND_SHAPE, 1, 0.0)
    params = tuple(jnp.asarray(table, jnp.float32) for table in HAND_LOGITS)
    variance = jax.jit(lambda: oracle.compute_variance(HAND_SHAPE, make_hand_game(), policy, params))()
    np.testing.assert_allclose(variance.noise_K, [0.5425, 0.0], atol=1e-5)
    np.testing.assert_allclose(variance.spread_K, [1.801875, 0.5425], atol=1e-5)
    np.testing.assert_allclose(variance.between_K, [0.0, 1.801875], atol=1e-5)
    np.testing.assert_allclose(variance.noise_at[0], [[0.25, 0.64]], atol=1e-5)
    np.testing.assert_allclose(variance.spread_at[1], [0.25, 0.64], atol=1e-5)


def test_removal_by_hand():
    """Message 1 of turn 0: regenerated 3.6 - .5; masked .8 (4 - 0) + .2 (2 - 1). Of turn 1, both f - f(., 0)."""
    policy = policies.make_tabular(HAND_SHAPE, 1, 0.0)
    params = tuple(jnp.asarray(table, jnp.float32) for table in HAND_LOGITS)
    removal = jax.jit(lambda: oracle.compute_removal(HAND_SHAPE, make_hand_game(), policy, params))()
    np.testing.assert_allclose(removal.regenerated[0], [[0.0, 3.1]], atol=1e-6)
    np.testing.assert_allclose(removal.masked[0], [[0.0, 3.4]], atol=1e-6)
    for last in (removal.regenerated[1], removal.masked[1]):
        np.testing.assert_allclose(last, [[0.0, 1.0], [0.0, -2.0]], atol=1e-6)


def test_shapley_by_hand():
    """Of (1, 1): f = 2, alone 4 and 1; turn 0 gets (4 - 0 + 2 - 1)/2, turn 1 (1 - 0 + 2 - 4)/2."""
    phi_AK = jax.jit(lambda: oracle.compute_shapley(HAND_SHAPE, make_hand_game()))()
    np.testing.assert_allclose(phi_AK, [[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [2.5, -0.5]], atol=1e-6)


# Values, against loops


@pytest.mark.parametrize("turn", range(4))
def test_values_of_a_partly_seeing_graph(graph, turn):
    for context in range(policies.count_contexts(graph.shape, turn)):
        is_there = graph.keep_context(turn, context)
        visit = sum(graph.chance(transcript, range(4)) for transcript in graph.transcripts if is_there(transcript))
        np.testing.assert_allclose(graph.oracle.visit[turn][context], visit, atol=1e-6)
        v = graph.average(graph.mean.get, is_there)
        np.testing.assert_allclose(graph.oracle.v[turn][context], v, atol=1e-6)
        for message in range(graph.shape.messages[turn]):
            q = graph.average(graph.mean.get, graph.keep_context(turn, context, message))
            np.testing.assert_allclose(graph.oracle.q[turn][context, message], q, atol=1e-6)
            np.testing.assert_allclose(graph.oracle.advantage[turn][context, message], q - v, atol=1e-6)
        assert not graph.oracle.advantage[turn][context, graph.shape.messages[turn] :].any()


@pytest.mark.parametrize("name", ["graph", "chain"])
def test_policy_gradient_is_the_derivative_of_the_expected_return(name, request):
    case = request.getfixturevalue(name)
    for exact_CM, by_autodiff in zip(case.gradient, case.autodiff, strict=True):
        np.testing.assert_allclose(exact_CM, by_autodiff[1], atol=1e-6)
        assert np.abs(exact_CM).max() > 1e-3 and not by_autodiff[0].any()


def test_a_message_never_said_still_has_its_value():
    policy = policies.make_tabular(HAND_SHAPE, 1, 0.0)
    params = (jnp.array([[[0.0, -200.0]]]), jnp.asarray(HAND_LOGITS[1], jnp.float32))
    exact = jax.jit(lambda params: oracle.compute_oracle(HAND_SHAPE, make_hand_game(), policy, params))(params)
    np.testing.assert_allclose(exact.q[0], [[0.5, 3.6]], atol=1e-6)
    np.testing.assert_allclose(exact.visit[1], [1.0, 0.0], atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(exact))


def test_too_large_a_game_is_refused():
    policy, game = policies.make_tabular(HAND_SHAPE, 1, 0.0), make_hand_game()
    wide, deep = HAND_SHAPE._replace(messages=(300, 300)), HAND_SHAPE._replace(messages=(2,) * 13)
    with pytest.raises(ValueError, match="at most 65536 transcripts to enumerate, got 90000"):
        oracle.compute_oracle(wide, game, policy, ())
    with pytest.raises(ValueError, match="at most 4194304 transcripts times subsets of turns, got 67108864"):
        oracle.compute_shapley(deep, game)


# Variance


@pytest.mark.parametrize("name", ["graph", "chain"])
def test_the_parts_of_the_variance_sum_to_the_whole(name, request):
    """Bernoulli returns have variance V(1 - V); gaussian ones E f^2 + sigma^2 - V^2."""
    case = request.getfixturevalue(name)
    value = case.average(case.mean.get, lambda transcript: True)
    square = case.average(lambda transcript: case.mean[transcript] ** 2, lambda transcript: True)
    whole = value * (1 - value) if name == "graph" else square + 0.3**2 - value**2
    parts = case.variance
    np.testing.assert_allclose(parts.noise_K + parts.spread_K + parts.between_K, whole, atol=1e-6)


def test_variance_at_a_context_of_a_partly_seeing_graph(graph):
    for context, message in itertools.product(range(4), range(3)):
        q = graph.average(graph.mean.get, graph.keep_context(3, context, message))
        np.testing.assert_allclose(graph.variance.noise_at[3][context, message], q * (1 - q), atol=1e-6)
        v, chance = graph.oracle.v[3][context], graph.params[3][1, context]
        spread = (jax.nn.softmax(chance) * (graph.oracle.q[3][context] - v) ** 2).sum()
        np.testing.assert_allclose(graph.variance.spread_at[3][context], spread, atol=1e-6)


def test_the_survey_family_has_the_surveys_errors():
    """Mean square errors of credit for both roles: closed forms on 400 games, and the published means of 40 games.

    With the exact V, lambda 1: Var(R | h, a), published .202 and .135. For RLOO of 8 episodes also (V(h) - V)^2 and
    Var(R)/7: .235 and .201. The bound is 99.9 % of a mean of 40.
    """
    family = games.make_survey()
    policy = policies.make_tabular(family.shape, 400, games.SURVEY_LOGIT_SCALE)
    params = policy.init(KEY)

    def compute_variance(index):
        return oracle.compute_variance(family.shape, games.make_game(family, KEY, index), policy, params)

    parts = jax.device_get(jax.jit(jax.vmap(compute_variance))(jnp.arange(400)))
    rloo = parts.noise_K + parts.between_K + (parts.noise_K + parts.spread_K + parts.between_K) / 7
    for error, published in ((parts.noise_K, (0.202, 0.135)), (rloo, (0.235, 0.201))):
        bound = 3.29 * error.std(axis=0) * math.sqrt(1 / 40 + 1 / 400)
        assert (np.abs(error.mean(axis=0) - published) < bound).all()
        assert (bound < 0.05).all()


# Removal


@pytest.mark.parametrize("turn", range(4))
def test_removal_against_loops(graph, turn):
    sizes = graph.shape.messages

    def expect(start, worth):
        ends = (start + end for end in itertools.product(*map(range, sizes[turn + 1 :])))
        return sum(graph.chance(whole, range(turn + 1, 4)) * worth(whole) for whole in ends)

    def drop(whole):
        return graph.mean[whole] - graph.mean[(*whole[:turn], 0, *whole[turn + 1 :])]

    for row, before in enumerate(itertools.product(*map(range, sizes[:turn]))):
        null = expect((*before, 0), graph.mean.get)
        for message in range(sizes[turn]):
            start = (*before, message)
            regenerated = expect(start, graph.mean.get) - null
            np.testing.assert_allclose(graph.removal.regenerated[turn][row, message], regenerated, atol=1e-6)
            np.testing.assert_allclose(graph.removal.masked[turn][row, message], expect(start, drop), atol=1e-6)


def test_removal_on_a_chain_is_a_difference_of_q(chain):
    for turn in range(3):
        q_CM = chain.oracle.q[turn][:, : chain.shape.messages[turn]]
        removed = chain.removal.regenerated[turn][:, : chain.shape.messages[turn]]
        np.testing.assert_allclose(removed, q_CM - q_CM[:, :1], atol=1e-6)
        assert turn == 2 or np.abs(chain.removal.regenerated[turn] - chain.removal.masked[turn]).max() > 0.01


# Shapley


@pytest.mark.parametrize("name", ["graph", "chain"])
def test_shapley_values_share_out_the_whole(name, request):
    case = request.getfixturevalue(name)
    means = np.array([case.mean[transcript] for transcript in case.transcripts])
    np.testing.assert_allclose(case.shapley.sum(1), means - means[0], atol=1e-6)


def test_shapley_against_orders_of_joining(graph):
    """The mean, over the 24 orders in which turns join, of what a turn adds."""
    for phi_K, transcript in list(zip(graph.shapley, graph.transcripts, strict=True))[::5]:
        expected = np.zeros(4)
        for order in itertools.permutations(range(4)):
            present = [0] * 4
            for turn in order:
                expected[turn] -= graph.mean[tuple(present)] / math.factorial(4)
                present[turn] = transcript[turn]
                expected[turn] += graph.mean[tuple(present)] / math.factorial(4)
        np.testing.assert_allclose(phi_K, expected, atol=1e-6)


def test_shapley_of_an_additive_game_is_the_main_effects():
    family = games.make_bandit(turns=4, messages=2, effect=1.0, interaction=0.0, sigma=1.0)
    game = games.make_game(family, KEY, 0)
    phi_AK = jax.jit(lambda game: oracle.compute_shapley(family.shape, game))(game)
    effect_KM = np.asarray(game.main_KM) - np.asarray(game.main_KM)[:, :1]
    for phi_K, transcript in zip(phi_AK, games.list_transcripts(family.shape), strict=True):
        np.testing.assert_allclose(phi_K, effect_KM[np.arange(4), transcript], atol=1e-5)


def test_shapley_dummy_and_symmetry():
    """Turns 0 and 1 have equal effects everywhere, turn 2 none."""
    shape = games.GameShape((3, 3, 2), ((), (), ()), (True,) * 3, "logistic", "none", 0.0)
    pair_KKMM = np.zeros((3, 3, 3, 3), np.float32)
    pair_KKMM[0, 1] = [[0.3, -1.0, 2.0], [-1.0, 0.5, 0.7], [2.0, 0.7, -0.4]]
    main_KM = jnp.array([[0.0, 1.0, -2.0], [0.0, 1.0, -2.0], [0.4, 0.4, 0.4]])
    game = games.Game(jnp.int32(0), jnp.zeros(1), main_KM, jnp.asarray(pair_KKMM), jnp.float32(0.1))
    phi = np.asarray(jax.jit(lambda: oracle.compute_shapley(shape, game))()).reshape(3, 3, 2, 3)
    np.testing.assert_allclose(phi[..., 2], 0.0, atol=1e-6)
    np.testing.assert_allclose(phi[..., 0], np.swapaxes(phi[..., 1], 0, 1), atol=1e-6)
    assert np.abs(phi[1, 2, 0, :2]).min() > 0.01


# Influence


def compute_influence(sees, params):
    shape = games.GameShape((3, 3), sees, (True, True), "identity", "none", 0.0)
    game = games.Game(jnp.int32(0), jnp.zeros(1), jnp.zeros((2, 3)), jnp.zeros((2, 2, 3, 3)), jnp.float32(0.0))
    policy = policies.make_tabular(shape, 1, 0.0)
    return jax.jit(lambda params: oracle.compute_influence(shape, game, policy, params))(params)


def test_influence_of_a_copied_message_is_its_entropy():
    uniform, copying = jnp.zeros((1, 1, 3)), 1000.0 * jnp.eye(3)[None]
    influence = compute_influence(((), (0,)), (uniform, copying))
    np.testing.assert_allclose(influence.mean_KK, [[0.0, math.log(3)], [0.0, 0.0]], atol=1e-6)
    skewed = jnp.log(jnp.array([[[0.7, 0.2, 0.1]]]))
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    np.testing.assert_allclose(compute_influence(((), (0,)), (skewed, copying)).at[0][0, 1], entropy, atol=1e-6)


def test_influence_is_zero_where_nothing_is_read():
    random = jax.random.normal(KEY, (1, 1, 3))
    np.testing.assert_allclose(compute_influence(((), ()), (random, random)).mean_KK, 0.0, atol=1e-6)
    deaf = jnp.tile(random, (1, 3, 1))
    np.testing.assert_allclose(compute_influence(((), (0,)), (random, deaf)).mean_KK, 0.0, atol=1e-6)


def test_influence_against_loops(graph):
    """I = H(A_u | h) + H(A_w | h) - H(A_u, A_w | h), also of turns that hear of each other only through a third."""

    def entropy(turns, keep):
        chances = collections.Counter()
        for transcript in filter(keep, graph.transcripts):
            chances[tuple(transcript[turn] for turn in turns)] += graph.chance(transcript, range(4))
        p = np.array(list(chances.values())) / sum(chances.values())
        return -(p * np.log(p)).sum()

    for turn, later in itertools.combinations(range(4), 2):
        for context in range(policies.count_contexts(graph.shape, turn)):
            keep = graph.keep_context(turn, context)
            expected = entropy((turn,), keep) + entropy((later,), keep) - entropy((turn, later), keep)
            np.testing.assert_allclose(graph.influence.at[turn][context, later], expected, atol=1e-6)
        mean = graph.oracle.visit[turn] @ graph.influence.at[turn][:, later]
        np.testing.assert_allclose(graph.influence.mean_KK[turn, later], mean, atol=1e-6)
    assert graph.influence.mean_KK[1, 3] > 1e-3  # through turn 2
    assert graph.influence.mean_KK[0, 1] < 1e-6
