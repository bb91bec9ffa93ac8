# SPDX-License-Identifier: Apache-2.0
"""Random parameters of small models. Compiling the models' own initialisation costs seconds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.models import multimodal


def params(config: multimodal.VlmConfig, seed: int = 0, *, std: float = 0.3) -> dict[str, Any]:
  """Returns parameters that are all drawn, those that start at zero too; fp32."""
  rng = np.random.default_rng(seed)
  draw = lambda s: jnp.asarray(rng.normal(0, std, s.shape), jnp.float32)  # noqa: E731
  return jax.tree.map(draw, _shapes(config))


@functools.cache
def _shapes(config: multimodal.VlmConfig) -> Any:
  return jax.eval_shape(functools.partial(multimodal.init, config), jax.random.key(0))
