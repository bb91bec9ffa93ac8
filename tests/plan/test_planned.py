# SPDX-License-Identifier: Apache-2.0
"""benchmarks.planned: what is planned is run as often as wanted, and put beside its plan."""

import dataclasses
import os
import pathlib
import subprocess

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.plan import chips, compiling, programs, steps, table
from benchmarks import planned
from tests.plan.test_plan import named, run

ROOT = pathlib.Path(__file__).parents[2]
HERE = chips.parse("cpu:1")


def task(name, where=HERE):
  config = run(layout=programs.MeshLayout({"fsdp": -1}))
  step = named(steps.steps(config, where.size), name)
  return planned.Task(step, where, 2, config.auditor, kl=False)


@pytest.mark.parametrize("name", ["sample question", "answer target", "train", "repair"])
def test_a_program_runs_again_on_what_it_did_not_use_up(name):
  found = planned.run(task(name))
  assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0
  assert (found["useful_flops"] > 0) == (name == "train")


def test_devices_that_are_not_there_are_named():
  with pytest.raises(UserError, match=r"gpu:h200x1: there are 1 devices of cpu here"):
    planned.run(task("train", chips.parse("gpu:h200x1")))


def test_a_line_says_shares_of_floor_and_peak_or_what_failed():
  where = chips.parse("gpu:h200x1")
  made = compiling.Compiled(989e12, 0, 2**31, False, (), None, 1.0)
  (row,) = table.make(where, [(task("train").step, made)], run_steps=1).rows
  row = dataclasses.replace(row, seconds={"compute": 1.0, "memory": 0.5, "links": 0.0})
  found = {"seconds": [2.0, 2.5, 9.0], "peak_bytes": 3 * 2**29, "compile_s": 31.0}
  text = planned.line(row, found | {"useful_flops": 989e12}, where)
  assert text.split()[2:] == "2.500 (2.000 to 9.000) 1.000 40.0% 40.0% 2.00 1.50 31".split()
  assert planned.line(row, {"error": "RESOURCE_EXHAUSTED: 9"}, where).endswith("EXHAUSTED: 9")


def test_the_gpu_script_knows_its_cards(tmp_path):
  card = tmp_path / "nvidia-smi"
  card.write_text("#!/bin/sh\necho NVIDIA A100-SXM4\n")
  card.chmod(0o755)
  env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  done = subprocess.run(
    [ROOT / "benchmarks/gpu.sh"], env=env, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2 and "an H100 or H200 is needed, not NVIDIA A100" in done.stderr
