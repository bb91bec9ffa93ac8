# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks as a page of the report, and by itself; and that of a sweep."""

from collections.abc import Sequence
import os

from auditdm_jax.audit.report import write
from auditdm_jax.audit.report.data import ExtraPage
from auditdm_jax.bench import forest, sheets
from auditdm_jax.bench.sheets import Sheet
from auditdm_jax.bench.sweeps import sheets as sweep_sheets
from auditdm_jax.bench.sweeps.compare import SweepTable
from auditdm_jax.bench.table import BenchTable
from auditdm_jax.core import jsonio, paths

PLOT = "table.svg"


def page_of(table: BenchTable, *, path: str) -> ExtraPage:
  """Returns the page of a table; its plot lies beside it."""
  lead = (
    f"Every model on the same items. Differences are to the model in the role {table.baseline}."
  )
  return _page("Benchmarks", sheets.sheets(table), forest.forest(table), lead=lead, path=path)


def _page(title: str, shown: Sequence[Sheet], drawn: str, *, lead: str, path: str) -> ExtraPage:
  return ExtraPage(
    name=title,
    path=path,
    template="benchmarks.html",
    values={"title": title, "lead": lead, "plot": PLOT, "sheets": shown},
    files={PLOT: drawn},
  )


def write_table(folder: str | os.PathLike, table: BenchTable, *, created: str) -> None:
  """Writes table.md, table.json, table.csv, table.svg and the page table.html with style.css."""
  _write(
    folder,
    page_of(table, path="table.html"),
    table,
    markdown=sheets.markdown(table),
    as_csv=sheets.as_csv(table),
    created=created,
  )


def write_sweep(folder: str | os.PathLike, table: SweepTable, *, created: str) -> None:
  """Writes the same files of a sweep."""
  shown = sweep_sheets.sheets(table)
  lead = f"Cells of {table.config}. Differences are to {table.control}, seed by seed."
  page = _page("Sweep", shown, sweep_sheets.forest_of(table), lead=lead, path="table.html")
  _write(
    folder,
    page,
    table,
    markdown=sheets.as_markdown("Sweep", shown),
    as_csv=sweep_sheets.as_csv(table),
    created=created,
  )


def _write(
  folder: str | os.PathLike,
  page: ExtraPage,
  table: BenchTable | SweepTable,
  *,
  markdown: str,
  as_csv: str,
  created: str,
) -> None:
  root = paths.as_path(folder)
  paths.write_bytes(root / "table.md", markdown.encode("utf-8", "replace"))
  paths.write_bytes(root / "table.csv", as_csv.encode("utf-8", "replace"))
  jsonio.write_json(root / "table.json", table)
  if not paths.is_remote(folder):
    write.write_page(folder, page, created=created)
