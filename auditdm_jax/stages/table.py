# SPDX-License-Identifier: Apache-2.0
"""table: one table of all results of `score`, with differences to the baseline.

  python -m auditdm_jax table --config=… --workdir=runs/bench    the config of `predict`

Writes table.md, table.json, table.csv, the plot table.svg and the page table.html.
"""

from collections.abc import Sequence
import datetime
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.bench import page, sheets
from auditdm_jax.bench import table as table_lib
from auditdm_jax.bench.results import BenchResult
from auditdm_jax.bench.table import BenchTable
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError
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
  wanted = latest(ctx)
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


def latest(ctx: BenchRun) -> list[dict[str, BenchResult]]:
  """Returns per row of the table the latest result of each role.

  A benchmark has a row for the metrics of its prompts, and one for each metric that the config once
  named instead.

  Raises:
    UserError: nothing is scored.
  """
  found: dict[tuple[str, str], dict[str, BenchResult]] = {}
  for head in ctx.results.heads():
    entry, role = head.asked.entry, head.asked.role
    if entry in ctx.settings.benchmarks and role in ctx.settings.models_of(entry):
      label = f"{head.metric.name}/{head.metric.variant}" if head.override else ""
      found.setdefault((entry, label), {})[role] = head
  if not found:
    raise UserError(f"{ctx.folder.path}: nothing of this config is scored; run score first")
  order: Sequence[str] = list(ctx.settings.benchmarks)
  return [found[k] for k in sorted(found, key=lambda k: (order.index(k[0]), k[1]))]
