"""What the benchmarks share: a model's sizes, and compared calls timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from c3jax.models.spec import DecoderSpec
from c3jax.types import Frame

SMOLLM2 = DecoderSpec(
    vocab_size=49152,
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    mlp_width=1536,
    context=8192,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    tied=True,
)
TINY = SMOLLM2._replace(vocab_size=64, layers=2, width=48, heads=3, kv_heads=1, head_dim=16, mlp_width=64)


def make_questions(seed: int, rows: int, slots: int, vocab_size: int) -> Frame:
    """A frame [rows, slots] of random tokens without padding."""
    tokens_NS = jax.random.randint(jax.random.key(seed), (rows, slots), 1, vocab_size)
    return Frame(tokens_NS, jnp.ones(tokens_NS.shape, bool))


def time_in_turn(cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time calls in alternation.

    Args:
      cases: what is called, by name; it may return arrays that are not computed yet.
      repeats: how often each is timed, after a first call that compiles and is not counted.

    Returns:
      Seconds of each call, by name.
    """
    for call in cases.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - began)
    return times


def find_fastest(times: dict[str, list[float]]) -> dict[str, float]:
    """The fastest time of each case, in seconds."""
    return {name: min(values) for name, values in times.items()}
