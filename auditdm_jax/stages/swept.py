# SPDX-License-Identifier: Apache-2.0
"""The table of a sweep from the folders of its runs."""

import datetime
import os
from typing import Any

from auditdm_jax.bench import page, sheets
from auditdm_jax.bench.sweeps import compare, record
from auditdm_jax.bench.sweeps import sheets as sweep_sheets
from auditdm_jax.bench.sweeps.compare import SweepTable, SweptRun
from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.results import Empty
from auditdm_jax.stages.run import RunFolder

_LOOP = "loop"


def write_table(folder: str | os.PathLike[str], sweep: record.Sweep) -> SweepTable:
  """Writes table.md, .csv, .json, .svg and .html into the folder of a sweep.

  Raises:
    UserError: no run is finished.
  """
  runs, missing = collect(folder, sweep)
  if not runs:
    raise UserError(
      f"{folder}: no run of the sweep is finished yet: {missing[0][0]} {missing[0][1]}"
    )
  table = compare.tabulate(sweep.cells, runs, config=sweep.config, missing=missing)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  page.write_sweep(folder, table, created=now)
  return table


def collect(
  folder: str | os.PathLike[str], sweep: record.Sweep
) -> tuple[list[SweptRun], list[tuple[str, str]]]:
  """Returns the finished runs of a sweep; and for the others, (run, why it is left out)."""
  runs, missing = [], []
  for name, config in sweep.configs.items():
    cell, _, seed = name.rpartition("/")
    path = paths.as_path(folder) / cell / seed
    try:
      found = _finished(path, config)
    except UserError as e:
      missing.append((name, str(e)))
      continue
    if found is None:
      missing.append((name, "not finished" if path.exists() else "not started"))
    else:
      summary, answers = found
      runs.append(SweptRun(cell=cell, seed=int(seed), summary=summary, answers=answers))
  return runs, missing


def is_finished(path: Any, config: str) -> bool:
  """Returns whether a run is finished with this config; one with another config is not."""
  try:
    return _finished(path, config) is not None
  except UserError:
    return False


def _finished(path: Any, config: str) -> tuple[Any, int] | None:
  """Returns the summary of a finished run, and how many answers it took; None if it is not.

  Raises:
    UserError: it was made with another config, or its files are damaged.
  """
  if not (path / _LOOP / "done.json").exists():
    return None
  run = RunFolder(path, config_hash=config)
  run.done(_LOOP, Empty)
  summary = run.summary()
  if summary is None:
    raise UserError(f"{path}: its summary.json is gone; the stage report writes it again")
  answers = sum(n for key, n in run.spent().items() if key.startswith("answers/"))
  return summary, int(answers)


def show(table: SweepTable, folder: str | os.PathLike[str]) -> None:
  """Prints a table, and where its files are."""
  print(sheets.as_markdown("Sweep", sweep_sheets.sheets(table)))
  print(f"{folder}/table.html, .md, .csv, .json, .svg")
