# SPDX-License-Identifier: Apache-2.0
"""The tower against a plain, unrolled re-implementation in float64."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from auditdm_jax.models import siglip
from auditdm_jax.models.activations import activate

CFG = siglip.SiglipConfig(width=12, depth=2, mlp_dim=20, num_heads=3, patch_size=4, image_size=12)

ACTIVATIONS = {
  "gelu_tanh": lambda y: 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))),
  "gelu": lambda y: y * scipy.stats.norm.cdf(y),
  "quick_gelu": lambda y: y * scipy.special.expit(1.702 * y),
  "silu": lambda y: y * scipy.special.expit(y),
  "relu": lambda y: np.maximum(y, 0),
}


def reference(config, params, pixels):
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, w):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * w["scale"] + w["bias"]

  side, s = config.image_size // config.patch_size, config.patch_size
  patches = [
    np.einsum(
      "bhwc,hwcd->bd", pixels[:, i * s : i * s + s, j * s : j * s + s], p["embedding"]["kernel"]
    )
    for i in range(side)
    for j in range(side)
  ]
  x = np.stack(patches, 1) + p["embedding"]["bias"] + p["pos_embedding"]
  for i in range(config.depth):
    w = jax.tree.map(operator.itemgetter(i), p["Transformer"]["encoderblock"])
    y, a = norm(x, w["LayerNorm_0"]), w["MultiHeadDotProductAttention_0"]
    q, k, v = (
      np.einsum("bpd,dnh->bpnh", y, a[n]["kernel"]) + a[n]["bias"]
      for n in ("query", "key", "value")
    )
    logits = np.einsum("bpnh,bqnh->bnpq", q, k) / np.sqrt(config.width // config.num_heads)
    e = np.exp(logits)
    out = np.einsum("bnpq,bqnh->bpnh", e / e.sum(-1, keepdims=True), v)
    x = x + np.einsum("bpnh,nhd->bpd", out, a["out"]["kernel"]) + a["out"]["bias"]
    m = w["MlpBlock_0"]
    y = norm(x, w["LayerNorm_1"]) @ m["Dense_0"]["kernel"] + m["Dense_0"]["bias"]
    y = ACTIVATIONS[config.activation](y)
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


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind):
  y = np.linspace(-4, 4, 50)
  np.testing.assert_allclose(activate(kind, jnp.asarray(y)), ACTIVATIONS[kind](y), atol=1e-6)


def test_a_tower_of_another_kind():
  """With pixels to spare, another epsilon and a head that nobody reads."""
  config = dataclasses.replace(
    CFG, activation="quick_gelu", norm_eps=0.1, image_size=14, pooling_head=True, depth=1
  )
  pixels = np.random.default_rng(0).uniform(-1, 1, (2, 14, 14, 3)).astype(np.float32)
  params = jax.jit(siglip.Siglip(config).init)(jax.random.key(0), pixels)["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
  got = jax.jit(siglip.Siglip(config).apply)({"params": params}, pixels)
  np.testing.assert_allclose(got, reference(config, params, pixels[:, :12, :12]), atol=2e-5)
  assert params["pooling_head"]["attention.in_proj_weight"].shape == (36, 12)


def test_wrong_sizes_are_refused():
  with pytest.raises(ValueError, match=r"wants \[B,12,12,3\]"):
    siglip.Siglip(CFG).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match="image_size 3 is less"):
    dataclasses.replace(CFG, image_size=3)


def test_scores_in_blocks_are_those_of_all_queries(monkeypatch):
  """Features and gradients, with blocks that divide the patches, that do not, and of one."""
  config = dataclasses.replace(CFG, image_size=20)  # 25 patches
  tower = siglip.Siglip(config)
  pixels = np.random.default_rng(0).uniform(-1, 1, (4, 20, 20, 3)).astype(np.float32)
  params = tower.init(jax.random.key(0), pixels)

  def both():
    def total(params):
      features = tower.apply(params, pixels)
      return jnp.sum(jnp.square(features - 1)), features

    (_, features), gradients = jax.value_and_grad(total, has_aux=True)(params)
    return features, gradients

  whole = both()
  monkeypatch.setattr(siglip, "_WHOLE_SCORES", 24)
  blocks, attend = [], siglip._attend

  def seen(q, k, v):
    blocks.append(q.shape[1])
    return attend(q, k, v)

  monkeypatch.setattr(siglip, "_attend", seen)
  for scores, size in ((4 * 5 * 25, 5), (4 * 9 * 25, 9), (0, 1)):
    blocks.clear()
    monkeypatch.setattr(siglip, "_BLOCK", scores)
    found = both()
    assert set(blocks) == {size}
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), found, whole)
