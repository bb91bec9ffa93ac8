# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and started again is the run that was not."""

import os
import signal

import numpy as np
import pytest

from auditdm_jax.core import store
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import reward, trainer
from auditdm_jax.vlm import load_vlm
from tests.rl import fakes, tiny

CONFIG = trainer.TrainConfig(checkpoint_every=2, harvest=(3,))


class Killed(Exception):
  pass


def start(workdir, *, steps=6, hook=None, **options):
  """A fresh process, as far as state goes; the pool of 6 is passed through every 1.5 steps."""
  options = {"reward_cfg": reward.RewardConfig(novelty="ema")} | options
  rollout, learner = fakes.rollout({"question": 2, "edit": 2}, **options), fakes.learner(steps)
  if hook:
    update = learner.update
    learner.update = lambda batch: hook(int(learner.state.step), lambda: update(batch))
  result = trainer.train(CONFIG, rollout, learner, auditor=tiny.auditor(), workdir=workdir)
  return learner, result


def facts(workdir):
  """Completions byte for byte, metrics without the clock."""
  completions = (workdir / "records" / "train" / "completions-0.jsonl").read_bytes()
  rows = [row for _, row in store.JsonLines(workdir / "metrics" / "train.jsonl").iterate()]
  clock = lambda name: name == "time" or name.startswith("seconds/")  # noqa: E731
  return completions, [{k: v for k, v in row.items() if not clock(k)} for row in rows]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("straight")
  learner, result = start(workdir)
  return workdir, learner, result


@pytest.mark.parametrize("moment", ["before the update", "after the update"])
def test_straight_run_equals_killed_and_resumed(straight, tmp_path, moment):
  """Killed at three moments: in an epoch, at its end, and between checkpoints."""
  killed_at = [1, 3, 4]

  def hook(step, update):
    if killed_at and step == killed_at[0] and moment == "before the update":
      killed_at.pop(0)
      raise Killed
    metrics = update()
    if killed_at and step == killed_at[0]:
      killed_at.pop(0)
      raise Killed
    return metrics

  for _ in range(3):
    with pytest.raises(Killed):
      start(tmp_path, hook=hook)
  learner, result = start(tmp_path, hook=hook)
  workdir, want_learner, want = straight
  assert facts(tmp_path) == facts(workdir)
  assert result.probes == want.probes
  got, want = (tree_lib.flatten(x.state) for x in (learner, want_learner))
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_killed_after_the_records_and_before_the_checkpoint(straight, tmp_path, monkeypatch):
  """The rows of step 2 are there, its checkpoint is not: none is doubled, none is lost."""
  keep = trainer._Run.keep

  def dies(self, done, *, force):
    if done == 3:
      raise Killed
    keep(self, done, force=force)

  monkeypatch.setattr(trainer._Run, "keep", dies)
  with pytest.raises(Killed):
    start(tmp_path)
  assert len(facts(tmp_path)[1]) == 3
  monkeypatch.undo()
  start(tmp_path)
  assert facts(tmp_path) == facts(straight[0])


def test_a_finished_run_is_done_at_once(straight):
  workdir, _, want = straight
  before = facts(workdir)

  def never(step, update):
    raise AssertionError("no step was due")

  _, result = start(workdir, hook=never)
  assert result == want and facts(workdir) == before


@pytest.mark.parametrize(
  ("signum", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_signals_finish_the_step_and_save_it(straight, tmp_path, signum, error):
  def hook(step, update):
    if step == 2:
      os.kill(os.getpid(), signum)
    return update()

  with pytest.raises(error):
    start(tmp_path, hook=hook)
  assert len(facts(tmp_path)[1]) == 3
  repeated = []
  start(tmp_path, hook=lambda step, update: repeated.append(step) or update())
  assert repeated == [3, 4, 5]
  assert facts(tmp_path) == facts(straight[0])


def test_auditors_are_harvested_as_models(straight):
  workdir, learner, result = straight
  assert list(result.auditors) == [3, 6]
  last = load_vlm(result.auditors[6])
  assert last.extras["updates"] == 6
  now = tree_lib.flatten(learner.params)
  for path, value in tree_lib.flatten(last.params).items():
    np.testing.assert_array_equal(value, now[path])


def test_records_are_one_per_completion(straight):
  rows = store.Records(straight[0] / "records" / "train").read(trainer.COMPLETIONS)
  assert len(rows) == 6 * 4 * 4
  assert len({(r["step"], r["prompt_id"], r["sample"]) for r in rows}) == len(rows)
  assert {r["step"] for r in rows} == set(range(6))


def test_programs_are_compiled_once(straight):
  assert straight[1].compile_count() == 1


def test_another_config_does_not_continue_a_run(straight):
  with pytest.raises(UserError, match="other settings"):
    start(straight[0], seed=4)
