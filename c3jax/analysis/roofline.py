"""How fast a chip can be at most, and the least time that a program's products and traffic take it (its roofline).

Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009: seconds >= max(FLOPs / peak, bytes / bandwidth).
"""

from __future__ import annotations

from typing import NamedTuple

from c3jax.analysis.costs import Cost, Costs


class Chip(NamedTuple):
    """What its maker publishes of a chip. GB are 10^9 bytes."""

    name: str
    bfloat16: float  # peak, 10^12 floating-point operations a second, dense
    float32: float  # the same of products of float32 numbers at their full precision
    bandwidth: float  # of its main memory, GB a second
    memory: float  # GB
    links: float  # what it can take in from other chips of its slice, or GPUs of its host, over all links; GB a second
    devices: int = 1  # as which JAX counts it, who share all of the above equally

    def share(self) -> Chip:
        """What one of its devices has."""
        bfloat16, float32, bandwidth, memory, links = (figure / self.devices for figure in self[1:6])
        return Chip(self.name, bfloat16, float32, bandwidth, memory, links)


def _tpu(name: str, bfloat16: float, bandwidth: float, memory: float, links: float, devices: int = 1) -> Chip:
    """TPUs multiply bfloat16; XLA makes a float32 product at its full precision of six such passes."""
    return Chip(name, bfloat16, bfloat16 / 6, bandwidth, memory, links, devices)


# TPUs: the page of each version on docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x). GPUs: NVIDIA, data sheets
# of the SXM modules (A100 of 80 GB, H100, H200), tensor cores without sparsity for bfloat16, others for float32. Links:
# half of what is published for both directions.
CHIPS = {
    "v4": _tpu("TPU v4", 275, 1200, 32, 300),
    "v5e": _tpu("TPU v5e", 197, 819, 16, 200),
    "v5p": _tpu("TPU v5p", 459, 2765, 95, 600),
    "v6e": _tpu("TPU v6e", 918, 1640, 32, 400),
    "tpu7x": _tpu("TPU7x", 2307, 7380, 192, 600, devices=2),
    "a100": Chip("A100", 312, 19.5, 2039, 80, 300),
    "h100": Chip("H100", 989, 67, 3350, 80, 450),
    "h200": Chip("H200", 989, 67, 4800, 141, 450),
}


def compute_seconds(chip: Chip, products: Costs, traffic: Costs) -> float:
    """The least seconds of one call of a program, the loops that may end early and the rest one after the other.

    Args:
      chip: what one device has (`Chip.share`).
      products: whose FLOPs count.
      traffic: whose bytes count; the same, or what a compiler made of it.
    """
    pairs = ((products.fixed, traffic.fixed), (products.open, traffic.open))
    return sum(_compute_least(chip, of_products, of_traffic) for of_products, of_traffic in pairs)


def compute_exchange(chip: Chip, traffic: Costs) -> float:
    """The least seconds that a device takes in what its collectives bring, where nothing else hides them.

    What is gathered it takes in once; what is summed over devices twice, as parts that it adds up and as the sums.

    Args:
      chip: what one device has (`Chip.share`).
      traffic: of a compiled program.
    """
    moved = traffic.total.moved
    return (sum(moved.values()) + moved["all-reduce"]) / chip.links / 1e9


def _compute_least(chip: Chip, products: Cost, traffic: Cost) -> float:
    peaks = {"bf16": chip.bfloat16, "f16": chip.bfloat16}
    seconds = sum(flops / peaks.get(kind, chip.float32) for kind, flops in products.flops.items()) / 1e12
    return max(seconds, traffic.bytes / chip.bandwidth / 1e9)
