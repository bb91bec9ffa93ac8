# SPDX-License-Identifier: Apache-2.0
"""Sums by image, and what follows from them: probes of one image are not independent.

The image is the unit. M images have n_c probes each, with sums k_c. All arrays are f64[M].
"""

from collections.abc import Hashable, Sequence
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from auditdm_jax.core import streams

_PSEUDO = 0.5  # Size of the two pseudo-images; .3 covers in 91 % where the ICC is .7.
_DRAWS = 9_999
_ENUMERATED = 12  # Images up to which all 2^M signs are tried.


def sums(values: ArrayLike, images: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the sum of the values of each image and their number: f64[M], f64[M].

  Args:
    values: f[N], one per probe.
    images: N images, one per probe.

  Raises:
    ValueError: there are not as many images as values.
  """
  x = np.asarray(values, np.float64)
  if x.shape != (len(images),):
    raise ValueError(f"one image per value is needed: {x.shape} values, {len(images)} images")
  place: dict[Hashable, int] = {}
  member = np.fromiter((place.setdefault(i, len(place)) for i in images), np.int64, len(x))
  return np.bincount(member, x, len(place)), np.bincount(member, minlength=len(place)) * 1.0


def design_effect(k: np.ndarray, n: np.ndarray) -> float:
  """Returns how many times the variance of a rate is that of as many independent probes.

  It is the ratio estimator's variance over the binomial one (Kish 1965), once of the data and
  once with two pseudo-images of half a mean image each, the one all successes, the other all
  failures (ours). Without these the estimate is too low where few images hold a success. It is
  never below 1, nor above what whole images of one answer would give.
  """
  extra = _PSEUDO * n.mean()
  pseudo = _ratio(np.append(k, [extra, 0.0]), np.append(n, [extra] * 2))
  return _bounded(max(_ratio(k, n), pseudo), n)


def _bounded(effect: float, n: np.ndarray) -> float:
  return max(1.0, min(effect, float((n * n).sum() / n.sum())))


def _ratio(k: np.ndarray, n: np.ndarray) -> float:
  m, total = len(n), n.sum()
  q = k.sum() / total
  if m < 2 or q <= 0 or q >= 1:
    return total / m
  return m / (m - 1) * ((k - q * n) ** 2).sum() / total / (q * (1 - q))


def change_design_effect(t: np.ndarray, moved: np.ndarray, n: np.ndarray) -> float:
  """`design_effect` for a mean of differences.

  Args:
    t: sums of the differences, each in [-1, 1].
    moved: sums of their absolute values.
    n: numbers of pairs.
  """
  extra = _PSEUDO * n.mean()
  pseudo = _change_ratio(
    np.append(t, [extra, -extra]), np.append(moved, [extra] * 2), np.append(n, [extra] * 2)
  )
  return _bounded(max(_change_ratio(t, moved, n), pseudo), n)


def _change_ratio(t: np.ndarray, moved: np.ndarray, n: np.ndarray) -> float:
  m, total = len(n), n.sum()
  d = t.sum() / total
  spread = moved.sum() / total - d * d
  if m < 2 or spread <= 0:
    return total / m
  return m / (m - 1) * ((t - d * n) ** 2).sum() / total / spread


def quantile(images: int, n: int) -> float:
  """Returns the quantile of a 95 % interval: Student's t, or the normal one if no image repeats."""
  if images == n:
    return float(stats.norm.ppf(0.975))
  return float(stats.t.ppf(0.975, images - 1)) if images > 1 else math.inf


def sign_flips(t: np.ndarray) -> float:
  """Two-sided p that the sums of differences by image are as likely to be of either sign.

  It is exact for whole numbers and for few images, and a seeded draw of signs otherwise. With
  one pair an image it is McNemar's exact test.
  """
  a, total = np.abs(t[t != 0]), abs(float(t.sum()))
  if total == 0:
    return 1.0
  if (a == np.round(a)).all():
    return min(1.0, 2 * _upper_tail(a.astype(np.int64), round(total)))
  if len(a) <= _ENUMERATED:
    bits = (np.arange(2 ** len(a))[:, None] >> np.arange(len(a))) & 1
    return float(np.mean(np.abs((2 * bits - 1) @ a) >= total - 1e-9))
  rng = streams.rng(0, "sign flips")
  hits = sum(
    int((np.abs(rng.choice([-1.0, 1.0], (_DRAWS // 9, len(a))) @ a) >= total - 1e-9).sum())
    for _ in range(9)
  )
  return (1 + hits) / (1 + _DRAWS)


def _upper_tail(sizes: np.ndarray, total: int) -> float:
  """P(sum of randomly signed whole numbers >= total): one convolution per distinct size."""
  chances = np.ones(1)
  for size, times in zip(*np.unique(sizes, return_counts=True), strict=True):
    step = np.zeros(2 * size * times + 1)
    step[:: 2 * size] = stats.binom.pmf(np.arange(times + 1), times, 0.5)
    chances = np.convolve(chances, step)
  return float(chances[int(sizes.sum()) + total :].sum())


def tango(worse: float, better: float, n: float, z: float) -> tuple[float, float]:
  """Score interval of (worse - better) / n, of paired trials (Tango 1998, Stat Med 17:891).

  Args:
    worse: trials of which only the second is a success; need not be whole.
    better: trials of which only the first is one.
    n: all trials.
    z: quantile.
  """
  high = _tango_upper(worse, better, n, z)
  return -_tango_upper(better, worse, n, z), high


def _tango_upper(b: float, c: float, n: float, z: float) -> float:
  if not math.isfinite(z) or z * z > 1e9 * n:
    return 1.0

  def excess(d: float) -> float:
    linear = -b - c + (2 * n - b + c) * d
    root = math.sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d)))
    q = max(0.0, (root - linear) / (4 * n))  # The likeliest share of c if the change is d.
    return n * d - (b - c) - z * math.sqrt(max(0.0, n * (2 * q + d * (1 - d))))

  low, high = (b - c) / n, 1.0
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if excess(middle) < 0 else (low, middle)
  return high
