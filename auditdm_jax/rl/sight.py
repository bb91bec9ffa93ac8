# SPDX-License-Identifier: Apache-2.0
"""What the auditor sees of an image: features of its tower, or pixels where that trains.

And who reads its questions with their images before they are asked, if anybody does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from auditdm_jax.audit.answer import FeatureCache
from auditdm_jax.models import preprocess
from auditdm_jax.rl.reading import Reader
from auditdm_jax.vlm import Vlm


class Sight:
  """Images as the auditor takes them.

  Attributes:
    trains: whether the tower trains. The features are then those of the current params, and the
      learner gets pixels.
    reader: reads what the auditor writes, for the surrogate that picks from it; None = nobody.
  """

  def __init__(
    self,
    auditor: Vlm,
    cache: FeatureCache,
    *,
    load: Callable[[str], np.ndarray],
    trains: bool = False,
    reader: Reader | None = None,
  ):
    """Takes the auditor, and how images are found.

    Args:
      auditor: the initial auditor.
      cache: features of frozen towers; shared with the models that answer.
      load: image id -> u8[H,W,3].
      trains: whether the auditor's tower trains.
      reader: of the surrogate, or None.
    """
    self._auditor, self._cache, self._load = auditor, cache, load
    self.trains, self.reader = trains, reader

  def features(self, params: Any, image_ids: Sequence[str]) -> np.ndarray:
    """Returns f32[N,patches,D] of the auditor's tower with these params."""
    if not self.trains:
      return self.before(image_ids)
    unique = list(dict.fromkeys(image_ids))
    now = self._auditor.with_params(params).encode([self._load(i) for i in unique])
    return now[[unique.index(i) for i in image_ids]]

  def before(self, image_ids: Sequence[str]) -> np.ndarray:
    """Returns f32[N,patches,D] of the initial auditor's tower, whether it trains or not."""
    return self._cache.features(self._auditor, image_ids, self._load)

  def pixels(self, image_ids: Sequence[str]) -> np.ndarray:
    """Returns f32[N,H,W,3] in [-1,1], for the learner's own tower."""
    size, how = self._auditor.config.tower.image_size, self._auditor.pixels
    return preprocess.preprocess([self._load(i) for i in image_ids], size=size, how=how)
