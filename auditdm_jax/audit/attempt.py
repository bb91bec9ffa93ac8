# SPDX-License-Identifier: Apache-2.0
"""From a probe to a failure: one record for each step, and one place where each step is decided.

  Attempt   a probe that was sent, with its verdict; GRPO, the sweep and the controls write it alike
  Find      an attempt whose target conflicts with the references' consensus
  Failure   a find with what verification learned about it, and the grade that it earned

`Attempt.find` decides what a find is, and `is_true` whether a find is a real error of the target.
"""

from collections.abc import Iterable
import dataclasses
from typing import Any, Self

from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import Probe, Record, Verdict

GRADES = ("V0", "V1", "V2", "V3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt(Record):
  """A probe with its verdict, which is None where the auditor's reply was malformed."""

  probe: Probe
  verdict: Verdict | None

  @property
  def consensus(self) -> str | None:
    """What the references agree on, as far as they were asked.

    A cascade stops where the target agrees with the first reference. Its answer stands for the
    consensus then: whatever the others say, this is not a find.
    """
    if self.verdict is None:
      return None
    if self.verdict.reason == "skipped":
      return self.verdict.answers[self.verdict.references[0]]
    return self.verdict.consensus

  @property
  def find(self) -> "Find | None":
    """The find that it is, or None."""
    verdict = self.verdict
    if verdict is None or not verdict.disagreement:
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
  """Outcome of one gate: the number it measured and the limit it was held to."""

  name: str
  passed: bool
  value: float
  limit: str
  note: str = ""


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
class Failure(Find):
  """A find with everything that verification learned about it; `grade` says how far it got."""

  grade: str
  gates: tuple[Gate, ...] = ()
  stability: Stability | None = None
  independent: str | None = None  # answer of the judge outside the ensemble, if any
  independent_agrees: bool | None = None  # None: not asked, or it could not answer
  label: str | None = None  # V3: a person's decision
  mode_id: str | None = None

  @classmethod
  def of(cls, find: Find, **learned: Any) -> Self:
    """Returns the failure of a find; `learned` are the fields that a find lacks."""
    fields = {f.name: vars(find)[f.name] for f in dataclasses.fields(Find)}
    return cls(**fields | learned)

  @property
  def verified(self) -> bool:
    """True from grade V1 on."""
    return GRADES.index(self.grade) >= 1


def is_true(find: Find, answer: str | None, judge: Judge) -> bool:
  """Returns whether a find is a real error: the consensus is right and the target is wrong.

  Args:
    find: the find.
    answer: the true answer; None, for a question without one, makes no find true.
    judge: decides sameness.
  """
  question = find.probe.question
  if answer is None or not judge.same(answer, find.consensus, question=question):
    return False
  return not judge.same(answer, find.said, question=question)


def unique_finds(attempts: Iterable[Attempt]) -> list[Find]:
  """Returns the finds in their order, each question about an image once."""
  seen: dict[str, Find] = {}
  for attempt in attempts:
    if (find := attempt.find) is not None:
      seen.setdefault(find.probe.probe_id, find)
  return list(seen.values())


def unique_attempts(attempts: Iterable[Attempt]) -> list[Attempt]:
  """Returns the answered attempts, each question about an image once: its last attempt."""
  return list({a.probe.probe_id: a for a in attempts if a.verdict is not None}.values())
