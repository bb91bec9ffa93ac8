# SPDX-License-Identifier: Apache-2.0
"""table: one table of all results of `score`, or of all runs of a `sweep`, with differences.

  python -m auditdm_jax table --config=… --workdir=runs/bench    the config of `predict`
  python -m auditdm_jax table --workdir=runs/first               the folder of a sweep

Writes table.md, table.json, table.csv, the plot table.svg and the page table.html.

Reads:  WORKDIR/results.jsonl; or WORKDIR/sweep.json and the runs that it names.
Writes: WORKDIR/table.md, .json, .csv, .svg and .html.
Costs:  no model: seconds, most of them for intervals.
"""

import datetime
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.bench import page, sheets
from auditdm_jax.bench import table as table_lib
from auditdm_jax.bench.sweeps import record
from auditdm_jax.bench.table import BenchTable
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import swept
from auditdm_jax.stages.benchmarks import BenchRun


def main(config: ConfigDict | None, workdir: pathlib.Path) -> int:
  if (sweep := record.read(workdir)) is not None:
    swept.show(swept.write_table(workdir, sweep), workdir)
    return 0
  if config is None:
    raise UserError(f"{workdir}: no folder of a sweep; a table of benchmarks needs --config")
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
