"""Kernels of platforms against attention in blocks, which is tested against repeated prompts: a TPU's interpreted, a
GPU's in the plain form that JAX has of the same function.
"""

from __future__ import annotations

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from c3jax.commands.target import compile_for, open_target
from c3jax.models import attention, fused
from c3jax.types import UserError

G, R, D = 2, 3, 8  # key and value heads, query heads each, head size
ROWS, SLOTS = (1, 2, 4), (150, 3, 131)  # of the past frames and the own one
LONG = (1, 1), (150, 1100)  # three blocks of queries and two of keys, of which the first queries see none of the second
with_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu")


@pytest.fixture
def on_cpu(monkeypatch):
    """Both kernels, as a CPU runs them."""
    made = functools.partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", made)
    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *arrays, **options: attend(*arrays, **options | {"implementation": "xla"}),
    )


def make_case(rows=ROWS, slots=SLOTS):
    """Queries, keys, values, what is kept, and weights of an output that no loss has of a slot that is not."""
    random = np.random.default_rng(4)
    keys, values = (
        [random.normal(size=(row, G, slot, D)).astype(np.float32) for row, slot in zip(rows, slots, strict=True)]
        for _ in range(2)
    )
    query, weight = (random.normal(size=(rows[-1], G, R, slots[-1], D)).astype(np.float32) for _ in range(2))
    keep = [random.random((row, slot)) < 0.8 for row, slot in zip(rows, slots, strict=True)]
    keep[-2][-1] = keep[-2][-1] & (rows[-2] == 1)  # of several rows one keeps nothing
    return query, keys, values, keep, np.where(keep[-1][:, None, None, :, None], weight, 0.0)


def differentiate(query, keys, values, keep, weight, **how):
    """The weighted sum of outputs, with its gradients."""

    def compute(query, keys, values):
        frames = [attention.Keys(*parts) for parts in zip(keys, values, keep, strict=True)]
        return jnp.sum(attention.attend_path(query, frames[:-1], frames[-1], **how) * weight)

    return jax.tree.leaves(jax.jit(jax.value_and_grad(compute, (0, 1, 2)))(query, keys, values))


@pytest.mark.parametrize(
    "kernel, softcap, shape",
    [
        ("splash", None, (ROWS, SLOTS)),
        ("splash", 1.5, (ROWS, SLOTS)),
        ("splash", None, LONG),
        ("cudnn", None, (ROWS, SLOTS)),
    ],
)
def test_kernels_equal_blocks(on_cpu, kernel, softcap, shape):
    case = make_case(*shape)
    wanted = differentiate(*case, softcap=softcap)
    got = differentiate(*case, softcap=softcap, kernel=kernel)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_of_shared_keys_are_summed_in_float32(on_cpu):
    """In bf16 a kernel differs from float32 no more than blocks of the same products do."""
    query, keys, values, keep, weight = make_case()
    exact = differentiate(query, keys, values, keep, weight)
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (query, keys, values))
    blocks, kernel = (differentiate(*rounded, keep, weight, kernel=kernel) for kernel in (None, "splash"))
    assert [leaf.dtype for leaf in kernel] == [leaf.dtype for leaf in blocks]

    def measure(leaf, true):
        return float(jnp.linalg.norm(leaf.astype(jnp.float32) - true) / jnp.linalg.norm(true))

    for of_kernel, of_blocks, true in zip(kernel[1:], blocks[1:], exact[1:], strict=True):
        assert measure(of_kernel, true) < 1.2 * measure(of_blocks, true) < 0.02


@pytest.mark.parametrize("slots, how", [(40, {}), (131, {"window": jnp.int32(60)})])
def test_short_frames_and_windows_stay_in_blocks(slots, how):
    """On a CPU the kernel itself could not be compiled."""
    query, keys, values, keep, weight = make_case()
    query, weight = query[..., :slots, :], weight[..., :slots, :]
    keys, values = ([*arrays[:-1], arrays[-1][:, :, :slots]] for arrays in (keys, values))
    keep = [*keep[:-1], keep[-1][:, :slots]]

    def attend(kernel):
        frames = [attention.Keys(*parts) for parts in zip(keys, values, keep, strict=True)]
        if how:
            position = [np.cumsum(kept, axis=1).astype(np.int32) for kept in keep]
            frames = [frame._replace(position_MK=at) for frame, at in zip(frames, position, strict=True)]
        return attention.attend_path(query, frames[:-1], frames[-1], kernel=kernel, **how)

    np.testing.assert_array_equal(attend("splash"), attend(None))


def test_what_attention_means_on_a_platform():
    choose = functools.partial(fused.choose_kernel, dtype="bfloat16", has_softcap=False)
    assert [choose("auto", platform) for platform in ("tpu", "gpu", "cpu")] == ["splash", None, None]
    assert [choose("fused", platform) for platform in ("tpu", "gpu", "cuda", "cpu")] == [
        "splash",
        "cudnn",
        "cudnn",
        None,
    ]
    assert choose("blocks", "tpu") is None
    assert fused.choose_kernel("fused", "tpu", "float32", True) == "splash"
    with pytest.raises(UserError, match=r"^model\.attention: .* got model\.dtype float32$"):
        fused.choose_kernel("fused", "gpu", "float32", False)
    with pytest.raises(UserError, match=r"^model\.attention: .* got a model that has a softcap$"):
        fused.choose_kernel("fused", "gpu", "bfloat16", True)


@pytest.mark.parametrize(
    "slots, most, size",
    [(518, 5, 640), (806, 5, 512), (1030, 5, 384), (1836, 8, 640), (131, 8, 256), (128, 5, 128), (1025, 8, 640)],
)
def test_blocks_are_large_and_need_little_to_fill_them_up(slots, most, size):
    assert fused._size_block(slots, most) == size


@with_libtpu
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_tpus_compiler_takes_it_forward_and_back_on_a_mesh(tensor):
    """With the precision of a run; rows are cut by hand, heads by tensor, and nothing is gathered."""
    mesh = Mesh(
        np.array(open_target("tpu", "v5e:2x2").devices).reshape(4 // tensor, 1, tensor), ("data", "fsdp", "tensor")
    )
    heads, rows = PartitionSpec("data", "tensor"), PartitionSpec("data")

    def lay(shape, spec, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def compute(query, key, value, keep):
        out = attention.attend_path(query, [], attention.Keys(key, value, keep), kernel="splash")
        return jax.lax.psum(jnp.sum(out), "data")

    total = jax.shard_map(
        jax.grad(compute, (0, 1, 2)),
        **{
            "mesh": mesh,
            "in_specs": (rows,) * 4,
            "out_specs": rows,
            "axis_names": {"data", "fsdp"},
            "check_vma": False,
        },
    )
    arrays = (lay((4, 2, 3, 140, 64), heads), *[lay((4, 2, 140, 64), heads)] * 2, lay((4, 140), rows, jnp.bool_))
    target = open_target("tpu", "v5e:2x2")
    with jax.default_matmul_precision("float32"):
        compiled = compile_for(target, jax.jit(total), arrays)
    assert compiled.memory is not None and compiled.optimised is not None
    assert "splash_mha_dkv" in compiled.optimised and "all-gather" not in compiled.optimised


@with_libtpu
@pytest.mark.parametrize("dtype, size", [(jnp.bfloat16, 128), (jnp.float32, 256)])
def test_the_largest_blocks_fit_on_the_chip_with_the_least_memory(dtype, size):
    """Forward and back, with a softcap, for a v4."""
    target = open_target("tpu", "v4:2x2x1")
    at = SingleDeviceSharding(target.devices[0])

    def compute(query, keys, keep):
        before, own = ([each[..., part, :] for each in keys] for part in (slice(3456), slice(3456, None)))
        past = [attention.Keys(*before, keep[:, :3456])]
        return jnp.sum(
            attention.attend_path(query, past, attention.Keys(*own, keep[:, 3456:]), None, 30.0, kernel="splash")
        )

    shapes = [(1, 1, 2, 640, size), (1, 1, 4096, size)]
    query, key = (jax.ShapeDtypeStruct(shape, dtype, sharding=at) for shape in shapes)
    keep = jax.ShapeDtypeStruct((1, 4096), jnp.bool_, sharding=at)
    compiled = compile_for(target, jax.jit(jax.grad(compute, (0, 1))), (query, (key, key), keep))
    assert compiled.optimised is not None, compiled.refusal
