# SPDX-License-Identifier: Apache-2.0
"""score: scores the predictions of `predict`; runs no model.

  python -m auditdm_jax score --config=… --workdir=runs/bench    the config of `predict`

Results go to <workdir>/results.jsonl. Another metric or variant in the config adds results beside
those that are there: --config.benchmarks.vqav2.variant=official

Reads:  WORKDIR/predictions-*.jsonl and the folders of the benchmarks.
Writes: WORKDIR/results.jsonl.
Costs:  no model: seconds to minutes.
"""

from collections.abc import Mapping
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.bench import results as results_lib
from auditdm_jax.bench.predictions import AskedBenchmark
from auditdm_jax.bench.results import BenchResult
from auditdm_jax.bench.specs import MetricName
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.benchmarks import BenchRun


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with BenchRun(config, workdir, "score") as ctx:
    for head in run(ctx):
      if runtime.is_main():
        print(line(head))
  return 0


def run(ctx: BenchRun) -> list[BenchResult]:
  """Scores what was asked and is not scored yet; returns what is new.

  Raises:
    UserError: nothing was asked, or what was asked cannot be scored.
  """
  asked = [x for x in ctx.predictions.asked() if ctx.has(x)]
  if not asked:
    raise UserError(
      f"{ctx.folder.path}: no benchmark of this config was asked to the end; run predict first"
    )
  known = {(x.asked.entry, x.asked.role, x.metric): x.result for x in ctx.results.heads()}
  made = []
  for key in ctx.settings.benchmarks:
    for head in _entry(ctx, key, [x for x in asked if x.entry == key], known):
      made.append(head)
  return made


def _entry(
  ctx: BenchRun,
  key: str,
  asked: list[AskedBenchmark],
  known: Mapping[tuple[str, str, MetricName], str],
) -> list[BenchResult]:
  """Scores one benchmark, for each model that was asked, where the newest result is another one."""
  pairs = [(x, ctx.questions(key, x.family, asked=x)) for x in asked]
  keys = {q.key(x.model, q.items[i]) for x, q in pairs for i in range(len(q.items))}
  predictions = ctx.predictions.find(keys) if keys else {}
  heads = []
  for x, questions in pairs:
    paired, name = results_lib.pair(x, questions, predictions), ctx.metric_name(key, x.prompt)
    if known.get((key, x.role, name)) != paired.result(name):
      metric = ctx.metric(key, name, part=bool(x.part))
      rows = paired.score(metric, name, override=name != x.prompt.metric)
      ctx.results.append(rows)
      heads.append(rows.head)
  return heads


def line(head: BenchResult) -> str:
  """Returns a result as a line of text."""
  value = head.values[head.primary]
  said = "–" if value is None else f"{value:.4g}"
  part = f" ({head.asked.part})" if head.asked.part else ""
  return (
    f"  {head.asked.entry:16} {head.asked.role:14} {head.primary} {said}"
    f"  n={head.units:,} images={head.images:,} invalid={head.invalid:,}{part}"
  )
