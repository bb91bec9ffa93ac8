# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of a `Vlm`.

They belong to this module and not to a `Vlm`: parameters are an argument of theirs. Models of one
config therefore share them, and fine-tuning a model recompiles nothing.
"""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from auditdm_jax.core import runtime
from auditdm_jax.models import decode, multimodal, siglip
from auditdm_jax.models.multimodal import Params


@functools.partial(jax.jit, static_argnames=("vision",))
def encode_images(vision: siglip.SiglipConfig, tower: Params, pixels: Array) -> Array:
  """The program of `Vlm.encode`."""
  return siglip.Siglip(vision).apply({"params": tower}, pixels).astype(jnp.float32)


@functools.partial(
  jax.jit, static_argnames=("config", "sc"), compiler_options=runtime.PLAIN_KERNELS
)
def sample_answers(
  config, sc, params, features, tokens, valid, names, seed, limits, temperatures, tails
) -> tuple[Array, Array, Array]:
  """The program of `Vlm.answer`: one sample per prompt, whose randomness depends on its number.

  The numbers are i32[B,G], where G is 1 without tails. The seed is one for all or one per prompt,
  i32[] or i32[B,G]; limits, temperatures and tails are those of `decode.sample`.

  Returns the tokens i32[B,G,C], lengths i32[B,G] and log-probs of whole samples f32[B,G].
  """
  seeds = jax.vmap(jax.random.key)(jnp.broadcast_to(seed, names.shape).ravel())
  keys = jax.vmap(jax.random.fold_in)(seeds, names.ravel())
  samples = decode.sample(
    config,
    sc,
    params,
    features,
    tokens,
    valid=valid,
    group=names.shape[1],
    row_keys=keys.reshape(names.shape),
    tails=tails,
    limits=limits,
    temperatures=temperatures,
  )
  return samples.tokens, samples.length, jnp.sum(samples.logprobs, axis=-1)


@functools.partial(jax.jit, static_argnames=("config",))
def logits(config, params, features, tokens, valid, ar) -> Array:
  """The program of `Vlm.logits`: f32[B,T,V] of rows of tokens."""
  x = multimodal.hidden(config, params, features, tokens, valid=valid, ar=ar)
  return multimodal.unembed(config, params, x)


@functools.partial(jax.jit, static_argnames=("config",))
def is_finite(config, params, features, tokens, valid) -> Array:
  """The program of `Vlm.is_finite`: bool[], whether the last logits of every row are numbers."""
  x = multimodal.hidden(config, params, features, tokens, valid=valid)
  return jnp.isfinite(multimodal.unembed(config, params, x[:, -1:])).all()


@functools.partial(jax.jit, static_argnames=("config",))
def states(config, params, features, tokens, valid, last) -> Array:
  """The program of `Vlm.states`: f32[B,D], the hidden states at tokens i32[B,1]."""
  x = multimodal.hidden(config, params, features, tokens, valid=valid, places=last)
  return x[:, 0].astype(jnp.float32)
