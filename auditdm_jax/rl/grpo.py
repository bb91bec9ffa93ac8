# SPDX-License-Identifier: Apache-2.0
"""The equations of GRPO as pure functions: arrays in, arrays out.

In the order of use:
  1. `advantages`    host, numpy: rewards [B,G] -> A [B,G]; NaN rewards are invalid samples.
  2. `log_ratio`     of policy and rollout policy, per token or per sequence (GSPO).
  3. `policy_loss`   -min(rho A, clip(rho) A) per token, with dual clip.
  4. `tis_weight`    corrects for the sampler's numerics being not quite the learner's.
  5. `kl_penalty`    towards the initial auditor, k2 or ratio x k3.
  6. `aggregate`     (sum, count) over the tokens; divided once, by the count of the global batch.

Axes: B prompts, G samples of each, R completions of all, C completion positions.

Sources: GRPO (Shao et al. 2024, arXiv:2402.03300), Dr.GRPO (Liu et al. 2025, arXiv:2503.20783),
DAPO (Yu et al. 2025, arXiv:2503.14476), GSPO (Zheng et al. 2025, arXiv:2507.18071), dual clip (Ye
et al. 2020, arXiv:1912.09729), k1/k2/k3 (Schulman 2020, "Approximating KL").
"""

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import masked
from auditdm_jax.core.config import UserError, check

# exp(+-20) is far outside every clip range and far inside fp32: clip the input, then exponentiate.
_MAX_LOG_RATIO = 20.0

STDS = ("group", "batch", "none")
AGGREGATIONS = ("token", "sequence", "constant")
RATIOS = ("token", "sequence")
KLS = ("k2", "k3")

# Bins of the histogram that gives percentiles of a gap: ten per decade from 1e-8 to 10.
_BINS, _LOWEST, _PER_DECADE = 90, 1e-8, 10


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
  """What makes the loss. The defaults are plain GRPO, one update per rollout.

  Attributes:
    group_size: G, completions per prompt.
    std: "group" divides by the group's std, "batch" by that of all valid rewards, "none" by 1.
    std_eps: added to the std.
    ratio: "token", or "sequence" for GSPO's geometric mean over the completion, whose clip range is
      far smaller (3e-4 and 4e-4 in the paper).
    clip_low: lower clip range of the ratio.
    clip_high: upper clip range of the ratio (DAPO's clip-higher when above clip_low).
    dual_clip: bound c > 1 of the loss for A < 0; 0 = off.
    tis_cap: cap C of the sampler/learner correction; 0 = off.
    kl: estimator that gives the gradient, "k2" or "k3" (times the ratio).
    kl_coef: weight of the KL to the initial auditor; 0 = off, and no reference forward.
    entropy_coef: weight of the entropy bonus; 0 = off.
    aggregation: "token", "sequence" or "constant".
    temperature: of the sampler and of the learner's log-probs alike.
    updates: per rollout. In the first one the ratio is 1, so with one nothing is ever clipped.
  """

  group_size: int = 8
  std: str = "group"
  std_eps: float = 1e-4
  ratio: str = "token"
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 0.0
  tis_cap: float = 0.0
  kl: str = "k2"
  kl_coef: float = 0.0
  entropy_coef: float = 0.0
  aggregation: str = "sequence"
  temperature: float = 1.0
  updates: int = 1

  def __post_init__(self):
    _one_of("std", self.std, STDS)
    _one_of("ratio", self.ratio, RATIOS)
    _one_of("aggregation", self.aggregation, AGGREGATIONS)
    if self.kl == "k1":
      raise UserError(
        "grpo.kl='k1': its expected gradient is zero, so it constrains nothing. Use 'k2' or 'k3'."
      )
    _one_of("kl", self.kl, KLS)
    if self.group_size < 2:
      raise UserError(f"grpo.group_size={self.group_size}: a group needs at least 2 samples")
    check(vars(self), "grpo", "std_eps", "dual_clip", "tis_cap", "kl_coef", "entropy_coef", least=0)
    if not 0 <= self.clip_low < 1 or not 0 <= self.clip_high < math.inf:
      raise UserError(
        f"grpo.clip_low={self.clip_low}, clip_high={self.clip_high}: the ratio is kept in "
        "[1 - clip_low, 1 + clip_high], so 0 <= clip_low < 1 and clip_high >= 0"
      )
    if self.updates < 1:
      raise UserError(f"grpo.updates={self.updates}: a rollout needs at least 1 update")
    if self.dual_clip and self.dual_clip <= 1.0:
      raise UserError(f"grpo.dual_clip={self.dual_clip}: must be above 1, or 0 for off")
    if not 0 < self.temperature < math.inf:
      raise UserError(f"grpo.temperature={self.temperature}: training samples, so it must be > 0")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise UserError(f"grpo.{name}={value!r}: must be one of {', '.join(allowed)}")


def advantages(
  rewards: np.ndarray,
  *,
  std: str = "group",
  eps: float = 1e-4,
  weights: np.ndarray | None = None,
) -> np.ndarray:
  """Group-relative advantages, on the host.

  A = (u - mean u) / (s + eps) with u = weights * rewards. The scale s is the std (ddof 1) of the
  rewards WITHOUT the weights: a weight that all hits of a group share would otherwise cancel. Where
  a weighted group has equal rewards but unequal weights, s is that of the batch.

  Args:
    rewards: f[B,G]; NaN marks an invalid sample: no part of any mean, advantage 0.
    std: see `GrpoConfig.std`.
    eps: added to s.
    weights: f[B,G] or None, for instance the novelty of each find.

  Returns:
    f32[B,G]. All 0 in groups with fewer than 2 valid members or with equal (weighted) rewards.
  """
  _one_of("std", std, STDS)
  rewards = np.asarray(rewards, np.float64)
  valid = np.isfinite(rewards)
  raw = np.where(valid, rewards, 0.0)
  weighted = raw if weights is None else np.where(valid, raw * np.asarray(weights, np.float64), 0.0)
  scale = _scale(raw, valid, std)
  mean = masked.mean(weighted, valid, axis=1)[:, None]
  # Liveness is tested on the rewards: a std of equal floats need not be exactly 0.
  live = (valid.sum(axis=1, keepdims=True) >= 2) & _spread(weighted, valid)
  if std == "none":
    eps = 0.0
  result = (weighted - mean) / (scale + eps)
  return np.where(valid & live, result, 0.0).astype(np.float32)


def _spread(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
  """bool[B,1]: whether the valid members of a group differ."""
  high = np.where(valid, x, -np.inf).max(axis=1, keepdims=True)
  low = np.where(valid, x, np.inf).min(axis=1, keepdims=True)
  return high > low


def _scale(raw: np.ndarray, valid: np.ndarray, std: str) -> np.ndarray:
  """f[B,1] divisor of each group."""
  if std == "none":
    return np.ones((raw.shape[0], 1))
  flat = raw[valid]
  batch = flat.std(ddof=1) if flat.size >= 2 and flat.max() > flat.min() else 1.0
  if std == "batch":
    return np.full((raw.shape[0], 1), batch)
  group = masked.std(raw, valid, ddof=1, axis=1)[:, None]
  return np.where(_spread(raw, valid), group, batch)


def group_shares(rewards: np.ndarray) -> dict[str, tuple[float, float]]:
  """(sum, count) of groups that are all 0, all 1 (equal and above 0), live, and of invalid samples.

  Args:
    rewards: f[B,G] with NaN for invalid.
  """
  rewards = np.asarray(rewards, np.float64)
  valid = np.isfinite(rewards)
  raw = np.where(valid, rewards, 0.0)
  some = valid.any(axis=1)
  live = some & _spread(raw, valid)[:, 0]
  zero = some & ~live & (raw.max(axis=1) <= 0)
  full = some & ~live & ~zero
  groups = float(max(some.sum(), 1))
  return {
    "frac_all0": (float(zero.sum()), groups),
    "frac_all1": (float(full.sum()), groups),
    "frac_live": (float(live.sum()), groups),
    "frac_invalid": (float((~valid).sum()), float(rewards.size)),
  }


def log_ratio_exp(log_ratio: jax.Array) -> jax.Array:
  """exp with its input clipped to +-20."""
  return jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def log_ratio(logp: jax.Array, logp_old: jax.Array, mask: jax.Array, *, how: str) -> jax.Array:
  """f32[R,C] log of the importance ratio that is clipped.

  "token": logp - logp_old. "sequence" (GSPO): its mean over the completion, at every token, so that
  a completion is clipped as a whole; the gradient is that of the mean.
  """
  _one_of("ratio", how, RATIOS)
  gap = jnp.where(mask, logp - logp_old, 0.0)
  if how == "token":
    return gap
  return jnp.broadcast_to(masked.mean(gap, mask, axis=1)[:, None], gap.shape)


def policy_loss(
  log_ratio: jax.Array,
  *,
  advantages: jax.Array,
  clip_low: float,
  clip_high: float,
  dual_clip: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """The clipped surrogate of PPO per token.

  Args:
    log_ratio: f32[R,C], of the policy being trained and the policy of the rollout.
    advantages: f32[R], one for all tokens of a completion.
    clip_low: lower clip range.
    clip_high: upper clip range.
    dual_clip: c of the dual clip, 0 = off.

  Returns:
    loss f32[R,C] and bool[R,C], whether the clip took the gradient away.
  """
  ratio = log_ratio_exp(log_ratio)
  adv = advantages[:, None]
  free = ratio * adv
  bound = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * adv
  loss = -jnp.minimum(free, bound)
  clipped = bound < free
  if dual_clip:
    ceiling = -dual_clip * adv
    hit = (adv < 0) & (loss > ceiling)
    loss = jnp.where(hit, ceiling, loss)
    clipped = clipped | hit
  return loss, clipped


def tis_weight(logp_old: jax.Array, logp_sampler: jax.Array, *, cap: float) -> jax.Array:
  """f32[R,C] truncated importance weight min(pi_learner / pi_sampler, cap), without gradient."""
  return lax.stop_gradient(jnp.minimum(log_ratio_exp(logp_old - logp_sampler), cap))


def kl_k3(logp: jax.Array, logp_ref: jax.Array) -> jax.Array:
  """f32[R,C] k3 = expm1(d) - d, d = logp_ref - logp: the low-variance value of the KL, >= 0."""
  d = jnp.clip(logp_ref - logp, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  return jnp.expm1(d) - d


def kl_penalty(
  logp: jax.Array, logp_ref: jax.Array, *, logp_old: jax.Array, kind: str
) -> jax.Array:
  """f32[R,C] penalty whose on-policy gradient is that of the KL to the reference.

  k2 = d^2 / 2, or k3 times the ratio. k3 alone has a biased gradient; k1's is 0 in expectation.

  Raises:
    ValueError: for k1 and unknown kinds.
  """
  if kind == "k2":
    return 0.5 * jnp.square(logp_ref - logp)
  if kind == "k3":
    return log_ratio_exp(logp - logp_old) * kl_k3(logp, logp_ref)
  raise ValueError(f"KL estimator {kind!r} cannot be a loss: use 'k2' or 'k3'")


def aggregate(
  loss: jax.Array, mask: jax.Array, *, how: str, max_length: int
) -> tuple[jax.Array, jax.Array]:
  """(sum, count) of a per-token loss.

  The loss of the step is sum / max(count, 1) over the global batch.

  Args:
    loss: f32[R,C]; may be anything where the mask is off.
    mask: bool[R,C] up to and including the terminator; rows without a token are padding.
    how: "token" (DAPO), "sequence" (GRPO) or "constant" (Dr.GRPO).
    max_length: T_max of "constant".
  """
  _one_of("aggregation", how, AGGREGATIONS)
  total, tokens = masked.sum_count(loss, mask)
  if how == "token":
    return total, tokens
  of_row, length = masked.sum_count(loss, mask, axis=1)
  rows = (length > 0).sum().astype(jnp.float32)
  if how == "sequence":
    return (of_row / jnp.maximum(length, 1)).sum(), rows
  return total, rows * max_length


def loss_and_metrics(
  config: GrpoConfig,
  logp: jax.Array,
  *,
  entropy: jax.Array,
  logp_sampler: jax.Array,
  logp_old: jax.Array | None,
  logp_ref: jax.Array | None,
  advantages: jax.Array,
  mask: jax.Array,
  max_length: int,
) -> tuple[tuple[jax.Array, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]:
  """The whole loss.

  Args:
    config: the recipe.
    logp: f32[R,C].
    entropy: f32[R,C], exact, with gradient.
    logp_sampler: f32[R,C] as the sampler reported it.
    logp_old: f32[R,C] of the policy of the rollout; None in the first update, which is that policy.
    logp_ref: f32[R,C] of the initial auditor, or None when config.kl_coef is 0.
    advantages: f32[R].
    mask: bool[R,C].
    max_length: T_max of the aggregation "constant".

  Returns:
    (sum, count) of the loss, and of each metric; `combine` adds those of micro-batches.
  """
  # `where` before any product: a NaN at a padded position must not reach the sums (NaN * 0 is NaN).
  logp = jnp.where(mask, logp, 0.0)
  logp_sampler = jnp.where(mask, logp_sampler, 0.0)
  old = lax.stop_gradient(logp if logp_old is None else jnp.where(mask, logp_old, 0.0))
  loss, clipped = policy_loss(
    log_ratio(logp, old, mask, how=config.ratio),
    advantages=advantages,
    clip_low=config.clip_low,
    clip_high=config.clip_high,
    dual_clip=config.dual_clip,
  )

  def per_token(x):
    return masked.sum_count(x, mask)

  gap = jnp.abs(old - logp_sampler)
  tis = tis_weight(old, logp_sampler, cap=config.tis_cap or jnp.inf)
  metrics = {
    "entropy": per_token(lax.stop_gradient(entropy)),
    "clipped_share": per_token(clipped.astype(jnp.float32)),
    "sampler_gap": per_token(gap),
    "sampler_gap_max": (jnp.where(mask, gap, 0.0).max(), jnp.float32(1)),
    "sampler_gap_bins": (_histogram(gap, mask), mask.sum().astype(jnp.float32)),
    "tis": per_token(tis),
    "tis_square": per_token(jnp.square(tis)),
  }
  if config.tis_cap:
    loss = tis * loss
  if logp_ref is not None:
    ref = jnp.where(mask, logp_ref, 0.0)
    loss = loss + config.kl_coef * kl_penalty(logp, ref, logp_old=old, kind=config.kl)
    metrics["kl"] = per_token(kl_k3(lax.stop_gradient(logp), ref))
  if config.entropy_coef:
    loss = loss - config.entropy_coef * entropy
  return aggregate(loss, mask, how=config.aggregation, max_length=max_length), metrics


def _histogram(gap: jax.Array, mask: jax.Array) -> jax.Array:
  """f32[bins] of gaps >= 0; unlike a percentile, it adds up over micro-batches and hosts."""
  bins = jnp.floor(_PER_DECADE * jnp.log10(jnp.maximum(gap, _LOWEST) / _LOWEST))
  bins = jnp.where(mask, jnp.clip(bins, 0, _BINS - 1), -1)
  return (bins[..., None] == jnp.arange(_BINS)).sum(axis=(0, 1)).astype(jnp.float32)


def _percentile(bins: jax.Array, share: float) -> jax.Array:
  """f32[], the upper edge of the bin in which `share` of the values is reached."""
  reached = jnp.cumsum(bins) >= share * bins.sum()
  return _LOWEST * 10.0 ** ((jnp.argmax(reached) + 1) / _PER_DECADE)


def combine(
  a: dict[str, tuple[jax.Array, jax.Array]], b: dict[str, tuple[jax.Array, jax.Array]]
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Metrics of two micro-batches as those of one: sums and counts add up, maxima are compared."""

  def one(name):
    (x, n), (y, m) = a[name], b[name]
    return (jnp.maximum(x, y), n) if name.endswith("_max") else (x + y, n + m)

  return {name: one(name) for name in a}


def finish(metrics: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
  """The means, the 99th percentile of the gap (to a tenth of a decade), and TIS's effective sample
  size as a share: (mean w)^2 / mean w^2.
  """
  means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in metrics.items()}
  means["sampler_gap_p99"] = _percentile(means.pop("sampler_gap_bins"), 0.99)
  square = means.pop("tis_square")
  return means | {"tis_ess": jnp.square(means["tis"]) / jnp.maximum(square, 1e-9)}
