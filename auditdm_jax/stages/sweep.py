# SPDX-License-Identifier: Apache-2.0
"""sweep: runs the loop for each cell of an ablation and each seed, and makes the table.

  python -m auditdm_jax sweep --config=configs/ablations/first.py --workdir=runs/first --seeds=0,1

The config has a function `sweep(add, arg)` beside `get_config`; see configs/ablations and
docs/ablations.md. Each run is an ordinary one in WORKDIR/CELL/SEED, which any stage reads. Runs go
seed by seed, so that what is finished early has its control. The same command run again continues;
a run that fails is named, and the others go on. With --print nothing runs: each run is printed as
the command that starts it, here or on a cluster.

  python -m auditdm_jax sweep --config=configs/ablations/reward.py:preset=paligemma2 \\
    --workdir=gs://bucket/reward --seeds=0,1,2 --print=tpu \\
    --launch="--zone=us-west4-a --type=v5litepod-16"

Reads:  the config, and what its runs read.
Writes: WORKDIR/sweep.json, WORKDIR/CELL/SEED, WORKDIR/_logs, WORKDIR/_data with the data set that
        runs share, WORKDIR/_targets for configs whose seeds have targets of their own, and
        table.md, .csv, .json, .svg and .html.
Costs:  as many loops as cells times seeds, and a `pretrain` for each seed with its own target.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re
import sys

from absl import flags

from auditdm_jax.bench.sweeps import record
from auditdm_jax.core import overrides, paths
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import cells, launching, swept
from auditdm_jax.stages.cells import Plan
from auditdm_jax.stages.running import Ended, Job, Runner

FLAGS = flags.FlagValues()
_CONFIG = overrides.define("The config, such as configs/ablations/reward.py.", flag_values=FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", flag_values=FLAGS)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Runs of each cell.", flag_values=FLAGS)
_CELLS = flags.DEFINE_list("cells", [], "Cells that run; by default all.", flag_values=FLAGS)
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time; on one accelerator, 1 is right.", lower_bound=1, flag_values=FLAGS
)
_PRINT = flags.DEFINE_enum(
  "print", None, list(launching.KINDS), "Print the commands instead.", flag_values=FLAGS
)
_LAUNCH = flags.DEFINE_string(
  "launch", "", "Flags of the launcher that --print prints.", flag_values=FLAGS
)


def main() -> int:
  if _CONFIG.value is None or _WORKDIR.value is None:
    raise UserError("sweep needs --config and --workdir; see sweep --help")
  spec, given = overrides.given_in(sys.argv[1:])
  assert spec is not None
  root = _WORKDIR.value
  if not paths.is_remote(root):
    root = str(pathlib.Path(root).absolute())
  elif _PRINT.value in (None, "local"):
    raise UserError(f"--workdir={root}: runs of this machine need a folder of it; see --print")
  planned = cells.plan(spec, given, seeds=_seeds(_SEEDS.value), root=root, only=_CELLS.value)
  paths.made(root)
  record.write(root, planned.sweep)
  if _PRINT.value is not None:
    print("\n".join(launching.lines(planned, root, kind=_PRINT.value, flags=_LAUNCH.value)))
    return 0
  ended = run(planned, pathlib.Path(root), Runner(at_once=_JOBS.value))
  return _report(ended, pathlib.Path(root))


def _seeds(texts: Sequence[str]) -> list[int]:
  """Returns the seeds.

  Raises:
    UserError: one is no seed, or there is one twice.
  """
  for text in texts:
    if not re.fullmatch("[0-9]{1,9}", text.strip()):
      raise UserError(f"--seeds={','.join(texts)}: {text!r} is not a whole number below 1e9")
  seeds = [int(text) for text in texts]
  if not seeds or len(set(seeds)) < len(seeds):
    raise UserError(f"--seeds={','.join(texts)}: name each seed once, such as --seeds=0,1,2")
  return seeds


def run(planned: Plan, root: pathlib.Path, runner: Runner) -> list[Ended]:
  """Runs what is not finished and returns how it ended, targets that were not made included."""
  waiting = []
  for one in planned.runs:
    if swept.is_finished(root / one.name, one.config):
      print(f"{one.name} | is finished", flush=True)
    else:
      waiting.append(one)
  made = runner.run(_target_jobs({one.seed: one.target for one in waiting if one.target}, root))
  failed = [end for end in made if end.code]
  without = {int(end.job.folder.name) for end in failed}
  jobs = [
    Job(
      one.name,
      (*one.args, f"--workdir={root / one.name}"),
      root / one.name,
      root / "_logs" / one.cell.name / f"{one.seed}.log",
    )
    for one in waiting
    if one.seed not in without
  ]
  return [*failed, *runner.run(jobs)]


def _target_jobs(targets: Mapping[int, str], root: pathlib.Path) -> list[Job]:
  """Returns the training of targets that are not there."""
  jobs = []
  for seed, spec in targets.items():
    folder = root / cells.TARGETS / str(seed)
    if not (folder / "models/target/config.json").exists():
      args = ("pretrain", f"--config={spec}", f"--workdir={folder}")
      jobs.append(Job(f"target/{seed}", args, folder, root / "_logs" / "target" / f"{seed}.log"))
  return jobs


def _report(ended: Sequence[Ended], root: pathlib.Path) -> int:
  """Prints what failed and the table so far; returns the exit code."""
  failed = [end for end in ended if end.code != 0]
  for end in failed:
    print(f"failed: {end.job.name}, exit code {end.code}: {end.said}\n  {end.job.log}")
  if failed:
    print("the same command tries them again, and goes on with the rest")
  sweep = record.read(root)
  assert sweep is not None
  if failed and not swept.collect(root, sweep)[0]:
    return 1
  swept.show(swept.write_table(root, sweep), root)
  return 1 if failed else 0
