# SPDX-License-Identifier: Apache-2.0
"""The forest plot: differences with their intervals, an SVG file.

In the table of benchmarks they are those of each model to the baseline. Benchmarks of one scale
share an axis; MME, a sum, has its own.
"""

from collections.abc import Sequence
import dataclasses
import math

import markupsafe

from auditdm_jax.audit.report import text as text_lib
from auditdm_jax.bench import sheets
from auditdm_jax.bench.table import BenchTable, RoleChange

_WIDTH, _LEFT, _RIGHT, _ROW, _GAP, _TOP = 890, 250, 200, 18, 10, 44
_COLORS = 6  # Of more kinds, each mark has its name beside it.
_MAX_NAME = 34
_STYLE = """
  :root { --paper: #fbfaf7; --ink: #22242a; --soft: #62656f; --rule: #e3e0d8;
    --c0: #2b5c8a; --c1: #c2703d; --c2: #2f7a5b; --c3: #8a4f9e; --c4: #8a7a1e; --c5: #5b616e; }
  @media (prefers-color-scheme: dark) { :root { --paper: #15171b; --ink: #e6e4de; --soft: #a1a4ad;
    --rule: #31353d; --c0: #8fbbe6; --c1: #efaa78; --c2: #7fcfab; --c3: #cf9fe0; --c4: #d8c869;
    --c5: #b4b8c2; } }
  svg { background: var(--paper); font: 12px system-ui, sans-serif; }
  text { fill: var(--ink); } .soft { fill: var(--soft); } .grid { stroke: var(--rule); }
  .zero { stroke: var(--soft); }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
  """One difference.

  Attributes:
    kind: which entry of the legend it belongs to, from 0 on.
    change: the difference.
    ci95: ends of its interval.
  """

  kind: int
  change: float
  ci95: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotRow:
  """Differences under one name."""

  name: str
  marks: tuple[Mark, ...]


def forest(table: BenchTable) -> str:
  """Returns the plot of a table; without differences it says so."""
  panels: dict[float, list[PlotRow]] = {}
  for row in table.rows:
    if row.changes:
      name = f"{row.title}, {'part of ' if row.part else ''}{row.split}"
      marks = tuple(_mark_of(step, table.roles) for step in row.changes)
      panels.setdefault(row.scale, []).append(PlotRow(name=name, marks=marks))
  return plot(
    list(panels.values()),
    legend=table.roles[1:],
    label=f"Difference to {table.baseline} by benchmark, with 95 % intervals by image",
    nothing="no model was compared with the baseline",
  )


def _mark_of(step: RoleChange, roles: Sequence[str]) -> Mark:
  return Mark(kind=roles.index(step.role) - 1, change=step.found.change, ci95=step.found.ci95)


def plot(
  panels: Sequence[Sequence[PlotRow]], *, legend: Sequence[str], label: str, nothing: str
) -> str:
  """Returns a plot.

  Args:
    panels: rows that share an axis.
    legend: names of the kinds of marks.
    label: for those who do not see it.
    nothing: what it says without panels.
  """
  beside = legend if len(legend) > _COLORS else ()
  named, top = _legend(() if beside else legend)
  parts, y = [], top
  for rows in panels:
    drawn, y = _panel(rows, y, beside)
    parts += drawn
  if not parts:
    parts = [_text(_WIDTH / 2, y, nothing, "middle")]
  height = y + 20
  return markupsafe.Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
    "<style>{style}</style>{legend}{body}</svg>\n"
  ).format(
    w=_WIDTH,
    h=height,
    label=text_lib.visible(label),
    style=markupsafe.Markup(_STYLE),
    legend=markupsafe.Markup("").join(named),
    body=markupsafe.Markup("").join(parts),
  )


def _legend(names: Sequence[str]) -> tuple[list[markupsafe.Markup], float]:
  """Draws the names of the marks, in lines; returns the parts and where the first panel begins."""
  parts, x, y = [], _LEFT, 20
  for i, name in enumerate(names):
    width = 30 + 7 * min(len(name), _MAX_NAME)
    if x + width > _WIDTH and x > _LEFT:
      x, y = _LEFT, y + _ROW
    parts += [_mark(x, y, i), _text(x + 10, y + 4, _short(name))]
    x += width
  return parts, y + _TOP - 20


def _short(name: str) -> str:
  return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _panel(
  rows: Sequence[PlotRow], y: float, beside: Sequence[str]
) -> tuple[list[markupsafe.Markup], float]:
  """Draws rows on one axis from y on; returns the parts and where the next panel begins.

  With names of kinds for `beside` marks, those of rows stand above theirs.
  """
  marks = [mark for row in rows for mark in row.marks]
  ends = [abs(x) for mark in marks for x in (mark.change, *mark.ci95) if math.isfinite(x)]
  top = _round_top(max(ends, default=0.0))
  parts, start = [], y
  for row in rows:
    parts.append(_text(_LEFT - 12, y + 4, _short(row.name), "end"))
    y += _ROW if beside else 0
    for mark in row.marks:
      parts.append(_interval(mark, y, top))
      if beside:
        parts.append(_text(_LEFT - 12, y + 4, _short(beside[mark.kind]), "end", "soft"))
      y += _ROW
    y += _GAP
  grid = [_tick(x, start - 12, y, top) for x in (-top, -top / 2, 0.0, top / 2, top)]
  return [*grid, *parts], y + 34


def _round_top(value: float) -> float:
  """Returns twice the least of 1, 2, 5, 10, … that is enough; a plot without changes has 0.2."""
  steps = (m * 10.0**e for e in range(-1, 12) for m in (1, 2, 5))
  return next((2 * step for step in steps if 2 * step >= value), value)


def _x(value: float, top: float) -> float:
  middle = (_LEFT + _WIDTH - _RIGHT) / 2
  return middle + (_WIDTH - _RIGHT - _LEFT) / 2 * max(-1.0, min(value / top, 1.0))


def _tick(value: float, above: float, below: float, top: float) -> markupsafe.Markup:
  kind = "grid" if value else "zero"
  line = markupsafe.Markup(
    '<line class="{kind}" x1="{x:.1f}" y1="{a:.1f}" x2="{x:.1f}" y2="{b:.1f}"/>'
  ).format(kind=kind, x=_x(value, top), a=above, b=below)
  return line + _text(
    _x(value, top), below + 14, sheets.number(value, sign=bool(value)), "middle", "soft"
  )


def _interval(mark: Mark, y: float, top: float) -> markupsafe.Markup:
  low, high = mark.ci95
  line = markupsafe.Markup(
    '<line x1="{a:.1f}" y1="{y:.1f}" x2="{b:.1f}" y2="{y:.1f}" stroke="var(--c{c})"'
    ' stroke-width="2"/>'
  ).format(a=_x(low, top), b=_x(high, top), y=y, c=mark.kind % _COLORS)
  said = sheets.interval(mark.change, mark.ci95, sign=True)
  label = _text(_WIDTH - _RIGHT + 14, y + 4, said, "start", "soft")
  return line + _mark(_x(mark.change, top), y, mark.kind) + label


def _mark(x: float, y: float, i: int) -> markupsafe.Markup:
  return markupsafe.Markup(
    '<rect x="{x:.1f}" y="{y:.1f}" width="8" height="8" fill="var(--c{c})"/>'
  ).format(x=x - 4, y=y - 4, c=i % _COLORS)


def _text(
  x: float, y: float, text: str, anchor: str = "start", kind: str = ""
) -> markupsafe.Markup:
  return markupsafe.Markup(
    '<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{text}</text>'
  ).format(x=x, y=y, anchor=anchor, kind=kind, text=text_lib.visible(text))
