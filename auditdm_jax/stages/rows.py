# SPDX-License-Identifier: Apache-2.0
"""What the summary keeps of attempts, of which there may be a million."""

from collections.abc import Collection, Iterable, Sequence
import dataclasses
import sys

from auditdm_jax.audit import rates
from auditdm_jax.audit.attempt import Attempt, Find
from auditdm_jax.audit.probe import Verdict
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.truth import Confirmed, Told, Truth, confirmed

MOST_MADE = 500  # Made images per strategy whose content is checked.


@dataclasses.dataclass(frozen=True, slots=True)
class AttemptRow:
  """What the summary needs of an attempt, of which there may be a million.

  Attributes:
    asked: whether the auditor's reply held a question.
    agreed: whether the references did, as far as they were asked.
    disagreed: whether the target said something else, the first time that it was asked.
    find: whether it is one.
    real: whether it is a real failure: by the oracle, without one by verification.
    exposed: the gap of a confirmed find that took a made image.
    queries: that it took.
    answers: that these took.
    way: how it was chosen, see `audit.ranking`.
    score: probability of a find that the surrogate gave to it.
  """

  arm: str
  strategy: str
  step: int
  probe_id: str
  origin_id: str
  asked: bool
  agreed: bool
  disagreed: bool
  find: bool
  real: bool
  truth: Truth
  exposed: str | None
  queries: int = 1
  answers: int = 0
  way: str = ""
  score: float | None = None

  @property
  def told(self) -> Told:
    """What `truth.confirmed` takes."""
    return Told(self.probe_id if self.find else None, self.origin_id, self.truth, self.queries)


@dataclasses.dataclass(frozen=True)
class RowReader:
  """Makes rows of attempts, and keeps a few made images of each strategy, whose content is told."""

  ctx: Context
  verified: Collection[str]
  made: dict[str, list[Attempt]] = dataclasses.field(default_factory=dict)

  def rows(self, attempts: Iterable[Attempt]) -> list[AttemptRow]:
    """Returns the row of each attempt."""
    return [self._row(a) for a in attempts]

  def _row(self, a: Attempt) -> AttemptRow:
    ctx, probe, find = self.ctx, a.probe, a.find
    truth, real, exposed = ctx.oracle.truth(find), False, None
    if ctx.oracle.exists:
      real = truth.confirmed
    elif a.verdict is not None:
      real = probe.probe_id in self.verified
    if _is_made(a) and ctx.oracle.exists:
      made = self.made.setdefault(probe.strategy, [])
      if len(made) < MOST_MADE:
        made.append(a)
      if find and truth.gap and _exposed(ctx, find):
        exposed = truth.gap
    return AttemptRow(
      arm=sys.intern(probe.arm),
      strategy=sys.intern(probe.strategy),
      step=probe.step,
      probe_id=probe.probe_id,
      origin_id=sys.intern(probe.origin_id),
      asked=a.verdict is not None,
      agreed=a.consensus is not None,
      disagreed=a.verdict is not None and a.verdict.disagreement,
      find=find is not None,
      real=real,
      truth=truth,
      exposed=exposed,
      queries=a.queries,
      answers=_answers(a.verdict) + (_answers(a.again.verdict) if a.again else 0),
      way=probe.way,
      score=probe.score,
    )


def _answers(verdict: Verdict | None) -> int:
  return sum(said is not None for said in verdict.answers.values()) if verdict else 0


def queries_of(rows: Iterable[AttemptRow]) -> int:
  """Returns how often the models were asked."""
  return sum(r.queries for r in rows)


def rate_of(rows: Sequence[AttemptRow]) -> rates.Rate:
  """Returns the share of real failures."""
  return rates.rate_by_image([r.real for r in rows], [r.origin_id for r in rows])


def confirmed_of(rows: Iterable[AttemptRow]) -> list[Confirmed]:
  """Returns the confirmed finds, each question about an image once."""
  return confirmed(r.told for r in rows)


def _is_made(a: Attempt) -> bool:
  probe = a.probe
  return probe.image_id != probe.source_image_id and bool(probe.caption or probe.instruction)


def _exposed(ctx: Context, find: Find) -> bool:
  """Whether it took the new image: on the source, the same question has another true answer."""
  source = find.probe.source_image_id
  question = find.probe.question
  before = ctx.oracle.answer(source, question) if source else None
  return before is None or not ctx.judge.same(before, find.consensus, question=question)
