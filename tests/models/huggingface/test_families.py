"""config.json to the decoder's sizes: published models, both spellings of rotary scaling, and what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from c3jax.models import decoder
from c3jax.models.huggingface import families as hf_families
from c3jax.models.spec import DecoderSpec, RopeScaling

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
            **{"num_key_value_heads": 32, "rope_scaling": None, "vocab_size": 32000},
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
    "mistralai/Mistral-7B-Instruct-v0.1": (
        {
            **{"architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2},
            **{"hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
            **{"max_position_embeddings": 32768, "num_attention_heads": 32, "num_key_value_heads": 8},
            **{"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
            **{"tie_word_embeddings": False, "torch_dtype": "bfloat16"},
        },
        7_241_732_096,
    ),
    "allenai/OLMo-2-1124-7B-Instruct": (
        {
            **{"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": False},
            **{"eos_token_id": 100257, "pad_token_id": 100277, "hidden_act": "silu", "hidden_size": 4096},
            **{"intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32},
            **{"num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-06, "rope_scaling": None},
            **{"rope_theta": 500000, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 100352},
        },
        7_298_617_344,
    ),
    "google/gemma-2-2b-it": (
        {
            **{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False},
            **{"attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1},
            **{"final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh"},
            **{"hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216},
            **{"max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26},
            **{"num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06},
            **{"rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "bfloat16", "vocab_size": 256000},
        },
        2_614_341_888,
    ),
    "google/gemma-3-1b-it": (
        {
            **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False},
            **{"attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid"},
            **{"eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256, "hidden_size": 1152},
            **{"hidden_activation": "gelu_pytorch_tanh", "intermediate_size": 6912, "max_position_embeddings": 32768},
            **{"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0},
            **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000},
            **{"rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6},
            **{"torch_dtype": "bfloat16", "vocab_size": 262144},
        },
        999_885_952,
    ),
    "HuggingFaceTB/SmolLM3-3B": (
        {
            **{"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False},
            **{"bos_token_id": None, "eos_token_id": 128012, "pad_token_id": 128004, "hidden_act": "silu"},
            **{"hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 65536, "mlp_bias": False},
            **{"max_window_layers": 28, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9},
            **{"num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "rms_norm_eps": 1e-06},
            **{"rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False},
            **{"layer_types": ["full_attention"] * 36, "torch_dtype": "bfloat16", "vocab_size": 128256},
        },
        3_075_098_624,
    ),
}


def _read_spec(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return hf_families.read_spec(folder / "config.json")


def _read_golden(name):
    return json.loads(str(np.load(GOLDENS / f"{name}.npz")["config"]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_parameters(name, tmp_path):
    config, published = PUBLISHED[name]
    spec = _read_spec(tmp_path, config)
    _, shapes = decoder.define_decoder(spec)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == published
    # What is written for it means the same again.
    assert _read_spec(tmp_path, hf_families.make_config(spec, "bfloat16", (1, 2))) == spec


def test_published_models_are_what_their_papers_say(tmp_path):
    """Sections 2 of Mistral 7B (2310.06825) and Gemma 2 (2408.00118), 2.1 of Gemma 3 (2503.19786), SmolLM3's page."""
    specs = {name: _read_spec(tmp_path, config) for name, (config, _) in PUBLISHED.items()}
    mistral = specs["mistralai/Mistral-7B-Instruct-v0.1"]
    assert (mistral.window, mistral.windowed_layers) == (4096, tuple(range(32)))
    gemma2 = specs["google/gemma-2-2b-it"]
    assert (gemma2.window, gemma2.windowed_layers) == (4096, tuple(range(0, 26, 2)))
    assert (gemma2.attention_softcap, gemma2.logit_softcap, gemma2.query_scalar) == (50.0, 30.0, 256)
    gemma3 = specs["google/gemma-3-1b-it"]
    assert set(range(26)) - set(gemma3.windowed_layers) == {5, 11, 17, 23} and gemma3.window == 512
    assert (gemma3.rope_theta, gemma3.local_rope_theta, gemma3.attention_softcap) == (1e6, 1e4, None)
    smollm3 = specs["HuggingFaceTB/SmolLM3-3B"]
    assert smollm3.unrotated_layers == tuple(range(3, 36, 4)) and smollm3.window is None and smollm3.tied


def test_what_a_config_leaves_out_means_what_transformers_takes_it_for(tmp_path):
    """Llama 2 was published without rope_theta, and older files without rms_norm_eps: 10,000 and 1e-6."""
    config, _ = PUBLISHED["meta-llama/Llama-2-7b-chat-hf"]
    spec = _read_spec(tmp_path, {name: value for name, value in config.items() if name != "rms_norm_eps"})
    assert (spec.rope_theta, spec.norm_eps, spec.rope_scaling) == (1e4, 1e-6, None)
    # The same silence means other numbers in other families.
    bare = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 9}
    specs = {name: _read_spec(tmp_path, bare | {"model_type": name}) for name in hf_families.FAMILIES}
    assert {name: spec.rope_theta for name, spec in specs.items()} == {
        **dict.fromkeys(hf_families.FAMILIES, 1e4),
        **{"gemma3_text": 1e6, "smollm3": 2e6},
    }
    assert {name: spec.norm_eps for name, spec in specs.items() if spec.norm_eps != 1e-6} == {"olmo2": 1e-5}
    assert (specs["qwen3"].head_dim, specs["gemma2"].head_dim, specs["qwen2"].head_dim) == (128, 256, 16)
    assert (specs["mistral"].window, specs["qwen2"].window, specs["gemma2"].logit_softcap) == (4096, None, 30.0)


def test_flags_say_which_projections_have_biases(tmp_path):
    config = _read_golden("llama") | {"attention_bias": True}
    assert _read_spec(tmp_path, config).biases == ("query", "key", "value", "output")
    both = _read_spec(tmp_path, config | {"mlp_bias": True})
    assert both.biases == ("query", "key", "value", "output", "gate", "up", "down")
    assert _read_spec(tmp_path, hf_families.make_config(both, "float32")) == both
    assert _read_spec(tmp_path, _read_golden("qwen2")).biases == ("query", "key", "value")


def test_both_spellings_of_rotary_scaling_mean_the_same(tmp_path):
    new = _read_golden("llama3")
    rope = new.pop("rope_parameters")
    old = new | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    oldest = new | {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2}}
    spec = _read_spec(tmp_path, _read_golden("llama3"))
    assert _read_spec(tmp_path, old) == spec
    assert spec.rope_theta == 100.0 and spec.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    assert _read_spec(tmp_path, oldest).rope_scaling == RopeScaling("linear", 2.0)


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


def test_both_spellings_of_two_rotary_bases_mean_the_same(tmp_path):
    # transformers 4 wrote a field for each base, 5 an entry of rope_parameters for each type of layer.
    new = _read_golden("gemma3")
    assert new["rope_parameters"].keys() == {"full_attention", "sliding_attention"}
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    old |= {"rope_theta": 1e6, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    spec = _read_spec(tmp_path, new)
    assert _read_spec(tmp_path, old) == spec
    assert (spec.rope_theta, spec.local_rope_theta) == (1e6, 100.0)
    assert spec.rope_scaling == RopeScaling("linear", 8.0)


def _scaled(**changes):
    return {"rope_scaling": SCALING | changes, "rope_theta": 1e4}


def _yarn():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
    return {"rope_parameters": rope}


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llama", {"model_type": "mamba"}, "expected model_type to be one of llama, .* module:NAME, got 'mamba'"),
        ("llama", {"model_type": None}, "expected model_type to be one of llama, .* got None"),
        ("gemma3", {"model_type": "gemma3"}, "expected model_type to be one of llama, .* got 'gemma3'"),
        (
            "llama",
            {"architectures": ["LlamaForSequenceClassification"]},
            r"expected architectures to be \['LlamaForCausalLM'\], got \['LlamaForSequenceClassification'\]",
        ),
        (
            "qwen3",
            {"layer_types": ["full_attention"]},
            "what transformers takes for a config of qwen3, got .*layer_types",
        ),
        (
            "qwen3",
            {"layer_types": ["full_attention", "linear_attention"]},
            "expected layer_types of full_attention and",
        ),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "expected sliding_window .* got None"),
        ("gemma2", {"sliding_window": 0}, "expected sliding_window to be a positive integer, got 0"),
        (
            "gemma2",
            {"attn_logit_softcapping": -1.0},
            "expected attn_logit_softcapping to be a positive number, got -1.0",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "to earlier tokens only, got use_bidirectional_attention"),
        (
            "smollm3",
            {"no_rope_layers": [1, 0]},
            r"expected no_rope_layers to be a list of 4, one a layer, got \[1, 0\]",
        ),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}},
            "expected plain rotary positions in sliding_attention, got .*linear",
        ),
        ("llama", {"rope_scaling": "llama3"}, "expected what transformers takes for a config of llama, got .*'llama3'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "expected a rope_type of .* got 'dynamic'"),
        ("llama", _yarn(), "expected a rope_type of default, linear or llama3, got 'yarn'"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "takes for a config of llama, got .*linear.*factor"),
        ("llama", _scaled(high_freq_factor=-4.0), "expected high_freq_factor to be a positive number, got -4.0"),
        ("llama", _scaled(low_freq_factor=4.0), "expected low_freq_factor below high_freq_factor, got 4 and 4"),
        ("llama", _scaled(original_max_position_embeddings=0), "expected original_max_position_embeddings .* got 0"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "over whole heads"),
        ("llama", {"rope_parameters": {"rope_theta": -1.0}}, "expected rope_theta to be a positive number, got -1.0"),
        ("llama", {"hidden_act": "gelu"}, "expected hidden_act silu or gelu_pytorch_tanh, got 'gelu'"),
        ("llama", {"quantization_config": {"bits": 4}}, "expected weights that are not quantised"),
        ("llama", {"tie_word_embeddings": 1}, "got .*'tie_word_embeddings' expected bool, got int"),
        ("llama", {"hidden_size": "16"}, "got .*'hidden_size' expected int, got str"),
        ("llama", {"num_hidden_layers": 0}, "expected num_hidden_layers to be a positive integer, got 0"),
        ("llama", {"rms_norm_eps": None}, "got .*'rms_norm_eps' expected float, got NoneType"),
        ("llama", {"num_key_value_heads": 3}, "expected num_key_value_heads that divides"),
        ("llama", {"hidden_size": 17}, "The hidden size .17. is not a multiple"),
    ],
)
def test_configs_the_decoder_cannot_follow_are_refused(name, changes, message, tmp_path):
    config = _read_golden(name)
    with pytest.raises(ValueError, match=message) as caught:
        _read_spec(tmp_path, {**config, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"biases": ("query",)}, {"attention_softcap": 9.0}, {"window": 4, "windowed_layers": (0,)}]
)
def test_a_decoder_that_its_familys_config_cannot_describe_is_not_written(changes):
    spec = DecoderSpec(8, 1, 8, 2, 2, 4, 8, 8, 1e4, 1e-5, True)
    hf_families.make_config(spec, "float32")
    with pytest.raises(ValueError, match="expected a decoder of the family llama, got one that its config.json cannot"):
        hf_families.make_config(spec._replace(**changes), "float32")
