# SPDX-License-Identifier: Apache-2.0
"""What the report shows besides results: a ledger of somebody else's making, cost, versions."""

import json

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.stages import shown
from tests.audit.report import sample

RATE = {"k": 3, "n": 9, "rate": 1 / 3, "ci95": [0.1, 0.6], "images": 9, "design": 1.0}
LINE = {
  "name": "hats",
  "mode_id": "m",
  "status": "regressed",
  "old": RATE,
  "new": RATE,
  "change_ci95": [-0.1, 0.2],
  "needs_more": None,
}
LEDGER = {
  "version": 1,
  "exit_code": 1,
  "old": {"name": "a"},
  "new": {"name": sample.HOSTILE},
  "probes": "pack",
  "left_out": 2,
  "notes": ["n"],
  "entries": [LINE],
  "changes": [
    dict(mode_id="m", probe_id="p", question="q", expected="e", old="o", new="n", worse=True)
  ],
}


def _written(tmp_path, ledger):
  path = tmp_path / shown.LEDGER
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(ledger))
  return tmp_path


def test_a_ledger_is_read(tmp_path):
  assert shown.ledger(tmp_path) is None
  view = shown.ledger(_written(tmp_path, LEDGER))
  assert view is not None and (view.verdict, view.rows[0].old.k) == ("Regression.", 3)
  assert view.changes[0].mode == "hats" and view.rows[0].change_ci95 == (-0.1, 0.2)


@pytest.mark.parametrize("key", ["old", "entries", "changes", "exit_code"])
@pytest.mark.parametrize("value", [None, 5, "x", [1], [{"name": 1}]])
def test_a_damaged_ledger_is_named(tmp_path, key, value):
  if key == "exit_code":
    value = [value]
  if (key, value) == ("changes", [1]):
    value = [None]
  with pytest.raises(UserError, match="ledger.json") as error:
    shown.ledger(_written(tmp_path, LEDGER | {key: value}))
  assert "\n" not in str(error.value)


def test_cost_and_code_of_the_stages():
  stages = {
    "audit": {"git": "a" * 40},
    "loop": {"git": "b" * 40 + "-dirty"},
    "label": {"git": ""},
  }
  spent = {"answers/a": 11, "endpoint/a/tokens": 70, "abstention/a": 1}
  rows = shown.cost(spent, {"verify": 2.0, "total": 3.0})
  assert [(r.name, r.amount, r.unit) for r in rows] == [
    ("a", 11, "answers"),
    ("a/tokens", 70, ""),
    ("stage verify", 2.0, "s"),
    ("all stages", 3.0, "s"),
  ]
  versions = shown.code({"stages": stages})
  assert versions == f"{'a' * 12}, {'b' * 12}-dirty, unknown"
