"""How a run is laid over several devices: the mesh, and which of its axes each axis of an array is cut along.

    mesh axis   what is cut along it
    data        problems
    fsdp        problems, and the width of every weight (fully sharded data parallelism, ZeRO-3, arXiv 1910.02054)
    tensor      heads, the MLP's features and the vocabulary (arXiv 1909.08053)

A problem, all the rows of its tree and its contexts are on one device, so sampling and attention pass nothing between
devices along data and fsdp. Programs over problems are written for one device's own and mapped by `map_problems`; a
weight that is cut along fsdp is put together where it is used, a layer at a time, and its gradient is summed and cut
again on the way back. What is cut along tensor the compiler partitions.

Dimension key beside types.py: P problem of all devices
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from c3jax.config import run as config_lib
from c3jax.models.spec import DecoderSpec
from c3jax.types import Params, UserError

Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "tensor")
PROBLEMS = ("data", "fsdp")  # mesh axes over which problems, and all rows below them, are cut
CUT, WHOLE = PartitionSpec(PROBLEMS), PartitionSpec()

# Logical axes of a decoder's parameters; the stacked layers' own stands in front.
_TABLES = {"embedding": ("vocab", "width"), "head": ("vocab", "width")}
_PROJECTIONS = {
    "query": ("width", "heads"),
    "key": ("width", "kv_heads"),
    "value": ("width", "kv_heads"),
    "output": ("heads", "width"),
    "gate": ("width", "mlp"),
    "up": ("width", "mlp"),
    "down": ("mlp", "width"),
}
_FACTORS = {"v_row", "v_col"}  # Adafactor's second moments, whose axes are not their weights': small, and never cut
_MESH_AXIS = {"width": "fsdp", "vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}


def make_mesh(section: config_lib.Mesh, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh that a config asks for, without the devices that do nothing but draw.

    Args:
      section: of the config; a size of -1 takes the devices that the others leave.
      devices: to use; None takes all of this run's.

    Returns:
      The mesh, of axes data, fsdp and tensor; None where one device does it all.

    Raises:
      UserError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    drawing = make_rollout_mesh(section, devices)
    if drawing is not None:
        devices = devices[: -drawing.size]
    sizes = [section.data, section.fsdp, section.tensor]
    known = math.prod(size for size in sizes if size > 0)
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    used = math.prod(sizes)
    if min(sizes) < 1 or used > len(devices) or (used < len(devices) and jax.process_count() > 1):
        asked = ", ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
        raise UserError(
            f"mesh: expected sizes, one of them -1 at most, for the {len(devices)} devices here, got {asked}"
        )
    return None if used == 1 and drawing is None else Mesh(np.array(devices[:used]).reshape(sizes), AXES)


def make_rollout_mesh(section: config_lib.Mesh, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh of the devices that do nothing but draw trees.

    Args:
      section: of the config.
      devices: of the run, of which it takes the last; None takes all of this run's.

    Returns:
      The mesh, of axes data, fsdp and tensor; None where those that learn draw too.

    Raises:
      UserError: no device is left to learn, or the run has several processes.
    """
    if section.rollout is None:
        return None
    devices = jax.devices() if devices is None else devices
    sizes = (section.rollout.data, section.rollout.fsdp, section.rollout.tensor)
    used, processes = math.prod(sizes), jax.process_count()
    if used >= len(devices):
        raise UserError(f"mesh.rollout: expected fewer than the {len(devices)} devices here, got {used}")
    if processes > 1:
        # Arrays that no process holds whole cannot be moved to other devices than theirs.
        raise UserError(f"mesh.rollout: expected a run of one process, got {processes}")
    return Mesh(np.array(devices[-used:]).reshape(sizes), AXES)


def count_parts(mesh: Mesh | None) -> int:
    """In how many parts problems are cut."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in PROBLEMS)


def check_spec(mesh: Mesh | None, spec: DecoderSpec) -> None:
    """Check that a decoder can be cut as a mesh asks.

    Args:
      mesh: None for one device, which cuts nothing.
      spec: of the decoder.

    Raises:
      UserError: in one sentence with the numbers.
    """
    if mesh is None:
        return
    sizes = {"width": spec.width, "heads": spec.heads, "kv_heads": spec.kv_heads, "mlp": spec.mlp_width}
    called = {"kv_heads": "key and value heads", "mlp": "MLP width"}
    for name, size in sizes.items():
        parts = mesh.shape[_MESH_AXIS[name]]
        if size % parts:
            of = f"{called.get(name, name)} {size}"
            raise UserError(f"mesh.{_MESH_AXIS[name]}: expected a divisor of the model's {of}, got {parts}")


def map_problems(mesh: Mesh | None, function: Callable[..., Any], arguments: Any, results: Any) -> Callable[..., Any]:
    """A function of one device's problems as a function of all devices'.

    Args:
      mesh: None gives the function itself.
      function: of trees of arrays. Of what is cut it sees a device's own part; inside it `add_up` sums over devices.
      arguments, results: how each is cut: CUT, WHOLE, or `cut_weights` of it.

    Returns:
      A function of the whole arrays, for use inside of jit.
    """
    if mesh is None:
        return function
    # The types of what varies over the mesh are not checked: sums are where this project's functions say so, and
    # gradients are taken inside.
    return jax.shard_map(
        function, mesh=mesh, in_specs=arguments, out_specs=results, axis_names=set(PROBLEMS), check_vma=False
    )


def add_up(mesh: Mesh | None, tree: Tree) -> Tree:
    """Inside of `map_problems`: sums over devices.

    Args:
      mesh: None for one device.
      tree: of arrays, each device's part of a sum.
    """
    return tree if mesh is None else jax.lax.psum(tree, PROBLEMS)


def value_and_grad(
    mesh: Mesh | None, compute: Callable[..., Any], arguments: Sequence[Any], has_aux: bool = False
) -> Callable[..., Any]:
    """As jax.value_and_grad by the first argument, of a sum over all devices' problems.

    Args:
      mesh: None for one device.
      compute: of weights and what else it reads, this device's part of the sum; with has_aux other sums beside it.
      arguments: how what stands behind the weights is cut, as for `map_problems`.
      has_aux: as jax's.

    Returns:
      A function of the whole arrays, for use inside of jit: sums, and the gradient cut as the weights are.
    """

    def differentiate(params: Params, *others: Any) -> tuple[Any, Params]:
        value, gradient = jax.value_and_grad(compute, has_aux=has_aux)(params, *others)
        return add_up(mesh, value), _add_up_gradient(mesh, gradient)

    def call(params: Params, *others: Any) -> tuple[Any, Params]:
        of_params = cut_weights(params)
        return map_problems(mesh, differentiate, (of_params, *arguments), (WHOLE, of_params))(params, *others)

    return call


def _add_up_gradient(mesh: Mesh | None, gradient: Params) -> Params:
    """A gradient's sums over devices. Those of weights that are cut along fsdp are summed along it already: that is the
    way back through `gather`.
    """
    if mesh is None:
        return gradient

    def add(path: Any, leaf: jax.Array) -> jax.Array:
        return jax.lax.psum(leaf, "data" if "width" in _find_logical(path, leaf.ndim) else PROBLEMS)

    return jax.tree_util.tree_map_with_path(add, gradient)


def gather(params: Tree, width: int) -> Tree:
    """Parameters put together along fsdp where they are cut, which is only so inside of `map_problems`.

    Args:
      params: of a decoder, or a part of it.
      width: the decoder's.
    """

    def gather_one(path: Any, leaf: jax.Array) -> jax.Array:
        logical = _find_logical(path, leaf.ndim)
        if "width" not in logical or leaf.shape[logical.index("width")] == width:
            return leaf
        return jax.lax.all_gather(leaf, "fsdp", axis=logical.index("width"), tiled=True)

    return jax.tree_util.tree_map_with_path(gather_one, params)


def look_up(table_VD: jax.Array, index: jax.Array, width: int, dtype: Any) -> jax.Array:
    """Rows of a table by their numbers.

    Where the table is cut along fsdp, which is only so inside of `map_problems`, each device takes its part of the rows
    that all ask for and they exchange the parts: less than putting the table together, and its gradient is of the own
    part alone.

    Args:
      table_VD: the table or this device's part of it.
      index: numbers of rows, as many on every device.
      width: the whole rows'.
      dtype: of the result.
    """
    if table_VD.shape[1] == width:
        return table_VD[index].astype(dtype)
    part = table_VD[jax.lax.all_gather(index, "fsdp")].astype(dtype)  # [devices, ..., D / devices]
    return jax.lax.all_to_all(part, "fsdp", split_axis=0, concat_axis=part.ndim - 1, tiled=True)[0]


def cut_weights(params: Any) -> Any:
    """How `map_problems` cuts weights, and whatever has their names: along fsdp."""

    def cut(path: Any, leaf: Any) -> PartitionSpec:
        return PartitionSpec(*("fsdp" if name == "width" else None for name in _find_logical(path, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(cut, params)


def list_shardings(mesh: Mesh, tree: Any) -> Any:
    """Where every array of a run's state is: weights, and whatever has their names, cut along fsdp and tensor.

    A vocabulary that tensor does not divide is not cut; anything else that cannot be was refused by `check_spec`.

    Args:
      mesh: of the run.
      tree: of arrays or their shapes.
    """

    def find(path: Any, leaf: Any) -> NamedSharding:
        axes = [_MESH_AXIS.get(name or "", "") for name in _find_logical(path, leaf.ndim)]
        sizes = [mesh.shape[axis] if axis else 1 for axis in axes]
        both = zip(axes, sizes, leaf.shape, strict=True)
        spec = [axis if parts > 1 and size % parts == 0 else None for axis, parts, size in both]
        # As the compiler writes it of its results, without what is not cut at the end: in another form it would be
        # another program to compile.
        while spec and spec[-1] is None:
            spec.pop()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(find, tree)


def list_shapes(mesh: Mesh | None, tree: Any) -> Any:
    """The shapes of a run's state, each with where it is."""
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        list_shardings(mesh, tree),
    )


def shard_state(mesh: Mesh | None, tree: Tree) -> Tree:
    """A run's state, or weights, laid over the mesh: outside of jit by moving it, inside by telling the compiler.

    Args:
      mesh: None leaves all where it is.
      tree: of arrays.
    """
    if mesh is None:
        return tree
    return jax.tree.map(_put, tree, list_shardings(mesh, tree))


def shard_problems(mesh: Mesh | None, tree: Tree) -> Tree:
    """Arrays with a row, or several, a problem, laid over the mesh.

    Args:
      mesh: None takes the default device.
      tree: of arrays, JAX's or NumPy's.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, CUT)), tree)


def join_problems(mesh: Mesh | None, parts: Sequence[Tree]) -> Tree:
    """Trees of arrays with rows a problem, one after the other.

    Args:
      mesh: over which they are laid.
      parts: the trees, of the same structure.
    """
    if len(parts) == 1:
        return parts[0]

    def join(*parts: Tree) -> Tree:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    return join(*parts) if mesh is None else jax.jit(join, out_shardings=NamedSharding(mesh, CUT))(*parts)


def list_own(mesh: Mesh | None, problems: int) -> list[int]:
    """The numbers of the problems that this process is the first to hold.

    Args:
      mesh: over which they are laid; None for one device, which holds all.
      problems: how many there are.
    """
    if mesh is None:
        return list(range(problems))
    firsts = mesh.devices.reshape(count_parts(mesh), -1)[:, 0]
    size = problems // len(firsts)
    mine = [part for part, device in enumerate(firsts) if device.process_index == jax.process_index()]
    return [part * size + offset for part in mine for offset in range(size)]


def fetch_own(mesh: Mesh | None, tree: Tree) -> Tree:
    """The rows of this process's own problems on the host, in the order of `list_own`.

    Args:
      mesh: over which problems are laid.
      tree: of arrays that are cut by problems.
    """
    if mesh is None:
        return jax.device_get(tree)
    firsts = set(mesh.devices.reshape(count_parts(mesh), -1)[:, 0])

    def fetch(leaf: jax.Array) -> np.ndarray:
        shards = [shard for shard in leaf.addressable_shards if shard.device in firsts]
        shards.sort(key=lambda shard: shard.index[0].start or 0)
        return np.concatenate(
            [np.asarray(shard.data) for shard in shards] or [np.zeros((0, *leaf.shape[1:]), leaf.dtype)]
        )

    return jax.tree.map(fetch, tree)


def replicate(mesh: Mesh | None, tree: Tree) -> Tree:
    """Arrays that every device holds whole."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, WHOLE)), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
    if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda whole: whole, out_shardings=sharding)(leaf)
    host = np.asarray(leaf)  # every process has it whole, and gives its devices their parts
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _find_logical(path: Any, ndim: int) -> tuple[str | None, ...]:
    """The names of an array's axes by its place in a tree; None for those that are never cut."""
    *_, above, name = ["", ""] + [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    if any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in _FACTORS for key in path):
        return (None,) * ndim
    own: tuple[str | None, ...] = _TABLES.get(name, ())
    if above in _PROJECTIONS:
        inputs, outputs = _PROJECTIONS[above]
        own = {"kernel": (inputs, outputs), "bias": (outputs,), "a": (inputs, None), "b": (None, outputs)}.get(name, ())
    # An optimiser that keeps nothing of a weight has an array of one number in its name.
    return (None,) * (ndim - len(own)) + own if ndim >= len(own) else (None,) * ndim
