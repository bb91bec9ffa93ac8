# SPDX-License-Identifier: Apache-2.0
"""The loop over several runs, each with its own seed and its own drawn gaps: means over runs.

COMMAND
  python -m benchmarks.runs --workdir=runs/drawn [--seeds=101,102,103,104,105,106,107,108]
    [--curves=250,500] [--table]

The probes of one run say how sure that audit is, and nothing about another target. Here a run is
the unit. For each seed a target is trained without the questions of gaps that the seed draws
(`pretrain`, gaps=seed:N). Then the loop audits and repairs it with that seed; nobody has tuned to
these gaps. This takes about 7 and 15 minutes of one core. What was stopped goes on. `--table` runs
nothing and prints what is finished.

Printed for each figure: mean over runs, standard deviation, 95 % t interval of the mean, smallest
and largest value. Differences are paired within runs. `--curves` repairs again from the given
numbers of examples, from the audit's failures and from mined failures, taken alike.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import shutil
import subprocess
import sys

from absl import app, flags
import rich.console
import rich.table

from auditdm_jax.audit.figures import FIGURES, MINED, REPAIRED
from auditdm_jax.audit.summary import Summary
from auditdm_jax.bench.sweeps import compare
from auditdm_jax.core import jsonio, typed
from auditdm_jax.stages import rectify, suite
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.examples import from_failures
from auditdm_jax.stages.remote import config_hash
from auditdm_jax.stages.run import RunFolder
from benchmarks import own_flags
from configs import scenes

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "folder of the runs", required=True, flag_values=_FLAGS
)
_SEEDS = flags.DEFINE_list(
  "seeds", [str(s) for s in range(101, 109)], "one run each", flag_values=_FLAGS
)
_CURVES = flags.DEFINE_list("curves", [], "numbers of examples", flag_values=_FLAGS)
_TABLE = flags.DEFINE_bool("table", False, "run nothing", flag_values=_FLAGS)

SHARED, LINKED = ("records", "verify", "control"), ("data", "images")  # What repairs start from.


# -------------------------------------------------------------------------------------- the runs


def run(seed: str, folder: pathlib.Path) -> None:
  """Trains the target of a seed and runs its loop, or goes on with them."""
  target = folder / "models/target"
  if not (target / "config.json").is_file():
    arg = f"only=target,gaps=seed:{seed},seed={seed}"
    tower = folder / "models/siglip"
    if not tower.exists():
      shutil.copytree(pathlib.Path(scenes.WEIGHTS) / "siglip", tower)
    _program("pretrain", f"--config=configs/pretrain_scenes.py:{arg}", f"--workdir={folder}")
  _program(
    "loop",
    f"--config=configs/scenes.py:{_argument(seed)}",
    f"--config.models.target={target}",
    f"--workdir={folder / 'loop'}",
  )


def _argument(seed: str) -> str:
  return f"gaps=seed:{seed},seed={seed}"


def _program(*args: str) -> None:
  subprocess.run([sys.executable, "-m", "auditdm_jax", *args], check=True)


def summary_of(loop: pathlib.Path) -> Summary | None:
  """Returns the summary of a finished loop."""
  if not (loop / "loop/done.json").exists():
    return None
  return typed.load(Summary, jsonio.read_json(loop / "summary.json"))


# ---------------------------------------------------------------------------------------- curves


@dataclasses.dataclass(frozen=True)
class RepairPoint:
  """Accuracy in percent after a repair from `examples` failures."""

  examples: int
  gaps: float
  rest: float


def curve(seed: str, folder: pathlib.Path, arm: str, size: int) -> RepairPoint:
  """Repairs from fewer examples than the loop did, in a folder that shares the loop's records."""
  known = folder / "curves" / f"{arm}-{size}" / "point.json"
  if known.exists():
    return typed.load(RepairPoint, jsonio.read_json(known))
  config = scenes.get_config(_argument(seed))
  config.models.target = str(folder / "models/target")
  config.rectify.curate.size = size
  # Before the context, which opens the images.
  RunFolder(known.parent, config_hash=config_hash(config)).borrow(
    folder / "loop", SHARED, linked=LINKED
  )
  with Context(config, known.parent, "curve") as ctx:
    ctx.pool("images")  # What examples are about.
    if arm == REPAIRED:
      examples = from_failures(ctx)
    else:
      examples = rectify.mined_examples(ctx, ctx.folder.control(), size)
    replay = rectify.replay_examples(ctx, examples)
    model = ctx.models.answering(rectify.repair(ctx, arm, examples, replay))
    table = suite.benchmark(ctx, model, ctx.folder.repaired(arm), role=arm)
  point = RepairPoint(len(examples), 100 * table["gaps"].value, 100 * table["rest"].value)
  jsonio.write_json(known, point)
  return point


# ---------------------------------------------------------------------------------------- tables


def over_runs(values: Sequence[float]) -> tuple[str, str, str, str]:
  """Mean with its 95 % t interval, standard deviation, range and number: runs are the units."""
  found = compare.spread(values)
  if found is None or found.ci95 is None:
    return ("–" if found is None else f"{found.mean:.1f}", "–", "–", str(len(values)))
  low, high = found.ci95
  interval = f"{found.mean:.1f} [{low:.1f}, {high:.1f}]"
  return interval, f"{found.sd:.1f}", f"{min(values):.1f} to {max(values):.1f}", str(len(values))


def table(title: str, rows: dict[str, Sequence[float]], console: rich.console.Console) -> None:
  """Prints one line for each figure."""
  out = rich.table.Table(title=title)
  for column in ("", "mean [95 %]", "sd", "range", "runs"):
    out.add_column(column, no_wrap=True)
  for name, values in rows.items():
    out.add_row(name, *over_runs(values))
  console.print(out)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  folders = {seed: pathlib.Path(_WORKDIR.value) / seed for seed in _SEEDS.value}
  if not _TABLE.value:
    for seed, folder in folders.items():
      run(seed, folder)
  finished = {seed: found for seed, f in folders.items() if (found := summary_of(f / "loop"))}
  console = rich.console.Console(width=130)
  rows = {
    figure.name: [x for found in finished.values() if (x := figure.read(found)) is not None]
    for figure in FIGURES
  }
  table(f"runs of seeds {', '.join(finished)}", rows, console)
  for size in map(int, _CURVES.value):
    points = {
      arm: [curve(seed, folders[seed], arm, size) for seed in finished] for arm in (REPAIRED, MINED)
    }
    ours, mined = points[REPAIRED], points[MINED]
    rows = {
      "gaps: repaired": [p.gaps for p in ours],
      "gaps: mined failures": [p.gaps for p in mined],
      "gaps: difference": [a.gaps - b.gaps for a, b in zip(ours, mined, strict=True)],
      "rest: difference": [a.rest - b.rest for a, b in zip(ours, mined, strict=True)],
      "examples of the audit": [p.examples for p in ours],
      "examples mined": [p.examples for p in mined],
    }
    table(f"{size} examples", rows, console)


if __name__ == "__main__":
  app.run(main, flags_parser=own_flags.parser(_FLAGS))
