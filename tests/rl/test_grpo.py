# SPDX-License-Identifier: Apache-2.0
"""The equations against a float64 re-implementation, and known bugs of other codebases by name.

TRL's and verl's losses are written here once more, from their equations and in numpy, and the
gradients are central differences of those. What is deliberately not theirs has a test of its own.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.rl import grpo

NAN = float("nan")


def slow_advantages(rewards, std, eps, weights=None):
  """Loops over groups and members, from the equations."""
  rewards = np.asarray(rewards, np.float64)
  out = np.zeros_like(rewards)
  pool = [r for row in rewards for r in row if not np.isnan(r)]
  batch = np.std(pool, ddof=1) if len(pool) > 1 and max(pool) > min(pool) else 1.0
  for p, row in enumerate(rewards):
    members = [g for g, r in enumerate(row) if not np.isnan(r)]
    if len(members) < 2:
      continue
    raw = np.array([row[g] for g in members])
    w = np.ones(len(members)) if weights is None else np.asarray(weights)[p, members]
    u = raw * w
    if u.max() == u.min():
      continue
    group = np.std(raw, ddof=1) if raw.max() > raw.min() else batch
    scale = {"group": group + eps, "batch": batch + eps, "none": 1.0}[std]
    for g, value in zip(members, u):
      out[p, g] = (value - u.mean()) / scale
  return out


def random_case(seed, n=6, c=5):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, c + 1, n)
  lengths[-1] = 0
  return {
    "logp": rng.normal(-2, 1, (n, c)),
    "old": rng.normal(-2, 1, (n, c)),
    "sampler": rng.normal(-2, 1, (n, c)),
    "ref": rng.normal(-2, 1, (n, c)),
    "entropy": rng.uniform(0, 3, (n, c)),
    "adv": rng.normal(0, 1, n),
    "mask": np.arange(c)[None] < lengths[:, None],
  }


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize("std", grpo.STDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_advantages_equal_the_equations(std, weighted):
  rng = np.random.default_rng(0)
  for _ in range(20):
    rewards = (rng.random((7, 5)) < 0.4).astype(float)
    rewards[rng.random((7, 5)) < 0.15] = NAN
    rewards[0], rewards[1], rewards[2, 1:] = 1.0, 0.0, NAN
    weights = rng.uniform(0.1, 3, (7, 5)) if weighted else None
    got = grpo.advantages(rewards, std=std, eps=1e-4, weights=weights)
    np.testing.assert_allclose(
      got, slow_advantages(rewards, std, 1e-4, weights), rtol=1e-6, atol=1e-6
    )


def test_one_success_in_eight():
  got = grpo.advantages([[1, 0, 0, 0, 0, 0, 0, 0]], eps=0.0)
  np.testing.assert_allclose(got[0, :2], [2.4749, -0.3536], atol=1e-3)


def test_a_nan_reward_leaves_the_other_advantages_of_its_group_unchanged():
  with_nan = grpo.advantages([[1, 0, NAN, 0, 1]])
  without = grpo.advantages([[1, 0, 0, 1]])
  np.testing.assert_array_equal(with_nan[0, [0, 1, 3, 4]], without[0])
  assert with_nan[0, 2] == 0


def test_one_valid_member_gives_zero():
  np.testing.assert_array_equal(grpo.advantages([[NAN, 1.0, NAN], [NAN, NAN, NAN]]), 0)


def test_equal_rewards_give_exact_zero_though_their_std_does_not():
  np.testing.assert_array_equal(grpo.advantages([[0.1] * 7, [1 / 3] * 7], eps=0.0), 0)


def test_timeouts_count_as_invalid_not_as_zero():
  as_invalid = grpo.advantages([[1.0, 0.0, NAN, NAN]])
  as_zero = grpo.advantages([[1.0, 0.0, 0.0, 0.0]])
  assert as_invalid[0, 0] != as_zero[0, 0]


def test_a_novelty_weight_that_all_hits_share_is_not_cancelled():
  rewards = np.array([[1.0, 0, 1, 0]])
  plain = grpo.advantages(rewards)
  third = grpo.advantages(rewards, weights=np.full((1, 4), 1 / 3))
  np.testing.assert_allclose(third, plain / 3, rtol=1e-6)


def test_weights_of_one_are_plain_grpo_bit_for_bit():
  rewards = (np.random.default_rng(1).random((9, 8)) < 0.3).astype(float)
  np.testing.assert_array_equal(
    grpo.advantages(rewards), grpo.advantages(rewards, weights=np.ones((9, 8)))
  )


def test_group_shares():
  shares = grpo.group_shares([[0, 0], [1, 1], [1, 0], [NAN, NAN], [NAN, 1]])
  assert shares["frac_all0"] == (1, 4)
  assert shares["frac_all1"] == (2, 4)
  assert shares["frac_live"] == (1, 4)
  assert shares["frac_invalid"] == (3, 10)


# ---- the whole loss, as TRL and as verl have it


def trl_loss(x, case, *, level, low, high, delta, beta, loss_type):
  """GRPOTrainer's: importance_sampling_level, epsilon, epsilon_high, delta, beta, loss_type."""
  mask, adv = case["mask"], case["adv"][:, None]
  length = np.maximum(mask.sum(1), 1)
  log_weight = np.where(mask, x - case["old"], 0.0)
  if level == "sequence":
    log_weight = (log_weight.sum(1) / length)[:, None]
  first = np.exp(log_weight)
  second = np.clip(first, 1 - low, 1 + high)
  if delta:
    first = np.minimum(first, delta)
  token = -np.minimum(first * adv, second * adv) * np.ones_like(x)
  if beta:
    d = case["ref"] - x
    kl = np.exp(d) - d - 1
    # Off policy, the estimator times the ratio ("use_bias_correction_kl").
    token = token + beta * kl * np.exp(x - case["old"])
  token = np.where(mask, token, 0.0)
  rows = (mask.sum(1) > 0).sum()
  if loss_type == "grpo":
    return (token.sum(1) / length).sum() / rows
  if loss_type == "dapo":
    return token.sum() / mask.sum()
  return token.sum() / (rows * mask.shape[1])  # dr_grpo


def verl_loss(x, case, *, low, high, ratio_c, kl_coef, entropy_coeff, tis_cap, loss_agg_mode):
  """The actor's loss: dual clip by max and min of three, KL "low_var" or "mse", entropy, TIS."""
  mask, adv = case["mask"], case["adv"][:, None]
  negative_kl = np.clip(x - case["old"], -20, 20)
  ratio = np.exp(negative_kl)
  first = np.maximum(-adv * ratio, -adv * np.clip(ratio, 1 - low, 1 + high))
  token = np.where(adv < 0, np.minimum(-adv * ratio_c, first), first)
  token = token * np.minimum(np.exp(case["old"] - case["sampler"]), tis_cap)
  token = token - entropy_coeff * case["entropy"] + kl_coef * 0.5 * (x - case["ref"]) ** 2
  token = np.where(mask, token, 0.0)
  length, rows = np.maximum(mask.sum(1), 1), (mask.sum(1) > 0).sum()
  return {
    "token-mean": token.sum() / mask.sum(),
    "seq-mean-token-mean": (token.sum(1) / length).sum() / rows,
    "seq-mean-token-sum-norm": token.sum() / rows / mask.shape[1],
  }[loss_agg_mode]


def ours(config, case):
  """Loss and its gradient in log-probs, in float64."""

  def total(x):
    (value, count), _ = grpo.loss_and_metrics(
      config,
      x,
      entropy=jnp.array(case["entropy"]),
      logp_sampler=jnp.array(case["sampler"]),
      logp_old=jnp.array(case["old"]),
      logp_ref=jnp.array(case["ref"]) if config.kl_coef else None,
      advantages=jnp.array(case["adv"]),
      mask=jnp.array(case["mask"]),
      max_length=case["mask"].shape[1],
    )
    return value / count

  return jax.value_and_grad(total)(jnp.array(case["logp"]))


def differences(f, x, h=1e-6):
  grad = np.zeros_like(x)
  for at in np.ndindex(*x.shape):
    step = np.zeros_like(x)
    step[at] = h
    grad[at] = (f(x + step) - f(x - step)) / (2 * h)
  return grad


def rewarded_case(seed):
  """Advantages of groups with a NaN, of one valid member, of equal rewards, and of a live one."""
  case = random_case(seed, n=16, c=5)
  rewards = np.array([[1, 0, NAN, 0], [NAN, 1, NAN, NAN], [1, 1, 1, 1], [0.2, 0.9, 0.4, 0.4]])
  case["adv"] = grpo.advantages(rewards, eps=1e-4).reshape(-1).astype(np.float64)
  np.testing.assert_allclose(
    case["adv"], slow_advantages(rewards, "group", 1e-4).ravel(), atol=1e-6
  )
  # Ratios on both sides of every bound, and surely one beyond those of the two clips.
  case["old"] = case["logp"] + np.random.default_rng(seed).normal(0, 1.2, case["logp"].shape)
  adv = case["adv"][:, None]
  for beyond, log_ratio in ((adv < 0, np.log(4.0)), (adv > 0, np.log(1.5))):
    at = tuple(np.argwhere(case["mask"] & beyond)[0])
    case["old"][at] = case["logp"][at] - log_ratio
  return case


AGGREGATION = {"grpo": "sequence", "dapo": "token", "dr_grpo": "constant"}


@pytest.mark.parametrize("level", grpo.RATIOS)
@pytest.mark.parametrize("loss_type", AGGREGATION)
@pytest.mark.parametrize("delta", [0.0, 3.0])
def test_loss_and_gradient_equal_trls(x64, level, loss_type, delta):
  # TRL multiplies the KL by the ratio of the clip, ours by that of the tokens: its gradient's.
  beta = 0.04 if level == "token" else 0.0
  for seed in range(3):
    case = rewarded_case(seed)
    low, high = (0.2, 0.28) if level == "token" else (0.05, 0.08)
    config = grpo.GrpoConfig(
      ratio=level,
      clip_low=low,
      clip_high=high,
      dual_clip=delta,
      kl="k3",
      kl_coef=beta,
      aggregation=AGGREGATION[loss_type],
    )
    spec = {"level": level, "low": low, "high": high, "delta": delta, "beta": beta}
    theirs = functools.partial(trl_loss, case=case, loss_type=loss_type, **spec)
    value, grad = ours(config, case)
    assert abs(value - theirs(case["logp"])) < 1e-6
    np.testing.assert_allclose(grad, differences(theirs, case["logp"]), atol=1e-6)


MODES = {
  "token-mean": "token",
  "seq-mean-token-mean": "sequence",
  "seq-mean-token-sum-norm": "constant",
}


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_equal_verls(x64, mode):
  for seed in range(3):
    case = rewarded_case(seed)
    config = grpo.GrpoConfig(
      clip_low=0.2,
      clip_high=0.28,
      dual_clip=3.0,
      kl="k2",
      kl_coef=0.1,
      entropy_coef=0.01,
      tis_cap=2.0,
      aggregation=MODES[mode],
    )
    spec = {"low": 0.2, "high": 0.28, "ratio_c": 3.0, "kl_coef": 0.1, "entropy_coeff": 0.01}
    theirs = functools.partial(verl_loss, case=case, tis_cap=2.0, loss_agg_mode=mode, **spec)
    value, grad = ours(config, case)
    assert abs(value - theirs(case["logp"])) < 1e-6
    np.testing.assert_allclose(grad, differences(theirs, case["logp"]), atol=1e-6)


def test_advantages_equal_trls_and_verls():
  """TRL adds 1e-4 to the std, verl 1e-6; both take ddof 1, and no invalid member knows the rest."""
  rewards = np.random.default_rng(0).random((5, 8))
  mean, std = rewards.mean(1, keepdims=True), rewards.std(1, ddof=1, keepdims=True)
  for eps in (1e-4, 1e-6):
    got = grpo.advantages(rewards, eps=eps)
    np.testing.assert_allclose(got, (rewards - mean) / (std + eps), rtol=1e-6)
  np.testing.assert_allclose(grpo.advantages(rewards, std="none"), rewards - mean, atol=1e-7)
  batch = grpo.advantages(rewards, std="batch", eps=1e-4)
  np.testing.assert_allclose(batch, (rewards - mean) / (rewards.std(ddof=1) + 1e-4), rtol=1e-6)


def test_gspo_clips_a_completion_as_a_whole(x64):
  """One wild token of four: the token ratio loses that one, the sequence ratio all or none."""
  old = np.full((1, 4), -1.0)
  case = random_case(0, n=1, c=4) | {"old": old, "mask": np.ones((1, 4), bool), "adv": np.ones(1)}
  case["logp"] = old + np.array([[1.0, 0, 0, 0]])  # the mean of the log ratios is .25
  gone = lambda **kw: ours(grpo.GrpoConfig(**kw), case)[1][0] == 0  # noqa: E731
  np.testing.assert_array_equal(gone(), [True, False, False, False])
  np.testing.assert_array_equal(gone(ratio="sequence"), [True] * 4)
  np.testing.assert_array_equal(gone(ratio="sequence", clip_high=0.3), [False] * 4)
  # s A / |o| at every token, s = exp(.25)
  grad = ours(grpo.GrpoConfig(ratio="sequence", clip_high=0.3), case)[1]
  np.testing.assert_allclose(grad, np.full((1, 4), -np.exp(0.25) / 4), rtol=1e-12)


def test_at_ratio_one_gspo_and_every_clip_are_plain_grpo(x64):
  case = random_case(3)
  case["old"] = case["logp"]
  plain = ours(grpo.GrpoConfig(), case)
  for change in ({"ratio": "sequence"}, {"clip_high": 0.28}, {"dual_clip": 3.0}):
    value, grad = ours(grpo.GrpoConfig(**change), case)
    np.testing.assert_allclose(grad, plain[1], atol=1e-15)
    assert abs(value - plain[0]) < 1e-15
  live = case["mask"].any(1).sum()
  want = -case["adv"][:, None] * case["mask"] / np.maximum(case["mask"].sum(1, keepdims=True), 1)
  np.testing.assert_allclose(plain[1], want / live, atol=1e-12)


# ---- piece by piece


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_policy_loss_equals_the_equations(x64, dual_clip):
  case = random_case(2)
  loss, clipped = grpo.policy_loss(
    jnp.array(case["logp"] - case["old"]),
    advantages=jnp.array(case["adv"]),
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=dual_clip,
  )
  for n, a in enumerate(case["adv"]):
    for c in range(loss.shape[1]):
      rho = np.exp(case["logp"][n, c] - case["old"][n, c])
      want = -min(rho * a, min(max(rho, 0.8), 1.28) * a)
      if dual_clip and a < 0:
        want = min(want, -dual_clip * a)
      assert abs(float(loss[n, c]) - want) < 1e-6
      flat = (a > 0 and rho > 1.28) or (a < 0 and rho < 0.8)
      flat |= bool(dual_clip) and a < 0 and rho > dual_clip
      assert bool(clipped[n, c]) == flat


def test_tis_is_capped_and_has_no_gradient(x64):
  case = random_case(4)
  old, sampler = jnp.array(case["logp"]), jnp.array(case["sampler"])
  want = np.minimum(np.exp(case["logp"] - case["sampler"]), 2.0)
  np.testing.assert_allclose(grpo.tis_weight(old, sampler, cap=2.0), want, rtol=1e-9)
  assert not jax.grad(lambda x: grpo.tis_weight(x, sampler, cap=2.0).sum())(old).any()


def test_exp_of_an_absurd_ratio_is_finite_and_so_is_its_gradient():
  def total(logp):
    loss, _ = grpo.policy_loss(logp + 500.0, advantages=-jnp.ones(1), clip_low=0.2, clip_high=0.2)
    return loss.sum()

  value, grad = jax.value_and_grad(total)(jnp.zeros((1, 2)))
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_kl_values(x64):
  case = random_case(5)
  logp, ref = jnp.array(case["logp"]), jnp.array(case["ref"])
  d = case["ref"] - case["logp"]
  np.testing.assert_allclose(grpo.kl_k3(logp, ref), np.exp(d) - 1 - d, rtol=1e-9)
  np.testing.assert_allclose(
    grpo.kl_penalty(logp, ref, logp_old=logp, kind="k2"), d * d / 2, rtol=1e-9
  )


def test_kl_gradients_are_those_of_the_true_kl(x64):
  """Exactly, over a small categorical: E_pi[d penalty / d theta] = d KL(pi || ref) / d theta."""
  rng = np.random.default_rng(6)
  theta, ref = jnp.array(rng.normal(size=9)), jax.nn.log_softmax(jnp.array(rng.normal(size=9)))

  def kl(x):
    logp = jax.nn.log_softmax(x)
    return (jnp.exp(logp) * (logp - ref)).sum()

  def sampled(x, kind):
    logp = jax.nn.log_softmax(x)
    old = jax.lax.stop_gradient(logp)
    return (jnp.exp(old) * grpo.kl_penalty(logp, ref, logp_old=old, kind=kind)).sum()

  want = jax.grad(kl)(theta)
  for kind in grpo.KLS:
    np.testing.assert_allclose(jax.grad(sampled)(theta, kind), want, atol=1e-9)


def test_k1_is_refused_as_a_loss():
  with pytest.raises(ValueError, match="k1"):
    grpo.GrpoConfig(kl="k1")
  with pytest.raises(ValueError, match="k1"):
    grpo.kl_penalty(jnp.zeros((1, 1)), jnp.zeros((1, 1)), logp_old=jnp.zeros((1, 1)), kind="k1")


@pytest.mark.parametrize("how", grpo.AGGREGATIONS)
def test_aggregate_equals_the_equations(x64, how):
  case = random_case(7)
  loss, mask = case["logp"], case["mask"]
  total, count = grpo.aggregate(jnp.array(loss), jnp.array(mask), how=how, max_length=5)
  rows = [row[m] for row, m in zip(loss, mask) if m.any()]
  want = {
    "token": np.concatenate(rows).mean(),
    "sequence": np.mean([row.mean() for row in rows]),
    "constant": sum(row.sum() for row in rows) / (len(rows) * 5),
  }[how]
  assert abs(float(total / count) - want) < 1e-9


@pytest.mark.parametrize("how", grpo.AGGREGATIONS)
def test_means_do_not_depend_on_the_micro_batches(x64, how):
  case = random_case(8, n=12)
  loss, mask = jnp.array(case["logp"]), jnp.array(case["mask"])
  whole = grpo.aggregate(loss, mask, how=how, max_length=5)
  parts = [
    grpo.aggregate(loss[i : i + 3], mask[i : i + 3], how=how, max_length=5) for i in range(0, 12, 3)
  ]
  np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-12)


def test_percentile_of_the_gap_adds_up_over_micro_batches():
  rng = np.random.default_rng(9)
  gap, mask = 10 ** rng.uniform(-6, -1, (40, 25)), rng.random((40, 25)) < 0.8

  def metrics(rows):
    _, m = grpo.loss_and_metrics(
      grpo.GrpoConfig(),
      jnp.array(-gap[rows], jnp.float32),
      entropy=jnp.zeros(gap[rows].shape),
      logp_sampler=jnp.zeros(gap[rows].shape),
      logp_old=None,
      logp_ref=None,
      advantages=jnp.zeros(len(gap[rows])),
      mask=jnp.array(mask[rows]),
      max_length=25,
    )
    return m

  whole = grpo.finish(metrics(slice(None)))
  halves = grpo.finish(grpo.combine(metrics(slice(0, 20)), metrics(slice(20, 40))))
  want = np.quantile(gap[mask], 0.99)
  for got in (whole, halves):
    assert want <= got["sampler_gap_p99"] * 1.001 and got["sampler_gap_p99"] <= want * 10**0.11
    assert got["sampler_gap"] == pytest.approx(gap[mask].mean(), rel=1e-5)
    assert got["sampler_gap_max"] == pytest.approx(gap[mask].max(), rel=1e-5)


def test_nan_at_masked_positions_reaches_neither_loss_nor_gradient():
  config = grpo.GrpoConfig(tis_cap=2.0, kl_coef=0.1, kl="k3", entropy_coef=0.01)
  mask = jnp.array([[True, True, False], [False, False, False]])

  def total(logp):
    (value, count), _ = grpo.loss_and_metrics(
      config,
      logp,
      entropy=jnp.where(mask, 1.0, jnp.nan),
      logp_sampler=jnp.where(mask, -1.0, jnp.nan),
      logp_old=jnp.where(mask, -1.1, jnp.nan),
      logp_ref=jnp.where(mask, -1.5, -jnp.inf),
      advantages=jnp.ones(2),
      mask=mask,
      max_length=3,
    )
    return value / count

  logp = jnp.where(mask, -1.0, jnp.nan)
  value, grad = jax.value_and_grad(total)(logp)
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_switches_off_are_plain_grpo_bit_for_bit():
  case = random_case(9)
  args = {
    "entropy": jnp.ones_like(jnp.array(case["logp"])),
    "logp_sampler": jnp.array(case["logp"]),
    "advantages": jnp.array(case["adv"]),
    "mask": jnp.array(case["mask"]),
    "logp_old": None,
    "max_length": 5,
  }

  def value_and_grad(config, ref):
    def total(logp):
      (value, count), _ = grpo.loss_and_metrics(config, logp, logp_ref=ref, **args)
      return value / count

    return jax.value_and_grad(total)(jnp.array(case["logp"]))

  plain = value_and_grad(grpo.GrpoConfig(), None)
  # TIS with a sampler that agrees exactly, and a KL of weight 0, change nothing.
  switched = value_and_grad(
    dataclasses.replace(grpo.GrpoConfig(), tis_cap=2.0, dual_clip=3.0), jnp.array(case["ref"])
  )
  np.testing.assert_array_equal(plain[0], switched[0])
  np.testing.assert_array_equal(plain[1], switched[1])


def test_a_config_that_cannot_be_meant_is_refused():
  for bad in (
    {"std": "mean"},
    {"aggregation": "sum"},
    {"group_size": 1},
    {"dual_clip": 0.5},
    {"temperature": 0.0},
    {"ratio": "group"},
    {"clip_low": 1.0},
    {"updates": 0},
  ):
    with pytest.raises(ValueError, match=f"grpo.{next(iter(bad))}"):
      grpo.GrpoConfig(**bad)
