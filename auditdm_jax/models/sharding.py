# SPDX-License-Identifier: Apache-2.0
"""How the models lie on a mesh: where parameters are kept, and where they are when they are used.

    mesh axes      rows of a batch    kept parameters          used parameters
    data           split              whole                    whole
    fsdp           split              split                    gathered, a layer at a time; or split
    tensor         whole              split                    split: heads, ffn, vocabulary

An axis that splits the rows cannot split a weight at its use: left to itself, XLA for TPUs would
not gather it but send it around in pieces, a hundred thousand messages a step. So each scanned
stack says `at_use` in its body. The vision tower is small: its rows are split over all axes, and it
is gathered over all of them. The head is the largest weight and is not gathered at all: it takes
the rows instead. So do the layers of a model that decodes a few rows, see `Layout`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models import int8

# (regex, mesh axes per array axis) for every parameter of every model, which matches one row only.
# Layers are scanned over and stay whole, and what is smaller than a megabyte is not worth a gather.
SHARDING_RULES: mesh_lib.Rules = (
  (r"^llm/embedder/(input|output)_embedding$", (("tensor", "fsdp"), None)),
  (r"^llm/layers/attn/q_einsum/w$", (None, "tensor", "fsdp")),
  (r"^llm/layers/attn/kv_einsum/w$", (None, None, "tensor", "fsdp")),
  (r"^llm/layers/attn/attn_vec_einsum/w$", (None, "tensor", None, "fsdp")),
  (r"^llm/layers/mlp/gating_einsum$", (None, None, "fsdp", "tensor")),
  (r"^llm/layers/mlp/linear$", (None, "tensor", "fsdp")),
  (r"^llm/.*(/scale|_einsum/b)$", ()),
  (r"^img/embedding/kernel$", (None, None, None, "fsdp")),
  (r"^img/pos_embedding$", (None, None, "fsdp")),
  (r"^img/Transformer/.*/(query|key|value)/kernel$", (None, "fsdp", "tensor")),
  (r"^img/Transformer/.*/out/kernel$", (None, "tensor", None, "fsdp")),
  (r"^img/Transformer/.*/Dense_0/kernel$", (None, "fsdp", "tensor")),
  (r"^img/Transformer/.*/Dense_1/kernel$", (None, "tensor", "fsdp")),
  (r"^img/(head/kernel|head/input_projection/w)$", ("fsdp", "tensor")),
  (r"^img/pooling_head/", ()),
  (r"^img/.*/(scale|bias)$", ()),
)


def shardings(mesh: Mesh, params: Any, *, rules: mesh_lib.Rules = SHARDING_RULES) -> Any:
  """Returns NamedShardings for the parameters of any model.

  A mesh axis that the mesh lacks, or that does not divide the array (one kv-head over four
  devices), is left out: the array is whole along it.

  Args:
    mesh: with the axes of the rules, or some of them.
    params: the parameters or their `jax.ShapeDtypeStruct`s.
    rules: the first match wins.

  Raises:
    UserError: a parameter that no rule matches.
  """

  def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    entries = _rule(rules, tree_lib.path_str(path), leaf.shape)
    return NamedSharding(mesh, mesh_lib.fitting(mesh, leaf.shape, entries))

  return jax.tree_util.tree_map_with_path(of, params)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the values [B,T,...] of a layer of the decoder lie while its products are computed.

  A layer's weights are gathered over "fsdp", or stay split. Then, around each product, the rows
  are put together over that axis and split along what the weight has split: what travels is the
  rows in place of the weights (the 2D layout of Pope et al., arXiv:2211.05102, section 3.2.2).

  Heads and ffn are split over "tensor" either way. Left to itself, XLA splits other axes in the
  backward pass and sends the scores of attention.

  Attributes:
    stays: whether the weights stay.
  """

  stays: bool = False

  @classmethod
  def of_step(cls, *, width: int, rows: int) -> "Layout":
    """Returns the layout that sends less when `rows` tokens pass layers of D = `width`.

    A weight with D among its axes is gathered as D values for each index of the others. Or its
    operand or result travels, as a value of each row for each of these indices.
    """
    mesh = mesh_lib.active()
    if mesh is None or mesh.shape.get("fsdp", 1) == 1:
      return GATHERED
    return cls(stays=rows * mesh.shape["fsdp"] < width * mesh_lib.row_shards(mesh))

  @property
  def keep(self) -> tuple[str, ...]:
    """The axes over which the weights of a layer stay split, for `at_use`."""
    return ("tensor", "fsdp") if self.stays else ("tensor",)

  def into(self, x: Array) -> Array:
    """Holds [B,T,D] to how a weight lies that sums over D."""
    return self._held(self._held(x, "rows"), *_WIDTH)

  def inside(self, x: Array) -> Array:
    """Holds such a weight's result [B,T,...,K,H] or [B,T,F] to its rows, and to its heads or F."""
    heads_last = x.ndim > 3
    return mesh_lib.constrain(x, "rows", *[None] * (x.ndim - 2 - heads_last), "tensor")

  def out_of(self, x: Array) -> Array:
    """Holds [B,T,N·H] or [B,T,F] to how a weight lies that sums over that."""
    return mesh_lib.constrain(x, "data" if self.stays else "rows", None, "tensor")

  def back(self, x: Array) -> Array:
    """Holds such a weight's result [B,T,D] to its rows."""
    return mesh_lib.constrain(self._held(x, *_WIDTH), "rows")

  def _held(self, x: Array, *entries: mesh_lib.Entry) -> Array:
    return mesh_lib.constrain(x, *entries) if self.stays else x


GATHERED = Layout()
_WIDTH = ("data", None, "fsdp")


def at_use(
  prefix: str,
  block: type[nn.Module],
  *,
  dtype: str,
  keep: Sequence[str] = ("tensor",),
  quantized: bool = False,
) -> type[nn.Module]:
  """Returns the module of a scanned layer, which has its parameters where it uses them.

  Args:
    prefix: where the layer's parameters lie in the model, such as "llm/layers".
    block: the layer.
    dtype: compute dtype. Weights are gathered in it, which halves the bytes.
    keep: mesh axes over which they stay split.
    quantized: some are `int8.Int8`.
  """
  mesh = mesh_lib.active()
  if mesh is None and not quantized:
    return block

  def use(path: tuple[Any, ...], w: Array | int8.Int8) -> Array:
    if not int8.is_int8(w):
      return hold(path, w.astype(dtype) if _is_split(path) else w)
    return int8.Int8(hold(path, w.values), w.scale).dense(dtype)

  def _is_split(path: tuple[Any, ...]) -> bool:
    """Returns whether it is large. What is small is whole everywhere, and norms compute in fp32."""
    return mesh is not None and bool(entries(path))

  def entries(path: tuple[Any, ...]) -> Sequence[mesh_lib.Entry]:
    return _rule(SHARDING_RULES, f"{prefix}/{tree_lib.path_str(path)}")[1:]

  def hold(path: tuple[Any, ...], w: Array) -> Array:
    if not _is_split(path):
      return w
    kept = [_only(entry, keep) for entry in entries(path)]
    return jax.lax.with_sharding_constraint(w, mesh_lib.fitting(mesh, w.shape, kept))

  def gather(variables):
    return jax.tree_util.tree_map_with_path(
      lambda path, w: use(path[1:], w), variables, is_leaf=int8.is_int8
    )

  return nn.map_variables(block, "params", trans_in_fn=gather, init=False)


def look_up(table: Array, tokens: Array, *, dtype: str) -> Array:
  """Returns [B,T,D] in `dtype`: rows of table [V,D] for i32[B,T].

  Where the vocabulary is split, every device looks up what it has of the rows of all, and the sum
  goes back to where the rows lie: the table, which is larger than them, stays where it is.
  """
  mesh = mesh_lib.active()
  split = mesh_lib.fitting(mesh, table.shape, [("tensor", "fsdp")])[0] if mesh else None
  if split is None:
    return jnp.take(table, tokens, axis=0).astype(dtype)
  names = (split,) if isinstance(split, str) else split
  rows = mesh_lib.fitting(mesh, tokens.shape, [mesh_lib.row_axes(mesh)])
  gathered = "fsdp" in names and "fsdp" in _names(rows[0])
  summed = tuple(name for name in names if name != "fsdp" or not gathered)

  def local(part: Array, tokens: Array) -> Array:
    if gathered:
      tokens = jax.lax.all_gather(tokens, "fsdp", tiled=True)
    index = tokens - jax.lax.axis_index(names) * part.shape[0]
    here = (index >= 0) & (index < part.shape[0])
    x = _take(part, jnp.where(here, index, part.shape[0]), dtype)
    x = jax.lax.psum(x, summed) if summed else x
    return jax.lax.psum_scatter(x, "fsdp", tiled=True) if gathered else x

  specs = PartitionSpec(split), rows
  return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
    table, tokens
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take(table: Array, index: Array, dtype: str) -> Array:
  """Returns rows [B,T,D] in `dtype`; 0 where the index is past the end."""
  return jnp.take(table, index, axis=0, mode="fill", fill_value=0).astype(dtype)


def _take_forward(table: Array, index: Array, dtype: str) -> tuple[Array, tuple[Array, Array]]:
  return _take(table, index, dtype), (table, index)


def _take_backward(dtype: str, kept: tuple[Array, Array], given: Array) -> tuple[Array, None]:
  """Adds up a row at a time: only that much of what is given is ever in the table's dtype."""
  del dtype
  table, index = kept

  def add(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
    at, part = row
    return total.at[at].add(part.astype(total.dtype), mode="drop"), None

  return jax.lax.scan(add, jnp.zeros_like(table), (index, given))[0], None


_take.defvjp(_take_forward, _take_backward)


def _rule(rules: mesh_lib.Rules, path: str, shape: Sequence[int] = ()) -> Sequence[mesh_lib.Entry]:
  # An int8 weight lies as the weight does, its small scale everywhere.
  path = path.removesuffix("/values")
  for regex, entries in rules:
    if re.search(regex, path):
      return entries
  raise UserError(f"{path} {tuple(shape)}: none of the sharding rules matches")


def _names(entry: mesh_lib.Entry) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _only(entry: mesh_lib.Entry, names: Sequence[str]) -> tuple[str, ...]:
  return tuple(name for name in _names(entry) if name in names)
