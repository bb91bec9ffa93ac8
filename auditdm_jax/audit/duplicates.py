# SPDX-License-Identifier: Apache-2.0
"""Probes that are the same but for noise: an image a few bits away, and nearly the same words.

The words are those of `words.asked`; with another answer all of them are others. Two sets of words
overlap by t = |both| / |either| or more only if they share a word among their first
n - ceil(t·n) + 1 words, in any fixed order (prefix filtering; Chaudhuri, Ganti and Kaushik 2006, "A
primitive operator for similarity joins in data cleaning"). At t = .9 a set of fewer than nine words
has no near relatives, only equals. Both are looked up and nothing is scanned, except for the images
that were asked the same words.
"""

import array
from collections.abc import Iterator
import dataclasses
import math

import numpy as np
from PIL import Image

from auditdm_jax.audit.words import asked


@dataclasses.dataclass(frozen=True)
class ImagePrint:
  """What an image looks like: difference hash u64[4], of which 240 bits, and thumbnail u8[192]."""

  bits: np.ndarray
  colours: np.ndarray


def fingerprint(image: np.ndarray) -> ImagePrint:
  """Returns the fingerprint of u8[H,W,3]."""
  picture = Image.fromarray(image)
  grey = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), np.int16)
  thumb = np.asarray(picture.resize((8, 8), Image.Resampling.BOX))
  # A step counts from 5 levels on: in flat areas noise would toss the bits.
  steps = np.zeros(256, bool)
  steps[:240] = (grey[:, 1:] > grey[:, :-1] + 4).ravel()
  return ImagePrint(np.packbits(steps).view(np.uint64), thumb.ravel())


@dataclasses.dataclass
class DuplicateIndex:
  """Probes seen so far; one index over the finds, others over benchmarks (leak test).

  Attributes:
    bits: largest Hamming distance of two difference hashes of "the same" image.
    levels: largest difference of two colour thumbnails.
    overlap: smallest Jaccard overlap of the questions' words.
  """

  bits: int = 6
  levels: int = 8
  overlap: float = 0.9

  def __post_init__(self) -> None:
    self._rows: dict[frozenset[str], array.array[int]] = {}  # Rows of the images, by words.
    self._by_word: dict[str, list[frozenset[str]]] = {}
    self._bits, self._colours = np.empty((64, 4), np.uint64), np.empty((64, 192), np.uint8)
    self._count = 0

  def add(self, image: ImagePrint, question: str, answer: str = "") -> None:
    """Remembers a probe, and an answer where those with another one are no duplicates."""
    words = _words(question, answer)
    if words not in self._rows:
      self._rows[words] = array.array("q")
      if self._has_relatives(words):
        for word in self._prefix(words):
          self._by_word.setdefault(word, []).append(words)
    if self._count == len(self._bits):
      self._bits = np.concatenate([self._bits, np.empty_like(self._bits)])
      self._colours = np.concatenate([self._colours, np.empty_like(self._colours)])
    self._bits[self._count], self._colours[self._count] = image.bits, image.colours
    self._rows[words].append(self._count)
    self._count += 1

  def similarity(self, image: ImagePrint, question: str, answer: str = "") -> float:
    """Best text overlap among the remembered probes whose image is the same; 0 if none."""
    words = _words(question, answer)
    best = 0.0
    for other, overlap in self._near(words):
      if overlap > best and self._is_seen(image, self._rows[other]):
        best = overlap
    return best

  def _near(self, words: frozenset[str]) -> Iterator[tuple[frozenset[str], float]]:
    """Yields the remembered sets of words that overlap enough, equal ones first."""
    if words in self._rows:
      yield words, 1.0
    if not self._has_relatives(words):
      return
    looked_at = {words}
    for word in self._prefix(words):
      for other in self._by_word.get(word, ()):
        if other not in looked_at:
          looked_at.add(other)
          both = len(words & other)
          overlap = both / (len(words) + len(other) - both)
          if overlap >= self.overlap:
            yield other, overlap

  def _has_relatives(self, words: frozenset[str]) -> bool:
    """Whether a set that differs can overlap enough: the nearest one has one word more."""
    return len(words) >= self.overlap * (len(words) + 1)

  def _prefix(self, words: frozenset[str]) -> list[str]:
    """The first words, long ones before short ones, since they are rarer."""
    kept = len(words) - math.ceil(self.overlap * len(words) - 1e-9) + 1
    return sorted(words, key=lambda w: (-len(w), w))[:kept]

  def _is_seen(self, image: ImagePrint, rows: "array.array[int]") -> bool:
    at = np.frombuffer(rows, np.int64)
    apart = np.bitwise_count(self._bits[at] ^ image.bits).sum(1)
    close = at[apart <= self.bits]
    away = np.abs(self._colours[close].astype(np.int16) - image.colours)
    return bool((away.max(axis=1, initial=0) <= self.levels).any())


def _words(question: str, answer: str) -> frozenset[str]:
  words = asked(question)
  return frozenset(f"{answer}: {word}" for word in words or ("",)) if answer else words
