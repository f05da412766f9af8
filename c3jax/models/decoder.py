"""The policy network: one decoder for all families (models/spec.py), that runs over a path of frames.

There is one forward pass: a prompt's frames (prefill), one more token (a frame of one slot, decoding) and whole
messages (the training loss) all go through it, so sampler and learner cannot disagree.
Positions count kept tokens along a row's path.

Frames and paths that are run together pass through a layer together: its weights are read once, and its program, the
largest part of what compilers have to do, is there once. Only attention is frame by frame.

Dimension key beside types.py: F rotary frequency. Tokens of several frames stand one after the other in one row: N is
then 1 and S all their slots.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from c3jax.models import attention, positions, sharding
from c3jax.models.spec import Adapters as Adapters  # where most look for them
from c3jax.models.spec import DecoderSpec
from c3jax.types import Frame, KeysValues, Params

# Products of a layer with its weights have no batch axes, those of attention have: these are always computed again.
_KEPT_BY_REMAT = {"layer": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)  # its parts are not rounded


ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": _gelu}


class _Kind(NamedTuple):
    """Where layers differ: a number for a layer, or an array [L] for all; None where all are alike."""

    window: Any  # int32, tokens
    rope: Any  # int32, which of the decoder's tables of rotations


class _Own(NamedTuple):
    """What a layer reads of a frame that it runs over, beside the stream."""

    rope: positions.Rope
    keep_NS: jax.Array
    position_NS: jax.Array | None  # only a window asks for it
    before: Sequence[int]  # which of the frames that are run with it are those before it in its path


class Projection(nnx.Linear):
    """A linear map of the last axis, corrected by an adapter where the spec has one for it.

    Several adapters stand side by side in a and b, along their ranks; a token then has one of them.
    """

    def __init__(self, spec: DecoderSpec, name: str, inputs: int, outputs: int, rngs: nnx.Rngs):
        dtype, has_bias = jnp.dtype(spec.dtype), name in spec.biases
        super().__init__(inputs, outputs, use_bias=has_bias, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.scale = None
        if spec.adapters is not None and name in spec.adapters.targets:
            self.scale, self.rank = spec.adapters.scale, spec.adapters.rank
            self.a = nnx.Param(jnp.zeros((inputs, spec.adapters.rank)))
            self.b = nnx.Param(jnp.zeros((spec.adapters.rank, outputs)))

    def __call__(self, x_NSD: jax.Array, adapter_NS: jax.Array | None = None) -> jax.Array:
        """The product, with its correction, in the products' type."""
        x_NSD = x_NSD.astype(self.dtype)
        y_NSD = super().__call__(x_NSD)
        if self.scale is None:
            return y_NSD
        low_NSR = x_NSD @ self.a[...].astype(self.dtype)
        if adapter_NS is not None:  # one product for all adapters: what is not the token's own is zero between the two
            low_NSR = jnp.where(jnp.arange(low_NSR.shape[-1]) // self.rank == adapter_NS[..., None], low_NSR, 0)
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
        frames: Sequence[_Own],
        past: Sequence[attention.Keys],
        window: jax.Array | None = None,
        rows: attention.Rows | None = None,
        adapter_NS: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
        """One layer over frames, each of which sees the past and those before it: x, and each frame's key and value."""
        spec, norms = self.spec, self.spec.family.norms
        h_NSD = x_NSD if norms == "post" else _normalise(x_NSD, self.attention_norm, spec)
        owns, outs = [], []
        shapes = [frame.keep_NS.shape for frame in frames]
        queries, keys, values = (_split(each, shapes) for each in self._project(h_NSD, adapter_NS))
        for frame, query, key, value in zip(frames, queries, keys, values, strict=True):
            query_NGRSD, key_NGSD, value_NGSD = self._turn(query, key, value, frame.rope)
            own = attention.Keys(key_NGSD, value_NGSD, frame.keep_NS, frame.position_NS)
            seen, how = [*past, *(owns[index] for index in frame.before)], (window, spec.attention_softcap)
            if past:  # a token is decoded
                out = attention.attend_cached(query_NGRSD, seen, own, *how, rows)
            else:
                out = attention.attend_path(query_NGRSD, seen, own, *how, kernel=spec.attention)
            N, _, _, S, D = out.shape
            outs.append(out.reshape(N, spec.heads, S, D).transpose(0, 2, 1, 3).reshape(N, S, -1))
            owns.append(own)
        out_NSD = self.output(_join(outs), adapter_NS)
        x_NSD = x_NSD + (out_NSD if norms == "pre" else _normalise(out_NSD, self.attention_out_norm, spec))
        h_NSD = x_NSD if norms == "post" else _normalise(x_NSD, self.mlp_norm, spec)
        gate_NSD, up_NSD = self.gate(h_NSD, adapter_NS), self.up(h_NSD, adapter_NS)
        out_NSD = self.down(ACTIVATIONS[spec.activation](gate_NSD) * up_NSD, adapter_NS)
        x_NSD = x_NSD + (out_NSD if norms == "pre" else _normalise(out_NSD, self.mlp_out_norm, spec))
        return x_NSD, tuple((own.key_MGKD, own.value_MGKD) for own in owns)

    def _project(self, h_NSD: jax.Array, adapter_NS: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of all heads."""
        query, key = self.query(h_NSD, adapter_NS), self.key(h_NSD, adapter_NS)
        if self.spec.family.qk_norm == "whole":
            query, key = _normalise(query, self.query_norm, self.spec), _normalise(key, self.key_norm, self.spec)
        return query, key, self.value(h_NSD, adapter_NS)

    def _turn(
        self, query: jax.Array, key: jax.Array, value: jax.Array, rope: positions.Rope
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of one frame the rotated and scaled queries [N, G, R, S, D], rotated keys and values [N, G, S, D]."""
        spec = self.spec
        query, key = self._split_heads(query, spec.heads), self._split_heads(key, spec.kv_heads)
        if spec.family.qk_norm == "head":
            query, key = _normalise(query, self.query_norm, spec), _normalise(key, self.key_norm, spec)
        N, _, S, D = query.shape
        query = positions.rotate(query, rope) * (spec.query_scalar or D) ** -0.5
        query_NGRSD = query.reshape(N, spec.kv_heads, -1, S, D)
        return query_NGRSD, positions.rotate(key, rope), self._split_heads(value, spec.kv_heads)

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
        """Run one more frame after the past ones: `extend_paths` of it alone.

        Args:
          past, layers: as there.
          frame: tokens of N rows and S slots.
          rows: those of a batch that the frame has, where it has not all: its last past frame then has the same
            rows, the others the whole batch's.

        Returns:
          The final hidden states [N, S, D] (after the norm, f32) and the frame's keys and values.
        """
        [(hidden_NSD,)], [(own,)] = self.extend_paths(past, [(frame,)], layers, rows)
        return hidden_NSD, own

    def extend_paths(
        self,
        past: tuple[KeysValues, ...],
        paths: Sequence[Sequence[Frame]],
        layers: Any = None,
        rows: attention.Rows | None = None,
        adapters: Sequence[int] | None = None,
    ) -> tuple[list[tuple[jax.Array, ...]], list[tuple[KeysValues, ...]]]:
        """Run more frames after the past ones, all at once; paths do not see one another.

        Args:
          past: keys and values of the coarser frames, as this function gave them.
          paths: frames, coarse to fine.
          layers: what `prepare_layers` gave; None takes the parameters' own. Layers are scanned or, where they are a
            tuple, run one after the other; then the past and the returned keys and values are a tuple of layers too.
          rows: as for `extend`, of one frame alone.
          adapters: where the network has several side by side, which of them each path has.

        Returns:
          Of each path and frame the final hidden states [N, S, D] (after the norm, f32), and its keys and values.
        """
        spec, frames = self.spec, [frame for path in paths for frame in path]
        keeps, past_keeps = [frame.keep_NS for frame in frames], [each.keep_NS for each in past]
        starts = np.cumsum([0, *map(len, paths)])
        before = [
            range(start, start + index)
            for start, path in zip(starts[:-1], paths, strict=True)
            for index in range(len(path))
        ]
        seen = [[*past_keeps, *(keeps[each] for each in indices)] for indices in before]
        position = [positions.count_positions(*each, rows) for each in zip(seen, keeps, strict=True)]
        slots = max(sum(each.keep_NS.shape[1] for each in (*past, *path)) for path in paths)
        ropes, rope_L = positions.make_ropes(spec, position)
        kinds = _Kind(positions.list_windows(spec, slots), rope_L)
        past_position, own_position = [None] * len(past), [None] * len(frames)
        if kinds.window is not None:
            past_position, own_position = positions.find_positions(past_keeps, rows), position
        graphdef, stacked = nnx.split(self.blocks)
        adapter_NS = None
        if adapters is not None:
            both = [(number, frame) for number, path in zip(adapters, paths, strict=True) for frame in path]
            adapter_NS = _join([jnp.full(frame.keep_NS.shape, number) for number, frame in both])

        def run_layer(x_NSD, inputs):
            layer, past_kv, kind = inputs
            coarse = [
                attention.Keys(key, value, p.keep_NS, position)
                for (key, value), p, position in zip(past_kv, past, past_position, strict=True)
            ]
            turned = ropes if kind.rope is None else jax.tree.map(lambda table: table[kind.rope], ropes)
            own = list(map(_Own, turned, keeps, own_position, before))
            block = nnx.merge(graphdef, sharding.gather(layer, spec.width))
            return block(x_NSD, own, coarse, kind.window, rows, adapter_NS)

        if spec.remat != "none":
            run_layer = jax.checkpoint(run_layer, policy=_KEPT_BY_REMAT[spec.remat])
        x_NSD = self._embed(_join([frame.tokens_NS for frame in frames]))
        layers = stacked if layers is None else layers
        x_NSD, own = _run_layers(run_layer, x_NSD, layers, past, kinds)
        parts = _split(x_NSD, [keep_NS.shape for keep_NS in keeps])
        hidden = [_normalise(part_NSD, self.final_norm, spec).astype(jnp.float32) for part_NSD in parts]
        own = [KeysValues(key, value, keep_NS) for (key, value), keep_NS in zip(own, keeps, strict=True)]
        bounds = list(itertools.pairwise(starts))
        return [tuple(hidden[a:b]) for a, b in bounds], [tuple(own[a:b]) for a, b in bounds]

    def prepare_layers(self) -> Any:
        """The layers' weights for a loop that runs them often, whole and, the matrices, of the products' type.

        On CPU and GPU a tuple of layers: a scan there copies a layer's weights out of the stack each time it comes to
        it, three times the traffic of reading them, which is what a decoding step waits for. The price is one more copy
        of the weights while the loop runs. A TPU's compiler reads the stack in its own place (docs/scaling.md).
        """
        _, stacked = nnx.split(self.blocks)
        stacked = jax.tree.map(lambda leaf: leaf.astype(self.spec.dtype) if leaf.ndim > 2 else leaf, stacked)
        if self.spec.scans_decoding:
            return jax.lax.optimization_barrier(sharding.gather(stacked, self.spec.width))
        parts = (_take_layer(stacked, index) for index in range(self.spec.layers))
        layers = tuple(sharding.gather(part, self.spec.width) for part in parts)
        # Without the barrier the compiler moves the slices into the loop.
        return jax.lax.optimization_barrier(layers)

    def compute_logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits [..., V], f32, of hidden states [..., D]."""
        weight_VD, hidden = self.head_weight().astype(self.spec.dtype), hidden.astype(self.spec.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, weight_VD, preferred_element_type=jnp.float32)
        return attention.cap_softly(logits, self.spec.logit_softcap)

    def head_weight(self) -> jax.Array:
        """Output weights [V, D], f32: row v gives token v's logit, before a softcap."""
        name = "embedding" if self.spec.tied else "head"
        return sharding.gather({name: getattr(self, name)[...]}, self.spec.width)[name]

    def gather_tables(self) -> Decoder:
        """The same decoder with embedding and head whole, and of the products' type, for a loop: none may wait in it
        for another device, whose loop may have ended.
        """
        graphdef, params = nnx.split(self, nnx.Param)
        tables = {name: leaf for name, leaf in nnx.to_pure_dict(params).items() if name in ("embedding", "head")}
        cast = jax.tree.map(lambda leaf: leaf.astype(self.spec.dtype), tables)
        whole = sharding.gather(cast, self.spec.width)
        return nnx.merge(graphdef, nnx.to_pure_dict(params) | whole)

    def _embed(self, tokens_NS: jax.Array) -> jax.Array:
        x_NSD = sharding.look_up(self.embedding[...], tokens_NS, self.spec.width, self.spec.dtype)
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
# Frames and layers


def _join(parts: Sequence[jax.Array]) -> jax.Array:
    """What frames [N, S, ...] have, one after the other in one row; of one frame alone as it is."""
    if len(parts) == 1:
        return parts[0]
    return jnp.concatenate([part.reshape(1, -1, *part.shape[2:]) for part in parts], axis=1)


def _split(joined: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The frames' own again."""
    if len(shapes) == 1:
        return [joined]
    ends = np.cumsum([rows * slots for rows, slots in shapes])
    parts = jnp.split(joined, ends[:-1], axis=1)
    return [part.reshape(*shape, *part.shape[2:]) for part, shape in zip(parts, shapes, strict=True)]


def _run_layers(
    run_layer: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    x_NSD: jax.Array,
    layers: Any,
    past: tuple[KeysValues, ...],
    kinds: _Kind,
) -> tuple[jax.Array, Sequence[Any]]:
    """Layers that are stacked, by a scan, or are a tuple, one after the other; x, and what each frame has in all."""
    if not isinstance(layers, tuple):
        past_kv = [(p.key_LNHSD, p.value_LNHSD) for p in past]
        return jax.lax.scan(run_layer, x_NSD, (layers, past_kv, kinds))
    of_layers = []
    for index, layer in enumerate(layers):
        past_kv = [(p.key_LNHSD[index], p.value_LNHSD[index]) for p in past]
        x_NSD, keys_values = run_layer(x_NSD, (layer, past_kv, _take_layer(kinds, index)))
        of_layers.append(keys_values)
    return x_NSD, [tuple(zip(*of_frame, strict=True)) for of_frame in zip(*of_layers, strict=True)]


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
