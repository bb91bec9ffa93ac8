# SPDX-License-Identifier: Apache-2.0
"""Rows and lengths come in few sizes, which fit into the memory."""

import dataclasses

import pytest

from auditdm_jax import vlm_batching as batching
from auditdm_jax.models import multimodal
from tests.tiny_vlm import make


def test_rows_and_lengths_are_bucketed(monkeypatch):
  vlm = make("paligemma")
  assert [batching.padded_length(n) for n in (1, 8, 9, 127, 129, 300, 1100)] == [
    8,
    8,
    16,
    128,
    144,
    320,
    1152,
  ]
  assert all(batching.padded_length(n) < 1.125 * n + 8 for n in range(1, 3000))

  def sizes_of(model, n, most=64):
    return batching.call_sizes(n, most, small=model._is_small)

  small = [sizes_of(vlm, n) for n in (1, 9, 31, 32, 72, 100)]
  assert small == [[8], [8, 8], [8] * 4, [64], [64, 8], [64, 64]]
  assert [sizes_of(vlm, n, 512) for n in (200, 300)] == [[64] * 3 + [8], [512]]
  assert sizes_of(vlm, 5, 4) == [4, 4]  # What fits into the memory.
  monkeypatch.setattr(multimodal, "SMALL", 1)
  big = dataclasses.replace(vlm)
  assert [sizes_of(big, n) for n in (1, 2, 3, 9, 70)] == [[1], [2], [4], [16], [64, 8]]
  assert sizes_of(big, 0) == sizes_of(vlm, 0) == []
  # Of many rows also one and a half powers of two, where the devices divide them.
  assert [sizes_of(big, n, 512) for n in (48, 90, 97, 160, 192, 193)] == [
    *([64], [96], [128], [192], [192], [256])
  ]
  assert batching.call_sizes(90, 512, small=False, shards=32) == [96]
  assert batching.call_sizes(90, 512, small=False, shards=64) == [128]
  sizes = (1, 1 << 28, 3 << 28, 1 << 40)
  assert [batching._fitting_rows(n, 1, 64) for n in sizes] == [64, 16, 4, 1]
  assert [batching._fitting_rows(n, 4, 256) for n in sizes] == [256, 64, 16, 1]


def room(**fields):
  return batching.Room(**{"devices": 1, "shards": 1, "most": 64, "small": False} | fields)


def asked(counts, *, head=64, tail=8):
  """So many prompts of each head, mixed."""
  heads = [k for n in range(max(counts)) for k, count in enumerate(counts) if n < count]
  return [batching.PromptShape(head + 1 + i % tail, 1, head, k) for i, k in enumerate(heads)]


@pytest.mark.parametrize("counts", [(8, 8, 8), (1,), (1, 1, 1), (5, 1, 3, 20), (70, 2)])
@pytest.mark.parametrize("memory", [1 << 32, 300_000])
def test_every_prompt_is_in_one_call_with_those_of_its_head(monkeypatch, counts, memory):
  monkeypatch.setattr(batching, "MEMORY", memory)
  config, prompts = make("gemma3").config, asked(counts)
  seen = []
  for call in batching.calls(config, prompts, new=4, room=room()):
    u, q = call.rows.shape
    assert u * q <= 64 and all(n & (n - 1) == 0 for n in (u, q))
    for row, head in zip(call.rows, call.heads):
      assert len({prompts[i].key for i in row}) == 1 and head == (64 if q > 1 else 0)
    text, tokens = config.text, 64 + q * 8 + q * 4
    kept = 8 * text.depth * text.num_kv_heads * text.head_dim * tokens * u
    assert kept <= memory or u == 1, "the cache does not fit"
    seen += set(call.rows.ravel().tolist())
  assert sorted(seen) == list(range(len(prompts)))


def test_prompts_share_a_row_where_that_is_less_work():
  config = make("gemma3").config

  def shapes(counts, **fields):
    calls = batching.calls(config, asked(counts), new=4, room=room(**fields))
    return [call.rows.shape for call in calls]

  assert shapes((8,) * 4) == [(4, 8)]
  assert shapes((1,) * 4) == [(4, 1)]
  # Four devices would work on one image, and four idle: each takes half of an image's questions.
  assert shapes((8,) * 4, devices=8, shards=8) == [(8, 4)]
  alone = [batching.PromptShape(p.length, 1) for p in asked((8,))]
  assert [c.rows.shape for c in batching.calls(config, alone, new=4, room=room())] == [(8, 1)]
