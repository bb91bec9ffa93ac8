# SPDX-License-Identifier: Apache-2.0
r"""An image backend of one's own: a camera with noise, in front of the scenes renderer.

COMMAND
  python -m auditdm_jax train --config=configs/ablations/first.py --workdir=runs/own_image_backend \
    --config.images.backend=examples.own_image_backend:backend --config.rollout.prompts.edit=8

The run starts the image service with it. `serve-images` in place of `train` serves it alone.
"""

import numpy as np

from auditdm_jax.images.backend import Backend, Info, Plain
from auditdm_jax.images.config import ImagesConfig
from auditdm_jax.scenes.image_backend import ScenesBackend

Row = np.ndarray | Exception  # An image u8[H,W,3], or why this row cannot be drawn.
NOISE = 3.0  # Standard deviation, in grey levels of 255.


class Camera:
  """Draws as the scenes backend does, and adds noise to every pixel."""

  def __init__(self, *, error_rate: float, seed: int):
    self._scenes = ScenesBackend(error_rate=error_rate, seed=seed)

  def generate(self, prompts: list[str], seeds: list[int], *, width: int, height: int) -> list[Row]:
    """Returns one image per caption."""
    drawn = self._scenes.generate(prompts, seeds, width=width, height=height)
    return [_photograph(row, seed) for row, seed in zip(drawn, seeds)]

  def edit(self, images: list[np.ndarray], instructions: list[str], seeds: list[int]) -> list[Row]:
    """Returns one image per instruction; a ValueError says that it cannot be carried out."""
    drawn = self._scenes.edit(images, instructions, seeds)
    return [_photograph(row, seed) for row, seed in zip(drawn, seeds)]


def _photograph(row: Row, seed: int) -> Row:
  """Returns an image with the noise of its own seed, whatever shares its batch."""
  if isinstance(row, Exception):
    return row
  noise = np.random.default_rng(seed).normal(0.0, NOISE, row.shape)
  return np.clip(row + noise, 0, 255).astype(np.uint8)


def backend(config: ImagesConfig) -> Backend:
  """Returns the backend; `Plain` makes one from functions that draw rows."""
  info = Info(
    "camera",
    # What decides the pixels besides the request: the service's cache depends on it.
    properties={
      "noise": f"{NOISE}",
      "error_rate": f"{config.error_rate}",
      "seed": f"{config.seed}",
    },
    modes=("generate", "edit", "sham"),
    sizes=((64, 64),),
    exact=True,
  )
  return Plain(Camera(error_rate=config.error_rate, seed=config.seed), info)
