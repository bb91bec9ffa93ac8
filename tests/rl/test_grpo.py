# SPDX-License-Identifier: Apache-2.0
"""The equations against a float64 re-implementation, and known bugs of other codebases by name."""

import dataclasses

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


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_policy_loss_equals_the_equations(x64, dual_clip):
  case = random_case(2)
  loss, clipped = grpo.policy_loss(
    jnp.array(case["logp"]),
    jnp.array(case["old"]),
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


def test_gradient_of_the_first_update_is_minus_the_advantage(x64):
  case = random_case(3)

  def total(logp):
    loss, _ = grpo.policy_loss(
      logp,
      jax.lax.stop_gradient(logp),
      advantages=jnp.array(case["adv"]),
      clip_low=0.2,
      clip_high=0.2,
    )
    return loss.sum()

  grad = jax.grad(total)(jnp.array(case["logp"]))
  np.testing.assert_allclose(grad, -np.broadcast_to(case["adv"][:, None], grad.shape), atol=1e-12)


def test_tis_is_capped_and_has_no_gradient(x64):
  case = random_case(4)
  old, sampler = jnp.array(case["logp"]), jnp.array(case["sampler"])
  want = np.minimum(np.exp(case["logp"] - case["sampler"]), 2.0)
  np.testing.assert_allclose(grpo.tis_weight(old, sampler, cap=2.0), want, rtol=1e-9)
  assert not jax.grad(lambda x: grpo.tis_weight(x, sampler, cap=2.0).sum())(old).any()


def test_exp_of_an_absurd_ratio_is_finite_and_so_is_its_gradient():
  def total(logp):
    old = jnp.full_like(logp, -500.0)
    loss, _ = grpo.policy_loss(
      logp, old, advantages=-jnp.ones(1), clip_low=0.2, clip_high=0.2, dual_clip=0.0
    )
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


def test_nan_at_masked_positions_reaches_neither_loss_nor_gradient():
  cfg = grpo.GrpoConfig(tis_cap=2.0, kl_coef=0.1, kl="k3", entropy_coef=0.01)
  mask = jnp.array([[True, True, False], [False, False, False]])

  def total(logp):
    (value, count), _ = grpo.loss_and_metrics(
      cfg,
      logp,
      entropy=jnp.where(mask, 1.0, jnp.nan),
      logp_sampler=jnp.where(mask, -1.0, jnp.nan),
      logp_ref=jnp.where(mask, -1.5, -jnp.inf),
      advantages=jnp.ones(2),
      mask=mask,
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
  }

  def value_and_grad(cfg, ref):
    def total(logp):
      (value, count), _ = grpo.loss_and_metrics(cfg, logp, logp_ref=ref, **args)
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
  ):
    with pytest.raises(ValueError, match=f"grpo.{next(iter(bad))}"):
      grpo.GrpoConfig(**bad)
