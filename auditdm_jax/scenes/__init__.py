# SPDX-License-Identifier: Apache-2.0
"""The scenes world: symbolic scenes, an exact renderer, programs as questions, and their oracle."""

from collections import OrderedDict
import threading

import numpy as np

from auditdm_jax.core.image_store import Images
from auditdm_jax.scenes import questions, render, world

_KEPT = 1 << 15  # Scenes, of about 1 kB each. The pixels would be 12 kB and more.
_latest: OrderedDict[tuple[str, world.Language], world.Scene] = OrderedDict()
_lock = threading.Lock()


def oracle(image: np.ndarray, question: str, language: world.Language = world.SCENES) -> str | None:
  """Returns the true answer to a question about u8[H,W,3], or None; for checks only."""
  program = questions.parse_question(question, language)
  if program is None:
    return None
  answer = questions.execute(program, seen(image, language))
  return None if answer == questions.UNANSWERABLE else answer


def seen(image: np.ndarray, language: world.Language = world.SCENES) -> world.Scene:
  """Returns the scene that u8[H,W,3] shows: that of `render.parse`, asked once of the latest."""
  key = Images.id_of(image), language
  with _lock:
    if key in _latest:
      _latest.move_to_end(key)
      return _latest[key]
  scene = render.parse(image, language)
  with _lock:
    _latest[key] = scene
    if len(_latest) > _KEPT:
      _latest.popitem(last=False)
  return scene
