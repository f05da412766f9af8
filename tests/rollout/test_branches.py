"""Plans drawn branch by branch: what goes on from what, who is addressed how, and what the credit is worth.

The team is the tiny policy's debate of three turns, a token a message of two that may be drawn, so that transcripts
can be written down; the last message alone is graded, by the token. As a game of the laboratory it has a table of
logits, computed from plain rows of tokens, and every method's advantages must be the game's.

Dimension key beside types.py: C context of a turn, M message (0 the null message, 1 + a token)
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config.credit import size_plan
from c3jax.config.run import Sampling
from c3jax.credit import plans
from c3jax.credit.compute import CreditInputs, compute_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import METHODS
from c3jax.lab import games, play, policies
from c3jax.learner.likelihood import make_answer_reader
from c3jax.models.policy import Weights
from c3jax.protocol import Literal
from c3jax.rollout.branches import PlanDraws, collect_verdicts, draw_plan, join_credited
from c3jax.rollout.context import make_frame
from c3jax.rollout.tree import make_tree_sampler, take_problems
from c3jax.types import Messages, Problem, Verdict

SAMPLING, TURNS = Sampling(temperature=3.0, top_k=2), 3
ANSWER = 5  # the token that is the right answer
PROBLEMS, SIZE = 10_240, 2560  # copies of one question, and how many of them are drawn in a call
PLANS = {
    "c3": plans.make_tree((2, 2, 2)),
    "otb": plans.make_flat(2, TURNS),
    "igpo": plans.make_flat(2, TURNS),
    "c3_replay": size_plan("replay", 2, 2, TURNS),
    "at_grpo": size_plan("best_branch", 2, 1, TURNS),
    "vine_ppo": size_plan("auxiliary", 2, 2, TURNS),
    "difference": size_plan("removal", 2, 1, TURNS),
    "ccpo": size_plan("first_removal", 2, 1, 2),
    "difference_masked": size_plan("masked", 2, 1, TURNS),
    "shapley": size_plan("coalition", 2, 1, TURNS),
}


class Grader:
    """An evaluator whose verdicts come at once: a score a token, and one of the empty message."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores, self.answers, self.calls = scores, [], 0

    def submit(self, problems: Any, answers: list[str], budget: int) -> None:
        assert len(problems) == len(answers) == budget
        self.answers += answers
        self.calls += budget

    def pump(self, seconds: float) -> bool:
        return False

    def collect(self) -> list[Verdict]:
        answers, self.answers = self.answers, []
        return [Verdict(float(self.scores[int(answer or -1) + 1]), "partial", answer) for answer in answers]


def decode(messages) -> list[str]:
    tokens, content = messages.tokens_NT[:, 0].tolist(), messages.content_NT[:, 0].tolist()
    return [str(token) if is_kept else "" for token, is_kept in zip(tokens, content, strict=True)]


@pytest.fixture(scope="module")
def team(tiny):
    """The debate's plans of a token a message, samplers of its first two and of all turns, and a score a message, those
    that are empty the same."""
    turns = tuple(plan._replace(max_tokens=1) for plan in tiny.get_tree("debate").plans)
    scores = np.random.default_rng(0).uniform(size=tiny.spec.vocab_size + 1)
    scores[[1 + token for token in tiny.stop_tokens]] = scores[0]
    samplers = {
        count: make_tree_sampler(tiny.policy, turns[:count], SAMPLING, tiny.stop_tokens, keeps_gradients=True)
        for count in (2, TURNS)
    }
    return turns, samplers, scores, make_answer_reader(tiny.policy, turns, (), SAMPLING.temperature)


def make_answers(problems: int) -> Messages:
    """The right answer, a message a problem."""
    frame = make_frame([[ANSWER]] * problems, 1)
    empty = (jnp.zeros((problems, 1)), jnp.zeros((problems, 1, 0), jnp.int32), jnp.zeros(problems, bool))
    return Messages(frame.tokens_NS, frame.keep_NS, frame.keep_NS, *empty)


def draw(tiny, team, name: str, problems: list[Problem], size: int, null: tuple[int, ...] = ()) -> PlanDraws:
    """The plan's draws of the first question, under the numbers of these problems."""
    turns, samplers, scores, read = team
    sampler = samplers[PLANS[name].turns]
    grader = Grader(scores)

    def draw_branch(numbers, branch, given):
        question = take_problems(tiny.question, 4, jnp.zeros(len(numbers), jnp.int32))
        problem_P = jnp.array([problems[number].index for number in numbers])
        weights = Weights(tiny.params, {})
        asked = (question, jax.random.key(7), problem_P, branch.fan_out, given, branch.first)
        rollout, counts = sampler(weights, *asked)
        if name == "igpo":
            rollout, _ = read(weights, rollout, make_answers(len(numbers)), branch.fan_out)
        return rollout, counts

    asked = draw_plan(draw_branch, PLANS[name], problems, size, decode, grader, None, null)
    drawn = collect_verdicts(PLANS[name], asked, grader, None)
    assert grader.calls == len(problems) * plans.count_calls(PLANS[name])
    return drawn


@pytest.fixture(scope="module")
def get_draws(tiny, team):
    """The draws of a plan, made once."""
    problems = [Problem(number, str(number), "", "") for number in range(PROBLEMS)]
    return functools.cache(lambda name: draw(tiny, team, name, problems, SIZE))


def list_rows(tiny, team, turn: int, message_CK: np.ndarray) -> list[list[int]]:
    """The contexts of a turn after these messages, as plain rows of tokens."""
    rows = []
    for message_K in message_CK.tolist():
        row: list[int] = []
        for piece in (piece for frame in team[0][turn].frames for piece in frame.pieces):
            if isinstance(piece, Literal):
                row += piece.tokens
            elif piece.level == 1:
                row += tiny.questions[0]
            elif message_K[piece.level - 2] and message_K[piece.level - 2] - 1 not in tiny.stop_tokens:
                row.append(message_K[piece.level - 2] - 1)
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def game(tiny, team):
    """The same team, or its first turns, as a game: a table of logits a turn over [M], of all that can come up."""
    M, tables, reached = tiny.spec.vocab_size + 1, [], np.zeros((1, TURNS), np.int64)
    answer_C = np.full(M ** (TURNS - 1), np.nan)
    for turn in range(TURNS):
        table = np.full((M**turn, M), -1e9, np.float32)
        rows = list_rows(tiny, team, turn, reached)
        logits_BSV = tiny.run_flat(tiny.params, rows).logits
        drawn = {0}
        for message_K, row, logits_SV in zip(reached, rows, logits_BSV, strict=True):
            context = int(sum(message * M ** (turn - 1 - place) for place, message in enumerate(message_K[:turn])))
            support = np.argsort(-logits_SV[len(row) - 1], kind="stable")[: SAMPLING.top_k]
            table[context, 1 + support] = logits_SV[len(row) - 1, support] / SAMPLING.temperature
            drawn |= {1 + int(token) for token in support}
            if turn == TURNS - 1:  # of the whole softmax
                weight_V = np.exp(np.float64(logits_SV[len(row) - 1]) / SAMPLING.temperature)
                answer_C[context] = weight_V[ANSWER] / weight_V.sum()
        tables.append(jnp.asarray(table))
        # Whatever was said in one context may stand behind a null message in another.
        rest = [0] * (TURNS - turn - 1)
        reached = np.array([[*said[:turn], message, *rest] for said in reached.tolist() for message in sorted(drawn)])

    def make(K: int):
        shape = games.GameShape((M,) * K, games.see_all(K), (True,) * K, "identity", "none", 0.0)
        main_KM = jnp.zeros((K, M)).at[-1].set(team[2])
        made = games.Game(jnp.int32(0), jnp.zeros(1), main_KM, jnp.zeros((K, K, M, M)), jnp.float32(0.0))

        def read_logits(params, game, turn, prefix_NK):
            return tables[turn][policies.context_index(shape, turn, prefix_NK)]

        return shape, made, policies.GamePolicy(lambda key: (), read_logits)

    return make, answer_C


def compute_advantages(name: str, return_PL, gradient: Sequence[Any], likelihood: Sequence[Any]) -> list[np.ndarray]:
    """Of the returns, and what was kept of the messages, [P, N] a turn."""
    plan = PLANS[name]
    inputs = CreditInputs(make_credit_matrix(name, plan), plan.fan_out)
    inputs = inputs._replace(gradient=tuple(gradient), likelihood=tuple(likelihood))
    credit = compute_credit(name, inputs, jnp.asarray(return_PL, jnp.float32), normalise=METHODS[name].scopes[0])
    return [np.asarray(advantage_PN).reshape(-1) for advantage_PN in credit.advantage]


def gather(said: list[np.ndarray], advantage: list[np.ndarray]) -> dict[tuple[int, ...], np.ndarray]:
    """Advantages by what was said up to and with the credited message."""
    cells = {}
    for said_NK, advantage_N in zip(said, advantage, strict=True):
        named, cell_N = np.unique(said_NK, axis=0, return_inverse=True)
        parts = np.split(advantage_N[np.argsort(cell_N, kind="stable")], np.cumsum(np.bincount(cell_N))[:-1])
        cells |= dict(zip(map(tuple, named.tolist()), parts, strict=True))
    return cells


def read_messages(messages) -> np.ndarray:
    return np.asarray(messages.tokens_NT[:, 0]) + 1


@pytest.mark.parametrize("name", PLANS)
def test_a_method_s_advantages_are_those_of_the_same_team_as_a_game(get_draws, game, name):
    """At least 20,000 draws a turn; the means of every context and message agree within 4.5 standard errors."""
    plan, drawn = PLANS[name], get_draws(name)
    return_PL = np.array([verdict.score for verdict in drawn.verdicts]).reshape(PROBLEMS, -1)
    said, gradient, likelihood, branches = [], [], [], plans.list_branches(plan)
    rollouts = join_credited(None, plan, drawn)
    for turn, holder in enumerate(plans.list_credited(plan)):
        rows = [read_messages(messages) for messages in rollouts[holder].turns[: turn + 1]]
        total = PROBLEMS * int(np.prod(branches[holder].fan_out[: turn + 1]))
        assert len(rows[-1]) == total == PROBLEMS * plans.count_credited(plan)[turn] >= 20_000
        said.append(np.stack([np.repeat(row, total // len(row)) for row in rows], axis=1))
        gradient.append(rollouts[holder].turns[turn].gradient_N.reshape(PROBLEMS, -1))
        if name == "igpo":
            likelihood.append(rollouts[holder].turns[turn].likelihood_N.reshape(PROBLEMS, -1))
    got = gather(said, compute_advantages(name, return_PL, gradient, likelihood))

    make_game, answer_C = game
    shape, made, policy = make_game(plan.turns)

    def play_one(key):
        return play.sample_plan(shape, made, policy, (), plan, key)

    sample = jax.device_get(jax.jit(jax.vmap(play_one))(jax.random.split(jax.random.key(3), 30_000)))
    played = [
        np.concatenate([prefix[..., :turn], message[..., None]], axis=-1).reshape(-1, turn + 1)
        for turn, (prefix, message) in enumerate(zip(sample.prefix, sample.message, strict=True))
    ]
    M = shape.messages[0]
    for turn, of_turn in enumerate(likelihood):  # what was read follows from what was said, and is no draw
        before_N2 = np.pad(said[turn][:, :turn], ((0, 0), (0, 2 - turn)))
        np.testing.assert_allclose(of_turn.reshape(-1), answer_C[before_N2 @ [M, 1]], rtol=1e-4)
    likelihood = [answer_C[prefix[..., 0] * M + prefix[..., 1]] for prefix in sample.prefix]
    expected = gather(played, compute_advantages(name, sample.return_L, sample.gradient, likelihood))

    compared = 0
    assert set(got) <= set(expected)
    for cell, values in got.items():
        if len(values) < 100:
            continue
        mean, other = np.mean(values), np.mean(expected[cell])
        error = np.hypot(np.std(values) / np.sqrt(len(values)), np.std(expected[cell]) / np.sqrt(len(expected[cell])))
        # Draws of one tree share leaves, so what neighbours add to the error is at most their number.
        assert abs(mean - other) <= 4.5 * error * np.sqrt(plan.fan_out[0] if plan.fan_out else 2) + 1e-6, (cell, mean)
        compared += 1
    assert compared >= (10 if plan.turns == TURNS else 4)


@pytest.mark.parametrize("name", PLANS)
def test_branches_go_on_from_what_the_plan_names(tiny, team, get_draws, name):
    """Every drawn message is the one of its context and address, and what was given is what the plan names.

    Looked at are the first two problems.
    """
    plan, drawn = PLANS[name], get_draws(name)
    branches, addresses = plans.list_branches(plan), set()
    assert int(drawn.counts.messages) == PROBLEMS * sum(plans.count_generated(plan))
    for number, branch in enumerate(branches):
        rollout = jax.device_get(take_problems(drawn.branches[number][0].rollout, SIZE, np.arange(2)))
        for turn in range(plan.turns):
            per = int(np.prod(branch.fan_out[: turn + 1]))
            if turn < len(branch.given):
                check_given(plan, drawn, branch.given[turn], turn, rollout.turns[turn])
                continue
            assert len(rollout.turns[turn].tokens_NT) == 2 * per
            for row in range(2 * per):
                above = [row * len(rollout.turns[earlier].tokens_NT) // (2 * per) for earlier in range(turn)]
                said = [read_kept(rollout.turns[earlier], at) for earlier, at in enumerate(above)]
                problem, alternative = row // per, branch.first[turn] + row % per
                addresses.add((problem, turn, alternative))
                token = draw_by_hand(tiny, team, turn, [*said, *[0] * (TURNS - turn)], problem, alternative)
                assert rollout.turns[turn].tokens_NT[row, 0] == token
    assert len(addresses) == 2 * sum(plans.count_generated(plan))  # none is drawn twice


def read_kept(messages, row: int) -> int:
    return int(messages.tokens_NT[row, 0]) + 1 if messages.content_NT[row, 0] else 0


def check_given(plan, drawn, given, turn: int, messages) -> None:
    if given is None:
        assert not messages.content_NT.any() and not messages.sampled_NT.any()
        return
    source = take_problems(drawn.branches[given.branch][0].rollout.turns[turn], SIZE, np.arange(2))
    per = len(source.tokens_NT) // 2
    rows = [[problem * per + row for row in given.rows or (drawn.best[given.branch][problem],)] for problem in range(2)]
    np.testing.assert_array_equal(messages.tokens_NT, source.tokens_NT[np.array(rows).reshape(-1)])
    np.testing.assert_array_equal(messages.behaviour_logp_NT, source.behaviour_logp_NT[np.array(rows).reshape(-1)])


def draw_by_hand(tiny, team, turn: int, said: list[int], problem: int, alternative: int) -> int:
    support, mass = list_support(tiny, team, turn, said)
    key = functools.reduce(jax.random.fold_in, (problem, turn, alternative, 0), jax.random.key(7))
    return int(support[np.searchsorted(np.cumsum(mass), float(jax.random.uniform(key)), side="right")])


def list_support(tiny, team, turn: int, said: list[int]) -> tuple[np.ndarray, np.ndarray]:
    (row,) = list_rows(tiny, team, turn, np.array([said]))
    logits_V = np.float64(tiny.run_flat(tiny.params, [row]).logits[0, len(row) - 1]) / SAMPLING.temperature
    support = np.argsort(-logits_V, kind="stable")[: SAMPLING.top_k]
    mass = np.exp(logits_V[support] - logits_V.max())
    return support, mass / mass.sum()


def test_the_best_alternative_goes_on(get_draws):
    """at_grpo: of the highest return, and of equals the first."""
    plan, drawn = PLANS["at_grpo"], get_draws("at_grpo")
    scores = np.array([verdict.score for verdict in drawn.verdicts]).reshape(PROBLEMS, TURNS, 2)
    assert plan.counts == (1, 1)
    for turn, best_P in enumerate(drawn.best):
        np.testing.assert_array_equal(best_P, (scores[:, turn, 1] > scores[:, turn, 0]).astype(int))
    assert {int(best) for best_P in drawn.best for best in best_P} == {0, 1}


def test_a_null_message_of_words_is_read(tiny, team):
    """A difference with a null message of a token: the copies' contexts hold it, and it is no draw."""
    token, scores = 5, team[2]
    problems = [Problem(number, str(number), "", "") for number in range(SIZE)]
    drawn = draw(tiny, team, "difference", problems, SIZE, (token,))
    first = drawn.branches[1][0].rollout.turns
    assert (first[0].tokens_NT == token).all() and first[0].content_NT.all()
    branch = plans.list_branches(PLANS["difference"])[1]
    for row in range(2):
        said = [token + 1, 0, 0]
        assert first[1].tokens_NT[row, 0] == draw_by_hand(tiny, team, 1, said, 0, branch.first[1] + row)
    assert drawn.verdicts[-2:] == [Verdict(float(scores[token + 1]), "partial", str(token))] * 2


def test_orders_of_leaves():
    """Replay's leaves are its branches' one after the other; a coalition's are an episode's subsets."""
    for name, plan in PLANS.items():
        order = plans.list_leaves(plan)
        assert sorted(order) == list(range(plans.count_calls(plan)))
        if name != "shapley":
            assert order == sorted(order)
    (*subsets, whole) = [plans.list_leaves(PLANS["shapley"])[episode * 8 : episode * 8 + 8] for episode in range(2)][0]
    assert whole == 0 and subsets == list(range(2, 16, 2))
    kept = [tuple(given is not None for given in branch.given) for branch in plans.list_branches(PLANS["shapley"])]
    wanted = [tuple(reversed(bits)) for bits in itertools.product((False, True), repeat=3)][:7]
    assert [(*given, True)[:3] for given in kept[1:]] == wanted  # bit u of a subset's number says that turn u is kept
