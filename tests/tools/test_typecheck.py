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
  def found(file: str, severity: str = "error", rule: str = "reportX") -> dict:
    return {
      "file": str(typecheck.ROOT / file),
      "severity": severity,
      "message": "No.\n  Why.",
      "range": {"start": {"line": 4, "character": 0}},
      "rule": rule,
    }

  rows = [
    found("auditdm_jax/rl/step.py"),
    found("auditdm_jax/audit/report/data.py"),
    found("auditdm_jax/vlm.py"),
    found("auditdm_jax/a.py", "warning"),
    found("benchmarks/scale.py"),
    found("benchmarks/scale.py", rule="reportCallIssue"),
  ]
  errors = typecheck.parse(json.dumps({"generalDiagnostics": rows}))
  assert [e.package for e in errors] == ["audit", "rl", "vlm.py", "benchmarks"]
  assert str(errors[1]) == "auditdm_jax/rl/step.py:5: No. (reportX)"


def test_ceilings_name_what_is_there():
  ceilings = json.loads(typecheck.CEILINGS.read_text())
  assert ceilings.pop(typecheck.BENCHMARKS) > 0
  assert all((typecheck.PACKAGE / name).exists() and n > 0 for name, n in ceilings.items())
