"""The policy network: one decoder for all families (models/spec.py), that runs over a path of frames.

`Decoder.extend` is the only forward pass: a prompt's frames (prefill), one more token (a frame of one slot, decoding)
and whole messages (the training loss) all go through it, so sampler and learner cannot disagree.
Positions count kept tokens along a row's path.

Dimension key beside types.py: F rotary frequency
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from c3jax.models import attention, sharding
from c3jax.models.spec import Adapters as Adapters  # where most look for them
from c3jax.models.spec import DecoderSpec, RopeScaling
from c3jax.types import Frame, KeysValues, Params

# Products of a layer with its weights have no batch axes, those of attention have: these are always computed again.
_KEPT_BY_REMAT = {"layer": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
_NO_WINDOW = 2**30  # tokens


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)  # its parts are not rounded


ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": _gelu}

_Rope = tuple[jax.Array, jax.Array]  # cosines and sines [N, 1, S, F]


class _Kind(NamedTuple):
    """Where layers differ: a number for a layer, or an array [L] for all; None where all are alike."""

    window: Any  # int32, tokens
    rope: Any  # int32, which of the decoder's tables of rotations


class Projection(nnx.Linear):
    """A linear map of the last axis, corrected by an adapter where the spec has one for it.

    The adapter's a and b may have the rows of the input in front, each row its own.
    """

    def __init__(self, spec: DecoderSpec, name: str, inputs: int, outputs: int, rngs: nnx.Rngs):
        dtype, has_bias = jnp.dtype(spec.dtype), name in spec.biases
        super().__init__(inputs, outputs, use_bias=has_bias, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.scale = None
        if spec.adapters is not None and name in spec.adapters.targets:
            self.scale = spec.adapters.scale
            self.a = nnx.Param(jnp.zeros((inputs, spec.adapters.rank)))
            self.b = nnx.Param(jnp.zeros((spec.adapters.rank, outputs)))

    def __call__(self, x_NSD: jax.Array) -> jax.Array:
        """The product, with its correction, in the products' type."""
        x_NSD = x_NSD.astype(self.dtype)
        y_NSD = super().__call__(x_NSD)
        if self.scale is None:
            return y_NSD
        low_NSR = x_NSD @ self.a[...].astype(self.dtype)
        return y_NSD + self.scale * (low_NSR @ self.b[...].astype(self.dtype))


class Block(nnx.Module):
    """One layer: attention over the path and a gated MLP, normalised where the family says, added to the stream."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        width, inner, kv = spec.width, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        has_pre, has_post = spec.family.norms != "post", spec.family.norms != "pre"
        if has_pre:
            self.attention_norm = _make_norm(spec, width)
        self.query = Projection(spec, "query", width, inner, rngs)
        self.key = Projection(spec, "key", width, kv, rngs)
        self.value = Projection(spec, "value", width, kv, rngs)
        self.output = Projection(spec, "output", inner, width, rngs)
        if spec.family.qk_norm != "none":
            is_whole = spec.family.qk_norm == "whole"
            self.query_norm = _make_norm(spec, inner if is_whole else spec.head_dim)
            self.key_norm = _make_norm(spec, kv if is_whole else spec.head_dim)
        if has_post:
            self.attention_out_norm = _make_norm(spec, width)
        if has_pre:
            self.mlp_norm = _make_norm(spec, width)
        self.gate = Projection(spec, "gate", width, spec.mlp_width, rngs)
        self.up = Projection(spec, "up", width, spec.mlp_width, rngs)
        self.down = Projection(spec, "down", spec.mlp_width, width, rngs)
        if has_post:
            self.mlp_out_norm = _make_norm(spec, width)

    def __call__(
        self,
        x_NSD: jax.Array,
        rope: _Rope,
        past: list[attention.Keys],
        keep_NS: jax.Array,
        position_NS: jax.Array | None = None,
        window: jax.Array | None = None,
        rows: attention.Rows | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One layer over a frame, whose positions only a window asks for. Gives x, own key and value."""
        spec, norms = self.spec, self.spec.family.norms
        h_NSD = x_NSD if norms == "post" else _normalise(x_NSD, self.attention_norm, spec)
        query, key_NGSD, value_NGSD = self._project(h_NSD, rope)
        N, _, S, D = query.shape
        query_NGRSD = (query * (spec.query_scalar or D) ** -0.5).reshape(N, spec.kv_heads, -1, S, D)
        own = attention.Keys(key_NGSD, value_NGSD, keep_NS, position_NS)
        out = attention.attend_path(query_NGRSD, past, own, window, spec.attention_softcap, rows)
        out_NSD = self.output(out.reshape(N, spec.heads, S, D).transpose(0, 2, 1, 3).reshape(N, S, -1))
        x_NSD = x_NSD + (out_NSD if norms == "pre" else _normalise(out_NSD, self.attention_out_norm, spec))
        h_NSD = x_NSD if norms == "post" else _normalise(x_NSD, self.mlp_norm, spec)
        out_NSD = self.down(ACTIVATIONS[spec.activation](self.gate(h_NSD)) * self.up(h_NSD))
        x_NSD = x_NSD + (out_NSD if norms == "pre" else _normalise(out_NSD, self.mlp_out_norm, spec))
        return x_NSD, (key_NGSD, value_NGSD)

    def _project(self, h_NSD: jax.Array, rope: _Rope) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [N, H, S, D], rotated keys and values [N, G, S, D]."""
        spec, qk_norm = self.spec, self.spec.family.qk_norm
        query = self.query(h_NSD)
        query = self._split_heads(_normalise(query, self.query_norm, spec) if qk_norm == "whole" else query, spec.heads)
        key = self.key(h_NSD)
        key = self._split_heads(_normalise(key, self.key_norm, spec) if qk_norm == "whole" else key, spec.kv_heads)
        value = self._split_heads(self.value(h_NSD), spec.kv_heads)
        if qk_norm == "head":
            query, key = _normalise(query, self.query_norm, spec), _normalise(key, self.key_norm, spec)
        return _rotate(query, rope), _rotate(key, rope), value

    def _split_heads(self, x_NSD: jax.Array, heads: int) -> jax.Array:
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
        self.final_norm = _make_norm(spec, spec.width)
        if not spec.tied:
            self.head = nnx.Param(normal(rngs.params(), (spec.vocab_size, spec.width)))

    def extend(
        self,
        past: tuple[KeysValues, ...],
        frame: Frame,
        layers: Any = None,
        rows: attention.Rows | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Run one more frame after the past ones.

        Args:
          past: keys and values of the coarser frames, as this function gave them.
          frame: tokens of N rows and S slots.
          layers: what `prepare_layers` gave; None takes the parameters' own. Layers are scanned or, where they are a
            tuple, run one after the other; then the past and the returned keys and values are a tuple of layers too.
          rows: those of a batch that the frame has, where it has not all: its last past frame then has the same
            rows, the others the whole batch's.

        Returns:
          The final hidden states [N, S, D] (after the norm, f32) and the frame's keys and values.
        """
        spec, N = self.spec, frame.tokens_NS.shape[0]
        offset_N1 = jnp.broadcast_to(_count_kept(past, N, rows), (N,))[:, None]
        position_NS = jnp.maximum(offset_N1 + jnp.cumsum(frame.keep_NS, axis=1) - 1, 0)
        slots = sum(keep_NS.shape[1] for *_, keep_NS in (*past, frame))
        ropes, rope_L = _make_ropes(spec, position_NS)
        kinds, positions = _Kind(_list_windows(spec, slots), rope_L), [None] * (len(past) + 1)
        if kinds.window is not None:
            positions = [*_find_positions(past, rows), position_NS]
        graphdef, stacked = nnx.split(self.blocks)

        def run_layer(x_NSD, inputs):
            layer, past_kv, kind = inputs
            coarse = [
                attention.Keys(key, value, p.keep_NS, position)
                for (key, value), p, position in zip(past_kv, past, positions[:-1], strict=True)
            ]
            rope = ropes if kind.rope is None else jax.tree.map(lambda table: table[kind.rope], ropes)
            block = nnx.merge(graphdef, sharding.gather(layer, spec.width))
            return block(x_NSD, rope, coarse, frame.keep_NS, positions[-1], kind.window, rows)

        if spec.remat != "none":
            run_layer = jax.checkpoint(run_layer, policy=_KEPT_BY_REMAT[spec.remat])
        x_NSD = self._embed(frame.tokens_NS)
        if not isinstance(layers, tuple):
            past_kv = [(p.key_LNHSD, p.value_LNHSD) for p in past]
            x_NSD, (key, value) = jax.lax.scan(
                run_layer, x_NSD, (stacked if layers is None else layers, past_kv, kinds)
            )
        else:
            own = []
            for index, layer in enumerate(layers):
                past_kv = [(p.key_LNHSD[index], p.value_LNHSD[index]) for p in past]
                x_NSD, keys_values = run_layer(x_NSD, (layer, past_kv, _take_layer(kinds, index)))
                own.append(keys_values)
            key, value = zip(*own, strict=True)
        hidden_NSD = _normalise(x_NSD, self.final_norm, spec).astype(jnp.float32)
        return hidden_NSD, KeysValues(key, value, frame.keep_NS)

    def prepare_layers(self) -> Any:
        """The layers' weights for a loop that runs them often, whole and, the matrices, of the products' type.

        On CPU and GPU a tuple of layers: a scan there copies a layer's weights out of the stack each time it comes to
        it, three times the traffic of reading them, which is what a decoding step waits for. The price is one more copy
        of the weights while the loop runs. A TPU's compiler reads the stack in its own place: a scan of 24 layers is a
        sixth of the code and half of the temporaries, and moves no more than weights and caches once
        (docs/scaling.md).
        """
        _, stacked = nnx.split(self.blocks)
        stacked = jax.tree.map(lambda leaf: leaf.astype(self.spec.dtype) if leaf.ndim > 2 else leaf, stacked)
        if self.spec.scans_decoding:
            return jax.lax.optimization_barrier(sharding.gather(stacked, self.spec.width))
        layers = tuple(
            sharding.gather(_take_layer(stacked, index), self.spec.width) for index in range(self.spec.layers)
        )
        # Without the barrier the compiler moves the slices into the loop.
        return jax.lax.optimization_barrier(layers)

    def compute_logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits [..., V], f32, of hidden states [..., D]."""
        weight_VD = self.head_weight().astype(self.spec.dtype)
        logits = jnp.einsum(
            "...d,vd->...v", hidden.astype(self.spec.dtype), weight_VD, preferred_element_type=jnp.float32
        )
        return attention.cap_softly(logits, self.spec.logit_softcap)

    def head_weight(self) -> jax.Array:
        """Output weights [V, D], f32: row v gives token v's logit, before a softcap."""
        return self._gather_table("embedding" if self.spec.tied else "head")

    def gather_tables(self) -> Decoder:
        """The same decoder with embedding and head whole, and of the products' type, for a loop: none may wait in it
        for another device, whose loop may have ended.
        """
        graphdef, params = nnx.split(self, nnx.Param)
        tables = {name: leaf for name, leaf in nnx.to_pure_dict(params).items() if name in ("embedding", "head")}
        cast = jax.tree.map(lambda leaf: leaf.astype(self.spec.dtype), tables)
        whole = sharding.gather(cast, self.spec.width)
        return nnx.merge(graphdef, nnx.to_pure_dict(params) | whole)

    def _gather_table(self, name: str) -> jax.Array:
        return sharding.gather({name: getattr(self, name)[...]}, self.spec.width)[name]

    def _embed(self, tokens_NS: jax.Array) -> jax.Array:
        x_NSD = self._gather_table("embedding")[tokens_NS].astype(self.spec.dtype)
        if not self.spec.family.scales_embedding:
            return x_NSD
        return x_NSD * jnp.asarray(self.spec.width**0.5, self.spec.dtype)  # rounded, as in training


def make_decoder(spec: DecoderSpec, key: jax.Array) -> tuple[nnx.GraphDef, Params]:
    """A randomly initialised decoder.

    Returns:
      Its definition, and its parameters: f32 arrays, those of the layers stacked [L, ...].
    """
    graphdef, params = nnx.split(Decoder(spec, rngs=nnx.Rngs(params=key)), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


@functools.cache
def define_decoder(spec: DecoderSpec) -> tuple[nnx.GraphDef, Params]:
    """As make_decoder, but with the shapes of the parameters instead of arrays: nothing is allocated.

    The shapes are not to be written to: a set-up asks for them seven times, and making them takes a third of a second.
    """
    abstract = nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def count_params(params: Params) -> int:
    """How many numbers a tree of parameters, or of their shapes, holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# --------------------------------------------------------------------------------------------------------------------
# Positions, and what differs from layer to layer


def _count_kept(past: tuple[KeysValues, ...], N: int, rows: attention.Rows | None) -> Any:
    """Kept tokens before a frame [N], over its past ones; the number 0 where there are none."""
    if rows is None:
        return sum(jnp.repeat(p.keep_NS.sum(1), N // p.keep_NS.shape[0]) for p in past)
    return past[-1].keep_NS.sum(1) + _count_kept(past[:-1], rows.total, None)[rows.index_N]


def _find_positions(past: tuple[KeysValues, ...], rows: attention.Rows | None) -> list[jax.Array]:
    """Positions [M, K] of each past frame's slots; of those that hold no token nobody asks."""
    positions = []
    for index, (_, _, keep_MK) in enumerate(past):
        if rows is not None and index == len(past) - 1:
            before_M = _count_kept(past[:index], rows.total, None)[rows.index_N]
        else:
            before_M = jnp.broadcast_to(_count_kept(past[:index], len(keep_MK), None), len(keep_MK))
        positions.append(before_M[:, None] + jnp.cumsum(keep_MK, axis=1) - 1)
    return positions


def _list_windows(spec: DecoderSpec, slots: int) -> np.ndarray | None:
    """Each layer's window [L]; None where no path of so many slots is longer than any."""
    if spec.window is None or slots <= spec.window:
        return None
    window_L = np.full(spec.layers, _NO_WINDOW, np.int32)
    window_L[list(spec.windowed_layers)] = spec.window
    return window_L


def _make_ropes(spec: DecoderSpec, position_NS: jax.Array) -> tuple[_Rope, np.ndarray | None]:
    """The rotations of all layers; or, where layers differ, those of each kind stacked, and each layer's kind [L]."""
    frequencies, kind_L = [_list_frequencies(spec, spec.rope_theta)], np.zeros(spec.layers, np.int32)
    if spec.rope_scaling is not None:
        frequencies[0] = frequencies[0] * _rope_slowdown(frequencies[0], spec.rope_scaling)
    if spec.local_rope_theta is not None:
        kind_L[list(spec.windowed_layers)] = len(frequencies)
        frequencies.append(_list_frequencies(spec, spec.local_rope_theta))
    if spec.unrotated_layers:
        kind_L[list(spec.unrotated_layers)] = len(frequencies)
        frequencies.append(jnp.zeros_like(frequencies[0]))
    ropes = [_rope_table(position_NS, frequency_F) for frequency_F in frequencies]
    return (ropes[0], None) if len(ropes) == 1 else (jax.tree.map(lambda *kinds: jnp.stack(kinds), *ropes), kind_L)


def _take_layer(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def _make_norm(spec: DecoderSpec, size: int) -> nnx.Param:
    return nnx.Param(jnp.full(size, 1.0 - spec.family.norm_offset))


def _normalise(x: jax.Array, weight: nnx.Param, spec: DecoderSpec) -> jax.Array:
    """RMSNorm."""
    scale_D = weight[...] + spec.family.norm_offset if spec.family.norm_offset else weight[...]
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + spec.norm_eps)
    return (x32 * scale_D).astype(x.dtype)


def _list_frequencies(spec: DecoderSpec, theta: float) -> jax.Array:
    return theta ** (-jnp.arange(0, spec.head_dim, 2, dtype=jnp.float32) / spec.head_dim)


def _rope_table(position_NS: jax.Array, frequency_F: jax.Array) -> _Rope:
    angle_NSF = position_NS[..., None].astype(jnp.float32) * frequency_F
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
