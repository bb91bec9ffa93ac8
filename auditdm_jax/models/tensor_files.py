# SPDX-License-Identifier: Apache-2.0
"""Files of tensors as mappings of leaves: safetensors, npz, and the zarr arrays of tensorstore.

Reading looks at headers only and checks them; a leaf opens its file again for the part it wants,
so that neither the memory nor the address space of the process holds a file. Writing goes through
a tensor piece by piece. Names are whatever the file says: what they mean is the business of `hf`,
`big_vision` and `weights`.
"""

from collections.abc import Callable, Mapping
import json
import lzma
import math
import os
import pathlib
import tokenize
from typing import Any
import zipfile
import zlib

import ml_dtypes
import numpy as np
import safetensors
import tensorstore

from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.models.leaves import Index, Leaf

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# In safetensors' own order, smallest alignment first; its files are sorted by it.
_SAFETENSORS = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "I8": np.int8,
  "I16": np.int16,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I32": np.int32,
  "F32": np.float32,
  "F64": np.float64,
  "I64": np.int64,
}
_SAFETENSORS_NAMES = {np.dtype(v): k for k, v in _SAFETENSORS.items()}
_RANK = {name: i for i, name in enumerate(_SAFETENSORS)}
# What zipfile and numpy raise for a file that is damaged.
_BROKEN_NPZ = (
  OSError,
  ValueError,
  EOFError,
  RuntimeError,
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  tokenize.TokenError,
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


Tick = Callable[[int, int], None]  # Called with how many tensors of how many are written.


def no_progress(done: int, total: int) -> None:
  """For those who do not want to know."""


# --------------------------------------------------------------------------------- safetensors


def read_safetensors(folder: str | os.PathLike) -> dict[str, Leaf]:
  """Reads the tensors of a folder: model.safetensors, or the shards that its index names.

  Raises:
    UserError: there are none, a shard is missing, torn or damaged, or does not hold what the index
      says.
  """
  folder = pathlib.Path(folder)
  if (folder / SINGLE).is_file():  # Before the index, as transformers has it.
    return read_safetensors_file(folder / SINGLE)
  if not (folder / INDEX).is_file():
    raise UserError(_no_tensors(folder))
  weight_map = _weight_map(folder / INDEX)
  tensors: dict[str, Leaf] = {}
  for name in sorted(set(weight_map.values())):
    path = folder / name
    if not path.is_file():
      raise UserError(f"{folder / INDEX}: names {name}, which is not in the folder")
    shard = read_safetensors_file(path)
    if both := sorted(tensors.keys() & shard.keys()):
      raise UserError(f"{path}: {both[0]} is in another shard too")
    for key in (k for k, v in weight_map.items() if v == name and k not in shard):
      raise UserError(f"{folder / INDEX}: says that {key} is in {name}, but it is not")
    tensors |= shard
  return tensors


def read_safetensors_file(path: pathlib.Path) -> dict[str, Leaf]:
  """Reads one file.

  Raises:
    UserError: it is not a whole safetensors file.
  """
  if not path.is_file():
    raise UserError(f"{path}: no such file")
  try:
    with safetensors.safe_open(path, framework="np"):  # Checks the header and the file's size.
      pass
  except (safetensors.SafetensorError, OSError, ValueError) as e:
    raise UserError(f"{path}: not a whole safetensors file{_what_it_is(path)}: {e}") from e
  with open(path, "rb") as f:
    size = int.from_bytes(f.read(8), "little")
    header = json.loads(f.read(size))
  header.pop("__metadata__", None)
  tensors = {}
  for name, entry in header.items():
    if entry["dtype"] not in _SAFETENSORS:
      raise UserError(
        f"{path}: {name} is {entry['dtype']}; quantized weights cannot be read, only "
        f"{', '.join(_SAFETENSORS)}"
      )
    tensors[name] = _mapped(
      path,
      dtype=np.dtype(_SAFETENSORS[entry["dtype"]]),
      shape=tuple(entry["shape"]),
      offset=8 + size + entry["data_offsets"][0],
      source=f"{path}: {name}",
    )
  return tensors


def write_safetensors(
  folder: pathlib.Path,
  tensors: Mapping[str, Leaf],
  *,
  max_shard_bytes: int = 5_000_000_000,
  tick: Tick = no_progress,
) -> None:
  """Writes model.safetensors, or shards and their index where it would be too large.

  Args:
    folder: where; it is there already.
    tensors: by name; a shard takes them in this order.
    max_shard_bytes: largest size of a shard's tensors; a larger tensor has its own shard.
    tick: called after each tensor.
  """
  shards: list[dict[str, Leaf]] = [{}]
  size = 0
  for name, leaf in tensors.items():
    if shards[-1] and size + leaf.nbytes > max_shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = leaf
    size += leaf.nbytes
  if len(shards) == 1:
    _write_safetensors_file(folder / SINGLE, shards[0], tick, (0, len(tensors)))
    return
  weight_map = {}
  for i, shard in enumerate(shards):
    name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    _write_safetensors_file(folder / name, shard, tick, (len(weight_map), len(tensors)))
    weight_map |= dict.fromkeys(shard, name)
  index = {
    "metadata": {"total_size": sum(leaf.nbytes for leaf in tensors.values())},
    "weight_map": dict(sorted(weight_map.items())),
  }
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_safetensors_file(
  path: pathlib.Path, tensors: Mapping[str, Leaf], tick: Tick, progress: tuple[int, int]
) -> None:
  kinds = {name: _SAFETENSORS_NAMES[leaf.dtype] for name, leaf in tensors.items()}
  order = sorted(tensors, key=lambda name: (-_RANK[kinds[name]], name))
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it.
  offset = 0
  for name in order:
    leaf = tensors[name]
    span = [offset, offset + leaf.nbytes]
    header[name] = {"dtype": kinds[name], "shape": list(leaf.shape), "data_offsets": span}
    offset = span[1]
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "xb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for i, name in enumerate(order):
      for piece in tensors[name].pieces():
        f.write(_bytes(piece))
      tick(progress[0] + i + 1, progress[1])
    f.flush()
    os.fsync(f.fileno())


def _weight_map(path: pathlib.Path) -> dict[str, str]:
  index = jsonio.read_json(path)
  weight_map = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(weight_map, dict) or not weight_map:
    raise UserError(f"{path}: has no 'weight_map' from names of tensors to files")
  for name in weight_map.values():
    # A checkpoint of a stranger does not get to name files elsewhere.
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      raise UserError(f"{path}: {name!r} is not the name of a file in the folder")
  return weight_map


def _no_tensors(folder: pathlib.Path) -> str:
  pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
  if pickles:
    return (
      f"{folder}: {pickles[0]} is a pickle, which is not read because it could run code; "
      f"save the model as {SINGLE} (transformers: save_pretrained)"
    )
  others = sorted(p.name for p in folder.glob("*.safetensors"))
  there = f"; there is {others[0]}" if others else ""
  return f"{folder}: neither {SINGLE} nor {INDEX} is in it{there}"


def _what_it_is(path: pathlib.Path) -> str:
  """Says what a file is that is not safetensors, if its first bytes tell."""
  try:
    with open(path, "rb") as f:
      start = f.read(64)
  except OSError:
    return ""
  if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")):
    return ", but a pickle or a zip file"
  if start.startswith(b"version https://git-lfs"):
    return ", but the pointer of Git LFS (git lfs pull fetches the file)"
  return ""


# ----------------------------------------------------------------------------------------- npz


def read_npz(path: pathlib.Path) -> dict[str, Leaf]:
  """Reads an npz file; bf16, which numpy stores as |V2, is recognised.

  Raises:
    UserError: it is torn or damaged, or holds a pickle.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      members = [i for i in archive.infolist() if i.filename.endswith(".npy")]
      tensors = {
        member.filename.removesuffix(".npy"): _npz_leaf(path, archive, member) for member in members
      }
  except UserError:
    raise
  except _BROKEN_NPZ as e:
    raise UserError(f"{path}: not a whole npz file: {e}") from e
  if not tensors:
    raise UserError(f"{path}: there are no arrays in it")
  return tensors


def _npz_leaf(path: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Leaf:
  source = f"{path}: {member.filename.removesuffix('.npy')}"
  with archive.open(member) as f:
    version = np.lib.format.read_magic(f)
    header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
      raise UserError(f"{source}: npy version {version} is not known")
    shape, fortran, stored = header(f)
    start = f.tell()
  if stored.hasobject:
    raise UserError(f"{source} holds Python objects (a pickle), which are not read")
  dtype = np.dtype(ml_dtypes.bfloat16) if stored == np.dtype("V2") else stored
  if dtype.kind == "V" and dtype != ml_dtypes.bfloat16:
    raise UserError(f"{source} has the dtype {stored}, which is none of numbers")
  if member.file_size != start + math.prod(shape) * dtype.itemsize:
    raise UserError(f"{source}: {member.file_size} bytes are not an array of {dtype} {shape}")
  if member.compress_type == zipfile.ZIP_STORED:
    with open(path, "rb") as f:  # The name and extra field of the local header may differ.
      f.seek(member.header_offset)
      local = f.read(30)
    skip = 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    offset = member.header_offset + skip + start
    order = "F" if fortran else "C"
    return _mapped(path, dtype=dtype, shape=shape, offset=offset, source=source, order=order)

  def read(index: Index) -> np.ndarray:
    try:
      with zipfile.ZipFile(path) as again, again.open(member.filename) as f:
        return np.lib.format.read_array(f, allow_pickle=False).view(dtype)[index]
    except _BROKEN_NPZ as e:
      raise UserError(f"{source}: cannot be read: {e}") from e

  return Leaf(shape, dtype, read, source)


def write_npz(path: pathlib.Path, tensors: Mapping[str, Leaf], *, tick: Tick = no_progress) -> None:
  """Writes an npz file as np.savez does; bf16 as |V2, which big_vision reads back."""
  with open(path, "xb") as out:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
      for i, (name, leaf) in enumerate(tensors.items()):
        bf16 = leaf.dtype == ml_dtypes.bfloat16
        descr = np.lib.format.dtype_to_descr(np.dtype("V2") if bf16 else leaf.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": leaf.shape}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as f:
          np.lib.format.write_array_header_1_0(f, header)
          for piece in leaf.pieces():
            f.write(_bytes(piece))
        tick(i + 1, len(tensors))
    out.flush()
    os.fsync(out.fileno())


# ---------------------------------------------------------------------------------- tensorstore


def read_zarr_folders(folder: pathlib.Path, *, prefix: str) -> dict[str, Leaf]:
  """Reads the arrays of a big_vision checkpoint: a zarr folder each, named "params~llm~…".

  Args:
    folder: folder of the checkpoint.
    prefix: how the wanted names start, such as "params/".
  """
  names = sorted(p.name for p in folder.iterdir() if p.is_dir())
  names = [name for name in names if name.replace("~", "/").startswith(prefix)]
  if not names:
    raise UserError(f"{folder}: there are no arrays {prefix.replace('/', '~')}… in it")
  return {
    name.replace("~", "/"): _stored(
      {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{(folder / name).absolute()}/"}},
      f"{folder / name}",
    )
    for name in names
  }


def read_orbax(folder: pathlib.Path) -> dict[str, Leaf]:
  """Reads the arrays of an Orbax checkpoint of a tree of dicts; names are paths with slashes.

  Raises:
    UserError: it is not one, or holds other things than arrays.
  """
  path = folder / "_METADATA"
  try:
    metadata = jsonio.read_json(path)
    entries = [e["key_metadata"] for e in metadata["tree_metadata"].values()]
    keys = [[part["key"] for part in entry] for entry in entries]
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    packed = metadata.get("use_ocdbt", True)
    zeros_too = bool(metadata.get("store_array_data_equal_to_fill_value"))
  except (FileNotFoundError, ValueError, KeyError, TypeError) as e:
    raise UserError(f"{path}: not the metadata of an Orbax checkpoint: {e}") from e

  def kvstore(name: str) -> dict[str, Any]:
    if packed:
      return {"driver": "ocdbt", "base": folder.absolute().as_uri(), "path": f"{name}/"}
    return {"driver": "file", "path": f"{(folder / name).absolute()}/"}

  return {
    "/".join(key): _stored(
      {"driver": driver, "kvstore": kvstore(".".join(key))},
      f"{folder}: {'/'.join(key)}",
      zeros_too=zeros_too,
    )
    for key in keys
  }


def write_orbax(
  folder: pathlib.Path, tensors: Mapping[str, Leaf], *, tick: Tick = no_progress
) -> None:
  """Writes a folder that Orbax restores as the tree of dicts that the names are paths of.

  Orbax itself takes a tree from memory only, and copies it. Its format without OCDBT is a zarr
  array for each leaf and a list of them, which can be written piece by piece.

  Args:
    folder: where; it is there already.
    tensors: by path.
    tick: called after each tensor.
  """
  entries = {}
  for i, (name, leaf) in enumerate(tensors.items()):
    keys = name.split("/")
    chunks = [min(leaf.rows_per_piece, leaf.shape[0]), *leaf.shape[1:]] if leaf.shape else []
    spec = {
      "driver": "zarr",
      "kvstore": {"driver": "file", "path": f"{(folder / '.'.join(keys)).absolute()}/"},
      "metadata": {"shape": leaf.shape, "chunks": chunks, "compressor": None},
      "dtype": leaf.dtype.name,
      "store_data_equal_to_fill_value": True,
    }
    array, start = _written(tensorstore.open(spec, create=True)), 0
    for piece in leaf.pieces():
      if leaf.shape:
        _written(array[start : start + len(piece)].write(piece))
        start += len(piece)
      else:
        _written(array.write(piece))
    entries[str(tuple(keys))] = {
      "key_metadata": [{"key": key, "key_type": 2} for key in keys],
      "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
    tick(i + 1, len(tensors))
  metadata = {"tree_metadata": entries, "use_ocdbt": False, "use_zarr3": False}
  (folder / "_METADATA").write_text(json.dumps(metadata), encoding="utf-8")
  (folder / "_CHECKPOINT_METADATA").write_text("{}", encoding="utf-8")


def _stored(spec: Mapping[str, Any], source: str, *, zeros_too: bool = False) -> Leaf:
  """Returns a leaf of a zarr array.

  A chunk that is not there is damage, and must not be read as zeros, unless whoever wrote the array
  left out what is all zeros. None does where there is no fill value, nor with `zeros_too`.
  """

  def result(future: tensorstore.Future) -> Any:
    try:
      return future.result()
    except (ValueError, OSError) as e:
      raise UserError(f"{source}: not a readable array: {str(e).splitlines()[0]}") from e

  strict = {**spec, "fill_missing_data_reads": False}
  array = result(tensorstore.open(strict, open=True, read=True))
  if array.fill_value is not None and not zeros_too:
    array = result(tensorstore.open(spec, open=True, read=True))
  return Leaf(
    tuple(array.shape),
    np.dtype(array.dtype.numpy_dtype),
    lambda index: result(array[index].read()),
    source,
  )


def _written(future: tensorstore.Future) -> Any:
  """What was waited for; a disk that does not take it is an OSError, as for any other file."""
  try:
    return future.result()
  except ValueError as e:
    raise OSError(str(e).splitlines()[0]) from e


# --------------------------------------------------------------------------------------- shared


def _mapped(
  path: pathlib.Path,
  *,
  dtype: np.dtype,
  shape: tuple[int, ...],
  offset: int,
  source: str,
  order: str = "C",
) -> Leaf:
  """Returns a leaf of a run of bytes of a file."""

  def read(index: Index) -> np.ndarray:
    if not math.prod(shape):  # Nothing cannot be mapped.
      return np.zeros(shape, dtype)[index]
    # Mapped for this read only: pages of a mapping count as the process's memory while it lasts.
    return np.array(np.memmap(path, dtype, "r", offset, shape or (1,), order).reshape(shape)[index])

  return Leaf(shape, dtype, read, source)


def _bytes(piece: np.ndarray) -> memoryview:
  """Returns the bytes of a C-ordered array, not copied; bf16 has no buffer protocol of its own."""
  return memoryview(piece.reshape(-1).view(np.uint8))
