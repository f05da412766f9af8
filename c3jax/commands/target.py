"""Devices that programs are compiled for without being here: a TPU slice, GPUs, or several of this machine's CPU.

A TPU's compiler is part of the package libtpu, NVIDIA's of JAX's CUDA plugin, which is told what a GPU is by a target
config (XLA's GpuTargetConfigProto as text). Where it is not installed programs are lowered for the platform alone.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from c3jax.analysis.roofline import CHIPS, Chip
from c3jax.types import UserError

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_MOST_CPUS = 4096  # with ten times as many JAX does not come to an end
_SIZES = re.compile(r"[1-9]\d*(x[1-9]\d*)*")


class Target(NamedTuple):
    """What programs are compiled for."""

    platform: str  # tpu, cuda or cpu
    topology: str
    devices: tuple[Any, ...]  # over which a mesh may be laid
    chips: int
    device: Chip | None  # what one device has; None for a CPU
    missing: str  # why programs are lowered alone; empty where they are compiled


class Memory(NamedTuple):
    """What a compiler plans that a program takes of each device, in bytes."""

    arguments: int
    outputs: int
    aliased: int  # of these, written where arguments were
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """Bytes while the program runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class Compiled(NamedTuple):
    """A program as it was lowered and, where there is a compiler, compiled."""

    lowered: str  # HLO text, of one device's part
    seconds: float  # of compiling
    memory: Memory | None  # None where it was lowered alone, or did not fit
    optimised: str | None  # the compiled program's text
    refusal: str  # the compiler's own sentence where the program does not fit its memory


def check_topology(platform: str, topology: str) -> tuple[str, str]:
    """Take a topology apart, into its chip's name and its sizes, without JAX.

    Args:
      platform, topology: as `open_target` takes them.

    Raises:
      UserError: no chip is called so, or the sizes are none.
    """
    name, _, sizes = topology.rpartition(":") if platform != "cpu" else ("cpu", "", topology or "1")
    if not _SIZES.fullmatch(sizes) or (platform != "cpu" and name not in CHIPS):
        known = "a number of devices" if platform == "cpu" else f"one of {', '.join(CHIPS)}, a colon and sizes, v5e:4x4"
        raise UserError(f"--topology: expected {known}, got {topology!r}")
    return name, sizes


def open_target(platform: str, topology: str, target_config: Path | None = None) -> Target:
    """The devices that a topology names. Where these are several of a CPU, JAX must not have been asked for one yet.

    Args:
      platform: tpu, cuda or cpu.
      topology: of a TPU or GPU its chip, a colon and the devices, v5e:4x4 or h100:1x1x8; of a CPU their number.
      target_config: what a GPU is, for CUDA's compiler.

    Raises:
      UserError: there is no such topology, or the file cannot be read.
    """
    import jax

    name, sizes = check_topology(platform, topology)
    if target_config is not None and not target_config.is_file():
        raise UserError(f"--target-config: expected a file, got {target_config}, which is none")
    chip, chips = CHIPS.get(name), math.prod(map(int, sizes.split("x")))
    jax.config.update("jax_platforms", "cpu")  # whatever else is here is not asked for
    devices, missing = (), ""
    if platform == "tpu" and importlib.util.find_spec("libtpu") is not None:
        devices = _describe_tpus(topology, sizes)
    elif platform == "tpu":
        missing = "libtpu is not installed (extra: tpu)"
    elif platform == "cuda" and target_config is not None and any(map(importlib.util.find_spec, _PLUGINS)):
        devices = _describe_gpus(topology, sizes, target_config)
    elif platform == "cuda":
        missing = "it takes JAX's CUDA plugin (extra: cuda or cuda12) and --target-config"
    if chip is None:
        return Target(platform, topology, _list_cpus(chips), chips, None, "")
    devices = devices or _list_cpus(chips * chip.devices)
    # Of a chip with two cores some versions are one device and some are two.
    share = chip._replace(devices=len(devices) // chips).share()
    return Target(platform, topology, devices, chips, share, missing)


def _describe_tpus(topology: str, sizes: str) -> tuple[Any, ...]:
    # libtpu would ask a cloud's metadata server what it runs on, complain of a host without a name, and keep every
    # other process that compiles from starting.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")  # of any; the topology asked for is another matter
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A host has four chips where nothing else is told.
    bounds = (*map(int, sizes.split("x")), 1, 1)[:3]
    return _describe(topology, "tpu", {"chips_per_host_bounds": bounds} if math.prod(bounds) < 4 else {})


def _describe_gpus(topology: str, sizes: str, target_config: Path) -> tuple[Any, ...]:
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it would look for a driver
    try:
        text = target_config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--target-config {target_config}: cannot be read ({error})") from None
    whole = "1x" * (2 - sizes.count("x")) + sizes  # slices, hosts and devices
    return _describe(topology, "cuda", {"target_config": text, "topology": whole})


def _describe(topology: str, platform: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    import jax
    from jax.experimental import topologies

    try:
        return tuple(topologies.get_topology_desc(topology, platform, **options).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--topology {topology}: cannot be had ({reason:.200})") from None


def _list_cpus(count: int) -> tuple[Any, ...]:
    import jax

    if count > _MOST_CPUS:
        raise UserError(f"--topology: expected at most {_MOST_CPUS:,} devices that a CPU stands for, got {count:,}")
    if count > 1:
        jax.config.update("jax_num_cpu_devices", count)
    return tuple(jax.devices("cpu")[:count])


def compile_for(target: Target, function: Any, arguments: Sequence[Any], **static: Any) -> Compiled:
    """Lower a jitted function and, where the target has a compiler, compile it.

    Args:
      target: whose devices the arguments' shardings are of.
      function: from jax.jit.
      arguments: their shapes, each with its sharding.
      static: the static ones.

    Returns:
      The program.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses it for another reason than its size.
    """
    import jax

    traced = function.trace(*arguments, **static)
    lowered = traced.lower(lowering_platforms=(target.platform,)) if target.missing else traced.lower()
    text = lowered.compiler_ir("hlo").as_hlo_text()
    if target.missing:
        return Compiled(text, 0.0, None, None, "")
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = re.search(r"Used \S+ of \S+ hbm", str(error))
        refusal = found[0] if found else " ".join(str(error).split())[:200]
        return Compiled(text, time.perf_counter() - began, None, None, refusal)
    seconds, planned = time.perf_counter() - began, compiled.memory_analysis()
    memory = Memory(
        planned.argument_size_in_bytes,
        planned.output_size_in_bytes,
        planned.alias_size_in_bytes,
        planned.temp_size_in_bytes,
        planned.generated_code_size_in_bytes,
    )
    return Compiled(text, seconds, memory, compiled.as_text(), "")
