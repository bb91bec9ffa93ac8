# SPDX-License-Identifier: Apache-2.0
"""What a prediction is worth, by what became of earlier ones.

A net that chooses what is asked is too sure of what it chose, and how much differs from world to
world. Each of its predictions is made before the verdict is known, so the share of finds among the
latest of them corrects the next ones: isotonic regression (Zadrozny and Elkan 2002), whose order is
the net's own.
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize


class Recalibration:
  """Probabilities by the latest predictions and what became of them.

  Args:
    least: predictions stay as they are until so many are known.
    memory: how many of the latest are remembered; the net learns on, and what it means changes.
  """

  def __init__(self, *, least: int, memory: int = 2_000):
    self._least, self._memory = least, memory
    self._predicted = np.zeros(0, np.float64)
    self._found = np.zeros(0, bool)
    self._ends = self._shares = np.zeros(0, np.float64)

  def observe(self, predicted: Sequence[float] | np.ndarray, found: Sequence[bool]) -> None:
    """Remembers predictions f[N] and which of them were finds."""
    keep = self._memory
    self._predicted = np.concatenate([self._predicted, np.asarray(predicted, np.float64)])[-keep:]
    self._found = np.concatenate([self._found, np.asarray(found, bool)])[-keep:]
    # One value for equal predictions, whatever their order: their mean.
    self._ends, of, n = np.unique(self._predicted, return_inverse=True, return_counts=True)
    shares = np.bincount(of, weights=self._found) / n
    self._shares = optimize.isotonic_regression(shares, weights=n).x

  def __call__(self, predicted: np.ndarray) -> np.ndarray:
    """Returns f64[N]: the probability of a find by predictions f[N]; a larger one has no less."""
    if len(self._found) < self._least:
      return np.asarray(predicted, np.float64)
    return np.interp(predicted, self._ends, self._shares)
