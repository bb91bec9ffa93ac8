# SPDX-License-Identifier: Apache-2.0
"""From prompts to the learner's batch; the ensemble and the image service answer by hash."""

import collections
import dataclasses
import json
import math

import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.core.metrics import Timer
from auditdm_jax.rl import reward, sampler
from auditdm_jax.rl import rollout as rollout_lib
from tests.rl import fakes, tiny


@pytest.fixture(scope="module")
def mixed():
  """(rollout, result of step 0) with all strategies."""
  made = fakes.rollout(oracle=lambda image, question: "red")
  return made, made.step(tiny.auditor().params, 0)


def by(rows, **wanted):
  return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def test_prompts_are_a_pure_function_and_epochs_cover_the_pool():
  counts = {"edit": 1, "question": 2}
  draws = [rollout_lib.draw_prompts(counts, seed=1, step=step, size=7) for step in range(14)]
  flat = [p for step in draws for p in step]
  assert [p.uid for p in flat] == list(range(42))
  for epoch in range(6):
    assert sorted(p.index for p in flat[epoch * 7 : epoch * 7 + 7]) == list(range(7))
  assert draws[5] == rollout_lib.draw_prompts(counts, seed=1, step=5, size=7)
  other = rollout_lib.draw_prompts(counts, seed=2, step=0, size=7)
  assert [p.index for p in other] != [p.index for p in draws[0]]


def test_every_strategy_keeps_its_lineage(mixed):
  made, result = mixed
  rows = result.records
  assert len(rows) == 6 * 4
  assert collections.Counter(r["strategy"] for r in rows) == {
    "question": 8, "edit": 4, "generate": 4, "edit-only": 4, "generate-only": 4,
  }  # fmt: skip
  for r in rows:
    kinds = [t["kind"] for t in r["turns"]]
    asked = r["verdict"] is not None
    if r["strategy"] == "question":
      assert kinds == ["question"] and r["image_id"] == r["source_image_id"]
    elif asked:
      first = "instruction" if r["strategy"].startswith("edit") else "caption"
      assert kinds == ([first] if r["strategy"].endswith("only") else [first, "question"])
      assert r[first] and r["image_id"] != r["source_image_id"]
      if r["strategy"].endswith("only"):
        assert r["question"] in fakes.Pool().questions(0)
      else:
        assert r["turns"][1]["image_id"] == r["image_id"]
    assert asked == (r["malformed"] is None and r["invalid"] is None)


def test_the_auditors_fault_is_reward_zero(mixed):
  rows = mixed[1].records
  refused = [r for r in rows if (r["malformed"] or "").startswith("INVALID_INSTRUCTION")]
  truncated = by(rows, malformed="no end within the token limit")
  assert refused and truncated
  assert all(r["reward"] == 0.0 for r in refused + truncated)
  assert all(r["verdict"] is None for r in refused + truncated)


def test_the_services_fault_is_nobodys():
  made = fakes.rollout(client=fakes.Client(broken=50))
  result = made.step(tiny.auditor().params, 0)
  late = [r for r in result.records if r["invalid"]]
  assert late and all(r["reward"] is None and r["advantage"] == 0 for r in late)
  assert result.metrics["frac_invalid"] == pytest.approx(len(late) / 24)
  turns = sum(len(r["turns"]) for r in result.records if not r["invalid"])
  assert int(result.batch.loss_mask.any(1).sum()) == turns  # invalid samples have no row


def test_too_many_invalid_samples_stop_the_run_with_the_reasons():
  made = fakes.rollout(client=fakes.Client(broken=100), max_invalid=0.2)
  with pytest.raises(rollout_lib.RolloutError, match=r"samples are invalid.*DEADLINE: late"):
    made.step(tiny.auditor().params, 0)


def test_rewards_are_the_verdicts(mixed):
  rows = mixed[1].records
  for r in rows:
    find = r["verdict"] is not None and r["verdict"]["disagreement"]
    assert r["reward"] == float(find) == r["parts"]["disagreement"]
    v = r["verdict"]
    truth = bool(find and v["consensus"] == "red" and v["answers"]["t"] != "red")
    assert r["oracle_success"] == truth
  assert any(r["reward"] for r in rows)
  shares = [f"share_{k}" for k in ("malformed", "find", "all_agree", "no_consensus")]
  assert sum(mixed[1].metrics[k] for k in shares) == pytest.approx(1)


def test_advantages_are_those_of_the_groups_and_reach_all_turns(mixed):
  result = mixed[1]
  groups = np.array([r["reward"] for r in result.records]).reshape(-1, 4)
  live = groups.max(1) > groups.min(1)
  advantages = np.array([r["advantage"] for r in result.records]).reshape(-1, 4)
  assert live.any() and (np.abs(advantages[live]).max(1) > 0).all()
  assert not advantages[~live].any()
  want = [r["advantage"] for r in result.records for _ in r["turns"]]
  np.testing.assert_allclose(result.batch.advantages[: len(want)], want, rtol=1e-6)


def test_batch_has_the_features_and_log_probs_of_each_row(mixed):
  made, result = mixed
  b, turns = result.batch, [t for r in result.records for t in r["turns"]]
  for row, turn in enumerate(turns):
    np.testing.assert_array_equal(b.features[b.image[row]], fakes.features([turn["image_id"]])[0])
    assert b.loss_mask[row].sum() == turn["length"]
    assert b.logp_sampler[row].sum() == pytest.approx(turn["logprob"], rel=1e-4)


def test_shapes_and_programs_are_the_same_in_every_step(mixed):
  made, first = mixed
  programs = sampler.compile_count()
  second = made.step(tiny.auditor().params, 1)
  shape = lambda b: {f.name: vars(b)[f.name].shape for f in dataclasses.fields(b)}  # noqa: E731
  assert shape(first.batch) == shape(second.batch)
  assert sampler.compile_count() == programs


def test_seeds_differ_per_step_and_samples_do_not_depend_on_their_batch(mixed):
  made, first = mixed
  params = tiny.auditor().params
  counts = made.config.counts()
  prompts = rollout_lib.draw_prompts(counts, seed=3, step=0, size=6)
  texts = lambda ts: {(t.prompt_id, t.sample): [x.text for x in t.turns] for t in ts}  # noqa: E731
  again = texts(made.generate(params, prompts[::-1], step=0, timer=Timer()))
  assert again == {
    (r["prompt_id"], r["sample"]): [t["text"] for t in r["turns"]] for r in first.records
  }
  later = texts(made.generate(params, prompts, step=1, timer=Timer()))
  assert all(later[key] != again[key] for key in list(again)[:4])
  for group in (again[p.uid, g][0] for p in prompts[-1:] for g in range(4)):
    assert isinstance(group, str)
  assert len({again[prompts[-1].uid, g][0] for g in range(4)}) > 1


def test_banned_ids_are_never_sampled(mixed):
  made, result = mixed
  drawn = result.batch.targets[result.batch.loss_mask]
  assert tiny.tokenizer().image_id in made.banned
  assert not np.isin(drawn, made.banned).any()


def test_novelty_weighs_finds_and_is_carried_over():
  made = fakes.rollout({"question": 3}, reward_cfg=reward.RewardConfig(novelty="archive"))
  params = tiny.auditor().params
  first = made.step(params, 0)
  assert {r["weight"] for r in first.records} == {1.0}
  finds = [r for r in first.records if r["reward"]]
  counts = collections.Counter(r["verdict"]["consensus"] for r in finds)
  assert made.novelty.state()["counts"] == dict(counts)
  second = made.step(params, 1)
  assert {r["reward"] for r in second.records} <= {0.0, 1.0}  # the weight is not in the reward


def test_malformed_by_the_worlds_grammar():
  made = fakes.rollout({"question": 3}, well_formed=lambda q: "red" in q)
  rows = made.step(tiny.auditor().params, 0).records
  refused = by(rows, malformed="not a question of this world")
  assert refused and all(r["reward"] == 0 for r in refused)


def test_rows_are_padded_to_the_mesh():
  made = fakes.rollout({"question": 3}, row_multiple=8)
  batch = made.step(tiny.auditor().params, 0).batch
  assert batch.tokens.shape[0] == 16
  assert not batch.loss_mask[12:].any()


def test_penalties_count_tokens_and_leave_invalid_samples_invalid():
  cfg = reward.RewardConfig(length=0.5, length_limit=2)
  made = fakes.rollout(client=fakes.Client(broken=50), reward_cfg=cfg)
  for r in made.step(tiny.auditor().params, 0).records:
    n = sum(t["length"] for t in r["turns"])
    if r["invalid"]:
      assert r["reward"] is None
    else:
      want = r["parts"]["disagreement"] - 0.5 * max(0, n - 2) / 2
      assert math.isclose(r["reward"], want)


def test_configs_that_cannot_be_meant_are_refused():
  with pytest.raises(UserError, match="did you mean 'edit-only'"):
    rollout_lib.RolloutConfig(prompts={"edit_olny": 1})
  with pytest.raises(UserError, match="no strategy"):
    rollout_lib.RolloutConfig(prompts={"question": 0})
  with pytest.raises(UserError, match="max_new_tokens.caption"):
    rollout_lib.RolloutConfig(prompts={"generate": 1}, max_new_tokens={"question": 4})
  with pytest.raises(UserError, match="rollout.task"):
    rollout_lib.RolloutConfig(task={"questoin": "ask"})


STEPS = """
  import json, jax
  from auditdm_jax.core import mesh
  from tests.rl import fakes
  devices = mesh.make_mesh({"data": -1})
  learner = fakes.learner()
  rollout = fakes.rollout({"question": 8, "edit": 2}, mesh=devices, row_multiple=8)
  rows = []
  for step in range(2):
    result = rollout.step(learner.params, step)
    learner.update(result.batch)
    rows += [[r["question"], r["instruction"], r["reward"]] for r in result.records]
  print(json.dumps([jax.device_count(), rows]))
"""


def test_one_device_equals_eight(run_python):
  """Texts and rewards, before and after an update: prompts are split, draws do not care."""
  one, eight = (json.loads(run_python(STEPS, devices=n)) for n in (1, 8))
  assert (one[0], eight[0]) == (1, 8)
  assert one[1] == eight[1]
