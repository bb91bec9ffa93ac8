# SPDX-License-Identifier: Apache-2.0
"""The learner on one device, on eight, and against what has gone wrong elsewhere."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.models import decode, multimodal
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo, step
from auditdm_jax.rl import learner as learner_lib
from tests.rl import tiny

RULES = [(".*", ())]
GRPO = grpo.GrpoConfig()
FAST = {"lr": 1e-2, "warmup": 0.0}
ALL = "^$"  # optim.frozen under which the tower trains too
TOWERS = [
  pytest.param(step.TOWER, id="frozen"),
  pytest.param(ALL, id="trained", marks=pytest.mark.slow),
]


def make(grpo_config=GRPO, *, config=None, params=None, **optim):
  vlm = tiny.auditor()
  return learner_lib.Learner(
    config or vlm.config,
    grpo_config,
    optim=step.OptimConfig(**{"steps": 100} | optim),
    mesh=mesh_lib.make_mesh({"data": -1}),
    rules=RULES,
    params=params or vlm.params,
    banned=vlm.tokenizer.unsampled_ids(vlm.stop_ids),
  )


def host(params):
  return {path: np.asarray(x) for path, x in tree_lib.flatten(params).items()}


def assert_equal(a, b, *, rtol=1e-3, atol=1e-6):
  """Two flat dicts of arrays."""
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_allclose(a[path], b[path], rtol=rtol, atol=atol, err_msg=path)


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
  # Adam's first step is the learning rate, up or down: masters in bf16 would jump or stay.
  assert max(np.abs(after[path] - before[path]).max() for path in before) < 2 * 3e-7
  w = "llm/layers/mlp/linear"
  assert (before[w] != after[w]).mean() > 0.9


def test_the_vision_tower_is_frozen_and_its_projector_is_not(learner):
  before = host(learner.params)
  learner.update(tiny.batch())
  for path, value in host(learner.params).items():
    same = (before[path] == value).all()
    assert same == (path.startswith("img/") and not path.startswith("img/head/")), path


def test_the_callers_params_are_left_alone(learner):
  """The state is donated to each update; what it was made from is not."""
  params = jax.tree.map(jnp.asarray, tiny.auditor().params)
  made = make(params=params)
  made.update(tiny.batch())
  assert_equal(host(params), host(tiny.auditor().params), rtol=0, atol=0)


def test_a_non_finite_step_is_skipped_and_counted(learner):
  before = host(learner.params)
  bad = tiny.batch()
  bad.parts[0].advantages[0] = np.nan
  assert learner.update(bad)["skipped_steps"] == 1
  after = host(learner.params)
  assert all((before[p] == after[p]).all() for p in before)
  assert int(learner.state.step) == 1
  assert learner.update(tiny.batch())["skipped_steps"] == 1
  assert any((host(learner.params)[p] != before[p]).any() for p in before)


def test_padding_rows_and_padded_tokens_change_nothing(learner):
  saved = jax.tree.map(np.asarray, learner.state)
  first = learner.update(tiny.batch())
  shardings = jax.tree.map(lambda x: x.sharding, learner.abstract_state())
  learner.state = jax.device_put(saved, shardings)
  garbage = tiny.batch()
  rows = garbage.parts[0]
  rows.logp_sampler[~rows.loss_mask] = np.nan
  rows.targets[~rows.loss_mask] = 7
  rows.prompt[~rows.prompt_valid] = 7
  rows.advantages[-1] = 1e6
  assert learner.update(garbage) == first


def test_one_program_for_all_batches(learner):
  for seed in range(3):
    learner.update(tiny.batch(seed=seed))
  assert learner.compile_count() == 1


def test_schedules_of_any_length_share_a_program():
  """A later round of fewer steps finds what the first one has compiled."""

  def program(**optim):
    learner = make(**optim)
    state = learner.abstract_state()
    batch = learner._place(tiny.batch())
    args = state, batch, learner._frozen, learner._reference, np.float32(0)
    return learner._programs.step.lower(*args).as_text()

  long = program(steps=150, lr=3e-4, final_lr=1e-4, warmup=0.05)
  assert program(steps=60, lr=1e-3, final_lr=0.0, warmup=0.5) == long
  assert program(steps=150, lr=3e-4, clip_norm=0.5) != long


def test_warm_up_and_cosine():
  config = step.OptimConfig(steps=1000)
  lr = [step.learning_rate(config, s) for s in (0, 49, 99, 100, 550, 1000)]
  want = [3e-8, 1.5e-6, 3e-6, 3e-6, 2e-6, 1e-6]
  np.testing.assert_allclose(lr, want, rtol=1e-5)


def test_learning_moves_towards_what_was_rewarded():
  learner = make(**FAST)
  batch = tiny.batch()
  rows = dataclasses.replace(batch.parts[0], advantages=np.sign(batch.parts[0].advantages))
  batch = dataclasses.replace(batch, parts=(rows,))

  def mean_logp(sign):
    (logp,) = learner.logprobs(batch)
    mask = rows.loss_mask & (rows.advantages == sign)[..., None]
    return float(np.asarray(logp)[mask].mean())

  before = mean_logp(1), mean_logp(-1)
  for _ in range(5):
    learner.update(batch)
  assert mean_logp(1) > before[0] and mean_logp(-1) < before[1]


def test_kl_holds_to_the_initial_auditor():
  drift = {}
  for coef in (0.0, 10.0):
    learner = make(grpo.GrpoConfig(kl_coef=coef, kl="k3"), **FAST)
    start = host(learner.params)
    for _ in range(8):
      metrics = learner.update(tiny.batch())
    drift[coef] = sum(np.square(x - start[p]).sum() for p, x in host(learner.params).items())
    assert ("kl" in metrics) == bool(coef)
  # Adam hides the scale of a gradient, not its direction.
  assert drift[10.0] < drift[0.0]


# ---- the head


def step_config(config=None, **optim):
  return step.StepConfig(config or tiny.config(), GRPO, step.OptimConfig(**optim), ())


def test_entropy_gradient_is_not_zero_through_the_chunked_head():
  vlm, batch = tiny.auditor(), tiny.batch()
  grads, logps = {}, {}
  for chunk in (0, 7):
    config = step_config(head_chunk=chunk)

    def entropy(flat, config=config):
      ((logp, entropy),) = step.forward_logprobs(config, flat, batch.features, batch.parts[:1])
      return entropy.sum(), logp

    grad, logps[chunk] = jax.jit(jax.grad(entropy, has_aux=True))(tree_lib.flatten(vlm.params))
    grads[chunk] = grad["llm/embedder/input_embedding"]
  np.testing.assert_allclose(logps[7], logps[0], atol=1e-5)
  assert np.abs(grads[7]).max() > 1e-3
  np.testing.assert_allclose(grads[7], grads[0], rtol=1e-4, atol=1e-5)


def test_head_gradient_of_many_chunks_adds_up_in_fp32_though_the_compute_is_bf16():
  """512 equal contributions, one chunk each: a bf16 sum stops growing at 256 of them."""
  config = tiny.config().with_dtype("bfloat16")
  params = tiny.auditor().params
  x = jnp.broadcast_to(jnp.linspace(-1, 1, config.text.width, dtype=jnp.bfloat16), (1, 512, 16))
  targets = jnp.full((1, 512), 11)

  def total(w, chunk, n):
    tree = {"llm": {"embedder": {"input_embedding": w}}}
    return multimodal.token_logprobs(config, tree, x[:, :n], targets[:, :n], chunk=chunk)[0].sum()

  grad = jax.jit(jax.grad(total), static_argnums=(1, 2))
  w = jnp.asarray(params["llm"]["embedder"]["input_embedding"])
  assert w.dtype == np.float32
  many, one = grad(w, 1, 512), grad(w, None, 1)
  np.testing.assert_allclose(many, 512 * one, rtol=1e-3, atol=1e-3)


# ---- sampler and learner


def as_rows(samples, prompt, *, image):
  """Learner rows of what was sampled: one row per prompt, all its samples."""
  tokens, length = np.asarray(samples.tokens), np.asarray(samples.length)
  mask = np.arange(tokens.shape[2]) < length[..., None]
  return batch_lib.Rows(
    image=image,
    prompt=prompt,
    prompt_valid=np.ones(prompt.shape, bool),
    targets=tokens,
    loss_mask=mask,
    advantages=np.ones(length.shape, np.float32),
    logp_sampler=np.asarray(samples.logprobs),
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ratio_is_one_at_update_zero_at_any_temperature(dtype):
  """The sampler's log-probs are the learner's; banned ids and temperature are on both sides."""
  vlm, temperature = tiny.auditor(), 0.6
  config = vlm.config.with_dtype(dtype)
  batch = tiny.batch(rows=4)
  rows = batch.parts[0]
  learner = make(grpo.GrpoConfig(temperature=temperature), config=config)
  banned = learner.config.banned
  assert vlm.tokenizer.image_id in banned
  sc = decode.SampleConfig(5, temperature, vlm.stop_ids, banned)
  samples = jax.jit(functools.partial(decode.sample, config, sc, group=3))(
    learner.sampling_params(),
    batch.features[rows.image],
    rows.prompt,
    valid=rows.prompt_valid,
    row_keys=jax.random.split(jax.random.key(0), (4, 3)),
  )
  drawn = as_rows(samples, rows.prompt, image=rows.image)
  assert not np.isin(drawn.targets[drawn.loss_mask], banned).any()
  (logp,) = learner.logprobs(dataclasses.replace(batch, parts=(drawn,)))
  gap = np.abs(np.asarray(logp) - drawn.logp_sampler)[drawn.loss_mask]
  # In bf16 the two programs round differently here and there.
  assert gap.max() < (1e-5 if dtype == "float32" else 0.05)


def test_image_id_is_banned_in_the_learner_as_in_the_sampler():
  """Probabilities of what can be sampled add up to 1."""
  vlm, learner = tiny.auditor(), make()
  rows = tiny.batch(rows=2).parts[0]
  allowed = [i for i in range(vlm.tokenizer.vocab_size) if i not in learner.config.banned]
  assert vlm.tokenizer.image_id not in allowed
  n = len(allowed)
  targets = np.array(allowed, np.int32).reshape(1, n, 1)
  one = batch_lib.Rows(
    rows.image[:1],
    rows.prompt[:1],
    rows.prompt_valid[:1],
    targets,
    np.ones((1, n, 1), bool),
    np.zeros((1, n), np.float32),
    np.zeros((1, n, 1), np.float32),
  )
  (logp,) = learner.logprobs(dataclasses.replace(tiny.batch(), parts=(one,)))
  assert np.exp(logp).sum() == pytest.approx(1, abs=1e-5)


# ---- rows [prompt | c_1 … c_G]


def both_layouts(group=3, prompts=4, completion=6, seed=0, per_row=None):
  """The same turns in shared rows and in plain rows; prompts longer than the window, some shorter
  than others, a group with a missing member.
  """
  per_row = per_row or group
  rng, tok = np.random.default_rng(seed), tiny.tokenizer()
  start = tiny.batch().parts[0]
  head = [int(t) for t in start.prompt[0][start.prompt_valid[0]]]
  turns, image = [], []
  for p in range(prompts):
    prompt = tuple(head + [int(t) for t in rng.integers(10, tok.vocab_size, p)])
    for _ in range(group - (p == 1)):
      turns.append(
        batch_lib.AuditorReply(
          kind="question",
          image_id="",
          prompt=prompt,
          text="",
          tokens=rng.integers(10, tok.vocab_size, completion).astype(np.int32),
          logprobs=rng.normal(-3, 0.1, completion).astype(np.float32),
          length=int(rng.integers(1, completion + 1)),
          truncated=False,
        )
      )
      image.append(p % 2)
  shape = {"prompt_width": len(head) + prompts + 1, "completion_width": completion}
  pack = functools.partial(
    batch_lib.pack_rows, turns, rng.normal(size=len(turns)), image=image, **shape
  )
  return pack(rows=prompts * group // per_row, per_row=per_row), pack(rows=prompts * group)


def images(tower, n=2):
  """features or pixels of `n` images, as LearnerBatch takes them."""
  rng = np.random.default_rng(5)
  if tower:
    return {"features": None, "pixels": rng.uniform(-1, 1, (n, 16, 16, 3)).astype(np.float32)}
  return {"features": rng.normal(size=(n, 4, 8)).astype(np.float32), "pixels": None}


# Both layouts and both ways to split the rows are compared under one recipe.
MIXED = grpo.GrpoConfig(
  entropy_coef=0.01, tis_cap=2.0, temperature=0.8, aggregation="constant", std="none"
)


def updated(rows, config=MIXED, **optim):
  """Metrics and gradient (Adam's first moment) of one update, and the log-probs before it."""
  learner = make(config, **FAST | optim)
  batch = batch_lib.LearnerBatch(**images(learner.trains_tower), parts=rows)
  logp = [np.asarray(x)[part.loss_mask] for x, part in zip(learner.logprobs(batch), rows)]
  return learner.update(batch), host(learner.state.opt_state[1].mu), np.concatenate(logp)


@pytest.mark.parametrize("frozen", TOWERS)
@pytest.mark.parametrize(("group", "per_row"), [(3, 3), (4, 2)])
def test_a_shared_prefix_equals_plain_rows(frozen, group, per_row):
  """With windows of 8 over 12 to 22 keys, prompts of several lengths and a missing completion.

  A group in two rows, too.
  """
  shared, plain = both_layouts(group, per_row=per_row)
  assert shared.targets.shape[:2] == (4 * group // per_row, per_row)
  assert tiny.config().text.window < plain.prompt_valid.sum(1).min()
  a, b = updated((shared,), frozen=frozen), updated((plain,), frozen=frozen)
  np.testing.assert_allclose(a[2], b[2], atol=5e-6)
  assert a[0] == pytest.approx(b[0], rel=1e-4, abs=1e-6)
  assert_equal(a[1], b[1])
  tower = [path for path, m in a[1].items() if path.startswith("img/") and "head" not in path]
  assert bool(tower) == (frozen == ALL)
  # Keys' biases have no gradient: softmax does not see them.
  assert all(np.abs(a[1][path]).max() > 0 for path in tower if "key/bias" not in path)


def test_parts_of_two_shapes_equal_one_part():
  """First turns share their prompts, second turns do not, and their widths differ."""
  _, rows = both_layouts()
  cut, short = 6, 4
  rows.loss_mask[cut:, :, short:] = False

  def part(at, completion):
    take = {name: x[at] for name, x in vars(rows).items() if x is not None}
    for name in ("targets", "loss_mask", "logp_sampler"):
      take[name] = take[name][:, :, :completion]
    return batch_lib.Rows(**take)

  a, b = updated((rows,)), updated((part(slice(0, cut), 6), part(slice(cut, None), short)))
  assert a[0] == pytest.approx(b[0], rel=1e-4, abs=1e-6)
  assert_equal(a[1], b[1])


# ---- what the step divides by, and how often it is taken


@pytest.mark.parametrize("frozen", TOWERS)
def test_one_batch_equals_its_micro_batches(frozen):
  """Means divide by the count of the whole batch: lengths differ, and a mean of means would not do.

  GSPO's too, with ratios on both sides of its clip.
  """
  config = grpo.GrpoConfig(ratio="sequence", clip_low=0.1, clip_high=0.1, entropy_coef=0.01)
  rows = tiny.batch(rows=16).parts[0]
  noise = np.random.default_rng(0).normal(0, 0.2, rows.targets.shape).astype(np.float32)
  results, scored = [], []
  for micro_rows in (0, 4):
    learner = make(config, micro_rows=micro_rows, frozen=frozen, **FAST)
    batch = batch_lib.LearnerBatch(**images(frozen == ALL), parts=(rows,))
    scored.append(np.asarray(learner.logprobs(batch)[0]))
    old = scored[0] + noise
    moved = dataclasses.replace(batch, parts=(dataclasses.replace(rows, logp_old=old),))
    results.append((learner.update(moved), host(learner.state.opt_state[1].mu)))
  assert 0.05 < results[0][0]["clipped_share"] < 0.95
  np.testing.assert_allclose(scored[1], scored[0], rtol=1e-4, atol=1e-5)
  assert results[0][0] == pytest.approx(results[1][0], rel=1e-4, abs=1e-6)
  assert_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("frozen", [step.TOWER, ALL, rf"{step.TOWER}|q_einsum|final_norm"])
def test_layers_in_a_list_learn_as_the_stack(frozen):
  """Where some of their parameters are frozen too; the state stays stacked."""
  few = dataclasses.replace(tiny.config().text, unroll=2)
  results = []
  for text in (tiny.config().text, few):
    model = dataclasses.replace(tiny.config(), text=text)
    learner = make(grpo.GrpoConfig(kl_coef=0.1), config=model, micro_rows=4, frozen=frozen, **FAST)
    assert multimodal.lists_layers(model, learner.params) == (text is few)
    batch = batch_lib.LearnerBatch(**images(frozen == ALL), parts=tiny.batch(rows=8).parts)
    metrics = [learner.update(batch) for _ in range(2)][-1]
    assert metrics["kl"] > 0
    results.append((metrics, host(learner.state.opt_state[1].mu)))
  assert results[0][0] == pytest.approx(results[1][0], rel=1e-3, abs=1e-6)
  assert_equal(results[0][1], results[1][1])
  assert any(path.startswith("llm/layers/mlp") for path in results[1][1])


def test_scoring_holds_the_logits_of_a_micro_batch_only():
  config, rows = tiny.config(), tiny.batch(rows=16).parts[0]
  sizes = []
  for micro_rows in (0, 4):
    learner = make(grpo.GrpoConfig(updates=2), micro_rows=micro_rows, **FAST)
    batch = batch_lib.LearnerBatch(**images(False), parts=(rows,))
    text = str(learner._programs.score.trace(learner._frozen | learner.state.params, batch).jaxpr)
    shapes = re.findall(rf"f32\[([0-9,]+),{config.text.vocab_size}\]", text)
    sizes.append(max(math.prod(map(int, shape.split(","))) for shape in shapes))
  assert sizes[0] >= 4 * sizes[1]


@pytest.mark.slow
def test_inner_updates_are_updates_with_the_policy_of_the_rollout():
  """With one update nothing is ever clipped; in the second the ratio has left its range."""
  batch, twice, by_hand = tiny.batch(), make(grpo.GrpoConfig(updates=2), **FAST), make(**FAST)
  two = twice.update(batch)
  (old,) = by_hand.logprobs(batch)
  one = by_hand.update(batch)
  assert one["clipped_share"] == 0 and two["clipped_share"] > 0.2
  assert two["sampler_gap"] == one["sampler_gap"]  # of the policy that was sampled from
  # The schedule counts rollouts: both inner updates have the rate of step 0.
  by_hand.state = dataclasses.replace(by_hand.state, step=jnp.int32(0))
  rows = dataclasses.replace(batch.parts[0], logp_old=np.asarray(old))
  by_hand.update(dataclasses.replace(batch, parts=(rows,)))
  assert_equal(host(twice.params), host(by_hand.params), rtol=1e-4, atol=1e-5)
  assert int(twice.state.step) == 2 and twice.compile_count() == 1
  second = step.learning_rate(twice.config.optim, 1)
  assert twice.update(batch)["lr"] == pytest.approx(second)


# ---- dtypes


def test_bf16_computes_with_fp32_masters():
  config = tiny.config().with_dtype("bfloat16")
  learner = make(config=config)
  before = host(learner.params)
  metrics = learner.update(tiny.batch())
  after = host(learner.params)
  assert np.isfinite(metrics["grad_norm"])
  state = jax.tree.leaves((learner.state.params, learner.state.opt_state))
  assert {x.dtype.name for x in state} == {"float32", "int32"}
  # A 3e-7 step is below bf16's resolution for nearly every weight, and yet they move.
  w = "llm/layers/mlp/linear"
  moved = (before[w] != after[w]).mean()
  assert moved > 0.9
  rounded = [np.asarray(x[w]).astype(jnp.bfloat16) for x in (before, after)]
  assert (rounded[0] != rounded[1]).mean() < 0.1


def test_the_samplers_copy_is_rounded_as_the_computation_rounds():
  learner = make(config=tiny.config().with_dtype("bfloat16"))
  copy = tree_lib.flatten(learner.sampling_params())
  masters = tree_lib.flatten(learner.params)
  for path, x in copy.items():
    want = "float32" if path.endswith(("scale", "bias")) else "bfloat16"
    assert x.dtype == want, path
  same = make().sampling_params()
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(same))
  batch = tiny.batch()
  config = learner.config

  def logp(params):
    features = jnp.asarray(batch.features)
    return step.forward_logprobs(config, params, features, batch.parts[:1])[0][0]

  logp = jax.jit(logp)
  np.testing.assert_array_equal(logp(copy), logp(masters))


# ---- mistakes


def test_rows_that_do_not_divide_are_refused():
  learner = make(micro_rows=4)
  with pytest.raises(ValueError, match="not a multiple of .* optim.micro_rows=4"):
    learner.update(tiny.batch(rows=6))


def test_nothing_to_train_is_refused():
  with pytest.raises(ValueError, match="nothing would train"):
    make(frozen=".*")


def test_a_batch_without_what_the_tower_needs_is_refused():
  with pytest.raises(ValueError, match="must have features"):
    make().update(dataclasses.replace(tiny.batch(), **images(True)))
  with pytest.raises(ValueError, match="must have pixels"):
    make(frozen=ALL).update(tiny.batch())


# ---- devices


EIGHT = """
  import json, jax, numpy as np
  from auditdm_jax.core import mesh, tree
  from auditdm_jax.rl import batch, learner, step
  from tests.rl import test_learner as t
  from tests.rl import tiny
  frozen, vlm = {frozen!r}, tiny.auditor()

  def run(devices, rules, optim, axes, rollout):
    kinds = jax.devices()[:devices]
    ln = learner.Learner(
      vlm.config, t.MIXED,
      optim=step.OptimConfig(steps=10, lr=1e-3, frozen=frozen, **optim),
      mesh=mesh.make_mesh(axes, devices=kinds), rules=rules, params=vlm.params,
      rollout_mesh=mesh.make_mesh(rollout, devices=kinds) if rollout else None)
    metrics = []
    for seed in range(2):
      parts, _ = zip(*(t.both_layouts(prompts=n, seed=seed) for n in (16, 8)))
      metrics.append(ln.update(batch.LearnerBatch(**t.images(ln.trains_tower, 8), parts=parts)))
    flat, copy = tree.flatten(ln.params), tree.flatten(ln.sampling_params())
    split = lambda flat: sum(not x.sharding.is_fully_replicated for x in flat.values())
    return {{
      "metrics": metrics,
      "params": {{p: float(np.abs(np.asarray(x)).sum()) for p, x in flat.items()}},
      "split": [split(flat), split(copy)],
      "same": all((np.asarray(flat[p]) == np.asarray(copy[p])).all() for p in flat),
    }}

  rules = [("input_embedding", (None, "data")), ("mlp", ()), (".*", ())]
  print(json.dumps([
    run(1, [(".*", ())], {{}}, {{"data": 1}}, None),
    run(8, {{"rules": rules, "models": ()}}[{rules!r}], {optim}, {mesh}, {rollout}),
  ]))
"""


# (rules, mesh of training, mesh of the rollout, of the optimiser)
SPLITS = [
  ("rules", {"data": 8}, {"fsdp": 4, "tensor": 2}, {"micro_rows": 8}),
  ("models", {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"micro_rows": 8}),
  # Both parts at once; what is summed over the tensor axis is kept.
  ("models", {"fsdp": 4, "tensor": 2}, None, {"remat": True}),
]


@pytest.mark.parametrize(
  ("frozen", "split"),
  [
    (step.TOWER, SPLITS[2]),
    *(
      pytest.param(frozen, split, marks=pytest.mark.slow)
      for frozen, split in [
        (step.TOWER, SPLITS[0]),
        (step.TOWER, SPLITS[1]),
        *((ALL, split) for split in SPLITS),
      ]
    ),
  ],
)
def test_one_device_equals_eight(run_python, frozen, split):
  """Shared rows, all at once on one device; on eight split in several ways, as are the params."""
  rules, train, rollout, optim = split
  source = EIGHT.format(frozen=frozen, rules=rules, mesh=train, rollout=rollout, optim=optim)
  one, eight = json.loads(run_python(source, devices=8, timeout_s=300))
  assert eight["same"] and eight["split"][0] >= 1
  assert eight["split"][1] >= 1 or rollout is None
  for a, b in zip(one["metrics"], eight["metrics"]):
    for name in a:
      assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-5), name
  for path in one["params"]:
    assert one["params"][path] == pytest.approx(eight["params"][path], rel=1e-4), path


STEP = """
  import dataclasses, jax, json
  from auditdm_jax.core import mesh as mesh_lib, tree
  from auditdm_jax.models import gemma, multimodal
  from auditdm_jax.plan import traffic, work
  from auditdm_jax.rl import batch, programs, step
  from tests.rl import test_learner as t
  from tests.rl import tiny

  text = gemma.GemmaConfig(
    vocab_size=64, width=64, depth=2, mlp_dim=1024, num_heads=4, num_kv_heads=2, head_dim=16)
  model = dataclasses.replace(tiny.config(), kind="gemma3", text=text)
  shapes = jax.eval_shape(lambda key: multimodal.init(model, key), jax.random.key(0))
  rows, _ = t.both_layouts(prompts=8)

  def traced(axes, parts, **optim):
    mesh = mesh_lib.make_mesh(axes)
    config = step.StepConfig(model, t.MIXED, step.OptimConfig(**optim), ())
    made = programs.Programs(config, mesh=mesh, rules=(), params=tree.flatten(shapes))
    given = batch.LearnerBatch(**t.images(False, 8), parts=parts)
    given = mesh_lib.placed(given, made.batch_shardings(given))
    lr = jax.ShapeDtypeStruct((), "float32", sharding=mesh_lib.replicated(mesh))
    _, frozen, _ = made.abstract_params()
    with mesh_lib.use(mesh):
      return made.step.trace(made.abstract_state(), given, frozen, None, lr)
"""
ONCE = """
  def sent(parts):
    with mesh_lib.use(mesh_lib.make_mesh({"fsdp": 8})):
      compiled = traced({"fsdp": 8}, parts).lower().compile()
    return traffic.read(compiled.as_text()).wire

  weights = sum(x.size for x in jax.tree.leaves(shapes["llm"]["layers"])) * 4
  print(json.dumps([sent((rows,)) / weights, sent((rows, rows)) / weights]))
"""
AGAIN = """
  def flops(axes):
    return work.flops(traced(axes, (rows,), remat=True).jaxpr.jaxpr)

  tokens = rows.prompt.size + rows.targets[:, :, :-1].size
  sums = 2 * tokens * text.width * (text.num_heads * text.head_dim + text.mlp_dim) * text.depth
  print(json.dumps([flops({"fsdp": 8}) - flops({"fsdp": 4, "tensor": 2}), sums]))
"""


def test_parts_of_a_batch_gather_each_layer_once(run_python):
  """Bytes over the links of an update, in weights of the layers.

  A further part would gather 7/8 of them, and XLA for CPUs sums its gradients for 14/8.
  """
  one, two = json.loads(run_python(STEP + ONCE, devices=8, timeout_s=300).splitlines()[-1])
  assert one > 2 and two - one < 2.2


def test_what_split_layers_sum_is_not_computed_again(run_python):
  """With remat, the last products of attention and of MLP, whose sums over chips would be sent."""
  saved, sums = json.loads(run_python(STEP + AGAIN, devices=8, timeout_s=300).splitlines()[-1])
  assert saved == sums


def test_devices_that_share_the_rows_decide_how_many_completions_share_one(monkeypatch):
  learner = make(grpo.GrpoConfig(group_size=4))
  assert learner.per_row(1) == 4
  monkeypatch.setattr(mesh_lib, "row_shards", lambda mesh: 8)
  assert [learner.per_row(n) for n in (8, 4, 2, 1)] == [4, 2, 1, 1]
