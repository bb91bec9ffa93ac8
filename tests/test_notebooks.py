# SPDX-License-Identifier: Apache-2.0
"""The notebooks of the docs run from their first cell to their last one.

Their cells are plain Python, so that no Jupyter is needed; each notebook has a process of its own.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.core import jsonio
from auditdm_jax.stages.run import RunFolder
from tests.audit.report import sample
from tests.stages.test_runs import attempt

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs/notebooks"


def run(name: str, *more: str, **variables: str) -> str:
  """Runs the cells of a notebook and some lines after them; returns what they printed."""
  cells = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
  code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
  done = subprocess.run(
    [sys.executable, "-c", "\n".join([*code, *more])],
    cwd=ROOT,
    env=os.environ | variables,
    capture_output=True,
    text=True,
    check=False,
    timeout=900,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_a_run_is_read_as_a_data_frame(tmp_path):
  pytest.importorskip("pandas")
  folder = RunFolder(tmp_path, config_hash="")
  attempts = [attempt(i, "blue" if i < 3 else "red") for i in range(12)]
  folder.append_batch("discover", 0, attempts)
  with open(tmp_path / "discover/attempts-0.jsonl", "ab") as file:
    file.write(b'{"torn')
  grades = ("V0", "V1", "V2")
  finds = [a.find for a in attempts if a.find]
  folder.append_failures(
    [Failure.of(f, grade=g, mode_id="m", weight=2.0) for f, g in zip(finds, grades)]
  )
  modes = [{"mode_id": "m", "name": "red things"}]
  jsonio.write_json(tmp_path / "verify/done.json", {"config": "", "result": {"modes": modes}})
  jsonio.write_json(tmp_path / "summary.json", sample.loop_summary())
  more = "print(by_arm.loc['x'].tolist(), by_mode.values.tolist())"
  said = run("read_a_run.ipynb", more, RUN=str(tmp_path))
  assert said.startswith("[3.0, 12.0, 0.25, 0.08") and "[2, 4.0, 'red things']" in said


@pytest.mark.slow  # An audit.
def test_a_folder_is_audited(tmp_path):
  said = run("audit_your_folder.ipynb", HOME_OF_AUDIT=str(tmp_path))
  assert "verified failures among" in said and (tmp_path / "run/report/index.html").is_file()
