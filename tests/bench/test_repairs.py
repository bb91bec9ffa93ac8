# SPDX-License-Identifier: Apache-2.0
"""Repairs that go on from another run's audit: curves at equal examples, and further strategies."""

import pathlib

import pytest

from auditdm_jax.audit import rates
from auditdm_jax.audit.figures import REPAIRED
from auditdm_jax.stages.remote import config_hash
from auditdm_jax.stages.results import Controlled, Verified
from auditdm_jax.stages.run import RunFolder
from benchmarks import repairs, runs
from tests.stages import verified

TARGET = str(verified.ROOT / "data/scenes/weights/target_easy")


@pytest.fixture
def audited(tmp_path, monkeypatch) -> pathlib.Path:
  """The folder of run 101, whose loop had a config of its own."""
  folder = tmp_path / "101"
  verified.write_run(tmp_path, target=TARGET, name="101/loop")
  loop = RunFolder(folder / "loop", config_hash="another")
  loop.write_control([])
  loop.finish("control", Controlled(0))
  (folder / "models").mkdir()
  (folder / "models/target").symlink_to(TARGET)

  def get_config(arg):
    config = verified.config(tmp_path, target=TARGET)
    config.rectify.curate.cap = 1.0  # The failures have one mode.
    config.rectify.strategy = {"bootstrapped": 1.0} if "strategy=bootstrapped" in arg else {}
    return config

  monkeypatch.setattr(runs.scenes, "get_config", get_config)
  return folder


def test_a_point_of_a_curve_is_repaired_from_the_loops_failures_once(audited, monkeypatch):
  learned = []

  def repair(ctx, name, examples, replay):
    learned.append((name, len(examples)))
    return ctx.models.weights

  table = {"gaps": rates.rate(1, 2), "rest": rates.rate(3, 4)}
  monkeypatch.setattr(runs.rectify, "replay_examples", lambda ctx, new: [])
  monkeypatch.setattr(runs.rectify, "repair", repair)
  monkeypatch.setattr(runs.suite, "benchmark", lambda *args, **kwargs: table)
  before = {p: p.read_bytes() for p in (audited / "loop").rglob("*") if p.is_file()}
  point = runs.curve("101", audited, REPAIRED, 5)
  assert point == runs.RepairPoint(5, 50.0, 75.0) and learned == [(REPAIRED, 5)]
  assert runs.curve("101", audited, REPAIRED, 5) == point and len(learned) == 1
  assert {p: p.read_bytes() for p in (audited / "loop").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("arm", ["labelled", "bootstrapped", repairs.ROUNDS])
def test_an_arm_takes_over_the_audit_and_a_control_that_fits(audited, monkeypatch, arm):
  started = []
  monkeypatch.setattr(repairs.loop, "run_loop", lambda *args: started.append(args))
  repairs.repair("101", audited, arm)
  ((config, folder),) = started
  taken = RunFolder(folder, config_hash=config_hash(config))
  assert folder == audited / arm and taken.done("verify", Verified) is not None
  # What is bootstrapped is asked in addition, so the control has to ask more as well.
  assert (taken.done("control", Controlled) is None) == (arm == "bootstrapped")
  if arm == repairs.ROUNDS:
    assert config.rounds.repair_last and config.rectify.answering.optim.steps
