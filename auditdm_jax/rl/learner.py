# SPDX-License-Identifier: Apache-2.0
"""The learner: one GRPO update per rollout, on a mesh.

  1. `forward_logprobs`  hidden states -> completion positions -> log-probs and exact entropy.
  2. `train_step`        loss, gradient, clip, AdamW; pure, jitted once, state donated.
  3. `Learner`           places params and state by the rules of the config and feeds `train_step`.

Params are fp32 masters in a flat dict {path: leaf}, split into what trains and what is frozen (the
vision tower; its features come with the batch). Weights of the initial auditor stay on the devices
only while the KL is on.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models import multimodal
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo as grpo_lib

FlatParams = dict[str, jax.Array]

# Everything of the vision tower but the projector: features are computed once per image.
FROZEN_TOWER = r"^img/(?!head/)"


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW with warm-up and cosine; the defaults are the paper's.

  Attributes:
    steps: length of the schedule.
    lr: peak.
    final_lr: at the end of the cosine.
    warmup: share of the steps. Step 0 already moves: a warm-up from exactly 0 would waste a
      rollout.
    b1: Adam's.
    b2: Adam's.
    eps: Adam's.
    weight_decay: decoupled; norms' scales and biases are left out.
    clip_norm: of the global gradient norm.
    frozen: regex of params that do not train.
    head_chunk: tokens per chunk of the head, 0 = all at once.
    micro_rows: rows per micro-batch, 0 = all at once. Saves memory, and on a CPU time: small ones
      stay in its cache.
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
  frozen: str = FROZEN_TOWER
  head_chunk: int = 0
  micro_rows: int = 0


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

  step: jax.Array  # i32[]
  skipped: jax.Array  # i32[] steps without an update because something was not finite
  params: FlatParams  # what trains, fp32
  opt_state: Any  # AdamW's moments, fp32


def learning_rate(cfg: OptimConfig, step: jax.Array) -> jax.Array:
  """Linear warm-up shifted by one, then cosine to `final_lr`."""
  warm = round(cfg.warmup * cfg.steps)
  rise = jnp.minimum((step + 1) / max(warm, 1), 1.0)
  progress = jnp.clip((step - warm) / max(cfg.steps - warm, 1), 0.0, 1.0)
  cosine = 0.5 * (1.0 + jnp.cos(math.pi * progress))
  return rise * (cfg.final_lr + (cfg.lr - cfg.final_lr) * cosine)


def optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
  """AdamW without its learning rate: `train_step` owns the step count."""

  def decays(params):
    return {path: not path.endswith(("scale", "bias")) for path in params}

  return optax.chain(
    optax.clip_by_global_norm(cfg.clip_norm),
    optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
    optax.add_decayed_weights(cfg.weight_decay, mask=decays),
  )


def forward_logprobs(
  cfg: StepConfig, params: FlatParams, batch: batch_lib.LearnerBatch
) -> tuple[jax.Array, jax.Array]:
  """(log-prob, entropy) f32[N,C] of completions, by the sampler's temperature and banned ids."""
  tree = tree_lib.unflatten(params)
  hidden = multimodal.hidden(
    cfg.model, tree, batch.features[batch.image], batch.tokens, valid=batch.valid
  )
  # Only what predicts a completion token goes through the head.
  hidden = batch_lib.gather_completion(hidden, batch)
  return multimodal.token_logprobs(
    cfg.model,
    tree,
    hidden,
    batch.targets,
    banned=cfg.banned,
    temperature=cfg.grpo.temperature,
    chunk=cfg.optim.head_chunk or None,
  )


def train_step(
  cfg: StepConfig,
  state: TrainState,
  batch: batch_lib.LearnerBatch,
  frozen: FlatParams,
  reference: FlatParams | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update.

  Args:
    cfg: static settings.
    state: donated.
    batch: rows of the whole mesh.
    frozen: params that do not train.
    reference: the initial auditor's trainable params, or None without KL.

  Returns:
    The next state and f32[] metrics.
  """

  def loss_fn(params, rows):
    logp, entropy = forward_logprobs(cfg, frozen | params, rows)
    logp_ref = None
    if reference is not None:
      logp_ref, _ = forward_logprobs(cfg, frozen | reference, rows)
    (total, count), metrics = grpo_lib.loss_and_metrics(
      cfg.grpo,
      logp,
      entropy=entropy,
      logp_sampler=rows.logp_sampler,
      logp_ref=logp_ref,
      advantages=rows.advantages,
      mask=rows.loss_mask,
    )
    return total, (count, metrics)

  grads, loss, sums = _accumulate(
    jax.value_and_grad(loss_fn, has_aux=True), state.params, batch, cfg.optim.micro_rows
  )
  norm = optax.tree.norm(grads)
  updates, opt_state = optimizer(cfg.optim).update(grads, state.opt_state, state.params)
  lr = learning_rate(cfg.optim, state.step)
  params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  skipped = state.skipped + (~finite).astype(jnp.int32)
  metrics = grpo_lib.finish(sums)
  metrics |= {"grad_norm": norm, "lr": lr, "skipped_steps": skipped.astype(jnp.float32)}
  return TrainState(state.step + 1, skipped, params, opt_state), metrics


def _accumulate(
  grad_fn: Callable, params: FlatParams, batch: batch_lib.LearnerBatch, micro_rows: int
) -> tuple[FlatParams, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
  """Gradient, loss and metric sums, divided once by the count of the whole batch.

  Args:
    grad_fn: (params, rows) -> ((sum, (count, metrics)), gradient of the sum).
    params: of the current policy.
    batch: all rows; what a row looks up (the features) stays whole.
    micro_rows: rows at a time, 0 = all.
  """

  def sums(rows):
    (total, (count, metrics)), grads = grad_fn(params, rows)
    return grads, total, count, metrics

  if not micro_rows:
    grads, total, count, metrics = sums(batch)
  else:
    whole = ("features",)
    rows = {f.name: vars(batch)[f.name] for f in dataclasses.fields(batch) if f.name not in whole}
    # Row r goes to micro-batch r % M: each takes an equal share of every device's rows.
    rows = jax.tree.map(lambda x: x.reshape(micro_rows, -1, *x.shape[1:]).swapaxes(0, 1), rows)

    def body(carry, micro):
      new = sums(dataclasses.replace(batch, **micro))
      return (
        jax.tree.map(jnp.add, carry[:3], new[:3]) + (grpo_lib.combine(carry[3], new[3]),)
      ), None

    # From zero, so that the body is compiled once; no maximum is below it.
    one = dataclasses.replace(batch, **jax.tree.map(lambda x: x[0], rows))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, one))
    (grads, total, count, metrics), _ = jax.lax.scan(body, zero, rows)
  count = jnp.maximum(count, 1.0)
  return jax.tree.map(lambda g: g / count, grads), total / count, metrics


class Learner:
  """Owns the train state on the mesh."""

  def __init__(
    self,
    cfg: multimodal.VlmConfig,
    grpo: grpo_lib.GrpoConfig,
    *,
    optim: OptimConfig,
    mesh: jax.sharding.Mesh,
    rules: mesh_lib.Rules,
    params: Mapping[str, Any],
    banned: tuple[int, ...] = (),
  ):
    """Places the initial auditor.

    Args:
      cfg: the auditor's architecture.
      grpo: the loss.
      optim: the optimiser.
      mesh: devices; rows are split over all its axes.
      rules: shardings of the params, see `core.mesh`.
      params: tree of the initial auditor's weights; copied.
      banned: ids that are never sampled.

    Raises:
      UserError: `optim.frozen` leaves nothing to train, or the mesh does not divide
        `optim.micro_rows`.
    """
    if optim.micro_rows % mesh.size:
      raise UserError(
        f"optim.micro_rows={optim.micro_rows}: must be a multiple of the {mesh.size} devices"
      )
    self.config = StepConfig(cfg, grpo, optim, tuple(banned))
    self.mesh = mesh
    flat = tree_lib.flatten(params)
    shard = tree_lib.flatten(mesh_lib.shardings(mesh, rules, flat))
    trains = [path for path in flat if not re.search(optim.frozen, path)]
    if not trains:
      raise UserError(f"optim.frozen={optim.frozen!r} matches every param: nothing would train")
    self._frozen = {
      path: jax.device_put(flat[path], shard[path]) for path in flat if path not in set(trains)
    }
    self._shardings = self._state_shardings({path: shard[path] for path in trains}, flat)
    start = {path: np.asarray(flat[path], np.float32) for path in trains}
    self.state = self._initial_state(start)
    # A copy of its own: the state's buffers are donated to the next step.
    self._reference = self._initial_state(start).params if grpo.kl_coef else None
    rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    fields = {f.name: rows for f in dataclasses.fields(batch_lib.LearnerBatch)}
    self._batch_shardings = batch_lib.LearnerBatch(**fields | {"features": whole})
    self._step = jax.jit(
      functools.partial(train_step, self.config),
      in_shardings=(
        self._shardings,
        self._batch_shardings,
        {path: shard[path] for path in self._frozen},
        None if self._reference is None else self._shardings.params,
      ),
      out_shardings=(self._shardings, whole),
      donate_argnums=0,
    )

  @property
  def row_multiple(self) -> int:
    """N of a batch must be a multiple of this."""
    return self.config.optim.micro_rows or self.mesh.size

  @property
  def params(self) -> dict[str, Any]:
    """The auditor as it is, a tree for the sampler. Do not keep it: the next update donates it."""
    return tree_lib.unflatten(self._frozen | self.state.params)

  def params_of(self, state: TrainState) -> dict[str, Any]:
    """The auditor of another state, such as a restored one, as a tree."""
    return tree_lib.unflatten(self._frozen | state.params)

  def update(self, batch: batch_lib.LearnerBatch) -> dict[str, float]:
    """One `train_step` on host arrays; blocks until the metrics are there.

    Raises:
      ValueError: the number of rows is not a multiple of `row_multiple`.
    """
    if len(batch.tokens) % self.row_multiple:
      raise ValueError(f"{len(batch.tokens)} rows: not a multiple of {self.row_multiple}")
    placed = jax.device_put(batch, self._batch_shardings)
    self.state, metrics = self._step(self.state, placed, self._frozen, self._reference)
    return {name: float(value) for name, value in jax.device_get(metrics).items()}

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state, to restore into."""
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.state, self._shardings
    )

  def compile_count(self) -> int:
    """Programs compiled for the step so far."""
    return self._step._cache_size()

  def _initial_state(self, start: Mapping[str, np.ndarray]) -> TrainState:
    params = {p: jax.device_put(x.copy(), self._shardings.params[p]) for p, x in start.items()}
    init = jax.jit(optimizer(self.config.optim).init, out_shardings=self._shardings.opt_state)
    # Two zeros, not one twice: each buffer is donated.
    step, skipped = (jax.device_put(np.int32(0), self._shardings.step) for _ in range(2))
    return TrainState(step, skipped, params, init(params))

  def _state_shardings(self, shard: Mapping[str, Any], flat: Mapping[str, Any]) -> TrainState:
    """Moments are split as their params, everything else is on every device."""
    whole = mesh_lib.replicated(self.mesh)
    shapes = {p: jax.ShapeDtypeStruct(np.shape(flat[p]), jnp.float32) for p in shard}
    opt = jax.eval_shape(optimizer(self.config.optim).init, shapes)

    def of(path, _):
      last = path[-1]
      is_param = isinstance(last, jax.tree_util.DictKey)
      return shard[last.key] if is_param else whole

    return TrainState(whole, whole, dict(shard), jax.tree_util.tree_map_with_path(of, opt))
