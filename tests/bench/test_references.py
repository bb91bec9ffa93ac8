# SPDX-License-Identifier: Apache-2.0
"""benchmarks/references.py around stages that do nothing: what they get, and what is printed."""

import pathlib

import pytest

from benchmarks import references
from tests.bench.summaries import summary


@pytest.fixture
def ran(monkeypatch, tmp_path) -> list[str]:
  """The stages that were run, in their order; the report is of a run that never was."""
  names: list[str] = []
  stages = (references.train, references.discover, references.verify)
  for name, stage in zip(("train", "discover", "verify"), stages, strict=True):
    monkeypatch.setattr(stage, "run", lambda ctx, name=name: names.append(name))
  monkeypatch.setattr(references.report, "run", lambda ctx: summary(10))
  monkeypatch.setattr(references, "_IMAGES", {"train": 2, "heldout": 2})
  monkeypatch.chdir(pathlib.Path(references.__file__).parents[1])
  references._FLAGS(["references", f"--workdir={tmp_path}"])
  return names


def test_weak_references_are_audited_and_shown(ran, tmp_path, capsys):
  references.weak(tmp_path)
  assert ran == ["train", "discover", "verify"]
  assert len(list((tmp_path / "data/own/heldout").glob("*.png"))) == 2
  assert f"summary: {tmp_path / 'run/summary.json'}" in capsys.readouterr().out


def test_a_cell_is_audited_once(ran, tmp_path):
  cell = references.audited(0.9, 0.3, tmp_path)
  assert ran == ["train", "discover", "verify"]
  assert (cell.accuracy, cell.phi, cell.oracle.n) == (0.9, 0.3, 0)
  assert references.audited(0.9, 0.3, tmp_path) == cell and len(ran) == 3
