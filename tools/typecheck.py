# SPDX-License-Identifier: Apache-2.0
"""Checks the types of the package with pyright: python -m tools.typecheck

Prints the errors of every package and compares their number with its ceiling in
`tools/typecheck.json`. More errors fail. Fewer fail too, until the ceiling is lowered, so that it
only falls; a package that is not listed has none. Of the benchmarks, which no test runs as a
whole, only calls count: what they call has to take what they give. Settings are in pyproject.toml.
"""

from collections import Counter
from collections.abc import Mapping
import dataclasses
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "auditdm_jax"
BENCHMARKS = "benchmarks"
_CALLS = "reportCallIssue"
CEILINGS = pathlib.Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class TypeFault:
  """One error: the file below the repository, the line, pyright's rule and message."""

  file: str
  line: int
  rule: str
  message: str

  @property
  def package(self) -> str:
    """The package's folder, or its file of a module that is in none; or `BENCHMARKS`."""
    first, second = pathlib.PurePath(self.file).parts[:2]
    return first if first == BENCHMARKS else second

  def __str__(self) -> str:
    return f"{self.file}:{self.line}: {self.message} ({self.rule})"


def run() -> list[TypeFault]:
  """Returns pyright's errors.

  Raises:
    RuntimeError: pyright did not run.
  """
  done = subprocess.run(
    [sys.executable, "-m", "pyright", "--outputjson"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  try:
    return parse(done.stdout)
  except json.JSONDecodeError as e:
    raise RuntimeError(f"pyright did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}") from e


def parse(report: str) -> list[TypeFault]:
  """Returns the errors of pyright's JSON report, in the order of files and lines."""
  faults = sorted(
    (
      TypeFault(
        file=pathlib.Path(found["file"]).relative_to(ROOT).as_posix(),
        line=found["range"]["start"]["line"] + 1,
        rule=found.get("rule", "error"),
        message=found["message"].partition("\n")[0],
      )
      for found in json.loads(report)["generalDiagnostics"]
      if found["severity"] == "error"
    ),
    key=lambda e: (e.file, e.line),
  )
  return [e for e in faults if e.package != BENCHMARKS or e.rule == _CALLS]


def verdicts(counts: Mapping[str, int], ceilings: Mapping[str, int]) -> list[str]:
  """Returns what is wrong, one line for each package whose count is not its ceiling."""
  wrong = []
  for package in sorted({*counts, *ceilings}):
    count, ceiling = counts.get(package, 0), ceilings.get(package, 0)
    if count > ceiling:
      wrong.append(f"{package}: {count} type errors, and the ceiling is {ceiling}")
    elif count < ceiling:
      wrong.append(f"{package}: lower the ceiling to {count} in tools/{CEILINGS.name}")
  return wrong


def main() -> int:
  errors = run()
  for error in errors:
    print(error)
  counts = Counter(error.package for error in errors)
  print(f"type errors: {counts.total()}: {dict(counts.most_common())}")
  wrong = verdicts(counts, json.loads(CEILINGS.read_text(encoding="utf-8")))
  for line in wrong:
    print(f"typecheck: {line}", file=sys.stderr)
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
