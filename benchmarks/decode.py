"""What it brings that stopped rows leave the decoding batch: the same messages, decoded with and without.

Dimension key beside c3jax/types.py: Q quantile of the lengths    M key to choose from
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import SMOLLM2, TINY, find_fastest, make_questions, time_in_turn
from c3jax.config.run import Sampling
from c3jax.models import decoder
from c3jax.models.policy import Policy, Weights, make_model
from c3jax.rollout import address, decode
from c3jax.types import Messages

# Tokens of the reference solutions of MATH500 (SmolLM2's tokenizer, a stop token each), in 32 quantiles.
SOLUTION_TOKENS = (
    *(39, 52, 61, 69, 78, 82, 88, 96, 103, 109, 115, 125, 135, 150, 158, 169),
    *(181, 189, 200, 217, 229, 245, 267, 289, 308, 342, 373, 408, 479, 557, 645, 834),
)
_MEAN_SHARE = 0.4  # of the slots, of a message's tokens, before the longest are cut off
_STOP_MASS = 0.05  # probability of a stop token at each slot


class _Sizes(NamedTuple):
    spec: decoder.DecoderSpec
    contexts: int
    alternatives: int
    slots: int  # of a prompt, and of a message
    repeats: int


def bench_decode(is_small: bool) -> dict[str, Any]:
    """Messages with the lengths of real solutions, scaled to the slots, in one size of batch and in four.

    Many rows after short prompts, for what stopped rows cost is their products with the weights. A random model has no
    idea when to stop. So keys are chosen whose draws meet a stop token at the wished length: a twentieth of the
    vocabulary's first tokens stop a message, and these are the tokens of the smallest numbers drawn.
    """
    sizes = _Sizes(TINY, 8, 2, 16, 1) if is_small else _Sizes(SMOLLM2, 16, 8, 64, 3)
    graphdef, params = decoder.make_decoder(sizes.spec, jax.random.key(0))
    policy, weights = Policy("shared", graphdef, None), Weights(params, {})
    path = (make_questions(3, sizes.contexts, sizes.slots, sizes.spec.vocab_size),)
    stop_tokens = tuple(range(int(_STOP_MASS * sizes.spec.vocab_size)))
    length_N = choose_lengths(sizes.contexts * sizes.alternatives, sizes.slots)
    key_N = _find_keys(length_N, sizes.slots)

    @functools.partial(jax.jit, static_argnums=0)
    def sample(batches: int, weights: Weights, key_N: jax.Array) -> Messages:
        model = make_model(policy, weights, "bench")
        return decode.sample_messages(model, path, key_N, sizes.slots, Sampling(), stop_tokens, batches)

    plain, leaving = (jax.device_get(sample(batches, weights, key_N)) for batches in (1, 4))
    drawn_N = plain.sampled_NT.sum(axis=1)
    cases = {"all_rows": lambda: sample(1, weights, key_N), "leaving": lambda: sample(4, weights, key_N)}
    times = time_in_turn(cases, sizes.repeats)
    fastest = find_fastest(times)
    return {
        "rows": len(length_N),
        "slots": sizes.slots,
        "mean_over_longest": float(drawn_N.mean() / drawn_N.max()),
        "row_steps_all_over_leaving": count_row_steps(drawn_N, 1) / count_row_steps(drawn_N, 4),
        "seconds": times,
        "all_rows_over_leaving": fastest["all_rows"] / fastest["leaving"],
        "all_rows_over_leaving_by_pair": [a / b for a, b in zip(times["all_rows"], times["leaving"], strict=True)],
        "tokens_differing": int((plain.tokens_NT != leaving.tokens_NT).sum()),
        "logp_largest_difference": float(np.abs(plain.behaviour_logp_NT - leaving.behaviour_logp_NT).max()),
    }


def choose_lengths(rows: int, slots: int) -> np.ndarray:
    """A length in tokens for each row, int, in an order that is no order of length."""
    scale = _MEAN_SHARE * slots / np.mean(SOLUTION_TOKENS)
    length_Q = np.clip(np.round(scale * np.array(SOLUTION_TOKENS)), 1, slots).astype(int)
    return np.random.default_rng(0).permutation(np.resize(length_Q, rows))


def count_row_steps(length_N: np.ndarray, batches: int) -> int:
    """Rows of all decoding steps after the first token, where rows leave in so many sizes of batch."""
    sizes = decode.list_sizes(len(length_N), batches)
    alive = [int((length_N > step).sum()) for step in range(1, int(length_N.max()))]
    return sum(min(size for size in sizes if size >= rows) for rows in alive)


def _find_keys(length_N: np.ndarray, slots: int) -> jax.Array:
    """Keys whose uniform numbers fall below the stop tokens' mass for the first time in the wished slots.

    The mass differs from slot to slot by what the model thinks: numbers near it are avoided.
    """
    keys = jax.random.split(jax.random.key(4), 1000 * len(length_N) + 10_000)
    uniform_TM = jax.vmap(lambda slot: address.draw_uniform(keys, slot))(jnp.arange(slots))
    stops_MT = np.asarray(uniform_TM).T < 0.6 * _STOP_MASS
    is_clear_MT = np.asarray(uniform_TM).T > 1.5 * _STOP_MASS
    first_M = np.where(stops_MT.any(axis=1), stops_MT.argmax(axis=1), slots)
    clear_M = np.where(is_clear_MT.all(axis=1), slots, is_clear_MT.argmin(axis=1))  # slots before the first unclear one
    chosen: list[int] = []
    for length in length_N:
        fits = np.flatnonzero((first_M == length - 1) & (clear_M == length - 1))
        chosen.append(int(next(key for key in fits if key not in chosen)))
    return keys[jnp.asarray(chosen)]
