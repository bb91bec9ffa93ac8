# SPDX-License-Identifier: Apache-2.0
"""Where images come from: a prepared TFDS split, or a folder of someone's own images.

Both answer the same five questions: how many, which pixels, which id, which questions, which
answers. Reading needs no TensorFlow.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import os
import pathlib
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps
import tensorflow_datasets as tfds

from auditdm_jax.core import config
from auditdm_jax.core.image_store import Images

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class ImagePool(Protocol):
  """What a source of images can tell about its i-th image."""

  split: str

  def __len__(self) -> int: ...

  def image(self, i: int) -> np.ndarray:
    """u8[H,W,3]."""
    ...

  def image_id(self, i: int) -> str:
    """Hash of the pixels; the same for the same pixels anywhere."""
    ...

  def questions(self, i: int) -> tuple[str, ...]: ...

  def answers(self, i: int) -> tuple[str, ...]:
    """One per question, or () when the source has none."""
    ...


class Pool:
  """A split of a data set with the features `image`, `questions` and `answers`."""

  def __init__(self, data_source: Sequence[Mapping[str, Any]], split: str):
    self._source = data_source
    self.split = split
    self._row = functools.lru_cache(maxsize=256)(self._read)

  def _read(self, i: int) -> Mapping[str, Any]:
    if not 0 <= i < len(self):
      raise IndexError(f"{self.split}: no image {i} among {len(self)}")
    return self._source[i]

  def __len__(self) -> int:
    return len(self._source)

  def image(self, i: int) -> np.ndarray:
    return self._row(i)["image"]

  def image_id(self, i: int) -> str:
    return Images.id_of(self.image(i))

  def questions(self, i: int) -> tuple[str, ...]:
    return tuple(_text(x) for x in self._row(i)["questions"])

  def answers(self, i: int) -> tuple[str, ...]:
    return tuple(_text(x) for x in self._row(i)["answers"])

  def text(self, i: int, feature: str) -> str:
    """Another text feature of the row, for instance the scene."""
    return _text(self._row(i)[feature])


def _text(value: bytes | str) -> str:
  """TFDS gives bytes or str, depending on whether TensorFlow is installed."""
  return value.decode() if isinstance(value, bytes) else str(value)


def open_pool(directory: str | os.PathLike, split: str) -> ImagePool:
  """Opens a split: of a prepared TFDS data set, or the folder of images that is called so."""
  directory = pathlib.Path(directory)
  if (directory / "dataset_info.json").is_file():
    return open_tfds(directory, split)
  if (directory / split).is_dir():
    return FolderPool(directory / split)
  raise config.UserError(
    f"{directory}: neither a prepared data set nor a folder with images in {split}/"
  )


def open_tfds(directory: str | os.PathLike, split: str) -> Pool:
  """Opens a split of a prepared data set, `<data_dir>/<name>/<config>/<version>`; or a slice, as
  "train[:80%]".
  """
  directory = pathlib.Path(directory)
  builder = tfds.builder_from_directory(str(directory))
  if split.partition("[")[0] not in builder.info.splits:
    raise config.UserError(
      f"{directory}: no split {split!r}{config.did_you_mean(split, builder.info.splits)};"
      f" splits: {', '.join(builder.info.splits)}"
    )
  return Pool(builder.as_data_source(split), split)


class FolderPool:
  """The images of a folder, by name, with what an optional questions.jsonl asks about them.

  A row of questions.jsonl is {"image": file name, "question": text} and may have "answer".
  Sub-folders are not searched.
  """

  def __init__(self, directory: str | os.PathLike):
    root = pathlib.Path(directory)
    if not root.is_dir():
      raise config.UserError(f"{root}: no such folder of images")
    self.split = root.name
    self._paths = sorted(p for p in root.iterdir() if p.suffix.lower() in _SUFFIXES)
    if not self._paths:
      raise config.UserError(f"{root}: no images; known kinds: {', '.join(_SUFFIXES)}")
    self._asked = _read_questions(root / "questions.jsonl", {p.name for p in self._paths})
    self._cached = functools.lru_cache(maxsize=64)(self._read)

  def _read(self, i: int) -> np.ndarray:
    try:
      with Image.open(self._paths[i]) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as e:
      raise config.UserError(f"{self._paths[i]}: cannot be read as an image ({e})") from e

  def __len__(self) -> int:
    return len(self._paths)

  def image(self, i: int) -> np.ndarray:
    return self._cached(i)

  def image_id(self, i: int) -> str:
    return Images.id_of(self.image(i))

  def questions(self, i: int) -> tuple[str, ...]:
    return tuple(question for question, _ in self._asked.get(self._paths[i].name, ()))

  def answers(self, i: int) -> tuple[str, ...]:
    """The answers if every question of the image has one, else ()."""
    answers = tuple(answer for _, answer in self._asked.get(self._paths[i].name, ()))
    return () if None in answers else answers


def _read_questions(path: pathlib.Path, names: set[str]) -> dict[str, list[tuple[str, str | None]]]:
  """File name -> [(question, answer or None), …]."""
  asked: dict[str, list[tuple[str, str | None]]] = {}
  if not path.is_file():
    return asked
  for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      name, question, answer = row["image"], row["question"], row.get("answer")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise config.UserError(
        f'{path}:{number}: not a row {{"image": …, "question": …}} ({e!r})'
      ) from e
    if name not in names:
      raise config.UserError(
        f"{path}:{number}: no image {name!r}{config.did_you_mean(name, names)}"
      )
    asked.setdefault(name, []).append((question, answer))
  return asked
