"""Every draw has an address of its own, and the address is all that its key depends on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.rollout import address

STREAMS = (address.TRAIN, address.EVALUATE, address.INIT, address.IMITATE, address.ORDER, address.ASK)


def step_key(seed: int, stream: int, step: int) -> jax.Array:
    return jax.random.fold_in(address.make_stream(seed, stream), step)


def data_of(keys: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


def test_every_coordinate_makes_another_key():
    found = [
        data_of(address.fold_messages(step_key(seed, stream, step), jnp.array([0, 1, 4095]), turn, 4))
        for seed, stream, step, turn in itertools.product((0, 1), STREAMS, (0, 1, 2), (0, 1, 2))
    ]
    keys = np.concatenate(found)
    assert len(set(STREAMS)) == 6
    assert len(np.unique(keys, axis=0)) == len(keys) == 2 * 6 * 3 * 3 * 3 * 4


def test_keys_are_those_folded_one_by_one():
    key, problems = step_key(5, address.TRAIN, 3), [9, 2]
    got = data_of(address.fold_messages(key, jnp.array(problems), turn=1, alternatives=3))
    fold = jax.random.fold_in
    one_by_one = [fold(fold(fold(key, p), 1), a) for p in problems for a in range(3)]
    np.testing.assert_array_equal(got, np.stack([data_of(each) for each in one_by_one]))


def test_keys_know_nothing_of_the_batch():
    key = step_key(0, address.TRAIN, 0)
    whole = data_of(address.fold_messages(key, jnp.array([8, 1, 6, 3]), 2, 4)).reshape(4, 4, -1)
    turned = data_of(address.fold_messages(key, jnp.array([3, 6, 1, 8]), 2, 4)).reshape(4, 4, -1)
    alone = data_of(address.fold_messages(key, jnp.array([6]), 2, 4))
    fewer = data_of(address.fold_messages(key, jnp.array([6]), 2, 2))
    np.testing.assert_array_equal(turned, whole[::-1])
    np.testing.assert_array_equal(alone, whole[2])
    np.testing.assert_array_equal(fewer, whole[2, :2])


def test_uniform_numbers_are_those_of_each_message_alone():
    key_N = address.fold_messages(step_key(0, address.TRAIN, 0), jnp.arange(500), 0, 2)
    uniform = np.stack([address.draw_uniform(key_N, jnp.int32(slot)) for slot in range(8)])
    one_by_one = [[jax.random.uniform(jax.random.fold_in(key_N[n], slot)) for n in (0, 1, 999)] for slot in range(8)]
    np.testing.assert_array_equal(uniform[:, [0, 1, 999]], one_by_one)
    assert uniform.min() >= 0 and uniform.max() < 1
    # 8000 numbers of 2^-23 steps: a repeated stream would repeat them all, chance repeats about 4 pairs.
    assert len(np.unique(uniform)) > 7950
    # Mean 1/2 and variance 1/12, to four standard errors.
    assert abs(uniform.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 8000)
    # Neighbouring messages and slots are uncorrelated, to four standard errors.
    assert abs(np.corrcoef(uniform[:, ::2].ravel(), uniform[:, 1::2].ravel())[0, 1]) < 4 / np.sqrt(4000)
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 4 / np.sqrt(7000)
