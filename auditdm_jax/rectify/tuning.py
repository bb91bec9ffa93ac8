# SPDX-License-Identifier: Apache-2.0
"""A fine-tuning's optimiser, which is that of big_vision's transfers, and its step on a mesh.

The optimiser (big_vision/optax.py, `make`), over the trained parameters alone:

1. Gradients are clipped by their global norm.
2. Adam, times the learning rate, times the multiplier of the parameter's part.
3. Weight decay is added to parameters named `kernel`, from the live parameters. No learning rate
   scales it: AdamW's weight decay of the same strength is wd / lr.
4. The schedule scales both, from 0 at step 0.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import multimodal, sharding
from auditdm_jax.rectify import recipes, supervised


def schedule(recipe: recipes.Recipe, steps: int) -> optax.Schedule:
  """Multiplier of the learning rate: linear from 0 over the warm-up, then a cosine to 0.

  big_vision/utils.py, `create_learning_rate_schedule`, with its rounding of the warm-up.
  """
  warmup = max(1, round(recipe.warmup * steps)) if recipe.warmup else 0

  def at(step: Any) -> jax.Array:
    progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    rate = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return rate * jnp.minimum(1.0, step / warmup) if warmup else rate

  return at


def optimizer(recipe: recipes.Recipe, steps: int) -> optax.GradientTransformation:
  """Returns what turns the gradients of the trained parameters into their updates."""
  rates = {rate for _, rate in recipe.parts if rate is not None} - {1.0}
  return optax.chain(
    optax.clip_by_global_norm(recipe.clip),
    optax.scale_by_adam(),
    optax.scale(recipe.lr),
    *(optax.masked(optax.scale(rate), _where(_has_rate(recipe, rate))) for rate in sorted(rates)),
    optax.add_decayed_weights(recipe.wd, mask=_where(lambda path: path.endswith("/kernel"))),
    optax.scale_by_schedule(schedule(recipe, steps)),
    optax.scale(-1.0),
  )


def _has_rate(recipe: recipes.Recipe, rate: float) -> Callable[[str], bool]:
  return lambda path: recipe.rate_of(path) == rate


def _where(holds: Callable[[str], bool]) -> Callable[[Any], Any]:
  """Returns what makes a tree of booleans from one of parameters, by their paths."""
  return functools.partial(
    jax.tree_util.tree_map_with_path, lambda path, _: holds(tree.path_str(path))
  )


def trains_tower(recipe: recipes.Recipe, params: Any) -> bool:
  """Returns whether the vision tower trains, so that a step needs pixels.

  Args:
    recipe: the recipe.
    params: a model's parameters, or their shapes.

  Raises:
    UserError: the recipe does not say whether a parameter is trained.
  """
  paths = [path for path in tree.flatten(params) if recipe.rate_of(path) is not None]
  return any(path.startswith("img/") and not path.startswith("img/head/") for path in paths)


def check_micro_rows(recipe: recipes.Recipe, mesh: jax.sharding.Mesh | None) -> None:
  """Checks that micro-batches divide over the devices; else each would compute others' rows.

  Raises:
    UserError: they do not.
  """
  shards = 1 if mesh is None else mesh_lib.row_shards(mesh)
  if recipe.micro_rows % shards:
    raise UserError(
      f"config.rectify.recipe.micro_rows={recipe.micro_rows}: must be a multiple of the {shards}"
      " devices that share a batch's rows"
    )


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
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """On a mesh, rows and masters are split as in `core.mesh` and `models.sharding`.

    The logits are not capped: big_vision trains PaliGemma without the cap of the released Gemma 2.

    Raises:
      UserError: the mesh does not divide the recipe's `micro_rows`.
    """
    check_micro_rows(recipe, mesh)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, final_softcap=0.0))
    self._tx, self._mesh = optimizer(recipe, steps), mesh
    self._method = supervised.Method(
      label_smoothing=recipe.label_smoothing,
      dropout=recipe.llm_dropout,
      seed=seed,
      micro_rows=recipe.micro_rows,
      trains=lambda path: recipe.rate_of(path) is not None,
    )
    self.step = supervised.make_step(
      config.with_remat() if recipe.remat else config,
      self._tx,
      method=self._method,
      out_shardings=None if mesh is None else self._step_shardings(config),
    )
    self._losses = jax.jit(
      functools.partial(supervised.row_losses, config, micro_rows=recipe.micro_rows),
      out_shardings=None if mesh is None else mesh_lib.replicated(mesh),
      compiler_options=runtime.PLAIN_KERNELS,
    )

  def init(self, params: Any) -> supervised.State:
    """Returns the state before the first step; `params` are copied."""
    if self._mesh is None:
      return self._fresh(params)
    where = self._shardings(params)
    return jax.jit(self._fresh, out_shardings=where)(runtime.place(params, where.params))

  def abstract_state(self, params: Any) -> supervised.State:
    """Shapes and shardings of the state on the mesh."""
    return mesh_lib.placed(jax.eval_shape(self._fresh, params), self._shardings(params))

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

  def _fresh(self, params: Any) -> supervised.State:
    return supervised.init_state(params, self._tx, method=self._method)

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
    shapes = jax.eval_shape(self._fresh, params)

    def of(path, _):
      # A moment's path ends in that of its param.
      known = (tree.path_str(path[i:]) for i in range(len(path)))
      return next((by_path[p] for p in known if p in by_path), mesh_lib.replicated(self._devices))

    return jax.tree_util.tree_map_with_path(of, shapes)
