# SPDX-License-Identifier: Apache-2.0
"""Two models on the same items: values, their difference, and what is left to chance.

A metric that is the mean of scores in [0, 1] gets the intervals and the test of `audit.rates`, by
image. Any other is resampled: clusters with replacement for intervals, and the two models' rows
swapped within random clusters for the test. The same draws of clusters serve both models.

Axes: N rows, C clusters, R draws.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from auditdm_jax.audit import rates
from auditdm_jax.bench.scorers import Metric, Scored
from auditdm_jax.core import streams

_AT_ONCE = 1 << 22  # Weights that are in memory, 8 bytes each.
_ENUMERATED = 12  # Clusters up to which all 2^C swaps are tried.
# Quantiles of power 0.8 and of the two-sided level 0.05: a true difference of so many standard
# errors is seen four times out of five.
_DETECTED, _INTERVAL = 0.8416 + 1.9600, 1.9600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """A value with its interval.

  Attributes:
    value: of the metric; None where it has none.
    ci95: ends of the 95 % interval.
    units: judged units.
    images: clusters.
  """

  value: float | None
  ci95: tuple[float, float]
  units: int
  images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedChange:
  """The new model's value minus the old one's, on the units of both.

  Attributes:
    change: the difference.
    ci95: ends of its 95 % interval.
    p: two-sided, that nothing changed.
    units: of both.
    images: clusters of them.
    wins: units on which the new model scores higher.
    losses: units on which it scores lower.
    detectable: the true difference that so many units would show four times out of five.
  """

  change: float
  ci95: tuple[float, float]
  p: float
  units: int
  images: int
  wins: int
  losses: int
  detectable: float


def is_mean(metric: Metric, rows: Sequence[Scored]) -> bool:
  """Returns whether the metric is the mean of these rows' scores, all of them in [0, 1].

  Random weights tell: another reduction gives another value for one of them.
  """
  scores = np.array([row.score for row in rows], np.float64)
  if not len(rows) or scores.min() < 0 or scores.max() > 1:
    return False
  weights = streams.rng(0, "is a metric a mean").integers(1, 4, (4, len(rows))) * 1.0
  return bool(
    np.allclose(metric.resample(rows, weights), weights @ scores / weights.sum(1), atol=1e-9)
  )


def estimate(metric: Metric, rows: Sequence[Scored], *, draws: int, seed: int) -> Estimate:
  """Returns the metric of rows, with its interval by cluster.

  Args:
    metric: what is estimated.
    rows: at least one.
    draws: of the bootstrap, where there is one.
    seed: of the draws.
  """
  images = [row.image for row in rows]
  if is_mean(metric, rows):
    found = rates.rate_by_image([row.score for row in rows], images)
    return Estimate(value=found.rate, ci95=found.ci95, units=found.n, images=found.images)
  member, clusters = _members(images)
  value = float(metric.resample(rows, np.ones((1, len(rows))))[0])
  drawn = [metric.resample(rows, w) for w in _drawn(member, clusters, draws, seed)]
  return Estimate(
    value=value if np.isfinite(value) else None,
    ci95=_percentiles(np.concatenate(drawn), clusters),
    units=len(rows),
    images=clusters,
  )


def change(
  metric: Metric,
  old: dict[str, Scored],
  new: dict[str, Scored],
  *,
  draws: int,
  seed: int,
) -> PairedChange | None:
  """Compares two models on the units that both have; None where there is none.

  Args:
    metric: of both.
    old: units by key.
    new: units by key.
    draws: of the bootstrap and of the test, where they are drawn.
    seed: of the draws.
  """
  keys = [key for key in old if key in new]
  if not keys:
    return None
  a, b = [old[k] for k in keys], [new[k] for k in keys]
  before, after = (np.array([row.score for row in rows], np.float64) for rows in (a, b))
  images = [row.image for row in a]
  found = (
    _of_means(before, after, images)
    if is_mean(metric, a) and is_mean(metric, b)
    else _of_corpora(metric, a, b, images, draws=draws, seed=seed)
  )
  low, high = found.ci95
  return dataclasses.replace(
    found,
    wins=int((after > before).sum()),
    losses=int((after < before).sum()),
    detectable=(high - low) / 2 / _INTERVAL * _DETECTED,
  )


def _of_means(before: np.ndarray, after: np.ndarray, images: Sequence[str]) -> PairedChange:
  found = rates.change_by_image(before, after, images)
  return _found(found.change, found.ci95, found.p, found.n, found.images)


def _of_corpora(
  metric: Metric,
  a: Sequence[Scored],
  b: Sequence[Scored],
  images: Sequence[str],
  *,
  draws: int,
  seed: int,
) -> PairedChange:
  member, clusters = _members(images)
  every = np.ones((1, len(a)))
  step = float(metric.resample(b, every)[0] - metric.resample(a, every)[0])
  drawn = [
    metric.resample(b, w) - metric.resample(a, w) for w in _drawn(member, clusters, draws, seed)
  ]
  both = [*a, *b]
  extremes = total = 0
  for swapped in _swaps(clusters, draws, seed, rows=2 * len(a)):
    mine = swapped[:, member]  # f64[R, N], 1 where a cluster's rows are swapped.
    flipped = metric.resample(both, np.hstack([mine, 1 - mine])) - metric.resample(
      both, np.hstack([1 - mine, mine])
    )
    extremes += int((np.abs(flipped) >= abs(step) - 1e-9).sum())
    total += len(flipped)
  exact = clusters <= _ENUMERATED
  p = extremes / total if exact else (1 + extremes) / (1 + total)
  return _found(step, _percentiles(np.concatenate(drawn), clusters), p, len(a), clusters)


def _found(
  step: float, ci95: tuple[float, float], p: float, units: int, images: int
) -> PairedChange:
  return PairedChange(
    change=step,
    ci95=ci95,
    p=p,
    units=units,
    images=images,
    wins=0,
    losses=0,
    detectable=0.0,
  )


def forgotten(
  old: Sequence[Scored], new: Sequence[Scored], images: Sequence[str]
) -> tuple[rates.Rate, rates.Rate]:
  """Returns the share that the new model loses of what the old one had right, and what it gains.

  A unit is right from a score of one half on. The second share is of what the old one had wrong.

  Args:
    old: units of several benchmarks.
    new: the same units.
    images: their clusters.
  """
  was = np.array([row.score >= 0.5 for row in old], bool)
  is_now = np.array([row.score >= 0.5 for row in new], bool)
  names = np.array(images, object)
  lost = rates.rate_by_image(~is_now[was], names[was].tolist())
  return lost, rates.rate_by_image(is_now[~was], names[~was].tolist())


def _members(images: Sequence[str]) -> tuple[np.ndarray, int]:
  """Returns the cluster of each row, i64[N], and how many there are."""
  place: dict[str, int] = {}
  member = np.fromiter((place.setdefault(i, len(place)) for i in images), np.int64, len(images))
  return member, len(place)


def _drawn(member: np.ndarray, clusters: int, draws: int, seed: int) -> Iterator[np.ndarray]:
  """Yields f64[R, N] weights of rows: how often each one's cluster is drawn."""
  rng = streams.rng(seed, "bootstrap over images")
  for size in _sizes(draws, len(member)):
    counts = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size)
    yield counts[:, member] * 1.0


def _swaps(clusters: int, draws: int, seed: int, *, rows: int) -> Iterator[np.ndarray]:
  """Yields f64[R, C] zeros and ones: whether the models are swapped within a cluster."""
  if clusters <= _ENUMERATED:
    yield ((np.arange(2**clusters)[:, None] >> np.arange(clusters)) & 1) * 1.0
    return
  rng = streams.rng(seed, "models swapped by image")
  for size in _sizes(draws, rows):
    yield rng.integers(0, 2, (size, clusters)) * 1.0


def _sizes(draws: int, rows: int) -> Iterator[int]:
  most = max(1, _AT_ONCE // max(rows, 1))
  for start in range(0, draws, most):
    yield min(most, draws - start)


def _percentiles(values: np.ndarray, clusters: int) -> tuple[float, float]:
  """Returns the middle 95 % of the draws; all numbers where there is nothing to draw from."""
  values = values[np.isfinite(values)]
  if clusters < 2 or not len(values):
    return -np.inf, np.inf
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)
