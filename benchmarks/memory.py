# SPDX-License-Identifier: Apache-2.0
"""Whether memory stays flat while GRPO trains: RSS of the trainer and of its image service by step.

  python -m benchmarks.memory [--steps=50,200,800] [--workdir=DIR] [-- --config.KEY=VALUE …]

Trains the small auditor of scenes with all five strategies, a few samples a step. The caches of
images, features and answers are made so small that they are full before the first look: with their
defaults they would fill up for hours, to bounds that are in the config. No checkpoint is written
near a step that is looked at: while one is, it takes memory of its own. As in benchmarks.finetune
there is one arena of malloc: those that glibc makes for threads fill up over hours, too. Exits with
1 where RSS at the steps differs by more than 3 %.
"""

from collections.abc import Iterator, Sequence
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from auditdm_jax.core import paths
from benchmarks import own_flags

_FLAGS = flags.FlagValues()
_STEPS = flags.DEFINE_list(
  "steps", ["50", "200", "800"], "Where RSS is looked at.", flag_values=_FLAGS
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; default: a temporary one.", flag_values=_FLAGS
)

MOST = 0.03  # Difference between the steps, as a share of the smallest.
NEAR = 8  # Steps around a step whose samples count for it.
OVERRIDES = (
  '--config.rollout.prompts={"question": 1, "edit": 1, "generate": 1, "edit-only": 1,'
  ' "generate-only": 1}',
  "--config.grpo.group_size=4",
  "--config.checkpoints.harvest=()",
  "--config.checkpoints.checkpoint_every=37",
  "--config.preflight.enabled=False",
  "--config.stop.window=0",
  "--config.pool.cache_bytes=4_000_000",
  "--config.bank.feature_bytes=4_000_000",
  "--config.images.limits.cache_mb=2",
)


def processes(root: int) -> Iterator[tuple[int, str]]:
  """Yields a process and those that it started: number and command line."""
  children: dict[int, list[int]] = {}
  commands = {}
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      fields = (folder / "stat").read_text().rpartition(")")[2].split()
      commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    except OSError:  # It has ended.
      continue
    children.setdefault(int(fields[1]), []).append(int(folder.name))
  left = [root]
  while left:
    number = left.pop()
    left += children.get(number, [])
    yield number, commands.get(number, "")


def rss_mib(number: int) -> float:
  """Returns the resident memory of a process; 0 if it has ended."""
  try:
    text = pathlib.Path(f"/proc/{number}/status").read_text()
  except OSError:
    return 0.0
  rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
  return int(rows.get("VmRSS", "0 kB").split()[0]) / 1024


def watch(run: subprocess.Popen, rows: pathlib.Path) -> Iterator[tuple[int, float, float]]:
  """Yields (steps made, MiB of the trainer, MiB of the image service) until the run ends."""
  steps, end, service = 0, 0, None
  while run.poll() is None:
    time.sleep(0.2)
    if not rows.exists():
      continue
    with rows.open("rb") as f:
      f.seek(end)
      new = f.read()
    steps, end = steps + new.count(b"\n"), end + len(new)
    if service is None:
      service = next(
        (n for n, line in processes(run.pid) if "serve" in line and n != run.pid), None
      )
    yield steps, rss_mib(run.pid), rss_mib(service) if service else 0.0


def main(argv: Sequence[str]) -> int:
  wanted = sorted(map(int, _STEPS.value))
  with tempfile.TemporaryDirectory() as temporary:
    workdir = pathlib.Path(_WORKDIR.value or temporary).absolute()
    command = [sys.executable, "-m", "auditdm_jax", "train", "--config=configs/scenes.py"]
    command += [f"--workdir={workdir}", f"--config.optim.steps={wanted[-1] + NEAR}"]
    found = []
    command += [*OVERRIDES, *argv[1:]]
    env = os.environ | {"MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(command, cwd=paths.shared(), env=env) as run:
      for sample in watch(run, workdir / "metrics/train.jsonl"):
        found.append(sample)
  # What is there of a run that was stopped says something, too.
  reached = found[-1][0] if found else 0
  return report([step for step in wanted if step <= reached], found) or run.returncode


def report(wanted: Sequence[int], found: Sequence[tuple[int, float, float]]) -> int:
  """Prints RSS at the steps; returns 1 if it is not flat, or if there is no step to look at."""
  if not wanted:
    print("no step was reached", file=sys.stderr)
    return 1
  print("| steps | trainer, MiB | image service, MiB |\n|---|---|---|")
  medians = []
  for step in wanted:
    near = [row for row in found if abs(row[0] - step) <= NEAR]
    medians.append([statistics.median(column) for column in list(zip(*near))[1:]])
    print(f"| {step} | {medians[-1][0]:.0f} | {medians[-1][1]:.0f} |")
  spreads = [max(column) / max(min(column), 1.0) - 1 for column in zip(*medians)]
  print("difference: " + ", ".join(f"{spread:.1%}" for spread in spreads) + f" (most {MOST:.0%})")
  return int(max(spreads) > MOST)


if __name__ == "__main__":
  app.run(main, flags_parser=own_flags.parser(_FLAGS))
