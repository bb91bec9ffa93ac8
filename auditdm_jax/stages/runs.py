# SPDX-License-Identifier: Apache-2.0
"""runs: lists the runs below a folder: what, when, how far, and what each found.

  python -m auditdm_jax runs runs/

Prints a table, newest first, and writes DIR/index.html, a page that links their reports. Without
DIR it lists runs/. A run is a folder with a manifest.json; folders in a run are not looked into.
A sweep is a row of its own, above the runs, which links its table.

A run that goes on, or stopped before its report, shows what it found so far.

Reads:  manifest.json, summary.json, done.json and the lock of each run; without a report, records;
        sweep.json of each sweep.
Writes: DIR/index.html and DIR/style.css, unless --nopage.
Costs:  no model: a second for hundreds of runs, and for 50,000 probes of runs without a report.
"""

from collections.abc import Iterable, Iterator, Sequence
import datetime
import fcntl
import os
import pathlib
from typing import Any
import urllib.parse

from absl import flags
import rich.console
import rich.table
import rich.text

from auditdm_jax.audit.report import text
from auditdm_jax.audit.report.data import ExtraPage, RunRow
from auditdm_jax.audit.report.write import write_page
from auditdm_jax.audit.summary import Compared
from auditdm_jax.bench.sweeps import record
from auditdm_jax.core import paths, typed
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import so_far

FLAGS = flags.FlagValues()
_PAGE = flags.DEFINE_bool("page", True, "Write DIR/index.html.", flag_values=FLAGS)
_MANIFEST = "manifest.json"
_DEPTH = 4  # Folders below DIR that are looked into.
_MARK = b'id="auditdm-runs"'  # Of the page's template: what has it may be written over.


def main(words: Sequence[str]) -> int:
  """Lists the runs below the folder that is named."""
  if len(words) > 1:
    raise UserError("runs takes one folder, such as runs/")
  named = words[0] if words else "runs"
  root = pathlib.Path(named)
  if paths.is_remote(named) or not root.is_dir():
    raise UserError(f"{named}: no folder on this machine; name the one that holds the runs")
  rows = [*sweeps_of(root), *rows_of(root)]
  print_table(rows)
  if not rows:
    print(f"{root}: no runs; a run is a folder that --workdir named")
  elif _PAGE.value:
    print(write_index(root, rows))
  return 0


def rows_of(root: pathlib.Path) -> list[RunRow]:
  """Returns the runs below a folder, or the folder itself if it is one, the newest first."""
  return _newest_first(
    _row(folder, root) for folder in find(root, _DEPTH) if (folder / _MANIFEST).is_file()
  )


def sweeps_of(root: pathlib.Path) -> list[RunRow]:
  """Returns the sweeps below a folder, or the folder itself if it is one, the newest first."""
  return _newest_first(
    _sweep_row(folder, root) for folder in find(root, _DEPTH) if (folder / record.FILE).is_file()
  )


def _newest_first(rows: Iterable[RunRow]) -> list[RunRow]:
  return sorted(rows, key=lambda row: (row.started, row.name), reverse=True)


def find(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  """Yields folders of runs and sweeps; links are not followed, what cannot be read is left out."""
  if (folder / _MANIFEST).is_file():
    yield folder
    return
  if (folder / record.FILE).is_file():
    yield folder
  if not depth:
    return
  try:
    inner = sorted(
      entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)
    )
  except OSError:
    return
  for path in inner:
    yield from find(pathlib.Path(path), depth - 1)


def write_index(root: pathlib.Path, rows: Sequence[RunRow]) -> pathlib.Path:
  """Writes the page and returns its path.

  Raises:
    UserError: an index.html is there that is not this page.
  """
  path = root / "index.html"
  if path.exists() and _MARK not in path.read_bytes():
    raise UserError(f"{path} is there already, and not of this program; see --nopage")
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  page = ExtraPage(
    name="Runs", path="index.html", template="runs.html", values={"rows": rows}, files={}
  )
  write_page(root, page, created=now)
  return path


def print_table(rows: Sequence[RunRow]) -> None:
  """Prints the runs; what a terminal would obey in their names is shown instead."""
  console = rich.console.Console(highlight=False)
  table = rich.table.Table(box=None, pad_edge=False)
  for column in ("run", "target", "started", "state", "found"):
    table.add_column(column, overflow="fold")
  for row in rows:
    cells = (row.name, row.target, row.started.replace("T", " ")[:16], row.state, row.headline)
    table.add_row(*(rich.text.Text(text.safe(" ".join(cell.split()))) for cell in cells))
  if rows:
    console.print(table)


def _row(folder: pathlib.Path, root: pathlib.Path) -> RunRow:
  stages = so_far.manifest_stages(folder)
  started = [str(stage.get("started", "")) for stage in stages.values()]
  models = [stage.get("models") for stage in stages.values()]
  targets = [str(m["target"]) for m in models if isinstance(m, dict) and m.get("target")]
  return RunRow(
    name=_name(folder, root),
    target=pathlib.PurePath(targets[-1]).name if targets else "",
    started=min(filter(None, started), default=""),
    state=_state(folder, stages),
    headline=_headline(folder),
    link=_link(folder, root),
  )


def _sweep_row(folder: pathlib.Path, root: pathlib.Path) -> RunRow:
  try:
    sweep = record.read(folder)
  except UserError:
    sweep = None
  if sweep is None:
    name, link = _name(folder, root), _link(folder, root)
    return RunRow(
      name=name, target="", started="", state="sweep.json is damaged", headline="", link=link
    )
  file, colon, args = sweep.config.partition(":")
  runs = [folder / name for name in sweep.configs]
  started = [
    str(stage.get("started", "")) for run in runs for stage in so_far.manifest_stages(run).values()
  ]
  done = sum((run / "loop/done.json").is_file() for run in runs)
  return RunRow(
    name=_name(folder, root),
    target=f"{pathlib.PurePath(file).name}{colon}{args}",
    started=min(filter(None, started), default=""),
    state=f"sweep, {done} of {len(runs)} runs finished",
    headline=f"compares {', '.join(cell.name for cell in sweep.cells)}",
    link=_link(folder, root),
  )


def _name(folder: pathlib.Path, root: pathlib.Path) -> str:
  return str(folder.relative_to(root)) if folder != root else folder.resolve().name


def _state(folder: pathlib.Path, stages: dict[str, Any]) -> str:
  if not stages:
    return "manifest.json is damaged"
  if _is_locked(folder):
    done = so_far.done(folder)
    return f"running, {done[-1]} is done" if done else "running"
  if "loop" in stages and (folder / "loop" / "done.json").exists():
    return "finished"
  done = so_far.done(folder)
  if done and done[-1] == "verify" and (folder / "summary.json").exists():
    return "finished" if "audit" in stages else "report, no repair yet"
  if (folder / "table.json").exists() or (folder / "predictions.json").exists():
    return "benchmarks"
  return f"stopped after {done[-1]}" if done else "stopped"


def _headline(folder: pathlib.Path) -> str:
  """Returns the verdict of the last report in one sentence, or what was found so far."""
  if not (folder / "summary.json").is_file():
    try:
      return so_far.found(folder).sentence
    except UserError:
      return "its records are of another version or damaged"
  summary = so_far.read_or_none(folder / "summary.json")
  try:
    return typed.load(Compared, summary["compared"]).verdict
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
    return "summary.json is of another version or damaged"


def _link(folder: pathlib.Path, root: pathlib.Path) -> str:
  """Returns the address of a run's page relative to the index; "" if it has none."""
  for page in ("report/index.html", "table.html"):
    if (folder / page).is_file():
      path = (folder / page).relative_to(root).as_posix()
      return "./" + urllib.parse.quote(path.encode("utf-8", "surrogateescape"))
  return ""


def _is_locked(folder: pathlib.Path) -> bool:
  """Returns whether a process of this machine works in a run."""
  try:
    with open(folder / ".lock") as lock:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # No lock, or a file system that has none.
    return False
  return False
