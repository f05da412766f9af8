"""What a run learns of its returns: kept for the next step, chosen from when it is due, and deaf to broken returns."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config import run as config_lib
from c3jax.credit import shrink
from c3jax.credit.plans import compute_cost
from c3jax.learner import adapt
from c3jax.tasks import sections as task_sections
from c3jax.types import Frame, Messages, Rollout

MAX_TOKENS = (6, 4)
RETURN_PL = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]], np.float32)


def make_config(trained=(True, True), **credit) -> config_lib.RunConfig:
    turns = tuple(
        config_lib.Turn(name=name, role=name, user="{question}", max_tokens=tokens, trained=is_on)
        for name, tokens, is_on in zip(("one", "two"), MAX_TOKENS, trained, strict=True)
    )
    fields = {"method": "shrunk", "fan_out": "auto", "budget": 8, "normalise": "none"} | credit
    return config_lib.RunConfig(
        seed=0,
        steps=10,
        problems=2,
        task=task_sections.ArithmeticTask(kind="arithmetic"),
        protocol=config_lib.Protocol(turns=turns, question_tokens=4),
        model=config_lib.RandomModel(kind="random"),
        credit=config_lib.Credit(**fields),
        learner=config_lib.Learner(learning_rate=1e-2),
    )


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


learn_step = jax.jit(adapt.update_adaptive, static_argnums=1)


def learn(state, config, rollout=FULL, return_PL=RETURN_PL):
    return learn_step(state, adapt.fix_fan_out(config, state), rollout, jnp.asarray(return_PL))


@pytest.mark.parametrize("method", ["c3", "no_loo", "rloo"])
def test_nothing_is_carried_where_nothing_adapts(method):
    config = make_config(method=method, fan_out=(8, 1) if method == "rloo" else (2, 4))
    assert adapt.init_adaptive(config) is None
    assert adapt.choose_fan_out(config, None, 0) is None
    assert adapt.fix_fan_out(config, None) is config


def test_a_fixed_fan_out_stays_and_its_components_are_carried():
    config = make_config(fan_out=(2, 2), budget=4)
    state = adapt.init_adaptive(config)
    assert adapt.choose_fan_out(config, state, 0) is state
    assert adapt.fix_fan_out(config, state) is config
    after = learn(state, config)
    expected = jax.jit(shrink.update_components, static_argnums=2)(state.components, RETURN_PL, (2, 2), 0.9)
    jax.tree.map(np.testing.assert_array_equal, after.components, expected)
    np.testing.assert_array_equal(after.fan_out_K, (2, 2))
    assert float(after.components.mean) == pytest.approx(0.5) and int(after.components.steps) == 1


def test_lengths_are_averaged_plainly_at_first_and_then_with_the_decay():
    """Tokens drawn, the stop token included: means 6, 3, 6 of the first turn; decay .5 weighs the third step a half."""
    config = make_config(fan_out=(2, 2), budget=4, decay=0.5)
    state = adapt.init_adaptive(config)
    np.testing.assert_array_equal(state.tokens_K, MAX_TOKENS)
    means = []
    for rollout in (MIXED, FULL, MIXED):
        state = learn(state, config, rollout)
        means.append(state.tokens_K)
    np.testing.assert_allclose(means, [[3, 3], [4.5, 3.5], [3.75, 3.25]], rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_return_is_not_learnt_from(broken):
    config = make_config(fan_out=(2, 2), budget=4)
    state = learn(adapt.init_adaptive(config), config)
    spoilt = RETURN_PL.copy()
    spoilt[1, 2] = broken
    jax.tree.map(np.testing.assert_array_equal, learn(state, config, MIXED, spoilt), state)


def test_a_fan_out_is_chosen_when_it_is_due_and_else_stays():
    config = make_config(auto=config_lib.Auto(every=3))
    state = adapt.init_adaptive(config)
    np.testing.assert_array_equal(state.fan_out_K, (0, 0))
    state = adapt.choose_fan_out(config, state, 0)
    assert math.prod(state.fan_out_K.tolist()) <= 8
    # All of the spread is the first turn's: its messages should be many.
    upstream = state._replace(components=_spread(0.2, 1e-6), fan_out_K=jnp.array([2, 4], jnp.int32))
    for step in (1, 2, 4, 5):
        assert adapt.choose_fan_out(config, upstream, step) is upstream
    for step in (0, 3, 6):
        np.testing.assert_array_equal(adapt.choose_fan_out(config, upstream, step).fan_out_K, (8, 1))


def _spread(first: float, last: float) -> shrink.Components:
    return shrink.Components(jnp.float32(0.5), jnp.float32(0.01), jnp.array([first, last], jnp.float32), jnp.int32(5))


def test_the_fan_out_in_force_is_the_steps_own_and_its_product_the_calls():
    config = make_config(budget=40, auto=config_lib.Auto(unit="messages"))
    state = adapt.init_adaptive(config)._replace(fan_out_K=jnp.array([4, 3], jnp.int32))
    fixed = adapt.fix_fan_out(config, state)
    assert (fixed.credit.fan_out, fixed.credit.budget) == ((4, 3), 12)
    restored = fixed.credit.model_copy(update={"fan_out": "auto", "budget": 40})
    assert config == fixed.model_copy(update={"credit": restored})


@pytest.mark.parametrize(("unit", "budget"), [("calls", 8), ("messages", 14), ("tokens", 70)])
def test_a_choice_keeps_within_the_budget_at_the_lengths_seen(unit, budget):
    config = make_config(budget=budget, auto=config_lib.Auto(unit=unit))
    state = adapt.init_adaptive(config)._replace(tokens_K=jnp.array([3.0, 2.0]), components=_spread(0.1, 0.1))
    chosen = tuple(adapt.choose_fan_out(config, state, 0).fan_out_K.tolist())
    assert 0.5 * budget < compute_cost(chosen, unit, (3.0, 2.0)) <= budget


def test_full_messages_never_cost_more_than_the_config_was_checked_with():
    """2 + 4 messages of 6 and 4 tokens are 28, the least that c3 needs; a mean that rounds up is no reason to stop."""
    config = make_config(method="c3", budget=28, auto=config_lib.Auto(unit="tokens"))
    state = adapt.init_adaptive(config)
    above = jnp.nextafter(jnp.asarray(MAX_TOKENS, jnp.float32), jnp.inf)
    chosen = adapt.choose_fan_out(config, state._replace(tokens_K=above), 0)
    np.testing.assert_array_equal(chosen.fan_out_K, (2, 2))


def test_a_turn_that_is_not_trained_may_speak_once():
    config = make_config((False, True), method="c3", auto=config_lib.Auto())
    state = adapt.init_adaptive(config)._replace(components=_spread(1e-6, 0.2))
    first, last = adapt.choose_fan_out(config, state, 0).fan_out_K.tolist()
    assert last >= 2 and first * last <= 8
