# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows of a run when it is done."""

from collections.abc import Mapping
import os

import rich.console
import rich.markup
import rich.table

from auditdm_jax.audit.diversity import HillEstimate
from auditdm_jax.audit.figures import CONTROL_ARM, FEWER_ARM
from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.summary import ALL_ARMS, Summary
from auditdm_jax.core import paths, runtime

_NOT_RANKED = frozenset({"grpo", ALL_ARMS, CONTROL_ARM, FEWER_ARM})


def show(summary: Summary, folder: os.PathLike, *, spent: Mapping[str, float]) -> None:
  """Prints the summary as a table, and where the report is; of several processes, the first.

  Args:
    summary: the run's summary.
    folder: the run's folder.
    spent: costs of the run, by what the manifest calls them.
  """
  if not runtime.is_main():
    return
  console = rich.console.Console(highlight=False, width=110)
  console.print(table(summary))
  if cover := summary.coverage:
    console.print(
      f"gaps found {cover.gaps_found} of {cover.gaps_auditable} auditable"
      + (f" · effective modes {_number(cover.modes.common)}" if cover.modes else "")
    )
  if summary.reaudits or summary.later:
    console.print(rounds(summary))
  if summary.stopped:
    console.print(summary.stopped, markup=False)
  seconds = f" · {summary.seconds['total']:.0f} s" if summary.seconds else ""
  modes = summary.modes
  console.print(
    f"failure modes: {modes.confirmed} confirmed of {modes.found} named, in {modes.families}"
    " families"
  )
  console.print(f"queries {summary.queries.total:,} (the audit's questions about images){seconds}")
  if answers := _answers(spent):
    console.print(f"answers {answers} (to all that was asked)", markup=False)
  console.print(summary.compared.verdict, markup=False)
  for alarm in summary.alarms:
    console.print(alarm, style="bold red", markup=False)
  root = paths.as_path(folder)
  print(f"summary: {root / 'summary.json'}")
  if not paths.is_remote(root):
    print(f"report:  {root / 'report' / 'index.html'}")


def _answers(spent: Mapping[str, float]) -> str:
  """Returns how many answers each model gave, in benchmarks and checks too."""
  counts = {
    key.removeprefix("answers/"): n for key, n in spent.items() if key.startswith("answers/")
  }
  return ", ".join(f"{n:,.0f} by {name}" for name, n in sorted(counts.items()))


def _number(found: HillEstimate) -> str:
  low, high = found.ci95
  return f"{found.value:.1f} ({low:.1f} to {high:.1f})"


def rounds(summary: Summary) -> rich.table.Table:
  """Returns a row for each round: what it found, and what its repair changed."""
  made = rich.table.Table(title="Rounds", show_lines=False)
  for column in (
    *("", "modes", "new", "gaps with finds", "labels right", "repaired", "kept"),
    *("accuracy: gaps", "rest"),
  ):
    made.add_column(column, justify="right")

  def part(r: Rate | None) -> str:
    return "–" if r is None or not r.n else f"{r.k:g}/{r.n}"

  def cell(r: Rate | None) -> str:
    if r is None or not r.n:
      return "–"
    return f"{r.value:.3f} n={r.n}\n[{r.ci95[0]:.3f}, {r.ci95[1]:.3f}]"

  for row in summary.rounds:
    counts = [str(row.round), str(row.confirmed), str(row.new)]
    counts.append("–" if row.gaps_found is None else str(row.gaps_found))
    after = row.accuracy
    accuracy = [cell(after and after.gaps), cell(after and after.rest)]
    made.add_row(*counts, cell(row.labels), part(row.repaired), part(row.kept), *accuracy)
  return made


def table(summary: Summary) -> rich.table.Table:
  """Returns the rates that were measured."""
  made = rich.table.Table(title=f"Audit of {rich.markup.escape(summary.target)}", show_lines=False)
  made.add_column("what")
  for column in ("rate", "95 % interval", "k / n"):
    made.add_column(column, justify="right")

  def row(name: str, r: Rate | None) -> None:
    if r and r.n:
      low, high = r.ci95
      name = rich.markup.escape(name)
      made.add_row(name, f"{r.value:.3f}", f"{low:.3f} to {high:.3f}", f"{r.k:g} / {r.n}")

  if known := summary.find_precision:
    row(f"finds that are real (by {known.by})", known.real)
  row("verified failures, of questions that can be compared", summary.compared.failures)
  if (corrected := summary.corrected) and corrected.rate is not None:
    low, high = corrected.ci95
    n = f"{corrected.flagged.n} questions"
    made.add_row(
      "  the target is wrong, corrected by labels",
      f"{corrected.rate:.3f}",
      f"{low:.3f} to {high:.3f}",
      n,
    )
  if summary.search:
    row("search success, prompt-only auditor", summary.search.prompt_only)
    row("search success, trained auditor", summary.search.trained)
  if swept := summary.sweep:
    row(f"sweep success, {swept.selection}", swept.success)
    if swept.predicted is not None:
      row(f"  finds among what was ranked (predicted {swept.predicted:.3f})", swept.found)
  row("precision of verified failures (oracle)", summary.precision)
  row("modes: recall of auditable gaps", summary.modes.recall)
  row("modes: precision", summary.modes.precision)
  for name, arm in summary.arms.items():
    ranked = bool(summary.sweep) and name not in _NOT_RANKED
    row(f"arm {name}{', what was picked of it' if ranked else ''}", arm.verified)
  for name, accuracy in summary.rectify.items():
    row(f"{name}: accuracy", accuracy.all if not accuracy.gaps.n else None)
    row(f"{name}: accuracy on gaps", accuracy.gaps)
    row(f"{name}: accuracy on rest", accuracy.rest)
  row("re-audit: success against the repaired target", summary.reaudit)
  return made
