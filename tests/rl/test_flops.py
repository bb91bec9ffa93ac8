# SPDX-License-Identifier: Apache-2.0
"""FLOPs against what the compiler counts, with matrix products that dwarf everything else."""

import collections
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.models import gemma, multimodal, siglip
from auditdm_jax.rl import flops
from auditdm_jax.rl.batch import AuditorReply, Trajectory
from tests.rl import tiny

TEXT = gemma.GemmaConfig(
  vocab_size=4096,
  width=256,
  depth=2,
  mlp_dim=1024,
  num_heads=4,
  num_kv_heads=1,
  head_dim=64,
  unroll=2,
)
VISION = siglip.SiglipConfig(
  width=256, depth=2, mlp_dim=1024, num_heads=4, patch_size=8, image_size=64, unroll=2
)


def compiled(fn, *args):
  """FLOPs of a program by XLA's own count."""
  return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def shapes(init, *args):
  return jax.eval_shape(init, jax.random.key(0), *args)["params"]


def test_decoder():
  config = multimodal.VlmConfig("gemma3", TEXT, None, image_token_id=1)
  params = jax.eval_shape(functools.partial(multimodal.init, config), jax.random.key(0))
  tokens = jnp.zeros((3, 128), jnp.int32)

  def forward(params, tokens):
    valid = jnp.ones_like(tokens, bool)
    return multimodal.unembed(
      config, params, multimodal.hidden(config, params, None, tokens, valid=valid)
    )

  want = compiled(forward, params, tokens)
  got = flops.decoder(TEXT, tokens=3 * 128, context=128, predictions=3 * 128)
  assert got == pytest.approx(want, rel=0.05)


def test_tower():
  pixels = jnp.zeros((2, 64, 64, 3))
  params = shapes(siglip.Siglip(VISION).init, pixels)
  want = compiled(lambda p, x: siglip.Siglip(VISION).apply({"params": p}, x), params, pixels)
  assert 2 * flops.tower(VISION) == pytest.approx(want, rel=0.05)


def test_learning_counts_used_rows_only():
  batch, config = tiny.batch(rows=8), tiny.config()
  (rows,) = batch.parts
  more = dataclasses.replace(
    rows, **{k: np.concatenate([v, v]) for k, v in vars(rows).items() if v is not None}
  )
  more = dataclasses.replace(more, loss_mask=np.concatenate([rows.loss_mask, 0 * rows.loss_mask]))
  once = flops.learning(config, batch, kl=False)
  assert flops.learning(config, dataclasses.replace(batch, parts=(more,)), kl=False) == once
  assert flops.learning(config, batch, kl=True) == pytest.approx(once * 4 / 3)


def test_the_work_of_endpoints_is_unknown_and_not_zero():
  auditor = tiny.auditor()
  far = types.SimpleNamespace(takes="pixels")
  encoded = collections.Counter()
  for vlms, known in (({"t": auditor, "r": auditor}, True), ({"t": auditor, "r": far}, False)):
    cache = types.SimpleNamespace(encoded=encoded)
    bank = types.SimpleNamespace(vlms=vlms, computed={"t": 0, "r": 0}, cache=cache)
    meter = flops.Meter(auditor, bank)
    with meter.towers("answers"):
      encoded[auditor.tower_id] += 3
    bank.computed = {"t": 2, "r": 2}
    meter.count([])
    assert meter.flops.get("answers", 0.0) > 0 if known else "answers" not in meter.flops


def test_a_prompt_is_read_once_whether_its_samples_are_asked_or_not():
  """Of one that is left out whole, the prompt is work too."""
  auditor = tiny.auditor()
  bank = types.SimpleNamespace(vlms={}, computed={}, cache=None)
  tokens = np.arange(4)
  dropped = [
    Trajectory(
      ("a",),
      uid,
      g,
      "question",
      "0",
      turns=(AuditorReply("question", "0", tuple(range(9)), "", tokens, 0.0 * tokens, 4, False),),
    )
    for uid in (1, 2)
    for g in range(3)
  ]
  did = []
  for asked in ({1, 2}, {1}, set()):
    meter = flops.Meter(auditor, bank)
    meter.proposed(dropped, asked=asked)
    did.append(meter.flops["sample"])
  read = flops.decoder(auditor.config.text, tokens=9, context=9, predictions=3)
  assert did[1] - did[0] == pytest.approx(read) and did[2] - did[1] == pytest.approx(read)


def test_several_questions_about_one_image_are_written_from_one_reading():
  auditor = tiny.auditor()
  bank = types.SimpleNamespace(vlms={}, computed={}, cache=None)
  tokens = np.arange(4)

  def reply(kind, prompt):
    return AuditorReply(kind, "0", tuple(range(prompt)), "", tokens, 0.0 * tokens, 4, False)

  def did(pairs):
    meter = flops.Meter(auditor, bank)
    meter.count([Trajectory(("a",), 1, g, "edit", "0", turns=p) for g, p in enumerate(pairs)])
    return meter.flops["sample"]

  def write(prompt, replies):
    of = functools.partial(flops.decoder, auditor.config.text)
    read = of(tokens=prompt, context=prompt, predictions=replies)
    return read + of(tokens=4 * replies, context=prompt + 2, predictions=4 * replies)

  first = reply("instruction", 9)
  several = [(first, reply("question", 12)) for _ in range(3)]
  apart = [(reply("instruction", 9), reply("question", 12)) for _ in range(3)]
  assert did(several) == pytest.approx(write(9, 1) + write(12, 3))
  assert did(apart) == pytest.approx(write(9, 3) + 3 * write(12, 1))
