# SPDX-License-Identifier: Apache-2.0
"""The learner: the train state on a mesh, and the one program that updates it.

Params and state are placed by the rules of the config and never leave the devices. Weights of the
initial auditor stay there only while the KL is on.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models import multimodal
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl.step import (
  TOWER,
  FlatParams,
  OptimConfig,
  StepConfig,
  TrainState,
  forward_logprobs,
  image_features,
  optimizer,
  train_step,
)


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
    sampler_rules: mesh_lib.Rules | None = None,
  ):
    """Places the initial auditor.

    Args:
      cfg: the auditor's architecture; its dtype is that of the computation.
      grpo: the loss.
      optim: the optimiser.
      mesh: devices; rows are split over all its axes.
      rules: shardings of the params, see `core.mesh`.
      params: tree of the initial auditor's weights; copied.
      banned: ids that are never sampled.
      sampler_rules: shardings of `sampling_params`; None = `rules`.

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
    self.trains_tower = any(re.search(TOWER, path) for path in trains)
    self._frozen = {
      path: jax.device_put(flat[path], shard[path]) for path in flat if path not in set(trains)
    }
    self._shardings = self._state_shardings({path: shard[path] for path in trains}, flat)
    start = {path: flat[path] for path in trains}
    self.state = self._initial_state(start)
    rounded = functools.partial(_rounded, dtype=cfg.text.dtype)
    self._reference, reference_shardings = None, None
    if grpo.kl_coef:
      reference_shardings = self._shardings.params
      self._reference = jax.jit(rounded, out_shardings=reference_shardings)(start)
    frozen_shardings = {path: shard[path] for path in self._frozen}
    by_sampler = shard if sampler_rules is None else mesh_lib.shardings(mesh, sampler_rules, flat)
    self._copies = cfg.text.dtype != "float32" or sampler_rules is not None
    self._to_sampler = jax.jit(rounded, out_shardings=by_sampler)
    self._step = jax.jit(
      functools.partial(train_step, self.config),
      in_shardings=(self._shardings, None, frozen_shardings, reference_shardings),
      out_shardings=(self._shardings, mesh_lib.replicated(mesh)),
      donate_argnums=0,
    )
    self._score = jax.jit(functools.partial(_score, self.config))

  @property
  def params(self) -> dict[str, Any]:
    """The fp32 masters as a tree. Do not keep it: the next update donates it."""
    return tree_lib.unflatten(self._frozen | self.state.params)

  def sampling_params(self) -> dict[str, Any]:
    """The auditor for the sampler: in the model's dtype, by the sampler's rules; not to be kept."""
    if not self._copies:
      return self.params
    return tree_lib.unflatten(self._to_sampler(self._frozen | self.state.params))

  def params_of(self, state: TrainState) -> dict[str, Any]:
    """The auditor of another state, such as a restored one, as a tree."""
    return tree_lib.unflatten(self._frozen | state.params)

  def padded(self, rows: int) -> int:
    """How many rows a part of `rows` rows must be padded to."""
    return batch_lib.padded(rows, devices=self.mesh.size, micro_rows=self.config.optim.micro_rows)

  def update(self, batch: batch_lib.LearnerBatch) -> dict[str, float]:
    """The updates of one rollout, from host arrays; blocks until the metrics are there.

    Returns:
      Metrics of the first update, which compares the sampler with the policy it drew from; what
      was clipped is that of the last.

    Raises:
      ValueError: a part has a number of rows that `padded` does not return, or the batch lacks
        what the tower needs.
    """
    placed = self._place(batch)
    if self.config.grpo.updates > 1:
      old = self._score(self._frozen | self.state.params, placed)
      parts = (dataclasses.replace(rows, logp_old=x) for rows, x in zip(placed.parts, old))
      placed = dataclasses.replace(placed, parts=tuple(parts))
    metrics = []
    for _ in range(self.config.grpo.updates):
      self.state, row = self._step(self.state, placed, self._frozen, self._reference)
      metrics.append(row)
    first, last = jax.device_get((metrics[0], metrics[-1]))
    first |= {name: last[name] for name in ("clipped_share", "skipped_steps")}
    return {name: float(value) for name, value in first.items()}

  def logprobs(self, batch: batch_lib.LearnerBatch) -> tuple[jax.Array, ...]:
    """f32[N,G,C] of each part, by the policy as it is."""
    return self._score(self._frozen | self.state.params, self._place(batch))

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state, to restore into."""
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.state, self._shardings
    )

  def compile_count(self) -> int:
    """Programs compiled for the step so far."""
    return self._step._cache_size()

  def _place(self, batch: batch_lib.LearnerBatch) -> batch_lib.LearnerBatch:
    """On the devices: rows are split, features are everywhere, pixels are split if they can be."""
    if (batch.features is None) == (batch.pixels is None) or self.trains_tower == (
      batch.pixels is None
    ):
      need = "pixels, since the tower trains" if self.trains_tower else "features of the tower"
      raise ValueError(f"the batch must have {need}, and nothing else")
    for rows in batch.parts:
      if len(rows.image) != self.padded(len(rows.image)):
        raise ValueError(
          f"{len(rows.image)} rows: not a multiple of {self.mesh.size} devices and of "
          f"optim.micro_rows={self.config.optim.micro_rows}"
        )
    split, whole = mesh_lib.batch_sharding(self.mesh), mesh_lib.replicated(self.mesh)
    even = batch.pixels is not None and len(batch.pixels) % self.mesh.size == 0
    return batch_lib.LearnerBatch(
      features=jax.device_put(batch.features, whole),
      pixels=jax.device_put(batch.pixels, split if even else whole),
      parts=jax.device_put(batch.parts, split),
    )

  def _masters(self, start: Mapping[str, Any]) -> FlatParams:
    """fp32 copies on the devices: buffers of their own, since those of the state are donated."""

    def copy(params):
      return jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)

    return jax.jit(copy, out_shardings=self._shardings.params)(dict(start))

  def _initial_state(self, start: Mapping[str, Any]) -> TrainState:
    params = self._masters(start)
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


def _score(
  cfg: StepConfig, params: FlatParams, batch: batch_lib.LearnerBatch
) -> tuple[jax.Array, ...]:
  """Log-probs f32[N,G,C] of each part."""
  features = image_features(cfg, params, batch)
  return tuple(forward_logprobs(cfg, params, features, rows)[0] for rows in batch.parts)


def _rounded(params: FlatParams, *, dtype: str) -> FlatParams:
  """Params as the computation rounds them; it uses norms' scales and biases in fp32."""
  keep = ("scale", "bias")
  return {p: x if p.endswith(keep) else x.astype(dtype) for p, x in params.items()}
