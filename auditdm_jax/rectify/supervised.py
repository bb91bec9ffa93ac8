# SPDX-License-Identifier: Apache-2.0
"""Supervised learning of (image, prompt) -> suffix: the one step behind pretraining and repair.

The loss is that of big_vision's PaliGemma trainer (trainers/proj/paligemma/train.py): the mean over
rows of the mean cross-entropy over a row's suffix and terminator, so that a long answer weighs as
much as a short one. Image, prompt and separator teach nothing. Each unique image comes once: as
features where the vision tower is frozen, as pixels where it is trained.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from auditdm_jax.core import masked
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.models import multimodal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of [prompt | suffix | padding]; C suffix slots, other axes as in `models`."""

  images: Any  # f[U,P,Dv] features of the frozen tower, or f32[U,H,W,3] pixels
  image: Any  # i32[B] row of `images`
  tokens: Any  # i32[B,T]
  valid: Any  # bool[B,T]
  ar: Any  # i32[B,T] of `multimodal.make_attn_mask`, see `rows`
  position: Any  # i32[B,C] where the hidden state that predicts each target stands
  targets: Any  # i32[B,C]
  mask: Any  # bool[B,C]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """fp32 masters, optimiser state, i32[] step and i32[] number of skipped non-finite steps."""

  params: Any
  opt_state: Any
  step: Any
  skipped: Any


def loss_sum(
  config: multimodal.VlmConfig, params: Any, batch: Batch, *, label_smoothing: float
) -> tuple[jax.Array, jax.Array]:
  """Returns the sum f32[] of the rows' losses, and these losses f32[B]."""
  trained = batch.images.ndim == 4
  features = multimodal.encode_images(config, params, batch.images) if trained else batch.images
  hidden = multimodal.hidden(
    config,
    params,
    mesh_lib.constrain(features.astype(config.text.dtype))[batch.image],
    batch.tokens,
    valid=batch.valid,
    ar=batch.ar,
  )
  picked = jnp.take_along_axis(hidden, batch.position[..., None], axis=1)
  logits = multimodal.unembed(config, params, picked)
  losses = masked.mean(_cross_entropy(logits, batch.targets, label_smoothing), batch.mask, axis=1)
  return losses.sum(), losses


def _cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
  """Returns f32[B,C], 0 at best: with smoothing, less the entropy of the smoothed target.

  big_vision/utils.py, `weighted_softmax_xent`: the smoothed mass is shared by the V - 1 wrong
  tokens.
  """
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if not smoothing:
    return nll
  wrong = logits.shape[-1] - 1
  right, each = 1 - smoothing, smoothing / wrong
  entropy = -(right * math.log(right) + smoothing * math.log(each))
  # The sum of -log p over the vocabulary, without [B,C,V] of it.
  total = (wrong + 1) * (jax.nn.logsumexp(logits, -1) - logits.mean(-1))
  return (right - each) * nll + each * total - entropy


def loss_and_grads(config, params, batch: Batch, *, label_smoothing: float, micro_rows: int):
  """Returns mean loss f32[], row losses f32[B] and gradients, divided once by the number of rows.

  Args:
    config: the model.
    params: its parameters.
    batch: all rows; B is a multiple of `micro_rows`.
    label_smoothing: share of the target's mass that the wrong tokens get.
    micro_rows: rows at a time, 0 = all. Saves memory, and on a CPU time: small ones stay in its
      cache.
  """

  def sums(rows):
    grad = jax.value_and_grad(loss_sum, argnums=1, has_aux=True)
    (loss, row_loss), grads = grad(config, params, rows, label_smoothing=label_smoothing)
    return (grads, loss), row_loss

  if not micro_rows:
    (grads, loss), row_loss = sums(batch)
  else:
    whole = ("images",)  # What a row looks up.
    rows = {f.name: vars(batch)[f.name] for f in dataclasses.fields(batch) if f.name not in whole}
    rows = jax.tree.map(lambda x: x.reshape(-1, micro_rows, *x.shape[1:]), rows)

    def body(carry, micro):
      new, row_loss = sums(dataclasses.replace(batch, **micro))
      return jax.tree.map(jnp.add, carry, new), row_loss

    zero = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0))
    (grads, loss), row_loss = jax.lax.scan(body, zero, rows)
    row_loss = row_loss.reshape(-1)
  count = len(batch.image)
  return loss / count, row_loss, jax.tree.map(lambda g: g / count, grads)


def train_step(
  config,
  tx: optax.GradientTransformation,
  label_smoothing: float,
  micro_rows: int,
  state: State,
  batch: Batch,
):
  """One update. A non-finite gradient changes nothing and is counted.

  Returns:
    The next state and {"loss": f32[], "grad_norm": f32[], "row_loss": f32[B]}.
  """
  loss, rows, grads = loss_and_grads(
    config, state.params, batch, label_smoothing=label_smoothing, micro_rows=micro_rows
  )
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(norm)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)

  def keep(new, old):
    return jnp.where(finite, new, old)

  new = State(
    params=jax.tree.map(keep, params, state.params),
    opt_state=jax.tree.map(keep, opt_state, state.opt_state),
    step=state.step + 1,
    skipped=state.skipped + jnp.where(finite, 0, 1),
  )
  return new, {"loss": loss, "grad_norm": norm, "row_loss": rows}


def make_step(
  config, tx, *, label_smoothing: float = 0.0, micro_rows: int = 0, out_shardings: Any = None
) -> Callable:
  """`train_step` jitted with a donated state."""
  step = functools.partial(train_step, config, tx, label_smoothing, micro_rows)
  return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def init_state(params, tx) -> State:
  params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
  return State(params, tx.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
