# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/modes.py measures, on fewer and smaller worlds."""

import dataclasses

import pytest

from auditdm_jax.audit import taxonomy
from benchmarks import modes, photographs


def test_a_target_without_weakness_has_no_confirmed_mode(monkeypatch):
  """Discovery names hardly any mode, and were it lax, fresh probes would confirm hardly any."""

  def runs():
    return [
      modes.null_run(p0, 600, icc, run, images=500)
      for p0, icc in ((0.1, 0.0), (0.45, 0.0), (0.3, 0.5), (0.45, 0.5))
      for run in range(5)
    ]

  def lax(evidence):
    config = dataclasses.replace(evidence.config, level=0.9)
    return taxonomy.name_modes(dataclasses.replace(evidence, config=config))

  assert sum(r["named"] > 0 for r in runs()) <= 4
  monkeypatch.setattr(modes, "name_modes", lax)
  done = runs()
  assert sum(r["named"] > 0 for r in done) >= 8
  assert sum(r["confirmed"] > 0 for r in done) <= 3


@pytest.mark.parametrize("run", range(2))
def test_images_and_kinds_of_things_are_found_and_are_few_modes(run):
  planted = (photographs.DARK, photographs.CELL, "a kind of things (vehicles)", "numbers above six")
  done = modes.text_run(run, planted=planted)
  for name, found in done["planted"].items():
    assert found["covered"] > 0.5 and 1 <= found["modes"] <= 2, (name, found)
  assert done["pure"] >= done["confirmed"] - 1
  assert sum(x < 0.5 for x in done["stable"]) <= 2


def test_two_audits_of_one_target_call_no_mode_new():
  done = [modes.pair_run(1500, run, images=700) for run in range(3)]
  assert sum(r["by_name"] for r in done) > 0, "names differ"
  assert sum(r["new"] for r in done) == 0
  assert sum(r["uncovered_confirmed"] for r in done) <= 1
