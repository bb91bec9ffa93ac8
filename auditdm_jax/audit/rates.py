# SPDX-License-Identifier: Apache-2.0
"""Rates and tests of an audit: every number comes with its uncertainty.

Probes of one image are not independent. The image is the unit wherever images repeat.
"""

from collections.abc import Hashable, Sequence
import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from auditdm_jax.audit import by_image


def _z(confidence: float) -> float:
  return float(stats.norm.ppf(0.5 + confidence / 2))


def wilson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
  """Wilson score interval of k successes in n independent trials; (0, 1) when n is 0."""
  return _wilson(k, n, _z(confidence))


def _wilson(k: float, n: float, z: float) -> tuple[float, float]:
  if n == 0 or not math.isfinite(z):
    return 0.0, 1.0
  z2 = z * z
  p = k / n
  centre = (p + z2 / (2 * n)) / (1 + z2 / n)
  half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
  low = 0.0 if k == 0 else max(0.0, centre - half)
  high = 1.0 if k == n else min(1.0, centre + half)
  return low, high


@dataclasses.dataclass(frozen=True)
class Rate:
  """A share with its uncertainty.

  Attributes:
    k: successes, or a sum of scores in [0, 1].
    n: trials.
    rate: k / n; None where n is 0.
    ci95: ends of the 95 % interval.
    images: how many images the trials are of; n, which -1 stands for, if they are independent.
    design: how many times the variance is that of n independent trials.
  """

  k: float
  n: int
  rate: float | None
  ci95: tuple[float, float]
  images: int = -1
  design: float = 1.0

  def __post_init__(self) -> None:
    if self.images < 0:
      object.__setattr__(self, "images", self.n)

  @property
  def value(self) -> float:
    """The rate where there is one.

    Raises:
      ValueError: n is 0.
    """
    if self.rate is None:
      raise ValueError("a rate with n = 0 has no value")
    return self.rate

  @property
  def effective(self) -> float:
    """The number of independent trials that would say as much."""
    return self.n / self.design

  @property
  def complement(self) -> "Rate":
    """The rate of what did not succeed."""
    low, high = self.ci95
    rest = None if self.rate is None else 1 - self.rate
    return dataclasses.replace(self, k=self.n - self.k, rate=rest, ci95=(1 - high, 1 - low))


NOTHING = Rate(0, 0, None, (0.0, 1.0))


def rate(k: int, n: int, *, confidence: float = 0.95) -> Rate:
  """Returns the rate of k successes in n independent trials, with Wilson's interval.

  Probes are independent only if no image repeats; see `rate_by_image`.
  """
  return Rate(int(k), int(n), k / n if n else None, wilson(k, n, confidence=confidence))


def rate_by_image(
  failed: ArrayLike, images: Sequence[Hashable], *, weights: ArrayLike | None = None
) -> Rate:
  """Returns the rate over probes of which several may be of one image.

  The interval is Wilson's at the effective number of probes, n over the design effect, with
  Student's quantile of images - 1 degrees of freedom (ours). It is Wilson's own where no image
  repeats.

  Args:
    failed: whether each probe failed, or its score in [0, 1].
    images: the image of each probe.
    weights: how many probes each one stands for, the inverse of its chance to be chosen (Hajek's
      estimator); as many times as it says less than equal weights, the design effect is larger
      (Kish 1965). `k` is then the rate times `n`.
  """
  x = np.asarray(failed, np.float64)
  w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
  w = w * (len(w) / w.sum()) if len(w) else w
  k, n = by_image.sums(x * w, images)[0], by_image.sums(w, images)[0]
  if not len(n):
    return NOTHING
  sum_k, sum_n = float(k.sum()), len(x)
  design = max(by_image.design_effect(k, n), float((w * w).mean()))
  if weights is not None:
    sum_k = round(sum_k, 9)
  z = by_image.quantile(len(n), sum_n)
  return Rate(
    k=int(sum_k) if sum_k.is_integer() else sum_k,
    n=sum_n,
    rate=sum_k / sum_n,
    ci95=_wilson(sum_k / design, sum_n / design, z),
    images=len(n),
    design=design,
  )


@dataclasses.dataclass(frozen=True)
class Change:
  """A rate's change over the same probes.

  Attributes:
    change: new rate - old rate; 0 where n is 0.
    ci95: ends of its 95 % interval.
    p: two-sided, that nothing changed.
    n: pairs.
    images: how many images they are of.
    design: how many times the variance is that of n independent pairs.
  """

  change: float
  ci95: tuple[float, float]
  p: float
  n: int
  images: int
  design: float = 1.0


def change_by_image(old: ArrayLike, new: ArrayLike, images: Sequence[Hashable]) -> Change:
  """Returns new - old over the same probes, of which several may be of one image.

  The test flips the sign of whole images' sums of differences; with one probe an image it is
  McNemar's exact test. The interval is Tango's at the effective number of pairs, with the quantile
  of `rate_by_image` (ours).

  Args:
    old: whether each probe failed before, or its score in [0, 1].
    new: the same afterwards.
    images: the image of each probe.
  """
  step = np.asarray(new, np.float64) - np.asarray(old, np.float64)
  worse, n = by_image.sums(np.maximum(step, 0), images)
  better, _ = by_image.sums(np.maximum(-step, 0), images)
  if not len(n):
    return Change(0.0, (-1.0, 1.0), 1.0, 0, 0)
  total = int(n.sum())
  design = by_image.change_design_effect(worse - better, worse + better, n)
  return Change(
    change=float((worse - better).sum()) / total,
    ci95=by_image.tango(
      float(worse.sum()) / design,
      float(better.sum()) / design,
      total / design,
      by_image.quantile(len(n), total),
    ),
    p=by_image.sign_flips(worse - better),
    n=total,
    images=len(n),
    design=design,
  )


def lower_bounds(k: ArrayLike, n: ArrayLike, *, confidence: float = 0.95) -> np.ndarray:
  """One-sided lower Clopper-Pearson bounds, f64[...]; 0 where k is 0."""
  k, n = np.asarray(k, np.float64), np.asarray(n, np.float64)
  bound = special.betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1, 1 - confidence)
  return np.where(k > 0, bound, 0.0)


def fisher_greater(k: int, n: int, rest_k: int, rest_n: int) -> float:
  """One-sided Fisher exact p that the rate k/n is above rest_k/rest_n."""
  if n == 0 or rest_n == 0:
    return 1.0
  total_k = k + rest_k
  j = np.arange(k, min(n, total_k) + 1)
  log_p = _log_choose(n, j) + _log_choose(rest_n, total_k - j) - _log_choose(n + rest_n, total_k)
  return min(1.0, float(np.exp(log_p).sum()))


def enriched_by_image(
  inside: ArrayLike,
  inside_images: Sequence[Hashable],
  outside: ArrayLike,
  outside_images: Sequence[Hashable],
) -> float:
  """One-sided p that the failure rate inside a mode is above that of the rest.

  It is Fisher's exact test of both tables at their effective numbers (Rao and Scott 1992,
  Biometrics 48:577), with failures rounded down and passes up inside. Where no image repeats it is
  Fisher's test itself. An image that has probes on both sides makes it conservative.

  Args:
    inside: bool[N], whether each probe of the mode failed.
    inside_images: the image of each.
    outside: bool[M], the same of the rest.
    outside_images: the image of each.
  """
  k, n = _effective(inside, inside_images)
  rest_k, rest_n = _effective(outside, outside_images)
  failed, passed = math.floor(k + _EPS), math.ceil(n - k - _EPS)
  rest_failed, rest_passed = math.ceil(rest_k - _EPS), math.floor(rest_n - rest_k + _EPS)
  return fisher_greater(failed, failed + passed, rest_failed, rest_failed + rest_passed)


_EPS = 1e-9


def _effective(failed: ArrayLike, images: Sequence[Hashable]) -> tuple[float, float]:
  k, n = by_image.sums(failed, images)
  design = by_image.design_effect(k, n) if len(n) else 1.0
  return float(k.sum()) / design, float(n.sum()) / design


def _log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
  return special.gammaln(n + 1) - special.gammaln(np.add(k, 1)) - special.gammaln(n - k + 1)


def benjamini_hochberg(p_values: ArrayLike, *, m: int | None = None) -> np.ndarray:
  """Adjusted p-values (q-values), f64[N], in the order given.

  Args:
    p_values: the p-values at hand.
    m: how many tests were made, if more than listed (the unlisted count as p = 1).
  """
  p = np.asarray(p_values, np.float64)
  m = max(m or 0, len(p))
  order = np.argsort(p, kind="stable")
  scaled = p[order] * m / np.arange(1, len(p) + 1)
  adjusted = np.empty_like(p)
  adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
  return adjusted


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Labelled probes behind a sensitivity or a specificity.

  Attributes:
    k: those on which the flag was right; effective numbers need not be whole.
    n: all of them.
  """

  k: float
  n: float

  @classmethod
  def of(cls, found: Rate) -> "Labelled":
    """Returns the effective numbers of a rate by image."""
    return cls(found.k / found.design, found.effective)


@dataclasses.dataclass(frozen=True)
class Corrected:
  """A rate behind the flags of a judge that errs.

  Attributes:
    rate: what is left after correction; None where the judge cannot tell or there is no trial.
    ci95: ends of its 95 % interval.
    youden: sensitivity + specificity - 1, each shrunk by one label of either kind.
    flagged: the rate before correction.
  """

  rate: float | None
  ci95: tuple[float, float]
  youden: float
  flagged: Rate


LEAST_YOUDEN = 0.2  # A judge below it says nothing about a rate.


def corrected(flagged: Rate, sensitivity: Labelled, specificity: Labelled) -> Corrected:
  """Returns the true rate behind flags (Lang and Reiczigel 2014, Prev Vet Med 113:13).

  Args:
    flagged: share of probes that were flagged, by image where images repeat.
    sensitivity: of the labelled probes that should be flagged, those that were.
    specificity: of the labelled probes that should not be flagged, those that were not.
  """
  m1, m0 = sensitivity.n + 2, specificity.n + 2
  se, sp = (sensitivity.k + 1) / m1, (specificity.k + 1) / m0
  youden = se + sp - 1
  z = by_image.quantile(flagged.images, flagged.n) if flagged.n else math.inf
  if youden < LEAST_YOUDEN or not math.isfinite(z):
    return Corrected(None, (0.0, 1.0), youden, flagged)
  n = flagged.effective
  p = (flagged.k / flagged.design + z * z / 2) / (n + z * z)
  true = (p + sp - 1) / youden
  of_p = p * (1 - p) / (n + z * z)
  of_se, of_sp = se * (1 - se) / m1, sp * (1 - sp) / m0
  variance = (of_p + true**2 * of_se + (1 - true) ** 2 * of_sp) / youden**2
  centre = true + 2 * z * z * (true * of_se - (1 - true) * of_sp)
  low, high = np.clip([centre - z * math.sqrt(variance), centre + z * math.sqrt(variance)], 0, 1)
  return Corrected(float(np.clip(true, 0, 1)), (float(low), float(high)), youden, flagged)


def plan_rate(*, expected: float = 0.5, half_width: float, confidence: float = 0.95) -> int:
  """Probes needed for a Wilson interval of at most the given half width."""
  if not 0 < half_width < 0.5:
    raise ValueError(f"half_width must lie in (0, 0.5), got {half_width}")
  n = 1
  while _half(expected, n, confidence) > half_width:
    n *= 2
  low, high = n // 2, n
  while high - low > 1:
    mid = (low + high) // 2
    low, high = (mid, high) if _half(expected, mid, confidence) > half_width else (low, mid)
  return high


def _half(p: float, n: int, confidence: float) -> float:
  z2 = _z(confidence) ** 2
  return math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)


def plan_paired(*, worse: float, better: float, alpha: float = 0.05, power: float = 0.8) -> int:
  """Paired probes needed for McNemar's test (Connor 1987, Biometrics 43:207).

  Args:
    worse: share of items on which only the second model fails.
    better: share of items on which only the first model fails.
    alpha: two-sided level.
    power: wanted power.
  """
  gap, discordant = abs(worse - better), worse + better
  if gap == 0:
    raise ValueError("no difference to detect: worse equals better")
  z_a, z_b = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
  root = z_a * math.sqrt(discordant) + z_b * math.sqrt(max(0.0, discordant - gap * gap))
  return math.ceil((root / gap) ** 2)
