# SPDX-License-Identifier: Apache-2.0
"""From a probe to a failure: one record for each step, and one place where each step is decided.

  Attempt   a probe that was sent, with its verdict; GRPO, the sweep and the controls write it alike
  Find      an attempt whose target conflicts with the references' consensus
  Failure   a find with what verification learned about it, and the grade that it earned

`Attempt.find` decides what a find is, and `side_of` whose side an answer from outside takes.
"""

from collections.abc import Iterable, Iterator
import dataclasses
from typing import Any, Literal, Self

from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.probe import Probe, Record, Verdict
from auditdm_jax.core.records import Stored

GRADES = ("V0", "V1", "V2", "V3")

# Whose answer an answer from outside the ensemble shares; "undecided" where the judge cannot tell.
Side = Literal["consensus", "target", "both", "neither", "undecided", "not measured"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Again(Record):
  """A disagreement that was put to the models in other words.

  Attributes:
    question: the other wording.
    verdict: on it.
    returned: whether the target disagreed with the same consensus; None if nobody can tell, as
      where a model gave no answer.
  """

  question: str
  verdict: Verdict
  returned: bool | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt(Record):
  """A probe with its verdict, which is None where the auditor's reply was malformed.

  Attributes:
    again: what came of it in other words, if it was asked so too.
  """

  probe: Probe
  verdict: Verdict | None
  again: Again | None = None

  @property
  def queries(self) -> int:
    """How often it was put to the models; a malformed reply counts as once."""
    return 1 if self.again is None else 2

  @property
  def consensus(self) -> str | None:
    """What the references agree on, as far as they were asked.

    A cascade stops where the target agrees with what could become the consensus, which stands for
    it then: whatever the others say, this is not a find.
    """
    if self.verdict is None:
      return None
    if self.verdict.reason == "skipped" and self.verdict.version < 2:
      return self.verdict.answers[self.verdict.references[0]]
    return self.verdict.consensus

  @property
  def find(self) -> "Find | None":
    """The find that it is, or None: a disagreement, which returned in other words if asked so."""
    verdict = self.verdict
    if verdict is None or not verdict.disagreement or (self.again and self.again.returned is False):
      return None
    said = verdict.answers[verdict.target]
    if said is None or verdict.consensus is None:
      raise ValueError(f"a disagreement without answer or consensus: {verdict}")
    return Find(probe=self.probe, verdict=verdict, consensus=verdict.consensus, said=said)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Find(Record):
  """A probe on which the target conflicts with the consensus of the references.

  Attributes:
    consensus: the first reference's own wording, which is a label to train on.
    said: the target's answer.
  """

  probe: Probe
  verdict: Verdict
  consensus: str
  said: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate(Record):
  """Outcome of one gate.

  Attributes:
    name: of the gate.
    passed: whether it was; None if it was not measured, which is neither.
    value: the number that it measured, if it did.
    limit: what the number was held to.
    note: why it failed, or was not measured.
  """

  name: str
  passed: bool | None
  value: float | None
  limit: str
  note: str = ""

  @classmethod
  def unmeasured(cls, name: str, why: str) -> Self:
    """Returns the outcome of a gate that could not be tried."""
    return cls(name=name, passed=None, value=None, limit="", note=why)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stability(Record):
  """How often the same disagreement came back under harmless changes."""

  k: int
  n: int
  trials: tuple[str, ...] = ()  # "greedy:1", "paraphrase:0", "jitter:1", …

  @property
  def share(self) -> float:
    """k / n, 0 when nothing was tried."""
    return self.k / self.n if self.n else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opinion(Record):
  """What somebody outside the ensemble says of a find, see `audit.outside`.

  Attributes:
    by: who decided: "labels", "model NAME" or "oracle".
    side: whose answer it shares.
    answer: its own answer; None if it gave none.
    note: votes of the labels, or why it gave no answer.
  """

  by: str
  side: Side
  answer: str | None = None
  note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure(Find):
  """A find with everything that verification learned about it.

  Attributes:
    grade: how far it got, see `audit.verify`.
    gates: outcomes of the gates that are about it.
    stability: how often it came back.
    wordings: of its question, in the order of the paraphrase trials.
    opinion: of a judge outside the ensemble; None if there was no such judge.
    label: what people decided, see `audit.labels`: right, wrong or unclear; None without labels.
    mode_id: the failure mode that it is of.
    weight: how many finds it stands for: the inverse of its chance to be looked at.
  """

  grade: str
  gates: tuple[Gate, ...] = ()
  stability: Stability | None = None
  wordings: tuple[str, ...] = ()
  opinion: Opinion | None = None
  label: str | None = None
  mode_id: str | None = None
  weight: float = 1.0

  @classmethod
  def of(cls, find: Find, **learned: Any) -> Self:
    """Returns the failure of a find; `learned` are the fields that a find lacks."""
    fields = {f.name: vars(find)[f.name] for f in dataclasses.fields(Find)}
    return cls(**fields | learned)

  @property
  def verified(self) -> bool:
    """True from grade V1 on."""
    return GRADES.index(self.grade) >= 1


def side_of(find: Find, answer: str, judge: Judge) -> Side:
  """Returns whose answer `answer` means, the consensus' or the target's.

  Args:
    find: the find.
    answer: an answer from outside the ensemble.
    judge: decides sameness.
  """
  question = find.probe.question
  with_consensus = judge.compare(answer, find.consensus, question=question)
  with_target = judge.compare(answer, find.said, question=question)
  if Same.UNDECIDED in (with_consensus, with_target):
    return "undecided"
  if with_consensus is Same.SAME:
    return "both" if with_target is Same.SAME else "consensus"
  return "target" if with_target is Same.SAME else "neither"


def is_true(find: Find, answer: str | None, judge: Judge) -> bool:
  """Returns whether a find is a real error: the consensus is right and the target is wrong.

  Args:
    find: the find.
    answer: the true answer; None, for a question without one, makes no find true.
    judge: decides sameness.
  """
  return answer is not None and side_of(find, answer, judge) == "consensus"


def unique_finds(attempts: Iterable[Attempt]) -> list[Find]:
  """Returns the finds in their order, each question about an image once."""
  seen: dict[str, Find] = {}
  for attempt in attempts:
    if (find := attempt.find) is not None:
      seen.setdefault(find.probe.probe_id, find)
  return list(seen.values())


def unique_attempts(attempts: Iterable[Attempt]) -> Stored[Attempt]:
  """Returns the answered attempts, each question about an image once: its last attempt.

  They are gone through twice, so as not to be held; what can be gone through once only is.
  """
  if iter(attempts) is attempts:
    attempts = list(attempts)

  def unique() -> Iterator[Attempt]:
    last = {a.probe.probe_id: i for i, a in enumerate(attempts) if a.verdict is not None}
    kept = set(last.values())
    del last
    yield from (a for i, a in enumerate(attempts) if i in kept)

  return Stored(unique)
