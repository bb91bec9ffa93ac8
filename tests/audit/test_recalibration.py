# SPDX-License-Identifier: Apache-2.0
"""Predictions corrected by what became of earlier ones."""

import numpy as np
import pytest
from scipy import special

from auditdm_jax.audit.recalibration import Recalibration


def _net(n, *, seed=0):
  """True probabilities f64[N], what a net says that is too sure of itself, and what was found."""
  rng = np.random.default_rng(seed)
  true = rng.beta(3, 1, n)
  said = special.expit(2 * special.logit(true) + 1.5)
  return true, said, rng.random(n) < true


def _corrected(n):
  _, said, found = _net(n)
  out = Recalibration(least=200)
  out.observe(said, found)
  return out


def test_a_net_that_is_too_sure_is_corrected():
  true, said, _ = _net(5_000, seed=1)
  corrected = _corrected(2_000)(said)
  assert np.abs(said - true).mean() > 0.1
  assert np.abs(corrected - true).mean() < 0.03
  sure = said >= 0.9
  assert said[sure].mean() - true[sure].mean() > 0.1
  assert corrected[sure].mean() == pytest.approx(true[sure].mean(), abs=0.02)


def test_the_order_is_the_nets():
  said = np.sort(np.random.default_rng(2).random(1_000))
  corrected = _corrected(2_000)(said)
  assert (np.diff(corrected) >= 0).all() and 0 <= corrected.min() <= corrected.max() <= 1


def test_few_verdicts_change_nothing_and_old_ones_are_forgotten():
  _, said, found = _net(199)
  some = Recalibration(least=200, memory=1_000)
  some.observe(said, found)
  assert some(said).tolist() == said.tolist()
  some.observe([0.9] * 1_000, [False] * 1_000)
  assert some(np.array([0.9, 1.0])).tolist() == [0.0, 0.0]


def test_equal_predictions_have_one_share_in_any_order():
  said = np.repeat([0.2, 0.7, 0.99], [50, 200, 100])
  found = np.concatenate([np.arange(50) < 40, np.arange(200) < 40, np.arange(100) < 60])
  shares = []
  for order in (np.arange(350), np.random.default_rng(3).permutation(350), np.arange(350)[::-1]):
    some = Recalibration(least=200)
    some.observe(said[order], found[order])
    shares.append(some(np.array([0.2, 0.7, 0.99])).tolist())
  pooled = 80 / 250  # 40 of 50 below 40 of 200 are out of order.
  assert shares[0] == shares[1] == shares[2] == pytest.approx([pooled, pooled, 0.6])


def test_what_comes_in_parts_is_what_comes_at_once():
  _, said, found = _net(900)
  parts = Recalibration(least=200)
  for rows in np.array_split(np.arange(900), 7):
    parts.observe(said[rows], found[rows])
  assert parts(said).tolist() == _corrected(900)(said).tolist()
