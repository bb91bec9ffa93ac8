# SPDX-License-Identifier: Apache-2.0
"""The learner's programs and the layout of their arrays, from shapes alone.

Nothing here needs an array or a device that exists, so the same programs run, are compiled for
chips that are not there (`plan`), and are tested on a CPU.

Training and rollout may lie on different meshes of the same devices: the one splits rows and
parameters over all of them, the other keeps the heads of each layer where they are multiplied.
`to_sampler` goes from the one to the other.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models import sharding
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl.step import (
  FlatParams,
  StepConfig,
  TrainState,
  forward_logprobs,
  image_features,
  listed,
  optimizer,
  train_step,
)


class Programs:
  """Jitted `step`, `score` and `to_sampler`, and the shardings of what they take and give.

  Attributes:
    config: static settings of the step.
    mesh: of training.
    trains: paths of the params that train.
    trains_tower: whether the vision tower is among them.
    state: shardings of the train state.
    frozen: shardings of the params that do not train.
    reference: shardings of the initial auditor, or None without KL.
    sampler: shardings of the sampler's params.
    copies: whether the sampler's params are a copy.
    step: (state, batch, frozen, reference, lr) -> (state, metrics); the state is donated.
    score: (params, batch) -> log-probs of each part.
    to_sampler: params in the model's dtype, where the sampler wants them.
    rounded: params in the model's dtype.
  """

  def __init__(
    self,
    config: StepConfig,
    *,
    mesh: Mesh,
    rules: mesh_lib.Rules,
    params: Mapping[str, Any],
    rollout_mesh: Mesh | None = None,
  ):
    """Lays out `params`.

    Args:
      config: static settings of the step.
      mesh: devices; rows are split over them.
      rules: shardings of the params, see `core.mesh`; () = those of `models.sharding`.
      params: flat params of the whole auditor, or their shapes.
      rollout_mesh: other axes of the same devices for the sampler. None = as in training.

    Raises:
      UserError: `optim.frozen` leaves nothing to train, or the mesh does not divide
        `optim.micro_rows`.
    """
    optim, shards = config.optim, mesh_lib.row_shards(mesh)
    if optim.micro_rows % shards:
      raise UserError(
        f"optim.micro_rows={optim.micro_rows}: must be a multiple of the {shards} devices"
      )
    if optim.remat:
      config = dataclasses.replace(config, model=config.model.with_remat())
    self.config, self.mesh = config, mesh
    self._shapes = {p: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for p, x in params.items()}
    if rules:
      shard = tree_lib.flatten(mesh_lib.shardings(mesh, rules, params))
    else:
      shard = tree_lib.flatten(sharding.shardings(mesh, params))
    self.trains = tuple(filter(optim.trains, params))
    if not self.trains:
      raise UserError(f"optim.frozen={optim.frozen!r} matches every param: nothing would train")
    self.trains_tower = optim.trains_tower(params)
    self.frozen = {path: shard[path] for path in params if path not in set(self.trains)}
    self.state = self._state_shardings({path: shard[path] for path in self.trains})
    self.reference = self.state.params if config.grpo.kl_coef else None
    dtype = config.model.text.dtype
    by_sampler = shard
    if rollout_mesh is not None:
      by_sampler = tree_lib.flatten(sharding.shardings(rollout_mesh, params))
    self.copies = dtype != "float32" or rollout_mesh is not None
    self.sampler = by_sampler
    self.rounded = functools.partial(_rounded, dtype=dtype)
    self.to_sampler = jax.jit(self.rounded, out_shardings=by_sampler)
    self.step = jax.jit(
      functools.partial(train_step, config),
      in_shardings=(self.state, None, self.frozen, self.reference, mesh_lib.replicated(mesh)),
      out_shardings=(self.state, mesh_lib.replicated(mesh)),
      donate_argnums=0,
      compiler_options=runtime.PLAIN_KERNELS,
    )
    self.score = jax.jit(functools.partial(_score, config), compiler_options=runtime.PLAIN_KERNELS)

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state: to restore into, or to compile for."""
    return mesh_lib.placed(self._state_shapes(self.trains), self.state)

  def abstract_params(self) -> tuple[FlatParams, FlatParams, FlatParams | None]:
    """Shapes and shardings: masters of what trains, what is frozen, the initial auditor."""
    frozen = mesh_lib.placed({p: self._shapes[p] for p in self.frozen}, self.frozen)
    masters = self.abstract_state().params
    if self.reference is None:
      return masters, frozen, None
    return masters, frozen, mesh_lib.placed(jax.eval_shape(self.rounded, masters), self.reference)

  def batch_shardings(self, batch: batch_lib.LearnerBatch) -> batch_lib.LearnerBatch:
    """Rows are split; images too, where there is an equal number for every device."""

    def split(x):
      return mesh_lib.rows_sharding(self.mesh, x.shape[0])

    return jax.tree.map(split, batch)

  def _state_shapes(self, trains: Iterable[str]) -> TrainState:
    """Shapes of the state, whose masters are fp32."""
    params = {p: jax.ShapeDtypeStruct(self._shapes[p].shape, jnp.float32) for p in trains}

    def fresh(params):
      count = jnp.zeros((), jnp.int32)
      return TrainState(count, count, params, optimizer(self.config.optim).init(params))

    return jax.eval_shape(fresh, params)

  def _state_shardings(self, shard: Mapping[str, Any]) -> TrainState:
    """Moments are split as their params, everything else is on every device."""
    whole = mesh_lib.replicated(self.mesh)

    def of(path, _):
      last = path[-1]
      is_param = isinstance(last, jax.tree_util.DictKey)
      return shard[last.key] if is_param else whole

    return jax.tree_util.tree_map_with_path(of, self._state_shapes(shard))


def _score(
  config: StepConfig, params: FlatParams, batch: batch_lib.LearnerBatch
) -> tuple[jax.Array, ...]:
  """Log-probs f32[B,G,C] of each part, by the micro-batches of the step."""
  features, size = image_features(config, params, batch), config.optim.micro_rows
  params = listed(config, params)

  def of(parts: Sequence[batch_lib.Rows]) -> tuple[jax.Array, ...]:
    return tuple(logp for logp, _ in forward_logprobs(config, params, features, parts))

  def in_pieces(rows: batch_lib.Rows) -> jax.Array:
    if len(rows.image) <= size:
      return of([rows])[0]
    pieces = jax.lax.map(lambda piece: of([piece])[0], mesh_lib.cut_rows(rows, size))
    return mesh_lib.join_rows(pieces)

  return tuple(map(in_pieces, batch.parts)) if size else of(batch.parts)


def _rounded(params: FlatParams, *, dtype: str) -> FlatParams:
  """Params as the computation rounds them; it uses norms' scales and biases in fp32."""
  keep = ("scale", "bias")
  return {p: x if p.endswith(keep) else x.astype(dtype) for p, x in params.items()}
