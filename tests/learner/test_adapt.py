"""What a run learns of its returns: kept for the next step, chosen from when it is due, and deaf to broken returns."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config.run import Auto, Credit, Curriculum
from c3jax.credit import shrink
from c3jax.credit.plans import compute_cost
from c3jax.learner import adapt
from c3jax.protocol import TurnPlan
from c3jax.types import Frame, Messages, Rollout

MAX_TOKENS = (6, 4)
RETURN_PL = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]], np.float32)


def make_section(**fields) -> Credit:
    return Credit(**{"method": "shrunk", "fan_out": "auto", "budget": 8, "normalise": "none"} | fields)


def make_plans(trained=(True, True)) -> tuple[TurnPlan, ...]:
    names = zip(("one", "two"), MAX_TOKENS, trained, strict=True)
    return tuple(TurnPlan(name, name, (), tokens, is_on) for name, tokens, is_on in names)


PLANS = make_plans()


def make_rollout(*lengths: list[int]) -> Rollout:
    """Messages of given lengths, in tokens; nothing else is read."""
    turns = []
    for length_N, most in zip(lengths, MAX_TOKENS, strict=True):
        sampled_NT = jnp.arange(most) < jnp.asarray(length_N)[:, None]
        logp_NT, support_NTK = jnp.zeros(sampled_NT.shape), jnp.zeros((*sampled_NT.shape, 0), jnp.int32)
        truncated_N = jnp.zeros(len(length_N), bool)
        turns.append(Messages(sampled_NT.astype(int), sampled_NT, sampled_NT, logp_NT, support_NTK, truncated_N))
    return Rollout(Frame(jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool)), tuple(turns))


FULL = make_rollout([6] * 4, [4] * 8)
MIXED = make_rollout([1, 2, 3, 6], [4, 4, 4, 4, 2, 2, 2, 2])  # means 3 and 3


learn_step = jax.jit(adapt.update_adaptive, static_argnums=(1, 2))


def learn(state, decay=0.9, rollout=FULL, return_PL=RETURN_PL):
    return learn_step(state, decay, (2, 2), rollout, jnp.asarray(return_PL))


@pytest.mark.parametrize("method", ["c3", "no_loo", "rloo"])
def test_nothing_is_carried_where_nothing_adapts(method):
    fan_out = (8, 1) if method == "rloo" else (2, 4)
    section = make_section(method=method, fan_out=fan_out)
    assert adapt.init_adaptive(section, PLANS) is None
    assert [adapt.choose_fan_out(section, PLANS, None, step, fan_out) for step in (0, 7)] == [fan_out] * 2


def test_a_fixed_fan_out_stays_and_its_components_are_carried():
    section = make_section(fan_out=(2, 2), budget=4)
    state = adapt.init_adaptive(section, PLANS)
    assert adapt.choose_fan_out(section, PLANS, state, 0, None) == (2, 2)
    after = learn(state)
    expected = jax.jit(shrink.update_components, static_argnums=2)(state.components, RETURN_PL, (2, 2), 0.9)
    jax.tree.map(np.testing.assert_array_equal, after.components, expected)
    assert float(after.components.mean) == pytest.approx(0.5) and int(after.components.steps) == 1


def test_lengths_are_averaged_plainly_at_first_and_then_with_the_decay():
    """Tokens drawn, the stop token included: means 6, 3, 6 of the first turn; decay .5 weighs the third step a half."""
    state = adapt.init_adaptive(make_section(), PLANS)
    np.testing.assert_array_equal(state.tokens_K, MAX_TOKENS)
    means = []
    for rollout in (MIXED, FULL, MIXED):
        state = learn(state, 0.5, rollout)
        means.append(state.tokens_K)
    np.testing.assert_allclose(means, [[3, 3], [4.5, 3.5], [3.75, 3.25]], rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_return_is_not_learnt_from(broken):
    state = learn(adapt.init_adaptive(make_section(), PLANS))
    spoilt = RETURN_PL.copy()
    spoilt[1, 2] = broken
    jax.tree.map(np.testing.assert_array_equal, learn(state, rollout=MIXED, return_PL=spoilt), state)


def test_a_fan_out_is_chosen_when_it_is_due_and_else_stays():
    section = make_section(auto=Auto(every=3))
    state = adapt.init_adaptive(section, PLANS)
    assert math.prod(adapt.choose_fan_out(section, PLANS, state, 0, None)) <= 8
    # All of the spread is the first turn's: its messages should be many.
    upstream = state._replace(components=_spread(0.2, 1e-6))
    for step in (1, 2, 4, 5):
        assert adapt.choose_fan_out(section, PLANS, upstream, step, (2, 4)) == (2, 4)
    for step in (0, 3, 6):
        assert adapt.choose_fan_out(section, PLANS, upstream, step, (2, 4)) == (8, 1)


def _spread(first: float, last: float) -> shrink.Components:
    return shrink.Components(jnp.float32(0.5), jnp.float32(0.01), jnp.array([first, last], jnp.float32), jnp.int32(5))


@pytest.mark.parametrize(("unit", "budget"), [("calls", 8), ("messages", 14), ("tokens", 70)])
def test_a_choice_keeps_within_the_budget_at_the_lengths_seen(unit, budget):
    section = make_section(budget=budget, auto=Auto(unit=unit))
    state = adapt.AdaptiveState(_spread(0.1, 0.1), jnp.array([3.0, 2.0]))
    chosen = adapt.choose_fan_out(section, PLANS, state, 0, None)
    assert 0.5 * budget < compute_cost(chosen, unit, (3.0, 2.0)) <= budget


def test_full_messages_never_cost_more_than_the_config_was_checked_with():
    """2 + 4 messages of 6 and 4 tokens are 28, the least that c3 needs; a mean that rounds up is no reason to stop."""
    section = make_section(method="c3", budget=28, auto=Auto(unit="tokens"))
    state = adapt.init_adaptive(section, PLANS)
    above = jnp.nextafter(jnp.asarray(MAX_TOKENS, jnp.float32), jnp.inf)
    assert adapt.choose_fan_out(section, PLANS, state._replace(tokens_K=above), 0, None) == (2, 2)


def test_a_turn_that_is_not_trained_may_speak_once():
    section, plans = make_section(method="c3"), make_plans((False, True))
    state = adapt.init_adaptive(section, plans)._replace(components=_spread(1e-6, 0.2))
    first, last = adapt.choose_fan_out(section, plans, state, 0, None)
    assert last >= 2 and first * last <= 8


def test_pass_rates_by_hand():
    """Two of four problems, one of them twice: three and one of four answers, then at half the weight none."""
    passes = adapt.update_passes(adapt.init_passes(4), 0.5, [2, 0], RETURN_PL)
    np.testing.assert_allclose(passes.passed_N, [1, 0, 3, 0])
    np.testing.assert_allclose(passes.tried_N, [4, 0, 4, 0])
    again = adapt.update_passes(passes, 0.5, [2], np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(again.passed_N, [1, 0, 1.5, 0])
    np.testing.assert_allclose(again.tried_N, [4, 0, 6, 0])
    # p is 2/6, 1/2, 2.5/8 and 1/2; p (1 - p) is 2/9, 1/4, 55/256 and 1/4.
    learnable = np.array([2 / 9, 1 / 4, 55 / 256, 1 / 4])
    weight_N = adapt.weigh_problems(Curriculum(uniform=0.2), again)
    np.testing.assert_allclose(weight_N, 0.2 / 4 + 0.8 * learnable / learnable.sum(), rtol=1e-6)
    np.testing.assert_allclose(adapt.weigh_problems(Curriculum(uniform=1.0), again), 0.25)


def test_a_return_that_is_broken_or_large_is_at_most_an_answer():
    broken = np.array([[np.nan, np.inf, -np.inf, 7.0]], np.float32)
    passes = adapt.update_passes(adapt.init_passes(2), 0.9, [1], broken)
    assert passes.passed_N[1] == 2.0 and passes.tried_N[1] == 4.0
