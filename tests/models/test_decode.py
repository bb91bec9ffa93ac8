# SPDX-License-Identifier: Apache-2.0
"""Cached sampling against the full forward pass, at windows smaller than the sequence."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.models import decode, gemma, siglip
from auditdm_jax.models import multimodal as mm
from auditdm_jax.vlm_batching import padded
from tests import drawn

IMAGE, P, G, T, C = 8, 3, 2, 9, 6
TEXT = gemma.GemmaConfig(
  vocab_size=19,
  width=12,
  depth=3,
  mlp_dim=20,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  window=4,
  layer_is_local=(True, True, False),
  embed_init_std=0.6,
)
VISION = siglip.SiglipConfig(width=8, depth=1, mlp_dim=12, num_heads=2, patch_size=4, image_size=8)
PALIGEMMA = mm.VlmConfig(
  "paligemma", dataclasses.replace(TEXT, attn_softcap=5.0, final_softcap=3.0), VISION, IMAGE
)
GEMMA3 = mm.VlmConfig("gemma3", dataclasses.replace(TEXT, qk_norm=True), VISION, IMAGE)
BOTH = pytest.mark.parametrize("config", [PALIGEMMA, GEMMA3], ids=["paligemma", "gemma3"])
BIASED = dataclasses.replace(GEMMA3, text=dataclasses.replace(GEMMA3.text, attn_bias=True))
BANNED = (0, 2, IMAGE)

sample = jax.jit(decode.sample, static_argnums=(0, 1), static_argnames="group")


def prompts(*, left=False):
  """Three prompts of different lengths, 4 image slots each, and their features."""
  rows = [[2] + [IMAGE] * 4 + words for words in ([10, 11, 12, 13], [14], [15, 16])]
  tokens, valid = np.zeros((P, T), np.int32), np.zeros((P, T), bool)
  for i, row in enumerate(rows):
    where = slice(T - len(row), None) if left else slice(0, len(row))
    tokens[i, where], valid[i, where] = row, True
  features = np.random.default_rng(0).normal(size=(P, 4, 8)).astype(np.float32)
  return features, tokens, valid, rows


def draw(config, sc, params, *, left=False, order=(0, 1, 2), seed=0, **own):
  features, tokens, valid, _ = prompts(left=left)
  keys = jax.random.split(jax.random.key(seed), (P, G))
  order = np.array(order)
  out = sample(
    config,
    sc,
    params,
    features[order],
    tokens[order],
    valid=valid[order],
    group=G,
    row_keys=keys[order],
    **own,
  )
  return jax.tree.map(np.asarray, out)


@functools.partial(jax.jit, static_argnums=(0, 1))
def teacher_forced(config, sc, params, out):
  """The full forward pass over prompt and completion of every row.

  Returns the log-probs f32[P,G,C] of the completions, and the likeliest tokens i32[P,G,C].
  """
  features, tokens, valid, _ = prompts(left=True)
  c = out.tokens.shape[-1]
  rows = jnp.concatenate([jnp.repeat(tokens, G, axis=0), out.tokens.reshape(P * G, c)], axis=1)
  ar = jnp.concatenate([jnp.zeros((P * G, T)), jnp.ones((P * G, c))], axis=1)
  x = mm.hidden(
    config,
    params,
    jnp.repeat(features, G, axis=0),
    rows,
    valid=jnp.concatenate([jnp.repeat(valid, G, axis=0), jnp.ones((P * G, c), bool)], axis=1),
    ar=ar.astype(jnp.int32) if config.kind == "paligemma" else None,
  )[:, -c - 1 : -1]
  how = {"banned": sc.banned_ids, "temperature": sc.temperature or 1.0}
  logp, _ = mm.token_logprobs(config, params, x, rows[:, -c:], **how)
  best = jnp.argmax(mm.sampling_logits(config, params, x, **how), axis=-1)
  return logp.reshape(P, G, c), best.reshape(P, G, c)


def check_logprobs(config, sc, params, out):
  """Every drawn token has the log-prob that the full pass over its own row gives it."""
  want, _ = teacher_forced(config, sc, params, out)
  said = np.arange(C) < out.length[..., None]
  np.testing.assert_allclose(out.logprobs, np.where(said, want, 0.0), atol=2e-5)
  assert not out.tokens[~said].any()


@pytest.mark.parametrize(
  "config", [PALIGEMMA, GEMMA3, BIASED], ids=["paligemma", "gemma3", "biased"]
)
def test_sampled_logprob_is_teacher_forced_logprob(config):
  params = drawn.params(config)
  sc = decode.SampleConfig(C, 0.8, stop_ids=(), banned_ids=BANNED)
  out = draw(config, sc, params)
  assert (out.length == C).all() and out.truncated.all()
  assert not np.isin(out.tokens, BANNED).any()
  check_logprobs(config, sc, params, out)
  # On the left, the same draws: neither caches nor randomness know where the padding is.
  other = draw(config, sc, params, left=True)
  np.testing.assert_array_equal(out.tokens, other.tokens)
  np.testing.assert_allclose(out.logprobs, other.logprobs, atol=2e-5)


@BOTH
def test_greedy_takes_the_likeliest_token_of_the_full_forward(config):
  params = drawn.params(config, 1)
  sc = decode.SampleConfig(C, 0.0, banned_ids=(IMAGE,))
  out = draw(config, sc, params)
  np.testing.assert_array_equal(out.tokens[:, 0], out.tokens[:, 1])
  _, best = teacher_forced(config, sc, params, out)
  np.testing.assert_array_equal(out.tokens, best)
  check_logprobs(config, sc, params, out)


def test_terminators_lengths_and_truncation():
  """Several terminators, one of them the pad id: the lengths come from the sampler."""
  config = GEMMA3
  params = drawn.params(config)
  stops, words = (0, 3, 7), tuple(range(9, 19))
  banned = tuple(i for i in range(19) if i not in stops + words)
  sc = decode.SampleConfig(C, 3.0, stop_ids=stops, banned_ids=banned)
  ended, by = 0, set()
  for seed in range(4):
    out = draw(config, sc, params, seed=seed)
    for tokens, n, truncated in zip(
      out.tokens.reshape(-1, C), out.length.ravel(), out.truncated.ravel()
    ):
      stop_at = np.flatnonzero(np.isin(tokens[:n], stops))
      assert truncated == (len(stop_at) == 0)
      assert n == (C if truncated else stop_at[0] + 1)
      ended, by = ended + (not truncated), by | ({tokens[n - 1]} if not truncated else set())
    check_logprobs(config, sc, params, out)
  assert 0 < ended < 4 * P * G and by == set(stops)


def test_stopping_early_draws_the_same():
  """Until its terminator, a row is what it is without terminators."""
  params = drawn.params(GEMMA3)
  free = draw(GEMMA3, decode.SampleConfig(C, 1.0), params)
  stop = int(free.tokens[0, 0, 1])
  out = draw(GEMMA3, decode.SampleConfig(C, 1.0, stop_ids=(stop,)), params)
  for p in range(P):
    for g in range(G):
      n = out.length[p, g]
      assert out.tokens[p, g, :n].tolist() == free.tokens[p, g, :n].tolist()
  assert out.length[0, 0] <= 2 and not out.truncated[0, 0]


def test_prompts_with_limits_of_their_own():
  """Until its limit a sample is what it is without; a terminator as the last token ends it."""
  params = drawn.params(GEMMA3)
  free = draw(GEMMA3, decode.SampleConfig(C, 1.0), params)
  stop = int(free.tokens[0, 0, 1])
  limits = np.array([2, 4, C], np.int32)
  out = draw(GEMMA3, decode.SampleConfig(C, 1.0, stop_ids=(0, stop)), params, limits=limits)
  for p in range(P):
    for g in range(G):
      ends = np.flatnonzero(np.isin(free.tokens[p, g, : limits[p]], (0, stop)))
      n = ends[0] + 1 if len(ends) else limits[p]
      assert out.length[p, g] == n and out.truncated[p, g] == (not len(ends))
      assert out.tokens[p, g].tolist() == free.tokens[p, g, :n].tolist() + [0] * (C - n)
  assert out.length[0, 0] <= 2 and not out.truncated[0, 0] and out.truncated.any()


def test_prompts_with_temperatures_of_their_own():
  params = drawn.params(GEMMA3, 1)
  own = np.array([0.0, 0.7, 2.0], np.float32)
  got = draw(GEMMA3, decode.SampleConfig(C, 1.0), params, temperatures=own)
  for p, temperature in enumerate(own.tolist()):
    want = draw(GEMMA3, decode.SampleConfig(C, temperature), params)
    np.testing.assert_array_equal(got.tokens[p], want.tokens[p])
    np.testing.assert_allclose(got.logprobs[p], want.logprobs[p], atol=2e-5)


def test_a_sample_does_not_depend_on_its_place_in_the_batch():
  params = drawn.params(PALIGEMMA)
  sc = decode.SampleConfig(C, 1.0, stop_ids=(3,))
  straight, turned = draw(PALIGEMMA, sc, params), draw(PALIGEMMA, sc, params, order=(2, 0, 1))
  back = np.argsort([2, 0, 1])
  np.testing.assert_array_equal(straight.tokens, turned.tokens[back])
  assert not np.array_equal(straight.tokens[:, 0], straight.tokens[:, 1])
  assert not np.array_equal(straight.tokens, draw(PALIGEMMA, sc, params, seed=1).tokens)


def test_split_and_listed_parameters_draw_the_same():
  params = drawn.params(BIASED)
  sc = decode.SampleConfig(C, 1.0, stop_ids=(3,))
  unrolled = dataclasses.replace(BIASED, text=dataclasses.replace(BIASED.text, unroll=3))
  assert mm.lists_layers(unrolled, params) and not mm.lists_layers(BIASED, params)
  whole = draw(BIASED, sc, params)
  for split in (draw(BIASED, sc, mm.split_layers(params)), draw(unrolled, sc, params)):
    np.testing.assert_array_equal(whole.tokens, split.tokens)
    np.testing.assert_allclose(whole.logprobs, split.logprobs, atol=2e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("config", [BIASED, PALIGEMMA, GEMMA3])
def test_layers_that_a_call_splits_or_lists_draw_the_same(config, platform, monkeypatch):
  """On a CPU, if the model is not small, and on a GPU for the steps alone."""
  params = drawn.params(config)
  sc = decode.SampleConfig(C, 1.0, stop_ids=(3,))
  whole = draw(config, sc, params)
  monkeypatch.setattr(mm.mesh_lib, "lone_platform", lambda: platform)
  monkeypatch.setattr(mm, "SMALL", 1)
  assert (mm.splits_layers(params), mm.lists_layers_of_steps(params)) == (
    platform == "cpu",
    platform == "gpu",
  )
  jax.clear_caches()
  listed = draw(config, sc, params)
  np.testing.assert_array_equal(whole.tokens, listed.tokens)
  np.testing.assert_allclose(whole.logprobs, listed.logprobs, atol=2e-5)


@pytest.mark.parametrize("split", [False, True])
def test_a_step_does_not_copy_the_cache(split):
  """Copied at each step, it took a sixth of the time of 32 rows and 98 M parameters."""
  wide = dataclasses.replace(TEXT, width=64, mlp_dim=128, head_dim=64, num_kv_heads=1)
  config, room = dataclasses.replace(GEMMA3, text=wide, vision=None), 41
  params = drawn.params(config)
  program = sample.lower(
    config,
    decode.SampleConfig(room + 1, stop_ids=(3,)),
    mm.split_layers(params) if split else params,
    None,
    np.ones((P, T), np.int32),
    valid=np.ones((P, T), bool),
    group=G,
    row_keys=jax.random.split(jax.random.key(0), (P, G)),
  )
  lines = program.compile().as_text().splitlines()
  caches = [line for line in lines if re.search(rf"= f32\[[\d,]*\b{room}\b", line)]
  assert any("dynamic-update-slice" in line for line in caches)
  # The zeros that a cache starts with may be copied, once.
  assert not [line for line in caches if re.search(r" copy\(%(get-tuple-element|copy)", line)]


def test_samples_of_one_prompt_are_those_of_as_many_prompts():
  """A shared prefix = plain rows, and the prefix is kept once."""
  params = drawn.params(GEMMA3)
  sc = decode.SampleConfig(C, 1.0, stop_ids=(3,))
  features, tokens, valid, _ = prompts()
  keys = jax.random.split(jax.random.key(0), (P, G))
  shared = sample(GEMMA3, sc, params, features, tokens, valid=valid, group=G, row_keys=keys)
  rows = [np.repeat(x, G, axis=0) for x in (features, tokens, valid)]
  plain = sample(
    GEMMA3, sc, params, *rows[:2], valid=rows[2], group=1, row_keys=keys.reshape(P * G, 1)
  )
  np.testing.assert_array_equal(shared.tokens, plain.tokens.reshape(P, G, C))
  np.testing.assert_allclose(shared.logprobs, plain.logprobs.reshape(P, G, C), atol=2e-5)

  kv = (jax.ShapeDtypeStruct((3, P, 500, 2, 6), jnp.float32),) * 2
  start = functools.partial(gemma.Past.start, samples=64, room=C)
  size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(start, kv)))
  assert size == 2 * 3 * P * 2 * 6 * (500 + 64 * C)


@pytest.mark.parametrize("split", [False, True])
def test_prompts_that_share_a_head_are_answered_as_if_alone(split):
  """Windows shorter than head, tail and answer; heads and tails of different lengths."""
  params = drawn.params(GEMMA3)
  heads = [[2, 5] + [IMAGE] * 4, [2, 9, 10, 11, 5, 12] + [IMAGE] * 4]
  ends = [[[10, 11, 12, 13, 14], [14], [15, 16]], [[10], [17, 18, 9, 11], [12, 12, 12]]]
  features = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
  sc = decode.SampleConfig(C, 0.8, stop_ids=(3,), banned_ids=BANNED)
  keys = jax.random.split(jax.random.key(0), (2, 3))
  tokens, valid = padded(heads, 12)
  own = [x.reshape(2, 3, -1) for x in padded([e for row in ends for e in row], 6)]
  if split:
    params = mm.split_layers(params)
  got = sample(
    GEMMA3,
    sc,
    params,
    features,
    tokens,
    valid=valid,
    group=3,
    row_keys=keys,
    tails=decode.Tails(*own),
  )
  tokens, valid = padded([h + e for h, row in zip(heads, ends) for e in row], 16)
  features, keys = np.repeat(features, 3, axis=0), keys.reshape(6, 1)
  want = sample(GEMMA3, sc, params, features, tokens, valid=valid, group=1, row_keys=keys)
  np.testing.assert_array_equal(got.tokens.reshape(6, C), want.tokens[:, 0])
  np.testing.assert_array_equal(got.length.ravel(), want.length[:, 0])
  np.testing.assert_allclose(got.logprobs.reshape(6, C), want.logprobs[:, 0], atol=2e-5)


def test_a_draw_is_where_the_running_sum_passes():
  """The edges of the unit interval, weights of zero and a vocabulary of several blocks."""
  vocab = 600
  p = np.zeros(vocab)
  p[[5, 255, 256, 599]] = 0.1, 0.2, 0.3, 0.4
  logits = jnp.where(p > 0, jnp.log(jnp.maximum(p, 1e-9)), gemma.MASKED)
  ends = np.array([0.0, 0.5, 1.0])  # 1 as rounding may have it.
  u = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(-1, 2).astype(np.float32)
  tokens = decode.draw_token(jnp.broadcast_to(logits, (len(u), vocab)), u)
  assert set(tokens.tolist()) == {5, 255, 256, 599}
  assert decode.draw_token(logits, jnp.array([0.0, 0.0])) == 5
  assert decode.draw_token(logits, jnp.array([0.0, 0.5])) == 255
  assert decode.draw_token(logits, jnp.array([0.5, 0.9])) == 256
  assert decode.draw_token(logits, jnp.array([1.0, 1.0])) == 599


def test_the_likeliest_token_is_the_first_of_equals():
  logits = jnp.array([[0.0, 2.0, 2.0], [-1.0, -3.0, -1.0], [gemma.MASKED, gemma.MASKED, -5.0]])
  assert decode.likeliest_token(logits).tolist() == [1, 0, 2]


def test_draws_follow_the_distribution():
  """5,000 first tokens of one prompt against the probabilities of the full pass."""
  params = drawn.params(GEMMA3)
  features, tokens, valid, _ = prompts()
  sc = decode.SampleConfig(1, 0.7, banned_ids=BANNED)
  keys = jax.random.split(jax.random.key(0), (1, 5000))
  out = sample(
    GEMMA3, sc, params, features[:1], tokens[:1], valid=valid[:1], group=5000, row_keys=keys
  )
  shares = np.bincount(np.asarray(out.tokens).ravel(), minlength=19) / 5000
  x = jax.jit(mm.hidden, static_argnums=0)(
    GEMMA3, params, features[:1], tokens[:1], valid=valid[:1]
  )[0, -1]
  probs = jax.nn.softmax(
    mm.sampling_logits(GEMMA3, params, x, banned=BANNED, temperature=0.7), axis=-1
  )
  np.testing.assert_allclose(shares, probs, atol=0.03)


@pytest.mark.parametrize("temperature", [1e-10, 1e-40])
def test_next_to_no_temperature_is_greedy(temperature):
  """Logits that are divided by it overflow."""
  params = drawn.params(GEMMA3, 1)
  want = draw(GEMMA3, decode.SampleConfig(C, 0.0), params)
  got = draw(GEMMA3, decode.SampleConfig(C, temperature), params)
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_array_equal(got.logprobs, want.logprobs)


@pytest.mark.parametrize("vocab", [19, 600])
def test_what_is_drawn_is_in_the_vocabulary_whatever_the_logits(vocab):
  logits = jnp.stack([jnp.full(vocab, value) for value in (0.0, jnp.nan, jnp.inf, -jnp.inf)])
  tokens = decode.draw_token(logits, jnp.full((4, 2), 0.999))
  assert (tokens < vocab).all() and (tokens >= 0).all()


@pytest.mark.parametrize(
  "change, message",
  [
    ({"max_new_tokens": 0}, "max_new_tokens 0"),
    ({"temperature": -1.0}, "negative"),
    ({"temperature": float("nan")}, "nan is negative or not finite"),
    ({"temperature": float("inf")}, "inf is negative or not finite"),
    ({"stop_ids": (1, 2), "banned_ids": (2,)}, r"\[2\] are both"),
  ],
)
def test_impossible_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    decode.SampleConfig(**({"max_new_tokens": 3} | change))


def test_keys_must_fit_the_group():
  params = drawn.params(GEMMA3)
  features, tokens, valid, _ = prompts()
  with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
    keys = jax.random.split(jax.random.key(0), (P, 3))
    sc = decode.SampleConfig(2)
    decode.sample(GEMMA3, sc, params, features, tokens, valid=valid, group=2, row_keys=keys)
