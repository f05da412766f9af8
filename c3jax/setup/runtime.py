"""What a process of the command line is set to before JAX compiles anything."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from c3jax.types import UserError


def set_up_process() -> Console:
    """Set numerics, the compilation cache and what libraries say, before JAX compiles anything.

    Returns:
      The console of the command.

    Raises:
      UserError: JAX_PLATFORMS names a device that is not there.
    """
    # float32 means float32 on every device: accelerators would otherwise round the factors of a product.
    jax.config.update("jax_default_matmul_precision", "float32")
    # A cache that grows for ever fills the disk; what was not used for longest goes first.
    jax.config.update("jax_compilation_cache_max_size", 4 << 30)
    warnings.showwarning = _print_warning
    # Without PyTorch, which nothing here needs, transformers says so whenever a tokenizer is loaded.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "c3jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {str(error).splitlines()[0]}") from None
    return Console(highlight=False, markup=False)


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print what a user can do something about; what libraries tell each other's developers is not."""
    if category is UserWarning:
        print(f"c3jax: warning: {message}", file=sys.stderr)
