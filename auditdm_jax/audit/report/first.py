# SPDX-License-Identifier: Apache-2.0
"""The first screen: a verdict in one sentence, one picture of the modes, the worst three failures.

Modes are ranked by the lower end of their interval on fresh probes: a mode of few probes is not the
worst one because it failed on all three of them. The three failures are of different skills where
there are as many, so that one weakness does not fill the screen.
"""

from collections.abc import Iterator, Sequence
import dataclasses

from auditdm_jax.audit.report import data as data_lib

SHOWN = 8  # Modes of the picture; the table below it has all.
WORST = 3


@dataclasses.dataclass(frozen=True)
class Worst:
  """A failure of the first screen; `mode_id` and `mode` are "" where it is of no mode."""

  card: data_lib.Card
  mode_id: str
  mode: str


def sentence(data: data_lib.ReportData) -> str:
  """Returns what the audit amounts to, or what is known so far; "" if that is nothing."""
  verdict = data.summary.compared.verdict if data.summary else data.so_far
  held = sum(mode.holds for mode in data.modes)
  if held:
    what = "failure mode holds" if held == 1 else "failure modes hold"
    verdict = f"{held:,} {what} on fresh probes; {verdict}"
  return f"{verdict[:1].upper()}{verdict[1:]}." if verdict else ""


def ranked(modes: Sequence[data_lib.ModeView]) -> list[data_lib.ModeView]:
  """Returns the modes that hold and have a rate, the worst first."""
  rated = [(mode.rate.ci95, mode) for mode in modes if mode.holds and mode.rate and mode.rate.n]
  rated.sort(key=lambda pair: pair[0], reverse=True)
  return [mode for _, mode in rated]


def worst(data: data_lib.ReportData) -> list[Worst]:
  """Returns up to three failures with an image, of the worst modes first."""
  chosen: dict[str, Worst] = {}
  for item in _candidates(data):
    if item.card.original is not None:
      chosen.setdefault(item.card.probe_id, item)
    if len(chosen) == WORST:
      break
  return list(chosen.values())


def _candidates(data: data_lib.ReportData) -> Iterator[Worst]:
  """Yields one failure a skill, then one a mode, then verified finds of no mode."""
  modes = [mode for mode in ranked(data.modes) if mode.cards]
  by_skill = {mode.skill: mode for mode in reversed(modes)}
  for mode in [*(m for m in modes if by_skill[m.skill] is m), *modes]:
    card = max(mode.cards, key=lambda card: card.grade)  # V3 says more than V1.
    yield Worst(card, mode.mode_id, mode.name)
  rows = data.finds.shown if data.finds else ()
  for row in sorted(rows, key=lambda row: row.card.grade, reverse=True):
    if row.card.grade > "V0" and not row.why:
      yield Worst(row.card, "", "")
