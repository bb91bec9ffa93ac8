# SPDX-License-Identifier: Apache-2.0
"""The programs of a config as functions of devices: shapes and shardings, and no array.

    reshard                     masters -> the sampler's copy
    encode NAME xROWS           pixels -> features of a vision tower
    sample KIND [again]         prompts and features -> completions of the auditor
    answer NAME xROWS           questions and features -> answers of target and references
    score                       log-probs of the policy of the rollout, if it is updated often
    train                       one update
    repair                      one step of fine-tuning the target

Each is the jitted function that the run itself calls, with the shapes that it would call it with.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from auditdm_jax import vlm_programs
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.models import decode, int8, multimodal, sharding
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.plan.child import Built
from auditdm_jax.rectify import recipes, supervised, tuning
from auditdm_jax.rl import sampler, shapes
from auditdm_jax.rl.batch import LearnerBatch, Rows
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.programs import Programs
from auditdm_jax.rl.step import OptimConfig, StepConfig

Devices = Sequence[jax.Device]


@dataclasses.dataclass(frozen=True)
class MeshLayout:
  """Axes of the meshes and rules of the params, see `rl.programs`.

  Attributes:
    mesh: {axis: size} of training.
    rollout: {axis: size} of everything else; empty = the mesh of training, whose rules then hold
      for the auditor alone.
    rules: sharding rules of the auditor's masters; () = those of the models.
    repair: {axis: size} of the target's repair; empty = the mesh of training.
  """

  mesh: Mapping[str, int]
  rollout: Mapping[str, int] = dataclasses.field(default_factory=dict)
  rules: mesh_lib.Rules = ()
  repair: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def meshes(self, devices: Devices) -> tuple[Mesh, Mesh]:
    """Of training, and of the rollout."""
    mesh = mesh_lib.make_mesh(self.mesh, devices=devices)
    return mesh, mesh_lib.reshaped(mesh, self.rollout) if self.rollout else mesh

  def repair_mesh(self, devices: Devices) -> Mesh:
    """Returns the mesh of the repair."""
    mesh = self.meshes(devices)[0]
    return mesh_lib.reshaped(mesh, self.repair) if self.repair else mesh

  def rollout_mesh(self, devices: Devices) -> Mesh | None:
    """Returns the second mesh, or None if there is one only."""
    return self.meshes(devices)[1] if self.rollout else None


@dataclasses.dataclass(frozen=True)
class Auditor:
  """What training and sampling need."""

  model: VlmConfig
  grpo: GrpoConfig
  optim: OptimConfig
  layout: MeshLayout
  calls: shapes.Calls

  @property
  def step_config(self) -> StepConfig:
    # The image token, and the ones around it.
    return StepConfig(self.model, self.grpo, self.optim, banned=(0, 1, 2, 3))


def train(devices: Devices, auditor: Auditor) -> Built:
  programs = _programs(devices, auditor)
  _, frozen, reference = programs.abstract_params()
  state = programs.abstract_state()
  lr = jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh_lib.replicated(programs.mesh))
  args = (state, _batch(programs, auditor), frozen, reference, lr)
  return Built(programs.step, args, programs.mesh, (state, frozen, reference))


def score(devices: Devices, auditor: Auditor) -> Built:
  programs = _programs(devices, auditor)
  masters, frozen, _ = programs.abstract_params()
  args = (frozen | masters, _batch(programs, auditor))
  return Built(programs.score, args, programs.mesh, masters)


def reshard(devices: Devices, auditor: Auditor) -> Built:
  programs = _programs(devices, auditor)
  masters, frozen, _ = programs.abstract_params()
  shapes = jax.eval_shape(programs.to_sampler, frozen | masters)
  copy = mesh_lib.placed(shapes, programs.sampler)
  return Built(programs.to_sampler, (frozen | masters,), programs.mesh, (frozen, masters, copy))


def sample(devices: Devices, auditor: Auditor, *, call: shapes.SampleCall) -> Built:
  programs = _programs(devices, auditor)
  masters, frozen, _ = programs.abstract_params()
  mesh = auditor.layout.meshes(devices)[1]
  shards = mesh_lib.row_shards(mesh)
  prompts = -(-call.prompts // shards) * shards  # As the sampler fills them up.
  shapes = jax.eval_shape(programs.to_sampler, frozen | masters)
  params = tree_lib.unflatten(mesh_lib.placed(shapes, programs.sampler))
  vision = auditor.model.tower
  features = _rows(mesh, (prompts, vision.num_patches, vision.width), jnp.float32)
  tokens, valid = (_rows(mesh, (prompts, call.width), dtype) for dtype in (jnp.int32, jnp.bool))
  settings = decode.SampleConfig(call.new, auditor.grpo.temperature, (1, 106), (0, 2, 3))
  small = [((2,), jnp.uint32), ((), jnp.int32), ((prompts,), jnp.int32)]
  rest = [_whole(mesh, *x) for x in [*small, ((prompts, call.group), jnp.int32)]]
  args = (auditor.model, settings, params, features, tokens, valid, *rest)
  return Built(sampler.sample_rows, args, mesh, params)


def encode(
  devices: Devices, model: VlmConfig, *, layout: MeshLayout, images: int, dtype: str
) -> Built:
  """`dtype` is that of the kept parameters."""
  mesh, vision = layout.meshes(devices)[1], model.tower
  tower = multimodal.tower(_model(mesh, model, dtype))
  axes = mesh.axis_names
  pixels = _rows(mesh, (images, vision.image_size, vision.image_size, 3), jnp.float32, axes=axes)
  return Built(vlm_programs.encode_images, (vision, tower, pixels), mesh, tower)


def answer(
  devices: Devices,
  model: VlmConfig,
  *,
  layout: MeshLayout,
  rows: tuple[int, int],
  widths: tuple[int, int],
  new: int,
  dtype: str,
  quantized: bool = False,
) -> Built:
  """Rows and prompts of each; tokens of a prompt, or of its head and of the rest (else 0)."""
  mesh, vision = layout.meshes(devices)[1], model.tower
  features = _rows(mesh, (rows[0], vision.num_patches, vision.width), jnp.float32)
  kinds = (jnp.int32, jnp.bool)
  tokens, valid = (_rows(mesh, (rows[0], widths[0]), kind) for kind in kinds)
  own = None
  if widths[1]:
    ends: list[Any] = [_rows(mesh, (*rows, widths[1]), kind) for kind in kinds]
    own = decode.Tails(*ends)
  names, seed = _rows(mesh, rows, jnp.int32), _whole(mesh, (), jnp.int32)
  settings = decode.SampleConfig(new, 0.0, (1,))
  params = _model(mesh, model, dtype, quantized=quantized)
  args = (model, settings, params, features, tokens, valid, names, seed, None, None, own)
  return Built(vlm_programs.sample_answers, args, mesh, params)


def read(
  devices: Devices, model: VlmConfig, *, layout: MeshLayout, rows: int, width: int, dtype: str
) -> Built:
  """Rows of questions, each of so many tokens, image included."""
  mesh, vision = layout.meshes(devices)[1], model.tower
  features = _rows(mesh, (rows, vision.num_patches, vision.width), jnp.float32)
  tokens, valid = (_rows(mesh, (rows, width), kind) for kind in (jnp.int32, jnp.bool))
  params = _model(mesh, model, dtype)
  args = (model, params, features, tokens, valid, _rows(mesh, (rows, 1), jnp.int32))
  return Built(vlm_programs.states, args, mesh, params)


def repair(
  devices: Devices,
  model: VlmConfig,
  *,
  recipe: recipes.Recipe,
  layout: MeshLayout,
  length: int,
  suffix: int,
) -> Built:
  mesh, vision, n = layout.repair_mesh(devices), model.tower, recipe.batch_size
  tune = tuning.Tuning(model, recipe, steps=1000, mesh=mesh)
  ints = dict.fromkeys(("tokens", "ar"), (jnp.int32, (n, length)))
  ints |= dict.fromkeys(("position", "targets"), (jnp.int32, (n, suffix)))
  images = (jnp.float16, (n, vision.num_patches, vision.width))
  if tuning.trains_tower(recipe, _shapes(model)):
    images = (jnp.uint8, (n, vision.image_size, vision.image_size, 3))
  shapes = ints | {
    "images": images,
    "valid": (jnp.bool, (n, length)),
    "mask": (jnp.bool, (n, suffix)),
  }
  rows = {k: _rows(mesh, shape, dtype) for k, (dtype, shape) in shapes.items()}
  batch = supervised.Batch(image=None, **rows)
  state = tune.abstract_state(_shapes(model))
  return Built(tune.step, (state, batch), mesh, state)


def is_small(model: VlmConfig) -> bool:
  """Returns whether its calls are padded as small models' are, see `vlm_batching.call_sizes`."""
  return multimodal.is_small(_shapes(model))


@functools.lru_cache(maxsize=8)
def _shapes(model: VlmConfig) -> Any:
  return jax.eval_shape(lambda key: multimodal.init(model, key), jax.random.key(0))


def _model(mesh: Mesh, model: VlmConfig, dtype: str, *, quantized: bool = False) -> Any:
  """Returns a model as `load_vlm` places it."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), _shapes(model))
  shapes = jax.eval_shape(int8.quantize, shapes) if quantized else shapes
  return mesh_lib.placed(shapes, sharding.shardings(mesh, shapes))


def _programs(devices: Devices, auditor: Auditor) -> Programs:
  layout = auditor.layout
  return Programs(
    auditor.step_config,
    mesh=layout.meshes(devices)[0],
    rules=layout.rules,
    params=tree_lib.flatten(_shapes(auditor.model)),
    rollout_mesh=layout.rollout_mesh(devices),
  )


def _batch(programs: Programs, auditor: Auditor) -> LearnerBatch:
  """Returns the learner's batch, as `rl.packing` makes it."""
  vision, images = auditor.model.tower, auditor.calls.images
  shape = (images, vision.num_patches, vision.width)
  pixels = (images, vision.image_size, vision.image_size, 3)
  tower = programs.trains_tower
  shown: Any = jax.ShapeDtypeStruct(pixels if tower else shape, jnp.float32)
  batch = LearnerBatch(
    features=None if tower else shown,
    pixels=shown if tower else None,
    parts=tuple(map(_part, auditor.calls.parts)),
  )
  return mesh_lib.placed(batch, programs.batch_shardings(batch))


def _part(part: shapes.Part) -> Rows:
  def of(dtype, *shape) -> Any:
    return jax.ShapeDtypeStruct((part.rows, *shape), dtype)

  tokens = (part.per_row, part.completion)
  return Rows(
    image=of(jnp.int32),
    prompt=of(jnp.int32, part.prompt),
    prompt_valid=of(jnp.bool, part.prompt),
    targets=of(jnp.int32, *tokens),
    loss_mask=of(jnp.bool, *tokens),
    advantages=of(jnp.float32, part.per_row),
    logp_sampler=of(jnp.float32, *tokens),
  )


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *, axes=None) -> jax.ShapeDtypeStruct:
  where = mesh_lib.rows_sharding(mesh, shape[0], axes=axes)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.replicated(mesh))
