# SPDX-License-Identifier: Apache-2.0
"""The scenes world: symbolic scenes, an exact renderer, programs as questions, and their oracle."""

import functools

import numpy as np

from auditdm_jax.scenes import questions, render, world


def oracle(image: np.ndarray, question: str, language: world.Language = world.SCENES) -> str | None:
  """Returns the true answer to a question about u8[H,W,3], or None; for checks only."""
  program = questions.parse_question(question, language)
  if program is None:
    return None
  answer = questions.execute(program, seen(image, language))
  return None if answer == questions.UNANSWERABLE else answer


def seen(image: np.ndarray, language: world.Language = world.SCENES) -> world.Scene:
  """Returns the scene that u8[H,W,3] shows; see `render.parse`."""
  return _seen(image.tobytes(), image.shape, language)


@functools.lru_cache(maxsize=8192)
def _seen(pixels: bytes, shape: tuple[int, ...], language: world.Language) -> world.Scene:
  """Returns the scene an image shows, parsed once: many questions are about one image."""
  return render.parse(np.frombuffer(pixels, np.uint8).reshape(shape), language)
