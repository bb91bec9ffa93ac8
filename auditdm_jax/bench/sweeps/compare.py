# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep compared: runs are the units, and cells are paired by their seeds.

1. A figure of a cell is its mean over seeds with a 95 % t interval.
2. A difference is that of a cell and the control, seed by seed; its interval and its p value are of
   Student's t for pairs, and q is p adjusted for all cells and figures of the table (Benjamini and
   Hochberg, 1995).
3. A cell that spends another budget than the control says so beside each of its differences.

One run an arm says nothing here: its interval would be over the probes of that one run.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np
from scipy import stats

from auditdm_jax.audit import rates
from auditdm_jax.audit.figures import FIGURES, REPAIRED, Figure
from auditdm_jax.audit.summary import Summary
from auditdm_jax.bench.sweeps.record import Cell

_NONE = 1e-9  # Of a mean: below it a standard deviation is one of rounding.
_EQUAL = 0.02  # Budgets that differ by less are equal: malformed replies differ between runs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweptRun:
  """A finished run of a cell.

  Attributes:
    cell: its name.
    seed: of the run.
    summary: what it found.
    answers: of all models to all that it asked.
  """

  cell: str
  seed: int
  summary: Summary
  answers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
  """A figure over runs.

  Attributes:
    values: of each run that has the figure.
    mean: of them.
    ci95: 95 % t interval of the mean; None below two runs.
    sd: standard deviation; None below two runs.
  """

  values: tuple[float, ...]
  mean: float
  ci95: tuple[float, float] | None
  sd: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellChange:
  """A cell less the control, over the seeds that both have.

  Attributes:
    found: the differences.
    p: of no difference; None where it cannot be told: below two seeds, or all differ by the same.
    q: p adjusted for the whole table.
  """

  found: Spread
  p: float | None
  q: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureCell:
  """A figure of one cell; `change` is None for the control and without shared seeds."""

  cell: str
  found: Spread | None
  change: CellChange | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureRow:
  """A figure of all cells, the control first."""

  figure: str
  drawn: bool
  cells: tuple[FigureCell, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellBudget:
  """What a cell spends, in means over its runs.

  Attributes:
    cell: its name.
    changes: what it changes.
    seeds: of its finished runs.
    queries: questions about an image that its audit put to the models.
    answers: of all models to all that was asked, in controls and benchmarks too.
    examples: that its repair learned from; None without a repair.
    unequal: what differs from the control's over shared seeds, as "queries × 0.50"; "" = nothing.
  """

  cell: str
  changes: str
  seeds: tuple[int, ...]
  queries: float | None
  answers: float | None
  examples: float | None
  unequal: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepTable:
  """All that a sweep has measured so far.

  Attributes:
    config: what all cells share.
    control: the cell that the others are compared with.
    budgets: of each cell.
    rows: a row for each figure that a run has.
    missing: runs that are not in the table, and why.
  """

  config: str
  control: str
  budgets: tuple[CellBudget, ...]
  rows: tuple[FigureRow, ...]
  missing: tuple[tuple[str, str], ...]


def tabulate(
  cells: Sequence[Cell],
  runs: Sequence[SweptRun],
  *,
  config: str,
  missing: Sequence[tuple[str, str]] = (),
  figures: Sequence[Figure] = FIGURES,
) -> SweepTable:
  """Compares the cells of a sweep.

  Args:
    cells: the control first.
    runs: those that are finished.
    config: what the table is called after.
    missing: (run, why it is left out).
    figures: that are compared.
  """
  by_cell = {cell.name: {run.seed: run for run in runs if run.cell == cell.name} for cell in cells}
  control = cells[0].name
  rows = [_row(figure, by_cell, control) for figure in figures]
  return SweepTable(
    config=config,
    control=control,
    budgets=tuple(_budget(cell, by_cell[cell.name], by_cell[control]) for cell in cells),
    rows=_adjusted([row for row in rows if any(c.found for c in row.cells)]),
    missing=tuple(missing),
  )


def spread(values: Sequence[float]) -> Spread | None:
  """Returns the mean of values with its interval; None without values."""
  x = np.asarray(values, np.float64)
  if not len(x):
    return None
  mean = float(x.mean())
  if len(x) < 2:
    return Spread(values=tuple(x.tolist()), mean=mean, ci95=None, sd=None)
  sd = float(x.std(ddof=1))
  half = float(stats.t.ppf(0.975, len(x) - 1)) * sd / math.sqrt(len(x))
  return Spread(values=tuple(x.tolist()), mean=mean, ci95=(mean - half, mean + half), sd=sd)


def change(old: Mapping[int, float], new: Mapping[int, float]) -> CellChange | None:
  """Returns new less old over the seeds of both; None without shared seeds."""
  found = spread([new[seed] - old[seed] for seed in sorted(old.keys() & new.keys())])
  return None if found is None else CellChange(found=found, p=_p_of_pairs(found))


def _p_of_pairs(found: Spread) -> float | None:
  """Returns the two-sided p value of Student's t for pairs (Student, 1908)."""
  n = len(found.values)
  if found.sd is None:
    return None
  if found.sd <= _NONE * abs(found.mean):
    return None if found.mean else 1.0
  return float(2 * stats.t.sf(abs(found.mean) / (found.sd / math.sqrt(n)), n - 1))


def _row(figure: Figure, by_cell: Mapping[str, Mapping[int, SweptRun]], control: str) -> FigureRow:
  values = {
    cell: {seed: float(x) for seed, run in runs.items() if (x := _read(figure, run)) is not None}
    for cell, runs in by_cell.items()
  }
  cells = [
    FigureCell(
      cell=cell,
      found=spread([x for _, x in sorted(found.items())]),
      change=None if cell == control else change(values[control], found),
    )
    for cell, found in values.items()
  ]
  return FigureRow(figure=figure.name, drawn=figure.drawn, cells=tuple(cells))


def _read(figure: Figure, run: SweptRun) -> float | None:
  x = figure.read(run.summary)
  return x if x is not None and math.isfinite(x) else None


def _adjusted(rows: Sequence[FigureRow]) -> tuple[FigureRow, ...]:
  """Returns the rows with their q values."""
  tested = [c.change.p for row in rows for c in row.cells if c.change and c.change.p is not None]
  adjusted = iter(rates.benjamini_hochberg(tested).tolist())

  def with_q(cell: FigureCell) -> FigureCell:
    if cell.change is None or cell.change.p is None:
      return cell
    return dataclasses.replace(cell, change=dataclasses.replace(cell.change, q=next(adjusted)))

  return tuple(dataclasses.replace(row, cells=tuple(map(with_q, row.cells))) for row in rows)


# ---------------------------------------------------------------------------------------- budgets


_KINDS = ("queries", "answers", "examples")


def _spent(runs: Mapping[int, SweptRun]) -> dict[int, dict[str, float]]:
  """Returns what runs have spent, by seed and kind; a run without a repair has no examples."""
  spent = {}
  for seed, run in sorted(runs.items()):
    repaired = run.summary.rectify.get(REPAIRED)
    queries = run.summary.queries
    kinds = (queries.total + queries.bootstrap, run.answers, repaired and repaired.examples)
    spent[seed] = {k: float(n) for k, n in zip(_KINDS, kinds, strict=True) if n is not None}
  return spent


def _budget(
  cell: Cell, runs: Mapping[int, SweptRun], control: Mapping[int, SweptRun]
) -> CellBudget:
  ours, theirs = _spent(runs), _spent(control)
  shared = [seed for seed in ours if seed in theirs]
  means = {kind: _mean(ours, kind, list(ours)) for kind in _KINDS}
  unequal = [_unequal(kind, ours, theirs, shared) for kind in _KINDS]
  return CellBudget(
    cell=cell.name,
    changes=cell.said,
    seeds=tuple(ours),
    queries=means["queries"],
    answers=means["answers"],
    examples=means["examples"],
    unequal=", ".join(filter(None, unequal)),
  )


def _unequal(
  kind: str,
  ours: Mapping[int, Mapping[str, float]],
  theirs: Mapping[int, Mapping[str, float]],
  shared: Sequence[int],
) -> str:
  """Says how a cell's budget differs from the control's; "" if it does not."""
  a, b = _mean(ours, kind, shared), _mean(theirs, kind, shared)
  if a is None and b is None:
    return ""
  if not a or not b:
    return "" if a == b else f"{kind} {a or 0:,.0f} against {b or 0:,.0f}"
  return f"{kind} × {a / b:.2f}" if abs(a - b) > _EQUAL * b else ""


def _mean(
  spent: Mapping[int, Mapping[str, float]], kind: str, seeds: Sequence[int]
) -> float | None:
  found = [spent[seed][kind] for seed in seeds if kind in spent[seed]]
  return float(np.mean(found)) if found else None
