"""Attention over a whole path by a kernel of the platform, which keeps the scores on the chip.

* `splash`: JAX's splash attention for TPUs, in Pallas.
* `cudnn`: NVIDIA's fused attention, through jax.nn.dot_product_attention.

Both give what `attention.attend_path` gives in its own blocks, which is the reference they are tested against.

Dimension key beside attention.py: H query heads (G * R), K slots of the whole path, the own frame's S last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from c3jax.models.spec import Kernel
from c3jax.types import UserError

LANES = 128  # of a TPU; its blocks are multiples of them
# Most of a block of queries and of one of keys: scores, of which the kernel of the backward pass holds several beside
# the blocks themselves, in the 16 MB that a TPU's program has on the chip. Wide heads and float32 leave less for them.
_BLOCK_LANES, _WIDE_BLOCK_LANES = (5, 8), (4, 4)
_WIDE_BYTES = 256  # more than a head of 128 bfloat16 numbers

_KEPT, _EMPTY = 1, 0  # segments: a query sees the slots of its own


def choose_kernel(asked: str, platform: str, dtype: str, has_softcap: bool) -> Kernel | None:
    """The kernel that `model.attention` means.

    Args:
      asked: auto, which is fused on TPUs alone; blocks; or fused.
      platform: of the devices: tpu, gpu, cuda or cpu.
      dtype: of the products.
      has_softcap: whether the model has one for its scores.

    Returns:
      Its name; None for blocks, which a CPU always has.

    Raises:
      UserError: a GPU's has no such products or scores.
    """
    if platform == "tpu" and asked != "blocks":
        return "splash"
    if asked != "fused" or platform == "cpu":
        return None
    if has_softcap or dtype != "bfloat16":
        got = f"model.dtype {dtype}" if dtype != "bfloat16" else "a model that has a softcap"
        raise UserError(f"model.attention: for 'fused' on a GPU expected bfloat16 products without softcap, got {got}")
    return "cudnn"


def attend_fused(
    kernel: Kernel,
    query_NGRSD: jax.Array,
    key_NGKD: jax.Array,
    value_NGKD: jax.Array,
    keep_NK: jax.Array,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention over the kept slots of a path: all of those before the own frame, and causally the own ones.

    Args:
      kernel: which.
      query_NGRSD: queries of the own frame, scaled already.
      key_NGKD, value_NGKD, keep_NK: of the path, the own frame's S slots last.
      softcap: with it a score s becomes softcap tanh(s / softcap); not for cudnn, which has none.

    Returns:
      Attention output [N, G, R, S, D], f32; of a query that sees nothing, any finite numbers.
    """
    attend: Callable[..., jax.Array] = functools.partial(_attend, kernel, softcap)
    # Compilers cannot cut a kernel themselves. Rows are cut already where there are several devices; heads, which
    # tensor cuts, are left to do.
    mesh = jax.sharding.get_abstract_mesh()
    if open_axes := set(mesh.axis_names) - set(mesh.manual_axes):
        heads = PartitionSpec(None, "tensor")
        specs = (heads, heads, heads, PartitionSpec())
        attend = jax.shard_map(attend, in_specs=specs, out_specs=heads, axis_names=open_axes, check_vma=False)
    return attend(query_NGRSD, key_NGKD, value_NGKD, keep_NK).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(kernel: Kernel, softcap: float | None, query: jax.Array, key: jax.Array, value: jax.Array, keep_NK):
    with _set_precision(query.dtype):
        return _KERNELS[kernel](query, key, value, keep_NK, softcap)


def _attend_forward(kernel: Kernel, softcap: float | None, query: jax.Array, key: jax.Array, value: jax.Array, keep_NK):
    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return _KERNELS[kernel](query, key, value, keep_NK, softcap)

    with _set_precision(query.dtype):
        return jax.vjp(attend, query, key, value)


def _attend_backward(kernel: Kernel, softcap: float | None, differentiate: Callable[..., Any], d_out: jax.Array):
    with _set_precision(d_out.dtype):
        return *differentiate(d_out), None


_attend.defvjp(_attend_forward, _attend_backward)


def _attend_splash(query: jax.Array, key: jax.Array, value: jax.Array, keep_NK: jax.Array, softcap: float | None):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    N, G, R, S, D = query.shape
    K = key.shape[2]
    is_wide = D * query.dtype.itemsize > _WIDE_BYTES or query.dtype == jnp.float32
    query_block, key_block = map(_size_block, (S, K), _WIDE_BLOCK_LANES if is_wide else _BLOCK_LANES)
    Q_all, K_all = (-(-size // block) * block for size, block in ((S, query_block), (K, key_block)))
    sizes: dict[str, Any] = {f"block_q{of}": query_block for of in ("", "_dkv")}
    sizes |= {f"block_kv{of}": key_block for of in ("", "_compute", "_dkv", "_dkv_compute")}
    mask = splash.MultiHeadMask([splash.CausalMask((Q_all, K_all), offset=K - S)] * (G * R))
    attend: Any = splash.make_splash_mha_single_device(
        mask, block_sizes=splash.BlockSizes(**sizes, use_fused_bwd_kernel=True), attn_logits_soft_cap=softcap
    )
    keep_NK = jnp.pad(keep_NK, ((0, 0), (0, K_all - K)))
    segments = splash.SegmentIds(jnp.full((N, Q_all), _KEPT, jnp.int32), jnp.where(keep_NK, _KEPT, _EMPTY))
    query_NHQD = _pad_slots(query.reshape(N, G * R, S, D), Q_all)
    out_NHQD = jax.vmap(attend)(query_NHQD, _pad_slots(key, K_all), _pad_slots(value, K_all), segments)
    return out_NHQD[:, :, :S].reshape(query.shape)


def _attend_cudnn(query: jax.Array, key: jax.Array, value: jax.Array, keep_NK: jax.Array, softcap: float | None):
    assert softcap is None
    N, G, R, S, D = query.shape
    K = key.shape[2]
    seen_SK = jnp.arange(K) - (K - S) <= jnp.arange(S)[:, None]
    mask_NHSK = (keep_NK[:, None, :] & seen_SK)[:, None]
    S_all, K_all = S + S % 2, K + K % 2  # with a mask, it takes none that are odd
    mask_NHSK = jnp.pad(mask_NHSK, ((0, 0), (0, 0), (0, S_all - S), (0, K_all - K)))
    arrays = (_pad_slots(query.reshape(N, G * R, S, D), S_all), _pad_slots(key, K_all), _pad_slots(value, K_all))
    query_NQHD, key_NKGD, value_NKGD = (array.swapaxes(1, 2) for array in arrays)
    out_NQHD = jax.nn.dot_product_attention(
        query_NQHD, key_NKGD, value_NKGD, mask=mask_NHSK, scale=1.0, implementation="cudnn"
    )
    return out_NQHD[:, :S].swapaxes(1, 2).reshape(query.shape)


def _set_precision(dtype: Any) -> AbstractContextManager[Any]:
    """Of bf16 products their own: a run asks for float32 of all, which a TPU's compiler refuses inside of a kernel."""
    return jax.default_matmul_precision("default") if dtype == jnp.bfloat16 else nullcontext()


_KERNELS = {"splash": _attend_splash, "cudnn": _attend_cudnn}


def _size_block(slots: int, most: int) -> int:
    """Slots of a block, of at most so many times the lanes: the large ones that need the least to fill them up."""
    lanes = -(-slots // LANES)
    sizes = range(most, most // 2, -1) if lanes > most else [lanes]
    return LANES * min(sizes, key=lambda size: -lanes % size)


def _pad_slots(array: jax.Array, slots: int) -> jax.Array:
    return jnp.pad(array, ((0, 0), (0, 0), (0, slots - array.shape[2]), (0, 0)))
