"""config.json to the decoder's sizes: published models, both spellings of rotary scaling, and what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from c3jax.models import decoder
from c3jax.models.huggingface import families as hf_config

GOLDENS = Path(__file__).parents[1] / "goldens"
QWEN = {
    **{"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu"},
    **{"initializer_range": 0.02, "num_hidden_layers": 36, "rms_norm_eps": 1e-06, "tie_word_embeddings": True},
    **{"torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936},
}
QWEN25 = QWEN | {
    **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 11008},
    **{"max_position_embeddings": 32768, "num_attention_heads": 16, "num_key_value_heads": 2, "rope_theta": 1000000.0},
    **{"sliding_window": 32768, "max_window_layers": 70, "transformers_version": "4.43.1"},
}
LLAMA = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False},
    **{"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "pretraining_tp": 1},
    **{"rms_norm_eps": 1e-05, "torch_dtype": "bfloat16", "use_cache": True},
}
LLAMA3 = LLAMA | {
    **{"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "max_position_embeddings": 131072},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "vocab_size": 128256},
}
SCALING = {
    **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    "rope_type": "llama3",
}
# What each model's config.json says, and the number of parameters that its page gives.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        LLAMA
        | {
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_size": 576, "intermediate_size": 1536},
            **{"max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30, "vocab_size": 49152},
            **{"num_key_value_heads": 3, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000},
            "tie_word_embeddings": True,
        },
        134_515_008,
    ),
    "meta-llama/Llama-2-7b-chat-hf": (
        LLAMA
        | {
            **{"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 11008},
            **{"max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32},
            **{"num_key_value_heads": 32, "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 32000},
            "tie_word_embeddings": False,
        },
        6_738_415_616,
    ),
    "meta-llama/Llama-3.2-1B-Instruct": (
        LLAMA3
        | {
            **{"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
            **{"rope_scaling": SCALING | {"factor": 32.0}, "tie_word_embeddings": True},
        },
        1_235_814_400,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": (
        LLAMA3
        | {
            **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "rope_scaling": SCALING},
            "tie_word_embeddings": False,
        },
        8_030_261_248,
    ),
    "Qwen/Qwen2.5-3B-Instruct": (QWEN25, 3_085_938_688),
    "Qwen/Qwen2.5-Coder-3B-Instruct": (QWEN25 | {"max_window_layers": 36}, 3_085_938_688),
    "Qwen/Qwen3-4B-Instruct-2507": (
        QWEN
        | {
            **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False},
            **{"head_dim": 128, "hidden_size": 2560, "intermediate_size": 9728, "max_position_embeddings": 262144},
            **{"max_window_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_scaling": None},
            **{"rope_theta": 5000000, "sliding_window": None},
        },
        4_022_468_096,
    ),
}


def _read_spec(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return hf_config.read_spec(folder / "config.json")


def _read_golden(name):
    return json.loads(str(np.load(GOLDENS / f"{name}.npz")["config"]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_parameters(name, tmp_path):
    config, published = PUBLISHED[name]
    spec = _read_spec(tmp_path, config)
    _, shapes = decoder.define_decoder(spec)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == published
    # What is written for it means the same again.
    assert _read_spec(tmp_path, hf_config.make_config(spec, "bfloat16", (1, 2))) == spec


def test_both_spellings_of_rotary_scaling_mean_the_same(tmp_path):
    new = _read_golden("llama3")
    rope = new.pop("rope_parameters")
    old = new | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    oldest = new | {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2}}
    spec = _read_spec(tmp_path, _read_golden("llama3"))
    assert _read_spec(tmp_path, old) == spec
    assert spec.rope_theta == 100.0 and spec.rope_scaling == decoder.RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    assert _read_spec(tmp_path, oldest).rope_scaling == decoder.RopeScaling("linear", 2.0)


def test_older_configs_mean_the_same(tmp_path):
    # transformers 4 wrote rope_theta by itself, rope_scaling null, torch_dtype, and no head_dim for Llama.
    config = _read_golden("llama_tied")
    spec = _read_spec(tmp_path, config)
    rope = config.pop("rope_parameters")
    del config["head_dim"], config["dtype"]
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": "float32"}
    assert _read_spec(tmp_path, config) == spec
    assert (spec.rope_theta, spec.head_dim, spec.kv_heads, spec.tied, spec.context) == (1e5, 4, 2, True, 64)
    assert spec.rope_scaling is None


def _scaled(**changes):
    return {"rope_scaling": SCALING | changes}


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llama", {"architectures": ["MistralForCausalLM"]}, r"expected architectures .* got \['MistralForCausalLM'\]"),
        ("llama", {"architectures": None}, "expected architectures .* got None"),
        ("llama", {"attention_bias": True}, "expected attention_bias to be false"),
        ("llama", {"mlp_bias": True}, "expected mlp_bias to be false"),
        ("qwen3", {"attention_bias": True}, "expected attention_bias to be false"),
        ("qwen2", {"use_sliding_window": True}, "expected use_sliding_window to be false"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "expected layer_types of full_attention"),
        ("llama", {"rope_scaling": "llama3"}, "expected rope_scaling to be an object, got 'llama3'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "expected a rope_type of .* got 'dynamic'"),
        ("llama", _scaled(rope_type="longrope"), "expected a rope_type of default, linear or llama3, got 'longrope'"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type of .* got 'yarn'"),
        ("llama", _scaled(factor=None), "expected factor to be a positive number, got None"),
        ("llama", _scaled(high_freq_factor="4"), "expected high_freq_factor to be a positive number, got '4'"),
        ("llama", _scaled(low_freq_factor=4.0), "expected low_freq_factor below high_freq_factor, got 4 and 4"),
        ("llama", _scaled(original_max_position_embeddings=0), "expected original_max_position_embeddings .* got 0"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "over whole heads"),
        ("llama", {"rope_parameters": None}, "expected rope_theta to be a positive number, got None"),
        ("llama", {"hidden_act": "gelu"}, "expected hidden_act silu, got 'gelu'"),
        ("llama", {"quantization_config": {"bits": 4}}, "expected weights that are not quantised"),
        ("llama", {"tie_word_embeddings": 1}, "expected tie_word_embeddings to be true or false, got 1"),
        ("llama", {"hidden_size": "16"}, "expected hidden_size to be a positive integer, got '16'"),
        ("llama", {"num_hidden_layers": 0}, "expected num_hidden_layers to be a positive integer, got 0"),
        ("llama", {"rms_norm_eps": None}, "expected rms_norm_eps to be a positive number, got None"),
        ("llama", {"num_key_value_heads": 3}, "expected num_key_value_heads that divides"),
        ("qwen3", {"head_dim": None}, "expected head_dim, got none"),
    ],
)
def test_configs_the_decoder_cannot_follow_are_refused(name, changes, message, tmp_path):
    config = _read_golden(name)
    if "rope_scaling" in changes:
        config |= {"rope_theta": 1e4}
    with pytest.raises(ValueError, match=message):
        _read_spec(tmp_path, {**config, **changes})


def test_biases_and_norms_together_are_of_no_family():
    spec = decoder.DecoderSpec(8, 1, 8, 2, 2, 4, 8, 8, 1e4, 1e-5, True, qkv_bias=True, qk_norm=True)
    with pytest.raises(ValueError, match="expected a decoder of a known family"):
        hf_config.make_config(spec, "float32")
