"""Where a frame's slots are on their rows' paths: positions, the rotations that tell them, and windows.

Positions count kept tokens along a row's path.

Dimension key beside types.py: F rotary frequency    M row of a coarser frame
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.models.attention import Rows
from c3jax.models.spec import DecoderSpec, RopeScaling

_NO_WINDOW = 2**30  # tokens

Rope = tuple[jax.Array, jax.Array]  # cosines and sines [N, 1, S, F]


def count_positions(before: Sequence[jax.Array], keep_NS: jax.Array, rows: Rows | None) -> jax.Array:
    """Positions [N, S] of a frame's slots.

    Args:
      before: what the coarser frames keep, [M, K] each.
      keep_NS: what the frame keeps.
      rows: as for `Decoder.extend`.
    """
    N = len(keep_NS)
    offset_N1 = jnp.broadcast_to(_count_kept(before, N, rows), (N,))[:, None]
    return jnp.maximum(offset_N1 + jnp.cumsum(keep_NS, axis=1) - 1, 0)


def find_positions(keeps: Sequence[jax.Array], rows: Rows | None) -> list[jax.Array]:
    """Positions [M, K] of the slots of a path's frames; of those that hold no token nobody asks.

    Args:
      keeps: what each frame keeps.
      rows: as for `Decoder.extend`.
    """
    positions = []
    for index, keep_MK in enumerate(keeps):
        if rows is not None and index == len(keeps) - 1:
            before_M = _count_kept(keeps[:index], rows.total, None)[rows.index_N]
        else:
            before_M = jnp.broadcast_to(_count_kept(keeps[:index], len(keep_MK), None), len(keep_MK))
        positions.append(before_M[:, None] + jnp.cumsum(keep_MK, axis=1) - 1)
    return positions


def _count_kept(keeps: Sequence[jax.Array], N: int, rows: Rows | None) -> Any:
    """Kept tokens before a frame [N], over those before it; the number 0 where there are none."""
    if rows is None:
        return sum(jnp.repeat(keep_MK.sum(1), N // len(keep_MK)) for keep_MK in keeps)
    return keeps[-1].sum(1) + _count_kept(keeps[:-1], rows.total, None)[rows.index_N]


def list_windows(spec: DecoderSpec, slots: int) -> np.ndarray | None:
    """Each layer's window [L]; None where no path of so many slots is longer than any."""
    if spec.window is None or slots <= spec.window:
        return None
    window_L = np.full(spec.layers, _NO_WINDOW, np.int32)
    window_L[list(spec.windowed_layers)] = spec.window
    return window_L


def make_ropes(spec: DecoderSpec, positions: Sequence[jax.Array]) -> tuple[list[Rope], np.ndarray | None]:
    """Each frame's rotations, by its positions [N, S], for all layers; or, where layers differ, those of each kind
    stacked, and each layer's kind [L].
    """
    frequencies, kind_L = [_list_frequencies(spec, spec.rope_theta)], np.zeros(spec.layers, np.int32)
    if spec.rope_scaling is not None:
        frequencies[0] = frequencies[0] * _rope_slowdown(frequencies[0], spec.rope_scaling)
    if spec.local_rope_theta is not None:
        kind_L[list(spec.windowed_layers)] = len(frequencies)
        frequencies.append(_list_frequencies(spec, spec.local_rope_theta))
    if spec.unrotated_layers:
        kind_L[list(spec.unrotated_layers)] = len(frequencies)
        frequencies.append(jnp.zeros_like(frequencies[0]))
    if len(frequencies) == 1:
        return [_rope_table(position_NS, frequencies[0]) for position_NS in positions], None
    tables = [[_rope_table(position_NS, each_F) for each_F in frequencies] for position_NS in positions]
    return [jax.tree.map(lambda *kinds: jnp.stack(kinds), *of_frame) for of_frame in tables], kind_L


def rotate(x_NHSD: jax.Array, rope: Rope) -> jax.Array:
    """Queries or keys, turned by their positions, in their own type."""
    cos, sin = rope
    left, right = jnp.split(x_NHSD.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_NHSD.dtype)


def _list_frequencies(spec: DecoderSpec, theta: float) -> jax.Array:
    return theta ** (-jnp.arange(0, spec.head_dim, 2, dtype=jnp.float32) / spec.head_dim)


def _rope_table(position_NS: jax.Array, frequency_F: jax.Array) -> Rope:
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
