# SPDX-License-Identifier: Apache-2.0
"""The learner: the train state on a mesh, and the one program that updates it.

Params and state are placed by the rules of the config and never leave the devices. Weights of the
initial auditor stay there only while the KL is on.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.models import multimodal
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl.programs import Programs
from auditdm_jax.rl.step import OptimConfig, StepConfig, TrainState, learning_rate, optimizer


class Learner:
  """Owns the train state on the mesh."""

  def __init__(
    self,
    config: multimodal.VlmConfig,
    grpo: grpo_lib.GrpoConfig,
    *,
    optim: OptimConfig,
    mesh: jax.sharding.Mesh,
    rules: mesh_lib.Rules,
    params: Mapping[str, Any],
    banned: tuple[int, ...] = (),
    rollout_mesh: jax.sharding.Mesh | None = None,
  ):
    """Places the initial auditor.

    Args:
      config: the auditor's architecture; its dtype is that of the computation.
      grpo: the loss.
      optim: the optimiser.
      mesh: devices; rows are split over them, see `core.mesh`.
      rules: shardings of the params, see `Programs`.
      params: tree of the initial auditor's weights; copied.
      banned: ids that are never sampled.
      rollout_mesh: see `Programs`.

    Raises:
      UserError: as `Programs`.
    """
    flat = tree_lib.flatten(params)
    self.config = StepConfig(config, grpo, optim, tuple(banned))
    self._programs = Programs(
      self.config, mesh=mesh, rules=rules, params=flat, rollout_mesh=rollout_mesh
    )
    self.mesh, self.rollout_mesh = mesh, rollout_mesh or mesh
    self.trains_tower = self._programs.trains_tower
    self._frozen = {p: runtime.place(flat[p], s) for p, s in self._programs.frozen.items()}
    where = self._programs.state.params
    start = {path: runtime.place(flat[path], where[path]) for path in self._programs.trains}
    self.state = self._initial_state(start)
    self._reference = None
    if grpo.kl_coef:
      place = jax.jit(self._programs.rounded, out_shardings=self._programs.reference)
      self._reference = place(start)

  @property
  def params(self) -> dict[str, Any]:
    """The fp32 masters as a tree. Do not keep it: the next update donates it."""
    return tree_lib.unflatten(self._frozen | self.state.params)

  def sampling_params(self) -> dict[str, Any]:
    """The auditor for the sampler: in the model's dtype, by the sampler's rules; not to be kept."""
    if not self._programs.copies:
      return self.params
    return tree_lib.unflatten(self._programs.to_sampler(self._frozen | self.state.params))

  def per_row(self, prompts: int) -> int:
    """How many completions of each of so many prompts share a row."""
    shards, group = mesh_lib.row_shards(self.mesh), self.config.grpo.group_size
    return self.config.optim.per_row(group, prompts=prompts, devices=shards)

  def padded(self, rows: int) -> int:
    """How many rows a part of `rows` rows must be padded to."""
    shards = mesh_lib.row_shards(self.mesh)
    return batch_lib.padded(rows, devices=shards, micro_rows=self.config.optim.micro_rows)

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
      old = self._score(placed)
      parts = (dataclasses.replace(rows, logp_old=x) for rows, x in zip(placed.parts, old))
      placed = dataclasses.replace(placed, parts=tuple(parts))
    rollout = int(runtime.fetch(self.state.step)) // self.config.grpo.updates
    lr = np.float32(learning_rate(self.config.optim, rollout))
    metrics = []
    for _ in range(self.config.grpo.updates):
      with mesh_lib.use(self.mesh):
        self.state, row = self._programs.step(self.state, placed, self._frozen, self._reference, lr)
      metrics.append(row)
    first, last = jax.device_get((metrics[0], metrics[-1]))
    first |= {name: last[name] for name in ("clipped_share", "skipped_steps")}
    return {name: float(value) for name, value in first.items()}

  def logprobs(self, batch: batch_lib.LearnerBatch) -> tuple[jax.Array, ...]:
    """f32[B,G,C] of each part, by the policy as it is."""
    return self._score(self._place(batch))

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state, to restore into."""
    return self._programs.abstract_state()

  def compile_count(self) -> int:
    """Programs compiled for the step so far."""
    return runtime.programs(self._programs.step)

  def _place(self, batch: batch_lib.LearnerBatch) -> batch_lib.LearnerBatch:
    """On the devices."""
    if (batch.features is None) == (batch.pixels is None) or self.trains_tower == (
      batch.pixels is None
    ):
      need = "pixels, since the tower trains" if self.trains_tower else "features of the tower"
      raise ValueError(f"the batch must have {need}, and nothing else")
    shards = mesh_lib.row_shards(self.mesh)
    for rows in batch.parts:
      if len(rows.image) != self.padded(len(rows.image)):
        raise ValueError(
          f"{len(rows.image)} rows: not a multiple of {shards} devices and of "
          f"optim.micro_rows={self.config.optim.micro_rows}"
        )
    return runtime.place(batch, self._programs.batch_shardings(batch))

  def _score(self, placed: batch_lib.LearnerBatch) -> tuple[jax.Array, ...]:
    with mesh_lib.use(self.mesh):
      return self._programs.score(self._frozen | self.state.params, placed)

  def _initial_state(self, start: Mapping[str, Any]) -> TrainState:
    """fp32 copies on the devices: buffers of their own, since those of the state are donated."""
    where = self._programs.state

    def copy(params):
      return jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)

    params = jax.jit(copy, out_shardings=where.params)(dict(start))
    init = jax.jit(optimizer(self.config.optim).init, out_shardings=where.opt_state)
    # Two zeros, not one twice: each buffer is donated.
    step, skipped = (runtime.place(np.int32(0), where.step) for _ in range(2))
    return TrainState(step, skipped, params, init(params))
