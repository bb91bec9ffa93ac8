# SPDX-License-Identifier: Apache-2.0
"""What a target is repaired with, and how often: strategies, GRPO and rounds, over several runs.

COMMAND
  python -m benchmarks.repairs --workdir=runs/drawn [--seeds=101,102,103,104,105]
    [--arms=labelled,bootstrapped,both,rounds] [--table]

It goes on from runs of `benchmarks.runs` in the same folder: each has a target of its own, with
gaps that its seed drew, an audit, and a repair from that audit's failures with its controls. An arm
takes over the audit and repairs otherwise, with controls of its own:
  labelled      strategy 1: the target's labelled set and the failures
  bootstrapped  strategy 2: failures of an unlabelled pool
  both          the two strategies and the audit's failures together
  rounds        the first repair again, by GRPO too, then two more rounds of audit and repair
This takes about 6 minutes of one core for each arm, and 10 for the rounds. What was stopped goes
on. `--table` runs nothing and prints what is finished.

Printed as by `benchmarks.runs`: means over runs with 95 % t intervals, differences within runs.
"""

from collections.abc import Callable, Sequence
import pathlib

from absl import app, flags
import rich.console

from auditdm_jax.audit.figures import MINED, RANDOM, REPAIRED, Read, gaps, less, percent, rest
from auditdm_jax.audit.summary import Accuracy, RoundRow, Summary
from auditdm_jax.stages import loop
from auditdm_jax.stages.remote import config_hash
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.sections import REWARDED
from benchmarks import own_flags, runs
from configs import scenes

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "of benchmarks.runs", required=True, flag_values=_FLAGS
)
_SEEDS = flags.DEFINE_list("seeds", [str(s) for s in range(101, 106)], "runs", flag_values=_FLAGS)
STRATEGIES, ROUNDS = ("labelled", "bootstrapped", "both"), "rounds"
_ARMS = flags.DEFINE_list("arms", [*STRATEGIES, ROUNDS], "what to repair with", flag_values=_FLAGS)
_TABLE = flags.DEFINE_bool("table", False, "run nothing", flag_values=_FLAGS)

# What an audit leaves, up to its verified failures.
_AUDIT = ("preflight", "train", "auditors", "metrics", "records", "search", "discover", "verify")


def repair(seed: str, folder: pathlib.Path, arm: str) -> None:
  """Repairs by an arm after the audit of a run, or goes on with that."""
  if arm == ROUNDS:
    config = scenes.get_config(f"gaps=seed:{seed},seed={seed},rounds=3")
    config.rounds.repair_last = True
    config.rectify.answering = dict(
      questions=16, max_new_tokens=3, grpo=dict(group_size=8), optim=dict(steps=300, lr=3e-4)
    )
  else:
    config = scenes.get_config(f"gaps=seed:{seed},seed={seed},rounds=1,strategy={arm}")
  config.models.target = str(folder / "models/target")
  taken = RunFolder(folder / arm, config_hash=config_hash(config))
  taken.borrow(folder / "loop", (*_AUDIT, "fresh"), linked=runs.LINKED)
  if not config.rectify.get("strategy", {}).get("bootstrapped"):
    # Else the control has as many questions more as are bootstrapped.
    taken.borrow(folder / "loop", ["control"])
  loop.run_loop(config, folder / arm)


# ---------------------------------------------------------------------------------------- tables


REPAIR: dict[str, Read] = {
  "gaps: repaired": gaps(REPAIRED),
  "gaps: control of random questions": gaps(RANDOM),
  "gaps: control of mined failures": gaps(MINED),
  "gaps: repaired less random questions": less(gaps(REPAIRED), gaps(RANDOM)),
  "gaps: repaired less mined failures": less(gaps(REPAIRED), gaps(MINED)),
  "rest: repaired less target": less(rest(REPAIRED), rest("baseline")),
  "rest: mined failures less target": less(rest(MINED), rest("baseline")),
}
BY_GRPO: dict[str, Read] = {
  "gaps: repaired from labels": gaps(REPAIRED),
  "gaps: repaired by GRPO": gaps(REWARDED),
  "gaps: GRPO less labels": less(gaps(REWARDED), gaps(REPAIRED)),
  "rest: labels less target": less(rest(REPAIRED), rest("baseline")),
  "rest: GRPO less target": less(rest(REWARDED), rest("baseline")),
}


def _last(run: Summary) -> Accuracy | None:
  """Accuracy of what the last repair left."""
  return next((row.accuracy for row in reversed(run.rounds) if row.accuracy), None)


def _last_gaps(run: Summary) -> float | None:
  return (last := _last(run)) and percent(last.gaps)


def _last_rest(run: Summary) -> float | None:
  return (last := _last(run)) and percent(last.rest)


AFTER_ROUNDS: dict[str, Read] = {
  "repairs": lambda run: sum(row.accuracy is not None for row in run.rounds),
  "gaps: last repair": _last_gaps,
  "gaps: last repair less the first": less(_last_gaps, gaps(REPAIRED)),
  "rest: last repair": _last_rest,
  "rest: last repair less target": less(_last_rest, rest("baseline")),
}
OF_ROUND: dict[str, Callable[[RoundRow], float | None]] = {
  "gaps found": lambda row: row.gaps_found,
  "confirmed modes": lambda row: row.confirmed,
  "of these repaired, %": lambda row: percent(row.repaired),
  "repaired earlier and kept, %": lambda row: percent(row.kept),
  "examples": lambda row: row.examples,
  "labels that are right, %": lambda row: percent(row.labels),
  "accuracy on the gaps, %": lambda row: row.accuracy and percent(row.accuracy.gaps),
  "accuracy on the rest, %": lambda row: row.accuracy and percent(row.accuracy.rest),
}


def _figures(found: Sequence[Summary], reads: dict[str, Read]) -> dict[str, list[float]]:
  return {
    name: [x for run in found if (x := read(run)) is not None] for name, read in reads.items()
  }


def show(found: dict[str, list[Summary]], console: rich.console.Console) -> None:
  """Prints a table for each arm, one for GRPO, one of all rounds, and one for each."""
  for arm, summaries in found.items():
    runs.table(f"trained on: {arm}", _figures(summaries, REPAIR), console)
  rounds = found.get(ROUNDS, [])
  if not rounds:
    return
  runs.table("the same examples, by labels and by GRPO", _figures(rounds, BY_GRPO), console)
  runs.table("after all rounds", _figures(rounds, AFTER_ROUNDS), console)
  for number in range(1, 1 + max(len(run.rounds) for run in rounds)):
    rows = [run.rounds[number - 1] for run in rounds if len(run.rounds) >= number]
    figures = {
      name: [x for row in rows if (x := read(row)) is not None] for name, read in OF_ROUND.items()
    }
    runs.table(f"round {number}, of {len(rows)} runs that came to it", figures, console)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  folders = [(seed, pathlib.Path(_WORKDIR.value) / seed) for seed in _SEEDS.value]
  audited = [(seed, folder) for seed, folder in folders if runs.summary_of(folder / "loop")]
  if len(audited) < len(folders):
    raise app.UsageError(f"{_WORKDIR.value}: run benchmarks.runs first, for all of {_SEEDS.value}")
  if not _TABLE.value:
    for seed, folder in audited:
      for arm in _ARMS.value:
        repair(seed, folder, arm)
  found = {
    arm: [run for _, folder in audited if (run := runs.summary_of(folder / name))]
    for arm, name in {"audit": "loop", **{a: a for a in _ARMS.value}}.items()
  }
  show({k: v for k, v in found.items() if v}, rich.console.Console(width=130))


if __name__ == "__main__":
  app.run(main, flags_parser=own_flags.parser(_FLAGS))
