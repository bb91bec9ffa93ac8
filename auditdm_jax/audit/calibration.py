# SPDX-License-Identifier: Apache-2.0
"""Whether a surrogate means what it says: predicted probability of a find against observed rate.

Questions are binned by what was predicted, in bins of equal width. The expected calibration error
is the mean distance between prediction and rate, over bins by their size (Guo et al. 2017,
arXiv:1706.04599); Brier's score is the mean squared error of each prediction (Brier 1950).

What a search asks is what was predicted highest, so its picks look too sure even of an honest net.
Those that were drawn by lot tell the net from its selection.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from auditdm_jax.audit.rates import Rate, rate_by_image

BINS = 10


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
  """Questions with predictions from `low` on and below `high`, the last bin's end included.

  Attributes:
    low: smallest prediction.
    high: largest one.
    predicted: their mean prediction.
    found: the share of finds among them, by image.
  """

  low: float
  high: float
  predicted: float
  found: Rate


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Predictions of a surrogate, and what became of them.

  Attributes:
    where: training or sweep.
    chosen: how these questions were chosen: all, "ranked" by it, or "lot".
    predicted: mean prediction.
    found: the share of finds.
    error: expected calibration error.
    chance: the error that exact predictions would show in as many questions, about.
    brier: Brier's score.
    base: that of someone who knows the share of finds and nothing else.
    bins: those that hold any question.
  """

  where: str
  chosen: str
  predicted: float
  found: Rate
  error: float
  chance: float
  brier: float
  base: float
  bins: tuple[CalibrationBin, ...]


def calibration(
  predicted: Sequence[float],
  found: Sequence[bool],
  images: Sequence[str],
  *,
  where: str = "",
  chosen: str = "all",
  bins: int = BINS,
) -> Calibration | None:
  """Compares predictions with what was found; None without any.

  Args:
    predicted: probability of a find, by question.
    found: whether it is one.
    images: the image that each goes back to.
    where: see `Calibration`.
    chosen: see `Calibration`.
    bins: of equal width.
  """
  if not len(predicted):
    return None
  p, y = np.asarray(predicted, np.float64), np.asarray(found, bool)
  of = np.minimum((p * bins).astype(int), bins - 1)
  rows = []
  for i in sorted(set(of.tolist())):
    own = np.flatnonzero(of == i)
    rate = rate_by_image(y[own], [images[j] for j in own.tolist()])
    rows.append(CalibrationBin(i / bins, (i + 1) / bins, float(p[own].mean()), rate))
  all_found = rate_by_image(y, images)
  share = all_found.value
  return Calibration(
    where=where,
    chosen=chosen,
    predicted=float(p.mean()),
    found=all_found,
    error=math.fsum(b.found.n * abs(b.predicted - b.found.value) for b in rows) / len(p),
    chance=math.fsum(b.found.n * _by_chance(b) for b in rows) / len(p),
    brier=float(((p - y) ** 2).mean()),
    base=share * (1 - share),
    bins=tuple(rows),
  )


def _by_chance(b: CalibrationBin) -> float:
  """Mean distance of a rate from the right prediction: that of a normal variable from its mean."""
  variance = b.predicted * (1 - b.predicted) * b.found.design / b.found.n
  return math.sqrt(2 / math.pi * variance)
