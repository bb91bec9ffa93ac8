# SPDX-License-Identifier: Apache-2.0
"""All benchmarks can be imported into one process: absl refuses a flag that two of them define."""

import importlib
import pathlib

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def test_no_two_benchmarks_define_one_flag():
  for path in sorted(BENCHMARKS.glob("*.py")):
    importlib.import_module(f"benchmarks.{path.stem}")
