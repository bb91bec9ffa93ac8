# SPDX-License-Identifier: Apache-2.0
"""logs: the results of `score` as logs that lmms-eval and Inspect write, for their viewers.

  python -m auditdm_jax logs --config=… --workdir=runs/bench --config.logs=lmms-eval,inspect

Files go to <workdir>/logs. Inspect's are written by its own library, which must be installed.

Reads:  WORKDIR/results.jsonl and WORKDIR/predictions-*.jsonl.
Writes: WORKDIR/logs.
Costs:  no model: seconds.
"""

import datetime
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.bench import logs as logs_lib
from auditdm_jax.bench.logs import BenchLog
from auditdm_jax.core import paths, runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.benchmarks import BenchRun


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with BenchRun(config, workdir, "logs") as ctx:
    for path in run(ctx):
      if runtime.is_main():
        print(path)
  return 0


def run(ctx: BenchRun) -> list[pathlib.Path]:
  """Writes the logs that the config names; returns their files.

  Raises:
    UserError: nothing is scored, or a library is missing.
  """
  if paths.is_remote(ctx.folder.path) and "inspect" in ctx.settings.logs:
    raise UserError("config.logs: Inspect's files are written into a --workdir of this machine")
  logs = _logs(ctx)
  if not runtime.is_main():
    return []
  now = datetime.datetime.now(datetime.UTC)
  root, written = ctx.folder.path / "logs", []
  if "lmms-eval" in ctx.settings.logs:
    date = now.strftime("%Y%m%d_%H%M%S")
    written += logs_lib.write_lmms_eval(root / "lmms-eval", logs, date=date)
  if "inspect" in ctx.settings.logs:
    created = now.isoformat(timespec="seconds")
    written += logs_lib.write_inspect(root / "inspect", logs, created=created)
  return written


def _logs(ctx: BenchRun) -> list[BenchLog]:
  """Returns the latest results, each with its questions."""
  heads = [head for row in ctx.latest() for head in row.values() if not head.override]
  results = ctx.results.load([head.result for head in heads])
  logs = []
  for head in heads:
    questions = ctx.questions(head.asked.entry, head.asked.family, asked=head.asked)
    keys = {questions.key(head.asked.model, item) for item in questions.items}
    logs.append(logs_lib.log_of(results[head.result], questions, ctx.predictions.find(keys)))
  return logs
