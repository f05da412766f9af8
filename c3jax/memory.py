"""The memory a run takes, computed before it starts: arithmetic on sizes, nothing is allocated.

What stays from step to step (weights, optimiser, reference) is held all the time; of the two programs of a step,
drawing the trees and the update, the larger one comes on top. What XLA plans for the same programs lies within a factor
of 1.5 of it (docs/memory.md). A critic of its own and the evaluation's larger batches are not counted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from c3jax.config import RunConfig
from c3jax.models.attention import SCORE_FLOATS
from c3jax.models.decoder import DecoderSpec
from c3jax.protocol import FIRST_TURN_LEVEL, QUESTION_LEVEL, Literal, TurnPlan, rows_of
from c3jax.rollout.sampling import CHUNK_FLOATS, size_chunk
from c3jax.types import UserError

_F32 = 4
_WHEN = {"always": "all the time", "trees": "drawing trees", "update": "in the update"}


class Weights(NamedTuple):
    """Numbers of parameters, those of all roles together."""

    trained: int  # f32
    frozen: int = 0
    frozen_bytes: int = 4  # of each
    has_reference: bool = False  # a second copy of the trained ones, for the divergence


class Row(NamedTuple):
    """One thing that takes memory."""

    name: str
    bytes: int
    when: str  # "always", "trees" or "update"


class Estimate(NamedTuple):
    """What a run takes, a row each."""

    rows: tuple[Row, ...]

    def total(self, when: str) -> int:
        """Bytes held always, or by one of the two programs beside them."""
        return sum(row.bytes for row in self.rows if row.when == when)

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of a step."""
        return self.total("always") + max(self.total("trees"), self.total("update"))


class Limit(NamedTuple):
    """What there is."""

    device: str
    bytes: int


def estimate_memory(config: RunConfig, spec: DecoderSpec, plans: Sequence[TurnPlan], weights: Weights) -> Estimate:
    """What a run takes, with frames and messages as long as the plans allow. The fan-out must be numbers."""
    trained, product = weights.trained * _F32, jnp.dtype(spec.dtype).itemsize
    minibatch = config.problems // config.learner.minibatches
    micro = config.learner.micro_problems or minibatch
    layer = _count_layer(spec)
    rows = (
        Row("trained weights", trained, "always"),
        Row("frozen weights", weights.frozen * weights.frozen_bytes, "always"),
        Row("optimiser state", 2 * trained, "always"),
        Row("reference policy", trained if weights.has_reference else 0, "always"),
        Row("layers taken apart", spec.layers * layer * product, "trees"),
        Row("keys and values", max(_count_caches(spec, path) for path in _list_paths(config, plans)), "trees"),
        Row("one layer, logits", max(_count_drawing(spec, path) for path in _list_paths(config, plans)), "trees"),
        # A sum and a micro-batch's own, where there is more than one; an embedding that is also the head has two parts.
        Row("gradients", trained * (1 if micro == minibatch else 2) + _count_tied(spec, weights), "update"),
        *_list_activations(config, spec, plans, micro),
    )
    return Estimate(tuple(row for row in rows if row.bytes))


def find_limit() -> Limit:
    """The first device's limit, or, where it has none of its own (a CPU), the machine's available memory."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return Limit(device.device_kind, stats["bytes_limit"])
    table = Path("/proc/meminfo")
    if table.exists():
        sizes = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return Limit("this machine", int(sizes["MemAvailable"].split()[0]) * 1024)
    return Limit("this machine", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def check_memory(
    config: RunConfig, spec: DecoderSpec, plans: Sequence[TurnPlan], weights: Weights, limit: Limit
) -> Estimate:
    """The estimate of a run that fits. Raises UserError with the numbers, and what would fit, for one that does not."""
    estimate = estimate_memory(config, spec, plans, weights)
    if estimate.peak <= limit.bytes:
        return estimate
    said = (
        f"memory: expected at most the {say_bytes(limit.bytes)} of {limit.device}, got about {say_bytes(estimate.peak)}"
    )
    for advice, other_config, other_spec in _list_remedies(config, spec):
        other = estimate_memory(other_config, other_spec, plans, weights)
        if other.peak <= limit.bytes:
            raise UserError(f"{said}; {advice} would take {say_bytes(other.peak)}")
    held = estimate.total("always")
    raise UserError(f"{said}, {say_bytes(held)} of it all the time: try policy.kind adapters, or a smaller model")


def make_table(estimate: Estimate, limit: Limit) -> Table:
    """The rows of an estimate with its peak and what there is, for 80 columns."""
    table = Table(title="Memory", show_footer=True)
    table.add_column("what", footer=f"peak, of {say_bytes(limit.bytes)} ({limit.device})", overflow="fold")
    table.add_column("when")
    table.add_column("size", justify="right", footer=say_bytes(estimate.peak))
    for row in estimate.rows:
        table.add_row(row.name, _WHEN[row.when], say_bytes(row.bytes))
    return table


def say_bytes(size: int) -> str:
    for unit, worth in (("GB", 10**9), ("MB", 10**6)):
        if size >= worth:
            return f"{size / worth:.1f} {unit}"
    return f"{size / 1000:.1f} kB"


def _list_remedies(config: RunConfig, spec: DecoderSpec) -> Iterator[tuple[str, RunConfig, DecoderSpec]]:
    """Settings that take less, each with its name, the least costly first."""
    minibatch = config.problems // config.learner.minibatches
    micro = config.learner.micro_problems or minibatch
    lighter = spec._replace(remat="layer")
    for remat, name in ((spec, ""), (lighter, "model.remat layer")):
        if name and spec.remat != "layer":
            yield name, config, remat
        for size in range(micro - 1, 0, -1):
            if minibatch % size == 0:
                learner = config.learner.model_copy(update={"micro_problems": size})
                smaller = config.model_copy(update={"learner": learner})
                yield f"learner.micro_problems {size}" + (f" with {name}" if name else ""), smaller, remat
    for problems in range(config.problems - 1, 0, -1):
        if problems % config.learner.minibatches == 0:
            learner = config.learner.model_copy(update={"micro_problems": 1})
            smaller = config.model_copy(update={"problems": problems, "learner": learner})
            yield f"problems {problems} with learner.micro_problems 1 and model.remat layer", smaller, lighter


def _list_paths(config: RunConfig, plans: Sequence[TurnPlan]) -> list[list[tuple[int, int]]]:
    problems = config.rollout_problems or config.problems
    return [_list_frames(place, config, plans, problems) for place in range(len(plans))]


def _list_frames(place: int, config: RunConfig, plans: Sequence[TurnPlan], problems: int) -> list[tuple[int, int]]:
    """(rows, slots) of the frames of a turn's context, and of its messages last."""
    fan_out = config.credit.fan_out
    assert fan_out != "auto"
    frames = []
    for frame in plans[place].frames:
        slots = 0
        for piece in frame.pieces:
            if isinstance(piece, Literal):
                slots += len(piece.tokens)
            elif piece.level == QUESTION_LEVEL:
                slots += config.protocol.question_tokens
            else:
                slots += plans[piece.level - FIRST_TURN_LEVEL].max_tokens
        frames.append((rows_of(frame.level, problems, fan_out), slots))
    return [*frames, (problems * math.prod(fan_out[: place + 1]), plans[place].max_tokens)]


def _count_tied(spec: DecoderSpec, weights: Weights) -> int:
    embedding = spec.vocab_size * spec.width
    return _F32 * embedding if spec.tied and weights.trained >= embedding else 0


def _count_slots(path: Sequence[tuple[int, int]]) -> int:
    return sum(rows * slots for rows, slots in path)


def _count_layer(spec: DecoderSpec) -> int:
    """Numbers of one layer's matrices."""
    inner, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return spec.width * (2 * inner + 2 * kv + 3 * spec.mlp_width)


def _count_caches(spec: DecoderSpec, path: Sequence[tuple[int, int]]) -> int:
    """Keys and values of all layers; a context's are held twice while they are taken apart by layer."""
    slot = 2 * spec.kv_heads * spec.head_dim * spec.layers * jnp.dtype(spec.dtype).itemsize
    return slot * (2 * _count_slots(path[:-1]) + _count_slots(path[-1:]))


def _count_drawing(spec: DecoderSpec, path: Sequence[tuple[int, int]]) -> int:
    """One layer over the largest frame of a context, or the logits of a decoding step, some four times over."""
    inside = (2 * spec.mlp_width + 4 * spec.width) * max(rows * slots for rows, slots in path[:-1])
    return _F32 * max(inside, 4 * path[-1][0] * spec.vocab_size)


def _list_activations(config: RunConfig, spec: DecoderSpec, plans: Sequence[TurnPlan], micro: int) -> list[Row]:
    """What the backward pass of a micro-batch needs: kept by layer, computed again of one layer, and of the head."""
    paths = [_list_frames(place, config, plans, micro) for place, plan in enumerate(plans) if plan.is_trained]
    product, slots = jnp.dtype(spec.dtype).itemsize, sum(map(_count_slots, paths))
    inner, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    # Numbers of a slot in a layer: keys and values and the stream always, then what the policy keeps.
    inside = 4 * spec.mlp_width + 5 * spec.width + 3 * inner + 3 * kv
    products = 2 * spec.mlp_width + spec.width + inner + 2 * kv
    kept = {"none": inside, "dots": products, "layer": 0}[spec.remat]
    widest = max(rows * length for path in paths for rows, length in path)
    scores = 3 * max(min(SCORE_FLOATS, rows * spec.heads * length * length) for path in paths for rows, length in path)
    drawn = sum(rows * length for *_, (rows, length) in paths)
    kept_layers = slots * spec.layers * (2 * kv + spec.width + kept) * product
    return [
        Row(f"kept by layers, remat {spec.remat}", kept_layers, "update"),
        Row("inside of one layer", widest * (inside - kept) * product + scores * _F32, "update"),
        Row("logits, in chunks", _count_head(config, spec, drawn), "update"),
    ]


def _count_head(config: RunConfig, spec: DecoderSpec, drawn: int) -> int:
    """A chunk's logits and their gradient, hidden states and theirs, and the head in the products' type."""
    entries = config.sampling.top_k
    size = size_chunk(drawn, spec.vocab_size, spec.width, entries)
    token = 2 * entries * spec.width if entries else 2 * spec.vocab_size
    block = min(CHUNK_FLOATS // 4, spec.vocab_size * spec.width)
    cast = 0 if spec.dtype == "float32" else spec.vocab_size * spec.width * jnp.dtype(spec.dtype).itemsize
    return _F32 * (size * token + block + 3 * drawn * spec.width) + cast
