# SPDX-License-Identifier: Apache-2.0
"""How varied finds are: Hill numbers, compared at equal numbers of finds and at equal coverage.

A larger sample has more kinds, whatever it is a sample of: of a true 58 equally common kinds, 40
finds show 23 and 300 show 48. Samples are therefore compared as if each had only as many finds as
the smallest, or as many as show the same share of what is there (Chao and Jost 2012, Ecology
93:2533; Chao et al. 2014, Ecological Monographs 84:45). Orders 0, 1 and 2 count the kinds, the
common ones and the dominant ones. Intervals are of a bootstrap over images.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
import dataclasses
import math

import numpy as np
from scipy import special, stats

from auditdm_jax.core import streams

LEAST = 20  # Finds below which nothing is said of how varied they are.
_DRAWS = 200


@dataclasses.dataclass(frozen=True)
class HillEstimate:
  """A number and its 95 % interval."""

  value: float
  ci95: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Spread:
  """How many kinds so many finds show.

  Attributes:
    finds: the size of the sample that the numbers are of.
    coverage: estimated share of further finds whose kind such a sample has.
    kinds: Hill number of order 0, the kinds.
    common: of order 1, the exponential of their entropy.
    dominant: of order 2, the inverse of Simpson's concentration.
  """

  finds: int
  coverage: HillEstimate
  kinds: HillEstimate
  common: HillEstimate
  dominant: HillEstimate


@dataclasses.dataclass(frozen=True)
class Diversity:
  """A sample against others, at the finds of the smallest and at the coverage of the least covered.

  Attributes:
    total: its own finds.
    equal_finds: as if each sample had as many finds.
    equal_coverage: as if each showed the same share.
  """

  total: int
  equal_finds: Spread
  equal_coverage: Spread


class Sample:
  """Finds by kind and image: counts i64[images, kinds]."""

  def __init__(self, kinds: Sequence[Hashable], images: Sequence[Hashable]):
    """Takes the kind and the image of each find."""
    of_kind = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    of_image = {image: i for i, image in enumerate(dict.fromkeys(images))}
    self.table = np.zeros((len(of_image), len(of_kind)), np.int64)
    for kind, image in zip(kinds, images, strict=True):
      self.table[of_image[image], of_kind[kind]] += 1
    self.counts = self.table.sum(0)
    self.total = int(self.counts.sum())

  def draws(self) -> Iterator[np.ndarray]:
    """Yields counts by kind of as many images, drawn with replacement.

    A kind that a single image has is another one each time it is drawn. Otherwise no draw would
    have new kinds, as further images do, and what is left would vary too little (ours).
    """
    images = len(self.table)
    alone = (self.table > 0).sum(0) == 1
    image_of, size_of = self.table[:, alone].argmax(0), self.counts[alone]
    rng = streams.rng(0, "diversity")
    for weights in rng.multinomial(images, np.full(images, 1 / images), _DRAWS):
      again = np.repeat(size_of, weights[image_of])
      yield np.concatenate([weights @ self.table[:, ~alone], again])


def compared(samples: Mapping[str, Sample]) -> dict[str, Diversity]:
  """Returns the diversity of the samples of `LEAST` finds and more; others are left out."""
  known = {name: s for name, s in samples.items() if s.total >= LEAST}
  if not known:
    return {}
  finds = min(s.total for s in known.values())
  share = min(coverage(s.counts, s.total) for s in known.values())
  return {
    name: Diversity(
      total=s.total,
      equal_finds=spread(s, finds),
      equal_coverage=spread(s, size_of_coverage(s.counts, share)),
    )
    for name, s in known.items()
  }


def spread(sample: Sample, finds: int) -> Spread:
  """Returns what `finds` finds of a sample show."""
  values = _numbers(sample.counts, finds)
  drawn = [_numbers(counts, min(finds, int(counts.sum()))) for counts in sample.draws()]
  t = float(stats.t.ppf(0.975, max(len(sample.table) - 1, 1)))
  seen = t * float(np.std([d[0] for d in drawn], ddof=1))
  factors = np.exp(t * np.std(np.log([d[1:] for d in drawn]), axis=0, ddof=1))
  share = values[0]
  return Spread(
    finds,
    HillEstimate(share, (max(share - seen, 0.0), min(share + seen, 1.0))),
    *(
      HillEstimate(v, (max(v / float(f), 1.0), v * float(f)))
      for v, f in zip(values[1:], factors, strict=True)
    ),
  )


def _numbers(counts: np.ndarray, size: int) -> tuple[float, ...]:
  return coverage(counts, size), *hill(counts, size)


def hill(counts: np.ndarray, size: int) -> tuple[float, float, float]:
  """Returns the Hill numbers of order 0, 1 and 2 that `size` of the finds have on average.

  Args:
    counts: finds by kind.
    size: at most their sum.
  """
  own, times = np.unique(counts[counts > 0], return_counts=True)
  n = int((own * times).sum())
  # Hypergeometric chances of k of the x finds of a kind among `size` of n, for all x at once.
  least, most = np.maximum(0, size - (n - own)), np.minimum(own, size)
  lengths = most - least + 1
  x, many = np.repeat(own, lengths), np.repeat(times, lengths)
  k = np.arange(len(x)) - np.repeat(np.cumsum(lengths) - lengths - least, lengths)
  log = special.gammaln(np.arange(1, n + 2))  # Of the factorials to n.
  chance = log[x] - log[k] - log[x - k] + log[n - x] - log[size - k] - log[n - x - size + k]
  chance = many * np.exp(chance - (log[n] - log[size] - log[n - size]))
  share = k / size
  entropy = -float(chance @ special.xlogy(share, share))
  return float(chance[k > 0].sum()), math.exp(entropy), 1 / float(chance @ share**2)


def coverage(counts: np.ndarray, size: int) -> float:
  """Returns the estimated share of further finds whose kind `size` of the finds have.

  Of the whole sample it is Good and Turing's with Chao and Jost's correction.
  """
  x = counts[counts > 0]
  n = int(x.sum())
  if size < n:
    left = x[n - x >= size]
    missed = np.exp(_log_choose(n - left, size) - _log_choose(n - 1, size))
    return float(np.clip(1 - (left / n * missed).sum(), 0, 1))
  once, twice = int((x == 1).sum()), int((x == 2).sum())
  if once == 0:
    return 1.0
  if twice == 0:
    twice_or_less = (n - 1) * (once - 1) / ((n - 1) * (once - 1) + 2)
  else:
    twice_or_less = (n - 1) * once / ((n - 1) * once + 2 * twice)
  return float(np.clip(1 - once / n * twice_or_less, 0, 1))


def size_of_coverage(counts: np.ndarray, share: float) -> int:
  """Returns the fewest finds that cover `share`, or all of them."""
  low, high = 1, int(counts.sum())
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if coverage(counts, middle) >= share else (middle + 1, high)
  return low


def queries_to(
  finds: Sequence[tuple[int, str]], *, wanted: Sequence[str], least: int
) -> tuple[int, ...]:
  """Returns after how many queries the first of the wanted gaps was found, the second and so on.

  Args:
    finds: (number of the query, gap) of the confirmed finds in their order.
    wanted: the gaps that count.
    least: confirmed finds from which a gap counts as found.
  """
  left = dict.fromkeys(wanted, least)
  reached = []
  for query, gap in finds:
    if gap in left:
      left[gap] -= 1
      if left[gap] == 0:
        reached.append(query)
  return tuple(reached)


def _log_choose(n: int | np.ndarray, k: int | np.ndarray) -> np.ndarray:
  return special.gammaln(np.add(n, 1)) - special.gammaln(np.add(k, 1)) - special.gammaln(n - k + 1)
