"""The testbed: estimators that are right pass, estimators that are wrong do not, and budgets are kept."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.credit import shrink
from c3jax.credit.plans import compute_cost, count_calls, make_flat, make_replay, make_tree
from c3jax.lab import analyse, oracle, testbed
from c3jax.lab.config import BenchStudy, parse_study
from c3jax.lab.sections import parse_estimator

ESTIMATORS = {
    "c3": "c3 2x2",
    "no_loo": "no_loo 2x2",
    "shrunk": "shrunk 2x2",
    "standardised": "c3 2x2 group",
    "masked": "difference_masked 4",
}
STUDY = {
    **{"kind": "bench", "seed": 3, "problems": 8, "samples": 4200, "batches": 14, "policy_scale": 0.75},
    **{"pilot_steps": 100},
    "cases": [
        {
            "name": "pair",
            "game": {"kind": "chain", "messages": 3, "effect": 1.0, "coupling": 2.0, "spread": 0.5},
            "estimators": list(ESTIMATORS.values()),
        }
    ],
}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """Without the compiler's costly passes: programs here compile for seconds and run for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def load_study() -> BenchStudy:
    config = parse_study(STUDY)
    assert isinstance(config, BenchStudy)
    return config


@functools.cache
def get_bench() -> testbed.BenchTestbed:
    config = load_study()
    return testbed.make_bench_testbed(config, config.cases[0], jax.random.key(0))


@functools.cache
def measure(name: str) -> testbed.Measured:
    config = load_study()
    estimator = config.cases[0].estimators[list(ESTIMATORS).index(name)]
    return testbed.measure_estimator(config, config.cases[0], estimator, get_bench())


def compute_variance(made: testbed.Testbed) -> oracle.Variance:
    return jax.jit(jax.vmap(lambda game: oracle.compute_variance(made.shape, game, made.policy, made.params)))(
        made.games
    )


def test_the_pilot_finds_the_variance_components():
    """Every turn reads all before it, so Var V(x), tau^2 of the first turn, and Var(R | h) of the last, by the oracle.

    1600 trees of four leaves: each component is known to about .25 sqrt(2 / 1600) = .009.
    """
    bench = get_bench()
    exact, value_G = compute_variance(bench.testbed), bench.testbed.oracle.value
    last = exact.noise_K[:, 1].mean() + exact.spread_K[:, 1].mean()
    expected = [jnp.var(value_G, ddof=1), exact.spread_K[:, 0].mean(), last]
    found = [bench.components.problem, *bench.components.message_K]
    np.testing.assert_allclose(found, expected, atol=3.3 * 0.009)
    assert bench.components.mean == pytest.approx(float(value_G.mean()), abs=0.02)
    assert min(expected) > 0.02


def test_what_is_unbiased_is_found_so_and_what_is_not_is_not():
    """no_loo is off by half of A*, whose mean square is tau^2; shrunk by what a context is worth more than another."""
    exact = compute_variance(get_bench().testbed)
    for turn in range(2):
        found = {name: measure(name).squared_bias[turn] for name in ESTIMATORS}
        assert found["c3"].low < 0.0 < found["c3"].high < 0.002
        assert found["no_loo"].low < float(exact.spread_K[:, turn].mean()) / 4 < found["no_loo"].high
        for wrong in ("no_loo", "shrunk", "masked"):
            assert found[wrong].low > 0.005, wrong


def test_a_pair_standardised_is_one_and_minus_one():
    """Returns of 0 and 1: at the last turn they are so already, and at the first an unequal pair becomes so."""
    first, last = (measure("standardised").squared_bias[turn] for turn in range(2))
    assert last == pytest.approx(measure("c3").squared_bias[1])
    assert first.low > 0.002


def test_leave_one_out_is_the_mean_stretched():
    """Same key and plan, same draws: advantages of n = 2 alternatives are twice those less a mean with their own."""
    for turn in range(2):
        loo, mean = measure("c3").figures[turn], measure("no_loo").figures[turn]
        np.testing.assert_allclose(loo.noise_G, 4 * mean.noise_G, rtol=1e-4)
        np.testing.assert_allclose(loo.along_G, 2 * mean.along_G, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(loo.variance_G, 4 * mean.variance_G, rtol=1e-4)
        np.testing.assert_array_equal(measure("c3").spearman[turn], measure("no_loo").spearman[turn])


def test_directions():
    """Right for leave-one-out and for the shrunk baseline; a masked removal points elsewhere at the first turn."""
    for name in ("c3", "no_loo", "shrunk"):
        for turn in range(2):
            cosine = analyse.compute_cosine(measure(name).figures[turn], 0.95)
            assert cosine.estimate == pytest.approx(1.0, abs=0.005), (name, turn)
    masked = measure("masked").figures
    assert analyse.compute_cosine(masked[0], 0.95).estimate < 0.9
    assert analyse.compute_cosine(masked[1], 0.95).estimate == pytest.approx(1.0, abs=0.005)


def test_ranks_by_hand():
    """One problem in order, one against it, one with nothing to compare; contexts count the same."""
    exact_GCM = np.array([[[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]] * 3)
    context_GSN = np.array([[[0, 0, 0], [1, 1, 1]]] * 3)
    message_GSN = np.array([[[0, 1, 2], [0, 1, 2]]] * 3)
    advantage_GSN = np.array(
        [
            [[-1.0, 0.0, 5.0], [2.0, 1.0, 0.0]],
            [[1.0, 0.5, 0.0], [0.0, 2.0, 1.0]],
            [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]],
        ]
    )
    rank_G = testbed.rank_within_contexts(context_GSN, message_GSN, advantage_GSN, exact_GCM)
    # Ranks 0, 2, 1 against 2, 1, 0: 1 - 6 (4 + 1 + 1) / (3 (9 - 1)) = -1/2.
    np.testing.assert_allclose(rank_G, [1.0, (-1.0 - 0.5) / 2, math.nan], atol=1e-6)


@pytest.mark.parametrize(("unit", "budget"), [("calls", 8), ("messages", 16), ("tokens", 900)])
def test_a_chosen_fan_out_keeps_within_its_budget(unit, budget):
    components, tokens = get_bench().components, (90.0, 60.0)
    chosen = testbed.choose_plan(parse_estimator(f"shrunk auto {budget} {unit}"), components, (True, True), tokens)
    assert chosen.form == "tree" and 0.5 * budget < compute_cost(chosen.fan_out, unit, tokens) <= budget

    def predict(fan_out: tuple[int, int]) -> float:
        return sum(shrink.predict_error(components, fan_out, "shrunk", "gradient"))

    for other in ((1, 1), (2, 2), (2, 4), (4, 2), (8, 1)):
        assert compute_cost(other, unit, tokens) > budget or predict(chosen.fan_out) <= predict(other) + 1e-9


def test_a_fixed_plan_is_the_sections():
    estimator = parse_estimator("c3_replay 1+2")
    assert testbed.choose_plan(estimator, get_bench().components, (True, True), (1.0, 1.0)) == make_replay((1, 2), 2)


def test_the_shrunk_baseline_is_of_earlier_draws():
    components = get_bench().components
    weights = testbed.make_weights("shrunk", make_tree((2, 2)), (True, True), components)
    expected = shrink.make_shrunk_matrix(components, (2, 2))
    for found, other in zip(weights.matrix.baseline, expected.baseline, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-7)
    assert weights.mean == components.mean
    assert testbed.make_weights("c3", make_tree((2, 2)), (True, True)).mean == 0.0


def test_a_rival_with_the_same_mean_has_that_share_of_it_and_no_more():
    """All of it is rae; of a half the rows keep a half; an error is what the mean is too low by."""
    components, flat, on = get_bench().components, make_flat(4, 2), (True, True)
    rae = testbed.make_weights("rae", flat, on, components)
    whole = testbed.make_weights("rloo", flat, on, components, 1.0)
    jax.tree.map(np.testing.assert_array_equal, whole, rae)
    plain, half = (testbed.make_weights("rloo", flat, on, components, *share) for share in ((), (0.5, 0.2)))
    np.testing.assert_allclose(half.matrix.baseline[1], 0.5 * plain.matrix.baseline[1])
    assert (plain.mean, half.mean) == (0.0, pytest.approx(components.mean - 0.2))
    assert measure("c3").pilot_calls == 0 and measure("shrunk").pilot_calls == 100 * 4


def test_turns_that_are_not_trained_have_no_figures():
    case = {
        "name": "mates",
        "game": {"kind": "chain", "turns": 2, "mates": 1, "mates_speak": "first", "messages": 2, "effect": 1.0},
        "estimators": ["c3 auto 8 calls"],
    }
    config = parse_study(STUDY | {"cases": [case], "samples": 60, "batches": 3, "pilot_steps": 2})
    bench = testbed.make_bench_testbed(config, config.cases[0], jax.random.key(5))
    found = testbed.measure_estimator(config, config.cases[0], config.cases[0].estimators[0], bench)
    assert set(found.figures) == set(found.squared_bias) == set(found.spearman) == {1, 2}
    assert min(found.plan.fan_out[1:]) >= 2 and count_calls(found.plan) <= 8
    for of_turn in found.figures.values():
        assert all(np.isfinite(part).all() for part in of_turn)
