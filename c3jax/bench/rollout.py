"""What it brings that a context is held once, and that stopped rows leave the batch, when messages are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from c3jax.bench.decode import bench_decode
from c3jax.bench.timing import SMOLLM2, TINY, time_in_turn
from c3jax.config.run import Sampling
from c3jax.models import decoder
from c3jax.models.policy import Policy, Weights
from c3jax.protocol import QUESTION_LEVEL, FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout import tree
from c3jax.types import Frame


class _Sizes(NamedTuple):
    spec: decoder.DecoderSpec
    contexts: int
    alternatives: int
    prompt: int
    new_tokens: int
    stop_rows: int  # where rows stop
    stop_slots: int  # of a message and of its prompt, there
    repeats: int
    matmul: int


def bench_rollout(is_small: bool) -> dict[str, Any]:
    """Sampling alternatives over a context held once, against the same with the context repeated for each.

    Float32 at SmolLM2-135M's size, 4 contexts x 8 alternatives, 512-token prompts, 32 new tokens. Also the share of the
    machine's matmul peak that a decoding step reaches, by the operations it cannot do without.
    """
    sizes = _Sizes(TINY, 2, 2, 16, 4, 16, 16, 1, 256) if is_small else _Sizes(SMOLLM2, 4, 8, 512, 32, 128, 64, 3, 2048)
    graphdef, params = decoder.make_decoder(sizes.spec, jax.random.key(0))
    policy, weights = Policy("shared", graphdef, None), Weights(params, {})
    tokens_NS = jax.random.randint(jax.random.key(1), (sizes.contexts, sizes.prompt - 1), 1, sizes.spec.vocab_size)
    rows = sizes.contexts * sizes.alternatives

    def make(contexts: int, new_tokens: int) -> Callable[[], Any]:
        plan = TurnPlan("bench", "bench", (FramePlan(1, (Slot(QUESTION_LEVEL), Literal((1,)))),), new_tokens, True)
        fan_out = (rows // contexts,)
        sample = tree.make_tree_sampler(policy, (plan,), Sampling(), ())
        question_NS = jnp.repeat(tokens_NS, contexts // sizes.contexts, axis=0)
        frame = _keep_all(question_NS)
        return lambda: sample(weights, frame, jax.random.key(2), jnp.arange(contexts), fan_out)

    shared = make(sizes.contexts, sizes.new_tokens)
    times = time_in_turn(
        {
            "shared": shared,
            "repeated": make(rows, sizes.new_tokens),
            "shared_prefill": make(sizes.contexts, 1),
        },
        sizes.repeats,
    )
    fastest = {name: min(values) for name, values in times.items()}
    step = (fastest["shared"] - fastest["shared_prefill"]) / (sizes.new_tokens - 1)
    peak = _measure_matmul(sizes.matmul)
    floor = _count_step_flops(sizes)
    slot_bytes = 2 * 4 * sizes.spec.layers * sizes.spec.kv_heads * sizes.spec.head_dim
    own = rows * sizes.new_tokens
    bytes_of = {
        "shared": slot_bytes * (sizes.contexts * sizes.prompt + own),
        "repeated": slot_bytes * (rows * sizes.prompt + own),
    }
    return {
        "sizes": {name: value for name, value in sizes._asdict().items() if name not in ("spec", "repeats", "matmul")},
        "seconds": times,
        "repeated_over_shared": fastest["repeated"] / fastest["shared"],
        "repeated_over_shared_by_pair": [r / s for r, s in zip(times["repeated"], times["shared"], strict=True)],
        "tokens_per_second_shared": own / fastest["shared"],
        "key_value_bytes": bytes_of,
        "key_value_bytes_shared_over_repeated": bytes_of["shared"] / bytes_of["repeated"],
        "decode_step_seconds": step,
        "decode_step_gflop": floor / 1e9,
        "matmul_peak_gflop_per_second": peak / 1e9,
        "decode_step_share_of_peak": floor / step / peak,
        "rows_that_stop": _bench_stopping(sizes, policy, weights),
    }


def _bench_stopping(sizes: _Sizes, policy: Policy, weights: Weights) -> dict[str, Any]:
    """Many rows after short prompts: what stopped rows cost is their products with the weights."""
    contexts = sizes.stop_rows // sizes.alternatives
    tokens_NS = jax.random.randint(jax.random.key(3), (contexts, sizes.stop_slots), 1, sizes.spec.vocab_size)
    path = (_keep_all(tokens_NS),)
    return bench_decode(policy, weights, path, sizes.stop_rows, sizes.stop_slots, sizes.repeats)


def _keep_all(tokens_NS: jax.Array) -> Frame:
    return Frame(tokens_NS, jnp.ones(tokens_NS.shape, bool))


def _count_step_flops(sizes: _Sizes) -> float:
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
    times = time_in_turn({"product": lambda: product(a, a)}, 10)["product"]
    return 2.0 * size**3 / min(times)
