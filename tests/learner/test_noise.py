"""Gradient noise, against a policy that can be enumerated: every message is one of two words.

By hand: a tree of two plans with two answers each has 2^6 outcomes, whose probabilities are products of those of six
messages (two plans, and two answers to each). At the policy that drew them a tree's gradient is -1/6 of the sum, over
its six messages, of advantage times the derivative of the log-probability: the loss is a mean over tokens, of which a
tree has six. So E|g|^2 and |E g|^2 are sums over outcomes of products of six vectors.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.analysis.diagnostics import compute_noise_scale
from c3jax.config import run as config_lib
from c3jax.credit.plans import make_tree
from c3jax.learner import noise
from c3jax.learner.forward import Spoken, compute_turns_logp
from c3jax.models.policy import Weights, make_model
from c3jax.rollout import tree
from c3jax.types import Frame

SAMPLING = config_lib.Sampling(temperature=3.0, top_k=2)
PROBLEMS, PLAN = 128, make_tree((2, 2))
CREDIT = config_lib.Credit(method="c3", fan_out=(2, 2), budget=4, normalise="none")
PARTS = [("planner",), ("actor",), ("planner", "actor")]
VALUE = np.array([[1.0, 0.0], [0.25, 0.75]])  # of the first and second plan's answers


@pytest.fixture(scope="module")
def drawn(tiny):
    """Trees of one question; which of its words each plan and answer is; and a tree that has all six messages."""
    plans = [plan._replace(max_tokens=1) for plan in tiny.get_tree("chain").plans]
    sample = tree.make_tree_sampler(tiny.policy, plans, SAMPLING, tiny.stop_tokens)
    weights = Weights(tiny.params, {})
    question = Frame(*(jnp.repeat(array[:1], PROBLEMS, axis=0) for array in tiny.question))
    drawings = []
    for number in range(4):
        rollout, _ = sample(weights, question, jax.random.key(number), jnp.arange(PROBLEMS), (2, 2))
        first, second = (np.asarray(turn.tokens_NT[:, 0]) for turn in rollout.turns)
        drawings.append((rollout, first.reshape(PROBLEMS, 2), second.reshape(PROBLEMS, 2, 2)))
    first, second = (np.concatenate(part) for part in zip(*((f, s) for _, f, s in drawings), strict=True))
    words = sorted(set(first.ravel().tolist()))
    answers = [sorted(set(second[first == word].ravel().tolist())) for word in words]
    assert len(words) == 2 and all(len(row) == 2 for row in answers)
    is_whole = (first == words).all(axis=1) & (second == answers).all(axis=(1, 2))
    at = int(np.flatnonzero(is_whole)[0])
    whole = tree.take_problems(drawings[at // PROBLEMS][0], PROBLEMS, np.array([at % PROBLEMS]))
    picks = []
    for rollout, f, s in drawings:
        plan_PN = (f == words[1]).astype(int)
        picks.append((rollout, plan_PN, (s == np.array([row[1] for row in answers])[plan_PN][:, :, None]).astype(int)))
    return plans, weights, picks, whole


def enumerate_outcomes(tiny, plans, weights, whole):
    """By hand: (E|g|^2, |E g|^2) of the planner, the actor and both."""

    def compute_logp(params):
        model = [make_model(tiny.policy, Weights(params, {}), plan.role) for plan in plans]
        spoken = [Spoken(turn, whole, (2, 2)) for turn in (0, 1)]
        parts = [compute_turns_logp(model[each.turn], plans, [each], SAMPLING)[0][:, 0] for each in spoken]
        return jnp.concatenate(parts)

    logp_6 = np.asarray(jax.jit(compute_logp)(weights.trained), float)
    np.testing.assert_allclose([np.exp(logp_6[k : k + 2]).sum() for k in (0, 2, 4)], 1, atol=1e-6)
    rows = [leaf.reshape(6, -1) for leaf in jax.tree.leaves(jax.jit(jax.jacrev(compute_logp))(weights.trained))]
    vector_6D = np.concatenate(rows, axis=1).astype(float)
    product_66 = vector_6D @ vector_6D.T
    square, mean_6 = np.zeros(3), np.zeros(6)
    masks = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1] * 6])
    for picked in itertools.product((0, 1), repeat=6):
        plan, answer = picked[:2], np.reshape(picked[2:], (2, 2))
        returns = np.array([[VALUE[plan[n], answer[n, k]] for k in (0, 1)] for n in (0, 1)])
        probability, share_6 = 1.0, np.zeros(6)
        for n in (0, 1):
            probability *= math.exp(logp_6[plan[n]])
            share_6[plan[n]] -= (returns[n].mean() - returns[1 - n].mean()) / 6
            for k in (0, 1):
                place = 2 + 2 * plan[n] + answer[n, k]
                probability *= math.exp(logp_6[place])
                share_6[place] -= (returns[n, k] - returns[n, 1 - k]) / 6
        square += probability * np.array([(share_6 * mask) @ product_66 @ (share_6 * mask) for mask in masks])
        mean_6 += probability * share_6
    return square, np.array([(mean_6 * mask) @ product_66 @ (mean_6 * mask) for mask in masks])


@pytest.fixture(scope="module")
def measure(tiny, drawn):
    learner = config_lib.Learner(learning_rate=1e-3)
    return noise.make_measure(CREDIT, learner, SAMPLING, tiny.policy, drawn[0])


def test_the_estimates_agree_with_the_enumerated_moments(tiny, drawn, measure):
    plans, weights, picks, whole = drawn
    assert noise.list_parts(plans) == PARTS
    square_R, signal_R = enumerate_outcomes(tiny, plans, weights, whole)
    batches = [noise.Drawn((one,), VALUE[plan[:, :, None], answer].reshape(-1, 4)) for one, plan, answer in picks]
    spread = noise.measure_spread(measure, PARTS, weights, batches, PLAN)
    for part in range(3):
        found = compute_noise_scale(spread.square_RP[part], spread.along_RP[part], 0.95)
        noise_, signal = square_R[part] - signal_R[part], signal_R[part]
        for interval, exact in ((found.noise, noise_), (found.signal, signal), (found.scale, noise_ / signal)):
            assert interval.low < exact < interval.high, part
        assert 0 < found.least < noise_ / signal


def test_a_gradient_that_may_be_zero_is_not_resolved(drawn, measure):
    """Returns that are dealt out at random have no gradient on average; those that are all alike have none at all."""
    _, weights, picks, _ = drawn
    random = np.random.default_rng(0)
    batches = [noise.Drawn((picks[0][0],), random.permutation(np.tile([0.0, 1.0], 2 * PROBLEMS)).reshape(-1, 4))]
    spread = noise.measure_spread(measure, PARTS, weights, batches, PLAN)
    for part in range(3):
        found = compute_noise_scale(spread.square_RP[part], spread.along_RP[part], 0.95)
        assert found.signal.low < 0 < found.signal.high and found.noise.low > 0
        assert math.isnan(found.scale.low) and found.least > 0
    spread = noise.measure_spread(measure, PARTS, weights, [noise.Drawn((picks[0][0],), np.ones((PROBLEMS, 4)))], PLAN)
    assert not spread.square_RP.any()
    found = compute_noise_scale(spread.square_RP[0], spread.along_RP[0], 0.95)
    assert math.isnan(found.scale.estimate) and math.isnan(found.least) and found.noise.estimate == 0
