# SPDX-License-Identifier: Apache-2.0
"""One decoder for Gemma 1, 2 and 3: what differs between them is data in `GemmaConfig`.

The blocks run as one scan over layers, and the parameter tree is big_vision's
(models/ppp/gemma.py), every block parameter with a leading layer axis, so that the published
PaliGemma 2 weights load by identity. What big_vision does not have: the norms of Gemma 3's queries
and keys, `layers/attn/{query_norm,key_norm}/scale`; biases, `layers/attn/*_einsum/b`; a head of its
own, `embedder/output_embedding`.

Axes: G are the heads of a kv-head. The samples of a prompt are the T queries of a decoding step.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.models import int8, sharding
from auditdm_jax.models.activations import Activation, activate
from auditdm_jax.models.forms import Form, dense, results_first

_SUMMED = "summed"  # What attention and MLP put out: the sums over what a mesh splits of a layer.
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
    activation: activation of the MLP's gate.
    tied_head: the embedding is also the head; otherwise that is `embedder/output_embedding`.
    norm_eps: epsilon of every RMSNorm.
    post_norm_init: initial `scale` of the post norms, which multiply by 1 + scale: -0.6 for small
      models trained from scratch, which then start near the identity.
    embed_init_std: initial std of the embedding, before its multiplication by sqrt(D).
    dtype: compute dtype of the blocks; parameters keep their own.
    remat: recompute each block in the backward pass instead of storing its activations; on a mesh
      that splits layers all but what attention and MLP put out.
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
    if self.window is not None and not 0 < self.window < 1 << 31:
      raise ValueError(f"window {self.window} is not a number of tokens")


def alternate(depth: int, *, local: int, every: int) -> tuple[bool, ...]:
  """Returns `layer_is_local`: in each run of `every` layers the first `local` have the window.

  Gemma 2 is `local=1, every=2`, Gemma 3 `local=5, every=6`.
  """
  return tuple(i % every < local for i in range(depth))


def window_mask(positions: Array, key_positions: Array, *, window: int | None) -> Array:
  """Returns bool[B,T,S]: keys less than `window` positions back, and all that lie ahead.

  Positions are i32[B,T], those of keys i32[B,1,S], or i32[B,T,S] where they differ by query.

  A row with window 3; what lies ahead is the business of the architecture's mask, which takes it
  off but inside an image block:

      key    0 1 2 3 4
      q 0    1 1 1 1 1
      q 1    1 1 1 1 1
      q 2    1 1 1 1 1
      q 3    . 1 1 1 1
      q 4    . . 1 1 1
  """
  back = positions[:, :, None] - key_positions
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
    shape: the weight's shape.
    fan_in: inputs per output of the weight, for its initial values.
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

  It holds all layers or, without the axis L, one of them: see `Gemma.decode`.

  The samples read one prefix and each its own suffix. The axes are in the order in which a step's
  products read them, or XLA would transpose the cache at each step.
  """

  prefix: tuple[Array, Array]  # keys [L,B,K,H,S], values [L,B,K,S,H]
  suffix: tuple[Array, Array]  # keys [L,B,T,K,H,C], values [L,B,T,K,C,H]

  @classmethod
  def start(cls, kv: tuple[Array, Array], *, samples: int, room: int, tail: int = 0) -> "Past":
    """Returns the past after a prefill, with room for more tokens.

    Args:
      kv: keys and values [L,B,S+T·C',K,H]: a prefix, then `tail` tokens C' of each of T samples.
      samples: T.
      room: tokens that a sample will add to its suffix, which its tail begins.
      tail: C'.
    """
    k, v = kv
    *layers, b, length, heads, h = k.shape
    rows, end = (*layers, b, samples, heads), length - samples * tail
    empty = jnp.zeros((*rows, h, room), k.dtype), jnp.zeros((*rows, room, h), v.dtype)
    prefix = tuple(x[..., :end, :, :] for x in kv)
    k, v = (x[..., end:, :, :].reshape(*layers, b, samples, tail, heads, h) for x in kv)
    suffix = (
      jnp.concatenate([jnp.einsum("...btckh->...btkhc", k), empty[0]], axis=-1),
      jnp.concatenate([jnp.einsum("...btckh->...btkch", v), empty[1]], axis=-2),
    )
    k, v = prefix
    return cls((jnp.einsum("...bskh->...bkhs", k), jnp.einsum("...bskh->...bksh", v)), suffix)

  def write(self, kv: tuple[Array, Array], at: Array | int) -> "Past":
    """Puts the keys and values [L,B,T,K,H] of a step into place `at` of the suffixes."""
    put = jax.lax.dynamic_update_slice_in_dim
    k = put(self.suffix[0], kv[0][..., :, None], at, axis=-1)
    v = put(self.suffix[1], kv[1][..., None, :], at, axis=-2)
    return Past(self.prefix, (k, v))


@dataclasses.dataclass(frozen=True)
class Branches:
  """Rows of a trunk of S tokens, and G branches of E that follow it and do not see one another.

  Attributes:
    trunk: S.
    count: G.
  """

  trunk: int
  count: int

  def apart(self, x: Array) -> tuple[Array, Array]:
    """Returns the trunk [B,S,…] and the branches [B,G,E,…] of rows [B,S+G·E,…]."""
    trunk, rest = x[:, : self.trunk], x[:, self.trunk :]
    return trunk, rest.reshape(len(x), self.count, rest.shape[1] // self.count, *x.shape[2:])

  def each(self, x: Array) -> Array:
    """Returns [B,G,S+E]: the trunk before each of its branches, of rows [B,S+G·E]."""
    trunk, rest = self.apart(x)
    shape = (*rest.shape[:2], self.trunk)
    return jnp.concatenate([jnp.broadcast_to(trunk[:, None], shape), rest], axis=2)

  def seen(self, x: Array) -> Array:
    """Returns [B,S+G·E,S+E]: of rows [B,S+G·E], what each token has before it and beside it.

    That of the trunk's tokens ends with a branch, which a mask must take off.
    """
    each = self.each(x)
    rows = jnp.repeat(each, each.shape[2] - self.trunk, axis=1)  # One for each token of a branch.
    trunk = jnp.broadcast_to(each[:, :1], (len(x), self.trunk, each.shape[2]))
    return jnp.concatenate([trunk, rows], axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
  """The noise of one forward pass in training, where big_vision has it (models/ppp/gemma.py).

  Each block drops floats of what it adds to the stream: of attention's output after its post norm,
  of the MLP's before it. Image and padding tokens are treated as all others.
  """

  keys: Array  # key[L,2], for attention and MLP of each layer; key[2] in a block
  rate: float = dataclasses.field(metadata={"static": True})

  @classmethod
  def draw(cls, config: GemmaConfig, key: Array, *, rate: float) -> "Dropout":
    """Returns the noise that a key stands for."""
    return cls(jax.random.split(key, (config.depth, 2)), rate)

  def __call__(self, x: Array, place: int) -> Array:
    """Returns x, a share `rate` of it zero and the rest larger; `place` is 0 or 1."""
    keep = jax.random.bernoulli(self.keys[place], 1 - self.rate, x.shape)
    return jnp.where(keep, x / (1 - self.rate), 0)


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
  *of_past, of_own = _softmax(logits, mask, cap=cap, dtype=q.dtype)
  out = jnp.einsum("bkgts,bskh->bkgth", of_own, v)
  if past is not None:
    of_prefix, of_suffix = of_past
    out += jnp.einsum("bkgts,bksh->bkgth", of_prefix, past.prefix[1])
    of_suffix = jnp.einsum("btkgs,btksh->btkgh", jnp.moveaxis(of_suffix, 3, 1), past.suffix[1])
    out += jnp.moveaxis(of_suffix, 1, 3)
  return jnp.moveaxis(out, 3, 1)


def _softmax(logits: list[Array], mask: Array, *, cap: float, dtype: Any) -> list[Array]:
  """Returns the probabilities of keys in several parts [B,K,G,T,...], which meet in one softmax."""
  ends = np.cumsum([part.shape[-1] for part in logits])[:-1]
  whole = softcap(jnp.concatenate(logits, axis=-1), cap)
  probs = jax.nn.softmax(jnp.where(mask[:, None, None], whole, MASKED), axis=-1)
  return jnp.split(probs.astype(dtype), ends, axis=-1)


def attend_branches(
  q: Array, k: Array, v: Array, mask: Array, *, branches: Branches, cap: float
) -> Array:
  """`attend` where rows are a trunk and branches, without the products of one with another.

  Args:
    q: [B,S+G·E,K,N,H], scaled.
    k: [B,S+G·E,K,H].
    v: [B,S+G·E,K,H].
    mask: bool[B,S+G·E,S+E], by `Branches.seen`.
    branches: S and G.
    cap: as that of `attend`.

  Returns:
    [B,S+G·E,K,N,H]
  """
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  end = branches.trunk
  (trunk_q, own_q), (trunk_k, own_k), (trunk_v, own_v) = map(branches.apart, (q, k, v))
  trunk = attend(trunk_q, trunk_k, trunk_v, mask[:, :end, :end], past=None, cap=cap)
  rows = q[:, end:]
  of_trunk = product("btknh,bskh->bknts", rows, trunk_k)
  of_own = product("bgeknh,bgfkh->bkngef", own_q, own_k)
  logits = [of_trunk, of_own.reshape(*of_trunk.shape[:-1], own_k.shape[2])]
  of_trunk, in_row = _softmax(logits, mask[:, end:], cap=cap, dtype=q.dtype)
  of_own = in_row.reshape(of_own.shape)
  out = jnp.einsum("bkngef,bgfkh->bgeknh", of_own, own_v).reshape(rows.shape)
  return jnp.concatenate([trunk, out + jnp.einsum("bknts,bskh->btknh", of_trunk, trunk_v)], axis=1)


class Heads(nn.Module):
  """A weight `w` [*heads,D,H] and a bias `b`: from x[B,T,D] to [B,T,*heads,H].

  Attributes:
    heads: the leading axes of the weight.
    shape: (D, H).
    bias: shape of the bias: that of the result without B and T, or with 1 for them; None for none.
    form: of the parameters; the weight is [*heads,H,D] if split and [D,*heads,H] if listed.
  """

  heads: tuple[int, ...]
  shape: tuple[int, int]
  bias: tuple[int, ...] | None
  form: Form

  @nn.compact
  def __call__(self, x: Array, *, is_step: bool) -> Array:
    d, h = self.shape
    shape = {
      "stacked": (*self.heads, d, h),
      "split": (*self.heads, h, d),
      "listed": (d, *self.heads, h),
    }[self.form]
    w = self.param("w", nn.initializers.normal(d**-0.5), shape).astype(x.dtype)
    if self.form == "split":
      y = results_first(x, w.reshape(-1, d))
    elif self.form == "listed":
      y = dense(x, w.reshape(d, -1))
    elif mesh_lib.active():
      # Heads may be split over devices, and cannot be merged with an axis that is not.
      y = jnp.tensordot(x, w, axes=((2,), (len(self.heads),)))
    elif is_step:
      # A product per head: a step has few rows, and must not transpose the weight for them.
      w = w.reshape(-1, d, h)
      rows = jnp.broadcast_to(x, (len(w), *x.shape))
      y = jnp.moveaxis(jnp.einsum("nbtd,ndh->nbth", rows, w), 0, 2)
    else:
      y = jnp.einsum("btd,ndh->btnh", x, w.reshape(-1, d, h))
    y = y.reshape(*x.shape[:2], *self.heads, self.shape[1])
    if self.bias is None:
      return y
    b = self.param("b", nn.initializers.zeros, self.bias)
    return y + b.astype(x.dtype).reshape(*self.heads, -1)


class Project(nn.Module):
  """A weight `w` [*heads,D] and a bias `b`: from x[B,T,N·H] to [B,T,D]; [D,*heads] if split."""

  heads: tuple[int, int]
  width: int
  bias: tuple[int, ...] | None
  form: Form

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fan_in, split = x.shape[-1], self.form == "split"
    shape = (self.width, *self.heads) if split else (*self.heads, self.width)
    w = self.param("w", nn.initializers.normal(fan_in**-0.5), shape).astype(x.dtype)
    if split:
      y = results_first(x, w.reshape(-1, fan_in))
    else:
      product = dense if self.form == "listed" else jnp.matmul
      y = product(x, w.reshape(fan_in, -1))
    if self.bias is None:
      return y
    return y + self.param("b", nn.initializers.zeros, self.bias).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSet:
  """Rows of one shape, as `Gemma.decode` takes them.

  Attributes:
    x: [B,T,D] embeddings, text and image.
    positions: i32[B,T] of the queries.
    key_positions: i32[B,1,S+C+T] of the past keys and the queries' own; i32[B,T,S+C+T] where
      the queries are of samples at different places; i32[B,T,S+E] where rows have branches.
    mask: bool[B,T,S+C+T] or bool[B,T,S+E], what each query may see by the architecture; what
      lies outside of the window of the local layers is taken off later.
    wide: of the shape of `mask`, the part of `mask` that a window leaves alone, or None.
    places: i32[B,C], the tokens whose hidden states are wanted; None is all of them.
    branches: if rows are a trunk and branches; then without a past.
  """

  x: Array
  positions: Array
  key_positions: Array
  mask: Array
  wide: Array | None = None
  places: Array | None = None
  branches: Branches | None = dataclasses.field(default=None, metadata={"static": True})

  def seen(self, config: GemmaConfig) -> "Seen":
    """Returns what the tokens see."""
    rope = functools.partial(rope_angles, self.positions, config.head_dim)
    angles = jnp.stack(
      [
        rope(base=config.rope_base, scale=config.rope_scale),
        rope(base=config.local_rope_base, scale=config.local_rope_scale),
      ]
    )
    angles = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    near = window_mask(self.positions, self.key_positions, window=config.window)
    near = near if self.wide is None else near | self.wide
    masks = jnp.stack([self.mask, self.mask & near])
    angles, masks = jax.lax.optimization_barrier((angles, masks))  # Or each layer makes them again.
    return Seen(angles, masks, branches=self.branches)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wanted:
  """The tokens whose output is wanted: in the last layer no others need queries and an MLP."""

  places: Array  # i32[B,C]
  angles: Array  # [cos or sin, global or local, B,C,H/2]
  masks: Array  # bool[global or local, B,C,S]

  @classmethod
  def of(cls, places: Array, angles: Array, masks: Array) -> "Wanted":
    """Takes the wanted ones of the angles and masks of all tokens."""
    return cls(
      places,
      jnp.take_along_axis(angles, places[None, None, :, :, None], axis=3),
      jnp.take_along_axis(masks, places[None, :, :, None], axis=2),
    )

  def __call__(self, x: Array) -> Array:
    """Returns [B,C,D] of x[B,T,D]."""
    # A product with one-hot rows rather than a gather, whose gradient would be a scatter.
    rows = jax.nn.one_hot(self.places, x.shape[1], dtype=x.dtype)
    return jnp.einsum("bct,btd->bcd", rows, x, precision=jax.lax.Precision.HIGHEST)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
  """What the tokens of a set of rows see, the same in all layers of a kind."""

  angles: Array  # [cos or sin, global or local, B,T,H/2]
  masks: Array  # bool[global or local, B,T,S]
  wanted: Wanted | None = None  # None: all tokens
  branches: Branches | None = dataclasses.field(default=None, metadata={"static": True})


class Attention(nn.Module):
  """Rotary grouped-query attention; returns the output and its own keys and values."""

  config: GemmaConfig
  form: Form = "stacked"
  layout: sharding.Layout = sharding.GATHERED

  @nn.compact
  def __call__(self, x: Array, seen: Seen, *, pick: Array, past: Past | None):
    config, wanted = self.config, seen.wanted
    angles, mask = seen.angles, seen.masks
    n, kv, h, d = config.num_heads, config.num_kv_heads, config.head_dim, config.width
    q_bias, kv_bias, out_bias = (
      ((n, h), (2, 1, 1, kv, h), (d,)) if config.attn_bias else (None, None, None)
    )
    is_step = past is not None
    x = self.layout.into(x)
    asking = x if wanted is None else wanted(x)
    q = Heads((n,), (d, h), q_bias, self.form, name="q_einsum")(asking, is_step=is_step)
    k_and_v = Heads((2, kv), (d, h), kv_bias, self.form, name="kv_einsum")(x, is_step=is_step)
    q, k_and_v = self.layout.inside(q), self.layout.inside(k_and_v)
    k, v = jnp.moveaxis(k_and_v, 2, 0)
    if config.qk_norm:
      q = RMSNorm(config.norm_eps, name="query_norm")(q)
      k = RMSNorm(config.norm_eps, name="key_norm")(k)
    k = rotate(k, angles[0, pick], angles[1, pick])
    if wanted is not None:
      angles, mask = wanted.angles, wanted.masks
    q, mask = rotate(q, angles[0, pick], angles[1, pick]), mask[pick]
    q = q * (h**-0.5 if config.query_scale is None else config.query_scale)
    q = q.reshape(*q.shape[:2], kv, n // kv, h)
    if seen.branches is None:
      out = attend(q, k, v, mask, past=past, cap=config.attn_softcap)
    else:
      out = attend_branches(q, k, v, mask, branches=seen.branches, cap=config.attn_softcap)
    project = Project((n, h), d, out_bias, self.form, name="attn_vec_einsum")
    return project(self.layout.out_of(out.reshape(*out.shape[:2], n * h))), (k, v)


class Mlp(nn.Module):
  """Gated MLP; the two weights are bare parameters, as in big_vision."""

  config: GemmaConfig
  form: Form = "stacked"
  layout: sharding.Layout = sharding.GATHERED

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = self.config.width, self.config.mlp_dim
    shapes = {
      "stacked": ((2, d, f), (f, d)),
      "split": ((2, f, d), (d, f)),
      "listed": ((d, 2, f), (f, d)),
    }[self.form]
    gating = self.param("gating_einsum", nn.initializers.normal(d**-0.5), shapes[0])
    linear = self.param("linear", nn.initializers.normal(f**-0.5), shapes[1])
    gating, linear = gating.astype(x.dtype), linear.astype(x.dtype)
    if self.form == "stacked":
      x = self.layout.into(x)
      gate, up = self.layout.inside(x @ gating[0]), self.layout.inside(x @ gating[1])
      return self.layout.out_of(activate(self.config.activation, gate) * up) @ linear
    split = self.form == "split"
    product = results_first if split else dense
    both = product(x, gating.reshape(2 * f, d) if split else gating.reshape(d, 2 * f))
    gate, up = jnp.split(both, 2, axis=-1)
    return product(activate(self.config.activation, gate) * up, linear)


class Block(nn.Module):
  """One layer of one or more sets of rows.

  `is_local` picks the rotary angles and the mask, so one body serves both kinds. The output is that
  of the wanted tokens.
  """

  config: GemmaConfig
  keep_kv: bool
  form: Form = "stacked"
  layout: sharding.Layout = sharding.GATHERED

  def setup(self):
    config = self.config
    self.pre_attention_norm = RMSNorm(config.norm_eps)
    self.attn = Attention(config, self.form, self.layout)
    self.pre_ffw_norm = RMSNorm(config.norm_eps)
    self.mlp = Mlp(config, self.form, self.layout)
    if config.post_norms:
      self.post_attention_norm = RMSNorm(config.norm_eps, config.post_norm_init)
      self.post_ffw_norm = RMSNorm(config.norm_eps, config.post_norm_init)

  def __call__(
    self,
    xs: Sequence[Array],
    is_local: Array,
    past: Past | None,
    dropout: Dropout | None,
    seen: Sequence[Seen],
  ):
    of = functools.partial(self._of_set, is_local=is_local, past=past, dropout=dropout)
    done = [of(x, own) for x, own in zip(xs, seen, strict=True)]
    return tuple(x for x, _ in done), tuple(kv if self.keep_kv else None for _, kv in done)

  def _of_set(
    self, x: Array, seen: Seen, *, is_local: Array, past: Past | None, dropout: Dropout | None
  ) -> tuple[Array, tuple[Array, Array]]:
    """Returns the output of a set, and its keys and values."""
    post_norms = self.config.post_norms
    x = mesh_lib.constrain(x, "rows")
    y = self.pre_attention_norm(x)
    y, kv = self.attn(y, seen, pick=is_local.astype(jnp.int32), past=past)
    y = checkpoint_name(self.layout.back(y), _SUMMED)
    x = x if seen.wanted is None else seen.wanted(x)
    y = self.post_attention_norm(y) if post_norms else y
    x = x + (y if dropout is None else dropout(y, 0))
    y = checkpoint_name(self.layout.back(self.mlp(self.pre_ffw_norm(x))), _SUMMED)
    y = y if dropout is None else dropout(y, 1)
    return x + (self.post_ffw_norm(y) if post_norms else y), kv


class Embedder(nn.Module):
  """The embedding, and the head: `multimodal.unembed` reads one of the two for the logits."""

  config: GemmaConfig

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    shape = (self.config.vocab_size, self.config.width)
    init = nn.initializers.normal(self.config.embed_init_std)
    w = self.param("input_embedding", init, shape)
    if not self.config.tied_head:
      self.param("output_embedding", init, shape)
    x = sharding.look_up(w, tokens, dtype=self.config.dtype)
    # As big_vision and Gemma: the factor itself is rounded to the compute dtype.
    return x * jnp.asarray(self.config.width**0.5, x.dtype)


class Gemma(nn.Module):
  """The decoder: `embed`, then `decode`; the logits are `multimodal.unembed`'s business.

  Attributes:
    config: the sizes.
    keep_kv: whether `decode` returns each layer's keys and values. Not in training, where the scan
      would stack what nobody reads. The parameters are the same either way.
    form: how the blocks' parameters lie, see `forms`.
    layout: whether stacked layers are gathered where they are used, or their inputs go to them.
  """

  config: GemmaConfig
  keep_kv: bool = False
  form: Form = "stacked"
  layout: sharding.Layout = sharding.GATHERED

  def setup(self):
    config = self.config
    self.embedder = Embedder(config)
    self.final_norm = RMSNorm(config.norm_eps)
    block = functools.partial(Block, config, self.keep_kv)
    if self.form == "split":
      self.layers = [block(self.form) for _ in range(config.depth)]
      return
    if self.form == "listed":
      self.blocks = [block(self.form) for _ in range(config.depth)]
      return
    quantized = int8.is_quantized(self.variables)
    used = sharding.at_use(
      "llm/layers", Block, dtype=config.dtype, keep=self.layout.keep, quantized=quantized
    )
    # What was summed over the tensor axis would also be sent again.
    kept = [_SUMMED] if mesh_lib.splits_heads() else []
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    scanned = nn.remat(used, prevent_cse=False, policy=policy) if config.remat else used
    self.layers = nn.scan(
      scanned,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, 0, 0, nn.broadcast),
      length=config.depth,
      unroll=config.unroll,
    )(config, self.keep_kv, layout=self.layout)

  def embed(self, tokens: Array) -> Array:
    """Returns [B,T,D]: embeddings of i32[B,T] times sqrt(D). Image tokens do not pass here."""
    return self.embedder(tokens)

  def decode(
    self,
    sets: Sequence[RowSet],
    *,
    past: Past | list[Past] | None = None,
    dropout: Dropout | None = None,
  ) -> tuple[list[Array], list[Any]]:
    """Runs the blocks and the final norm.

    Several sets of rows pass each layer together: on a mesh its weights are gathered once for all
    of them, and its gradients summed once.

    Args:
      sets: rows of one shape each; one set only with a past or dropout.
      past: what came out of earlier calls, or None. Unless the layers are stacked, a list of one
        per layer, which no step has to cut out of the whole.
      dropout: the noise of training, or None. Only if the layers are stacked.

    Returns:
      Of each set [B,T,D] or [B,C,D], and the keys and values ([L,B,T,K,H], [L,B,T,K,H]) of this
      call (None unless `keep_kv`); unless the layers are stacked, a list of ([B,T,K,H],
      [B,T,K,H]).
    """
    config = self.config
    if len(sets) > 1 and (past is not None or dropout is not None):
      raise ValueError(f"{len(sets)} sets of rows: with a past or dropout there may be one")
    is_local = jnp.asarray(config.layer_is_local or (False,) * config.depth)
    seen = tuple(rows.seen(config) for rows in sets)
    xs = tuple(rows.x.astype(config.dtype) for rows in sets)
    places = [rows.places for rows in sets]
    if self.form == "stacked":
      xs, kvs = self.layers(xs, is_local, past, dropout, seen)
      return [self.final_norm(_at(x, p)) for x, p in zip(xs, places)], list(kvs)
    last = list(seen)
    for i, (rows, own) in enumerate(zip(sets, seen)):
      if rows.places is not None and rows.branches is None:
        wanted = Wanted.of(rows.places, own.angles, own.masks)
        last[i], places[i] = dataclasses.replace(own, wanted=wanted), None
    kvs = []
    layers = self.layers if self.form == "split" else self.blocks
    for i, layer in enumerate(layers):
      here = tuple(last) if i == config.depth - 1 else seen
      xs, kv = layer(xs, is_local[i], past and past[i], None, here)
      kvs.append(kv)
    return [self.final_norm(_at(x, p)) for x, p in zip(xs, places)], [list(kv) for kv in zip(*kvs)]

  def __call__(self, tokens: Array) -> Array:
    """Touches every parameter, for init: a causal pass over i32[B,T]."""
    b, t = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(t), (b, t))
    mask = jnp.broadcast_to(jnp.tri(t, dtype=bool), (b, t, t))
    rows = RowSet(self.embed(tokens), positions, positions[:, None], mask)
    return self.decode([rows])[0][0]


def _at(x: Array, places: Array | None) -> Array:
  """Returns [B,C,D] of x[B,T,D] at places i32[B,C], all of it if they are None."""
  return x if places is None else jnp.take_along_axis(x, places[..., None], axis=1)
