# SPDX-License-Identifier: Apache-2.0
"""How many finds are real: by labels, by weights, and behind flags that err."""

import numpy as np
import pytest

from auditdm_jax.audit import precision, rates
from auditdm_jax.audit.attempt import Attempt, Failure, Gate, Opinion
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.outside import Labels, TrueAnswers
from auditdm_jax.audit.precision import FindPrecision, KnownProbe
from auditdm_jax.audit.probe import Probe
from auditdm_jax.audit.verdict import verdict


def _attempt(i, target, *references, image=None):
  probe = Probe.make(image or f"i{i}", f"what color is number {i}")
  names = "abc"[: len(references)]
  answers = {"t": target, **dict(zip(names, references))}
  found = verdict(probe.probe_id, answers, Judge(), target="t", references=names)
  return Attempt(probe=probe, verdict=found)


ATTEMPTS = [
  _attempt(0, "red", "blue", "blue"),  # Truth blue: real.
  _attempt(1, "red", "blue", "blue"),  # Truth red: the references err.
  _attempt(2, "red", "blue", "blue"),  # Truth green: both are wrong.
  _attempt(3, "blue", "blue", "blue"),  # Right.
  _attempt(4, "blue", "blue", "blue"),  # Truth red: missed.
  _attempt(5, "red", "blue", "green"),  # No consensus.
  _attempt(6, "red", "blue", "blue"),  # Nobody knows.
]
TRUTH = dict(enumerate(["blue", "red", "green", "blue", "red", "blue"]))


def _known(question):
  return TRUTH.get(int(question.split()[-1]))


@pytest.mark.parametrize(
  "who",
  [Labels(lambda i, q: (x,) * 10 if (x := _known(q)) else ()), TrueAnswers(lambda i, q: _known(q))],
  ids=["labels", "oracle"],
)
def test_a_find_is_real_if_the_consensus_is_right_and_the_target_wrong(who):
  attempts = ATTEMPTS if isinstance(who, Labels) else ATTEMPTS[:-1]
  probes, unknown = precision.known_probes(attempts, who, Judge())
  assert unknown == len(attempts) - 6 and len(probes) == 5
  found = precision.of_probes(probes, by="labels", unknown=unknown)
  assert (found.real.k, found.real.n) == (1, 3)
  assert (found.sensitivity.k, found.sensitivity.n) == (2, 3)
  assert (found.specificity.k, found.specificity.n) == (1, 2)
  assert (found.missed.k, found.missed.n) == (1, 2)
  assert precision.of_probes([], by="labels") is None


def test_a_conflict_that_says_nothing_gives_no_rate():
  rng = np.random.default_rng(0)
  probes = [KnownProbe(f"i{i}", *(rng.random(2) < 0.3), True) for i in range(600)]
  found = precision.of_probes(probes, by="labels")
  assert found.cannot_judge and "cannot judge" in found.sentence
  assert found.correct(rates.rate(30, 100)).rate is None
  assert found.mostly_wrong and "mostly wrong" in found.sentence
  good = precision.of_probes(
    [KnownProbe(f"i{i}", i < 99, i < 100, True) for i in range(600)], by="labels"
  )
  assert not good.cannot_judge and not good.mostly_wrong
  assert good.correct(rates.rate(30, 100)).rate == pytest.approx(0.3, abs=0.02)


def _failure(i, said, grade, *, weight=1.0, by="model m", stopped=""):
  find = _attempt(i, "red", "blue", "blue").find
  gates = tuple(Gate(name=name, passed=name != stopped, value=1.0, limit="") for name in ("g", "h"))
  opinion = Opinion(by=by, side="consensus" if said else "target")
  return Failure.of(find, grade=grade, weight=weight, gates=gates, opinion=opinion)


def test_grades_are_weighed_and_nobody_confirms_themselves():
  rows = [
    _failure(0, True, "V2", weight=3.0),
    _failure(1, False, "V1"),
    _failure(2, True, "V0", stopped="g", weight=2.0),
    _failure(3, False, "V0", stopped="h"),
    _failure(4, True, "V0"),
    _failure(5, True, "V2", by="labels"),
  ]
  real = {f.probe.probe_id: f.opinion.side == "consensus" for f in rows}
  found = precision.of_finds(rows, lambda f: real[f.probe.probe_id], by="oracle", required=("g",))
  assert found.finds.rate == pytest.approx(7 / 9)
  assert found.verified.rate == pytest.approx(4 / 5)
  assert found.rejected.rate == pytest.approx(3 / 4) and found.lost.rate == pytest.approx(3 / 7)
  assert {by: rate.n for by, rate in found.outside.items()} == {"labels": 1, "model m": 1}
  assert {name: rate.n for name, rate in found.gates.items()} == {"g": 1, "stability": 1}
  only = precision.of_finds(rows, precision.by_labels, by="labels")
  assert only.finds.n == 1 and not only.outside
  assert precision.of_finds(rows, precision.by_people, by="people") is None


def test_weights_widen_the_interval_as_kish_says():
  even = rates.rate_by_image([1, 0] * 50, range(100))
  same = rates.rate_by_image([1, 0] * 50, range(100), weights=[7.0] * 100)
  assert same.ci95 == even.ci95 and same.rate == even.rate
  odd = rates.rate_by_image([1, 0] * 50, range(100), weights=[9.0] * 10 + [1.0] * 90)
  assert odd.effective == pytest.approx(180**2 / (10 * 81 + 90), rel=0.05)
  assert odd.ci95[1] - odd.ci95[0] > even.ci95[1] - even.ci95[0]


def test_the_best_knowledge_comes_first():
  real = rates.rate(1, 2)
  labelled = FindPrecision(by="labels", real=rates.rate(3, 4))
  rows = [_failure(0, True, "V1"), _failure(1, False, "V1")]
  grades = [precision.of_finds(rows, lambda f: True, by=by) for by in ("oracle", "people")]
  assert precision.best(labelled, grades).by == "people"
  assert precision.best(labelled, grades[:1]) is labelled
  assert precision.best(None, grades[:1]).by == "oracle" and precision.best(None, []) is None
  assert labelled.correct(real) is None and not labelled.cannot_judge


def _simulated(rng, images, each, *, true, se, sp, icc):
  """(flagged, wrong), bool[images, each]: both come in images as strongly as `icc` says."""
  a = (1 - icc) / icc if icc else None

  def draw(p):
    share = rng.beta(p * a, (1 - p) * a, (images, 1)) if a else p
    return rng.random((images, each)) < share

  wrong = draw(true)
  return np.where(wrong, draw(se), ~draw(sp)), wrong


@pytest.mark.parametrize("true,se,sp", [(0.05, 0.8, 0.97), (0.2, 0.7, 0.8), (0.5, 0.9, 0.6)])
@pytest.mark.parametrize("icc", [0.0, 0.3])
def test_corrected_rates_cover_the_truth(true, se, sp, icc):
  """500 runs, each with labels of its own; Rogan and Gladen's point without them would not do."""
  rng, inside, raw, runs = np.random.default_rng(5), 0, 0, 500
  for _ in range(runs):
    flags, wrong = _simulated(rng, 150, 4, true=true, se=se, sp=sp, icc=icc)
    images = np.repeat(np.arange(150), 4)
    probes = [KnownProbe(str(i), f, w, True) for i, f, w in zip(images, flags.flat, wrong.flat)]
    found = precision.of_probes(probes, by="labels")
    asked, _ = _simulated(rng, 200, 4, true=true, se=se, sp=sp, icc=icc)
    flagged = rates.rate_by_image(asked.ravel(), np.repeat(np.arange(200), 4))
    low, high = found.correct(flagged).ci95
    inside += low <= true <= high
    raw += flagged.ci95[0] <= true <= flagged.ci95[1]
  assert inside / runs >= 0.93, inside / runs
  assert raw / runs < 0.93, "the flags alone do not cover it"


def test_few_labels_are_no_proof_that_an_ensemble_cannot_judge():
  few = [KnownProbe("a", True, False, False), KnownProbe("b", False, True, False)]
  found = precision.of_probes(few, by="labels")
  assert found.cannot_judge and "too few to say" in found.verdict
  assert found.verdict in found.sentence


@pytest.mark.parametrize(("youden", "judges"), [(0.1, False), (0.18, False), (0.22, True)])
def test_an_ensemble_must_be_better_than_chance_by_a_fifth(youden, judges):
  rates_of = precision.Labelled(600 + int(1000 * youden), 1000), precision.Labelled(400, 1000)
  assert (rates.corrected(rates.rate(300, 1000), *rates_of).rate is not None) is judges
