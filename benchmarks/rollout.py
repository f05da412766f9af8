"""What it brings that a context is held once when alternatives to a message are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.timing import SMOLLM2, TINY, find_fastest, make_questions, time_in_turn
from c3jax.config.run import Sampling
from c3jax.models import decoder
from c3jax.models.policy import Policy, Weights
from c3jax.protocol import QUESTION_LEVEL, FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout import tree


class Sizes(NamedTuple):
    """What is sampled: alternatives of so many tokens at each of some contexts."""

    spec: decoder.DecoderSpec
    contexts: int
    alternatives: int
    prompt: int
    new_tokens: int
    repeats: int
    matmul: int


def choose_sizes(is_small: bool) -> Sizes:
    """The sizes that are measured, or tiny ones."""
    return Sizes(TINY, 2, 2, 16, 4, 1, 256) if is_small else Sizes(SMOLLM2, 4, 8, 512, 32, 3, 2048)


def bench_rollout(is_small: bool) -> dict[str, Any]:
    """Sampling alternatives over a context held once, against the same with the context repeated for each.

    Float32 at SmolLM2-135M's size, 4 contexts x 8 alternatives, 512-token prompts, 32 new tokens. Also the share of the
    machine's matmul peak that a decoding step reaches, by the operations it cannot do without.
    """
    sizes = choose_sizes(is_small)
    rows = sizes.contexts * sizes.alternatives
    sample = make_samplers(sizes)
    cases = {
        "shared": sample(sizes.contexts, sizes.new_tokens),
        "repeated": sample(rows, sizes.new_tokens),
        "shared_prefill": sample(sizes.contexts, 1),
    }
    times = time_in_turn(cases, sizes.repeats)
    fastest = find_fastest(times)
    step = (fastest["shared"] - fastest["shared_prefill"]) / (sizes.new_tokens - 1)
    peak, floor = _measure_matmul(sizes.matmul), _count_step_flops(sizes)
    own = rows * sizes.new_tokens
    slot_bytes = 2 * 4 * sizes.spec.layers * sizes.spec.kv_heads * sizes.spec.head_dim
    held = {
        "shared": slot_bytes * (sizes.contexts * sizes.prompt + own),
        "repeated": slot_bytes * (rows * sizes.prompt + own),
    }
    return {
        "sizes": {name: value for name, value in sizes._asdict().items() if name not in ("spec", "repeats", "matmul")},
        "seconds": times,
        "repeated_over_shared": fastest["repeated"] / fastest["shared"],
        "repeated_over_shared_by_pair": [r / s for r, s in zip(times["repeated"], times["shared"], strict=True)],
        "tokens_per_second_shared": own / fastest["shared"],
        "key_value_bytes": held,
        "key_value_bytes_shared_over_repeated": held["shared"] / held["repeated"],
        "decode_step_seconds": step,
        "decode_step_gflop": floor / 1e9,
        "matmul_peak_gflop_per_second": peak / 1e9,
        "decode_step_share_of_peak": floor / step / peak,
    }


def make_samplers(sizes: Sizes) -> Callable[[int, int], Callable[[], Any]]:
    """Make the function (contexts, new tokens) -> sampler of all rows, divided among so many contexts."""
    graphdef, params = decoder.make_decoder(sizes.spec, jax.random.key(0))
    policy, weights = Policy("shared", graphdef, None), Weights(params, {})
    question = make_questions(1, sizes.contexts, sizes.prompt - 1, sizes.spec.vocab_size)
    rows = sizes.contexts * sizes.alternatives

    def make(contexts: int, new_tokens: int) -> Callable[[], Any]:
        plan = TurnPlan("bench", "bench", (FramePlan(1, (Slot(QUESTION_LEVEL), Literal((1,)))),), new_tokens, True)
        sample = tree.make_tree_sampler(policy, (plan,), Sampling(), ())
        frame = jax.tree.map(lambda part_NS: jnp.repeat(part_NS, contexts // sizes.contexts, axis=0), question)
        return lambda: sample(weights, frame, jax.random.key(2), jnp.arange(contexts), (rows // contexts,))

    return make


def _count_step_flops(sizes: Sizes) -> float:
    """Floating-point operations of one decoding step of all rows: products with weights, and attention."""
    spec = sizes.spec
    inner, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    weights = spec.layers * spec.width * (2 * inner + 2 * kv + 3 * spec.mlp_width) + spec.vocab_size * spec.width
    attention = 2 * spec.layers * inner * (sizes.prompt + sizes.new_tokens / 2)
    return 2.0 * sizes.contexts * sizes.alternatives * (weights + attention)


def _measure_matmul(size: int) -> float:
    """The best rate of a square float32 product, floating-point operations a second."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    times = time_in_turn({"product": lambda: product(a, a)}, 10)
    return 2.0 * size**3 / find_fastest(times)["product"]
