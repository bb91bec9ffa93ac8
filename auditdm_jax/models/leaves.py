# SPDX-License-Identifier: Apache-2.0
"""Tensors that are read when and where they are needed.

A checkpoint is a mapping from names to leaves; renaming, transposing and stacking give other
mappings of leaves and read nothing. Only `place` (to devices) and the writers read, one shard or
one piece of a tensor at a time, so a model is never twice in the host's memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core.config import UserError

Index = tuple[slice, ...]
_PIECE_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
  """A tensor in a file, or made of tensors in files.

  Attributes:
    shape: its axes.
    dtype: its dtype in the file; `ml_dtypes.bfloat16` for bf16.
    read: from one slice per axis, with start and stop and no step, to that part of the tensor, in
      `dtype`; may return a view.
    source: where it comes from, for errors: "model-00001-of-00002.safetensors: model.norm.weight".
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[Index], np.ndarray]
  source: str = ""

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  @property
  def rows_per_piece(self) -> int:
    """How many rows of the leading axis `pieces` reads at a time; the last piece may have less."""
    row = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
    return max(1, _PIECE_BYTES // row)

  def whole(self) -> np.ndarray:
    return self.read(tuple(slice(0, n) for n in self.shape))

  def pieces(self) -> Iterator[np.ndarray]:
    """Yields C-ordered runs of rows of the leading axis, which together are the whole tensor."""
    if not self.shape:
      yield self.whole()
      return
    rest = tuple(slice(0, n) for n in self.shape[1:])
    step = self.rows_per_piece
    for start in range(0, self.shape[0], step):
      piece = self.read((slice(start, min(start + step, self.shape[0])), *rest))
      yield np.ascontiguousarray(piece)


def of_array(array: Any, source: str = "") -> Leaf:
  """Returns a leaf of an array in memory or on devices; a device array comes over in parts."""
  if not isinstance(array, jax.Array):
    array = np.asarray(array)
  return Leaf(
    tuple(array.shape), np.dtype(array.dtype), lambda index: np.asarray(array[index]), source
  )


def stack(parts: Sequence[Leaf], dtype: Any = None) -> Leaf:
  """Returns a leaf with a new leading axis, such as layers; it reads only the parts asked for.

  Args:
    parts: leaves of one shape.
    dtype: what parts in several floating dtypes are cast to; None refuses them.

  Raises:
    UserError: the parts differ in shape or dtype.
  """
  kinds = {part.dtype for part in parts}
  if dtype is not None and len(kinds) > 1 and all(jnp.issubdtype(k, jnp.floating) for k in kinds):
    parts = [cast(part, dtype) for part in parts]
  first = parts[0]
  for part in parts:
    if (part.shape, part.dtype) != (first.shape, first.dtype):
      hint = ": ask for a dtype" if part.shape == first.shape else ""
      raise UserError(
        f"{part.source}: {part.dtype} {part.shape}, but {first.source} is {first.dtype} "
        f"{first.shape}{hint}"
      )

  def read(index: Index) -> np.ndarray:
    chosen = parts[index[0]]
    shape = tuple(s.stop - s.start for s in index[1:])
    out = np.empty((len(chosen), *shape), first.dtype)
    for i, part in enumerate(chosen):
      out[i] = part.read(index[1:])
    return out

  return Leaf((len(parts), *first.shape), first.dtype, read, first.source)


def cast(leaf: Leaf, dtype: Any) -> Leaf:
  """Returns the leaf in another dtype.

  Reading raises a UserError where a finite value is too large for it.
  """
  want = np.dtype(dtype)
  if want == leaf.dtype:
    return leaf

  def read(index: Index) -> np.ndarray:
    given = leaf.read(index)
    with np.errstate(over="ignore"):  # Looked at in the next lines.
      made = given.astype(want)
    if want.itemsize < leaf.dtype.itemsize or want == np.float16:
      over = np.isinf(made.astype(np.float32)) & np.isfinite(given.astype(np.float32))
      if over.any():
        raise UserError(f"{leaf.source}: has values that are not finite in {want}")
    return made

  return dataclasses.replace(leaf, dtype=want, read=read)


def place(
  leaves: Mapping[str, Leaf],
  shardings: Mapping[str, jax.sharding.Sharding] | None,
  dtype: Any = None,
) -> dict[str, jax.Array]:
  """Reads every leaf to its devices; each device's shard is read by itself.

  Args:
    leaves: by path.
    shardings: shardings by the same paths; None is the default device.
    dtype: dtype of the arrays; None keeps each leaf's own.
  """

  def whole(leaf: Leaf) -> jax.Array:
    value = _copy(leaf, tuple((0, n) for n in leaf.shape), dtype or leaf.dtype)
    return jax.device_put(value).block_until_ready()

  def sharded(leaf: Leaf, sharding: jax.sharding.Sharding) -> jax.Array:
    want = np.dtype(dtype or leaf.dtype)
    holders: dict[tuple, list[Any]] = {}  # Of each part: it is read once.
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
      part = tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape))
      holders.setdefault(part, []).append(device)
    shards = []
    for part, devices in holders.items():
      value = _copy(leaf, part, want)
      # Waited for, so that no more than one part is on the host.
      shards += [jax.device_put(value, device).block_until_ready() for device in devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards, dtype=want)

  if shardings is None:
    return {path: whole(leaf) for path, leaf in leaves.items()}
  return {path: sharded(leaf, shardings[path]) for path, leaf in leaves.items()}


def _copy(leaf: Leaf, part: tuple[tuple[int, int], ...], dtype: Any) -> np.ndarray:
  """Reads from start to stop of each axis, piece by piece, into an array of its own.

  A device of the CPU may keep what it is given, and that must not be a view of a file.
  """
  out = np.empty([stop - start for start, stop in part], dtype)

  def read(index: Index) -> np.ndarray:
    return leaf.read(
      tuple(slice(start + s.start, start + s.stop) for (start, _), s in zip(part, index))
    )

  if not out.shape:
    out[...] = leaf.whole()
    return out
  row = 0
  for piece in Leaf(out.shape, leaf.dtype, read).pieces():
    out[row : row + len(piece)] = piece
    row += len(piece)
  return out


def abstract(leaves: Mapping[str, Leaf]) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes and dtypes by path."""
  return {k: jax.ShapeDtypeStruct(v.shape, jnp.dtype(v.dtype)) for k, v in leaves.items()}
