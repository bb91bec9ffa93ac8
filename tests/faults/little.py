# SPDX-License-Identifier: Apache-2.0
"""The whole loop on a folder of small images, and what its programs say and leave."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from tests.stages import folders

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = '{"question": 1, "edit": 2, "generate": 1, "edit-only": 1, "generate-only": 1}'
FLAGS = (
  "--config=configs/scenes.py",
  "--config.pool.builder=",
  "--config.pool.dataset=made",
  "--config.pool.images=pool",
  "--config.pool.heldout=heldout",
  "--config.pool.fresh=fresh",
  f"--config.rollout.prompts={PROMPTS}",
  "--config.grpo.group_size=4",
  "--config.optim.steps=3",
  "--config.checkpoints.checkpoint_every=1",
  "--config.checkpoints.harvest=(2,)",
  "--config.discover.probes=192",
  "--config.discover.batch=64",
  "--config.discover.search_probes=64",
  "--config.verify.limit=40",
  "--config.verify.labelled=40",
  "--config.taxonomy.fresh.rest=60",
  "--config.rectify.recipe.steps=4",
  "--config.rectify.recipe.micro_rows=8",
  "--config.rectify.curate.size=40",
  "--config.rounds.steps=2",
  "--config.rounds.probes=128",
)


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a program ended.

  Attributes:
    code: exit code; negative for a signal.
    out: what it printed.
    err: what it printed as errors.
  """

  code: int
  out: str
  err: str

  @property
  def last(self) -> str:
    """Its last line of errors."""
    lines = self.err.strip().splitlines()
    return lines[-1] if lines else ""


def images(folder: pathlib.Path) -> pathlib.Path:
  """Writes the splits of a pool; returns the folder for config.pool.data_dir."""
  for seed, (split, n) in enumerate({"pool": 60, "heldout": 20, "fresh": 60}.items()):
    folders.images_of_scenes(folder / "made" / split, images=n, seed=seed)
  return folder


def command(
  stage: str, workdir: pathlib.Path, data: pathlib.Path, more: Sequence[str] = ()
) -> list[str]:
  """Returns the command line of a stage."""
  program = [sys.executable, "-m", "auditdm_jax", stage]
  return [*program, *FLAGS, f"--config.pool.data_dir={data}", f"--workdir={workdir}", *more]


def run(
  args: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 1800
) -> Ended:
  """Runs a program to its end."""
  done = subprocess.run(
    args,
    cwd=ROOT,
    env={**os.environ, **(env or {})},
    capture_output=True,
    text=True,
    errors="replace",
    timeout=timeout_s,
    check=False,
  )
  return Ended(done.returncode, done.stdout, done.stderr)


def facts(workdir: pathlib.Path) -> dict[str, Any]:
  """What a run has found and kept: records, results, models and images; not what it spent."""
  found: dict[str, Any] = {}
  for path in sorted(p for p in workdir.rglob("*") if p.is_file()):
    name = str(path.relative_to(workdir))
    parts = path.relative_to(workdir).parts
    if path.name.startswith("ranked-"):
      found[name] = [_unspent(json.loads(row)) for row in path.read_text().splitlines()]
    elif path.suffix == ".jsonl" and "metrics" not in parts:
      found[name] = _digest(path)
    elif path.name == "done.json" and parts[0] != "preflight":
      found[name] = json.loads(path.read_text())["result"]
    elif path.suffix in (".safetensors", ".png") and parts[0] != "report":
      found[name] = _digest(path)
  return found | {"summary.json": _unspent(json.loads((workdir / "summary.json").read_text()))}


def _unspent(value: Any) -> Any:
  """Leaves out seconds and operations: a run that starts again encodes its images again."""
  if isinstance(value, dict):
    return {k: _unspent(v) for k, v in value.items() if k not in ("seconds", "flops")}
  return [_unspent(v) for v in value] if isinstance(value, list) else value


def _digest(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def run_killed(
  args: Sequence[str], workdir: pathlib.Path, *, moments: Sequence[float]
) -> tuple[Ended, list[str]]:
  """Runs a program that is killed (SIGKILL) at several moments, and then to its end.

  Args:
    args: the command line.
    workdir: the folder of its run.
    moments: of each start, the CPU seconds of the process after which it is killed: on a machine
      that is busy, as on one that is idle, these are the same places.

  Returns:
    How the last one ended, and for each kill what was done by then.
  """
  kills = []
  for seconds in moments:
    process = subprocess.Popen(args, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and _cpu_seconds(process.pid) < seconds:
      time.sleep(0.02)
    if process.poll() is None:
      process.kill()
      kills.append(_reached(workdir))
    process.wait()
  return run(args, timeout_s=7200), kills


def _cpu_seconds(number: int) -> float:
  """Returns what a process has used so far, without those that it started."""
  try:
    fields = pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
  except OSError:  # It has ended.
    return float("inf")
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _reached(workdir: pathlib.Path) -> str:
  """Returns how many steps of training were made, or the stage that was finished last."""
  done = sorted(workdir.glob("*/done.json"), key=lambda path: path.stat().st_mtime)
  stages, rows = [path.parent.name for path in done], workdir / "metrics/train.jsonl"
  if rows.exists() and "train" not in stages:
    return f"step {rows.read_bytes().count(10)}"
  return stages[-1] if stages else "the start"
