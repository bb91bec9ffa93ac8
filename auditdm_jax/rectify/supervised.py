# SPDX-License-Identifier: Apache-2.0
"""Supervised learning of (image, prompt) -> suffix: the one step behind pretraining and repair.

It is that of big_vision's PaliGemma trainer (trainers/proj/paligemma/train.py):

1. The loss is the mean over rows of the mean cross-entropy over a row's suffix and terminator, so
   that a long answer weighs as much as a short one. Image, prompt and separator teach nothing.
2. Gradients are those of the trained parameters alone; the others are constants.
3. The optimiser sees nothing else either.

A frozen vision tower's features come from outside; one that trains gets pixels.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from auditdm_jax.core import masked, streams, tree
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.models import gemma, multimodal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of [prompt | suffix | padding]; C suffix slots, other axes as in `models`."""

  images: Any  # f[U,P,Dv] features of the frozen tower, or pixels u8[U,H,W,3], f32 in [-1, 1]
  image: Any  # i32[B] row of `images`; None: each row has its own, and U is B
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
  opt_state: Any  # Of the trained parameters.
  step: Any
  skipped: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """How a step learns, besides its optimiser.

  Attributes:
    label_smoothing: share of the target's mass that the V - 1 wrong tokens get.
    dropout: rate in the decoder's blocks.
    seed: of the dropout; a step's noise is a function of seed, step and micro-batch.
    micro_rows: rows at a time, 0 = all. Saves memory, and on a CPU time: small ones stay in its
      cache.
    trains: whether the parameter of a path is trained.
  """

  label_smoothing: float = 0.0
  dropout: float = 0.0
  seed: int = 0
  micro_rows: int = 0
  trains: Callable[[str], bool] = lambda path: True

  def noise(self, config: gemma.GemmaConfig, step: Any, micro: Any) -> gemma.Dropout | None:
    """Returns the dropout of a micro-batch of a step."""
    if not self.dropout:
      return None
    key = jax.random.wrap_key_data(jnp.asarray(streams.key_data(self.seed, "dropout")))
    key = jax.random.fold_in(jax.random.fold_in(key, step), micro)
    return gemma.Dropout.draw(config, key, rate=self.dropout)

  def split(self, params: Any) -> tuple[Any, Any]:
    """Returns the trained parameters, and the others."""
    flat = tree.flatten(params)
    trained = {path: x for path, x in flat.items() if self.trains(path)}
    return tree.unflatten(trained), tree.unflatten({k: flat[k] for k in flat if k not in trained})


def _join(trained: Any, frozen: Any) -> Any:
  return tree.unflatten(tree.flatten(trained) | tree.flatten(frozen))


def loss_sum(
  config: multimodal.VlmConfig,
  params: Any,
  batch: Batch,
  *,
  label_smoothing: float,
  dropout: gemma.Dropout | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the sum f32[] of the rows' losses, and these losses f32[B]."""
  features = batch.images
  if features.ndim == 4:
    features = multimodal.encode_images(config, params, _scaled(features))
  features = features.astype(config.text.dtype)
  if batch.image is not None:
    features = mesh_lib.constrain(features)[batch.image]
  hidden = multimodal.hidden(
    config,
    params,
    features,
    batch.tokens,
    valid=batch.valid,
    ar=batch.ar,
    dropout=dropout,
    places=batch.position,
  )
  logits = multimodal.unembed(config, params, hidden)
  losses = masked.mean(_cross_entropy(logits, batch.targets, label_smoothing), batch.mask, axis=1)
  return losses.sum(), losses


def _scaled(pixels: jax.Array) -> jax.Array:
  """Returns f32 pixels in [-1, 1]; a quarter of the bytes travel as u8."""
  if pixels.dtype != jnp.uint8:
    return pixels
  return pixels.astype(jnp.float32) / 255.0 * 2.0 - 1.0


def _cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
  """Returns f32[B,C]. The smoothed mass is shared by the V - 1 wrong tokens, as in big_vision."""
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if not smoothing:
    return nll
  wrong = logits.shape[-1] - 1
  right, each = 1 - smoothing, smoothing / wrong
  # The sum of -log p over the vocabulary, without [B,C,V] of it.
  total = (wrong + 1) * (jax.nn.logsumexp(logits, -1) - logits.mean(-1))
  return (right - each) * nll + each * total


def loss_and_grads(
  config: multimodal.VlmConfig, params: Any, batch: Batch, *, method: Method, step: Any = 0
) -> tuple[jax.Array, jax.Array, Any]:
  """Returns mean loss f32[], row losses f32[B] and gradients, divided once by the number of rows.

  Args:
    config: the model.
    params: its parameters.
    batch: all rows; B is a multiple of `method.micro_rows`.
    method: how to learn.
    step: i32[], for the dropout.
  """
  # Before the loop over micro-batches, which would take the stack apart each time.
  lists = not method.dropout and multimodal.lists_layers(config, params)
  trained, frozen = (
    multimodal.list_layers(part) if lists else part for part in method.split(params)
  )

  def sums(rows: Batch, micro: Any) -> tuple[tuple[Any, jax.Array], jax.Array]:
    dropout = method.noise(config.text, step, micro)

    def loss(trained):
      return loss_sum(
        config,
        _join(trained, frozen),
        rows,
        label_smoothing=method.label_smoothing,
        dropout=dropout,
      )

    (value, row_loss), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    return (grads, value), row_loss

  count = len(batch.tokens)
  if not method.micro_rows:
    (grads, loss), row_loss = sums(batch, 0)
  else:
    pieces, rebuild = _micro_batches(batch, method.micro_rows)

    def body(carry, piece):
      new, row_loss = sums(rebuild(piece[1]), piece[0])
      return jax.tree.map(jnp.add, carry, new), row_loss

    zero = (jax.tree.map(jnp.zeros_like, trained), jnp.float32(0))
    numbers = jnp.arange(count // method.micro_rows)
    (grads, loss), row_loss = jax.lax.scan(body, zero, (numbers, pieces))
    row_loss = mesh_lib.join_rows(row_loss)
  grads = multimodal.stack_layers(grads)
  return loss / count, row_loss, jax.tree.map(lambda g: g / count, grads)


def row_losses(
  config: multimodal.VlmConfig, params: Any, batch: Batch, *, micro_rows: int = 0
) -> jax.Array:
  """Returns the rows' losses f32[B] without label smoothing and dropout, so many rows at a time."""
  if multimodal.lists_layers(config, params):
    params = multimodal.list_layers(params)

  def of(rows: Batch) -> jax.Array:
    return loss_sum(config, params, rows, label_smoothing=0.0)[1]

  if not micro_rows:
    return of(batch)
  pieces, rebuild = _micro_batches(batch, micro_rows)
  return mesh_lib.join_rows(jax.lax.map(lambda piece: of(rebuild(piece)), pieces))


def _micro_batches(batch: Batch, size: int) -> tuple[Any, Callable[[Any], Batch]]:
  """Returns what is cut into micro-batches, by field, and what makes a batch of a piece of it.

  Images that rows share are whole in every piece. Of shared pixels a piece encodes its own rows'.
  """
  shared = batch.image is not None
  whole = {"images": batch.images} if shared else {"image": None}
  rows = {f.name: vars(batch)[f.name] for f in dataclasses.fields(batch) if f.name not in whole}
  rows = mesh_lib.cut_rows(rows, size)

  def rebuild(piece: Any) -> Batch:
    if shared and batch.images.ndim == 4:
      return Batch(**(piece | {"images": batch.images[piece["image"]], "image": None}))
    return Batch(**piece, **whole)

  return rows, rebuild


def train_step(
  config: multimodal.VlmConfig,
  tx: optax.GradientTransformation,
  method: Method,
  state: State,
  batch: Batch,
) -> tuple[State, dict[str, jax.Array]]:
  """One update. A non-finite gradient changes nothing and is counted.

  Returns:
    The next state and {"loss": f32[], "grad_norm": f32[], "row_loss": f32[B]}.
  """
  loss, rows, grads = loss_and_grads(config, state.params, batch, method=method, step=state.step)
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(norm)
  trained, frozen = method.split(state.params)
  updates, opt_state = tx.update(grads, state.opt_state, trained)

  def keep(new, old):
    return jnp.where(finite, new, old)

  new = State(
    params=_join(jax.tree.map(keep, optax.apply_updates(trained, updates), trained), frozen),
    opt_state=jax.tree.map(keep, opt_state, state.opt_state),
    step=state.step + 1,
    skipped=state.skipped + jnp.where(finite, 0, 1),
  )
  return new, {"loss": loss, "grad_norm": norm, "row_loss": rows}


def make_step(
  config: multimodal.VlmConfig,
  tx: optax.GradientTransformation,
  *,
  method: Method = Method(),
  out_shardings: Any = None,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
  """`train_step` jitted with a donated state."""
  step = functools.partial(train_step, config, tx, method)
  return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def init_state(
  params: Any, tx: optax.GradientTransformation, *, method: Method = Method()
) -> State:
  """Returns the state before the first step: fp32 copies, whatever dtype the checkpoint has.

  At a learning rate of 1e-5 most bfloat16 weights would not move.
  """
  params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
  opt_state = tx.init(method.split(params)[0])
  return State(params, opt_state, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
