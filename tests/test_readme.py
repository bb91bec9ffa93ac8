# SPDX-License-Identifier: Apache-2.0
"""What README prints can be typed: stages, flags, files, and the fourth command to its end."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.core import overrides
from auditdm_jax.stages import init, sections

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)


def commands() -> list[list[str]]:
  """Returns the words of each command in README's blocks, without comments."""
  lines = "".join(BLOCKS).replace("\\\n", " ").splitlines()
  split = [shlex.split(line, comments=True) for line in lines]
  return [words for words in split if words]


def stages() -> list[list[str]]:
  """Returns the words after `auditdm` or `python -m auditdm_jax`."""
  found = [c[3:] for c in commands() if c[:3] == ["python", "-m", "auditdm_jax"]]
  return found + [c[1:] for c in commands() if c[0] == "auditdm"]


def fourth() -> str:
  """Returns the block of README's fourth command."""
  (block,) = [b for b in BLOCKS if "examples.tiny_checkpoint" in b]
  return block


def test_readme_names_stages_flags_and_files_that_are_there():
  assert len(stages()) > 8
  for words in stages():
    assert words[0] == "--help" or words[0] in main_lib.list_stages(), words
    for config in (w.partition("=")[2] for w in words if w.startswith("--config=")):
      if not config.startswith("runs/"):
        assert overrides.read(str(ROOT / config), ()), config
    given = [w for w in words if w.startswith("--config.") and not w.endswith("=help")]
    if given:
      overrides.apply(
        overrides.read(str(ROOT / "configs/scenes.py"), ()), overrides.split(given)[1],
        sections.AuditConfig,
      )  # fmt: skip
  for words in commands():
    if words[:2] == ["python", "-m"] and words[2].startswith("examples."):
      assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()


@pytest.mark.slow  # An audit, in minutes of one core.
def test_the_fourth_command_ends_in_a_report_that_says_what_it_is_worth(tmp_path):
  """As it is printed, in a folder as `init` makes it, with nothing of the repository around it."""
  init.copy(ROOT, tmp_path)
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin/python").symlink_to(sys.executable)
  done = subprocess.run(
    ["bash", "-euc", fourth()],
    cwd=tmp_path,
    env=os.environ
    | {
      "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
      "XDG_CACHE_HOME": str(tmp_path / "cache"),
    },
    capture_output=True,
    text=True,
    check=False,
    timeout=1800,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads((tmp_path / "runs/photos/summary.json").read_text())
  failures = found["compared"]["failures"]
  assert failures["k"] > 0, "a model that sees nothing fails"
  page = (tmp_path / "runs/photos/report/index.html").read_text(encoding="utf-8")
  assert "no label" in page.lower()
