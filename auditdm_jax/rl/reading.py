# SPDX-License-Identifier: Apache-2.0
"""What a vision-language model makes of questions about images, before it answers."""

from collections.abc import Callable, Sequence

import numpy as np

from auditdm_jax.audit.answer import FeatureCache
from auditdm_jax.rl import flops
from auditdm_jax.vlm import Vlm


class Reader:
  """A model that reads questions about images by id, and is never asked for an answer."""

  def __init__(self, vlm: Vlm, cache: FeatureCache, *, load: Callable[[str], np.ndarray]):
    """Takes the model, where image features are kept, and image id -> u8[H,W,3]."""
    self._vlm, self._cache, self._load = vlm, cache, load

  def __call__(self, questions: Sequence[str], image_ids: Sequence[str]) -> np.ndarray:
    """Returns f32[N,D], see `Vlm.states`."""
    place = {image: i for i, image in enumerate(dict.fromkeys(image_ids))}
    features = self._cache.features(self._vlm, list(place), self._load)
    prompts = [self._vlm.style.put(question) for question in questions]
    return self._vlm.states(features, prompts, which=[place[image] for image in image_ids])

  def flops(self, questions: Sequence[str]) -> float:
    """Floating-point operations of reading a question as long as these; without the tower."""
    return flops.answer(self._vlm, [(question, "") for question in questions])
