# SPDX-License-Identifier: Apache-2.0
"""Whose side labels, a model outside the ensemble and an oracle take."""

import pytest

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.attempt import Find, is_true, side_of
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.outside import Labels, Outsider, TrueAnswers, ask
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.core.image_store import Images
from auditdm_jax.text import styles

QUESTION = "what color is the bus"


def _find(image_id="i", question=QUESTION, said="blue", consensus="red"):
  probe = Probe.make(image_id, question)
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": said, "a": consensus},
    target="t",
    references=("a",),
    consensus=consensus,
    agree=True,
    disagreement=True,
    reason="disagreement",
  )
  return Find(probe=probe, verdict=verdict, consensus=consensus, said=said)


@pytest.mark.parametrize(
  ("find", "answer", "side"),
  [
    (_find(), "Red!", "consensus"),
    (_find(), "blue", "target"),
    (_find(), "green", "neither"),
    (_find(said="4", consensus="5"), "four", "target"),
    (_find(said="cat", consensus="car"), "animal", "undecided"),  # A kind of one of them.
  ],
)
def test_whose_side_an_answer_takes(find, answer, side):
  assert side_of(find, answer, Judge()) == side
  assert is_true(find, answer, Judge()) == (side == "consensus")


@pytest.mark.parametrize(
  ("labels", "side"),
  [
    ((), "not measured"),
    (("red",), "consensus"),
    (("blue",), "target"),
    (("green",), "neither"),
    (("red", "blue"), "undecided"),
    (("red", "red", "blue"), "undecided"),  # Few labels, one of which is the target's answer.
    (("red",) * 9 + ("green",), "consensus"),
    (("red",) * 3 + ("green", "teal", "pink", "gray", "black", "white", "brown"), "consensus"),
    (("red",) * 9 + ("blue",), "consensus"),  # One of ten may stray.
    (("red",) * 8 + ("blue",) * 2, "undecided"),
    (("red",) * 5 + ("blue",) * 5, "both"),
    (("blue",) * 9 + ("red",), "target"),
    (("red",) * 2 + ("green",) * 8, "undecided"),
    (("red",) + ("green",) * 9, "neither"),
  ],
)
def test_labels_decide_by_votes(labels, side):
  (opinion,) = Labels(lambda image_id, question: labels).opinions([_find()], Judge())
  assert (opinion.by, opinion.side) == ("labels", side)
  if labels:
    assert opinion.answer == max(dict.fromkeys(labels), key=labels.count)
    assert opinion.note.startswith(f"of {len(labels)}, {labels.count('red')} give the consensus")


def test_labels_come_first_and_others_are_asked_where_there_are_none():
  labels = {("a", QUESTION): ("blue",)}
  asked = []

  def truth(image_id, question):
    asked.append(image_id)
    return "red"

  outside = (Labels(lambda *key: labels.get(key, ())), TrueAnswers(truth))
  first, second = ask(outside, [_find("a"), _find("b")], Judge())
  assert (first.by, first.side) == ("labels", "target")
  assert (second.by, second.side) == ("oracle", "consensus") and asked == ["b"]
  assert ask((), [_find("a")], Judge()) == [None]


@pytest.fixture
def outsider(fake_vlm, make_picture, tmp_path):
  """An outsider that says what a rule says, finds about the pixel that the rule sees."""
  store = Images(tmp_path)

  def make(rule, **config):
    vlms = {"out": fake_vlm(rule, style=styles.BARE), "a": fake_vlm(lambda q, pixel: 1 / 0)}
    bank = ModelBank(vlms, "out", ("a",), config=BankConfig(**config))
    return Outsider(bank, store.get)

  return make, lambda pixel: _find(store.put(make_picture(pixel)))


def test_an_outsider_answers_the_question_itself(outsider):
  make, find = outsider
  said = {10: "The bus is red.", 20: "blue", 30: "green", 40: "", 50: "I'm sorry, but I can't."}
  asked = []

  def rule(question, pixel):
    asked.append(question)
    return said[pixel]

  somebody = make(rule)
  opinions = somebody.opinions([find(pixel) for pixel in said], Judge())
  sides = ["consensus", "target", "neither", "not measured", "not measured"]
  assert [o.side for o in opinions] == sides
  assert {o.by for o in opinions} == {"model out"} and set(asked) == {QUESTION}
  assert opinions[0].answer == "red" and opinions[3].note == "empty"
  assert somebody.bank.computed == {"out": 5}  # The references are not asked.


def test_who_cannot_tell_sides_with_a_target_that_says_so(outsider):
  make, find = outsider
  somebody = make(lambda q, pixel: "I cannot tell.", abstentions=("unanswerable",))
  finds = [find(10), _find(find(10).probe.image_id, said="unanswerable")]
  assert [o.side for o in somebody.opinions(finds, Judge())] == ["neither", "target"]


@pytest.mark.parametrize(
  ("labels", "consensus", "said", "side"),
  [
    (("dog",), "poodle", "cup", "undecided"),  # Is a poodle meant?
    (("dog",), "poodle", "dog", "undecided"),
    (("dog",) * 10, "dog", "poodle", "undecided"),
    (("dog",) * 9 + ("poodle",), "dog", "cup", "consensus"),
    (("poodle",) + ("cat",) * 9, "dog", "cat", "target"),  # Nine say cat, whatever the other means.
  ],
)
def test_a_label_that_may_mean_the_answer_counts_neither_way(labels, consensus, said, side):
  find = _find(consensus=consensus, said=said)
  (opinion,) = Labels(lambda image_id, question: labels).opinions([find], Judge())
  assert opinion.side == side
