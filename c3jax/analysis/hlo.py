"""The text of a program in XLA's intermediate language (HLO), read: computations, instructions, shapes and loops."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_COPIES = ("bitcast", "copy", "reshape", "optimization-barrier", "opt-barrier")
_CALLED = ("calls", "to_apply", "called_computations", "branch_computations", "true_computation", "false_computation")

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NUMBER = re.compile(r"(?:bf|f|s|u|c)(\d+)")  # a type of numbers and its bits
_METADATA = re.compile(r"kernel_metadata=\{\n(.*)\n\}")  # of a Pallas kernel, on lines of its own
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_OTHER_MEMORY = re.compile(r"S\([1-9]")  # of a layout: on the chip, or the host's


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str  # its attributes; of a constant its value, of a parameter its number

    def find(self, attribute: str) -> str:
        """An attribute that is a name, or a list in braces, without quotes and braces; empty where it has none."""
        found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|[%\"]?([\w.\-]+))", self.rest)
        return "" if found is None else found[1] or found[2] or ""


class Computation(NamedTuple):
    """The instructions by their names, in the order of the text."""

    lines: Mapping[str, Instruction]
    root: Instruction

    def list_op(self, op: str) -> list[Instruction]:
        """Its instructions of one kind."""
        return [line for line in self.lines.values() if line.op == op]


class Module(NamedTuple):
    """A program."""

    computations: Mapping[str, Computation]
    entry: str

    def list_called(self, line: Instruction) -> list[str]:
        """Names of the computations that an instruction calls; a loop's are not among them."""
        names = [name.strip().lstrip("%") for attribute in _CALLED for name in line.find(attribute).split(",")]
        return [name for name in names if name in self.computations]


class Loop(NamedTuple):
    """How often a loop runs."""

    trips: int
    is_open: bool  # at most so often: it may end before


def read_module(text: str) -> Module:
    """Read a program as JAX prints it, lowered (`compiler_ir("hlo")`) or compiled (`as_text`)."""
    computations: dict[str, Computation] = {}
    entry, name, lines, root = "", "", {}, None
    for line in _METADATA.sub(r"kernel_metadata={\1}", text).splitlines():
        if line.startswith("}"):
            computations[name] = Computation(lines, root or list(lines.values())[-1])
        elif not line.startswith(" "):
            head = _HEAD.match(line)
            if head is not None:
                name, lines, root = head[2], {}, None
                entry = name if head[1] else entry
        elif found := _LINE.match(line):
            lines[found[2]] = _read_instruction(found[2], found[3])
            root = lines[found[2]] if found[1] else root
    return Module(computations, entry)


def _read_instruction(name: str, text: str) -> Instruction:
    end = _find_close(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    close = _find_close(text, opening)
    op, inside = text[:opening], text[opening + 1 : close]
    if op in ("constant", "parameter"):
        return Instruction(name, shape, op, (), inside)
    # An operand may have its shape, with commas of its own, or a comment in front.
    operands = tuple(re.findall(r"[\w.\-]+", part)[-1] for part in _split(inside))
    return Instruction(name, shape, op, operands, text[close + 1 :])


def _find_close(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"no parenthesis closes that of {text[start : start + 80]!r}")


def _split(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for found in re.finditer(r"[()\[\]{},]", text):
        if found[0] != ",":
            depth += 1 if found[0] in "([{" else -1
        elif depth == 0:
            yield text[start : found.start()]
            start = found.end()
    if text[start:].strip():
        yield text[start:]


def list_sizes(shape: str) -> tuple[int, ...]:
    """The sizes of an array's shape."""
    found = _ARRAY.search(shape)
    return () if found is None else tuple(int(size) for size in found[2].split(",") if size)


def count_bytes(shape: str, is_main_only: bool = False) -> float:
    """Bytes of a shape's arrays, without what a layout pads them with.

    Args:
      shape: of an array or a tuple.
      is_main_only: count those in the device's main memory alone.
    """
    total = 0.0
    for kind, sizes, layout in _ARRAY.findall(shape):
        if not (is_main_only and _OTHER_MEMORY.search(layout)):
            found = _NUMBER.match(kind)
            bits = int(found[1]) if found else 8 if kind == "pred" else 0  # a token has none
            total += math.prod(int(size) for size in sizes.split(",") if size) * bits / 8
    return total


def find_loop(module: Module, computation: Computation, line: Instruction) -> Loop | None:
    """How often a loop runs: as the compiler says, or by the constant that its condition compares its counter with.

    A loop that takes up the counter of another that may end early goes on where that has ended: it runs 0 times where
    the other runs to its bound.

    Args:
      module: the program.
      computation: that the loop stands in.
      line: the while.

    Returns:
      None where neither can be read.
    """
    known = _TRIPS.search(line.rest)
    if known is not None:
        return Loop(int(known[1]), False)
    found = _find_bound(module, module.computations[line.find("condition")])
    if found is None:
        return None
    index, bound, is_open = found
    start = _find_start(computation, line, index)
    if start is not None and start.op == "while":
        return Loop(0, True)
    first = int(start.rest) if start is not None and start.op == "constant" else 0
    return Loop(max(bound - first, 0), is_open)


def _find_bound(module: Module, condition: Computation) -> tuple[int, int, bool] | None:
    """A condition's counter, by its index in the loop's tuple, its bound, and whether the loop may end before that."""
    scopes: list[tuple[Computation, Mapping[str, str]]] = [(condition, {})]
    for fusion in condition.list_op("fusion"):
        fused = module.computations[fusion.find("calls")]
        scopes.append((fused, {part.name: fusion.operands[int(part.rest)] for part in fused.list_op("parameter")}))
    for scope, outside in scopes:
        for line in scope.list_op("compare"):
            pair = [_chase(scope, condition, outside, name) for name in line.operands]
            if line.find("direction") == "GT":
                pair.reverse()
            counter, bound = pair
            is_bound = line.find("direction") in ("LT", "GT") and bound.op == "constant" and bound.rest.isdecimal()
            if is_bound and counter.op == "get-tuple-element":
                root = condition.root.name if scope is condition else scope.root.name
                is_open = line.name != root or (scope is not condition and condition.root.op != "fusion")
                return int(counter.find("index")), int(bound.rest), is_open
    return None


def _chase(scope: Computation, around: Computation, outside: Mapping[str, str], name: str) -> Instruction:
    """The instruction that a name stands for, in a fusion or in the computation around it."""
    line = scope.lines[name]
    while _is_copy(line) or line.name in outside:
        scope, name = (around, outside[line.name]) if line.name in outside else (scope, line.operands[0])
        outside = {} if scope is around else outside
        line = scope.lines[name]
    return line


def _find_start(computation: Computation, line: Instruction, index: int) -> Instruction | None:
    """What a loop's counter begins with: a constant, the loop before that left it so, or None."""
    start = computation.lines[line.operands[0]]
    path = [index]  # of the tuples that are still to be opened
    while True:
        if start.op == "tuple" and path:
            start = computation.lines[start.operands[path.pop()]]
        elif start.op == "get-tuple-element":
            path.append(int(start.find("index")))
            start = computation.lines[start.operands[0]]
        elif _is_copy(start):
            start = computation.lines[start.operands[0]]
        else:
            return start if start.op == "constant" or start.op == "while" else None


def _is_copy(line: Instruction) -> bool:
    """Whether an instruction gives what it is given; a note of how it is laid over devices does."""
    return line.op in _COPIES or (line.op == "custom-call" and line.find("custom_call_target") == "Sharding")
