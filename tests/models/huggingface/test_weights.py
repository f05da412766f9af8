"""Hugging Face folders: logits equal to those transformers and torch gave, and folders that are refused."""

import functools
import json
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from c3jax.config import run as config_lib
from c3jax.models import decoder, tokenizer
from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.huggingface.peft import save_peft_folder
from c3jax.models.load import describe_model, load_params
from c3jax.models.policy import attach_adapter, init_adapter
from c3jax.models.spec import Adapters
from c3jax.types import Frame

GOLDENS = Path(__file__).parents[1] / "goldens"
TINY = (
    *("llama", "llama_tied", "qwen2", "qwen3", "llama3", "linear", "mistral", "qwen2_window", "olmo2"),
    *("gemma2", "gemma3", "smollm3"),
)


def _read_golden(name):
    golden = np.load(GOLDENS / f"{name}.npz")
    weights = {key.removeprefix("weight/"): golden[key] for key in golden if key.startswith("weight/")}
    return json.loads(str(golden["config"])), weights, golden["tokens"], golden["logits"]


def _write_folder(folder, config, weights):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return folder


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, params, tokens):
    """Hidden states and logits."""
    model = nnx.merge(graphdef, params)
    hidden, _ = model.extend((), Frame(tokens, jnp.ones(tokens.shape, bool)))
    return hidden, model.compute_logits(hidden)


def _compute_logits(spec, params, tokens):
    return np.asarray(_run(decoder.define_decoder(spec)[0], params, jnp.array(tokens))[1])


# --------------------------------------------------------------------------------------------------------------------
# In and out


@pytest.mark.parametrize("name", TINY)
def test_logits_equal_torch(name, tmp_path):
    config, weights, tokens, logits = _read_golden(name)
    spec, params = hf_weights.load_folder(_write_folder(tmp_path, config, weights))
    assert logits.std() > 0.5
    np.testing.assert_allclose(_compute_logits(spec, params, tokens), logits, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_each_block_equals_torch(name, tmp_path):
    # A decoder of one layer, that takes what torch gave the block for its embedding and does nothing after it but norm.
    # What differs from layer to layer, it has as the layer.
    config, weights, tokens, _ = _read_golden(name)
    spec, params = hf_weights.load_folder(_write_folder(tmp_path, config, weights))
    streams = np.load(GOLDENS / f"{name}.npz")["streams"]
    rows, norm = np.arange(tokens.size).reshape(tokens.shape), np.full(spec.width, 1.0 - spec.family.norm_offset)
    for layer in range(spec.layers):
        alone = spec._replace(
            layers=1,
            vocab_size=tokens.size,
            tied=True,
            windowed_layers=(0,) if layer in spec.windowed_layers else (),
            unrotated_layers=(0,) if layer in spec.unrotated_layers else (),
        )
        blocks = jax.tree.map(lambda leaf, layer=layer: leaf[layer : layer + 1], params["blocks"])
        before, after = streams[layer], streams[layer + 1]
        embedding = before.reshape(-1, spec.width) / (spec.width**0.5 if spec.family.scales_embedding else 1.0)
        own = {"embedding": embedding, "blocks": blocks, "final_norm": np.float32(norm)}
        out, _ = _run(decoder.define_decoder(alone)[0], own, jnp.array(rows))
        wanted = after / np.sqrt(np.mean(after**2, axis=-1, keepdims=True) + spec.norm_eps)
        np.testing.assert_allclose(out, wanted, atol=1e-5)
        assert np.abs(after - before).std() > 0.1  # the block does something


@pytest.mark.parametrize("name", TINY)
def test_gradients_equal_torch(name, tmp_path):
    config, weights, tokens, _ = _read_golden(name)
    spec, params = hf_weights.load_folder(_write_folder(tmp_path / "in", config, weights))
    graphdef, _ = decoder.define_decoder(spec)

    def loss(params):
        logp = jax.nn.log_softmax(_run(graphdef, params, tokens)[1][:, :-1])
        return -jnp.mean(jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1))

    # Written as a model is, the gradient has the names and the layout of torch's.
    hf_weights.save_folder(tmp_path / "gradient", spec, jax.jit(jax.grad(loss))(params))
    gradients = safetensors.numpy.load_file(tmp_path / "gradient" / "model.safetensors")
    golden = np.load(GOLDENS / f"{name}.npz")
    assert {f"gradient/{key}" for key in gradients} == {key for key in golden if key.startswith("gradient/")}
    for key, gradient in gradients.items():
        assert np.abs(gradient).max() > 1e-3 or key.endswith("k_proj.bias"), key  # a bias of keys changes no softmax
    # Held to the truth in float64 as torch's own float32 is, which is off by 3e-8 to 4e-7. Both add up products in some
    # order: ours was .6 to 2.3 times as far, and any wrong term is thousands of times.
    errors = [(gradient - golden[f"gradient/{key}"]).ravel() for key, gradient in gradients.items()]
    assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) < 4 * golden["gradient_error"]


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_no_farther_from_float32_than_torch_is(name, tmp_path):
    # The weights are numbers of bfloat16. Both programs round the same products to its 8 bits, so both err by about
    # 2^-8 of a logit; ours keeps norms, rotation and softmax in float32 as torch does. 1.25 is room for the chance of a
    # mean over 880 errors.
    config, weights, tokens, _ = _read_golden(name)
    golden = np.load(GOLDENS / f"{name}.npz")
    short = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}
    spec, params = hf_weights.load_folder(_write_folder(tmp_path, config, short))
    truth = golden["logits_rounded"]
    ours = _compute_logits(spec._replace(dtype="bfloat16"), params, tokens)
    error, torch_error = (np.sqrt(np.mean((logits - truth) ** 2)) for logits in (ours, golden["logits_bfloat16"]))
    assert 2**-10 * truth.std() < error < 1.25 * torch_error


@pytest.mark.parametrize("name", TINY)
def test_saved_folders_load_bit_for_bit(name, tmp_path):
    config, weights, _, _ = _read_golden(name)
    spec, params = hf_weights.load_folder(_write_folder(tmp_path / "in", config, weights))
    hf_weights.save_folder(tmp_path / "out", spec._replace(dtype="bfloat16", remat="layer"), params)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    again_spec, again = hf_weights.load_folder(tmp_path / "out")
    assert again_spec == spec
    jax.tree.map(np.testing.assert_array_equal, again, params)
    saved = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(saved[key], value, strict=True)


def _write_shards(folder, config, weights, **index):
    """The folder with its tensors in a.safetensors and b.safetensors, in turns."""
    _write_folder(folder, config, {})
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part} | index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_sharded_folders_load_the_same(tmp_path):
    config, weights, _, _ = _read_golden("qwen3")
    _, whole = hf_weights.load_folder(_write_folder(tmp_path / "whole", config, weights))
    _, params = hf_weights.load_folder(_write_shards(tmp_path / "shards", config, weights))
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def test_shards_that_are_not_what_the_index_says_are_named(tmp_path):
    config, weights, _, _ = _read_golden("qwen3")
    shards = _write_shards(tmp_path / "missing", config, weights, **{"lm_head.weight": "c.safetensors"})
    with pytest.raises(ValueError, match=r"/c\.safetensors: expected a file of tensors"):
        hf_weights.load_folder(shards)
    shards = _write_shards(tmp_path / "cut", config, weights)
    whole = (shards / "b.safetensors").read_bytes()
    for length in (0, 100, len(whole) - 1):
        (shards / "b.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"/b\.safetensors: expected a whole safetensors file, got a broken one"):
            hf_weights.load_folder(shards)
    (shards / "b.safetensors").write_bytes((shards / "a.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"/b\.safetensors: expected every tensor once, got .*, which a\.safetensors"):
        hf_weights.load_folder(shards)


def test_large_folders_are_saved_in_shards(tmp_path):
    config, weights, _, _ = _read_golden("llama_tied")
    short = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}
    spec, params = hf_weights.load_folder(_write_folder(tmp_path / "in", config, short), "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    # 40 * 16 numbers of two bytes are the largest tensor, the embedding: with 1279 it has a file for itself.
    for limit in (1279, 4000):
        out = tmp_path / f"out-{limit}"
        hf_weights.save_folder(out, spec, params, "bfloat16", shard_bytes=limit)
        index = json.loads((out / "model.safetensors.index.json").read_text())
        shards = {file: safetensors.numpy.load_file(out / file) for file in sorted(set(index["weight_map"].values()))}
        assert list(shards) == [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, 1 + len(shards))
        ]
        assert {name: file for file, part in shards.items() for name in part} == index["weight_map"]
        sizes = [sum(array.nbytes for array in part.values()) for part in shards.values()]
        assert max(sizes) <= max(limit, 1280) and index["metadata"]["total_size"] == sum(sizes)
        for name, value in short.items():
            np.testing.assert_array_equal(shards[index["weight_map"][name]][name], value, strict=True)
        _, again = hf_weights.load_folder(out, "bfloat16")
        jax.tree.map(np.testing.assert_array_equal, again, params)


def test_tensors_are_let_go_as_they_are_placed(tmp_path):
    config, weights, _, _ = _read_golden("qwen3")
    spec, wanted = hf_weights.load_folder(_write_folder(tmp_path, config, weights))
    read = []

    def read_tensor(name):
        # JAX lets go of an array of numpy's when it is next called, so one may be there still.
        assert len([ref for ref in read if ref() is not None]) <= 1
        array = weights[name].copy()
        read.append(weakref.ref(array))
        return array

    jax.tree.map(np.testing.assert_array_equal, hf_weights.stack_tensors(spec, read_tensor), wanted)
    assert len(read) == len(weights)


def test_a_stack_is_written_in_place():
    stack = jnp.zeros((3, 4, 8))
    pointer = stack.unsafe_buffer_pointer()
    for layer in range(3):
        stack = hf_weights._put_layer(stack, np.full((8, 4), layer, np.float32), layer, True)
    assert stack.unsafe_buffer_pointer() == pointer
    np.testing.assert_array_equal(stack[:, 0, 0], [0, 1, 2])


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


# --------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llama", {"vocab_size": 41}, r"model\.embed_tokens\.weight of shape \[41, 16\].* got \[40, 16\]"),
        ("llama", {"num_hidden_layers": 3}, r"expected a tensor model\.layers\.2\.\S+, got files without it"),
        ("llama", {"num_hidden_layers": 1}, r"expected only tensors .* asks for, got model\.layers\.1\."),
        ("llama", {"architectures": None, "model_type": "qwen2"}, r"expected a tensor model\.layers\.0\.\S+\.bias"),
        (
            "qwen2",
            {"architectures": None, "model_type": "llama"},
            r"asks for, got model\.layers\.\d\.self_attn\.._proj\.bias",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_named(name, changes, message, tmp_path):
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
    tokenizer.make_word_tokenizer([f"word{index}" for index in range(35)]).save(str(folder))
    section = config_lib.FolderModel(kind="folder", path=str(folder), remat="layer")
    model = describe_model(section, None)
    params = load_params(model, jax.random.key(0))
    assert (model.spec.remat, model.spec.dtype, model.tokenizer.vocab_size) == ("layer", "float32", 40)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(_compute_logits(model.spec, params, tokens), logits, atol=1e-5)
    tokenizer.make_word_tokenizer([f"word{index}" for index in range(36)]).save(str(folder))
    with pytest.raises(ValueError, match="expected a tokenizer of at most the model's 40 tokens, got 41"):
        describe_model(section, None)


FAMILY_FILE = """
from c3jax.models.huggingface.families import FAMILIES

MINE = FAMILIES["mistral"]._replace(
    model_type="ministral", architecture="MinistralForCausalLM", windows="by_layer"
)
NUMBER = 3
MIDDLE = MINE._replace(norms="middle")
"""


@pytest.fixture
def optimised():
    """As users have it: without the compiler's costly passes rounding alone is as large as the tolerance."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("optimised")
def test_a_family_of_the_users_own_comes_from_a_file(tmp_path):
    # Ministral is not in the table: it is Mistral with a list of the layers that have windows.
    config, weights, tokens, logits = _read_golden("ministral")
    folder, file = _write_folder(tmp_path / "model", config, weights), tmp_path / "family_of_a_test.py"
    file.write_text(FAMILY_FILE)
    tokenizer.make_word_tokenizer([f"word{index}" for index in range(35)]).save(str(folder))
    section = config_lib.FolderModel(kind="folder", path=str(folder), family=f"{file}:MINE")
    model = describe_model(section, None)
    params = load_params(model, jax.random.key(0))
    np.testing.assert_allclose(_compute_logits(model.spec, params, tokens), logits, atol=1e-5)
    assert model.spec.windowed_layers == (1,)
    hf_weights.save_folder(tmp_path / "out", model.spec, params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "ministral"
    for family, message in (
        ("auto", r"config\.json: expected model_type to be one of llama, .* module:NAME, got 'ministral'"),
        ("mamba", "model.family: expected one of llama, .*, got 'mamba'"),
        (f"{file}:NUMBER", "model.family: expected a Family at .*:NUMBER, got int"),
        (f"{file}:MIDDLE", "model.family: expected a Family with norms one of pre, post, both at .*:MIDDLE"),
    ):
        with pytest.raises(ValueError, match=message):
            describe_model(section.model_copy(update={"family": family}), None)


def test_a_random_policy_has_the_words_for_its_vocabulary():
    section = config_lib.RandomModel(kind="random", width=16, mlp_width=24, context=32, key_value_heads=2)
    model = describe_model(section, ["up", "down"])
    params, again, other = (load_params(model, jax.random.key(seed)) for seed in (0, 0, 1))
    _, shapes = decoder.define_decoder(model.spec)
    assert params["embedding"].shape == (2 + 5, 16) and model.spec.head_dim == 4
    jax.tree.map(lambda leaf, shape: np.testing.assert_equal((leaf.shape, leaf.dtype), (shape.shape, shape.dtype)),
                 params, shapes)  # fmt: skip
    # Layers are drawn apart, at the scale 1 / sqrt(inputs) of 16 inputs (768 draws: 3 % off at most); norms are ones.
    gate = params["blocks"]["gate"]["kernel"]
    assert 0.23 < gate.std() < 0.27 and np.abs(gate[0] - gate[1]).max() > 0.1
    assert (params["blocks"]["mlp_norm"] == 1).all()
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert (params["embedding"] != other["embedding"]).any()


def test_a_random_policy_needs_words():
    with pytest.raises(ValueError, match="expected a task with a vocabulary of words"):
        describe_model(config_lib.RandomModel(kind="random"), None)


# --------------------------------------------------------------------------------------------------------------------
# Beside torch, where it is installed


LLAMA3_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 30.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0},
    "original_max_position_embeddings": 16,
}
BESIDE = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama_grouped": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("Llama", {"tie_word_embeddings": True, "head_dim": 12, "rope_parameters": LLAMA3_ROPE}),
    "mistral": ("Mistral", {"sliding_window": 3}),
    "mistral_whole": ("Mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 10}),
    "qwen3_window": (
        "Qwen3", {"head_dim": 10, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    ),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2, "attention_bias": True}),
    "gemma2": ("Gemma2", {"num_key_value_heads": 2, "head_dim": 10, "sliding_window": 3, "query_pre_attn_scalar": 7}),
    "gemma2_uncapped": (
        "Gemma2", {"head_dim": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 8}
    ),
    "gemma3": ("Gemma3", {"num_key_value_heads": 1, "head_dim": 10, "sliding_window": 3, "sliding_window_pattern": 2}),
    "smollm3": ("SmolLM3", {"num_key_value_heads": 2, "no_rope_layer_interval": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_transformers_and_c3jax_read_each_others_folders(name, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    (family, changes), kind = BESIDE[name], {"Gemma3": "Gemma3Text"}
    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 32}
    sizes |= {"attn_implementation": "eager"}  # with softcaps
    torch.manual_seed(7)
    make_config = getattr(transformers, f"{kind.get(family, family)}Config")
    theirs = getattr(transformers, f"{family}ForCausalLM")(make_config(**sizes | changes))
    tokens = np.random.default_rng(7).integers(0, 50, (2, 9))
    with torch.no_grad():
        for parameter, weight in theirs.named_parameters():
            weight.normal_(float("norm" in parameter and "Gemma" not in family), 0.3)
        wanted = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    spec, params = hf_weights.load_folder(tmp_path / "theirs")
    np.testing.assert_allclose(_compute_logits(spec, params, tokens), wanted, atol=1e-5)
    hf_weights.save_folder(tmp_path / "ours", spec, params)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert type(again) is type(theirs) and not any(report.values())
    for parameter, weight in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[parameter].numpy(), weight.numpy(), strict=True)
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(torch.tensor(tokens)).logits.numpy(), wanted)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "olmo2", "gemma2", "gemma3", "smollm3"])
def test_peft_puts_adapters_on_every_family(name, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import transformers

    config, weights, tokens, _ = _read_golden(name)
    spec, params = hf_weights.load_folder(_write_folder(tmp_path / "base", config, weights))
    targets = ("query", "key", "value", "output", "gate", "up", "down")
    spec = spec._replace(adapters=Adapters(rank=2, scale=1.5, targets=targets))
    random = np.random.default_rng(0)
    adapter = jax.tree.map(
        lambda leaf: np.float32(random.normal(scale=0.3, size=leaf.shape)), init_adapter(spec, jax.random.key(0))
    )
    ours = _compute_logits(spec, attach_adapter(params, adapter), tokens)
    save_peft_folder(tmp_path / "adapter", spec.family, adapter, 3.0, str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
        truth = model.double()(torch.tensor(tokens)).logits.numpy()
    # Held to the truth in float64 as torch's own float32 is: adapters of this size make deep models err by over 1e-5.
    error, torch_error = (np.sqrt(np.mean((logits - truth) ** 2)) for logits in (ours, theirs))
    assert error < 4 * torch_error < 1e-4, (error, torch_error)
    assert np.abs(ours - _compute_logits(spec._replace(adapters=None), params, tokens)).max() > 0.1
