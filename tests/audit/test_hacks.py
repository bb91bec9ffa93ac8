# SPDX-License-Identifier: Apache-2.0
"""What makes a find look like a failure: each kind by its own evidence, unknown is not zero."""

import dataclasses

import pytest

from auditdm_jax.audit import hacks
from auditdm_jax.audit.attempt import Attempt, Failure, Gate, Opinion, Stability
from auditdm_jax.audit.hacks import Doubts, doubts
from auditdm_jax.audit.probe import Probe, Verdict


def _find(i=0, *, source=None):
  probe = Probe.make(f"i{i}", "what color is it ?", source_image_id=source)
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": "red", "a": "blue"},
    target="t",
    references=("a",),
    consensus="blue",
    agree=True,
    disagreement=True,
    reason="disagreement",
  )
  return Attempt(probe=probe, verdict=verdict).find


def _failure(i=0, *, trials=("greedy:0=1",), gates=(), weight=1.0, grade="V1", source=None):
  made = tuple(
    Gate(name=name, passed=passed, value=0.0, limit="") for name, passed in dict(gates).items()
  )
  stability = Stability(k=1, n=len(trials), trials=tuple(trials))
  return Failure.of(
    _find(i, source=source), grade=grade, gates=made, stability=stability, weight=weight
  )


@pytest.mark.parametrize(
  ("side", "answer", "wanted"),
  [
    ("consensus", "blue", Doubts(False, False, False, False)),
    ("target", "red", Doubts(True, False, False, False)),
    ("neither", "pink", Doubts(True, False, False, False)),
    ("both", "dark", Doubts(False, False, True, False)),
    ("neither", None, Doubts(False, True, False, False)),
    ("undecided", "?", Doubts(None, None, None, False)),
  ],
)
def test_what_an_oracle_says(side, answer, wanted):
  assert doubts(_find(), Opinion(by="oracle", side=side, answer=answer)) == wanted


def test_without_anybody_who_knows_a_bare_find_is_not_measured():
  assert doubts(_find(), None) == Doubts(None, None, None, False)
  outsider = Opinion(by="model big", side="target", answer="red")
  assert doubts(_find(), outsider) == Doubts(None, None, None, False), "it may be wrong itself"


def test_what_other_wordings_tell():
  kept, lost = {"answerable": True}, {"answerable": False}
  back = ("greedy:0=1", "paraphrase:0=1", "paraphrase:1=0")
  gone = ("greedy:0=1", "paraphrase:0=0", "paraphrase:1=0", "jitter:0=1")
  assert doubts(_failure(trials=back, gates=kept), None) == Doubts(None, False, False, False)
  assert doubts(_failure(trials=gone, gates=kept), None) == Doubts(None, False, True, False)
  # Where the references change their answer, the question is at fault and not the target.
  assert doubts(_failure(trials=gone, gates=lost), None) == Doubts(None, True, False, False)
  assert doubts(_failure(trials=("jitter:0=0",)), None).wording is None


def test_made_images():
  def image(source="s", **gates):
    return doubts(_failure(gates=gates, source=source), None).image

  assert image(source=None, sham_control=False) is False, "nobody made it"
  assert image() is None and image(sham_control=None) is None
  assert image(sham_control=True, edit_outside=True) is False
  assert image(sham_control=False) is image(edit_outside=False, sham_control=True) is True
  assert image(image_sane=True) is None and image(image_sane=False) is True


def test_shares_are_weighted_over_what_was_measured_and_flagged_above_the_limit():
  right = Opinion(by="labels", side="consensus", answer="blue")
  wrong = dataclasses.replace(right, side="target")
  finds = [_failure(i, weight=3.0 if i == 0 else 1.0) for i in range(98)]
  unknown = [_failure(98), _failure(99)]
  counts = hacks.count([*finds, *unknown], [wrong] + [right] * 97 + [None] * 2)
  assert counts.finds == 100 and counts.consensus.n == 98
  assert counts.consensus.rate == pytest.approx(3 / 100) and not counts.flagged
  more = hacks.count(finds, [wrong] * 2 + [right] * 96)
  assert more.consensus.rate == pytest.approx(4 / 100) and more.flagged == ("consensus",)
  assert hacks.count(unknown, [None] * 2).consensus.n == 0
