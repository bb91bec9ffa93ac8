# SPDX-License-Identifier: Apache-2.0
"""Finds with a small change: a search by mutation, no model writes.

A child is a find but for one change, by lot among those that it can have:

  image     the same question is asked about another image: of the pool, or one that somebody else
            has just had made, which nobody may have asked it about
  question  one word of the question is replaced; half of these are about another image too
  text      one word is replaced of the caption or the instruction by which its image was made
  source    the instruction is carried out on another image of the pool

For the last two an image is made. A word is replaced by one that was read between the same
neighbours, so no grammar is needed, and nothing is known of what words mean. There is no crossover.
Kinds of finds are drawn alike and then parents of a kind, whatever their number of children: a
failure that never runs out would be everybody's parent, and one that was met once nobody's. Of a
find about a made image half of the children are about that image, few as there are. A simple
opponent of a trained auditor, and a source of proposals beside it (ours).
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses

import numpy as np

_EDGE = ""  # Stands for what is before the first word and after the last one.
_TRIES = 4  # Children that are made for each that is wanted, at most.


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
  """How an image was made.

  Attributes:
    strategy: its name, as records have it.
    edits: whether the image of the pool was changed; else one was drawn from the text alone.
    text: the instruction or the caption.
    seed: the image service's.
    image_id: what was made; "" = not yet.
  """

  strategy: str
  edits: bool
  text: str
  seed: int
  image_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
  """A question about image number `image` of the pool, or about the one that was made from it."""

  image: int
  question: str
  made: Made | None = None


class Mutations:
  """The finds so far, and the words that were read so far."""

  def __init__(self, questions: Iterable[str], *, well_formed: Callable[[str], bool] | None = None):
    """Takes questions to read words from, and what tells whether a text is a question."""
    self._questions, self._texts = _Words(), _Words()
    self._parents: dict[Asked, str] = {}  # And their kinds.
    self._well_formed = well_formed
    for question in questions:
      self._questions.read(question)

  def __len__(self) -> int:
    return len(self._parents)

  def read(self, question: str, text: str = "") -> None:
    """Takes up the words of a question, and of the text by which its image was made."""
    self._questions.read(question)
    self._texts.read(text)

  def add(self, find: Asked, kind: str) -> None:
    """Adds a find of a kind."""
    self._parents[find] = kind

  def children(
    self, n: int, images: int, *, rng: np.random.Generator, fresh: Sequence[Asked] = ()
  ) -> list[Asked]:
    """Returns at most `n` distinct children for which no image is made.

    Args:
      n: how many are wanted.
      images: in the pool.
      rng: draws parents and changes.
      fresh: what others would ask about images that were just made.
    """
    parents = list(self._parents)
    return self._distinct(n, parents, lambda p: self._asked(p, images, fresh, rng), rng)

  def remade(self, n: int, images: int, *, rng: np.random.Generator) -> list[Asked]:
    """Returns at most `n` distinct children whose image is yet to be made; as `children`."""
    parents = [parent for parent in self._parents if parent.made]
    return self._distinct(n, parents, lambda p: self._remade(p, images, rng), rng)

  def _distinct(
    self,
    n: int,
    parents: Sequence[Asked],
    changed: Callable[[Asked], Asked],
    rng: np.random.Generator,
  ) -> list[Asked]:
    of_kind: dict[str, list[Asked]] = {}
    for parent in parents:
      of_kind.setdefault(self._parents[parent], []).append(parent)
    kinds = list(of_kind.values())
    out: dict[Asked, None] = {}
    for _ in range(_TRIES * n if parents else 0):
      alike = kinds[int(rng.integers(len(kinds)))]
      child = changed(alike[int(rng.integers(len(alike)))])
      fits = self._well_formed is None or self._well_formed(child.question)
      if fits and child not in self._parents:
        out[child] = None
      if len(out) == n:
        break
    return list(out)

  def _asked(
    self, parent: Asked, images: int, fresh: Sequence[Asked], rng: np.random.Generator
  ) -> Asked:
    stays = parent.made is not None and bool(rng.integers(2))
    by_word = stays or bool(rng.integers(2))
    question = self._questions.change(parent.question, rng) if by_word else parent.question
    if stays or (by_word and rng.integers(2)):
      return dataclasses.replace(parent, question=question)
    if fresh and rng.integers(2):
      return dataclasses.replace(fresh[int(rng.integers(len(fresh)))], question=question)
    return Asked(int(rng.integers(images)), question)

  def _remade(self, parent: Asked, images: int, rng: np.random.Generator) -> Asked:
    """Returns the parent itself where that came to no change: its image is not made twice."""
    if parent.made is None:
      raise ValueError(f"no image was made for {parent}")
    image, text = parent.image, parent.made.text
    if parent.made.edits and rng.integers(2):
      image = int(rng.integers(images))
    else:
      text = self._texts.change(text, rng)
    if (image, text) == (parent.image, parent.made.text):
      return parent
    made = dataclasses.replace(parent.made, text=text, image_id="")
    return dataclasses.replace(parent, image=image, made=made)


class _Words:
  """Which words were read between which two others."""

  def __init__(self) -> None:
    self._between: dict[tuple[str, str], dict[str, None]] = {}

  def read(self, text: str) -> None:
    words = [_EDGE, *text.split(), _EDGE]
    for before, word, after in zip(words, words[1:], words[2:]):
      self._between.setdefault((before, after), {})[word] = None

  def change(self, text: str, rng: np.random.Generator) -> str:
    """Replaces one word that others can stand for; the text itself if there is none."""
    words = text.split()
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
