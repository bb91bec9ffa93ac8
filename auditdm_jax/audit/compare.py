# SPDX-License-Identifier: Apache-2.0
"""Paired comparison of two models over the same probes: what got worse, better, or stayed.

Per mode: the paired test and interval of `rates.change_by_image`, of which images are the units,
and Benjamini-Hochberg over the modes. "Unchanged" means shown to be within the margin; a difference
that is merely not significant is "unsure" and says how many more probes would settle it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
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
  image_id: str
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
    """0 = no regression, 1 = regression, 3 = unsure under strict; 2 is that of a `UserError`."""
    counts = self.counts()
    if counts["new"] or counts["regressed"]:
      return 1
    return 3 if strict and counts["unsure"] else 0

  def to_dict(self) -> dict[str, Any]:
    """JSON-able ledger."""
    return {"counts": self.counts(), "entries": [dataclasses.asdict(e) for e in self.entries]}


def pairs(
  mode_ids: Sequence[str | None],
  probe_ids: Sequence[str],
  image_ids: Sequence[str],
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
    image_ids: of the probes.
    consensus: of the references.
    old: answers of the one model.
    new: answers of the other.
    judge: decides sameness.
    questions: of the probes, for a judge that asks a model.
  """
  asked = questions or [""] * len(old)
  rows = zip(mode_ids, probe_ids, image_ids, asked, consensus, old, new, strict=True)
  told = [
    (mode, probe, image, question, truth, a, b)
    for mode, probe, image, question, truth, a, b in rows
    if mode is not None and truth is not None and a and b
  ]
  was = judge.compare_all((question, a, truth) for _, _, _, question, truth, a, _ in told)
  now = judge.compare_all((question, b, truth) for _, _, _, question, truth, _, b in told)
  return [
    PairedOutcome(mode, probe, image, x is Same.DIFFERENT, y is Same.DIFFERENT)
    for (mode, probe, image, *_), x, y in zip(told, was, now)
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
  by_mode: dict[str, list[PairedOutcome]] = {}
  for item in {(i.mode_id, i.probe_id): i for i in items}.values():
    by_mode.setdefault(item.mode_id, []).append(item)
  modes = sorted(by_mode)
  changes = [_change(by_mode[m]) for m in modes]
  q_values = rates.benjamini_hochberg([c.p for c in changes])
  known = modes if known is None else known
  entries = [
    _entry(mode, by_mode[mode], change, float(q), mode in known, config, lines=len(modes))
    for mode, change, q in zip(modes, changes, q_values, strict=True)
  ]
  return Comparison(tuple(sorted(entries, key=lambda e: (-e.change, e.mode_id))))


def _change(items: Sequence[PairedOutcome]) -> rates.Change:
  return rates.change_by_image(
    [i.old_failed for i in items], [i.new_failed for i in items], [i.image_id for i in items]
  )


def _entry(
  mode: str,
  items: Sequence[PairedOutcome],
  change: rates.Change,
  q: float,
  known: bool,
  config: CompareConfig,
  *,
  lines: int,
) -> LedgerLine:
  images = [i.image_id for i in items]
  new = rates.rate_by_image([i.new_failed for i in items], images)
  low, high = change.ci95
  needs_more = 0
  if q <= config.level and change.change > 0:
    status = "regressed" if known else "new"
  elif q <= config.level:
    status = "fixed" if new.ci95[1] < config.fixed_below else "improved"
  elif -config.margin < low and high < config.margin:
    status = "unchanged"
  else:
    moved = sum(i.old_failed != i.new_failed for i in items)
    status, needs_more = "unsure", _needs_more(change, moved, config, lines=lines)
  return LedgerLine(
    mode_id=mode,
    status=status,
    old=rates.rate_by_image([i.old_failed for i in items], images),
    new=new,
    change=change.change,
    change_ci95=change.ci95,
    p=change.p,
    q=q,
    needs_more=needs_more,
  )


def _needs_more(change: rates.Change, moved: int, config: CompareConfig, *, lines: int) -> int:
  """Probes still missing to see a change of at least the margin with the wanted power.

  The level is that of a single line among `lines`, of which no other changed.
  """
  # One discordant pair each way is added: none seen does not mean that none exist.
  discordant = (moved + 2) / (change.n + 2)
  gap = min(max(config.margin, abs(change.change)), discordant)
  worse, better = (discordant + gap) / 2, (discordant - gap) / 2
  alpha = config.level / lines
  # With fewer discordant pairs no outcome of the exact test is significant.
  least = math.ceil(math.log2(2 / alpha)) / discordant
  planned = rates.plan_paired(worse=worse, better=better, alpha=alpha, power=config.power)
  wanted = max(planned, least)
  return max(1, math.ceil(wanted * change.design) - change.n)


def summary_counts(ledger: Mapping[str, int]) -> str:
  """One line for the terminal: `2 fixed, 1 unsure`."""
  return ", ".join(f"{n} {status}" for status, n in ledger.items() if n) or "nothing compared"
