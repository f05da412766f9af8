"""What is set once per process, before JAX compiles anything."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from rich.console import Console


def prepare() -> Console:
    """Set numerics, the compilation cache and what libraries say; returns the console that commands print to."""
    # float32 means float32 on every device: accelerators would otherwise round the factors of a product.
    jax.config.update("jax_default_matmul_precision", "float32")
    # Without PyTorch, which nothing here needs, transformers says so whenever a tokenizer is loaded.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "c3jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return Console(highlight=False, markup=False)
