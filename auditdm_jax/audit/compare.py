# SPDX-License-Identifier: Apache-2.0
"""Paired comparison of two models over the same probes: what got worse, better, or stayed.

Per mode: exact McNemar test, Newcombe's paired interval of the change of the failure rate,
Benjamini-Hochberg over the modes. "Unchanged" means shown to be within the margin; a difference
that is merely not significant is "unsure" and says how many more probes would settle it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from auditdm_jax.audit import rates
from auditdm_jax.audit.judge import Judge, Same

STATUSES = ("new", "regressed", "improved", "fixed", "unchanged", "unsure")


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """What counts as a change.

  Attributes:
    level: false discovery rate over the modes.
    margin: largest change of a failure rate that is called unchanged.
    fixed_below: an improved mode is fixed if the upper bound of its new rate is below this.
    power: for the planner's "n more".
  """

  level: float = 0.05
  margin: float = 0.05
  fixed_below: float = 0.15
  power: float = 0.8


@dataclasses.dataclass(frozen=True)
class PairedOutcome:
  """One probe put to both models: did each of them fail?"""

  mode_id: str
  probe_id: str
  old_failed: bool
  new_failed: bool


@dataclasses.dataclass(frozen=True)
class LedgerLine:
  """One line of the ledger; `change` = new failure rate - old failure rate."""

  mode_id: str
  status: str
  old: rates.Rate
  new: rates.Rate
  change: float
  change_ci95: tuple[float, float]
  p: float
  q: float
  needs_more: int = 0


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The ledger, one entry per mode, worst change first."""

  entries: tuple[LedgerLine, ...]

  @property
  def significant(self) -> tuple[LedgerLine, ...]:
    """Entries that changed."""
    return tuple(e for e in self.entries if e.status not in ("unchanged", "unsure"))

  def counts(self) -> dict[str, int]:
    """Modes per status, all statuses present."""
    return {s: sum(e.status == s for e in self.entries) for s in STATUSES}

  def exit_code(self, *, strict: bool = False) -> int:
    """0 = no regression, 1 = regression, 2 = unsure under strict."""
    counts = self.counts()
    if counts["new"] or counts["regressed"]:
      return 1
    return 2 if strict and counts["unsure"] else 0

  def to_dict(self) -> dict[str, Any]:
    """JSON-able ledger."""
    return {"counts": self.counts(), "entries": [dataclasses.asdict(e) for e in self.entries]}


def pairs(
  mode_ids: Sequence[str | None],
  probe_ids: Sequence[str],
  consensus: Sequence[str | None],
  old: Sequence[str],
  new: Sequence[str],
  *,
  judge: Judge,
  questions: Sequence[str] = (),
) -> list[PairedOutcome]:
  """Pairs from answers; probes that say nothing are left out.

  Those are probes without a mode, a consensus or both answers, and those on which the judge is
  undecided.

  Args:
    mode_ids: of the probes' modes.
    probe_ids: of the probes.
    consensus: of the references.
    old: answers of the one model.
    new: answers of the other.
    judge: decides sameness.
    questions: of the probes, for a judge that asks a model.
  """
  rows = zip(mode_ids, probe_ids, questions or [""] * len(old), consensus, old, new, strict=True)
  told = [
    (mode, probe, question, truth, a, b)
    for mode, probe, question, truth, a, b in rows
    if mode is not None and truth is not None and a and b
  ]
  was = judge.compare_all((question, a, truth) for _, _, question, truth, a, _ in told)
  now = judge.compare_all((question, b, truth) for _, _, question, truth, _, b in told)
  return [
    PairedOutcome(mode, probe, x is Same.DIFFERENT, y is Same.DIFFERENT)
    for (mode, probe, *_), x, y in zip(told, was, now)
    if Same.UNDECIDED not in (x, y)
  ]


def compare(
  items: Sequence[PairedOutcome],
  *,
  known: Sequence[str] | None = None,
  config: CompareConfig = CompareConfig(),
) -> Comparison:
  """The ledger of two models.

  Args:
    items: probes of known modes, and of modes that a fresh audit of the new model found.
    known: modes that the audit of the old model knew; a significant loss elsewhere is "new"
      rather than "regressed". None = all.
    config: what counts as a change.
  """
  tables: dict[str, list[int]] = {}
  for item in {(i.mode_id, i.probe_id): i for i in items}.values():
    table = tables.setdefault(item.mode_id, [0, 0, 0, 0])
    table[2 * (not item.old_failed) + (not item.new_failed)] += 1
  modes = sorted(tables)
  p_values = [rates.mcnemar_exact(tables[m][1], tables[m][2]) for m in modes]
  q_values = rates.benjamini_hochberg(p_values)
  known = modes if known is None else known
  entries = [
    _entry(mode, tables[mode], p, float(q), mode in known, config)
    for mode, p, q in zip(modes, p_values, q_values)
  ]
  return Comparison(tuple(sorted(entries, key=lambda e: (-e.change, e.mode_id))))


def _entry(
  mode: str, table: Sequence[int], p: float, q: float, known: bool, config: CompareConfig
) -> LedgerLine:
  both, only_old, only_new, neither = table
  n = sum(table)
  low, high = rates.newcombe_paired(both, only_old, only_new, neither)
  new = rates.rate(both + only_new, n)
  change = (only_new - only_old) / n
  needs_more = 0
  if q <= config.level and change > 0:
    status = "regressed" if known else "new"
  elif q <= config.level:
    status = "fixed" if new.ci95[1] < config.fixed_below else "improved"
  elif -config.margin < low and high < config.margin:
    status = "unchanged"
  else:
    status, needs_more = "unsure", _needs_more(only_old, only_new, n, config)
  return LedgerLine(
    mode_id=mode,
    status=status,
    old=rates.rate(both + only_old, n),
    new=new,
    change=change,
    change_ci95=(low, high),
    p=p,
    q=q,
    needs_more=needs_more,
  )


def _needs_more(only_old: int, only_new: int, n: int, config: CompareConfig) -> int:
  """Probes still missing to see a change of at least the margin with the wanted power."""
  # One discordant pair each way is added: none seen does not mean that none exist.
  discordant = (only_old + only_new + 2) / (n + 2)
  gap = min(max(config.margin, abs(only_new - only_old) / n), discordant)
  worse, better = (discordant + gap) / 2, (discordant - gap) / 2
  wanted = rates.plan_paired(worse=worse, better=better, alpha=config.level, power=config.power)
  return max(1, wanted - n)


def summary_counts(ledger: Mapping[str, int]) -> str:
  """One line for the terminal: `2 fixed, 1 unsure`."""
  return ", ".join(f"{n} {status}" for status, n in ledger.items() if n) or "nothing compared"
