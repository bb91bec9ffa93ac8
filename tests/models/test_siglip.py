# SPDX-License-Identifier: Apache-2.0
"""The tower against a plain, unrolled re-implementation in float64."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.models import siglip

CFG = siglip.SiglipConfig(width=12, depth=2, mlp_dim=20, num_heads=3, patch_size=4, image_size=12)


def reference(cfg, params, pixels):
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, w):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]

  side, s = cfg.image_size // cfg.patch_size, cfg.patch_size
  patches = [
    np.einsum(
      "bhwc,hwcd->bd", pixels[:, i * s : i * s + s, j * s : j * s + s], p["embedding"]["kernel"]
    )
    for i in range(side)
    for j in range(side)
  ]
  x = np.stack(patches, 1) + p["embedding"]["bias"] + p["pos_embedding"]
  for i in range(cfg.depth):
    w = jax.tree.map(operator.itemgetter(i), p["Transformer"]["encoderblock"])
    y, a = norm(x, w["LayerNorm_0"]), w["MultiHeadDotProductAttention_0"]
    q, k, v = (
      np.einsum("bpd,dnh->bpnh", y, a[n]["kernel"]) + a[n]["bias"]
      for n in ("query", "key", "value")
    )
    logits = np.einsum("bpnh,bqnh->bnpq", q, k) / np.sqrt(cfg.width // cfg.num_heads)
    e = np.exp(logits)
    out = np.einsum("bnpq,bqnh->bpnh", e / e.sum(-1, keepdims=True), v)
    x = x + np.einsum("bpnh,nhd->bpd", out, a["out"]["kernel"]) + a["out"]["bias"]
    m = w["MlpBlock_0"]
    y = norm(x, w["LayerNorm_1"]) @ m["Dense_0"]["kernel"] + m["Dense_0"]["bias"]
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    x = x + y @ m["Dense_1"]["kernel"] + m["Dense_1"]["bias"]
  return norm(x, p["Transformer"]["encoder_norm"])


def test_tower_equals_reference():
  pixels = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12, 3)).astype(np.float32)
  params = jax.jit(siglip.Siglip(CFG).init)(jax.random.key(0), pixels)["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
  want = reference(CFG, params, pixels)
  for change in ({}, {"unroll": 2}, {"remat": True}):
    tower = siglip.Siglip(dataclasses.replace(CFG, **change))
    got = jax.jit(tower.apply)({"params": params}, pixels)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_wrong_sizes_are_refused():
  with pytest.raises(ValueError, match=r"wants \[B,12,12,3\]"):
    siglip.Siglip(CFG).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match="image_size 13"):
    dataclasses.replace(CFG, image_size=13)
