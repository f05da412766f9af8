"""A policy from the `model` section of a config: the decoder's definition, its parameters and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx

from c3jax import config as config_lib
from c3jax.models import decoder, gguf_weights, hf_config, hf_weights, hub, tokenizer
from c3jax.types import Tokenizer, UserError

ModelSection = config_lib.RandomModel | config_lib.SmolLM2Model | config_lib.FolderModel | config_lib.HubModel


class LoadedModel(NamedTuple):
    """A policy as the program holds it."""

    graphdef: nnx.GraphDef
    params: dict  # arrays on the default device
    tokenizer: Tokenizer
    spec: decoder.DecoderSpec


def load_model(
    section: ModelSection, words: Sequence[str] | None, key: jax.Array, weights: str = "float32"
) -> LoadedModel:
    """The policy a config names. A random one has the task's words for its vocabulary and is drawn with the key.

    `weights` is the type its parameters are held in: bfloat16 only where they are read and never trained. Raises
    UserError, in one sentence, where the model cannot be had or does not fit its tokenizer.
    """
    if section.kind == "random":
        spec, vocabulary = _describe_random(section, words)
        _, params = decoder.make_decoder(spec, key)
        params = jax.tree.map(lambda leaf: leaf.astype(weights), params)
    elif section.kind == "smollm2":
        spec, params, vocabulary = gguf_weights.load_smollm2(weights)
    else:
        folder = _find_folder(section)
        vocabulary = tokenizer.load_tokenizer(folder)
        spec, params = hf_weights.load_folder(folder, weights)
    spec = _finish_spec(section, spec, vocabulary)
    return LoadedModel(decoder.define_decoder(spec)[0], params, vocabulary, spec)


def describe_model(section: ModelSection, words: Sequence[str] | None) -> tuple[decoder.DecoderSpec, Tokenizer]:
    """The sizes and the tokenizer of the policy a config names, without its weights. Raises as load_model."""
    if section.kind == "random":
        spec, vocabulary = _describe_random(section, words)
    elif section.kind == "smollm2":
        spec, vocabulary = gguf_weights.describe_smollm2()
    else:
        folder = _find_folder(section)
        spec, vocabulary = hf_config.read_spec(folder / "config.json"), tokenizer.load_tokenizer(folder)
    return _finish_spec(section, spec, vocabulary), vocabulary


def _finish_spec(section: ModelSection, spec: decoder.DecoderSpec, vocabulary: Tokenizer) -> decoder.DecoderSpec:
    if vocabulary.vocab_size > spec.vocab_size:
        raise UserError(
            f"model: expected a tokenizer of at most the model's {spec.vocab_size} tokens, got {vocabulary.vocab_size}"
        )
    return spec._replace(dtype=section.dtype, remat=section.remat)


def _find_folder(section: config_lib.FolderModel | config_lib.HubModel) -> Path:
    return Path(section.path) if section.kind == "folder" else hub.fetch_folder(section.name, section.revision)


def _describe_random(
    section: config_lib.RandomModel, words: Sequence[str] | None
) -> tuple[decoder.DecoderSpec, Tokenizer]:
    if words is None:
        raise UserError("model.kind: expected a task with a vocabulary of words for 'random', got one without")
    if section.width % section.heads or (section.width // section.heads) % 2 or section.heads % section.key_value_heads:
        raise UserError(
            "model.heads: expected an even number of the width's features a head, and key_value_heads that divides"
            f" heads, got width {section.width}, heads {section.heads}, key_value_heads {section.key_value_heads}"
        )
    vocabulary = tokenizer.make_word_tokenizer(words)
    spec = decoder.DecoderSpec(
        vocab_size=vocabulary.vocab_size,
        layers=section.layers,
        width=section.width,
        heads=section.heads,
        kv_heads=section.key_value_heads,
        head_dim=section.width // section.heads,
        mlp_width=section.mlp_width,
        context=section.context,
        rope_theta=section.rope_theta,
        norm_eps=1e-5,
        tied=False,
    )
    return spec, vocabulary
