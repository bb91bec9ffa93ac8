# SPDX-License-Identifier: Apache-2.0
"""Supervised learning of (image, prompt) -> suffix: the one step behind pretraining and repair.

The loss is the cross-entropy of the suffix and its terminator only, as in big_vision's PaliGemma
transfers (mask_loss is 1 on suffix and EOS, 0 on image, prefix and separator). The vision tower is
frozen: images come as features, once per unique image.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from auditdm_jax.core import masked
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.models import multimodal
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of [prompt | suffix | padding]; C suffix slots, other axes as in `models`."""

  features: Any  # f[U,P,Dv] vision tower output
  image: Any  # i32[B] row of `features`
  tokens: Any  # i32[B,T]
  valid: Any  # bool[B,T]
  ar: Any  # i32[B,T] 0 in the prompt, 1 in the suffix
  position: Any  # i32[B,C] where the hidden state that predicts each target stands
  targets: Any  # i32[B,C]
  mask: Any  # bool[B,C]


@dataclasses.dataclass(frozen=True)
class RowLayout:
  """How text becomes rows.

  Attributes:
    length: T, tokens of a row with its image slots.
    suffix: C, most suffix tokens with the terminator.
  """

  tokenizer: Tokenizer
  template: str
  num_image_tokens: int
  stop_id: int
  length: int
  suffix: int

  def rows(self, texts: Sequence[str], suffixes: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns every `Batch` field but `features` and `image`.

    Raises:
      ValueError: a prompt and its suffix do not fit.
    """
    n, t, c = len(texts), self.length, self.suffix
    out = {
      "tokens": np.zeros((n, t), np.int32),
      "valid": np.zeros((n, t), bool),
      "ar": np.ones((n, t), np.int32),
      "position": np.zeros((n, c), np.int32),
      "targets": np.zeros((n, c), np.int32),
      "mask": np.zeros((n, c), bool),
    }
    for i, (text, suffix) in enumerate(zip(texts, suffixes, strict=True)):
      prefix, target = self._prompt(text), self._suffix(suffix)
      p, s = len(prefix), len(target)
      if p + s - 1 > t or s > c:
        raise ValueError(
          f"{p} prompt and {s} suffix tokens do not fit in {t} with {c}:"
          f" {text[:80]!r} -> {suffix[:80]!r}"
        )
      out["tokens"][i, : p + s - 1] = prefix + target[:-1]
      out["valid"][i, : p + s - 1] = True
      out["ar"][i, :p] = 0
      out["position"][i, :s] = np.arange(p - 1, p + s - 1)
      out["targets"][i, :s] = target
      out["mask"][i, :s] = True
    return out

  @functools.lru_cache(maxsize=65536)  # noqa: B019  (layouts live as long as a run)
  def _prompt(self, text: str) -> list[int]:
    return prompts.render(self.tokenizer, self.template, text, self.num_image_tokens)

  @functools.lru_cache(maxsize=65536)  # noqa: B019
  def _suffix(self, text: str) -> list[int]:
    return [*self.tokenizer.encode(text), self.stop_id]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """fp32 masters, optimiser state, i32[] step and i32[] number of skipped non-finite steps."""

  params: Any
  opt_state: Any
  step: Any
  skipped: Any


def loss_sums(config, params, batch: Batch, *, label_smoothing: float = 0.0):
  """Summed loss of the suffix tokens f32[], their number f32[], and the mean of each row f32[B]."""
  ar = batch.ar if config.kind == "paligemma" else None
  hidden = multimodal.hidden(
    config,
    params,
    mesh_lib.constrain(batch.features.astype(config.text.dtype))[batch.image],
    batch.tokens,
    valid=batch.valid,
    ar=ar,
  )
  picked = jnp.take_along_axis(hidden, batch.position[..., None], axis=1)
  logits = multimodal.unembed(config, params, picked)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
  if label_smoothing:
    uniform = jax.nn.logsumexp(logits, -1) - logits.mean(-1)  # -mean log p, without [B,C,V] of it
    nll = (1 - label_smoothing) * nll + label_smoothing * uniform
  return *masked.sum_count(nll, batch.mask), masked.mean(nll, batch.mask, axis=1)


def loss_and_grads(config, params, batch: Batch, *, label_smoothing: float, micro_rows: int):
  """Returns mean loss f32[], row losses f32[B] and gradients, divided once by all rows' count.

  Args:
    config: the model.
    params: its parameters.
    batch: all rows; B is a multiple of `micro_rows`.
    label_smoothing: share of the uniform distribution in the targets.
    micro_rows: rows at a time, 0 = all. Saves memory, and on a CPU time: small ones stay in its
      cache.
  """

  def sums(rows):
    def total(params):
      loss, count, row_loss = loss_sums(config, params, rows, label_smoothing=label_smoothing)
      return loss, (count, row_loss)

    (loss, (count, row_loss)), grads = jax.value_and_grad(total, has_aux=True)(params)
    return (grads, loss, count), row_loss

  if not micro_rows:
    (grads, loss, count), row_loss = sums(batch)
  else:
    whole = ("features",)  # What a row looks up.
    rows = {f.name: vars(batch)[f.name] for f in dataclasses.fields(batch) if f.name not in whole}
    rows = jax.tree.map(lambda x: x.reshape(-1, micro_rows, *x.shape[1:]), rows)

    def body(carry, micro):
      new, row_loss = sums(dataclasses.replace(batch, **micro))
      return jax.tree.map(jnp.add, carry, new), row_loss

    zero = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0), jnp.float32(0))
    (grads, loss, count), row_loss = jax.lax.scan(body, zero, rows)
    row_loss = row_loss.reshape(-1)
  count = jnp.maximum(count, 1)
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
