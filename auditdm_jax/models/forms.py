# SPDX-License-Identifier: Apache-2.0
"""How the parameters of the decoder's layers lie, and the products with matrices that lie so.

stacked   a leading axis of layers, scanned over: as they are kept, and on every accelerator
listed    a tree per layer, matrices [in,out]: a few layers on a CPU, for many rows
split     a tree per layer, matrices [out,in]: larger models on a CPU, for few rows
"""

import functools
from typing import Any, Literal

import jax
from jax import Array
import jax.numpy as jnp

from auditdm_jax.models import int8

Form = Literal["stacked", "listed", "split"]

_FEW_ROWS = 128  # Up to which a CPU is faster with the weight on the left.


def results_first(x: Array, w: Array, *, dtype: Any = None) -> Array:
  """Returns x @ w.T [...,out] of rows x[...,in] and w[out,in], summed up in `dtype`."""
  rows = x.reshape(-1, x.shape[-1])
  if len(rows) > _FEW_ROWS:
    y = jnp.einsum("ri,oi->ro", rows, w, preferred_element_type=dtype)
  else:
    # The barriers keep w on the left. On the right, XLA for CPUs repacks it at each call, or fuses
    # the product with what makes x, and makes x again for each result.
    fix = jax.lax.optimization_barrier
    y = fix(jnp.matmul(w, fix(rows.T), preferred_element_type=dtype)).T
  return y.reshape(*x.shape[:-1], -1)


def dense(x: Array, w: Array) -> Array:
  """Returns x[...,in] @ w[in,out] [...,out], whose gradients a CPU is quick to compute."""
  return _dense(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _dense(x: Array, w: Array) -> Array:
  return x @ w


def _dense_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
  return x @ w, (x, w)


def _dense_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  """The barrier keeps x turned: XLA for CPUs would turn dy, which is wider, for each product."""
  x, w = kept
  return dy @ w.T, jax.lax.optimization_barrier(x.T) @ dy


_dense.defvjp(_dense_forward, _dense_backward)


def split_layers(layers: Any) -> dict[str, Any]:
  """Returns {"layers_0": …}, the tree `layers` taken apart and its matrices results first.

  For `Gemma(form="split")`. A step takes as long as reading its weights: a CPU reads these once and
  as they lie, where the scan first copies each layer out of the stack.
  """

  def take(i: int, path: tuple[Any, ...], w: Array) -> Array:
    summed = _summed(path)
    return jnp.moveaxis(w[i], summed, range(-len(summed), 0))

  depth = jax.tree.leaves(layers)[0].shape[0]
  return {
    f"layers_{i}": jax.tree_util.tree_map_with_path(functools.partial(take, i), layers)
    for i in range(depth)
  }


def list_layers(layers: Any) -> dict[str, Any]:
  """Returns {"blocks_0": …}, the tree `layers` taken apart and its matrices results last.

  For `Gemma(form="listed")`. A step of training, or of many samples, multiplies with a weight again
  and again, and would copy it out of the stack and turn it each time.
  """

  def take(path: tuple[Any, ...], w: Array) -> list[Array]:
    # One split and not an index each, whose gradients would be as many sums of whole stacks.
    parts = [jax.lax.squeeze(x, [0]) for x in jax.lax.split(w, [1] * len(w))]
    return [jnp.moveaxis(x, summed := _summed(path), range(len(summed))) for x in parts]

  flat, structure = jax.tree_util.tree_flatten_with_path(layers)
  taken = [take(path, w) for path, w in flat]
  depth = len(flat[0][1])
  return {f"blocks_{i}": structure.unflatten([w[i] for w in taken]) for i in range(depth)}


def stack_layers(listed: dict[str, Any]) -> Any:
  """Returns the tree `layers` of what `list_layers` returned."""

  def stack(path: tuple[Any, ...], *parts: Array) -> Array:
    summed = _summed(path)
    return jnp.stack([jnp.moveaxis(x, range(len(summed)), summed) for x in parts])

  blocks = [listed[f"blocks_{i}"] for i in range(len(listed))]
  return jax.tree_util.tree_map_with_path(stack, *blocks)


def _summed(path: tuple[Any, ...]) -> list[int]:
  """Returns over which axes of a layer's parameter its product sums up."""
  return [axis - 1 for axis in int8.SUMMED.get(tuple(key.key for key in path[-2:]), ())]
