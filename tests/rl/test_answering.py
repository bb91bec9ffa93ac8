# SPDX-License-Identifier: Apache-2.0
"""GRPO on agreed answers: the agreed ones become likelier, and a run goes on where it stopped."""

import dataclasses
import types

import numpy as np
import pytest

from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import answering, grpo, step
from auditdm_jax.rl.answering import AgreedAnswer, AnsweringConfig
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.sampler import Sampler
from auditdm_jax.text import styles
from tests.rl import fakes, tiny

CONFIG = AnsweringConfig(
  questions=6,
  max_new_tokens=3,
  save_every=3,
  grpo=grpo.GrpoConfig(group_size=8),
  optim=step.OptimConfig(steps=24, lr=3e-2, warmup=0.0, weight_decay=0.0),
)
NEW = [AgreedAnswer(f"new{i}", "what color is the circle ?", "red") for i in range(3)]
OLD = [AgreedAnswer(f"old{i}", "what color is the square ?", "blue") for i in range(2)]
SIGHT = types.SimpleNamespace(trains=False, features=lambda params, ids: fakes.features(ids))


def make(config=CONFIG, *, new=NEW, replay=OLD):
  vlm = dataclasses.replace(tiny.auditor(), style=styles.PLAIN)
  learner = Learner(
    vlm.config,
    config.grpo,
    optim=config.optim,
    mesh=mesh_lib.make_mesh({"data": -1}),
    rules=[(".*", ())],
    params=vlm.params,
    banned=vlm.writer().unsampled_ids(vlm.stop_ids),
  )
  return answering.Asked(
    config,
    learner,
    sampler=Sampler(vlm, seed=0, temperature=1.0),
    sight=SIGHT,
    judge=Judge(),
    new=new,
    replay=replay,
    share=0.34,
    style=vlm.style,
    name="grpo",
    seed=0,
  )


def run(asked, workdir, *, config=CONFIG, identity="a"):
  return answering.train(asked, config, workdir=workdir, name="grpo", identity=identity)


def test_agreed_answers_become_likelier_and_the_run_resumes(tmp_path):
  asked, rewards = make(), []
  at = asked.step

  def watched(step):
    batch, row = at(step)
    rewards.append(row["reward"])
    if step == 7 and len(rewards) == 8:
      raise KeyboardInterrupt
    return batch, row

  asked.step = watched
  with pytest.raises(KeyboardInterrupt):
    run(asked, tmp_path)
  asked.learner.state = dataclasses.replace(asked.learner.state, step=None)  # It is read again.
  with pytest.raises(UserError, match="the checkpoint of step 6 is of other questions"):
    run(asked, tmp_path, identity="b")
  run(asked, tmp_path)
  # Steps 6 and 7 are made twice, from the checkpoint, with the same draws.
  assert len(rewards) == 8 + 18 and rewards[6:8] == rewards[8:10]
  first, last = np.mean(rewards[:2]), np.mean(rewards[-2:])
  assert first < 0.3 and last > first + 0.3, rewards


def test_what_is_rewarded():
  assert answering.reward_of(Same.SAME, truncated=False) == 1.0
  assert answering.reward_of(Same.DIFFERENT, truncated=False) == 0.0
  assert np.isnan(answering.reward_of(Same.UNDECIDED, truncated=False))
  assert answering.reward_of(Same.SAME, truncated=True) == 0.0


def test_passes_see_every_question_once():
  seen = [i for s in range(7) for i in answering.indices(0, "new", s, count=3, size=7)]
  for i in range(3):
    assert sorted(seen[7 * i : 7 * i + 7]) == list(range(7))
  assert seen[:7] != seen[7:14]


def test_questions_and_config_must_fit():
  fields = dict(share=0.34, sampler=None, sight=SIGHT, judge=Judge(), style=styles.PLAIN)
  fields |= dict(name="x", seed=0)
  for new, replay, message in (
    ([], OLD, "no questions to learn"),
    (NEW, [], "a share of 0.34 is replay, but there are no questions"),
  ):
    with pytest.raises(UserError, match=message):
      answering.Asked(CONFIG, None, new=new, replay=replay, **fields)
