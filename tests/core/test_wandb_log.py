# SPDX-License-Identifier: Apache-2.0
"""Numbers in wandb: the calls, by a stand-in; and with the real package, offline, if it is here."""

import importlib.util
import json
import sys
import types

import pytest

from auditdm_jax.core import metrics
from auditdm_jax.core.config import UserError, build
from auditdm_jax.core.wandb_log import WandbConfig

CONFIG = WandbConfig(project="audits", mode="offline")


class Series:
  def __init__(self, given):
    self.given, self.rows, self.defined, self.is_over = given, [], [], False

  def define_metric(self, name, step_metric=None):
    self.defined.append((name, step_metric))

  def log(self, row):
    self.rows.append(row)

  def finish(self):
    self.is_over = True


@pytest.fixture
def fake(monkeypatch):
  """A stand-in for the package; `begun` are the series that were begun."""
  module = types.ModuleType("wandb")
  module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
  module.begun = []

  def init(**given):
    module.begun.append(Series(given))
    return module.begun[-1]

  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_rows_go_there_too_and_a_resumed_run_goes_on_under_its_id(fake, tmp_path):
  with metrics.Writer(tmp_path, "train", wandb=CONFIG) as writer:
    writer.write(0, {"loss": 1.0})
    writer.write(1, {"loss": 0.5})
  with metrics.Writer(tmp_path, "train", resume_step=0, wandb=CONFIG) as writer:
    writer.write(1, {"loss": 0.25})
  with metrics.Writer(tmp_path, "rectify", wandb=CONFIG):
    pass
  first, again, other = fake.begun
  assert first.rows == [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}] and first.is_over
  assert again.rows == [{"step": 1, "loss": 0.25}] and ("*", "step") in again.defined
  assert first.given["id"] == again.given["id"] != other.given["id"]
  assert first.given["resume"] == "allow" and first.given["project"] == "audits"
  rows = [json.loads(line) for line in (tmp_path / "metrics/train.jsonl").open()]
  assert [(r["step"], r["loss"]) for r in rows] == [(0, 1.0), (1, 0.25)]


def test_without_a_project_the_package_is_not_looked_for(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with metrics.Writer(tmp_path, "train") as writer:
    writer.write(0, {"loss": 1.0})


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"config.wandb.project='audits'.* pip install wandb") as e:
    metrics.Writer(tmp_path, "train", wandb=CONFIG)
  assert "\n" not in str(e.value)


def test_what_wandb_does_not_take_is_one_line(fake, tmp_path):
  def init(**given):
    raise fake.errors.Error("api_key not configured\n(no-tty)")

  fake.init = init
  with pytest.raises(UserError, match="api_key not configured .no-tty.; log in") as e:
    metrics.Writer(tmp_path, "train", wandb=CONFIG)
  assert "\n" not in str(e.value)


def test_a_mode_that_is_none_is_refused():
  with pytest.raises(UserError, match="mode"):
    build(WandbConfig, {"project": "a", "mode": "of"}, name="config.wandb")


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_the_real_package_offline(run_python, tmp_path):
  """In a process of its own: wandb starts a service."""
  run_python(f"""
    from auditdm_jax.core import metrics
    from auditdm_jax.core.wandb_log import WandbConfig
    config = WandbConfig(project="audits", mode="offline")
    for first in (0, 2):
      opened = metrics.Writer({str(tmp_path)!r}, "train", resume_step=first - 1, wandb=config)
      with opened as writer:
        for step in range(first, first + 3):
          writer.write(step, {{"loss": 1 / (1 + step)}})
  """)
  files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
  assert len(files) == 2 and all(b"loss" in file.read_bytes() for file in files)
