"""What a decoder is: its sizes, and what all models of its family share. No JAX here."""

from __future__ import annotations

from typing import Literal, NamedTuple

_NAMES = (
    ("embedding", "model.embed_tokens"),
    ("final_norm", "model.norm"),
    ("head", "lm_head"),
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("output", "self_attn.o_proj"),
    ("query_norm", "self_attn.q_norm"),
    ("key_norm", "self_attn.k_norm"),
    ("gate", "mlp.gate_proj"),
    ("up", "mlp.up_proj"),
    ("down", "mlp.down_proj"),
)
QKV = ("query", "key", "value")

Kernel = Literal["splash", "cudnn"]  # of models/fused.py


class Family(NamedTuple):
    """What all models of a family share, and what their Hugging Face folders call the rest.

    A name of a field is None where the family has no such thing. Everything must be hashable.
    """

    model_type: str  # of config.json; transformers' class for it says what an absent field means
    architecture: str  # transformers' class of the model

    # The forward pass
    norms: Literal["pre", "post", "both"] = "pre"  # of attention and MLP: of what they read, what they give, or both
    norm_offset: float = 0.0  # norms multiply by it plus their weight
    qk_norm: Literal["none", "head", "whole"] = "none"  # of queries and keys: each head alone, or all heads together
    scales_embedding: bool = False  # by the square root of the width
    biases: tuple[str, ...] = ()  # projections that have one in every model

    # Fields of config.json
    activation: str = "hidden_act"
    bias_flags: tuple[tuple[str, tuple[str, ...]], ...] = ()  # a flag, and the projections to which it gives a bias
    windows: Literal["none", "all", "by_layer"] = "none"  # sliding_window, for all layers or as layer_types says
    query_scalar: str | None = None
    attention_softcap: str | None = None
    logit_softcap: str | None = None
    rotated_layers: str | None = None  # a list, 1 for each layer that rotates and 0 for each that does not
    local_rope_theta: str | None = None  # in transformers 4; in 5 rope_parameters has an entry for each type of layer

    # Parameters of the decoder, and tensors of a folder: those of a layer stand under model.layers.<number>
    norm_names: tuple[tuple[str, str], ...] = (
        ("attention_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
    )
    names: tuple[tuple[str, str], ...] = _NAMES


LLAMA = Family(
    "llama", "LlamaForCausalLM", bias_flags=(("attention_bias", (*QKV, "output")), ("mlp_bias", ("gate", "up", "down")))
)


class RopeScaling(NamedTuple):
    """How rotary frequencies are slowed, so that a model reads past the context that it was first trained on."""

    kind: str  # linear: every frequency by the factor; llama3: only those of waves that are long for that context
    factor: float
    low_freq_factor: float = 0.0  # llama3: waves that fit the context fewer times than this are slowed wholly,
    high_freq_factor: float = 0.0  # those that fit more often than this not at all, those between in proportion
    original_context: int = 0  # llama3: tokens


class Adapters(NamedTuple):
    """Low-rank corrections of some projections: y = x W + scale (x a) b, with a [in, rank] and b [rank, out]."""

    rank: int
    scale: float  # alpha / rank
    targets: tuple[str, ...]


class DecoderSpec(NamedTuple):
    """Sizes and switches of a decoder."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    context: int  # most tokens of one path
    rope_theta: float
    norm_eps: float
    tied: bool  # the output head is the embedding
    family: Family = LLAMA
    activation: str = "silu"
    biases: tuple[str, ...] = ()  # projections that have one
    query_scalar: int | None = None  # queries are divided by its square root; none: the head size
    attention_softcap: float | None = None  # cap: a score s becomes cap tanh(s / cap)
    logit_softcap: float | None = None  # the same of the next token's logits
    window: int | None = None  # tokens that a windowed layer attends to, the newest among them
    windowed_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()  # they know no positions
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None  # windowed layers' own, never scaled; none: as the others'
    dtype: str = "float32"  # of the matrix products
    remat: str = "none"  # what the backward pass computes again: config.ModelSection
    adapters: Adapters | None = None
    attention: Kernel | None = None  # of whole frames; None: in blocks of plain products
    scans_decoding: bool = False  # a decoded token's layers are a scan, and not one program after the other
