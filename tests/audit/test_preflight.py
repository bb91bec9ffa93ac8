# SPDX-License-Identifier: Apache-2.0
"""What the answers of an ensemble say about whether it can be audited."""

import dataclasses

import pytest

from auditdm_jax.audit import preflight
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.preflight import PreflightConfig
from auditdm_jax.audit.verdict import ConsensusRule, verdict
from auditdm_jax.core import jsonio, typed
from auditdm_jax.core.config import UserError

N = 200
WORDS = "red green blue white black big small one two three".split()
CONFIG = PreflightConfig()


def right(i):
  return WORDS[i % len(WORDS)]


def wrong(i):
  return WORDS[(i + 1) % len(WORDS)]


def well(i):
  """Of a reference that knows nearly everything."""
  return right(i) if i % 20 else wrong(i)


def fails(i):
  """Of a target that fails now and then."""
  return right(i) if i % 5 else wrong(i)


def measured(n=N, *, kinds=(), labels=None, **speakers):
  """An ensemble of the target `t` and references a and b, each a function of a question's number.

  `kinds` has rows (model, number, kind) of replies that were no answers.
  """
  speakers = {"t": fails, "a": well, "b": right} | speakers
  verdicts = [
    verdict(
      str(i),
      {name: say(i) for name, say in speakers.items()},
      Judge(),
      target="t",
      references=[name for name in speakers if name != "t"],
      rule=ConsensusRule(abstentions=("unanswerable",)),
      kinds={name: kind for name, at, kind in kinds if at == i},
    )
    for i in range(n)
  ]
  questions = [f"what is number {i}" for i in range(n)]
  labels = [[right(i)] for i in range(n)] if labels is None else labels
  images = [str(i) for i in range(n)]
  return preflight.measure(questions, verdicts, Judge(), images=images, labels=labels)


def said(found, **config):
  return [str(p) for p in preflight.problems(found, dataclasses.replace(CONFIG, **config))]


def warned(found, **config):
  return [str(p) for p in preflight.warnings(found, dataclasses.replace(CONFIG, **config))]


def only(found, **config):
  lines = said(found, **config)
  assert len(lines) == 1 and "\n" not in lines[0], lines
  return lines[0]


def silent(model, kind, share):
  """Replies of a model that are no answers, and the speaker that gives none there."""
  rows = [(model, i, kind) for i in range(int(N * share))]
  return {"kinds": rows, model: lambda i: "" if i < N * share else right(i)}


def test_an_ensemble_that_can_be_audited_has_no_problem():
  found = measured()
  assert said(found) == []
  assert (found.consensus.k, found.consensus.n) == (190, 200)
  # Of every five questions the target fails at one, and one in twenty has no consensus.
  assert (found.disagreement.k, found.disagreement.n) == (30, 190)
  pairs = {pair.models: pair for pair in found.pairs}
  assert pairs["a", "b"].agreement.k == 190 and pairs["t", "b"].equal.k == 160
  assert pairs["t", "a"].telling == 10  # Both wrong, in the same way.
  assert found.models["t"].words == 1.0 and found.models["t"].wordy.k == 0


@pytest.mark.parametrize(
  ("kind", "cause", "key"),
  [
    ("truncated", "is cut before the end", "most_truncated"),
    ("thinking", "is cut before the end", "most_truncated"),
    ("refusal", "refuses", "most_refused"),
    ("empty", "no reply", "most_silent"),
    ("failed", "no reply", "most_silent"),
  ],
)
@pytest.mark.parametrize(("model", "role"), [("t", "target t"), ("a", "reference a")])
def test_a_reference_without_answers_stops_a_run_and_a_target_warns(kind, cause, key, model, role):
  lines = warned if model == "t" else said
  found = measured(**silent(model, kind, 0.5))
  (line,) = lines(found)
  assert not (said if model == "t" else warned)(found), "only one of both"
  assert role in line and cause in line and f"config.preflight.{key}=0.25" in line
  assert "100 of 200 (50%, 95 % interval 43% to 57%)" in line
  assert lines(found, **{key: 1.0}) == [], "a ceiling of 1 checks nothing"
  few = measured(**silent(model, kind, 0.25))
  assert lines(few) == [], "the interval must lie beyond it"


@pytest.mark.parametrize("kind", ["truncated", "thinking", "refusal", "empty", "failed"])
def test_a_target_stops_a_run_only_if_it_never_answers(kind):
  hardly = measured(**silent("t", kind, 1 - 1 / N))
  assert said(hardly) == [] and len(warned(hardly)) == 1
  assert hardly.consensus.k == 190, "the references agree, whatever the target says"
  assert (hardly.disagreement.k, hardly.disagreement.n) == (0, 1)
  never = measured(**silent("t", kind, 1.0))
  assert "200 of 200" in only(never) and warned(never) == []


def test_a_target_without_answers_hides_no_references_that_never_agree():
  found = measured(**silent("t", "truncated", 0.9), a=wrong)
  assert "references a and b agree about 0 of 200" in only(found) and len(warned(found)) == 1
  assert found.consensus.k == 0


def test_a_reference_may_not_abstain_throughout_and_a_target_may():
  def shy(i):
    return "unanswerable" if i < 0.7 * N else right(i)

  def rows(model):
    return [(model, i, "abstention") for i in range(int(0.7 * N))]

  assert "reference a says that it cannot tell" in only(measured(a=shy, kinds=rows("a")))
  assert said(measured(t=shy, kinds=rows("t"))) == []


def test_sentences_that_are_taken_as_they_are_have_a_line_of_their_own():
  found = measured(b=lambda i: f"The answer is {right(i)}.")
  line = only(found)
  assert "reference b answers in sentences" in line and "config.bank.styles=(('b', 'chat')" in line
  assert found.models["b"].words == 4.0
  found = measured(t=lambda i: f"The answer is {right(i)}.")
  assert said(found) == [] and "target t answers in sentences" in warned(found)[0]


def test_a_judge_that_cannot_decide_is_the_cause_before_the_references_are():
  def kinds(i):  # Of the rules' table: a dog may be a poodle, or not.
    return "poodle" if i % 2 else right(i)

  found = measured(a=kinds, b=lambda i: "dog" if i % 2 else right(i))
  assert (found.undecided.k, found.undecided.n) == (100, 200)
  line = only(found)
  assert "the judge cannot decide about 100 of 200" in line and "config.judge.model" in line
  pair = next(p for p in found.pairs if p.models == ("a", "b"))
  assert pair.undecided.k == 100 and (pair.agreement.k, pair.agreement.n) == (100, 100)
  assert said(found, most_undecided=1.0) == []
  dogs = {name: lambda i: "dog" if i % 2 else right(i) for name in "ab"}
  found = measured(t=kinds, **dogs)
  assert found.undecided.k == 100 and found.consensus.k == 200, "the references all agree"


@pytest.mark.parametrize(
  ("text", "question", "wordy"),
  [
    ("red", "what color is the bus", False),
    ("Red.", "what color is the bus", False),
    ("on the table", "where is the cup", False),
    ("The bus is red.", "what color is the bus", True),
    ("Answer: red", "what color is the bus", True),
    ("I am not sure, it could be many things, such as a bus.", "what is this", True),
  ],
)
def test_an_answer_is_wordy_if_it_holds_a_shorter_one(text, question, wordy):
  assert preflight.is_wordy(text, question) is wordy


def test_references_that_are_seldom_sure_are_told_of_the_key():
  found = measured(kinds=[("b", i, "unsure") for i in range(N) if i % 10])
  heard = found.models["b"]
  assert heard.unsure.rate == pytest.approx(0.9) and heard.answered.rate == 1
  assert found.models["a"].unsure.k == 0 and found.consensus.rate < 0.2
  assert "lower config.bank.sure" in only(found)
  # The target's silence hides no doubt.
  mute = measured(kinds=[("b", i, "unsure") for i in range(N)], t=lambda i: "")
  assert mute.consensus.k == 0


def test_references_that_never_agree_are_named():
  line = only(measured(a=wrong, b=right, t=right))
  assert "references a and b agree about 0 of 200" in line and "least_agreement=0.2" in line
  assert "references agree about 0" in only(measured(a=wrong), least_agreement=0.0)
  assert said(measured(a=wrong), least_agreement=0.0, least_consensus=0.0) == []


def test_a_copy_shares_wording_and_errors_and_two_that_know_the_same_do_not():
  line = only(measured(t=well))
  assert "the target t is a copy of the reference a: all 200 replies are equal" in line
  assert "10 of them are wrong" in line
  assert "the references a and b are copies" in only(measured(b=well))
  assert said(measured(b=well), copies_from=0) == []
  assert said(measured(a=right, b=right)) == [], "both know everything"
  assert said(measured(b=well, labels=[()] * N)) == [], "nobody knows whether they are wrong"
  talks = {"most_wordy": 1.0}
  same = {name: lambda i: f"it is the {right(i)} thing there" for name in ("a", "b")}
  assert "copies" in only(measured(**same, labels=[()] * N), **talks)


def test_a_few_questions_stop_nothing_by_chance():
  assert said(measured(10, a=wrong)) == [] != said(measured(20, a=wrong))
  one = measured(2, **{"a": lambda i: "" if i else right(i), "kinds": [("a", 1, "truncated")]})
  assert said(one) == []


def test_what_was_measured_can_be_read_again():
  found = measured()
  assert typed.load(preflight.Ensemble, jsonio.plain(found)) == found


def test_floors_are_shares():
  for wrong_value in ({"most_refused": 1.5}, {"least_consensus": -0.1}, {"questions": 0}):
    with pytest.raises(UserError, match=f"preflight.{next(iter(wrong_value))}"):
      PreflightConfig(**wrong_value)
