# SPDX-License-Identifier: Apache-2.0
"""The learner on one device, on eight, and against what has gone wrong elsewhere."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.models import decode
from auditdm_jax.rl import grpo
from auditdm_jax.rl import learner as learner_lib
from tests.rl import tiny

RULES = [(".*", ())]
GRPO = grpo.GrpoConfig()


def make(grpo_cfg=GRPO, *, params=None, **optim):
  vlm = tiny.auditor()
  return learner_lib.Learner(
    vlm.cfg,
    grpo_cfg,
    optim=learner_lib.OptimConfig(**{"steps": 100} | optim),
    mesh=mesh_lib.make_mesh({"data": -1}),
    rules=RULES,
    params=params or vlm.params,
    banned=vlm.tokenizer.unsampled_ids(vlm.stop_ids),
  )


def host(params):
  return {path: np.asarray(x) for path, x in tree_lib.flatten(params).items()}


@pytest.fixture(scope="module")
def plain():
  """A learner whose program is compiled once for several tests; each puts the state back."""
  return make()


@pytest.fixture
def learner(plain):
  saved = jax.tree.map(np.asarray, plain.state)
  yield plain
  plain.state = jax.device_put(saved, jax.tree.map(lambda x: x.sharding, plain.abstract_state()))


def test_a_3e6_step_moves_fp32_masters_and_step_zero_is_not_dead(learner):
  before = host(learner.params)
  metrics = learner.update(tiny.batch())
  after = host(learner.params)
  moved = [path for path in before if (before[path] != after[path]).any()]
  assert metrics["lr"] == pytest.approx(3e-7)  # 1 / 10 of the peak: the warm-up has 10 steps
  assert "llm/embedder/input_embedding" in moved and any("head" in path for path in moved)
  assert all(x.dtype == np.float32 for x in after.values())


def test_the_vision_tower_is_frozen_and_its_projector_is_not(learner):
  before = host(learner.params)
  learner.update(tiny.batch())
  for path, value in host(learner.params).items():
    same = (before[path] == value).all()
    assert same == (path.startswith("img/") and not path.startswith("img/head/")), path


def test_a_non_finite_step_is_skipped_and_counted(learner):
  before = host(learner.params)
  bad = tiny.batch()
  bad.advantages[0] = np.nan
  assert learner.update(bad)["skipped_steps"] == 1
  after = host(learner.params)
  assert all((before[p] == after[p]).all() for p in before)
  assert int(learner.state.step) == 1
  assert learner.update(tiny.batch())["skipped_steps"] == 1
  assert any((host(learner.params)[p] != before[p]).any() for p in before)


def test_padding_rows_and_padded_tokens_change_nothing(learner):
  saved = jax.tree.map(np.asarray, learner.state)
  first = learner.update(tiny.batch())
  learner.state = jax.device_put(saved, learner._shardings)
  garbage = tiny.batch()
  garbage.logp_sampler[~garbage.loss_mask] = np.nan
  garbage.targets[~garbage.loss_mask] = 7
  garbage.advantages[-1] = 1e6
  assert learner.update(garbage) == first


def test_one_program_for_all_batches(learner):
  for seed in range(3):
    learner.update(tiny.batch(seed=seed))
  assert learner.compile_count() == 1


def test_warm_up_and_cosine():
  cfg = learner_lib.OptimConfig(steps=1000)
  lr = [float(learner_lib.learning_rate(cfg, jnp.int32(s))) for s in (0, 49, 99, 100, 550, 1000)]
  want = [3e-8, 1.5e-6, 3e-6, 3e-6, 2e-6, 1e-6]
  np.testing.assert_allclose(lr, want, rtol=1e-5)


def test_learning_moves_towards_what_was_rewarded():
  learner = make(lr=1e-2, warmup=0.0)
  batch = tiny.batch()
  batch = dataclasses.replace(batch, advantages=np.sign(batch.advantages))

  def mean_logp(sign):
    flat = tree_lib.flatten(learner.params)
    logp, _ = logprobs(flat, batch)
    mask = batch.loss_mask & (batch.advantages == sign)[:, None]
    return float(np.asarray(logp)[mask].mean())

  logprobs = jax.jit(functools.partial(learner_lib.forward_logprobs, learner.config))
  before = mean_logp(1), mean_logp(-1)
  for _ in range(5):
    learner.update(batch)
  assert mean_logp(1) > before[0] and mean_logp(-1) < before[1]


def test_kl_holds_to_the_initial_auditor():
  drift = {}
  for coef in (0.0, 10.0):
    learner = make(grpo.GrpoConfig(kl_coef=coef, kl="k3"), lr=1e-2, warmup=0.0)
    start = host(learner.params)
    for _ in range(8):
      metrics = learner.update(tiny.batch())
    drift[coef] = sum(np.square(x - start[p]).sum() for p, x in host(learner.params).items())
    assert ("kl" in metrics) == bool(coef)
  # Adam hides the scale of a gradient, not its direction.
  assert drift[10.0] < drift[0.0]


def test_entropy_gradient_is_not_zero_through_the_chunked_head():
  vlm, batch = tiny.auditor(), tiny.batch()
  grads = {}
  for chunk in (0, 7):
    cfg = learner_lib.StepConfig(
      vlm.cfg, grpo.GrpoConfig(), learner_lib.OptimConfig(head_chunk=chunk), ()
    )

    def entropy(flat, cfg=cfg):
      return learner_lib.forward_logprobs(cfg, flat, batch)[1].sum()

    grad = jax.jit(jax.grad(entropy))(tree_lib.flatten(vlm.params))
    grads[chunk] = grad["llm/embedder/input_embedding"]
  assert np.abs(grads[7]).max() > 1e-3
  np.testing.assert_allclose(grads[7], grads[0], rtol=1e-4, atol=1e-5)


def test_ratio_is_one_at_update_zero_at_any_temperature():
  """The sampler's log-probs are the learner's; banned ids and temperature are on both sides."""
  vlm, temperature = tiny.auditor(), 0.6
  batch = tiny.batch(rows=8)
  banned = vlm.tokenizer.unsampled_ids(vlm.stop_ids)
  sc = decode.SampleConfig(5, temperature, vlm.stop_ids, banned)
  start = batch.completion_start[0]
  samples = jax.jit(functools.partial(decode.sample, vlm.cfg, sc, group=1))(
    vlm.params,
    batch.features[batch.image[:8]],
    batch.tokens[:, :start],
    valid=np.ones((8, start), bool),
    row_keys=jax.random.split(jax.random.key(0), (8, 1)),
  )
  tokens, length = np.asarray(samples.tokens)[:, 0], np.asarray(samples.length)[:, 0]
  assert not np.isin(tokens[np.arange(5) < length[:, None]], banned).any()
  batch.tokens[:, start:] = tokens
  batch.valid[:, start:] = batch.loss_mask[:] = np.arange(5) < length[:, None]
  batch.targets[:] = tokens
  batch.logp_sampler[:] = np.asarray(samples.logprobs)[:, 0]
  metrics = make(grpo.GrpoConfig(temperature=temperature)).update(batch)
  assert metrics["sampler_gap_max"] < 1e-5
  assert metrics["tis"] == pytest.approx(1, abs=1e-5)


def test_one_batch_equals_its_micro_batches():
  """Means divide by the count of the whole batch, not by that of each part."""
  cfg = grpo.GrpoConfig(entropy_coef=0.01, tis_cap=2.0)
  results = []
  for micro_rows in (0, 4):
    learner = make(cfg, micro_rows=micro_rows, lr=1e-3, warmup=0.0)
    metrics = learner.update(tiny.batch(rows=16))
    results.append((metrics, host(learner.state.opt_state[1].mu)))
  for metrics, gradients in results[1:]:
    assert metrics == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
    for path, want in results[0][1].items():
      np.testing.assert_allclose(gradients[path], want, rtol=1e-3, atol=1e-6, err_msg=path)


def test_rows_that_do_not_divide_are_refused():
  learner = make(micro_rows=4)
  with pytest.raises(ValueError, match="not a multiple of 4"):
    learner.update(tiny.batch(rows=6))


def test_nothing_to_train_is_refused():
  with pytest.raises(ValueError, match="nothing would train"):
    make(frozen=".*")


EIGHT = """
  import json, jax, numpy as np
  from auditdm_jax.core import mesh, tree
  from auditdm_jax.rl import grpo, learner
  from tests.rl import tiny
  vlm = tiny.auditor()
  rules = {rules}
  ln = learner.Learner(
    vlm.cfg, grpo.GrpoConfig(kl_coef=0.1, entropy_coef=0.01, tis_cap=2.0),
    optim=learner.OptimConfig(steps=10, lr=1e-3), mesh=mesh.make_mesh({{"data": -1}}),
    rules=rules, params=vlm.params)
  metrics = [ln.update(tiny.batch(rows=16, seed=s)) for s in range(3)]
  flat = tree.flatten(ln.params)
  print(json.dumps({{
    "devices": jax.device_count(),
    "metrics": metrics,
    "params": {{p: float(np.abs(np.asarray(x)).sum()) for p, x in flat.items()}},
    "split": sum(not x.sharding.is_fully_replicated for x in flat.values()),
  }}))
"""


def test_one_device_equals_eight(run_python):
  whole = '[(".*", ())]'
  split = '[("input_embedding", (None, "data")), ("mlp", ()), (".*", ())]'
  one = json.loads(run_python(EIGHT.format(rules=whole)))
  eight = json.loads(run_python(EIGHT.format(rules=split), devices=8))
  assert (one["devices"], eight["devices"]) == (1, 8)
  assert eight["split"] > 0
  for a, b in zip(one["metrics"], eight["metrics"]):
    for name in a:
      assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-5), name
  for path in one["params"]:
    assert one["params"][path] == pytest.approx(eight["params"][path], rel=1e-4), path
