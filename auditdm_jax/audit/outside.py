# SPDX-License-Identifier: Apache-2.0
"""Whether somebody outside the ensemble sides with the consensus against the target (V2).

  Labels       what the data set says, where a find's question is one of its own
  Outsider     a model that is neither target nor reference and answers the question itself
  TrueAnswers  the oracle of a synthetic world

Who comes first decides, and the next one is asked where it cannot answer. A judge that is asked
whether the consensus is right tends to say yes; these are asked the question instead, and what they
say is compared with both answers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
from typing import Protocol

import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Find, Opinion, Side, side_of
from auditdm_jax.audit.judge import Judge, Same

# A reply of these kinds is an answer: also "I cannot tell", which sides with a target that says so.
_ANSWERS = ("answer", "whole", "abstention")
_MANY = 5  # Labels of a question from which on the rule of VQA holds.


class Outside(Protocol):
  """Somebody outside the ensemble."""

  def opinions(self, finds: Sequence[Find], judge: Judge) -> list[Opinion]:
    """Returns one opinion per find; "not measured" where there is no answer."""
    ...


@dataclasses.dataclass(frozen=True)
class Labels:
  """The answers that a data set gives to its own questions.

  Attributes:
    given: (image id, question) -> all answers to it; () where the data set does not ask it.
  """

  given: Callable[[str, str], tuple[str, ...]]

  def opinions(self, finds: Sequence[Find], judge: Judge) -> list[Opinion]:
    known = [self.given(f.probe.image_id, f.probe.question) for f in finds]
    judge.prepare(
      (find.probe.question, label, answer)
      for find, labels in zip(finds, known)
      for label in labels
      for answer in (find.consensus, find.said)
    )
    return [_vote(find, labels, judge) for find, labels in zip(finds, known)]


def by_votes(votes: int, labels: int) -> bool | None:
  """Returns whether an answer is right by those of `labels` labels that give it; None = undecided.

  As in VQA's accuracy, an answer is right if three labels give it. With fewer than five labels more
  than half of them must (ours). An answer is wrong if no label gives it; of five or more labels one
  may stray (ours).
  """
  many = labels >= _MANY
  if votes >= (3 if many else labels // 2 + 1):
    return True
  return False if votes <= (1 if many else 0) else None


@dataclasses.dataclass(frozen=True)
class Votes:
  """What labels say of an answer.

  Attributes:
    given: how many of them surely give it.
    right: see `by_votes`; None also where it hangs on labels that the judge is undecided about.
  """

  given: int
  right: bool | None


def count_votes(labels: Sequence[str], answer: str, judge: Judge, *, question: str) -> Votes:
  """Returns what labels, of which there is at least one, say of an answer."""
  said = [judge.compare(label, answer, question=question) for label in labels]
  given, perhaps = said.count(Same.SAME), said.count(Same.UNDECIDED)
  least, most = by_votes(given, len(labels)), by_votes(given + perhaps, len(labels))
  return Votes(given, least if least is most else None)


# Whether the consensus is right, and the target -> whose side that is.
_SIDES: dict[tuple[bool | None, bool | None], Side] = {
  (True, True): "both",
  (True, False): "consensus",
  (False, True): "target",
  (False, False): "neither",
}


def _vote(find: Find, labels: Sequence[str], judge: Judge) -> Opinion:
  """Counts labels for both answers, see `by_votes`."""
  if not labels:
    return Opinion(by="labels", side="not measured", note="no question of the data set")
  consensus, said = (
    count_votes(labels, answer, judge, question=find.probe.question)
    for answer in (find.consensus, find.said)
  )
  told = f"of {len(labels)}, {consensus.given} give the consensus, {said.given} the target's answer"
  side: Side = _SIDES.get((consensus.right, said.right), "undecided")
  return Opinion(
    by="labels",
    side=side,
    answer=Counter(labels).most_common(1)[0][0],
    note=told,
  )


@dataclasses.dataclass(frozen=True)
class Outsider:
  """A model outside the ensemble.

  Attributes:
    bank: whose target it is; its references are not asked.
    images: loads the u8[H,W,3] of an image id.
  """

  bank: ModelBank
  images: Callable[[str], np.ndarray]

  def opinions(self, finds: Sequence[Find], judge: Judge) -> list[Opinion]:
    name, by = self.bank.target, f"model {self.bank.target}"
    heard = self.bank.hear(
      self.images,
      [f.probe.question for f in finds],
      image_ids=[f.probe.image_id for f in finds],
      models=[name],
    )[name]
    kinds = [a.kind if a else "not asked" for a in heard]
    answers = [a.text if a and a.kind in _ANSWERS else "" for a in heard]
    judge.prepare(
      (find.probe.question, answer, other)
      for find, answer in zip(finds, answers)
      for other in (find.consensus, find.said)
      if answer
    )
    return [
      Opinion(by=by, side=side_of(find, answer, judge), answer=answer)
      if answer
      else Opinion(by=by, side="not measured", note=kind)
      for find, answer, kind in zip(finds, answers, kinds, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class TrueAnswers:
  """An oracle, which knows all answers.

  Attributes:
    answer: (image id, question) -> the true answer, or None where the question has none.
  """

  answer: Callable[[str, str], str | None]

  def opinions(self, finds: Sequence[Find], judge: Judge) -> list[Opinion]:
    return [self._opinion(find, judge) for find in finds]

  def _opinion(self, find: Find, judge: Judge) -> Opinion:
    answer = self.answer(find.probe.image_id, find.probe.question)
    if answer is None:
      return Opinion(by="oracle", side="neither", note="the question has no answer")
    return Opinion(by="oracle", side=side_of(find, answer, judge), answer=answer)


def ask(outside: Sequence[Outside], finds: Sequence[Find], judge: Judge) -> list[Opinion | None]:
  """Returns the opinion that counts of each find: of the first who can answer.

  Args:
    outside: who is asked, in this order; nobody makes no opinion.
    finds: the finds.
    judge: decides sameness.
  """
  decided: list[Opinion | None] = [None] * len(finds)
  left = list(range(len(finds)))
  for somebody in outside:
    if left:
      for i, opinion in zip(left, somebody.opinions([finds[i] for i in left], judge), strict=True):
        decided[i] = opinion
      left = [i for i in left if (said := decided[i]) and said.side == "not measured"]
  return decided
