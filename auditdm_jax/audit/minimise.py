# SPDX-License-Identifier: Apache-2.0
"""What is left of a failure: the shortest question and the smallest edit that still show it.

Both are found by delta debugging (ddmin; Zeller and Hildebrandt, IEEE TSE 28(2), 2002): parts are
left out, larger ones first, as long as the failure stays. Of a question the parts are its words, of
an edit the tiles in which the image differs from its source, which then fade as far as they can.

Candidates of a round are tried together, since models answer a batch at once. A budget bounds how
many are tried.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import TypeVar

import numpy as np

T = TypeVar("T")
# Whether each of several candidates still fails.
QuestionsFail = Callable[[Sequence[str]], Sequence[bool]]
ImagesFail = Callable[[Sequence[np.ndarray]], Sequence[bool]]
Parts = tuple[int, ...]
_GRID = 8  # Tiles along each side of an image.
_STRENGTHS = tuple(i / 8 for i in range(1, 8))  # Shares of an edit's change that are tried.


@dataclasses.dataclass(frozen=True)
class ShortestQuestion:
  """The shortest question found.

  Attributes:
    question: it.
    words: how many it has.
    words_before: how many the original has.
    tried: candidates.
    is_minimal: no single word can be left out; False if the budget ended the search.
  """

  question: str
  words: int
  words_before: int
  tried: int
  is_minimal: bool


@dataclasses.dataclass(frozen=True)
class SmallestEdit:
  """The nearest image to the source that was found.

  Attributes:
    image: u8[H,W,3].
    tiles: of the grid that still differ from the source; 0 if the source fails as well.
    tiles_before: that the edit changed.
    strength: share of the edit's change that is left in them.
    tried: candidates.
    is_minimal: no single tile can be left out; False if the budget ended the search.
  """

  image: np.ndarray
  tiles: int
  tiles_before: int
  strength: float
  tried: int
  is_minimal: bool


@dataclasses.dataclass(frozen=True)
class Minimised:
  """A failure and what is left of it.

  Attributes:
    probe_id: of the failure.
    question: the shortest one that shows it.
    words: how many it has.
    words_before: how many the failure's has.
    image_id: of the smallest edit, or the failure's where nothing was edited or made smaller.
    tiles: of the edit that are left; 0 if none is needed.
    tiles_before: tiles that it changed; 0 if the image was not edited.
    strength: share of the change that is left in them.
    k: trials in which question and image together still fail.
    n: trials.
    queries: questions about an image that target and references were asked for this.
    is_minimal: no word and no tile can be left out; False if the budget ended the search.
    note: why no edit was made smaller.
  """

  probe_id: str
  question: str
  words: int
  words_before: int
  image_id: str
  tiles: int
  tiles_before: int
  strength: float
  k: int
  n: int
  queries: int
  is_minimal: bool
  note: str = ""


class _Budget:
  """Counts candidates; each is tried once."""

  def __init__(self, left: int):
    self.left, self.tried = left, 0
    self._known: dict[Parts, bool] = {}

  def first(
    self, candidates: Sequence[Parts], fails: Callable[[list[Parts]], Sequence[bool]]
  ) -> Parts | None:
    """Returns the first of the candidates, the best ones before, that fails; None if none does."""
    fresh = [c for c in candidates if c not in self._known][: self.left]
    if fresh:
      self.left -= len(fresh)
      self.tried += len(fresh)
      self._known |= zip(fresh, map(bool, fails(fresh)), strict=True)
    return next((c for c in candidates if self._known.get(c)), None)


def shortest_question(question: str, fails: QuestionsFail, *, budget: int) -> ShortestQuestion:
  """Leaves out words of a question as long as it fails.

  Args:
    question: a question that fails.
    fails: tries questions; one that is not well formed does not fail.
    budget: most candidates that are tried.
  """
  end = "?" if question.rstrip().endswith("?") else ""
  words = question.rstrip(" ?").split()

  def text(parts: Parts) -> str:
    return " ".join(words[i] for i in parts) + end

  spent = _Budget(budget)
  kept, is_minimal = _ddmin(
    tuple(range(len(words))), lambda rows: fails([text(parts) for parts in rows]), spent
  )
  shortest = question if len(kept) == len(words) else text(kept)
  return ShortestQuestion(shortest, len(kept), len(words), spent.tried, is_minimal)


def smallest_edit(
  source: np.ndarray, edited: np.ndarray, fails: ImagesFail, *, budget: int
) -> SmallestEdit:
  """Takes back an edit tile by tile, and then fades what is left, as long as the image fails.

  Args:
    source: u8[H,W,3] before the edit.
    edited: u8[H,W,3] that fails.
    fails: tries images.
    budget: most candidates that are tried.

  Raises:
    ValueError: the images differ in size.
  """
  if source.shape != edited.shape:
    raise ValueError(f"sizes differ: {source.shape} and {edited.shape}")
  tiles = [t for t in _tiles(source.shape) if (source[t] != edited[t]).any()]

  def image(parts: Parts, strength: float = 1.0) -> np.ndarray:
    made = source.copy()
    for i in parts:
      old, new = (x[tiles[i]].astype(np.float32) for x in (source, edited))
      made[tiles[i]] = np.round(old + strength * (new - old)).astype(np.uint8)
    return made

  spent = _Budget(budget)

  def all_fail(rows: Sequence[Parts]) -> Sequence[bool]:
    return fails([image(parts) for parts in rows])

  if spent.first([()], all_fail) is not None:
    return SmallestEdit(source.copy(), 0, len(tiles), 0.0, spent.tried, is_minimal=True)
  kept, is_minimal = _ddmin(tuple(range(len(tiles))), all_fail, spent)
  # A strength need not fail wherever a lower one does, so all are tried.
  tried = _STRENGTHS[: spent.left]
  outcomes = fails([image(kept, s) for s in tried]) if tried else ()
  strength = next((s for s, failed in zip(tried, outcomes) if failed), 1.0)
  return SmallestEdit(
    image=image(kept, strength),
    tiles=len(kept),
    tiles_before=len(tiles),
    strength=strength,
    tried=spent.tried + len(tried),
    is_minimal=is_minimal,
  )


def _ddmin(
  parts: Parts, fails: Callable[[list[Parts]], Sequence[bool]], spent: _Budget
) -> tuple[Parts, bool]:
  """Returns parts that still fail and of which no single one can be left out, and whether it is so.

  Of the candidates of a round the smallest that fails is taken.
  """
  pieces = 2
  while len(parts) > 1:
    if spent.left <= 0:
      return parts, False
    pieces = min(pieces, len(parts))
    chunks = _split(parts, pieces)
    rests = [tuple(i for i in parts if i not in chunk) for chunk in chunks]
    found = spent.first(sorted({*chunks, *rests}, key=lambda c: (len(c), c)), fails)
    if found is not None:
      pieces = 2 if found in chunks else max(pieces - 1, 2)
      parts = found
    elif pieces == len(parts):
      return parts, spent.left > 0
    else:
      pieces *= 2
  return parts, True


def _split(parts: Parts, pieces: int) -> list[Parts]:
  """Divides parts into runs of nearly equal lengths, none of them empty."""
  bounds = [len(parts) * i // pieces for i in range(pieces + 1)]
  return [parts[a:b] for a, b in zip(bounds, bounds[1:])]


def _tiles(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
  """The tiles of an image, [H,W,3]."""
  rows, columns = (
    [round(side * i / _GRID) for i in range(_GRID + 1)] for side in (shape[0], shape[1])
  )
  return [
    (slice(a, b), slice(c, d))
    for a, b in zip(rows, rows[1:])
    for c, d in zip(columns, columns[1:])
    if a < b and c < d
  ]
