"""The policy network: one decoder for the Llama, Qwen2 and Qwen3 families that runs over a path of frames.

`Decoder.extend` is the only forward pass: a prompt's frames (prefill), one more token (a frame of one slot, decoding)
and whole messages (the training loss) all go through it, so sampler and learner cannot disagree.
Positions count kept tokens along a row's path.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from c3jax.models import attention
from c3jax.types import Frame, KeysValues


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
    """Sizes and switches of a decoder; the families differ only in these fields."""

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
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    dtype: str = "float32"  # of the matrix products
    remat: str = "none"  # what the backward pass computes again: config.ModelSection
    rope_scaling: RopeScaling | None = None
    adapters: Adapters | None = None


# Products of a layer with its weights have no batch axes, those of attention have: these are always computed again.
_KEPT_BY_REMAT = {"layer": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Projection(nnx.Linear):
    """A linear map of the last axis, corrected by an adapter where the spec has one for it.

    The adapter's a and b may have the rows of the input in front, each row its own.
    """

    def __init__(self, spec: DecoderSpec, name: str, inputs: int, outputs: int, rngs: nnx.Rngs, bias: bool = False):
        dtype = jnp.dtype(spec.dtype)
        super().__init__(inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        adapters = spec.adapters
        self.scale = adapters.scale if adapters is not None and name in adapters.targets else None
        if self.scale is not None:
            self.a = nnx.Param(jnp.zeros((inputs, adapters.rank)))
            self.b = nnx.Param(jnp.zeros((adapters.rank, outputs)))

    def __call__(self, x_NSD: jax.Array) -> jax.Array:
        x_NSD = x_NSD.astype(self.dtype)
        y_NSD = super().__call__(x_NSD)
        if self.scale is None:
            return y_NSD
        low_NSR = x_NSD @ self.a[...].astype(self.dtype)
        return y_NSD + self.scale * (low_NSR @ self.b[...].astype(self.dtype))


class Block(nnx.Module):
    """One layer: attention over the path and a gated MLP, each after RMSNorm and added to the stream."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        width, inner, kv = spec.width, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.attention_norm = nnx.Param(jnp.ones(width))
        self.query = Projection(spec, "query", width, inner, rngs, bias=spec.qkv_bias)
        self.key = Projection(spec, "key", width, kv, rngs, bias=spec.qkv_bias)
        self.value = Projection(spec, "value", width, kv, rngs, bias=spec.qkv_bias)
        self.output = Projection(spec, "output", inner, width, rngs)
        if spec.qk_norm:
            self.query_norm = nnx.Param(jnp.ones(spec.head_dim))
            self.key_norm = nnx.Param(jnp.ones(spec.head_dim))
        self.mlp_norm = nnx.Param(jnp.ones(width))
        self.gate = Projection(spec, "gate", width, spec.mlp_width, rngs)
        self.up = Projection(spec, "up", width, spec.mlp_width, rngs)
        self.down = Projection(spec, "down", spec.mlp_width, width, rngs)

    def __call__(self, x_NSD, rope, past, keep_NS, rows=None):
        """One layer over a frame; past is (key, value, keep) of each coarser frame. Gives x, own key and value."""
        spec = self.spec
        h_NSD = _rms_norm(x_NSD, self.attention_norm[...], spec.norm_eps)
        query = self._split_heads(self.query(h_NSD), spec.heads)
        key_NGSD = self._split_heads(self.key(h_NSD), spec.kv_heads)
        value_NGSD = self._split_heads(self.value(h_NSD), spec.kv_heads)
        if spec.qk_norm:
            query = _rms_norm(query, self.query_norm[...], spec.norm_eps)
            key_NGSD = _rms_norm(key_NGSD, self.key_norm[...], spec.norm_eps)
        query, key_NGSD = _rotate(query, rope), _rotate(key_NGSD, rope)
        N, _, S, D = query.shape
        query_NGRSD = (query * D**-0.5).reshape(N, spec.kv_heads, -1, S, D)
        out = attention.attend_path(query_NGRSD, past, key_NGSD, value_NGSD, keep_NS, rows)
        out_NSD = out.reshape(N, spec.heads, S, D).transpose(0, 2, 1, 3).reshape(N, S, -1)
        x_NSD = x_NSD + self.output(out_NSD)
        h_NSD = _rms_norm(x_NSD, self.mlp_norm[...], spec.norm_eps)
        x_NSD = x_NSD + self.down(jax.nn.silu(self.gate(h_NSD)) * self.up(h_NSD))
        return x_NSD, (key_NGSD, value_NGSD)

    def _split_heads(self, x_NSD, heads):
        N, S, _ = x_NSD.shape
        return x_NSD.reshape(N, S, heads, -1).transpose(0, 2, 1, 3)


class Decoder(nnx.Module):
    """Embedding, stacked layers run by one scan, final norm and output head."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        # Rows of length about one: the first layer's inputs and the logits start at a moderate size at any width.
        normal = nnx.initializers.normal(spec.width**-0.5)
        self.embedding = nnx.Param(normal(rngs.params(), (spec.vocab_size, spec.width)))

        @nnx.split_rngs(splits=spec.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_blocks(rngs):
            return Block(spec, rngs=rngs)

        self.blocks = make_blocks(rngs)
        self.final_norm = nnx.Param(jnp.ones(spec.width))
        if not spec.tied:
            self.head = nnx.Param(normal(rngs.params(), (spec.vocab_size, spec.width)))

    def extend(
        self,
        past: tuple[KeysValues, ...],
        frame: Frame,
        layers: tuple[Any, ...] | None = None,
        rows: attention.Rows | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Run one more frame after the past ones.

        Layers are scanned, or, where `unstack` has taken them apart, run one after the other; then the past and the
        returned keys and values are a tuple of layers too. `rows` are those of a batch that the frame has, where it has
        not all: its last past frame then has the same rows, the others the whole batch's.

        Returns: the final hidden states [N, S, D] (after the norm, f32) and the frame's keys and values.
        """
        spec, N = self.spec, frame.tokens_NS.shape[0]
        offset_N1 = jnp.broadcast_to(_count_kept(past, N, rows), (N,))[:, None]
        position_NS = jnp.maximum(offset_N1 + jnp.cumsum(frame.keep_NS, axis=1) - 1, 0)
        rope = _rope_table(position_NS, spec)
        x_NSD = self.embedding[...][frame.tokens_NS].astype(spec.dtype)
        graphdef, stacked = nnx.split(self.blocks)

        def run_layer(x_NSD, inputs):
            layer, past_kv = inputs
            coarse = [(key, value, p.keep_NS) for (key, value), p in zip(past_kv, past, strict=True)]
            return nnx.merge(graphdef, layer)(x_NSD, rope, coarse, frame.keep_NS, rows)

        if spec.remat != "none":
            run_layer = jax.checkpoint(run_layer, policy=_KEPT_BY_REMAT[spec.remat])
        if layers is None:
            past_kv = [(p.key_LNHSD, p.value_LNHSD) for p in past]
            x_NSD, (key, value) = jax.lax.scan(run_layer, x_NSD, (stacked, past_kv))
        else:
            own = []
            for place, layer in enumerate(layers):
                past_kv = [(p.key_LNHSD[place], p.value_LNHSD[place]) for p in past]
                x_NSD, keys_values = run_layer(x_NSD, (layer, past_kv))
                own.append(keys_values)
            key, value = zip(*own, strict=True)
        hidden_NSD = _rms_norm(x_NSD, self.final_norm[...], spec.norm_eps).astype(jnp.float32)
        return hidden_NSD, KeysValues(key, value, frame.keep_NS)

    def unstack(self) -> tuple[Any, ...]:
        """Each layer's weights as arrays of their own, for a loop that runs them often.

        A scan copies a layer's weights out of the stack each time it comes to it: three times the traffic of reading
        them, which is what a decoding step waits for. The price is one more copy of the weights while the loop runs.
        Matrices get the products' type here, once and not at every token.
        """
        _, stacked = nnx.split(self.blocks)
        stacked = jax.tree.map(lambda leaf: leaf.astype(self.spec.dtype) if leaf.ndim > 2 else leaf, stacked)
        layers = tuple(_take_layer(stacked, place) for place in range(self.spec.layers))
        # Without the barrier the compiler moves the slices into the loop.
        return jax.lax.optimization_barrier(layers)

    def compute_logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits [..., V], f32, of hidden states [..., D]."""
        weight_VD = self.head_weight().astype(self.spec.dtype)
        return jnp.einsum(
            "...d,vd->...v", hidden.astype(self.spec.dtype), weight_VD, preferred_element_type=jnp.float32
        )

    def head_weight(self) -> jax.Array:
        """Output weights [V, D], f32: row v gives token v's logit."""
        return self.embedding[...] if self.spec.tied else self.head[...]


def make_decoder(spec: DecoderSpec, key: jax.Array) -> tuple[nnx.GraphDef, dict]:
    """A randomly initialised decoder, split into its definition and its parameters (a plain tree of f32 arrays)."""
    graphdef, params = nnx.split(Decoder(spec, rngs=nnx.Rngs(params=key)), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def define_decoder(spec: DecoderSpec) -> tuple[nnx.GraphDef, dict]:
    """As make_decoder, but with the shapes of the parameters instead of arrays: nothing is allocated."""
    abstract = nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def count_params(params: Any) -> int:
    """How many numbers a tree of parameters, or of their shapes, holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _count_kept(past: tuple[KeysValues, ...], N: int, rows: attention.Rows | None) -> jax.Array | int:
    """Kept tokens before a frame [N], over its past ones."""
    if rows is None:
        return sum(jnp.repeat(p.keep_NS.sum(1), N // p.keep_NS.shape[0]) for p in past)
    return past[-1].keep_NS.sum(1) + _count_kept(past[:-1], rows.total, None)[rows.place_N]


def _take_layer(stacked: Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], stacked)


def _rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale_D).astype(x.dtype)


def _rope_table(position_NS: jax.Array, spec: DecoderSpec) -> tuple[jax.Array, jax.Array]:
    frequency = spec.rope_theta ** (-jnp.arange(0, spec.head_dim, 2, dtype=jnp.float32) / spec.head_dim)
    if spec.rope_scaling is not None:
        frequency = frequency * _rope_slowdown(frequency, spec.rope_scaling)
    angle_NSF = position_NS[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle_NSF)[:, None], jnp.sin(angle_NSF)[:, None]


def _rope_slowdown(frequency_F: jax.Array, scaling: RopeScaling) -> jax.Array:
    """What each frequency is multiplied by: 1 / factor for `linear`; for `llama3` it rises from there to 1."""
    if scaling.kind == "linear":
        return jnp.full_like(frequency_F, 1.0 / scaling.factor)
    fits_F = scaling.original_context * frequency_F / (2 * jnp.pi)
    kept_F = (fits_F - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_F = jnp.clip(kept_F, 0.0, 1.0)
    return kept_F + (1.0 - kept_F) / scaling.factor


def _rotate(x_NHSD: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    cos, sin = rope
    left, right = jnp.split(x_NHSD.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_NHSD.dtype)
