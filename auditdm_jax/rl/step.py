# SPDX-License-Identifier: Apache-2.0
"""One GRPO update as a pure function of arrays: `train_step(config, state, batch, …)`.

  1. `image_features`    once per image: the batch's if the tower is frozen, else the tower runs.
  2. `forward_logprobs`  hidden states -> completion positions -> log-probs and exact entropy.
  3. `_gradients`        of the loss, over parts and micro-batches; divided once, by all they count.
  4. `train_step`        clip, AdamW; a step that is not finite changes nothing and is counted.

Params are fp32 masters in a flat dict {path: leaf}, split into what trains and what is frozen; the
model's dtype is that of the computation.

Axes: as in `rl.batch`.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.models import multimodal
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo as grpo_lib

FlatParams = dict[str, jax.Array]

# The vision tower, without the projector.
TOWER = r"^img/(?!head/)"


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW with warm-up and cosine; the defaults are the paper's.

  Attributes:
    steps: length of the schedule, in rollouts; 0 = nothing is trained.
    lr: peak.
    final_lr: at the end of the cosine.
    warmup: share of the steps. Step 0 already moves: a warm-up from exactly 0 would waste a
      rollout.
    b1: Adam's.
    b2: Adam's.
    eps: Adam's.
    weight_decay: decoupled; norms' scales and biases are left out.
    clip_norm: of the global gradient norm.
    frozen: regex of params that do not train; by default the vision tower.
    shared_prefix: completions of a prompt share rows, instead of having one each.
    head_chunk: tokens per chunk of the head, 0 = all at once.
    micro_rows: rows per micro-batch, 0 = all at once. Saves memory, and on a CPU time: small ones
      stay in its cache.
    remat: compute each layer again in the backward pass instead of keeping what is in it.
  """

  steps: int = 1000
  lr: float = 3e-6
  final_lr: float = 1e-6
  warmup: float = 0.1
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 1e-4
  clip_norm: float = 1.0
  frozen: str = TOWER
  shared_prefix: bool = True
  head_chunk: int = 0
  micro_rows: int = 0
  remat: bool = False

  def __post_init__(self):
    mine = vars(self)
    config_lib.check(mine, "optim", "lr", "eps", "clip_norm", above=0)
    config_lib.check(mine, "optim", "steps", "final_lr", "weight_decay", least=0)
    config_lib.check(mine, "optim", "head_chunk", "micro_rows", least=0)
    config_lib.check(mine, "optim", "warmup", least=0, most=1)
    config_lib.check(mine, "optim", "b1", "b2", least=0, below=1)
    try:
      re.compile(self.frozen)
    except re.error as e:
      raise config_lib.UserError(f"optim.frozen={self.frozen!r}: no regular expression: {e}") from e

  def per_row(self, group: int, *, prompts: int, devices: int) -> int:
    """How many completions share a row: as many as leave a row for each of the devices.

    Args:
      group: completions of a prompt.
      prompts: of a step.
      devices: that share the rows.

    Returns:
      A divisor of `group`.
    """
    if not self.shared_prefix:
      return 1
    divisors = (n for n in range(group, 1, -1) if group % n == 0)
    return next((n for n in divisors if prompts * group // n >= devices), 1)

  def trains(self, path: str) -> bool:
    """Whether a param trains, by its path."""
    return not re.search(self.frozen, path)

  def trains_tower(self, paths: Iterable[str]) -> bool:
    """Whether the vision tower is among what trains."""
    return any(re.search(TOWER, path) and self.trains(path) for path in paths)


@dataclasses.dataclass(frozen=True)
class StepConfig:
  """Everything static of `train_step`."""

  model: multimodal.VlmConfig
  grpo: grpo_lib.GrpoConfig
  optim: OptimConfig
  banned: tuple[int, ...]  # ids that the sampler never draws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a checkpoint holds; nothing random."""

  step: jax.Array  # i32[] updates tried
  skipped: jax.Array  # i32[] of them without effect, because something was not finite
  params: FlatParams  # what trains, fp32
  opt_state: Any  # AdamW's moments, fp32


def learning_rate(config: OptimConfig, step: int) -> float:
  """Linear warm-up shifted by one, then cosine to `final_lr`; of a rollout, counted from 0."""
  warm = round(config.warmup * config.steps)
  rise = min((step + 1) / max(warm, 1), 1.0)
  progress = min(max((step - warm) / max(config.steps - warm, 1), 0.0), 1.0)
  cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
  return rise * (config.final_lr + (config.lr - config.final_lr) * cosine)


def optimizer(config: OptimConfig) -> optax.GradientTransformation:
  """AdamW without its learning rate: `train_step` owns the step count."""

  def decays(params):
    return {path: not path.endswith(("scale", "bias")) for path in params}

  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=decays),
  )


def image_features(
  config: StepConfig, params: FlatParams, batch: batch_lib.LearnerBatch
) -> jax.Array:
  """f[U,M,Dv], once per image: the batch's own, or the tower's where it trains; pooled.

  Images are split over the devices until here, and from here on everywhere: any row may look at
  any. So they come as the image tokens that they become: a sixteenth of Gemma 3's patches.
  """
  features, model = batch.features, config.model
  if batch.pixels is not None:
    features = multimodal.encode_images(model, tree_lib.unflatten(params), batch.pixels)
  if features is None:
    raise ValueError("a batch has features or pixels")
  features = multimodal.pool(features.astype(model.text.dtype), model.mm_tokens)
  if batch.pixels is not None:
    features = features.astype(jnp.float32)  # The gradients of all micro-batches meet here.
  return mesh_lib.constrain(features)


def listed(config: StepConfig, params: FlatParams) -> FlatParams:
  """Params, or some of them, with the decoder's layers in a list where that is faster."""
  if not multimodal.lists_layers(config.model, params):
    return params
  return tree_lib.flatten(multimodal.list_layers(tree_lib.unflatten(params)))


def forward_logprobs(
  config: StepConfig, params: FlatParams, features: jax.Array, parts: Sequence[batch_lib.Rows]
) -> list[tuple[jax.Array, jax.Array]]:
  """(log-prob, entropy) f32[B,G,C] of each part, by the sampler's temperature and banned ids."""
  tree = tree_lib.unflatten(params)
  sets = [
    multimodal.row_set(
      config.model, tree, features[rows.image], **batch_lib.sequence(config.model, rows)
    )
    for rows in parts
  ]
  score = functools.partial(
    multimodal.token_logprobs,
    config.model,
    tree,
    banned=config.banned,
    temperature=config.grpo.temperature,
    chunk=config.optim.head_chunk or None,
  )
  hidden = multimodal.hidden_of_sets(config.model, tree, sets)
  # Only what predicts a completion token goes through the head.
  return [score(batch_lib.predicting(x, rows), rows.targets) for x, rows in zip(hidden, parts)]


def train_step(
  config: StepConfig,
  state: TrainState,
  batch: batch_lib.LearnerBatch,
  frozen: FlatParams,
  reference: FlatParams | None,
  lr: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update.

  Args:
    config: static settings.
    state: donated.
    batch: rows of the whole mesh.
    frozen: params that do not train.
    reference: the initial auditor's trainable params, or None without KL.
    lr: f32[], see `learning_rate`. An argument, so that schedules of any length share a program.

  Returns:
    The next state and f32[] metrics.
  """
  longest = max(rows.targets.shape[2] for rows in batch.parts)
  features_ref = None if reference is None else image_features(config, frozen | reference, batch)
  fixed = listed(config, frozen)
  initial = None if reference is None else fixed | listed(config, reference)

  def loss_fn(params, features, parts):
    scores = forward_logprobs(config, fixed | params, features, parts)
    initially: list[Any] = [(None, None)] * len(parts)
    if initial is not None and features_ref is not None:
      initially = forward_logprobs(config, initial, features_ref, parts)
    found = [
      grpo_lib.loss_and_metrics(
        config.grpo,
        _lines(logp),
        entropy=_lines(entropy),
        logp_sampler=_lines(rows.logp_sampler),
        logp_old=None if rows.logp_old is None else _lines(rows.logp_old),
        logp_ref=None if logp_ref is None else _lines(logp_ref),
        advantages=rows.advantages.reshape(-1),
        mask=_lines(rows.loss_mask),
        max_length=longest,
      )
      for rows, (logp, entropy), (logp_ref, _) in zip(parts, scores, initially)
    ]
    (total, count), metrics = functools.reduce(_add, found)
    return total, (count, metrics)

  grads, loss, sums = _gradients(config, loss_fn, state.params, batch, frozen)
  norm = optax.tree.norm(grads)
  updates, opt_state = optimizer(config.optim).update(grads, state.opt_state, state.params)
  params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  skipped = state.skipped + (~finite).astype(jnp.int32)
  metrics = grpo_lib.finish(sums) | {
    "grad_norm": norm,
    "grad_clipped": (norm > config.optim.clip_norm).astype(jnp.float32),
    "lr": lr,
    "skipped_steps": skipped.astype(jnp.float32),
  }
  return TrainState(state.step + 1, skipped, params, opt_state), metrics


def _lines(x: jax.Array) -> jax.Array:
  """[B,G,C] -> [R,C]: to the loss, a completion is a line."""
  return x.reshape(-1, x.shape[2])


def _gradients(
  config: StepConfig,
  loss_fn: Callable,
  params: FlatParams,
  batch: batch_lib.LearnerBatch,
  frozen: FlatParams,
) -> tuple[FlatParams, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
  """Gradient, loss and metric sums of all parts, divided once by the count of the whole batch.

  A tower that trains runs forward once and backward once per image, however many rows and
  micro-batches look at it: the gradient of its features is summed in between.

  Args:
    config: static settings.
    loss_fn: (params, features, parts) -> (sum, (count, metrics)).
    params: what trains.
    batch: all rows.
    frozen: what does not.
  """
  trains_tower = batch.pixels is not None
  features, pull_back = jax.vjp(lambda p: image_features(config, frozen | p, batch), params)
  # Before the loop over micro-batches, which would take the stack apart each time.
  params = listed(config, params)
  grad_fn = jax.value_and_grad(loss_fn, argnums=(0, 1) if trains_tower else (0,), has_aux=True)

  def sums(parts):
    (total, (count, metrics)), grads = grad_fn(params, features, parts)
    return (grads, total, count), metrics

  (grads, total, count), metrics = _in_micro_batches(sums, batch.parts, config.optim.micro_rows)
  of_params = tree_lib.flatten(multimodal.stack_layers(tree_lib.unflatten(grads[0])))
  if trains_tower:
    of_params = jax.tree.map(jnp.add, of_params, *pull_back(grads[1]))
  count = jnp.maximum(count, 1.0)
  return jax.tree.map(lambda g: g / count, of_params), total / count, metrics


def _add(a: Any, b: Any) -> Any:
  """Sums and metrics of two sets of rows as those of one."""
  return jax.tree.map(jnp.add, a[0], b[0]), grpo_lib.combine(a[1], b[1])


def _in_micro_batches(sums: Callable, parts: Sequence[batch_lib.Rows], micro_rows: int) -> Any:
  """sums(parts), `micro_rows` rows of a part at a time; all parts at once if it is 0."""
  if not micro_rows:
    return sums(parts)
  return functools.reduce(_add, (_in_pieces(sums, rows, micro_rows) for rows in parts))


def _in_pieces(sums: Callable, rows: batch_lib.Rows, micro_rows: int) -> Any:
  """Sums of one part, at most `micro_rows` rows at a time."""
  if len(rows.image) <= micro_rows:
    return sums([rows])
  micro = mesh_lib.cut_rows(rows, micro_rows)
  # From zero, so that the body is compiled once; no maximum is below it.
  one = jax.tree.map(lambda x: x[0], micro)
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, [one]))
  return jax.lax.scan(lambda carry, part: (_add(carry, sums([part])), None), zero, micro)[0]
