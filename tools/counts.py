# SPDX-License-Identifier: Apache-2.0
"""Prints what a reader of this codebase has to keep in mind: python -m tools.counts

The types that a find passes through, string subscripts in stages/, class names that stand for two
things, comments that switch the formatter off, and type errors. `tools.trace_step` counts the files
and lines of one GRPO step.
"""

import ast
from collections import Counter
from collections.abc import Iterator
import pathlib
import subprocess

from tools import typecheck

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "auditdm_jax"
_SKIP = "# fmt: " + "skip"  # Not itself one.
# A find, from the auditor's sample to a training example.
FIND = (
  "rl/batch.py:Trajectory",
  "audit/attempt.py:Attempt",
  "audit/attempt.py:Find",
  "audit/attempt.py:Failure",
  "rectify/curate.py:TrainingExample",
)


def _trees(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, ast.Module]]:
  for path in sorted(folder.rglob("*.py")):
    yield path, ast.parse(path.read_text(encoding="utf-8"))


def classes(folder: pathlib.Path) -> dict[str, list[str]]:
  """Returns the files that define each class name, private names aside.

  A protocol says what is needed of a class elsewhere, so it may have that class's name.
  """
  found: dict[str, list[str]] = {}
  for path, tree in _trees(folder):
    for node in ast.walk(tree):
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
          continue
        found.setdefault(node.name, []).append(str(path.relative_to(folder)))
  return found


def subscripts(folder: pathlib.Path) -> Counter[str]:
  """Returns the subscripts with a constant text, `row["name"]`, of each file."""
  found: Counter[str] = Counter()
  for path, tree in _trees(folder):
    for node in ast.walk(tree):
      if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Constant):
        continue
      is_type = isinstance(node.value, ast.Name) and node.value.id == "Literal"
      found[path.name] += isinstance(node.slice.value, str) and not is_type
  return +found


def skips() -> int:
  """Returns the comments in tracked files that keep the formatter from a statement."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout
  texts = ((ROOT / name).read_text(encoding="utf-8") for name in listed.split("\0") if name)
  return sum(text.count(_SKIP) for text in texts)


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
  print(f"comments that skip the formatter: {skips()}")
  errors = Counter(error.package for error in typecheck.run())
  print(f"type errors: {errors.total()}: {dict(errors.most_common())}")


if __name__ == "__main__":
  main()
