"""Training runs for the claims: several methods of one plan over paired seeds, in one compiled program.

Dimension key: A arm (a method)    R seed    E entry of a curve    K turn
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.plans import Plan
from c3jax.lab.claims.stage import compile_quickly, stack_matrices
from c3jax.lab.games import Family
from c3jax.lab.policies import make_tabular
from c3jax.lab.training import Lane, Setting, make_train

PROBLEMS, BATCH = 16, 4  # a run's problems, which come back, and those of one update: few, so that noise matters
MEASUREMENTS = 20  # of a run
LEARNING_RATE = 0.05


@functools.cache
def train_arms(
    family: Family,
    plan: Plan,
    methods: tuple[str, ...],
    seeds: int,
    updates: int,
    seed: int,
    untrained: tuple[int, ...] = (),
) -> np.ndarray:
    """Exact expected return of the policy along training from uniform policies, [A, R, E], E = 1 + `MEASUREMENTS`.

    Once a process: claims share arms.

    Args:
      updates: rounded up to a multiple of `MEASUREMENTS`.
      untrained: turns that are not trained beside the family's own.
    """
    trained = tuple(is_on and turn not in untrained for turn, is_on in enumerate(family.shape.trained))
    every = math.ceil(updates / MEASUREMENTS)
    setting = Setting(
        family=family,
        policy=make_tabular(family.shape, PROBLEMS, 0.0),
        plan=plan,
        trained=trained,
        normalise="none",
        critic=None,
        optimiser=optax.scale_by_adam(),
        problems=PROBLEMS,
        batch=BATCH,
        updates=every * MEASUREMENTS,
        every=every,
        episodes=0,
    )
    train, key = make_train(setting), jax.random.key(seed)
    rate = jnp.float32(LEARNING_RATE)

    def run(matrix: CreditMatrix, lane_seed: jax.Array) -> jax.Array:
        return train(key, Lane(lane_seed, rate, rate, matrix)).value

    matrices = stack_matrices(methods, plan, trained)
    lanes = jnp.arange(seeds, dtype=jnp.uint32)
    over_arms = jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))
    return np.asarray(compile_quickly(over_arms, 0)(matrices, lanes), np.float64)


def average_curve(value_RE: np.ndarray, cost: float, budget: float) -> np.ndarray:
    """Mean of each curve over a budget, [R], where a whole run costs `cost`: the area under it over the budget."""
    at_E = np.linspace(0.0, cost, value_RE.shape[1])
    fine_X = np.linspace(0.0, budget, 401)
    fine_RX = np.stack([np.interp(fine_X, at_E, value_E) for value_E in value_RE])
    return np.trapezoid(fine_RX, fine_X, axis=1) / budget
