"""From logits to tokens: distributions worked by hand, inverted on grids of uniform numbers, and computed again.

Dimension key beside types.py: G point of a grid of uniform numbers
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config.run import Sampling
from c3jax.rollout.sampling import GREEDY, compute_token_logp, sample_tokens

TRUNCATED = Sampling(temperature=0.7, top_k=20, top_p=0.8)
SAMPLINGS = {
    "plain": Sampling(),
    "cold": Sampling(temperature=0.5),
    "truncated": TRUNCATED,
    "top_k": Sampling(temperature=1.3, top_k=7),
    "more than all": Sampling(top_k=50, top_p=0.9),
    "greedy": GREEDY,
}
LARGEST = np.nextafter(np.float32(1), np.float32(0))
GRID = 4000
sample_jitted = jax.jit(sample_tokens, static_argnums=2)
logp_jitted = jax.jit(compute_token_logp, static_argnums=(4, 5))


def compute_exact(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The truncated distribution in float64, by sorting."""
    scaled_V = np.float64(logits_V) / sampling.temperature
    order = np.lexsort((np.arange(len(scaled_V)), -scaled_V))[: sampling.top_k or None]
    mass = np.exp(scaled_V[order] - scaled_V.max())
    mass /= mass.sum()
    kept = order[: max(1, int(np.sum(np.cumsum(mass) - mass < sampling.top_p)))]
    out_V = np.zeros(len(scaled_V))
    out_V[kept] = np.exp(scaled_V[kept] - scaled_V.max())
    return out_V / out_V.sum()


def draw_grid(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, ...]:
    uniform_G = (jnp.arange(GRID) + 0.5) / GRID
    return jax.device_get(sample_jitted(jnp.tile(jnp.float32(logits_V), (GRID, 1)), uniform_G, sampling))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.4, 0.3, 0.2, 0.1]),
        # Squares of the four: .16 .09 .04 .01 of .30.
        (Sampling(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(top_k=3), [4 / 9, 3 / 9, 2 / 9, 0]),
        # Of the best three the first two have 7/9 = .778, of all four only .7: top-p looks at what top-k left.
        (Sampling(top_k=3, top_p=0.75), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_k=3, top_p=0.78), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(top_k=4, top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        # The likeliest token is in however small p is.
        (Sampling(top_k=3, top_p=1e-6), [1, 0, 0, 0]),
        # Temperature comes first: of .16 .09 .04 the first alone has 16/29 > .55.
        (Sampling(temperature=0.5, top_k=3, top_p=0.55), [1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.55), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_k=9, top_p=0.95), [0.4, 0.3, 0.2, 0.1]),
        (GREEDY, [1, 0, 0, 0]),
    ],
)
def test_distributions_by_hand(sampling, expected):
    """A token owns a stretch of the unit interval as long as its probability: the grid measures it to 1/GRID."""
    order = [2, 0, 3, 1]  # the order of the tokens must not matter
    logits_V, expected = np.log([0.3, 0.1, 0.4, 0.2]), np.array(expected)[[1, 3, 0, 2]]
    np.testing.assert_allclose(compute_exact(logits_V, sampling), expected, atol=1e-12)
    token_G, logp_G, support_GK, _ = draw_grid(logits_V, sampling)
    np.testing.assert_allclose(np.bincount(token_G, minlength=4) / GRID, expected, atol=1.01 / GRID)
    np.testing.assert_allclose(np.exp(logp_G), expected[token_G], atol=1e-6)
    if sampling.top_k:
        kept = [token for token in order if expected[token] > 0]
        assert support_GK.shape == (GRID, min(sampling.top_k, 4))
        assert (support_GK == [*kept, *[-1] * (support_GK.shape[1] - len(kept))]).all()
    else:
        assert support_GK.shape == (GRID, 0)


def test_equal_logits_go_to_the_lowest_ids():
    logits_NV = jnp.array([[0.0, 5.0, 5.0, 5.0, 1.0]])
    assert sample_tokens(logits_NV, jnp.array([0.99]), GREEDY)[0] == 1
    token_N, logp_N, support_NK, _ = sample_tokens(logits_NV, jnp.array([0.75]), Sampling(top_k=2))
    assert token_N == 2 and support_NK.tolist() == [[1, 2]]
    np.testing.assert_allclose(logp_N, -np.log(2), atol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_frequencies_and_log_probabilities_are_the_exact_ones(sampling):
    logits_V = 2 * np.random.default_rng(0).normal(size=30)
    expected = compute_exact(logits_V, sampling)
    token_G, logp_G, _, gradient_G = draw_grid(logits_V, sampling)
    np.testing.assert_allclose(np.bincount(token_G, minlength=30) / GRID, expected, atol=1.01 / GRID)
    np.testing.assert_allclose(logp_G, np.log(expected[token_G]), atol=1e-6)
    # d log pi(a) / d z = onehot(a) - pi, truncated and at its temperature.
    np.testing.assert_allclose(gradient_G, np.square(np.eye(30) - expected).sum(axis=1)[token_G], atol=2e-6)


def test_a_vocabulary_that_is_summed_in_blocks_is_drawn_as_a_small_one():
    """Three blocks, the last one not full, the second almost without mass."""
    logits_V = 2 * np.random.default_rng(0).normal(size=1300)
    logits_V[512:1023] -= 40
    expected = compute_exact(logits_V, Sampling())
    token_G, *_ = draw_grid(logits_V, Sampling())
    assert (np.diff(token_G) >= 0).all()
    np.testing.assert_allclose(np.bincount(token_G, minlength=1300) / GRID, expected, atol=1.01 / GRID)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=2)], ids=["plain", "top_k"])
def test_the_gradient_of_a_token_that_is_nearly_sure_is_exact_too(sampling):
    """Two tokens, the other of chance e = 1e-6: 2 e^2, and 2 (1 - e)^2 for the other one."""
    logits_NV = jnp.log(jnp.array([[1.0, 1e-6]]))
    for uniform, token, expected in ((0.5, 0, 2e-12), (LARGEST, 1, 2 * (1 - 1e-6) ** 2)):
        token_N, _, _, gradient_N = sample_jitted(logits_NV, jnp.array([uniform], jnp.float32), sampling)
        assert token_N == token
        np.testing.assert_allclose(gradient_N, [expected], rtol=0.1)  # a float's last digit is 6e-8 of 1


@pytest.mark.parametrize("uniform", [0.0, LARGEST])
@pytest.mark.parametrize("sampling", [Sampling(), TRUNCATED], ids=["plain", "truncated"])
def test_the_ends_of_the_unit_interval_draw_the_ends_of_the_support(uniform, sampling):
    """A large vocabulary whose first and last tokens have no mass: 0 and what is nearest to 1 must not reach them."""
    logits_NV = 2 * np.random.default_rng(1).normal(size=(2000, 1000)).astype(np.float32)
    logits_NV[:, :5] = logits_NV[:, -300:] = -1e30
    token_N, logp_N, support_NK, _ = sample_jitted(logits_NV, jnp.full(2000, uniform, jnp.float32), sampling)
    if sampling.top_k:
        kept_N = (support_NK >= 0).sum(axis=1)
        expected_N = support_NK[:, 0] if uniform == 0 else support_NK[np.arange(2000), kept_N - 1]
        np.testing.assert_array_equal(token_N, expected_N)
    elif uniform == 0:
        np.testing.assert_array_equal(token_N, 5)
    else:  # rounding may leave the last few, of mass 1e-6 or less, out of reach
        assert int(token_N.min()) > 600 and int(token_N.max()) < 700
    assert float(logp_N.min()) > -25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_the_learner_computes_what_was_drawn(sampling, dtype):
    random = np.random.default_rng(2)
    hidden_BD, head_VD = random.normal(size=(64, 16)).astype(np.float32), random.normal(size=(30, 16)) / 2
    head_VD = jnp.float32(head_VD)
    logits_BV = jnp.einsum(
        "bd,vd->bv", hidden_BD.astype(dtype), head_VD.astype(dtype), preferred_element_type=jnp.float32
    )
    token_B, drawn_B, support_BK, _ = sample_jitted(logits_BV, random.random(64).astype(np.float32), sampling)
    for compute in (compute_token_logp, logp_jitted):
        again_B = compute(hidden_BD, token_B, support_BK, head_VD, sampling, dtype)
        assert again_B.dtype == jnp.float32
        np.testing.assert_allclose(again_B, drawn_B, atol=2e-6)
    exact_B = [np.log(compute_exact(row, sampling)[token]) for row, token in zip(logits_BV, token_B, strict=True)]
    np.testing.assert_allclose(again_B, exact_B, atol=2e-6)


def test_bfloat16_products_differ_from_float32_ones():
    random = np.random.default_rng(2)
    hidden_BD, head_VD = jnp.float32(random.normal(size=(8, 16))), jnp.float32(random.normal(size=(30, 16)))
    arguments = (hidden_BD, jnp.arange(8), jnp.zeros((8, 0), jnp.int32), head_VD, Sampling())
    gap_B = jnp.abs(logp_jitted(*arguments, "bfloat16") - logp_jitted(*arguments, "float32"))
    assert 1e-4 < float(gap_B.max()) < 0.2  # products of 8-bit factors


def test_gradient_is_finite_and_leaves_excluded_tokens_alone():
    """d logp(a) / d z_v = (1[v = a] - pi(v)) / t in the support and 0 outside it, through hidden = identity."""
    support_BK = jnp.array([[4, 0, 2, -1], [3, -1, -1, -1], [-1, -1, -1, -1]])  # the last: a slot never drawn
    token_B, sampling = jnp.array([0, 3, 0]), Sampling(temperature=0.5, top_k=4, top_p=0.9)
    logits_BV = np.array([[0.3, 1e4, 0.1, -0.2, 0.5], [9.0, 1e4, -1e4, 0.1, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0]])

    def total(head_VD):
        return compute_token_logp(jnp.eye(3), token_B, support_BK, head_VD, sampling, "float32").sum()

    gradient_BV = np.asarray(jax.grad(total)(jnp.float32(logits_BV.T))).T
    mass = np.exp(2 * np.array([0.5, 0.3, 0.1]))
    mass /= mass.sum()
    expected_BV = np.zeros((3, 5))
    expected_BV[0, [4, 0, 2]] = 2 * (np.array([0, 1, 0]) - mass)
    np.testing.assert_allclose(gradient_BV, expected_BV, atol=1e-6)
    hidden = jax.grad(lambda h: compute_token_logp(h, token_B, support_BK, logits_BV.T, sampling, "float32").sum())
    assert np.isfinite(hidden(jnp.eye(3))).all()


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_capped_logits_are_capped_for_the_learner_too(sampling):
    random = np.random.default_rng(4)
    hidden_BD, head_VD = (random.normal(size=(rows, 16)).astype(np.float32) for rows in (64, 30))
    logits_BV = np.float32(3.0 * np.tanh(hidden_BD @ head_VD.T / 3.0))
    token_B, drawn_B, support_BK, _ = sample_jitted(logits_BV, random.random(64).astype(np.float32), sampling)
    again_B = compute_token_logp(hidden_BD, token_B, support_BK, head_VD, sampling, "float32", softcap=3.0)
    np.testing.assert_allclose(again_B, drawn_B, atol=2e-6)
