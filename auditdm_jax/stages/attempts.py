# SPDX-License-Identifier: Apache-2.0
"""Attempted probes: every probe that was sent, with its verdict, and what the oracle says of it.

A find is an attempt on which the target conflicts with the consensus. `Truth` is for reporting
only; it exists where the world has an oracle.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

from auditdm_jax.audit import rates
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.skills import Assigner, Seeds
from auditdm_jax.audit.taxonomy import Outcome
from auditdm_jax.stages.context import Context


@dataclasses.dataclass(frozen=True)
class Attempt:
  """A probe with its verdict; None = it never became a question (a malformed reply)."""

  probe: Probe
  verdict: Verdict | None

  @property
  def is_find(self) -> bool:
    return self.verdict is not None and self.verdict.disagreement

  def to_dict(self) -> dict[str, Any]:
    return {
      "probe": self.probe.to_dict(), "verdict": self.verdict.to_dict() if self.verdict else None,
    }  # fmt: skip

  @classmethod
  def from_dict(cls, d: dict[str, Any]) -> "Attempt":
    verdict = Verdict.from_dict(d["verdict"]) if d["verdict"] else None
    return cls(Probe.from_dict(d["probe"]), verdict)


@dataclasses.dataclass(frozen=True)
class Truth:
  """What the oracle says of a find: is it a real failure, in which planted gap and mode?"""

  confirmed: bool
  gap: str | None = None
  mode: str | None = None


class ModeKey:
  """A find's kind, from its text alone: (named skill, consensus). What arms and novelty count."""

  def __init__(self, seeds: Seeds):
    self._assign = Assigner(seeds)

  def __call__(self, attempt: Attempt) -> str | None:
    if not attempt.is_find:
      return None
    return self.of(attempt.probe.question, attempt.verdict.consensus)

  def of(self, question: str, consensus: str) -> str:
    skill = self._assign([question])[0][0] or "other"
    return f"{skill}/{consensus}"


def truth_of(ctx: Context, attempt: Attempt) -> Truth:
  """Whether the consensus is true and the target wrong."""
  if not attempt.is_find or ctx.world.oracle is None:
    return Truth(False)
  verdict, question = attempt.verdict, attempt.probe.question
  answer = ctx.true_answer(attempt.probe.image_id, question)
  if answer is None or not ctx.judge.same(answer, verdict.consensus):
    return Truth(False)
  if ctx.judge.same(answer, verdict.answers[verdict.target]):
    return Truth(False)
  return Truth(True, ctx.world.gap_of(question, answer), ctx.world.mode_of(question, answer))


def success(ctx: Context, attempts: Sequence[Attempt]) -> dict[str, Any]:
  """R of finds the oracle confirms (finds, where there is no oracle) among all attempts."""
  if ctx.world.oracle is None:
    return rates.rate(sum(a.is_find for a in attempts), len(attempts))
  return rates.rate(sum(truth_of(ctx, a).confirmed for a in attempts), len(attempts))


def unique_finds(attempts: Iterable[Attempt]) -> list[Attempt]:
  """Finds, each (image, question) once, in order."""
  seen: dict[str, Attempt] = {}
  for a in attempts:
    if a.is_find:
      seen.setdefault(a.probe.probe_id, a)
  return list(seen.values())


def outcomes(attempts: Iterable[Attempt]) -> list[Outcome]:
  """Unique attempts as the taxonomy takes them."""
  seen = {a.probe.probe_id: a for a in attempts if a.verdict is not None}
  return [Outcome.from_verdict(a.probe.question, a.verdict) for a in seen.values()]


def coverage(
  ctx: Context, attempts: Sequence[Attempt], auditable: Sequence[str], *, least: int = 5
):
  """Verified unique finds per planted gap, gaps found (≥ `least`), effective number of modes."""
  truths = [truth_of(ctx, a) for a in unique_finds(attempts)]
  confirmed = [t for t in truths if t.confirmed]
  per_gap = Counter(t.gap for t in confirmed if t.gap)
  skills = Counter(t.mode.split(":")[0] for t in confirmed)
  return {
    "confirmed": len(confirmed),
    "per_gap": dict(sorted(per_gap.items())),
    "gaps_auditable": len(auditable),
    "gaps_found": sum(per_gap[g] >= least for g in auditable),
    "effective_modes": round(
      rates.effective_number(Counter(t.mode for t in confirmed).values()), 2
    ),
    "effective_skills": round(rates.effective_number(skills.values()), 2),
  }
