# SPDX-License-Identifier: Apache-2.0
"""The scenes backend of the image service: exact images, with a seeded rate of unfaithful ones."""

import dataclasses

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.scenes import language, render, world
from auditdm_jax.scenes.world import SCENES, Language, Scene


class ScenesBackend:
  """Draws captions and edits exactly (images.backend.Backend).

  Args:
    language: of the world.
    error_rate: share of images in which one attribute of one object is wrong, as a generative
      model would have it.
    seed: makes the errors reproducible; the same request always gives the same image.
  """

  def __init__(self, language: Language = SCENES, *, error_rate: float = 0.0, seed: int = 0):
    if not 0.0 <= error_rate <= 1.0:
      raise ValueError(f"error_rate is a share between 0 and 1, not {error_rate}")
    self.language, self.error_rate, self.seed = language, error_rate, seed

  def info(self) -> dict[str, str]:
    return {"name": self.language.name, "error_rate": str(self.error_rate), "seed": str(self.seed)}

  def generate(self, prompts: list[str], seeds: list[int], *, width: int, height: int) -> list:
    """Returns u8[H,W,3] or the exception of each caption."""
    size = render.pixels(self.language)
    if (width, height) != (size, size):
      error = ValueError(f"{self.language.name}: images are {size}x{size}, not {width}x{height}")
      return [error] * len(prompts)
    return [self._attempt(self._generate, *item) for item in zip(prompts, seeds, strict=True)]

  def edit(self, images: list[np.ndarray], instructions: list[str], seeds: list[int]) -> list:
    """u8[H,W,3] or the exception of each instruction; pixels outside the edit stay the same."""
    items = zip(images, instructions, seeds, strict=True)
    return [self._attempt(self._edit, *item) for item in items]

  def _attempt(self, draw, *item):
    try:
      return draw(*item)
    except ValueError as error:
      return error

  def _generate(self, prompt, seed):
    scene = language.read_caption(prompt, seed, self.language)
    return render.render(self._unfaithful(scene, seed), seed)

  def _edit(self, image, instruction, seed):
    before = render.parse(image, self.language)
    after = self._unfaithful(language.read_edit(instruction, before), seed)
    return render.redraw(image, before, after, seed)

  def _unfaithful(self, scene: Scene, seed: int) -> Scene:
    rng = streams.rng(self.seed, "unfaithful", seed)
    if rng.random() >= self.error_rate:
      return scene
    objects = list(scene.objects)
    i = int(rng.integers(len(objects)))
    field, options = [
      ("color", self.language.colors),
      ("shape", self.language.shapes),
      ("size", world.SIZES),
    ][int(rng.integers(3))]
    wrong = [w for w in options if w not in dataclasses.asdict(objects[i]).values()]
    objects[i] = dataclasses.replace(objects[i], **{field: wrong[int(rng.integers(len(wrong)))]})
    return dataclasses.replace(scene, objects=tuple(objects))
