# SPDX-License-Identifier: Apache-2.0
"""A fine-tuning's optimiser, which is that of big_vision's transfers, and its step on a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime, tree
from auditdm_jax.models import multimodal, sharding
from auditdm_jax.rectify import recipes, supervised


def schedule(recipe: recipes.Recipe, steps: int) -> optax.Schedule:
  """Multiplier of the learning rate: linear from 0 over the warm-up, then a cosine to 0."""
  warmup = max(int(recipe.warmup * steps), 1)
  return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, max(steps, warmup + 1))


def optimizer(recipe: recipes.Recipe, steps: int) -> optax.GradientTransformation:
  """Clip, Adam, learning rate, then weight decay on kernels that the learning rate does not scale.

  The vision tower is always frozen (its features are cached); `recipe.freeze` can name more. The
  order is that of big_vision/optax.py.
  """
  tuned = optax.chain(
    optax.clip_by_global_norm(recipe.clip),
    optax.scale_by_adam(),
    optax.scale(recipe.lr),
    optax.add_decayed_weights(recipe.wd, mask=_kernels),
    optax.scale_by_schedule(schedule(recipe, steps)),
    optax.scale(-1.0),
  )

  def labels(params):
    def label(path, _):
      part, name = path[0].key, path[1].key
      frozen = part in recipe.freeze or (part == "img" and name != "head")
      return "frozen" if frozen else "tuned"

    return jax.tree_util.tree_map_with_path(label, params)

  return optax.multi_transform({"tuned": tuned, "frozen": optax.set_to_zero()}, labels)


def _kernels(params: Any) -> Any:
  """Returns True for parameters named `kernel`; the parameters of Gemma have other names."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def trains_tower(recipe: recipes.Recipe, params: Any) -> bool:
  return False


def _row_losses(config: multimodal.VlmConfig, params: Any, batch: supervised.Batch) -> jax.Array:
  return supervised.loss_sum(config, params, batch, label_smoothing=0.0)[1]


class Tuning:
  """The step of a fine-tuning and the layout of its state, from shapes alone.

  Attributes:
    step: (state, batch) -> (state, metrics); the state is donated.
  """

  def __init__(
    self,
    config: multimodal.VlmConfig,
    recipe: recipes.Recipe,
    *,
    steps: int,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """On a mesh, rows and masters are split as in `core.mesh` and `models.sharding`.

    The logits are not capped: big_vision trains PaliGemma without the cap of the released Gemma 2.
    """
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, final_softcap=0.0))
    self._tx, self._mesh = optimizer(recipe, steps), mesh
    self.step = supervised.make_step(
      config.with_remat() if recipe.remat else config,
      self._tx,
      label_smoothing=recipe.label_smoothing,
      micro_rows=recipe.micro_rows,
      out_shardings=None if mesh is None else self._step_shardings(config),
    )
    self._losses = jax.jit(
      functools.partial(_row_losses, config),
      out_shardings=None if mesh is None else mesh_lib.replicated(mesh),
    )

  def init(self, params: Any) -> supervised.State:
    """Returns the state before the first step; `params` are copied."""
    if self._mesh is None:
      return supervised.init_state(params, self._tx)
    make, where = functools.partial(supervised.init_state, tx=self._tx), self._shardings(params)
    return jax.jit(make, out_shardings=where)(runtime.place(params, where.params))

  def abstract_state(self, params: Any) -> supervised.State:
    """Shapes and shardings of the state on the mesh."""
    shapes = jax.eval_shape(functools.partial(supervised.init_state, tx=self._tx), params)
    return mesh_lib.placed(shapes, self._shardings(params))

  def place(self, batch: supervised.Batch) -> supervised.Batch:
    """Returns the batch on the mesh."""
    if self._mesh is None:
      return batch
    mesh = self._mesh
    where = jax.tree.map(lambda x: mesh_lib.rows_sharding(mesh, len(x)), batch)
    return runtime.place(batch, where)

  def update(
    self, state: supervised.State, batch: supervised.Batch
  ) -> tuple[supervised.State, dict[str, jax.Array]]:
    """One step."""
    with mesh_lib.use(self._mesh):
      return self.step(state, self.place(batch))

  def row_losses(self, params: Any, batch: supervised.Batch) -> np.ndarray:
    """Returns f32[B], without label smoothing and dropout."""
    with mesh_lib.use(self._mesh):
      return np.asarray(self._losses(params, self.place(batch)))

  @property
  def _devices(self) -> jax.sharding.Mesh:
    if self._mesh is None:
      raise ValueError("one device has no shardings")
    return self._mesh

  def _step_shardings(self, config: multimodal.VlmConfig) -> tuple[Any, Any]:
    shapes = jax.eval_shape(functools.partial(multimodal.init, config), jax.random.key(0))
    return self._shardings(shapes), mesh_lib.replicated(self._devices)

  def _shardings(self, params: Any) -> supervised.State:
    """Moments lie as their params, everything else on every device."""
    by_path = tree.flatten(sharding.shardings(self._devices, params))
    shapes = jax.eval_shape(functools.partial(supervised.init_state, tx=self._tx), params)

    def of(path, _):
      # A moment's path ends in that of its param.
      known = (tree.path_str(path[i:]) for i in range(len(path)))
      return next((by_path[p] for p in known if p in by_path), mesh_lib.replicated(self._devices))

    return jax.tree_util.tree_map_with_path(of, shapes)
