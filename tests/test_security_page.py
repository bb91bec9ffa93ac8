# SPDX-License-Identifier: Apache-2.0
"""Each claim of SECURITY.md names tests that are there."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_a_claim_names_is_there():
  named = TEST.findall(PAGE)
  assert len(named) > 30
  for path, name in named:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in found, f"{path} has no {name}"


def test_every_claim_names_a_test():
  rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
  claims = [row for row in rows if not row.startswith(("| trusted", "| claim"))]
  _, _, first = PAGE.partition("## Whom it does not trust")
  for row in claims:
    assert row not in first or TEST.search(row), row
