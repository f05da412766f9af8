"""Influence: closed forms, enumeration of all outcomes and of all permutations, and the null's 3/16."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from c3jax.analysis.influence import (
    compute_corrected_influence,
    compute_null_bias,
    compute_permutation_mean,
    compute_plugin_influence,
    sample_permutation_null,
)


def count(pairs, messages, outcomes) -> np.ndarray:
    table_JY = np.zeros((messages, outcomes), int)
    for pair in pairs:
        table_JY[pair] += 1
    return table_JY


def test_copying_says_everything_and_independence_nothing():
    copying_JY, apart_JY = 5 * np.eye(4, dtype=int), np.outer([1, 2, 3, 4], [1, 3, 0, 2])
    found_C = compute_plugin_influence(np.stack([copying_JY, apart_JY, 0 * copying_JY]))
    np.testing.assert_allclose(found_C, [math.log(4), 0.0, math.nan], atol=1e-12)


def test_a_table_by_hand():
    # p = [[1/2, 0], [1/4, 1/4]]: 1/2 log(1/2 / (1/2 3/4)) + 1/4 log(1/4 / (1/2 3/4)) + 1/4 log(1/4 / (1/2 1/4))
    count_CJY = np.array([[[4, 0], [2, 2]]])
    information = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert compute_plugin_influence(count_CJY) == pytest.approx([information], abs=1e-12)
    # Three cells, two messages and two outcomes occurred: (3 - 2 - 2 + 1) / 16 = 0. With all four, 1/16.
    assert compute_corrected_influence(count_CJY) == pytest.approx([information], abs=1e-12)
    full_CJY = np.array([[[3, 1], [2, 2]]])
    assert compute_corrected_influence(full_CJY) - compute_plugin_influence(full_CJY) == pytest.approx([-1 / 16])


def enumerate_null(messages: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables and probabilities of fair coins as outcomes, `each` a message, over all numbers of heads."""
    heads_TJ = np.array(list(itertools.product(range(each + 1), repeat=messages)))
    chance_T = np.prod([[math.comb(each, h) / 2**each for h in heads] for heads in heads_TJ], axis=1)
    return np.stack([heads_TJ, each - heads_TJ], axis=2), chance_T


def test_the_plugins_bias_is_three_sixteenths_where_there_is_no_influence():
    """4 messages, 2 continuations each, 2 outcomes: a leading term of 3/16, and exactly more at so few draws."""
    assert compute_null_bias(messages=4, outcomes=2, draws=8) == 3 / 16
    table_TJY, chance_T = enumerate_null(messages=4, each=2)
    # E I = E H(Y) - E H(Y|J): coins differ within a message half of the time, and H of k heads of 8 is binomial.
    entropy = [-sum(p * math.log(p) for p in (k / 8, 1 - k / 8) if p > 0) for k in range(9)]
    exact = sum(math.comb(8, k) / 256 * entropy[k] for k in range(9)) - math.log(2) / 2
    assert chance_T @ compute_plugin_influence(table_TJY) == pytest.approx(exact, abs=1e-12)
    assert exact > 3 / 16


def test_with_many_draws_the_bias_is_the_leading_term_and_the_correction_takes_it_out():
    table_TJY, chance_T = enumerate_null(messages=3, each=32)
    leading = compute_null_bias(messages=3, outcomes=2, draws=96)
    assert chance_T @ compute_plugin_influence(table_TJY) == pytest.approx(leading, rel=0.04)
    assert abs(chance_T @ compute_corrected_influence(table_TJY)) < 0.04 * leading


def test_one_continuation_a_message_cannot_tell_influence_from_none():
    """Every dealing-out of the outcomes has the same plug-in, so the null holds nothing but what was observed."""
    table_JY = count([(0, 0), (1, 1), (2, 0), (3, 1)], 4, 2)
    assert compute_plugin_influence(table_JY[None]) == pytest.approx([math.log(2)])
    null = sample_permutation_null(table_JY[None], 50, 0.95)
    assert null == pytest.approx((math.log(2),) * 3 + (1.0,))


def test_the_permutation_null_is_that_of_all_permutations():
    message_N, outcome_N = (0, 0, 0, 1, 1, 2), (0, 0, 1, 1, 1, 0)
    tables = [count(zip(message_N, order, strict=True), 3, 2) for order in itertools.permutations(outcome_N)]
    all_T = compute_plugin_influence(np.stack(tables))
    null = sample_permutation_null(count(zip(message_N, outcome_N, strict=True), 3, 2)[None], 20_000, 0.8)
    assert null.observed == pytest.approx(all_T[0])
    assert null.mean == pytest.approx(all_T.mean(), abs=3.3 * all_T.std() / math.sqrt(20_000))
    assert null.quantile == pytest.approx(np.quantile(all_T, 0.8), abs=1e-9)
    exact_C = compute_permutation_mean(np.stack([tables[0], tables[-1], 0 * tables[0]]))
    np.testing.assert_allclose(exact_C, [all_T.mean(), all_T.mean(), math.nan], atol=1e-12)
    share = np.mean(all_T >= all_T[0] - 1e-12)
    assert null.p == pytest.approx(share, abs=3.3 * math.sqrt(share / 20_000))


def test_the_null_of_several_contexts_is_that_of_their_mean():
    random = np.random.default_rng(0)
    apart_CJY = random.multinomial(12, np.full(6, 1 / 6), size=30).reshape(30, 3, 2)
    null = sample_permutation_null(np.concatenate([apart_CJY, np.zeros((1, 3, 2), int)]), 400, 0.999)
    assert null.observed == pytest.approx(compute_plugin_influence(apart_CJY).mean())
    assert null.mean < null.quantile and null.observed < null.quantile and null.p > 0.001
    tied_CJY = apart_CJY + 4 * np.array([[1, 0], [0, 1], [1, 0]])
    found = sample_permutation_null(tied_CJY, 400, 0.999)
    assert found.observed > found.quantile and found.p == 1 / 401
    assert sample_permutation_null(tied_CJY, 400, 0.999) == found != sample_permutation_null(tied_CJY, 400, 0.999, 1)


@pytest.mark.parametrize("wrong", [np.ones((2, 2), int), np.ones((1, 2, 2)), -np.ones((1, 2, 2), int)])
def test_what_is_no_count_is_said(wrong):
    for function in (compute_plugin_influence, compute_corrected_influence):
        with pytest.raises(ValueError, match="expected whole counts"):
            function(wrong)
    with pytest.raises(ValueError, match="expected a permutation"):
        sample_permutation_null(np.zeros((1, 2, 2), int), 5, 0.9)
