# SPDX-License-Identifier: Apache-2.0
"""Every fault of the campaign ends as it should."""

import pytest

from tests.faults import campaign


@pytest.mark.parametrize(
  "fault",
  [pytest.param(f, id=f.name, marks=[pytest.mark.slow] if f.dear else []) for f in campaign.FAULTS],
)
def test_fault(fault, tmp_path):
  seen = fault.bring(tmp_path)
  assert seen.outcome and seen.evidence
