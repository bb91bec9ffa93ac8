# SPDX-License-Identifier: Apache-2.0
"""Both sides of a comparison run in processes of their own, on the accelerator if one is here."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[2]


def run(python: str, module: str, *args: object) -> str:
  """What a module of tests.perf prints."""
  done = subprocess.run(
    [python, "-m", f"tests.perf.{module}", *map(str, args)],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def environment() -> dict[str, str]:
  """Variables of such a process: all cores, and products in float32 on a GPU, as torch has them."""
  tests_only = ("XLA_FLAGS", "JAX_PLATFORMS")  # The first do not optimise.
  env = {k: v for k, v in os.environ.items() if k not in tests_only}
  return env | {
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
  }
