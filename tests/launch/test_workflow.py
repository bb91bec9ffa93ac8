# SPDX-License-Identifier: Apache-2.0
"""The workflow runs README's first two commands, and nothing else."""

import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).parents[2]


def test_the_workflow_runs_what_readme_tells_people_to_run():
  (path,) = (ROOT / ".github/workflows").glob("*.yml")
  flow = yaml.safe_load(path.read_text())
  run = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
  readme = (ROOT / "README.md").read_text()
  told = re.findall(r"^(\./launch/\S+)", readme, re.M)
  assert len(run) == 2 and set(run) <= set(told)
  assert all((ROOT / command).is_file() for command in run)
  assert flow["permissions"] == {"contents": "read"}
