# SPDX-License-Identifier: Apache-2.0
"""Learning curves of GRPO in the scenes world: every arm of configs/ablations/scenes.py, 3 seeds.

COMMAND
  python -m benchmarks.ablations --workdir=runs/ablations [--arms=base,novelty] [--seeds=0,1,2]
    [--target=easy|rare]

Trains what is not trained yet (a run that was stopped goes on) and prints one row per arm: finds
that the oracle confirms among all completions of the first and of the last tenth of the steps, with
the mean and the 95 % t interval over seeds, and each seed's; the effective number of failure modes
among the last tenth's; planted gaps with at least five in the whole training; seconds per step,
which a machine that does other things at the same time does not reproduce.
"""

from collections.abc import Sequence
import json
import pathlib

from absl import app, flags
import numpy as np
import rich.console
import rich.table
from scipy import stats

from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.stages import train
from auditdm_jax.stages.context import Context
from configs.ablations import scenes

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs", required=True)
_ARMS = flags.DEFINE_list("arms", list(scenes.ARMS), "arms of configs/ablations/scenes.py")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_TARGET = flags.DEFINE_enum("target", "easy", ["easy", "rare"], "which target is audited")


def run(arm: str, seed: str, root: pathlib.Path) -> dict:
  """Trains one arm with one seed, or goes on with it; returns what its row is made of."""
  config = scenes.get_config(f"arm={arm},seed={seed},target={_TARGET.value}")
  workdir = root / f"{_TARGET.value}-{arm}-{seed}"
  with Context(config, workdir, "ablation") as ctx:
    train.run(ctx)
    attempts = ctx.folder.completions()
    steps = config.optim.steps
    first, last = (
      _between(attempts, *ends) for ends in ((0, steps // 10), (steps * 9 // 10, steps))
    )
    oracle, whole = ctx.oracle, ctx.oracle.coverage(attempts, ctx.world.gaps)
    lines = (workdir / "metrics/train.jsonl").read_text().splitlines()
    return {
      "first": oracle.success(first),
      "last": oracle.success(last),
      "modes": spread.common.value if (spread := oracle.coverage(last).modes) else 0.0,
      "gaps": f"{whole.gaps_found}/{whole.gaps_auditable}",
      "seconds": float(np.median([json.loads(line)["seconds/total"] for line in lines])),
    }


def _between(attempts: Sequence[Attempt], start: int, stop: int) -> list[Attempt]:
  return [a for a in attempts if start <= a.probe.step < stop]


def _over_seeds(runs: Sequence[dict], when: str) -> str:
  """Mean over seeds with its t interval, and each seed: seeds are the units, not completions."""
  found = np.array([100 * run[when].value for run in runs])
  seeds = ", ".join(f"{x:.0f}" for x in found)
  if len(found) < 2:
    return seeds
  half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
  return f"{found.mean():.1f} ± {half:.1f} ({seeds})"


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  table = rich.table.Table(title=f"GRPO against target_{_TARGET.value}, % confirmed (per seed)")
  for column in ("arm", "first tenth", "last tenth", "effective modes", "gaps found", "s/step"):
    table.add_column(column)
  for arm in _ARMS.value:
    runs = [run(arm, seed, pathlib.Path(_WORKDIR.value)) for seed in _SEEDS.value]
    table.add_row(
      arm,
      _over_seeds(runs, "first"),
      _over_seeds(runs, "last"),
      ", ".join(f"{r['modes']:.1f}" for r in runs),
      ", ".join(r["gaps"] for r in runs),
      f"{np.median([r['seconds'] for r in runs]):.2f}",
    )
  rich.console.Console(width=130).print(table)


if __name__ == "__main__":
  app.run(main)
