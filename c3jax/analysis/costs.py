"""What a program costs one device, read off its HLO: products, traffic with its memory, and collectives.

A loop's body is counted as often as it runs. A loop that may end early, as decoding does when every row has stopped, is
counted up to its bound, and apart from all the rest.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from c3jax.analysis.hlo import Computation, Instruction, Module, count_bytes, find_loop, list_sizes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("optimization-barrier", "opt-barrier", "add-dependency", "while", "conditional", "call"),
}
_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"  # of a collective that a TPU's compiler cuts into fusions
_FLAG = re.compile(r'"flag_start":"(-?\d+)"')
# Kernels of attention, by what is in their text, and how many products of all queries with all keys each makes: forward
# two, and backward again the scores, and the gradients of weights, values, keys and queries.
_CUDNN, _CUDNN_BACK = '"__cudnn$fmhaScaleBiasSoftmax"', '"__cudnn$fmhaScaleBiasSoftmaxBackward"'
_KERNELS = {_CUDNN: 2, _CUDNN_BACK: 5, r"\"block_q\"": 2, r"\"block_q_dkv\"": 5}
_SLICES = ("dynamic-slice", "slice", "gather")


class Cost(NamedTuple):
    """What one device does."""

    flops: Counter[str]  # of products, by the type of what is multiplied; a multiplication and an addition are two
    bytes: float  # read from and written to its main memory
    calls: Counter[str]  # collectives, by their kind
    moved: Counter[str]  # their bytes: of what a device begins or ends with the larger


class Costs(NamedTuple):
    """A program's cost, in two parts."""

    fixed: Cost
    open: Cost  # in loops that may end early, counted to their bounds
    unread: int  # loops whose bound cannot be read; they are counted once

    @property
    def total(self) -> Cost:
        """Both parts."""
        return _add([self.fixed, self.open])


def compute_costs(module: Module) -> Costs:
    """Add up what a program costs one device.

    Products are those written as such (`dot`), and a kernel's of attention: all of them in a program that is lowered
    alone, while a compiler may write them in other ways. Traffic takes every instruction for a pass over its operands
    and results, which holds for what a compiler has fused and for no other program.
    """
    return _Count(module).count(module.entry)


def share_costs(costs: Costs, parts: int) -> Costs:
    """A part of as many equal ones of a program's costs."""
    return Costs(_scale(costs.fixed, 1, parts), _scale(costs.open, 1, parts), costs.unread)


class _Count:
    """A count that goes through each computation once."""

    def __init__(self, module: Module):
        self.module = module
        self.known: dict[tuple[str, bool], Costs] = {}

    def count(self, name: str, is_fused: bool = False) -> Costs:
        """The costs of a computation. Inside of a fusion nothing goes through memory."""
        if (name, is_fused) not in self.known:
            computation = self.module.computations[name]
            parts = [self._count_line(computation, line, is_fused) for line in computation.lines.values()]
            self.known[name, is_fused] = _join(parts)
        return self.known[name, is_fused]

    def _count_line(self, computation: Computation, line: Instruction, is_fused: bool) -> Costs:
        if line.op == "while":
            return self._count_loop(computation, line)
        if line.op == "conditional":  # the larger branch
            return max((self.count(name) for name in self.module.list_called(line)), key=_weigh)
        # What a reduction does to two numbers is no cost beside it.
        is_calling = line.op in ("call", "fusion", "async-start", "custom-call")
        called = self.module.list_called(line) if is_calling else []
        parts = [self.count(name, is_fused or line.op != "call") for name in called]
        kind, calls, moved = line.op.removesuffix("-start"), Counter(), Counter()
        if kind in COLLECTIVES and not _goes_on(line):
            calls[kind], moved[kind] = 1, int(_count_moved(computation, line))
        count = {"dot": _count_product, "custom-call": _count_kernel}.get(line.op)
        flops = Counter() if count is None else count(computation, line)
        own = Cost(flops, 0.0 if is_fused else self._count_traffic(computation, line), calls, moved)
        return _join([Costs(own, _NOTHING, 0), *parts])

    def _count_loop(self, computation: Computation, line: Instruction) -> Costs:
        body, loop = self.count(line.find("body")), find_loop(self.module, computation, line)
        if loop is None:
            return body._replace(unread=body.unread + 1)
        if loop.is_open:
            return Costs(_NOTHING, _scale(body.total, loop.trips), body.unread)
        return Costs(_scale(body.fixed, loop.trips), _scale(body.open, loop.trips), body.unread)

    def _count_traffic(self, computation: Computation, line: Instruction) -> float:
        if line.op in _FREE or line.op.endswith("-start"):
            return 0.0
        sources = [computation.lines[name] for name in line.operands]
        if line.op.endswith("-done"):  # read where it began, written where it ends
            began = [computation.lines[name] for source in sources for name in source.operands[:1]]
            return _size(line) + min(sum(map(_size, began)), count_bytes(line.shape))
        if line.op == "fusion":
            fused = self.module.computations[line.find("calls")]
            of_parameters = {int(part.rest): part.name for part in fused.list_op("parameter")}
            read = [min(_size(sources[index]), self._count_read(fused, name)) for index, name in of_parameters.items()]
            return sum(read) + min(_size(line), self._count_written(fused, fused.root))
        if line.op in _SLICES:
            return count_bytes(line.shape) * sum(_size(part) > 0 for part in (line, sources[0]))
        if line.op in ("dynamic-update-slice", "scatter"):
            return 2 * count_bytes(sources[-1 if line.op == "scatter" else 1].shape) if _size(line) else 0.0
        return _size(line) + sum(map(_size, sources))

    def _count_read(self, fused: Computation, name: str) -> float:
        """Bytes of a fusion's operand that it reads: of one that is only sliced the slices."""
        # What it gives on as it is, whatever is around it reads.
        total = count_bytes(fused.root.shape) if fused.root.name == name else 0.0
        for user in fused.lines.values():
            if name not in user.operands:
                continue
            if _is_beside(fused, user):
                continue
            if user.op == "bitcast" or "output_to_operand_aliasing" in user.rest:
                total += self._count_read(fused, user.name)
            elif user.op in _SLICES and user.operands[0] == name:
                total += count_bytes(user.shape)
            elif user.op == "fusion":
                inner = self.module.computations[user.find("calls")]
                parts = [part for part in inner.list_op("parameter") if user.operands[int(part.rest)] == name]
                total += sum(self._count_read(inner, part.name) for part in parts)
            elif user.op != "dynamic-update-slice" or name in user.operands[1:]:  # it is updated in its buffer
                total += count_bytes(fused.lines[name].shape)
        return total

    def _count_written(self, fused: Computation, line: Instruction) -> float:
        """Bytes of a fusion's result that it writes: of one that is updated in its buffer the update."""
        if line.op == "tuple":
            return sum(self._count_written(fused, fused.lines[name]) for name in line.operands)
        if _is_beside(fused, line):
            return _size(line) if line.find("custom_call_target") == _DONE else 0.0
        if line.op == "bitcast":
            return self._count_written(fused, fused.lines[line.operands[0]])
        if line.op == "fusion":
            inner = self.module.computations[line.find("calls")]
            return self._count_written(inner, inner.root)
        return count_bytes((fused.lines[line.operands[1]] if line.op == "dynamic-update-slice" else line).shape)


def _is_beside(fused: Computation, line: Instruction) -> bool:
    """Whether an instruction of a fusion is part of a collective that goes on beside it, or hands its buffers on.

    A TPU's compiler cuts a collective into a fusion that begins it, many that go on with it beside other work, each of
    which has it in its text, and one that ends it.
    """
    parts = [part for part in fused.lines.values() if _goes_on(part) or part.find("custom_call_target") == _START]
    return bool(parts) and (_goes_on(line) or line.op == "parameter" or line is fused.root)


def _goes_on(line: Instruction) -> bool:
    """Whether an instruction is a collective that was begun, and counted, before."""
    found = _FLAG.search(line.rest)
    return line.op in COLLECTIVES and found is not None and found[1] != "-1"


def _size(line: Instruction) -> float:
    return count_bytes(line.shape, is_main_only=True)


def _count_product(computation: Computation, line: Instruction) -> Counter[str]:
    left = computation.lines[line.operands[0]].shape
    sizes = list_sizes(left)
    summed = math.prod(sizes[int(axis)] for axis in line.find("lhs_contracting_dims").split(",") if axis)
    return Counter({left.partition("[")[0]: 2 * summed * math.prod(list_sizes(line.shape))})


def _count_kernel(computation: Computation, line: Instruction) -> Counter[str]:
    mark = next((mark for mark in _KERNELS if mark in line.rest), None)
    if mark is None:
        return Counter()
    shapes = [computation.lines[name].shape for name in line.operands]
    query, key = [shape for shape in shapes if shape.startswith(("bf16", "f32"))][:2]
    slots = list_sizes(key)[1 if mark in (_CUDNN, _CUDNN_BACK) else -2]  # of rows, slots, heads; or heads, slots
    return Counter({query.partition("[")[0]: 2 * _KERNELS[mark] * math.prod(list_sizes(query)) * slots})


def _count_moved(computation: Computation, line: Instruction) -> float:
    began = sum(count_bytes(computation.lines[name].shape) for name in line.operands)
    ended = count_bytes(line.shape)
    if line.op.endswith("-start") and ended > began:
        ended -= began  # its result holds what it began with too
    return max(began, ended)


def _weigh(costs: Costs) -> tuple[float, float]:
    total = costs.total
    return sum(total.flops.values()), total.bytes


_NOTHING = Cost(Counter(), 0.0, Counter(), Counter())


def _scale(cost: Cost, times: int, parts: int = 1) -> Cost:
    counts = (cost.flops, cost.calls, cost.moved)
    flops, calls, moved = (Counter({kind: n * times // parts for kind, n in part.items()}) for part in counts)
    return Cost(flops, cost.bytes * times / parts, calls, moved)


def _add(parts: Sequence[Cost]) -> Cost:
    total = Cost(Counter(), sum(part.bytes for part in parts), Counter(), Counter())
    for part in parts:
        total.flops.update(part.flops)
        total.calls.update(part.calls)
        total.moved.update(part.moved)
    return total


def _join(parts: Sequence[Costs]) -> Costs:
    return Costs(
        _add([part.fixed for part in parts]), _add([part.open for part in parts]), sum(part.unread for part in parts)
    )
