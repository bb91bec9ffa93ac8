# SPDX-License-Identifier: Apache-2.0
"""Every fault of the campaign ends as it should."""

import json

import pytest

from tests.faults import campaign, little


@pytest.mark.parametrize(
  "fault",
  [pytest.param(f, id=f.name, marks=[pytest.mark.slow] if f.dear else []) for f in campaign.FAULTS],
)
def test_fault(fault, tmp_path):
  seen = fault.bring(tmp_path)
  assert seen.outcome and seen.evidence


def _run(folder, *, spent: float, found: int):
  """Writes what `facts` reads of a run."""
  (folder / "discover").mkdir(parents=True)
  ranked = {"batch": 0, "candidates": found, "flops": {"answers": spent}}
  (folder / "discover/ranked-0.jsonl").write_text(json.dumps(ranked) + "\n")
  (folder / "discover/attempts-0.jsonl").write_text(f"{found}\n")
  arm = {"points": [[found, 1]], "seconds": spent, "flops": {"sample": spent}}
  summary = {"seconds": {"train": spent}, "yields": {"sweep": arm}}
  (folder / "summary.json").write_text(json.dumps(summary))
  return little.facts(folder)


def test_two_runs_are_equal_by_what_they_found_and_not_by_what_they_spent(tmp_path):
  one = _run(tmp_path / "one", spent=1.0, found=3)
  assert one == _run(tmp_path / "slow", spent=2.5, found=3)
  other = _run(tmp_path / "other", spent=1.0, found=4)
  assert one.keys() == other.keys() and all(one[name] != other[name] for name in one)
