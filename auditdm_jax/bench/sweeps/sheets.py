# SPDX-License-Identifier: Apache-2.0
"""The table of a sweep as sheets, CSV and a plot."""

from collections.abc import Sequence
from typing import Any

from auditdm_jax.bench import forest
from auditdm_jax.bench.forest import Mark, PlotRow
from auditdm_jax.bench.sheets import NOTHING, Sheet, chance, csv_of, interval, number
from auditdm_jax.bench.sweeps.compare import (
  CellBudget,
  FigureCell,
  FigureRow,
  Spread,
  SweepTable,
)

_EVERY_SEED = 8  # Seeds up to which a cell lists them all.


def sheets(table: SweepTable) -> list[Sheet]:
  """Returns the sheets of a table; what has no rows is left out."""
  made = [_budgets(table), _values(table), _changes(table), _missing(table)]
  return [sheet for sheet in made if sheet.rows]


def _budgets(table: SweepTable) -> Sheet:
  rows = [
    (
      b.cell,
      b.changes or "nothing: the control",
      _seeds(b.seeds),
      _count(b.queries),
      _count(b.answers),
      _count(b.examples),
      b.unequal or ("equal" if b.seeds else NOTHING),
    )
    for b in table.budgets
  ]
  head = ("cell", "changes", "seeds", "queries", "answers", "examples", "against the control's")
  about = (
    "What each cell spends, in means over its runs. Queries are questions about an image that the"
    " audit put to the models, answers those of all models to all that was asked, examples those"
    " that the repair learned from. Budgets that differ by more than 2 % over shared seeds are"
    " named: a difference between such cells is one of budgets too."
  )
  return Sheet(title="Budgets", about=about, head=head, rows=tuple(rows))


def _values(table: SweepTable) -> Sheet:
  rows = [(row.figure, *(_spread(cell.found) for cell in row.cells)) for row in table.rows]
  about = (
    "Means over runs with the 95 % t interval of the mean, and how many runs have the figure. One"
    " run has no interval here, whatever its own report says: that one is over its probes."
  )
  head = ("figure", *(b.cell for b in table.budgets))
  return Sheet(title="Values", about=about, head=head, rows=tuple(rows))


def _changes(table: SweepTable) -> Sheet:
  rows = [line for row in table.rows for line in _changes_of(row, table.budgets)]
  head = ("figure", "cell", "difference", "p", "q", "pairs", "by seed", "budget")
  about = (
    f"Each cell less {table.control}, run by run of the same seed, with the 95 % interval and the p"
    " value of Student's t for pairs. q is p adjusted for all figures and cells. An interval that"
    " holds 0 does not say that there is no difference."
  )
  return Sheet(title="Differences", about=about, head=head, rows=tuple(rows))


def _changes_of(row: FigureRow, budgets: Sequence[CellBudget]) -> list[tuple[str, ...]]:
  """Returns a line for each cell; one for all where no run differs, as of a target unrepaired."""
  changes = [cell.change for cell in row.cells if cell.change is not None]
  if len(changes) > 1 and not any(x for change in changes for x in change.found.values):
    none = number(0.0, sign=True)
    return [(row.figure, "all", f"{none}, each run", *[NOTHING] * 5)]
  return [
    _change(row, cell, budget)
    for cell, budget in zip(row.cells, budgets, strict=True)
    if cell.change is not None
  ]


def _change(row: FigureRow, cell: FigureCell, budget: CellBudget) -> tuple[str, ...]:
  assert cell.change is not None
  found, change = cell.change.found, cell.change
  seeds = ", ".join(number(x, sign=True) for x in found.values[:_EVERY_SEED])
  return (
    row.figure,
    cell.cell,
    number(found.mean, sign=True)
    if found.ci95 is None
    else interval(found.mean, found.ci95, sign=True),
    NOTHING if change.p is None else chance(change.p),
    NOTHING if change.q is None else chance(change.q),
    f"{len(found.values)}",
    seeds + (" …" if len(found.values) > _EVERY_SEED else ""),
    budget.unequal or "equal",
  )


def _missing(table: SweepTable) -> Sheet:
  return Sheet(
    title="Not in the table",
    about="Runs of the sweep that are not finished, and why.",
    head=("run", "why"),
    rows=table.missing,
  )


def _spread(found: Spread | None) -> str:
  if found is None:
    return NOTHING
  if found.ci95 is None:
    return f"{number(found.mean)}, 1 run"
  return f"{interval(found.mean, found.ci95)}, {len(found.values)} runs"


def _seeds(seeds: tuple[int, ...]) -> str:
  return ", ".join(map(str, seeds)) or NOTHING


def _count(value: float | None) -> str:
  return NOTHING if value is None else f"{value:,.0f}"


def as_csv(table: SweepTable) -> str:
  """Returns a row per figure and cell."""
  return csv_of(
    [
      _flat(row, cell, budget)
      for row in table.rows
      for cell, budget in zip(row.cells, table.budgets, strict=True)
    ]
  )


def _flat(row: FigureRow, cell: FigureCell, budget: CellBudget) -> dict[str, Any]:
  found, change = cell.found, cell.change
  low, high = (found.ci95 if found else None) or (None, None)
  change_low, change_high = (change.found.ci95 if change else None) or (None, None)
  return {
    "figure": row.figure,
    "cell": cell.cell,
    "changes": budget.changes,
    "runs": len(found.values) if found else 0,
    "mean": found.mean if found else None,
    "low": low,
    "high": high,
    "sd": found.sd if found else None,
    "values": " ".join(f"{x:.6g}" for x in found.values) if found else "",
    "difference": change.found.mean if change else None,
    "difference_low": change_low,
    "difference_high": change_high,
    "pairs": len(change.found.values) if change else None,
    "p": change.p if change else None,
    "q": change.q if change else None,
    "queries": budget.queries,
    "answers": budget.answers,
    "examples": budget.examples,
    "unequal": budget.unequal,
  }


def forest_of(table: SweepTable) -> str:
  """Returns the plot of the differences; each figure has an axis of its own."""
  others = [b.cell for b in table.budgets[1:]]
  panels = []
  for row in table.rows:
    marks = tuple(
      Mark(kind=others.index(c.cell), change=c.change.found.mean, ci95=c.change.found.ci95)
      for c in row.cells
      if c.change is not None and c.change.found.ci95 is not None
    )
    if row.drawn and marks:
      panels.append([PlotRow(name=row.figure, marks=marks)])
  return forest.plot(
    panels,
    legend=others,
    label=f"Difference to {table.control} by figure, with 95 % intervals over seeds",
    nothing="no cell has two runs of the control's seeds",
  )
