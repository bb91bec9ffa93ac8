# SPDX-License-Identifier: Apache-2.0
"""One question of a benchmark, the same whichever layout it was read from.

Pictures stay where they are: an item says where, and its picture is decoded when it is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import string
from typing import Any, Protocol, overload

import numpy as np

from auditdm_jax.core import pictures

LETTERS = string.ascii_uppercase
# Top, left, bottom, right in shares of height and width.
Box = tuple[float, float, float, float]


class StoredPicture(Protocol):
  """Where one picture is stored."""

  @property
  def name(self) -> str:
    """What errors call it: file, or file and row."""
    ...

  def stored(self) -> str | os.PathLike | bytes | np.ndarray:
    """Returns its path, the bytes of its file, or its pixels u8[H,W,3]."""
    ...


class Outline(Protocol):
  """The outline of an object, as its data set has it."""

  def pixels(self) -> np.ndarray:
    """Returns bool[H,W] in the size of the picture."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkItem:
  """A question about one or several pictures.

  Attributes:
    item_id: unique in its benchmark and split.
    pictures: where its pictures are.
    image_key: the picture's id in its data set. Items of one picture are not independent.
    question: as the data set has it, without a prompt.
    references: accepted answers; () where the data set gives none away.
    options: what can be chosen; an option that a letter skips is "".
    answer: the place of the right option; None if there are no options, or nobody says.
    hint: what the data set gives beside the question.
    group: items that count together (the rotations of a circular question, MME's pairs).
    category: what the benchmark reports by.
    box: of the object, for grounding.
    mask: of the object, for segmentation.
    metadata: other columns, in terms of JSON.
  """

  item_id: str
  pictures: tuple[StoredPicture, ...]
  image_key: str
  question: str
  references: tuple[str, ...] = ()
  options: tuple[str, ...] = ()
  answer: int | None = None
  hint: str = ""
  group: str = ""
  category: str = ""
  box: Box | None = None
  mask: Outline | None = None
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def letter(self) -> str:
    """The letter of the right option, "" if there is none."""
    return "" if self.answer is None else LETTERS[self.answer]

  def image(self, k: int = 0) -> np.ndarray:
    """Returns the k-th picture, u8[H,W,3].

    Raises:
      UserError: it cannot be read.
    """
    picture = self.pictures[k]
    stored = picture.stored()
    if isinstance(stored, np.ndarray):
      return stored
    return pictures.read(stored, name=picture.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
  """Where items come from, to be kept with what is made of them.

  Attributes:
    benchmark: name of the spec.
    split: name in the spec.
    layout: kind of the files: tfds, tsv, parquet, raw or pool.
    path: the file or folder.
    source: where the data set is published.
    licence: under what, as its publisher says.
  """

  benchmark: str
  split: str
  layout: str
  path: pathlib.Path
  source: str
  licence: str


class Items(Sequence[BenchmarkItem]):
  """The items of a split, made one at a time.

  Args:
    length: how many there are.
    make: place -> item.
    provenance: where they come from.
  """

  def __init__(self, length: int, make: Callable[[int], BenchmarkItem], *, provenance: Provenance):
    self._length, self._make = length, make
    self.provenance = provenance

  def __len__(self) -> int:
    return self._length

  @overload
  def __getitem__(self, i: int) -> BenchmarkItem: ...

  @overload
  def __getitem__(self, i: slice) -> "Items": ...

  def __getitem__(self, i: "int | slice") -> "BenchmarkItem | Items":
    if isinstance(i, slice):
      chosen = range(self._length)[i]
      return Items(len(chosen), lambda k: self._make(chosen[k]), provenance=self.provenance)
    return self._make(range(self._length)[i])  # A range knows negative places and its end.
