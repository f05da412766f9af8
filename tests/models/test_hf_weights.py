"""Hugging Face folders: logits equal to those transformers and torch gave, and folders that are refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from c3jax import config as config_lib
from c3jax.models import decoder, hf_weights, tokenizer
from c3jax.models.load import load_model
from c3jax.types import Frame

GOLDENS = Path(__file__).parent / "goldens"
TINY = ("llama", "llama_tied", "qwen2", "qwen3")


def _read_golden(name):
    golden = np.load(GOLDENS / f"{name}.npz")
    weights = {key.removeprefix("weight/"): golden[key] for key in golden if key.startswith("weight/")}
    return json.loads(str(golden["config"])), weights, golden["tokens"], golden["logits"]


def _write_folder(folder, config, weights):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return folder


def _compute_logits(spec, params, tokens):
    graphdef, _ = decoder.define_decoder(spec)

    @jax.jit
    def forward(params):
        model = nnx.merge(graphdef, params)
        return model.compute_logits(model.extend((), Frame(jnp.array(tokens), jnp.ones(tokens.shape, bool)))[0])

    return np.asarray(forward(params))


# --------------------------------------------------------------------------------------------------------------------
# In and out


@pytest.mark.parametrize("name", TINY)
def test_logits_equal_torch(name, tmp_path):
    config, weights, tokens, logits = _read_golden(name)
    spec, params = hf_weights.load_folder(_write_folder(tmp_path, config, weights))
    assert logits.std() > 0.5
    np.testing.assert_allclose(_compute_logits(spec, params, tokens), logits, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_saved_folders_load_bit_for_bit(name, tmp_path):
    config, weights, _, _ = _read_golden(name)
    spec, params = hf_weights.load_folder(_write_folder(tmp_path / "in", config, weights))
    hf_weights.save_folder(tmp_path / "out", spec._replace(dtype="bfloat16", remat="layer"), params)
    again_spec, again = hf_weights.load_folder(tmp_path / "out")
    assert again_spec == spec
    jax.tree.map(np.testing.assert_array_equal, again, params)
    saved = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(saved[key], value, strict=True)


def test_sharded_folders_load_the_same(tmp_path):
    config, weights, _, _ = _read_golden("qwen3")
    _, whole = hf_weights.load_folder(_write_folder(tmp_path / "whole", config, weights))
    shards = _write_folder(tmp_path / "shards", config, {})
    (shards / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({name: weights[name] for name in part}, shards / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    _, params = hf_weights.load_folder(shards)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    (shards / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors: expected a file of tensors"):
        hf_weights.load_folder(shards)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_short_floats_are_widened_exactly(dtype, tmp_path):
    config, weights, _, _ = _read_golden("llama_tied")
    short = {name: value.astype(dtype) for name, value in weights.items()}
    _, params = hf_weights.load_folder(_write_folder(tmp_path, config, short))
    key = params["blocks"]["key"]["kernel"]
    assert key.dtype == np.float32
    wanted = np.stack([short[f"model.layers.{layer}.self_attn.k_proj.weight"].T for layer in range(2)])
    np.testing.assert_array_equal(key, wanted.astype(np.float32))


def test_exports_with_the_tied_head_or_rotary_frequencies_load(tmp_path):
    config, weights, _, _ = _read_golden("llama_tied")
    _, plain = hf_weights.load_folder(_write_folder(tmp_path, config, weights))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    _, params = hf_weights.load_folder(_write_folder(tmp_path, config, weights))
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    weights["lm_head.weight"][3, 3] += 1
    with pytest.raises(ValueError, match=r"expected lm_head\.weight to be the tied embedding"):
        hf_weights.load_folder(_write_folder(tmp_path, config, weights))


def test_older_configs_mean_the_same(tmp_path):
    # transformers 4 wrote rope_theta by itself, rope_scaling null, torch_dtype, and no head_dim for Llama.
    config, weights, _, _ = _read_golden("llama_tied")
    spec, _ = hf_weights.load_folder(_write_folder(tmp_path, config, weights))
    rope = config.pop("rope_parameters")
    del config["head_dim"], config["dtype"]
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": "float32"}
    assert hf_weights.load_folder(_write_folder(tmp_path, config, weights))[0] == spec
    assert (spec.rope_theta, spec.head_dim, spec.kv_heads, spec.tied, spec.context) == (1e5, 4, 2, True, 64)


def test_biases_and_norms_together_are_of_no_family(tmp_path):
    spec = decoder.DecoderSpec(8, 1, 8, 2, 2, 4, 8, 8, 1e4, 1e-5, True, qkv_bias=True, qk_norm=True)
    with pytest.raises(ValueError, match="expected a decoder of a known family"):
        hf_weights.save_folder(tmp_path, spec, {})


# --------------------------------------------------------------------------------------------------------------------
# What is refused


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
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling of type default .*llama3"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type default .*linear"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters of type default"),
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
        ("llama", {"vocab_size": 41}, r"model\.embed_tokens\.weight of shape \[41, 16\].* got \[40, 16\]"),
        ("llama", {"num_hidden_layers": 3}, r"expected a tensor model\.layers\.2\.\S+, got files without it"),
        ("llama", {"num_hidden_layers": 1}, r"expected only tensors .* asks for, got model\.layers\.1\."),
        ("llama", {"architectures": ["Qwen2ForCausalLM"]}, r"expected a tensor model\.layers\.0\.\S+\.bias"),
        ("qwen2", {"architectures": ["LlamaForCausalLM"]}, r"asks for, got model\.layers\.\d\.self_attn\.._proj\.bias"),
    ],
)
def test_configs_the_decoder_cannot_follow_are_refused(name, changes, message, tmp_path):
    config, weights, _, _ = _read_golden(name)
    with pytest.raises(ValueError, match=message):
        hf_weights.load_folder(_write_folder(tmp_path, {**config, **changes}, weights))


@pytest.mark.parametrize("shape", [(16, 24), (24, 15), (24,)])
def test_a_tensor_of_another_shape_is_named(shape, tmp_path):
    config, weights, _, _ = _read_golden("llama")
    weights["model.layers.1.mlp.up_proj.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=r"expected model\.layers\.1\.mlp\.up_proj\.weight of shape \[24, 16\]"):
        hf_weights.load_folder(_write_folder(tmp_path, config, weights))


def test_a_tensor_of_integers_is_named(tmp_path):
    config, weights, _, _ = _read_golden("llama")
    weights["model.norm.weight"] = np.ones(16, np.int8)
    with pytest.raises(ValueError, match=r"expected model\.norm\.weight of type F32, F16, BF16, got I8"):
        hf_weights.load_folder(_write_folder(tmp_path, config, weights))


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_a_file_cut_off_anywhere_is_named(left, tmp_path):
    config, weights, _, _ = _read_golden("llama")
    file = _write_folder(tmp_path, config, weights) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a whole safetensors file, got a broken one"):
        hf_weights.load_folder(tmp_path)


def test_folders_without_their_files_are_refused(tmp_path):
    config, weights, _, _ = _read_golden("llama")
    with pytest.raises(ValueError, match=r"nowhere/config\.json: cannot be read \(No such file or directory\)"):
        hf_weights.load_folder(tmp_path / "nowhere")
    folder = _write_folder(tmp_path, config, weights)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model\.safetensors or \S+\.index\.json, got neither"):
        hf_weights.load_folder(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="expected weight_map to name a file for every tensor, got None"):
        hf_weights.load_folder(folder)


# --------------------------------------------------------------------------------------------------------------------
# A model as a config names it


def test_a_folder_becomes_a_policy(tmp_path):
    config, weights, tokens, logits = _read_golden("qwen3")
    folder = _write_folder(tmp_path, config, weights)
    tokenizer.make_word_tokenizer([f"word{place}" for place in range(35)]).save(str(folder))
    section = config_lib.FolderModel(kind="folder", path=str(folder), remat="layer")
    model = load_model(section, None, jax.random.key(0))
    assert (model.spec.remat, model.spec.dtype, model.tokenizer.vocab_size) == ("layer", "float32", 40)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.params))
    assert model.graphdef == decoder.define_decoder(model.spec)[0]
    np.testing.assert_allclose(_compute_logits(model.spec, model.params, tokens), logits, atol=1e-5)
    tokenizer.make_word_tokenizer([f"word{place}" for place in range(36)]).save(str(folder))
    with pytest.raises(ValueError, match="expected a tokenizer of at most the model's 40 tokens, got 41"):
        load_model(section, None, jax.random.key(0))


def test_a_random_policy_has_the_words_for_its_vocabulary():
    section = config_lib.RandomModel(kind="random", width=16, mlp_width=24, context=32, key_value_heads=2)
    model = load_model(section, ["up", "down"], jax.random.key(0))
    graphdef, shapes = decoder.define_decoder(model.spec)
    assert model.graphdef == graphdef
    assert model.params["embedding"].shape == (2 + 5, 16) and model.spec.head_dim == 4
    jax.tree.map(lambda leaf, shape: np.testing.assert_equal((leaf.shape, leaf.dtype), (shape.shape, shape.dtype)),
                 model.params, shapes)  # fmt: skip
    # Layers are drawn apart, at the scale 1 / sqrt(inputs) of 16 inputs (768 draws: 3 % off at most); norms are ones.
    gate = model.params["blocks"]["gate"]["kernel"]
    assert 0.23 < gate.std() < 0.27 and np.abs(gate[0] - gate[1]).max() > 0.1
    assert (model.params["blocks"]["mlp_norm"] == 1).all()
    again = load_model(section, ["up", "down"], jax.random.key(0))
    other = load_model(section, ["up", "down"], jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)
    assert (model.params["embedding"] != other.params["embedding"]).any()


@pytest.mark.parametrize(
    "changes, words, message",
    [
        ({}, None, "expected a task with a vocabulary of words"),
        ({"width": 18, "heads": 6, "key_value_heads": 6}, ["up"], "an even number .* got width 18, heads 6"),
        ({"key_value_heads": 3}, ["up"], "that divides heads, got width 64, heads 4, key_value_heads 3"),
    ],
)
def test_random_policies_that_cannot_be_made_are_refused(changes, words, message):
    with pytest.raises(ValueError, match=message):
        load_model(config_lib.RandomModel(kind="random", **changes), words, jax.random.key(0))


# --------------------------------------------------------------------------------------------------------------------
# Beside torch, where it is installed


@pytest.mark.parametrize("family, changes", [
    ("Llama", {"tie_word_embeddings": False}),
    ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    ("Qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("Qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 10}),
])  # fmt: skip
def test_transformers_and_c3jax_read_each_others_folders(family, changes, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 32}
    torch.manual_seed(7)
    theirs = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**sizes | changes))
    tokens = np.random.default_rng(7).integers(0, 50, (2, 9))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
        wanted = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    spec, params = hf_weights.load_folder(tmp_path / "theirs")
    np.testing.assert_allclose(_compute_logits(spec, params, tokens), wanted, atol=1e-5)
    hf_weights.save_folder(tmp_path / "ours", spec, params)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(theirs) and not any(report.values())
    for name, weight in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), weight.numpy(), strict=True)
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(torch.tensor(tokens)).logits.numpy(), wanted)
