"""The loss over chunks of tokens against derivatives worked out on paper, in double precision, and its memory.

With l_b = w_b logp_b^2 the derivative by logp_b is 2 w_b logp_b, that of logp_b by logit v is (1[v = token] - p_v) / t.
That of a loss which reads the entropy too is what JAX makes of the plain form, in double precision.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config.run import Sampling
from c3jax.learner.token_loss import DrawnTokens, compute_token_loss

B, V, D, K = 23, 50, 8, 4
SAMPLINGS = {"plain": Sampling(temperature=0.7), "truncated": Sampling(temperature=0.7, top_k=K)}
# Numbers a chunk: everything at once; chunks of 2 or 3 tokens and blocks of the head, neither of which comes out even.
CHUNKS = {"whole": 10**6, "chunks": 130}


def make_case(sampling):
    random = np.random.default_rng(0)
    hidden_BD, head_VD = (
        random.normal(size=(B, D)).astype(np.float32),
        random.normal(size=(V, D)).astype(np.float32) / 2,
    )
    support_BK = np.array([random.choice(V, K, replace=False) for _ in range(B)], np.int32)
    token_B = support_BK[:, 1].copy()
    support_BK[::2, 3] = -1
    drawn = DrawnTokens(token_B, support_BK[:, : sampling.top_k], random.random(B) < 0.7)
    weight_B = np.where(drawn.is_drawn_B, random.random(B), np.nan).astype(np.float32)  # junk must not be read
    return hidden_BD, head_VD, drawn, weight_B


def work_by_hand(hidden_BD, head_VD, drawn, weight_B, sampling, softcap=np.inf):
    """Loss, the sum of log-probabilities and both gradients, float64."""
    hidden_BD, head_VD = np.float64(hidden_BD), np.float64(head_VD)
    is_in_BV = np.ones((B, V), bool)
    if sampling.top_k:
        is_in_BV = np.array([np.isin(np.arange(V), row) for row in drawn.support_BK])
    logits_BV, slope_BV = hidden_BD @ head_VD.T, 1.0
    if softcap < np.inf:
        # z = c tanh(y / c), dz / dy = 1 - tanh(y / c)^2
        slope_BV = 1.0 - np.tanh(logits_BV / softcap) ** 2
        logits_BV = softcap * np.tanh(logits_BV / softcap)
    mass_BV = np.where(is_in_BV, np.exp(logits_BV / sampling.temperature), 0.0)
    mass_BV /= mass_BV.sum(axis=1, keepdims=True)
    logp_B = np.where(drawn.is_drawn_B, np.log(mass_BV[np.arange(B), drawn.token_B]), 0.0)
    weight_B = np.where(drawn.is_drawn_B, weight_B, 0.0)
    d_logits_BV = (np.eye(V)[drawn.token_B] - mass_BV) * (2 * weight_B * logp_B / sampling.temperature)[:, None]
    d_logits_BV = d_logits_BV * slope_BV
    return np.sum(weight_B * logp_B**2), np.sum(logp_B), d_logits_BV @ head_VD, d_logits_BV.T @ hidden_BD


def square(logp_B, _, weight_B):
    return weight_B * logp_B**2, {"logp": logp_B}


def compute(hidden_BD, head_VD, drawn, weight_B, sampling, dtype="float32", chunk_floats=10**6):
    return compute_token_loss(hidden_BD, head_VD, drawn, weight_B, square, sampling, dtype, chunk_floats)


def differentiate(*arguments):
    return jax.value_and_grad(compute, (0, 1), has_aux=True)(*arguments)


def check(got, expected, rtol):
    for one, other in zip(jax.tree.leaves(got), expected, strict=True):
        assert one.dtype == jnp.float32 and np.abs(other).max() > 0.5
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("chunk_floats", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("wrap", [lambda f, **_: f, jax.jit], ids=["eager", "jitted"])
def test_loss_and_gradients_by_hand(wrap, sampling, chunk_floats):
    case = make_case(sampling)
    expected = work_by_hand(*case, sampling)
    (loss, figures), gradients = wrap(differentiate, static_argnums=(4, 5, 6))(*case, sampling, "float32", chunk_floats)
    check((loss, figures, *gradients), expected, rtol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_capped_logits_by_hand(sampling):
    case = make_case(sampling)

    def compute_capped(hidden_BD, head_VD, drawn, weight_B):
        return compute_token_loss(hidden_BD, head_VD, drawn, weight_B, square, sampling, "float32", 130, 1.5)

    (loss, figures), gradients = jax.jit(jax.value_and_grad(compute_capped, (0, 1), has_aux=True))(*case)
    check((loss, figures, *gradients), work_by_hand(*case, sampling, softcap=1.5), rtol=1e-6)


def mix(logp_B, entropy_B, weight_B):
    """Neither the log-probability nor the entropy stands by itself."""
    return weight_B * (logp_B**2 + logp_B * entropy_B - 3.0 * entropy_B), {"entropy": entropy_B}


def differentiate_plainly(hidden_BD, head_VD, drawn, weight_B, sampling, softcap):
    """Loss, sum of entropies and gradients by whole arrays of logits, float64."""
    is_in_BV = np.ones((B, V), bool)
    if sampling.top_k:
        is_in_BV = np.array([np.isin(np.arange(V), row) for row in drawn.support_BK])
    is_drawn_B, rows_B = np.asarray(drawn.is_drawn_B), np.arange(B)

    def compute_plain(hidden_BD, head_VD):
        logits_BV = hidden_BD @ head_VD.T
        logits_BV = softcap * jnp.tanh(logits_BV / softcap) if softcap else logits_BV
        logp_BV = jax.nn.log_softmax(jnp.where(is_in_BV, logits_BV / sampling.temperature, -1e30))
        entropy_B = -jnp.sum(jnp.where(is_in_BV, jnp.exp(logp_BV) * logp_BV, 0.0), axis=1)
        loss_B, figures = mix(logp_BV[rows_B, drawn.token_B], entropy_B, np.where(is_drawn_B, weight_B, 0.0))
        return jnp.sum(loss_B), jnp.sum(jnp.where(is_drawn_B, figures["entropy"], 0.0))

    with jax.enable_x64(True):
        arrays = (jnp.asarray(array, jnp.float64) for array in (hidden_BD, head_VD))
        (loss, entropy), gradients = jax.value_and_grad(compute_plain, (0, 1), has_aux=True)(*arrays)
        return jax.tree.map(np.asarray, (loss, entropy, *gradients))


@pytest.mark.parametrize("softcap", [None, 1.5], ids=["plain logits", "capped"])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_entropy_and_its_derivative(wrap, sampling, softcap):
    hidden_BD, head_VD, drawn, weight_B = make_case(sampling)

    def compute_mixed(hidden_BD, head_VD):
        options = {"chunk_floats": 130, "softcap": softcap, "has_entropy": True}
        return compute_token_loss(hidden_BD, head_VD, drawn, weight_B, mix, sampling, "float32", **options)

    (loss, figures), gradients = wrap(jax.value_and_grad(compute_mixed, (0, 1), has_aux=True))(hidden_BD, head_VD)
    expected = differentiate_plainly(hidden_BD, head_VD, drawn, weight_B, sampling, softcap)
    check((loss, figures, *gradients), expected, rtol=1e-6)


def test_a_figure_of_the_entropy_takes_no_product_and_no_gradient():
    hidden_BD, head_VD, drawn, weight_B = make_case(SAMPLINGS["plain"])

    def look_on(logp_B, entropy_B, weight_B):
        return square(logp_B, entropy_B, weight_B)[0], {"entropy": entropy_B}

    def differentiate_with(loss_fn):
        run = lambda h, w: compute_token_loss(h, w, drawn, weight_B, loss_fn, Sampling(), "float32")  # noqa: E731
        return jax.grad(run, (0, 1), has_aux=True)

    assert count_products(differentiate_with(look_on), hidden_BD, head_VD) == 3
    (plain, _), (seen, _) = (differentiate_with(loss_fn)(hidden_BD, head_VD) for loss_fn in (square, look_on))
    jax.tree.map(np.testing.assert_array_equal, seen, plain)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_bfloat16_products_stay_within_their_rounding(sampling):
    case = make_case(sampling)
    got = jax.jit(differentiate, static_argnums=(4, 5, 6))(*case, sampling, "bfloat16", 130)
    check(got, work_by_hand(*case, sampling), rtol=2e-2)
    assert not np.allclose(got[0][0], work_by_hand(*case, sampling)[0], rtol=1e-5)


def count_products(function, *arguments):
    """Products [tokens, vocabulary] or with one, in a program as traced."""
    return str(jax.make_jaxpr(function)(*arguments)).count("dot_general")


def test_what_needs_no_gradient_costs_nothing():
    """Three products a chunk with both gradients, two with a frozen head, one for the loss alone."""
    hidden_BD, head_VD, drawn, weight_B = make_case(SAMPLINGS["plain"])
    run = functools.partial(compute, sampling=SAMPLINGS["plain"], drawn=drawn, weight_B=weight_B)
    both = lambda hidden, head: jax.grad(run, (0, 1), has_aux=True)(hidden, head)  # noqa: E731
    stopped = lambda hidden, head: jax.grad(  # noqa: E731
        lambda h, w: run(h, jax.lax.stop_gradient(w)), (0, 1), has_aux=True
    )(hidden, head)
    assert count_products(both, hidden_BD, head_VD) == 3
    assert count_products(stopped, hidden_BD, head_VD) == 2
    assert count_products(run, hidden_BD, head_VD) == 1
    (frozen_BD, zero_VD), _ = stopped(hidden_BD, head_VD)
    np.testing.assert_array_equal(frozen_BD, both(hidden_BD, head_VD)[0][0])
    np.testing.assert_array_equal(zero_VD, 0)


def test_memory_at_a_large_vocabulary():
    """At most an eighth of what the plain form takes, as the compiler plans them."""
    vocab, width, tokens = 151_936, 896, 1024
    shapes = (jax.ShapeDtypeStruct((tokens, width), jnp.float32), jax.ShapeDtypeStruct((vocab, width), jnp.float32))
    drawn = DrawnTokens(jnp.zeros(tokens, jnp.int32), jnp.zeros((tokens, 0), jnp.int32), jnp.ones(tokens, bool))

    def run_plain(hidden_BD, head_VD):
        logp_BV = jax.nn.log_softmax(hidden_BD @ head_VD.T)
        return jnp.sum(jnp.take_along_axis(logp_BV, drawn.token_B[:, None], axis=1) ** 2)

    def run_chunks(hidden_BD, head_VD):
        ones_B = jnp.ones(tokens)
        return compute_token_loss(hidden_BD, head_VD, drawn, ones_B, square, Sampling(), "float32")[0]

    def measure(function):
        compiled = jax.jit(jax.grad(function, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert measure(run_chunks) < measure(run_plain) / 8
