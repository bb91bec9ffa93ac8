# SPDX-License-Identifier: Apache-2.0
"""Prints what a reader of this codebase has to keep in mind: python -m tools.counts [--pyright]

The types that a find passes through, string subscripts in stages/, class names defined twice,
``, and with --pyright the type errors of each package. `tools.trace_step` counts the
files and lines of one GRPO step.
"""

import ast
from collections import Counter
from collections.abc import Iterator
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "auditdm_jax"
# A find, from the auditor's sample to a training example.
FIND = (
  "rl/batch.py:Trajectory",
  "audit/attempt.py:Attempt",
  "audit/attempt.py:Find",
  "audit/attempt.py:Failure",
  "rectify/curate.py:Example",
)


def _trees(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, ast.Module]]:
  for path in sorted(folder.rglob("*.py")):
    yield path, ast.parse(path.read_text(encoding="utf-8"))


def classes(folder: pathlib.Path) -> dict[str, list[str]]:
  """Returns the files that define each class name, private names and generated files aside."""
  found: dict[str, list[str]] = {}
  for path, tree in _trees(folder):
    for node in ast.walk(tree):
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        found.setdefault(node.name, []).append(str(path.relative_to(folder)))
  return found


def subscripts(folder: pathlib.Path) -> Counter[str]:
  """Returns the subscripts with a constant text, `row["name"]`, of each file."""
  found: Counter[str] = Counter()
  for path, tree in _trees(folder):
    for node in ast.walk(tree):
      if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        found[path.name] += isinstance(node.slice.value, str)
  return +found


def type_errors() -> Counter[str]:
  """Returns pyright's errors by package."""
  done = subprocess.run(
    [sys.executable, "-m", "pyright", "--outputjson", str(PACKAGE)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  errors = [d for d in json.loads(done.stdout)["generalDiagnostics"] if d["severity"] == "error"]
  return Counter(pathlib.Path(d["file"]).relative_to(PACKAGE).parts[0] for d in errors)


def main() -> None:
  known = classes(PACKAGE)
  for place in FIND:
    file, name = place.split(":")
    assert file in known.get(name, ()), f"{place} is gone: mend FIND"
  print(f"types of a find: {len(FIND)}: {', '.join(place.split(':')[1] for place in FIND)}")
  strings = subscripts(PACKAGE / "stages")
  print(f"string subscripts in stages/: {strings.total()}: {dict(strings.most_common())}")
  twice = {name: files for name, files in known.items() if len(files) > 1}
  print(f"class names defined twice: {len(twice)}: {', '.join(sorted(twice))}")
  folders = ("auditdm_jax", "configs", "data", "tests", "benchmarks", "tools")
  skips = sum(p.read_text("utf-8").count("") for f in folders for p in (ROOT / f).rglob("*.py"))
  print(f"fmt: skip: {skips}")
  if "--pyright" in sys.argv[1:]:
    errors = type_errors()
    print(f"pyright errors: {errors.total()}: {dict(errors.most_common())}")


if __name__ == "__main__":
  main()
