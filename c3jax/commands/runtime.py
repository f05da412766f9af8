"""What a process of the command line is set to before JAX compiles anything."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import jax
from rich.console import Console

from c3jax import processes
from c3jax.commands import terminal
from c3jax.types import UserError

# Of a TPU's chips, with Google's driver and with VFIO's. libtpu reaches none without them.
_TPU_NODES = ("/dev/accel*", "/dev/vfio/*")

_SHARED_CODE = "xla_tpu_enable_deduplicated_calls"  # a flag of a TPU's compiler


def set_up_process(joins: bool = False) -> Console:
    """Set numerics, the compilation cache and what libraries say, before JAX compiles anything.

    Args:
      joins: meet the run's other processes, where there are any.

    Returns:
      The console of the command; it prints nothing in a process that is not the run's first.

    Raises:
      UserError: JAX_PLATFORMS names a device that is not there, or the other processes do not come.
    """
    set_numerics()
    set_tpu_compiler()
    # A cache that grows for ever fills the disk; what was not used for longest goes first.
    jax.config.update("jax_compilation_cache_max_size", 4 << 30)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "c3jax" / "xla"
    for entry in cache.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
            entry.unlink(missing_ok=True)  # half written by a program that was killed: JAX would warn at every write
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    silence_absent_tpu()
    if joins:
        processes.join_others()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # cuda without its plugin: an assertion that says nothing
        fault = next(iter(str(error).splitlines()), "expected devices that are here, got none (its plugin is missing)")
        raise UserError(f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {fault}") from None
    return terminal.make_console(is_mute=joins and not processes.is_first())


def set_numerics() -> None:
    """Set how products are computed, and what libraries say; nothing is compiled and no device asked for."""
    # float32 means float32 on every device: accelerators would otherwise round the factors of a product.
    jax.config.update("jax_default_matmul_precision", "float32")
    # Without PyTorch, which nothing here needs, transformers says so whenever a tokenizer is loaded.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def set_tpu_compiler() -> None:
    """Have a TPU's compiler write code that occurs several times in a program once, and call it.

    An update has its layers several times (forward, for remat, of the reference): a third less code, and all else that
    the compiler plans is the same (docs/scaling.md). It must be asked for before libtpu is loaded; nothing else reads
    the variable. What the user says of the flag stands, and a libtpu that does not know it goes on.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _SHARED_CODE not in given:
        asked = f"--undefok={_SHARED_CODE} --{_SHARED_CODE}=ENABLED"
        os.environ["LIBTPU_INIT_ARGS"] = f"{asked} {given}".strip()


def silence_absent_tpu() -> None:
    """Keep libtpu from complaining on a machine without a TPU, of which JAX asks it wherever it is installed.

    It would be told of a TPU's hosts by their names, or complain that nobody did; where a platform is asked for by its
    name, or a chip is there, it is left alone.
    """
    if not os.environ.get("JAX_PLATFORMS") and not any(map(glob.glob, _TPU_NODES)):
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
