"""What the table says of every row, by enumerating every way in which its sampling can go in small games.

A sampler is written out here for each form, in plain Python over `draw`; replaying it with every sequence of choices
lists all outcomes with their probabilities, so expectations are sums and nothing is estimated. The null message is 0.

Dimension key: H context (path of messages so far)    A message    L leaf    N credited message of a turn    X outcome
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit import plans
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.gae import compute_gae
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.method import Bias
from c3jax.credit.methods import METHODS

RANK = ("none", "scale", "offset", "reweighted", "other")
TOLERANCE = 1e-6  # the signals below are above 1e-3
PLANS = {
    "flat": lambda turns: plans.make_flat(3, turns),
    "tree": lambda turns: plans.make_tree((2,) * turns),
    "replay": lambda turns: plans.make_replay((1, 2) if turns == 2 else (1, 1), turns),
    "best_branch": lambda turns: plans.make_replay((1, 1), turns, continues_best=True),
    "auxiliary": lambda turns: plans.make_auxiliary(1, 1, turns),
    "removal": lambda turns: plans.make_arms("removal", 1, turns),
    "first_removal": lambda turns: plans.make_arms("first_removal", 3, turns),
    "masked": lambda turns: plans.make_arms("masked", 1, turns),
    "coalition": lambda turns: plans.make_arms("coalition", 1, turns),
}


NEVER = ("trio", "first_removal")  # copies without a first message are of two turns


class Game(NamedTuple):
    """Policies and returns of a game whose context is the path of all messages so far."""

    policy: tuple[np.ndarray, ...]  # turn d: [A0 * ... * A_{d-1}, A_d]
    return_H: np.ndarray  # by complete path


def make_game(seed: int, num_messages: tuple[int, ...]) -> Game:
    random = np.random.default_rng(seed)
    contexts = [math.prod(num_messages[:d]) for d in range(len(num_messages))]
    logits = [random.normal(size=(h, a)) for h, a in zip(contexts, num_messages, strict=True)]
    policy = tuple(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in logits)
    return Game(policy, random.uniform(size=math.prod(num_messages)))


DUO, TRIO = make_game(45, (3, 3)), make_game(29, (2, 2, 2))
GAMES = {"duo": DUO, "trio": TRIO}


def compute_exact(game: Game) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Backward induction: Q_HA and V_H of every turn."""
    q, value, next_value_H = [], [], game.return_H
    for policy_HA in reversed(game.policy):
        q.insert(0, next_value_H.reshape(policy_HA.shape))
        next_value_H = (policy_HA * q[0]).sum(axis=1)
        value.insert(0, next_value_H)
    return q, value


def compute_true_gradient(game: Game, turn: int) -> np.ndarray:
    """d V(x) / d logits of one turn: visits of the context, times pi(a|h), times A*(h, a)."""
    visit_H = np.ones(1)
    for policy_HA in game.policy[:turn]:
        visit_H = (visit_H[:, None] * policy_HA).ravel()
    q, value = compute_exact(game)
    return visit_H[:, None] * game.policy[turn] * (q[turn] - value[turn][:, None])


Path = tuple[int, ...]
Draw = Callable[[np.ndarray], int]


def index_of(game: Game, path: Path) -> int:
    index = 0
    for policy_HA, message in zip(game.policy, path, strict=False):
        index = index * policy_HA.shape[1] + message
    return index


def speak(game: Game, path: Path, draw: Draw) -> Path:
    return (*path, draw(game.policy[len(path)][index_of(game, path)]))


def play(game: Game, path: Path, draw: Draw) -> Path:
    return path if len(path) == len(game.policy) else play(game, speak(game, path, draw), draw)


def sample(plan: plans.Plan, game: Game, draw: Draw) -> tuple[list[list[Path]], list[float]]:
    turns = range(plan.turns)
    credited: list[list[Path]] = []
    ends: list[Path] = []
    if plan.form == "tree":
        level: list[Path] = [()]
        for fan_out in plan.fan_out:
            level = [speak(game, path, draw) for path in level for _ in range(fan_out)]
            credited.append(level)
        ends = level
    elif plan.form in ("replay", "best_branch"):
        reference: Path = ()
        for _ in turns:
            credited.append([speak(game, reference, draw) for _ in plan.counts])
            counted = zip(credited[-1], plan.counts, strict=True)
            blocks = [[play(game, path, draw) for _ in range(count)] for path, count in counted]
            ends += [end for block in blocks for end in block]
            means = [np.mean([game.return_H[index_of(game, end)] for end in block]) for block in blocks]
            reference = credited[-1][int(np.argmax(means)) if plan.form == "best_branch" else 0]
    else:
        episodes = [play(game, (), draw) for _ in range(plan.episodes)]
        credited = [[episode[: turn + 1] for episode in episodes] for turn in turns]
        ends = sample_arms(plan, game, episodes, draw)
    return credited, [game.return_H[index_of(game, end)] for end in ends]


def sample_arms(plan: plans.Plan, game: Game, episodes: list[Path], draw: Draw) -> list[Path]:
    turns = range(plan.turns)
    if plan.form == "coalition":
        subsets = range(2**plan.turns)
        return [tuple(m * (s >> u & 1) for u, m in enumerate(episode)) for episode in episodes for s in subsets]
    if plan.form == "masked":
        return episodes + [(*e[:turn], 0, *e[turn + 1 :]) for turn in turns for e in episodes]
    if plan.form in ("removal", "first_removal"):
        removed = turns if plan.form == "removal" else turns[:1]
        return episodes + [play(game, (*e[:turn], 0), draw) for turn in removed for e in episodes]
    contexts = [(), *(e[:turn] for turn in turns[1:] for e in episodes)]
    return episodes + [play(game, context, draw) for context in contexts for _ in range(plan.repeats)]


def replay(sampler: Callable[[Draw], object], choices: list[int]) -> tuple[float, object, list[int]]:
    """Draw what `choices` says, then always message 0: the probability, what comes of it, the limits of the draws."""
    limits: list[int] = []
    probability = 1.0

    def draw(policy_A: np.ndarray) -> int:
        nonlocal probability
        message = choices[len(limits)] if len(limits) < len(choices) else 0
        limits.append(len(policy_A))
        probability *= policy_A[message]
        return message

    result = sampler(draw)
    return probability, result, limits


def list_outcomes(sampler: Callable[[Draw], object]) -> Iterator[tuple[float, object, int]]:
    """Every way the sampler can go: probability, what comes of it, number of draws."""
    choices: list[int] | None = []
    while choices is not None:
        probability, result, limits = replay(sampler, choices)
        yield probability, result, len(limits)
        choices += [0] * (len(limits) - len(choices))
        last = max((i for i, limit in enumerate(limits) if choices[i] < limit - 1), default=None)
        choices = None if last is None else [*choices[:last], choices[last] + 1]


class Outcomes(NamedTuple):
    probability_X: np.ndarray
    path: list[np.ndarray]  # per turn [N, X]: index of (context, message) in the flattened [H, A]
    return_LX: np.ndarray
    draws_X: np.ndarray


def enumerate_outcomes(game: Game, sampler: Callable[[Draw], tuple[list[list[Path]], list[float]]]) -> Outcomes:
    probability, results, draws = zip(*list_outcomes(sampler), strict=True)
    path = [
        np.array([[index_of(game, p) for p in credited[turn]] for credited, _ in results]).T
        for turn in range(len(game.policy))
    ]
    return Outcomes(np.array(probability), path, np.array([leaves for _, leaves in results]).T, np.array(draws))


@functools.cache
def get_outcomes(game_name: str, sampling: str) -> Outcomes:
    game = GAMES[game_name]
    return enumerate_outcomes(game, functools.partial(sample, PLANS[sampling](len(game.policy)), game))


# Estimates, and what they are


def estimate(method: str, game_name: str, critic_error: float = 0.0, decay: float = 1.0) -> list[np.ndarray]:
    """Advantages [N, X] of every turn, the critic's part and a prescribed division by a standard deviation included.

    The critic's values are the exact ones plus `critic_error` times an amount that differs by context (and message).
    """
    game, row = GAMES[game_name], METHODS[method]
    outcomes = get_outcomes(game_name, row.sampling)
    matrix = make_credit_matrix(method, PLANS[row.sampling](len(game.policy)))
    advantage = [(v - b) @ outcomes.return_LX for v, b in zip(matrix.value, matrix.baseline, strict=True)]
    if row.scopes in (("group",), ("turn",)):  # one problem: the batch's standard deviation is the group's
        std = [a.std(axis=0) for a in advantage]
        return [np.divide(a, s, out=np.zeros_like(a), where=s > 1e-9) for a, s in zip(advantage, std, strict=True)]
    if row.apply in (
        "mean_scaled",
        "tree_and_batch",
        "gradient_weighted",
        "removal_bonus",
        "information_gain",
    ):  # the problem is the batch too
        fan_out = PLANS[row.sampling](len(game.policy)).fan_out

        def apply_alone(return_L, gradient, likelihood):
            gradient, likelihood = (tuple(part_N[None] for part_N in kept) for kept in (gradient, likelihood))
            inputs = CreditInputs(matrix, fan_out, gradient=gradient, likelihood=likelihood)
            return [a[0] for a in compute_credit(method, inputs, return_L[None], normalise="none").advantage]

        gradient, likelihood = (
            tuple(part_NX.T for part_NX in kept)
            for kept in (square_gradients(game, outcomes), read_answers(game, outcomes))
        )
        advantages = jax.vmap(apply_alone)(jnp.asarray(outcomes.return_LX.T), gradient, likelihood)
        return [np.asarray(a, float).T for a in advantages]
    if row.critic == "none":
        return advantage
    q, value = compute_exact(game)
    random = np.random.default_rng(9)
    q = [q_HA + critic_error * random.normal(size=q_HA.shape) for q_HA in q]
    value = [v_H + critic_error * random.normal(size=v_H.shape) for v_H in value]
    context = [path_NX // pi_HA.shape[1] for path_NX, pi_HA in zip(outcomes.path, game.policy, strict=True)]
    if row.critic == "value":
        value_NXK = np.stack([v_H[context_NX] for v_H, context_NX in zip(value, context, strict=True)], axis=2)
        flat = compute_gae(outcomes.return_LX.ravel(), value_NXK.reshape(-1, len(value)), 1.0, decay)
        return list(np.moveaxis(np.asarray(flat, float).reshape(value_NXK.shape), 2, 0))
    q_NX = [q_HA.ravel()[path_NX] for q_HA, path_NX in zip(q, outcomes.path, strict=True)]
    if row.critic == "oracle":
        mean = [(pi_HA * q_HA).sum(axis=1) for pi_HA, q_HA in zip(game.policy, q, strict=True)]
        return [x_NX - m_H[context_NX] for x_NX, m_H, context_NX in zip(q_NX, mean, context, strict=True)]
    other_q_NX = [x.reshape(-1, 2, x.shape[1])[:, ::-1].reshape(x.shape) for x in q_NX]  # alternatives come in twos
    if method == "value_only":
        return [mine - other for mine, other in zip(q_NX, other_q_NX, strict=True)]
    own = [v @ outcomes.return_LX for v in matrix.value]
    return [r - 0.5 * (r - a) - 0.5 * other for r, a, other in zip(own, advantage, other_q_NX, strict=True)]


def square_gradients(game: Game, outcomes: Outcomes) -> list[np.ndarray]:
    """|onehot(a) - pi(. | h)|^2 of every credited message, [N, X] a turn."""
    squares = [
        np.square(np.eye(pi_HA.shape[1]) - pi_HA[:, None]).sum(axis=2).reshape(-1) for pi_HA in game.policy
    ]  # by path
    return [square[path_NX] for square, path_NX in zip(squares, outcomes.path, strict=True)]


def read_answers(game: Game, outcomes: Outcomes) -> list[np.ndarray]:
    """pi(1 | context of the last turn), the null message where no message is before the credited one: [N, X] a turn."""
    sizes = [pi_HA.shape[1] for pi_HA in game.policy]
    context = [path_NX // size for path_NX, size in zip(outcomes.path, sizes, strict=True)]
    return [game.policy[-1][context_NX * math.prod(sizes[u:-1]), 1] for u, context_NX in enumerate(context)]


def mean_by_path(outcomes: Outcomes, turn: int, estimate_NX: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """E[estimate | h, a] of every message of the turn: [N, H, A]."""

    def total(weight_X, path_X):
        return np.bincount(path_X, weights=weight_X, minlength=math.prod(shape)).reshape(shape)

    p_X, path_NX = outcomes.probability_X, outcomes.path[turn]
    return np.stack([total(p_X * x, path) / total(p_X, path) for x, path in zip(estimate_NX, path_NX, strict=True)])


def compute_expected_gradient(game: Game, outcomes: Outcomes, turn: int, estimate_NX: np.ndarray) -> np.ndarray:
    """E of advantage times the gradient of log pi(a | h) with respect to the turn's logits, mean over messages."""
    policy_HA, p_X = game.policy[turn], outcomes.probability_X
    weight_HA = np.mean(
        [
            np.bincount(path_X, weights=p_X * x_X, minlength=policy_HA.size)
            for x_X, path_X in zip(estimate_NX, outcomes.path[turn], strict=True)
        ],
        axis=0,
    ).reshape(policy_HA.shape)
    return weight_HA - policy_HA * weight_HA.sum(axis=1, keepdims=True)  # onehot(a) - pi(. | h), summed over a


def find_scale(found: np.ndarray, truth: np.ndarray) -> float | None:
    """The positive factor by which `found` is `truth`, if there is one."""
    scale = np.vdot(truth, found) / np.vdot(truth, truth)
    return float(scale) if scale > 0 and np.allclose(found, scale * truth, atol=TOLERANCE) else None


def classify(game: Game, outcomes: Outcomes, turn: int, estimate_NX: np.ndarray) -> tuple[Bias, Bias]:
    """The biases of the advantage and of the gradient at one turn."""
    q, value = compute_exact(game)
    policy_HA, truth_HA = game.policy[turn], q[turn] - value[turn][:, None]
    got_NHA = mean_by_path(outcomes, turn, estimate_NX, truth_HA.shape)
    truth_NHA = np.broadcast_to(truth_HA, got_NHA.shape)
    centred_NHA = got_NHA - (policy_HA * got_NHA).sum(axis=2, keepdims=True)
    of_advantage: Bias = "other"
    if (scale := find_scale(got_NHA, truth_NHA)) is not None:
        of_advantage = "none" if abs(scale - 1) < TOLERANCE else "scale"
    elif find_scale(centred_NHA, truth_NHA) is not None:
        of_advantage = "offset"
    gradient_HA = compute_expected_gradient(game, outcomes, turn, estimate_NX)
    true_gradient_HA = compute_true_gradient(game, turn)
    of_gradient: Bias = "other"
    if (scale := find_scale(gradient_HA, true_gradient_HA)) is not None:
        of_gradient = "none" if abs(scale - 1) < TOLERANCE else "scale"
    elif all(find_scale(g, t) is not None for g, t in zip(gradient_HA, true_gradient_HA, strict=True)):
        of_gradient = "reweighted"
    return of_advantage, of_gradient


def classify_turns(method: str, game_name: str, **critic: float) -> list[tuple[Bias, Bias]]:
    game, outcomes = GAMES[game_name], get_outcomes(game_name, METHODS[method].sampling)
    estimates = estimate(method, game_name, **critic)
    return [classify(game, outcomes, turn, estimate_NX) for turn, estimate_NX in enumerate(estimates)]


def find_worst(found: list[tuple[Bias, Bias]]) -> tuple[Bias, Bias]:
    return max((a for a, _ in found), key=RANK.index), max((g for _, g in found), key=RANK.index)


@pytest.mark.parametrize(
    ("game_name", "sampling"), [(name, sampling) for name in GAMES for sampling in PLANS if (name, sampling) != NEVER]
)
def test_enumeration_is_complete_and_draws_what_the_plan_counts(game_name, sampling):
    game, outcomes = GAMES[game_name], get_outcomes(game_name, sampling)
    plan = PLANS[sampling](len(game.policy))
    np.testing.assert_allclose(outcomes.probability_X.sum(), 1, atol=1e-12)
    assert len(outcomes.return_LX) == plans.count_calls(plan)
    assert tuple(len(path_NX) for path_NX in outcomes.path) == plans.count_credited(plan)
    assert set(outcomes.draws_X) == {sum(plans.count_generated(plan))}
    first_leaf = outcomes.return_LX[-1 if sampling == "coalition" else 0] @ outcomes.probability_X
    np.testing.assert_allclose(first_leaf, compute_exact(game)[1][0][0], atol=1e-12)
    for turn in range(plan.turns):
        assert min(np.abs(compute_true_gradient(game, turn)).max(axis=1)) > 1e-3  # there is something to estimate


# The table


@pytest.mark.parametrize("method", METHODS)
def test_table_states_the_bias_that_enumeration_finds(method):
    """The worst of the turns, with three messages a turn: with two, a direction in a context is right or opposite."""
    row = METHODS[method]
    assert find_worst(classify_turns(method, "duo")) == (row.advantage_bias, row.gradient_bias)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if ("trio", row.sampling) != NEVER])
def test_no_turn_of_three_is_worse_than_the_table_says(method):
    stated = (METHODS[method].advantage_bias, METHODS[method].gradient_bias)
    assert find_worst([*classify_turns(method, "trio"), stated]) == stated


def expect_duo(method: str) -> list[np.ndarray]:
    """E[advantage | h, a] at both turns of the duo, from its policies and returns. a: first message, b: second."""
    q, value = compute_exact(DUO)
    (q_A, q_AB), (vx, v_A) = (q[0][0], q[1]), (value[0][0], value[1])
    advantage_A, advantage_AB = q_A - vx, q_AB - v_A[:, None]
    policy_AB = DUO.policy[1]
    masked_A = policy_AB @ q_AB[0]  # the message after a, scored after the null message
    unlike_c3 = {
        "tree_rl": (advantage_A, 1.25 * advantage_AB + 0.5 * (v_A[:, None] - vx)),
        # Two of each: the group of the problem has 4 second messages, half of them after another first one.
        "hgpo": (advantage_A / 2, (1 - 1 / 12 - 1 / 3) * advantage_AB + (v_A[:, None] - vx) / 6),
        "at_grpo": (advantage_A / 2, advantage_AB / 2),
        # Of three episodes; its own return and gain are in the means.
        "igpo": (
            (advantage_A + policy_AB[:, 1] - DUO.policy[0][0] @ policy_AB[:, 1]) * 2 / 3,
            (q_AB - vx) * 2 / 3,
        ),
        "difference": (q_A - q_A[0], q_AB - q_AB[:, :1]),
        "difference_masked": (q_A - masked_A, q_AB - q_AB[:, :1]),
        "shapley": ((q_AB[:, 0] - q_AB[0, 0] + q_A - masked_A) / 2, (q_AB[:1] - q_AB[0, 0] + q_AB - q_AB[:, :1]) / 2),
    }
    return list(unlike_c3.get(method, (advantage_A, advantage_AB)))


FORMULAS = ("tree_rl", "hgpo", "igpo", "c3_replay", "at_grpo", "vine_ppo", "difference", "difference_masked", "shapley")
WITH_CRITIC = tuple(method for method, row in METHODS.items() if row.critic != "none")


@pytest.mark.parametrize("method", FORMULAS + WITH_CRITIC)
def test_expected_advantage(method):
    outcomes = get_outcomes("duo", METHODS[method].sampling)
    for turn, (estimate_NX, expected) in enumerate(zip(estimate(method, "duo"), expect_duo(method), strict=True)):
        got_NHA = mean_by_path(outcomes, turn, estimate_NX, DUO.policy[turn].shape)
        expected_HA = np.broadcast_to(expected, DUO.policy[turn].shape)
        np.testing.assert_allclose(got_NHA, np.broadcast_to(expected_HA, got_NHA.shape), atol=TOLERANCE)


# The conditions


def test_at_grpo_has_the_right_gradient_at_the_first_turn_alone():
    assert classify_turns("at_grpo", "duo") == [("scale", "scale"), ("scale", "reweighted")]


def test_masked_removal_is_exact_in_direction_at_the_last_turn_alone():
    assert classify_turns("difference_masked", "duo") == [("other", "other"), ("offset", "none")]


def test_shapley_and_masked_removal_are_right_where_effects_add_up_and_nobody_answers(monkeypatch):
    first, second = np.array([0.1, 0.5, 0.2]), np.array([0.3, 0.1, 0.4])
    game = Game((DUO.policy[0], np.tile(DUO.policy[1][:1], (3, 1))), (first[:, None] + second).ravel())
    monkeypatch.setitem(GAMES, "additive", game)
    for method in ("shapley", "difference_masked"):
        assert find_worst(classify_turns(method, "additive")) == ("offset", "none")


def test_grpo_only_scales_a_problem_whose_returns_are_0_and_1(monkeypatch):
    monkeypatch.setitem(GAMES, "binary", Game(DUO.policy, np.array([1, 0, 0, 0, 1, 1, 1, 0, 1.0])))
    for method in ("grpo", "dr_mas"):
        assert find_worst(classify_turns(method, "binary")) == ("offset", "scale")


def test_ccpo_s_bonus_only_reweighs_problems_whose_returns_are_0_and_1(monkeypatch):
    """The bonus is R/10 where the share s of right copies is below 1/2, (R - 1)/10 above it and 0 at it: the slope in R
    is 1 + P(s != 1/2)/10. Of two copies, each right with chance p, s is not 1/2 with chance p^2 + (1 - p)^2."""
    game = Game(DUO.policy, np.array([1, 0, 0, 0, 1, 1, 1, 0, 1.0]))
    monkeypatch.setitem(GAMES, "binary", game)
    monkeypatch.setitem(PLANS, "first_removal", lambda turns: plans.make_arms("first_removal", 2, turns))
    get_outcomes.cache_clear()
    assert classify_turns("ccpo", "binary") == [("scale", "scale"), ("offset", "scale")]
    outcomes, estimates = get_outcomes("binary", "first_removal"), estimate("ccpo", "binary")
    right = game.policy[1][0, 0]  # after the null message the first of the second's is right
    for turn, expected in enumerate((0.5 * (1 + (right**2 + (1 - right) ** 2) / 10), 0.5)):
        found = compute_expected_gradient(game, outcomes, turn, estimates[turn])
        np.testing.assert_allclose(found, expected * compute_true_gradient(game, turn), atol=TOLERANCE)
    get_outcomes.cache_clear()


@pytest.mark.parametrize("turns", [2, 3])
def test_igpo_only_scales_where_one_last_message_is_right(turns, monkeypatch):
    """The right answer's probability at the last turn is then V there, so earlier turns have A* twice, the second time
    free of the last draw: of 3 episodes (2 + 3 - c)/3, c = (K - 1 - u)/(K - 1), and 2/3 at the last turn."""
    sizes = (3, 3) if turns == 2 else (2, 2, 2)
    game = GAMES["duo" if turns == 2 else "trio"]
    monkeypatch.setitem(
        GAMES, "answer", game := Game(game.policy, np.tile(np.arange(sizes[-1]) == 1, math.prod(sizes[:-1])))
    )
    get_outcomes.cache_clear()
    outcomes, factors = get_outcomes("answer", "flat"), {2: (4 / 3, 2 / 3), 3: (4 / 3, 4.5 / 3, 2 / 3)}
    for turn, (estimate_NX, factor) in enumerate(zip(estimate("igpo", "answer"), factors[turns], strict=True)):
        assert classify(game, outcomes, turn, estimate_NX) == ("offset" if turn else "scale", "scale")
        found = compute_expected_gradient(game, outcomes, turn, estimate_NX)
        np.testing.assert_allclose(found, factor * compute_true_gradient(game, turn), atol=TOLERANCE)
    get_outcomes.cache_clear()


@pytest.mark.parametrize("game_name", GAMES)
def test_otb_without_the_own_return_has_an_unbiased_gradient(game_name):
    """A message's own share w of the weights shrinks R - (others' weighted mean) by 1 - w, by more where it is rare."""
    game, outcomes = GAMES[game_name], get_outcomes(game_name, "flat")
    squares, return_NX = square_gradients(game, outcomes), outcomes.return_LX
    for turn, (estimate_NX, weight_NX) in enumerate(zip(estimate("otb", game_name), squares, strict=True)):
        others_NX = weight_NX.sum(axis=0) - weight_NX
        left_out_NX = return_NX - ((weight_NX * return_NX).sum(axis=0) - weight_NX * return_NX) / others_NX
        np.testing.assert_allclose(estimate_NX, left_out_NX * others_NX / weight_NX.sum(axis=0), atol=TOLERANCE)
        assert classify(game, outcomes, turn, left_out_NX) == ("offset", "none")


def test_otb_s_gradient_turns_and_shrinks_as_a_policy_becomes_sure(monkeypatch):
    """Of the second turn, logits of deviation 1 and 4: what docs/method.md says of the worst of its three games."""
    found = []
    for scale in (1, 4):
        random = np.random.default_rng(2)
        logits = [scale * random.normal(size=(contexts, 3)) for contexts in (1, 3)]
        policy = tuple(np.exp(z_HA) / np.exp(z_HA).sum(axis=1, keepdims=True) for z_HA in logits)
        monkeypatch.setitem(GAMES, f"sure {scale}", game := Game(policy, random.uniform(size=9)))
        estimate_NX = estimate("otb", f"sure {scale}")[1]
        gradient = compute_expected_gradient(game, get_outcomes(f"sure {scale}", "flat"), 1, estimate_NX)
        length, true = np.linalg.norm(gradient), compute_true_gradient(game, 1)
        found.append((length / np.linalg.norm(true), np.vdot(gradient, true) / length / np.linalg.norm(true)))
    np.testing.assert_allclose(found, [(0.725, 0.971), (0.090, 0.839)], atol=1e-3)


@pytest.mark.parametrize("method", ["rloo", "c3", "c3_replay"])
def test_a_mean_of_earlier_steps_in_a_baseline_leaves_the_gradient_unbiased(method):
    """Three tenths of the baseline, of a mean that is wrong; a mean of the same draws is no such thing."""
    sampling = METHODS[method].sampling
    outcomes = get_outcomes("duo", sampling)
    matrix = make_credit_matrix(method, PLANS[sampling](2), mean=0.3)
    for mean, expected in ((0.8, ("offset", "none")), (outcomes.return_LX.mean(axis=0) ** 2, ("other", "other"))):
        for turn, (value, baseline) in enumerate(zip(matrix.value, matrix.baseline, strict=True)):
            estimate_NX = (value - baseline) @ (outcomes.return_LX - mean)
            assert classify(DUO, outcomes, turn, estimate_NX) == expected


@pytest.mark.parametrize(
    ("method", "decay", "expected"),
    [
        ("mappo", 1.0, ("offset", "none")),
        ("mappo", 0.5, ("other", "other")),
        ("value_assisted", 1.0, ("offset", "none")),
        ("value_only", 1.0, ("other", "other")),
        ("coma", 1.0, ("other", "other")),
    ],
)
def test_what_a_wrong_critic_does(method, decay, expected):
    assert find_worst(classify_turns(method, "duo", critic_error=0.2, decay=decay)) == expected


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_an_exact_critic_may_be_trusted_at_once(decay):
    assert find_worst(classify_turns("mappo", "duo", decay=decay)) == ("none", "none")


def sample_adaptively(game: Game, draw: Draw) -> tuple[list[list[Path]], list[float]]:
    """Two alternatives at the first turn, and a second continuation for one whose first was poor."""
    alternatives = [speak(game, (), draw) for _ in range(2)]
    means = []
    for path in alternatives:
        returns = [game.return_H[index_of(game, play(game, path, draw))]]
        if returns[0] < 0.5:
            returns.append(game.return_H[index_of(game, play(game, path, draw))])
        means.append(float(np.mean(returns)))
    return [alternatives, alternatives], means


def test_counts_that_look_at_the_returns_are_seen_to_be_biased():
    outcomes = enumerate_outcomes(DUO, functools.partial(sample_adaptively, DUO))
    assert len(set(outcomes.draws_X)) > 1
    estimate_NX = outcomes.return_LX - outcomes.return_LX[::-1]
    assert classify(DUO, outcomes, 0, estimate_NX) == ("other", "other")
