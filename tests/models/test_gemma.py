# SPDX-License-Identifier: Apache-2.0
"""The scanned decoder against a plain, unrolled re-implementation in float64."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from auditdm_jax.models import gemma

GEMMA2 = gemma.GemmaConfig(
  vocab_size=17,
  width=12,
  depth=3,
  mlp_dim=20,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  query_scale=0.3,
  window=3,
  layer_is_local=gemma.alternate(3, local=1, every=2),
  attn_softcap=1.5,
  post_norm_init=-0.6,
  embed_init_std=0.5,
)
GEMMA3 = dataclasses.replace(
  GEMMA2,
  depth=6,
  query_scale=None,
  rope_base=1e6,
  rope_scale=8.0,
  layer_is_local=gemma.alternate(6, local=5, every=6),
  attn_softcap=0.0,
  qk_norm=True,
)
GEMMA1 = dataclasses.replace(GEMMA2, post_norms=False, layer_is_local=(), window=None)
# Legal in a config.json, and in no published one.
ODD = dataclasses.replace(GEMMA2, local_rope_scale=3.0, attn_bias=True, activation="gelu")


def reference(config, params, tokens, positions, mask, wide=None):
  """One layer after the other, one einsum at a time, in float64."""
  wide = np.zeros_like(mask) if wide is None else wide
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * (1 + scale)

  def rope(x, base, scale):
    half = config.head_dim // 2
    angle = positions[:, :, None, None] / scale * base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
      [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
    )

  x = p["embedder"]["input_embedding"][tokens] * np.sqrt(config.width)
  for i in range(config.depth):
    w = jax.tree.map(operator.itemgetter(i), p["layers"])
    local = bool(config.layer_is_local) and config.layer_is_local[i]
    y = norm(x, w["pre_attention_norm"]["scale"])
    q = np.einsum("btd,ndh->btnh", y, w["attn"]["q_einsum"]["w"])
    k, v = np.einsum("btd,ckdh->cbtkh", y, w["attn"]["kv_einsum"]["w"])
    if config.attn_bias:
      q = q + w["attn"]["q_einsum"]["b"]
      k, v = k + w["attn"]["kv_einsum"]["b"][0, 0, 0], v + w["attn"]["kv_einsum"]["b"][1, 0, 0]
    if config.qk_norm:
      q = norm(q, w["attn"]["query_norm"]["scale"])
      k = norm(k, w["attn"]["key_norm"]["scale"])
    base, scale = (
      (config.local_rope_base, config.local_rope_scale)
      if local
      else (config.rope_base, config.rope_scale)
    )
    q, k = rope(q, base, scale), rope(k, base, scale)
    q = q * (config.head_dim**-0.5 if config.query_scale is None else config.query_scale)
    repeat = config.num_heads // config.num_kv_heads
    k, v = np.repeat(k, repeat, axis=2), np.repeat(v, repeat, axis=2)
    logits = np.einsum("btnh,bsnh->bnts", q, k)
    if config.attn_softcap:
      logits = config.attn_softcap * np.tanh(logits / config.attn_softcap)
    seen = mask.copy()
    if local:
      seen &= (positions[:, :, None] - positions[:, None, :] < config.window) | wide
    logits = np.where(seen[:, None], logits, -1e30)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    out = np.einsum("bnts,bsnh->btnh", e / e.sum(-1, keepdims=True), v)
    y = np.einsum("btnh,nhd->btd", out, w["attn"]["attn_vec_einsum"]["w"])
    y = y + w["attn"]["attn_vec_einsum"].get("b", 0)
    x = x + (norm(y, w["post_attention_norm"]["scale"]) if config.post_norms else y)
    y = norm(x, w["pre_ffw_norm"]["scale"])
    gate, up = np.einsum("btd,cdf->cbtf", y, w["mlp"]["gating_einsum"])
    inner = np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))
    if config.activation == "gelu":
      inner = scipy.special.erf(gate / np.sqrt(2))
    y = (0.5 * gate * (1 + inner) * up) @ w["mlp"]["linear"]
    x = x + (norm(y, w["post_ffw_norm"]["scale"]) if config.post_norms else y)
  return norm(x, p["final_norm"]["scale"])


@functools.partial(jax.jit, static_argnums=0)
def make(config):
  """Params with every norm scale moved off its initial value."""
  params = gemma.Gemma(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  return jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise)])


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, positions, mask, wide=None):
  def forward(m, tokens):
    rows = gemma.RowSet(m.embed(tokens), positions, positions[:, None], mask, wide)
    return m.decode([rows])[0][0]

  return gemma.Gemma(config).apply({"params": params}, tokens, method=forward)


def inputs(*, b=2, t=9):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 17, (b, t))
  positions = np.broadcast_to(np.arange(t), (b, t))
  mask = np.broadcast_to(np.tri(t, dtype=bool), (b, t, t)).copy()
  mask[1, :5, :5] = True  # A bidirectional prefix in one row.
  return tokens, positions, mask


@pytest.mark.parametrize("name", ["gemma1", "gemma2", "gemma3", "odd"])
def test_scan_equals_unrolled_reference(name):
  config = {"gemma1": GEMMA1, "gemma2": GEMMA2, "gemma3": GEMMA3, "odd": ODD}[name]
  params = make(config)
  got = run(config, params, *inputs())
  np.testing.assert_allclose(got, reference(config, params, *inputs()), atol=2e-5)


def test_what_is_wide_is_seen_in_spite_of_the_window():
  params, wide = make(GEMMA2), np.zeros((2, 9, 9), bool)
  wide[1, :5, :5] = True
  got = run(GEMMA2, params, *inputs(), wide)
  np.testing.assert_allclose(got, reference(GEMMA2, params, *inputs(), wide), atol=2e-5)
  assert np.abs(got - run(GEMMA2, params, *inputs()))[1, 3:5].max() > 0.01


@pytest.mark.parametrize("change", [{"unroll": 6}, {"remat": True}], ids=str)
def test_unrolling_and_remat_change_nothing(change):
  params, data = make(GEMMA3), inputs()

  def loss(params, config):
    return jnp.mean(run(config, params, *data) ** 3)

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  plain, other = grad(params, GEMMA3), grad(params, dataclasses.replace(GEMMA3, **change))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, other)


def test_window_is_felt():
  params, (tokens, positions, mask) = make(GEMMA2), inputs()
  every = dataclasses.replace(GEMMA2, layer_is_local=(True,) * 3)
  other = tokens.copy()
  other[:, 0] = (tokens[:, 0] + 1) % 17
  # Three layers of window 3 reach back 6 positions, so the last two of nine cannot see the first.
  same = run(every, params, tokens, positions, mask) == run(every, params, other, positions, mask)
  assert same[0, 7:].all() and not same[0, :7].any()
  assert not np.array_equal(
    run(GEMMA2, params, tokens, positions, mask)[0, 8],
    run(GEMMA2, params, other, positions, mask)[0, 8],
  )


def test_bfloat16_is_near_and_fully_masked_rows_are_finite():
  params, (tokens, positions, mask) = make(GEMMA2), inputs()
  mask[0, 3] = False
  full = run(GEMMA2, params, tokens, positions, mask)
  half = run(dataclasses.replace(GEMMA2, dtype="bfloat16"), params, tokens, positions, mask)
  assert half.dtype == jnp.bfloat16 and np.isfinite(full).all()
  assert np.abs(full - half.astype(np.float32)).mean() < 0.03


def test_tree_names_and_initial_scales():
  init = jax.jit(gemma.Gemma(GEMMA3).init)
  params = init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  layers = params["layers"]
  assert layers["attn"]["q_einsum"]["w"].shape == (6, 4, 12, 6)
  assert layers["attn"]["kv_einsum"]["w"].shape == (6, 2, 2, 12, 6)
  assert layers["attn"]["attn_vec_einsum"]["w"].shape == (6, 4, 6, 12)
  assert layers["attn"]["query_norm"]["scale"].shape == (6, 6)
  assert layers["mlp"]["gating_einsum"].shape == (6, 2, 12, 20)
  assert layers["mlp"]["linear"].shape == (6, 20, 12)
  assert params["embedder"].keys() == {"input_embedding"}
  assert np.all(layers["post_ffw_norm"]["scale"] == np.float32(-0.6))
  assert np.all(layers["pre_ffw_norm"]["scale"] == 0)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"num_kv_heads": 3}, "num_kv_heads 3"),
    ({"layer_is_local": (True,)}, "depth 3"),
    ({"window": None}, "window is None"),
    ({"head_dim": 5}, "odd"),
  ],
)
def test_impossible_configs_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(GEMMA2, **change)


def test_alternate():
  assert gemma.alternate(4, local=1, every=2) == (True, False, True, False)
  assert gemma.alternate(7, local=5, every=6) == (True,) * 5 + (False, True)
