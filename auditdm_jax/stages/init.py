# SPDX-License-Identifier: Apache-2.0
"""init: copies configs, the scenes world and examples out of the wheel into a folder.

  auditdm init --output=mine && cd mine
  auditdm loop --config=configs/scenes.py --workdir=runs/quickstart

For who has installed the wheel; a checkout of the repository has these folders already. What is
there and differs is left alone and named.

Reads:  the installed package.
Writes: configs/, data/ and examples/ in the folder, about 6 MB.
Costs:  no model: a second.
"""

import filecmp
import pathlib
import shutil

from absl import flags

from auditdm_jax.core.config import UserError
from auditdm_jax.core.paths import made, shared

FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", ".", "The folder; made if needed.", flag_values=FLAGS)
FOLDERS = ("configs", "data", "examples")


def main() -> int:
  """Copies the folders and says what to type next."""
  root = made(_OUTPUT.value)
  source = shared()
  if root == source:
    raise UserError(f"{root}: a checkout of the repository, which has configs and data itself")
  kept = copy(source, root)
  print(f"{', '.join(FOLDERS)} are in {root}")
  for path in kept:
    print(f"  kept as it was: {path}")
  print(f"next: cd {_OUTPUT.value}")
  print("      auditdm loop --config=configs/scenes.py --workdir=runs/quickstart")
  return 0


def copy(source: pathlib.Path, target: pathlib.Path) -> list[pathlib.Path]:
  """Copies what is not there yet; returns the files of other content, which are left."""
  kept = []
  for name in FOLDERS:
    for path in sorted((source / name).rglob("*")):
      if not path.is_file() or "__pycache__" in path.parts:
        continue
      copied = target / path.relative_to(source)
      if copied.exists():
        kept += [] if filecmp.cmp(path, copied, shallow=False) else [copied]
        continue
      copied.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, copied)
  return kept
