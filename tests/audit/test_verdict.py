# SPDX-License-Identifier: Apache-2.0
"""Consensus, disagreement, and the records that carry them."""

import json
import warnings

import pytest

from auditdm_jax.audit.attempt import Attempt, Failure, Gate, Stability
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import Probe, probe_id
from auditdm_jax.audit.verdict import decide, is_fixed, verdict


@pytest.mark.parametrize(
  "target,references,reason,consensus",
  [
    ("red", ["blue", "Blue."], "disagreement", "blue"),
    ("blue", ["blue", "Blue."], "agreement", "blue"),
    ("red", ["blue", "green"], "no consensus", None),
    ("red", ["unanswerable", "unanswerable"], "abstention", None),
    ("red", ["blue", "unanswerable"], "abstention", None),
    ("unanswerable", ["blue", "blue"], "disagreement", "blue"),
    ("red", ["", ""], "no answer", None),
    ("", ["blue", "blue"], "no answer", None),
    (" ", ["blue", None], "no answer", None),
    ("red", ["blue", None], "skipped", None),
    (None, ["blue", "blue"], "skipped", None),
  ],
)
def test_reasons(target, references, reason, consensus):
  named = dict(zip(("one", "two"), references))
  got = decide(target, named, Judge(), abstentions=("unanswerable",))
  assert (got.reason, got.consensus) == (reason, consensus)
  assert got.disagreement == (reason == "disagreement")
  assert got.agree == (reason in ("disagreement", "agreement"))


def test_undecided_pairs_are_dropped():
  for target, *references in (("cat", "animal"), ("red", "cat", "animal")):
    found = decide(target, dict(enumerate(references)), Judge())
    assert (found.reason, found.agree, found.disagreement) == ("undecided", False, False)


def test_fixed_exactly_when_no_completion_disagrees():
  answers = ["red", "blue", "unanswerable", ""]
  for t in [None, *answers]:
    for a in [None, *answers]:
      for b in [None, *answers]:
        if a is None and b is not None:
          continue  # the cascade asks the first reference first
        possible = any(
          decide(tt, {"a": aa, "b": bb}, Judge(), abstentions=("unanswerable",)).disagreement
          for tt in ([t] if t is not None else answers)
          for aa in ([a] if a is not None else answers)
          for bb in ([b] if b is not None else answers)
        )
        fixed = is_fixed(t, {"a": a, "b": b}, Judge(), abstentions=("unanswerable",))
        complete = None not in (t, a, b)
        assert fixed == (complete or not possible), (t, a, b)


def test_records_survive_json():
  probe = Probe.make("img", "what color is it", strategy="edit", caption="x")
  found = verdict(probe.probe_id, {"t": "red", "r": "blue"}, Judge(), target="t", references=("r",))
  attempted = Attempt(probe=probe, verdict=found)
  assert Attempt.from_dict(json.loads(json.dumps(attempted.to_dict()))) == attempted
  failure = Failure.of(
    attempted.find,
    grade="V1",
    gates=(Gate(name="g", passed=True, value=1.0, limit="> 0"), Gate.unmeasured("h", "why")),
    stability=Stability(k=4, n=5, trials=("greedy:0=1",)),
  )
  data = json.loads(json.dumps(failure.to_dict()))
  assert Failure.from_dict(data) == failure
  assert probe.probe_id == probe_id("img", "what color is it") != probe_id("img", "other")


def test_newer_records_are_read_with_a_warning():
  data = Probe.make("img", "q").to_dict() | {"version": 99, "shiny": 1}
  with pytest.warns(UserWarning, match="version 99"):
    assert Probe.from_dict(data).question == "q"
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    Probe.from_dict(Probe.make("img", "q").to_dict() | {"shiny": 1})
