# SPDX-License-Identifier: Apache-2.0
"""Meshes, and shardings from rules that live in the config.

  rules = [("embedder", ("data", None)), ("attn/.*/w", (None, "data")), (".*", ())]

One row per kind of param: (regex, one entry per axis: a mesh axis, several, or None); the first
match wins, axes left out at the end are not split. On one device every rule is the same.

Rows of a batch are split over all axes but "tensor", along which every device works on all rows.
What is computed under `use(mesh)` is held to layouts by `constrain`; without a mesh, or on one
device, that is nothing.
"""

from collections.abc import Mapping, Sequence
import contextlib
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError, did_you_mean

Entry = str | Sequence[str] | None
Rules = Sequence[tuple[str, Sequence[Entry]]]

# The axis that splits heads, ffn and vocabulary instead of rows.
TENSOR = "tensor"


def make_mesh(shape: Mapping[str, int], *, devices: Sequence[Any] | None = None) -> Mesh:
  """Returns a mesh of named axes, such as {"data": -1, "model": 4}; -1 takes what is left.

  The axes are of type Auto: with jax's Explicit default, `with_sharding_constraint` asserts
  instead of resharding.

  Raises:
    UserError: the sizes do not use up the devices, or these are of several slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = sizes_of(shape, len(devices))
  kinds = (AxisType.Auto,) * len(sizes)
  slices = {getattr(d, "slice_index", 0) for d in devices}
  if devices[0].platform == "tpu" and len(slices) > 1:
    raise UserError(f"a mesh has one slice, and these chips are of {len(slices)}")
  # `jax.make_mesh` splits an axis of a slice on v5e only: 8 x 2 of a v6e:4x4 it refuses.
  order = mesh_utils.create_device_mesh(
    tuple(sizes.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(order, tuple(sizes), axis_types=kinds)


def sizes_of(shape: Mapping[str, int], devices: int) -> dict[str, int]:
  """Returns the sizes of the axes with -1 filled in.

  Raises:
    UserError: the sizes do not use up the devices.
  """
  sizes = dict(shape)
  rest = [name for name, size in sizes.items() if size == -1]
  if len(rest) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise UserError(f"mesh {sizes}: sizes are at least 1, and one of them may be -1")
  if rest:
    sizes[rest[0]] = devices // math.prod(s for s in sizes.values() if s != -1)
  if math.prod(sizes.values()) != devices:
    raise UserError(f"mesh {dict(shape)} does not use up the {devices} devices")
  return sizes


def reshaped(mesh: Mesh, shape: Mapping[str, int]) -> Mesh:
  """Returns a mesh of the same devices in the same order, so that one program may know both."""
  devices = list(mesh.devices.flat)
  sizes = make_mesh(shape, devices=devices).shape
  kinds = (AxisType.Auto,) * len(sizes)
  order = np.array(devices).reshape(tuple(sizes.values()))
  return Mesh(order, tuple(sizes), axis_types=kinds)


def use(mesh: Mesh | None) -> contextlib.AbstractContextManager:
  """Makes `mesh` the one that `constrain` means, for calls of jitted functions inside.

  None, or a mesh of one device, changes nothing.
  """
  one = mesh is None or mesh.size == 1
  return contextlib.nullcontext() if one else jax.set_mesh(mesh)


def active() -> AbstractMesh | None:
  """Returns the mesh of `use`, or None if there is none or it has one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


def lone_platform() -> str:
  """Returns cpu, gpu or tpu if what is traced now is for a single one of these, else "".

  It is that of the default device, which `plan` sets to one that need not exist.
  """
  if active() is not None:
    return ""
  device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
  platform = jax.default_backend() if device is None else getattr(device, "platform", device)
  return "gpu" if platform == "cuda" else platform


def splits_heads() -> bool:
  """Returns whether the active mesh splits heads and ffn of a layer."""
  mesh = active()
  return mesh is not None and mesh.shape.get(TENSOR, 1) > 1


def row_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
  """Returns the axes over which rows are split."""
  return tuple(name for name in mesh.axis_names if name != TENSOR)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
  """Returns how many devices share the rows of a batch."""
  return math.prod(mesh.shape[name] for name in row_axes(mesh))


def constrain(x: jax.Array, *entries: Entry) -> jax.Array:
  """Holds x to one entry per axis, as in a rule; what does not fit the mesh is left out.

  "rows" stands for `row_axes`, "all" for all axes. Nothing happens without `use`.
  """
  mesh = active()
  if mesh is None:
    return x
  words = {"rows": row_axes(mesh), "all": mesh.axis_names}
  named = [words.get(entry, entry) if isinstance(entry, str) else entry for entry in entries]
  return jax.lax.with_sharding_constraint(x, fitting(mesh, x.shape, named))


def fitting(
  mesh: Mesh | AbstractMesh, shape: Sequence[int], entries: Sequence[Entry]
) -> PartitionSpec:
  """Returns the spec without the mesh axes that the mesh lacks or that do not divide the array."""
  spec = []
  for size, entry in zip(shape, entries):
    kept: list[str] = []
    for name in (entry,) if isinstance(entry, str) else entry or ():
      if name in mesh.shape and size % math.prod(mesh.shape[n] for n in [*kept, name]) == 0:
        kept.append(name)
    spec.append(None if not kept else kept[0] if len(kept) == 1 else tuple(kept))
  return PartitionSpec(*spec)


def shardings(mesh: Mesh, rules: Rules, tree: Any) -> Any:
  """Returns a tree of NamedShardings for a tree of arrays or ShapeDtypeStructs.

  Raises:
    UserError: a leaf without a rule, a rule without a leaf, an unknown mesh axis, or an axis of a
      leaf that its mesh axes do not divide.
  """
  # The spec is wrapped: a bare tuple would be taken for a subtree.
  specs = tree_lib.match_rules([(r, PartitionSpec(*map(_entry, s))) for r, s in rules], tree)

  def named(path: tuple[Any, ...], leaf: Any, spec: Any) -> NamedSharding:
    spec = spec if isinstance(spec, PartitionSpec) else PartitionSpec()
    _check(mesh, tree_lib.path_str(path), np.shape(leaf), spec)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(named, tree, specs)


def placed(shapes: Any, where: Any) -> Any:
  """Returns ShapeDtypeStructs with the shardings `where`: to restore into, or to compile for."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
  )


def batch_sharding(mesh: Mesh, *, axes: Sequence[str] | None = None) -> NamedSharding:
  """Splits the leading axis over `axes`, by default over `row_axes`."""
  return NamedSharding(mesh, PartitionSpec(tuple(axes or row_axes(mesh))))


def rows_sharding(mesh: Mesh, rows: int, *, axes: Sequence[str] | None = None) -> NamedSharding:
  """`batch_sharding`, but replicated where the devices do not divide the rows."""
  axes = tuple(axes or row_axes(mesh))
  even = rows % math.prod(mesh.shape[name] for name in axes) == 0
  return batch_sharding(mesh, axes=axes) if even else replicated(mesh)


def cut_rows(arrays: Any, size: int) -> Any:
  """Returns arrays [R,…] as [R/size,size,…]: row r goes to piece r % pieces.

  So each piece has an equal share of every device's rows, and none is sent elsewhere.
  """
  return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]).swapaxes(0, 1), arrays)


def join_rows(arrays: Any) -> Any:
  """Returns what `cut_rows` was given."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), arrays)


def replicated(mesh: Mesh) -> NamedSharding:
  """Puts the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def _entry(entry: Entry) -> str | tuple[str, ...] | None:
  return entry if entry is None or isinstance(entry, str) else tuple(entry)


def _check(mesh: Mesh, path: str, shape: tuple[int, ...], spec: PartitionSpec) -> None:
  if len(spec) > len(shape):
    raise UserError(f"{path} {shape}: the rule {spec} has more entries than the array has axes")
  for size, entry in zip(shape, spec):
    names = (entry,) if isinstance(entry, str) else entry or ()
    for name in names:
      if name not in mesh.shape:
        raise UserError(
          f"{path}: the mesh has no axis {name!r}"
          f"{did_you_mean(name, mesh.axis_names)}; it has {dict(mesh.shape)}"
        )
    parts = math.prod(mesh.shape[name] for name in names)
    if size % parts:
      raise UserError(f"{path} {shape}: {size} is not a multiple of the {parts} devices of {names}")
