# SPDX-License-Identifier: Apache-2.0
"""Batches on the model: answers are `Vlm.answer`'s, features are kept, a bad row fails alone."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from auditdm_jax import vlm_batching as batching
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.serving.engine import Ask, Engine
from auditdm_jax.serving.pictures import Square, Squarer
from auditdm_jax.serving.replies import read
from auditdm_jax.text import prompts
from auditdm_jax.vlm import Completion, Prompt
from tests.serving import tiny

SQUARES = [
  Squarer(8, Pixels(), 1 << 20).square(tiny.url(image), name="image") for image in tiny.IMAGES
]


@pytest.fixture(scope="module")
def vlm():
  return tiny.make()


def ask(vlm, question, *images, longest=6, temperature=0.0, seed=0):
  ids = prompts.render(tiny.TOKENIZER, vlm.template, question, 4, images=len(images))
  return Ask(tuple(ids), tuple(SQUARES[i] for i in images), longest, temperature, seed)


class Counting:
  """A Vlm that counts the images it encodes, and fails on some prompts."""

  def __init__(self, vlm, *, poison=None):
    self._vlm, self._poison, self.encoded = vlm, poison, []
    self.config, self.mesh = vlm.config, vlm.mesh

  def encode(self, images):
    self.encoded.append(len(images))
    return self._vlm.encode(images)

  def complete(self, features, asked):
    if any(p.ids == self._poison for p in asked):
      raise RuntimeError("out of memory")
    return self._vlm.complete(features, asked)


def test_answers_are_those_of_answer(vlm):
  groups = [(0,), (), (1, 2), (0,), (), (2,), (1,), (2, 2)]
  how = [{"temperature": 0.8 * (i % 3 == 0), "seed": i} for i in range(8)]
  asks = [ask(vlm, q, *g, **h) for q, g, h in zip(tiny.QUESTIONS, groups, how)]
  got = Engine(vlm, cache_bytes=1 << 20).run(asks)
  for completion, q, g, h in zip(got, tiny.QUESTIONS, groups, how):
    want = vlm.answer([[tiny.IMAGES[i] for i in g]], [q], max_new_tokens=6, **h)
    assert [read(tiny.TOKENIZER, completion, ()).text] == want


def test_features_of_the_last_images_are_kept(vlm):
  each = vlm.encode([tiny.IMAGES[0]]).nbytes
  counting = Counting(vlm)
  engine = Engine(counting, cache_bytes=2 * each)
  for images, encoded in (
    ([(0,), (0,), (0, 0)], 1),
    ([(0,)], None),
    ([()], None),
    ([(1,), (0,)], 1),
    ([(2,)], 1),
    ([(0,)], 1),
    ([(2,)], None),
    ([(0,), (1,), (2,)], 1),
  ):
    counting.encoded.clear()
    got = engine.run([ask(vlm, "what is red", *g) for g in images])
    assert counting.encoded == ([encoded] if encoded else []), images
    want = vlm.answer(
      [[tiny.IMAGES[i] for i in g] for g in images], ["what is red"] * len(images), max_new_tokens=6
    )
    assert [read(tiny.TOKENIZER, c, ()).text for c in got] == want
  assert sum(x.nbytes for x in engine._features.values()) <= 2 * each


def noise(n):
  """Squares of n other images."""
  pixels = np.random.default_rng(2).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
  return [Square(x, bytes([i])) for i, x in enumerate(pixels)]


def test_features_of_few_images_are_held_at_once(vlm, monkeypatch):
  class Held(Counting):
    def complete(self, features, asked):
      self.encoded.append(len(features))
      return super().complete(features, asked)

  squares = iter(noise(16))
  asks = [
    dataclasses.replace(ask(vlm, q, 0, 0), squares=(next(squares), next(squares)), seed=i)
    for i, q in enumerate(tiny.QUESTIONS)
  ]
  want = Engine(vlm, cache_bytes=0).run(asks)
  each = vlm.encode([tiny.IMAGES[0]]).nbytes
  monkeypatch.setattr(batching, "MEMORY", 5 * each)
  held = Held(vlm)
  assert Engine(held, cache_bytes=0).run(asks) == want
  assert max(held.encoded) <= 5
  # One that fails does so alone, whichever part of the batch it is in.
  got = Engine(Held(vlm, poison=asks[3].ids), cache_bytes=0).run(asks)
  assert isinstance(got[3], RuntimeError)
  assert got[:3] + got[4:] == want[:3] + want[4:]


def test_a_kept_image_does_not_keep_those_it_was_encoded_with(vlm):
  each = 1 << 18

  class Large(Counting):
    def encode(self, images):
      return np.zeros((len(images), each // 4), np.float32)

    def complete(self, features, asked):
      return [Completion((1,), truncated=False) for _ in asked]

  engine = Engine(Large(vlm), cache_bytes=each)
  tracemalloc.start()
  engine.run([dataclasses.replace(ask(vlm, "what", 0), squares=(s,)) for s in noise(32)])
  used = tracemalloc.get_traced_memory()[0]
  tracemalloc.stop()
  assert used < 4 * each


def test_a_poisoned_row_fails_alone(vlm):
  asks = [ask(vlm, q, 0) for q in tiny.QUESTIONS]
  got = Engine(Counting(vlm, poison=asks[5].ids), cache_bytes=0).run(asks)
  want = Engine(vlm, cache_bytes=0).run(asks)
  assert isinstance(got[5], RuntimeError)
  assert got[:5] + got[6:] == want[:5] + want[6:]


def test_a_batch_is_filled_up_to_a_program_that_is_there(vlm):
  rows = []

  class Seen(Counting):
    def complete(self, features, asked):
      rows.append(len(asked))
      return super().complete(features, asked)

  engine = Engine(Seen(vlm), cache_bytes=0)
  want = vlm.answer(None, ["what is red"] * 8, max_new_tokens=6)
  for n in (5, 3, 1, 2, 8, 4, 1):
    got = engine.run([ask(vlm, "what is red")] * n)
    assert [read(tiny.TOKENIZER, c, ()).text for c in got] == want[:n]
  assert rows == [8, 8, 1, 2, 8, 8, 1]
  # Programs of other lengths, temperatures or numbers of images are others.
  rows.clear()
  for change in ({"longest": 17}, {"temperature": 1.0}):
    engine.run([ask(vlm, "what is red", **change)] * 3)
  engine.run([ask(vlm, "what is red", 0)] * 3)
  engine.run([ask(vlm, "what is red " * 4)] * 3)
  assert rows == [4] * 4


@pytest.mark.parametrize(("limit", "value"), [("MAX_BATCH", 16), ("MEMORY", 1 << 17)])
def test_copies_do_not_cost_calls(vlm, monkeypatch, limit, value):
  """What does not fit into one call is cut into no more of them than it needs."""
  monkeypatch.setattr(batching, limit, value)
  calls, cut = [], batching.calls

  def seen(*args, **how):
    for call in cut(*args, **how):
      calls.append(len(call.rows))
      yield call

  monkeypatch.setattr(batching, "calls", seen)
  one = ask(vlm, "what is red")
  vlm.complete(None, [Prompt(one.ids, max_new_tokens=6)] * 100)
  fit = max(calls)
  assert fit == 16
  engine = Engine(vlm, cache_bytes=0)
  for n, least in ((33, 3), (16, 1), (17, 2), (47, 3), (64, 4)):
    calls.clear()
    assert len(engine.run([one] * n)) == n
    assert len(calls) == least, n
  # What is left for the last of them is filled up as a small batch is.
  for n, sizes in ((21, [16, 16]), (17, [16, 8])):
    calls.clear()
    engine.run([one] * n)
    assert calls == sizes


def test_keys_part_what_takes_longer():
  square = Square(np.zeros((8, 8, 3), np.uint8), b"")
  one = Ask((1,) * 20, (), 64, 0.0, 0)
  same = [
    dataclasses.replace(one, ids=(1,) * 32, max_new_tokens=33, temperature=1.0, seed=7),
    dataclasses.replace(one, ids=(2,) * 17),
  ]
  assert {a.key for a in same} == {one.key}
  for change in ({"ids": (1,) * 33}, {"max_new_tokens": 65}, {"squares": (square,)}):
    assert dataclasses.replace(one, **change).key != one.key
  short = dataclasses.replace(one, ids=(1,), max_new_tokens=1)
  assert short.key == dataclasses.replace(one, ids=(1,) * 16, max_new_tokens=16).key


def said(text, stops=(), *, truncated=False):
  tokens = tuple(tiny.TOKENIZER.encode(text))
  return read(tiny.TOKENIZER, Completion(tokens, truncated), stops)


def test_stop_strings():
  assert dataclasses.astuple(said("red cup dish")) == ("red cup dish", 3, "stop")
  assert dataclasses.astuple(said("red cup dish", truncated=True)) == ("red cup dish", 3, "length")
  cut = said("red cup dish cup", ["dish", "cup"], truncated=True)
  assert dataclasses.astuple(cut) == ("red", 2, "stop")
  assert dataclasses.astuple(said("red cup", ["blue"], truncated=True)) == ("red cup", 2, "length")
  assert dataclasses.astuple(said("\nred", ["\n"])) == ("", 1, "stop")
  assert dataclasses.astuple(said("red cup", ["ed c"])) == ("r", 2, "stop")
