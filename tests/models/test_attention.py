"""Attention over frames against softmax attention over repeated prompts, and cases worked out by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.models import attention

ROWS = (1, 2, 6)  # of the two past frames and the own one
# (window, softcap): neither; windows that end in the own frame, in the frame before it, and in the first, with caps.
FORMS = ((None, None), (2, None), (6, None), (7, 1.5))
SLOTS = (3, 4, 5)
G, R, D = 2, 3, 4  # key and value heads, query heads each, head size


def _make_long_case():
    """Frames of 150 and 130 slots, which blocks of 128 cut in three, the last short; a row keeps nothing."""
    random = np.random.default_rng(4)
    rows, slots = (1, 2, 4), (150, 3, 130)
    keys = [random.normal(size=(n, G, s, D)).astype(np.float32) for n, s in zip(rows, slots, strict=True)]
    values = [random.normal(size=key.shape).astype(np.float32) for key in keys]
    query = random.normal(size=(rows[2], G, R, slots[2], D)).astype(np.float32)
    keep = [random.random((n, s)) < 0.8 for n, s in zip(rows, slots, strict=True)]
    keep[1][1] = False
    return query, keys, values, keep


def _find_positions(keep, rows):
    """Kept slots before each slot of a path, of every frame; a frame's rows are those of the finest, or fewer."""
    repeated = [np.repeat(part, rows // len(part), axis=0) for part in keep]
    position = np.cumsum(np.concatenate(repeated, axis=1), axis=1) - 1
    ends = np.cumsum([part.shape[1] for part in keep])
    frames = np.split(position, ends[:-1], axis=1)
    return [frame[:: rows // len(part)].astype(np.int32) for frame, part in zip(frames, keep, strict=True)]


def _attend_blocks(query, keys, values, keep, form):
    return _attend_eagerly(query, keys, values, keep, form, score_floats=1)


def _make_case(seed=0):
    random = np.random.default_rng(seed)
    keys = [random.normal(size=(rows, G, slots, D)).astype(np.float32) for rows, slots in zip(ROWS, SLOTS, strict=True)]
    values = [random.normal(size=key.shape).astype(np.float32) for key in keys]
    query = random.normal(size=(ROWS[2], G, R, SLOTS[2], D)).astype(np.float32)
    keep = [
        np.array([[True, False, True]]),  # masked in the middle
        np.array([[True, True, False, True], [False] * 4]),  # the second row keeps nothing
        np.array([[True] * 5, [True, False, True, True, False]] * 3),
    ]
    return query, keys, values, keep


def _attend_eagerly(query, keys, values, keep, form=(None, None), **options):
    window, softcap = form
    frames = [attention.Keys(*parts) for parts in zip(keys, values, keep, strict=True)]
    if window is not None:
        positions = _find_positions(keep, len(query))
        frames = [frame._replace(position_MK=part) for frame, part in zip(frames, positions, strict=True)]
        window = jnp.int32(window)
    return attention.attend_path(query, frames[:-1], frames[-1], window, softcap, **options)


_attend_path = jax.jit(lambda *arrays: _attend_eagerly(*arrays))


def _attend_repeated(query, keys, values, keep, form, xp):
    """Plain softmax over every row's own copy of all slots; xp is numpy (in double precision) or jax.numpy."""
    rows, slots = query.shape[0], query.shape[3]
    key = xp.concatenate([xp.repeat(part, rows // part.shape[0], axis=0) for part in keys], axis=2)
    value = xp.concatenate([xp.repeat(part, rows // part.shape[0], axis=0) for part in values], axis=2)
    kept = np.concatenate([np.repeat(part, rows // part.shape[0], axis=0) for part in keep], axis=1)
    slot = np.arange(key.shape[2]) - (key.shape[2] - slots)  # of a slot in the own frame; negative in the past
    seen = kept[:, None, :] & (slot[None, None, :] <= np.arange(slots)[None, :, None])
    window, softcap = form
    for row, query_slot in itertools.product(range(rows), range(slots) if window else ()):
        seen[row, query_slot, np.flatnonzero(seen[row, query_slot])[:-window]] = False
    score = xp.einsum("ngrsd,ngkd->ngrsk", query, key)
    if softcap is not None:
        score = softcap * xp.tanh(score / softcap)
    score = xp.where(seen[:, None, None], score, -xp.inf)
    weight = xp.exp(score - score.max(-1, keepdims=True))
    return xp.einsum("ngrsk,ngkd->ngrsd", weight / weight.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
def test_values_equal_repeated_prompts(is_jitted, form):
    query, keys, values, keep = _make_case()
    attend = functools.partial(_attend_eagerly, keep=keep, form=form)
    got = (jax.jit(attend) if is_jitted else attend)(query, keys, values)
    double = [np.float64(query), [np.float64(key) for key in keys], [np.float64(value) for value in values]]
    np.testing.assert_allclose(got, _attend_repeated(*double, keep, form, np), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_some_rows_of_a_batch_are_as_in_the_whole(form):
    """As in decoding: three past frames, the last of them what the rows have written, and one new token a row."""
    window, softcap = form
    query, keys, values, keep = _make_case()
    keep[2] = np.array([[True] * (1 + row % 4) + [False] * (4 - row % 4) for row in range(6)])
    random = np.random.default_rng(7)
    new = [random.normal(size=(6, G, 1, D)).astype(np.float32) for _ in range(2)]
    keys, values, keep = [*keys, new[0]], [*values, new[1]], [*keep, np.ones((6, 1), bool)]
    query, index = query[:, :, :, :1], np.array([4, 1, 3])
    whole = jax.jit(functools.partial(_attend_eagerly, keep=keep, form=form))(query, keys, values)
    positions = [None] * 4 if window is None else _find_positions(keep, 6)
    frames = [attention.Keys(*parts) for parts in zip(keys, values, keep, positions, strict=True)]
    last, own = (attention.Keys(*(None if part is None else part[index] for part in frame)) for frame in frames[2:])
    window = None if window is None else jnp.int32(window)

    @jax.jit
    def attend(query, past, own):
        return attention.attend_cached(query, past, own, window, softcap, attention.Rows(jnp.array(index), 6))

    some = attend(query[index], [*frames[:2], last], own)
    np.testing.assert_allclose(some, whole[index], atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_repeated_prompts(form):
    query, keys, values, keep = _make_case(1)
    weight = np.random.default_rng(2).normal(size=query.shape).astype(np.float32)

    def differentiate(function):
        score = jax.grad(lambda *arrays: jnp.sum(function(*arrays) * weight), (0, 1, 2))
        return jax.jit(score)(query, keys, values)

    got = differentiate(lambda *arrays: _attend_eagerly(*arrays, keep, form))
    wanted = differentiate(lambda *arrays: _attend_repeated(*arrays, keep, form, jnp))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted)) > 0.5
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


@pytest.mark.parametrize("form", [(None, None), (90, None), (200, 1.5)])
def test_blocks_of_long_frames_equal_repeated_prompts(form):
    query, keys, values, keep = _make_long_case()
    weight = np.random.default_rng(5).normal(size=query.shape).astype(np.float32)

    def differentiate(function):
        score = jax.value_and_grad(lambda *arrays: jnp.sum(function(*arrays) * weight), (0, 1, 2))
        return jax.jit(score)(query, keys, values)

    got = differentiate(lambda *arrays: _attend_blocks(*arrays, keep, form))
    wanted = differentiate(lambda *arrays: _attend_repeated(*arrays, keep, form, jnp))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-6)
    double = [np.float64(query), [np.float64(key) for key in keys], [np.float64(value) for value in values]]
    out = jax.jit(lambda *arrays: _attend_blocks(*arrays, keep, form))(query, keys, values)
    np.testing.assert_allclose(out, _attend_repeated(*double, keep, form, np), rtol=1e-6, atol=1e-6)


def test_memory_grows_with_the_slots_and_not_with_their_square():
    """Of a frame of 4096 slots the plain form holds the scores, 9 heads of 67 MB, more than once."""
    query = jax.ShapeDtypeStruct((1, 3, 3, 4096, 64), jnp.float32)
    key = jax.ShapeDtypeStruct((1, 3, 4096, 64), jnp.float32)
    keep = np.ones((1, 4096), bool)
    total = jax.grad(lambda q, k, v: attention.attend_path(q, [], attention.Keys(k, v, keep)).sum(), (0, 1, 2))
    planned = jax.jit(total).lower(query, key, key).compile().memory_analysis()
    assert planned.temp_size_in_bytes < 4 * 9 * 4096**2 / 4


def test_masked_slots_have_no_influence_and_no_gradient():
    query, keys, values, keep = _make_case()
    changed_keys = [np.where(kept[:, None, :, None], key, 77.0) for key, kept in zip(keys, keep, strict=True)]
    changed_values = [np.where(kept[:, None, :, None], value, -55.0) for value, kept in zip(values, keep, strict=True)]
    np.testing.assert_array_equal(
        _attend_path(query, changed_keys, changed_values, keep), _attend_path(query, keys, values, keep)
    )
    gradients = jax.jit(jax.grad(lambda k, v: _attend_path(query, k, v, keep).sum(), (0, 1)))(keys, values)
    for gradient in gradients:
        for part, kept in zip(gradient, keep, strict=True):
            assert not np.any(np.where(kept[:, None, :, None], 0.0, part))


def test_equal_scores_average_the_kept_values():
    # With all keys zero every kept slot weighs the same: the past frame gives 2 and 4 (8 is masked); the own frame
    # gives 6, then 6 and 10. Means: (2 + 4 + 6) / 3 = 4 and (2 + 4 + 6 + 10) / 4 = 5.5.
    keys = [np.zeros((1, 1, 3, 2), np.float32), np.zeros((1, 1, 2, 2), np.float32)]
    values = [np.float32([[[[2, 2], [8, 8], [4, 4]]]]), np.float32([[[[6, 6], [10, 10]]]])]
    keep = [np.array([[True, False, True]]), np.array([[True, True]])]
    got = _attend_path(np.ones((1, 1, 1, 2, 2), np.float32), keys, values, keep)
    np.testing.assert_allclose(got[0, 0, 0, :, 0], [4.0, 5.5], rtol=1e-6)


def test_scores_of_any_size_stay_finite():
    # One slot's score is 3e4 above the rest: it takes all the weight, in whichever frame it stands.
    query, keys, values, keep = _make_case()
    query, keys = np.full_like(query, 100.0), [np.zeros_like(key) for key in keys]
    for frame in range(3):
        spiked = [key.copy() for key in keys]
        spiked[frame][:, :, 0] = 75.0  # slot 0 is seen by every query of every row that keeps it
        got = _attend_path(query, spiked, values, keep)
        wanted = np.repeat(values[frame][:, :, :1], ROWS[2] // ROWS[frame], axis=0)[:, :, None]
        kept = np.repeat(keep[frame][:, 0], ROWS[2] // ROWS[frame])
        np.testing.assert_allclose(got[kept], np.broadcast_to(wanted, got.shape)[kept], rtol=1e-6)


def test_a_query_that_sees_nothing_stays_finite():
    query, keys, values, _ = _make_case()
    nothing = [np.zeros((rows, slots), bool) for rows, slots in zip(ROWS, SLOTS, strict=True)]
    attend = jax.jit(jax.value_and_grad(lambda *arrays: _attend_path(*arrays, nothing).sum(), (0, 1, 2)))
    out, gradients = attend(query, keys, values)
    assert np.isfinite(out)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
