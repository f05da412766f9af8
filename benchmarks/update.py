"""What an update costs: log-probabilities at a large vocabulary, shared frames, and what the backward pass keeps.

Peak bytes are the compiler's plan for what a program holds beside its arguments and results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.timing import SMOLLM2, TINY, find_fastest, time_in_turn
from c3jax.config.run import Sampling
from c3jax.learner import forward
from c3jax.learner.token_loss import DrawnTokens, compute_token_loss
from c3jax.models import decoder
from c3jax.protocol import FIRST_TURN_LEVEL, QUESTION_LEVEL, FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout.sampling import CHUNK_FLOATS
from c3jax.types import Frame, Messages, Rollout


class _HeadSizes(NamedTuple):
    vocab: int
    width: int
    tokens: int
    chunk_floats: int
    repeats: int


class _StepSizes(NamedTuple):
    spec: decoder.DecoderSpec
    question: int
    message: int
    fan_out: tuple[int, int]
    repeats: int


def bench_update(is_small: bool) -> dict[str, Any]:
    """Float32: the loss of 1024 tokens at a vocabulary of 151,936, and a gradient step at SmolLM2-135M's size.

    The step is one problem of a 512-token question with two turns of 64-token messages at fan-out (2, 4).
    """
    head = _HeadSizes(1000, 16, 64, 10_000, 1) if is_small else _HeadSizes(151_936, 896, 1024, CHUNK_FLOATS, 4)
    step = _StepSizes(TINY, 16, 4, (2, 4), 1) if is_small else _StepSizes(SMOLLM2, 512, 64, (2, 4), 1)
    return {"log_probabilities": _bench_head(head), "step": _bench_step(step)}


def _bench_head(sizes: _HeadSizes) -> dict[str, Any]:
    """A loss and its gradients, with all logits at once and a chunk of tokens at a time."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden_BD = jax.random.normal(keys[0], (sizes.tokens, sizes.width))
    head_VD = jax.random.normal(keys[1], (sizes.vocab, sizes.width)) * sizes.width**-0.5
    token_B = jax.random.randint(keys[2], (sizes.tokens,), 0, sizes.vocab)
    weight_B = jax.random.normal(keys[3], (sizes.tokens,)) / sizes.tokens
    drawn = DrawnTokens(token_B, jnp.zeros((sizes.tokens, 0), jnp.int32), jnp.ones(sizes.tokens, bool))

    def run_plain(hidden_BD: jax.Array, head_VD: jax.Array) -> jax.Array:
        logp_BV = jax.nn.log_softmax(jnp.einsum("bd,vd->bv", hidden_BD, head_VD))
        return -jnp.sum(weight_B * jnp.take_along_axis(logp_BV, token_B[:, None], axis=1)[:, 0])

    def run_chunks(hidden_BD: jax.Array, head_VD: jax.Array) -> jax.Array:
        arguments = (drawn, weight_B, _weigh_logp, Sampling(), "float32", sizes.chunk_floats)
        return compute_token_loss(hidden_BD, head_VD, *arguments)[0]

    programs = {
        f"{form}{kind}": jax.jit(jax.value_and_grad(run, wanted)).lower(hidden_BD, head_VD).compile()
        for kind, wanted in (("", (0, 1)), ("_frozen_head", (0,)))
        for form, run in (("plain", run_plain), ("chunked", run_chunks))
    }
    cases = {name: (lambda run=run: run(hidden_BD, head_VD)) for name, run in programs.items()}
    difference = _compare(programs["chunked"](hidden_BD, head_VD), programs["plain"](hidden_BD, head_VD))
    figures = _time_programs(programs, cases, sizes.repeats)
    fastest, held = figures["seconds_fastest"], figures["peak_bytes"]
    return {
        "sizes": sizes._asdict(),
        **figures,
        "tokens_per_second": {name: sizes.tokens / seconds for name, seconds in fastest.items()},
        "chunked_over_plain_seconds": fastest["chunked"] / fastest["plain"],
        "plain_over_chunked_bytes": held["plain"] / held["chunked"],
        "frozen_head_chunked_over_plain_seconds": fastest["chunked_frozen_head"] / fastest["plain_frozen_head"],
        "frozen_head_plain_over_chunked_bytes": held["plain_frozen_head"] / held["chunked_frozen_head"],
        "largest_relative_difference": difference,
    }


def _bench_step(sizes: _StepSizes) -> dict[str, Any]:
    """A gradient over a tree, its prefixes held once, against one over every message's whole prompt; and by remat."""
    _, params = decoder.make_decoder(sizes.spec, jax.random.key(0))
    compile_step = lambda remat, is_shared: (  # noqa: E731
        jax.jit(jax.value_and_grad(_make_step(sizes, remat, is_shared))).lower(params).compile()
    )
    programs = {f"shared_{remat}": compile_step(remat, True) for remat in ("none", "layer", "dots")}
    programs["repeated_layer"] = compile_step("layer", False)
    cases = {name: (lambda run=run: run(params)) for name, run in programs.items()}
    difference = _compare(programs["shared_layer"](params), programs["repeated_layer"](params))
    figures = _time_programs(programs, cases, sizes.repeats)
    fastest, held = figures["seconds_fastest"], figures["peak_bytes"]
    return {
        "sizes": {name: value for name, value in sizes._asdict().items() if name != "spec"},
        **figures,
        "repeated_over_shared_seconds": fastest["repeated_layer"] / fastest["shared_layer"],
        "repeated_over_shared_bytes": held["repeated_layer"] / held["shared_layer"],
        "remat_layer_over_none_seconds": fastest["shared_layer"] / fastest["shared_none"],
        "remat_layer_over_none_bytes": held["shared_layer"] / held["shared_none"],
        "remat_dots_over_none_seconds": fastest["shared_dots"] / fastest["shared_none"],
        "remat_dots_over_none_bytes": held["shared_dots"] / held["shared_none"],
        "largest_relative_difference": difference,
    }


def _make_step(sizes: _StepSizes, remat: str, is_shared: bool) -> Callable[[dict], jax.Array]:
    """Make the loss of a tree's messages; where prefixes are not shared, each message is a tree of one branch."""
    graphdef, _ = decoder.define_decoder(sizes.spec._replace(remat=remat))
    rows = (sizes.fan_out[0], math.prod(sizes.fan_out))
    question_NS = _draw_tokens(1, 1, sizes.question - 1, sizes)
    turns = tuple(_draw_tokens(2 + turn, rows[turn], sizes.message, sizes) for turn in range(2))
    weight = tuple(jax.random.normal(jax.random.key(4 + turn), (rows[turn],)) for turn in range(2))

    def compute_loss(params: dict) -> jax.Array:
        model, loss = nnx.merge(graphdef, params), jnp.float32(0.0)
        for turn in range(2):
            copies = 1 if is_shared else rows[turn]
            question = Frame(*(jnp.repeat(part_NS, copies, axis=0) for part_NS in (question_NS, question_NS > 0)))
            seen = (part if is_shared else jnp.repeat(part, copies // len(part), axis=0) for part in turns[: turn + 1])
            rollout = Rollout(question, tuple(map(_make_messages, seen)))
            fan_out = sizes.fan_out if is_shared else (1, 1)
            [(hidden_BD, drawn)] = forward.compute_drawn_tokens(model, _PLANS, [forward.Spoken(turn, rollout, fan_out)])
            terms_B = jnp.repeat(weight[turn], sizes.message)
            loss += compute_token_loss(
                hidden_BD, model.head_weight(), drawn, terms_B, _weigh_logp, Sampling(), "float32"
            )[0]
        return loss

    return compute_loss


def _draw_tokens(seed: int, rows: int, slots: int, sizes: _StepSizes) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (rows, slots), 1, sizes.spec.vocab_size)


def _weigh_logp(logp_B: jax.Array, _: jax.Array, weight_B: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    return -weight_B * logp_B, {}


_PLANS = (
    TurnPlan("first", "first", (FramePlan(1, (Slot(QUESTION_LEVEL), Literal((1,)))),), 1, is_trained=True),
    TurnPlan(
        "second",
        "second",
        (FramePlan(1, (Slot(QUESTION_LEVEL), Literal((1,)))), FramePlan(2, (Slot(FIRST_TURN_LEVEL), Literal((1,))))),
        1,
        is_trained=True,
    ),
)


def _make_messages(token_NT: jax.Array) -> Messages:
    N, T = token_NT.shape
    every_NT = jnp.ones((N, T), bool)
    return Messages(token_NT, every_NT, every_NT, jnp.zeros((N, T)), jnp.zeros((N, T, 0), jnp.int32), every_NT[:, 0])


def _time_programs(
    programs: dict[str, Any], cases: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, Any]]:
    times = time_in_turn(cases, repeats)
    return {
        "seconds": times,
        "seconds_fastest": find_fastest(times),
        "peak_bytes": {name: run.memory_analysis().temp_size_in_bytes for name, run in programs.items()},
    }


def _compare(got: Any, expected: Any) -> float:
    """The largest difference of a leaf, as a share of the leaf's largest number."""
    gaps = jax.tree.map(lambda one, other: jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other)), got, expected)
    return float(max(jax.tree.leaves(gaps)))
