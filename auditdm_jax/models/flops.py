# SPDX-License-Identifier: Apache-2.0
"""Useful floating-point operations of a forward pass: matrix products only.

Attention counts as if it were not causal, and nothing counts for padding: the "model FLOPs" of PaLM
(arXiv:2204.02311, appendix B). A backward pass takes twice as many.
"""

from auditdm_jax.models import gemma, siglip


def decoder(
  config: gemma.GemmaConfig, *, tokens: float, context: float, predictions: float
) -> float:
  """Of a forward pass.

  Args:
    config: sizes.
    tokens: that pass through the blocks.
    context: what each looks at, on average.
    predictions: tokens that pass through the head.
  """
  attention = config.width * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
  products = 2 * (attention + 3 * config.width * config.mlp_dim)
  looking = 4 * config.num_heads * config.head_dim * context
  return (
    config.depth * tokens * (products + looking)
    + 2 * config.width * config.vocab_size * predictions
  )


def tower(config: siglip.SiglipConfig) -> float:
  """Of one image through the vision tower."""
  patches = config.num_patches
  embed = 2 * patches * 3 * config.patch_size**2 * config.width
  products = 2 * (4 * config.width**2 + 2 * config.width * config.mlp_dim)
  return embed + config.depth * patches * (products + 4 * config.width * patches)
