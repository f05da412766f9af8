"""config.json of a Hugging Face folder to the decoder's sizes and back, for the Llama, Qwen2 and Qwen3 families."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from c3jax.models.decoder import DecoderSpec, RopeScaling
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


def read_spec(path: Path) -> DecoderSpec:
    """The sizes that a config.json states. Raises UserError, in one sentence, where the decoder cannot follow it."""
    config = read_json(path)
    architecture = config.get("architectures")
    if not isinstance(architecture, list) or len(architecture) != 1 or architecture[0] not in _FAMILIES:
        raise UserError(f"{path}: expected architectures to be one of {', '.join(_FAMILIES)}, got {architecture!r}")
    family = _FAMILIES[architecture[0]]
    _check_plain(path, config)
    rope = _find_rope(path, config)
    width, heads = _read_size(path, config, "hidden_size"), _read_size(path, config, "num_attention_heads")
    # transformers gives Qwen3 heads of 128 where config.json is silent, the others width / heads.
    if config.get("head_dim") is None and (family.qk_norm or width % heads):
        raise UserError(f"{path}: expected head_dim, got none")
    spec = DecoderSpec(
        vocab_size=_read_size(path, config, "vocab_size"),
        layers=_read_size(path, config, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=_read_size(path, config, "num_key_value_heads", default=heads),
        head_dim=_read_size(path, config, "head_dim", default=width // heads),
        mlp_width=_read_size(path, config, "intermediate_size"),
        context=_read_size(path, config, "max_position_embeddings"),
        rope_theta=_read_number(path, rope if "rope_theta" in rope else config, "rope_theta"),
        norm_eps=_read_number(path, config, "rms_norm_eps"),
        tied=_read_flag(path, config, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        rope_scaling=_read_rope_scaling(path, rope),
    )
    if spec.heads % spec.kv_heads or spec.head_dim % 2:
        raise UserError(
            f"{path}: expected num_key_value_heads that divides num_attention_heads and an even head_dim,"
            f" got {spec.kv_heads}, {spec.heads} and {spec.head_dim}"
        )
    return spec


def make_config(spec: DecoderSpec, dtype: str, stop_tokens: Sequence[int] = ()) -> dict[str, Any]:
    """The config.json of a decoder whose weights are stored as `dtype`, in names that transformers 4 and 5 read.

    The type of the products and remat are of a run, not of a model, and are not written. Raises UserError for a spec
    that is of none of the three families.
    """
    switches = (spec.qkv_bias, spec.qk_norm)
    architecture = next((name for name, family in _FAMILIES.items() if family[1:] == switches), None)
    if architecture is None:
        raise UserError("expected a decoder of a known family, got one with both qkv_bias and qk_norm")
    return {
        "architectures": [architecture],
        "model_type": _FAMILIES[architecture].model_type,
        "torch_dtype": dtype,
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
        "rope_scaling": _make_rope_scaling(spec.rope_scaling),
        "tie_word_embeddings": spec.tied,
        # transformers gives Llama tokens of its own where these are left out.
        "bos_token_id": None,
        "eos_token_id": list(stop_tokens) or None,
    }


def _make_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    config = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        config |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        config |= {"original_max_position_embeddings": scaling.original_context}
    return config


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


def _find_rope(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions: in rope_scaling, its name until transformers 5, else in rope_parameters."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = config.get(name)
        if rope is not None:
            if not isinstance(rope, dict):
                raise UserError(f"{path}: expected {name} to be an object, got {rope!r}")
            return rope
    return {}


def _read_rope_scaling(path: Path, rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"{path}: expected a rope_type of default, linear or llama3, got {kind!r}")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{path}: expected rotary positions over whole heads, got {json.dumps(rope)}")
    if kind == "default":
        return None
    factor = _read_number(path, rope, "factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    low, high = (_read_number(path, rope, f"{name}_freq_factor") for name in ("low", "high"))
    if low >= high:
        raise UserError(f"{path}: expected low_freq_factor below high_freq_factor, got {low:g} and {high:g}")
    return RopeScaling(kind, factor, low, high, _read_size(path, rope, "original_max_position_embeddings"))


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
