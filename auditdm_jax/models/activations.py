# SPDX-License-Identifier: Apache-2.0
"""The activations of published checkpoints; what both the decoder and the tower choose from."""

from typing import Literal

import jax
from jax import Array

Activation = Literal["gelu_tanh", "gelu", "quick_gelu", "silu", "relu"]


def activate(kind: Activation, x: Array) -> Array:
  """Applies an activation; "gelu" is the exact one, "gelu_tanh" the approximation of Gemma."""
  match kind:
    case "gelu_tanh":
      return jax.nn.gelu(x, approximate=True)
    case "gelu":
      return jax.nn.gelu(x, approximate=False)
    case "quick_gelu":
      return x * jax.nn.sigmoid(1.702 * x)
    case "silu":
      return jax.nn.silu(x)
    case "relu":
      return jax.nn.relu(x)
