"""The matrices: hand-worked examples, the algebra of their rows, and exact expectations over enumerated trees.

Enumeration is in float64 through the matrices alone. A game has a few messages per turn; every possible tree
is listed with its probability, so expectations are sums and not samples. A random return is a last turn that
nobody trains, whose messages are the outcomes.

Dimension key: N message of one turn of one problem    L leaf    X tree (of all possible)    H context    A message
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from c3jax.credit import rows
from c3jax.credit.matrix import CreditMatrix, compute_group_matrix, make_credit_matrix
from c3jax.credit.methods import METHODS
from c3jax.credit.plans import make_tree

TREE_RETURN_L = np.array([1, 0, 0, 1, 1, 1, 1, 0], float)  # fan-out (2, 4)


# Rows that are weights on a tree's leaves alone, without a critic's part.
TREE_METHODS = [m for m, row in METHODS.items() if row.sampling in ("tree", "flat") and row.critic == "none"]


def make_matrix(method: str, fan_out: tuple[int, ...], trained: tuple[bool, ...] | None = None) -> CreditMatrix:
    return make_credit_matrix(method, make_tree(fan_out), trained)


def apply_matrix(matrix: CreditMatrix, return_L: np.ndarray) -> list[np.ndarray]:
    return [
        (value_NL - baseline_NL) @ return_L for value_NL, baseline_NL in zip(matrix.value, matrix.baseline, strict=True)
    ]


def fan_out_of(method: str) -> tuple[int, ...]:
    return (4, 1, 1) if METHODS[method].sampling == "flat" else (3, 2, 2)


# Worked by hand


def test_paper_example():
    """arXiv:2603.06859 fig. 1: .63 - (.80 + .73)/2, and so on."""
    (advantage_N,) = apply_matrix(make_matrix("c3", (3,)), np.array([0.63, 0.80, 0.73]))
    np.testing.assert_allclose(advantage_N, [-0.135, 0.12, 0.015], atol=1e-12)


def test_c3_on_a_tree():
    """Reasoner values 1/2 and 3/4. Actor 0 of context 0: 1 - (0 + 0 + 1)/3 = 2/3; of context 1: 1 - 2/3 = 1/3."""
    reasoner_N, actor_N = apply_matrix(make_matrix("c3", (2, 4)), TREE_RETURN_L)
    np.testing.assert_allclose(reasoner_N, [-1 / 4, 1 / 4], atol=1e-12)
    np.testing.assert_allclose(actor_N, [2 / 3, -2 / 3, -2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3, -1], atol=1e-12)


def test_no_loo_on_a_tree():
    """The reasoners' mean is 5/8; the actors' contexts have means 1/2 and 3/4."""
    reasoner_N, actor_N = apply_matrix(make_matrix("no_loo", (2, 4)), TREE_RETURN_L)
    np.testing.assert_allclose(reasoner_N, [-1 / 8, 1 / 8], atol=1e-12)
    np.testing.assert_allclose(actor_N, [1 / 2, -1 / 2, -1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, -3 / 4], atol=1e-12)


def test_no_replay_on_a_tree():
    """Five of eight leaves are 1, so an actor's baseline is 4/7 under a 1 and 5/7 under a 0."""
    reasoner_N, actor_N = apply_matrix(make_matrix("no_replay", (2, 4)), TREE_RETURN_L)
    np.testing.assert_allclose(reasoner_N, [-1 / 4, 1 / 4], atol=1e-12)
    np.testing.assert_allclose(actor_N, [3 / 7 if r else -5 / 7 for r in TREE_RETURN_L], atol=1e-12)


@pytest.mark.parametrize(
    ("method", "if_one", "if_zero"),
    [("rloo", 3 / 7, -5 / 7), ("magrpo", 0.375, -0.625), ("grpo", 0.375, -0.625), ("reinforce", 1.0, 0.0)],
)
def test_flat_methods(method, if_one, if_zero):
    """Eight episodes of mean 5/8. An episode's advantage is that of each of its messages."""
    for advantage_N in apply_matrix(make_matrix(method, (8, 1)), TREE_RETURN_L):
        np.testing.assert_allclose(advantage_N, np.where(TREE_RETURN_L == 1, if_one, if_zero), atol=1e-12)


def test_three_turns():
    """Fan-out (2, 2, 2), leaves 1 0 | 1 1 || 0 0 | 0 1: values 3/4, 1/4; then 1/2, 1, 0, 1/2; then the returns."""
    advantage = apply_matrix(make_matrix("c3", (2, 2, 2)), np.array([1, 0, 1, 1, 0, 0, 0, 1.0]))
    np.testing.assert_allclose(advantage[0], [1 / 2, -1 / 2], atol=1e-12)
    np.testing.assert_allclose(advantage[1], [-1 / 2, 1 / 2, -1 / 2, 1 / 2], atol=1e-12)
    np.testing.assert_allclose(advantage[2], [1, -1, 0, 0, 0, 0, -1, 1], atol=1e-12)


def test_untrained_turn_in_the_middle():
    """Fan-out (2, 1, 3), middle turn not trained: it has the values of the turn above it, and no advantage."""
    matrix = make_matrix("c3", (2, 1, 3), trained=(True, False, True))
    return_L = np.array([1, 0, 0, 1, 1, 0.5])
    first_N, middle_N, last_N = apply_matrix(matrix, return_L)
    np.testing.assert_allclose(first_N, [-1 / 2, 1 / 2], atol=1e-12)  # 1/3 against 5/6
    np.testing.assert_allclose(matrix.value[1] @ return_L, [1 / 3, 5 / 6], atol=1e-12)
    np.testing.assert_array_equal(middle_N, [0, 0])
    np.testing.assert_allclose(last_N, [1, -1 / 2, -1 / 2, 1 / 4, 1 / 4, -1 / 2], atol=1e-12)
    assert matrix.group[1] is None


# Rows


def test_value_matrix_written_out():
    np.testing.assert_array_equal(rows.own_leaves(make_tree((2, 1, 2)), 1), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_array_equal(rows.own_leaves(make_tree((2, 1, 2)), 2), np.eye(4))


def test_group_matrix_written_out():
    np.testing.assert_array_equal(
        compute_group_matrix(4, 2), [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]]
    )


@pytest.mark.parametrize("method", TREE_METHODS)
def test_value_is_on_own_leaves_and_a_leave_one_out_baseline_is_off_them(method):
    fan_out = fan_out_of(method)
    matrix = make_matrix(method, fan_out)
    num_leaves = math.prod(fan_out)
    for value_NL, baseline_NL in zip(matrix.value, matrix.baseline, strict=True):
        # Message n of N owns the leaves l with l // (L / N) == n.
        is_own_NL = np.arange(num_leaves)[None] // (num_leaves // len(value_NL)) == np.arange(len(value_NL))[:, None]
        np.testing.assert_array_equal(value_NL != 0, is_own_NL)
        touches_own = bool(baseline_NL[is_own_NL].any())
        assert touches_own == (
            method in ("no_loo", "magrpo", "grpo", "dr_mas", "tree_rl", "hgpo", "tree_grpo", "maxrl", "otb", "igpo")
        )


@pytest.mark.parametrize(("loo", "mean", "fan_out"), [("c3", "no_loo", (3, 2, 4)), ("rloo", "magrpo", (5, 1, 1))])
def test_leave_one_out_is_mean_centring_times_n_over_n_minus_1(loo, mean, fan_out):
    loo_matrix, mean_matrix = make_matrix(loo, fan_out), make_matrix(mean, fan_out)
    for turn, size in enumerate(fan_out if loo == "c3" else (fan_out[0],) * 3):
        loo_NL = loo_matrix.value[turn] - loo_matrix.baseline[turn]
        mean_NL = mean_matrix.value[turn] - mean_matrix.baseline[turn]
        np.testing.assert_allclose(loo_NL, size / (size - 1) * mean_NL, atol=1e-12)


def test_no_replay_on_flat_sampling_is_rloo():
    no_replay, rloo = make_matrix("no_replay", (6, 1, 1)), make_matrix("rloo", (6, 1, 1))
    for mine, theirs in zip(no_replay.value + no_replay.baseline, rloo.value + rloo.baseline, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_c3_with_one_context_is_rloo():
    """The first turn's only context is the problem, so there c3 is RLOO over subtree means."""
    c3, rloo = make_matrix("c3", (5, 1), trained=(True, False)), make_matrix("rloo", (5, 1))
    np.testing.assert_array_equal(c3.baseline[0], rloo.baseline[0])


# Exact expectations


class Game(NamedTuple):
    """Policies and returns of a game whose context is the path of all messages so far."""

    policy: tuple[np.ndarray, ...]  # turn d: [A0 * ... * A_{d-1}, A_d]
    return_H: np.ndarray  # by complete path


def make_game(seed: int, num_messages: tuple[int, ...], return_H: np.ndarray) -> Game:
    rng = np.random.default_rng(seed)
    contexts = [math.prod(num_messages[:d]) for d in range(len(num_messages))]
    logits = [rng.normal(size=(h, a)) for h, a in zip(contexts, num_messages, strict=True)]
    return Game(tuple(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in logits), return_H)


BERNOULLI_DUO = make_game(0, (3, 3, 2), np.tile([0.0, 1.0], 9))  # the third turn draws the return
GRADED_TRIO = make_game(1, (2, 2, 2), np.random.default_rng(2).uniform(size=8))


def compute_exact(game: Game) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Backward induction: A*_HA and V_H of every turn."""
    advantage, value, next_value_H = [], [], game.return_H
    for policy_HA in reversed(game.policy):
        q_HA = next_value_H.reshape(policy_HA.shape)
        next_value_H = (policy_HA * q_HA).sum(axis=1)
        advantage.insert(0, q_HA - next_value_H[:, None])
        value.insert(0, next_value_H)
    return advantage, value


class Trees(NamedTuple):
    probability_X: np.ndarray
    path: list[np.ndarray]  # per turn [N, X]: index of (context, message) in the flattened [H, A]
    return_LX: np.ndarray


def enumerate_trees(game: Game, fan_out: tuple[int, ...]) -> Trees:
    sizes = [math.prod(fan_out[: d + 1]) for d in range(len(fan_out))]
    shape = [policy.shape[1] for policy, n in zip(game.policy, sizes, strict=True) for _ in range(n)]
    draw_X = np.indices(shape).reshape(len(shape), -1)
    ends = list(itertools.accumulate(sizes))
    probability_X, path, context_NX = np.ones(draw_X.shape[1]), [], np.zeros((1, draw_X.shape[1]), int)
    for policy_HA, f, message_NX in zip(game.policy, fan_out, np.split(draw_X, ends[:-1]), strict=True):
        context_NX = np.repeat(context_NX, f, axis=0)
        probability_X = probability_X * policy_HA[context_NX, message_NX].prod(axis=0)
        context_NX = context_NX * policy_HA.shape[1] + message_NX
        path.append(context_NX)
    return Trees(probability_X, path, game.return_H[context_NX])


def estimate(method: str, fan_out: tuple[int, ...], trees: Trees, trained: tuple[bool, ...]) -> list[np.ndarray]:
    """Advantages [N, X] per turn of all trees; grpo's division by the std of the problem's returns included."""
    advantage = apply_matrix(make_matrix(method, fan_out, trained), trees.return_LX)
    if method == "grpo":
        std_X = trees.return_LX.std(axis=0)
        advantage = [np.divide(a, std_X, out=np.zeros_like(a), where=std_X > 1e-9) for a in advantage]
    return advantage


def mean_by_path(trees: Trees, turn: int, x_NX: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """E[x | h, a] of every message of the turn: [N, H, A]."""

    def total(weight_X, path_X):
        return np.bincount(path_X, weights=weight_X, minlength=math.prod(shape)).reshape(shape)

    p_X = trees.probability_X
    return np.stack([total(p_X * x, path) / total(p_X, path) for x, path in zip(x_NX, trees.path[turn], strict=True)])


CASES = {
    "bernoulli duo": (BERNOULLI_DUO, (2, 2, 1), (3, 1, 1), (True, True, False)),
    "graded trio": (GRADED_TRIO, (2, 2, 2), (3, 1, 1), (True, True, True)),
}


def setting(method: str, case: str) -> tuple[Game, tuple[int, ...], tuple[bool, ...], Trees]:
    game, nested, flat, trained = CASES[case]
    fan_out = flat if METHODS[method].sampling == "flat" else nested
    return game, fan_out, trained, enumerate_trees(game, fan_out)


def test_enumeration_is_complete():
    for game, nested, flat, _ in CASES.values():
        for fan_out in (nested, flat):
            trees = enumerate_trees(game, fan_out)
            np.testing.assert_allclose(trees.probability_X.sum(), 1, atol=1e-12)
            np.testing.assert_allclose(trees.return_LX @ trees.probability_X, compute_exact(game)[1][0][0], atol=1e-12)


# E[advantage | h, a] from A* [H, A], V(h) [H, 1] and V(x). Siblings come in twos, episodes in threes.
EXPECTED = {
    "c3": lambda a, vh, vx: a,
    "no_loo": lambda a, vh, vx: a / 2,
    "rloo": lambda a, vh, vx: a + vh - vx,
    "magrpo": lambda a, vh, vx: 2 / 3 * (a + vh - vx),
    "reinforce": lambda a, vh, vx: a + vh,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", EXPECTED)
def test_expected_advantage(method, case):
    game, fan_out, trained, trees = setting(method, case)
    exact_advantage, exact_value = compute_exact(game)
    for turn, estimate_NX in enumerate(estimate(method, fan_out, trees, trained)):
        if trained[turn]:
            a_HA, v_H1 = exact_advantage[turn], exact_value[turn][:, None]
            expected_HA = EXPECTED[method](a_HA, v_H1, exact_value[0][0])
            got_NHA = mean_by_path(trees, turn, estimate_NX, a_HA.shape)
            np.testing.assert_allclose(got_NHA, np.broadcast_to(expected_HA, got_NHA.shape), atol=1e-9)


def test_expected_advantage_of_no_replay():
    """At turn 1 of (2, 2) one of three others shares the context: the offset is 2/3 (V(h) - V(x))."""
    game, fan_out, trained, trees = setting("no_replay", "bernoulli duo")
    (first_HA, second_HA, _), (problem_value_H, value_H, _) = compute_exact(game)
    first_NX, second_NX, _ = estimate("no_replay", fan_out, trees, trained)
    for got_HA in mean_by_path(trees, 0, first_NX, first_HA.shape):
        np.testing.assert_allclose(got_HA, first_HA, atol=1e-9)
    for got_HA in mean_by_path(trees, 1, second_NX, second_HA.shape):
        np.testing.assert_allclose(got_HA, second_HA + 2 / 3 * (value_H[:, None] - problem_value_H), atol=1e-9)


def compute_true_gradient(game: Game, turn: int) -> np.ndarray:
    """d V(x) / d logits of one turn, [H, A], by complex steps through softmax and value."""
    logits_HA = np.log(game.policy[turn])
    gradient_HA = np.zeros_like(logits_HA)
    for index in np.ndindex(*logits_HA.shape):
        stepped_HA = logits_HA.astype(complex)
        stepped_HA[index] += 1e-30j
        policy_HA = np.exp(stepped_HA) / np.exp(stepped_HA).sum(axis=1, keepdims=True)
        stepped = Game(game.policy[:turn] + (policy_HA,) + game.policy[turn + 1 :], game.return_H)
        gradient_HA[index] = compute_exact(stepped)[1][0][0].imag / 1e-30
    return gradient_HA


def compute_expected_gradient(game: Game, trees: Trees, turn: int, estimate_NX: np.ndarray) -> np.ndarray:
    """E of advantage times the gradient of log pi(a | h) with respect to the turn's logits, mean over messages."""
    policy_HA = game.policy[turn]
    weight_HA = np.mean(
        [
            np.bincount(path_X, weights=trees.probability_X * x_X, minlength=policy_HA.size)
            for x_X, path_X in zip(estimate_NX, trees.path[turn], strict=True)
        ],
        axis=0,
    ).reshape(policy_HA.shape)
    return weight_HA - policy_HA * weight_HA.sum(axis=1, keepdims=True)  # onehot(a) - pi(. | h), summed over a


GRADIENT_SCALE = {"c3": 1.0, "no_loo": 1 / 2, "no_replay": 1.0, "rloo": 1.0, "magrpo": 2 / 3, "reinforce": 1.0}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", GRADIENT_SCALE)
def test_expected_policy_gradient(method, case):
    game, fan_out, trained, trees = setting(method, case)
    for turn, estimate_NX in enumerate(estimate(method, fan_out, trees, trained)):
        if trained[turn]:
            got_HA = compute_expected_gradient(game, trees, turn, estimate_NX)
            truth_HA = compute_true_gradient(game, turn)
            assert np.abs(truth_HA).max() > 1e-3  # there is something to estimate
            np.testing.assert_allclose(got_HA, GRADIENT_SCALE[method] * truth_HA, atol=1e-9)


FAULTS = {
    "mean with oneself": lambda value_GKX: value_GKX - value_GKX.mean(axis=1, keepdims=True),
    "divided by the pair's standard deviation": lambda value_GKX: np.sign(value_GKX - value_GKX[:, ::-1]),
    "the best as baseline": lambda value_GKX: value_GKX - value_GKX.max(axis=1, keepdims=True),
    "a message of the next context": lambda value_GKX: value_GKX - np.roll(value_GKX, 1, axis=0)[:, ::-1],
}


def find_largest_bias(compute_advantage: Callable[[np.ndarray], np.ndarray]) -> float:
    """Against A*, over both turns of the graded trio that have siblings in twos, from values [G, 2, X]."""
    trees, largest = enumerate_trees(GRADED_TRIO, (2, 2, 1)), 0.0
    for turn, exact_HA in enumerate(compute_exact(GRADED_TRIO)[0][:2]):
        value_NX = rows.own_leaves(make_tree((2, 2, 1)), turn) @ trees.return_LX
        estimate_NX = compute_advantage(value_NX.reshape(-1, 2, value_NX.shape[1])).reshape(value_NX.shape)
        bias_NHA = mean_by_path(trees, turn, estimate_NX, exact_HA.shape) - exact_HA
        largest = max(largest, np.abs(bias_NHA).max())
    return largest


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault):
    assert find_largest_bias(lambda value_GKX: value_GKX - value_GKX[:, ::-1]) < 1e-9
    assert find_largest_bias(FAULTS[fault]) > 1e-2


@pytest.mark.parametrize(("n", "c"), [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2)])
def test_variance_law_of_c3(n, c):
    """Var(advantage_j | a_j) = (s2 n^2 / B_u + t2) / (n - 1), B_u = n c calls, s2 return noise, t2 = Var_a Q."""
    policy_A, q_A, noise = np.array([0.2, 0.3, 0.5]), np.array([0.1, 0.6, 0.8]), 0.35
    coin_HA = np.full((3, 2), 0.5)
    game = Game((policy_A[None], coin_HA), (q_A[:, None] + [-noise, noise]).ravel())
    trees = enumerate_trees(game, (n, c))
    estimate_NX = estimate("c3", (n, c), trees, (True, False))[0]
    mean_NA = mean_by_path(trees, 0, estimate_NX, (1, 3))
    variance_NA = mean_by_path(trees, 0, estimate_NX**2, (1, 3)) - mean_NA**2
    t2 = policy_A @ q_A**2 - (policy_A @ q_A) ** 2
    np.testing.assert_allclose(variance_NA, (noise**2 * n**2 / (n * c) + t2) / (n - 1), atol=1e-9)
