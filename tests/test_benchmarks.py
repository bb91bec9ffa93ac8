# SPDX-License-Identifier: Apache-2.0
"""All benchmarks can be imported into one process: absl refuses a flag that two of them define."""

import pathlib

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def test_no_two_benchmarks_define_one_flag(run_python):
  run_python("\n".join(f"import benchmarks.{path.stem}" for path in BENCHMARKS.glob("*.py")))
