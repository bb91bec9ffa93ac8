# SPDX-License-Identifier: Apache-2.0
"""Images as units: equal to the textbook where no image repeats, covering where images do."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from auditdm_jax.audit import by_image, rates


def _clustered(rng, shape, p, icc):
  """bool[images, probes] whose failures share an image's rate."""
  images, probes = shape
  chance = rng.beta(p * (1 - icc) / icc, (1 - p) * (1 - icc) / icc, images) if icc else p
  return rng.random((probes, images)).T < np.broadcast_to(chance, images)[:, None]


def _images(shape):
  return np.repeat(np.arange(shape[0]), shape[1])


def test_without_repeated_images_a_rate_is_wilsons():
  failed = np.arange(40) < 7
  assert rates.rate_by_image(failed, range(40)) == rates.rate(7, 40)
  assert rates.rate_by_image([], []) == rates.NOTHING


def test_images_of_one_answer_count_once():
  found = rates.rate_by_image(np.repeat(np.arange(30) < 10, 8), _images((30, 8)))
  assert (found.k, found.n, found.images) == (80, 240, 30)
  assert found.effective == pytest.approx(30, rel=0.04)
  never = rates.rate_by_image(np.zeros(240), _images((30, 8)))
  assert never.ci95[0] == 0 and never.ci95[1] > rates.rate(0, 30).ci95[1]
  assert rates.rate_by_image([1, 0, 1], ["a"] * 3).ci95 == (0.0, 1.0)


def test_the_complement_of_a_rate():
  found = rates.rate_by_image([1, 1, 0, 1], list("aabb"))
  opposite = rates.rate_by_image([0, 0, 1, 0], list("aabb"))
  got = found.complement
  assert (got.k, got.n, got.images, got.design) == (1, 4, 2, opposite.design)
  assert got.ci95 == pytest.approx(opposite.ci95) and rates.NOTHING.complement == rates.NOTHING


def test_scores_may_lie_between():
  found = rates.rate_by_image([0.25, 1.0, 0.5, 0.5], list("abcd"))
  assert found.k == 2.25 and found.rate == 0.5625 and found.ci95[0] < 0.5625 < found.ci95[1]


def test_every_value_needs_its_image():
  with pytest.raises(ValueError, match="one image per value"):
    rates.rate_by_image([True, False], ["a"])


@pytest.mark.parametrize("shape", [(20, 3), (20, 8), (60, 8)])
@pytest.mark.parametrize("icc", [0, 0.3, 0.7])
def test_rates_cover(shape, icc):
  """Wilson's interval of independent probes covers in 52 to 84 % where icc is .3 or .7."""
  rng, images = np.random.default_rng(0), _images(shape)
  for p in (0.05, 0.5, 0.9):
    found = [
      rates.rate_by_image(_clustered(rng, shape, p, icc).ravel(), images) for _ in range(200)
    ]
    assert np.mean([f.ci95[0] <= p <= f.ci95[1] for f in found]) >= 0.90, p


def _flips(rng, shape, worse, better, icc):
  """i8[images, probes] of differences in {-1, 0, 1} that come in images."""
  shares = np.array([better, 1 - worse - better, worse])
  scale = (1 - icc) / icc if icc else 1e6
  weights = rng.gamma(shares * scale + 1e-12, size=(shape[0], 3))
  counts = np.stack([rng.multinomial(shape[1], w / w.sum()) for w in weights])
  return np.stack([np.repeat([-1, 0, 1], c) for c in counts])


@pytest.mark.parametrize("icc", [0, 0.3, 0.7])
def test_changes_cover(icc):
  rng, shape = np.random.default_rng(1), (20, 8)
  for worse, better in ((0.0, 0.0), (0.05, 0.0), (0.3, 0.05)):
    steps = [_flips(rng, shape, worse, better, icc).ravel() for _ in range(150)]
    found = [rates.change_by_image(d < 0, d > 0, _images(shape)) for d in steps]
    covered = [f.ci95[0] <= worse - better <= f.ci95[1] for f in found]
    assert np.mean(covered) >= 0.90, (worse, better)


@pytest.mark.parametrize("b,c", [(0, 0), (1, 9), (9, 1), (5, 5), (40, 200)])
def test_with_one_probe_an_image_the_paired_test_is_mcnemars(b, c):
  old, new = [True] * c + [False] * (b + 30), [False] * c + [True] * b + [False] * 30
  found = rates.change_by_image(old, new, range(len(old)))
  assert found.p == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0)
  assert found.change == pytest.approx((b - c) / len(old)) and found.design == 1


def test_sign_flips_are_exact():
  t = np.array([3, -1, 2, 2, 5, -4, 1, 0])
  nonzero = t[t != 0]
  sums = [np.dot(signs, nonzero) for signs in itertools.product((-1, 1), repeat=len(nonzero))]
  expected = np.mean(np.abs(sums) >= abs(t.sum()))
  assert by_image.sign_flips(t * 1.0) == pytest.approx(expected)
  assert by_image.sign_flips(t / 8) == pytest.approx(expected)  # Enumerated.


def test_drawn_sign_flips_agree_with_exact_ones():
  t = np.random.default_rng(3).integers(-2, 4, 40).astype(float)
  exact, drawn = by_image.sign_flips(t), by_image.sign_flips(t / 3)
  assert 0.001 < exact < 0.3 and drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 9_999))


@pytest.mark.parametrize("b,c,n", [(0, 0, 20), (3, 1, 44), (12, 0, 30), (2, 25, 80.5)])
def test_tango_inverts_the_score_test(b, c, n):
  """At either end the score statistic, its likelihood maximised by search, is the quantile."""

  def statistic(d):
    def loss(p_c):
      p_b = p_c + d
      rest = 1 - p_b - p_c
      terms = [(b, p_b), (c, p_c), (n - b - c, rest)]
      return -sum(k * math.log(p) for k, p in terms if k > 0)

    low, high = max(0, -d) + 1e-12, (1 - d) / 2 - 1e-12
    p_c = optimize.minimize_scalar(
      loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return (b - c - n * d) / math.sqrt(n * (2 * p_c + d * (1 - d)))

  low, high = by_image.tango(b, c, n, 1.96)
  assert statistic(low) == pytest.approx(1.96, abs=2e-3)
  assert statistic(high) == pytest.approx(-1.96, abs=2e-3)
  assert by_image.tango(c, b, n, 1.96) == pytest.approx((-high, -low))


def test_where_no_image_repeats_enrichment_is_fishers_test():
  inside, outside = np.arange(12) < 8, np.arange(90) < 20
  got = rates.enriched_by_image(inside, range(12), outside, range(100, 190))
  expected = stats.fisher_exact([[8, 4], [20, 70]], alternative="greater")[1]
  assert got == pytest.approx(expected)
  assert rates.enriched_by_image([], [], outside, range(90)) == 1.0


@pytest.mark.parametrize("shape", [(8, 3), (20, 8)])
@pytest.mark.parametrize("icc", [0.3, 0.7])
def test_enrichment_holds_its_level(shape, icc):
  """Fisher's test of probes is significant in 9 to 22 % of these, at 5 %."""
  rng, rest = np.random.default_rng(4), (100, 8)
  p = [
    rates.enriched_by_image(
      _clustered(rng, shape, 0.3, icc).ravel(),
      _images(shape),
      _clustered(rng, rest, 0.3, icc).ravel(),
      1000 + _images(rest),
    )
    for _ in range(300)
  ]
  assert np.mean(np.array(p) <= 0.05) <= 0.06


def test_a_corrected_rate_covers():
  """Flags by image, with sensitivity .8 and specificity .9 known from 50 labels each."""
  rng, shape = np.random.default_rng(5), (60, 4)
  for p in (0.1, 0.5, 0.8):
    covered = []
    for _ in range(200):
      truly = _clustered(rng, shape, p, 0.3)
      flags = rng.random(shape) < np.where(truly, 0.8, 0.1)
      found = rates.corrected(
        rates.rate_by_image(flags.ravel(), _images(shape)),
        rates.Labelled(rng.binomial(50, 0.8), 50),
        rates.Labelled(rng.binomial(50, 0.9), 50),
      )
      covered.append(found.ci95[0] <= p <= found.ci95[1])
    assert np.mean(covered) >= 0.91, p


def test_a_judge_near_chance_gives_no_rate():
  weak = rates.corrected(rates.rate(30, 100), rates.Labelled(30, 50), rates.Labelled(28, 50))
  assert weak.rate is None and weak.ci95 == (0.0, 1.0) and weak.youden < 0.2
  good = rates.corrected(rates.rate(30, 100), rates.Labelled(990, 1000), rates.Labelled(990, 1000))
  assert good.rate == pytest.approx(0.3, abs=0.02)
