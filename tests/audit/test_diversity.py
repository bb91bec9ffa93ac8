# SPDX-License-Identifier: Apache-2.0
"""Hill numbers against enumeration, known limits and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from auditdm_jax.audit import diversity
from auditdm_jax.audit.diversity import Sample


def _plug_in(counts):
  share = np.asarray([c for c in counts if c]) / sum(counts)
  return len(share), math.exp(-(share * np.log(share)).sum()), 1 / (share**2).sum()


def test_the_whole_sample_has_the_plug_in_numbers():
  counts = np.array([5, 3, 0, 1, 1])
  assert diversity.hill(counts, 10) == pytest.approx(_plug_in(counts))
  assert diversity.hill(np.array([4, 4, 4]), 12) == pytest.approx((3, 3, 3))


def test_fewer_finds_are_averaged_over_all_choices():
  """The abundances are averaged, not the numbers of the choices (Chao et al. 2014)."""
  counts, size = np.array([3, 2, 1, 1]), 4
  finds = np.repeat(np.arange(4), counts)
  tables = [
    np.bincount(finds[list(c)], minlength=4) for c in itertools.combinations(range(7), size)
  ]
  often = np.array([[(t == k).sum() for k in range(size + 1)] for t in tables]).mean(0)
  share = np.arange(1, size + 1) / size
  expected = (
    often[1:].sum(),
    math.exp(-(share * np.log(share) * often[1:]).sum()),
    1 / (share**2 * often[1:]).sum(),
  )
  assert diversity.hill(counts, size) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 7, 19, 20])
@pytest.mark.parametrize("counts", [[20], [18, 2], [10, 10], [9, 5, 3, 1, 1, 1], [1] * 20])
def test_chances_are_hypergeometric_and_only_of_what_can_be(counts, size):
  k = np.arange(1, size + 1)
  chance = sum(stats.hypergeom.pmf(k, 20, x, size) for x in counts)
  share = k / size
  entropy = -(chance * share * np.log(share)).sum()
  expected = (chance.sum(), math.exp(entropy), 1 / (chance * share**2).sum())
  assert diversity.hill(np.array(counts), size) == pytest.approx(expected, rel=1e-9)


def test_coverage_of_fewer_finds_is_what_the_others_hit():
  counts, size = np.array([4, 2, 1]), 3
  finds = np.repeat(np.arange(3), counts)
  hits = []
  for chosen in itertools.combinations(range(7), size):
    rest = set(range(7)) - set(chosen)
    hits += [finds[i] in finds[list(chosen)] for i in rest]
  assert diversity.coverage(counts, size) == pytest.approx(np.mean(hits))
  assert diversity.coverage(np.array([5, 5]), 10) == 1
  assert diversity.coverage(np.ones(8, int), 8) < 0.1


def test_a_size_of_a_coverage_is_the_smallest():
  counts = np.array([20, 10, 5, 2, 2, 1, 1, 1])
  for share in (0.3, 0.7, 0.9):
    size = diversity.size_of_coverage(counts, share)
    assert diversity.coverage(counts, size) >= share > diversity.coverage(counts, size - 1)


def _sample(rng, images, *, alike, kinds=40, each=3):
  """Finds of a Zipf distribution; a share `alike` has the kind of its image."""
  p = 1 / np.arange(1, kinds + 1)
  p /= p.sum()
  of_image, own = rng.choice(kinds, images, p=p), rng.choice(kinds, (images, each), p=p)
  found = np.where(rng.random((images, each)) < alike, of_image[:, None], own)
  return Sample(found.ravel().tolist(), np.repeat(np.arange(images), each).tolist())


def test_samples_of_different_size_of_one_distribution_are_alike():
  """The plug-in calls the larger one a third more varied."""
  rng = np.random.default_rng(0)
  large, *others = (_sample(rng, n, alike=0.0) for n in (400, *[20] * 9))
  small = sorted(others, key=lambda s: diversity.hill(s.counts, s.total)[1])[4]  # A typical one.
  found = diversity.compared({"large": large, "small": small, "tiny": Sample(["a"], ["i"])})
  assert found.keys() == {"large", "small"} and found["large"].total == 1200
  plain = [diversity.hill(s.counts, s.total)[1] for s in (large, small)]
  equal = [found[name].equal_finds.common for name in ("large", "small")]
  assert plain[0] > 1.2 * plain[1]
  assert equal[0].value == pytest.approx(equal[1].value, rel=0.15)
  assert equal[1].ci95[0] < equal[0].value < equal[1].ci95[1]
  covered = [found[name].equal_coverage.coverage.value for name in ("large", "small")]
  assert covered[0] == pytest.approx(covered[1], abs=0.02)


@pytest.mark.parametrize("alike", [0.0, 0.6])
def test_intervals_cover(alike, monkeypatch):
  """Without new kinds in the bootstrap the number of kinds is covered in 80 %."""
  monkeypatch.setattr(diversity, "_DRAWS", 40)
  rng, images, size = np.random.default_rng(1), 40, 60
  draws = [_sample(rng, images, alike=alike).counts for _ in range(200)]
  truth = np.mean([(diversity.coverage(c, size), *diversity.hill(c, size)) for c in draws], axis=0)
  hits = []
  for _ in range(60):
    found = diversity.spread(_sample(rng, images, alike=alike), size)
    shown = (found.coverage, found.kinds, found.common, found.dominant)
    hits.append([e.ci95[0] <= t <= e.ci95[1] for e, t in zip(shown, truth, strict=True)])
  assert (np.mean(hits, axis=0) >= 0.85).all()


def test_queries_to_gaps():
  finds = [(3, "a"), (4, "b"), (9, "a"), (12, "c"), (20, "b")]
  assert diversity.queries_to(finds, wanted=("a", "b", "d"), least=1) == (3, 4)
  assert diversity.queries_to(finds, wanted=("a", "b", "d"), least=2) == (9, 20)


@pytest.mark.parametrize(
  ("counts", "expected"),
  [
    # Chao and Jost 2012, equation 4a: 1 - f1/n (n-1)f1 / ((n-1)f1 + 2 f2).
    ([4, 2, 2, 1, 1, 1], 1 - 3 / 11 * (30 / (30 + 4))),
    # Without a kind seen twice, f2 is taken as f1 - 1 choose 2 says.
    ([5, 1, 1], 1 - 2 / 7 * (6 / (6 + 2))),
    ([3, 3], 1.0),
  ],
)
def test_coverage_of_the_whole_sample(counts, expected):
  assert diversity.coverage(np.array(counts), sum(counts)) == pytest.approx(expected)
