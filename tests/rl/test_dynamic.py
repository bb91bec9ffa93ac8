# SPDX-License-Identifier: Apache-2.0
"""Dynamic sampling: which groups fill a batch, which wait, and that off is off."""

import json

import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.rl import dynamic
from auditdm_jax.rl.batch import AuditorReply
from auditdm_jax.rl.dynamic import Carry, DynamicConfig, Group
from auditdm_jax.rl.grpo import GrpoConfig
from tests.rl import fakes, tiny

COUNTS = {"edit": 1, "question": 2}


def group(name, *, live=True, step=0, strategy="question"):
  turn = AuditorReply(
    kind=strategy,
    image_id=name,
    prompt=(7, 8),
    text=name,
    tokens=np.array([5, 6, 0, 0], np.int32),
    logprobs=np.array([-0.1, -1 / 3, 0, 0], np.float32),
    length=2,
    truncated=False,
  )
  advantages = (0.7071, -0.7071) if live else (0.0, 0.0)
  return Group(strategy, name, step, ((turn,), ()), advantages)


def names(groups):
  return [g.source_image_id for g in groups]


def test_live_groups_first_then_carried_then_dead():
  carry = Carry(DynamicConfig(rounds=2, max_age=2), COUNTS)
  first = [group(f"a{i}") for i in range(5)] + [group("e", strategy="edit")]
  batch, counts = carry.fill(first, step=0, rounds=1)
  assert names(batch) == ["e", "a0", "a1"]  # strategies keep their shares
  assert counts["dynamic/waiting"] == 3 and counts["dynamic/expired"] == 0
  second = [group("b0", step=1), group("dead", live=False, step=1)]
  second += [group("f", live=False, step=1, strategy="edit")]
  batch, counts = carry.fill(second, step=1, rounds=3)
  assert names(batch) == ["f", "b0", "a2"]
  assert counts["dynamic/live"] == counts["dynamic/carried"] * 2 == pytest.approx(2 / 3)


def test_old_groups_expire():
  carry = Carry(DynamicConfig(rounds=1, max_age=1), {"question": 1})
  carry.fill([group("a"), group("b"), group("c")], step=0, rounds=1)
  assert carry.is_enough([], 1) and not carry.is_enough([], 2)
  batch, counts = carry.fill([group("dead", live=False, step=2)], step=2, rounds=2)
  assert names(batch) == ["dead"] and counts["dynamic/expired"] == 2


def test_a_batch_needs_enough_of_every_strategy():
  carry = Carry(DynamicConfig(rounds=1), COUNTS)
  questions = [group(f"a{i}") for i in range(9)]
  assert not carry.is_enough(questions, 0)
  assert carry.is_enough([*questions, group("e", strategy="edit")], 0)


def test_off_takes_what_there_is():
  carry = Carry(DynamicConfig(), COUNTS)
  fresh = [group("a", live=False), group("b"), group("c", strategy="edit")]
  assert carry.is_enough(fresh, 0)
  assert carry.fill(fresh, step=0, rounds=1) == (fresh, {})
  assert carry.state() == []


def test_carried_groups_survive_json_bit_for_bit():
  carry, again = (Carry(DynamicConfig(rounds=1, max_age=3), COUNTS) for _ in range(2))
  carry.fill([group(f"a{i}", step=5) for i in range(4)], step=5, rounds=1)
  again.load(json.loads(json.dumps(carry.state())))
  (mine, _), (theirs, _) = (c.fill([], step=6, rounds=1) for c in (carry, again))
  assert names(theirs) == ["a2", "a3"]
  for x, y in zip(mine, theirs):
    assert x.to_dict() == y.to_dict() and y.turns[1] == ()
    turn = y.turns[0][0]
    assert turn.tokens.dtype == np.int32 and turn.logprobs.dtype == np.float32
    np.testing.assert_array_equal(turn.logprobs, x.turns[0][0].logprobs[:2])


def test_settings_that_cannot_be_meant_are_refused():
  with pytest.raises(UserError, match="without rounds"):
    DynamicConfig(max_age=1)
  with pytest.raises(UserError, match="rounds=-1"):
    DynamicConfig(rounds=-1)
  with pytest.raises(UserError, match="grpo.tis_cap"):
    fakes.rollout({"question": 2}, dynamic=DynamicConfig(rounds=1, max_age=1))


def live_share(result):
  return float(np.any(result.batch.parts[0].advantages != 0, axis=1).mean())


def test_a_step_tops_up_its_batch_with_live_groups():
  config = GrpoConfig(group_size=4, tis_cap=2.0)
  plain = fakes.rollout({"question": 2}, grpo_config=config)
  topped = fakes.rollout(
    {"question": 2}, grpo_config=config, dynamic=dynamic.DynamicConfig(rounds=9, max_age=2)
  )
  params = tiny.auditor().params
  steps = [(plain.step(params, s), topped.step(params, s)) for s in range(12)]
  assert min(live_share(p) for p, _ in steps) < 1
  for p, t in steps:
    assert live_share(t) == t.metrics["dynamic/live"] == 1
    shape = p.batch.parts[0].targets.shape
    assert t.batch.parts[0].targets.shape == shape
    # All that was drawn is written down, once.
    assert len(t.records) == 8 * t.metrics["dynamic/rounds"] == t.metrics["completions"]
  uids = [r["prompt_id"] for _, t in steps for r in t.records if r["sample"] == 0]
  assert len(set(uids)) == len(uids)
  assert any(t.metrics["dynamic/carried"] for _, t in steps)
