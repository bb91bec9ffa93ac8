# SPDX-License-Identifier: Apache-2.0
"""The model bank: de-duplication, feature cache, cascade = full ensemble, counters."""

import time
import zlib

import numpy as np
import pytest

from auditdm_jax.audit.answer import BankConfig, FeatureCache, ModelBank
from auditdm_jax.core.image_store import Images

WORDS = ("red", "blue", "unanswerable")


def _noisy(seed):
  return lambda q, pixel: WORDS[zlib.crc32(f"{seed} {q} {pixel}".encode()) % 3]


def _bank(fake_vlm, **fields):
  vlms = {"t": fake_vlm(_noisy(1)), "a": fake_vlm(_noisy(2)), "b": fake_vlm(_noisy(3))}
  config = BankConfig(abstentions=("unanswerable",), **fields)
  return ModelBank(vlms, "t", ("a", "b"), config=config)


def _probes(make_picture, n=60):
  pictures = [make_picture(i) for i in range(7)]
  return [pictures[i % 7] for i in range(n)], [f"q{i % 9}" for i in range(n)]


def test_one_question_is_asked_once_and_one_image_encoded_once(fake_vlm, make_picture):
  bank = _bank(fake_vlm)
  images, questions = _probes(make_picture, 126)
  answers = bank.answers(images, questions)
  expected = [bank.vlms["t"].rule(q, int(i[0, 0, 0])) for i, q in zip(images, questions)]
  assert answers["t"] == expected
  assert bank.computed["t"] == 63 and bank.asked["t"] == 126
  assert bank.cache.encoded.total() == 7  # three models, one tower
  assert list(answers) == ["a", "t", "b"]


def test_without_deduplication_the_answers_are_the_same(fake_vlm, make_picture):
  images, questions = _probes(make_picture, 126)
  each, once = _bank(fake_vlm, dedup=False), _bank(fake_vlm)
  assert each.answers(images, questions) == once.answers(images, questions)
  assert each.computed["t"] == each.asked["t"] == 126 > once.computed["t"]


def test_cascade_finds_the_same_disagreements(fake_vlm, make_picture):
  images, questions = _probes(make_picture)
  full, thrifty = _bank(fake_vlm), _bank(fake_vlm, cascade=True, batch_size=16)
  a, b = full.verdicts(images, questions), thrifty.verdicts(images, questions)
  assert [v.disagreement for v in a] == [v.disagreement for v in b]
  assert any(v.disagreement for v in a) and any(v.reason == "skipped" for v in b)
  assert all(x == y for x, y in zip(a, b) if x.disagreement)
  assert thrifty.computed.total() < full.computed.total()


def test_eviction_does_not_change_answers(fake_vlm, make_picture):
  images, questions = _probes(make_picture)
  small = _bank(fake_vlm, feature_bytes=50, batch_size=5)
  assert small.answers(images, questions) == _bank(fake_vlm).answers(images, questions)
  assert small.cache.encoded.total() > 7


def test_towers_are_kept_apart(fake_vlm, make_picture):
  cache = FeatureCache(2**20)
  one, two = fake_vlm(_noisy(1), "one"), fake_vlm(_noisy(1), "two")
  for vlm in (one, two, one):
    cache.features(vlm, ["x"], lambda _: make_picture(3))
  assert one.encoded == two.encoded == 1


def test_loader_and_arrays_agree(fake_vlm, make_picture, tmp_path):
  images, questions = _probes(make_picture)
  store = Images(tmp_path)
  ids = [store.put(i) for i in images]
  bank, progress = _bank(fake_vlm, batch_size=32), []
  got = bank.answers(store.get, questions, image_ids=ids, progress=lambda *a: progress.append(a))
  assert got == _bank(fake_vlm).answers(images, questions)
  assert progress[-1] == (60, 60)
  with pytest.raises(ValueError, match="image_ids"):
    bank.answers(store.get, questions)


def test_wrong_names_are_refused(fake_vlm):
  vlms = {"t": fake_vlm(_noisy(1)), "a": fake_vlm(_noisy(2))}
  with pytest.raises(ValueError, match="no model named 'b'"):
    ModelBank(vlms, "t", ("a", "b"))
  with pytest.raises(ValueError, match="different"):
    ModelBank(vlms, "t", ("t",))
  with pytest.raises(ValueError, match="order"):
    ModelBank(vlms, "t", ("a",), config=BankConfig(order=("a",)))


def test_overhead_of_a_training_step_is_small(fake_vlm):
  bank = _bank(fake_vlm)
  pictures = [np.full((64, 64, 3), i, np.uint8) for i in range(16)]
  images = [p for p in pictures for _ in range(8)]
  questions = [f"what color is the {i}" for i in range(128)]
  bank.verdicts(images, questions)
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    bank.verdicts(images, questions)
    seconds.append(time.perf_counter() - start)
  assert min(seconds) < 0.03, seconds
