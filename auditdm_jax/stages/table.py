# SPDX-License-Identifier: Apache-2.0
"""table: one table of all results of `score`, with differences to the baseline.

  python -m auditdm_jax table --config=… --workdir=runs/bench    the config of `predict`

Writes table.md, table.json, table.csv, the plot table.svg and the page table.html.

Reads:  WORKDIR/results.jsonl.
Writes: WORKDIR/table.md, .json, .csv, .svg and .html.
Costs:  no model: seconds, most of them for intervals.
"""

import datetime
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.bench import page, sheets
from auditdm_jax.bench import table as table_lib
from auditdm_jax.bench.table import BenchTable
from auditdm_jax.core import runtime
from auditdm_jax.stages.benchmarks import BenchRun


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with BenchRun(config, workdir, "table") as ctx:
    made = run(ctx)
    if runtime.is_main():
      print(sheets.markdown(made))
      print(f"{ctx.folder.path}/table.html, .md, .csv, .json, .svg")
  return 0


def run(ctx: BenchRun) -> BenchTable:
  """Makes the table and writes its files.

  Raises:
    UserError: nothing is scored.
  """
  wanted = ctx.latest()
  results = ctx.results.load([head.result for row in wanted for head in row.values()])
  rows = [{role: results[head.result] for role, head in row.items()} for row in wanted]
  made = table_lib.tabulate(
    rows,
    [ctx.specs[next(iter(row.values())).asked.entry] for row in wanted],
    lambda head: ctx.metric(head.asked.entry, head.metric, part=bool(head.asked.part)),
    baseline=ctx.settings.compared_with,
    roles=ctx.settings.roles,
    draws=ctx.settings.draws,
    seed=ctx.settings.seed,
  )
  if runtime.is_main():
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    page.write_table(ctx.folder.path, made, created=now)
  return made
