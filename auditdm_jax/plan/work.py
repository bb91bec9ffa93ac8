# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a program, from its jaxpr, loops counted.

XLA's own count looks at the body of a loop once: for a decoder that is scanned over its layers it
is wrong by two orders of magnitude. Here are matrix products and convolutions only, what is
computed again in the backward pass included; `rl.flops` counts what is useful instead.
"""

import math
from typing import Any

from jax.extend import core
import jax.numpy as jnp


def flops(jaxpr: core.Jaxpr) -> float:
  """Returns the operations of all devices together."""
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    out_axis = params["dimension_numbers"].rhs_spec[0]
    inner = math.prod(kernel) // kernel[out_axis]
    return 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
  if name == "cond":
    return max(flops(branch.jaxpr) for branch in params["branches"])
  inside = sum(flops(body) for body in _bodies(params))
  if name == "scan":
    return inside * params["length"]
  if name == "while":
    return inside * trips(params["cond_jaxpr"].jaxpr)
  return inside


def trips(condition: core.Jaxpr) -> int:
  """Returns how often a loop `while t < N and …` runs at most: N, or 1 if it is not such a loop."""
  bounds = [
    int(x.val)
    for equation in condition.eqns
    if equation.primitive.name == "lt"
    for x in equation.invars
    if isinstance(x, core.Literal) and jnp.issubdtype(x.aval.dtype, jnp.integer)
  ]
  return max(bounds, default=1)


def _bodies(params: dict[str, Any]) -> list[core.Jaxpr]:
  """Returns the programs inside an equation's params."""
  found = []
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        found.append(item.jaxpr)
      elif isinstance(item, core.Jaxpr):
        found.append(item)
  return found
