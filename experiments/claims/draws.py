"""Estimators drawn on testbeds, for the claims; the same seed and plan give the same draws.

Dimension key: G problem    S sample    K turn    L leaf    N alternative    C continuation of an alternative
"""

from __future__ import annotations

import functools
import re
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from c3jax.analysis.statistics import Interval, compute_jackknife_interval, compute_student_interval
from c3jax.analysis.tables import make_columns
from c3jax.credit.method import Normalise
from c3jax.credit.methods import METHODS
from c3jax.credit.plans import Plan, make_arms, make_auxiliary, make_flat, make_replay, make_tree
from c3jax.lab import games, play, policies
from c3jax.lab.analyse import Figures, compute_bias
from c3jax.lab.chunks import list_quick_options
from c3jax.lab.measure import Draws, Sums, Target, make_recipe
from c3jax.lab.testbed import (
    BIAS_LEVEL,
    Testbed,
    draw_testbed,
    list_figures,
    make_weights,
    split_key,
    sum_batches,
    sum_estimator,
)

ROLES = ("first", "second")
LEVEL = 0.95  # coverage of intervals, except of biases
BATCHES = 16  # independent batches of an estimate; a squared bias is a mean over pairs of them


def make_family_testbed(family: games.Family, scale: float, count: int, seed: int) -> Testbed:
    """Problems of a family under a random tabular policy, its logits of a standard deviation of `scale`."""
    return draw_testbed(family, count, scale, *jax.random.split(jax.random.key(seed)))


@functools.cache
def make_survey_testbed(count: int, seed: int) -> Testbed:
    """The two-role survey, once a process: claims that draw on the same problems share compiled programs."""
    return make_family_testbed(games.make_survey(), games.SURVEY_LOGIT_SCALE, count, seed)


def read_estimator(text: str, turns: int) -> tuple[str, Plan, Normalise]:
    """Method, plan and scope of an estimator as tables print it: `c3 2x4 group`, `rloo 8`, `c3_replay 4+4`."""
    method, size, scope = f"{text} none".split()[:3]
    sampling, numbers = METHODS[method].sampling, tuple(int(number) for number in re.split("[x+]", size))
    if sampling == "tree":
        plan = make_tree(numbers)
    elif sampling == "flat":
        plan = make_flat(numbers[0], turns)
    elif sampling == "auxiliary":
        plan = make_auxiliary(numbers[0], numbers[1], turns)
    elif sampling == "replay" or sampling == "best_branch":
        plan = make_replay(numbers, turns, continues_best=sampling == "best_branch")
    else:
        plan = make_arms(sampling, numbers[0], turns)
    return method, plan, cast(Normalise, scope)


def draw_sums(testbed: Testbed, estimator: str, samples: int, seed: int, decay: float = 1.0) -> Sums:
    """Sums over `samples` draws of an estimator in each batch, leading axes [G, B]."""
    key_BG = split_key(jax.random.key(seed), BATCHES, testbed.count)
    return _draw(testbed, estimator, samples, key_BG[:, None], decay, kept=0)[0]


def draw_messages(testbed: Testbed, estimator: str, samples: int, seed: int) -> Draws:
    """Contexts, messages and advantages of each turn, [G, S, N] each."""
    key_G = split_key(jax.random.key(seed), testbed.count)
    return _draw(testbed, estimator, samples, key_G[None, None], decay=1.0, kept=samples)[1]


def _draw(
    testbed: Testbed, estimator: str, samples: int, key_BXG: jax.Array, decay: float, kept: int
) -> tuple[Sums, Draws]:
    method, plan, normalise = read_estimator(estimator, len(testbed.shape.messages))
    recipe, weights = make_recipe(method, plan, normalise, decay), make_weights(method, plan, testbed.shape.trained)
    return sum_estimator(testbed, recipe, weights, samples, key_BXG, kept)


def draw_figures(testbed: Testbed, estimator: str, samples: int, seed: int, decay: float = 1.0) -> list[Figures]:
    """Figures of every turn, by role in the order of the turns."""
    return list_figures(testbed, draw_sums(testbed, estimator, samples, seed, decay), samples)


def describe_bias(testbed: Testbed, sums: Sums, turn: int) -> dict[str, float]:
    """Columns of the squared bias with its 99.9 % interval, and the one-sided p-value that it is zero, over batches."""
    interval = compute_bias(sums, turn, np.asarray(testbed.target.advantage[turn], np.float64), BIAS_LEVEL)
    error = (interval.estimate - interval.low) / stats.t.isf((1 - BIAS_LEVEL) / 2, BATCHES - 1)
    p = stats.t.sf(interval.estimate / error, BATCHES - 1) if error > 0 else float(interval.estimate <= 0)
    return {**make_columns("squared_bias", interval), "p": float(p)}


def average(value_G: np.ndarray, level: float = LEVEL) -> Interval:
    """Mean over problems or seeds."""
    return compute_student_interval(value_G, level)


def divide_sums(mine_G: np.ndarray, theirs_G: np.ndarray, level: float = LEVEL) -> Interval:
    """Ratio of sums over problems."""
    return compute_jackknife_interval(lambda kept: mine_G[kept].sum() / theirs_G[kept].sum(), len(mine_G), level)


def compute_p(interval: Interval, count: int, level: float = LEVEL, null: float = 0.0) -> float:
    """Two-sided p-value of Student's test that a mean of `count` items, with this Student interval, is `null`."""
    half, distance = (interval.high - interval.low) / 2, abs(interval.estimate - null)
    if half == 0.0:
        return 1.0 if distance == 0.0 else 0.0
    return float(2 * stats.t.sf(distance * stats.t.isf((1 - level) / 2, count - 1) / half, count - 1))


# --------------------------------------------------------------------------------------------------------------------
# A planted fault, as somebody would make it by accident


def give_adaptive_credit(return_SNC: jax.Array) -> jax.Array:
    """Leave-one-out credit where an alternative is continued until its first success, at most C times.

    Q_j = (sum of its c_j returns) / c_j, b_j = sum_{k != j} c_k Q_k / sum_{k != j} c_k; the counts c_j depend on the
    returns, so E Q_j is not Q: an early success counts whole. Returns are 0 or 1; [S, N, C] to [S, N].
    """
    is_success_SNC = return_SNC > 0.5
    total_SN = is_success_SNC.any(axis=2).astype(jnp.float32)  # the first success is the last continuation
    count_SN = jnp.where(total_SN > 0, jnp.argmax(is_success_SNC, axis=2) + 1, return_SNC.shape[2])
    rest_count_SN = count_SN.sum(axis=1, keepdims=True) - count_SN
    rest_total_SN = total_SN.sum(axis=1, keepdims=True) - total_SN
    return total_SN / count_SN - rest_total_SN / rest_count_SN


def draw_adaptive_sums(testbed: Testbed, plan: Plan, samples: int, seed: int) -> Sums:
    """As `draw_sums`, of `give_adaptive_credit` on a replay form of equal counts."""

    def draw(game: games.Game, target: Target, key: jax.Array) -> Draws:
        keys = jax.random.split(key, samples)
        drawn = jax.vmap(lambda k: play.sample_plan(testbed.shape, game, testbed.policy, testbed.params, plan, k))(keys)
        return_SKNC = drawn.return_L.reshape(samples, plan.turns, len(plan.counts), plan.counts[0])
        turns = range(plan.turns)
        context = tuple(jax.vmap(partial(policies.context_index, testbed.shape, k))(drawn.prefix[k]) for k in turns)
        return Draws(context, drawn.message, tuple(give_adaptive_credit(return_SKNC[:, turn]) for turn in turns))

    program = jax.jit(partial(sum_batches, draw), compiler_options=list_quick_options())
    key_BXG = split_key(jax.random.key(seed), BATCHES, testbed.count)[:, None]
    return jax.device_get(program(testbed.games, testbed.target, key_BXG))[0]
