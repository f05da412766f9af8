"""Benchmarks: each measures two things in one process and prints its figures, and their ratio, as one JSON object.

Machines are shared and noisy, so compared runs alternate, every single time is printed, and figures are taken from the
fastest run of each: what else a machine does can only make a run slower.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from c3jax.bench.timing import SMOLLM2, TINY, time_in_turn
from c3jax.bench.update import bench_update
from c3jax.config import Sampling
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.plans import make_tree
from c3jax.models import decoder
from c3jax.protocol import QUESTION_LEVEL, FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout import tree
from c3jax.types import Frame


class _Sizes(NamedTuple):
    spec: decoder.DecoderSpec
    contexts: int
    alternatives: int
    prompt: int
    new_tokens: int
    repeats: int
    matmul: int


def run(what: str, is_small: bool) -> int:
    """Run one benchmark, print its JSON and return the exit code."""
    measure = {"rollout": bench_rollout, "credit": bench_credit, "update": bench_update}[what]
    # A small bench measures nothing, so what it runs need not be fast.
    jax.config.update("jax_disable_most_optimizations", is_small)
    device = jax.devices()[0]
    figures = {"bench": what, "device": device.device_kind, "jax": jax.__version__, **measure(is_small)}
    print(json.dumps(figures, indent=2))
    return 0


def bench_rollout(is_small: bool) -> dict[str, Any]:
    """Sampling alternatives over a context held once, against the same with the context repeated for each.

    Float32 at SmolLM2-135M's size, 4 contexts x 8 alternatives, 512-token prompts, 32 new tokens. Also the share of the
    machine's matmul peak that a decoding step reaches, by the operations it cannot do without.
    """
    sizes = _Sizes(TINY, 2, 2, 16, 4, 1, 256) if is_small else _Sizes(SMOLLM2, 4, 8, 512, 32, 3, 2048)
    graphdef, params = decoder.make_decoder(sizes.spec, jax.random.key(0))
    tokens_NS = jax.random.randint(jax.random.key(1), (sizes.contexts, sizes.prompt - 1), 1, sizes.spec.vocab_size)
    rows = sizes.contexts * sizes.alternatives

    def make(contexts: int, new_tokens: int) -> Callable[[], Any]:
        plan = TurnPlan("bench", "bench", (FramePlan(1, (Slot(QUESTION_LEVEL), Literal((1,)))),), new_tokens, True)
        fan_out = (rows // contexts,)
        sample = tree.make_tree_sampler(graphdef, (plan,), fan_out, Sampling(), ())
        question_NS = jnp.repeat(tokens_NS, contexts // sizes.contexts, axis=0)
        frame = Frame(question_NS, jnp.ones(question_NS.shape, bool))
        return lambda: sample(params, frame, jax.random.key(2), jnp.arange(contexts))

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
    }


def bench_credit(is_small: bool) -> dict[str, Any]:
    """Credit of 100,000 problems with 10 messages each (fan-out 2, 4), compiled, in milliseconds."""
    problems = 1000 if is_small else 100_000
    matrix = make_credit_matrix("c3", make_tree((2, 4)))
    return_PL = jax.random.uniform(jax.random.key(0), (problems, 8))
    apply = jax.jit(apply_credit, static_argnames="normalise")
    cases = {scope: (lambda scope=scope: apply(matrix, return_PL, normalise=scope)) for scope in ("none", "group")}
    times = time_in_turn(cases, 20)
    return {
        "problems": problems,
        "messages": 10 * problems,
        "milliseconds_median": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "milliseconds_fastest": {name: 1e3 * min(values) for name, values in times.items()},
    }


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
