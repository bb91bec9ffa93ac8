# SPDX-License-Identifier: Apache-2.0
"""Rates and tests of an audit, in numpy and scipy: every number comes with its uncertainty."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from auditdm_jax.core import streams


def _z(confidence: float) -> float:
  return float(stats.norm.ppf(0.5 + confidence / 2))


def wilson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
  """Wilson score interval of k successes in n trials; (0, 1) when n is 0."""
  if n == 0:
    return 0.0, 1.0
  z2 = _z(confidence) ** 2
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
  """

  k: float
  n: int
  rate: float | None
  ci95: tuple[float, float]

  @property
  def value(self) -> float:
    """The rate where there is one.

    Raises:
      ValueError: n is 0.
    """
    if self.rate is None:
      raise ValueError("a rate with n = 0 has no value")
    return self.rate


NOTHING = Rate(0, 0, None, (0.0, 1.0))


def rate(k: int, n: int, *, confidence: float = 0.95) -> Rate:
  """Returns the rate of k successes in n trials, with its Wilson interval."""
  return Rate(int(k), int(n), k / n if n else None, wilson(k, n, confidence=confidence))


def clopper_pearson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
  """Exact binomial interval of k successes in n trials."""
  tail = (1 - confidence) / 2
  low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, tail))
  high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - tail))
  return low, high


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


def _log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
  return special.gammaln(n + 1) - special.gammaln(np.add(k, 1)) - special.gammaln(n - k + 1)


def mcnemar_exact(b: int, c: int) -> float:
  """Two-sided exact McNemar p from the two discordant counts."""
  if b + c == 0:
    return 1.0
  return min(1.0, 2 * float(stats.binom.cdf(min(b, c), b + c, 0.5)))


def newcombe_paired(
  both: int, only_first: int, only_second: int, neither: int, *, confidence: float = 0.95
) -> tuple[float, float]:
  """Interval of (second rate - first rate) over the same n items.

  Newcombe 1998 (Statistics in Medicine 17:2635), method 10: Wilson limits of both margins,
  combined with the continuity-corrected correlation of the pairs.
  """
  n = both + only_first + only_second + neither
  if n == 0:
    return -1.0, 1.0
  k1, k2 = both + only_second, both + only_first
  p1, p2 = k1 / n, k2 / n
  l1, u1 = wilson(k1, n, confidence=confidence)
  l2, u2 = wilson(k2, n, confidence=confidence)
  phi = _phi(both, only_first, only_second, neither)
  d1, e1, d2, e2 = p1 - l1, u1 - p1, p2 - l2, u2 - p2
  low = (p1 - p2) - math.sqrt(max(0.0, d1 * d1 - 2 * phi * d1 * e2 + e2 * e2))
  high = (p1 - p2) + math.sqrt(max(0.0, d2 * d2 - 2 * phi * d2 * e1 + e1 * e1))
  return max(-1.0, low), min(1.0, high)


def _phi(a: int, b: int, c: int, d: int) -> float:
  product = (a + b) * (c + d) * (a + c) * (b + d)
  if product == 0:
    return 0.0
  cross = a * d - b * c
  if cross > 0:
    cross = max(cross - (a + b + c + d) / 2, 0)
  return cross / math.sqrt(product)


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


def good_turing(counts: Iterable[int]) -> float:
  """Unseen probability mass of a sample of kinds: singletons / finds; 1 for an empty sample."""
  counts = [c for c in counts if c > 0]
  return sum(c == 1 for c in counts) / sum(counts) if counts else 1.0


def chao1(counts: Iterable[int]) -> float:
  """Lower bound of the number of kinds, bias-corrected (Chao 1984)."""
  counts = [c for c in counts if c > 0]
  once, twice = sum(c == 1 for c in counts), sum(c == 2 for c in counts)
  return len(counts) + once * (once - 1) / (2 * (twice + 1))


def effective_number(counts: Iterable[float]) -> float:
  """exp(entropy) of the shares: how many equally common kinds would be as diverse; 0 if none."""
  x = np.asarray([c for c in counts if c > 0], np.float64)
  if not len(x):
    return 0.0
  share = x / x.sum()
  return float(np.exp(-(share * np.log(share)).sum()))


def cluster_bootstrap(
  values: Sequence[float],
  clusters: Sequence[object],
  *,
  statistic: Callable[[np.ndarray], float] = np.mean,
  samples: int = 1000,
  confidence: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile interval when several values share a cluster (probes of one image)."""
  x = np.asarray(values, np.float64)
  if not len(x):
    raise ValueError("cluster_bootstrap needs at least one value")
  _, member = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
  order = np.argsort(member, kind="stable")
  groups = np.split(x[order], np.flatnonzero(np.diff(member[order])) + 1)
  rng = streams.rng(seed, "bootstrap")
  draws = [
    statistic(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
    for _ in range(samples)
  ]
  tail = (1 - confidence) / 2
  low, high = np.quantile(draws, [tail, 1 - tail])
  return float(low), float(high)


def rogan_gladen(k: int, n: int, sensitivity: float, specificity: float) -> float:
  """Rate of true positives behind k of n flagged by an imperfect judge, cut to [0, 1]."""
  gain = sensitivity + specificity - 1
  if n == 0 or gain <= 0:
    raise ValueError("needs n > 0 and a judge better than chance")
  return float(np.clip((k / n + specificity - 1) / gain, 0, 1))


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
