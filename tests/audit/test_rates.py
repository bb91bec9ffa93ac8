# SPDX-License-Identifier: Apache-2.0
"""Statistics against scipy, known values, and simulation."""

import numpy as np
import pytest
from scipy import stats

from auditdm_jax.audit import rates


@pytest.mark.parametrize("k,n", [(0, 10), (3, 10), (10, 10), (81, 263), (1, 1)])
def test_intervals_equal_scipy(k, n):
  result = stats.binomtest(k, n)
  wilson = result.proportion_ci(method="wilson")
  np.testing.assert_allclose(rates.wilson(k, n), wilson, atol=1e-9)
  one_sided = stats.binomtest(k, n, alternative="greater").proportion_ci(method="exact").low
  assert rates.lower_bounds(k, n) == pytest.approx(one_sided, abs=1e-9)


def test_nothing_tried_is_no_rate():
  assert rates.rate(0, 0) == rates.NOTHING == rates.Rate(0, 0, None, (0.0, 1.0))


def test_fisher_equals_scipy():
  for k, n, rk, rn in [(9, 10, 3, 60), (0, 5, 4, 10), (5, 5, 0, 5), (40, 200, 30, 3000)]:
    expected = stats.fisher_exact([[k, n - k], [rk, rn - rk]], alternative="greater")[1]
    assert rates.fisher_greater(k, n, rk, rn) == pytest.approx(expected, rel=1e-6)


def test_benjamini_hochberg_equals_scipy_and_counts_unlisted_tests():
  p = [0.01, 0.04, 0.03, 0.5, 0.001]
  np.testing.assert_allclose(rates.benjamini_hochberg(p), stats.false_discovery_control(p))
  padded = stats.false_discovery_control([*p, 1, 1, 1, 1, 1])[:5]
  np.testing.assert_allclose(rates.benjamini_hochberg(p, m=10), padded)
  assert len(rates.benjamini_hochberg([])) == 0


def test_planners():
  n = rates.plan_rate(expected=0.5, half_width=0.05)
  low, high = rates.wilson(n // 2, n)
  assert (high - low) / 2 <= 0.0502 and 370 <= n <= 390
  n = rates.plan_paired(worse=0.15, better=0.05)
  rng = np.random.default_rng(0)
  draws = rng.multinomial(n, [0.15, 0.05, 0.8], size=400)
  power = np.mean([stats.binomtest(b, b + c).pvalue <= 0.05 for b, c, _ in draws])
  assert 0.7 <= power <= 0.9
