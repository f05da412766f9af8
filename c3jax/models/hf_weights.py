"""Weights in and out of Hugging Face folders: config.json and safetensors, of the Llama, Qwen2 and Qwen3 families.

A folder's kernel is [outputs, inputs] and a file names one per layer; the decoder's is [L, inputs, outputs].
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from c3jax.models import decoder
from c3jax.models.tokenizer import read_json
from c3jax.types import UserError


class _Family(NamedTuple):
    model_type: str
    qkv_bias: bool
    qk_norm: bool


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", qkv_bias=False, qk_norm=False),
    "Qwen2ForCausalLM": _Family("qwen2", qkv_bias=True, qk_norm=False),
    "Qwen3ForCausalLM": _Family("qwen3", qkv_bias=False, qk_norm=True),
}

# Parameter of the decoder -> tensor of a folder; a layer's stand under model.layers.<number>.
_WHOLE_TENSORS: dict[tuple[str, ...], str] = {
    ("embedding",): "model.embed_tokens.weight",
    ("final_norm",): "model.norm.weight",
    ("head",): "lm_head.weight",
}
_LAYER_TENSORS: dict[tuple[str, ...], str] = {
    ("attention_norm",): "input_layernorm.weight",
    ("query", "kernel"): "self_attn.q_proj.weight",
    ("query", "bias"): "self_attn.q_proj.bias",
    ("key", "kernel"): "self_attn.k_proj.weight",
    ("key", "bias"): "self_attn.k_proj.bias",
    ("value", "kernel"): "self_attn.v_proj.weight",
    ("value", "bias"): "self_attn.v_proj.bias",
    ("output", "kernel"): "self_attn.o_proj.weight",
    ("query_norm",): "self_attn.q_norm.weight",
    ("key_norm",): "self_attn.k_norm.weight",
    ("mlp_norm",): "post_attention_layernorm.weight",
    ("gate", "kernel"): "mlp.gate_proj.weight",
    ("up", "kernel"): "mlp.up_proj.weight",
    ("down", "kernel"): "mlp.down_proj.weight",
}
_FLOATS = ("F32", "F16", "BF16")


def load_folder(folder: str | Path) -> tuple[decoder.DecoderSpec, dict]:
    """Read a Hugging Face folder: the decoder's sizes and its parameters, a tree of f32 numpy arrays.

    Tensors are read one at a time, from model.safetensors or the files of model.safetensors.index.json. Raises
    UserError, in one sentence, where config.json asks for something the decoder does not do or a tensor is missing,
    unknown, of another shape or type, or cut off.
    """
    folder = Path(folder)
    spec = _read_spec(folder / "config.json")
    files = _find_tensors(folder)
    _check_names(folder, spec, files)

    def read_tensor(name: str) -> np.ndarray:
        with _open_file(files[name]) as file:
            stored = file.get_slice(name).get_dtype()
            if stored not in _FLOATS:
                raise UserError(f"{files[name]}: expected {name} of type {', '.join(_FLOATS)}, got {stored}")
            return file.get_tensor(name)

    params = stack_tensors(spec, read_tensor)
    if spec.tied and "lm_head.weight" in files:
        if not np.array_equal(read_tensor("lm_head.weight"), params["embedding"]):
            raise UserError(f"{folder}: expected lm_head.weight to be the tied embedding, got another tensor")
    return spec, params


def save_folder(folder: str | Path, spec: decoder.DecoderSpec, params: dict) -> None:
    """Write config.json and model.safetensors (f32), which load_folder and transformers read back bit for bit.

    The type of the products and remat are of a run, not of a model, and are not written. Raises UserError for a spec
    that is of none of the three families.
    """
    folder = Path(folder)
    architecture = next(
        (name for name, family in _FAMILIES.items() if family[1:] == (spec.qkv_bias, spec.qk_norm)), None
    )
    if architecture is None:
        raise UserError("expected a decoder of a known family, got one with both qkv_bias and qk_norm")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_make_config(spec, architecture), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    flat = _flatten(params)
    tensors = {}
    for name, (path, layer) in _tensor_table(spec).items():
        array = np.asarray(flat[path] if layer is None else flat[path][layer], np.float32)
        tensors[name] = np.ascontiguousarray(array.T if path[-1] == "kernel" else array)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def stack_tensors(spec: decoder.DecoderSpec, read_tensor: Callable[[str], np.ndarray]) -> dict:
    """The decoder's parameters, f32 numpy arrays, from a function that reads a tensor by its Hugging Face name.

    Raises UserError naming a tensor whose shape is not the spec's.
    """
    shapes = {path: leaf.shape for path, leaf in _flat_shapes(spec).items()}
    flat = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for name, (path, layer) in _tensor_table(spec).items():
        array = read_tensor(name)
        shape = shapes[path] if layer is None else shapes[path][1:]
        wanted = shape[::-1] if path[-1] == "kernel" else shape
        if array.shape != wanted:
            raise UserError(f"expected {name} of shape {list(wanted)}, as config.json has it, got {list(array.shape)}")
        target = flat[path] if layer is None else flat[path][layer]
        target[...] = array.T if path[-1] == "kernel" else array
    return traverse_util.unflatten_dict(flat)


def _flat_shapes(spec: decoder.DecoderSpec) -> dict[tuple[str, ...], Any]:
    _, shapes = decoder.define_decoder(spec)
    return _flatten(shapes)


def _flatten(tree: dict) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(tree)


def _tensor_table(spec: decoder.DecoderSpec) -> dict[str, tuple[tuple[str, ...], int | None]]:
    table: dict[str, tuple[tuple[str, ...], int | None]] = {}
    for path in _flat_shapes(spec):
        if path[0] == "blocks":
            for layer in range(spec.layers):
                table[f"model.layers.{layer}.{_LAYER_TENSORS[path[1:]]}"] = (path, layer)
        else:
            table[_WHOLE_TENSORS[path]] = (path, None)
    return table


# --------------------------------------------------------------------------------------------------------------------
# Tensor files


def _find_tensors(folder: Path) -> dict[str, Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: expected weight_map to name a file for every tensor, got {weight_map!r:.60}")
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    elif single.exists():
        paths = [single]
    else:
        raise UserError(f"{folder}: expected model.safetensors or model.safetensors.index.json, got neither")
    files: dict[str, Path] = {}
    for path in paths:
        with _open_file(path) as file:
            files.update(dict.fromkeys(file.keys(), path))
    return files


def _open_file(path: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except OSError:
        raise UserError(f"{path}: expected a file of tensors, got none that can be read") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: expected a whole safetensors file, got a broken one ({error})") from None


def _check_names(folder: Path, spec: decoder.DecoderSpec, files: dict[str, Path]) -> None:
    wanted = _tensor_table(spec)
    for name in wanted:
        if name not in files:
            raise UserError(f"{folder}: expected a tensor {name}, got files without it")
    for name, path in files.items():
        # Old exports carry the rotary frequencies, which config.json gives, and tied ones the output head.
        is_derived = name.endswith(".rotary_emb.inv_freq") or (spec.tied and name == "lm_head.weight")
        if name not in wanted and not is_derived:
            raise UserError(f"{path}: expected only tensors that config.json asks for, got {name}")


# --------------------------------------------------------------------------------------------------------------------
# config.json


def _read_spec(path: Path) -> decoder.DecoderSpec:
    config = read_json(path)
    architecture = config.get("architectures")
    if not isinstance(architecture, list) or len(architecture) != 1 or architecture[0] not in _FAMILIES:
        raise UserError(f"{path}: expected architectures to be one of {', '.join(_FAMILIES)}, got {architecture!r}")
    family = _FAMILIES[architecture[0]]
    _check_plain(path, config)
    width, heads = _read_size(path, config, "hidden_size"), _read_size(path, config, "num_attention_heads")
    # transformers gives Qwen3 heads of 128 where config.json is silent, the others width / heads.
    if config.get("head_dim") is None and (family.qk_norm or width % heads):
        raise UserError(f"{path}: expected head_dim, got none")
    spec = decoder.DecoderSpec(
        vocab_size=_read_size(path, config, "vocab_size"),
        layers=_read_size(path, config, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=_read_size(path, config, "num_key_value_heads", default=heads),
        head_dim=_read_size(path, config, "head_dim", default=width // heads),
        mlp_width=_read_size(path, config, "intermediate_size"),
        context=_read_size(path, config, "max_position_embeddings"),
        rope_theta=_read_rope_theta(path, config),
        norm_eps=_read_number(path, config, "rms_norm_eps"),
        tied=_read_flag(path, config, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
    )
    if spec.heads % spec.kv_heads or spec.head_dim % 2:
        raise UserError(
            f"{path}: expected num_key_value_heads that divides num_attention_heads and an even head_dim,"
            f" got {spec.kv_heads}, {spec.heads} and {spec.head_dim}"
        )
    return spec


def _check_plain(path: Path, config: dict[str, Any]) -> None:
    """Refuse what would change the forward pass and the decoder does not do."""
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if _read_flag(path, config, name):
            raise UserError(f"{path}: expected {name} to be false, got true")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{path}: expected hidden_act silu, got {config['hidden_act']!r}")
    if config.get("quantization_config") is not None:
        raise UserError(f"{path}: expected weights that are not quantised, got a quantization_config")
    layer_types = config.get("layer_types") or []
    if any(kind != "full_attention" for kind in layer_types):
        raise UserError(f"{path}: expected layer_types of full_attention only, got {sorted(set(layer_types))}")
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise UserError(f"{path}: expected {name} to be an object, got {rope!r}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise UserError(f"{path}: expected {name} of type default over whole heads, got {json.dumps(rope)}")


def _read_size(path: Path, config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise UserError(f"{path}: expected {name} to be a positive integer, got {value!r}")
    return value


def _read_number(path: Path, config: dict[str, Any], name: str) -> float:
    value: Any = config.get(name)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise UserError(f"{path}: expected {name} to be a positive number, got {value!r}")
    return float(value)


def _read_flag(path: Path, config: dict[str, Any], name: str) -> bool:
    value = config.get(name, False)  # what the three families mean by leaving any of these out
    if type(value) is not bool:
        raise UserError(f"{path}: expected {name} to be true or false, got {value!r}")
    return value


def _read_rope_theta(path: Path, config: dict[str, Any]) -> float:
    # transformers 5 moved it into rope_parameters.
    where = config.get("rope_parameters") or {}
    return _read_number(path, where if "rope_theta" in where else config, "rope_theta")


def _make_config(spec: decoder.DecoderSpec, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": _FAMILIES[architecture].model_type,
        "torch_dtype": "float32",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tied,
    }
