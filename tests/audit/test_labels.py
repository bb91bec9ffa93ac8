# SPDX-License-Identifier: Apache-2.0
"""Labels of finds: who is drawn, what labels mean, and that intervals hold what they promise."""

from collections import Counter
import dataclasses

import numpy as np
import pytest

from auditdm_jax.audit import labels as labels_lib
from auditdm_jax.audit import rates, sampling
from auditdm_jax.audit.attempt import Attempt, Failure
from auditdm_jax.audit.labels import Label, LabelledFind
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.core.config import UserError


def _failure(i, *, mode="m", grade="V1", image=None):
  probe = Probe.make(image or f"i{i}", f"what is number {i}")
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": "red", "a": "blue", "b": "blue"},
    target="t",
    references=("a", "b"),
    consensus="blue",
    agree=True,
    disagreement=True,
    reason="disagreement",
  )
  find = Attempt(probe=probe, verdict=verdict).find
  assert find is not None
  return Failure.of(find, grade=grade, mode_id=mode)


def _population(n=300):
  """Modes of very different sizes, a third of them not verified, three finds an image."""
  modes = ["big"] * (n // 2) + ["middle"] * (n // 4) + [f"small{i}" for i in range(n - 3 * n // 4)]
  grades = ["V0", "V1", "V2"]
  return [
    _failure(i, mode=mode, grade=grades[i % 3], image=f"i{i // 3}") for i, mode in enumerate(modes)
  ]


def test_a_sample_is_the_same_each_time_and_grows_without_changes():
  finds = _population()
  small = sampling.draw(finds, n=40, seed=3)
  assert small == sampling.draw(finds[::-1], n=40, seed=3) and len(small) == 40
  assert sampling.draw(finds, n=40, seed=3, earlier=small) == []
  assert sampling.draw(finds, n=20, seed=3, earlier=small) == []
  more = sampling.draw(finds, n=100, seed=3, earlier=small)
  keys = [row.key for row in [*small, *more]]
  assert len(set(keys)) == 100 and {row.draw for row in more} == {1}
  assert {row.key for row in sampling.draw(finds, n=40, seed=4)} != {row.key for row in small}
  everything = sampling.draw(finds, n=1_000, seed=3)
  assert len(everything) == 300 and set(sampling.chances(everything).values()) == {1.0}


def test_the_chances_that_are_written_down_are_the_chances():
  finds = _population(120)
  sizes = Counter()
  hits = Counter()
  for seed in range(400):
    rows = sampling.draw(finds, n=30, seed=seed)
    chance = sampling.chances(rows)
    for row in rows:
      assert row.probability == row.drawn / row.size == chance[row.stratum]
      hits[row.key] += 1
      sizes[row.key] = row.probability
  worst = max(abs(hits[k] / 400 - p) / np.sqrt(p * (1 - p) / 400) for k, p in sizes.items())
  assert len(sizes) == 120 and worst < 4.5
  total = np.mean(
    [sum(1 / r.probability for r in sampling.draw(finds, n=30, seed=s)) for s in range(5)]
  )
  assert total == pytest.approx(120)  # Horvitz and Thompson's estimate of how many there are.


def test_each_stratum_gets_two_and_larger_samples_hold_smaller_ones():
  sizes = {"a": 1, "b": 2, "c": 50, "d": 1_000}
  assert sampling.allocate(sizes, 7) == {"a": 1, "b": 2, "c": 2, "d": 2}
  before = dict.fromkeys(sizes, 0)
  for n in range(0, 1_100, 7):
    now = sampling.allocate(sizes, n)
    assert sum(now.values()) == min(n, 1_053) and all(now[k] >= before[k] for k in sizes)
    assert all(now[k] <= sizes[k] for k in sizes)
    before = now
  assert sampling.allocate(sizes, 200)["d"] > 180


def test_other_finds_than_those_drawn_from_are_refused():
  finds = _population()
  drawn = sampling.draw(finds, n=40, seed=3)
  with pytest.raises(UserError, match="others than those"):
    sampling.draw([_failure(1_000 + i) for i in range(300)], n=60, seed=3, earlier=drawn)


def _label(failure, choice, rater="ann"):
  return Label(key=failure.probe.probe_id, rater=rater, choice=choice)


def test_a_label_sets_the_grade():
  finds = [_failure(i, grade=g) for i, g in enumerate(("V1", "V0", "V2", "V1", "V1", "V1"))]
  choices = ("consensus", "consensus", "both", "unclear", "neither")
  told = list(labels_lib.apply(finds, [_label(f, c) for f, c in zip(finds, choices)]))
  assert [(f.label, f.grade) for f in told] == [
    ("right", "V3"),
    ("right", "V0"),  # A gate's mistake is counted, not undone.
    ("wrong", "V0"),
    ("unclear", "V1"),
    ("wrong", "V0"),
    (None, "V1"),
  ]


def test_most_raters_decide_and_the_last_word_of_each_counts():
  find = _failure(0)
  said = [_label(find, "target"), _label(find, "consensus"), _label(find, "target", "bob")]
  assert next(labels_lib.apply([find], said)).label == "unclear"
  said.append(_label(find, "consensus", "eve"))
  assert next(labels_lib.apply([find], said)).label == "right"


def test_finds_count_for_the_stratum_that_they_were_drawn_from():
  """Half of the sample is of a stratum that holds a tenth of the finds."""
  big = [_failure(i, mode="big") for i in range(90)]
  small = [_failure(100 + i, mode="small") for i in range(10)]
  finds = [*big, *small]
  rows = [
    sampling.Sampled(
      key=f.probe.probe_id,
      stratum=f.mode_id,
      draw=0,
      drawn=10,
      size=len(own),
      probability=10 / len(own),
      first="target",
    )
    for own in (big, small)
    for f in own[:10]
  ]
  labels = [_label(f, "consensus") for f in big[:10]] + [_label(f, "target") for f in small]
  scores = labels_lib.score(finds, rows, labels)
  assert scores is not None and scores.finds.rate == pytest.approx(0.9)
  assert (scores.finds.n, scores.labelled, scores.error) == (20, 20, None)
  assert scores.finds.ci95[0] < 0.9 < scores.finds.ci95[1]
  # A find that itself stands for many that were not looked at counts for them.
  heavy = [dataclasses.replace(f, weight=9.0) if f.mode_id == "small" else f for f in finds]
  found = labels_lib.score(heavy, rows, labels)
  assert found is not None and found.finds.rate == pytest.approx(0.5)
  assert labels_lib.score(finds, rows, []) is None


def _world(rng, *, share, repeated, shared, n=960):
  """Truth, strata and images of finds; `shared` is the correlation within an image."""
  images = np.repeat(np.arange(n // repeated), repeated)
  if 0 < share < 1 and shared:
    scale = (1 - shared) / shared
    p = rng.beta(share * scale, (1 - share) * scale, n // repeated)[images]
  else:
    p = np.full(n, share)
  return rng.random(n) < p, np.minimum(rng.geometric(0.4, n), 5), images


def _run(rng, *, share, repeated, shared, raters, error, overlap=1.0, n=160):
  truth, strata, images = _world(rng, share=share, repeated=repeated, shared=shared)
  sizes = {int(s): int((strata == s).sum()) for s in np.unique(strata)}
  quota, finds = sampling.allocate({str(s): k for s, k in sizes.items()}, n), []
  for s, size in sizes.items():
    for i in rng.permutation(np.flatnonzero(strata == s))[: quota[str(s)]]:
      voters = raters if rng.random() < overlap else 1
      votes = tuple(bool(x) for x in truth[i] ^ (rng.random(voters) < error))
      finds.append(LabelledFind(str(images[i]), size / quota[str(s)], True, votes))
  return finds


def _covered(runs, **world):
  """Share of runs whose interval holds the share that the finds were made with."""
  rng, hits = np.random.default_rng(7), 0
  for _ in range(runs):
    finds = _run(rng, **world)
    disagreement = labels_lib.rater_error(finds)
    low, high = labels_lib.share(finds, disagreement).ci95
    hits += low - 1e-9 <= world["share"] <= high + 1e-9
  return hits / runs


CELLS = [
  dict(share=share, repeated=repeated, shared=shared)
  for share in (0.03, 0.5, 0.8, 0.97, 1.0)
  for repeated, shared in ((1, 0.0), (3, 0.3), (8, 0.7))
]


def test_raters_who_err_are_corrected_for():
  """5 % of labels are wrong: 97 % right finds look like 92 %, and the interval holds 97 %."""
  world, rng = dict(CELLS[9]), np.random.default_rng(1)
  assert _covered(60, **world, raters=2, error=0.05) >= 0.88
  assert _covered(60, **world, raters=2, error=0.05, overlap=0.3) >= 0.88
  for overlap in (0.0, 0.3, 1.0):
    world |= dict(raters=2, error=0.05, overlap=overlap)
    finds = [f for _ in range(40) for f in _run(rng, **world)]
    disagreement = labels_lib.rater_error(finds)
    found = labels_lib.share(finds, disagreement).value
    if overlap:
      assert found == pytest.approx(0.97, abs=0.01)
      assert labels_lib._error(disagreement.value) == pytest.approx(0.05, abs=0.01)
    else:  # Nothing is known of one rater's errors.
      assert found == pytest.approx(0.97 * 0.95 + 0.03 * 0.05, abs=0.01)


# Two standard errors of 500 runs below 95 %. The lowest cell is at 92.6 %, at 95.0 % over 2,000.
@pytest.mark.slow
@pytest.mark.parametrize("world", CELLS, ids=str)
@pytest.mark.parametrize(("raters", "overlap"), [(2, 1.0), (2, 0.3), (3, 1.0)])
def test_corrected_intervals_cover(world, raters, overlap):
  assert _covered(500, **world, raters=raters, error=0.05, overlap=overlap) >= 0.925


def test_raters_who_disagree_too_much_correct_nothing():
  rng = np.random.default_rng(0)
  finds = _run(rng, share=0.5, repeated=1, shared=0.0, raters=2, error=0.5)
  disagreement = labels_lib.rater_error(finds)
  assert labels_lib.share(finds, disagreement) == labels_lib.share(finds, None)


def test_a_share_of_a_share_holds_both_uncertainties():
  rng, hits = np.random.default_rng(5), 0
  for _ in range(1_000):
    k = rng.binomial(700, 0.09)
    right = rates.rate(rng.binomial(60, 0.8), 60)
    found = labels_lib.product(rates.rate(k, 700), right)
    hits += found.ci95[0] <= 0.09 * 0.8 <= found.ci95[1]
  assert found.n == 700 and hits >= 930
  assert labels_lib.product(rates.rate(1, 9), rates.NOTHING) == rates.NOTHING


def test_kappa_is_that_of_scikit_learn():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(0)
  for n in (5, 40, 200):
    first = rng.choice(["right", "wrong", "unclear"], n, p=[0.7, 0.2, 0.1])
    second = np.where(rng.random(n) < 0.2, rng.choice(["right", "wrong"], n), first)
    images = [str(i // 2) for i in range(n)]
    found = labels_lib.agreement(list(first), list(second), images=images, raters=("a", "b"))
    assert found.kappa == pytest.approx(metrics.cohen_kappa_score(first, second))
    assert found.ci95[0] <= found.kappa <= found.ci95[1] and found.n == n
  same = labels_lib.agreement(["right"] * 3, ["right"] * 3, images=["a"] * 3, raters=("a", "b"))
  assert same.kappa is None
