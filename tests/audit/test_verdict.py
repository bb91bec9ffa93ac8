# SPDX-License-Identifier: Apache-2.0
"""Consensus, disagreement, and the records that carry them."""

import dataclasses
import itertools
import json
import math
import warnings

import pytest

from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.attempt import Attempt, Failure, Gate, Stability
from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.probe import Probe, Verdict, probe_id
from auditdm_jax.audit.verdict import (
  ConsensusRule,
  agreed,
  consensus_of,
  decide,
  is_fixed,
  prepare,
  unsure_of,
  verdict,
)
from auditdm_jax.core.config import UserError

RULE = ConsensusRule(abstentions=("unanswerable",))


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
  got = decide(target, named, Judge(), rule=RULE)
  assert (got.reason, got.consensus) == (reason, consensus)
  assert got.disagreement == (reason == "disagreement")
  assert got.agree == (reason in ("disagreement", "agreement"))


def test_undecided_pairs_are_dropped():
  for target, *references in (("cat", "animal"), ("red", "cat", "animal")):
    found = decide(target, dict(enumerate(references)), Judge())
    assert (found.reason, found.agree, found.disagreement) == ("undecided", False, False)


ANSWERS = ["red", "blue", "unanswerable", ""]
RULES = [
  RULE,
  ConsensusRule(0.67, abstentions=("unanswerable",)),
  ConsensusRule(0.75, (("a", 2.0),), ("unanswerable",)),
  ConsensusRule(0.51, (("b", 0.5), ("c", 0.5)), ("unanswerable",)),
]


def _counted(target, answers, rule):
  """The rule again, by counting; in this world equal answers are equal texts."""
  if target == "":
    return None
  weight = {name: dict(rule.weights).get(name, 1.0) for name in answers}
  behind = {
    answer: sum(weight[name] for name, said in answers.items() if said == answer)
    for answer in ("red", "blue")
  }
  for answer, mine in behind.items():
    # 0.67 of three is two of them, 0.75 of four is three.
    if mine / sum(weight.values()) >= min(rule.share, {0.67: 2 / 3}.get(rule.share, 1.0)):
      return answer
  return None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.share:g} of {rule.weights}")
def test_a_consensus_is_what_enough_references_say(rule):
  for target, a, b, c in itertools.product(ANSWERS, repeat=4):
    got = decide(target, {"a": a, "b": b, "c": c}, Judge(), rule=rule)
    wanted = _counted(target, {"a": a, "b": b, "c": c}, rule)
    assert got.consensus == wanted and got.agree == (wanted is not None), (target, a, b, c)
    assert got.disagreement == (wanted is not None and target != wanted)
    if wanted is None:
      assert got.reason in ("no consensus", "abstention", "no answer")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.share:g} of {rule.weights}")
def test_fixed_exactly_when_no_completion_disagrees(rule):
  """For every order of a cascade: any of the models may be the ones that were not asked."""
  judge, maybe = Judge(), [None, *ANSWERS]
  for t, a, b, c in itertools.product(maybe, repeat=4):
    own = {"a": a, "b": b, "c": c}
    done = [decide(tt, dict(zip("abc", rest)), judge, rule=rule) for tt, *rest in _ends(t, a, b, c)]
    possible = any(d.disagreement for d in done)
    now = decide(t, own, judge, rule=rule)
    decided = now.agree or None not in (t, a, b, c)
    assert is_fixed(t, own, judge, rule=rule) == (decided or not possible), (t, a, b, c)
    if now.agree:
      assert {(d.agree, d.consensus, d.reason) for d in done} == {(True, now.consensus, now.reason)}
    elif now.reason == "skipped" and not possible:
      assert now.consensus == t, "what the target shares stands for the consensus"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.share:g} of {rule.weights}")
def test_who_is_not_sure_abstains(rule):
  """The decision, and when it is fixed, are those of a reference that says "unanswerable"."""
  judge = Judge()
  for t, a, b, c in itertools.product([None, "red", "blue"], repeat=4):
    own = {"a": a, "b": b, "c": c}
    for unsure in ("a", "b", "bc"):
      said = {n: "unanswerable" if n in unsure and x else x for n, x in own.items()}
      how = {"rule": rule, "unsure": frozenset(unsure)}
      assert decide(t, own, judge, **how) == decide(t, said, judge, rule=rule)
      assert is_fixed(t, own, judge, **how) == is_fixed(t, said, judge, rule=rule)
      assert consensus_of(own, judge, **how) == consensus_of(said, judge, rule=rule)


def test_an_answer_that_stands_behind_nothing_is_known_by_its_kind():
  found = verdict(
    "p",
    {"t": "red", "a": "blue", "b": "blue"},
    Judge(),
    target="t",
    references=("a", "b"),
    kinds={"b": "unsure"},
  )
  assert (found.consensus, found.agree, found.reason) == (None, False, "abstention")
  again = Verdict.from_dict(json.loads(json.dumps(found.to_dict())))
  assert again == found and unsure_of(again.kinds) == {"b"}
  assert agreed(again, Judge()) is None
  # Whatever the target says, or does not.
  silent = dataclasses.replace(again, kinds={}, answers=again.answers | {"t": ""})
  assert agreed(silent, Judge()) == "blue"


def test_how_sure_is_sure():
  assert ConsensusRule().is_sure(-100.0)
  rule = BankConfig(sure=0.8).rule
  assert rule.is_sure(math.log(0.81)) and not rule.is_sure(math.log(0.79))
  assert rule.is_sure(None) and not rule.is_sure(math.nan)
  for wrong in (1.0, -0.1, math.nan):
    with pytest.raises(UserError, match=r"bank.sure=\S+: must be at least 0 and below 1"):
      BankConfig(sure=wrong)


def _ends(*answers):
  """All ways to fill in what was not asked."""
  return itertools.product(*(ANSWERS if a is None else [a] for a in answers))


def test_a_cascade_of_two_of_three_ends_with_the_second_that_agrees():
  two, judge = ConsensusRule(0.67), Judge()
  assert not is_fixed("blue", {"a": "blue", "b": None, "c": None}, judge, rule=two)
  assert is_fixed("blue", {"a": "blue", "b": "blue", "c": None}, judge, rule=two)
  assert is_fixed("red", {"a": "blue", "b": "blue", "c": None}, judge, rule=two)
  assert decide("red", {"a": "blue", "b": "blue", "c": None}, judge, rule=two).disagreement
  first = decide("red", {"a": "Blue.", "b": "green", "c": "blue"}, judge, rule=two)
  assert first.consensus == "Blue.", "in the wording of the first that agrees"


def test_the_judges_model_is_asked_about_every_pair_that_may_make_a_consensus():
  asked = []

  class Model:
    def prepare(self, pairs):
      asked.extend(pairs)

    def decide(self, pair):
      return Same.SAME if {pair.a, pair.b} == {"couch", "sofa bed"} else Same.DIFFERENT

  judge = Judge(model=Model())
  answers = {"t": ["hut"], "a": ["tent"], "b": ["couch"], "c": ["sofa bed"]}
  for share, unsure, wanted in ((1.0, "", 2), (0.67, "", 4), (0.67, "c", 1), (1.0, "c", 0)):
    asked.clear()
    rule = ConsensusRule(share)
    prepare(judge, answers, ["?"], target="t", references="abc", rule=rule, unsure=[unsure])
    assert len(asked) == wanted
  found = decide("hut", {n: answers[n][0] for n in "abc"}, judge, rule=ConsensusRule(0.67))
  assert found.disagreement and found.consensus == "couch"


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


@pytest.mark.parametrize(
  "fields,message",
  [
    ({"agree": 0.5}, "bank.agree=0.5: must be above 0.5"),
    ({"agree": 1.2}, "at most 1"),
    ({"weights": (("a", 0.0),)}, "bank.weights.a=0.0"),
    ({"weights": (("a", 1.0), ("a", 2.0))}, "there twice"),
  ],
)
def test_rules_that_make_no_sense_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    BankConfig(**fields)
