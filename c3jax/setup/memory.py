"""The memory a run takes, computed before it starts: arithmetic on sizes, nothing is allocated.

What stays from step to step (weights, optimiser, reference, critic) is held all the time; of the programs of a run,
drawing the trees, the update and an evaluation's batch, the largest one comes on top. What XLA plans for the same
programs lies within a factor of 1.5 of it (docs/memory.md). The warm-up by imitation, which only small random models
have, is not counted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from c3jax.config.credit import make_plan
from c3jax.config.run import RunConfig
from c3jax.credit.plans import Plan, list_branches, list_credited, make_tree
from c3jax.models.attention import BLOCK_SLOTS, SCORE_FLOATS
from c3jax.models.fused import LANES
from c3jax.models.spec import DecoderSpec
from c3jax.protocol import TurnPlan, count_slots, rows_of
from c3jax.rollout.sampling import CHUNK_FLOATS, size_chunk
from c3jax.types import UserError

_F32 = 4
_LARGE_SHARE = 0.1  # of the memory: from here on it is worth saying what takes it
_LIGHTER = "policy.kind adapters, or a smaller model"
_WHEN = {"always": "all the time", "trees": "drawing trees", "update": "in the update", "evaluation": "evaluating"}


class Weights(NamedTuple):
    """Numbers of parameters, those of all roles together."""

    trained: int  # f32
    frozen: int = 0
    frozen_bytes: int = 4  # of each
    has_reference: bool = False  # a second copy of the trained ones, for the divergence
    critic: int = 0  # of a critic's own network, trained too
    optimiser: int | None = None  # f32, that the optimiser keeps of the trained ones; None: two of each, as AdamW
    critic_optimiser: int | None = None
    head: int = 0  # a trained head that is put together from several devices, and its gradient with it


class Row(NamedTuple):
    """One thing that takes memory."""

    name: str
    bytes: int
    when: str  # "always", "trees", "update" or "evaluation"
    remedy: str  # the field that makes it smaller, and how


class Estimate(NamedTuple):
    """What a run takes, a row each."""

    rows: tuple[Row, ...]

    def total(self, when: str) -> int:
        """Bytes held always, or by one of the programs beside them."""
        return sum(row.bytes for row in self.rows if row.when == when)

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of a run."""
        return self.total("always") + max(map(self.total, ("trees", "update", "evaluation")))

    def keep(self, does_draw: bool) -> Estimate:
        """What a device takes that does nothing but draw trees, or one that does all but that."""
        draws = ("trained weights", "frozen weights")
        return Estimate(
            tuple(row for row in self.rows if (row.when == "trees") == does_draw or does_draw and row.name in draws)
        )


class Limit(NamedTuple):
    """What there is."""

    device: str
    bytes: int


class Fit(NamedTuple):
    """A run that fits."""

    estimate: Estimate
    limit: Limit  # as it was before the run took anything


def estimate_memory(
    config: RunConfig, spec: DecoderSpec, plans: Sequence[TurnPlan], weights: Weights, parts: int = 1
) -> Estimate:
    """What a run takes of each device, with frames and messages as long as the plans allow.

    Args:
      config: of the run; the fan-out, where there is one, must be numbers.
      spec, plans: the team's.
      weights: those that one device holds.
      parts: in which problems are cut, one a device.
    """
    trained, critic = weights.trained * _F32, weights.critic * _F32
    kept = 2 * trained if weights.optimiser is None else weights.optimiser * _F32
    critic_kept = 2 * critic if weights.critic_optimiser is None else weights.critic_optimiser * _F32
    drawn, evaluation = make_plan(config.credit, len(plans)), config.evaluation
    minibatch = config.problems // config.learner.minibatches
    micro = config.learner.micro_problems or minibatch  # of all devices, as all numbers of problems in this file
    # A sum and a micro-batch's own, where there is more than one; an embedding that is also the head has two parts.
    copies = 1 if micro == minibatch else 2
    # The sum of a head's gradient over this device's tokens, and over all devices'.
    whole = 2 * weights.head * _F32
    gradients = max(trained * copies + _count_tied(spec, weights) + whole, critic * copies)  # one after the other
    samples = (max(evaluation.samples, 1),) + (1,) * (len(plans) - 1)
    asked = min(evaluation.batch, evaluation.problems)
    evaluating = _list_drawing(config, spec, plans, asked, make_tree(samples), parts)
    batch = f"evaluation.batch below {asked}"
    rows = (
        Row("trained weights", trained, "always", _LIGHTER),
        Row("older weights, which draw", trained if config.async_steps else 0, "always", "async_steps 0"),
        Row("frozen weights", weights.frozen * weights.frozen_bytes, "always", _LIGHTER),
        Row("optimiser state", kept, "always", _LIGHTER),
        Row(
            "reference policy",
            trained if weights.has_reference else 0,
            "always",
            "learner.kl.coefficient 0, or policy.kind adapters",
        ),
        Row("critic's network and optimiser state", critic + critic_kept, "always", _LIGHTER),
        *_list_drawing(config, spec, plans, config.call_problems, drawn, parts),
        Row("gradients", gradients, "update", _LIGHTER),
        *_list_activations(config, spec, plans, drawn, micro, weights.critic > 0, parts),
        Row("the same as drawing trees, for a batch", sum(row.bytes for row in evaluating), "evaluation", batch),
    )
    return Estimate(tuple(row for row in rows if row.bytes))


def find_limit() -> Limit:
    """The first device's limit, or, where it has none of its own (a CPU), the machine's available memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return Limit(device.device_kind, stats["bytes_limit"])
    table = Path("/proc/meminfo")
    if table.exists():
        sizes = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return Limit("this machine", int(sizes["MemAvailable"].split()[0]) * 1024)
    return Limit("this machine", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def check_memory(estimate: Estimate, limit: Limit) -> Fit:
    """A run that fits. Raises UserError with the numbers, and with what would fit, for one that does not."""
    if estimate.peak <= limit.bytes:
        return Fit(estimate, limit)
    largest = find_largest(estimate, limit, max(_WHEN.keys() - {"always"}, key=estimate.total))
    raise UserError(
        f"memory: expected at most the {format_bytes(limit.bytes)} of {limit.device}, got about"
        f" {format_bytes(estimate.peak)}, of which {largest.name} {_WHEN[largest.when]} {format_bytes(largest.bytes)}:"
        f" try {largest.remedy}"
    )


def find_largest(estimate: Estimate, limit: Limit, when: str) -> Row:
    """The row to make smaller where a program does not fit: the largest of its own, or, where what is held all the time
    does not fit, which smaller batches do not change, of that.

    Args:
      estimate: of the run.
      limit: what there is.
      when: "trees", "update" or "evaluation".
    """
    when = "always" if estimate.total("always") > limit.bytes else when
    return max((row for row in estimate.rows if row.when == when), key=lambda row: row.bytes)


def print_fit(fit: Fit, console: Console) -> None:
    """Print what a run takes of what there is: a line, or, where it is much of it, the table."""
    estimate, limit = fit
    if estimate.peak > _LARGE_SHARE * limit.bytes:
        console.print(make_table(fit))
    else:
        console.print(f"memory: about {format_bytes(estimate.peak)}, of {format_bytes(limit.bytes)} ({limit.device})")


def make_table(fit: Fit) -> Table:
    """The rows of an estimate with its peak and what there is, for 80 columns."""
    estimate, limit = fit
    table = Table(title="Memory", show_footer=True)
    table.add_column("what", footer=f"peak, of {format_bytes(limit.bytes)} ({limit.device})", overflow="fold")
    table.add_column("when")
    table.add_column("size", justify="right", footer=format_bytes(estimate.peak))
    for row in estimate.rows:
        table.add_row(row.name, _WHEN[row.when], format_bytes(row.bytes))
    return table


def format_bytes(size: int) -> str:
    """A number of bytes in a unit that leaves few digits: 38.7 GB."""
    for unit, worth in (("GB", 10**9), ("MB", 10**6)):
        if size >= worth:
            return f"{size / worth:.1f} {unit}"
    return f"{size / 1000:.1f} kB"


def _list_paths(
    config: RunConfig, plans: Sequence[TurnPlan], problems: int, drawn: Plan
) -> list[list[tuple[int, int]]]:
    """The frames of every turn that a policy speaks in a branch, branch by branch."""
    return [
        _list_frames(turn, config, plans, problems, branch.fan_out)
        for branch in list_branches(drawn)
        for turn in range(len(branch.given), len(plans))
        if not plans[turn].is_environment
    ]


def _list_frames(
    index: int, config: RunConfig, plans: Sequence[TurnPlan], problems: int, fan_out: Sequence[int]
) -> list[tuple[int, int]]:
    """(rows, slots) of the frames of a turn's context, and of its messages last."""
    frames = []
    for frame in plans[index].frames:
        slots = count_slots(frame, plans, config.protocol.question_tokens)
        frames.append((rows_of(frame.level, problems, fan_out), slots))
    return [*frames, (problems * math.prod(fan_out[: index + 1]), plans[index].max_tokens)]


def _list_drawing(
    config: RunConfig, spec: DecoderSpec, plans: Sequence[TurnPlan], problems: int, drawn: Plan, parts: int
) -> list[Row]:
    """What drawing so many problems' trees takes."""
    paths, product = _list_paths(config, plans, -(-problems // parts), drawn), jnp.dtype(spec.dtype).itemsize
    fewer = f"rollout_problems below {problems}"
    return [
        Row("layers taken apart", spec.layers * _count_layer(spec) * product, "trees", fewer),
        Row("keys and values", max(_count_caches(spec, path) for path in paths), "trees", fewer),
        Row("one layer, logits", max(_count_drawing(spec, path) for path in paths), "trees", fewer),
    ]


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
    """One layer over the frames of a context, or the logits of a decoding step, some four times over."""
    inside = (2 * spec.mlp_width + 4 * spec.width) * _count_slots(path[:-1])
    return _F32 * max(inside, 4 * path[-1][0] * spec.vocab_size)


def _list_activations(  # noqa: PLR0913
    config: RunConfig,
    spec: DecoderSpec,
    plans: Sequence[TurnPlan],
    drawn: Plan,
    micro: int,
    has_critic: bool,
    parts: int,
) -> list[Row]:
    """What the backward pass of a micro-batch needs: kept by layer, computed again of one layer, and of the head.

    A critic's own network reads, and differentiates, the turns that are not trained too.
    """
    branches = list_branches(drawn)
    fan_outs = [branches[holder].fan_out for holder in list_credited(drawn)]
    every = [_list_frames(turn, config, plans, micro // parts, fan_out) for turn, fan_out in enumerate(fan_outs)]
    spoken = [(path, plan.role) for path, plan in zip(every, plans, strict=True) if plan.is_trained]
    trained = [path for path, _ in spoken]
    paths = every if has_critic else trained
    product, slots = jnp.dtype(spec.dtype).itemsize, sum(map(_count_slots, paths))
    inner, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    # Numbers of a slot in a layer: the stream always, then what the policy keeps.
    # An adapter's product stands beside the network's own, forward and backward; the widest are the MLP's.
    beside = [name for name in ("gate", "up") if config.policy.kind == "adapters" and name in config.policy.targets]
    inside = (4 + 2 * len(beside)) * spec.mlp_width + 5 * spec.width + 3 * inner + 3 * kv
    products = 2 * spec.mlp_width + spec.width + inner + 2 * kv
    kept = {"none": inside, "dots": products, "layer": 0}[spec.remat]
    # The frames of all turns go through a layer together, but where every role has a network of its own.
    networks = {role if config.policy.kind == "per_role" else "" for _, role in spoken}
    together = [sum(_count_slots(path) for path, role in spoken if network in ("", role)) for network in networks]
    widest = max(*together, *map(_count_slots, paths))
    scores = max(_count_scores(spec, path[: index + 1]) for path in paths for index in range(len(path)))
    tokens = sum(rows * length for *_, (rows, length) in trained)
    kept_layers = slots * spec.layers * (spec.width + kept) * product
    smaller = f"learner.micro_problems below {micro}"
    lighter = smaller if spec.remat == "layer" else f"model.remat layer, or {smaller}"
    return [
        Row(f"kept by layers, remat {spec.remat}", kept_layers, "update", lighter),
        Row("inside of one layer", widest * (inside - kept) * product + scores * _F32, "update", smaller),
        Row("logits, in chunks", _count_head(config, spec, tokens), "update", smaller),
    ]


def _count_scores(spec: DecoderSpec, path: Sequence[tuple[int, int]]) -> int:
    """Scores of a block of keys, three times: those of the last frame's queries. A kernel keeps its own on the chip,
    and gives log-sum-exps, of a TPU as many times as it has lanes.
    """
    queries, keys = path[-1][0] * path[-1][1] * spec.heads, sum(slots for _, slots in path)
    if spec.attention is not None and path[-1][1] >= LANES and spec.window is None:
        return queries * LANES
    return 3 * queries * min(keys, max(SCORE_FLOATS // queries, BLOCK_SLOTS))


def _count_head(config: RunConfig, spec: DecoderSpec, drawn: int) -> int:
    """A chunk's logits and their gradient, hidden states and theirs, and the head in the products' type."""
    entries = config.sampling.top_k
    size = size_chunk(drawn, spec.vocab_size, spec.width, entries)
    token = 2 * entries * spec.width if entries else 2 * spec.vocab_size
    block = min(CHUNK_FLOATS // 4, spec.vocab_size * spec.width)
    cast = 0 if spec.dtype == "float32" else spec.vocab_size * spec.width * jnp.dtype(spec.dtype).itemsize
    return _F32 * (size * token + block + 3 * drawn * spec.width) + cast
