"""Every policy loss over a vocabulary of two words: its gradient worked out on paper, and by enumeration.

By hand: z_v = hidden . head_v / t, so d logp / d z_v = 1[v = token] - p_v, and of a message's ratio, the geometric mean
of its tokens', d log s / d logp_t = 1 / T. By enumeration: on policy, the expected gradient of every loss is that of
the expected return, which sixteen messages of four words have exactly.

Dimension key: N message    T slot    B token, message after message    V word    D width
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config.run import KL, PolicyLoss, Sampling
from c3jax.learner.loss_table import LOSSES, find_loss
from c3jax.learner.losses import compute_total, compute_weights
from c3jax.learner.objective import TokenTerms, TurnTokens, compute_turns_loss, make_objective
from c3jax.learner.token_loss import DrawnTokens
from c3jax.schema import ConfigError

SOFT_CLIP = f"{Path(__file__).parents[2] / 'examples' / 'own_loss.py'}:SOFT_CLIP"
N, T, V, D = 6, 4, 2, 3
TEMPERATURE, COEFFICIENT = 0.8, 0.3
SAMPLING, KL_SECTION = Sampling(temperature=TEMPERATURE), KL(coefficient=COEFFICIENT, estimator="k3")
CLIP_LOW, CLIP_HIGH, DUAL_CLIP, LENGTH = 0.1, 0.3, 1.4, 5
# Name of the loss, and its numbers where they are not the row's own.
CASES = {
    "ppo": {"kind": "ppo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH},
    "ppo by message": {"kind": "ppo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "aggregation": "message"},
    "ppo by constant": {
        **{"kind": "ppo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "aggregation": "constant"},
        "length": LENGTH,
    },
    "ppo with dual clip": {"kind": "ppo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "dual_clip": DUAL_CLIP},
    "gspo": {"kind": "gspo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH},
    "gspo by token": {"kind": "gspo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "aggregation": "token"},
    "cispo": {"kind": "cispo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH},
    "reinforce": {"kind": "reinforce"},
    "soft clip": {"kind": SOFT_CLIP, "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH},
}


def make_case():
    random = np.random.default_rng(0)
    hidden_BD, head_VD = random.normal(size=(N * T, D)), random.normal(size=(V, D))
    length_N = np.array([4, 1, 3, 4, 2, 4])
    is_drawn_NT = np.arange(T) < length_N[:, None]
    token_NT = random.integers(0, V, (N, T))
    logp_BV = hidden_BD @ head_VD.T / TEMPERATURE
    logp_BV -= np.log(np.exp(logp_BV).sum(axis=1, keepdims=True))
    logp_NT = logp_BV[np.arange(N * T), token_NT.ravel()].reshape(N, T)
    # Messages have drifted too, not only tokens, so that ratios of both are clipped. What was not drawn is not read.
    moved_NT = random.normal(scale=0.25, size=(N, T)) + np.array([[-0.4], [0.3], [0.1], [-0.3], [0.2], [0.4]])
    behaviour_NT = np.where(is_drawn_NT, logp_NT + moved_NT, np.nan)
    reference_NT = np.where(is_drawn_NT, logp_NT + random.normal(scale=0.5, size=(N, T)), np.nan)
    advantage_N = np.array([1.0, -0.5, 2.0, -1.5, 0.7, -1.0])
    return hidden_BD, head_VD, token_NT, is_drawn_NT, behaviour_NT, reference_NT, advantage_N, np.exp(logp_BV), logp_NT


CASE = make_case()


def soften(excess, side):
    """The soft clip's value and slope by the ratio."""
    return 1 + side * np.tanh(excess / side), 1 / np.cosh(excess / side) ** 2


def work_by_hand(kind, aggregation, dual_clip=None):
    """Loss, share of clipped tokens, and the gradients of hidden states and head, float64."""
    hidden_BD, head_VD, token_NT, is_drawn_NT, behaviour_NT, reference_NT, advantage_N, mass_BV, logp_NT = CASE
    tokens, total_loss, clipped = is_drawn_NT.sum(), 0.0, 0.0
    slope_NT = np.zeros((N, T))
    for n in range(N):
        drawn = np.flatnonzero(is_drawn_NT[n])
        length, credit = len(drawn), advantage_N[n]
        weight = {"token": 1 / tokens, "message": 1 / (N * length), "constant": 1 / (N * LENGTH)}[aggregation]
        share = 1 / tokens if aggregation == "constant" else weight
        mean = np.mean(logp_NT[n, drawn] - behaviour_NT[n, drawn])
        for t in drawn:
            ratio = np.exp(mean if kind == "gspo" else logp_NT[n, t] - behaviour_NT[n, t])
            by_ratio = -ratio * credit  # d loss / d log ratio where nothing holds it back
            is_clipped = (credit > 0 and ratio > 1 + CLIP_HIGH) or (credit < 0 and ratio < 1 - CLIP_LOW)
            loss, slope = (-np.clip(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH) * credit if is_clipped else by_ratio), by_ratio
            if kind == "cispo":  # -w A logp, w the clipped ratio held fixed
                ratio_clipped = np.clip(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
                loss, slope = -ratio_clipped * credit * logp_NT[n, t], -ratio_clipped * credit
                is_clipped = ratio_clipped != ratio
            elif dual_clip is not None and credit < 0 and ratio > dual_clip:
                loss, slope, is_clipped = -dual_clip * credit, 0.0, True
            elif kind == "reinforce":
                loss, slope, is_clipped = -credit * logp_NT[n, t], -credit, False
            elif kind == SOFT_CLIP:
                side = CLIP_HIGH if ratio > 1 else CLIP_LOW
                value, by = soften(ratio - 1, side)
                loss, slope, is_clipped = -credit * value, -credit * by * ratio, abs(ratio - 1) > side
            elif is_clipped:
                slope = 0.0
            gap = logp_NT[n, t] - reference_NT[n, t]
            total_loss += weight * (loss + COEFFICIENT * (np.exp(-gap) - 1 + gap))
            clipped += share * is_clipped
            # A message's loss is counted once for each of its tokens, and each token moves its log ratio by 1 / length.
            slope_NT[n, t] = weight * (slope + COEFFICIENT * (1 - np.exp(-gap)))
    d_logits_BV = (np.eye(V)[token_NT.ravel()] - mass_BV) * slope_NT.reshape(-1, 1) / TEMPERATURE
    return total_loss, clipped, d_logits_BV @ head_VD, d_logits_BV.T @ hidden_BD


def compute(section, rows=slice(None), hidden_BD=CASE[0], head_VD=CASE[1], entropy=0.0):
    """Loss and figures of some of the messages, as shares of all."""
    _, _, token_NT, is_drawn_NT, behaviour_NT, reference_NT, advantage_N, _, _ = CASE
    objective = make_objective(section, KL_SECTION, entropy)
    weight_NT = compute_weights(jnp.asarray(is_drawn_NT), objective.aggregation, objective.length or 1)
    total = compute_total(weight_NT, objective.aggregation)
    spread_NT = np.broadcast_to(advantage_N[:, None], (N, T))
    arrays = (behaviour_NT, spread_NT, reference_NT, np.full((N, T), COEFFICIENT), weight_NT / total)
    share_NT = weight_NT / weight_NT.sum()  # figures are means, whatever the loss is divided by
    take = lambda array_NT: jnp.asarray(array_NT[rows], jnp.float32).ravel()  # noqa: E731
    terms = TokenTerms(*map(take, arrays), share=take(share_NT))
    taken_B = np.arange(N * T).reshape(N, T)[rows].ravel()
    drawn = DrawnTokens(
        jnp.asarray(token_NT.ravel()[taken_B]), jnp.zeros((len(taken_B), 0), jnp.int32),
        jnp.asarray(is_drawn_NT.ravel()[taken_B]),
    )  # fmt: skip
    hidden_BD = jnp.asarray(hidden_BD, jnp.float32)[taken_B]
    messages = len(taken_B) // T
    head_VD = jnp.asarray(head_VD, jnp.float32)
    return compute_turns_loss(objective, [TurnTokens(hidden_BD, drawn, terms, messages)], head_VD, SAMPLING, "float32")


def differentiate(section, rows=slice(None), entropy=0.0):
    run = lambda hidden_BD, head_VD: compute(section, rows, hidden_BD, head_VD, entropy)  # noqa: E731
    return jax.value_and_grad(run, (0, 1), has_aux=True)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted"])
@pytest.mark.parametrize("name", CASES)
def test_gradient_and_figures_by_hand(name, wrap):
    section = PolicyLoss(**CASES[name])
    row = find_loss(section.kind)
    expected_loss, clipped, d_hidden_BD, d_head_VD = work_by_hand(
        section.kind, section.aggregation or row.aggregation, section.dual_clip
    )
    hidden_BD, head_VD = (jnp.asarray(array, jnp.float32) for array in CASE[:2])
    (loss, figures), gradients = wrap(differentiate(section))(hidden_BD, head_VD)
    assert np.abs(d_hidden_BD).max() > 0.01 and (clipped > 0.1) == (section.kind != "reinforce")
    np.testing.assert_allclose(loss, expected_loss, atol=1e-6)
    np.testing.assert_allclose(figures["loss"], expected_loss, atol=1e-6)
    np.testing.assert_allclose(figures["clip_share"], clipped, atol=1e-6)
    for got, expected in zip(gradients, (d_hidden_BD, d_head_VD), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_parts_add_up_to_the_whole(name):
    """Messages by themselves, each with its share of all the weight: sums of losses, figures and gradients."""
    section = PolicyLoss(**CASES[name])
    arguments = tuple(jnp.asarray(array, jnp.float32) for array in CASE[:2])
    whole = differentiate(section)(*arguments)
    parts = [differentiate(section, slice(n, n + 2))(*arguments) for n in range(0, N, 2)]
    together = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), together, whole)


@pytest.mark.parametrize("name", ["ppo by constant", "gspo"])
def test_entropy_bonus_by_hand(name):
    """H = -sum p_v log p_v, dH / dz_v = -p_v (log p_v + H) / t; the figure is a mean, the bonus has the loss's weights.

    Beside the loss without it: less c times its weighted sum, in value and gradient, and whole as in parts.
    """
    section, coefficient = PolicyLoss(**CASES[name]), 0.7
    arguments = tuple(jnp.asarray(array, jnp.float32) for array in CASE[:2])
    hidden_BD, head_VD, is_drawn_NT, mass_BV = CASE[0], CASE[1], CASE[3], CASE[7]
    entropy_B = -np.sum(mass_BV * np.log(mass_BV), axis=1)
    mean_NT = is_drawn_NT / is_drawn_NT.sum(axis=1, keepdims=True) / N
    weight_NT = mean_NT if name == "gspo" else is_drawn_NT / (N * LENGTH)
    share_NT = mean_NT if name == "gspo" else is_drawn_NT / is_drawn_NT.sum()
    d_logits_BV = -mass_BV * (np.log(mass_BV) + entropy_B[:, None]) / TEMPERATURE * weight_NT.reshape(-1, 1)
    expected = (np.sum(weight_NT.ravel() * entropy_B), (d_logits_BV @ head_VD, d_logits_BV.T @ hidden_BD))

    (loss, figures), gradients = differentiate(section, entropy=coefficient)(*arguments)
    (plain_loss, plain_figures), plain_gradients = differentiate(section)(*arguments)
    bonus = jax.tree.map(lambda one, other: one - other, (plain_loss, plain_gradients), (loss, gradients))
    assert np.abs(expected[1][0]).max() > 1e-3
    jax.tree.map(lambda got, by: np.testing.assert_allclose(got, coefficient * by, atol=1e-6), bonus, expected)
    for made in (figures, plain_figures):
        np.testing.assert_allclose(made["entropy"], np.sum(share_NT.ravel() * entropy_B), atol=1e-6)
    np.testing.assert_allclose(figures["policy_loss"], plain_figures["policy_loss"], atol=1e-7)
    parts = [differentiate(section, slice(n, n + 2), coefficient)(*arguments) for n in range(0, N, 2)]
    together = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), together, ((loss, figures), gradients))


WORDS = 4  # of a message
RETURN_M = np.random.default_rng(1).normal(size=V**WORDS)  # of each of the 16 messages


def compute_expected_return(hidden_TD, head_VD):
    """Exactly; a word depends on its slot alone."""
    logp_TV = jax.nn.log_softmax(hidden_TD @ head_VD.T / TEMPERATURE)
    messages = np.array(list(itertools.product(range(V), repeat=WORDS)))
    logp_M = logp_TV[np.arange(WORDS), messages].sum(axis=1)
    return jnp.sum(jnp.exp(logp_M) * RETURN_M)


@pytest.mark.parametrize("name", CASES)
def test_on_policy_every_loss_has_the_policy_gradient(name):
    """The sum over all messages, each weighted by its probability: minus d E[return], by a message's length."""
    random = np.random.default_rng(2)
    hidden_TD, head_VD = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((WORDS, D), (V, D)))
    messages = np.array(list(itertools.product(range(V), repeat=WORDS)))
    logp_TV = jax.nn.log_softmax(hidden_TD @ head_VD.T / TEMPERATURE)
    behaviour_MT = logp_TV[np.arange(WORDS), messages]
    chance_M = jnp.exp(behaviour_MT.sum(axis=1))
    count = len(messages)
    drawn = DrawnTokens(
        jnp.asarray(messages.ravel()), jnp.zeros((count * WORDS, 0), jnp.int32), jnp.ones(count * WORDS, bool)
    )

    def spread(x_M):
        return jnp.repeat(jnp.asarray(x_M, jnp.float32), WORDS)

    terms = TokenTerms(behaviour_MT.ravel(), spread(RETURN_M), None, jnp.zeros(count * WORDS), spread(chance_M) / WORDS)
    objective = make_objective(PolicyLoss(**CASES[name]), KL())

    def compute_loss(hidden_TD, head_VD):
        hidden_BD = jnp.tile(hidden_TD, (count, 1))
        return compute_turns_loss(
            objective, [TurnTokens(hidden_BD, drawn, terms, count)], head_VD, SAMPLING, "float32"
        )[0]

    exact = jax.grad(compute_expected_return, (0, 1))(hidden_TD, head_VD)
    assert max(float(jnp.abs(leaf).max()) for leaf in exact) > 0.1
    for run in (jax.grad(compute_loss, (0, 1)), jax.jit(jax.grad(compute_loss, (0, 1)))):
        for got, expected in zip(run(hidden_TD, head_VD), exact, strict=True):
            np.testing.assert_allclose(got, -expected / WORDS, atol=1e-6)


def test_what_a_config_leaves_open_is_the_rows():
    for kind, row in LOSSES.items():
        objective = make_objective(PolicyLoss(kind=kind), KL(estimator="k1"))
        assert (objective.level, objective.aggregation, objective.estimator) == (row.level, row.aggregation, "k1")
        bounds = (np.inf, np.inf) if row.clip_low is None else (row.clip_low, row.clip_high)
        assert (objective.clip_low, objective.clip_high) == bounds
    chosen = make_objective(PolicyLoss(kind="gspo", clip_high=0.5, aggregation="token"), KL())
    assert (chosen.clip_low, chosen.clip_high, chosen.aggregation) == (3e-4, 0.5, "token")


HEAD = "from c3jax.learner.loss_table import Loss\nFIELDS = dict(level='token', clip_low=0.1, clip_high=0.1,"
HEAD += " aggregation='token', source='', doc='')\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("LOSS = 3", "expected a Loss at .*, got int"),
        ("LOSS = Loss(formula='clipped', **FIELDS | {'level': 'word'})", "a Loss with level of token, message"),
        (
            "LOSS = Loss(formula='clipped', **FIELDS | {'aggregation': 'sum'})",
            "a Loss with aggregation of token, message, constant",
        ),
        ("LOSS = Loss(formula='sum', **FIELDS)", "a Loss with formula of clipped, cispo, reinforce or a function"),
        ("LOSS = Loss(formula='clipped', **FIELDS | {'clip_low': None})", "are both positive numbers, or both None"),
        ("LOSS = Loss(formula='clipped', **FIELDS | {'clip_high': -0.1})", "are both positive numbers, or both None"),
        ("LOSS = Loss(formula=lambda *x, **y: 1 / 0, **FIELDS)", r"raised ZeroDivisionError \(division by zero\)"),
        ("LOSS = Loss(formula=lambda logp: logp, **FIELDS)", "raised TypeError"),
        (
            "LOSS = Loss(formula=lambda l, b, a, **c: l, **FIELDS)",
            "for 3 tokens, 3 losses of float32 and 3 of bool, whether",
        ),
        (
            "LOSS = Loss(formula=lambda l, b, a, **c: (l.sum(), l > 0), **FIELDS)",
            "for 3 tokens, 3 losses of float32 and 3 of bool, whether",
        ),
    ],
)
def test_a_loss_that_will_not_do_is_one_sentence(tmp_path, request, body, expected):
    file = tmp_path / f"own_{abs(hash(request.node.name))}.py"
    file.write_text(HEAD + body, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^learner.loss.kind: .*{expected}"):
        make_objective(PolicyLoss(kind=f"{file}:LOSS"), KL())
