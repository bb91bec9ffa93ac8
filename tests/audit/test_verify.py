# SPDX-License-Identifier: Apache-2.0
"""Grades: what a stable failure, a flicker, a duplicate and a consensus error end up as."""

import json

import numpy as np
import pytest

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.attempt import Attempt, Gate, Opinion, side_of
from auditdm_jax.audit.outside import TrueAnswers
from auditdm_jax.audit.probe import Probe
from auditdm_jax.audit.rates import NOTHING, rate
from auditdm_jax.audit.verify import (
  Tally,
  VerifyConfig,
  View,
  default_jitter,
  sides,
  tally,
  verify,
)
from auditdm_jax.core.image_store import Images


def _truth(question, pixel):
  if pixel == 128:
    return "grey"  # the blank image
  return "red" if "color" in question else "circle"


def _target(question, pixel):
  if "flicker" in question:
    return "blue" if question == "what color flicker" else _truth(question, pixel)
  return "blue"


@pytest.fixture
def audit(fake_vlm, make_picture, tmp_path):
  store = Images(tmp_path)
  ids = [store.put(make_picture(v)) for v in (40, 80)]
  vlms = {"t": fake_vlm(_target), "a": fake_vlm(_truth), "b": fake_vlm(_truth)}
  bank = ModelBank(vlms, "t", ("a", "b"))

  def find(i, question):
    (verdict,) = bank.verdicts([store.get(ids[i])], [question])
    return Attempt(probe=Probe.make(ids[i], question), verdict=verdict).find

  def run(finds, **fields):
    fields.setdefault("paraphrase", lambda q, k: f"{q} please {k}")
    return verify(finds, bank, images=store.get, **fields)

  return find, run


def test_grades(audit):
  find, run = audit
  finds = [
    find(0, "what color is it"),
    find(0, "what color flicker"),  # only in exactly these words
    find(0, "What color is it?"),  # the first one again
    find(1, "what color is it"),  # which the maker of its image found wanting
    find(1, "what shape is it"),  # the oracle disagrees with the references
  ]

  oracle = TrueAnswers(lambda image_id, question: "red" if "color" in question else "square")
  outside = Gate(name="edit_outside", passed=False, value=3, limit="0")
  measured = [(), (), (), (outside,), ()]
  result = run(finds, outside=(oracle,), measured=measured)
  assert [f.grade for f in result.failures] == ["V2", "V0", "V0", "V0", "V1"]
  first = result.failures[0]
  assert (first.stability.k, first.stability.n) == (5, 5) and first.opinion.answer == "red"
  assert first.wordings == ("what color is it please 1", "what color is it please 2")
  assert {g.name for g in first.gates} >= {"well_formed", "answerable", "language_prior"}
  flicker = result.failures[1].stability
  assert flicker.k == 3 and "paraphrase:0=0" in flicker.trials
  assert [g.name for g in result.failures[2].gates if g.passed is False] == ["near_duplicate"]
  assert result.funnel["looked_at"] == 5 and result.funnel["stable"] == 2
  assert result.funnel["independent_agrees"] == 1
  assert sides(result.failures) == {"oracle": View(rate(1, 2), {"neither": 1}, 0)}
  chunked = run(finds, outside=(oracle,), measured=measured, config=VerifyConfig(chunk=2))
  assert chunked == result


def test_trials_count_who_is_not_sure(fake_vlm, make_picture, tmp_path):
  store = Images(tmp_path)
  image = store.put(make_picture(40))
  unsure = fake_vlm(_truth, logprob=lambda q, _: -1.0 if "please 1" in q else 0.0)
  vlms = {"t": fake_vlm(_target), "a": fake_vlm(_truth), "b": unsure}
  for sure, k, passed in ((0.0, 5, True), (0.8, 4, False)):
    bank = ModelBank(vlms, "t", ("a", "b"), config=BankConfig(sure=sure))
    (verdict,) = bank.verdicts([store.get(image)], ["what color is it"])
    find = Attempt(probe=Probe.make(image, "what color is it"), verdict=verdict).find
    (failure,) = verify(
      [find], bank, images=store.get, paraphrase=lambda q, k: f"{q} please {k}"
    ).failures
    assert failure.stability.k == k and ("paraphrase:0=0" in failure.stability.trials) == (k == 4)
    (answerable,) = (g for g in failure.gates if g.name == "answerable")
    assert answerable.passed == passed


def test_gates_that_are_not_required_are_still_measured(audit):
  find, run = audit
  bad = Gate(name="edit_outside", passed=False, value=3, limit="0")
  finds, config = [find(0, "what color is it")], VerifyConfig(required=())
  result = run(finds, measured=[(bad,)], config=config)
  assert result.failures[0].grade == "V1" and bad in result.failures[0].gates
  assert result.failures[0].opinion is None and "independent_agrees" not in result.funnel


def test_an_oracle_without_an_answer_confirms_nothing(audit):
  find, run = audit
  result = run([find(0, "what color is it")], outside=(TrueAnswers(lambda image, question: None),))
  assert result.failures[0].grade == "V1"
  assert sides(result.failures)["oracle"].others == {"neither": 1}


class Says:
  """Somebody outside the ensemble who gives one answer to everything, or none."""

  def __init__(self, answer):
    self.answer = answer

  def opinions(self, finds, judge):
    if self.answer is None:
      return [Opinion(by="somebody", side="not measured") for _ in finds]
    return [
      Opinion(by="somebody", side=side_of(f, self.answer, judge), answer=self.answer) for f in finds
    ]


@pytest.mark.parametrize(
  ("answer", "side", "grade"),
  [
    ("Red.", "consensus", "V2"),
    ("Blue", "target", "V1"),
    ("green", "neither", "V1"),
    (None, "not measured", "V1"),
  ],
)
def test_v2_needs_somebody_who_sides_with_the_consensus(audit, answer, side, grade):
  find, run = audit
  (failure,) = run([find(0, "what color is it")], outside=(Says(answer),)).failures
  assert (failure.opinion.side, failure.grade) == (side, grade)
  again = type(failure).from_dict(json.loads(json.dumps(failure.to_dict())))
  assert again == failure


def test_the_first_who_can_answer_decides(audit):
  find, run = audit
  outside = (Says(None), Says("blue"), Says("red"))
  (failure,) = run([find(0, "what color is it")], outside=outside).failures
  assert failure.opinion.side == "target" and failure.grade == "V1"


def test_what_was_not_tried_is_not_measured_and_counts_for_no_grade(audit):
  find, run = audit
  config = VerifyConfig(blank_image=False)
  outside = Gate.unmeasured("edit_outside", "nobody looked")
  finds = [find(0, "what color is it"), find(1, "what color is it")]
  result = run(finds, paraphrase=None, config=config, measured=[(outside,), ()])
  assert [f.grade for f in result.failures] == ["V1", "V1"]
  table = tally(result.failures, config.required)
  for name in ("answerable", "language_prior", "benchmark_leak"):
    assert table[name] == Tally(NOTHING, 2, required=True), name
    assert result.funnel[name] == 2
  assert table["edit_outside"] == Tally(NOTHING, 1, required=True)  # Of the one it is about.
  assert table["image_sane"] == Tally(rate(2, 2), 0, required=True)
  unmeasured = [g for g in result.failures[0].gates if g.passed is None]
  assert all(g.value is None and g.note for g in unmeasured) and len(unmeasured) == 4
  tried = run(finds, config=VerifyConfig(required=("image_sane",)))
  assert tally(tried.failures, ("image_sane",))["answerable"] == Tally(
    rate(2, 2), 0, required=False
  )


def test_an_attempt_on_which_all_agree_is_no_find(audit):
  assert audit[0](0, "what color flicker now") is None


def test_no_finds(audit):
  assert audit[1]([]).funnel["looked_at"] == 0


def test_jitter_is_small():
  image = np.kron(np.random.default_rng(0).integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1)))
  image = image.astype(np.uint8)
  for k in range(4):
    other = default_jitter(image, k)
    assert other.shape == image.shape and other.dtype == np.uint8 and (other != image).any()
    assert np.median(np.abs(other.astype(int) - image)) <= 20


def test_a_wording_tried_already_is_no_evidence(audit):
  find, run = audit
  stability = run([find(0, "what color is it")], config=VerifyConfig(paraphrases=4)).failures[0]
  assert stability.stability.n == 1 + 4 + 2
  again = run([find(0, "what color is it")], paraphrase=lambda q, k: q if k % 2 else None)
  assert again.failures[0].stability.n == 3
