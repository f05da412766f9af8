"""Claims 9, 11, 12 and 13: training runs, all on paired seeds, and the noise that explains them.

Dimension key: R seed    E entry of a curve    A arm, a method of one plan    N message    L leaf
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from c3jax.analysis.statistics import Interval, compute_paired
from c3jax.analysis.tables import make_columns
from c3jax.credit import rows as credit_rows
from c3jax.credit.matrix import CreditMatrix, make_credit_matrix
from c3jax.credit.plans import Plan, count_calls, count_generated, make_tree
from c3jax.lab import games
from c3jax.lab.analyse import compute_noise
from c3jax.lab.policies import make_tabular
from c3jax.lab.testbed import compile_quickly
from c3jax.lab.training import Lane, Setting, make_train
from experiments.claims import draws
from experiments.claims.claim import Rows, Scale
from experiments.claims.draws import LEVEL, average, divide_sums

PROBLEMS, BATCH = 16, 4  # a run's problems, which come back, and those of one update: few, so that noise matters
MEASUREMENTS = 20  # of a run
LEARNING_RATE = 0.05
TOKENS = (4.0, 1.0)  # of a message of each role where the first writes four times as much
UNITS = ("calls", "messages", "tokens")


@functools.cache
def train_arms(
    family: games.Family, estimators: tuple[str, ...], seeds: int, updates: int, seed: int, untrained: int = -1
) -> np.ndarray:
    """Exact expected return of the policy along training from uniform policies, [A, R, E], E = 1 + `MEASUREMENTS`.

    Once a process: claims share arms.

    Args:
      estimators: of one plan; they run in one program.
      updates: rounded up to a multiple of `MEASUREMENTS`.
      untrained: a turn that is not trained beside the family's own.
    """
    turns = len(family.shape.messages)
    methods, plans, _ = zip(*(draws.read_estimator(estimator, turns) for estimator in estimators), strict=True)
    trained = tuple(is_on and turn != untrained for turn, is_on in enumerate(family.shape.trained))
    every = math.ceil(updates / MEASUREMENTS)
    setting = Setting(
        family=family,
        policy=make_tabular(family.shape, PROBLEMS, 0.0),
        plan=plans[0],
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
    train, key, rate = make_train(setting), jax.random.key(seed), jnp.float32(LEARNING_RATE)

    def run(matrix: CreditMatrix, lane_seed: jax.Array) -> jax.Array:
        return train(key, Lane(lane_seed, rate, rate, matrix)).value

    matrices = [make_credit_matrix(method, plans[0], trained) for method in methods]
    stacked = jax.tree.map(lambda *parts: jnp.stack([jnp.asarray(part, jnp.float32) for part in parts]), *matrices)
    over_arms = jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))
    return np.asarray(compile_quickly(over_arms, 0)(stacked, jnp.arange(seeds, dtype=jnp.uint32)), np.float64)


def average_curve(value_RE: np.ndarray, cost: float, budget: float) -> np.ndarray:
    """Mean of each curve over a budget, [R], where a whole run costs `cost`: the area under it over the budget."""
    at_E, fine_X = np.linspace(0.0, cost, value_RE.shape[1]), np.linspace(0.0, budget, 401)
    fine_RX = np.stack([np.interp(fine_X, at_E, value_E) for value_E in value_RE])
    return np.trapezoid(fine_RX, fine_X, axis=1) / budget


def _pair(mine_R: np.ndarray, theirs_R: np.ndarray) -> dict[str, float]:
    paired = compute_paired(mine_R, theirs_R, LEVEL)
    return {**make_columns("value", paired.difference), "p": paired.p_student, "p_signs": paired.p_signs}


def measure_curves(scale: Scale) -> Rows:
    """Claim 9: curves of four estimators, and paired differences of their means over a common budget in each unit."""
    run, rows = (scale.seeds, scale.updates, scale.seed), []
    curves: dict[str, np.ndarray] = {}
    for arms in (("rloo 8", "magrpo 8"), ("c3 2x4",), ("c3 4x2",)):
        curves |= zip(arms, train_arms(games.make_survey(), arms, *run), strict=True)
    for unit in UNITS:
        costs = {name: _count_cost(draws.read_estimator(name, 2)[1], unit) for name in curves}
        # That of the cheapest arm's whole run, which every other arm reaches part of the way.
        budget = min(costs.values())
        mean = {name: average_curve(curve_RE, costs[name], budget) for name, curve_RE in curves.items()}
        for name, curve_RE in curves.items():
            cost_E = np.linspace(0.0, costs[name] * scale.updates, curve_RE.shape[1])
            for cost, value_R in zip(cost_E, curve_RE.T, strict=True):
                row = {"quantity": "curve", "arm": name, "unit": unit, "cost": float(cost)}
                rows.append(row | make_columns("value", average(value_R)))
            if name != "rloo 8":
                rows.append({"quantity": "difference", "arm": name, "unit": unit, **_pair(mean[name], mean["rloo 8"])})
    return rows


def _count_cost(plan: Plan, unit: str) -> float:
    """Cost of one problem in evaluator calls, messages, or tokens by `TOKENS`."""
    generated = count_generated(plan)
    return float((count_calls(plan), sum(generated), np.dot(generated, TOKENS))[UNITS.index(unit)])


def measure_fan_out(scale: Scale) -> Rows:
    """Claim 11: mean return over the run for each fan-out with 8 leaves, and the first role's gradient under 1x8."""
    curves = {
        size: train_arms(games.make_survey(), (f"c3 {size}",), scale.seeds, scale.updates, scale.seed, untrained)[0]
        for size, untrained in (("1x8", 0), ("2x4", -1), ("4x2", -1), ("8x1", 1))
    }
    mean = {name: average_curve(curve_RE, 1.0, 1.0) for name, curve_RE in curves.items()}
    rows: Rows = [
        {"quantity": "mean return", "arm": name}
        | make_columns("value", average(mean_R))
        | make_columns("last", average(curves[name][:, -1]))
        for name, mean_R in mean.items()
    ]
    rows += [
        {"quantity": "difference", "arm": f"{name} less {other}", **_pair(mean[name], mean[other])}
        for name, other in (("2x4", "1x8"), ("2x4", "8x1"), ("4x2", "2x4"))
    ]
    # Credit of a group of one: the message's value less the mean of its group, a weight of each leaf.
    plan = make_tree((1, 8))
    weight_NL = credit_rows.own_leaves(plan, 0) - credit_rows.mean_of_context(plan, 0)
    rows.append({"quantity": "first role of 1x8", "arm": "largest weight", "value": float(np.abs(weight_NL).max())})
    return rows


DEPTHS = {  # the tree's fan-out, and the replay form's continuations of each of 4 alternatives: 60 to 72 calls
    2: ("8x8", "8"),
    3: ("4x4x4", "5"),
    4: ("4x4x2x2", "4"),
    5: ("4x2x2x2x2", "3"),
    6: ("2x2x2x2x2x2", "3"),
}


def measure_depth(scale: Scale) -> Rows:
    """Claim 12: noise/signal at 64 calls of every role, and mean return over training, for tree and replay form."""
    rows: Rows = []
    for depth in DEPTHS:
        # A draw has some 64 leaves, so fewer games will do.
        testbed = draws.make_family_testbed(
            _make_chain(depth), games.SURVEY_LOGIT_SCALE, max(2, scale.games // 3), scale.seed
        )
        noise: dict[str, list[float]] = {}
        for form, estimator in _list_forms(depth).items():
            share = count_calls(draws.read_estimator(estimator, depth)[1]) / 64
            samples = scale.samples // 4 if form == "tree" else scale.samples
            found = draws.draw_figures(testbed, estimator, samples, scale.seed)
            noise[form] = [figures.noise_G.sum() / figures.signal_G.sum() * share for figures in found]
            for turn, figures in enumerate(found):
                interval = Interval(*(bound * share for bound in compute_noise(figures, LEVEL)))
                row = {"quantity": "noise", "form": form, "depth": depth, "turn": turn}
                rows.append(row | make_columns("value", interval))
        ratio = {"first": noise["replay"][0] / noise["tree"][0], "last": noise["replay"][-1] / noise["tree"][-1]}
        ratio["sum"] = sum(noise["replay"]) / sum(noise["tree"])
        rows += [{"quantity": f"replay over tree, {name}", "depth": depth, "value": x} for name, x in ratio.items()]
    most = max(row["value"] for row in rows if row["quantity"] == "replay over tree, sum")
    rows.append({"quantity": "replay over tree, most", "value": most})
    for depth in (2, 4, 6):
        forms = _list_forms(depth).values()
        calls = [count_calls(draws.read_estimator(estimator, depth)[1]) for estimator in forms]
        updates = max(1, scale.updates // 3)  # deep runs cost more
        means = [
            average_curve(
                train_arms(_make_chain(depth), (estimator,), scale.seeds, updates, scale.seed)[0], cost, min(calls)
            )
            for estimator, cost in zip(forms, calls, strict=True)
        ]
        rows.append({"quantity": "difference", "depth": depth, **_pair(*means)})
    return rows


def _make_chain(depth: int) -> games.Family:
    sees = games.see_all(depth)
    return games.make_team(messages=(3,) * depth, sees=sees, effect=1.0, coupling=1.0, spread=0.0, noise="bernoulli")


def _list_forms(depth: int) -> dict[str, str]:
    tree, count = DEPTHS[depth]
    return {"tree": f"c3 {tree}", "replay": f"c3_replay {'+'.join([count] * 4)}"}


MATES = (0, 1, 2, 4)


def measure_mates(scale: Scale) -> Rows:
    """Claim 13: noise/signal of magrpo and c3 as team-mates join, relative to none, and what it does to learning."""
    rows: Rows = []
    samples = max(2, scale.samples // 2)
    for position in ("first", "last"):
        base: dict[str, float] = {}
        for mates in MATES:
            family = _make_team(mates, position)
            testbed = draws.make_family_testbed(family, 0.5, scale.games, scale.seed)
            for arm, estimator in _list_arms(mates, position).items():
                found = draws.draw_figures(testbed, estimator, samples, scale.seed)
                trained = [found[turn] for turn, is_on in enumerate(family.shape.trained) if is_on]
                # Noise over signal of the trained roles' gradients laid end to end.
                noise_G, signal_G = sum(each.noise_G for each in trained), sum(each.signal_G for each in trained)
                noise = divide_sums(np.asarray(noise_G), np.asarray(signal_G))
                growth = noise.estimate / base.setdefault(arm, noise.estimate)
                row = {"quantity": "noise", "arm": arm, "position": position, "mates": mates}
                rows.append(row | make_columns("value", noise) | {"growth": growth})
    lead = {}
    for mates in (0, MATES[-1]):
        family, run = _make_team(mates, "first"), (scale.seeds, scale.updates, scale.seed)
        arms = _list_arms(mates, "first").values()
        magrpo, c3 = (average_curve(train_arms(family, (arm,), *run)[0], 1.0, 1.0) for arm in arms)
        lead[mates] = c3 - magrpo
        rows.append({"quantity": "lead", "mates": mates, **_pair(c3, magrpo)})
    return [*rows, {"quantity": "lead grows", "mates": MATES[-1], **_pair(lead[MATES[-1]], lead[0])}]


def _make_team(mates: int, position: str) -> games.Family:
    family = games.make_bandit(turns=2, messages=4, effect=1.0, interaction=0.5, sigma=0.5)
    return games.add_mates(family, mates, effect=1.0, position="first" if position == "first" else "last")


def _list_arms(mates: int, position: str) -> dict[str, str]:
    ones = ["1"] * mates
    tree = "x".join([*ones, "4", "2"] if position == "first" else ["4", "2", *ones])
    return {"magrpo 8": "magrpo 8", "c3 4x2": f"c3 {tree}"}
