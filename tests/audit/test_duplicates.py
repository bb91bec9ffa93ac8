# SPDX-License-Identifier: Apache-2.0
"""The index of duplicates finds what a scan of all pairs finds, and does not scan."""

import dataclasses
import time

import numpy as np
import pytest

from auditdm_jax.audit.duplicates import DuplicateIndex, ImagePrint, fingerprint
from auditdm_jax.audit.words import asked


def _question(rng):
  """Up to 24 of 26 words, mostly the first ones, so that many questions nearly overlap."""
  size = int(rng.integers(0, 25))
  kept = [f"word{chr(97 + i)}" for i in range(26) if i < size]
  for _ in range(int(rng.integers(0, 3))):
    if kept:
      kept[int(rng.integers(len(kept)))] = f"word{chr(97 + int(rng.integers(26)))}"
  return " ".join(kept)


def _scan(seen, looks, question, index):
  words, best = asked(question), 0.0
  for image, other in seen:
    theirs = asked(other)
    union = len(words | theirs)
    overlap = len(words & theirs) / union if union else 1.0
    bits = sum(int(x).bit_count() for x in image.bits ^ looks.bits)
    away = np.abs(image.colours.astype(int) - looks.colours.astype(int)).max()
    if overlap >= index.overlap and bits <= index.bits and away <= index.levels:
      best = max(best, overlap)
  return best


@pytest.mark.parametrize("overlap", [0.9, 0.7])
def test_the_index_equals_a_scan(overlap):
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
  images = [fingerprint(image) for image in noise]
  # The same but for bits and levels on either side of the limits.
  for bits, levels in ((6, 8), (7, 8), (6, 9)):
    flipped = images[0].bits.copy()
    flipped[0] ^= np.uint64(2**bits - 1)
    colours = images[0].colours.astype(int)
    colours = np.where(colours < 128, colours + levels, colours - levels).astype(np.uint8)
    images.append(ImagePrint(flipped, colours))
  index, seen, found = DuplicateIndex(overlap=overlap), [], []
  for _ in range(400):
    looks, question = images[int(rng.integers(len(images)))], _question(rng)
    found.append(index.similarity(looks, question))
    assert found[-1] == pytest.approx(_scan(seen, looks, question, index))
    index.add(looks, question)
    seen.append((looks, question))
  assert 0 < sum(0 < f < 1 for f in found) and 0 in found and 1 in found


def test_a_find_costs_the_same_however_many_there_are():
  rng, index = np.random.default_rng(1), DuplicateIndex()
  looks = fingerprint(rng.integers(0, 256, (16, 16, 3), np.uint8))

  def add(n):
    start = time.process_time()
    for _ in range(n):
      question = " ".join(f"w{i:x}" for i in rng.integers(4_000, size=12))
      index.similarity(looks, question)
      index.add(looks, question)
    return time.process_time() - start

  first = add(500)
  add(4_000)
  assert add(500) < 3 * first  # A scan would take 17 times as long.


def test_a_fingerprint_is_small():
  looks = fingerprint(np.zeros((64, 48, 3), np.uint8))
  assert sum(x.nbytes for x in vars(looks).values()) == 224
  assert {f.name for f in dataclasses.fields(looks)} == {"bits", "colours"}


@pytest.mark.parametrize(
  ("first", "second", "same"),
  [
    ("Is there a dog in the picture?", "How many dogs are there?", False),
    ("Is there a dog in the picture?", "Where is the dog?", False),
    ("Is there a dog in the picture?", "Is the dog there?", True),
    ("What is this?", "Where is it?", False),
    ("How full is the gauge?", "The gauge is how full?", True),
    ("Which color is the bus?", "What is the color of the bus?", True),
    ("Какого цвета машина?", "Где стоит дом?", False),
    ("这只狗是什么颜色的？", "图中有几只猫？", False),
  ],
)
def test_what_is_asked_makes_questions_the_same_and_not_their_words_alone(first, second, same):
  looks, index = fingerprint(np.zeros((32, 32, 3), np.uint8)), DuplicateIndex()
  index.add(looks, first)
  assert (index.similarity(looks, second) >= index.overlap) == same
  assert index.similarity(looks, first) == 1
  assert index.similarity(looks, first, "red") < index.overlap


def test_the_same_words_with_another_answer_are_another_find():
  looks, index = fingerprint(np.zeros((32, 32, 3), np.uint8)), DuplicateIndex()
  index.add(looks, "Is the red cube left of a blue ball?", "yes")
  swapped = "Is a blue cube left of the red ball?"
  assert index.similarity(looks, swapped, "no") < index.overlap
  assert index.similarity(looks, swapped, "yes") == 1
