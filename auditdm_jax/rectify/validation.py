# SPDX-License-Identifier: Apache-2.0
"""The loss on examples that were held back: what training makes less, of images it has not seen."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from auditdm_jax.rectify import stream, tuning


class Validation:
  """Examples of each part, whose losses count by the part's share of a batch.

  It is without label smoothing and dropout.
  """

  def __init__(self, tuned: tuning.Tuning, feed: stream.Stream, parts: Sequence[stream.Part]):
    self._tuned, self._feed = tuned, feed
    self._parts = [part for part in parts if len(part.chosen)]

  def __bool__(self) -> bool:
    """Returns whether anything was held back."""
    return bool(self._parts)

  def __call__(self, params: Any) -> float:
    """Returns the loss with these parameters."""
    means = [self._mean(params, part) for part in self._parts]
    return float(np.average(means, weights=[part.count for part in self._parts]))

  def _mean(self, params: Any, part: stream.Part) -> float:
    with self._feed.in_order(part) as batches:
      losses = [self._tuned.row_losses(params, fed.batch) for fed in batches]
    return float(np.concatenate(losses)[: len(part.chosen)].mean())
