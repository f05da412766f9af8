"""Weights in and out of Hugging Face folders: safetensors, named as the family of the decoder has it.

A folder's kernel is [outputs, inputs] and a file names one per layer; the decoder's is [L, inputs, outputs]. Both ways
a tensor at a time is in hand: reading takes the memory of the parameters and one tensor more, and so does writing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from c3jax.models.decoder import define_decoder
from c3jax.models.huggingface import families as hf_families
from c3jax.models.spec import DecoderSpec, Family
from c3jax.models.tokenizer import check_fetched, read_json
from c3jax.types import Params, UserError

SHARD_BYTES = 5_000_000_000  # of one file of tensors, where there is more than one tensor in it

_FLOATS = ("F32", "F16", "BF16")
_PART_BYTES = 2**26
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def load_folder(folder: str | Path, dtype: str = "float32") -> tuple[DecoderSpec, Params]:
    """Read a Hugging Face folder.

    Args:
      folder: config.json and the files of tensors.
      dtype: of the parameters.

    Returns:
      The decoder's spec and its parameters.

    Raises:
      UserError: as read_spec and load_tensors.
    """
    spec = hf_families.read_spec(Path(folder) / "config.json")
    return spec, load_tensors(folder, spec, dtype)


def load_tensors(folder: str | Path, spec: DecoderSpec, dtype: str = "float32") -> Params:
    """The parameters in a Hugging Face folder, arrays of `dtype` on the default device.

    Tensors come from model.safetensors, or the files of model.safetensors.index.json, by memory map and one at a time.

    Args:
      folder: where the files are.
      spec: what the folder's config.json describes.
      dtype: float32, or, for weights that are only read and never trained, bfloat16.

    Raises:
      UserError: in one sentence, where a tensor is missing, unknown, there twice, of another shape or type, or cut
        off.
    """
    folder = Path(folder)
    files = _find_tensors(folder)
    _check_names(folder, spec, files)

    def read_tensor(name: str) -> np.ndarray:
        with _open_file(files[name]) as file:
            stored = file.get_slice(name).get_dtype()
            if stored not in _FLOATS:
                raise UserError(f"{files[name]}: expected {name} of type {', '.join(_FLOATS)}, got {stored}")
            return file.get_tensor(name)

    embedding, head = (_name_tensor(spec.family, (name,), None) for name in ("embedding", "head"))
    if spec.tied and head in files and not np.array_equal(read_tensor(head), read_tensor(embedding)):
        raise UserError(f"{folder}: expected {head} to be the tied embedding, got another tensor")
    return stack_tensors(spec, read_tensor, dtype)


def save_folder(
    folder: str | Path,
    spec: DecoderSpec,
    params: Params,
    dtype: str = "float32",
    stop_tokens: Sequence[int] = (),
    shard_bytes: int = SHARD_BYTES,
    change_kernel: Callable[[str, int, jax.Array], jax.Array] | None = None,
) -> None:
    """Write config.json and model.safetensors, which load_folder and transformers read.

    What was loaded from `dtype` is written bit for bit.

    Args:
      folder: made where it is not there.
      spec, params: the decoder.
      dtype: of the stored tensors, float32 or bfloat16.
      stop_tokens: end tokens for config.json.
      shard_bytes: most bytes of a file of tensors; where they are more there are several, and an index.
      change_kernel: is given each projection's name, layer and kernel [in, out], and gives the kernel to be written.

    Raises:
      UserError: the family's config.json cannot describe the spec.
    """
    folder = Path(folder)
    config = hf_families.make_config(spec, dtype, stop_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    flat, table = _flatten(params), _tensor_table(spec)

    def take_tensor(name: str) -> np.ndarray:
        path, layer = table[name]
        if layer is None:
            return np.asarray(flat[path])
        array = _take_layer(flat[path], layer)
        if path[-1] != "kernel":
            return np.asarray(array)
        return np.asarray(array if change_kernel is None else change_kernel(path[1], layer, array)).T

    shapes = {name: _stored_shape(flat[path].shape, path, layer) for name, (path, layer) in table.items()}
    shards = _split_shards(shapes, np.dtype(dtype).itemsize, shard_bytes)
    if len(shards) == 1:
        write_tensors(folder / _SINGLE, shapes, take_tensor, dtype)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, {name: shapes[name] for name in names}, take_tensor, dtype)
        weight_map |= dict.fromkeys(names, file)
    total = sum(map(np.prod, shapes.values())) * np.dtype(dtype).itemsize
    index = {"metadata": {"total_size": int(total)}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def stack_tensors(spec: DecoderSpec, read_tensor: Callable[[str], np.ndarray], dtype: str = "float32") -> Params:
    """The decoder's parameters from a function that reads a tensor by name.

    A tensor goes into its layer's part of the stack on the device, which is written in place.

    Args:
      spec: the decoder.
      read_tensor: gives a tensor of a folder by its name there.
      dtype: of the parameters.

    Returns:
      Arrays of `dtype` on the default device.

    Raises:
      UserError: a tensor's shape is not the spec's; it is named.
    """
    shapes = {path: leaf.shape for path, leaf in _flat_shapes(spec).items()}
    flat: dict[tuple[str, ...], Any] = {}
    for name, (path, layer) in _tensor_table(spec).items():
        array = read_tensor(name)
        wanted = _stored_shape(shapes[path], path, layer)
        if array.shape != wanted:
            raise UserError(f"expected {name} of shape {list(wanted)}, as config.json has it, got {list(array.shape)}")
        if layer is None:
            flat[path] = put_array(array, dtype)
        else:
            stack = jnp.zeros(shapes[path], dtype) if layer == 0 else flat[path]
            # Awaited, or tensors that are read faster than they are written pile up.
            flat[path] = jax.block_until_ready(_put_layer(stack, array, layer, path[-1] == "kernel"))
        del array  # before the next one is read
    return traverse_util.unflatten_dict(flat)


def name_projection(family: Family, projection: str) -> str:
    """What a folder calls a projection of a layer: self_attn.q_proj for query."""
    return dict(family.names)[projection]


def put_array(array: np.ndarray, dtype: str) -> jax.Array:
    """An array on the default device as `dtype`, in memory of its own, which may be donated.

    It goes there in parts, for the conversion needs each part's memory a second time.
    """
    whole = jnp.zeros(array.shape, dtype)
    rows = max(1, _PART_BYTES * len(array) // array.nbytes)
    for row in range(0, len(array), rows):
        whole = jax.block_until_ready(_put_rows(whole, array[row : row + rows], row))
    return whole


def write_tensors(
    path: Path, shapes: Mapping[str, Sequence[int]], take_tensor: Callable[[str], np.ndarray], dtype: str
) -> None:
    """Write a safetensors file, each tensor converted to `dtype` and written as it is taken.

    The library's own writer wants all tensors of a file in memory. The format is the length of the header (8 bytes,
    little-endian), the header (JSON: name -> dtype, shape, where its bytes begin and end) and the bytes.

    Args:
      path: of the file.
      shapes: of the tensors, by name, in the order in which they are written.
      take_tensor: gives one by its name.
      dtype: float32 or bfloat16.
    """
    stored, number = {"float32": "F32", "bfloat16": "BF16"}[dtype], np.dtype(dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + int(np.prod(shape)) * number.itemsize
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the bytes of the tensors begin at a multiple of eight
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            array = np.ascontiguousarray(take_tensor(name).astype(number, copy=False))
            file.write(array.reshape(-1).view(np.uint8).data)


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _put_layer(stack: jax.Array, array: jax.Array, layer: int, is_kernel: bool) -> jax.Array:
    array = (array.T if is_kernel else array).astype(stack.dtype)
    return jax.lax.dynamic_update_index_in_dim(stack, array, layer, 0)


@partial(jax.jit, donate_argnums=0)
def _put_rows(whole: jax.Array, part: jax.Array, row: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), row, 0)


@jax.jit
def _take_layer(stack: jax.Array, layer: int) -> jax.Array:
    return stack[layer]


def _stored_shape(shape: tuple[int, ...], path: tuple[str, ...], layer: int | None) -> tuple[int, ...]:
    own = shape if layer is None else shape[1:]
    return own[::-1] if path[-1] == "kernel" else own


def _split_shards(shapes: Mapping[str, Sequence[int]], itemsize: int, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * itemsize
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _flat_shapes(spec: DecoderSpec) -> dict[tuple[str, ...], Any]:
    _, shapes = define_decoder(spec)
    return _flatten(shapes)


def _flatten(tree: Params) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(tree)


def _tensor_table(spec: DecoderSpec) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """Tensor of a folder -> path of the decoder's parameter, and the layer of one that is stacked."""
    table: dict[str, tuple[tuple[str, ...], int | None]] = {}
    for path in _flat_shapes(spec):
        for layer in range(spec.layers) if path[0] == "blocks" else [None]:
            table[_name_tensor(spec.family, path, layer)] = (path, layer)
    return table


def _name_tensor(family: Family, path: tuple[str, ...], layer: int | None) -> str:
    names, ending = dict((*family.names, *family.norm_names)), "bias" if path[-1] == "bias" else "weight"
    return f"{names[path[0]]}.{ending}" if layer is None else f"model.layers.{layer}.{names[path[1]]}.{ending}"


# --------------------------------------------------------------------------------------------------------------------
# Tensor files


def _find_tensors(folder: Path) -> dict[str, Path]:
    index, single = folder / _INDEX, folder / _SINGLE
    if single.exists():  # which transformers prefers where both are there
        paths = [single]
    elif index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: expected weight_map to name a file for every tensor, got {weight_map!r:.60}")
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        raise UserError(f"{folder}: expected {_SINGLE} or {_INDEX}, got neither")
    files: dict[str, Path] = {}
    for path in paths:
        with _open_file(path) as file:
            for name in file.keys():
                if name in files:
                    raise UserError(f"{path}: expected every tensor once, got {name}, which {files[name].name} has too")
                files[name] = path
    return files


def _open_file(path: Path) -> safetensors.safe_open:
    try:
        check_fetched(path)
        return safetensors.safe_open(path, framework="numpy")
    except OSError:
        raise UserError(f"{path}: expected a file of tensors, got none that can be read") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: expected a whole safetensors file, got a broken one ({error})") from None


def _check_names(folder: Path, spec: DecoderSpec, files: dict[str, Path]) -> None:
    wanted = _tensor_table(spec)
    for name in wanted:
        if name not in files:
            raise UserError(f"{folder}: expected a tensor {name}, got files without it")
    for name, path in files.items():
        # Old exports carry the rotary frequencies, which config.json gives, and tied ones the output head.
        is_head = spec.tied and name == _name_tensor(spec.family, ("head",), None)
        is_derived = name.endswith(".rotary_emb.inv_freq") or is_head
        if name not in wanted and not is_derived:
            raise UserError(f"{path}: expected only tensors that config.json asks for, got {name}")
