# SPDX-License-Identifier: Apache-2.0
"""The vision tower of a drawn world: it learns to name what each cell holds.

One linear head per attribute reads each token, which stands for a cell. The tower is shared by all
models of the world and frozen from then on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from auditdm_jax.core import metrics, streams
from auditdm_jax.core.config import check
from auditdm_jax.models import multimodal, siglip
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.scenes import world
from auditdm_jax.scenes.mix import Mix
from auditdm_jax.scenes.world import SCENES, Language


@dataclasses.dataclass(frozen=True)
class VisionSpec:
  """The tower's shape and its training.

  Attributes:
    model: its shape.
    seed: of its parameters, scenes and batches.
    scenes: how many there are; a twentieth of them, at least a batch, are held out.
    batch: images per step.
    steps: of Adam.
    lr: peak learning rate.
  """

  model: siglip.SiglipConfig
  seed: int
  scenes: int
  batch: int
  steps: int
  lr: float

  def __post_init__(self):
    check(vars(self), "vision", "seed", least=0, below=2**32)


def heads(language: Language) -> dict[str, tuple[str | int | None, ...]]:
  """Head -> its classes, of which a cell has one; a head with a single class is left out."""
  classes: dict[str, tuple] = {
    "kind": ("nothing", "object", "dial", "gauge"),
    "shape": language.shapes,
    "color": language.colors,
    "size": world.SIZES,
    "digit": (None, *world.DIGITS),
    "reading": world.READINGS,
    "level": world.LEVELS,
    "background": world.BACKGROUNDS,
    "row": language.ordinals,
    "column": language.ordinals,
    "texture": language.textures,
    "walled": (False, True) if language.walls else (),
  }
  return {head: words for head, words in classes.items() if words}


def cell_labels(scene: world.Scene) -> dict[str, np.ndarray]:
  """Returns the class i32[P] of every cell by head; -1 where a head does not apply."""
  language = scene.language
  classes = heads(language)
  out = {head: np.full(language.cells, -1, np.int32) for head in classes}
  out["kind"][:] = 0
  out["background"][:] = world.BACKGROUNDS.index(scene.background)
  out["row"][:], out["column"][:] = np.divmod(np.arange(language.cells), language.grid)
  for o in scene.objects:
    out["kind"][o.cell] = 1
    for head, value in vars(o).items():
      if head in classes:
        out[head][o.cell] = classes[head].index(value)
  if scene.dial:
    out["kind"][scene.dial.cell] = 2
    out["reading"][scene.dial.cell] = world.READINGS.index(scene.dial.value)
  if scene.gauge:
    out["kind"][scene.gauge.cell] = 3
    out["level"][scene.gauge.cell] = world.LEVELS.index(scene.gauge.value)
  return out


def init_key(seed: int) -> jax.Array:
  """Returns the key that a model's parameters are drawn with."""
  return jax.random.wrap_key_data(jnp.asarray(streams.key_data(seed, "init")))


def train_tower(spec: VisionSpec, config: VlmConfig, language: Language = SCENES):
  """Trains the tower of `config`; returns its params (img/ without the projector) and accuracy."""
  mix = Mix(seed=spec.seed, scenes=spec.scenes, language=language)
  classes = heads(language)
  told = [cell_labels(s) for s in mix.all_scenes]
  labels = {h: np.stack([x[h] for x in told]) for h in classes}
  images = mix.pixels(0, spec.scenes)
  key = jax.random.wrap_key_data(jnp.asarray(streams.key_data(spec.seed, "heads")))
  params = multimodal.tower(multimodal.init(config, init_key(spec.seed)))
  readouts = {
    h: 0.02 * jax.random.normal(jax.random.fold_in(key, i), (config.tower.width, len(words)))
    for i, (h, words) in enumerate(classes.items())
  }
  tx = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(spec.lr, spec.steps))
  )

  def loss_fn(train, pixels, target):
    features = multimodal.encode_images(config, {"img": train["img"]}, pixels)
    loss, right = 0.0, {}
    for h in classes:
      logits = features @ train["heads"][h]
      mask = target[h] >= 0
      nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target[h], 0))
      loss += jnp.sum(nll * mask) / jnp.maximum(mask.sum(), 1)
      right[h] = jnp.sum((logits.argmax(-1) == target[h]) * mask) / jnp.maximum(mask.sum(), 1)
    return loss, right

  @jax.jit
  def step(train, opt_state, pixels, target):
    (loss, right), grads = jax.value_and_grad(loss_fn, has_aux=True)(train, pixels, target)
    updates, opt_state = tx.update(grads, opt_state, train)
    return optax.apply_updates(train, updates), opt_state, loss, right

  train = {"img": params, "heads": readouts}
  opt_state = tx.init(train)
  held = max(spec.scenes // 20, spec.batch)
  progress = metrics.Progress(spec.steps, "vision tower")
  for i in range(spec.steps):
    pick = streams.rng(spec.seed, "tower", i).integers(held, spec.scenes, size=spec.batch)
    train, opt_state, loss, _ = step(
      train, opt_state, _to_float(images[pick]), {h: v[pick] for h, v in labels.items()}
    )
    progress.update(i + 1, loss=float(loss))
  progress.close()
  _, right = jax.jit(loss_fn)(
    train, _to_float(images[:held]), {h: v[:held] for h, v in labels.items()}
  )
  return train["img"], {h: float(v) for h, v in right.items()}


def _to_float(images: np.ndarray) -> np.ndarray:
  return images.astype(np.float32) / 127.5 - 1.0
