# SPDX-License-Identifier: Apache-2.0
"""What lies beside the package can be imported, and all of it into one process.

absl refuses a flag that two modules define.
"""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tools"])
def test_all_scripts_can_be_imported(run_python, folder):
  names = [path.stem for path in sorted((ROOT / folder).glob("*.py"))]
  assert names
  run_python("\n".join(f"import {folder}.{name}" for name in names))
