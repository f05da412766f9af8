"""A policy from the `model` section of a config: its sizes, its tokenizer and, apart from them, its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from c3jax.config import run as config_lib
from c3jax.models import decoder, tokenizer
from c3jax.models.fused import choose_kernel
from c3jax.models.huggingface import families as hf_families
from c3jax.models.huggingface import gguf, hub
from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.spec import DecoderSpec
from c3jax.types import Params, Tokenizer, UserError

ModelSection = config_lib.RandomModel | config_lib.SmolLM2Model | config_lib.FolderModel | config_lib.HubModel


class Description(NamedTuple):
    """A policy without its weights."""

    spec: DecoderSpec
    tokenizer: Tokenizer
    folder: Path | None  # where its weights are; None for random ones


def describe_model(
    section: ModelSection, words: Sequence[str] | None, has_weights: bool = True, platform: str | None = None
) -> Description:
    """The policy that a config asks for.

    Args:
      section: the config's `model`.
      words: the task's vocabulary, which a random policy has for its own; None for tasks without one.
      has_weights: False fetches no weights of a model of the hub.
      platform: of the devices that it is for; None: of those that are here.

    Raises:
      UserError: in one sentence, where the model cannot be had or does not fit its tokenizer.
    """
    if section.kind == "random":
        folder = None
        spec, vocabulary = _describe_random(section, words)
    else:
        folder = _find_folder(section, has_weights)
        family = hf_families.AUTO if section.kind == "smollm2" else section.family
        spec, vocabulary = hf_families.read_spec(folder / "config.json", family), tokenizer.load_tokenizer(folder)
    if vocabulary.vocab_size > spec.vocab_size:
        raise UserError(
            f"model: expected a tokenizer of at most the model's {spec.vocab_size} tokens, got {vocabulary.vocab_size}"
        )
    platform = platform or jax.default_backend()
    spec = spec._replace(
        dtype=section.dtype,
        remat=section.remat,
        attention=choose_kernel(section.attention, platform, section.dtype, spec.attention_softcap is not None),
        scans_decoding=platform == "tpu",
    )
    return Description(spec, vocabulary, folder)


def load_params(description: Description, key: jax.Array, dtype: str = "float32") -> Params:
    """The parameters of the policy that a config asks for.

    Args:
      description: of `describe_model`.
      key: of the first values of a random policy.
      dtype: float32, or, for parameters that are only read and never trained, bfloat16.

    Returns:
      Arrays of `dtype` on the default device.

    Raises:
      UserError: a folder's tensors are not those of its config.json.
    """
    if description.folder is not None:
        return hf_weights.load_tensors(description.folder, description.spec, dtype)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), decoder.make_decoder(description.spec, key)[1])


def _find_folder(
    section: config_lib.SmolLM2Model | config_lib.FolderModel | config_lib.HubModel, has_weights: bool
) -> Path:
    if section.kind == "smollm2":
        return gguf.convert_smollm2()
    if section.kind == "folder":
        return Path(section.path)
    return hub.fetch_folder(section.name, section.revision, has_weights)


def _describe_random(section: config_lib.RandomModel, words: Sequence[str] | None) -> tuple[DecoderSpec, Tokenizer]:
    if words is None:
        raise UserError("model.kind: expected a task with a vocabulary of words for 'random', got one without")
    vocabulary = tokenizer.make_word_tokenizer(words)
    spec = DecoderSpec(
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
