# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks as a page of the report, and by itself."""

import os

from auditdm_jax.audit.report import write
from auditdm_jax.audit.report.data import ExtraPage
from auditdm_jax.bench import forest, sheets
from auditdm_jax.bench.table import BenchTable
from auditdm_jax.core import jsonio, paths

PLOT = "table.svg"


def page_of(table: BenchTable, *, path: str) -> ExtraPage:
  """Returns the page; its plot lies beside it."""
  return ExtraPage(
    name="Benchmarks",
    path=path,
    template="benchmarks.html",
    values={"baseline": table.baseline, "plot": PLOT, "sheets": sheets.sheets(table)},
    files={PLOT: forest.forest(table)},
  )


def write_table(folder: str | os.PathLike, table: BenchTable, *, created: str) -> None:
  """Writes table.md, table.json, table.csv, table.svg and the page table.html with style.css."""
  root = paths.as_path(folder)
  paths.write_bytes(root / "table.md", sheets.markdown(table).encode("utf-8", "replace"))
  paths.write_bytes(root / "table.csv", sheets.as_csv(table).encode("utf-8", "replace"))
  jsonio.write_json(root / "table.json", table)
  if not paths.is_remote(folder):
    write.write_page(folder, page_of(table, path="table.html"), created=created)
