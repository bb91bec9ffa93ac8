# SPDX-License-Identifier: Apache-2.0
"""One decoder for Gemma 2 and Gemma 3: what differs between the two is data in `GemmaConfig`.

The blocks run as one scan over layers, and the parameter tree is big_vision's
(models/ppp/gemma.py), every block parameter with a leading layer axis, so that the published
PaliGemma 2 weights load by identity. The two norms of Gemma 3's queries and keys, which big_vision
does not have, are `layers/attn/{query_norm,key_norm}/scale`.

Axes: B batch, T query, S key, N heads, K kv-heads, G heads per kv-head, H head dim, D width,
F ffn, V vocab, L layers.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

MASKED = -1e30  # Finite: a row in which everything is masked must not become NaN.


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """Sizes and switches of a Gemma decoder.

  Attributes:
    vocab_size: V, rows of the (tied) embedding.
    width: D.
    depth: L.
    mlp_dim: F.
    num_heads: N.
    num_kv_heads: K; divides N.
    head_dim: H.
    query_scale: what queries are multiplied by; None is H**-0.5.
    rope_base: rotary base of the layers with global attention.
    rope_scale: linear scaling of positions in the global layers (Gemma 3: 8 from 4B up).
    local_rope_base: rotary base of the layers with a window.
    window: a local layer sees keys less than this many positions away; None is no window.
    layer_is_local: per layer, whether it has the window; () is none. See `alternate`.
    attn_softcap: cap of attention logits, 50 in Gemma 2; 0 is none.
    final_softcap: cap of output logits, 30 in Gemma 2; 0 is none. Applied in one place only,
      `multimodal.unembed`.
    qk_norm: RMSNorm of queries and keys before RoPE (Gemma 3).
    post_norms: RMSNorm of what attention and MLP put out (Gemma 2 and 3).
    norm_eps: epsilon of every RMSNorm.
    post_norm_init: initial `scale` of the post norms, which multiply by 1 + scale: -0.6 for small
      models trained from scratch, which then start near the identity.
    embed_init_std: initial std of the embedding, before its multiplication by sqrt(D).
    dtype: compute dtype of the blocks; parameters keep their own.
    remat: recompute each block in the backward pass instead of storing its activations.
    unroll: layers per step of the scan; depth for tiny models on a CPU.
  """

  vocab_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  query_scale: float | None = None
  rope_base: float = 10_000.0
  rope_scale: float = 1.0
  local_rope_base: float = 10_000.0
  window: int | None = None
  layer_is_local: tuple[bool, ...] = ()
  attn_softcap: float = 0.0
  final_softcap: float = 0.0
  qk_norm: bool = False
  post_norms: bool = True
  norm_eps: float = 1e-6
  post_norm_init: float = 0.0
  embed_init_std: float = 0.02
  dtype: str = "float32"
  remat: bool = False
  unroll: int = 1

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads {self.num_heads} % num_kv_heads {self.num_kv_heads} is not 0")
    if self.head_dim % 2:
      raise ValueError(f"head_dim {self.head_dim} is odd: RoPE needs pairs")
    if self.layer_is_local and len(self.layer_is_local) != self.depth:
      raise ValueError(
        f"layer_is_local has {len(self.layer_is_local)} entries for depth {self.depth}"
      )
    if any(self.layer_is_local) and self.window is None:
      raise ValueError("layer_is_local names local layers, but window is None")


def alternate(depth: int, *, local: int, every: int) -> tuple[bool, ...]:
  """Returns `layer_is_local`: in each run of `every` layers the first `local` have the window.

  Gemma 2 is `local=1, every=2`, Gemma 3 `local=5, every=6`.
  """
  return tuple(i % every < local for i in range(depth))


def window_mask(positions: Array, key_positions: Array, *, window: int | None) -> Array:
  """Returns bool[B,T,S]: keys less than `window` positions away, on either side.

  A row with window 3; the mask of the architecture takes off the right side where it is causal:

      key    0 1 2 3 4
      q 0    1 1 1 . .
      q 1    1 1 1 1 .
      q 2    1 1 1 1 1
      q 3    . 1 1 1 1
  """
  distance = jnp.abs(positions[:, :, None] - key_positions[:, None, :])
  return jnp.ones_like(distance, bool) if window is None else distance < window


def rope_angles(positions: Array, head_dim: int, *, base: float, scale: float = 1.0) -> Array:
  """Returns f32[B,T,H/2]: rotary angles of i32[B,T] positions, always in fp32."""
  exponents = jnp.arange(head_dim // 2, dtype=jnp.float32) * (2.0 / head_dim)
  return positions.astype(jnp.float32)[..., None] * (base**-exponents / scale)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates x[B,T,...,H] by the angles whose cosines and sines are f32[B,T,H/2]."""
  shape = cos.shape[:2] + (1,) * (x.ndim - 3) + cos.shape[2:]
  cos, sin = cos.reshape(shape), sin.reshape(shape)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def softcap(x: Array, cap: float) -> Array:
  return cap * jnp.tanh(x / cap) if cap else x


class RMSNorm(nn.Module):
  """x / rms(x) * (1 + scale), in fp32."""

  eps: float
  init: float = 0.0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.constant(self.init), x.shape[-1:])
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return (y * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


class Einsum(nn.Module):
  """A bias-free weight `w` of the given shape, applied by an einsum in the dtype of x."""

  shape: tuple[int, ...]
  fan_in: int

  @nn.compact
  def __call__(self, equation: str, x: Array) -> Array:
    w = self.param("w", nn.initializers.normal(self.fan_in**-0.5), self.shape)
    return jnp.einsum(equation, x, w.astype(x.dtype))


def attend(
  q: Array, k: Array, v: Array, mask: Array, *, past: tuple[Array, Array] | None, cap: float
) -> Array:
  """Grouped-query attention over `past` keys followed by the call's own.

  The two parts meet in one softmax and are never concatenated: the past is read only, so a decode
  step copies no cache.

  Args:
    q: [B,T,K,G,H], scaled.
    k: [B,T,K,H] own keys.
    v: [B,T,K,H] own values.
    mask: bool[B,T,S+T], what each query sees, past first.
    past: keys and values [B,S,K,H], or None (S = 0).
    cap: soft cap of the logits, before the mask; 0 for none.

  Returns:
    [B,T,K,G,H]
  """
  # Logits in fp32: bf16 has an ulp of .125 at their size, and the cap and softmax need better.
  parts = ((k, v),) if past is None else (past, (k, v))
  logits = jnp.concatenate(
    [jnp.einsum("btkgh,bskh->bkgts", q, p[0], preferred_element_type=jnp.float32) for p in parts],
    axis=-1,
  )
  logits = jnp.where(mask[:, None, None], softcap(logits, cap), MASKED)
  probs = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
  if past is None:
    return jnp.einsum("bkgts,bskh->btkgh", probs, v)
  s = past[0].shape[1]
  out = jnp.einsum("bkgts,bskh->btkgh", probs[..., :s], past[1])
  return out + jnp.einsum("bkgts,bskh->btkgh", probs[..., s:], v)


class Attention(nn.Module):
  """Rotary grouped-query attention; returns the output and its own keys and values."""

  cfg: GemmaConfig

  @nn.compact
  def __call__(self, x: Array, *, cos: Array, sin: Array, mask: Array, past: Any):
    cfg = self.cfg
    n, kv, h, d = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.width
    q = Einsum((n, d, h), d, name="q_einsum")("btd,ndh->btnh", x)
    k, v = Einsum((2, kv, d, h), d, name="kv_einsum")("btd,ckdh->cbtkh", x)
    if cfg.qk_norm:
      q = RMSNorm(cfg.norm_eps, name="query_norm")(q)
      k = RMSNorm(cfg.norm_eps, name="key_norm")(k)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q = q * (h**-0.5 if cfg.query_scale is None else cfg.query_scale)
    q = q.reshape(*q.shape[:2], kv, n // kv, h)
    out = attend(q, k, v, mask, past=past, cap=cfg.attn_softcap)
    out = out.reshape(*out.shape[:2], n, h)
    return Einsum((n, h, d), n * h, name="attn_vec_einsum")("btnh,nhd->btd", out), (k, v)


class Mlp(nn.Module):
  """GELU-gated MLP; the two weights are bare parameters, as in big_vision."""

  cfg: GemmaConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = self.cfg.width, self.cfg.mlp_dim
    gating = self.param("gating_einsum", nn.initializers.normal(d**-0.5), (2, d, f))
    linear = self.param("linear", nn.initializers.normal(f**-0.5), (f, d))
    gating = gating.astype(x.dtype)
    y = nn.gelu(x @ gating[0], approximate=True) * (x @ gating[1])
    return y @ linear.astype(x.dtype)


class Block(nn.Module):
  """One layer. `is_local` picks the rotary angles and the mask, so one body serves both kinds."""

  cfg: GemmaConfig
  keep_kv: bool

  @nn.compact
  def __call__(self, x: Array, is_local: Array, past: Any, angles: Array, mask: Array):
    cfg = self.cfg
    pick = is_local.astype(jnp.int32)
    post = {"eps": cfg.norm_eps, "init": cfg.post_norm_init}
    y = RMSNorm(cfg.norm_eps, name="pre_attention_norm")(x)
    y, kv = Attention(cfg, name="attn")(
      y, cos=angles[0, pick], sin=angles[1, pick], mask=mask[pick], past=past
    )
    x = x + (RMSNorm(**post, name="post_attention_norm")(y) if cfg.post_norms else y)
    y = Mlp(cfg, name="mlp")(RMSNorm(cfg.norm_eps, name="pre_ffw_norm")(x))
    x = x + (RMSNorm(**post, name="post_ffw_norm")(y) if cfg.post_norms else y)
    return x, kv if self.keep_kv else None


class Embedder(nn.Module):
  """The embedding, tied with the head; `multimodal.unembed` reads it for the logits."""

  cfg: GemmaConfig

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    shape = (self.cfg.vocab_size, self.cfg.width)
    init = nn.initializers.normal(self.cfg.embed_init_std)
    w = self.param("input_embedding", init, shape)
    x = jnp.take(w, tokens, axis=0).astype(self.cfg.dtype)
    # As big_vision and Gemma: the factor itself is rounded to the compute dtype.
    return x * jnp.asarray(self.cfg.width**0.5, x.dtype)


class Gemma(nn.Module):
  """The decoder: `embed`, then `decode`; the logits are `multimodal.unembed`'s business.

  Attributes:
    cfg: the sizes.
    keep_kv: whether `decode` returns each layer's keys and values. Not in training, where the scan
      would stack what nobody reads. The parameters are the same either way.
  """

  cfg: GemmaConfig
  keep_kv: bool = False

  def setup(self):
    cfg = self.cfg
    block = nn.remat(Block, prevent_cse=False) if cfg.remat else Block
    self.embedder = Embedder(cfg)
    self.layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, 0, nn.broadcast, nn.broadcast),
      length=cfg.depth,
      unroll=cfg.unroll,
    )(cfg, self.keep_kv)
    self.final_norm = RMSNorm(cfg.norm_eps)

  def embed(self, tokens: Array) -> Array:
    """Returns [B,T,D]: embeddings of i32[B,T] times sqrt(D). Image tokens do not pass here."""
    return self.embedder(tokens)

  def decode(
    self, x: Array, *, positions: Array, key_positions: Array, mask: Array, past: Any = None
  ) -> tuple[Array, Any]:
    """Runs the blocks and the final norm.

    Args:
      x: [B,T,D] embeddings, text and image.
      positions: i32[B,T] of the queries.
      key_positions: i32[B,S+T] of the past keys and the queries' own.
      mask: bool[B,T,S+T], what each query may see by the architecture; the window of the local
        layers is taken off here.
      past: keys and values ([L,B,S,K,H], [L,B,S,K,H]) that came out of earlier calls, or None.

    Returns:
      [B,T,D], and the keys and values ([L,B,T,K,H], [L,B,T,K,H]) of this call (None unless
      `keep_kv`).
    """
    cfg = self.cfg
    is_local = jnp.asarray(cfg.layer_is_local or (False,) * cfg.depth)
    angles = jnp.stack(
      [
        rope_angles(positions, cfg.head_dim, base=cfg.rope_base, scale=cfg.rope_scale),
        rope_angles(positions, cfg.head_dim, base=cfg.local_rope_base),
      ]
    )
    angles = jnp.stack([jnp.cos(angles), jnp.sin(angles)])  # [cos or sin, global or local, B,T,H/2]
    masks = jnp.stack([mask, mask & window_mask(positions, key_positions, window=cfg.window)])
    x, kv = self.layers(x.astype(cfg.dtype), is_local, past, angles, masks)
    return self.final_norm(x), kv

  def __call__(self, tokens: Array) -> Array:
    """Touches every parameter, for init: a causal pass over i32[B,T]."""
    b, t = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(t), (b, t))
    mask = jnp.broadcast_to(jnp.tri(t, dtype=bool), (b, t, t))
    x = self.embed(tokens)
    return self.decode(x, positions=positions, key_positions=positions, mask=mask)[0]
