# SPDX-License-Identifier: Apache-2.0
"""Where training examples come from: lists, JSONL exports and pools. Each is read when its turn is.

What is in memory are the places of examples and not their texts or pictures, so that a million of
them take a few megabytes. All sources read by number, which is what grain's passes ask for, and
may be read by several threads.
"""

import array
from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models import preprocess
from auditdm_jax.rectify import rows
from auditdm_jax.rectify.curate import TrainingExample

_MAX_TEXT = 10_000  # Characters of a question or an answer, as in pools.


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Example:
  """A question about a picture, and what is right to answer.

  Attributes:
    question: as the model's template takes it.
    answers: those accepted; each pass over the examples teaches one of them.
    image: what tells pictures apart.
    origin: the image that the picture was made of, or `image`; validation is split by it.
    where: file and row, for errors.
    open: returns the picture.
  """

  question: str
  answers: tuple[str, ...]
  image: str
  origin: str
  where: str
  open: Callable[[], preprocess.Picture]


class Examples(Protocol):
  """A source of examples."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int, /) -> Example:
    """Returns the i-th example.

    Raises:
      UserError: its row is invalid or damaged; the error names file and row.
    """
    ...


class ListedExamples:
  """What `curate` chose, or replay."""

  def __init__(
    self,
    examples: Sequence[TrainingExample],
    *,
    load: Callable[[str], np.ndarray],
    put: Callable[[str], str],
  ):
    """Takes the list, how images are found by id, and how the model is asked a question."""
    self._examples, self._load, self._put = examples, load, put

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, i: int, /) -> Example:
    example = self._examples[i]
    return Example(
      question=example.question if example.is_prompt else self._put(example.question),
      answers=(example.label,),
      image=example.image_id,
      origin=example.origin_id or example.image_id,
      where=f"example {i} (image {example.image_id[:12]})",
      open=functools.partial(self._load, example.image_id),
    )


class JsonlExamples:
  """The rows of an export: {"image", "prefix", "suffix"}, pictures in `images/` beside the file.

  A suffix is a text, or a list of texts that are all right.
  """

  def __init__(self, path: str | os.PathLike):
    """Finds the rows; each is checked when it is read.

    Raises:
      UserError: there is no such file, or no row in it.
    """
    self._path = pathlib.Path(path)
    self._images = self._path.parent / "images"
    starts = array.array("q", [0])
    try:
      self._file = open(self._path, "rb", buffering=0)
      with open(self._path, "rb") as file:
        for line in file:
          starts.append(starts[-1] + len(line))
    except OSError as e:
      raise UserError(f"{self._path} cannot be read: {e.strerror}") from e
    if len(starts) == 1:
      raise UserError(f"{self._path}: no rows")
    self._starts = np.frombuffer(starts, np.int64)

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, i: int, /) -> Example:
    start, end = int(self._starts[i]), int(self._starts[i + 1])
    where = f"{self._path}:{i + 1}"
    row = _parse(os.pread(self._file.fileno(), end - start, start), where)
    path = self._images / row["image"]
    if not path.resolve().is_relative_to(self._images.resolve()):
      raise UserError(f"{where}: the image {row['image'][:80]!r} is not in {self._images}")
    said = row["suffix"]
    return Example(
      question=row["prefix"],
      answers=(said,) if isinstance(said, str) else tuple(said),
      image=row["image"],
      origin=row["image"],
      where=where,
      open=lambda: path,
    )

  def close(self) -> None:
    self._file.close()


def _parse(line: bytes, where: str) -> dict[str, Any]:
  """Returns the row of a line, its texts checked."""
  try:
    row = json.loads(line)
  except ValueError as e:
    raise UserError(f"{where}: not JSON") from e
  if not isinstance(row, dict):
    raise UserError(f"{where}: not a JSON object")
  for key in ("image", "prefix"):
    if not _is_text(row.get(key)):
      raise UserError(f"{where}: {key} is not a text of 1 to {_MAX_TEXT} characters")
  said = row.get("suffix")
  if not (_is_text(said) or (isinstance(said, list) and said and all(map(_is_text, said)))):
    raise UserError(
      f"{where}: suffix is neither a text of 1 to {_MAX_TEXT} characters nor a list of such texts"
    )
  return row


def _is_text(value: object) -> bool:
  return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


class PoolExamples:
  """The questions of a pool that have answers: TFDS, array_record, parquet, folders.

  See `core.pool.open_pool` for what can be opened.
  """

  def __init__(self, pool: pool_lib.ImagePool, *, name: str, put: Callable[[str], str]):
    """Takes a pool, what errors call it, and how the model is asked a question.

    Raises:
      UserError: no question has an answer.
    """
    self._pool, self._name, self._put = pool, name, put
    self._ids = np.array(pool.image_ids(range(len(pool))), "S64")
    places = array.array("q")
    for i in range(len(pool)):
      for j, said in enumerate(pool.answers(i)):
        if said:
          places.extend((i, j))
    if not places:
      raise UserError(f"{name}: no question of the split {pool.split} has an answer to train on")
    self._places = np.frombuffer(places, np.int64).reshape(-1, 2)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, k: int, /) -> Example:
    i, j = map(int, self._places[k])
    image = self._ids[i].decode()
    return Example(
      question=self._put(self._pool.questions(i)[j]),
      answers=self._pool.answers(i)[j],
      image=image,
      origin=image,
      where=f"{self._name}: {self._pool.question_ids(i)[j]}",
      open=functools.partial(self._pool.image, i),
    )


def tokens_of(layout: rows.RowLayout, example: Example, answer: str) -> dict[str, np.ndarray]:
  """Returns the columns [1,…] of `RowLayout.rows`.

  Raises:
    UserError: the example does not fit into a row; the error says where it is.
  """
  try:
    return layout.rows([example.question], [answer])
  except ValueError as e:
    raise UserError(f"{example.where}: {e}") from e
