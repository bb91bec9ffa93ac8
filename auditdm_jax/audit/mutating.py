# SPDX-License-Identifier: Apache-2.0
"""Questions that are finds with a small change: a search by mutation alone, no model writes.

A child has the question of one find, and one of two changes, by lot:

  image  it is asked about another image
  word   one word is replaced by another that was read between the same neighbours, about the same
         image or, half the time, about another

Words come from all questions that were read, so no grammar is needed, and nothing is known of what
they mean. There is no crossover, and parents are drawn alike, whatever their number of children. A
simple opponent of a trained auditor (ours).
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

_EDGE = ""  # Stands for what is before the first word and after the last one.
_TRIES = 4  # Children that are made for each that is wanted, at most.


class Mutations:
  """The finds so far, and the words that were read so far."""

  def __init__(self, questions: Iterable[str], *, well_formed: Callable[[str], bool] | None = None):
    """Takes questions to read words from, and what tells whether a text is a question."""
    self._between: dict[tuple[str, str], dict[str, None]] = {}
    self._parents: dict[tuple[str, int], None] = {}
    self._well_formed = well_formed
    for question in questions:
      self.read(question)

  def __len__(self) -> int:
    return len(self._parents)

  def read(self, question: str) -> None:
    """Takes up the words of a question."""
    words = [_EDGE, *question.split(), _EDGE]
    for before, word, after in zip(words, words[1:], words[2:]):
      self._between.setdefault((before, after), {})[word] = None

  def add(self, question: str, image: int) -> None:
    """Adds a find, by the number of its image."""
    self._parents[question, image] = None

  def children(self, n: int, images: int, *, rng: np.random.Generator) -> list[tuple[int, str]]:
    """Returns at most `n` distinct (image, question) that are not among the finds.

    Args:
      n: how many are wanted.
      images: in the pool.
      rng: draws parents and changes.
    """
    parents = list(self._parents)
    out: dict[tuple[int, str], None] = {}
    for _ in range(_TRIES * n if parents else 0):
      question, image = parents[int(rng.integers(len(parents)))]
      by_word = bool(rng.integers(2))
      child = self._reworded(question.split(), rng) if by_word else question
      if not by_word or rng.integers(2):
        image = int(rng.integers(images))
      fits = self._well_formed is None or self._well_formed(child)
      if fits and (child, image) not in self._parents:
        out[image, child] = None
      if len(out) == n:
        break
    return list(out)

  def _reworded(self, words: Sequence[str], rng: np.random.Generator) -> str:
    """Replaces one word that others can stand for; the text itself if there is none."""
    around = [_EDGE, *words, _EDGE]
    choices = [
      (i, word)
      for i, own in enumerate(words)
      for word in self._between.get((around[i], around[i + 2]), ())
      if word != own
    ]
    if not choices:
      return " ".join(words)
    at, word = choices[int(rng.integers(len(choices)))]
    return " ".join([*words[:at], word, *words[at + 1 :]])
