# SPDX-License-Identifier: Apache-2.0
"""What a repaired target must not forget: its own answers, where all references say the same."""

import collections
import dataclasses
import types

import pytest

from auditdm_jax.audit.ask import Answer
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.skills import Seeds
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.rectify.recipes import Recipe
from auditdm_jax.stages import rectify

RECIPE = Recipe(steps=4, batch_size=8, lr=1.0, replay=0.5)  # Room for 16 examples.


class Bank:
  """Target and reference agree but for questions that end in one of `apart`."""

  def __init__(self, apart, unsure=""):
    self.asked, self.heard, self._apart, self._unsure = [], {}, apart, unsure

  def hearing(self, heard):
    self.heard = heard
    return self

  def verdicts(self, images, questions, *, image_ids, cascade):
    assert not cascade and len(questions) == len(image_ids)
    self.asked += questions
    return [
      types.SimpleNamespace(
        target="t",
        references=("r",),
        answers={"t": "red", "r": "blue" if q[-1] in self._apart else "Red"},
        kinds={"r": "unsure"} if q[-1] in self._unsure else {},
      )
      for q in questions
    ]


def replayed(
  bank,
  *,
  questions=100,
  recipe=RECIPE,
  alike=0.0,
  learned=("q",) * 3,
  ask="q{}",
  control=None,
):
  asked = [(i, ask.format(i)) for i in range(questions)]
  space = types.SimpleNamespace
  pool = space(asked=lambda: asked, image_id=lambda i: f"i{i}")
  ctx = space(
    settings=space(rectify=space(recipe=recipe, alike=alike), seed=0),
    pool=lambda name: pool,
    models=space(bank=bank.hearing),
    images=None,
    judge=Judge(),
    seeds=Seeds(()),
    folder=space(done=lambda stage, kind: control, control=lambda: control),
  )
  examples = [TrainingExample(image_id="i", question=q, label="x") for q in learned]
  return rectify.replay_examples(ctx, examples)


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_a_share_of_it_is_of_the_kinds_that_are_learned_in_their_shares(alike):
  learned = ["what rank is it"] * 3 + ["what kind is it"]
  text = ["which way {}", "what rank {}", "what kind {}", "how many {}"]

  class Text(str):
    def format(self, i):
      return text[i % 4].format(i)

  kept = replayed(Bank(""), questions=400, alike=alike, learned=learned, ask=Text())
  kinds = collections.Counter(e.question.rsplit(" ", 1)[0] for e in kept)
  assert len(kept) == 16
  if alike == 1.0:
    assert (
      kinds["what rank"] == pytest.approx(12, abs=2)
      and kinds["what kind"] == 16 - kinds["what rank"]
    )
  elif alike == 0.5:
    assert kinds["what rank"] > 5 and kinds["which way"] and kinds["how many"]
  else:
    assert max(kinds.values()) < 9


def test_no_more_are_replayed_than_are_wanted_however_the_shares_are_rounded():
  bank, learned = Bank("x"), [f"what k{k} is it" for k in range(7)]  # 32 / 7 is rounded up.

  class Text(str):
    def format(self, i):
      return f"what k{i % 9} {i}x"

  with pytest.raises(rectify.RepairFailed, match="of 32 questions"):
    replayed(bank, questions=900, alike=1.0, learned=learned, ask=Text())
  assert not {q.split()[1] for q in bank.asked} & {"k7", "k8"}


def test_of_a_kind_that_the_pool_lacks_none_is_replayed():
  assert len(replayed(Bank(""), alike=1.0, learned=["what rank is it"])) == 16


@pytest.mark.parametrize("apart", ["", "012", "0123456"])
def test_questions_are_asked_until_there_are_enough_and_none_twice(apart):
  bank = Bank(apart)
  kept = replayed(bank)
  assert len({(e.image_id, e.question) for e in kept}) == len(kept)
  assert {e.label for e in kept} == {"red"} and all(e.image_id[1:] == e.question[1:] for e in kept)
  assert not any(e.question[-1] in apart for e in kept)
  assert len(set(bank.asked)) == len(bank.asked) <= 32  # At most twice as many as are wanted.
  good = [q for q in bank.asked if q[-1] not in apart]
  assert [e.question for e in kept] == good[:16]
  if not apart:
    assert len(kept) == 16 and len(bank.asked) == 17
  assert len(kept) == 16 or len(bank.asked) == 32


def test_what_the_control_has_asked_is_not_asked_again():
  """But for what got no reply; who is not sure still is not."""
  answers = {"t": "red", "r": "Red"}
  said = {"q0": {}, "q1": {"r": "unsure"}, "q2": {"r": "failed"}, "of another image": {}}
  control = [
    types.SimpleNamespace(
      probe=types.SimpleNamespace(image_id=f"i{i}", question=question),
      verdict=types.SimpleNamespace(answers=answers, kinds=kinds, raw={"t": "It is red."}),
    )
    for i, (question, kinds) in enumerate(said.items())
  ]
  control.append(types.SimpleNamespace(probe=control[0].probe, verdict=None))
  bank, own = Bank(""), Answer("red", "answer", "It is red.")
  replayed(bank, questions=8, control=control)
  assert bank.heard == {
    "t": {("i0", "q0"): own, ("i1", "q1"): own, ("i2", "q2"): own},
    "r": {
      ("i0", "q0"): Answer("Red", "answer", "Red"),
      ("i1", "q1"): Answer("Red", "unsure", "Red"),
    },
  }
  replayed(bank)
  assert bank.heard == {}


def test_what_a_reference_is_not_sure_of_is_not_replayed():
  kept = replayed(Bank("", unsure="012"))
  assert len(kept) == 16 and not {e.question[-1] for e in kept} & set("012")


def test_fewer_are_kept_if_there_are_fewer_and_none_is_an_error():
  assert len(replayed(Bank(""), questions=5)) == 5
  with pytest.raises(rectify.RepairFailed, match="of 32 questions none is answered alike"):
    replayed(Bank("0123456789"))
  none = dataclasses.replace(RECIPE, replay=0.0)
  assert replayed(Bank("0123456789"), recipe=none) == []
