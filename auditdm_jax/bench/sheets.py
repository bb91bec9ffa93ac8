# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks as text: sheets of cells, Markdown, CSV and JSON.

Names of models, benchmarks and files are somebody else's words: none ends a cell, a line or a tag,
and a spreadsheet takes none for a formula.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import math
import re
from typing import Any

from auditdm_jax.audit.report import charts
from auditdm_jax.audit.report import text as text_lib
from auditdm_jax.bench.specs.base import PaperRow
from auditdm_jax.bench.table import BenchRow, BenchTable, RoleCell, RoleChange

NOTHING = "–"
_MAX_CELL = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKED = re.compile(r"([\\|`*]|<(?=[A-Za-z/!?])|\](?=[(\[:]))")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
  """A table as people read it.

  Attributes:
    title: of the sheet.
    about: what its numbers are.
    head: names of the columns.
    rows: cells of text.
  """

  title: str
  about: str
  head: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]


def sheets(table: BenchTable) -> list[Sheet]:
  """Returns the sheets of a table; what has no rows is left out."""
  made = [_values(table), _changes(table), _forgetting(table), _notes(table)]
  return [sheet for sheet in made if sheet.rows]


def _values(table: BenchTable) -> Sheet:
  rows = []
  for row in table.rows:
    cells = [row.cell(role) for role in table.roles]
    invalid = [NOTHING if c is None else f"{c.invalid:,}" for c in cells]
    rows.append(
      (
        *_named(row),
        *(NOTHING if c is None else interval(c.found.value, c.found.ci95) for c in cells),
        f"{row.cells[0].found.units:,}",
        f"{row.cells[0].found.images:,}",
        " / ".join(invalid),
        _paper(row.paper),
      )
    )
  head = ("benchmark", "split", "metric", *table.roles, "n", "images", "invalid", "paper")
  about = (
    "Each value with its 95 % interval by image. n counts judged units: questions, or those that"
    " count together. Invalid are answers that could not be read, in the order of the models; they"
    " are wrong."
  )
  return Sheet(title="Values", about=about, head=head, rows=tuple(rows))


def _changes(table: BenchTable) -> Sheet:
  rows = []
  for row in table.rows:
    before = row.cell(table.baseline)
    for step in row.changes:
      after = row.cell(step.role)
      rows.append((*_named(row), *_change(step, before, after)))
  head = (
    *("benchmark", "split", "metric", "model", "difference", "p", "q", "wins / losses"),
    *("pairs", "images", "invalid before → after", "could show"),
  )
  about = (
    f"Each model minus {table.baseline} on the units of both. p is of no difference, by flipping"
    " whole images; q is p adjusted for all benchmarks of the model. The last column is the true"
    " difference that so many images would show four times out of five."
  )
  return Sheet(title="Differences", about=about, head=head, rows=tuple(rows))


def _change(step: RoleChange, before: RoleCell | None, after: RoleCell | None) -> tuple[str, ...]:
  found = step.found
  invalid = [NOTHING if c is None else f"{c.invalid:,}" for c in (before, after)]
  return (
    step.role,
    interval(found.change, found.ci95, sign=True),
    chance(found.p),
    chance(step.q),
    f"{found.wins:,} / {found.losses:,}",
    f"{found.units:,}",
    f"{found.images:,}",
    " → ".join(invalid),
    number(found.detectable),
  )


def _forgetting(table: BenchTable) -> Sheet:
  rows = [
    (
      f.role,
      charts.rate_text(f.lost),
      charts.rate_text(f.gained),
      f"{f.lost.images:,}",
      ", ".join(f.benchmarks),
    )
    for f in table.forgetting
  ]
  head = ("model", "lost", "gained", "images", "benchmarks")
  about = (
    f"Forgetting: of what {table.baseline} has right, the share that the model has wrong; and of"
    f" what {table.baseline} has wrong, the share that the model has right. Over all benchmarks"
    " whose units are right or wrong, by image."
  )
  return Sheet(title="Forgetting", about=about, head=head, rows=tuple(rows))


def _notes(table: BenchTable) -> Sheet:
  rows = []
  for row in table.rows:
    notes = [*row.notes, *([row.paper.note] if row.paper and row.paper.note else [])]
    notes += [f"{c.role}: no reply to {c.unanswered:,} items" for c in row.cells if c.unanswered]
    notes += [f"{c.role}: {c.cut:,} answers reached the limit" for c in row.cells if c.cut]
    rows += [(row.title, row.split, note) for note in notes]
  return Sheet(
    title="Notes",
    about="What to know before comparing.",
    head=("benchmark", "split", "note"),
    rows=tuple(rows),
  )


def _named(row: BenchRow) -> tuple[str, str, str]:
  split = f"part of {row.split}" if row.part else row.split
  metric = row.cells[0].metric
  return row.title, split, f"{row.primary} ({metric.name}, {metric.variant})"


def _paper(paper: PaperRow | None) -> str:
  if paper is None:
    return NOTHING
  larger = "".join(f", {name} {number(x)}" for name, x in paper.larger.items())
  spread = f" ± {number(paper.sd)}" if paper.sd is not None else ""
  return f"{number(paper.baseline)}{spread} → {number(paper.repaired)}{larger}"


def number(value: float | None, *, sign: bool = False) -> str:
  """Returns a value with one digit after the point."""
  if value is None or not math.isfinite(value):
    return NOTHING
  text = f"{value:+,.1f}" if sign else f"{value:,.1f}"
  return text.replace("-", "\N{MINUS SIGN}")


def interval(value: float | None, ci95: tuple[float, float], *, sign: bool = False) -> str:
  """Returns "84.8 [84.1, 85.5]"."""
  low, high = (number(x, sign=sign) for x in ci95)
  return f"{number(value, sign=sign)} [{low}, {high}]"


def chance(p: float) -> str:
  """Returns a p value with three digits."""
  return "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown(table: BenchTable) -> str:
  """Returns the sheets of a table as Markdown."""
  return as_markdown("Benchmarks", sheets(table))


def as_markdown(title: str, shown: Sequence[Sheet]) -> str:
  """Returns sheets as Markdown."""
  parts = [f"# {_marked(title)}", ""]
  for sheet in shown:
    parts += [f"## {sheet.title}", "", _marked(sheet.about), ""]
    parts += [_line(sheet.head), "|" + "---|" * len(sheet.head)]
    parts += [*map(_line, sheet.rows), ""]
  return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
  return "| " + " | ".join(map(_marked, cells)) + " |"


def _marked(text: str) -> str:
  words = " ".join(text_lib.visible(text[: 4 * _MAX_CELL]).split())
  return _MARKED.sub(r"\\\1", words)


def as_csv(table: BenchTable) -> str:
  """Returns a row per benchmark and model."""
  return csv_of([_flat(row, cell, table.baseline) for row in table.rows for cell in row.cells])


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows of the same keys as CSV, in which no text is a formula; "" without rows."""
  out = io.StringIO()
  if rows:
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _unformulated(v) for k, v in row.items()} for row in rows)
  return out.getvalue()


def _unformulated(value: Any) -> Any:
  if not isinstance(value, str):
    return value
  text = " ".join(text_lib.visible(value).split())
  return f"'{text}" if text.startswith(_FORMULA) else text


def _flat(row: BenchRow, cell: RoleCell, baseline: str) -> dict[str, Any]:
  step, before, paper = row.change(cell.role), row.cell(baseline), row.paper
  low, high = cell.found.ci95
  found = step.found if step else None
  return {
    "benchmark": row.entry,
    "title": row.title,
    "split": row.split,
    "part": row.part,
    "metric": cell.metric.name,
    "variant": cell.metric.variant,
    "value_name": row.primary,
    "role": cell.role,
    "model": cell.model,
    "value": _finite(cell.found.value),
    "low": _finite(low),
    "high": _finite(high),
    "n": cell.found.units,
    "images": cell.found.images,
    "predictions": cell.predictions,
    "invalid_before": before.invalid if before else None,
    "invalid": cell.invalid,
    "unanswered": cell.unanswered,
    "difference": found.change if found else None,
    "difference_low": _finite(found.ci95[0]) if found else None,
    "difference_high": _finite(found.ci95[1]) if found else None,
    "p": found.p if found else None,
    "q": step.q if step else None,
    "pairs": found.units if found else None,
    "wins": found.wins if found else None,
    "losses": found.losses if found else None,
    "detectable": _finite(found.detectable) if found else None,
    "paper_baseline": paper.baseline if paper else None,
    "paper_repaired": paper.repaired if paper else None,
  }


def _finite(value: float | None) -> float | None:
  return value if value is not None and math.isfinite(value) else None
