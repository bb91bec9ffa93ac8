# SPDX-License-Identifier: Apache-2.0
"""One decoder for Gemma 1, 2 and 3: what differs between them is data in `GemmaConfig`.

The blocks run as one scan over layers, and the parameter tree is big_vision's
(models/ppp/gemma.py), every block parameter with a leading layer axis, so that the published
PaliGemma 2 weights load by identity. What big_vision does not have: the norms of Gemma 3's queries
and keys, `layers/attn/{query_norm,key_norm}/scale`; biases, `layers/attn/*_einsum/b`; a head of its
own, `embedder/output_embedding`.

Axes: B batch, T query, S key, N heads, K kv-heads, G heads per kv-head, H head dim, D width,
F ffn, V vocab, L layers.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from auditdm_jax.models.activations import Activation, activate

MASKED = -1e30  # Finite: a row in which everything is masked must not become NaN.


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """Sizes and switches of a Gemma decoder.

  Attributes:
    vocab_size: V, rows of the embedding.
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
    local_rope_scale: linear scaling of positions in those.
    window: a local layer sees keys less than this many positions back; None is no window.
    layer_is_local: per layer, whether it has the window; () is none. See `alternate`.
    attn_softcap: cap of attention logits, 50 in Gemma 2; 0 is none.
    final_softcap: cap of output logits, 30 in Gemma 2; 0 is none. Applied in one place only,
      `multimodal.unembed`.
    qk_norm: RMSNorm of queries and keys before RoPE (Gemma 3).
    post_norms: RMSNorm of what attention and MLP put out (Gemma 2 and 3).
    attn_bias: biases of the four attention projections.
    activation: of the gate of the MLP.
    tied_head: the embedding is also the head; otherwise that is `embedder/output_embedding`.
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
  local_rope_scale: float = 1.0
  window: int | None = None
  layer_is_local: tuple[bool, ...] = ()
  attn_softcap: float = 0.0
  final_softcap: float = 0.0
  qk_norm: bool = False
  post_norms: bool = True
  attn_bias: bool = False
  activation: Activation = "gelu_tanh"
  tied_head: bool = True
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
  """Returns bool[B,T,S]: keys less than `window` positions back, and all that lie ahead.

  A row with window 3; what lies ahead is the business of the architecture's mask, which takes it
  off but inside an image block:

      key    0 1 2 3 4
      q 0    1 1 1 1 1
      q 1    1 1 1 1 1
      q 2    1 1 1 1 1
      q 3    . 1 1 1 1
      q 4    . . 1 1 1
  """
  back = positions[:, :, None] - key_positions[:, None, :]
  return jnp.ones_like(back, bool) if window is None else back < window


def rope_angles(positions: Array, head_dim: int, *, base: float, scale: float = 1.0) -> Array:
  """Returns f32[B,T,H/2]: rotary angles of i32[B,T] positions, always in fp32."""
  # In float64 and rounded once: an error of the frequency is multiplied by the position.
  frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim) / scale
  return positions.astype(jnp.float32)[..., None] * frequencies.astype(np.float32)


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
  """A weight `w` of the given shape, applied by an einsum in the dtype of x, and a bias `b`.

  Attributes:
    shape: of the weight.
    fan_in: of the weight, for its initial values.
    bias: shape of the bias, which is broadcast to the result; None for none.
  """

  shape: tuple[int, ...]
  fan_in: int
  bias: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self, equation: str, x: Array) -> Array:
    w = self.param("w", nn.initializers.normal(self.fan_in**-0.5), self.shape)
    y = jnp.einsum(equation, x, w.astype(x.dtype))
    if self.bias is None:
      return y
    return y + self.param("b", nn.initializers.zeros, self.bias).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
  """Keys and values of earlier calls, for T queries per row that are samples of one prompt.

  The samples read one prefix and each its own suffix. The axes are in the order in which a step's
  products read them, or XLA would transpose the cache at each step.
  """

  prefix: tuple[Array, Array]  # keys [L,B,K,H,S], values [L,B,K,S,H]
  suffix: tuple[Array, Array]  # keys [L,B,T,K,H,C], values [L,B,T,K,C,H]

  @classmethod
  def start(cls, kv: tuple[Array, Array], *, samples: int, room: int) -> "Past":
    """Empty suffixes of `room` tokens after a prefill's keys and values [L,B,S,K,H]."""
    k, v = kv
    layers, b, _, heads, h = k.shape
    rows = (layers, b, samples, heads)
    empty = jnp.zeros((*rows, h, room), k.dtype), jnp.zeros((*rows, room, h), v.dtype)
    return cls((jnp.einsum("lbskh->lbkhs", k), jnp.einsum("lbskh->lbksh", v)), empty)

  def write(self, kv: tuple[Array, Array], at: Array | int) -> "Past":
    """Puts the keys and values [L,B,T,K,H] of a step into place `at` of the suffixes."""
    put = jax.lax.dynamic_update_slice_in_dim
    k = put(self.suffix[0], kv[0][..., :, None], at, axis=5)
    v = put(self.suffix[1], kv[1][..., None, :], at, axis=4)
    return Past(self.prefix, (k, v))


def attend(q: Array, k: Array, v: Array, mask: Array, *, past: Past | None, cap: float) -> Array:
  """Grouped-query attention over `past` followed by the call's own keys.

  The parts meet in one softmax and are never concatenated: the past is read only, so a decode
  step copies no cache.

  Args:
    q: [B,T,K,G,H], scaled.
    k: [B,T,K,H] own keys.
    v: [B,T,K,H] own values.
    mask: bool[B,T,S+C+T], what each query sees: prefix, suffix, own.
    past: that of this layer, without the axis L; None for none (S = C = 0).
    cap: soft cap of the logits, before the mask; 0 for none.

  Returns:
    [B,T,K,G,H]
  """
  # Logits in fp32: bf16 has an ulp of .125 at their size, and the cap and softmax need better.
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  heads = jnp.moveaxis(q, 1, 3)  # [B,K,G,T,H], so that the samples are rows of one product.
  logits = [product("bkgth,bskh->bkgts", heads, k)]
  if past is not None:
    of_prefix = product("bkgth,bkhs->bkgts", heads, past.prefix[0])
    of_suffix = product("btkgh,btkhs->btkgs", q, past.suffix[0])
    logits = [of_prefix, jnp.moveaxis(of_suffix, 1, 3), *logits]
  ends = np.cumsum([part.shape[-1] for part in logits])[:-1]
  logits = softcap(jnp.concatenate(logits, axis=-1), cap)
  probs = jax.nn.softmax(jnp.where(mask[:, None, None], logits, MASKED), axis=-1).astype(q.dtype)
  *of_past, of_own = jnp.split(probs, ends, axis=-1)
  out = jnp.einsum("bkgts,bskh->bkgth", of_own, v)
  if past is not None:
    of_prefix, of_suffix = of_past
    out += jnp.einsum("bkgts,bksh->bkgth", of_prefix, past.prefix[1])
    of_suffix = jnp.einsum("btkgs,btksh->btkgh", jnp.moveaxis(of_suffix, 3, 1), past.suffix[1])
    out += jnp.moveaxis(of_suffix, 1, 3)
  return jnp.moveaxis(out, 3, 1)


class Attention(nn.Module):
  """Rotary grouped-query attention; returns the output and its own keys and values."""

  cfg: GemmaConfig

  @nn.compact
  def __call__(self, x: Array, *, cos: Array, sin: Array, mask: Array, past: Past | None):
    cfg = self.cfg
    n, kv, h, d = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.width
    q_bias, kv_bias, out_bias = (
      ((n, h), (2, 1, 1, kv, h), (d,)) if cfg.attn_bias else (None, None, None)
    )
    q_of = Einsum((n, d, h), d, q_bias, name="q_einsum")
    kv_of = Einsum((2, kv, d, h), d, kv_bias, name="kv_einsum")
    if past is None:
      q, (k, v) = q_of("btd,ndh->btnh", x), kv_of("btd,ckdh->cbtkh", x)
    else:
      # One product per head: a step has few rows, and must not transpose the weights for them.
      q = q_of("nbtd,ndh->nbth", jnp.broadcast_to(x, (n, *x.shape)))
      k, v = kv_of("ckbtd,ckdh->ckbth", jnp.broadcast_to(x, (2, kv, *x.shape)))
      q, k, v = (jnp.moveaxis(y, 0, 2) for y in (q, k, v))
    if cfg.qk_norm:
      q = RMSNorm(cfg.norm_eps, name="query_norm")(q)
      k = RMSNorm(cfg.norm_eps, name="key_norm")(k)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q = q * (h**-0.5 if cfg.query_scale is None else cfg.query_scale)
    q = q.reshape(*q.shape[:2], kv, n // kv, h)
    out = attend(q, k, v, mask, past=past, cap=cfg.attn_softcap)
    out = out.reshape(*out.shape[:2], n, h)
    project = Einsum((n, h, d), n * h, out_bias, name="attn_vec_einsum")
    # An einsum contracts in the order of the alphabet: i, j is how the weight lies.
    return project("btij,ijd->btd", out), (k, v)


class Mlp(nn.Module):
  """Gated MLP; the two weights are bare parameters, as in big_vision."""

  cfg: GemmaConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = self.cfg.width, self.cfg.mlp_dim
    gating = self.param("gating_einsum", nn.initializers.normal(d**-0.5), (2, d, f))
    linear = self.param("linear", nn.initializers.normal(f**-0.5), (f, d))
    gating = gating.astype(x.dtype)
    y = activate(self.cfg.activation, x @ gating[0]) * (x @ gating[1])
    return y @ linear.astype(x.dtype)


class Block(nn.Module):
  """One layer. `is_local` picks the rotary angles and the mask, so one body serves both kinds."""

  cfg: GemmaConfig
  keep_kv: bool

  @nn.compact
  def __call__(self, x: Array, is_local: Array, past: Past | None, angles: Array, mask: Array):
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
  """The embedding, and the head: `multimodal.unembed` reads one of the two for the logits."""

  cfg: GemmaConfig

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    shape = (self.cfg.vocab_size, self.cfg.width)
    init = nn.initializers.normal(self.cfg.embed_init_std)
    w = self.param("input_embedding", init, shape)
    if not self.cfg.tied_head:
      self.param("output_embedding", init, shape)
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
    self,
    x: Array,
    *,
    positions: Array,
    key_positions: Array,
    mask: Array,
    wide: Array | None = None,
    past: Past | None = None,
  ) -> tuple[Array, Any]:
    """Runs the blocks and the final norm.

    Args:
      x: [B,T,D] embeddings, text and image.
      positions: i32[B,T] of the queries.
      key_positions: i32[B,S+C+T] of the past keys and the queries' own.
      mask: bool[B,T,S+C+T], what each query may see by the architecture; what lies outside of the
        window of the local layers is taken off here.
      wide: bool[B,T,S+C+T], the part of `mask` that a window leaves alone, or None.
      past: what came out of earlier calls, or None.

    Returns:
      [B,T,D], and the keys and values ([L,B,T,K,H], [L,B,T,K,H]) of this call (None unless
      `keep_kv`).
    """
    cfg = self.cfg
    is_local = jnp.asarray(cfg.layer_is_local or (False,) * cfg.depth)
    angles = jnp.stack(
      [
        rope_angles(positions, cfg.head_dim, base=cfg.rope_base, scale=cfg.rope_scale),
        rope_angles(positions, cfg.head_dim, base=cfg.local_rope_base, scale=cfg.local_rope_scale),
      ]
    )
    angles = jnp.stack([jnp.cos(angles), jnp.sin(angles)])  # [cos or sin, global or local, B,T,H/2]
    near = window_mask(positions, key_positions, window=cfg.window)
    masks = jnp.stack([mask, mask & (near if wide is None else near | wide)])
    x, kv = self.layers(x.astype(cfg.dtype), is_local, past, angles, masks)
    return self.final_norm(x), kv

  def __call__(self, tokens: Array) -> Array:
    """Touches every parameter, for init: a causal pass over i32[B,T]."""
    b, t = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(t), (b, t))
    mask = jnp.broadcast_to(jnp.tri(t, dtype=bool), (b, t, t))
    x = self.embed(tokens)
    return self.decode(x, positions=positions, key_positions=positions, mask=mask)[0]
