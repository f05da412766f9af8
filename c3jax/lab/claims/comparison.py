"""Claims 5, 6, 7 and 10: estimators side by side under one policy, and what their sampling costs.

Dimension key: G problem    S sample    C context of a turn    N message    K turn    M message of a turn
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from c3jax.analysis.fidelity import compute_spearman
from c3jax.analysis.figures import Axis, plot_points, plot_scatter
from c3jax.analysis.statistics import Interval, compute_jackknife_interval, compute_student_interval
from c3jax.analysis.tables import Row, format_cell, make_columns
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import (
    Plan,
    count_calls,
    count_generated,
    make_arms,
    make_auxiliary,
    make_flat,
    make_replay,
    make_tree,
)
from c3jax.lab import games, measure, play, policies
from c3jax.lab.analyse import Figures, compute_noise
from c3jax.lab.claims.claim import (
    ALPHA,
    LEVEL,
    Check,
    Finding,
    Scale,
    compute_p,
    conclude,
    describe,
    find_row,
    find_rows,
    holds_value,
    is_significant,
)
from c3jax.lab.claims.estimators import ROLES
from c3jax.lab.claims.stage import (
    Stage,
    compile_quickly,
    draw_estimator,
    figure_turns,
    list_bias,
    make_survey_stage,
    sum_estimator,
)

# Noise/signal at 8 calls and mean squared error of the earlier survey of 40 games, first and second role.
SURVEY = {
    "rloo 8": ((4.3, 7.1), (0.235, 0.201)),
    "c3 2x4": ((11.6, 9.0), (0.133, 0.203)),
    "c3 4x2": ((6.0, 12.0), (0.145, 0.338)),
}
ARMS = {
    "rloo 8": ("rloo", make_flat(8, 2)),
    "c3 2x4": ("c3", make_tree((2, 4))),
    "c3 4x2": ("c3", make_tree((4, 2))),
    "exact V 8": ("mappo", make_flat(8, 2)),
}


def measure_fidelity(scale: Scale) -> list[dict[str, Any]]:
    """Claim 5: noise/signal at equal calls and messages, error and fidelity of four estimators, for both roles."""
    stage = make_survey_stage(scale.games, scale.seed)
    rows = []
    for label, (method, plan) in ARMS.items():
        sums = sum_estimator(stage, method, plan, scale.samples, scale.seed)
        drawn = draw_estimator(stage, method, plan, scale.samples, scale.seed)
        for turn, figures in enumerate(figure_turns(stage, sums, scale.samples)):
            correlation_G = _correlate(stage, turn, drawn)
            found = {
                "noise_signal": compute_noise(figures, LEVEL),
                "error": compute_student_interval(figures.error_G, LEVEL),
                "fidelity": compute_student_interval(correlation_G, LEVEL),
            }
            for place, (quantity, interval) in enumerate(found.items()):
                survey = SURVEY[label][place][turn] if label in SURVEY and quantity != "fidelity" else math.nan
                row = {"estimator": label, "role": ROLES[turn], "quantity": quantity, "survey": survey}
                p = _compare_survey(interval, survey, scale.games)
                messages = sum(count_generated(plan)) / 16 if quantity == "noise_signal" else math.nan
                at_messages = interval.estimate * messages
                rows.append({**row, **make_columns("value", interval), "at_16_messages": at_messages, "p": p})
    return rows


def _compare_survey(interval: Interval, survey: float, count: int) -> float:
    """p-value that both are means over as many games of one family; the survey's error is taken to be ours."""
    if math.isnan(survey):
        return math.nan
    middle, half = interval.estimate, math.sqrt(2) * (interval.high - interval.low) / 2
    return compute_p(Interval(middle, middle - half, middle + half), count, LEVEL, survey)


def _correlate(stage: Stage, turn: int, draws: measure.Draws) -> np.ndarray:
    """Mean rank correlation with A* within the contexts of each draw, [G]; contexts that have none are left out."""
    context_GSN, message_GSN = draws.context[turn], draws.message[turn]
    exact_GSN = np.asarray(stage.target.advantage[turn])[
        np.arange(stage.count)[:, None, None], context_GSN, message_GSN
    ]
    contexts = policies.count_contexts(stage.shape, turn)
    parts = zip(context_GSN, draws.advantage[turn], exact_GSN, strict=True)
    return np.array([compile_quickly(_correlate_game, 1)(contexts, *part) for part in parts])


def _correlate_game(contexts: int, context_SN: jax.Array, advantage_SN: jax.Array, exact_SN: jax.Array) -> jax.Array:
    def correlate(context: jax.Array) -> jax.Array:
        return compute_spearman(advantage_SN, exact_SN, context_SN == context)

    return jnp.nanmean(jax.vmap(correlate)(jnp.arange(contexts)))


def judge_fidelity(rows: Sequence[Row]) -> Finding:
    """Claim 5: the survey's numbers within sampling error, fidelity in the order predicted."""
    compared = [row for row in rows if np.isfinite(row["p_holm"])]
    # Not Holm's, which over many claims would forgive much: here a test speaks against the prediction.
    off = [row for row in compared if row["p"] <= ALPHA / len(compared)]
    rank = {(row["estimator"], row["role"]): row["value"] for row in find_rows(rows, quantity="fidelity")}
    names = ("c3 2x4", "c3 4x2", "rloo 8", "exact V 8")
    first = [rank[name, "first"] for name in names]
    checks = [
        Check("the survey's noise/signal", not [row for row in off if row["quantity"] == "noise_signal"]),
        Check("the survey's errors", not [row for row in off if row["quantity"] == "error"], False),
        Check("the order of fidelity in the first role", first[0] > first[1] > first[2], False),
        Check(
            "the exact critic's ranks",
            all(abs(rank["exact V 8", role] - rank["rloo 8", role]) < 1e-4 for role in ROLES),
            False,
        ),
    ]
    noise = find_rows(rows, quantity="noise_signal")
    numbers = ", ".join(
        f"{name} " + "/".join(format_cell(row["value"], 2) for row in find_rows(noise, estimator=name)) for name in ARMS
    )
    fidelity = ", ".join(
        f"{name} {format_cell(rank[name, 'first'], 2)}/{format_cell(rank[name, 'second'], 2)}" for name in names
    )
    return conclude(
        checks,
        f"noise/signal {numbers}; {len(compared) - len(off)} of {len(compared)} as surveyed",
        f"Noise/signal at 8 calls, first/second role: {numbers}. Fidelity to A* within a context: {fidelity}.",
    )


def plot_fidelity(rows: Sequence[Row], title: str) -> Figure:
    """Claim 5."""
    names = {
        "noise_signal": "gradient noise/signal at 8 calls",
        "error": "mean squared error, squared units of return",
        "fidelity": "rank correlation within a context",
    }
    shown = [{**row, "panel": names[row["quantity"]]} for row in rows]
    value = Axis("value", "with its interval over games", has_interval=True)
    return plot_points(shown, category="estimator", value=value, group="role", title=title, panel="panel")


# --------------------------------------------------------------------------------------------------------------------

RANKED = {
    **ARMS,
    "no_loo 2x4": ("no_loo", make_tree((2, 4))),
    "no_replay 2x4": ("no_replay", make_tree((2, 4))),
    "tree_rl 2x4": ("tree_rl", make_tree((2, 4))),
    "magrpo 8": ("magrpo", make_flat(8, 2)),
    "reinforce 8": ("reinforce", make_flat(8, 2)),
}


def measure_rankings(scale: Scale) -> list[dict[str, Any]]:
    """Claim 6: variance of credit and noise/signal of the gradient, as ratios to rloo's, for nine estimators."""
    stage = make_survey_stage(scale.games, scale.seed)
    figures = {}
    for label, (method, plan) in RANKED.items():
        sums = sum_estimator(stage, method, plan, scale.samples, scale.seed)
        figures[label] = figure_turns(stage, sums, scale.samples)
    rows = []
    for label, of_turns in figures.items():
        for turn, role in enumerate(ROLES):
            mine, base = of_turns[turn], figures["rloo 8"][turn]
            variance = _compare(mine, base, _sum_variance, scale.games)
            noise = _compare(mine, base, _divide_noise, scale.games)
            ratios = {**make_columns("variance_ratio", variance), **make_columns("noise_ratio", noise)}
            # Both departures from 1 have to be shown: the larger of their p-values tests the pair.
            p = max(compute_p(interval, scale.games, LEVEL, 1.0) for interval in (variance, noise))
            is_test = label == "c3 2x4" and role == "first"
            rows.append({"estimator": label, "role": role, **ratios, "p": p if is_test else math.nan})
    return rows


def _sum_variance(figures: Figures, kept: np.ndarray) -> float:
    return float(figures.variance_G[kept].sum())


def _divide_noise(figures: Figures, kept: np.ndarray) -> float:
    return float(figures.noise_G[kept].sum() / figures.signal_G[kept].sum())


def _compare(mine: Figures, base: Figures, figure: Callable[[Figures, np.ndarray], float], count: int) -> Interval:
    return compute_jackknife_interval(lambda kept: figure(mine, kept) / figure(base, kept), count, LEVEL)


def judge_rankings(rows: Sequence[Row]) -> Finding:
    """Claim 6: in the first role c3 2x4 varies less than rloo and its gradient is noisier."""
    row = find_row(rows, estimator="c3 2x4", role="first")
    checks = [
        Check("the variance of credit", row["variance_ratio_high"] < 1 and is_significant(row)),
        Check("the noise of the gradient", row["noise_ratio_low"] > 1 and is_significant(row)),
    ]
    variance, noise = describe(row, "variance_ratio"), describe(row, "noise_ratio")
    return conclude(
        checks,
        f"variance ratio {variance}, noise/signal ratio {noise}",
        f"In the first role c3 2x4 has {variance} times the variance of rloo 8 and {noise} times its noise/signal.",
    )


def plot_rankings(rows: Sequence[Row], title: str) -> Figure:
    """Claim 6."""
    noise = Axis("noise_ratio", "gradient noise/signal over rloo's", "log", has_interval=True)
    variance = Axis("variance_ratio", "variance of credit over rloo's", "log")
    return plot_scatter(rows, x=variance, y=noise, group="estimator", panel="role", title=title)


# --------------------------------------------------------------------------------------------------------------------


def measure_arms(scale: Scale) -> list[dict[str, Any]]:
    """Claim 7: the four arms on the same draws, and the rows of flat leave-one-out against rloo's."""
    stage = make_survey_stage(scale.games, scale.seed)
    tree, flat = make_tree((2, 4)), make_flat(8, 2)
    mine, theirs = (make_credit_matrix(method, flat) for method in ("no_replay", "rloo"))
    pairs = zip(mine.value + mine.baseline, theirs.value + theirs.baseline, strict=True)
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    rows: list[dict[str, Any]] = [{"arm": "flat, leave-one-out less rloo", "role": "both", "difference": difference}]
    arms = {
        "tree": ({"leave-one-out": "c3", "mean": "no_loo"}, tree, (1 / 4, 9 / 16)),
        "flat": ({"leave-one-out": "rloo", "mean": "magrpo"}, flat, (49 / 64, 49 / 64)),
    }
    for name, (kinds, plan, predicted) in arms.items():
        sums = {kind: sum_estimator(stage, method, plan, scale.samples, scale.seed) for kind, method in kinds.items()}
        found = [figure_turns(stage, each, scale.samples) for each in sums.values()]
        for turn, role in enumerate(ROLES):
            one, other = found[0][turn], found[1][turn]
            everything = np.arange(scale.games)
            ratio = _sum_variance(other, everything) / _sum_variance(one, everything)
            noise = _divide_noise(other, everything) / _divide_noise(one, everything)
            row = {"arm": f"{name}, mean over leave-one-out", "role": role, "difference": math.nan}
            rows.append({**row, "predicted": predicted[turn], "variance_ratio": ratio, "noise_ratio": noise})
            for kind, each in sums.items():
                rows.append({"arm": f"{name}, {kind}", "role": role, **list_bias(stage, each, turn)})
    return rows


def judge_arms(rows: Sequence[Row]) -> Finding:
    """Claim 7: equal rows, ratios as predicted, and only the tree's leave-one-out free of bias."""
    difference = find_row(rows, arm="flat, leave-one-out less rloo")["difference"]
    ratios = [row for row in rows if row["arm"].endswith("over leave-one-out")]
    variance = max(abs(row["variance_ratio"] / row["predicted"] - 1) for row in ratios)
    noise = max(abs(row["noise_ratio"] - 1) for row in ratios)
    sound, mean = find_rows(rows, arm="tree, leave-one-out"), find_rows(rows, arm="tree, mean")
    checks = [
        Check("flat leave-one-out as rloo", difference == 0.0),
        Check("the variance", variance <= 1e-3),
        Check("noise/signal", noise <= 1e-3),
        Check("leave-one-out without bias", all(holds_value(row, "squared_bias", 0.0) for row in sound), False),
        Check("a biased mean", all(row["squared_bias_low"] > 0 and is_significant(row) for row in mean), False),
    ]
    shares = ", ".join(format_cell(row["variance_ratio"], 4) for row in ratios)
    biases = ", ".join(describe(row, "squared_bias") for row in mean)
    return conclude(
        checks,
        f"difference {format_cell(difference)}; variance ratios {shares}; noise/signal ratio 1 to"
        f" {format_cell(noise, 1)}",
        f"Variance of the mean arm over leave-one-out: {shares}; its squared bias in the tree: {biases}.",
    )


# --------------------------------------------------------------------------------------------------------------------


def measure_tokens(scale: Scale) -> list[dict[str, Any]]:
    """Claim 10: messages that the sampler draws, counted as it asks the policy, and tokens of what was drawn."""
    stage = make_survey_stage(scale.games, scale.seed)
    plans = {
        "tree 2x4": make_tree((2, 4)),
        "tree 4x2": make_tree((4, 2)),
        "flat 8": make_flat(8, 2),
        "replay 2+2": make_replay((2, 2), 2),
        "replay 1+2+4": make_replay((1, 2, 4), 2),
        "best branch 1+1+1+1": make_replay((1,) * 4, 2, continues_best=True),
        "auxiliary 2+2": make_auxiliary(2, 2, 2),
        "removal 3": make_arms("removal", 3, 2),
        "masked 3": make_arms("masked", 3, 2),
        "coalition 2": make_arms("coalition", 2, 2),
    }
    rows: list[dict[str, Any]] = []
    for label, plan in plans.items():
        drawn = _count_drawn(stage, plan)
        counts = {"drawn": sum(drawn), "closed_form": sum(count_generated(plan))}
        rows.append({"quantity": "messages", "what": label, "calls": count_calls(plan), **counts})
    messages = {
        name: draw_estimator(stage, method, plan, scale.samples, scale.seed).message
        for name, (method, plan) in (("c3", ARMS["c3 2x4"]), ("rloo", ARMS["rloo 8"]))
    }
    for rho in (0.25, 0.5, 1.0, 2.0, 4.0):
        tokens = {name: _count_tokens(stage, said, rho, scale.seed) for name, said in messages.items()}
        mine_G, theirs_G = tokens["c3"], tokens["rloo"]
        interval = _divide_sums(mine_G, theirs_G)
        predicted = (2 * rho + 8) / (8 * rho + 8)
        rows.append(
            {
                "quantity": "tokens",
                "what": f"first messages {rho:g} times as long",
                "length_ratio": rho,
                "closed_form": predicted,
                **make_columns("token_ratio", interval),
                "p": compute_p(interval, scale.games, LEVEL, predicted),
            }
        )
    return rows


def _divide_sums(mine_G: np.ndarray, theirs_G: np.ndarray) -> Interval:
    return compute_jackknife_interval(lambda kept: mine_G[kept].sum() / theirs_G[kept].sum(), len(mine_G), LEVEL)


def _count_drawn(stage: Stage, plan: Plan) -> list[int]:
    """Rows a turn that the sampler asks the policy for, read off while it is traced."""
    drawn = [0] * len(stage.shape.messages)

    def logits(params: Any, game: games.Game, turn: int, prefix_NK: jax.Array) -> jax.Array:
        drawn[turn] += prefix_NK.shape[0]
        return stage.policy.logits(params, game, turn, prefix_NK)

    counting = policies.Policy(stage.policy.init, logits)
    game = jax.tree.map(lambda leaf: leaf[0], stage.games)
    jax.eval_shape(
        lambda key: play.sample_plan(stage.shape, game, counting, stage.params, plan, key), jax.random.key(0)
    )
    return drawn


def _count_tokens(stage: Stage, said: tuple[np.ndarray, ...], rho: float, seed: int) -> np.ndarray:
    """Tokens of all that was said on each problem, [G]; each message has its own length, of mean 1 under the policy."""
    random = np.random.default_rng(seed)
    total_G = np.zeros(stage.count)
    for turn, message_GSN in enumerate(said):
        length_GM = random.uniform(0.5, 1.5, (stage.count, stage.shape.messages[turn]))
        chance_GM = np.einsum("gc,gcm->gm", np.asarray(stage.oracle.visit[turn]), np.asarray(stage.target.policy[turn]))
        length_GM /= (chance_GM * length_GM).sum(axis=1, keepdims=True)
        length_GSN = np.take_along_axis(length_GM, message_GSN.reshape(stage.count, -1), axis=1)
        total_G += (rho if turn == 0 else 1.0) * length_GSN.sum(axis=1)
    return total_G


def judge_tokens(rows: Sequence[Row]) -> Finding:
    """Claim 10: counts equal the closed forms, ratios of tokens hold theirs."""
    messages, tokens = find_rows(rows, quantity="messages"), find_rows(rows, quantity="tokens")
    checks = [
        Check("messages", all(row["drawn"] == row["closed_form"] for row in messages)),
        Check("tokens", all(holds_value(row, "token_ratio", row["closed_form"]) for row in tokens), False),
    ]
    ratios = ", ".join(describe(row, "token_ratio") for row in tokens)
    equal = sum(row["drawn"] == row["closed_form"] for row in messages)
    return conclude(
        checks,
        f"messages equal in {equal} of {len(messages)} plans; token ratios {ratios}",
        f"Tokens of c3 2x4 over rloo 8: {ratios} where first messages are 1/4, 1/2, 1, 2 and 4 times as long as"
        f" second ones.",
    )


def plot_tokens(rows: Sequence[Row], title: str) -> Figure:
    """Claim 10."""
    shown = [{**row, "who": "c3 2x4 over rloo 8"} for row in find_rows(rows, quantity="tokens")]
    x, y = Axis("closed_form", "tokens by the closed form, ratio"), Axis("token_ratio", "drawn", has_interval=True)
    return plot_scatter(shown, x=x, y=y, group="who", title=title)
