# SPDX-License-Identifier: Apache-2.0
"""The ceiling of type errors only falls."""

import json

import pytest

from tools import typecheck


@pytest.mark.parametrize(
  ("counts", "ceilings", "wrong"),
  [
    ({}, {}, []),
    ({"rl": 2}, {"rl": 2}, []),
    ({"rl": 3}, {"rl": 2}, ["rl: 3 type errors, and the ceiling is 2"]),
    ({"rl": 1}, {"rl": 2}, ["rl: lower the ceiling to 1 in tools/typecheck.json"]),
    ({}, {"rl": 2}, ["rl: lower the ceiling to 0 in tools/typecheck.json"]),
    ({"new": 1}, {}, ["new: 1 type errors, and the ceiling is 0"]),
  ],
)
def test_a_count_must_be_its_ceiling(counts, ceilings, wrong):
  assert typecheck.verdicts(counts, ceilings) == wrong


def test_errors_are_read_by_package():
  def found(file: str, severity: str = "error") -> dict:
    return {
      "file": str(typecheck.PACKAGE / file),
      "severity": severity,
      "message": "No.\n  Why.",
      "range": {"start": {"line": 4, "character": 0}},
      "rule": "reportX",
    }

  rows = [
    found("rl/step.py"),
    found("audit/report/data.py"),
    found("vlm.py"),
    found("a.py", "warning"),
  ]
  errors = typecheck.parse(json.dumps({"generalDiagnostics": rows}))
  assert [e.package for e in errors] == ["audit", "rl", "vlm.py"]
  assert str(errors[1]) == "auditdm_jax/rl/step.py:5: No. (reportX)"


def test_ceilings_name_what_is_there():
  ceilings = json.loads(typecheck.CEILINGS.read_text())
  assert all((typecheck.PACKAGE / name).exists() and n > 0 for name, n in ceilings.items())
