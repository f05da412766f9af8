"""A role's adapter out of the program: merged into the kernels it corrects, or as a folder that PEFT loads.

An adapter is {projection: {"a": [L, in, rank], "b": [L, rank, out]}} and corrects y = x W to x W + scale (x a) b with
scale = alpha / rank (LoRA, arXiv 2106.09685). PEFT stores each layer's a and b transposed.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.spec import Family
from c3jax.types import Params


def merge_kernel(kernel: jax.Array, part: Params, scale: float) -> jax.Array:
    """W + scale a b, f32, for one layer [in, out] or for all of them [L, in, out].

    Args:
      kernel: W.
      part: {"a": [in, rank], "b": [rank, out]}, or with [L] in front.
      scale: alpha / rank.
    """
    change = jnp.matmul(part["a"], part["b"], precision=jax.lax.Precision.HIGHEST)
    return kernel.astype(jnp.float32) + scale * change


def save_peft_folder(
    folder: str | Path, family: Family, adapter: Params, alpha: float, base: str, revision: str | None = None
) -> None:
    """Write adapter_config.json and adapter_model.safetensors (f32).

    Args:
      folder: made where it is not there.
      family: of the decoder below the adapter.
      adapter: its parameters.
      alpha: its products are scaled by alpha / rank.
      base, revision: under which PEFT finds the decoder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {projection: hf_weights.name_projection(family, projection) for projection in adapter}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": next(iter(adapter.values()))["a"].shape[-1],
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [name.rpartition(".")[2] for name in names.values()],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for projection, part in adapter.items():
        for letter, leaf in (("A", part["a"]), ("B", part["b"])):
            for layer, matrix in enumerate(np.asarray(leaf)):
                name = f"base_model.model.model.layers.{layer}.{names[projection]}.lora_{letter}.weight"
                tensors[name] = matrix.T
    shapes = {name: matrix.shape for name, matrix in tensors.items()}
    hf_weights.write_tensors(folder / "adapter_model.safetensors", shapes, tensors.__getitem__, "float32")
