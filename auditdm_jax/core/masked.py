# SPDX-License-Identifier: Apache-2.0
"""All masked sums and means of the project; numpy in, numpy out, and jax in, jax out.

What the mask leaves out never reaches the result, NaN included: values are selected with `where`,
not multiplied by zero. Half-precision inputs are summed in float32.
"""

from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
A = TypeVar("A", jax.Array, np.ndarray)


def sum_count(x: A, mask: Array, *, axis=None) -> tuple[A, A]:
  """Returns the sum of x where mask is true, and how many those are.

  Only such pairs may be added up over micro-batches or hosts; divide once, at the end.

  Args:
    x: f[...].
    mask: bool, broadcast to the shape of x.
    axis: axes to reduce; None for all.
  """
  xp = _namespace(x, mask)
  x, mask = _prepare(xp, x, mask)
  total = xp.sum(xp.where(mask, x, 0), axis=axis)
  return total, xp.sum(mask, axis=axis, dtype=total.dtype)


def mean(x: A, mask: Array, *, axis=None, empty: float = 0.0) -> A:
  """Returns the mean of x where mask is true; `empty` where nothing is."""
  return ratio(*sum_count(x, mask, axis=axis), empty=empty)


def std(x: A, mask: Array, *, ddof: int = 0, axis=None, empty: float = 0.0) -> A:
  """Returns the standard deviation where mask is true; `empty` with `ddof` elements or fewer."""
  xp = _namespace(x, mask)
  x, mask = _prepare(xp, x, mask)
  total, count = sum_count(x, mask, axis=axis)
  center = ratio(total, count)
  center = center if axis is None else xp.expand_dims(center, axis)
  squares, _ = sum_count(xp.square(xp.where(mask, x - center, 0)), mask, axis=axis)
  return xp.sqrt(ratio(squares, count - ddof, empty=empty**2))


def ratio(total: A, count: A, *, empty: float = 0.0) -> A:
  """Returns total / count, and `empty` where count is 0 or less, with finite gradients."""
  xp = _namespace(total, count)
  return xp.where(count > 0, total / xp.maximum(count, 1), empty)


def _namespace(*arrays: Array) -> ModuleType:
  return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def _prepare(xp: ModuleType, x: Any, mask: Any) -> tuple[Any, Any]:
  x, mask = xp.asarray(x), xp.asarray(mask)
  if mask.dtype != bool:
    raise TypeError(f"the mask must be bool, got {mask.dtype}; compare weights with 0 first")
  if not xp.issubdtype(x.dtype, xp.floating) or x.dtype.itemsize < 4:
    x = x.astype(xp.float32)
  return x, xp.broadcast_to(mask, x.shape)
