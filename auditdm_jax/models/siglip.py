# SPDX-License-Identifier: Apache-2.0
"""The SigLIP vision tower, with big_vision's parameter names (models/vit.py, scanned).

The head that projects patches into the language model is not here but in `multimodal`, because it
belongs to the model and not to the tower: towers are frozen and shared.

Axes: D is the tower's width, B a batch of images; the others as in `models`.
"""

import dataclasses

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.models import sharding
from auditdm_jax.models.activations import Activation, activate

_WHOLE_SCORES = 1024  # With more patches than that, attention works on a block at a time,
_BLOCK = 2**22  # of at most so many scores on a device, 16 MiB in fp32.


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """Sizes of a SigLIP tower.

  Attributes:
    width: D.
    depth: L.
    mlp_dim: F.
    num_heads: N; divides D.
    patch_size: side of a patch, in pixels.
    image_size: side of the (square) image, in pixels; what is left of it on the right and at the
      bottom after the last whole patch is not looked at.
    norm_eps: epsilon of every LayerNorm.
    activation: activation of the MLP.
    pooling_head: the tower has a `PoolingHead`.
    dtype: compute dtype; parameters keep their own.
    remat: recompute each block in the backward pass.
    unroll: layers per step of the scan.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: int
  image_size: int
  norm_eps: float = 1e-6
  activation: Activation = "gelu_tanh"
  pooling_head: bool = False
  dtype: str = "float32"
  remat: bool = False
  unroll: int = 1

  def __post_init__(self):
    if self.width % self.num_heads:
      raise ValueError(f"width {self.width} % num_heads {self.num_heads} is not 0")
    if self.image_size < self.patch_size:
      raise ValueError(f"image_size {self.image_size} is less than patch_size {self.patch_size}")

  @property
  def num_patches(self) -> int:
    return (self.image_size // self.patch_size) ** 2


def has_whole_scores(config: SiglipConfig) -> bool:
  """Returns whether all heads of a layer have their scores in memory together."""
  return config.num_patches <= _WHOLE_SCORES


class LayerNorm(nn.Module):
  """LayerNorm with fp32 statistics."""

  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return (y * scale + bias).astype(x.dtype)


class Linear(nn.Module):
  """An einsum with `kernel` and `bias`; the bias has the kernel's output axes."""

  kernel: tuple[int, ...]
  bias: tuple[int, ...]
  fan_in: int

  @nn.compact
  def __call__(self, equation: str, x: Array) -> Array:
    w = self.param("kernel", nn.initializers.normal(self.fan_in**-0.5), self.kernel)
    b = self.param("bias", nn.initializers.zeros, self.bias)
    return jnp.einsum(equation, x, w.astype(x.dtype)) + b.astype(x.dtype)


class MultiHeadDotProductAttention(nn.Module):
  """Full self-attention over patches."""

  num_heads: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, n = x.shape[-1], self.num_heads
    h = d // n
    q, k, v = (
      Linear((d, n, h), (n, h), d, name=name)("bpd,dnh->bpnh", x)
      for name in ("query", "key", "value")
    )
    q = q * h**-0.5
    if x.shape[1] <= _WHOLE_SCORES:
      out = _attend(q, k, v)
    else:  # 896 pixels are 4,096 patches: the scores of 16 heads would be a gigabyte per image.
      out = _attend_in_blocks(q, k, v)
    return Linear((n, h, d), (d,), d, name="out")("bpnh,nhd->bpd", out)


def _attend(q: Array, k: Array, v: Array) -> Array:
  """Attention of scaled queries [B,P,N,H]."""
  # fp32 for the softmax, as in the decoder.
  logits = jnp.einsum("bpnh,bqnh->bnpq", q, k, preferred_element_type=jnp.float32)
  probs = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum("bnpq,bqnh->bpnh", probs, v)


def _attend_in_blocks(q: Array, k: Array, v: Array) -> Array:
  """Attention of scaled queries [B,P,N,H], of one head and some of its queries at a time.

  A block's scores stay in a core's own memory. Those of all queries go through the main memory
  three times, which takes a TPU twenty times as long as the tower's products.
  """
  b, p, n, h = q.shape
  mesh = mesh_lib.active()
  rows = max(b // (mesh.size if mesh else 1), 1)
  blocks = -(-p // max(_BLOCK // (rows * p), 1))
  size = -(-p // blocks)
  q = jnp.pad(q, [(0, 0), (0, blocks * size - p), (0, 0), (0, 0)]).reshape(b, blocks, size, n, h)
  q, k, v = jnp.moveaxis(q, (3, 1), (0, 1)), jnp.moveaxis(k, 2, 0), jnp.moveaxis(v, 2, 0)

  def of_head(head: tuple[Array, Array, Array]) -> Array:
    q, k, v = (x[..., None, :] for x in head)
    return jax.lax.map(jax.checkpoint(lambda block: _attend(block, k, v)), q)

  out = jax.lax.map(of_head, (q, k, v))  # [N,blocks,B,size,1,H]
  return jnp.moveaxis(out[:, :, :, :, 0], (0, 1), (3, 1)).reshape(b, blocks * size, n, h)[:, :p]


class MlpBlock(nn.Module):
  mlp_dim: int
  activation: Activation

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d, f = x.shape[-1], self.mlp_dim
    y = Linear((d, f), (f,), d, name="Dense_0")("bpd,df->bpf", x)
    y = activate(self.activation, y)
    return Linear((f, d), (d,), f, name="Dense_1")("bpf,fd->bpd", y)


class EncoderBlock(nn.Module):
  config: SiglipConfig

  @nn.compact
  def __call__(self, x: Array, _: None) -> tuple[Array, None]:
    config = self.config
    x = mesh_lib.constrain(x, "all")
    y = LayerNorm(config.norm_eps, name="LayerNorm_0")(x)
    x = x + MultiHeadDotProductAttention(config.num_heads, name="MultiHeadDotProductAttention_0")(y)
    y = LayerNorm(config.norm_eps, name="LayerNorm_1")(x)
    return x + MlpBlock(config.mlp_dim, config.activation, name="MlpBlock_0")(y), None


class Encoder(nn.Module):
  config: SiglipConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    gathered = sharding.at_use(
      "img/Transformer/encoderblock", EncoderBlock, dtype=self.config.dtype, keep=()
    )
    block = nn.remat(gathered, prevent_cse=False) if self.config.remat else gathered
    x, _ = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.config.depth,
      unroll=self.config.unroll,
    )(self.config, name="encoderblock")(x, None)
    return LayerNorm(self.config.norm_eps, name="encoder_norm")(x)


class PoolingHead(nn.Module):
  """The head of a SigLIP that was saved with it: kept, so that it can be saved again, not used.

  The language model takes the patches. Names and shapes are those of a Hugging Face checkpoint.
  """

  config: SiglipConfig

  @nn.compact
  def __call__(self) -> None:
    d, f = self.config.width, self.config.mlp_dim
    for name, shape in {
      "probe": (1, 1, d),
      "attention.in_proj_weight": (3 * d, d),
      "attention.in_proj_bias": (3 * d,),
      "attention.out_proj.weight": (d, d),
      "attention.out_proj.bias": (d,),
      "layernorm.weight": (d,),
      "layernorm.bias": (d,),
      "mlp.fc1.weight": (f, d),
      "mlp.fc1.bias": (f,),
      "mlp.fc2.weight": (d, f),
      "mlp.fc2.bias": (d,),
    }.items():
      self.param(name, nn.initializers.zeros, shape)


class PatchEmbedding(nn.Module):
  """The stride-p convolution of the ViT, as one matrix product over flattened patches."""

  config: SiglipConfig

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    p, d = self.config.patch_size, self.config.width
    kernel = self.param("kernel", nn.initializers.normal((p * p * 3) ** -0.5), (p, p, 3, d))
    kernel = mesh_lib.constrain(kernel)
    bias = self.param("bias", nn.initializers.zeros, (d,))
    b, n = pixels.shape[0], self.config.image_size // p
    x = pixels[:, : n * p, : n * p].astype(self.config.dtype).reshape(b, n, p, n, p, 3)
    x = x.swapaxes(2, 3).reshape(b, -1, p * p * 3)
    return x @ kernel.reshape(-1, d).astype(x.dtype) + bias.astype(x.dtype)


class Siglip(nn.Module):
  """Patches of an image, attended to one another."""

  config: SiglipConfig

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    """Returns [B,P,D] for pixels f32[B,H,W,3] in [-1, 1].

    Raises:
      ValueError: the images are not of the tower's size.
    """
    config = self.config
    if pixels.shape[1:] != (config.image_size, config.image_size, 3):
      raise ValueError(
        f"pixels {pixels.shape}: the tower wants [B,{config.image_size},{config.image_size},3]"
      )
    x = PatchEmbedding(config, name="embedding")(pixels)
    init = nn.initializers.normal(config.width**-0.5)
    pos = self.param("pos_embedding", init, (1, config.num_patches, config.width))
    if config.pooling_head:
      PoolingHead(config, name="pooling_head")()
    return Encoder(config, name="Transformer")(x + pos.astype(x.dtype))
