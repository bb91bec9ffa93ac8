# SPDX-License-Identifier: Apache-2.0
"""Grades: what a stable failure, a flicker, a duplicate and a consensus error end up as."""

import numpy as np
import pytest

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt, Gate
from auditdm_jax.audit.probe import Probe
from auditdm_jax.audit.verify import VerifyConfig, default_jitter, precision, verify
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

  def oracle(image, question):
    return "red" if "color" in question else "square"

  outside = Gate(name="edit_outside", passed=False, value=3, limit="0")
  measured = [(), (), (), (outside,), ()]
  result = run(finds, independent=oracle, measured=measured)
  assert [f.grade for f in result.failures] == ["V2", "V0", "V0", "V0", "V1"]
  first = result.failures[0]
  assert (first.stability.k, first.stability.n) == (5, 5) and first.independent == "red"
  assert {g.name for g in first.gates} >= {"well_formed", "answerable", "language_prior"}
  flicker = result.failures[1].stability
  assert flicker.k == 3 and "paraphrase:0=0" in flicker.trials
  assert [g.name for g in result.failures[2].gates if not g.passed] == ["near_duplicate"]
  assert result.funnel["looked_at"] == 5 and result.funnel["stable"] == 2
  assert result.funnel["independent_agrees"] == 1
  assert precision(result.failures).rate == 0.5
  chunked = run(finds, independent=oracle, measured=measured, config=VerifyConfig(chunk=2))
  assert chunked == result


def test_gates_that_are_not_required_are_still_measured(audit):
  find, run = audit
  bad = Gate(name="edit_outside", passed=False, value=3, limit="0")
  finds, config = [find(0, "what color is it")], VerifyConfig(required=())
  result = run(finds, measured=[(bad,)], config=config)
  assert result.failures[0].grade == "V1" and bad in result.failures[0].gates
  assert result.failures[0].independent_agrees is None


def test_an_oracle_without_an_answer_confirms_nothing(audit):
  find, run = audit
  result = run([find(0, "what color is it")], independent=lambda image, question: None)
  assert result.failures[0].grade == "V1" and precision(result.failures).k == 0


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
