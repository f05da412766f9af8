"""config.json of a Hugging Face folder to a decoder's spec and back, for the families of a literal table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c3jax.models.decoder import ACTIVATIONS
from c3jax.models.spec import LLAMA, QKV, DecoderSpec, Family, RopeScaling
from c3jax.models.tokenizer import read_json
from c3jax.schema import expect, load_named
from c3jax.types import UserError

AUTO = "auto"  # the family whose model_type config.json names

_ATTENTION_BIAS = ("attention_bias", (*QKV, "output"))
_POST_NORMS = (("attention_out_norm", "post_attention_layernorm"), ("mlp_out_norm", "post_feedforward_layernorm"))
_GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    norms="both",
    norm_offset=1.0,
    scales_embedding=True,
    activation="hidden_activation",
    bias_flags=(_ATTENTION_BIAS,),
    windows="by_layer",
    query_scalar="query_pre_attn_scalar",
    attention_softcap="attn_logit_softcapping",
    logit_softcap="final_logit_softcapping",
    norm_names=(("attention_norm", "input_layernorm"), ("mlp_norm", "pre_feedforward_layernorm"), *_POST_NORMS),
)
FAMILIES = {
    "llama": LLAMA,
    "mistral": Family("mistral", "MistralForCausalLM", windows="all"),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", biases=QKV, windows="by_layer"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", qk_norm="head", bias_flags=(_ATTENTION_BIAS,), windows="by_layer"),
    "olmo2": Family(
        "olmo2",
        "Olmo2ForCausalLM",
        norms="post",
        qk_norm="whole",
        bias_flags=(_ATTENTION_BIAS,),
        norm_names=_POST_NORMS,
    ),
    "gemma2": _GEMMA2,
    # transformers does not cap its attention, whatever config.json says.
    "gemma3_text": _GEMMA2._replace(
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        qk_norm="head",
        attention_softcap=None,
        local_rope_theta="rope_local_base_freq",
    ),
    "smollm3": LLAMA._replace(
        model_type="smollm3", architecture="SmolLM3ForCausalLM", windows="by_layer", rotated_layers="no_rope_layers"
    ),
}
_CHOICES = {
    "norms": ("pre", "post", "both"),
    "qk_norm": ("none", "head", "whole"),
    "windows": ("none", "all", "by_layer"),
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_spec(path: Path, family: str = AUTO) -> DecoderSpec:
    """The decoder that a config.json describes. What it leaves out means what transformers takes it for.

    Args:
      path: the file.
      family: a row of FAMILIES, the user's own as module:NAME, or AUTO.

    Raises:
      UserError: in one sentence, where the file cannot be read or the decoder cannot follow it exactly.
    """
    config = read_json(path)
    return _describe(path, config, _choose_family(path, config, family))


def make_config(spec: DecoderSpec, dtype: str, stop_tokens: Sequence[int] = ()) -> dict[str, Any]:
    """The config.json of a decoder whose weights are stored as `dtype`, in names that transformers 4 and 5 read.

    The type of the products and remat are of a run, not of a model, and are not written.

    Args:
      spec: the decoder.
      dtype: of the stored weights.
      stop_tokens: end tokens; none writes none.

    Raises:
      UserError: the family's config.json has no words for this spec.
    """
    family, layers = spec.family, range(spec.layers)
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": dtype,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        family.activation: spec.activation,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_scaling": _make_rope_scaling(spec.rope_scaling),
        "tie_word_embeddings": spec.tied,
        # transformers gives some families tokens of its own where these are left out.
        "bos_token_id": None,
        "eos_token_id": list(stop_tokens) or None,
        "pad_token_id": None,
    }
    config |= {flag: set(names) <= set(spec.biases) for flag, names in family.bias_flags}
    if family.windows != "none":
        config["sliding_window"] = spec.window
    if family.windows == "by_layer":
        config["use_sliding_window"] = spec.window is not None
        config["layer_types"] = [_SLIDING if layer in spec.windowed_layers else _FULL for layer in layers]
    if family.rotated_layers is not None:
        config[family.rotated_layers] = [int(layer not in spec.unrotated_layers) for layer in layers]
    named = {
        family.query_scalar: spec.query_scalar,
        family.attention_softcap: spec.attention_softcap,
        family.logit_softcap: spec.logit_softcap,
        family.local_rope_theta: spec.local_rope_theta,
    }
    config |= {name: value for name, value in named.items() if name is not None}
    if _describe(Path("config.json"), config, family) != spec._replace(dtype="float32", remat="none", adapters=None):
        raise UserError(
            f"expected a decoder of the family {family.model_type}, got one that its config.json cannot describe"
        )
    return config


def _choose_family(path: Path, config: dict[str, Any], name: str) -> Family:
    if name != AUTO:
        return load_named("model.family", name, FAMILIES, _explain_misfit)
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{path}: expected model_type to be one of {', '.join(FAMILIES)}, or your own family as model.family"
            f" module:NAME, got {model_type!r}"
        )
    family = FAMILIES[model_type]
    is_its_own = architectures in (None, [family.architecture])
    expect(is_its_own, path, f"architectures to be [{family.architecture!r}]", repr(architectures))
    return family


def _explain_misfit(found: Any) -> str | None:
    if not isinstance(found, Family):
        return "a Family"
    chosen = found._asdict()
    misfit = next((name for name, values in _CHOICES.items() if chosen[name] not in values), None)
    return None if misfit is None else f"a Family with {misfit} one of {', '.join(_CHOICES[misfit])}"


def _describe(path: Path, config: dict[str, Any], family: Family) -> DecoderSpec:
    fields = _fill_in(path, config, family)
    _check_plain(path, fields, family)
    layers, heads = (_read_size(path, fields, f"num_{what}") for what in ("hidden_layers", "attention_heads"))
    width, windowed = _read_size(path, fields, "hidden_size"), _list_windowed(path, fields, family, layers)
    rope, local_rope = _find_ropes(path, fields, family)
    spec = DecoderSpec(
        vocab_size=_read_size(path, fields, "vocab_size"),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=_read_size(path, fields, "num_key_value_heads"),
        head_dim=_read_size(path, fields, "head_dim", default=width // heads),
        mlp_width=_read_size(path, fields, "intermediate_size"),
        context=_read_size(path, fields, "max_position_embeddings"),
        rope_theta=_read_number(path, rope, "rope_theta"),
        norm_eps=_read_number(path, fields, "rms_norm_eps"),
        tied=bool(fields.get("tie_word_embeddings")),
        family=family,
        activation=fields[family.activation],
        biases=(*family.biases, *(name for flag, names in family.bias_flags if fields.get(flag) for name in names)),
        query_scalar=None if family.query_scalar is None else _read_size(path, fields, family.query_scalar),
        attention_softcap=_read_softcap(path, fields, family.attention_softcap),
        logit_softcap=_read_softcap(path, fields, family.logit_softcap),
        window=_read_size(path, fields, "sliding_window") if windowed else None,
        windowed_layers=windowed,
        unrotated_layers=_list_unrotated(path, fields, family, layers),
        rope_scaling=_read_rope_scaling(path, rope),
        local_rope_theta=None if local_rope is None else _read_number(path, local_rope, "rope_theta"),
    )
    expect(
        spec.heads % spec.kv_heads == 0 and spec.head_dim % 2 == 0,
        path,
        "num_key_value_heads that divides num_attention_heads and an even head_dim",
        f"{spec.kv_heads}, {spec.heads} and {spec.head_dim}",
    )
    return spec


def _fill_in(path: Path, config: dict[str, Any], family: Family) -> dict[str, Any]:
    """All fields of a config.json, with transformers' defaults, in its newest spelling."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type", family.model_type)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UserError(f"{path}: expected a model_type that transformers knows, got {model_type!r}")
    try:
        return CONFIG_MAPPING[model_type].from_dict(config).to_dict()
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(
            f"{path}: expected what transformers takes for a config of {model_type}, got {reason}"
        ) from None


def _check_plain(path: Path, fields: dict[str, Any], family: Family) -> None:
    """Refuse what would change the forward pass and the decoder does not do."""
    activation, is_plain = fields.get(family.activation), fields.get("quantization_config") is None
    expect(activation in ACTIVATIONS, path, f"{family.activation} {' or '.join(ACTIVATIONS)}", repr(activation))
    expect(is_plain, path, "weights that are not quantised", "a quantization_config")
    is_causal = not fields.get("use_bidirectional_attention")
    expect(is_causal, path, "attention to earlier tokens only", "use_bidirectional_attention")


def _list_windowed(path: Path, fields: dict[str, Any], family: Family, layers: int) -> tuple[int, ...]:
    if family.windows == "none":
        return ()
    if family.windows == "all":
        return () if fields.get("sliding_window") is None else tuple(range(layers))
    kinds = _read_layers(path, fields, "layer_types", layers)
    expect({*kinds} <= {_FULL, _SLIDING}, path, f"layer_types of {_FULL} and {_SLIDING}", sorted({*kinds}))
    return tuple(layer for layer, kind in enumerate(kinds) if kind == _SLIDING)


def _list_unrotated(path: Path, fields: dict[str, Any], family: Family, layers: int) -> tuple[int, ...]:
    if family.rotated_layers is None:
        return ()
    rotates = _read_layers(path, fields, family.rotated_layers, layers)
    return tuple(layer for layer, flag in enumerate(rotates) if not flag)


def _read_layers(path: Path, fields: dict[str, Any], name: str, layers: int) -> list[Any]:
    values = fields.get(name)
    if not isinstance(values, list) or len(values) < layers:
        raise UserError(f"{path}: expected {name} to be a list of {layers}, one a layer, got {values!r:.60}")
    return values[:layers]


def _find_ropes(path: Path, fields: dict[str, Any], family: Family) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The rotary positions, and those of windowed layers where the family has two."""
    rope = fields.get("rope_parameters")
    if family.local_rope_theta is None:
        return _check_rope(path, rope), None
    full, sliding = (_check_rope(path, (rope or {}).get(kind)) for kind in (_FULL, _SLIDING))
    is_plain = _read_rope_scaling(path, sliding) is None
    expect(is_plain, path, f"plain rotary positions in {_SLIDING}", json.dumps(sliding))
    return full, sliding


def _check_rope(path: Path, rope: Any) -> dict[str, Any]:
    if not isinstance(rope, dict) or "rope_type" not in rope:
        raise UserError(f"{path}: expected rope_parameters to be an object with a rope_type, got {rope!r}")
    is_whole = rope.get("partial_rotary_factor", 1) == 1
    expect(is_whole, path, "rotary positions over whole heads", json.dumps(rope))
    return rope


def _read_rope_scaling(path: Path, rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope["rope_type"]
    expect(kind in ("default", "linear", "llama3"), path, "a rope_type of default, linear or llama3", repr(kind))
    if kind == "default":
        return None
    factor = _read_number(path, rope, "factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    low, high = (_read_number(path, rope, f"{name}_freq_factor") for name in ("low", "high"))
    expect(low < high, path, "low_freq_factor below high_freq_factor", f"{low:g} and {high:g}")
    return RopeScaling(kind, factor, low, high, _read_size(path, rope, "original_max_position_embeddings"))


def _make_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    config = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        config |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        config |= {"original_max_position_embeddings": scaling.original_context}
    return config


def _read_size(path: Path, config: dict[str, Any], name: str, default: int | None = None) -> int:
    value: Any = config.get(name)
    if value is None and default is not None:
        return default
    is_size = type(value) is int and value > 0
    expect(is_size, path, f"{name} to be a positive integer", repr(value))
    assert isinstance(value, int)
    return value


def _read_number(path: Path, config: dict[str, Any], name: str) -> float:
    value: Any = config.get(name)
    is_positive = type(value) in (int, float) and 0 < value < float("inf")
    expect(is_positive, path, f"{name} to be a positive number", repr(value))
    return float(value)


def _read_softcap(path: Path, fields: dict[str, Any], name: str | None) -> float | None:
    return None if name is None or fields.get(name) is None else _read_number(path, fields, name)
