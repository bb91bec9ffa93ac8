# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests of two models: against scipy, brute force and each other."""

import itertools

import numpy as np
import pytest
from scipy import stats

from auditdm_jax.bench import compare
from auditdm_jax.bench.scorers import Metric, Scored, metric, per_answer
from auditdm_jax.bench.scorers.rows import mean, ratio

EXACT = per_answer(lambda prediction, references: 0.0)
# A metric that is no mean: its square root is taken of the mean.
ROOT = Metric(
  score=lambda items: [],
  reduction=lambda rows, weights: {"root": np.sqrt(mean(rows, weights)["mean"])},
)


def _rows(scores, images=None):
  images = images or [f"im{i}" for i in range(len(scores))]
  return {
    f"q{i}": Scored(key=f"q{i}", score=float(x), image=image)
    for i, (x, image) in enumerate(zip(scores, images, strict=True))
  }


def _change(old, new, images=None, *, of=EXACT, draws=2_000):
  found = compare.change(of, _rows(old, images), _rows(new, images), draws=draws, seed=0)
  assert found is not None
  return found


def test_means_are_told_from_other_metrics():
  rng = np.random.default_rng(0)
  rows = [*_rows(rng.integers(0, 2, 30)).values()]
  assert compare.is_mean(EXACT, rows) and not compare.is_mean(ROOT, rows)
  assert compare.is_mean(metric("choice_accuracy", "lmms-eval"), rows)
  assert not compare.is_mean(EXACT, [*_rows([0.0, 50.0]).values()]), "not in [0, 1]"
  assert not compare.is_mean(EXACT, [])


def test_one_question_an_image_is_mcnemars_exact_test():
  rng = np.random.default_rng(1)
  old, new = rng.integers(0, 2, 80), rng.integers(0, 2, 80)
  found = _change(old, new)
  wins, losses = int(((new == 1) & (old == 0)).sum()), int(((new == 0) & (old == 1)).sum())
  assert (found.wins, found.losses, found.units, found.images) == (wins, losses, 80, 80)
  assert found.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
  assert found.change == pytest.approx(new.mean() - old.mean())
  assert found.ci95[0] < found.change < found.ci95[1]


def test_questions_of_one_image_are_not_independent():
  rng = np.random.default_rng(2)
  old = rng.integers(0, 2, 40)
  new = np.where(rng.random(40) < 0.3, 1 - old, old)
  alone = _change(old, new)
  thrice = _change(np.repeat(old, 3), np.repeat(new, 3), [f"im{i // 3}" for i in range(120)])
  assert thrice.images == 40 and thrice.p == pytest.approx(alone.p)
  width = np.diff(thrice.ci95)[0] / np.diff(alone.ci95)[0]
  assert 0.8 < width < 1.3, "three copies say no more than one"


def test_the_swap_test_of_any_metric_is_the_brute_force_over_all_swaps():
  rng = np.random.default_rng(3)
  old, new = rng.random(9), rng.random(9)
  images = [f"im{i // 2}" for i in range(9)]  # Five clusters.
  found = _change(old, new, images, of=ROOT)
  step, extremes = np.sqrt(new.mean()) - np.sqrt(old.mean()), []
  for signs in itertools.product([False, True], repeat=5):
    flip = np.array([signs[i // 2] for i in range(9)])
    a, b = np.where(flip, new, old), np.where(flip, old, new)
    extremes.append(abs(np.sqrt(b.mean()) - np.sqrt(a.mean())) >= abs(step) - 1e-9)
  assert found.p == pytest.approx(np.mean(extremes)) and found.change == pytest.approx(step)


def test_drawn_swaps_and_the_bootstrap_agree_with_those_of_a_mean():
  """CIDEr and the like, if they were means: the resampling finds what the formulas find."""
  rng = np.random.default_rng(4)
  old, new = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
  new = np.where(rng.random(300) < 0.7, old, new)
  images = [f"im{i // 2}" for i in range(300)]
  shifted = Metric(
    score=lambda items: [],
    reduction=lambda rows, weights: {
      "x": ratio(weights @ np.array([r.score + 5 for r in rows]), weights.sum(1))
    },
  )
  exact, drawn = _change(old, new, images), _change(old, new, images, of=shifted, draws=4_000)
  assert drawn.change == pytest.approx(exact.change)
  assert drawn.p == pytest.approx(exact.p, abs=0.03)
  assert np.allclose(drawn.ci95, exact.ci95, atol=0.012)
  assert drawn.detectable == pytest.approx(exact.detectable, rel=0.2)


def test_what_could_be_shown_is_shown_four_times_out_of_five():
  """A true change of the size that so many pairs could show is found at p < 0.05 as often."""
  rng, n, worse = np.random.default_rng(5), 400, 0.05
  nothing = np.where(rng.random(n) < worse, 1, 0)
  flat = _change(nothing, np.where(rng.random(n) < worse, 1, 0))
  better = worse + flat.detectable
  hits = []
  for _ in range(60):
    u = rng.random(n)
    old, new = (u < worse).astype(int), ((u >= worse) & (u < worse + better)).astype(int)
    hits.append(_change(old, new).p < 0.05)
  assert 0.6 < np.mean(hits) < 0.97


def test_only_common_units_are_compared():
  old, new = _rows([1, 1, 0, 0]), _rows([0, 1, 1, 1, 1])
  del new["q0"]
  found = compare.change(EXACT, old, new, draws=100, seed=0)
  assert found is not None and (found.units, found.wins, found.losses) == (3, 2, 0)
  assert compare.change(EXACT, old, {}, draws=100, seed=0) is None


def test_one_image_gives_no_interval():
  found = _change([0.1, 0.2], [0.3, 0.9], ["a", "a"], of=ROOT)
  assert found.ci95 == (-np.inf, np.inf) and found.p == 1


def test_draws_are_cut_without_changing_them(monkeypatch):
  rng = np.random.default_rng(6)
  old, new = rng.random(50), rng.random(50)
  whole = _change(old, new, of=ROOT, draws=300)
  monkeypatch.setattr(compare, "_AT_ONCE", 50 * 7)
  cut = _change(old, new, of=ROOT, draws=300)
  assert whole.p == cut.p and np.allclose(whole.ci95, cut.ci95)


def test_forgetting_counts_what_was_right():
  old = [Scored(key=str(i), score=s) for i, s in enumerate([1, 1, 1, 0.6, 0, 0])]
  new = [Scored(key=str(i), score=s) for i, s in enumerate([1, 0, 0.9, 0.3, 1, 0])]
  lost, gained = compare.forgotten(old, new, list("aabbcc"))
  assert (lost.k, lost.n, lost.images) == (2, 4, 2) and (gained.k, gained.n) == (1, 2)
