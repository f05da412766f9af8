"""What it brings that stopped rows leave the decoding batch: the same messages, decoded with and without."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.bench.timing import time_in_turn
from c3jax.config.run import Sampling
from c3jax.models.policy import Policy, Weights, make_model
from c3jax.rollout import address, decode
from c3jax.types import Frame, Messages

# Tokens of the reference solutions of MATH500 (SmolLM2's tokenizer, a stop token each), in 32 quantiles.
SOLUTION_TOKENS = (
    *(39, 52, 61, 69, 78, 82, 88, 96, 103, 109, 115, 125, 135, 150, 158, 169),
    *(181, 189, 200, 217, 229, 245, 267, 289, 308, 342, 373, 408, 479, 557, 645, 834),
)
_MEAN_SHARE = 0.4  # of the slots, of a message's tokens, before the longest are cut off
_STOP_MASS = 0.05  # probability of a stop token at each place


def bench_decode(
    policy: Policy, weights: Weights, path: tuple[Frame, ...], rows: int, slots: int, repeats: int
) -> dict[str, Any]:
    """Messages with the lengths of real solutions, scaled to the slots, in one size of batch and in four.

    A random model has no idea when to stop. So keys are chosen whose draws meet a stop token at the wished length: a
    twentieth of the vocabulary's first tokens stop a message, and these are the tokens of the smallest numbers drawn.
    """
    vocab_size = weights.trained["embedding"].shape[0]
    stop_tokens = tuple(range(int(_STOP_MASS * vocab_size)))
    length_N = choose_lengths(rows, slots)
    key_N = _find_keys(length_N, slots)

    @functools.partial(jax.jit, static_argnums=0)
    def sample(batches: int, weights: Weights, key_N: jax.Array) -> Messages:
        model = make_model(policy, weights, "bench")
        return decode.sample_messages(model, path, key_N, slots, Sampling(), stop_tokens, batches)

    plain, leaving = (jax.device_get(sample(batches, weights, key_N)) for batches in (1, 4))
    drawn_N = plain.sampled_NT.sum(axis=1)
    times = time_in_turn(
        {"all_rows": lambda: sample(1, weights, key_N), "leaving": lambda: sample(4, weights, key_N)}, repeats
    )
    fastest = {name: min(values) for name, values in times.items()}
    return {
        "rows": len(length_N),
        "slots": slots,
        "mean_over_longest": float(drawn_N.mean() / drawn_N.max()),
        "row_steps_all_over_leaving": _count_row_steps(drawn_N, 1) / _count_row_steps(drawn_N, 4),
        "seconds": times,
        "all_rows_over_leaving": fastest["all_rows"] / fastest["leaving"],
        "all_rows_over_leaving_by_pair": [a / b for a, b in zip(times["all_rows"], times["leaving"], strict=True)],
        "tokens_differing": int((plain.tokens_NT != leaving.tokens_NT).sum()),
        "logp_largest_difference": float(np.abs(plain.behaviour_logp_NT - leaving.behaviour_logp_NT).max()),
    }


def choose_lengths(rows: int, slots: int) -> np.ndarray:
    """A length for each row, int, in an order that is no order of length."""
    scale = _MEAN_SHARE * slots / np.mean(SOLUTION_TOKENS)
    length_Q = np.clip(np.round(scale * np.array(SOLUTION_TOKENS)), 1, slots).astype(int)
    return np.random.default_rng(0).permutation(np.resize(length_Q, rows))


def _find_keys(length_N: np.ndarray, slots: int) -> jax.Array:
    """Keys whose uniform numbers fall below the stop tokens' mass for the first time at the wished places.

    The mass differs from place to place by what the model thinks: numbers near it are avoided.
    """
    keys = jax.random.split(jax.random.key(4), 1000 * len(length_N) + 10_000)
    uniform_TM = jax.vmap(lambda place: address.draw_uniform(keys, place))(jnp.arange(slots))
    stops_MT = np.asarray(uniform_TM).T < 0.6 * _STOP_MASS
    is_clear_MT = np.asarray(uniform_TM).T > 1.5 * _STOP_MASS
    first_M = np.where(stops_MT.any(axis=1), stops_MT.argmax(axis=1), slots)
    clear_M = np.where(
        is_clear_MT.all(axis=1), slots, is_clear_MT.argmin(axis=1)
    )  # places before the first unclear one
    chosen: list[int] = []
    for length in length_N:
        fits = np.flatnonzero((first_M == length - 1) & (clear_M == length - 1))
        chosen.append(int(next(place for place in fits if place not in chosen)))
    return keys[jnp.asarray(chosen)]


def _count_row_steps(length_N: np.ndarray, batches: int) -> int:
    """Rows of all decoding steps, where rows leave in so many sizes of batch."""
    sizes = decode.list_sizes(len(length_N), batches)
    alive = [int((length_N > place).sum()) for place in range(1, int(length_N.max()))]
    return sum(min(size for size in sizes if size >= rows) for rows in alive)
