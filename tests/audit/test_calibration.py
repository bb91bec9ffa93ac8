# SPDX-License-Identifier: Apache-2.0
"""Calibration against a direct computation, and what exact and wrong predictions look like."""

import numpy as np
import pytest

from auditdm_jax.audit.calibration import calibration


def _drawn(n, *, bias=0.0, seed=0):
  """Predictions, and outcomes as often as they say; `bias` is added to what is said."""
  rng = np.random.default_rng(seed)
  true = rng.uniform(0.0, 0.8, n)
  return true + bias, rng.random(n) < true, [str(i) for i in range(n)]


def test_its_numbers_are_those_of_a_direct_computation():
  predicted, found, images = _drawn(500, bias=0.1)
  got = calibration(predicted, found, images, where="sweep", chosen="lot")
  error = 0.0
  for k in range(10):
    own = [i for i in range(500) if k / 10 <= predicted[i] < (k + 1) / 10]
    if own:
      error += abs(np.mean(predicted[own]) - np.mean(found[own])) * len(own) / 500
  assert got.error == pytest.approx(error)
  assert got.brier == pytest.approx(np.mean((predicted - found) ** 2))
  assert got.base == pytest.approx(np.var(found))
  assert (got.where, got.chosen, got.found.n) == ("sweep", "lot", 500)
  assert sum(b.found.n for b in got.bins) == 500
  assert all(b.low <= b.predicted <= b.high for b in got.bins)


def test_exact_predictions_show_the_error_of_chance_and_no_more():
  runs = [calibration(*_drawn(400, seed=s)) for s in range(30)]
  assert np.mean([r.error for r in runs]) == pytest.approx(
    np.mean([r.chance for r in runs]), rel=0.2
  )
  assert np.mean([calibration(*_drawn(400, bias=0.2, seed=s)).error for s in range(30)]) > 0.17


def test_finds_of_one_image_widen_the_interval_of_a_bin_and_the_error_of_chance():
  predicted, found, images = _drawn(400)
  found = np.repeat(found[::8], 8)
  apart = calibration([0.55] * 400, found, images)
  together = calibration([0.55] * 400, found, [str(i // 8) for i in range(400)])
  low, high = apart.bins[0].found.ci95
  assert together.bins[0].found.ci95[0] < low and together.bins[0].found.ci95[1] > high
  assert together.chance > 2 * apart.chance and together.error == apart.error


def test_certain_predictions_are_in_the_last_bin_and_nothing_is_none():
  got = calibration([1.0, 0.95], [True, True], ["a", "b"])
  assert [b.found.n for b in got.bins] == [2] and got.bins[0].high == 1.0
  assert calibration([], [], []) is None
