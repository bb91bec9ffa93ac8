# SPDX-License-Identifier: Apache-2.0
"""What a GRPO step costs: against TRL's GRPOTrainer, by phase, and what the savings save.

Two processes load one random Gemma 3 checkpoint, made by transformers, and take turns on the same
cores: same prompts, group size, completion length (no terminator), trivial reward, frozen tower and
new images in every step. Step 0 compiles and warms up; it is printed and not counted.

COMMAND
  TRL_PYTHON=/path/to/a/venv/with/trl/bin/python python -m pytest -s -m perf \
    tests/perf/test_grpo_step.py
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.perf import apart, grpo_sizes

pytestmark = pytest.mark.perf

TRL_PYTHON = os.environ.get("TRL_PYTHON", sys.executable)
# Of TRL's time; the goals are those of the project, measured on two otherwise idle cores.
GOALS = {"scenes": 5.0, "100m": 5.0}
STEPS = {"scenes": 20, "100m": 4}
# Few layers, unrolled, are faster on a CPU; micro-batches stay in its cache.
OPTIONS = {"scenes": ("unroll=3", "micro_rows=4"), "100m": ("unroll=12", "micro_rows=1")}


def ours(folder: pathlib.Path, size: str, *options: str) -> dict:
  return last(
    apart.run(sys.executable, "grpo_ours", folder, size, STEPS[size], *OPTIONS[size], *options)
  )


def theirs(folder: pathlib.Path, size: str) -> dict:
  cores = len(os.sched_getaffinity(0))
  return last(apart.run(TRL_PYTHON, "grpo_trl", folder, size, STEPS[size], cores))


def last(printed: str) -> dict:
  """The JSON of the last line."""
  return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module", params=list(grpo_sizes.SIZES))
def checkpoint(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
  """(name of the size, folder of its checkpoint)."""
  found = subprocess.run([TRL_PYTHON, "-c", "import trl"], capture_output=True, check=False)
  if found.returncode:
    pytest.skip("trl is not installed: TRL_PYTHON names a Python that has it")
  folder = tmp_path_factory.mktemp(request.param)
  apart.run(sys.executable, "grpo_checkpoint", folder, request.param)
  return request.param, folder


def spread(seconds: list[float]) -> str:
  low, high = np.quantile(seconds, [0.1, 0.9])
  return f"{np.median(seconds):.3f} s ({low:.3f} to {high:.3f}, n = {len(seconds)})"


def test_a_step_against_trl(checkpoint):
  name, folder = checkpoint
  # Taking turns, so that what else the machine does hits both.
  mine, other = ours(folder, name), theirs(folder, name)
  for more in (ours(folder, name), theirs(folder, name)):
    side = mine if more["versions"] == mine["versions"] else other
    for key in ("seconds", "cpu_seconds"):
      side[key] += more[key]
  assert mine["parameters"] == other["parameters"]
  assert mine["gap"] < 1e-3
  assert mine["device"] == other["device"]
  size = grpo_sizes.SIZES[name]
  prompt = size.image_tokens + size.text_tokens + 2
  ratio, cpu_ratio = (
    np.median(other[key]) / np.median(mine[key]) for key in ("seconds", "cpu_seconds")
  )
  print(
    f"\n{name}: {size.prompts} x {size.group} x ({prompt} + {size.completion}) tokens,"
    f" {mine['parameters']:,} parameters, {mine['device']}, {len(os.sched_getaffinity(0))} cores"
    f"\n  {mine['versions']:28} {spread(mine['seconds'])}; compiles in {mine['compile']:.0f} s"
    f"\n  {other['versions']:28} {spread(other['seconds'])}"
    f"\n  ratio {ratio:.1f}, goal {GOALS[name]:.0f}; of CPU seconds {cpu_ratio:.1f}"
  )
  assert ratio >= GOALS[name]


def test_phases_and_savings(checkpoint):
  """Shares of the floor: the phase's matrix products at the speed of one large product.

  Answers are the same model's to each completion, about its image, as those of a target or a
  reference are; the judge compares what three models said, without a memory of earlier answers.
  """
  name, folder = checkpoint
  runs = {
    "as configured": ours(folder, name),
    "head in chunks of 256": ours(folder, name, "head_chunk=256"),
    "all rows at once": ours(folder, name, "micro_rows=0"),
    "plain rows": ours(folder, name, "plain"),
  }
  base = runs["as configured"]
  print(f"\n{name}, {base['matmul_gflops']:.0f} GFLOP/s in a large product")
  for phase in ("vision", "prefill", "decode", "answers", "judge", "learner"):
    taken = base["phases"][phase]
    seconds = float(np.median(taken))
    rate = f"{base['tokens'][phase] / seconds:9,.0f}"
    if phase == "judge":
      print(f"  {phase:8} {spread(taken)}; {rate} verdicts/s")
      continue
    floor = base["gflop"][phase] / base["matmul_gflops"]
    print(f"  {phase:8} {spread(taken)}; {rate} tokens/s, {floor / seconds:4.0%} of the floor")
  learner = {what: float(np.median(r["phases"]["learner"])) for what, r in runs.items()}
  for what, seconds in learner.items():
    ratio = seconds / learner["as configured"]
    print(f"  learner, {what:24} {seconds:.3f} s, x {ratio:.2f}")
  assert learner["plain rows"] > learner["as configured"]
