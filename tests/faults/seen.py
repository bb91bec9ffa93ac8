# SPDX-License-Identifier: Apache-2.0
"""What became of a fault, and programs whose end is looked at."""

import dataclasses
import pathlib
import subprocess
import sys

from tests.faults import little


@dataclasses.dataclass(frozen=True)
class Seen:
  """What became of a fault: the outcome in words, and what shows it."""

  outcome: str
  evidence: str


def one_line(ended: little.Ended, code: int) -> str:
  """Returns the line that a program ended with; there is no other and no traceback."""
  lines = ended.err.strip().splitlines()
  assert ended.code == code and len(lines) == 1, ended
  return lines[0]


def program(body: str, workdir: pathlib.Path, **more: object) -> little.Ended:
  """Runs `python -m auditdm_jax train` with `body` in the place of its stage."""
  source = f"""
import sys, types
from auditdm_jax import __main__ as main
def stage(config, workdir):
  {body}
main._stage = lambda module: types.SimpleNamespace(main=stage)
main.main(["train", "--config=configs/scenes.py", "--workdir={workdir}"])
"""
  done = subprocess.run(
    [sys.executable, "-c", source],
    cwd=little.ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    **more,
  )
  return little.Ended(done.returncode, done.stdout, done.stderr)
