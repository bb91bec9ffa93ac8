# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and started again is the run that was not."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from auditdm_jax.core import jsonl
from auditdm_jax.core import metrics as metrics_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.checkpoint import Checkpointer
from auditdm_jax.core.config import UserError
from auditdm_jax.core.records import Records
from auditdm_jax.rl import grpo, reward, trainer
from auditdm_jax.rl.dynamic import DynamicConfig
from auditdm_jax.rl.stopping import NEVER, StopConfig
from auditdm_jax.rl.surrogate import SurrogateConfig
from auditdm_jax.vlm import load_vlm
from tests.rl import fakes, tiny

CONFIG = trainer.TrainConfig(checkpoint_every=2, harvest=(3,), best="entropy", peak_tflops=0.001)


class Killed(Exception):
  pass


def start(
  workdir,
  *,
  steps=6,
  hook=None,
  grpo_config=None,
  prompts=None,
  identity=None,
  stop=NEVER,
  **options,
):
  """A fresh process, as far as state goes; the pool of 6 is passed through every 1.5 steps."""
  options = {"reward_config": reward.RewardConfig(novelty="ema")} | options
  prompts = prompts or {"question": 2, "edit": 2}
  rollout = fakes.rollout(prompts, grpo_config=grpo_config, **options)
  learner = fakes.learner(steps, grpo_config=grpo_config)
  if hook:
    update, updates = learner.update, learner.config.grpo.updates
    learner.update = lambda batch: hook(int(learner.state.step) // updates, lambda: update(batch))
  result = trainer.train(
    CONFIG,
    rollout,
    learner,
    auditor=tiny.auditor(),
    workdir=workdir,
    identity=identity,
    stop=stop,
  )
  return learner, result


def facts(workdir):
  """Completions byte for byte, metrics without the clock."""
  completions = (workdir / "records" / "train" / "completions-0.jsonl").read_bytes()
  rows = [row for _, row in jsonl.JsonLines(workdir / "metrics" / "train.jsonl").iterate()]
  return completions, [
    {k: v for k, v in row.items() if not metrics_lib.is_volatile(k)} for row in rows
  ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("straight")
  learner, result = start(workdir)
  return workdir, learner, result


def test_straight_run_equals_killed_and_resumed(straight, tmp_path):
  """Killed in the middle of an epoch, at its end, and between checkpoints.

  Before the update of the step, and after it with the records not yet written.
  """
  moments = {1: "before", 3: "after", 4: "before"}

  def hook(step, update):
    moment = moments.pop(step, None)
    if moment == "before":
      raise Killed
    metrics = update()
    if moment == "after":
      raise Killed
    return metrics

  for _ in range(3):
    with pytest.raises(Killed):
      start(tmp_path, hook=hook)
  learner, result = start(tmp_path, hook=hook)
  workdir, want_learner, want = straight
  assert facts(tmp_path) == facts(workdir)
  assert (result.probes, result.completions, result.best) == (
    want.probes,
    want.completions,
    want.best,
  )
  assert_same_state(learner, want_learner)


def assert_same_state(learner, want):
  got, want = (tree_lib.flatten(x.state) for x in (learner, want))
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def killed_after(step, workdir, **options):
  """The run that is killed after the update of a step and then started again."""

  def hook(at, update):
    metrics = update()
    if at == step:
      raise Killed
    return metrics

  with pytest.raises(Killed):
    start(workdir, hook=hook, **options)
  return start(workdir, **options)


def test_carried_groups_are_in_the_checkpoint(tmp_path):
  options = {
    "steps": 12,
    "prompts": {"question": 2},
    "dynamic": DynamicConfig(rounds=3, max_age=9),
    "grpo_config": grpo.GrpoConfig(group_size=4, kl_coef=0.02, tis_cap=2.0),
  }
  learner, result = start(tmp_path / "straight", **options)
  completions, rows = facts(tmp_path / "straight")
  # Killed where there is something to lose: groups wait at a checkpoint.
  done = next(done for done in range(2, 12, 2) if rows[done - 1]["dynamic/waiting"])
  assert any(row["dynamic/carried"] for row in rows)
  again, other = killed_after(done, tmp_path / "killed", **options)
  assert facts(tmp_path / "killed") == (completions, rows)
  assert result.completions == other.completions == completions.count(b"\n") > 12 * 8
  assert_same_state(again, learner)


def test_the_surrogate_is_in_the_checkpoint(tmp_path):
  """Its net, its optimiser and what it remembers: with any of them lost it would pick others."""
  options = {
    "surrogate": SurrogateConfig(
      proposals=8, random=1, least=8, memory=40, batch=8, fits=3, width=8, heads=2
    )
  }
  learner, _ = start(tmp_path / "straight", **options)
  again, _ = killed_after(4, tmp_path / "killed", **options)
  assert facts(tmp_path / "killed") == facts(tmp_path / "straight")
  assert_same_state(again, learner)
  assert all("surrogate/predicted" in row for row in facts(tmp_path / "killed")[1][2:])


@pytest.mark.slow
def test_resume_with_several_inner_updates(tmp_path):
  options = {"grpo_config": grpo.GrpoConfig(group_size=4, updates=2), "steps": 4}
  learner, _ = start(tmp_path / "straight", **options)
  again, _ = killed_after(2, tmp_path / "killed", **options)
  assert int(learner.state.step) == 8
  assert facts(tmp_path / "killed") == facts(tmp_path / "straight")
  assert_same_state(again, learner)


def test_killed_after_the_records_and_before_the_checkpoint(straight, tmp_path, monkeypatch):
  """The rows of step 2 are there, its checkpoint is not: none is doubled, none is lost."""
  keep = trainer.Run.keep

  def dies(self, done, *, force):
    if done == 3:
      raise Killed
    keep(self, done, force=force)

  monkeypatch.setattr(trainer.Run, "keep", dies)
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


SIGNALS = [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]


@pytest.mark.parametrize(("signum", "error"), SIGNALS)
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


@pytest.mark.parametrize(("signum", "error"), SIGNALS)
def test_a_signal_while_the_last_step_is_stored_ends_the_run_too(
  tmp_path, monkeypatch, signum, error
):
  keep = trainer.Run.keep

  def kept(self, done, *, force):
    keep(self, done, force=force)
    if done == 2:
      os.kill(os.getpid(), signum)

  monkeypatch.setattr(trainer.Run, "keep", kept)
  with pytest.raises(error):
    start(tmp_path, steps=2)
  assert start(tmp_path, steps=2)[1].steps == 2  # All of it is there.


def test_a_checkpoint_of_a_signal_is_not_the_best_of_whole_windows(tmp_path, monkeypatch):
  """The step before it has by far the greatest value, and the next one by far the least."""
  values = {3: 99.0, 4: -99.0, 6: 1.0}
  monkeypatch.setattr(
    trainer.Run, "_metric", lambda self, row: values.get(int(self._learner.state.step), 0.0)
  )

  def hook(step, update):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return update()

  with pytest.raises(SystemExit):
    start(tmp_path, hook=hook)
  assert start(tmp_path)[1].best == 6


def test_auditors_are_harvested_as_models(straight):
  workdir, learner, result = straight
  assert list(result.auditors) == [3, 6]
  last = load_vlm(result.auditors[6])
  assert last.extras["updates"] == 6
  now = tree_lib.flatten(learner.params)
  for path, value in tree_lib.flatten(last.params).items():
    np.testing.assert_array_equal(value, now[path])


def test_records_are_one_per_completion(straight):
  rows = Records(straight[0] / "records" / "train").read(trainer.COMPLETIONS)
  assert len(rows) == 6 * 4 * 4
  assert len({(r["step"], r["prompt_id"], r["sample"]) for r in rows}) == len(rows)
  assert {r["step"] for r in rows} == set(range(6))


def test_programs_are_compiled_once(run_python, tmp_path):
  """By the learner's own count, and by that of the whole process, which does nothing else."""
  run_python(f"""
    import pathlib
    from tests.rl import test_trainer
    learner, _ = test_trainer.start(pathlib.Path({str(tmp_path)!r}))
    assert learner.compile_count() == 1
  """)
  rows = [row for _, row in jsonl.JsonLines(tmp_path / "metrics/train.jsonl").iterate()]
  counts = [row["machine/compilations"] for row in rows]
  assert counts[0] > 0 and counts[2:] == [counts[2]] * 4


def test_the_best_checkpoint_has_the_greatest_mean_since_the_one_before(straight):
  values = [row["entropy"] for row in facts(straight[0])[1]]
  means = {i: sum(values[i - 2 : i]) / 2 for i in (2, 4, 6)}
  assert len(set(means.values())) == 3 and straight[2].best == max(means, key=means.get)
  with Checkpointer(straight[0] / "checkpoints/train", keep_best=True) as checkpoints:
    assert set(checkpoints.steps()) >= {4, 6, straight[2].best}
    # Nothing of the mean goes on into the next one.
    assert checkpoints.restore(4, straight[1].abstract_state())[2]["window"] == {}


def test_a_best_that_is_no_metric_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], "CONFIG", trainer.TrainConfig(best="rewards"))
  with pytest.raises(UserError, match="best='rewards': no such metric .did you mean 'reward'"):
    start(tmp_path)


def test_metrics_that_diagnose_are_all_there(straight):
  """The list is that of the design; each is a number in every step."""
  wanted = """
    frac_all0 frac_all1 frac_live frac_invalid sampler_gap sampler_gap_p99 sampler_gap_max tis
    tis_ess entropy unique_questions unique_questions_in_group distinct_4 duplicates
    length/question/question truncated/question/question length/edit/instruction
    truncated/edit/question grad_norm grad_clipped skipped_steps kl lr reward reward/disagreement
    reward/repetition reward/length share_malformed share_find share_all_agree share_no_consensus
    agreement/probes agreement/t~a agreement/t~b agreement/a~b seconds/features seconds/sample
    seconds/images seconds/answers seconds/pack seconds/learner seconds/total
    machine/tokens_per_s machine/mfu/sample machine/mfu/learner machine/mfu/answers
    machine/peak_memory_gib machine/compilations
  """.split()
  rows = [row for _, row in jsonl.JsonLines(straight[0] / "metrics/train.jsonl").iterate()]
  assert len(rows) == 6
  for row in rows:
    assert not set(wanted) - set(row)
    assert all(isinstance(row[name], float) for name in wanted)
    # What the sampler says of its draws is what the learner finds.
    assert row["sampler_gap_max"] < 1e-4 and row["tis_ess"] == pytest.approx(1, abs=1e-4)
    assert 0 < row["machine/mfu/sample"] and 0 < row["machine/mfu/learner"]


def test_a_run_with_few_live_groups_stops_at_the_same_step_if_it_was_killed(straight, tmp_path):
  """It keeps what it did, stops again if it is started again, and goes on where it is let."""
  stop = StopConfig(window=5, least_live=1.0)
  said = r"train stopped after step 5, .* in the last 5 steps \d+ of \d+ groups were live"
  with pytest.raises(UserError, match=said) as alone:
    start(tmp_path / "alone", stop=stop)
  with pytest.raises(UserError) as killed:
    killed_after(3, tmp_path / "killed", stop=stop)
  assert str(killed.value) == str(alone.value) and "\n" not in str(alone.value)
  assert facts(tmp_path / "killed") == facts(tmp_path / "alone")

  def never(step, update):
    raise AssertionError("no step was due")

  with pytest.raises(UserError, match="stopped after step 5"):
    start(tmp_path / "killed", stop=stop, hook=never)
  learner, _ = start(tmp_path / "killed")
  assert facts(tmp_path / "killed") == facts(straight[0])
  assert_same_state(learner, straight[1])


def test_the_last_step_is_no_reason_to_stop(straight, tmp_path):
  start(tmp_path, stop=StopConfig(window=6, least_live=1.0))
  assert facts(tmp_path) == facts(straight[0])


@pytest.mark.parametrize("other", [{"seed": 4}, {"identity": ["another target"]}])
def test_another_config_does_not_continue_a_run(straight, other):
  with pytest.raises(UserError, match="other settings"):
    start(straight[0], **other)


ROOT = pathlib.Path(__file__).parents[2]


class CommandLine:
  """A short run of the scenes config in processes of their own."""

  def __init__(self, tmp_path, name, steps):
    self.workdir, self._steps = tmp_path / name, steps
    self._command = [
      sys.executable,
      "-m",
      "auditdm_jax",
      "train",
      "--config=configs/scenes.py",
      f"--workdir={self.workdir}",
      f"--config.pool.data_dir={tmp_path / 'data'}",
      f"--config.optim.steps={steps}",
      "--config.rollout.prompts.question=4",
      "--config.grpo.group_size=4",
      "--config.checkpoints.checkpoint_every=3",
      "--config.checkpoints.harvest=()",
    ]

  def finish(self):
    subprocess.run(self._command, cwd=ROOT, check=True, timeout=3000)

  def kill(self, *, steps, delay_s):
    """kill -9 when so many steps are in the log, after a delay; returns how many there were."""
    with subprocess.Popen(self._command, cwd=ROOT) as child:
      until = time.monotonic() + 3000
      while self.steps() < steps and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
      time.sleep(delay_s)
      child.kill()
    return self.steps()

  def steps(self):
    path = self.workdir / "metrics" / "train.jsonl"
    rows = path.read_bytes().count(b"\n") if path.exists() else 0
    return rows

  def last_params(self):
    return (self.workdir / f"auditors/train/{self._steps:06d}/model.safetensors").read_bytes()


@pytest.mark.slow
def test_kill_nine_at_ten_random_moments(tmp_path):
  """Of a run of 40 steps; it is then the run that nobody killed, bit for bit."""
  straight, killed = (CommandLine(tmp_path, name, 40) for name in ("straight", "killed"))
  straight.finish()
  draw = random.Random()
  moments = [(1, 0.0), *((draw.randrange(2, 40), draw.random()) for _ in range(8))]
  seen = [killed.kill(steps=0, delay_s=draw.uniform(1, 5))]  # while it starts
  seen += [killed.kill(steps=steps, delay_s=delay) for steps, delay in sorted(moments)]
  killed.finish()
  print(f"killed with {seen} steps in the log")
  assert facts(killed.workdir) == facts(straight.workdir)
  rows = Records(killed.workdir / "records" / "train").read(trainer.COMPLETIONS)
  keys = {(r["step"], r["prompt_id"], r["sample"]) for r in rows}
  assert len(keys) == len(rows) == 40 * 8 * 4
  assert killed.last_params() == straight.last_params()
