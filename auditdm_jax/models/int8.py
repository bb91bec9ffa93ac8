# SPDX-License-Identifier: Apache-2.0
"""Decoder weights as int8, for models that only answer: half the memory of bf16.

Weights only, symmetric, one scale per result: w ≈ values * scale. A layer's weights become numbers
of the compute dtype again where the layer uses them, after they have been gathered as int8.
Embedding, norms and tower stay as they are.

Ours, in these few lines: a library that quantises modules (qwix, AQT) would have to know the scan,
the gathers and the cached step.
"""

import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

# The decoder's matrices: axes of the stacked weight that are summed over, by the path's last names.
SUMMED: dict[tuple[str, ...], tuple[int, ...]] = {
  ("q_einsum", "w"): (2,),
  ("kv_einsum", "w"): (3,),
  ("attn_vec_einsum", "w"): (1, 2),
  ("mlp", "gating_einsum"): (2,),
  ("mlp", "linear"): (1,),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """A weight; the axes that are summed over have size 1 in the scale."""

  values: Array  # i8
  scale: Array  # f32

  def dense(self, dtype: Any) -> Array:
    return self.values.astype(dtype) * self.scale.astype(dtype)


def is_int8(x: Any) -> bool:
  return isinstance(x, Int8)


def is_quantized(params: Any) -> bool:
  """Returns whether any weight of a tree is `Int8`."""
  return any(map(is_int8, jax.tree.leaves(params, is_leaf=is_int8)))


def quantize(params: dict[str, Any]) -> dict[str, Any]:
  """Returns a model's parameters with the matrices of its decoder's layers as `Int8`."""

  def one(path: tuple[Any, ...], w: Array) -> Array | Int8:
    axes = SUMMED.get(tuple(key.key for key in path[-2:]))
    if axes is None:
      return w
    largest = jnp.max(jnp.abs(w.astype(jnp.float32)), axis=axes, keepdims=True)
    scale = jnp.maximum(largest, 1e-30) / 127.0
    return Int8(jnp.round(w.astype(jnp.float32) / scale).astype(jnp.int8), scale)

  layers = jax.tree_util.tree_map_with_path(one, params["llm"]["layers"])
  return params | {"llm": params["llm"] | {"layers": layers}}
